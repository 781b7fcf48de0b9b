use std::{net::SocketAddr, time::Duration};

use kubeedge_device::keeper::{Format, Overflow};
use kubeedge_edge::{
    edged::CgroupDriver,
    eventbus::{Mode, QoS},
    servicebus::Allowed,
};

use super::{
    devices::Mapper,
    modules::{Runtime, Taint},
    *,
};

fn parse(text: &str) -> Config {
    let (config, warnings) = Config::parse(text, "edge-1").unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    config
}

fn warnings(text: &str) -> Vec<String> {
    Config::parse(text, "edge-1").unwrap().1
}

fn error(text: &str) -> String {
    format!("{:#}", Config::parse(text, "edge-1").unwrap_err())
}

/// YAML for one value at a path.
fn at(path: &str, value: &str) -> String {
    let keys: Vec<_> = path.split('.').collect();
    let mut text = String::new();
    for (depth, key) in keys.iter().enumerate() {
        text += &format!("{}{key}:", "  ".repeat(depth));
        text += if depth + 1 == keys.len() { " " } else { "\n" };
    }
    text + value + "\n"
}

#[test]
fn the_texts_that_are_printed_load_and_say_the_same_as_nothing() {
    let nothing = parse("");
    assert_eq!(parse(Config::default_yaml()), nothing);
    assert_eq!(parse(Config::minimal_yaml()), nothing);
}

#[test]
fn defaults_are_those_of_kubeedge() {
    let config = parse("");
    assert_eq!(config.node.as_str(), "edge-1");
    assert_eq!(config.database, Path::new("/var/lib/kubeedge/edgecore.redb"));
    assert_eq!(config.hub.heartbeat, Duration::from_secs(15));
    assert_eq!(config.hub.websocket.unwrap().server.to_string(), "127.0.0.1:10000");
    assert_eq!(config.hub.quic, None);
    assert_eq!(config.hub.tls.certificate, Path::new("/etc/kubeedge/certs/server.crt"));
    let bus = config.event_bus.unwrap();
    assert_eq!((bus.mode, bus.external.port, bus.internal.broker.queue_max), (Mode::External, 1883, 100));
    assert_eq!(config.service_bus, None);
    let edged = config.edged.unwrap();
    assert_eq!((edged.max_pods, edged.lease_duration), (110, Duration::from_secs(40)));
    let socket = "/run/containerd/containerd.sock".into();
    assert_eq!(edged.runtime, Runtime::Containerd { socket });
    assert_eq!(edged.api, Some("127.0.0.1:10350".parse().unwrap()));
}

#[test]
fn a_file_as_keadm_writes_it_is_understood_without_a_warning() {
    let config = parse(
        r#"
apiVersion: edgecore.config.kubeedge.io/v1alpha2
database:
  aliasName: default
  dataSource: /data/ke.db
  driverName: sqlite3
edgecoreVersion: v1.22.0
kind: EdgeCore
modules:
  edgeHub:
    enable: true
    heartbeat: 20
    httpServer: https://cloud.example.com:10002
    quic: {enable: true, handshakeTimeout: 30, readDeadline: 15, server: "[2001:db8::1]:10001", writeDeadline: 15}
    websocket: {enable: true, server: 10.0.0.1:10000}
  edged:
    hostnameOverride: Edge-Node.example
    nodeIP: 10.0.0.9
    nodeLabels: {site: a, "kubernetes.io/x": "1"}
    tailoredKubeletConfig:
      address: 127.0.0.1
      cgroupDriver: systemd
      cgroupRoot: /edge
      podPidsLimit: 500
      clusterDNS: [169.254.96.16]
      evictionHard: {memory.available: 100Mi}
      nodeStatusUpdateFrequency: 1m0s
      registerWithTaints: [{key: a, value: b, effect: NoSchedule}, {key: c, effect: NoExecute}]
  eventBus:
    mqttMode: 1
    mqttQOS: 1
    mqttServerInternal: tcp://localhost:11884
    mqttServerExternal: tcp://broker:1883
    mqttPubClientID: me
    mqttUsername: user
    mqttPassword: hunter2
  serviceBus: {enable: true}
  metaManager: {remoteQueryTimeout: 5}
kubeedgeRs:
  runtime: process
  mappers: [thermometer, modbus]
  localDevices: {files: [/sys], commands: {up: [/usr/bin/uptime, -s]}}
  readings: {history: {count: 10}, outbox: {overflow: dropNewest}, format: json, listen: "127.0.0.1:7777"}
  serviceBus: {allow: [{port: 80, path: /api}, {port: 81}]}
"#
        .replace("Edge-Node", "edge-node")
        .as_str(),
    );
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.node.as_str(), "edge-node.example");
    assert_eq!(config.database, Path::new("/data/ke.redb"));
    let quic = config.hub.quic.unwrap().server;
    assert_eq!((quic.host.as_str(), quic.to_string().as_str()), ("2001:db8::1", "[2001:db8::1]:10001"));
    assert_eq!(config.hub.websocket.unwrap().server.port, 10000);
    assert_eq!(config.meta.query_deadline, Duration::from_secs(5));
    let edged = config.edged.unwrap();
    assert_eq!(edged.labels["kubernetes.io/x"], "1");
    assert_eq!(edged.taints[1], Taint { key: "c".into(), value: String::new(), effect: "NoExecute".into() });
    assert_eq!(edged.status_interval, Duration::from_secs(60));
    let cgroups = edged.cgroups.unwrap();
    assert_eq!((cgroups.driver, cgroups.root.as_str()), (CgroupDriver::Systemd, "/edge"));
    assert_eq!((cgroups.pids_max, cgroups.enforce_allocatable), (Some(500), true));
    assert_eq!(edged.runtime, Runtime::Process { directory: "/var/lib/kubeedge/processes".into() });
    let bus = config.event_bus.unwrap();
    assert_eq!((bus.mode, bus.internal.qos), (Mode::Both, QoS::AtLeastOnce));
    assert_eq!(bus.internal.listen, "127.0.0.1:11884".parse::<SocketAddr>().unwrap());
    assert_eq!(bus.external.client_id.as_deref(), Some("me"));
    let allow = config.service_bus.unwrap().allow;
    assert_eq!(allow, [Allowed { port: 80, path: "/api".into() }, Allowed { port: 81, path: "/".into() },]);
    assert_eq!(config.devices.mappers, [Mapper::Thermometer, Mapper::Modbus]);
    assert_eq!(config.devices.local.commands["up"], ["/usr/bin/uptime", "-s"]);
    let keeper = config.devices.keeper;
    assert_eq!((keeper.history.count_max, keeper.history.bytes_max), (10, 8 << 20));
    assert_eq!((keeper.outgoing.overflow, keeper.format), (Overflow::DropNewest, Format::Json));
    assert_eq!(config.devices.readings, Some(SocketAddr::from(([127, 0, 0, 1], 7777))));
}

#[test]
fn what_has_no_effect_or_is_not_known_is_named() {
    for (path, value, expected) in [
        ("modules.edgehub2.x", "1", "modules.edgehub2: unknown key, ignored"),
        (
            "modules.edged.tailoredKubeletConfig.maxPod",
            "1",
            "modules.edged.tailoredKubeletConfig.maxPod: unknown",
        ),
        ("modules.taskManager.enable", "true", "modules.taskManager.enable: not available in this edge"),
        (
            "modules.metaManager.metaServer.enable",
            "on",
            "modules.metaManager.metaServer.enable: not available",
        ),
        ("kind", "CloudCore", "kind: \"CloudCore\" is not EdgeCore"),
        (
            "modules.edgeHub.messageQPS",
            "5",
            "modules.edgeHub.messageQPS: it has no effect: reports are paced",
        ),
        ("modules.edgeHub.quic.readDeadline", "5", "modules.edgeHub.quic.readDeadline: it has no effect"),
        ("modules.edged.customInterfaceName", "eth1", "modules.edged.customInterfaceName: it has no effect"),
        ("featureGates", "{requireAuthorization: true}", "featureGates: it has no effect"),
        ("modules.eventBus.mqttQOS", "2", "modules.eventBus.mqttQOS: QoS 2 is not offered"),
        ("modules.eventBus.mqttmode", "0", "modules.eventBus.mqttmode: taken as mqttMode"),
    ] {
        let warnings = warnings(&at(path, value));
        assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{path}: {warnings:?}");
    }
    let open = "modules: {eventBus: {mqttMode: 0, mqttServerInternal: \"tcp://0.0.0.0:1884\"}}";
    assert!(
        warnings(open)[0]
            .starts_with("modules.eventBus.mqttServerInternal: the broker is open to the network")
    );
}

#[test]
fn a_value_that_cannot_be_is_an_error_that_begins_with_its_path() {
    for (path, value) in [
        ("database.dataSource", "edgecore.db"),
        ("modules.edgeHub.heartbeat", "0"),
        ("modules.edgeHub.heartbeat", "-5"),
        ("modules.edgeHub.heartbeat", "soon"),
        ("modules.edgeHub.messageQPS", "-1"),
        ("modules.edgeHub.websocket.server", "cloud"),
        ("modules.edgeHub.websocket.server", "cloud:0"),
        ("modules.edgeHub.websocket.server", "2001:db8::1:10000"),
        ("modules.edgeHub.quic.server", "\"[cloud]:1\""),
        ("modules.edgeHub.httpServer", "http://cloud:10002"),
        ("modules.edgeHub.tlsCaFile", "ca.crt"),
        ("modules.edged.hostnameOverride", "Not_A_Name"),
        ("modules.edged.nodeIP", "10.0.0"),
        ("modules.edged.nodeLabels.a", "1"),
        ("modules.edged.tailoredKubeletConfig.cgroupDriver", "none"),
        ("modules.edged.tailoredKubeletConfig.cgroupRoot", "/a/../.."),
        ("modules.edged.tailoredKubeletConfig.cgroupsPerQOS", "yes please"),
        ("modules.edged.tailoredKubeletConfig.enforceNodeAllocatable", "pods"),
        ("modules.edged.tailoredKubeletConfig.podPidsLimit", "-2"),
        ("modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint", "tcp://1.2.3.4:5"),
        ("modules.edged.tailoredKubeletConfig.nodeStatusUpdateFrequency", "10"),
        ("modules.edged.tailoredKubeletConfig.nodeStatusUpdateFrequency", "10ms"),
        ("modules.edged.tailoredKubeletConfig.maxPods", "-1"),
        ("modules.edged.tailoredKubeletConfig.address", "0.0.0.0"),
        ("modules.edged.tailoredKubeletConfig.readOnlyPort", "65536"),
        ("modules.edged.tailoredKubeletConfig.clusterDNS", "[dns]"),
        ("modules.edged.tailoredKubeletConfig.registerWithTaints", "[{key: a, effect: No}]"),
        ("modules.edged.tailoredKubeletConfig.registerWithTaints", "[{effect: NoSchedule}]"),
        ("modules.edged.tailoredKubeletConfig.kubeReserved.cpu", "lots"),
        ("modules.edged.tailoredKubeletConfig.kubeReserved.memory", "10%"),
        ("modules.edged.tailoredKubeletConfig.systemReserved.gpu", "1"),
        ("modules.edged.tailoredKubeletConfig.imageGCLowThresholdPercent", "85"),
        ("modules.edged.tailoredKubeletConfig.imageGCHighThresholdPercent", "101"),
        ("modules.edged.tailoredKubeletConfig.containerLogMaxFiles", "1"),
        ("modules.edged.tailoredKubeletConfig.containerLogMaxSize", "big"),
        ("modules.edged.tailoredKubeletConfig.maxParallelImagePulls", "5"),
        ("modules.edged.tailoredKubeletConfig.staticPodPath", "manifests"),
        ("modules.edged.tailoredKubeletConfig.fileCheckFrequency", "1ms"),
        ("modules.eventBus.mqttMode", "3"),
        ("modules.eventBus.mqttQOS", "3"),
        ("modules.eventBus.mqttSessionQueueSize", "0"),
        ("modules.eventBus.mqttServerExternal", "127.0.0.1:1883"),
        ("modules.eventBus.mqttServerExternal", "ssl://127.0.0.1:8883"),
        ("modules.eventBus.mqttServerInternal", "tcp://broker:1884"),
        ("modules.metaManager.metaServer.server", "here"),
        ("modules.serviceBus.port", "65536"),
        ("modules.deviceTwin.dmiSockPath", "dmi"),
        ("kubeedgeRs.runtime", "docker"),
        ("kubeedgeRs.deviceTwin.reportInterval", "often"),
        ("kubeedgeRs.deviceTwin.reportsPerSecond", "0"),
        ("kubeedgeRs.mappers", "[teapot]"),
        ("kubeedgeRs.mappers", "[modbus, modbus]"),
        ("kubeedgeRs.localDevices.files", "[sys]"),
        ("kubeedgeRs.localDevices.commands", "{up: [uptime]}"),
        ("kubeedgeRs.readings.commitWithin", "1ns"),
        ("kubeedgeRs.readings.history.count", "-1"),
        ("kubeedgeRs.readings.outbox.overflow", "panic"),
        ("kubeedgeRs.readings.format", "xml"),
        ("kubeedgeRs.serviceBus.allow", "[{port: 0}]"),
        ("kubeedgeRs.serviceBus.allow", "[{port: 1, pth: /a}]"),
        ("kubeedgeRs.serviceBus.allow", "[{port: 1, path: a}]"),
    ] {
        let error = error(&at(path, value));
        assert!(error.starts_with(path), "{path} {value}: {error}");
    }
    let neither = error("modules: {edgeHub: {websocket: {enable: false}}}");
    assert!(neither.starts_with("modules.edgeHub: one of websocket.enable and quic.enable"), "{neither}");
    let disabled =
        "modules: {edgeHub: {enable: false, websocket: {enable: false}}, eventBus: {enable: false}}";
    let config = parse(disabled);
    assert!(!config.hub.enable && config.event_bus.is_none());
}

#[test]
fn the_socket_for_mappers_is_in_the_folder_that_is_named() {
    for (named, socket) in [
        ("/etc/kubeedge/", "/etc/kubeedge/dmi.sock"),
        ("/run/ke", "/run/ke/dmi.sock"),
        ("/run/ke/other.sock", "/run/ke/dmi.sock"),
    ] {
        let config = parse(&format!("modules: {{deviceTwin: {{dmiSockPath: {named}}}}}"));
        assert_eq!(config.dmi_socket.to_str(), Some(socket));
    }
}

#[test]
fn the_kubelets_thresholds_are_laid_over_its_defaults() {
    use kubeedge_edge::edged::{Amount, Signal};
    let config = parse(
        "modules: {edged: {tailoredKubeletConfig: {
          evictionHard: {memory.available: 5%, nodefs.available: '0%', pid.available: 1000},
          evictionSoft: {memory.available: 300Mi}, evictionSoftGracePeriod: {memory.available: 1m30s},
          evictionMinimumReclaim: {memory.available: 50Mi}, evictionMaxPodGracePeriod: 60,
          kubeReserved: {cpu: 250m, memory: 1Gi, pid: '100'}, systemReserved: {cpu: 1, ephemeral-storage: 1Gi},
          serializeImagePulls: false, maxParallelImagePulls: 3}}}",
    );
    let upkeep = config.edged.unwrap().upkeep;
    let least = |signal| upkeep.eviction.hard.iter().find(|one| one.signal == signal).map(|one| one.least);
    assert_eq!(least(Signal::Memory), Some(Amount::Share(500)));
    assert_eq!(least(Signal::NodeDisk), None, "it is switched off");
    assert_eq!(least(Signal::ImageDisk), Some(Amount::Share(1500)), "the default");
    assert_eq!(least(Signal::Pids), Some(Amount::Units(1000)));
    let soft = upkeep.eviction.soft[0];
    assert_eq!((soft.grace, soft.reclaim), (Duration::from_secs(90), Some(Amount::Units(50 << 20))));
    assert_eq!((upkeep.kube_reserved.cpu_milli, upkeep.kube_reserved.memory_bytes), (250, 1 << 30));
    assert_eq!((upkeep.system_reserved.cpu_milli, upkeep.parallel_pulls), (1000, 3));
    assert_eq!(parse("").edged.unwrap().upkeep.parallel_pulls, 1);
    for (text, expected) in [
        ("evictionHard: {memory.avail: 1Mi}", "evictionHard.memory.avail: \"memory.avail\" is not"),
        (
            "evictionHard: {memory.available: 200%}",
            "evictionHard.memory.available: \"200%\" is not an amount",
        ),
        (
            "evictionSoft: {memory.available: 1Mi}",
            "evictionSoft.memory.available: evictionSoftGracePeriod has no",
        ),
    ] {
        let error = error(&format!("modules: {{edged: {{tailoredKubeletConfig: {{{text}}}}}}}"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_machine_whose_name_cannot_be_a_nodes_has_to_be_given_one() {
    assert_eq!(Config::parse("", "Edge-1\n").unwrap().0.node.as_str(), "edge-1");
    let error = Config::parse("", "my_machine").unwrap_err().to_string();
    assert!(error.starts_with("modules.edged.hostnameOverride: it is empty"), "{error}");
}

#[test]
fn an_error_names_the_file_and_the_place_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edgecore.yaml");
    let missing = format!("{:#}", Config::load(&path, "edge-1").unwrap_err());
    assert!(missing.contains("edgecore.yaml") && missing.contains("No such file"), "{missing}");
    std::fs::write(&path, "modules:\n  edgeHub:\n   heartbeat: 5\n  heartbeat: [\n").unwrap();
    let broken = format!("{:#}", Config::load(&path, "edge-1").unwrap_err());
    assert!(broken.contains("edgecore.yaml") && broken.contains("line"), "{broken}");
    std::fs::write(&path, "modules: {edgeHub: {heartbeat: 5}}").unwrap();
    assert_eq!(Config::load(&path, "edge-1").unwrap().0.hub.heartbeat, Duration::from_secs(5));
}

#[test]
fn the_brokers_users_are_read_and_a_slip_of_the_pen_opens_nothing() {
    let text = "kubeedgeRs: {eventBus: {users: [{name: app, password: hunter2, publish: [a/#]}]}}";
    let (config, _) = Config::parse(text, "edge-1").unwrap();
    let access = config.event_bus.unwrap().internal.broker.access;
    assert_eq!((access.anonymous, access.anonymous_remote), (None, None));
    assert_eq!(access.users[0].rights.publish, ["a/#"]);
    assert!(access.users[0].rights.subscribe.contains(&"#".to_owned()));
    for wrong in [
        "[{name: app, password: x, publishes: [a]}]",
        "[{name: app}]",
        "[{name: app, password: \"\"}]",
        "[{name: app, password: x, publish: [a/#/b]}]",
    ] {
        let text = format!("kubeedgeRs: {{eventBus: {{users: {wrong}}}}}");
        let error = Config::parse(&text, "edge-1").unwrap_err();
        assert!(format!("{error:#}").contains("kubeedgeRs.eventBus.users"), "{error:#}");
    }
}

#[test]
fn mqtt_with_tls_names_whom_to_believe() {
    let text = "modules: {eventBus: {mqttServerExternal: \"ssl://broker:8883\", eventBusTLS: {enable: true, \
                tlsMqttCAFile: /ca.crt, tlsMqttCertFile: \"\", tlsMqttPrivateKeyFile: \"\"}}}";
    let (config, _) = Config::parse(text, "edge-1").unwrap();
    let external = config.event_bus.unwrap().external;
    assert_eq!((external.host.as_str(), external.port), ("broker", 8883));
    let tls = external.tls.unwrap();
    assert_eq!((tls.ca.as_path(), tls.identity), (Path::new("/ca.crt"), None));
}
