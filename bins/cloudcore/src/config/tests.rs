use kubeedge_cloud::manifests::{self, Options};

use super::*;

fn parse(text: &str) -> Config {
    let (config, warnings) = Config::parse(text).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    config
}

/// YAML for one value at a path.
fn at(path: &str, value: &str) -> String {
    let mut text = value.to_owned();
    for key in path.rsplit('.') {
        text = format!("{{{key}: {text}}}");
    }
    text
}

#[test]
fn the_texts_that_are_printed_load() {
    assert_eq!(parse(Config::default_yaml()), parse(""));
    let minimal = parse(Config::minimal_yaml());
    let mut expected = parse("");
    expected.hub.node_limit = 1000;
    expected.api.kubeconfig = Some("/root/.kube/config".into());
    assert_eq!(minimal, expected);
}

#[test]
fn defaults_are_those_of_kubeedge_with_quic_besides() {
    let config = parse("");
    let ports =
        [config.hub.websocket, config.hub.quic, config.hub.https].map(|address| address.unwrap().port());
    assert_eq!(ports, [10000, 10001, 10002]);
    assert_eq!(config.hub.certificate_validity, Duration::from_secs(365 * 24 * 3600));
    assert_eq!(config.hub.token_refresh, Duration::from_secs(12 * 3600));
    assert_eq!(config.hub.node_limit, 500);
    assert_eq!(config.monitor, "127.0.0.1:9091".parse().unwrap());
    assert_eq!(config.edge_controller, Some(edgecontroller::Config::default()));
    assert_eq!(config.api, Api { master: None, kubeconfig: None });
}

#[test]
fn how_much_of_the_api_nodes_may_take_is_said_by_the_file() {
    let changed =
        "{writesAtOnce: 64, eventsTriedFor: 10m, questionsPerNode: 8, questionsWaitingPerNode: 100}";
    let count = |count| NonZeroUsize::new(count).unwrap();
    let expected = edgecontroller::Config {
        writes_at_once: count(64),
        events_tried_for: Duration::from_secs(600),
        questions_per_node: count(8),
        questions_waiting_max: count(100),
        ..edgecontroller::Config::default()
    };
    assert_eq!(parse(&at("kubeedgeRs.edgeController", changed)).edge_controller, Some(expected));
    for (key, value) in [("writesAtOnce", "0"), ("eventsAtOnce", "1001"), ("eventsTriedFor", "soon")] {
        let path = format!("kubeedgeRs.edgeController.{key}");
        let error = Config::parse(&at(&path, value)).unwrap_err().to_string();
        assert!(error.contains(&path), "{error}");
    }
}

#[test]
fn a_file_as_the_helm_chart_writes_it_is_understood_without_a_warning() {
    let config = parse(
        r#"
apiVersion: cloudcore.config.kubeedge.io/v1alpha2
kind: CloudCore
commonConfig:
  tunnelPort: 10351
  monitorServer: {bindAddress: "0.0.0.0:9091"}
kubeAPIConfig: {kubeConfig: "", master: "", qps: 5000, burst: 10000}
modules:
  cloudHub:
    advertiseAddress: [203.0.113.5, "2001:db8::1"]
    dnsNames: ["", cloud.example.com]
    edgeCertSigningDuration: 30
    nodeLimit: 1000
    tlsCertFile: /etc/kubeedge/certs/edge.crt
    https: {enable: false, address: 0.0.0.0, port: 10002}
    quic: {enable: false, address: 0.0.0.0, maxIncomingStreams: 10000, port: 10001}
  edgeController: {buffer: {configMapEvent: 1, patchNode: 1524}, load: {CreatePodWorks: 4}}
  deviceController: {enable: no}
  iptablesManager: {enable: true, mode: external}
"#,
    );
    assert_eq!(config.hub.advertise_addresses.len(), 2);
    assert_eq!(config.hub.dns_names, ["cloud.example.com"]);
    assert_eq!((config.hub.quic, config.hub.https), (None, None));
    assert!(config.device_controller.is_none());
}

#[test]
fn what_has_no_effect_or_is_not_known_is_named() {
    for (path, value, expected) in [
        ("modules.cloudHub.nodeLimmit", "1", "modules.cloudHub.nodeLimmit: unknown key, ignored"),
        ("modules.taskManager.enable", "true", "modules.taskManager.enable: not available"),
        (
            "modules.cloudHub.authorization.enable",
            "true",
            "modules.cloudHub.authorization.enable: not available",
        ),
        ("kind", "EdgeCore", "kind: \"EdgeCore\" is not CloudCore"),
        ("kubeAPIConfig.qps", "100", "kubeAPIConfig.qps: it has no effect"),
        ("kubeAPIConfig.contentType", "application/json", "kubeAPIConfig.contentType: it has no effect"),
        ("modules.cloudHub.writeTimeout", "10", "modules.cloudHub.writeTimeout: it has no effect"),
        ("modules.cloudHub.quic.maxIncomingStreams", "5", "modules.cloudHub.quic.maxIncomingStreams: it has"),
        (
            "modules.edgeController.nodeUpdateFrequency",
            "1",
            "modules.edgeController.nodeUpdateFrequency: it has",
        ),
        (
            "modules.edgeController.load",
            "{CreatePodWorks: 8}",
            "modules.edgeController.load: CreatePodWorks without",
        ),
        (
            "modules.deviceController.buffer",
            "{deviceEvent: 8}",
            "modules.deviceController.buffer: deviceEvent with",
        ),
        ("modules.syncController.enable", "false", "modules.syncController: it has no effect"),
        (
            "commonConfig.monitorServer.enableProfiling",
            "true",
            "commonConfig.monitorServer.enableProfiling: it has",
        ),
        ("featureGates", "{moduleRestart: true}", "featureGates: it has no effect"),
        (
            "modules.cloudStream",
            "{enable: true, tunnelPort: 1}",
            "modules.cloudStream.tunnelPort: it has no effect",
        ),
    ] {
        let warnings = Config::parse(&at(path, value)).unwrap().1;
        assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{path}: {warnings:?}");
    }
}

#[test]
fn a_value_that_cannot_be_is_an_error_that_begins_with_its_path() {
    for (path, value) in [
        ("commonConfig.monitorServer.bindAddress", "9091"),
        ("kubeAPIConfig.master", "cluster"),
        ("kubeAPIConfig.kubeConfig", ".kube/config"),
        ("modules.cloudHub.keepaliveInterval", "0"),
        ("modules.cloudHub.writeTimeout", "30s"),
        ("modules.cloudHub.nodeLimit", "0"),
        ("modules.cloudHub.tlsCAFile", "ca"),
        ("modules.cloudHub.websocket.port", "0"),
        ("modules.cloudHub.quic.port", "65536"),
        ("modules.cloudHub.https.address", "everywhere"),
        ("modules.cloudHub.quic.maxIncomingStreams", "0"),
        ("modules.cloudHub.unixsocket.address", "/tmp/x"),
        ("modules.cloudHub.advertiseAddress", "[cloud]"),
        ("modules.cloudHub.edgeCertSigningDuration", "0"),
        ("modules.cloudHub.edgeCertSigningDuration", "9999999"),
        ("modules.cloudHub.tokenRefreshDuration", "-1"),
        ("modules.edgeController.nodeUpdateFrequency", "0"),
        ("modules.router.address", "x"),
        ("modules.cloudStream.streamPort", "0"),
        ("modules.cloudStream.tlsStreamCAFile", "ca"),
        ("kubeedgeRs.cloudStream.callers", "[]"),
        ("modules.iptablesManager.mode", "both"),
        ("kubeedgeRs.replicas.advertiseAddress", "\"10.0.0.1:80\""),
        ("kubeedgeRs.replicas.requestsAtOnce", "0"),
        ("kubeedgeRs.replicas.requestMiB", "65"),
    ] {
        let error = format!("{:#}", Config::parse(&at(path, value)).unwrap_err());
        assert!(error.starts_with(path), "{path} {value}: {error}");
    }
    let neither = "modules: {cloudHub: {websocket: {enable: false}, quic: {enable: false}}}";
    let error = Config::parse(neither).unwrap_err().to_string();
    assert!(error.starts_with("modules.cloudHub: one of websocket.enable"), "{error}");
}

#[test]
fn what_a_cluster_is_given_is_understood_and_says_where_the_kubelet_asks() {
    let advertise_addresses = vec!["192.0.2.1".to_owned(), "cloud.example".to_owned()];
    for host_network in [true, false] {
        let options =
            Options { advertise_addresses: advertise_addresses.clone(), host_network, ..Options::default() };
        let objects = manifests::deployment(&options);
        let config = parse(objects[0]["data"]["cloudcore.yaml"].as_str().unwrap());
        assert_eq!(config.hub.dns_names, ["cloud.example"]);
        assert_eq!(config.monitor.ip().is_loopback(), host_network);
        let pod = &objects[1]["spec"]["template"]["spec"];
        let asked = &pod["containers"][0]["readinessProbe"]["httpGet"];
        assert_eq!(asked["port"], config.monitor.port());
        assert_eq!(asked["host"].is_string(), host_network);
        // What is mounted there is what is looked for.
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        let ca = config.cloud_stream.unwrap().ca;
        assert!(mounts.iter().any(|mount| ca.parent() == mount["mountPath"].as_str().map(Path::new)));
        assert!(config.limits.drain.as_secs() < pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    }
}

#[test]
fn an_error_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cloudcore.yaml");
    std::fs::write(&path, "modules: [\n").unwrap();
    let error = format!("{:#}", Config::load(&path).unwrap_err());
    assert!(error.contains("cloudcore.yaml") && error.contains("line"), "{error}");
}
