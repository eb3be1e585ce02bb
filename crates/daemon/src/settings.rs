//! What can be set of a volume and of its links, and what follows from it.
//!
//! The same settings may come from three places: the environment, the configuration, and commands (`volume config`, `link
//! config`), which are remembered in the records. In this order, what the first does not say the next does; each is kept as it
//! was written, and judged as a whole ([`VolumeSettings::rules`], [`LinkSettings::rules`]).

use crate::schedule::Schedule;
use crate::units::{parse_age, parse_bytes, parse_max_delete, parse_pause, parse_rate};
use driftless_net::Compress;
use driftless_node::api::{CRAWL_EVERY_DEFAULT_S, FilterRule, MaxDelete, OnRollback, TrashLimits};
use driftless_node::filter::{self, Filter};
use driftless_node::replica::Tuning;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest file of patterns: hundreds of thousands of lines make each look at a name slow.
pub const FILTER_LEN_MAX: u64 = 256 << 10;
/// A value that takes back what was set before.
const NONE: &str = "none";

/// Settings of a volume at this site, as written. `none` takes one back.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeSettings {
    /// Patterns of what is not brought to this site, one a line, as in `.gitignore`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// A file of such patterns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_from: Option<PathBuf>,
    /// How long what is replaced or removed is kept: `30d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trash_keep: Option<String>,
    /// How much of it: `10GiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trash_max: Option<String>,
    /// More removals at once are held: `1000` or `20%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_delete: Option<String>,
    /// What becomes of a tree that was put back: `ask`, `accept`, `heal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_rollback: Option<String>,
    /// How often the whole tree is looked at: `10m`, `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crawl_every: Option<String>,
    /// Of its links, by site; only in the configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub link: BTreeMap<String, LinkSettings>,
}

/// Settings of a link for what this site sends, as written. `none` takes one back.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkSettings {
    /// Most bytes per second: `20M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<String>,
    /// The same by the hour (see [`crate::schedule`]); where it says something, `bwlimit` does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bwlimit_schedule: Option<String>,
    /// How full a batch of changes gets: `8MiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_size: Option<String>,
    /// How old the oldest change in it gets while the link is busy: `30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_age: Option<String>,
    /// `auto`, `zstd`, `lz4` or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<String>,
}

/// What follows from the settings of a volume.
#[derive(Clone, PartialEq, Debug)]
pub struct VolumeRules {
    /// The first that matches decides.
    pub filters: Vec<FilterRule>,
    /// Guard against mass removals.
    pub max_delete: MaxDelete,
    /// Guard against trees that were put back.
    pub on_rollback: OnRollback,
    /// What is kept of what goes.
    pub trash: Option<TrashLimits>,
    /// Seconds between two looks at the whole tree; 0: none.
    pub crawl_every_s: u64,
}

/// What follows from the settings of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkRules {
    bwlimit: Option<u64>,
    schedule: Option<Schedule>,
    /// How what is sent is cut into batches.
    pub tuning: Tuning,
    /// How frames are compressed.
    pub compress: Compress,
}

impl VolumeRules {
    /// Where nothing is set.
    pub fn none() -> VolumeRules {
        VolumeRules {
            filters: Vec::new(),
            max_delete: MaxDelete::Default,
            on_rollback: OnRollback::Ask,
            trash: None,
            crawl_every_s: CRAWL_EVERY_DEFAULT_S,
        }
    }
}

impl LinkRules {
    /// Where nothing is set.
    pub fn none() -> LinkRules {
        let (tuning, compress) = (Tuning::default(), Compress::default());
        LinkRules { bwlimit: None, schedule: None, tuning, compress }
    }

    /// Bytes per second on this day (0 = Sunday) at this minute of it.
    pub fn bytes_per_s_at(&self, (day, minute): (u32, u32)) -> Option<u64> {
        self.schedule.as_ref().map_or(self.bwlimit, |s| s.at(day, minute))
    }
}

/// What is set and not taken back.
fn said(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|text| *text != NONE)
}

impl VolumeSettings {
    /// These settings, and for what they do not say those of `other`. A filter is one setting, however it is written.
    #[must_use]
    pub fn or(self, other: VolumeSettings) -> VolumeSettings {
        let has_filter = self.filter.is_some() || self.filter_from.is_some();
        let (filter, filter_from) =
            if has_filter { (self.filter, self.filter_from) } else { (other.filter, other.filter_from) };
        let mut link = other.link;
        for (site, own) in self.link {
            let merged = own.or(link.remove(&site).unwrap_or_default());
            link.insert(site, merged);
        }
        VolumeSettings {
            filter,
            filter_from,
            trash_keep: self.trash_keep.or(other.trash_keep),
            trash_max: self.trash_max.or(other.trash_max),
            max_delete: self.max_delete.or(other.max_delete),
            on_rollback: self.on_rollback.or(other.on_rollback),
            crawl_every: self.crawl_every.or(other.crawl_every),
            link,
        }
    }

    /// What the environment says of volume `name` (`DRIFTLESS_VOLUME_DATA_TRASH_KEEP`, for volume `data`).
    pub fn of_env(name: &str, get: &dyn Fn(&str) -> Option<String>) -> VolumeSettings {
        let value = |key: &str| get(&format!("DRIFTLESS_VOLUME_{}_{key}", in_env(name)));
        VolumeSettings {
            filter: value("FILTER"),
            filter_from: value("FILTER_FROM").map(PathBuf::from),
            trash_keep: value("TRASH_KEEP"),
            trash_max: value("TRASH_MAX"),
            max_delete: value("MAX_DELETE"),
            on_rollback: value("ON_ROLLBACK"),
            crawl_every: value("CRAWL_EVERY"),
            link: BTreeMap::new(),
        }
    }

    /// Reads the file of patterns, if one is named, in place of its name.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_filter(&mut self) -> Result<(), String> {
        if let Some(path) = self.filter_from.take() {
            let none = path.as_os_str() == NONE;
            self.filter = Some(if none { NONE.into() } else { read_filter(&path)? });
        }
        Ok(())
    }

    /// What follows.
    ///
    /// # Errors
    /// Which setting makes no sense, and why.
    pub fn rules(&self) -> Result<VolumeRules, String> {
        let keep_s =
            said(&self.trash_keep).map(parse_age).transpose().map_err(|e| format!("trash_keep: {e}"))?;
        let bytes_max =
            said(&self.trash_max).map(parse_bytes).transpose().map_err(|e| format!("trash_max: {e}"))?;
        let max_delete = match said(&self.max_delete) {
            Some("default") | None => MaxDelete::Default,
            Some(text) => parse_max_delete(text).map_err(|e| format!("max_delete: {e}"))?,
        };
        let on_rollback = match said(&self.on_rollback) {
            None | Some("ask") => OnRollback::Ask,
            Some("accept") => OnRollback::Accept,
            Some("heal") => OnRollback::Heal,
            Some(other) => return Err(format!("on_rollback: '{other}' is none of ask, accept, heal")),
        };
        let filters = filter::of_lines(said(&self.filter).unwrap_or_default());
        Filter::new(&filters).map_err(|e| format!("filter: {e}"))?;
        let trash = (keep_s.is_some() || bytes_max.is_some()).then_some(TrashLimits { keep_s, bytes_max });
        let crawl_every = said(&self.crawl_every).map(parse_pause).transpose();
        let crawl_every_s =
            crawl_every.map_err(|e| format!("crawl_every: {e}"))?.unwrap_or(CRAWL_EVERY_DEFAULT_S);
        Ok(VolumeRules { filters, max_delete, on_rollback, trash, crawl_every_s })
    }

    /// Checks all of it, links too.
    ///
    /// # Errors
    /// As [`VolumeSettings::rules`].
    pub fn check(&self) -> Result<(), String> {
        self.rules()?;
        self.link
            .iter()
            .try_for_each(|(site, link)| link.rules().map(drop).map_err(|e| format!("link.{site}.{e}")))
    }
}

impl LinkSettings {
    /// These settings, and for what they do not say those of `other`.
    #[must_use]
    pub fn or(self, other: LinkSettings) -> LinkSettings {
        LinkSettings {
            bwlimit: self.bwlimit.or(other.bwlimit),
            bwlimit_schedule: self.bwlimit_schedule.or(other.bwlimit_schedule),
            container_size: self.container_size.or(other.container_size),
            container_age: self.container_age.or(other.container_age),
            compress: self.compress.or(other.compress),
        }
    }

    /// What the environment says of the link of `volume` to `site` (`DRIFTLESS_VOLUME_DATA_LINK_BERGEN_BWLIMIT`).
    pub fn of_env(volume: &str, site: &str, get: &dyn Fn(&str) -> Option<String>) -> LinkSettings {
        let value =
            |key: &str| get(&format!("DRIFTLESS_VOLUME_{}_LINK_{}_{key}", in_env(volume), in_env(site)));
        LinkSettings {
            bwlimit: value("BWLIMIT"),
            bwlimit_schedule: value("BWLIMIT_SCHEDULE"),
            container_size: value("CONTAINER_SIZE"),
            container_age: value("CONTAINER_AGE"),
            compress: value("COMPRESS"),
        }
    }

    /// What follows.
    ///
    /// # Errors
    /// Which setting makes no sense, and why.
    pub fn rules(&self) -> Result<LinkRules, String> {
        let bwlimit = match said(&self.bwlimit) {
            Some("off") | None => None,
            Some(text) => Some(parse_rate(text).map_err(|e| format!("bwlimit: {e}"))?),
        };
        let schedule = said(&self.bwlimit_schedule).map(Schedule::parse).transpose();
        let schedule = schedule.map_err(|e| format!("bwlimit_schedule: {e}"))?;
        let mut tuning = Tuning::default();
        if let Some(text) = said(&self.container_size) {
            let bytes = parse_bytes(text).map_err(|e| format!("container_size: {e}"))?;
            if !(Tuning::BYTES_MIN..=Tuning::BYTES_MAX).contains(&bytes) {
                return Err(format!("container_size: '{text}' is not between 64KiB and 32MiB"));
            }
            tuning.container_bytes = bytes;
        }
        if let Some(text) = said(&self.container_age) {
            let ms = parse_age(text).map_err(|e| format!("container_age: {e}"))?.saturating_mul(1000);
            if ms > Tuning::AGE_MS_MAX {
                return Err(format!("container_age: '{text}' is more than an hour"));
            }
            tuning.container_age_ms = ms;
        }
        let compress = match self.compress.as_deref() {
            None | Some("auto") => Compress::Auto,
            Some("zstd") => Compress::Zstd,
            Some("lz4") => Compress::Lz4,
            Some(NONE) => Compress::None,
            Some(other) => return Err(format!("compress: '{other}' is none of auto, zstd, lz4, none")),
        };
        Ok(LinkRules { bwlimit, schedule, tuning, compress })
    }
}

/// Patterns of a file.
///
/// # Errors
/// If it cannot be read, is too long or no text.
pub fn read_filter(path: &Path) -> Result<String, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let len = std::fs::metadata(path).map_err(|e| wrong(&e))?.len();
    if len > FILTER_LEN_MAX {
        return Err(wrong(&format!("more than {} KiB of patterns", FILTER_LEN_MAX >> 10)));
    }
    std::fs::read_to_string(path).map_err(|e| wrong(&e))
}

/// A name as it stands in the names of environment variables.
fn in_env(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_wins_over_the_file_over_commands() {
        let env = |key: &str| (key == "DRIFTLESS_VOLUME_MY_DATA_TRASH_KEEP").then(|| "1d".to_owned());
        let file = VolumeSettings {
            trash_keep: Some("2d".into()),
            trash_max: Some("1G".into()),
            ..VolumeSettings::default()
        };
        let commands = VolumeSettings {
            trash_max: Some("2G".into()),
            max_delete: Some("7".into()),
            filter: Some("*.o".into()),
            ..VolumeSettings::default()
        };
        let all = VolumeSettings::of_env("my-data", &env).or(file).or(commands);
        let rules = all.rules().unwrap();
        assert_eq!(rules.trash, Some(TrashLimits { keep_s: Some(86_400), bytes_max: Some(1_000_000_000) }));
        assert_eq!(rules.max_delete, MaxDelete::Count(7));
        assert_eq!(rules.filters.len(), 1);
        let none = VolumeSettings { trash_keep: Some(NONE.into()), ..VolumeSettings::default() };
        assert_eq!(none.or(all).rules().unwrap().trash.unwrap().keep_s, None);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let link = |key: &str, value: &str| -> Result<LinkRules, String> {
            toml::from_str::<LinkSettings>(&format!("{key} = \"{value}\"")).unwrap().rules()
        };
        for (key, bad) in [
            ("bwlimit", "fast"),
            ("bwlimit_schedule", "Mon"),
            ("container_size", "1k"),
            ("container_size", "1G"),
            ("container_age", "2h"),
            ("compress", "zip"),
        ] {
            assert!(link(key, bad).unwrap_err().starts_with(key), "{key} {bad}");
        }
        let rules = link("bwlimit_schedule", "Mon-Fri 08:00,5M 19:00,off").unwrap();
        assert_eq!(rules.bytes_per_s_at((1, 600)), Some(5_000_000));
        assert_eq!(link("container_size", "1MiB").unwrap().tuning.container_bytes, 1 << 20);
        assert_eq!(link("compress", "none").unwrap().compress, Compress::None);
        let volume = |key: &str, value: &str| {
            toml::from_str::<VolumeSettings>(&format!("{key} = \"{value}\"")).unwrap().check()
        };
        for (key, bad) in [
            ("trash_keep", "x"),
            ("trash_max", "0"),
            ("max_delete", "x"),
            ("on_rollback", "x"),
            ("filter", "a[b"),
        ] {
            assert!(volume(key, bad).unwrap_err().starts_with(key), "{key} {bad}");
        }
    }
}
