use std::time::{Duration, Instant};

use bytes::Bytes;
use kubeedge_core::message::{Response, TunnelResponse, TunnelStep};
use proptest::prelude::*;

use super::state::Tunnel;

const SECOND: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(60);

/// A tunnel, and the time.
struct Story {
    tunnel: Tunnel<u32>,
    now: Instant,
}

impl Story {
    fn new() -> Self {
        let now = Instant::now();
        Self { tunnel: Tunnel::new(IDLE, now), now }
    }

    fn push(&mut self, from: u32, offset: u64, data: &str, end: bool) {
        let data = Bytes::copy_from_slice(data.as_bytes());
        self.tunnel.handle_step(from, TunnelStep::Push { offset, data, end, wait: 5 * SECOND }, self.now);
    }

    fn pull(&mut self, from: u32, offset: u64) {
        self.tunnel.handle_step(from, TunnelStep::Pull { offset, wait: 10 * SECOND }, self.now);
    }

    /// The connection takes so many bytes: which they are.
    fn write(&mut self, count: usize) -> String {
        let bytes = self.tunnel.to_write();
        let count = count.min(bytes.len());
        self.tunnel.handle_written(count);
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.tunnel.handle_timeout(self.now);
    }

    fn answers(&mut self) -> Vec<(u32, Response)> {
        std::iter::from_fn(|| self.tunnel.poll_answer()).collect()
    }

    fn code(&mut self) -> u16 {
        match self.answers().as_slice() {
            [(_, Response::Failed { code, .. })] => *code,
            other => panic!("{other:?}"),
        }
    }
}

fn taken(count: u64) -> Response {
    Response::Tunnel(TunnelResponse::Taken(count))
}

fn piece(data: &str, end: bool) -> Response {
    Response::Tunnel(TunnelResponse::Piece { data: Bytes::copy_from_slice(data.as_bytes()), end })
}

#[test]
fn a_push_is_answered_when_the_connection_has_taken_all_of_it() {
    let mut story = Story::new();
    story.push(1, 0, "hello", false);
    assert_eq!(story.write(2), "he");
    assert_eq!(story.answers(), []);
    assert_eq!(story.write(9), "llo");
    assert_eq!(story.answers(), [(1, taken(5))]);
    story.push(2, 5, "", true);
    assert_eq!(story.answers(), [(2, taken(5))]);
    assert!(story.tunnel.wants_shutdown());
    story.tunnel.handle_deaf();
    assert!(!story.tunnel.wants_shutdown());
}

#[test]
fn a_push_that_comes_again_is_not_said_twice_and_one_that_leaves_a_gap_is_refused() {
    let mut story = Story::new();
    story.push(1, 0, "hello", false);
    assert_eq!(story.write(5), "hello");
    assert_eq!(story.answers(), [(1, taken(5))]);
    story.push(2, 0, "hello", false);
    assert_eq!(story.tunnel.to_write(), "");
    assert_eq!(story.answers(), [(2, taken(5))]);
    story.push(3, 3, "lo, you", false);
    assert_eq!(story.write(99), ", you");
    assert_eq!(story.answers(), [(3, taken(10))]);
    story.push(4, 11, "x", false);
    assert_eq!(story.code(), 409);
    // It is repeated while the first is at work, which is answered with what it came to.
    story.push(5, 10, "abc", false);
    assert_eq!(story.write(1), "a");
    story.push(6, 10, "abc", false);
    assert_eq!(story.answers(), [(5, taken(11))]);
    assert_eq!(story.write(99), "bc");
    assert_eq!(story.answers(), [(6, taken(13))]);
}

#[test]
fn a_connection_that_does_not_read_takes_a_part_in_time() {
    let mut story = Story::new();
    story.push(1, 0, "hello", false);
    assert_eq!(story.write(2), "he");
    story.pass(5 * SECOND);
    assert_eq!(story.answers(), [(1, taken(2))]);
    assert_eq!(story.tunnel.to_write(), "", "the rest is said again");
    story.push(2, 2, "llo", false);
    assert_eq!(story.write(9), "llo");
}

#[test]
fn a_pull_is_answered_as_soon_as_there_is_something_and_empty_at_its_deadline() {
    let mut story = Story::new();
    story.pull(1, 0);
    assert_eq!(story.answers(), []);
    story.tunnel.handle_read(b"one");
    assert_eq!(story.answers(), [(1, piece("one", false))]);
    story.pull(2, 3);
    story.pass(10 * SECOND);
    assert_eq!(story.answers(), [(2, piece("", false))]);
}

#[test]
fn what_may_not_have_arrived_is_said_again() {
    let mut story = Story::new();
    story.tunnel.handle_read(b"one");
    story.pull(1, 0);
    assert_eq!(story.answers(), [(1, piece("one", false))]);
    story.tunnel.handle_read(b"two");
    story.tunnel.handle_read(b"");
    story.pull(2, 0);
    assert_eq!(story.answers(), [(2, piece("onetwo", true))]);
    story.pull(3, 4);
    assert_eq!(story.answers(), [(3, piece("wo", true))]);
    story.pull(4, 3);
    assert_eq!(story.code(), 409);
    story.pull(5, 7);
    assert_eq!(story.code(), 409);
    story.pull(6, 6);
    assert_eq!(story.answers(), [(6, piece("", true))]);
}

#[test]
fn a_connection_that_is_gone_still_gives_its_last_words() {
    let mut story = Story::new();
    story.push(1, 0, "hello", false);
    story.tunnel.handle_read(b"refused");
    story.tunnel.handle_read(b"");
    story.tunnel.handle_deaf();
    assert_eq!(story.answers(), [(1, taken(5))]);
    story.push(2, 5, "more", true);
    assert_eq!(story.answers(), [(2, taken(9))]);
    story.pull(3, 0);
    assert_eq!(story.answers(), [(3, piece("refused", true))]);
    assert!(!story.tunnel.is_over());
}

#[test]
fn what_is_kept_is_bounded() {
    let mut story = Story::new();
    let most = TunnelStep::DATA_MAX;
    story.tunnel.handle_read(&vec![b'x'; most - 1]);
    assert_eq!(story.tunnel.room(), 1);
    story.tunnel.handle_read(b"y");
    assert_eq!(story.tunnel.room(), 0);
    story.pull(1, 10);
    assert_eq!(story.tunnel.room(), 10);
    story.answers();
    story.push(2, 0, &"x".repeat(most + 1), false);
    assert_eq!(story.code(), 400);
}

#[test]
fn a_tunnel_ends_when_it_is_closed_or_nobody_asks_about_it() {
    let mut story = Story::new();
    story.pass(IDLE - SECOND);
    story.pull(1, 0);
    story.pass(IDLE - SECOND);
    assert!(!story.tunnel.is_over());
    story.pass(SECOND);
    assert!(story.tunnel.is_over());

    let mut story = Story::new();
    story.tunnel.handle_step(1, TunnelStep::Close, story.now);
    assert_eq!(story.answers(), [(1, taken(0))]);
    assert!(story.tunnel.is_over());
}

proptest! {
    /// The model of a connection: a string each way. Whatever is repeated, cut short and lost, what arrives is what was said.
    #[test]
    fn bytes_arrive_once_and_in_order_whatever_answers_are_lost(
        up in "[a-z]{0,60}",
        down in "[a-z]{0,60}",
        turns in proptest::collection::vec((0..8_usize, 0..8_usize, any::<bool>(), any::<bool>()), 1..200),
    ) {
        let mut story = Story::new();
        let (mut at_pod, mut said) = (String::new(), 0);
        let (mut sent, mut received) = (0_usize, String::new());
        let fair = (0..200).map(|_| (5, 5, false, true));
        for (size, count, lost, pulls) in turns.into_iter().chain(fair) {
            story.push(1, sent as u64, &up[sent..(sent + size).min(up.len())], false);
            at_pod += &story.write(count);
            let next = (said + count).min(down.len());
            if next > said {
                story.tunnel.handle_read(&down.as_bytes()[said..next]);
                said = next;
            }
            if pulls {
                story.pull(2, received.len() as u64);
            }
            story.pass(10 * SECOND);
            for (from, answer) in story.answers() {
                match (from, answer) {
                    _ if lost => {}
                    (1, Response::Tunnel(TunnelResponse::Taken(count))) => sent = usize::try_from(count).unwrap(),
                    (2, Response::Tunnel(TunnelResponse::Piece { data, .. })) => {
                        received += std::str::from_utf8(&data).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        prop_assert_eq!(at_pod, up);
        prop_assert_eq!(received, down);
    }
}
