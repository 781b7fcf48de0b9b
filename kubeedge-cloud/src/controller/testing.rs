//! Objects for tests.

use kubeedge_core::{id::NodeName, message::Object};
use serde_json::Value;

/// A node's name.
pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// An object out of its JSON.
pub(crate) fn object(json: &Value) -> Object {
    Object::from_json(json.to_string()).unwrap()
}

#[cfg(feature = "standalone")]
pub(crate) use cluster::{Cluster, eventually};

/// A real API server inside the test, which can be made to stall or fail.
#[cfg(feature = "standalone")]
mod cluster {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use http::{Request, Response};
    use kube::{Client, client::Body};
    use kubeedge_core::id::Uid;
    use serde_json::Value;
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;
    use tower::Service;

    use crate::{
        controller::{
            Kind,
            api::{Api, Error, Place},
        },
        standalone::{self, ApiServer, Config, Standalone},
    };

    /// The API, for the test itself.
    pub(crate) struct Cluster {
        server: ApiServer,
        api: Api,
    }

    /// What a request of the part under test has to pass.
    #[derive(Clone)]
    pub(crate) struct Gate {
        open: watch::Sender<bool>,
        failures: Arc<AtomicUsize>,
        writes: Arc<AtomicUsize>,
    }

    impl Gate {
        /// Lets the requests through that [`Cluster::client_behind`] stalls.
        pub(crate) fn open(&self) {
            self.open.send_replace(true);
        }

        /// Answers so many of the following writes with 503.
        pub(crate) fn fail(&self, writes: usize) {
            self.failures.store(writes, Ordering::SeqCst);
        }

        /// How many writes were let through.
        pub(crate) fn writes(&self) -> usize {
            self.writes.load(Ordering::SeqCst)
        }

        /// Whether a request waits, or has waited.
        pub(crate) fn is_reached(&self) -> bool {
            self.open.receiver_count() > 0
        }

        fn fails(&self) -> bool {
            let less = |failures: usize| failures.checked_sub(1);
            self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
        }
    }

    impl Cluster {
        pub(crate) async fn start() -> Self {
            Self::remembering(Config::default().history_changes).await
        }

        /// An API server whose watches may be at most so many changes behind.
        pub(crate) async fn remembering(history_changes: usize) -> Self {
            let config = Config { history_changes, ..Config::default() };
            let server = ApiServer::open(None, config).await.unwrap();
            Self { api: Api::new(server.client()), server }
        }

        /// An API that also evicts, from nodes that are not heard of, pods that tolerate that no longer than this
        /// or say nothing of it.
        pub(crate) async fn evicting_after(default_toleration: Duration) -> Self {
            let node_interval = Duration::from_millis(20);
            let config = Config { node_interval, default_toleration, ..Config::default() };
            let server = ApiServer::open(None, config).await.unwrap();
            let (outbox, outside) = standalone::pipes();
            let running = Standalone::new(server.clone(), None, outbox);
            tokio::spawn(async move {
                let _outside = outside;
                running.run(CancellationToken::new()).await
            });
            Self { api: Api::new(server.client()), server }
        }

        pub(crate) fn client(&self) -> Client {
            self.server.client()
        }

        /// A client whose requests for addresses that contain `stalled` wait until the gate opens.
        pub(crate) fn client_behind(&self, stalled: &'static str) -> (Client, Gate) {
            let gate =
                Gate { open: watch::Sender::new(false), failures: Arc::default(), writes: Arc::default() };
            let (service, at) = (self.server.service(), gate.clone());
            let service = tower::service_fn(move |request: Request<Body>| {
                let (mut service, gate) = (service.clone(), at.clone());
                async move {
                    if request.uri().to_string().contains(stalled) {
                        gate.open.subscribe().wait_for(|open| *open).await.unwrap();
                    }
                    if request.method() != "GET" {
                        if gate.fails() {
                            let down = http_body_util::Full::new("down".into());
                            let down = http_body_util::BodyExt::boxed_unsync(down);
                            return Ok(Response::builder().status(503).body(down).unwrap());
                        }
                        gate.writes.fetch_add(1, Ordering::SeqCst);
                    }
                    service.call(request).await as Result<_, Infallible>
                }
            });
            (Client::new(service, "default"), gate)
        }

        /// A client that is given this status and body in place of the object whose path ends with `withheld`, for as long as
        /// there are some.
        pub(crate) fn client_without(
            &self,
            withheld: &'static str,
            answer: (u16, &'static str),
        ) -> (Client, watch::Sender<Option<(u16, &'static str)>>) {
            let (given, answers) = watch::channel(Some(answer));
            let service = self.server.service();
            let service = tower::service_fn(move |request: Request<Body>| {
                let (mut service, answer) = (service.clone(), *answers.borrow());
                async move {
                    if let Some((status, body)) = answer.filter(|_| request.uri().path().ends_with(withheld))
                    {
                        let body = http_body_util::Full::new(body.into());
                        let body = http_body_util::BodyExt::boxed_unsync(body);
                        return Ok(Response::builder().status(status).body(body).unwrap());
                    }
                    service.call(request).await as Result<_, Infallible>
                }
            });
            (Client::new(service, "default"), given)
        }

        pub(crate) async fn create(&self, kind: Kind, object: &Value) -> Value {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            let place = Place { kind, namespace, name: object["metadata"]["name"].as_str().unwrap() };
            self.api.create(place, object).await.unwrap()
        }

        pub(crate) async fn merge(&self, kind: Kind, namespace: &str, name: &str, patch: &Value) {
            self.api.merge(Place { kind, namespace, name }, "", patch).await.unwrap();
        }

        pub(crate) async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
            match self.api.value(Place { kind, namespace, name }).await {
                Ok(value) => Some(value),
                Err(error) if error.is_missing() => None,
                Err(error) => panic!("{error}"),
            }
        }

        /// Deletes an object without a grace.
        pub(crate) async fn remove(&self, kind: Kind, namespace: &str, name: &str, uid: &Uid) {
            self.api.delete(Place { kind, namespace, name }, uid).await.unwrap();
        }

        /// Deletes an object as `kubectl delete` does: a pod is given its grace.
        pub(crate) async fn delete(&self, kind: Kind, namespace: &str, name: &str) {
            let path = kind.path_in(namespace);
            let request = kube::core::Request::new(path).delete(name, &Default::default()).unwrap();
            self.client().request_text(request).await.map_err(Error::Api).unwrap();
        }
    }

    /// Waits until `check` gives something, for at most 10 s.
    pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = check().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"))
    }
}
