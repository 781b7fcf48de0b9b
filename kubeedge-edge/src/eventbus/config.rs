//! What can be set about EventBus.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;

use super::{QoS, broker};

/// How EventBus reaches applications.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which brokers are used.
    pub mode: Mode,
    /// The broker inside the process.
    pub internal: Internal,
    /// The broker beside the process.
    pub external: External,
    /// What goes to the cloud.
    pub uploads: Uploads,
}

/// Which brokers are used: KubeEdge's `mqttMode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// 0: the one inside the process.
    Internal,
    /// 1: both; what the parts say goes to both.
    Both,
    /// 2: the one beside the process. KubeEdge's default.
    #[default]
    External,
}

impl Mode {
    /// Whether the broker inside the process is used.
    pub fn internal(self) -> bool {
        self != Self::External
    }

    /// Whether the broker beside the process is used.
    pub fn external(self) -> bool {
        self != Self::Internal
    }
}

/// The broker inside the process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Internal {
    /// Where it listens. Any other address than a loopback one is logged as a warning, unless clients from there need a
    /// password.
    pub listen: SocketAddr,
    /// The QoS of what the parts publish.
    pub qos: QoS,
    /// Whether what the parts publish is retained.
    pub retain: bool,
    /// Its limits.
    pub broker: broker::Config,
}

impl Default for Internal {
    fn default() -> Self {
        Self {
            // 127.0.0.1:1884: KubeEdge's mqttServerInternal.
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 1884)),
            qos: QoS::AtMostOnce,
            retain: false,
            broker: broker::Config::default(),
        }
    }
}

/// The broker beside the process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct External {
    /// Its host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The client id; `None` draws one, so that two nodes at one broker do not throw each other out.
    pub client_id: Option<String>,
    /// The user name, if the broker asks for one.
    pub username: Option<String>,
    /// The password that goes with the user name.
    pub password: Option<Secret>,
    /// How it is spoken to with TLS; in the clear without.
    pub tls: Option<TlsFiles>,
    /// Messages that wait for the broker; then the oldest is dropped and counted.
    pub queue_max: usize,
    /// Bytes that wait for the broker; then the oldest message is dropped and counted.
    pub queue_bytes_max: usize,
}

impl Default for External {
    fn default() -> Self {
        Self {
            // 127.0.0.1:1883: KubeEdge's mqttServerExternal.
            host: Ipv4Addr::LOCALHOST.to_string(),
            port: 1883,
            client_id: None,
            username: None,
            password: None,
            tls: None,
            queue_max: 1000,
            queue_bytes_max: 8 << 20,
        }
    }
}

/// The files for TLS. They are read at each connection, so that renewed ones are used without a restart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The authorities that may have signed the broker's certificate, PEM.
    pub ca: PathBuf,
    /// The certificate and the private key that the broker asks of us, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What goes to the cloud, and what is kept of it while the cloud is away.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Uploads {
    /// Topic filters of what goes to the cloud.
    pub topics: Vec<String>,
    /// At most so many messages are kept; then those of QoS 1 are not acknowledged, and those of QoS 0 dropped and
    /// counted.
    pub count_max: u64,
    /// And at most so many bytes.
    pub bytes_max: u64,
    /// How many messages are on their way to the cloud at once.
    pub window: usize,
    /// How long a commit may take.
    pub store_deadline: Duration,
    /// How long reading what an earlier run has left may take.
    pub restore_deadline: Duration,
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            // The first three are KubeEdge's; applications of rules publish below their namespace.
            topics: ["$hw/events/upload/#", "SYS/dis/upload_records", "+/user/#", "default/#"]
                .map(str::to_owned)
                .into(),
            count_max: 100_000,
            // 64 MiB: a week without a link at 100 bytes a second.
            bytes_max: 64 << 20,
            window: 512,
            // As the other parts give the store.
            store_deadline: Duration::from_secs(30),
            restore_deadline: Duration::from_secs(60),
        }
    }
}

/// A text that does not show in logs.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Shows the text to the code that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
