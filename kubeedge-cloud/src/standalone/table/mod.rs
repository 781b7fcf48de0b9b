//! What `kubectl get` shows: Kubernetes' `Table`, drawn by the server.

use jiff::Timestamp;
use serde_json::{Value, json};

mod cells;
mod pod;

/// The columns of a resource, and how an object fills them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns {
    /// Heading and priority: 0 is always shown, 1 with `-o wide`.
    heads: &'static [(&'static str, u8)],
    /// The cells of one object at this time.
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// Name and age.
pub(crate) const PLAIN: Columns = Columns { heads: &[("Name", 0), ("Age", 0)], cells: cells::plain };
pub(crate) const CONFIG_MAP: Columns =
    Columns { heads: &[("Name", 0), ("Data", 0), ("Age", 0)], cells: cells::config_map };
pub(crate) const SECRET: Columns =
    Columns { heads: &[("Name", 0), ("Type", 0), ("Data", 0), ("Age", 0)], cells: cells::secret };
pub(crate) const SERVICE: Columns = Columns {
    heads: &[("Name", 0), ("Type", 0), ("Cluster-IP", 0), ("External-IP", 0), ("Port(s)", 0), ("Age", 0)],
    cells: cells::service,
};
pub(crate) const SERVICE_ACCOUNT: Columns =
    Columns { heads: &[("Name", 0), ("Secrets", 0), ("Age", 0)], cells: cells::service_account };
pub(crate) const NAMESPACE: Columns =
    Columns { heads: &[("Name", 0), ("Status", 0), ("Age", 0)], cells: cells::namespace };
pub(crate) const LEASE: Columns =
    Columns { heads: &[("Name", 0), ("Holder", 0), ("Age", 0)], cells: cells::lease };
pub(crate) const EVENT: Columns = Columns {
    heads: &[
        ("Last Seen", 0),
        ("Type", 0),
        ("Reason", 0),
        ("Object", 0),
        ("Subobject", 1),
        ("Source", 1),
        ("Message", 0),
        ("First Seen", 1),
        ("Count", 1),
        ("Name", 1),
    ],
    cells: cells::event,
};
pub(crate) const NODE: Columns = Columns {
    heads: &[
        ("Name", 0),
        ("Status", 0),
        ("Roles", 0),
        ("Age", 0),
        ("Version", 0),
        ("Internal-IP", 1),
        ("External-IP", 1),
        ("OS-Image", 1),
        ("Kernel-Version", 1),
        ("Container-Runtime", 1),
    ],
    cells: cells::node,
};
pub(crate) const POD: Columns = Columns {
    heads: &[
        ("Name", 0),
        ("Ready", 0),
        ("Status", 0),
        ("Restarts", 0),
        ("Age", 0),
        ("IP", 1),
        ("Node", 1),
        ("Nominated Node", 1),
        ("Readiness Gates", 1),
    ],
    cells: pod::cells,
};
pub(crate) const DEVICE: Columns = Columns {
    heads: &[("Name", 0), ("Node", 0), ("Model", 0), ("State", 0), ("Age", 0)],
    cells: cells::device,
};
pub(crate) const DEVICE_MODEL: Columns = Columns {
    heads: &[("Name", 0), ("Protocol", 0), ("Properties", 0), ("Age", 0)],
    cells: cells::device_model,
};

/// How much of an object goes into a row beside its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    Nothing,
    /// Its metadata: the default.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the query parameter `includeObject`.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("None") => Self::Nothing,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

impl Columns {
    /// Draws the objects. Columns are defined in the first table of a watch only, as Kubernetes does.
    pub(crate) fn table(self, objects: &[Value], list_meta: Value, include: Include, heads: bool) -> Value {
        let now = Timestamp::now();
        let rows: Vec<Value> = objects.iter().map(|object| self.row(object, include, now)).collect();
        let heads: Option<Vec<Value>> = heads.then(|| self.heads.iter().map(|head| column(*head)).collect());
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
            "columnDefinitions": heads, "rows": rows,
        })
    }

    fn row(self, object: &Value, include: Include, now: Timestamp) -> Value {
        let mut row = json!({ "cells": (self.cells)(object, now) });
        match include {
            Include::Nothing => row["object"] = Value::Null,
            Include::Object => row["object"] = object.clone(),
            Include::Metadata => {
                row["object"] = json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": object.get("metadata"),
                });
            }
        }
        row
    }
}

fn column((name, priority): (&str, u8)) -> Value {
    let format = if name == "Name" { "name" } else { "" };
    json!({ "name": name, "type": "string", "format": format, "description": "", "priority": priority })
}

/// How long ago a time was, as `kubectl` writes it: two units for small numbers, one for large.
pub(crate) fn age(since: &str, now: Timestamp) -> String {
    match since.parse::<Timestamp>() {
        Ok(since) => duration(now.as_second() - since.as_second()),
        Err(_) => "<unknown>".into(),
    }
}

fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{rest}{small}") }
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_two_units_while_the_number_is_small() {
        let ages = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3_600, "60m"),
            (10_860, "3h1m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (63_072_000, "2y"),
        ];
        for (seconds, text) in ages {
            assert_eq!(duration(seconds), text);
        }
    }
}
