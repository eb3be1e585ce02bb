//! A slice of every world, every day. Long runs are commands: see docs/testing.md.

use driftless_sim::Scene;
use driftless_sim::report;
use driftless_sim::run::{self, Options};
use std::sync::Arc;
use std::time::Duration;

/// Of each world.
const SEEDS: u64 = 40;
/// A slow machine runs fewer seeds, of every world alike.
const WORLD_TIME_MAX: Duration = Duration::from_secs(3);

#[test]
fn a_slice_of_every_world_holds() {
    let options = Options {
        from: 1,
        seeds: SEEDS,
        threads: 0,
        failures_max: 1,
        time_limit: Some(WORLD_TIME_MAX),
        progress: false,
        stop: Arc::default(),
    };
    let mut failures = String::new();
    for scene in Scene::ALL {
        let outcome = run::run(scene, &options);
        assert!(outcome.seeds > 0, "{}: not one history was begun", scene.name());
        outcome.failures.iter().for_each(|f| failures += &report::failure(f));
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn a_seed_is_the_same_history_again() {
    for scene in [Scene::Mesh, Scene::Crashes, Scene::Cloned] {
        assert_eq!(run::trace(scene, 7), run::trace(scene, 7), "{}", scene.name());
    }
}
