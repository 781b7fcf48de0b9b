//! Brings a block's values to their destination.

mod http;
mod mqtt;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use kubeedge_core::{
    device::{PushMethod, Sample},
    store::MetaStore,
};

use super::{
    Destination, Format,
    driver::load,
    outgoing::{Delivered, Failure},
    state::Delivery,
};

/// What all deliveries have in common.
#[derive(Debug, Clone)]
pub(super) struct Courier {
    store: Arc<dyn MetaStore>,
    format: Format,
    deadline: Duration,
}

/// A value to push.
#[derive(Debug, Clone)]
struct Item {
    sequence: u64,
    sample: Sample,
    push: PushMethod,
}

/// How far a delivery has come.
#[derive(Debug, Default)]
struct Progress {
    sent: u64,
    refused: u64,
    /// The values that are done with, from the first on.
    done: usize,
}

impl Courier {
    pub(super) fn new(store: Arc<dyn MetaStore>, format: Format, deadline: Duration) -> Self {
        Self { store, format, deadline }
    }

    pub(super) fn carry(&self, delivery: Delivery) -> BoxFuture<'static, (Delivery, Delivered)> {
        let courier = self.clone();
        async move {
            let delivered = courier.deliver(&delivery).await;
            (delivery, delivered)
        }
        .boxed()
    }

    async fn deliver(&self, delivery: &Delivery) -> Delivered {
        let nothing =
            |failure| Delivered { through: delivery.from, sent: 0, refused: 0, failure: Some(failure) };
        let block = match load(&*self.store, delivery.block).await {
            Ok(Some(block)) => block,
            Ok(None) => return nothing(Failure::Unreadable("the block is gone".to_owned())),
            Err(error) if error.is_retryable() => return nothing(Failure::Away(error.to_string())),
            Err(error) => {
                tracing::warn!(%error, destination = %delivery.destination, "values to push are lost");
                return nothing(Failure::Unreadable(error.to_string()));
            }
        };
        let end = block.end();
        let items: Vec<Item> = (block.first..)
            .zip(block.samples)
            .filter(|(sequence, _)| *sequence >= delivery.from)
            .filter_map(|(sequence, sample)| {
                let push =
                    sample.push.iter().find(|push| Destination::of(push) == delivery.destination)?.clone();
                Some(Item { sequence, sample, push })
            })
            .collect();
        let mut progress = Progress::default();
        let failure = match &delivery.destination {
            _ if items.is_empty() => None,
            Destination::Http(host, port) => {
                http::deliver(self, host, *port, &items, &mut progress).await.err()
            }
            Destination::Mqtt(host, port) => {
                mqtt::deliver(self, host, *port, &items, &mut progress).await.err()
            }
        };
        let through = items.get(progress.done).map_or(end, |item| item.sequence);
        Delivered { through, sent: progress.sent, refused: progress.refused, failure }
    }
}

impl Progress {
    fn refuse(&mut self, item: &Item, destination: &str, why: &str) {
        let Sample { device, property, .. } = &item.sample;
        tracing::warn!(%device, property, destination, why, "a destination refuses a value: it is dropped");
        self.refused += 1;
    }
}

/// The value as an object, for [`Format::Json`].
fn json(item: &Item) -> String {
    let Sample { device, property, value, timestamp_ms, .. } = &item.sample;
    serde_json::json!({
        "namespace": device.namespace(), "device": device.name(), "property": property,
        "value": value, "timestamp": timestamp_ms, "sequence": item.sequence,
    })
    .to_string()
}

/// A time as KubeEdge's mappers write it, `2006-01-02 15:04:05`; in UTC, since a node's zone says nothing elsewhere.
fn time(timestamp_ms: u64) -> String {
    let time = i64::try_from(timestamp_ms).ok().and_then(|time| jiff::Timestamp::from_millisecond(time).ok());
    time.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(1_709_210_096_999), "2024-02-29 12:34:56");
        assert_eq!(time(4_102_444_799_000), "2099-12-31 23:59:59");
        assert!(time(u64::MAX).starts_with("9999-12-30 "), "{}", time(u64::MAX));
    }
}
