//! Random users on both sides of the real command, then: are both trees the same, is every version there that nobody who
//! had seen it replaced or removed, and is nothing there that was gone?
//!
//! The modes differ in what the program does meanwhile:
//!
//! - *turns*: it is stopped, one user works, it runs once. Nothing is concurrent, so both trees must be what that user left.
//! - *stopped*: it is stopped, both users work, it runs once.
//! - *live*: it runs while both users work.
//! - *killed*: as live, but every now and then it is killed and started again.
//!
//! A short slice runs every day. For a long run say how many seeds each mode shall take:
//!
//! ```sh
//! DRIFTLESS_STRESS_SEEDS=500 cargo test --release -p driftless --test e2e stress::stopped -- --nocapture
//! ```
//!
//! `DRIFTLESS_STRESS_FIRST` is the first seed, `DRIFTLESS_STRESS_ROUNDS` and `DRIFTLESS_STRESS_STEPS` how long a history
//! is (short ones find the simplest of those that fail), `DRIFTLESS_STRESS_KEEP` a directory that gets the trees of what failed.

use crate::common::*;
use driftless_testkit::{CompareOptions, Rng, Spec, User, check_no_loss, compare, digests_in, grow};
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// As many removals and older contents as the users like, guarded all the same.
const FLAGS: [&str; 2] = ["--max-delete", "1000000"];

#[test]
fn turns() {
    run_seeds("turns", 4, true, turns_of);
}

#[test]
fn stopped() {
    run_seeds("stopped", 4, true, stopped_of);
}

#[test]
fn live() {
    run_seeds("live", 2, false, live_of);
}

#[test]
fn killed() {
    run_seeds("killed", 1, false, killed_of);
}

/// What a seed of a mode does; all of it follows from the seed, but for when the program does its part.
struct Play {
    pair: Pair,
    rng: Rng,
    rounds: u64,
    steps: u64,
    users: [User; 2],
    /// The users may have taken away what they did not look at.
    blunt: bool,
    /// Versions that were in neither tree after some round.
    gone: HashSet<[u8; 32]>,
    history: Vec<String>,
}

type Mode = fn(&mut Play) -> Result<(), String>;

fn number(name: &str) -> Option<u64> {
    std::env::var(format!("DRIFTLESS_STRESS_{name}")).ok().map(|v| v.parse().unwrap())
}

fn run_seeds(mode: &str, few: u64, alone: bool, play: Mode) {
    let (first, count) = (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(few));
    let failures: Vec<String> =
        (first..first + count).filter_map(|seed| run_seed(mode, seed, alone, play)).collect();
    println!("{mode}: {} of {count} seeds from {first} failed", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn run_seed(mode: &str, seed: u64, alone: bool, play: Mode) -> Option<String> {
    let mut p = Play::new(seed, alone);
    let why = play(&mut p).err()?;
    let mut text = format!("{mode}, seed {seed}:\n{}\n{why}", p.history.join("\n"));
    if let Some(keep) = std::env::var_os("DRIFTLESS_STRESS_KEEP") {
        let to = Path::new(&keep).join(format!("{mode}-{seed}"));
        copy(p.pair.base.path(), &to);
        fs::write(to.join("failure"), &text).unwrap();
        text += &format!("\n(trees in {})", to.display());
    }
    println!("{text}\n");
    Some(text)
}

fn turns_of(p: &mut Play) -> Result<(), String> {
    p.sync()?;
    for round in 0..p.rounds {
        let who = p.rng.below(2) as usize;
        p.work(who)?;
        let left = p.pair.base.path().join(format!("left-{round}"));
        copy(if who == 0 { &p.pair.a } else { &p.pair.b }, &left);
        p.sync()?;
        for (name, root) in [("A", &p.pair.a), ("B", &p.pair.b)] {
            same(&left, root).map_err(|e| format!("{name} is not what the user left:\n{e}"))?;
        }
        fs::remove_dir_all(left).unwrap();
    }
    p.finish()
}

fn stopped_of(p: &mut Play) -> Result<(), String> {
    p.sync()?;
    for _ in 0..p.rounds {
        p.work(0)?;
        p.work(1)?;
        p.sync()?;
    }
    p.finish()
}

fn live_of(p: &mut Play) -> Result<(), String> {
    let running = p.pair.start(&[&["-v"], &FLAGS[..]].concat());
    for _ in 0..p.rounds {
        p.work_both(Duration::from_millis(400))?;
    }
    let (events, code) = running.stop_telling();
    p.history.extend(events.iter().map(Value::to_string).filter(|l| is_telling(l)).map(|l| format!("  {l}")));
    // Stopped while something is under way it says so.
    if ![0, 3].contains(&code) {
        return Err(format!("the program ended with {code}"));
    }
    p.sync()?;
    p.finish()
}

fn killed_of(p: &mut Play) -> Result<(), String> {
    for _ in 0..p.rounds {
        let running = Running::start(&mut p.pair.sync_command(&[&["--json"], &FLAGS[..]].concat()));
        p.tell("started");
        let ms = 50 + p.rng.below(1000);
        p.work_both(Duration::from_millis(ms))?;
        p.tell("killed");
        running.kill();
        p.tell("gone");
        if p.rng.one_in(2) {
            p.work_both(Duration::from_millis(20))?;
        }
    }
    p.sync()?;
    p.finish()
}

impl Play {
    /// `alone`: the program does not run while the users work.
    fn new(seed: u64, alone: bool) -> Play {
        let pair = Pair::new();
        let mut rng = Rng::new(seed);
        let begin = Spec { files: 12, dirs: 4, special: false, size_max: 5000, ..Spec::default() };
        // Short histories are for people: they begin with nothing.
        if number("STEPS").is_none() && !rng.one_in(3) {
            grow(&pair.a, seed, &begin).unwrap();
        }
        let trash = pair.base.path().join("trash");
        fs::create_dir(&trash).unwrap();
        // Some rename over names and unlink all the same; what they took then cannot be told.
        let blunt = !alone && seed % 4 == 3;
        let user = |root, seed| match alone || blunt {
            true => User::new(root, seed),
            false => User::beside_others(root, seed, &trash),
        };
        let users = [user(&pair.a, 2 * seed + 1000), user(&pair.b, 2 * seed + 1001)];
        let (rounds, steps) = (number("ROUNDS").unwrap_or(6), number("STEPS").unwrap_or(25));
        Play { pair, rng, rounds, steps, users, blunt, gone: HashSet::new(), history: Vec::new() }
    }

    /// One user does a few things.
    fn work(&mut self, who: usize) -> Result<(), String> {
        for _ in 0..1 + self.rng.below(self.steps) {
            self.step(who)?;
        }
        Ok(())
    }

    /// Both users do things for some time.
    fn work_both(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let who = self.rng.below(2) as usize;
            self.step(who)?;
            // Between bursts the program gets to do something with a tree that nobody touches.
            if self.rng.one_in(3) {
                std::thread::sleep(Duration::from_millis(self.rng.below(30)));
            }
        }
        Ok(())
    }

    fn step(&mut self, who: usize) -> Result<(), String> {
        let user = &mut self.users[who];
        let (before, begin) = (user.journal().deeds.len(), UNIX_EPOCH.elapsed().unwrap().as_micros());
        user.step().map_err(|e| e.to_string())?;
        let side = ["A", "B"][who];
        let (ms, us) = (begin / 1000, UNIX_EPOCH.elapsed().unwrap().as_micros() - begin);
        let deeds = &user.journal().deeds[before..];
        self.history.extend(deeds.iter().map(|d| format!("  {ms} {side} {d} [{us} us]")));
        Ok(())
    }

    /// Says in the history what became of the program.
    fn tell(&mut self, what: &str) {
        self.history.push(format!("  {} {what}", UNIX_EPOCH.elapsed().unwrap().as_millis()));
    }

    /// Runs it once; then both trees must be the same, and nothing may be back that was gone.
    fn sync(&mut self) -> Result<(), String> {
        let ran = self.pair.sync(&[&["--once", "--json", "-v"], &FLAGS[..]].concat());
        self.history.push("sync".into());
        if ran.code != 0 {
            return Err(format!("--once ended with {}:\n{}\n{}", ran.code, ran.err, telling(&ran)));
        }
        same(&self.pair.a, &self.pair.b).map_err(|e| format!("A | B:\n{e}\n{}", telling(&ran)))?;
        let there = digests_in(&self.pair.a).map_err(|e| e.to_string())?;
        if there.iter().any(|d| self.gone.contains(d)) {
            return Err(format!("a version that was gone is back\n{}", telling(&ran)));
        }
        let written = self.users.iter().flat_map(|u| u.journal().digests());
        self.gone = written.filter(|d| !there.contains(d)).collect();
        let journals = [self.users[0].journal(), self.users[1].journal()];
        let lost = check_no_loss(&journals, &self.pair.a).map_err(|e| e.to_string())?;
        if !self.blunt && !lost.is_empty() {
            let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
            return Err(format!("{}\n{}", lost.join("\n"), telling(&ran)));
        }
        Ok(())
    }

    /// All is done: another run finds nothing to do, and nothing of ours lies about.
    fn finish(&mut self) -> Result<(), String> {
        let ran = self.pair.sync(&[&["--once", "--json", "-v"], &FLAGS[..]].concat());
        let outcome = ran.events("outcome").pop().unwrap_or_default();
        for side in 0..2 {
            for what in ["recorded", "received", "applied"] {
                if outcome["counts"][side][what] != 0 {
                    return Err(format!("a second run had something to do:\n{}", telling(&ran)));
                }
            }
        }
        for root in [&self.pair.a, &self.pair.b] {
            let left = left_private(root);
            if !left.is_empty() {
                return Err(format!("left behind: {left:?}"));
            }
        }
        Ok(())
    }
}

fn same(a: &Path, b: &Path) -> Result<(), String> {
    let found = compare(a, b, &CompareOptions::default()).map_err(|e| e.to_string())?;
    if found.is_empty() { Ok(()) } else { Err(found.iter().map(|d| format!("  {d}\n")).collect()) }
}

/// What a run said, without its phases and counts.
fn telling(ran: &Ran) -> String {
    ran.out.lines().filter(|l| is_telling(l)).map(|l| format!("  {l}\n")).collect()
}

fn is_telling(line: &str) -> bool {
    let dull = ["phase", "progress", "start"];
    !dull.iter().any(|e| line.contains(&format!("\"event\":\"{e}\"")))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let done = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(done.success());
}
