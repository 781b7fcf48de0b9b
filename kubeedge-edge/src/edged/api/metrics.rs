//! Figures in Prometheus' text format, under the kubelet's names.

use std::fmt::Write as _;

use super::figures::Snapshot;

/// `/metrics/resource`: what metrics-server collects.
pub(super) fn resources(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    let containers = || {
        let pods = snapshot.pods.iter();
        pods.flat_map(|pod| pod.stats.containers.iter().zip(&pod.containers).map(move |one| (pod, one)))
    };
    let labels = |pod: &super::figures::PodFigures, container: &str| {
        let stats = &pod.stats;
        let of_pod = [("namespace", stats.namespace.as_str()), ("pod", stats.name.as_str())];
        let of_container = (!container.is_empty()).then_some(("container", container));
        of_container.into_iter().chain(of_pod).map(|(k, v)| (k, v.to_owned())).collect::<Vec<_>>()
    };
    text.family("container_cpu_usage_seconds_total", "counter", "Processor time of the container in seconds");
    for (pod, (one, _)) in containers() {
        if let Some(cpu) = one.cpu {
            text.sample(&labels(pod, &one.name), seconds(cpu.total_ns), Some(cpu.at_ms));
        }
    }
    text.family("container_memory_working_set_bytes", "gauge", "Working set of the container in bytes");
    for (pod, (one, _)) in containers() {
        if let Some(memory) = one.memory {
            text.sample(&labels(pod, &one.name), memory.working_set_bytes, Some(memory.at_ms));
        }
    }
    text.family(
        "container_start_time_seconds",
        "gauge",
        "Start of the container since the Unix epoch in seconds",
    );
    for (pod, (one, (started_ms, _))) in containers() {
        text.sample(&labels(pod, &one.name), milliseconds(*started_ms), None);
    }
    text.family("node_cpu_usage_seconds_total", "counter", "Processor time of the node in seconds");
    text.sample(&[], seconds(snapshot.cpu.total_ns), Some(snapshot.cpu.at_ms));
    text.family("node_memory_working_set_bytes", "gauge", "Working set of the node in bytes");
    let memory = snapshot.usage.memory;
    text.sample(&[], memory.capacity - memory.available, Some(snapshot.at_ms));
    text.family("pod_cpu_usage_seconds_total", "counter", "Processor time of the pod in seconds");
    for pod in &snapshot.pods {
        if let Some(cpu) = pod.stats.cpu {
            text.sample(&labels(pod, ""), seconds(cpu.total_ns), Some(cpu.at_ms));
        }
    }
    text.family("pod_memory_working_set_bytes", "gauge", "Working set of the pod in bytes");
    for pod in &snapshot.pods {
        if let Some(memory) = pod.stats.memory {
            text.sample(&labels(pod, ""), memory.working_set_bytes, Some(memory.at_ms));
        }
    }
    text.scrape_error(0);
    text.written
}

/// What `/metrics/resource` says if there are no figures.
pub(super) fn scrape_error() -> String {
    let mut text = Text::default();
    text.scrape_error(1);
    text.written
}

/// `/metrics`: what Edged says of itself.
pub(super) fn own(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    text.family("kubelet_node_name", "gauge", "The node's name; always 1");
    text.sample(&[("node", snapshot.node.clone())], 1, None);
    text.family("kubelet_running_pods", "gauge", "Pods with a sandbox that is ready");
    text.sample(&[], snapshot.pods.len(), None);
    text.family("kubelet_running_containers", "gauge", "Containers by their state");
    for (state, count) in &snapshot.containers {
        text.sample(&[("container_state", (*state).to_owned())], count, None);
    }
    text.family("process_cpu_seconds_total", "counter", "Processor time of this program in seconds");
    text.sample(&[], seconds(snapshot.own.cpu_ns), None);
    text.family("process_resident_memory_bytes", "gauge", "Memory of this program in bytes");
    text.sample(&[], snapshot.own.resident_bytes, None);
    text.family("process_open_fds", "gauge", "Descriptors that this program has open");
    text.sample(&[], snapshot.own.descriptors, None);
    text.written
}

#[derive(Default)]
struct Text {
    written: String,
    name: &'static str,
}

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // Writing to a String cannot fail.
        let _ = writeln!(self.written, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, String)], value: impl std::fmt::Display, at_ms: Option<u64>) {
        self.written.push_str(self.name);
        for (index, (name, value)) in labels.iter().enumerate() {
            let begin = if index == 0 { '{' } else { ',' };
            let _ = write!(self.written, "{begin}{name}=\"{}\"", escaped(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let at = at_ms.map(|at| format!(" {at}")).unwrap_or_default();
        let _ = writeln!(self.written, "{end} {value}{at}");
    }

    fn scrape_error(&mut self, value: u8) {
        for name in ["resource_scrape_error", "scrape_error"] {
            self.family(name, "gauge", "1 if there was an error while getting figures, 0 otherwise");
            self.sample(&[], value, None);
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

fn milliseconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

#[cfg(test)]
mod tests {
    use kubeedge_core::runtime::{ContainerStats, CpuUsage, SandboxStats};

    use super::{super::figures::PodFigures, *};

    #[test]
    fn figures_have_the_kubelets_names_labels_and_times() {
        let cpu = CpuUsage { at_ms: 1_700_000_000_123, total_ns: 1_500_000_000, nano_cores: None };
        let container = ContainerStats { name: "app".into(), cpu: Some(cpu), ..ContainerStats::default() };
        let stats = SandboxStats {
            name: "web".into(),
            namespace: "default".into(),
            cpu: Some(cpu),
            containers: vec![container],
            ..SandboxStats::default()
        };
        let pod = PodFigures { stats, started_ms: 1000, containers: vec![(1500, 0)] };
        let text = resources(&Snapshot { pods: vec![pod], ..Snapshot::default() });
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            r#"container_cpu_usage_seconds_total{container="app",namespace="default",pod="web"} 1.500000000 1700000000123"#,
            r#"container_start_time_seconds{container="app",namespace="default",pod="web"} 1.500"#,
            r#"pod_cpu_usage_seconds_total{namespace="default",pod="web"} 1.500000000 1700000000123"#,
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("container_memory_working_set_bytes{"), "what is not known is left out");
        assert!(scrape_error().ends_with("scrape_error 1\n"));
        assert_eq!(escaped("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
