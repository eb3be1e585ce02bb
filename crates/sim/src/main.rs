//! `driftless-sim`: runs worlds, prints a table, and short histories of what failed.

use clap::Parser;
use driftless_sim::Scene;
#[cfg(feature = "mutants")]
use driftless_sim::mutants::{self, Mutant};
use driftless_sim::report;
use driftless_sim::run::{self, Options};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Worlds are many short-lived allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs seeded worlds of replicas with faults, and checks what must be true of them
#[derive(Parser)]
struct Args {
    /// Seeds of each world
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only this world (may be given again)
    #[arg(long)]
    world: Vec<String>,
    /// Say which worlds there are
    #[arg(long)]
    list: bool,
    /// Print every step of the first seed of each world
    #[arg(long)]
    trace: bool,
    /// Threads; 0 = one for each processor
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Stop a world after so many failures
    #[arg(long, default_value_t = 3)]
    failures: usize,
    /// Begin no seed of a world after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Plant each deliberate bug in turn and say how many seeds it takes to see it
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
    /// Only this bug (may be given again)
    #[cfg(feature = "mutants")]
    #[arg(long, requires = "mutants")]
    mutant: Vec<String>,
    /// How often each bug is looked for, with other seeds each time
    #[cfg(feature = "mutants")]
    #[arg(long, default_value_t = 5, requires = "mutants")]
    rounds: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.list {
        Scene::ALL.iter().for_each(|s| println!("{:<18} {}", s.name(), s.about()));
        return Ok(ExitCode::SUCCESS);
    }
    #[cfg(feature = "mutants")]
    if args.mutants {
        return hunt_mutants(&args);
    }
    let scenes = chosen(&args.world)?;
    if args.trace {
        for scene in scenes {
            println!("{} {}", scene.name(), args.from);
            run::trace(scene, args.from).iter().for_each(|line| println!("  {line}"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let stop = stop_on_interrupt()?;
    let options = Options {
        from: args.from,
        seeds: args.seeds,
        threads: args.threads,
        failures_max: args.failures,
        time_limit: args.seconds.map(Duration::from_secs),
        progress: true,
        stop: stop.clone(),
    };
    let mut outcomes = Vec::new();
    println!("{}", report::header());
    for scene in scenes {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let outcome = run::run(scene, &options);
        println!("{}", report::row(&outcome));
        outcomes.push(outcome);
    }
    println!("{}", report::sum(&outcomes));
    let failures: Vec<_> = outcomes.iter().flat_map(|o| &o.failures).collect();
    failures.iter().for_each(|f| println!("\n{}", report::failure(f)));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An interrupt ends a run with the table so far, a second one at once.
fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// `--seeds` bounds the histories for each bug and round.
#[cfg(feature = "mutants")]
fn hunt_mutants(args: &Args) -> anyhow::Result<ExitCode> {
    let bugs: Vec<Mutant> = match args.mutant.is_empty() {
        true => Mutant::ALL.to_vec(),
        false => {
            let find = |n: &String| mutants::find(n).ok_or_else(|| anyhow::anyhow!("no bug {n}"));
            args.mutant.iter().map(find).collect::<Result<_, _>>()?
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if args.threads == 0 { processors } else { args.threads };
    println!("{}", mutants::header());
    let told = |hunt: &mutants::Hunt| println!("{}", mutants::row(hunt));
    let hunts = mutants::hunt(&bugs, args.from, args.rounds, args.seeds, threads, told);
    let missed = hunts.iter().filter(|h| h.median().is_none()).count();
    println!("{} deliberate bugs, {missed} not seen", hunts.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<Scene>> {
    if names.is_empty() {
        return Ok(Scene::ALL.to_vec());
    }
    let find = |n: &String| Scene::find(n).ok_or_else(|| anyhow::anyhow!("no world {n}: --list names them"));
    names.iter().map(find).collect()
}
