use std::time::{Duration, Instant};

use bytes::Bytes;
use kubeedge_core::{
    message::{Request, Response, ToNode, TunnelId, TunnelRequest, TunnelResponse, TunnelStep},
    pipe::{self, Callee},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

use super::{
    pump::Pump,
    state::{Downward, Patience, Upward},
};
use crate::node::{Failed, Node};

const SECOND: Duration = Duration::from_secs(1);

fn push(offset: u64, data: &'static str, end: bool) -> Option<TunnelStep> {
    Some(TunnelStep::Push { offset, data: Bytes::from_static(data.as_bytes()), end, wait: SECOND })
}

#[test]
fn what_a_node_has_not_taken_is_said_again() {
    let mut up = Upward::default();
    assert_eq!(up.step(SECOND), None);
    up.handle_said(Bytes::from_static(b"hello"));
    assert_eq!(up.step(SECOND), push(0, "hello", false));
    up.handle_answer(&TunnelResponse::Taken(2)).unwrap();
    assert_eq!(up.step(SECOND), push(2, "llo", false));
    up.handle_answer(&TunnelResponse::Taken(5)).unwrap();
    assert_eq!(up.step(SECOND), None);
    up.handle_said(Bytes::new());
    assert_eq!(up.step(SECOND), push(5, "", true));
    up.handle_answer(&TunnelResponse::Taken(5)).unwrap();
    assert_eq!(up.step(SECOND), None);
}

#[test]
fn a_node_that_answers_what_cannot_be_is_not_believed() {
    let mut up = Upward::default();
    up.handle_said(Bytes::from_static(b"hello"));
    let piece = |data: &'static [u8]| TunnelResponse::Piece { data: Bytes::from_static(data), end: false };
    assert!(up.handle_answer(&TunnelResponse::Taken(6)).is_err());
    assert!(up.handle_answer(&piece(b"x")).is_err());
    up.handle_answer(&TunnelResponse::Taken(3)).unwrap();
    assert!(up.handle_answer(&TunnelResponse::Taken(2)).is_err());
    let mut down = Downward::default();
    assert!(down.handle_answer(TunnelResponse::Taken(0)).is_err());
    assert!(down.handle_answer(piece(&[0; TunnelStep::DATA_MAX + 1])).is_err());
    assert_eq!(down.handle_answer(piece(b"abc")).unwrap(), (Bytes::from_static(b"abc"), false));
    assert_eq!(down.step(SECOND), TunnelStep::Pull { offset: 3, wait: SECOND });
}

#[test]
fn a_node_is_waited_for_as_long_as_it_may_be_back_and_no_longer() {
    let failed = |code| Failed { code, message: String::new() };
    let now = Instant::now();
    let mut patience = Patience::new(30 * SECOND);
    for code in [503, 504, 502] {
        assert!(patience.handle_failure(&failed(code), now));
    }
    assert!(patience.handle_failure(&failed(503), now + 29 * SECOND));
    assert!(!patience.handle_failure(&failed(503), now + 30 * SECOND));
    for final_code in [400, 404, 409, 501] {
        assert!(!Patience::new(30 * SECOND).handle_failure(&failed(final_code), now));
    }
}

/// A node on which an application says back whatever it is told, and ends when that ends. Of three answers one is lost.
struct Echo {
    steps: Callee<ToNode<Request>, Response>,
    heard: Vec<u8>,
    ended: bool,
    closed: bool,
}

impl Echo {
    async fn run(mut self) -> Self {
        let mut count = 0;
        while let Some(call) = self.steps.recv().await {
            let Request::Tunnel(TunnelRequest { tunnel, step }) = &call.question.message else {
                panic!("{:?}", call.question);
            };
            assert_eq!(*tunnel, TunnelId(7));
            let answer = self.step(step);
            count += 1;
            if self.closed {
                call.answer(Response::Tunnel(answer));
                return self;
            }
            if count % 3 == 0 {
                let message = "the node's session is over".to_owned();
                call.answer(Response::Failed { code: 503, message });
            } else {
                call.answer(Response::Tunnel(answer));
            }
        }
        self
    }

    fn step(&mut self, step: &TunnelStep) -> TunnelResponse {
        let length = self.heard.len() as u64;
        match step {
            TunnelStep::Open => {}
            TunnelStep::Push { offset, data, end, .. } => {
                let known = usize::try_from(length - offset).unwrap().min(data.len());
                // It takes no more than this at once.
                let rest = &data[known..];
                let taken = rest.len().min(1000);
                self.heard.extend_from_slice(&rest[..taken]);
                self.ended |= *end && taken == rest.len();
                return TunnelResponse::Taken(self.heard.len() as u64);
            }
            TunnelStep::Pull { offset, .. } => {
                let data = self.heard[usize::try_from(*offset).unwrap()..].to_vec();
                return TunnelResponse::Piece { data: data.into(), end: self.ended };
            }
            TunnelStep::Close => self.closed = true,
        }
        TunnelResponse::Taken(0)
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_reach_an_application_and_come_back_over_a_link_that_loses_answers() {
    let (asking, steps) = pipe::calls("requests", 8);
    let echo = tokio::spawn(Echo { steps, heard: Vec::new(), ended: false, closed: false }.run());
    let node = Node::new(asking, "edge-1".parse().unwrap(), 15 * SECOND);
    let pump = Pump::open(node, TunnelId(7)).await.unwrap();
    let (near, far) = duplex(64 << 10);
    let said: Vec<u8> = (0..300_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let (mut reader, mut writer) = split(near);
    let client = async {
        let mut heard = Vec::new();
        let saying = async {
            writer.write_all(&said).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        tokio::join!(saying, async { reader.read_to_end(&mut heard).await.unwrap() });
        heard
    };
    let (heard, carried) = tokio::join!(client, pump.run(far));
    assert_eq!((heard.len(), heard == said, carried), (said.len(), true, Ok(())));
    pump.close().await;
    let echo = echo.await.unwrap();
    assert!(echo.closed && echo.heard == said);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_whose_node_stays_away_ends_with_the_reason() {
    let (asking, mut steps) = pipe::calls("requests", 8);
    let node = Node::new(asking, "edge-1".parse().unwrap(), 15 * SECOND);
    tokio::spawn(async move {
        let mut first: Option<pipe::Call<ToNode<Request>, Response>> = steps.recv().await;
        if let Some(open) = first.take() {
            open.answer(Response::Tunnel(TunnelResponse::Taken(0)));
        }
        while let Some(call) = steps.recv().await {
            call.answer(Response::Failed { code: 503, message: "node edge-1 is not connected".to_owned() });
        }
    });
    let pump = Pump::open(node, TunnelId(7)).await.unwrap();
    let (near, far) = duplex(1024);
    let began = tokio::time::Instant::now();
    let failed = pump.run(far).await.unwrap_err();
    assert!(failed.code == 503 && failed.message.contains("not connected"), "{failed:?}");
    assert!((29..=31).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    drop(near);
}
