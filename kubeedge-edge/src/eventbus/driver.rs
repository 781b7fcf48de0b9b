//! Runs the brokers, keeps what is for the cloud, and hands the messages of DeviceTwin and of the cloud to the brokers.

use std::{collections::BTreeSet, sync::Arc};

use kubeedge_core::{
    message::{Publish, Response},
    pipe::{Call, Callee, EventReceiver, Replier},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Error, EventBus, Inbox, Internal, Outbox, QoS,
    broker::{self, Broker, Intake},
    external::Client,
    route::{CLOUD_ONLY, Router, Routes},
    rules::{self, RuleTopics},
    topic,
    uploads::Uploads,
};

/// The brokers in use.
struct Brokers {
    internal: Option<(Broker, Internal)>,
    external: Option<Client>,
}

pub(super) async fn run(bus: EventBus, stop: CancellationToken) -> Result<(), Error> {
    let EventBus { config, store, inbox, outbox, listener, backlog } = bus;
    let Inbox { publishes, cloud_messages, uploaded, rules } = inbox;
    let Outbox { device_messages, uploads } = outbox;
    if let Some(tls) = config.external.tls.as_ref().filter(|_| config.mode.external()) {
        // A file that is wrong at the start is a mistake; later ones are tried again at each connection.
        tls.client_config()?;
    }
    let listener = match listener {
        None if config.mode.internal() => Some(listen(&config.internal).await?),
        given => given,
    };
    let opening = async {
        let kept = rules::kept(&*store, config.uploads.restore_deadline).await;
        let uploads = Uploads::open(&config.uploads, store.clone(), uploads, backlog).await?;
        Ok::<_, Error>((uploads, RuleTopics::new(kept)))
    };
    let (uploads, rule_topics) = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        opened = opening => opened?,
    };
    let (uploads, rule_topics) = (Arc::new(uploads), Arc::new(rule_topics));
    let routes = Routes::new(config.uploads.topics.clone(), rule_topics.clone());
    let filters = routes.filters();
    let router = Arc::new(Router { routes, device_messages, uploads: uploads.clone() });
    let client_id = uploads.client_id().to_owned();
    let brokers = Brokers::new(config, router, filters, rule_topics.filters(), client_id);
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        error = uploads.run(uploaded) => Err(error),
        () = rule_topics.run(rules, &*store) => Ok(()),
        () = brokers.serve(listener, stop.child_token()) => Ok(()),
        () = brokers.connect() => Ok(()),
        () = brokers.forward(publishes) => Ok(()),
        () = brokers.forward_of_cloud(cloud_messages) => Ok(()),
    };
    uploads.finish().await;
    outcome
}

async fn listen(config: &Internal) -> Result<TcpListener, Error> {
    let address = config.listen;
    if !address.ip().is_loopback() && config.broker.access.anonymous_remote.is_some() {
        tracing::warn!(%address, "the embedded MQTT broker is open to the network without a password");
    }
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    tracing::info!(%address, "the embedded MQTT broker listens");
    Ok(listener)
}

impl Brokers {
    fn new(
        config: Config,
        intake: Arc<dyn Intake>,
        filters: Vec<String>,
        of_rules: watch::Receiver<BTreeSet<String>>,
        client_id: String,
    ) -> Self {
        let internal = config.mode.internal().then(|| {
            let mut limits: broker::Config = config.internal.broker.clone();
            limits.denied.push(CLOUD_ONLY.to_owned());
            (Broker::with_intake(limits, intake.clone()), config.internal)
        });
        let external = config
            .mode
            .external()
            .then(|| Client::new(config.external, intake, filters, of_rules, client_id));
        Self { internal, external }
    }

    async fn serve(&self, listener: Option<TcpListener>, stop: CancellationToken) {
        match (&self.internal, listener) {
            (Some((broker, _)), Some(listener)) => broker.run(listener, stop).await,
            (None, _) | (_, None) => std::future::pending().await,
        }
    }

    async fn connect(&self) {
        match &self.external {
            Some(client) => client.run().await,
            None => std::future::pending().await,
        }
    }

    async fn forward(&self, mut publishes: EventReceiver<Publish>) {
        while let Some(publish) = publishes.recv().await {
            if let Some((broker, config)) = &self.internal {
                broker.wait_for_readers().await;
                if let Err(error) = broker.publish(&publish, config.qos, config.retain) {
                    tracing::warn!(%error, "a part's message cannot be published");
                }
            }
            if let Some(client) = &self.external {
                client.publish(publish);
            }
        }
        // No part speaks any more; the clients may still.
        std::future::pending().await
    }

    /// Publishes what the cloud asks for, with QoS 1 as KubeEdge does, and says when it has arrived.
    async fn forward_of_cloud(&self, mut messages: Callee<Publish, Response>) {
        while let Some(call) = messages.recv().await {
            if !call.is_withdrawn() {
                self.publish_for_cloud(call);
            }
        }
        std::future::pending().await
    }

    fn publish_for_cloud(&self, call: Call<Publish, Response>) {
        let (publish, replier) = call.split();
        if !topic::is_name(&publish.topic) {
            let message = format!("{:?} is not a topic to publish on", publish.topic);
            return replier.answer(Response::Failed { code: 400, message });
        }
        if let Some((broker, _)) = &self.internal {
            // The topic was checked above.
            let _ = broker.publish(&publish, QoS::AtLeastOnce, false);
        }
        match &self.external {
            Some(client) => client.publish_for(publish, replier),
            None => replier.answer(Response::Published),
        }
    }
}

/// Whom the broker's acknowledgement is for.
pub(super) type Asker = Replier<Response>;
