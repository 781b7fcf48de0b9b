//! Devices that are driven in this process, and what is kept of their values.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use kubeedge_device::{
    keeper::{self, Format, History, Outgoing, Overflow},
    protocols::local,
};

use super::tree::Node;

/// A mapper inside the process, by the protocol of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapper {
    Http,
    Local,
    Modbus,
    Mqtt,
    Thermometer,
}

impl Mapper {
    const ALL: [Self; 5] = [Self::Http, Self::Local, Self::Modbus, Self::Mqtt, Self::Thermometer];

    /// The protocol's name, as a Device has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Local => "local",
            Self::Modbus => "modbus",
            Self::Mqtt => "mqtt",
            Self::Thermometer => "thermometer",
        }
    }
}

/// What `kubeedgeRs` says of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Devices {
    pub(crate) mappers: Vec<Mapper>,
    pub(crate) local: local::Config,
    pub(crate) keeper: keeper::Config,
    /// Where questions about what is kept are answered.
    pub(crate) readings: Option<SocketAddr>,
}

pub(super) fn read(root: &Node<'_>) -> Result<Devices> {
    let ours = root.at("kubeedgeRs");
    Ok(Devices {
        mappers: mappers(&ours.at("mappers"))?,
        local: local(&ours.at("localDevices"))?,
        keeper: keeper(&ours.at("readings"))?,
        readings: readings(&ours.at("readings.listen"))?,
    })
}

fn mappers(node: &Node<'_>) -> Result<Vec<Mapper>> {
    let mut mappers = Vec::new();
    for node in node.list()? {
        let text = node.text()?;
        let Some(mapper) = Mapper::ALL.into_iter().find(|mapper| mapper.name() == text) else {
            let all = Mapper::ALL.map(Mapper::name).join(", ");
            return Err(node.wrong(format!("{text:?} is not a mapper of this edge; it has {all}")));
        };
        ensure!(!mappers.contains(&mapper), node.wrong("it stands there twice"));
        mappers.push(mapper);
    }
    Ok(mappers)
}

fn local(node: &Node<'_>) -> Result<local::Config> {
    let mut commands = BTreeMap::new();
    for (name, command) in node.at("commands").members()? {
        let argv =
            command.list()?.iter().map(|word| word.text().map(str::to_owned)).collect::<Result<Vec<_>>>()?;
        let program = argv.first().is_some_and(|program| program.starts_with('/'));
        ensure!(program, command.wrong("it does not begin with the absolute path of a program"));
        commands.insert(name.to_owned(), argv);
    }
    let files = node.at("files").list()?.iter().map(Node::file).collect::<Result<_>>()?;
    Ok(local::Config { files, commands, ..local::Config::default() })
}

fn readings(node: &Node<'_>) -> Result<Option<SocketAddr>> {
    if node.text()?.is_empty() {
        return Ok(None);
    }
    let address = node.parsed::<SocketAddr>()?;
    ensure!(
        address.ip().is_loopback(),
        node.wrong(
            "nobody is asked for a password there, so that it has to be an address of 127.0.0.0/8 or ::1"
        )
    );
    Ok(Some(address))
}

fn keeper(node: &Node<'_>) -> Result<keeper::Config> {
    const MIB: u64 = 1 << 20;
    let (history, outbox, format) = (node.at("history"), node.at("outbox"), node.at("format"));
    let overflow = outbox.at("overflow");
    Ok(keeper::Config {
        commit_within: within(&node.at("commitWithin"), Duration::from_millis(10), Duration::from_secs(60))?,
        history: History {
            count_max: history.at("count").number(0, i64::MAX)?.unsigned_abs(),
            bytes_max: history.at("megabytes").number(1_i64, 1 << 20)?.unsigned_abs() * MIB,
            age_max: history.at("age").duration()?,
        },
        outgoing: Outgoing {
            count_max: outbox.at("count").number(1, i64::MAX)?.unsigned_abs(),
            bytes_max: outbox.at("megabytes").number(1_i64, 1 << 20)?.unsigned_abs() * MIB,
            age_max: outbox.at("age").duration()?,
            overflow: match overflow.text()? {
                "dropOldest" => Overflow::DropOldest,
                "dropNewest" => Overflow::DropNewest,
                other => {
                    return Err(overflow.wrong(format!("{other:?} is neither dropOldest nor dropNewest")));
                }
            },
            ..Outgoing::default()
        },
        format: match format.text()? {
            "mapper" => Format::Mapper,
            "json" => Format::Json,
            other => return Err(format.wrong(format!("{other:?} is neither mapper nor json"))),
        },
        ..keeper::Config::default()
    })
}

fn within(node: &Node<'_>, min: Duration, max: Duration) -> Result<Duration> {
    let duration = node.duration()?;
    ensure!(
        (min..=max).contains(&duration),
        node.wrong(format!("{duration:?} is not between {min:?} and {max:?}"))
    );
    Ok(duration)
}
