//! Commands and flags of a node: `serve`, `config`, `status`, `site`, `volume`, `link`.

use crate::settings_args::{LinkSettingsArgs, VolumeSettingsArgs};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

pub(crate) const SERVE_HELP: &str = "\
Settings come from flags, then from the environment (DRIFTLESS_NAME, DRIFTLESS_LISTEN, DRIFTLESS_ADVERTISE,
DRIFTLESS_STATE, DRIFTLESS_ADMIN, DRIFTLESS_LOG, DRIFTLESS_MAX_SITES), then from the file. What is set of volumes and links: from the environment
(DRIFTLESS_VOLUME_DATA_TRASH_KEEP, DRIFTLESS_VOLUME_DATA_LINK_BERGEN_BWLIMIT, for a volume data and a site bergen), then from the
file, then from `volume config` and `link config`. SIGTERM ends the node in good order, SIGHUP has it
read the file again.

Example:
  driftless serve --name oslo --listen 192.0.2.1:7440";

pub(crate) const SITE_HELP: &str = "\
Example, at two sites whose nodes run:
  oslo$   driftless site invite --for data
  bergen$ driftless site join dl1/oslo/192.0.2.1:7440/... --dir data=/srv/data";

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The configuration [default: /etc/driftless/driftless.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of this site; needed once, unless `site init` has given it
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where other sites connect [default: 0.0.0.0:7440]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Where other sites are told to connect [default: --listen, if it is one address]
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<Vec<String>>,
    /// Keys, records and indexes [default: /var/lib/driftless]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Health and metrics over HTTP, or `off` [default: 127.0.0.1:7441]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<String>,
    /// How the log is written: `text` or `json` [default: text]
    #[arg(long)]
    pub(crate) log: Option<String>,
    /// Congestion control of connections to other sites, or `system` for the system's own [default: bbr]
    #[arg(long, value_name = "NAME")]
    pub(crate) congestion: Option<String>,
    /// Refuse more sites than so many, this one included [default: 64]
    #[arg(long, value_name = "N")]
    pub(crate) max_sites: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum ConfigCommand {
    /// Read the configuration and print what follows from it; nothing is started.
    Check {
        /// The configuration [default: /etc/driftless/driftless.toml, if it is there]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Which node is asked.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// State directory of the node [default: $DRIFTLESS_STATE, else /var/lib/driftless]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Print JSON (see docs/json.md)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Show it again every second until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct SiteArgs {
    #[command(subcommand)]
    pub(crate) command: SiteCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum SiteCommand {
    /// Make this site's key and give it a name.
    Init {
        /// Letters, digits, `-`, `_` and `.`
        #[arg(long)]
        name: String,
        /// Where other sites connect
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Print an invitation: one line, for one site, once.
    Invite {
        /// Volume that the site may have; may be given several times
        #[arg(long = "for", value_name = "VOLUME")]
        volumes: Vec<String>,
        /// How these volumes are linked
        #[arg(long, value_enum, default_value_t)]
        mode: ModeArg,
        /// The site may not pass on what other sites change
        #[arg(long)]
        no_relay: bool,
        /// The site may not admit, change or remove members of these volumes
        #[arg(long)]
        no_invite: bool,
        /// When it expires: 90s, 30m, 1h, 7d
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = crate::units::parse_age)]
        expires: u64,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Become known to the site that has given this invitation, and know it.
    Join {
        /// The line that `site invite` printed
        token: String,
        /// Have a volume of the invitation in this directory; may be given several times
        #[arg(long = "dir", value_name = "VOLUME=DIR")]
        volumes: Vec<String>,
        /// Only say how the directories compare with the volumes; nothing is changed, here or there
        #[arg(long)]
        dry_run: bool,
        /// With --dry-run: list what is equal, too
        #[arg(long, requires = "dry_run")]
        all: bool,
        /// Take everything that this member has before anything is taken from others
        #[arg(long, value_name = "SITE")]
        seed_from: Option<String>,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Make another key for this site, and tell the members of its volumes; used from the node's next start on.
    Rekey {
        /// A key that is not this one's successor: for a site that was removed and is to be invited again
        #[arg(long)]
        fresh: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// List the sites that are known here.
    List(NodeArgs),
    /// The same as `driftless status`.
    Status(NodeArgs),
    /// Remove a site from all volumes for good, whether it can be reached or not.
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        node: NodeArgs,
    },
}

impl SiteArgs {
    pub(crate) fn wants_json(&self) -> bool {
        use SiteCommand as C;
        match &self.command {
            C::Init { node, .. }
            | C::Invite { node, .. }
            | C::Join { node, .. }
            | C::Rekey { node, .. }
            | C::Remove { node, .. } => node.json,
            C::List(node) | C::Status(node) => node.json,
        }
    }
}

/// Who makes changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum ModeArg {
    /// Both sites
    #[default]
    ActiveActive,
    /// This site; the other follows
    ActivePassive,
}

/// What a member does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum RoleArg {
    /// Makes changes
    Writer,
    /// Makes none; what differs on its disk is listed
    Follower,
}

#[derive(Args, Debug)]
pub(crate) struct SwitchoverArgs {
    /// The volume
    pub(crate) volume: String,
    /// The site that is to write instead of this one
    #[arg(long, value_name = "SITE")]
    pub(crate) to: String,
    /// How long everything may take to arrive there: 90s, 30m, 1h
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = crate::units::parse_age)]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct FailoverArgs {
    /// The volume
    pub(crate) volume: String,
    /// The site that is gone [default: the only other writer]
    #[arg(long, value_name = "SITE")]
    pub(crate) from: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct RejoinArgs {
    /// The volume
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Args, Debug)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    pub(crate) command: VolumeCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum VolumeCommand {
    /// Begin a volume with a directory, or have one of another site in it.
    Add {
        /// Its name
        name: String,
        /// The directory
        dir: PathBuf,
        /// The site that has it
        #[arg(long, value_name = "SITE")]
        from: Option<String>,
        /// Take everything that this member has before anything is taken from others
        #[arg(long, value_name = "SITE", requires = "from")]
        seed_from: Option<String>,
        #[command(flatten)]
        settings: VolumeSettingsArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Change what is set of a volume at this site, or show it.
    #[command(after_help = crate::settings_args::VOLUME_HELP)]
    Config {
        /// Its name
        name: String,
        #[command(flatten)]
        settings: VolumeSettingsArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// List the volumes of this node.
    List(NodeArgs),
    /// Do what the guards hold: many removals at once, or a tree that went back to an earlier state.
    Approve {
        /// The volume
        name: String,
        /// Take newer versions from the other sites instead; what is here is kept in recovered-...
        #[arg(long)]
        heal: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Change what a member does: a writer makes changes, a follower only takes them.
    Role {
        /// The volume
        volume: String,
        /// The member's site
        site: String,
        /// What it is from now on
        #[arg(value_enum)]
        role: RoleArg,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Forget a volume here. No file is touched.
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        node: NodeArgs,
    },
}

impl VolumeArgs {
    pub(crate) fn wants_json(&self) -> bool {
        match &self.command {
            VolumeCommand::Add { node, .. }
            | VolumeCommand::Config { node, .. }
            | VolumeCommand::List(node)
            | VolumeCommand::Approve { node, .. }
            | VolumeCommand::Role { node, .. }
            | VolumeCommand::Remove { node, .. } => node.json,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct LinkArgs {
    #[command(subcommand)]
    pub(crate) command: LinkCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum LinkCommand {
    /// Link a volume to a site, which may have it from then on.
    Create {
        #[command(flatten)]
        link: LinkName,
        /// Who makes changes
        #[arg(long, value_enum, default_value_t)]
        mode: ModeArg,
        /// Patterns of what need not be brought to the site, one a line as in .gitignore: what it begins with, and may change there
        #[arg(long, value_name = "FILE")]
        filter_from: Option<PathBuf>,
        #[command(flatten)]
        settings: LinkSettingsArgs,
    },
    /// Change what is set of a link, for what this site sends, or show it.
    #[command(after_help = crate::settings_args::LINK_HELP)]
    Config {
        #[command(flatten)]
        link: LinkName,
        #[command(flatten)]
        settings: LinkSettingsArgs,
    },
    /// Wait until the site holds everything that was changed here before now.
    Checkpoint {
        #[command(flatten)]
        link: LinkName,
        /// How long to wait: 90s, 30m, 1h
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::units::parse_age)]
        timeout: u64,
    },
    /// Run a link that was stopped.
    Start(LinkName),
    /// Stop a link until it is started.
    Stop(LinkName),
    /// Pause a link until it is resumed.
    Pause(LinkName),
    /// Go on with a link that was paused.
    Resume(LinkName),
    /// Say how links stand.
    Status(NodeArgs),
    /// Forget a link: the site may not have the volume from here any more.
    Remove(LinkName),
}

#[derive(Args, Debug)]
pub(crate) struct LinkName {
    /// The volume
    pub(crate) volume: String,
    /// The site
    #[arg(long, value_name = "SITE")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

impl LinkArgs {
    pub(crate) fn wants_json(&self) -> bool {
        use LinkCommand as C;
        match &self.command {
            C::Create { link, .. }
            | C::Config { link, .. }
            | C::Checkpoint { link, .. }
            | C::Start(link)
            | C::Stop(link)
            | C::Pause(link)
            | C::Resume(link)
            | C::Remove(link) => link.node.json,
            C::Status(node) => node.json,
        }
    }
}
