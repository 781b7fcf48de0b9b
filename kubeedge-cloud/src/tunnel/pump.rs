//! Carries bytes between a pipe of bytes and a node.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use kubeedge_core::message::{Request, Response, TunnelId, TunnelRequest, TunnelResponse, TunnelStep};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split},
    time::{Instant, sleep, timeout},
};

use super::{
    BUFFER, failed,
    state::{AGAIN, Downward, Patience, Upward},
};
use crate::node::{Failed, Node, misanswered};

/// How long a node waits at most until it has something to say, or until it can take what it is told. A node gives up
/// what is not asked about for a minute.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a node that does not answer is waited for. It keeps what it has to say for a minute.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a node may say nothing after the client has said all.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long the word that the tunnel is over may take; if it does not arrive, the node finds out by itself.
const CLOSE: Duration = Duration::from_secs(5);

/// One tunnel to a node.
#[derive(Debug)]
pub(super) struct Pump {
    node: Node,
    id: TunnelId,
    wait: Duration,
}

impl Pump {
    /// Opens the tunnel.
    pub(super) async fn open(node: Node, id: TunnelId) -> Result<Self, Failed> {
        // Half of the time is for the way there and back.
        let wait = (node.timeout() / 2).min(WAIT_MAX);
        let pump = Self { node, id, wait };
        pump.ask(TunnelStep::Open).await?;
        Ok(pump)
    }

    /// How long an answer of the kubelet's interface may take.
    pub(super) fn patience(&self) -> Duration {
        self.node.timeout() + PATIENCE
    }

    /// Carries bytes until the node has said all, or whoever is at the other end of `far` is gone.
    pub(super) async fn run(&self, far: DuplexStream) -> Result<(), Failed> {
        let (reader, writer) = split(far);
        let (told, mut heard) = (AtomicBool::new(false), false);
        let up = async {
            let ended = self.up(reader).await;
            told.store(true, Ordering::Relaxed);
            ended
        };
        // Only what the node says last ends it.
        let down = self.down(writer, &told);
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        loop {
            tokio::select! {
                ended = &mut down => return ended,
                ended = &mut up, if !heard => {
                    ended?;
                    heard = true;
                }
            }
        }
    }

    async fn up(&self, mut reader: ReadHalf<DuplexStream>) -> Result<(), Failed> {
        let mut direction = Upward::default();
        loop {
            let mut buffer = BytesMut::with_capacity(BUFFER);
            let count = reader.read_buf(&mut buffer).await.unwrap_or_default();
            direction.handle_said(buffer.freeze());
            while let Some(step) = direction.step(self.wait) {
                direction.handle_answer(&self.ask_patiently(&step).await?)?;
            }
            if count == 0 {
                return Ok(());
            }
        }
    }

    async fn down(&self, mut writer: WriteHalf<DuplexStream>, told: &AtomicBool) -> Result<(), Failed> {
        let mut direction = Downward::default();
        let mut spoke = Instant::now();
        loop {
            let step = direction.step(self.wait);
            let (data, end) = direction.handle_answer(self.ask_patiently(&step).await?)?;
            if !data.is_empty() || !told.load(Ordering::Relaxed) {
                spoke = Instant::now();
            }
            let written = self.keep_alive_while(async {
                writer.write_all(&data).await?;
                if end { writer.shutdown().await } else { Ok(()) }
            });
            let is_gone = written.await.is_err();
            if end || is_gone || spoke.elapsed() >= SILENCE_MAX {
                return Ok(());
            }
        }
    }

    /// A client that does not read is no reason for the node to think that the cloud is gone.
    async fn keep_alive_while<T>(&self, waiting: impl Future<Output = T>) -> T {
        let mut waiting = std::pin::pin!(waiting);
        loop {
            if let Ok(done) = timeout(WAIT_MAX, &mut waiting).await {
                return done;
            }
            // It says nothing at a place that is known already.
            let word = TunnelStep::Push { offset: 0, data: Bytes::new(), end: false, wait: Duration::ZERO };
            let _ = self.ask(word).await;
        }
    }

    /// Ends the tunnel at the node, with the process that is served over it.
    pub(super) async fn close(&self) {
        let _ = timeout(CLOSE, self.ask_patiently(&TunnelStep::Close)).await;
    }

    async fn ask_patiently(&self, step: &TunnelStep) -> Result<TunnelResponse, Failed> {
        let mut patience = Patience::new(PATIENCE);
        loop {
            let failed = match self.ask(step.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if !patience.handle_failure(&failed, Instant::now().into_std()) {
                return Err(failed);
            }
            sleep(AGAIN).await;
        }
    }

    async fn ask(&self, step: TunnelStep) -> Result<TunnelResponse, Failed> {
        let request = TunnelRequest { tunnel: self.id, step };
        match self.node.ask(Request::Tunnel(request)).await? {
            Response::Tunnel(answer) => Ok(answer),
            Response::Failed { code, message } => Err(failed(code, message)),
            Response::Logs(_) | Response::Service(_) | Response::Published => Err(misanswered()),
        }
    }
}
