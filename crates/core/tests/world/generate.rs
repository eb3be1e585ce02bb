//! Worlds from seeds.

use crate::prng::Prng;
use crate::site::Op;
use crate::world::{Rules, Step, Verdict, World};

/// What users like to do in this world.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    General,
    /// Directories are made, moved and removed.
    Dirs,
    /// Directories are moved into each other, mostly unseen.
    Cycles,
    /// Two names for everything.
    Conflicts,
}

struct Maker {
    rng: Prng,
    habit: Habit,
    hard_links: bool,
    /// Users set the times of directories.
    times: bool,
    /// Share of acts among the steps: one in so many.
    acts: usize,
    collect: bool,
    /// Indexes get lost.
    forget: bool,
    next_token: u64,
}

/// Makes a world and lets it live. Stops at the first thing found wrong.
pub fn world(seed: u64) -> (Rules, Vec<Step>, Verdict) {
    let mut rng = Prng::new(seed);
    let rules = rules(&mut rng);
    let habit = [Habit::General, Habit::Dirs, Habit::Cycles, Habit::Conflicts][rng.below(4)];
    let (hard_links, collect) = (rng.one_in(2), rng.one_in(3));
    let acts = 1 + rng.below(3);
    let count = 20 + rng.below(60);
    let forget = !rules.serial && !rules.own_dirs && rng.one_in(8);
    let times = rng.one_in(2);
    let mut m = Maker { rng, habit, hard_links, times, acts, collect, forget, next_token: 1 };
    let mut steps: Vec<Step> = Vec::new();
    let mut w = World::new(rules.clone());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        m.begin(&mut w, &mut steps)?;
        for _ in 0..count {
            let step = m.step(&w);
            steps.push(step.clone());
            w.step(&step)?;
        }
        w.finish()
    }));
    let verdict = outcome.unwrap_or_else(|_| Err("panic".into()));
    (rules, steps, verdict)
}

fn rules(rng: &mut Prng) -> Rules {
    let sites = if rng.one_in(6) { 1 } else { 2 + rng.below(4) };
    let shape = rng.below(4);
    let mut edges = Vec::new();
    for b in 1..sites {
        for a in 0..b {
            let linked = match shape {
                0 => a + 1 == b,
                1 => a + 1 == b || (a == 0 && b + 1 == sites),
                2 => a == 0,
                _ => true,
            };
            if linked {
                edges.push((a, b));
            }
        }
    }
    let mixed = rng.one_in(4);
    let skewed = rng.one_in(3);
    let epochs = (0..sites).map(|_| if mixed { rng.next() % 3 } else { 0 }).collect();
    let skews_ns = (0..sites).map(|_| if skewed { rng.next() % 100_000_000_000 } else { 0 }).collect();
    let serial = rng.one_in(12);
    let own_dirs = !serial && rng.one_in(12);
    Rules {
        sites,
        edges,
        epochs,
        skews_ns,
        serial,
        own_dirs,
        equal_contents: rng.one_in(3),
        planner: rng.one_in(2),
    }
}

impl Maker {
    /// Some things are there from the start, everywhere.
    fn begin(&mut self, w: &mut World, steps: &mut Vec<Step>) -> Verdict {
        let mut start = Vec::new();
        if !w.rules.serial && !w.rules.own_dirs && w.rules.sites > 1 && self.rng.one_in(8) {
            let i = 1 + self.rng.below(w.rules.sites - 1);
            start.push(Step::Blind(i));
            for f in ["x", "y", "a/x"] {
                if f == "a/x" {
                    start.push(Step::Act(i, Op::Mkdir("a".into())));
                }
                let token = 1_000_000 + self.rng.next() % 3;
                start.push(Step::Act(i, Op::Create(f.into(), token)));
            }
        }
        if w.rules.own_dirs {
            for i in 0..w.rules.sites {
                start.push(Step::Act(i, Op::Mkdir(format!("s{i}"))));
            }
        } else if !self.rng.one_in(4) {
            let dirs: &[&str] = match self.habit {
                Habit::Conflicts => &["d"],
                _ => &["a", "b", "a/b", "b/c", "c"],
            };
            start.extend(dirs.iter().map(|d| Step::Act(0, Op::Mkdir(d.to_string()))));
            for f in ["x", "y", "a/x"] {
                let token = self.token(w);
                start.push(Step::Act(0, Op::Create(f.into(), token)));
            }
        }
        for step in start {
            steps.push(step.clone());
            w.step(&step)?;
        }
        // Out along the edges, often enough for the longest way.
        for _ in 0..w.rules.sites {
            for (a, b) in w.rules.edges.clone() {
                for step in [Step::Sync(a, b), Step::Sync(b, a)] {
                    steps.push(step.clone());
                    w.step(&step)?;
                }
            }
        }
        for i in 0..w.rules.sites {
            steps.push(Step::Show(i));
            w.step(&Step::Show(i))?;
        }
        Ok(())
    }

    fn step(&mut self, w: &World) -> Step {
        let i = self.rng.below(w.rules.sites);
        if w.rules.edges.is_empty() || self.rng.one_in(self.acts) {
            return Step::Act(i, self.op(w, i));
        }
        let (a, b) = *self.rng.pick(&w.rules.edges).unwrap();
        let (a, b) = if self.rng.one_in(2) { (a, b) } else { (b, a) };
        match self.rng.below(10) {
            0..=1 => Step::Send(a, b, 1 + self.rng.below(8)),
            2..=3 if w.wire_len() > 0 => Step::Deliver(self.rng.below(w.wire_len()), self.rng.one_in(4)),
            4 if w.wire_len() > 0 && self.rng.one_in(2) => Step::Lose(self.rng.below(w.wire_len())),
            5..=6 => Step::Sync(a, b),
            7 if self.collect => Step::Collect(i),
            8 if w.sites[i].blind => Step::Join(i),
            8 if self.forget && self.rng.one_in(8) => Step::Forget(i),
            9 if w.rules.planner && self.rng.one_in(2) => {
                Step::ShowSome(i, self.rng.below(20), 1 + self.rng.below(4))
            }
            _ => Step::Show(i),
        }
    }

    fn token(&mut self, w: &World) -> u64 {
        if w.rules.equal_contents && self.rng.one_in(2) {
            return 1_000_000 + self.rng.next() % 3;
        }
        self.next_token += 1;
        self.next_token
    }

    fn name(&mut self) -> &'static str {
        let names: &[&str] = match self.habit {
            Habit::General => &["a", "b", "c", "d", "e", "x", "y"],
            Habit::Dirs | Habit::Cycles => &["a", "b", "c"],
            Habit::Conflicts => &["x", "y"],
        };
        self.rng.pick(names).unwrap()
    }

    /// A path in an existing directory, existing or not.
    fn path(&mut self, w: &World, i: usize) -> String {
        let site = &w.sites[i];
        let mut dirs: Vec<String> = vec![String::new()];
        for (path, ino) in site.disk.paths() {
            if site.disk.is_dir(ino) && path.len() < 4 {
                dirs.push(site.text(&path) + "/");
            }
        }
        if w.rules.own_dirs {
            let own = format!("s{i}/");
            dirs.retain(|d| d.starts_with(&own));
        }
        if self.habit == Habit::Conflicts && self.rng.one_in(2) {
            dirs.truncate(1);
        }
        let dir = self.rng.pick(&dirs).cloned().unwrap_or_default();
        dir + self.name()
    }

    fn existing(&mut self, w: &World, i: usize, dir: bool) -> Option<String> {
        let site = &w.sites[i];
        let own = format!("s{i}/");
        let mut all: Vec<String> = Vec::new();
        for (path, ino) in site.disk.paths() {
            if site.disk.is_dir(ino) == dir {
                all.push(site.text(&path));
            }
        }
        if w.rules.own_dirs {
            all.retain(|p| p.starts_with(&own));
        }
        self.rng.pick(&all).cloned()
    }

    fn op(&mut self, w: &World, i: usize) -> Op {
        loop {
            if let Some(op) = self.try_op(w, i) {
                return op;
            }
        }
    }

    fn try_op(&mut self, w: &World, i: usize) -> Option<Op> {
        let dirs = matches!(self.habit, Habit::Dirs | Habit::Cycles);
        if self.habit == Habit::Cycles && !self.rng.one_in(3) {
            let (from, into) = (self.existing(w, i, true)?, self.existing(w, i, true)?);
            return Some(Op::Mv(from, format!("{into}/{}", self.name())));
        }
        if self.times && self.rng.one_in(8) {
            // Before and after what clocks say.
            return Some(Op::Touch(self.existing(w, i, true)?, self.rng.below(400) as i64));
        }
        Some(match self.rng.below(if self.hard_links { 24 } else { 21 }) {
            0..=2 if dirs => Op::Mkdir(self.path(w, i)),
            0..=2 => Op::Create(self.path(w, i), self.token(w)),
            3 => Op::Mkdir(self.path(w, i)),
            4 => Op::Create(self.path(w, i), self.token(w)),
            5 => Op::Symlink(self.path(w, i), self.token(w)),
            6..=7 => Op::Write(self.existing(w, i, false)?, self.token(w)),
            8 => Op::Save(self.existing(w, i, false)?, self.token(w)),
            9 => Op::SaveSeen(self.existing(w, i, false)?, self.token(w)),
            10..=12 => Op::Mv(self.existing(w, i, dirs)?, self.path(w, i)),
            13 => Op::Mv(self.existing(w, i, false)?, self.existing(w, i, false)?),
            14..=15 => Op::Mv(self.existing(w, i, true)?, self.path(w, i)),
            16..=17 => Op::Rm(self.existing(w, i, false)?),
            18..=19 => Op::Rmdir(self.existing(w, i, true)?),
            20 => {
                let dir = self.rng.one_in(3);
                Op::Chmod(self.existing(w, i, dir)?, 0o600 + self.rng.below(8) as u32)
            }
            _ => Op::Ln(self.existing(w, i, false)?, self.path(w, i)),
        })
    }
}
