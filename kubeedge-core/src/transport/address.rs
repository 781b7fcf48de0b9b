//! Where the cloud is: `host:port`, as people write it in a configuration.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use rustls_pki_types::ServerName;
use tokio::time::{Instant, error::Elapsed, timeout_at};

use super::{BoxError, TransportError};

/// An address of the cloud, checked but not resolved: names are looked up at each dial, since they may move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Reads `host:port`; an IPv6 address stands in brackets.
    pub(super) fn parse(text: &str) -> Result<Self, TransportError> {
        let wrong = |why: &str| TransportError::Config(format!("{text:?} is no host:port: {why}"));
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("there is no port"))?;
        let port = port.parse().map_err(|_| wrong("the port is no number up to 65535"))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address = Self { host: bracketed.unwrap_or(host).to_owned(), port };
        if bracketed.is_none() && host.contains(':') {
            return Err(wrong("an IPv6 address stands in brackets"));
        }
        address.server_name().map_err(|_| wrong("the host is neither a name nor an address"))?;
        Ok(address)
    }

    /// The host without its port, in which form certificates carry it.
    #[cfg(any(test, feature = "quic"))]
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn server_name(&self) -> Result<ServerName<'static>, TransportError> {
        ServerName::try_from(self.host.clone())
            .map_err(|error| TransportError::Config(format!("{:?} is no server name: {error}", self.host)))
    }

    /// Looks up all addresses of the host.
    pub(super) async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect())
    }
}

/// The addresses of a host, tried in turn, each for its share of the time that is left.
///
/// ```ignore
/// let mut attempts = Attempts::begin(&address, within).await?;
/// while let Some(attempt) = attempts.next() {
///     let outcome = timeout(attempt.within, dial(attempt.server)).await;
///     if let Some(connection) = attempts.judge(attempt.server, outcome) { return Ok(connection) }
/// }
/// Err(attempts.failed())
/// ```
pub(super) struct Attempts {
    left: VecDeque<SocketAddr>,
    to: String,
    within: Duration,
    deadline: Instant,
    last: TransportError,
}

/// One address to try.
pub(super) struct Attempt {
    pub(super) server: SocketAddr,
    pub(super) within: Duration,
}

impl Attempts {
    /// Looks up the host.
    pub(super) async fn begin(address: &Address, within: Duration) -> Result<Self, TransportError> {
        let to = format!("{}:{}", address.host, address.port);
        let unreachable = |source: BoxError| TransportError::Unreachable { to: to.clone(), within, source };
        let deadline = Instant::now() + within;
        let found = timeout_at(deadline, address.resolve())
            .await
            .map_err(|_| unreachable("looking up the name took too long".into()))?
            .map_err(|error| unreachable(error.into()))?;
        let last = unreachable("the name has no address".into());
        Ok(Self { left: found.into(), to, within, deadline, last })
    }

    /// The next address to try.
    pub(super) fn next(&mut self) -> Option<Attempt> {
        let share = u32::try_from(self.left.len()).unwrap_or(u32::MAX);
        let server = self.left.pop_front()?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        Some(Attempt { server, within: left / share })
    }

    /// Takes note of how an attempt ended.
    pub(super) fn judge<T>(
        &mut self,
        server: SocketAddr,
        outcome: Result<Result<T, TransportError>, Elapsed>,
    ) -> Option<T> {
        let error = match outcome {
            Ok(Ok(connection)) => return Some(connection),
            Ok(Err(error)) => error,
            Err(_) => self.unreachable(format!("{server} was silent").into()),
        };
        // A refusal is told rather than a later silence: it is what somebody can do something about.
        if !matches!(self.last, TransportError::Refused { .. }) {
            self.last = error;
        }
        None
    }

    /// The error of the dial, once no address is left.
    pub(super) fn failed(self) -> TransportError {
        self.last
    }

    fn unreachable(&self, source: BoxError) -> TransportError {
        TransportError::Unreachable { to: self.to.clone(), within: self.within, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (text, host) in
            [("cloud.example:10000", "cloud.example"), ("10.0.0.1:1", "10.0.0.1"), ("[::1]:80", "::1")]
        {
            assert_eq!(Address::parse(text).unwrap().host(), host);
        }
        for wrong in ["cloud", "cloud:", "cloud:70000", "::1:80", ":80", "a b:80", "https://cloud:80"] {
            assert!(matches!(Address::parse(wrong), Err(TransportError::Config(_))), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_gets_its_share_of_the_time_and_a_refusal_is_told() {
        let within = Duration::from_secs(4);
        let mut attempts = Attempts::begin(&Address::parse("127.0.0.1:1").unwrap(), within).await.unwrap();
        attempts.left.extend(["127.0.0.2:1".parse::<SocketAddr>().unwrap()]);
        let first = attempts.next().unwrap();
        assert_eq!(first.within, within / 2);
        let refused = TransportError::Refused { peer: "first".into(), reason: "no".into() };
        assert!(attempts.judge::<()>(first.server, Ok(Err(refused))).is_none());

        tokio::time::advance(Duration::from_secs(1)).await;
        let second = attempts.next().unwrap();
        assert_eq!(second.within, Duration::from_secs(3));
        let silent = tokio::time::timeout(second.within, std::future::pending()).await;
        assert!(attempts.judge::<()>(second.server, silent).is_none());
        assert!(attempts.next().is_none());
        assert!(matches!(attempts.failed(), TransportError::Refused { .. }));
    }
}
