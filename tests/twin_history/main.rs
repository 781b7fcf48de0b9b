//! Histories of twins: the pure machines of DeviceTwin and DeviceController, joined by a link that loses and delays,
//! in virtual time.
//!
//! Applications, mappers and the cloud write the same properties at once, while the power of the edge is cut with work
//! that was not committed, the cloud restarts, the API fails, the link is cut and the edge's clock jumps. A seed decides
//! all of it. While it runs, and when all is over, [`checker`] compares what was told with a model of a few lines:
//! versions only grow and name one value each, the last write that was accepted is the value, and both sides agree
//! in the end.
//!
//! `SIM_SEEDS` says how many seeds are run, `SIM_SEED` replays one.

mod checker;
mod cloud;
mod edge;
#[path = "../simulation/random.rs"]
mod random;
mod world;

use std::time::Duration;

use random::Random;
use world::World;

/// How many seeds an ordinary test run takes.
const SEEDS: u64 = 200;

/// How many things happen in one run.
const EVENTS: usize = 60;

#[test]
fn the_last_accepted_write_wins_on_both_sides_after_any_faults() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("SIM_SEED") {
        return run(seed);
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "seed {seed} failed; `cargo xtask sim --seed {seed}` replays it");
        if seeds > SEEDS && (seed + 1) % 500 == 0 {
            println!("{} of {seeds} histories", seed + 1);
        }
    }
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut world = World::new(seed);
    for _ in 0..EVENTS {
        happen(&mut world, &mut random);
        let pause = if random.below(8) == 0 { 12_000 } else { 400 };
        world.pass(Duration::from_millis(random.below(pause)), &mut random);
    }
    world.settle(&mut random);
}

fn happen(world: &mut World, random: &mut Random) {
    match random.below(24) {
        0..=6 => world.application_writes(random),
        7..=10 => world.mapper_reads(random),
        11..=13 => world.cloud_desires(random),
        14 => world.cut_link(random),
        15 | 16 => world.mend_link(),
        17 => world.cut_power(random),
        18 => world.restart_cloud(random),
        19 => world.replace_device(random),
        20 => world.jump_clock(random),
        21 => world.fail_store(random),
        22 => world.fail_api(random),
        _ => world.replay(random),
    }
}
