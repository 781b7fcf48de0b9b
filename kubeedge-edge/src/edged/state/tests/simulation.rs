//! Random pods, faults and restarts, compared with a simple model: in the end each container that is wanted runs
//! exactly once, nothing else does, and at no time did anything run twice.

use std::collections::BTreeMap;

use super::*;

/// Numbers that a seed determines (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn flip(&mut self) -> bool {
        self.roll(2) == 0
    }
}

/// What is wanted: the names of containers by UID.
type Model = BTreeMap<String, Vec<String>>;

fn spec(dice: &mut Dice) -> (Value, Vec<String>) {
    let mut names = Vec::new();
    let mut init = Vec::new();
    let mut main = Vec::new();
    for number in 0..dice.roll(3) {
        let name = format!("side-{number}");
        let mut extra = json!({ "restartPolicy": "Always" });
        if dice.flip() {
            extra["startupProbe"] = json!({ "tcpSocket": { "port": 1 }, "periodSeconds": 1 });
        }
        init.push(container(&name, extra));
        names.push(name);
    }
    for number in 0..=dice.roll(2) {
        let name = format!("app-{number}");
        let mut extra = json!({ "image": format!("app:{}", dice.roll(5) + 1) });
        if dice.roll(3) == 0 {
            extra["livenessProbe"] = json!({ "tcpSocket": { "port": 1 }, "periodSeconds": 5 });
        }
        if dice.roll(3) == 0 {
            extra["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 1 } },
                "postStart": { "sleep": { "seconds": 1 } } });
        }
        main.push(container(&name, extra));
        names.push(name);
    }
    (
        json!({ "initContainers": init, "containers": main, "terminationGracePeriodSeconds": dice.roll(20) }),
        names,
    )
}

/// One thing that happens.
fn happen(world: &mut World, model: &mut Model, dice: &mut Dice, number: u64) {
    let some = |model: &Model, dice: &mut Dice| {
        let at = dice.roll(model.len().max(1) as u64) as usize;
        model.keys().nth(at).cloned()
    };
    match dice.roll(12) {
        0..=2 if model.len() < 12 => {
            let (spec, names) = spec(dice);
            let name = format!("pod-{number}");
            world.apply(&name, spec);
            model.insert(name, names);
        }
        3 => {
            if let Some(name) = some(model, dice) {
                model.remove(&name);
                let grace = dice.roll(30);
                world.delete(&name, grace);
            }
        }
        4 => {
            if let Some(name) = some(model, dice) {
                model.remove(&name);
                world.forget(&name);
            }
        }
        5 | 6 => {
            let seed = dice.roll(u64::MAX >> 33);
            let mut own = Dice(seed | 1);
            world.restart(|| own.flip());
        }
        7 => world.runtime.power_cycle(world.now),
        8 => world.runtime.away = !world.runtime.away,
        9 => {
            let running: Vec<ContainerId> = (world.runtime.sandboxes.iter())
                .flat_map(|sandbox| &sandbox.containers)
                .filter(|one| is_running(one))
                .map(|one| one.id.clone())
                .collect();
            if !running.is_empty() {
                let at = dice.roll(running.len() as u64) as usize;
                world.runtime.exit(&running[at], dice.roll(2) as i32, world.now);
            }
        }
        10 => {
            let steps = ["prepare", "run", "pull", "create", "start", "stop", "postStart", "removeSandbox"];
            let step = steps[dice.roll(steps.len() as u64) as usize];
            world.script.fails.push((step, "a fault", dice.roll(3) as u32 + 1));
        }
        _ => {
            let online = [Connectivity::Offline, Connectivity::Online, Connectivity::Synchronized];
            world.connect(online[dice.roll(3) as usize]);
        }
    }
    world.wait_ms(dice.roll(3000));
}

fn simulate(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = World::new();
    world.script.takes = vec![("pull", Duration::from_millis(700)), ("run", Duration::from_millis(120))];
    let mut model = Model::new();
    for number in 0..60 {
        happen(&mut world, &mut model, &mut dice, number);
        world.forget_gone();
    }
    world.runtime.away = false;
    world.script.fails.clear();
    world.connect(Connectivity::Synchronized);
    // As long as the longest back-off takes, and no longer than it has to.
    for _ in 0..40 {
        world.wait(30);
        world.forget_gone();
        if model.keys().all(|uid| world.is_ready(uid)) && world.state.pods.len() == model.len() {
            break;
        }
    }
    world.wait(20);
    let context = || format!("seed {seed}\n{}", world.story());
    for (uid, names) in &model {
        for name in names {
            assert_eq!(world.runtime.running(uid, name), 1, "{uid}/{name} {}", context());
        }
        assert!(world.is_ready(uid), "{uid}: {} {}", world.status(uid), context());
    }
    let strange: Vec<&str> = world.runtime.sandboxes.iter().map(|sandbox| sandbox.uid.as_str()).collect();
    assert_eq!(strange.len(), model.len(), "{strange:?} {}", context());
    assert_eq!(world.state.pods.len(), model.len(), "{}", context());
    // Nothing happens any more, so nothing is done.
    let (steps, observations) = (world.trace.len(), world.observations);
    world.wait(60);
    assert_eq!(world.trace.len(), steps, "{}", world.story());
    assert!(world.observations - observations <= 61);
}

/// Many more worlds: `POD_SEEDS=1000 cargo nextest run -p kubeedge-edge whatever_happens`.
#[test]
fn whatever_happens_each_container_that_is_wanted_runs_once_in_the_end() {
    let seeds = std::env::var("POD_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(20);
    for seed in 0..seeds {
        simulate(seed);
    }
}
