//! A whole edge and a cloud under random faults, in virtual time, against a model of the API.
//!
//! The edge is the real one: EdgeHub, MetaManager, DeviceTwin, Edged and a mapper; so is CloudHub. The link, the
//! store, the containers and the device are memory; the Kubernetes API with its controllers is the model. A seed
//! decides what is changed in the API, when the link is cut, and when either side loses its power. When the faults
//! are over, both sides must agree, and nothing may have been started twice.
//!
//! `SIM_SEEDS` says how many seeds are run, `SIM_SEED` replays one.

mod model;
mod random;
mod world;

use std::time::Duration;

use random::Random;
use world::World;

/// How many seeds an ordinary test run takes.
const SEEDS: u64 = 200;

/// How many things happen in one run.
const EVENTS: usize = 40;

#[test]
fn edge_and_cloud_agree_after_any_faults() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("SIM_SEED") {
        return run(seed);
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "seed {seed} failed; `cargo xtask sim --seed {seed}` replays it");
        if seeds > SEEDS && (seed + 1) % 100 == 0 {
            println!("{} of {seeds} seeds", seed + 1);
        }
    }
}

/// Runs one seed on a runtime of its own whose clock jumps to the next timer.
fn run(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    runtime.block_on(scenario(seed));
}

async fn scenario(seed: u64) {
    let mut random = Random::new(seed);
    let mut world = World::new(seed);
    for _ in 0..EVENTS {
        match random.below(20) {
            0 => world.network.cut(),
            1 | 2 => world.network.restore(),
            3 => world.network.drop_connections(),
            4 => world.lose_edge(random.below(8)).await,
            5 => world.lose_cloud().await,
            _ => world.change(&mut random),
        }
        tokio::time::sleep(Duration::from_millis(random.below(1_500))).await;
    }
    world.network.restore();
    world.agree(seed).await;
}
