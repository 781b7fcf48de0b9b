//! The link between both sides, what happens to it, and the question whether they agree.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kubeedge_cloud::devicecontroller::simulation::Told;
use kubeedge_core::{
    device::{Reading, ReadingContent},
    id::{DeviceId, NodeName},
    message::{Delivered, Delivery, DeviceReport, FromNode, ObjectEvent, Report, ReportKey},
};

use crate::{
    checker::{Checker, Side},
    cloud::{Cloud, PROPERTIES, devices},
    edge::{Commit, Edge, Input, slots, update},
    random::Random,
};

/// 2026-11-23T00:50:48.343Z
const WALL_MS: u64 = 1_795_395_048_343;

/// Both sides have agreed by then, in virtual time: back-offs and paces are seconds.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    edge: Edge,
    cloud: Cloud,
    link: Link,
    checker: Checker,
    node: NodeName,
    start: Instant,
    now: Instant,
    /// How far the edge's clock is off.
    clock: i64,
    counter: u64,
    up: bool,
}

/// What the link's two ends hold.
#[derive(Default)]
struct Link {
    /// The session, while there is one.
    session: Option<u64>,
    last_session: u64,
    /// The newest report of each device that the cloud has not acknowledged, and under which number it is on its way.
    unacknowledged: BTreeMap<DeviceId, (DeviceReport, Option<u64>)>,
    last_number: u64,
    /// What was sent under each number.
    sent: BTreeMap<u64, DeviceReport>,
    /// On their way up and down, and when they arrive.
    reports: Vec<(Instant, u64, u64, DeviceReport)>,
    acknowledgements: Vec<(Instant, u64, DeviceId, u64)>,
    objects: Vec<(Instant, u64, ObjectEvent)>,
    /// When objects sent last arrive: they stay in order.
    ordered: Option<Instant>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let start = Instant::now();
        let mut world = Self {
            edge: Edge::new(seed),
            cloud: Cloud::new(start),
            link: Link::default(),
            checker: Checker::default(),
            node: "edge-1".parse().expect("it is a name"),
            start,
            now: start,
            clock: 0,
            counter: 0,
            up: false,
        };
        world.mend_link();
        world
    }

    // ------------------------------------------------------------------------------------------- what happens

    pub(crate) fn application_writes(&mut self, random: &mut Random) {
        for _ in 0..=random.below(3) {
            let number = self.number();
            self.checker.ask(format!("e-{number}"));
            self.edge.inputs.push(Input::Message(update(random, number)));
        }
    }

    pub(crate) fn mapper_reads(&mut self, random: &mut Random) {
        for _ in 0..=random.below(4) {
            let [one, two] = devices();
            let device = if random.below(2) == 0 { one } else { two };
            // The third property has no driver.
            let property = PROPERTIES[usize::try_from(random.below(2)).expect("it is small")];
            let value = match random.below(3) {
                0 => "same".to_owned(),
                _ => format!("read-{}", self.number()),
            };
            self.read(&device, property, value);
        }
    }

    fn read(&mut self, device: &DeviceId, property: &str, value: String) {
        let observed_desired = self.edge.wishes.get(&(device.clone(), property.to_owned())).cloned();
        let timestamp_ms = self.wall_ms();
        let content =
            ReadingContent::Property { property: property.to_owned(), value, observed_desired, timestamp_ms };
        self.edge.inputs.push(Input::Reading(Reading { device: device.clone(), content }));
    }

    pub(crate) fn cloud_desires(&mut self, random: &mut Random) {
        let [one, two] = devices();
        let device = if random.below(2) == 0 { one } else { two };
        let property = PROPERTIES[usize::try_from(random.below(3)).expect("it is small")];
        let value = format!("cloud-{}", self.number());
        let value = (random.below(4) > 0).then_some(value.as_str());
        self.cloud.desire(&device, property, value, self.now);
    }

    pub(crate) fn cut_link(&mut self, random: &mut Random) {
        self.up = false;
        self.end_session(random);
    }

    /// What is on its way is lost; a report may arrive all the same, and late.
    fn end_session(&mut self, random: &mut Random) {
        self.link.session = None;
        self.link.objects.clear();
        self.link.ordered = None;
        self.link.acknowledgements.clear();
        let late = self.now + Duration::from_millis(random.below(3_000));
        self.link.reports.retain_mut(|(at, ..)| {
            *at = late;
            random.below(4) == 0
        });
        for (_, on_its_way) in self.link.unacknowledged.values_mut() {
            *on_its_way = None;
        }
    }

    pub(crate) fn mend_link(&mut self) {
        self.up = true;
    }

    pub(crate) fn cut_power(&mut self, random: &mut Random) {
        self.end_session(random);
        self.link.unacknowledged.clear();
        let wall_ms = self.wall_ms();
        if random.below(2) == 0 {
            // In the middle of a turn.
            self.edge.commit = Commit::Cut { after: random.below(2) == 0 };
            self.edge.act(&mut self.checker, self.now, wall_ms);
        } else {
            self.edge.lose_power(&mut self.checker, self.now, wall_ms);
        }
    }

    pub(crate) fn restart_cloud(&mut self, random: &mut Random) {
        self.end_session(random);
        // What was on its way to the former cloud does not arrive at the next.
        self.link.reports.clear();
        if random.below(2) == 0 {
            self.cloud.take_orphan(&mut self.checker, self.now);
        }
        self.cloud.restart();
    }

    pub(crate) fn replace_device(&mut self, random: &mut Random) {
        let [_, two] = devices();
        self.cloud.delete(&two, self.now);
        if random.below(3) > 0 {
            let value = format!("cloud-{}", self.number());
            self.cloud.desire(&two, "b", Some(&value), self.now);
        }
    }

    /// By up to a day, in either direction.
    pub(crate) fn jump_clock(&mut self, random: &mut Random) {
        self.clock = i64::try_from(random.below(172_800_000)).expect("it is two days") - 86_400_000;
    }

    pub(crate) fn fail_store(&mut self, _random: &mut Random) {
        self.edge.commit = Commit::Fails;
    }

    pub(crate) fn fail_api(&mut self, random: &mut Random) {
        self.cloud.away_until = self.now + Duration::from_millis(random.below(5_000));
    }

    /// Something is said again that was said before: an object to the edge.
    pub(crate) fn replay(&mut self, random: &mut Random) {
        let known: Vec<_> = self.edge.objects.values().cloned().collect();
        if !known.is_empty() {
            let at = usize::try_from(random.below(known.len() as u64)).expect("it is small");
            self.edge.inputs.push(Input::Object(known[at].clone()));
        }
    }

    fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn wall_ms(&self) -> u64 {
        let passed =
            u64::try_from(self.now.duration_since(self.start).as_millis()).expect("it is a short time");
        (WALL_MS + passed).checked_add_signed(self.clock).expect("a day is little")
    }

    // ------------------------------------------------------------------------------------------ passing time

    /// Lets time pass, and everything happen that is due.
    pub(crate) fn pass(&mut self, time: Duration, random: &mut Random) {
        let end = self.now + time;
        loop {
            let next = self.act(random).filter(|next| *next <= end);
            match next {
                Some(next) => self.now = next.max(self.now + Duration::from_millis(1)),
                None => break,
            }
        }
        self.now = self.now.max(end);
    }

    /// Does what is due, and gives when something is due next.
    fn act(&mut self, random: &mut Random) -> Option<Instant> {
        if self.up && self.link.session.is_none() {
            self.connect(random);
        }
        self.deliver(random);
        let is_due = self.edge.poll_timeout().is_some_and(|at| at <= self.now);
        if is_due || !self.edge.inputs.is_empty() {
            let wall_ms = self.wall_ms();
            for report in self.edge.act(&mut self.checker, self.now, wall_ms) {
                let on_its_way = self.link.unacknowledged.get(&report.device).and_then(|(_, number)| *number);
                self.link.unacknowledged.insert(report.device.clone(), (report, on_its_way));
            }
        }
        self.send(random);
        let cloud = self.cloud.act(&mut self.checker, self.now, random);
        self.hear_controller(random);
        let soon = (!self.edge.inputs.is_empty()).then_some(self.now + Duration::from_millis(5));
        let link = &self.link;
        let reports = link.reports.iter().map(|(at, ..)| *at);
        let acknowledgements = link.acknowledgements.iter().map(|(at, ..)| *at);
        let objects = link.objects.iter().map(|(at, ..)| *at);
        let others = [cloud, self.edge.poll_timeout(), soon].into_iter().flatten();
        reports.chain(acknowledgements).chain(objects).chain(others).min()
    }

    /// A session begins: the edge is given what the cloud has, and says what it has.
    fn connect(&mut self, random: &mut Random) {
        self.link.last_session += 1;
        self.link.session = Some(self.link.last_session);
        self.link.last_number = 0;
        self.link.sent.clear();
        self.edge.handle_online(self.now);
        let snapshot = self.cloud.controller.snapshot(&self.node);
        let gone: Vec<ObjectEvent> = self
            .edge
            .objects
            .iter()
            .filter(|(reference, _)| !snapshot.iter().any(|object| object.reference == **reference))
            .filter_map(|(_, event)| match event {
                ObjectEvent::Applied(object) => Some(ObjectEvent::Deleted {
                    reference: object.reference.clone(),
                    uid: object.uid.clone(),
                }),
                ObjectEvent::Deleted { .. } => None,
            })
            .collect();
        for event in gone.into_iter().chain(snapshot.into_iter().map(ObjectEvent::Applied)) {
            self.send_object(event, random);
        }
    }

    fn send_object(&mut self, event: ObjectEvent, random: &mut Random) {
        let Some(session) = self.link.session else { return };
        let at = self.now + Duration::from_millis(random.below(200));
        let at = self.link.ordered.map_or(at, |last| last.max(at));
        self.link.ordered = Some(at);
        self.link.objects.push((at, session, event));
    }

    fn send(&mut self, random: &mut Random) {
        let Some(session) = self.link.session else { return };
        for (report, number) in self.link.unacknowledged.values_mut().filter(|(_, number)| number.is_none()) {
            self.link.last_number += 1;
            *number = Some(self.link.last_number);
            let at = self.now + Duration::from_millis(random.below(200));
            self.link.sent.insert(self.link.last_number, report.clone());
            self.link.reports.push((at, session, self.link.last_number, report.clone()));
        }
    }

    fn deliver(&mut self, random: &mut Random) {
        let now = self.now;
        while let Some(at) = self.link.reports.iter().position(|(at, ..)| *at <= now) {
            let (_, session, number, report) = self.link.reports.remove(at);
            let message =
                Delivered { delivery: Delivery { session, number }, message: Report::Device(report) };
            self.cloud.controller.handle_report(FromNode { node: self.node.clone(), message }, now);
        }
        while let Some(at) = self.link.objects.iter().position(|(at, ..)| *at <= now) {
            let (_, _, event) = self.link.objects.remove(at);
            match &event {
                ObjectEvent::Applied(_) => self.edge.objects.insert(event.key().clone(), event.clone()),
                ObjectEvent::Deleted { reference, .. } => self.edge.objects.remove(reference),
            };
            self.edge.inputs.push(Input::Object(event));
        }
        while let Some(at) = self.link.acknowledgements.iter().position(|(at, ..)| *at <= now) {
            let (_, _, device, number) = self.link.acknowledgements.remove(at);
            self.acknowledge(&device, number);
        }
        self.hear_controller(random);
    }

    /// What was sent under this number has arrived. If it changed since, it is sent again.
    fn acknowledge(&mut self, device: &DeviceId, number: u64) {
        let Some((report, on_its_way)) = self.link.unacknowledged.get_mut(device) else { return };
        if *on_its_way != Some(number) {
            return;
        }
        let sent = self.link.sent.remove(&number);
        if sent.as_ref() == Some(report) {
            self.link.unacknowledged.remove(device);
        } else {
            *on_its_way = None;
        }
    }

    fn hear_controller(&mut self, random: &mut Random) {
        while let Some(told) = self.cloud.controller.poll_told() {
            match told {
                Told::Object(event) => self.send_object(event.message, random),
                Told::Acked(acked) => {
                    let delivery = acked.message.delivery;
                    let ReportKey::Device(device) = acked.message.key else { continue };
                    if self.link.session == Some(delivery.session) {
                        let at = self.now + Duration::from_millis(random.below(200));
                        self.link.acknowledgements.push((at, delivery.session, device, delivery.number));
                    }
                }
            }
        }
    }

    // ------------------------------------------------------------------------------------------- in the end

    /// All faults are over, the drivers read once more, and both sides must agree.
    pub(crate) fn settle(&mut self, random: &mut Random) {
        self.cloud.away_until = self.now;
        self.edge.commit = Commit::Works;
        self.mend_link();
        self.pass(Duration::from_secs(5), random);
        for device in devices() {
            for property in &PROPERTIES[..2] {
                let value = format!("last-{}", self.number());
                self.read(&device, property, value);
            }
        }
        self.pass(PATIENCE, random);
        self.checker.check_answered(self.edge.power_was_cut);
        let wall_ms = self.wall_ms();
        let shown = self.edge.shown(self.now, wall_ms);
        for device in devices() {
            let Some(status) = self.cloud.status(&device) else {
                let left = shown.keys().any(|(of, _, _)| *of == device);
                assert!(!left || self.cloud.exists(&device), "{device} is gone, and the edge has it");
                continue;
            };
            for property in PROPERTIES {
                assert_eq!(
                    self.edge.sees(&device, property),
                    self.cloud.desired(&device, property),
                    "{device} {property}: what the cloud desires has not reached the edge"
                );
                let twin = status.twins.iter().find(|twin| twin.property == property);
                let reported = twin.and_then(|twin| Some(twin.reported.as_ref()?.value.as_str()));
                let actual = shown.get(&(device.clone(), property.to_owned(), Side::Actual));
                assert_eq!(reported, actual.map(String::as_str), "{device} {property}: {status:?}");
            }
        }
        for slot in slots() {
            self.checker.check_shown(&slot, shown.get(&slot).map(String::as_str));
        }
    }
}
