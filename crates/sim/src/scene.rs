//! The worlds by name, and histories from seeds.

use crate::prng::Prng;
use crate::site::Op;
use crate::world::{Rules, Step, Verdict, World};
use std::collections::VecDeque;

/// A kind of world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scene {
    /// Any shape, any habit, any mixture of lesser faults.
    Mixed,
    /// Sites in a circle, over connections that last.
    Ring,
    /// Every site with every other, over connections that last.
    Mesh,
    /// One after the other, over connections that last.
    Chain,
    /// All with one, over connections that last.
    Star,
    /// Two names for everything.
    HardLinks,
    /// Two names only, written everywhere.
    ConflictCopies,
    /// Three contents only.
    EqualContents,
    /// Directories of one name made everywhere.
    Unions,
    /// Directories moved into each other, mostly unseen.
    DirRenames,
    /// One site writes; now and then another takes over.
    OneWay,
    /// Processes are killed in the middle of everything.
    Crashes,
    /// Indexes get lost.
    LostIndex,
    /// An index is put back to an older one.
    RolledBack,
    /// Index and disk are put back to an old copy.
    OldBackup,
    /// A replica begins as a copy of another.
    Cloned,
    /// Clocks are wrong by years, and jump.
    WrongClocks,
    /// Tombstones are collected all the time.
    Tombstones,
    /// Trees that exist already meet.
    Joins,
    /// Nothing is concurrent.
    Serial,
    /// Some of what is to be written fails, and is written later.
    FailingWrites,
    /// The power goes.
    PowerCuts,
    /// Which sites can reach each other changes all the time.
    Partitions,
    /// Some sites leave names out.
    Filters,
    /// Files stay open while plans replace and remove them.
    OpenFiles,
}

impl Scene {
    /// All worlds.
    pub const ALL: [Scene; 25] = [
        Scene::Mixed,
        Scene::Ring,
        Scene::Mesh,
        Scene::Chain,
        Scene::Star,
        Scene::HardLinks,
        Scene::ConflictCopies,
        Scene::EqualContents,
        Scene::Unions,
        Scene::DirRenames,
        Scene::OneWay,
        Scene::Crashes,
        Scene::LostIndex,
        Scene::RolledBack,
        Scene::OldBackup,
        Scene::Cloned,
        Scene::WrongClocks,
        Scene::Tombstones,
        Scene::Joins,
        Scene::Serial,
        Scene::FailingWrites,
        Scene::PowerCuts,
        Scene::Partitions,
        Scene::Filters,
        Scene::OpenFiles,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// What happens there.
    pub fn about(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Scene::Mixed => ("mixed", "any shape, any habit, any mixture of lesser faults"),
            Scene::Ring => ("ring", "link machines in a circle; loss, duplicates, reordering, cuts"),
            Scene::Mesh => ("mesh", "link machines between all; loss, duplicates, reordering, cuts"),
            Scene::Chain => ("chain", "link machines in a row; loss, duplicates, reordering, cuts"),
            Scene::Star => ("star", "link machines around one site; loss, duplicates, reordering, cuts"),
            Scene::HardLinks => ("hard-links", "several names for everything"),
            Scene::ConflictCopies => {
                ("conflict-copies", "two names, written everywhere; copies edited, moved, chosen")
            }
            Scene::EqualContents => ("equal-contents", "three contents in many files"),
            Scene::Unions => ("unions", "directories of one name made everywhere"),
            Scene::DirRenames => ("dir-renames", "directories moved into each other"),
            Scene::OneWay => ("one-way", "one site writes; the writer changes"),
            Scene::Crashes => ("crashes", "processes killed between and within plans, users go on"),
            Scene::LostIndex => ("lost-index", "indexes get lost"),
            Scene::RolledBack => ("rolled-back", "an index is put back to an older one"),
            Scene::OldBackup => ("old-backup", "index and disk are put back to an old copy"),
            Scene::Cloned => ("cloned", "a replica begins as a copy of another"),
            Scene::WrongClocks => ("wrong-clocks", "clocks wrong by years, and jumping; mixed epochs"),
            Scene::Tombstones => ("tombstones", "collection all the time"),
            Scene::Joins => ("joins", "trees that exist already meet"),
            Scene::FailingWrites => {
                ("failing-writes", "steps of plans fail (no space, no permission), and succeed later")
            }
            Scene::PowerCuts => (
                "power-cuts",
                "power cuts: names lost in order, contents lost or torn, by what no sync covered",
            ),
            Scene::Partitions => {
                ("partitions", "who reaches whom changes all the time; copies are resolved meanwhile")
            }
            Scene::Filters => {
                ("filters", "some sites leave out names that others give, take away and move into")
            }
            Scene::OpenFiles => {
                ("open-files", "files that stay open while they are replaced, moved and removed")
            }
            Scene::Serial => ("serial", "nothing concurrent, or everyone in a directory of his own"),
        }
    }

    /// The world of this name.
    pub fn find(name: &str) -> Option<Scene> {
        Scene::ALL.into_iter().find(|s| s.name() == name)
    }
}

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
    /// Nothing is renamed or linked.
    Plain,
}

struct Maker {
    rng: Prng,
    scene: Scene,
    habit: Habit,
    hard_links: bool,
    /// Users set the times of directories.
    times: bool,
    /// Share of acts among the steps: one in so many.
    acts: usize,
    collect: bool,
    /// Indexes get lost.
    forget: bool,
    /// The connections that there are now.
    open: Vec<(usize, usize)>,
    /// Who writes, in worlds of one writer.
    writer: usize,
    next_token: u64,
    /// Steps that belong together.
    next: VecDeque<Step>,
}

/// The rules of the world of this seed.
pub fn rules(scene: Scene, seed: u64) -> Rules {
    make_rules(scene, &mut rng(scene, seed))
}

fn rng(scene: Scene, seed: u64) -> Prng {
    Prng::new(seed ^ (scene as u64) << 56)
}

/// Lets the history of a seed happen in `world`, which has the seed's rules, and notes its steps. Stops at the first
/// thing found wrong.
pub fn live(scene: Scene, seed: u64, world: &mut World, steps: &mut Vec<Step>) -> Verdict {
    let mut rng = rng(scene, seed);
    make_rules(scene, &mut rng);
    let count = 20 + rng.below(60);
    let mut maker = Maker::new(scene, rng, &world.rules);
    maker.begin(world, steps)?;
    for _ in 0..count {
        let step = maker.step(world);
        steps.push(step.clone());
        world.step(&step)?;
    }
    world.finish()
}

/// How sites are connected.
fn edges(shape: usize, sites: usize) -> Vec<(usize, usize)> {
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
    edges
}

fn make_rules(scene: Scene, rng: &mut Prng) -> Rules {
    let sites = match scene {
        Scene::Mixed if rng.one_in(6) => 1,
        Scene::Ring | Scene::Mesh | Scene::Chain | Scene::Star => 2 + rng.below(6),
        _ => 2 + rng.below(4),
    };
    let shape = match scene {
        Scene::Chain => 0,
        Scene::Ring => 1,
        Scene::Star => 2,
        Scene::Mesh | Scene::Partitions => 3,
        _ => rng.below(4),
    };
    let shaped = matches!(scene, Scene::Chain | Scene::Ring | Scene::Star | Scene::Mesh);
    let wrong = scene == Scene::WrongClocks;
    let (mixed, skewed) = (wrong || rng.one_in(4), wrong || rng.one_in(3));
    let skew_max: u64 = if wrong { 10 * 365 * 86_400 * 1_000_000_000 } else { 100_000_000_000 };
    let serial = match scene {
        Scene::Mixed => rng.one_in(12),
        Scene::Serial => rng.one_in(2),
        _ => false,
    };
    let power = scene == Scene::PowerCuts;
    let crashes = scene == Scene::Crashes || power || (shaped && rng.one_in(4));
    let no_renames = scene == Scene::LostIndex && rng.one_in(3);
    Rules {
        no_renames,
        epochs: (0..sites).map(|_| if mixed { rng.next() % 3 } else { 0 }).collect(),
        skews_ns: (0..sites).map(|_| if skewed { rng.next() % skew_max } else { 0 }).collect(),
        serial,
        own_dirs: !serial && (scene == Scene::Serial || (scene == Scene::Mixed && rng.one_in(12))),
        one_writer: scene == Scene::OneWay,
        equal_contents: scene == Scene::EqualContents || (scene == Scene::Mixed && rng.one_in(3)),
        planner: rng.one_in(2)
            || crashes
            || matches!(scene, Scene::FailingWrites | Scene::Filters | Scene::OpenFiles),
        live: shaped
            || scene == Scene::Cloned
            || (!matches!(scene, Scene::Mixed | Scene::Tombstones) && rng.one_in(3)),
        relay_delay_ms: *rng.pick(&[0, 0, 2_000]).unwrap(),
        batch_entries: 1 + rng.below(12),
        crashes,
        power,
        open_files: scene == Scene::OpenFiles,
        filtered: (0..sites).map(|i| i > 0 && scene == Scene::Filters && rng.one_in(2)).collect(),
        ..Rules::plain(sites, edges(shape, sites))
    }
}

impl Maker {
    fn new(scene: Scene, mut rng: Prng, rules: &Rules) -> Maker {
        let any = [Habit::General, Habit::Dirs, Habit::Cycles, Habit::Conflicts];
        let habit = match scene {
            Scene::ConflictCopies => Habit::Conflicts,
            Scene::Partitions => *rng.pick(&[Habit::General, Habit::Conflicts]).unwrap(),
            Scene::DirRenames => *rng.pick(&[Habit::Dirs, Habit::Cycles]).unwrap(),
            Scene::Unions => Habit::Dirs,
            Scene::LostIndex if rules.no_renames => Habit::Plain,
            _ => *rng.pick(&any).unwrap(),
        };
        let lesser = matches!(scene, Scene::Mixed) && !rules.serial && !rules.own_dirs;
        Maker {
            habit,
            hard_links: scene == Scene::HardLinks || (rng.one_in(2) && !rules.no_renames),
            times: rng.one_in(2),
            acts: 1 + rng.below(3),
            collect: scene == Scene::Tombstones || rng.one_in(3),
            forget: scene == Scene::LostIndex || (lesser && rng.one_in(8)),
            open: rules.edges.clone(),
            writer: 0,
            next_token: 1,
            next: VecDeque::new(),
            scene,
            rng,
        }
    }

    /// Some things are there from the start, everywhere.
    fn begin(&mut self, w: &mut World, steps: &mut Vec<Step>) -> Verdict {
        let mut start = Vec::new();
        let joins = match self.scene {
            Scene::Joins => true,
            Scene::Mixed => !w.rules.serial && !w.rules.own_dirs && self.rng.one_in(8),
            _ => false,
        };
        if joins && w.rules.sites > 1 {
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
        let mut then = Vec::new();
        if self.scene == Scene::Unions {
            for i in 0..w.rules.sites {
                for dir in ["u", "v", "u/v"] {
                    then.push(Step::Act(i, Op::Mkdir(dir.into())));
                }
            }
        }
        if self.scene == Scene::Cloned {
            then.extend(self.cloned(w));
        }
        for step in then {
            steps.push(step.clone());
            w.step(&step)?;
        }
        Ok(())
    }

    /// The last site has no history of its own yet: it becomes a copy of another, which goes on. Two that make changes under
    /// one id and never meet are beyond what any greeting can find.
    fn cloned(&mut self, w: &World) -> Vec<Step> {
        let (original, copy) = (self.rng.below(w.rules.sites - 1), w.rules.sites - 1);
        let mut steps = vec![Step::Clone(original, copy)];
        for _ in 0..self.rng.below(4) {
            steps.push(Step::Act(original, Op::Create(format!("n{}", self.rng.below(9)), self.token(w))));
        }
        for (a, b) in w.rules.edges.clone() {
            if a == original || b == original {
                steps.push(Step::Sync(original, if a == original { b } else { a }));
            }
        }
        for (a, b) in w.rules.edges.clone() {
            if b == copy && self.rng.one_in(2) {
                steps.push(Step::Connect(a, b));
            }
        }
        steps.push(Step::Connect(original, copy));
        steps
    }

    fn step(&mut self, w: &World) -> Step {
        if self.next.is_empty() {
            self.plot(w);
        }
        if let Some(step) = self.next.pop_front() {
            return step;
        }
        let i = match w.rules.one_writer {
            true => self.writer,
            false => self.rng.below(w.rules.sites),
        };
        if let Some(step) = self.fault(w, i) {
            return step;
        }
        if self.scene == Scene::Partitions && self.rng.one_in(12) {
            self.rewire(w);
        }
        if self.open.is_empty() || self.rng.one_in(self.acts) {
            return Step::Act(i, self.op(w, i));
        }
        let (a, b) = *self.rng.pick(&self.open).unwrap();
        let (a, b) = if self.rng.one_in(2) { (a, b) } else { (b, a) };
        let shown = self.rng.below(w.rules.sites);
        match self.rng.below(10) {
            0..=1 if w.rules.live => Step::Poll(a, b),
            0..=1 => Step::Send(a, b, 1 + self.rng.below(8)),
            2..=3 if w.wire_len() > 0 => self.deliver(w),
            4 if w.wire_len() > 0 && self.rng.one_in(2) => Step::Lose(self.rng.below(w.wire_len())),
            4 if w.rules.live => Step::Wait(1 + self.rng.below(10) as u64),
            5 if w.rules.live => Step::Connect(a.min(b), a.max(b)),
            5..=6 if !w.rules.live => Step::Sync(a, b),
            6 if self.rng.one_in(3) => Step::Cut(a.min(b), a.max(b)),
            7 if self.collect => Step::Collect(shown),
            8 if w.sites[i].blind && !w.sites[i].stopped => Step::Join(i),
            9 if w.rules.planner && self.rng.one_in(2) => {
                Step::ShowSome(shown, self.rng.below(20), 1 + self.rng.below(4))
            }
            0..=6 if w.rules.live => Step::Poll(a, b),
            _ => Step::Show(shown),
        }
    }

    /// Now and then several things come together that seldom do so by chance.
    fn plot(&mut self, w: &World) {
        if w.rules.edges.is_empty() || !self.rng.one_in(12) {
            return;
        }
        let (a, b) = *self.rng.pick(&w.rules.edges).unwrap();
        let (a, b) = if self.rng.one_in(2) { (a, b) } else { (b, a) };
        match self.scene {
            Scene::Tombstones => self.plot_dead_directory(w, a, b),
            Scene::ConflictCopies => self.plot_choice(w, a, b),
            Scene::OpenFiles => self.plot_late_write(w, a, b),
            Scene::Ring | Scene::Mesh | Scene::Chain | Scene::Star => self.plot_gap(w, a, b),
            _ => {}
        }
    }

    /// A directory is removed and its tombstone collected, while somebody works below it. (In it would give it another
    /// time, and that a dot.)
    fn plot_dead_directory(&mut self, w: &World, a: usize, b: usize) {
        let dir = self.path(w, a);
        let below = format!("{dir}/d");
        let work = Step::Act(b, Op::Create(format!("{below}/x"), self.token(w)));
        let others = || (0..w.rules.sites).filter(|s| *s != a);
        self.next.extend([&dir, &below].map(|d| Step::Act(a, Op::Mkdir(d.clone()))));
        self.next.extend([Step::Sync(a, b), Step::Show(b)]);
        self.next.extend(others().map(|s| Step::Sync(s, a)));
        self.next.extend([below, dir].map(|d| Step::Act(a, Op::Rmdir(d))));
        let late = self.rng.one_in(2);
        if !late {
            self.next.push_back(work.clone());
        }
        self.next.extend(others().map(|s| Step::Sync(a, s)));
        self.next.push_back(Step::Collect(a));
        if late {
            self.next.push_back(work);
        }
        self.next.push_back(Step::Sync(b, a));
    }

    /// A file is replaced or removed while it is open elsewhere, and written to then.
    fn plot_late_write(&mut self, w: &World, a: usize, b: usize) {
        let Some(file) = self.existing(w, a, false).filter(|_| w.sites[a].disk.open.is_empty()) else {
            return;
        };
        let replaced = match self.rng.one_in(2) {
            true => Op::Save(file.clone(), self.token(w)),
            false => Op::Rm(file.clone()),
        };
        self.next.extend([
            Step::Act(a, Op::Open(file)),
            Step::Sync(a, b),
            Step::Show(b),
            Step::Act(b, replaced),
        ]);
        let late = Op::WriteOpen(0, self.token(w));
        self.next.extend([Step::Sync(b, a), Step::Show(a), Step::Act(a, late)]);
        if self.rng.one_in(2) {
            self.next.extend([Step::Act(a, Op::Close(0)), Step::Show(a)]);
        }
    }

    /// Connections change: another shape, or two parts that do not reach each other. Those that are gone end.
    fn rewire(&mut self, w: &World) {
        let sites = w.rules.sites;
        let shape = self.rng.below(5);
        let part: Vec<bool> = (0..sites).map(|_| shape == 4 && self.rng.one_in(2)).collect();
        let open = edges(shape, sites).into_iter().filter(|(a, b)| part[*a] == part[*b]).collect();
        let before = std::mem::replace(&mut self.open, open);
        let gone = before.into_iter().filter(|e| !self.open.contains(e));
        self.next.extend(gone.map(|(a, b)| Step::Cut(a, b)));
    }

    /// Two write a file, one chooses the copy, another removes it.
    fn plot_choice(&mut self, w: &World, a: usize, b: usize) {
        let name = self.name().to_string();
        for i in [a, b] {
            let write = Op::Write(name.clone(), self.token(w));
            self.next.push_back(Step::Act(i, write));
        }
        self.next.push_back(Step::Heal);
        let copy = format!("{name}~0");
        self.next.push_back(Step::Act(a, Op::Mv(copy.clone(), name)));
        self.next.push_back(Step::Act(b, Op::Rm(copy)));
    }

    /// Of two batches in a row the first is lost, and then the connection.
    fn plot_gap(&mut self, w: &World, a: usize, b: usize) {
        self.next.push_back(Step::Connect(a.min(b), a.max(b)));
        for _ in 0..2 {
            let create = Op::Create(self.path(w, a), self.token(w));
            self.next.extend([Step::Act(a, create), Step::Poll(a, b)]);
        }
        // With a batch on its way the next waits a moment, but the first is not sent again yet.
        self.next.extend([Step::Wait(2), Step::Poll(a, b)]);
        let sent = w.wire_len();
        self.next.extend([Step::Lose(sent), Step::Deliver(sent, false), Step::Connect(a.min(b), a.max(b))]);
    }

    /// Mostly the first message, as a carrier keeps order; now and then any, and some stay to come again.
    fn deliver(&mut self, w: &World) -> Step {
        let any = !w.rules.live || self.rng.one_in(4);
        let k = if any { self.rng.below(w.wire_len()) } else { 0 };
        Step::Deliver(k, self.rng.one_in(if w.rules.live { 8 } else { 4 }))
    }

    /// What goes wrong in this world.
    fn fault(&mut self, w: &World, i: usize) -> Option<Step> {
        if self.forget && self.rng.one_in(40) {
            return Some(Step::Forget(i));
        }
        match self.scene {
            Scene::OneWay if self.rng.one_in(20) => {
                // Roles change at rest.
                self.writer = self.rng.below(w.rules.sites);
                Some(Step::Heal)
            }
            Scene::RolledBack | Scene::OldBackup if self.rng.one_in(15) => Some(Step::Backup(i)),
            Scene::RolledBack if self.rng.one_in(20) => Some(Step::RollBack(i)),
            Scene::OldBackup if self.rng.one_in(20) => Some(Step::Restore(i)),
            Scene::WrongClocks if self.rng.one_in(15) => {
                let years = self.rng.below(9) as i64 - 4;
                Some(Step::Jump(i, years * 365 * 86_400 + self.rng.below(1000) as i64))
            }
            Scene::FailingWrites if self.rng.one_in(5) => Some(Step::ShowFailing(i, self.rng.next())),
            // What is still on its way then comes late.
            Scene::Tombstones if self.rng.one_in(12) => Some(Step::Heal),
            Scene::Tombstones if self.rng.one_in(4) => Some(Step::Collect(i)),
            Scene::PowerCuts if self.rng.one_in(8) => Some(Step::Seal(i)),
            Scene::PowerCuts if self.rng.one_in(10) => Some(Step::PowerCut(i, self.rng.next())),
            _ if w.rules.crashes => self.crash(w, i),
            _ => None,
        }
    }

    fn crash(&mut self, w: &World, i: usize) -> Option<Step> {
        let often = if self.scene == Scene::Crashes { 5 } else { 30 };
        if w.sites[i].stopped && self.rng.one_in(4) {
            return Some(Step::Start(i));
        }
        if !self.rng.one_in(often) {
            return None;
        }
        Some(match self.rng.below(4) {
            0 => Step::Stop(i),
            1 => Step::Crash(i),
            _ => Step::CrashInShow(i, self.rng.below(8)),
        })
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
            Habit::General | Habit::Plain => &["a", "b", "c", "d", "e", "x", "y"],
            Habit::Dirs if self.scene == Scene::Unions => &["u", "v", "w"],
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
        if w.rules.open_files && self.rng.one_in(3) {
            let open = w.sites[i].disk.open.len();
            return Some(match self.rng.below(if open > 0 { 6 } else { 2 }) {
                0..=1 => Op::Open(self.existing(w, i, false)?),
                2..=4 => Op::WriteOpen(self.rng.below(open), self.token(w)),
                _ => Op::Close(self.rng.below(open)),
            });
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
            10..=15 if self.habit == Habit::Plain => Op::Rm(self.existing(w, i, false)?),
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
