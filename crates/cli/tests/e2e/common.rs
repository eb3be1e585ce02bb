//! Two directories, the command, and ways to look at both.

pub(crate) use driftless_testkit::mount::has;
use driftless_testkit::{CompareOptions, compare};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A machine that is busy with other tests may be slow; nothing that works takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Two directories and a place for state, gone afterwards.
pub(crate) struct Pair {
    pub(crate) base: TempDir,
    pub(crate) a: PathBuf,
    pub(crate) b: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Pair {
    /// Two empty directories.
    pub(crate) fn new() -> Pair {
        let base = tempfile::tempdir().unwrap();
        let (a, b) = (base.path().join("a"), base.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        Pair { base, a, b }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.base.path().join("state")
    }

    /// The command with a home of its own.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftless"));
        command
            .env("HOME", self.base.path())
            .env("XDG_STATE_HOME", self.base.path().join("xdg"))
            .stdin(Stdio::null());
        command
    }

    /// `driftless sync FLAGS A B`.
    pub(crate) fn sync_command(&self, flags: &[&str]) -> Command {
        let mut command = self.command();
        command.arg("sync").arg("--state").arg(self.state()).args(flags).arg(&self.a).arg(&self.b);
        command
    }

    /// Runs `driftless sync FLAGS A B` to its end.
    pub(crate) fn sync(&self, flags: &[&str]) -> Ran {
        run(&mut self.sync_command(flags))
    }

    /// Runs `driftless sync --once FLAGS A B`, which must find or make both the same.
    pub(crate) fn once(&self, flags: &[&str]) -> Ran {
        let ran = self.sync(&[&["--once"], flags].concat());
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran
    }

    /// Starts `driftless sync --json FLAGS A B` and waits until both ends agree.
    pub(crate) fn start(&self, flags: &[&str]) -> Running {
        let mut running = Running::start(&mut self.sync_command(&[&["--json"], flags].concat()));
        running.wait_for("in_sync");
        running
    }

    /// Runs `driftless ARGS --state ...`.
    pub(crate) fn ask<S: AsRef<OsStr>>(&self, args: &[S]) -> Ran {
        run(self.command().args(args).arg("--state").arg(self.state()))
    }

    /// Both trees are the same, down to inode structure and nanoseconds.
    pub(crate) fn assert_same(&self) {
        let differences = self.differences();
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        for (from, to) in [(&self.a, &self.b), (&self.b, &self.a)] {
            assert_eq!(rsync_sees(from, to), Vec::<String>::new());
        }
    }

    pub(crate) fn differences(&self) -> Vec<String> {
        match compare(&self.a, &self.b, &CompareOptions::default()) {
            Ok(found) => found.iter().map(ToString::to_string).collect(),
            Err(e) => vec![format!("changes while it is compared: {e}")],
        }
    }

    /// Waits until both trees are the same.
    pub(crate) fn wait_same(&self, after: &str) {
        wait_until(after, || {
            let differences = self.differences();
            if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
        });
    }
}

/// Runs a command to its end, or ends it when all patience is gone.
pub(crate) fn run(command: &mut Command) -> Ran {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (done, ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(PATIENCE).is_err_and(|e| e == mpsc::RecvTimeoutError::Timeout) {
            // It has not been waited for, so the id is still its own.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watchdog.join().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Ran {
    /// The JSON events of this name.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        let all = self.out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")));
        all.filter(|v: &Value| v["event"] == name).collect()
    }
}

/// Polls until `check` is content. (What another process does to a tree is no event here.)
pub(crate) fn wait_until(what: &str, check: impl FnMut() -> Result<(), String>) {
    wait_at_most(PATIENCE, what, check);
}

/// As [`wait_until`]; how long it took. Moments in which the machine ran nothing of this test are not counted.
pub(crate) fn time_until(what: &str, mut check: impl FnMut() -> Result<(), String>) -> Duration {
    const STEP_MAX: Duration = Duration::from_millis(500);
    let (mut took, mut last) = (Duration::ZERO, Instant::now());
    wait_until(what, || {
        took += last.elapsed().min(STEP_MAX);
        last = Instant::now();
        check()
    });
    took
}

fn wait_at_most(patience: Duration, what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + patience;
    loop {
        match check() {
            Ok(()) => return,
            Err(e) if Instant::now() > deadline => panic!("{what}: still not so after {patience:?}: {e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A command that runs, with its JSON events.
pub(crate) struct Running {
    child: Child,
    events: Receiver<Value>,
    seen: Vec<Value>,
    stderr: Option<std::thread::JoinHandle<String>>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, events) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                if send.send(event).is_err() {
                    return;
                }
            }
        });
        let stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
        Running { child, events, seen: Vec::new(), stderr: Some(stderr) }
    }

    /// Waits for the next event of this name.
    pub(crate) fn wait_for(&mut self, name: &str) -> Value {
        self.wait_for_row(|event| event["event"] == name)
    }

    /// Waits for the next line that `wanted` likes.
    pub(crate) fn wait_for_row(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if wanted(&event) {
                        return event;
                    }
                }
                Err(e) => {
                    let _ = self.child.kill();
                    let said = self.stderr.take().map(|t| t.join().unwrap_or_default());
                    panic!("what was waited for did not come ({e}); it said {said:?} and {:#?}", self.seen);
                }
            }
        }
    }

    /// Waits until it has said that both ends agree, and that nothing waits any more of what it said does.
    pub(crate) fn wait_settled(&mut self) {
        while !self.is_settled() {
            self.wait_for_row(|_| true);
        }
    }

    fn is_settled(&self) -> bool {
        let mut waiting = BTreeSet::new();
        let mut in_sync = false;
        for event in &self.seen {
            let entry = || (event["side"].to_string(), event["path"].to_string());
            match event["event"].as_str() {
                Some("waiting") => _ = waiting.insert(entry()),
                Some("resolved") => _ = waiting.remove(&entry()),
                Some("in_sync") => in_sync = true,
                Some("syncing") => in_sync = false,
                _ => {}
            }
        }
        in_sync && waiting.is_empty()
    }

    /// True if an event of this name comes within [`PATIENCE`].
    pub(crate) fn comes(&mut self, name: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) if event["event"] == name => return true,
                Ok(event) => self.seen.push(event),
                Err(_) => return false,
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Asks it to end; what it says last, and its exit code.
    pub(crate) fn stop(mut self) -> (Value, i32) {
        self.signal(Signal::TERM);
        let outcome = self.wait_for("outcome");
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        (outcome, code)
    }

    /// Asks it to end; all that it said and nobody has waited for, and its exit code.
    pub(crate) fn stop_telling(mut self) -> (Vec<Value>, i32) {
        self.signal(Signal::TERM);
        self.seen.clear();
        self.wait_for("outcome");
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        (std::mem::take(&mut self.seen), code)
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What rsync would do to make `to` like `from`, the roots' own attributes apart.
pub(crate) fn rsync_sees(from: &Path, to: &Path) -> Vec<String> {
    if !has("rsync") {
        return Vec::new();
    }
    let mut source = from.as_os_str().to_owned();
    source.push("/");
    let output = Command::new("rsync")
        .args(["-aHAXSn", "--delete", "--checksum", "--itemize-changes", "--exclude=/.driftless"])
        .arg(source)
        .arg(to)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter(|l| !l.is_empty() && !l.ends_with(" ./")).map(str::to_owned).collect()
}

/// Inode number, change time and size of everything in a tree: equal if nobody touched anything.
pub(crate) fn fingerprints(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, u64)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path == root.join(".driftless") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                todo.push(path.clone());
            }
            let below = path.strip_prefix(root).unwrap().to_owned();
            found.insert(below, (meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.size()));
        }
    }
    found
}

/// Inode numbers only.
pub(crate) fn inodes(root: &Path) -> BTreeMap<PathBuf, u64> {
    fingerprints(root).into_iter().map(|(path, of)| (path, of.0)).collect()
}

/// Writes a file, making its directories.
pub(crate) fn put(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Sets a file's modification time, in seconds since 1970.
pub(crate) fn set_mtime(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

pub(crate) fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Names directly in a directory, sorted, our private one left out.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n != ".driftless")
        .collect();
    names.sort();
    names
}

/// Names directly in a directory that are conflict copies.
pub(crate) fn copies(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|n| n.contains(".conflict-")).collect()
}

/// Files in the private directory that are on their way in or out.
pub(crate) fn left_private(root: &Path) -> Vec<PathBuf> {
    let private = root.join(".driftless");
    let mut todo = vec![private.join("staging"), private.join("limbo")];
    let mut left = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { todo.push(path) } else { left.push(path) }
        }
    }
    left
}
