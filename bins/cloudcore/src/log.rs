//! What is logged, and how much of it: a crowd of nodes must not fill the disk with one line for each.

use std::{
    collections::HashMap,
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Event, Metadata, callsite::Identifier};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::FilterExt,
    layer::{Context, Filter, SubscriberExt},
    util::SubscriberInitExt,
};

/// How many lines one place in the code may log at once.
const BURST: f64 = 50.0;

/// How many it may log in a second in the long run.
const PER_SECOND: f64 = 5.0;

/// How often it is said what was left out.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Sets up logging to standard error. What comes back has to be polled for what is left out to be told.
pub(crate) fn init(filter: &str) -> impl Future<Output = ()> + use<> {
    let limit = Limit::default();
    let left_out = limit.clone();
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // What is not asked for costs no place its share.
    let filter = EnvFilter::new(filter).and(limit);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    async move {
        loop {
            tokio::time::sleep(SAY_EVERY).await;
            for (place, lines) in left_out.take_left_out() {
                tracing::warn!(place, lines, "more of the same was not logged");
            }
        }
    }
}

/// Lets each place in the code log so much and no more.
#[derive(Debug, Default, Clone)]
struct Limit(Arc<Mutex<HashMap<Identifier, Bucket>>>);

#[derive(Debug)]
struct Bucket {
    place: String,
    credit: f64,
    at: Instant,
    left_out: u64,
}

impl Limit {
    fn admits(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // There are as many as there are places in the code.
        let bucket = buckets.entry(metadata.callsite()).or_insert_with(|| Bucket {
            place: format!("{}:{}", metadata.target(), metadata.line().unwrap_or_default()),
            credit: BURST,
            at: now,
            left_out: 0,
        });
        let earned = now.saturating_duration_since(bucket.at).as_secs_f64() * PER_SECOND;
        (bucket.credit, bucket.at) = ((bucket.credit + earned).min(BURST), now);
        let admitted = bucket.credit >= 1.0;
        if admitted {
            bucket.credit -= 1.0;
        } else {
            bucket.left_out += 1;
        }
        admitted
    }

    /// How many lines of each place were left out since this was asked last.
    fn take_left_out(&self) -> Vec<(String, u64)> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let take = |bucket: &mut Bucket| (bucket.place.clone(), std::mem::take(&mut bucket.left_out));
        let mut all: Vec<_> = buckets.values_mut().map(take).filter(|(_, lines)| *lines > 0).collect();
        all.sort();
        all
    }
}

impl<S> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::Subscriber;

    use super::*;

    /// Counts the lines that come through.
    #[derive(Debug, Default, Clone)]
    struct Count(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_place_that_logs_without_end_is_cut_short_and_told_of_and_holds_up_no_other() {
        let (limit, count) = (Limit::default(), Count::default());
        let subscriber = tracing_subscriber::registry().with(count.clone().with_filter(limit.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for node in 0..1_000 {
                tracing::info!(node, "a node has connected");
            }
            let of_the_crowd = count.0.load(Ordering::Relaxed);
            assert!((50..60).contains(&of_the_crowd), "{of_the_crowd}");
            tracing::error!("something else");
            assert_eq!(count.0.load(Ordering::Relaxed), of_the_crowd + 1);
            let left_out = limit.take_left_out();
            assert_eq!(left_out.len(), 1);
            assert_eq!(left_out[0].1, 1_000 - of_the_crowd as u64);
            assert!(left_out[0].0.contains("log::tests"), "{}", left_out[0].0);
            assert_eq!(limit.take_left_out(), [], "it is told once");
        });
    }
}
