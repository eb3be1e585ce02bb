//! Commands that ask a state directory: `failures`, `changes`, `why`, `conflicts list`.
//!
//! A replica that no process has is opened here; one that a running sync has is asked through its
//! socket. Both give the same answers, since both call `driftless_node::query`.

use crate::args::{ChangesArgs, CommonArgs, FailuresArgs, ListArgs, WhyArgs};
use crate::cursor::NamedCursor;
use crate::error::{CliError, ExitCode};
use crate::everywhere;
use crate::print::{json_line, path, result_line};
use crate::units;
use driftless_core::rows::Store as _;
use driftless_index::{Index, Lock, LockError, OpenOptions, ReplicaDir, StateDir};
use driftless_node::api::{PathText, Reason};
use driftless_node::query::{
    self, ChangeRow, Class, ConflictRow, Cursor, Explanation, FailureRow, Page, Request, Response,
};
use driftless_node::{accept_lost, control};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How often `--follow` asks for more. There is nobody to wait on: the replica may be idle, so that no
/// process has it, and begin to run at any time.
const FOLLOW_EVERY: Duration = Duration::from_millis(300);

/// Rows that `changes` asks for at once.
const CHANGES_PAGE: usize = query::PAGE_ROWS_MAX;

/// A replica of the state directory.
pub(crate) struct Replica {
    dir: ReplicaDir,
    /// Its root.
    pub(crate) root: PathBuf,
}

/// A way to ask it.
enum Source {
    Idle { index: Index, _lock: Lock },
    Running { control: PathBuf, held: LockError },
}

impl Replica {
    /// All replicas of the state directory, the one at `root` if that is given.
    pub(crate) fn all(state: Option<&Path>, root: Option<&Path>) -> Result<Vec<Replica>, CliError> {
        let state = match crate::everywhere::indexes(state) {
            Some(dir) => StateDir::at(dir),
            None => StateDir::of_user().map_err(|e| CliError::failed(e.to_string(), "give --state DIR"))?,
        };
        let unreadable = |e: driftless_index::StateDirError| {
            CliError::failed(e.to_string(), "run it as the user that runs the sync, or give --state DIR")
        };
        let mut found = Vec::new();
        for dir in state.replicas().map_err(unreadable)? {
            let root = dir.root().map_err(unreadable)?;
            found.push(Replica { dir, root });
        }
        if let Some(root) = root {
            let wanted = root.canonicalize().unwrap_or_else(|_| root.to_owned());
            found.retain(|r| r.root == wanted);
        }
        if found.is_empty() {
            let whose = root.map_or_else(String::new, |r| format!(" of {}", r.display()));
            return Err(CliError::failed(
                format!("there is no state{whose} in {}", state.path().display()),
                "run driftless sync first, or give --state with the directory that the sync was given",
            ));
        }
        Ok(found)
    }

    /// The replica that holds `path`, and the path below its root as bytes.
    ///
    /// The last component is not followed if it is a symlink, and none has to exist: the question may
    /// be why it does not.
    pub(crate) fn holding(
        state: Option<&Path>,
        root: Option<&Path>,
        path: &Path,
    ) -> Result<(Replica, Vec<u8>), CliError> {
        let mut replicas = Replica::all(state, root)?;
        let given = match root {
            Some(root) => root.join(path),
            None => path.to_owned(),
        };
        let wanted = resolve(&given);
        let depth = |r: &Replica| wanted.starts_with(&r.root).then(|| r.root.components().count());
        let best = (0..replicas.len()).filter_map(|i| Some((depth(&replicas[i])?, i))).max();
        let Some((_, i)) = best else {
            return Err(CliError::failed(
                format!("{} is in no directory that is synced", given.display()),
                format!("the synced directories are: {}", list(&replicas)),
            ));
        };
        let replica = replicas.swap_remove(i);
        let below = wanted.strip_prefix(&replica.root).unwrap_or(Path::new(""));
        let below = below.as_os_str().as_bytes().to_vec();
        Ok((replica, below))
    }

    /// Where its state is.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn source(&self) -> Result<Source, CliError> {
        match Lock::acquire(self.dir.path(), "query") {
            Ok(lock) => {
                let index = Index::open(&self.dir.index(), OpenOptions::default()).map_err(|e| {
                    CliError::failed(e.to_string(), "run driftless sync once, which makes or repairs it")
                })?;
                Ok(Source::Idle { index, _lock: lock })
            }
            Err(held @ LockError::Held { .. }) => Ok(Source::Running { control: self.dir.control(), held }),
            Err(e @ LockError::Io { .. }) => {
                Err(CliError::failed(e.to_string(), "run it as the user that runs the sync"))
            }
        }
    }

    /// Asks one question.
    pub(crate) fn ask(&self, request: &Request) -> Result<Response, CliError> {
        self.source()?.ask(request)
    }
}

impl Source {
    fn ask(&self, request: &Request) -> Result<Response, CliError> {
        let response = match self {
            Source::Idle { index, .. } if let Request::Accept(row) = request => accept_lost(index, row),
            Source::Idle { index, .. } => match index.snapshot() {
                Ok(snapshot) => query::answer(&*snapshot, request),
                Err(e) => Response::Failed(e.to_string()),
            },
            Source::Running { control, held } => control::ask(control, request).map_err(|e| {
                CliError::failed(
                    format!("{held}, which does not answer ({e})"),
                    "wait until it has ended, or try again",
                )
            })?,
        };
        match response {
            Response::Failed(why) => {
                Err(CliError::failed(why, "if it stays, check the disk of the state directory"))
            }
            response => Ok(response),
        }
    }
}

fn list(replicas: &[Replica]) -> String {
    replicas.iter().map(|r| r.root.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The path with links in its directories followed as far as these exist.
fn resolve(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest: Vec<&OsStr> = Vec::new();
    let mut at = path.as_path();
    while let (Some(parent), Some(Component::Normal(name))) = (at.parent(), at.components().next_back()) {
        rest.push(name);
        at = parent;
        if let Ok(real) = at.canonicalize() {
            return rest.iter().rev().fold(real, |p, name| p.join(name));
        }
    }
    path
}

/// The root with the path below it, as shown to people.
pub(crate) fn full(root: &Path, below: &PathText) -> String {
    path(&root.join(&below.text).display().to_string())
}

/// Calls `f` with each row of a list, page by page.
pub(crate) fn pages<T>(
    replica: &Replica,
    request: impl Fn(Option<Cursor>) -> Request,
    page: impl Fn(Response) -> Option<Page<T>>,
    mut f: impl FnMut(T),
) -> Result<(), CliError> {
    let source = replica.source()?;
    let mut after = None;
    loop {
        let Some(got) = page(source.ask(&request(after))?) else { return Err(unexpected()) };
        got.rows.into_iter().for_each(&mut f);
        match got.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

pub(crate) fn unexpected() -> CliError {
    CliError::failed(
        "the running sync gave an answer of another kind",
        "it is another version: stop and start it again",
    )
}

/// A row with the root it is below.
#[derive(Serialize)]
pub(crate) struct Rooted<'a, T> {
    root: PathText,
    #[serde(flatten)]
    row: &'a T,
}

pub(crate) fn rooted<'a, T>(root: &Path, row: &'a T) -> Rooted<'a, T> {
    Rooted { root: PathText::new(root.as_os_str().as_bytes()), row }
}

/// What waits for one reason.
#[derive(Default)]
struct Group {
    count: u64,
    since: String,
    shown: Vec<String>,
}

/// Paths of a group that are printed unless all are wanted.
const GROUP_SHOWN_MAX: usize = 20;

/// `driftless failures`.
pub(crate) fn failures(args: &FailuresArgs) -> Result<ExitCode, CliError> {
    let common = &args.common;
    if args.retry {
        return everywhere::retry(common);
    }
    if let Some(what) = &args.skip {
        return everywhere::skip(common, what);
    }
    let most = if args.all { usize::MAX } else { GROUP_SHOWN_MAX };
    let mut groups: BTreeMap<Reason, Group> = BTreeMap::new();
    let mut any = false;
    let (state, root) = everywhere::place(common)?;
    for replica in Replica::all(state.as_deref(), root.as_deref())? {
        let request = |after| Request::Failures { after };
        let page = |r| if let Response::Failures(page) = r { Some(page) } else { None };
        pages(&replica, request, page, |row: FailureRow| {
            any = true;
            if common.json {
                json_line(&rooted(&replica.root, &row));
            } else {
                groups.entry(row.reason).or_default().take(&replica.root, &row, most);
            }
        })?;
    }
    groups.iter().for_each(|(reason, group)| group.print(*reason));
    if !any && !common.json {
        result_line("nothing waits");
    }
    Ok(if any { ExitCode::Waiting } else { ExitCode::InSync })
}

impl Group {
    fn take(&mut self, root: &Path, row: &FailureRow, shown_max: usize) {
        self.count += 1;
        if self.since.is_empty() || row.since < self.since {
            self.since.clone_from(&row.since);
        }
        if self.shown.len() < shown_max {
            let detail =
                if row.detail.is_empty() { String::new() } else { format!(": {}", path(&row.detail)) };
            let tries = match row.tries {
                1 => "1 try".into(),
                n => format!("{} tries", units::count(n)),
            };
            let skipped = if row.skipped { ", skipped" } else { "" };
            let path = full(root, &row.path);
            self.shown.push(format!("  {path}{detail} ({tries}, since {}{skipped})", row.since));
        }
    }

    fn print(&self, reason: Reason) {
        let verb = if self.count == 1 { "waits" } else { "wait" };
        let n = units::entries(self.count);
        result_line(&format!("{n} {verb} since {}: {}", self.since, reason.words()));
        result_line(&format!("  what to do: {}", reason.advice()));
        self.shown.iter().for_each(|line| result_line(line));
        let more = self.count - self.shown.len() as u64;
        if more > 0 {
            result_line(&format!("  and {} more (--all lists them)", units::count(more)));
        }
    }
}

/// `driftless conflicts list`.
pub(crate) fn conflicts(args: &ListArgs) -> Result<ExitCode, CliError> {
    let common = &args.common;
    let mut any = false;
    let (state, root) = everywhere::place(common)?;
    for replica in Replica::all(state.as_deref(), root.as_deref())? {
        let request = |after| Request::Conflicts { after };
        let page = |r| if let Response::Conflicts(page) = r { Some(page) } else { None };
        pages(&replica, request, page, |row: ConflictRow| {
            any = true;
            if common.json {
                json_line(&rooted(&replica.root, &row));
            } else {
                print_conflict(&replica.root, &row);
            }
        })?;
    }
    if !any && !common.json {
        result_line("no conflicts");
    }
    Ok(ExitCode::InSync)
}

fn print_conflict(root: &Path, row: &ConflictRow) {
    result_line(&full(root, &row.path));
    result_line(&format!(
        "  {} of {}, {}, written by {}; beside {}",
        row.kind,
        units::bytes(row.size),
        row.modified,
        path(&row.written_by),
        full(root, &row.winner)
    ));
}

/// `driftless changes`.
pub(crate) fn changes(args: &ChangesArgs) -> Result<ExitCode, CliError> {
    let common = &args.common;
    let (state, root) = everywhere::place(common)?;
    let replicas = Replica::all(state.as_deref(), root.as_deref())?;
    let [replica] = replicas.as_slice() else {
        return Err(CliError::usage(
            format!("there are {} replicas, each with a feed of its own", replicas.len()),
            format!("give --root with one of: {}", list(&replicas)),
        ));
    };
    let (cursor, mut since) = match &args.cursor {
        None => (None, args.since),
        Some(name) => {
            let Response::Feed { replica: feed, .. } = replica.ask(&Request::Feed)? else {
                return Err(unexpected());
            };
            let (cursor, at) = NamedCursor::open(replica.dir(), name, &feed)?;
            (Some(cursor), at)
        }
    };
    loop {
        since = changes_after(replica, since, common, cursor.as_ref())?;
        if !args.follow {
            return Ok(ExitCode::InSync);
        }
        std::thread::sleep(FOLLOW_EVERY);
    }
}

/// Prints all there is after `since`; gives the last position.
fn changes_after(
    replica: &Replica,
    mut since: u64,
    common: &CommonArgs,
    cursor: Option<&NamedCursor>,
) -> Result<u64, CliError> {
    let source = replica.source()?;
    loop {
        let request = Request::Changes { since, limit: CHANGES_PAGE };
        let Response::Changes(rows) = source.ask(&request)? else { return Err(unexpected()) };
        let Some(last) = rows.last() else { return Ok(since) };
        since = last.seq;
        for row in &rows {
            if common.json { json_line(row) } else { print_change(row) }
        }
        if let Some(cursor) = cursor {
            cursor.set(since)?;
        }
    }
}

fn print_change(row: &ChangeRow) {
    let class = match row.class {
        Class::Entry => "entry",
        Class::Data => "data",
        Class::Meta => "meta",
    };
    let now = match &row.path {
        Some(p) => path(&p.text),
        None => "(removed)".into(),
    };
    result_line(&format!(
        "{} {class} {} {} {}:{} {} {}/{} {now}",
        row.seq,
        row.kind,
        row.mode,
        row.uid,
        row.gid,
        row.entry,
        row.parent,
        path(&row.name.text)
    ));
}

/// `driftless why`.
pub(crate) fn why(args: &WhyArgs) -> Result<ExitCode, CliError> {
    let common = &args.common;
    if let Some(volume) = &common.volume {
        return everywhere::why(common, volume, &args.path);
    }
    let (replica, below) = Replica::holding(common.state.as_deref(), common.root.as_deref(), &args.path)?;
    let Response::Why(why) = replica.ask(&Request::why(&below))? else { return Err(unexpected()) };
    if common.json {
        json_line(&rooted(&replica.root, &*why));
    } else {
        print_why(&replica.root, &why);
    }
    Ok(ExitCode::InSync)
}

fn print_why(root: &Path, why: &Explanation) {
    result_line(&full(root, &why.path));
    for line in &why.summary {
        result_line(&format!("  {line}"));
    }
    if let Some(d) = &why.on_disk {
        let links = if d.names > 1 { format!(", {} names", d.names) } else { String::new() };
        result_line(&format!(
            "  on disk: {} {} {}:{} {}, modified {}{links}",
            d.kind,
            d.mode,
            d.uid,
            d.gid,
            units::bytes(d.size),
            d.modified
        ));
    }
    for c in &why.claimants {
        result_line(&format!("  entry {} ({}), feed position {}", c.entry, c.kind, c.seq));
        for n in &c.names {
            let state = if n.present { "" } else { " (removed)" };
            result_line(&format!("    name {}/{}{state}, by {}", n.parent, path(&n.name.text), path(&n.by)));
        }
        for v in &c.versions {
            let mut state = String::new();
            for (is, word) in [(v.wins, "wins"), (v.on_disk, "on disk"), (!v.counts, "removed")] {
                if is {
                    state = format!("{state}, {word}");
                }
            }
            let digest = v.digest.get(..16).unwrap_or_default();
            result_line(&format!(
                "    version {} by {}: {}, modified {}, {digest}{state}",
                v.version,
                path(&v.by),
                units::bytes(v.size),
                v.modified
            ));
        }
    }
    for w in &why.waits {
        result_line(&format!("  waits since {}: {} ({})", w.since, w.reason.words(), path(&w.detail)));
    }
}
