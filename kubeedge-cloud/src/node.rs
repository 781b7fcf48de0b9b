//! One node, and the way to it, for those who ask it on behalf of people. No part itself: it is shared by the parts that
//! serve what only a node can answer.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use kubeedge_core::{
    id::NodeName,
    message::{LogChunk, LogRequest, Request, Response, ToNode},
    pipe::{CallError, Caller},
};

/// The way to all nodes.
pub(crate) type Nodes = Caller<ToNode<Request>, Response>;

/// How soon a followed log is asked for again when it had nothing to tell. Each time is a question over the
/// link, and people do not notice half a second.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// A node did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    /// The HTTP status that says so.
    pub(crate) code: u16,
    /// What went wrong, for people.
    pub(crate) message: String,
}

/// One node, and the way to it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    nodes: Nodes,
    name: NodeName,
    timeout: Duration,
}

impl Node {
    /// The node of this name; each of its answers may take as long as `timeout`.
    pub(crate) fn new(nodes: Nodes, name: NodeName, timeout: Duration) -> Self {
        Self { nodes, name, timeout }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &NodeName {
        &self.name
    }

    /// How long each of its answers may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks the node.
    pub(crate) async fn ask(&self, request: Request) -> Result<Response, Failed> {
        let question = ToNode { node: self.name.clone(), message: request };
        let failed = |code, message| Err(Failed { code, message });
        match self.nodes.call(question, self.timeout).await {
            Ok(Response::Failed { code, message }) => failed(code, message),
            Ok(response) => Ok(response),
            Err(CallError::Late(..)) => {
                failed(504, format!("node {} did not answer within {:?}", self.name, self.timeout))
            }
            Err(error) => failed(503, format!("node {} cannot be asked: {error}", self.name)),
        }
    }

    async fn log(&self, request: LogRequest) -> Result<LogChunk, Failed> {
        match self.ask(Request::Logs(request)).await? {
            Response::Logs(chunk) => Ok(chunk),
            Response::Service(_) | Response::Published | Response::Tunnel(_) | Response::Failed { .. } => {
                Err(misanswered())
            }
        }
    }

    /// The log of a container in pieces, which has no end as long as it is followed and the container runs. A failure
    /// after the first piece is the last one's text.
    pub(crate) async fn logs(
        self,
        request: LogRequest,
        follow: bool,
    ) -> Result<BoxStream<'static, Bytes>, Failed> {
        // The first piece comes before the answer begins, so that a failure still has its status.
        let first = self.log(request.clone()).await?;
        let mut log = Log { node: self, request, follow, idle: false, ended: false, ready: VecDeque::new() };
        log.take(first);
        let pieces = futures::stream::unfold(log, |mut log| async move {
            let piece = log.next().await?;
            Some((piece, log))
        });
        Ok(pieces.boxed())
    }
}

/// The node's answer is to another question.
pub(crate) fn misanswered() -> Failed {
    Failed { code: 502, message: "the node gave another answer than was asked for".to_owned() }
}

struct Log {
    node: Node,
    request: LogRequest,
    follow: bool,
    /// Whether the last piece was all that there was.
    idle: bool,
    ended: bool,
    ready: VecDeque<Bytes>,
}

impl Log {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            if self.ended {
                return None;
            }
            if std::mem::take(&mut self.idle) {
                tokio::time::sleep(FOLLOW_EVERY).await;
            }
            match self.node.log(self.request.clone()).await {
                Ok(chunk) => self.take(chunk),
                Err(failed) => {
                    // The status has been sent already: all that is left is to say it in the text.
                    self.ended = true;
                    self.ready.push_back(format!("{}\n", failed.message).into());
                }
            }
        }
    }

    fn take(&mut self, chunk: LogChunk) {
        // A node that neither moves on nor says that it is done would be asked for ever.
        let stuck = self.request.cursor == Some(chunk.cursor) && chunk.data.is_empty() && !chunk.end;
        (self.request.cursor, self.request.tail_lines) = (Some(chunk.cursor), None);
        if let Some(left) = &mut self.request.limit_bytes {
            *left = left.saturating_sub(chunk.data.len() as u64);
            self.ended |= *left == 0;
        }
        self.ended |= chunk.end && !(self.follow && chunk.running);
        self.idle = chunk.end || stuck;
        if !chunk.data.is_empty() {
            self.ready.push_back(chunk.data);
        }
    }
}
