//! What the command line and a session say to each other: options in, events out, one outcome.
//! All of it is plain data with a JSON form, so that it crosses an SSH pipe as it is.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which of the two ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The first argument.
    A,
    /// The second.
    B,
}

impl Side {
    /// The opposite end.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// Where an end is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A directory of this machine.
    Local(PathBuf),
    /// A directory of another machine, reached by SSH.
    Ssh {
        /// `[user@]host`, as ssh takes it.
        target: String,
        /// Bytes of the path there; relative to the home directory unless absolute.
        path: Vec<u8>,
    },
}

/// How many removals one window may make before they are held and asked about.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxDelete {
    /// More than half of the entries and more than 100.
    Default,
    /// More than this many.
    Count(u64),
    /// More than this share of the entries, 0 to 100.
    Percent(f64),
}

/// What both ends of a session must agree on. Sent to a remote end as JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Shared {
    /// B follows: what only B has or changes is drift, left alone and reported.
    pub active_passive: bool,
    /// Include and exclude globs in the order given; the first that matches decides (see [`crate::filter`]).
    pub filters: Vec<FilterRule>,
    /// Guard against mass removals.
    pub max_delete: MaxDelete,
    /// What to do with a tree that was put back to an earlier state.
    #[serde(default)]
    pub on_rollback: OnRollback,
    /// Only plan.
    pub dry_run: bool,
    /// End when both ends agree.
    pub once: bool,
    /// Sync both ways where a file system is good for one way only.
    #[serde(default)]
    pub allow_unsafe_fs: bool,
    /// Names of the sites A and B.
    pub site_names: (String, String),
    /// Tell each step that is done.
    pub verbose: bool,
    /// Keep what is replaced or removed; `None`: it goes for good.
    #[serde(default)]
    pub trash: Option<TrashLimits>,
    /// Seconds between two looks at the whole tree though nothing was heard of it; 0: only looks that something asks for.
    #[serde(default = "crawl_every_default_s")]
    pub crawl_every_s: u64,
}

/// Seconds between two looks at the whole tree, unless something else is asked for: what a program writes to a file that it
/// never closes is found at the latest then. Long enough that a tree of a million entries costs little.
pub const CRAWL_EVERY_DEFAULT_S: u64 = 600;

fn crawl_every_default_s() -> u64 {
    CRAWL_EVERY_DEFAULT_S
}

/// What becomes of many changes at once that go back to older contents or to nothing (see [`driftless_core::rollback`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRollback {
    /// Nothing of it is recorded until the operator decides.
    #[default]
    Ask,
    /// They are users' edits.
    Accept,
    /// The other side's newer versions come back; what was put in their place is moved to `recovered-<site>-<date>/`.
    Heal,
}

/// How much of what was replaced or removed is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TrashLimits {
    /// Seconds that versions stay; with `bytes_max`, for sure.
    pub keep_s: Option<u64>,
    /// No more bytes than this.
    pub bytes_max: Option<u64>,
}

/// One `--include` or `--exclude`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FilterRule {
    /// True for `--include`.
    pub include: bool,
    /// The glob as given.
    pub glob: String,
}

/// Everything `sync` needs.
#[derive(Clone, PartialEq, Debug)]
pub struct SyncOptions {
    /// First end.
    pub a: Endpoint,
    /// Second end.
    pub b: Endpoint,
    /// Where indexes live (local ends); `None` = the default place.
    pub state_dir: Option<PathBuf>,
    /// What both ends share.
    pub shared: Shared,
    /// Bytes per second over a link, each way; `None` = no limit.
    pub bwlimit_bytes_per_s: Option<u64>,
    /// The command on a remote host.
    pub remote_bin: String,
}

/// Why an entry waits. A closed list: every place that says why something is not done uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The content has not arrived yet.
    ContentMissing,
    /// Nobody reachable has the content.
    ContentNowhere,
    /// Permission denied.
    Denied,
    /// No space left, or quota exceeded.
    NoSpace,
    /// The file system cannot hold the name.
    NameTooLong,
    /// The file system is mounted read-only, or the target is immutable or append-only.
    ReadOnly,
    /// Somebody has the file open for writing.
    Busy,
    /// It keeps changing while it is read.
    Unstable,
    /// A local change came in between; looked at again.
    Raced,
    /// The directory it belongs into waits itself.
    ParentWaits,
    /// Files that we don't know are in a directory to be removed.
    NotEmpty,
    /// The file system or our privileges do not allow this kind or attribute.
    Unsupported,
    /// It lies on another file system mounted below the root.
    OtherFileSystem,
    /// Held by the guard against mass removals.
    MassRemoval,
    /// The file could not be read.
    Unreadable,
    /// Anything else the system said.
    Io,
    /// The trash has no room for what would be replaced or removed.
    TrashFull,
    /// A follower has something of its own in the way.
    Drift,
    /// The process has too many files open.
    TooManyOpen,
    /// The disk did not take what was written.
    SyncFailed,
    /// Held by the guard against trees that were put back to an earlier state.
    MassRollback,
}

impl Reason {
    /// All of them. The position is part of the index's format: new ones go to the end.
    pub const ALL: [Reason; 21] = [
        Reason::ContentMissing,
        Reason::ContentNowhere,
        Reason::Denied,
        Reason::NoSpace,
        Reason::NameTooLong,
        Reason::ReadOnly,
        Reason::Busy,
        Reason::Unstable,
        Reason::Raced,
        Reason::ParentWaits,
        Reason::NotEmpty,
        Reason::Unsupported,
        Reason::OtherFileSystem,
        Reason::MassRemoval,
        Reason::Unreadable,
        Reason::Io,
        Reason::TrashFull,
        Reason::Drift,
        Reason::TooManyOpen,
        Reason::SyncFailed,
        Reason::MassRollback,
    ];

    /// As it is written where programs read it.
    pub fn word(self) -> &'static str {
        match self {
            Reason::ContentMissing => "content_missing",
            Reason::ContentNowhere => "content_nowhere",
            Reason::Denied => "denied",
            Reason::NoSpace => "no_space",
            Reason::NameTooLong => "name_too_long",
            Reason::ReadOnly => "read_only",
            Reason::Busy => "busy",
            Reason::Unstable => "unstable",
            Reason::Raced => "raced",
            Reason::ParentWaits => "parent_waits",
            Reason::NotEmpty => "not_empty",
            Reason::Unsupported => "unsupported",
            Reason::OtherFileSystem => "other_file_system",
            Reason::MassRemoval => "mass_removal",
            Reason::Unreadable => "unreadable",
            Reason::Io => "io",
            Reason::TrashFull => "trash_full",
            Reason::Drift => "drift",
            Reason::TooManyOpen => "too_many_open",
            Reason::SyncFailed => "sync_failed",
            Reason::MassRollback => "mass_rollback",
        }
    }

    /// A few words for people.
    pub fn words(self) -> &'static str {
        match self {
            Reason::ContentMissing => "content has not arrived yet",
            Reason::ContentNowhere => "no reachable site has the content",
            Reason::Denied => "permission denied",
            Reason::NoSpace => "no space left",
            Reason::NameTooLong => "the file system cannot hold the name",
            Reason::ReadOnly => "read-only, immutable or append-only",
            Reason::Busy => "open for writing",
            Reason::Unstable => "keeps changing while it is read",
            Reason::Raced => "changed locally at the same moment",
            Reason::ParentWaits => "its directory waits",
            Reason::NotEmpty => "unknown files are in the directory",
            Reason::Unsupported => "not supported by the file system or our privileges",
            Reason::OtherFileSystem => "on another file system below the root",
            Reason::MassRemoval => "held by the guard against mass removals",
            Reason::Unreadable => "cannot be read",
            Reason::Io => "input/output error",
            Reason::TrashFull => "the trash is full",
            Reason::Drift => "this follower has something else there",
            Reason::TooManyOpen => "too many files are open",
            Reason::SyncFailed => "the disk did not take what was written",
            Reason::MassRollback => "held: much of the tree went back to an earlier state",
        }
    }

    /// What the person who sees it can do.
    pub fn advice(self) -> &'static str {
        match self {
            Reason::ContentMissing => "wait; it is fetched when the other side can be reached",
            Reason::ContentNowhere => {
                "bring back the site or the disk that had it, or go back to what is held: driftless lost, driftless lost accept"
            }
            Reason::Denied => "give the user that runs driftless access, or run it as root",
            Reason::NoSpace => "free some space; it is retried by itself",
            Reason::NameTooLong => "rename it at the other side, or use a file system with longer names",
            Reason::ReadOnly => "remount read-write, or remove the flag with chattr; it is retried by itself",
            Reason::Busy => "wait until the program that writes closes it",
            Reason::Unstable => "wait until it settles, or exclude it",
            Reason::Raced => "nothing; it is looked at again at once",
            Reason::ParentWaits => "see the directory's own reason",
            Reason::NotEmpty => "nothing; they are looked at and kept",
            Reason::Unsupported => "run as root, or use a file system that can hold it",
            Reason::OtherFileSystem => "sync that file system by a volume of its own, or exclude it",
            Reason::MassRemoval => "check that the removal is meant, then run again with --max-delete",
            Reason::Unreadable => "give read permission, or exclude it",
            Reason::Io => "look at the system's log for the disk's errors",
            Reason::TrashFull => {
                "give the trash more room (--trash-max), or empty it: driftless trash empty; what was held is done by itself"
            }
            Reason::Drift => {
                "move away or remove what is there, and the other side's version comes by itself; or sync both ways"
            }
            Reason::TooManyOpen => "raise the limit of open files (ulimit -n); it is retried by itself",
            Reason::SyncFailed => {
                "look at the system's log for the disk's errors; it is written anew by itself"
            }
            Reason::MassRollback => {
                "to get the other side's newer versions back, run again with --on-rollback heal (what is here now is \
                 kept in recovered-...); if the versions here are the right ones, with --on-rollback accept"
            }
        }
    }
}

/// What an end is doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Opening, recovering, shaking hands.
    Starting,
    /// Reading the tree.
    Scanning,
    /// Taking the other side's states.
    Receiving,
    /// Writing to the tree.
    Applying,
    /// In sync; waiting for changes.
    Watching,
    /// Finishing.
    Stopping,
}

/// Counts of one end, since the session began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Directory entries looked at.
    pub scanned: u64,
    /// Bytes read to be hashed.
    pub hashed_bytes: u64,
    /// Local changes recorded.
    pub recorded: u64,
    /// Entry states received.
    pub received: u64,
    /// Steps done on the tree.
    pub applied: u64,
    /// Steps planned and not done yet.
    pub to_apply: u64,
    /// Content bytes written.
    pub applied_bytes: u64,
    /// Content bytes known to be missing yet.
    pub to_apply_bytes: u64,
    /// Entries that wait.
    pub waiting: u64,
    /// Conflicts shown in the tree.
    pub conflicts: u64,
    /// Things only a follower has.
    pub drift: u64,
}

/// How two populated trees compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct JoinCounts {
    /// Same path, kind and content.
    pub equal: u64,
    /// Only at A.
    pub only_a: u64,
    /// Only at B.
    pub only_b: u64,
    /// Same path, other content.
    pub different: u64,
}

/// One thing that happened. Paths are bytes; in JSON they are strings with `path_bytes` (hex) beside when not UTF-8.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An end changed phase.
    Phase {
        /// Which end.
        side: Side,
        /// Now.
        phase: Phase,
    },
    /// Counts of an end; sent at most ten times a second.
    Progress {
        /// Which end.
        side: Side,
        /// Now.
        counts: Counts,
    },
    /// One step of the plan (dry run), or one step done (verbose).
    Step {
        /// Which end's tree.
        side: Side,
        /// True if it was done, false if only planned.
        done: bool,
        /// What, as one word or two: `create file`, `replace`, `move`, `remove`, `set attributes`, ...
        verb: String,
        /// Path below the root.
        path: PathText,
        /// More, e.g. the source of a move or the size.
        detail: String,
    },
    /// A local change was recorded (verbose).
    Change {
        /// Which end.
        side: Side,
        /// What.
        verb: String,
        /// Path below the root.
        path: PathText,
    },
    /// How the two trees compare when they meet for the first time.
    Join {
        /// The counts.
        counts: JoinCounts,
    },
    /// An entry waits.
    Waiting {
        /// Which end.
        side: Side,
        /// Path below the root.
        path: PathText,
        /// Why.
        reason: Reason,
        /// What the system said.
        detail: String,
    },
    /// An entry that waited is done.
    Resolved {
        /// Which end.
        side: Side,
        /// Path below the root.
        path: PathText,
    },
    /// A conflict copy is shown in the tree.
    Conflict {
        /// Which end.
        side: Side,
        /// Path of the copy.
        path: PathText,
    },
    /// Only a follower has this; left alone.
    Drift {
        /// Which end.
        side: Side,
        /// Path below the root.
        path: PathText,
        /// `only here`, `changed` or `missing`.
        what: String,
    },
    /// Only this end has it and its index was lost: it was moved out of the way.
    PutAside {
        /// Which end.
        side: Side,
        /// Path below the root where it was.
        path: PathText,
        /// Path below the root where it is now.
        to: PathText,
    },
    /// Both ends agree (again).
    InSync,
    /// The ends differ (again): changes are on their way.
    Syncing,
    /// For people, with a level.
    Log {
        /// Which end, if one.
        side: Option<Side>,
        /// `error`, `warn`, `info`, `debug`.
        level: Level,
        /// One line.
        text: String,
    },
}

/// Level of a log line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something has to be done by a person.
    Error,
    /// Something is not as it should be.
    Warn,
    /// Worth knowing.
    Info,
    /// For those who look for a cause.
    Debug,
}

/// A path below a root, as bytes, with a JSON form: text, and hex beside it where the bytes are no UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct PathText {
    /// The path with anything that is no UTF-8 replaced.
    pub text: String,
    /// The bytes in hex, only if `text` does not say them exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

impl PathText {
    /// From bytes.
    pub fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(s) => PathText { text: s.to_owned(), hex: None },
            Err(_) => PathText {
                text: String::from_utf8_lossy(bytes).into_owned(),
                hex: Some(bytes.iter().map(|b| format!("{b:02x}")).collect()),
            },
        }
    }

    /// The bytes. If the hex is none, as may come from elsewhere, the bytes of the text.
    pub fn bytes(&self) -> Vec<u8> {
        let from_hex = self.hex.as_deref().and_then(crate::query::unhex);
        from_hex.unwrap_or_else(|| self.text.clone().into_bytes())
    }
}

/// How a session ended.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Both ends agree.
    pub in_sync: bool,
    /// Entries that wait, on both ends.
    pub waiting: u64,
    /// Counts of A and B.
    pub counts: (Counts, Counts),
}

/// Why a session could not run or go on. `what` says what and where, `advice` what to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{what}")]
pub struct SessionError {
    /// What happened, and where.
    pub what: String,
    /// What to do about it.
    pub advice: String,
    /// The cause was put right: the same session again will do.
    #[serde(default)]
    pub again: bool,
}

impl SessionError {
    /// What happened and what to do about it.
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> SessionError {
        SessionError { what: what.into(), advice: advice.into(), again: false }
    }
}
