//! Whole worlds of replicas, each with an index and a simulated disk, whose users and networks do at random
//! what users and networks do. After everything has come to rest the design's invariants must hold.
//!
//! A failing world prints its seed and the shortest list of steps found that still fails.
//! `DRIFTLESS_WORLD_SEEDS=100000` runs more of them, `DRIFTLESS_WORLD_FIRST=7` starts at another seed.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod disk;
mod generate;
mod naive;
mod planned;
mod prng;
mod site;
mod traces;
mod world;

use world::{Rules, Step, Verdict, World};

/// Runs the steps; panics inside count as failures.
fn run(rules: &Rules, steps: &[Step]) -> Verdict {
    let outcome = std::panic::catch_unwind(|| {
        let mut w = World::new(rules.clone());
        for s in steps {
            w.step(s)?;
        }
        w.finish()
    });
    outcome.unwrap_or_else(|p| {
        let text = p.downcast_ref::<String>().cloned();
        Err(text.or_else(|| p.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default())
    })
}

/// Leaves out steps as long as the rest still fails.
fn shrink(rules: &Rules, mut steps: Vec<Step>) -> Vec<Step> {
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut i = 0;
        let mut any = false;
        while i < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(i..(i + size).min(steps.len()));
            if run(rules, &fewer).is_err() {
                steps = fewer;
                any = true;
            } else {
                i += size;
            }
        }
        if !any || size > 1 {
            size /= 2;
        }
    }
    steps
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn run_seeds(first: u64, count: u64) {
    let (first, count) =
        (number("DRIFTLESS_WORLD_FIRST").unwrap_or(first), number("DRIFTLESS_WORLD_SEEDS").unwrap_or(count));
    let mut failures = Vec::new();
    for seed in first..first + count {
        let (rules, steps, verdict) = generate::world(seed);
        if let Err(why) = verdict {
            failures.push((seed, rules, steps, why));
            if failures.len() >= number("DRIFTLESS_WORLD_FAILURES").unwrap_or(1) as usize {
                break;
            }
        }
    }
    if failures.is_empty() {
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let mut report = String::new();
    for (seed, rules, steps, why) in failures {
        let steps = if run(&rules, &steps).is_err() { shrink(&rules, steps) } else { steps };
        let short = run(&rules, &steps).err().unwrap_or_default();
        let list: Vec<String> = steps.iter().map(|s| format!("    {s:?}")).collect();
        report += &format!("seed {seed}: {why}\n  {rules:?}\n  shrunk: {short}\n{}\n", list.join("\n"));
    }
    let _ = std::panic::take_hook();
    panic!("{report}");
}

#[test]
fn random_worlds() {
    run_seeds(1, 1500);
}
