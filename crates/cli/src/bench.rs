//! `driftless bench`: the same work done by `rsync` and by `driftless sync --once`, between directories of this machine, as any
//! user can run it. What it cannot show is a network, or a watcher that waits for changes.

use crate::args::BenchArgs;
use crate::error::{CliError, ExitCode};
use crate::print::{json_line, result_line};
use crate::units;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// Files in each directory of the tree of small files.
const FILES_PER_DIR: u64 = 100;
/// What is written and compared at once.
const PIECE_LEN: usize = 1 << 20;
/// Most places in which the large file is changed.
const EDITS: u64 = 50;
/// Length of each change.
const EDIT_LEN: u64 = 4096;
/// Ticks of processor time in a second, as `/proc` counts them on every Linux.
const TICKS_PER_S: f64 = 100.0;

/// Runs `driftless bench`.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode, CliError> {
    let within = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = Work::new(&within).map_err(|e| failed(&within, &e))?;
    let mut peers = vec![Peer::Driftless(std::env::current_exe().map_err(|e| failed(&within, &e))?)];
    match Command::new("rsync").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => peers.insert(0, Peer::Rsync),
        _ => eprintln!("driftless: no rsync is installed here: only driftless is measured"),
    }
    let mut measured = Measured { args, peers, results: Vec::new() };
    measured.all(&work).map_err(|e| failed(&work.dir, &e))?;
    let equal = measured.results.iter().all(|r| r.equal);
    measured.print();
    Ok(if equal { ExitCode::InSync } else { ExitCode::Failed })
}

fn failed(dir: &Path, e: &io::Error) -> CliError {
    CliError::failed(
        format!("cannot measure in {}: {e}", dir.display()),
        "name a directory that may be written to, with room for three times the files, by --dir",
    )
}

/// A directory that is removed at the end.
struct Work {
    dir: PathBuf,
}

impl Work {
    fn new(within: &Path) -> io::Result<Work> {
        let dir = within.join(format!("driftless-bench-{}", std::process::id()));
        fs::create_dir(&dir)?;
        Ok(Work { dir })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("driftless: {} could not be removed: {e}", self.dir.display());
        }
    }
}

/// Who is measured.
enum Peer {
    Rsync,
    Driftless(PathBuf),
}

impl Peer {
    fn name(&self) -> &'static str {
        match self {
            Peer::Rsync => "rsync",
            Peer::Driftless(_) => "driftless",
        }
    }

    fn command(&self, from: &Path, to: &Path, state: &Path) -> Command {
        match self {
            Peer::Rsync => {
                let slash = |p: &Path| {
                    let mut text = p.as_os_str().to_owned();
                    text.push("/");
                    text
                };
                let mut command = Command::new("rsync");
                command.args(["-aHS", "--delete", "--exclude=/.driftless"]).args([slash(from), slash(to)]);
                command
            }
            Peer::Driftless(program) => {
                let mut command = Command::new(program);
                command.args(["sync", "--once", "--active-passive", "--state"]).args([state, from, to]);
                command
            }
        }
    }
}

/// What one run took.
#[derive(Clone, Copy, Serialize)]
struct Run {
    seconds: f64,
    cpu_s: f64,
}

/// All runs of one peer at one kind of work.
#[derive(Serialize)]
struct Outcome {
    what: &'static str,
    peer: &'static str,
    runs: Vec<Run>,
    /// Medians.
    seconds: f64,
    cpu_s: f64,
    /// Both trees were the same afterwards, each time.
    equal: bool,
}

struct Measured<'a> {
    args: &'a BenchArgs,
    peers: Vec<Peer>,
    results: Vec<Outcome>,
}

impl Measured<'_> {
    fn all(&mut self, work: &Work) -> io::Result<()> {
        let from = work.dir.join("from");
        fs::create_dir(&from)?;
        small_files(&from, self.args.files, self.args.file_size)?;
        self.fresh(work, "first copy", &from)?;
        self.again(work, "nothing to do", &from, &|_| Ok(()))?;
        fs::remove_dir_all(&from)?;
        fs::create_dir(&from)?;
        write_noise(&from.join("large"), self.args.large, 1)?;
        self.fresh(work, "large file", &from)?;
        let large = self.args.large;
        self.again(work, "large file edited", &from, &|round| edit(&from.join("large"), large, round))
    }

    /// Each time into an empty directory.
    fn fresh(&mut self, work: &Work, what: &'static str, from: &Path) -> io::Result<()> {
        self.rounds(work, what, from, &|to, state, _| {
            for dir in [to, state, &from.join(".driftless")] {
                match fs::remove_dir_all(dir) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            fs::create_dir(to)
        })
    }

    /// Each time into what the time before has left, after a change.
    fn again(
        &mut self,
        work: &Work,
        what: &'static str,
        from: &Path,
        change: &dyn Fn(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let began = std::cell::Cell::new(u64::MAX);
        self.rounds(work, what, from, &|_, _, round| {
            // Once for all peers.
            if began.replace(round) == round { Ok(()) } else { change(round) }
        })
    }

    fn rounds(
        &mut self,
        work: &Work,
        what: &'static str,
        from: &Path,
        prepare: &dyn Fn(&Path, &Path, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut runs = vec![Vec::new(); self.peers.len()];
        let mut equal = vec![true; self.peers.len()];
        for round in 0..self.args.rounds {
            for (i, peer) in self.peers.iter().enumerate() {
                let (to, state) =
                    (work.dir.join(peer.name()), work.dir.join(format!("{}-state", peer.name())));
                prepare(&to, &state, round)?;
                runs[i].push(timed(peer.command(from, &to, &state))?);
                equal[i] &= same(from, &to)?;
            }
        }
        for ((peer, runs), equal) in self.peers.iter().zip(runs).zip(equal) {
            let seconds = median(runs.iter().map(|r| r.seconds));
            let cpu_s = median(runs.iter().map(|r| r.cpu_s));
            self.results.push(Outcome { what, peer: peer.name(), runs, seconds, cpu_s, equal });
        }
        Ok(())
    }

    fn print(&self) {
        if self.args.json {
            self.results.iter().for_each(json_line);
            return;
        }
        let args = self.args;
        result_line(&format!(
            "{} files of {}, a file of {}; {} rounds in turn, medians; driftless ends when all is on disk for good, rsync \
             does not wait for that",
            units::count(args.files),
            units::bytes(args.file_size),
            units::bytes(args.large),
            args.rounds
        ));
        result_line(&format!("{:<20}{:<12}{:>10}{:>10}{:>10}", "", "", "seconds", "CPU s", "ratio"));
        for r in &self.results {
            let base =
                self.results.iter().find(|b| b.what == r.what && b.peer == "rsync" && r.peer != b.peer);
            let ratio = base.map_or(String::new(), |b| format!("{:.2}", r.seconds / b.seconds));
            let equal = if r.equal { "" } else { "  NOT EQUAL" };
            result_line(&format!(
                "{:<20}{:<12}{:>10.2}{:>10.2}{ratio:>10}{equal}",
                r.what, r.peer, r.seconds, r.cpu_s
            ));
        }
    }
}

fn timed(mut command: Command) -> io::Result<Run> {
    let cpu = children_cpu_s()?;
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let seconds = begun.elapsed().as_secs_f64();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!(
            "{:?} ended with {}: {said}",
            command.get_program(),
            output.status
        )));
    }
    Ok(Run { seconds, cpu_s: children_cpu_s()? - cpu })
}

/// Processor time of all children that have ended.
fn children_cpu_s() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in parentheses, may have blanks; the fields behind it are numbers.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields.iter().skip(13).take(2).filter_map(|f| f.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_S)
}

fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = of.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

// ----- what is copied

/// Bytes that do not compress (xorshift).
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_be_bytes()[..part.len()]);
        }
    }
}

/// Long ago: what was changed a moment ago is looked at more carefully.
fn age(file: &File) -> io::Result<()> {
    file.set_modified(SystemTime::now() - Duration::from_secs(3600))
}

fn small_files(root: &Path, files: u64, len: u64) -> io::Result<()> {
    for f in 0..files {
        let dir = root.join(format!("d{:05}", f / FILES_PER_DIR));
        if f % FILES_PER_DIR == 0 {
            fs::create_dir(&dir)?;
        }
        write_noise(&dir.join(format!("f{f:07}")), len, f + 1)?;
    }
    Ok(())
}

fn write_noise(path: &Path, len: u64, seed: u64) -> io::Result<()> {
    let (mut file, mut noise) = (File::create_new(path)?, Noise::new(seed));
    let mut piece = vec![0; usize::try_from(len).unwrap_or(PIECE_LEN).min(PIECE_LEN)];
    let mut left = len;
    while left > 0 {
        let n = piece.len().min(usize::try_from(left).unwrap_or(PIECE_LEN));
        noise.fill(&mut piece[..n]);
        file.write_all(&piece[..n])?;
        left -= n as u64;
    }
    age(&file)
}

/// Some places are changed, and a little is put in front; saved beside and renamed, as editors do.
fn edit(path: &Path, len: u64, round: u64) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut bytes = fs::read(path)?;
    let mut noise = Noise::new(1000 + round);
    let span = (len / EDITS).max(EDIT_LEN + 1);
    for i in 0..EDITS.min(len / span) {
        let at = usize::try_from(i * span + noise.next() % (span - EDIT_LEN)).unwrap_or_default();
        let end = bytes.len().min(at + EDIT_LEN as usize);
        if let Some(spot) = bytes.get_mut(at..end) {
            noise.fill(spot);
        }
    }
    let mut file = File::create(&beside)?;
    file.write_all(format!("round {round}\n").as_bytes())?;
    file.write_all(&bytes)?;
    fs::rename(beside, path)
}

/// True if both trees have the same names with the same contents and times.
fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let (names_a, names_b) = (names(a)?, names(b)?);
    if names_a != names_b {
        return Ok(false);
    }
    for name in names_a {
        let (a, b) = (a.join(&name), b.join(&name));
        let (meta_a, meta_b) = (fs::symlink_metadata(&a)?, fs::symlink_metadata(&b)?);
        let equal = match meta_a.is_dir() {
            true => meta_b.is_dir() && same(&a, &b)?,
            false => {
                (meta_a.len(), meta_a.mtime(), meta_a.mode()) == (meta_b.len(), meta_b.mtime(), meta_b.mode())
                    && same_bytes(&a, &b)?
            }
        };
        if !equal {
            return Ok(false);
        }
    }
    Ok(true)
}

fn names(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name());
    }
    names.retain(|n| n != ".driftless");
    names.sort();
    Ok(names)
}

fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut of_a, mut of_b) = (Vec::with_capacity(PIECE_LEN), Vec::with_capacity(PIECE_LEN));
    loop {
        of_a.clear();
        of_b.clear();
        (&mut a).take(PIECE_LEN as u64).read_to_end(&mut of_a)?;
        (&mut b).take(PIECE_LEN as u64).read_to_end(&mut of_b)?;
        if of_a != of_b {
            return Ok(false);
        }
        if of_a.is_empty() {
            return Ok(true);
        }
    }
}
