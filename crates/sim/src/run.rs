//! Goes through seeds, on all processors, and makes failures short.

use crate::scene::{self, Scene};
use crate::world::{Rules, Stats, Step, Verdict, World};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

/// How often a long run says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first seed.
    pub from: u64,
    /// How many seeds.
    pub seeds: u64,
    /// How many threads; 0 = one for each processor.
    pub threads: usize,
    /// Stop after so many failures.
    pub failures_max: usize,
    /// Begin no seed after this.
    pub time_limit: Option<Duration>,
    /// Say on standard error how far it is, and what failed as soon as it did.
    pub progress: bool,
    /// Begin no seed once this is set.
    pub stop: Arc<AtomicBool>,
}

/// A history in which something was wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// In which world.
    pub scene: Scene,
    /// The history's name.
    pub seed: u64,
    /// What was wrong, with replica, entry or path, and the step it was seen after.
    pub why: String,
    /// What kind of world it was.
    pub rules: String,
    /// The steps that led there, the fewest found.
    pub steps: Vec<String>,
    /// What is wrong after these.
    pub short_why: String,
}

/// What came out of a world's seeds.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which world.
    pub scene: Scene,
    /// How many seeds were run.
    pub seeds: u64,
    /// What happened in them.
    pub stats: Stats,
    /// What went wrong, by seed.
    pub failures: Vec<Failure>,
}

/// Runs the seeds of one world.
pub fn run(scene: Scene, options: &Options) -> Outcome {
    quiet_panics();
    let next = AtomicU64::new(options.from);
    let stop = AtomicBool::new(false);
    let stopped = || stop.load(Ordering::Relaxed) || options.stop.load(Ordering::Relaxed);
    let begun = Instant::now();
    let told = Mutex::new(begun);
    let total = Mutex::new(Outcome { scene, seeds: 0, stats: Stats::default(), failures: Vec::new() });
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let work = || {
        let (mut seeds, mut stats) = (0, Stats::default());
        while !stopped() && options.time_limit.is_none_or(|t| begun.elapsed() < t) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= options.from + options.seeds {
                break;
            }
            if options.progress {
                tell(scene, seed - options.from, options.seeds, begun, &told);
            }
            let history = live(scene, seed);
            seeds += 1;
            stats.add(&history.stats);
            if let Err(why) = history.verdict {
                if options.progress {
                    eprintln!("FAILED world {} seed {seed} {why}", scene.name());
                }
                let failure = shorten(scene, seed, why, history.rules, history.steps);
                let mut total = total.lock().unwrap();
                total.failures.push(failure);
                if total.failures.len() >= options.failures_max {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        let mut total = total.lock().unwrap();
        total.seeds += seeds;
        total.stats.add(&stats);
    };
    std::thread::scope(|s| {
        for _ in 0..threads {
            // Histories of deep directories recurse.
            std::thread::Builder::new().stack_size(32 << 20).spawn_scoped(s, work).unwrap();
        }
    });
    let mut total = total.into_inner().unwrap();
    total.failures.sort_by_key(|f| f.seed);
    total
}

/// Says how far a world is, now and then.
fn tell(scene: Scene, done: u64, seeds: u64, begun: Instant, told: &Mutex<Instant>) {
    // Another thread is just saying it.
    let Ok(mut last) = told.try_lock() else { return };
    if last.elapsed() >= PROGRESS_EVERY {
        *last = Instant::now();
        eprintln!("{:<18} {done} of {seeds} histories in {} s", scene.name(), begun.elapsed().as_secs());
    }
}

/// One history.
struct History {
    rules: Rules,
    steps: Vec<Step>,
    stats: Stats,
    verdict: Verdict,
}

fn live(scene: Scene, seed: u64) -> History {
    let rules = scene::rules(scene, seed);
    let mut steps = Vec::new();
    let mut world = World::new(rules.clone());
    let verdict = guarded(|| scene::live(scene, seed, &mut world, &mut steps));
    let verdict = verdict.map_err(|why| format!("after step {}: {why}", steps.len()));
    History { rules, steps, stats: world.stats, verdict }
}

/// True if the history of this seed shows something wrong. Nothing is shortened.
pub fn fails(scene: Scene, seed: u64) -> bool {
    quiet_panics();
    live(scene, seed).verdict.is_err()
}

/// The steps of a history, one line each, with what was wrong at the end.
pub fn trace(scene: Scene, seed: u64) -> Vec<String> {
    quiet_panics();
    let history = live(scene, seed);
    let mut lines = vec![format!("{:?}", history.rules)];
    lines.extend(history.steps.iter().enumerate().map(|(i, s)| format!("{:>4} {s:?}", i + 1)));
    lines.push(history.verdict.err().unwrap_or_else(|| "nothing was wrong".into()));
    lines
}

/// Lets these steps happen, and the world come to rest.
fn replay(rules: &Rules, steps: &[Step]) -> Verdict {
    guarded(|| {
        let mut world = World::new(rules.clone());
        for (i, step) in steps.iter().enumerate() {
            world.step(step).map_err(|why| format!("after step {}: {why}", i + 1))?;
        }
        world.finish()
    })
}

fn shorten(scene: Scene, seed: u64, why: String, rules: Rules, steps: Vec<Step>) -> Failure {
    let short = if replay(&rules, &steps).is_err() { shrink(&rules, steps) } else { steps };
    let short_why = replay(&rules, &short).err().unwrap_or_else(|| "only the whole history fails".into());
    let steps = short.iter().map(|s| format!("{s:?}")).collect();
    Failure { scene, seed, why, rules: format!("{rules:?}"), steps, short_why }
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
            if replay(rules, &fewer).is_err() {
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

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic inside is a failure like any other.
fn guarded(f: impl FnOnce() -> Verdict) -> Verdict {
    GUARDED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(false);
    outcome.unwrap_or_else(|_| Err(PANIC.take().unwrap_or_else(|| "panic".into())))
}

/// Runs `f`; a panic inside is an error, and not printed.
pub(crate) fn quietly(f: impl FnOnce() -> Verdict) -> Verdict {
    quiet_panics();
    guarded(f)
}

/// Panics of histories are kept, not printed.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match GUARDED.get() {
            true => PANIC.set(Some(info.to_string())),
            false => usual(info),
        }));
    });
}
