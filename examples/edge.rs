use std::{fmt, sync::Arc, time::Duration};

use kubeedge_core::{
    device::{DeviceAssignment, DeviceProtocol, Reading},
    group::{self, Group},
    message::{
        Acked, Connectivity, Delivered, Object, ObjectEvent, ObjectRef, Publish, Report, Upload, UploadId,
    },
    pipe::{self, Caller},
    runtime::ContainerRuntime,
    store::MetaStore,
    transport::Transport,
};
use kubeedge_device::mapper::{self, Mapper};
use kubeedge_edge::{
    devicetwin::{self, DeviceTwin},
    dmi::{self, Dmi},
    edged::{self, Edged},
    edgehub::{self, EdgeHub},
    eventbus::{self, EventBus},
    metamanager::{self, MetaManager, Read, ReadError},
    servicebus::{self, ServiceBus},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// 4 MiB: what applications say over MQTT waits in a pipe, a message of which may have 1 MiB; then it waits with them.
const PIPE_BYTES_MAX: usize = 4 << 20;

/// What an edge is made of.
#[derive(Debug)]
pub struct EdgeConfig {
    /// How it reaches the cloud.
    pub transport: Arc<dyn Transport>,
    /// What it remembers.
    pub store: Arc<dyn MetaStore>,
    /// What runs its pods.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// What drives its devices.
    pub protocol: Arc<dyn DeviceProtocol>,
    /// EdgeHub's settings.
    pub edgehub: edgehub::Config,
    /// Edged's settings.
    pub edged: edged::Config,
    /// DeviceTwin's settings.
    pub devicetwin: devicetwin::Config,
    /// Dmi's settings, for mappers outside the process; there is none without.
    pub dmi: Option<dmi::Config>,
    /// EventBus' settings; there is none without.
    pub eventbus: Option<eventbus::Config>,
    /// ServiceBus' settings; there is none without.
    pub servicebus: Option<servicebus::Config>,
}

/// A running edge.
pub struct Edge {
    /// Whether it reaches the cloud.
    pub connectivity: watch::Receiver<Connectivity>,
    /// Reads what it holds, with or without a link.
    pub reads: Caller<Read, Result<Vec<Object>, ReadError>>,
    stop: CancellationToken,
    group: Group,
}

impl Edge {
    /// Wires the parts and starts them.
    pub fn start(config: EdgeConfig) -> Self {
        // The arrows of ARCHITECTURE.md, one line each.
        let (objects_tx, objects_rx) =
            pipe::latest("objects", |object: &Delivered<ObjectEvent>| object.message.key().clone());
        let (acked_tx, acked_rx) = pipe::latest("acked", |acked: &Acked<ObjectRef>| acked.key.clone());
        let (inventory_tx, inventory_rx) = pipe::calls("inventory", 4);
        let (queries_tx, queries_rx) = pipe::calls("queries", 64);
        let (rules_tx, rules_rx) = pipe::latest("rules", |event: &ObjectEvent| event.key().clone());
        let (workloads_tx, workloads_rx) =
            pipe::latest("workloads", |event: &ObjectEvent| event.key().clone());
        let (devices_tx, devices_rx) = pipe::latest("devices", |event: &ObjectEvent| event.key().clone());
        let (reads_tx, reads_rx) = pipe::calls("reads", 64);
        let (tokens_tx, tokens_rx) = pipe::calls("tokens", 64);
        let (reports_tx, reports_rx) = pipe::latest("reports", Report::key);
        let (uploads_tx, uploads_rx) = pipe::weighed_events("uploads", 1024, PIPE_BYTES_MAX, Upload::size);
        let (events_tx, events_rx) = pipe::events("events", 32);
        let (connectivity_tx, connectivity_rx) = watch::channel(Connectivity::Offline);
        let (logs_tx, logs_rx) = pipe::calls("logs", 16);
        let (_releases_tx, releases_rx) = pipe::calls("releases", 4);
        let (_pods_tx, pods_rx) = pipe::calls("pods", 4);
        // No device plugins run in these stories.
        let (_, plugins_rx) = watch::channel(edged::devices::Inventory::new());
        let (plugin_questions_tx, _) = pipe::calls("device_questions", 1);
        let (services_tx, services_rx) = pipe::calls("services", 16);
        let (cloud_messages_tx, cloud_messages_rx) = pipe::calls("cloud_messages", 16);
        // Nobody serves the kubelet's interface in these stories.
        let (tunnels_tx, _) = pipe::calls("tunnels", 1);
        let (uploaded_tx, uploaded_rx) = pipe::latest("uploaded", |id: &UploadId| *id);
        let (device_messages_tx, device_messages_rx) =
            pipe::weighed_events("device_messages", 1024, PIPE_BYTES_MAX, Publish::size);
        let (publishes_tx, publishes_rx) =
            pipe::weighed_events("publishes", 1024, PIPE_BYTES_MAX, Publish::size);
        let (assignments_tx, assignments_rx) = pipe::latest("assignments", DeviceAssignment::key);
        let (outside_tx, outside_rx) = pipe::latest("outside_assignments", DeviceAssignment::key);
        let (readings_tx, readings_rx) = pipe::latest("readings", Reading::key);

        // The parts: each takes the ends it uses.
        let edgehub = EdgeHub::new(
            config.edgehub,
            config.transport,
            edgehub::Inbox {
                reports: reports_rx,
                uploads: uploads_rx,
                events: events_rx,
                acked: acked_rx,
                queries: queries_rx,
            },
            edgehub::Outbox {
                objects: objects_tx,
                inventory: inventory_tx,
                logs: logs_tx,
                services: services_tx,
                cloud_messages: cloud_messages_tx,
                tunnels: tunnels_tx,
                uploaded: uploaded_tx,
                connectivity: connectivity_tx,
            },
        );
        let metamanager = MetaManager::new(
            metamanager::Config::default(),
            config.store.clone(),
            metamanager::Inbox {
                objects: objects_rx,
                inventory: inventory_rx,
                reads: reads_rx,
                tokens: tokens_rx,
                connectivity: connectivity_rx.clone(),
            },
            metamanager::Outbox {
                acked: acked_tx,
                workloads: workloads_tx,
                devices: devices_tx,
                rules: rules_tx,
                queries: queries_tx.clone(),
            },
        );
        let devicetwin = DeviceTwin::new(
            config.devicetwin,
            config.store.clone(),
            devicetwin::Inbox {
                devices: devices_rx,
                device_messages: device_messages_rx,
                readings: readings_rx,
                connectivity: connectivity_rx.clone(),
            },
            devicetwin::Outbox {
                reports: reports_tx.clone(),
                publishes: publishes_tx,
                assignments: pipe::tee(assignments_tx, outside_tx),
            },
        );
        let dmi = config.dmi.map(|dmi| {
            let reserved = [config.protocol.name().to_owned()].into();
            Dmi::new(
                // The protocol that is run here is not given to a mapper outside.
                dmi::Config { reserved, ..dmi },
                config.store.clone(),
                dmi::Inbox { assignments: outside_rx },
                dmi::Outbox { readings: readings_tx.clone() },
            )
        });
        let edged = Edged::new(
            config.edged,
            config.runtime,
            edged::Inbox {
                workloads: workloads_rx,
                logs: logs_rx,
                releases: releases_rx,
                pods: pods_rx,
                devices: plugins_rx,
                connectivity: connectivity_rx.clone(),
            },
            edged::Outbox {
                tokens: tokens_tx,
                reports: reports_tx,
                queries: queries_tx,
                events: events_tx,
                devices: plugin_questions_tx,
            },
        );
        let store = config.store;
        let eventbus = config.eventbus.map(|config| {
            EventBus::new(
                config,
                store,
                eventbus::Inbox {
                    publishes: publishes_rx,
                    cloud_messages: cloud_messages_rx,
                    uploaded: uploaded_rx,
                    rules: rules_rx,
                },
                eventbus::Outbox { device_messages: device_messages_tx, uploads: uploads_tx },
            )
        });
        let servicebus = config
            .servicebus
            .map(|config| ServiceBus::new(config, servicebus::Inbox { services: services_rx }));
        let mapper = Mapper::new(
            mapper::Config::default(),
            config.protocol,
            mapper::Inbox { assignments: assignments_rx },
            mapper::Outbox { readings: readings_tx, samples: None },
        );

        let stop = CancellationToken::new();
        let mut group = Group::new(stop.clone());
        group.spawn("edgehub", edgehub.run(stop.child_token()));
        group.spawn("metamanager", metamanager.run(stop.child_token()));
        group.spawn("devicetwin", devicetwin.run(stop.child_token()));
        if let Some(dmi) = dmi {
            group.spawn("dmi", dmi.run(stop.child_token()));
        }
        group.spawn("edged", edged.run(stop.child_token()));
        if let Some(eventbus) = eventbus {
            group.spawn("eventbus", eventbus.run(stop.child_token()));
        }
        if let Some(servicebus) = servicebus {
            group.spawn("servicebus", servicebus.run(stop.child_token()));
        }
        group.spawn("mapper", mapper.run(stop.child_token()));
        Self { connectivity: connectivity_rx, reads: reads_tx, stop, group }
    }

    /// Stops all parts. What runs in the container runtime goes on.
    ///
    /// # Errors
    /// If a part has failed, or does not stop.
    pub async fn stop(self) -> Result<(), group::Error> {
        self.stop.cancel();
        self.group.join(Duration::from_secs(5)).await
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").field("group", &self.group).finish_non_exhaustive()
    }
}
