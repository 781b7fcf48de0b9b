//! The node's `edgecore.yaml`.

// The keys that edgecore knows, and how files are read, are the same here.
#[path = "../../../edgecore/src/config/tree.rs"]
mod tree;

use anyhow::{Context, Result, bail, ensure};
use kubeedge_core::id::NodeName;
use kubeedge_edge::certificates::Server;
use serde_json::{Map, Value, json};

use super::{Join, Protocol};
use crate::files::Places;

const DEFAULT_YAML: &str = include_str!("../../../edgecore/src/config/default.yaml");

/// The text of the file. Values are data throughout: they are quoted, and cannot become keys.
pub(super) fn yaml(join: &Join, places: &Places, node: &NodeName) -> Result<String> {
    let mut config = config(join, places, node)?;
    for set in &join.sets {
        apply(&mut config, set).with_context(|| format!("--set {set}"))?;
    }
    check(&config)?;
    let mut text = String::from("# Written by `keadm join`; `edgecore --defaultconfig` prints all keys.\n");
    write(&mut text, &config, 0);
    Ok(text)
}

fn config(join: &Join, places: &Places, node: &NodeName) -> Result<Value> {
    let hub = join.hub().context("--cloudcore-ipport must be host:port")?;
    let cloud = join.cloud().context("--cloudcore-ipport must be host:port")?;
    let other = |port| Server { port, ..hub.clone() }.to_string();
    let (websocket, quic) = match join.hub_protocol {
        Protocol::Websocket => (hub.to_string(), other(10001)),
        Protocol::Quic => (other(10000), hub.to_string()),
    };
    let files = join.files(places);
    let labels = labels(&join.labels)?;
    Ok(json!({
        "apiVersion": "edgecore.config.kubeedge.io/v1alpha2",
        "kind": "EdgeCore",
        "database": { "dataSource": places.at("/var/lib/kubeedge/edgecore.db") },
        "modules": {
            "edgeHub": {
                "httpServer": format!("https://{cloud}"),
                "tlsCaFile": files.ca,
                "tlsCertFile": files.certificate,
                "tlsPrivateKeyFile": files.key,
                "websocket": { "enable": true, "server": websocket },
                "quic": { "enable": true, "server": quic },
                "rotateCertificates": true,
            },
            "edged": {
                "hostnameOverride": node.as_str(),
                "nodeLabels": labels,
                "rootDirectory": places.at("/var/lib/kubelet"),
                "tailoredKubeletConfig": {
                    "containerRuntimeEndpoint": join.remote_runtime_endpoint,
                    "cgroupDriver": join.cgroupdriver,
                },
            },
            "deviceTwin": { "dmiSockPath": places.at("/etc/kubeedge") },
            // 0: the broker inside edgecore, so that nothing has to be installed.
            "eventBus": { "enable": join.with_mqtt, "mqttMode": 0 },
        },
    }))
}

fn labels(text: &str) -> Result<Map<String, Value>> {
    let mut labels = Map::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').with_context(|| format!("--labels: {pair:?} is not key=value"))?;
        let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'/');
        ensure!(
            !key.is_empty() && key.bytes().all(inside) && value.bytes().all(|c| inside(c) && c != b'/'),
            "--labels: {pair:?} is no label of Kubernetes"
        );
        labels.insert(key.to_owned(), value.into());
    }
    Ok(labels)
}

fn apply(config: &mut Value, set: &str) -> Result<()> {
    let (path, value) = set.split_once('=').context("it is not key=value")?;
    let mut at = config;
    for key in path.split('.') {
        ensure!(!key.is_empty(), "the key has an empty part");
        if at.is_null() {
            *at = json!({});
        }
        let Some(members) = at.as_object_mut() else { bail!("{key} is below what has no keys") };
        at = members.entry(key).or_insert(Value::Null);
    }
    *at = match value {
        "true" => true.into(),
        "false" => false.into(),
        text => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
    };
    Ok(())
}

/// Holds the file against the keys that edgecore knows and their types.
fn check(config: &Value) -> Result<()> {
    let mut known = tree::parse(DEFAULT_YAML)?;
    let warnings = tree::overlay(&mut known, config.clone(), &|_, _| false)?;
    ensure!(warnings.is_empty(), "edgecore.yaml: {}", warnings.join("; "));
    Ok(())
}

fn write(text: &mut String, value: &Value, depth: usize) {
    let Some(members) = value.as_object() else { return };
    for (key, value) in members {
        let indent = "  ".repeat(depth);
        match value.as_object() {
            Some(below) if !below.is_empty() => {
                *text += &format!("{indent}{}:\n", quoted(key));
                write(text, value, depth + 1);
            }
            // JSON is YAML.
            _ => *text += &format!("{indent}{}: {value}\n", quoted(key)),
        }
    }
}

fn quoted(key: &str) -> String {
    let plain = key.bytes().all(|c| c.is_ascii_alphanumeric());
    if plain { key.to_owned() } else { Value::from(key).to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        join: Join,
    }

    fn written(words: &[&str]) -> Result<Value> {
        let line = Line::parse_from(["keadm", "-e", "192.0.2.1:10000"].iter().chain(words));
        let text = yaml(&line.join, &Places::new(Path::new("/")), &"edge-1".parse()?)?;
        tree::parse(&text)
    }

    #[test]
    fn the_file_has_what_the_flags_say() {
        let config = written(&["--labels", "zone=a,tier/x=b", "--with-mqtt", "-s", "20002"]).unwrap();
        let modules = &config["modules"];
        assert_eq!(modules["edgeHub"]["httpServer"], "https://192.0.2.1:20002");
        assert_eq!(modules["edgeHub"]["websocket"]["server"], "192.0.2.1:10000");
        assert_eq!(modules["edgeHub"]["quic"]["server"], "192.0.2.1:10001");
        assert_eq!(modules["edged"]["nodeLabels"], json!({ "zone": "a", "tier/x": "b" }));
        assert_eq!(modules["eventBus"]["enable"], true);
        assert_eq!(modules["edgeHub"].get("token"), None, "no token is left behind");
        assert_eq!(written(&["--with-mqtt=false"]).unwrap()["modules"]["eventBus"]["enable"], false);
    }

    #[test]
    fn values_are_set_if_edgecore_knows_their_keys() {
        let config =
            written(&["--set", "modules.edgeHub.heartbeat=5", "--set", "modules.edged.nodeIP=192.0.2.9"]);
        assert_eq!(config.unwrap()["modules"]["edgeHub"]["heartbeat"], 5);
        for (set, reason) in [
            ("modules.edgeHub.heartbeet=5", "unknown key"),
            ("modules.edgeHub.heartbeat=soon", "a whole number expected"),
            ("modules.edgeHub.heartbeat.x=5", "a whole number expected"),
            ("kind.x=5", "has no keys"),
            ("modules", "not key=value"),
            (".=1", "empty part"),
        ] {
            let error = format!("{:#}", written(&["--set", set]).unwrap_err());
            assert!(error.contains(reason), "{set}: {error}");
        }
    }

    #[test]
    fn no_value_becomes_anything_else() {
        let evil = "x\"\n  token: y\n#";
        let config = written(&["-p", evil]).unwrap();
        assert_eq!(
            config["modules"]["edged"]["tailoredKubeletConfig"]["containerRuntimeEndpoint"], evil,
            "quotes and line ends stay inside"
        );
        for labels in ["a", "=b", "a b=c", "a=b\nc"] {
            assert!(written(&["-l", labels]).is_err(), "{labels}");
        }
    }
}
