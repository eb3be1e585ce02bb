//! Plants each deliberate bug in turn and counts the histories it takes to see it.

use crate::run::fails;
use crate::scene::Scene;
pub use driftless_core::mutant::Mutant;
use driftless_core::mutant::plant;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What it took to see a bug.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// The bug.
    pub mutant: Mutant,
    /// Histories until it was seen, in each round; `None` = not within the bound.
    pub rounds: Vec<Option<u64>>,
    /// The world that saw it first in most rounds.
    pub seen_in: Option<Scene>,
}

impl Hunt {
    /// The median of the rounds; `None` if half of them or more saw nothing.
    pub fn median(&self) -> Option<u64> {
        let mut sorted: Vec<u64> = self.rounds.iter().map(|r| r.unwrap_or(u64::MAX)).collect();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied().filter(|n| *n != u64::MAX)
    }

    /// True if every round saw it.
    pub fn caught(&self) -> bool {
        self.rounds.iter().all(Option::is_some)
    }
}

/// Hunts these bugs, on all processors: `rounds` times each, with seeds of its own each time, through all worlds in turn, for
/// at most `histories_max` histories.
/// `told` hears of each bug as it is done.
pub fn hunt(
    bugs: &[Mutant],
    from: u64,
    rounds: u64,
    histories_max: u64,
    threads: usize,
    told: impl Fn(&Hunt) + Sync,
) -> Vec<Hunt> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let work = || {
        while let Some(mutant) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let hunt = hunt_one(*mutant, from, rounds, histories_max);
            told(&hunt);
            found.lock().unwrap().push(hunt);
        }
    };
    std::thread::scope(|s| {
        for _ in 0..threads {
            std::thread::Builder::new().stack_size(32 << 20).spawn_scoped(s, work).unwrap();
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|h: &Hunt| bugs.iter().position(|m| *m == h.mutant));
    found
}

fn hunt_one(mutant: Mutant, from: u64, rounds: u64, histories_max: u64) -> Hunt {
    let mut hunt = Hunt { mutant, rounds: Vec::new(), seen_in: None };
    let mut seen_in: Vec<Scene> = Vec::new();
    for round in 0..rounds {
        let first = from + round * histories_max;
        let seen = (0..histories_max).find(|k| {
            let (scene, seed) = (Scene::ALL[*k as usize % Scene::ALL.len()], first + k);
            let seen = is_seen(mutant, scene, seed);
            if seen {
                seen_in.push(scene);
            }
            seen
        });
        hunt.rounds.push(seen.map(|k| k + 1));
    }
    let count = |scene: &Scene| seen_in.iter().filter(|s| *s == scene).count();
    hunt.seen_in = Scene::ALL.into_iter().max_by_key(count).filter(|s| count(s) > 0);
    hunt
}

/// True if the history fails with the bug and does not without.
fn is_seen(mutant: Mutant, scene: Scene, seed: u64) -> bool {
    plant(Some(mutant));
    let with = fails(scene, seed);
    plant(None);
    with && !fails(scene, seed)
}

/// The bug of this name, as [`row`] prints it.
pub fn find(name: &str) -> Option<Mutant> {
    Mutant::ALL.iter().copied().find(|m| format!("{m:?}") == name)
}

/// The names of the columns.
pub fn header() -> &'static str {
    "median  all  mutant                  seen in         what is wrong [each round]"
}

/// One bug's line.
pub fn row(h: &Hunt) -> String {
    let rounds: Vec<String> = h.rounds.iter().map(|r| r.map_or("-".into(), |n| n.to_string())).collect();
    format!(
        "{:>6}  {:>3}  {:<23} {:<15} {} [{}]",
        h.median().map_or("-".into(), |m| m.to_string()),
        if h.caught() { "yes" } else { "NO" },
        format!("{:?}", h.mutant),
        h.seen_in.map_or("", Scene::name),
        h.mutant.about(),
        rounds.join(" ")
    )
}
