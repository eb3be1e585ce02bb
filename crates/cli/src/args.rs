//! Every command and flag, defined once: the parser, `--help`, completions and man pages come from here.

use crate::node_args::{
    ConfigArgs, FailoverArgs, LinkArgs, RejoinArgs, SERVE_HELP, SITE_HELP, ServeArgs, SiteArgs, StatusArgs,
    SwitchoverArgs, VolumeArgs,
};
use crate::units;
use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use driftless_node::api::{FilterRule, MaxDelete};
use std::ffi::OsString;
use std::path::PathBuf;

/// Keeps directories the same, here and on other machines, without losing a byte that somebody wrote.
#[derive(Parser, Debug)]
#[command(name = "driftless", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// True if errors are wanted as JSON, like everything else.
    pub(crate) fn wants_json(&self) -> bool {
        match &self.command {
            Command::Sync(args) => args.json,
            Command::Conflicts(ConflictsArgs { command: ConflictsCommand::List(args) }) => args.common.json,
            Command::Conflicts(ConflictsArgs { command: ConflictsCommand::Show(args) }) => args.common.json,
            Command::Conflicts(_) | Command::Completions { .. } | Command::Man { .. } | Command::Agent(_) => {
                false
            }
            Command::Trash(TrashArgs { command: TrashCommand::List(args) }) => args.json,
            Command::Trash(_) => false,
            Command::Lost(LostArgs { command: Some(LostCommand::Accept(args)), .. }) => args.common.json,
            Command::Lost(args) => args.common.json,
            Command::Failures(args) => args.common.json,
            Command::Flush(args) => args.node.json,
            Command::Changes(args) => args.common.json,
            Command::Why(args) => args.common.json,
            Command::Doctor(args) => args.json,
            Command::Bench(args) => args.json,
            Command::Status(args) => args.node.json,
            Command::Site(args) => args.wants_json(),
            Command::Volume(args) => args.wants_json(),
            Command::Link(args) => args.wants_json(),
            Command::Switchover(args) => args.node.json,
            Command::Failover(args) => args.node.json,
            Command::Rejoin(args) => args.node.json,
            Command::Quarantine(QuarantineArgs { command: QuarantineCommand::List(args) }) => args.json,
            Command::Quarantine(_) => false,
            Command::Serve(_) | Command::Config(_) => false,
        }
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Keep two directories the same.
    Sync(SyncArgs),
    /// Run a node: volumes, other sites and links, until it is told to stop.
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),
    /// Look at the configuration of a node.
    Config(ConfigArgs),
    /// Say how a node, its volumes and its links stand.
    Status(StatusArgs),
    /// Set this site up, invite and join others.
    #[command(after_help = SITE_HELP)]
    Site(SiteArgs),
    /// Add and remove volumes of a node.
    Volume(VolumeArgs),
    /// Make, pause and remove links of a volume to other sites.
    Link(LinkArgs),
    /// Have another site write instead of this one; nothing is lost.
    Switchover(SwitchoverArgs),
    /// Write here instead of at a site that is gone; says first what may be lost.
    Failover(FailoverArgs),
    /// Go on at a site that was failed over: what it changed after that is set aside.
    Rejoin(RejoinArgs),
    /// List what was set aside because it is beyond a Cut, and apply it again.
    Quarantine(QuarantineArgs),
    /// List conflict copies and resolve them.
    Conflicts(ConflictsArgs),
    /// List what could not be done yet, why, and what to do.
    #[command(after_help = FAILURES_HELP)]
    Failures(FailuresArgs),
    /// Wait until the other sites hold everything that was changed before now.
    #[command(after_help = FLUSH_HELP)]
    Flush(FlushArgs),
    /// List versions that nobody has any more who could be asked, and give them up.
    #[command(after_help = LOST_HELP)]
    Lost(LostArgs),
    /// Print what changed: the feed of a replica.
    Changes(ChangesArgs),
    /// Explain why a path is as it is.
    Why(WhyArgs),
    /// List, restore and drop versions that replication replaced or removed.
    Trash(TrashArgs),
    /// Try out what a directory's file system can do, and say what that means for a sync.
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Measure first copies and changes against rsync, in directories of this machine.
    #[command(after_help = BENCH_HELP)]
    Bench(BenchArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  driftless completions bash > /etc/bash_completion.d/driftless")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write the pages of all commands into a directory.
    #[command(after_help = "Example:\n  driftless man | man -l -")]
    Man {
        /// Where to write one page per command.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// The remote end of a sync; started by ssh, not by people.
    #[command(hide = true)]
    Agent(AgentArgs),
}

const SYNC_HELP: &str = "\
Ends:
  A directory of this machine, or [user@]host:/path for one that ssh reaches; both may be
  remote. A name with a colon that is a local directory is written ./name.

Examples:
  driftless sync /srv/photos /mnt/backup/photos
      keep both the same until interrupted
  driftless sync --once /srv/photos oslo:/srv/photos
      make both the same, then exit
  driftless sync --dry-run /srv/photos oslo:/srv/photos
      say what would be done
  driftless sync --active-passive --exclude '*.tmp' /srv/www web1:/srv/www
      only send; what web1 has of its own is left alone and reported

Exit codes:
  0  in sync
  1  error
  2  wrong usage
  3  finished, but some entries wait; each is listed with the reason and what to do

Remote ends are reached by ssh, or by the command in DRIFTLESS_SSH.";

const FAILURES_HELP: &str = "\
Grouped by cause: what it is, what to do, and the paths with what the system said. Rows go by themselves once their
cause is gone: by an event, or by a look at the cause every second, so that nothing has to be started again.
Exit code 3 if there are any, else 0.

Example:
  driftless failures --root /srv/photos";

#[derive(Args, Debug)]
#[command(
    about = "Keep two directories the same",
    long_about = "Keeps two directories the same: every change at A appears at B, and, unless --active-passive \
        is given, every change at B appears at A.\n\n\
        Runs until interrupted, then finishes what is under way and says what is left. If both ends changed one \
        file without having seen each other's change, the newer one keeps the name and the other is kept beside it \
        as a conflict copy.",
    after_help = SYNC_HELP
)]
pub(crate) struct SyncArgs {
    /// One end: a directory or [user@]host:/path.
    pub(crate) a: OsString,
    /// The other end.
    pub(crate) b: OsString,
    /// Exit when both ends agree.
    #[arg(long)]
    pub(crate) once: bool,
    /// Say what would be done, and do nothing.
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Send from A to B only; what only B has is left alone and reported.
    #[arg(long)]
    pub(crate) active_passive: bool,
    /// Keep both ways the same even where a file system is good for one way only (see driftless doctor): network and
    /// FUSE file systems, and such that can neither exchange names nor tell files apart.
    #[arg(long)]
    pub(crate) allow_unsafe_fs: bool,
    #[command(flatten)]
    pub(crate) filters: Filters,
    /// At most so many bytes per second, each way (500k, 20M, 1.5MiB).
    #[arg(long, value_name = "RATE", value_parser = units::parse_rate)]
    pub(crate) bwlimit: Option<u64>,
    /// Hold removals back if there are more than N, or more than P% of the entries, at once
    /// [default: more than half and more than 100].
    #[arg(long, value_name = "N|P%", value_parser = units::parse_max_delete)]
    pub(crate) max_delete: Option<MaxDelete>,
    /// If more entries than that go back to older contents, or to nothing, at once (a backup was restored into the tree):
    /// hold them back and ask, accept them as edits, or heal: take the newer versions from the other side.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = RollbackArg::Ask)]
    pub(crate) on_rollback: RollbackArg,
    /// Keep what replication replaces or removes in .driftless/trash for this long (45s, 90m, 12h, 30d, 2w). Like all
    /// flags, for this run: without it nothing is added, and what is there stays.
    #[arg(long, value_name = "AGE", value_parser = units::parse_age)]
    pub(crate) trash_keep: Option<u64>,
    /// Keep at most so much there (500M, 10GiB). Alone: the oldest versions go for new ones. With --trash-keep: younger
    /// ones stay, and what would replace or remove more waits.
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub(crate) trash_max: Option<u64>,
    /// Look at the whole tree this often, though nothing was heard of it (45s, 10m, 12h; never): finds what programs write
    /// to files that they never close.
    #[arg(long, value_name = "AGE", value_parser = units::parse_pause, default_value = "10m")]
    pub(crate) crawl_every: u64,
    /// Keep the indexes here [default: $XDG_STATE_HOME/driftless].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Print one JSON event a line (see docs/json.md).
    #[arg(long)]
    pub(crate) json: bool,
    /// Say more: each step (-v), details for those who look for a cause (-vv).
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Names of the two sites in conflict copies and messages [default: the host names, or A and B].
    #[arg(long, value_name = "A,B", value_parser = parse_site_names)]
    pub(crate) site_names: Option<(String, String)>,
    /// The driftless command on remote hosts.
    #[arg(long, value_name = "CMD", default_value = "driftless")]
    pub(crate) remote_bin: String,
}

/// `--on-rollback`.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RollbackArg {
    /// Hold them back and say so
    Ask,
    /// They are edits: the other side gets them
    Accept,
    /// Take the newer versions from the other side; what is there now goes to recovered-SITE-DATE
    Heal,
}

/// Longest name of a site, in bytes: it becomes part of file names.
const SITE_NAME_LEN_MAX: usize = 32;

fn parse_site_names(text: &str) -> Result<(String, String), String> {
    let Some((a, b)) = text.split_once(',') else {
        return Err("two names are needed, with a comma between: oslo,bergen".into());
    };
    for name in [a, b] {
        let plain = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
        if name.is_empty() || name.len() > SITE_NAME_LEN_MAX || !plain {
            return Err(format!(
                "'{name}' is no site name: up to {SITE_NAME_LEN_MAX} letters, digits, - and _ (it becomes part of file names)"
            ));
        }
    }
    if a == b {
        return Err("the two sites must have different names".into());
    }
    Ok((a.to_owned(), b.to_owned()))
}

/// `--include` and `--exclude` in the order they were given, which clap keeps only per flag.
#[derive(Debug, Default)]
pub(crate) struct Filters(pub(crate) Vec<FilterRule>);

#[derive(Args)]
struct FilterArgs {
    /// Leave out what matches GLOB; of several --include and --exclude the first that matches decides.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Keep what matches GLOB although a later --exclude matches it too.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
}

impl Args for Filters {
    fn augment_args(cmd: clap::Command) -> clap::Command {
        FilterArgs::augment_args(cmd)
    }

    fn augment_args_for_update(cmd: clap::Command) -> clap::Command {
        FilterArgs::augment_args_for_update(cmd)
    }
}

impl FromArgMatches for Filters {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut rules = Vec::new();
        for (id, include) in [("exclude", false), ("include", true)] {
            let globs = matches.get_many::<String>(id).unwrap_or_default();
            let positions = matches.indices_of(id).unwrap_or_default();
            rules.extend(
                positions.zip(globs).map(|(at, glob)| (at, FilterRule { include, glob: glob.clone() })),
            );
        }
        rules.sort_by_key(|(at, _)| *at);
        Ok(Filters(rules.into_iter().map(|(_, rule)| rule).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Flags of all commands that read a state directory.
#[derive(Args, Debug)]
pub(crate) struct CommonArgs {
    /// Where the indexes are [default: $XDG_STATE_HOME/driftless].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The synced directory meant, if the state directory knows several.
    #[arg(long, value_name = "PATH")]
    pub(crate) root: Option<PathBuf>,
    /// A volume of the running node; --state is then the node's [default: $DRIFTLESS_STATE, else /var/lib/driftless].
    #[arg(long, value_name = "NAME", conflicts_with = "root")]
    pub(crate) volume: Option<String>,
    /// Print one JSON object a line (see docs/json.md).
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct FailuresArgs {
    /// List every path, not only the first of each cause.
    #[arg(long)]
    pub(crate) all: bool,
    /// Try all of a volume at once, whatever their pauses, and what was skipped.
    #[arg(long)]
    pub(crate) retry: bool,
    /// Do not try this path, or entry, of a volume again, until another version of it comes.
    #[arg(long, value_name = "PATH|ID", conflicts_with = "retry")]
    pub(crate) skip: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

const LOST_HELP: &str = "\
A version is lost if it is known, but the disk that should have it fails or lacks it, and no end that was asked has it.
What the others have instead is kept until the version is given up. What is only being changed, or is on its way, is
not lost. Exit code 3 if there are any, else 0.

Example:
  driftless lost --root /srv/photos";

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct LostArgs {
    #[command(subcommand)]
    pub(crate) command: Option<LostCommand>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

const ACCEPT_HELP: &str = "\
The newest earlier version that is still held is published again; if there is none, the entry is removed. Either is an
ordinary change, which a running sync carries over, else the next one. What stands in its place on a failed disk goes the
way of all that is replaced: into the trash, if there is one.

Examples:
  driftless lost accept /srv/photos/cat.jpg
      go back to the version before
  driftless lost accept --remove /srv/photos/cat.jpg
      remove it everywhere";

#[derive(Subcommand, Debug)]
pub(crate) enum LostCommand {
    /// Give lost versions up.
    #[command(after_help = ACCEPT_HELP)]
    Accept(AcceptArgs),
}

#[derive(Args, Debug)]
pub(crate) struct AcceptArgs {
    /// The files whose lost versions are given up.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Remove them, though an earlier version may be held.
    #[arg(long)]
    pub(crate) remove: bool,
    /// Even if a site that was not asked may have them.
    #[arg(long)]
    pub(crate) anyway: bool,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ConflictsArgs {
    #[command(subcommand)]
    pub(crate) command: ConflictsCommand,
}

const RESOLVE_HELP: &str = "\
A resolution is an ordinary change of the directory: it reaches the other end with the next or the running sync.
The same can be done by hand: delete the copy, move it over the winner, or give it a name of its own.

Examples:
  driftless conflicts resolve report.conflict-1f2e.docx --keep winner
      delete the copy
  driftless conflicts resolve report.conflict-1f2e.docx --keep copy
      move the copy over report.docx
  driftless conflicts resolve report.conflict-1f2e.docx --keep both --name report-oslo.docx
      make the copy a file of its own";

#[derive(Subcommand, Debug)]
pub(crate) enum ConflictsCommand {
    /// List conflict copies.
    #[command(after_help = "Exit code 0, whether there are any or not.")]
    List(ListArgs),
    /// Show the versions of one conflict: who wrote each, when, and where they differ.
    #[command(after_help = "Example:\n  driftless conflicts show report.docx")]
    Show(ShowArgs),
    /// Resolve one conflict by keeping the winner, the copy, or both.
    #[command(after_help = RESOLVE_HELP)]
    Resolve(ResolveArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// The file, or one of its conflict copies.
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ResolveArgs {
    /// The conflict copy.
    pub(crate) path: PathBuf,
    /// What to keep.
    #[arg(long, value_enum)]
    pub(crate) keep: Keep,
    /// With `--keep both`: the copy's new name [default: .conflict- in its name becomes .kept-].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<OsString>,
    /// Where the indexes are [default: $XDG_STATE_HOME/driftless].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Keep {
    /// Delete the copy.
    Winner,
    /// Move the copy over the winner.
    Copy,
    /// Give the copy a name of its own.
    Both,
}

const CHANGES_HELP: &str = "\
The feed holds each entry once, at its newest change. A row says: position, class of the newest change (Entry: it
came, went or moved; Data; Meta), kind, mode, owner, entry id, directory's id and name, path now.
It is a feed of states: what changed twice between two looks is seen once, as it is now.

Examples:
  driftless changes --volume photos --cursor backup --json
  driftless changes --root /srv/photos --since 1042 --follow --json";

#[derive(Args, Debug)]
#[command(after_help = CHANGES_HELP)]
pub(crate) struct ChangesArgs {
    /// Begin after this position of the feed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) since: u64,
    /// Go on with new changes until interrupted.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Begin where this cursor is, and move it on after what was printed. It is made if there is none.
    #[arg(long, value_name = "NAME", conflicts_with = "since")]
    pub(crate) cursor: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

const FLUSH_HELP: &str = "\
Everything that was closed before the command began counts, at sites that are linked to this one and at those behind them.
Exit code 3 if a site does not hold it in time, or if entries wait somewhere: it ends as \"done except these\".

Example:
  driftless flush photos --timeout 5m";

#[derive(Args, Debug)]
pub(crate) struct FlushArgs {
    /// The volume [default: all]
    pub(crate) volume: Option<String>,
    /// How long to wait: 90s, 30m, 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::parse_age)]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) node: crate::node_args::NodeArgs,
}

const WHY_HELP: &str = "\
With --volume it says for each site whether that has the newest version, and if not, why not and when it is tried again; exit
code 3 then.

Examples:
  driftless why /srv/photos/2026/oslo.jpg
  driftless why --volume photos 2026/oslo.jpg";

#[derive(Args, Debug)]
#[command(after_help = WHY_HELP)]
pub(crate) struct WhyArgs {
    /// A path in a synced directory; with --root it may be relative to that.
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct QuarantineArgs {
    #[command(subcommand)]
    pub(crate) command: QuarantineCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum QuarantineCommand {
    /// List what was set aside.
    List(QuarantineListArgs),
    /// Put a thing back into the tree, as a new change.
    Apply(QuarantineApplyArgs),
    /// Copy all files that were set aside to another directory, under their paths.
    Export(QuarantineExportArgs),
}

#[derive(Args, Debug)]
pub(crate) struct QuarantineListArgs {
    /// The directory of the volume
    pub(crate) dir: PathBuf,
    /// Print JSON, one thing a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct QuarantineApplyArgs {
    /// The directory of the volume
    pub(crate) dir: PathBuf,
    /// Its id or its path, as listed
    pub(crate) what: std::ffi::OsString,
    /// Where to put it, below the directory [default: where it was]
    #[arg(long, value_name = "PATH")]
    pub(crate) to: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct QuarantineExportArgs {
    /// The directory of the volume
    pub(crate) dir: PathBuf,
    /// Where to copy them; made if it is missing
    pub(crate) to: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct TrashArgs {
    #[command(subcommand)]
    pub(crate) command: TrashCommand,
}

const TRASH_LIST_HELP: &str = "\
Versions are kept only by a sync with --trash-keep or --trash-max. A line says: id, when it came, size, why, path, and
the site whose change put it there. Oldest first.

Example:
  driftless trash list /srv/photos";

const TRASH_RESTORE_HELP: &str = "\
The version leaves the trash and is a new file of the directory, which the next or the running sync carries over. It
is the same inode: content, attributes, times and links are what they were. Nothing is ever replaced.

Examples:
  driftless trash restore /srv/photos 2026/oslo.jpg
      the newest version that was at this path
  driftless trash restore /srv/photos 3-17 --to 2026/oslo-old.jpg
      the version with this id, under another name";

const TRASH_EMPTY_HELP: &str = "\
What is dropped is gone for good. Good to use while a sync runs: what waits for room is then done by itself.

Example:
  driftless trash empty /srv/photos --older-than 7d";

#[derive(Subcommand, Debug)]
pub(crate) enum TrashCommand {
    /// List the versions in the trash of a directory.
    #[command(after_help = TRASH_LIST_HELP)]
    List(TrashListArgs),
    /// Bring one version back.
    #[command(after_help = TRASH_RESTORE_HELP)]
    Restore(TrashRestoreArgs),
    /// Drop versions for good.
    #[command(after_help = TRASH_EMPTY_HELP)]
    Empty(TrashEmptyArgs),
}

#[derive(Args, Debug)]
pub(crate) struct TrashListArgs {
    /// The synced directory.
    pub(crate) dir: PathBuf,
    /// Print one JSON object a line (see docs/json.md).
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TrashRestoreArgs {
    /// The synced directory.
    pub(crate) dir: PathBuf,
    /// The path that it had below DIR, or an id from the list.
    #[arg(value_name = "PATH|ID")]
    pub(crate) what: OsString,
    /// Another path below DIR to restore it to.
    #[arg(long, value_name = "PATH")]
    pub(crate) to: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct TrashEmptyArgs {
    /// The synced directory.
    pub(crate) dir: PathBuf,
    /// Only versions that came longer ago than this (45s, 90m, 12h, 30d, 2w).
    #[arg(long, value_name = "AGE", value_parser = units::parse_age)]
    pub(crate) older_than: Option<u64>,
}

const DOCTOR_HELP: &str = "\
First the verdict with its reasons, then what was tried: what it is called, yes or no, and if no, what that means.
Everything is tried in a private directory inside DIR, which is removed again.

Exit codes:
  0  fit for two-way use
  3  fit with limits, or for one-way use only
  1  not fit

Example:
  driftless doctor /srv/photos";

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// The directory.
    pub(crate) dir: PathBuf,
    /// Print one JSON object (see docs/json.md).
    #[arg(long)]
    pub(crate) json: bool,
}

const BENCH_HELP: &str = "\
Makes files in a new directory, copies them in turn with `rsync -aHS --delete` and with `driftless sync --once`,
compares the trees after each run, and removes all of it. Nothing but these files is touched, and no right
is needed. It says nothing about networks, nor about waiting for changes.

Exit codes:
  0  measured; all trees were equal
  1  it could not be measured, or a tree was not equal

Example:
  driftless bench --dir /mnt/disk --files 50000";

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Where the files are made: it says which disk is measured [default: the system's temporary directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How many small files.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) files: u64,
    /// Length of each.
    #[arg(long, value_name = "BYTES", default_value = "4Ki", value_parser = units::parse_bytes)]
    pub(crate) file_size: u64,
    /// Length of the large file, which has to fit into memory.
    #[arg(long, value_name = "BYTES", default_value = "256Mi", value_parser = units::parse_bytes)]
    pub(crate) large: u64,
    /// How often each is done; medians are shown.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rounds: u64,
    /// Print one JSON object per kind of work and program (see docs/json.md).
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// Speak on the standard input and output.
    #[arg(long, required = true)]
    pub(crate) stdio: bool,
    /// Most bytes per second that are sent.
    #[arg(long, value_name = "BYTES")]
    pub(crate) bwlimit: Option<u64>,
    /// Where state lives; the default place unless given.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<std::path::PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn sync(args: &[&str]) -> SyncArgs {
        let all = [&["driftless", "sync"], args].concat();
        match Cli::try_parse_from(all).unwrap().command {
            Command::Sync(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn filters_keep_their_order_across_flags() {
        let got = sync(&["--exclude", "1", "--include", "2", "--exclude", "3", "--include=4", "a", "b"]);
        let got: Vec<_> = got.filters.0.iter().map(|r| (r.include, r.glob.as_str())).collect();
        assert_eq!(got, [(false, "1"), (true, "2"), (false, "3"), (true, "4")]);
        assert!(sync(&["a", "b"]).filters.0.is_empty());
    }

    #[test]
    fn site_names_are_plain_and_different() {
        assert_eq!(parse_site_names("oslo,bergen-2"), Ok(("oslo".into(), "bergen-2".into())));
        for bad in ["oslo", "a,a", ",b", "a/b,c", "a,b,c", "a,é"] {
            assert!(parse_site_names(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_command_has_its_own_help() {
        let mut texts = std::collections::BTreeSet::new();
        for command in Cli::command().get_subcommands_mut() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            assert!(texts.insert(command.render_long_help().to_string()));
        }
    }
}
