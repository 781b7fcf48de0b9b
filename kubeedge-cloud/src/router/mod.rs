//! Router: messages between applications in the cloud and applications on nodes, by the rules that users make.
//!
//! As in KubeEdge, Rules and RuleEndpoints (`rules.kubeedge.io/v1`) say from where to where. What applications on a node
//! publish over MQTT is posted to an HTTP server; what is posted to the router is published on a node, or given to an HTTP
//! server on it.
//!
//! | From | To | When it is done |
//! |---|---|---|
//! | eventbus | rest | the node keeps the message until the server has answered with success, or the rule's patience is over, which its `status` tells |
//! | rest | eventbus | the answer comes when the node's MQTT broker has the message, or says why not |
//! | rest | servicebus | the answer is the server's on the node |
//!
//! A node is told of the Rules that begin on it, so that its EventBus takes messages on their topics.
//!
//! A message without a rule is taken and dropped, as in KubeEdge. One that comes again, because an answer was lost on its
//! way, is not delivered again, as long as this process remembers it; its id is in the header `Message-Id` besides.
//!
//! ```no_run
//! # async fn example(client: kube::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use kubeedge_cloud::router::{self, Router};
//! use tokio_util::sync::CancellationToken;
//!
//! let (inbox, outbox, mut outside) = router::pipes();
//! let router = Router::new(router::Config::default(), client, None, inbox, outbox);
//! tokio::spawn(router.run(CancellationToken::new()));
//! while let Some(taken) = outside.taken.recv().await {
//!     println!("node {} need not keep {:?}", taken.node, taken.message);
//! }
//! # Ok(())
//! # }
//! ```

use std::{sync::Arc, time::Duration};

use kube::Client;
use kubeedge_core::{
    id::NodeName,
    message::{
        Delivered, Delivery, FromNode, ObjectEvent, ObjectRef, Request, Response, Snapshot, ToNode,
        UploadedPublish,
    },
    pipe::{self, Callee, Caller, EventReceiver, EventSender, LatestReceiver, LatestSender},
};
use tokio::net::TcpListener;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use crate::authorization::Denials;

mod deliver;
mod driver;
mod placed;
mod rest;
mod rules;
mod seen;
mod state;
mod status;
#[cfg(test)]
mod tests;

/// Carries messages by rules; see the [module](self).
pub struct Router {
    config: Config,
    client: Client,
    listener: Option<TcpListener>,
    inbox: Inbox,
    outbox: Outbox,
    denials: Denials,
}

/// What the router goes by.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a node may take to answer a request. 60 s: KubeEdge's `restTimeout`.
    pub rest_timeout: Duration,
    /// The longest body of a request in bytes. A message of MQTT may have 1 MiB, and a call to a server of a node 3 MiB.
    pub body_bytes_max: usize,
    /// Requests at once; further ones wait to be accepted.
    pub requests_max: usize,
    /// How long an HTTP server may take for one message.
    pub target_timeout: Duration,
    /// How servers are spoken to by `https`; without it such a server is refused.
    pub target_tls: Option<Arc<ClientConfig>>,
    /// How a message that a server does not take is tried again.
    pub limits: Limits,
    /// How often the `status` of a rule is written at most.
    pub status_interval: Duration,
}

/// What bounds the messages of nodes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Messages that were received and not delivered; further ones wait on their nodes.
    pub messages_max: usize,
    /// And bytes of them.
    pub bytes_max: usize,
    /// Attempts at once.
    pub at_once: usize,
    /// The pause after the first failure; it doubles.
    pub retry_first: Duration,
    /// The longest pause.
    pub retry_max: Duration,
    /// After how long without success a message is given up and counted as failed. From then on each is tried once, until
    /// its server takes one.
    pub give_up_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rest_timeout: Duration::from_secs(60),
            body_bytes_max: 3 << 20,
            requests_max: 256,
            target_timeout: Duration::from_secs(10),
            target_tls: None,
            limits: Limits {
                messages_max: 16_384,
                bytes_max: 64 << 20,
                at_once: 64,
                retry_first: Duration::from_millis(500),
                retry_max: Duration::from_secs(30),
                give_up_after: Duration::from_secs(300),
            },
            status_interval: Duration::from_secs(5),
        }
    }
}

/// What comes to the router.
#[derive(Debug)]
pub struct Inbox {
    /// What applications on nodes send up.
    pub messages: EventReceiver<FromNode<Delivered<UploadedPublish>>>,
    /// CloudHub asks which Rules a node should have.
    pub snapshots: Callee<NodeName, Snapshot>,
}

/// What goes out from the router.
#[derive(Debug)]
pub struct Outbox {
    /// Which messages need not be kept at their nodes any longer.
    pub taken: LatestSender<(NodeName, Delivery), ToNode<Delivery>>,
    /// Asks nodes.
    pub requests: Caller<ToNode<Request>, Response>,
    /// Rules for the nodes that they begin on.
    pub downstream: LatestSender<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
pub struct Outside {
    /// Feeds [`Inbox::messages`].
    pub messages: EventSender<FromNode<Delivered<UploadedPublish>>>,
    /// Receives from [`Outbox::taken`].
    pub taken: LatestReceiver<(NodeName, Delivery), ToNode<Delivery>>,
    /// Receives from [`Outbox::requests`].
    pub requests: Callee<ToNode<Request>, Response>,
    /// Feeds [`Inbox::snapshots`].
    pub snapshots: Caller<NodeName, Snapshot>,
    /// Receives from [`Outbox::downstream`].
    pub downstream: LatestReceiver<(NodeName, ObjectRef), ToNode<ObjectEvent>>,
}

/// Creates all of the router's pipes, for whoever embeds this part alone.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (messages_tx, messages) = pipe::events("messages", 1024);
    let (taken, taken_rx) =
        pipe::latest("taken", |taken: &ToNode<Delivery>| (taken.node.clone(), taken.message));
    let (requests, requests_rx) = pipe::calls("requests", 256);
    let (snapshots_tx, snapshots) = pipe::calls("rule_snapshots", 1024);
    let (downstream, downstream_rx) = pipe::latest("downstream", |event: &ToNode<ObjectEvent>| {
        (event.node.clone(), event.message.key().clone())
    });
    let outside = Outside {
        messages: messages_tx,
        taken: taken_rx,
        requests: requests_rx,
        snapshots: snapshots_tx,
        downstream: downstream_rx,
    };
    (Inbox { messages, snapshots }, Outbox { taken, requests, downstream }, outside)
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router")
            .field("config", &self.config)
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Router {
    /// Creates the part. Without a listener there are no rules from `rest`.
    pub fn new(
        config: Config,
        client: Client,
        listener: Option<TcpListener>,
        inbox: Inbox,
        outbox: Outbox,
    ) -> Self {
        Self { config, client, listener, inbox, outbox, denials: Denials::default() }
    }

    /// What nodes were refused so far, for metrics; to be taken before [`Router::run`].
    pub fn denials(&self) -> Denials {
        self.denials.clone()
    }

    /// Runs until `stop`. It goes on whatever the API or a server answers.
    ///
    /// # Errors
    /// None at present.
    pub async fn run(self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        driver::Driver::new(self).run(stop).await;
        Ok(())
    }
}
