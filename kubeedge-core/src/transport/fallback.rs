//! Several transports as one: the first that gets through wins, and is tried first the next time.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! use std::sync::Arc;
//! use kubeedge_core::transport::{Transport, fallback::FallbackTransport, memory};
//!
//! // QUIC first, then WebSocket, in an edge; two networks in memory, of which one is cut, in an example.
//! let ((blocked, _), (open, listener)) = (memory::network(), memory::network());
//! blocked.cut();
//! let node = "edge-1".parse::<kubeedge_core::id::NodeName>().unwrap();
//! let fallback = FallbackTransport::new(vec![
//!     Arc::new(blocked.transport(node.clone())),
//!     Arc::new(open.transport(node)),
//! ]);
//! let connection = fallback.connect().await.unwrap();
//! assert_eq!(fallback.last_winner(), Some(1));
//! # drop((connection, listener));
//! # });
//! ```

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::{Connection, Transport, TransportError};

/// How long the favourite is alone. 300 ms: a QUIC handshake over a mobile network; RFC 8305 §5 advises 250 ms
/// for a race of this kind.
pub const HEAD_START: Duration = Duration::from_millis(300);

/// How long a winner begins: 1 hour. Then the preferred transport has its chance again, at the price of one head
/// start, since a node may have moved to a network that lets it through.
pub const FAVOUR: Duration = Duration::from_secs(3600);

/// Dials several transports and takes the first connection.
///
/// The winner of the last time begins, for up to [`FAVOUR`]; each of the others follows a head start after the
/// one before it, or at once when that one has failed. Losers are dropped, which leaves nothing behind. The order
/// in which they were given stands for preference and decides as long as no winner is remembered.
pub struct FallbackTransport {
    transports: Vec<Arc<dyn Transport>>,
    head_start: Duration,
    last_winner: Mutex<Option<Winner>>,
    on_change: Option<OnChange>,
}

#[derive(Debug, Clone, Copy)]
struct Winner {
    place: usize,
    /// When it won over another, or was brought back.
    since: Instant,
}

type OnChange = Box<dyn Fn(&str) + Send + Sync>;

impl FallbackTransport {
    /// Puts the transports together, the preferred one first.
    pub fn new(transports: Vec<Arc<dyn Transport>>) -> Self {
        Self { transports, head_start: HEAD_START, last_winner: Mutex::new(None), on_change: None }
    }

    /// Gives the favourite this head start instead of [`HEAD_START`].
    #[must_use]
    pub fn with_head_start(mut self, head_start: Duration) -> Self {
        self.head_start = head_start;
        self
    }

    /// Begins with the transport of this name, as an application has remembered it; an unknown name changes nothing.
    #[must_use]
    pub fn with_last_winner(mut self, name: &str) -> Self {
        let place = self.transports.iter().position(|transport| transport.name() == name);
        self.last_winner = Mutex::new(place.map(|place| Winner { place, since: Instant::now() }));
        self
    }

    /// Calls `remember` with the name of each winner that differs from the one before, so that an application
    /// can keep it across restarts. It must not block.
    #[must_use]
    pub fn on_change(mut self, remember: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.on_change = Some(Box::new(remember));
        self
    }

    /// The place of the transport that won the last time.
    pub fn last_winner(&self) -> Option<usize> {
        Some(self.winner()?.place)
    }

    /// The name of the transport that won the last time.
    pub fn last_winner_name(&self) -> Option<&'static str> {
        Some(self.transports.get(self.last_winner()?)?.name())
    }

    fn winner(&self) -> Option<Winner> {
        *self.last_winner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, place: usize) {
        let before = self.winner();
        if before.is_some_and(|before| before.place == place && before.is_favourite()) {
            return;
        }
        let winner = Winner { place, since: Instant::now() };
        *self.last_winner.lock().unwrap_or_else(PoisonError::into_inner) = Some(winner);
        if before.is_some_and(|before| before.place == place) {
            return;
        }
        let name = |place: usize| self.transports[place].name();
        let before = before.map(|before| name(before.place));
        info!(transport = name(place), before, "the cloud is reached over another transport");
        if let Some(on_change) = &self.on_change {
            on_change(name(place));
        }
    }

    /// The transports in the order of this race.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let favourite = self.winner().filter(Winner::is_favourite).map(|winner| winner.place);
        favourite.into_iter().chain((0..self.transports.len()).filter(move |place| Some(*place) != favourite))
    }
}

impl Winner {
    fn is_favourite(&self) -> bool {
        self.since.elapsed() < FAVOUR
    }
}

type Dial<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Connection>, TransportError>> + Send + 'a>>;

#[async_trait]
impl Transport for FallbackTransport {
    fn name(&self) -> &'static str {
        "fallback"
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, TransportError> {
        let begun = Instant::now();
        let mut racing: Vec<(usize, Dial<'_>)> = Vec::new();
        let mut failures = Vec::new();
        for next in self.order() {
            racing.push((next, self.transports[next].connect()));
            let deadline = Instant::now() + self.head_start;
            let raced = tokio::select! {
                raced = first_of(&mut racing) => raced,
                () = sleep_until(deadline) => continue,
            };
            if let Some(connection) = self.judge(raced, &mut failures) {
                return Ok(connection);
            }
        }
        while !racing.is_empty() {
            let raced = first_of(&mut racing).await;
            if let Some(connection) = self.judge(raced, &mut failures) {
                return Ok(connection);
            }
        }
        Err(all_failed(failures, begun.elapsed()))
    }
}

impl FallbackTransport {
    fn judge(&self, raced: Raced, failures: &mut Vec<Failure>) -> Option<Box<dyn Connection>> {
        let (place, outcome) = raced;
        match outcome {
            Ok(connection) => {
                self.remember(place);
                Some(connection)
            }
            Err(error) => {
                let transport = self.transports[place].name();
                debug!(transport, %error, "an attempt failed");
                failures.push(Failure { transport, error });
                None
            }
        }
    }
}

impl fmt::Debug for FallbackTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackTransport")
            .field("transports", &self.transports)
            .field("last_winner", &self.last_winner_name())
            .finish_non_exhaustive()
    }
}

type Raced = (usize, Result<Box<dyn Connection>, TransportError>);

/// Waits for the first of the dials to end, and takes it out. There must be one.
async fn first_of(racing: &mut Vec<(usize, Dial<'_>)>) -> Raced {
    std::future::poll_fn(|cx| {
        for at in 0..racing.len() {
            if let Poll::Ready(outcome) = racing[at].1.as_mut().poll(cx) {
                let (place, _) = racing.swap_remove(at);
                return Poll::Ready((place, outcome));
            }
        }
        Poll::Pending
    })
    .await
}

#[derive(Debug)]
struct Failure {
    transport: &'static str,
    error: TransportError,
}

/// One error that names each attempt.
fn all_failed(failures: Vec<Failure>, took: Duration) -> TransportError {
    if failures.is_empty() {
        return TransportError::Config("there is no transport to dial with".to_owned());
    }
    let told = |failure: &Failure| format!("{}: {}", failure.transport, failure.error);
    let reason = failures.iter().map(told).collect::<Vec<_>>().join("; ");
    // Only if none could do better the next time is it a matter of configuration or identity.
    if failures.iter().all(|failure| matches!(failure.error, TransportError::Config(_))) {
        return TransportError::Config(reason);
    }
    if failures.iter().all(|failure| matches!(failure.error, TransportError::Refused { .. })) {
        return TransportError::Refused { peer: "the cloud".to_owned(), reason };
    }
    TransportError::Unreachable { to: "the cloud".to_owned(), within: took, source: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{
        Listener,
        memory::{self, MemoryListener, MemoryNetwork},
    };

    struct Two {
        first: (MemoryNetwork, MemoryListener),
        second: (MemoryNetwork, MemoryListener),
    }

    impl Two {
        fn new() -> (Self, FallbackTransport) {
            let two = Self { first: memory::network(), second: memory::network() };
            let node = || "edge-1".parse().unwrap();
            let transports: Vec<Arc<dyn Transport>> =
                vec![Arc::new(two.first.0.transport(node())), Arc::new(two.second.0.transport(node()))];
            (two, FallbackTransport::new(transports))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_preferred_transport_wins_when_it_answers() {
        let (two, fallback) = Two::new();
        let _edge = fallback.connect().await.unwrap();
        assert_eq!(fallback.last_winner(), Some(0));
        two.first.1.accept().await.unwrap();
        assert_eq!(two.second.0.connections(), 0, "the other was not even dialled");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_favourite_is_overtaken_after_its_head_start_and_the_winner_begins_the_next_time() {
        let (two, fallback) = Two::new();
        let changes = Arc::new(Mutex::new(0));
        let counted = changes.clone();
        let fallback = fallback.on_change(move |_| *counted.lock().unwrap() += 1);
        two.first.0.cut();
        let begun = Instant::now();
        let _edge = fallback.connect().await.unwrap();
        assert_eq!(begun.elapsed(), HEAD_START);
        assert_eq!(fallback.last_winner(), Some(1));

        two.first.0.restore();
        let begun = Instant::now();
        let _edge = fallback.connect().await.unwrap();
        assert_eq!((begun.elapsed(), fallback.last_winner()), (Duration::ZERO, Some(1)));
        assert_eq!(two.first.0.connections(), 0);
        assert_eq!(*changes.lock().unwrap(), 1, "it is said once");
    }

    #[tokio::test(start_paused = true)]
    async fn the_preferred_transport_has_its_chance_again_after_an_hour() {
        let (two, fallback) = Two::new();
        two.first.0.cut();
        fallback.connect().await.unwrap();
        two.first.0.restore();
        tokio::time::advance(FAVOUR).await;
        fallback.connect().await.unwrap();
        assert_eq!(fallback.last_winner(), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_favourite_gives_way_at_once() {
        let (two, fallback) = Two::new();
        drop(two.first.1);
        let begun = Instant::now();
        fallback.connect().await.unwrap();
        assert_eq!((begun.elapsed(), fallback.last_winner()), (Duration::ZERO, Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_favourite_still_wins_over_one_that_never_answers() {
        let (two, fallback) = Two::new();
        two.first.0.cut();
        two.second.0.cut();
        let later = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            two.first.0.restore();
        };
        let (edge, ()) = tokio::join!(fallback.connect(), later);
        edge.unwrap();
        assert_eq!(fallback.last_winner(), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_the_error_names_each() {
        let (two, fallback) = Two::new();
        two.first.0.cut();
        drop(two.second.1);
        let error = fallback.connect().await.unwrap_err();
        let TransportError::Unreachable { source, .. } = &error else { panic!("{error:?}") };
        let told = source.to_string();
        assert!(told.contains("network is cut") && told.contains("nobody listens"), "{told}");
        let error = FallbackTransport::new(Vec::new()).connect().await.unwrap_err();
        assert!(matches!(error, TransportError::Config(_)), "{error}");
    }

    #[test]
    fn an_application_can_bring_back_the_winner() {
        let (_two, fallback) = Two::new();
        let fallback = fallback.with_last_winner("memory");
        assert_eq!((fallback.last_winner(), fallback.last_winner_name()), (Some(0), Some("memory")));
        assert_eq!(fallback.with_last_winner("carrier pigeon").last_winner(), None);
    }

    #[cfg(all(feature = "quic", feature = "websocket"))]
    #[tokio::test]
    async fn where_udp_is_dropped_web_socket_wins_and_is_remembered() {
        use crate::transport::{
            quic::{QuicConfig, QuicTransport},
            testing::Pki,
            websocket::{WebSocketConfig, WebSocketListener, WebSocketListenerConfig, WebSocketTransport},
        };
        let pki = Pki::new();
        let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let listener = WebSocketListener::bind(
            "127.0.0.1:0".parse().unwrap(),
            pki.server(),
            WebSocketListenerConfig::default(),
        )
        .unwrap();
        let quic = QuicConfig::new(silent.local_addr().unwrap().to_string(), pki.client());
        let web = WebSocketConfig::new(listener.local_address(), pki.client());
        let fallback = FallbackTransport::new(vec![
            Arc::new(QuicTransport::new(quic).unwrap()),
            Arc::new(WebSocketTransport::new(web).unwrap()),
        ]);
        for _ in 0..2 {
            // Well under QUIC's own patience, which is 10 s.
            let both = async { tokio::join!(fallback.connect(), listener.accept()) };
            let (edge, cloud) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
            assert!(edge.unwrap().path().starts_with("websocket"));
            cloud.unwrap();
            assert_eq!(fallback.last_winner_name(), Some("websocket"));
        }
    }
}
