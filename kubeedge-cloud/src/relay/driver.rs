use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{StreamExt, stream::FuturesUnordered};
use kubeedge_core::{
    id::NodeName,
    message::{Request, Response, ToNode},
    pipe::{Call, Callee},
};
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Counts, Error, Relay,
    ask::ask,
    failure::{Failure, Reason},
    owners::{self, Owner, Owners},
    serve::Server,
};
use crate::controller::{api::Api, lease, now};

pub(super) async fn run(relay: Relay, stop: CancellationToken) -> Result<(), Error> {
    let Relay { config, client, peers, inbox, outbox, counts } = relay;
    let config = Arc::new(config);
    let server = Server {
        acceptor: TlsAcceptor::from(Arc::new(peers.tls.cloud_server_config()?)),
        hub: outbox.hub,
        config: config.clone(),
        counts: counts.clone(),
    };
    let passing = Passing {
        owners: Mutex::new(Owners::new(config.owner_lasts, config.owners_max)),
        api: Api::new(client),
        tls: Arc::new(peers.tls.client_config()?).into(),
        config,
        counts,
    };
    let served = async {
        match peers.listener {
            Some(socket) => server.run(socket).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = passing.run(inbox.requests) => {}
        () = served => {}
    }
    Ok(())
}

/// Passes requests on to the clouds that have their nodes.
struct Passing {
    config: Arc<Config>,
    api: Api,
    tls: TlsConnector,
    counts: Arc<Counts>,
    owners: Mutex<Owners>,
}

impl Passing {
    async fn run(&self, mut requests: Callee<ToNode<Request>, Response>) {
        let mut passed = FuturesUnordered::new();
        loop {
            let room = passed.len() < self.config.at_once.max(1);
            tokio::select! {
                Some(()) = passed.next() => {}
                call = requests.recv(), if room => match call {
                    Some(call) => passed.push(self.pass(call)),
                    // Nobody asks any more; what others ask is answered all the same.
                    None => std::future::pending().await,
                },
            }
        }
    }

    async fn pass(&self, call: Call<ToNode<Request>, Response>) {
        if call.is_withdrawn() {
            return;
        }
        let (question, replier) = call.split();
        let (node, deadline) = (question.node.clone(), self.config.deadline);
        let answered = timeout(deadline, self.answer(question, Instant::now() + deadline)).await;
        let answered = answered.unwrap_or_else(|_| Err(Failure::new(Reason::Late, format!("{deadline:?}"))));
        replier.answer(answered.map_or_else(
            |failure| {
                self.counts.note_failed(failure.reason);
                let Failure { reason, what } = &failure;
                tracing::debug!(%node, reason = reason.as_str(), what, "a request was not passed on");
                failure.response(&node)
            },
            |response| {
                self.counts.note_passed_on();
                response
            },
        ));
    }

    async fn answer(&self, question: ToNode<Request>, until: Instant) -> Result<Response, Failure> {
        let node = question.node.clone();
        let remembered = self.owners().get(&node, now());
        let is_remembered = remembered.is_some();
        let owner = match remembered {
            Some(remembered) => remembered?,
            None => self.look_up(&node).await?,
        };
        let failure = match self.ask(&owner, question.clone(), until).await {
            Err(failure) if failure.reason.is_about_the_owner() => failure,
            answered => return answered,
        };
        self.owners().forget(&node);
        if !is_remembered {
            return Err(failure);
        }
        // The node may have gone elsewhere since the Lease was read. It has not been asked, so nothing happens twice.
        match self.look_up(&node).await? {
            same if same == owner => Err(failure),
            other => self.ask(&other, question, until).await,
        }
    }

    async fn ask(
        &self,
        owner: &Owner,
        question: ToNode<Request>,
        until: Instant,
    ) -> Result<Response, Failure> {
        let left = until.saturating_duration_since(Instant::now());
        ask(owner, self.tls.clone(), question, left, &self.config).await
    }

    /// Reads in the node's Lease which cloud has the node.
    async fn look_up(&self, node: &NodeName) -> Result<Owner, Failure> {
        let read = match self.api.value(lease::place(node)).await {
            Ok(lease) => owners::read(&lease, &self.config.identity),
            Err(error) if error.is_missing() => Err(Failure::new(Reason::NotConnected, "")),
            Err(error) => Err(Failure::new(Reason::Unknown, error)),
        };
        self.owners().note(node, &read, now());
        read
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        // No code of others runs under the lock, so that what is in it is whole.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
