//! Flags of what can be set of volumes and links. They are judged by the node, which also reads them from its configuration.

use crate::error::CliError;
use clap::Args;
use driftless_daemon::settings::{LinkSettings, VolumeSettings, read_filter};
use std::path::{Path, PathBuf};

pub(crate) const VOLUME_HELP: &str = "\
Without flags it shows what is set. `none` takes a setting back. A filter only says what is not brought to this site: what it
leaves out stays where it is here, and is neither looked at, nor changed, nor taken for removed.

Examples:
  driftless volume config photos --filter-from /etc/driftless/photos.filter
  driftless volume config photos --trash-keep 30d --trash-max 10GiB";

pub(crate) const LINK_HELP: &str = "\
Without flags it shows what is set. `none` takes a setting back. Hours are by this machine's clock, a limit counts until the
next hour that is named.

Examples:
  driftless link config photos --to bergen --bwlimit 20M
  driftless link config photos --to bergen --bwlimit-schedule \"Mon-Fri 08:00,5M 19:00,off\"";

#[derive(Args, Debug, Default)]
pub(crate) struct VolumeSettingsArgs {
    /// Patterns of what is not brought to this site, one a line as in .gitignore
    #[arg(long, value_name = "FILE|none")]
    filter_from: Option<PathBuf>,
    /// Keep what is replaced or removed here for this long (30d)
    #[arg(long, value_name = "AGE|none")]
    trash_keep: Option<String>,
    /// Keep at most so much of it (10GiB)
    #[arg(long, value_name = "SIZE|none")]
    trash_max: Option<String>,
    /// Hold removals back if there are more than N, or more than P% of the entries, at once
    #[arg(long, value_name = "N|P%|none")]
    max_delete: Option<String>,
    /// What becomes of a tree that was put back to an earlier state: ask, accept or heal
    #[arg(long, value_name = "WHAT")]
    on_rollback: Option<String>,
    /// How often the whole tree is looked at (10m, never) [default: 10m]
    #[arg(long, value_name = "PAUSE|none")]
    crawl_every: Option<String>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct LinkSettingsArgs {
    /// Send at most so many bytes per second (500k, 20M)
    #[arg(long, value_name = "RATE|none")]
    bwlimit: Option<String>,
    /// The same by the hour
    #[arg(long, value_name = "SCHEDULE|none")]
    bwlimit_schedule: Option<String>,
    /// How full a batch of changes gets (64KiB to 32MiB) [default: 8MiB]
    #[arg(long, value_name = "SIZE|none")]
    container_size: Option<String>,
    /// How old the oldest change in it gets while the link is busy [default: 30s]
    #[arg(long, value_name = "AGE|none")]
    container_age: Option<String>,
    /// auto (zstd, but not over lines of more than 2 Gbit/s), zstd, lz4 or none [default: auto]
    #[arg(long, value_name = "HOW")]
    compress: Option<String>,
}

/// The patterns in a file, read here: the node may not be allowed to.
pub(crate) fn filter(path: Option<&Path>) -> Result<Option<String>, CliError> {
    match path {
        None => Ok(None),
        Some(path) if path.as_os_str() == "none" => Ok(Some("none".into())),
        Some(path) => {
            read_filter(path).map(Some).map_err(|e| CliError::usage(e, "name a file with one pattern a line"))
        }
    }
}

impl VolumeSettingsArgs {
    pub(crate) fn settings(self) -> Result<VolumeSettings, CliError> {
        let filter = filter(self.filter_from.as_deref())?;
        let VolumeSettingsArgs { trash_keep, trash_max, max_delete, on_rollback, crawl_every, .. } = self;
        Ok(VolumeSettings {
            filter,
            trash_keep,
            trash_max,
            max_delete,
            on_rollback,
            crawl_every,
            ..VolumeSettings::default()
        })
    }
}

impl From<LinkSettingsArgs> for LinkSettings {
    fn from(args: LinkSettingsArgs) -> LinkSettings {
        let LinkSettingsArgs { bwlimit, bwlimit_schedule, container_size, container_age, compress } = args;
        LinkSettings { bwlimit, bwlimit_schedule, container_size, container_age, compress }
    }
}
