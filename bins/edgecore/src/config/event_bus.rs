//! `modules.eventBus` and `kubeedgeRs.eventBus`: MQTT.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use kubeedge_edge::eventbus::{
    self, Mode, QoS, Secret, TlsFiles,
    broker::{Access, Rights, User},
};

use super::{hub::Server, tree::Node};

pub(super) fn read(root: &Node<'_>, warnings: &mut Vec<String>) -> Result<Option<eventbus::Config>> {
    let (node, ours) = (root.at("modules.eventBus"), root.at("kubeedgeRs.eventBus"));
    let enabled = node.at("enable").bool()?;
    let mut config = eventbus::Config {
        mode: match node.at("mqttMode").number(0, 2)? {
            0 => Mode::Internal,
            1 => Mode::Both,
            _ => Mode::External,
        },
        ..eventbus::Config::default()
    };
    let (internal, encrypted) = broker(&node.at("mqttServerInternal"))?;
    ensure!(!encrypted, node.at("mqttServerInternal").wrong("the embedded broker does not speak TLS"));
    config.internal.listen = address(&node.at("mqttServerInternal"), internal)?;
    config.internal.qos = quality(&node.at("mqttQOS"), warnings)?;
    config.internal.retain = node.at("mqttRetain").bool()?;
    config.internal.broker.queue_max = node.at("mqttSessionQueueSize").number(1, 1_000_000)?;
    config.internal.broker.access = access(&ours)?;
    let (external, encrypted) = broker(&node.at("mqttServerExternal"))?;
    config.external.host = external.host;
    config.external.port = external.port;
    // One connection does what KubeEdge has two for.
    let client_ids = [node.at("mqttSubClientID").filled()?, node.at("mqttPubClientID").filled()?];
    config.external.client_id = client_ids.into_iter().flatten().next().map(str::to_owned);
    config.external.username = node.at("mqttUsername").filled()?.map(str::to_owned);
    config.external.password = node.at("mqttPassword").filled()?.map(Secret::new);
    config.external.tls = tls(&node.at("eventBusTLS"))?;
    // Without an authority nobody could say which broker is the right one.
    ensure!(
        !encrypted || config.external.tls.is_some() || !enabled,
        node.at("mqttServerExternal")
            .wrong("TLS needs eventBusTLS, whose tlsMqttCAFile says whom to believe")
    );
    config.uploads.topics = filters(&ours.at("uploads.topics"))?;
    config.uploads.count_max = ours.at("uploads.maxMessages").number(1, 100_000_000)?;
    config.uploads.bytes_max = ours.at("uploads.maxBytes").number(1, 1 << 40)?;
    let open = config.internal.broker.access.anonymous_remote.is_some();
    if enabled && config.mode.internal() && !config.internal.listen.ip().is_loopback() && open {
        let path = node.at("mqttServerInternal");
        warnings.push(format!(
            "{}: the broker is open to the network without a password; kubeedgeRs.eventBus.users asks for one",
            path.path()
        ));
    }
    Ok(enabled.then_some(config))
}

fn quality(node: &Node<'_>, warnings: &mut Vec<String>) -> Result<QoS> {
    let level = node.number(0u8, 2)?;
    Ok(QoS::try_from(level).unwrap_or_else(|error| {
        warnings.push(format!("{}: {error}; 1 is used", node.path()));
        QoS::AtLeastOnce
    }))
}

/// Reads `tcp://host:port`, or `ssl://host:port`, which is encrypted.
fn broker(node: &Node<'_>) -> Result<(Server, bool)> {
    let text = node.text()?;
    let (encrypted, rest) = match text.split_once("://") {
        Some(("tcp" | "mqtt", rest)) => (false, rest),
        Some(("ssl" | "tls" | "mqtts" | "tcps", rest)) => (true, rest),
        Some(_) | None => {
            return Err(node.wrong(format!("{text:?} must be tcp://host:port or ssl://host:port")));
        }
    };
    let server =
        rest.trim_end_matches('/').parse().map_err(|error| node.wrong(format!("{text:?}: {error}")))?;
    Ok((server, encrypted))
}

/// The address that the embedded broker listens on.
fn address(node: &Node<'_>, server: Server) -> Result<SocketAddr> {
    let Server { host, port } = server;
    if host == "localhost" {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let address: IpAddr = host.parse().map_err(|_| node.wrong(format!("{host:?} is not an IP address")))?;
    Ok(SocketAddr::new(address, port))
}

fn tls(node: &Node<'_>) -> Result<Option<TlsFiles>> {
    let ca = node.at("tlsMqttCAFile").file()?;
    let (certificate, key) = (node.at("tlsMqttCertFile"), node.at("tlsMqttPrivateKeyFile"));
    let identity = match (certificate.filled()?, key.filled()?) {
        (Some(_), Some(_)) => Some((certificate.file()?, key.file()?)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(certificate.wrong("a certificate and its private key belong together"));
        }
    };
    Ok(node.at("enable").bool()?.then_some(TlsFiles { ca, identity }))
}

/// Who may use the embedded broker. Once there are users, nobody is let in without a name unless `anonymous` says so.
fn access(ours: &Node<'_>) -> Result<Access> {
    let users: Vec<_> = ours.at("users").list()?.iter().map(user).collect::<Result<_>>()?;
    let anonymous = ours.at("anonymous");
    if !anonymous.members()?.is_empty() {
        let rights = Some(rights(&anonymous, &["publish", "subscribe"])?);
        return Ok(Access { users, anonymous: rights.clone(), anonymous_remote: rights });
    }
    if users.is_empty() {
        return Ok(Access::default());
    }
    Ok(Access { users, anonymous: None, anonymous_remote: None })
}

fn user(node: &Node<'_>) -> Result<User> {
    let rights = rights(node, &["name", "password", "passwordFile", "publish", "subscribe"])?;
    let (text, file) = (node.at("password"), node.at("passwordFile"));
    let password = match (text.is_absent(), file.is_absent()) {
        (false, true) => text.text()?.to_owned(),
        (true, false) => {
            let path = file.file()?;
            let read = std::fs::read_to_string(&path).with_context(|| path.display().to_string());
            read.map_err(|error| file.wrong(format!("{error:#}")))?.trim_end().to_owned()
        }
        (true, true) | (false, false) => {
            return Err(node.wrong("either password or passwordFile is needed"));
        }
    };
    ensure!(!password.is_empty(), node.wrong("the password is empty"));
    let name = node.at("name").text()?.to_owned();
    ensure!(!name.is_empty(), node.at("name").wrong("it is empty"));
    Ok(User { name, password: Secret::new(password), rights })
}

/// What is not named is everything.
fn rights(node: &Node<'_>, known: &[&str]) -> Result<Rights> {
    let unknown = node.members()?.into_iter().find(|(key, _)| !known.contains(key));
    if let Some((_, unknown)) = unknown {
        // Here a slip of the pen would open more than was meant.
        return Err(unknown.wrong(format!("unknown key; {} are known", known.join(", "))));
    }
    let some_or = |key, all| {
        let node = node.at(key);
        if node.is_absent() { Ok(all) } else { filters(&node) }
    };
    let all = Rights::all();
    Ok(Rights { publish: some_or("publish", all.publish)?, subscribe: some_or("subscribe", all.subscribe)? })
}

fn filters(node: &Node<'_>) -> Result<Vec<String>> {
    let filter = |node: &Node<'_>| {
        let text = node.text()?;
        ensure!(eventbus::is_filter(text), node.wrong(format!("{text:?} is not an MQTT topic filter")));
        Ok(text.to_owned())
    };
    node.list()?.iter().map(filter).collect()
}
