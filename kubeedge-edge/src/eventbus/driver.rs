//! Runs the brokers and hands DeviceTwin's messages to them.

use std::sync::Arc;

use kubeedge_core::{message::Publish, pipe::EventReceiver};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Config, Error, EventBus, Internal,
    broker::{self, Broker, Intake},
    external::Client,
    route::CLOUD_ONLY,
};

/// The brokers in use.
struct Brokers {
    internal: Option<(Broker, Internal)>,
    external: Option<Client>,
}

pub(super) async fn run(bus: EventBus, stop: CancellationToken) -> Result<(), Error> {
    let EventBus { config, inbox, outbox, listener } = bus;
    let listener = match listener {
        None if config.mode.internal() => Some(listen(&config.internal).await?),
        given => given,
    };
    let brokers = Brokers::new(config, Arc::new(outbox));
    tokio::select! {
        () = stop.cancelled() => {}
        () = brokers.serve(listener, stop.child_token()) => {}
        () = brokers.connect() => {}
        () = brokers.forward(inbox.publishes) => {}
    }
    Ok(())
}

async fn listen(config: &Internal) -> Result<TcpListener, Error> {
    let address = config.listen;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "the embedded MQTT broker asks for no password, and is open to the network");
    }
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    tracing::info!(%address, "the embedded MQTT broker listens");
    Ok(listener)
}

impl Brokers {
    fn new(config: Config, intake: Arc<dyn Intake>) -> Self {
        let internal = config.mode.internal().then(|| {
            let mut limits: broker::Config = config.internal.broker.clone();
            limits.denied.push(CLOUD_ONLY.to_owned());
            (Broker::with_intake(limits, intake.clone()), config.internal)
        });
        let external = config.mode.external().then(|| Client::new(config.external, intake));
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
            if let Some((broker, config)) = &self.internal
                && let Err(error) = broker.publish(&publish, config.qos, config.retain)
            {
                tracing::warn!(%error, "a part's message cannot be published");
            }
            if let Some(client) = &self.external {
                client.publish(publish);
            }
        }
        // No part speaks any more; the clients may still.
        std::future::pending().await
    }
}
