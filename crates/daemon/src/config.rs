//! The configuration: one TOML file, every setting also by an environment variable, which wins.
//!
//! ```toml
//! name = "oslo"                    # this site
//! listen = "0.0.0.0:7440"          # where other sites connect
//! advertise = ["192.0.2.1:7440"]   # what they are told to connect to; default: `listen`, if it is an address
//! state = "/var/lib/driftless"     # keys, records, indexes
//! admin = "127.0.0.1:7441"         # health and metrics over HTTP; "off" for none
//! log = "text"                     # or "json"
//! congestion = "bbr"               # congestion control of connections to other sites; "system" for the system's
//! max_sites = 64                   # this one included; more are refused
//!
//! [volume.data]                    # for a volume, if it has one of this name (see `settings`)
//! filter_from = "/etc/driftless/data.filter"
//! trash_keep = "30d"
//! trash_max = "10GiB"
//! max_delete = "20%"
//! on_rollback = "ask"
//!
//! [volume.data.link.bergen]        # for what is sent to that site
//! bwlimit = "20M"
//! bwlimit_schedule = "Mon-Fri 08:00,5M 19:00,off"
//! container_size = "8MiB"
//! container_age = "30s"
//! compress = "auto"
//! ```

use crate::log::Format;
use crate::settings::VolumeSettings;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where the file is looked for if none is named.
pub const DEFAULT_PATH: &str = "/etc/driftless/driftless.toml";
/// Where the state is kept if nothing else is said.
pub const DEFAULT_STATE: &str = "/var/lib/driftless";
/// Where other sites connect if nothing else is said.
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 7440);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7441);
/// One lost packet in a thousand leaves a connection that takes losses for queues a thirtieth of a line of 200 Mbit/s and 100 ms. Where the
/// system does not have it, its own is taken.
const DEFAULT_CONGESTION: &str = "bbr";
/// The system's names are shorter than 16 bytes.
const CONGESTION_LEN_MAX: usize = 15;
/// Longest file: some settings for each of thousands of volumes.
const FILE_LEN_MAX: u64 = 1 << 20;
/// Sites that a node knows if nothing else is said: more than most have, few enough that a mistake is noticed.
const DEFAULT_MAX_SITES: usize = 64;
/// Each site can have a link of each volume, with threads of its own.
const SITES_LIMIT: usize = 1024;
/// Longest name of a site or a volume, in bytes.
pub const NAME_LEN_MAX: usize = 63;

/// Why a configuration cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct ConfigError {
    /// The file, variable or flag.
    pub place: String,
    /// What is wrong there.
    pub what: String,
}

/// A whole configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// This site's name; `None` until the site has been set up.
    pub name: Option<String>,
    /// Where other sites connect.
    pub listen: SocketAddr,
    /// What they are told to connect to.
    pub advertise: Vec<SocketAddr>,
    /// Keys, records, indexes.
    pub state: PathBuf,
    /// Health and metrics; `None` for none.
    pub admin: Option<SocketAddr>,
    /// How the log is written.
    pub log: Format,
    /// The congestion control of connections to other sites, by its name in the system; `None` for what the system takes.
    pub congestion: Option<String>,
    /// Of volumes, by name; files of patterns have been read.
    pub volumes: BTreeMap<String, VolumeSettings>,
    /// How many sites this one knows at most, itself included.
    pub max_sites: usize,
}

/// One source of settings: what it does not say another does.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// See [`Config::name`].
    pub name: Option<String>,
    /// See [`Config::listen`].
    pub listen: Option<String>,
    /// See [`Config::advertise`].
    pub advertise: Option<Vec<String>>,
    /// See [`Config::state`].
    pub state: Option<PathBuf>,
    /// An address, or `off`.
    pub admin: Option<String>,
    /// `text` or `json`.
    pub log: Option<String>,
    /// A name, or `system`. See [`Config::congestion`].
    pub congestion: Option<String>,
    /// See [`Config::volumes`].
    #[serde(default)]
    pub volume: BTreeMap<String, VolumeSettings>,
    /// See [`Config::max_sites`].
    pub max_sites: Option<usize>,
}

impl Settings {
    /// What a file says. One that is not there says nothing, unless it was named.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, or has a setting that there is not.
    pub fn of_file(path: &Path, named: bool) -> Result<Settings, ConfigError> {
        let wrong = |what: String| ConfigError { place: path.display().to_string(), what };
        let meta = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => return Ok(Settings::default()),
            other => other.map_err(|e| wrong(e.to_string()))?,
        };
        if meta.len() > FILE_LEN_MAX {
            return Err(wrong("it is too long for a configuration".into()));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        toml::from_str(&text).map_err(|e| wrong(e.to_string()))
    }

    /// What environment variables say; `get` reads one: `DRIFTLESS_NAME`, `DRIFTLESS_LISTEN`, ...
    pub fn of_env(get: impl Fn(&str) -> Option<String>) -> Settings {
        Settings {
            name: get("DRIFTLESS_NAME"),
            listen: get("DRIFTLESS_LISTEN"),
            advertise: get("DRIFTLESS_ADVERTISE").map(|s| s.split(',').map(str::to_owned).collect()),
            state: get("DRIFTLESS_STATE").map(PathBuf::from),
            admin: get("DRIFTLESS_ADMIN"),
            log: get("DRIFTLESS_LOG"),
            congestion: get("DRIFTLESS_CONGESTION"),
            // Asked for by name when the names are known.
            volume: BTreeMap::new(),
            // What is no number is 0, which is refused with a message.
            max_sites: get("DRIFTLESS_MAX_SITES").map(|n| n.parse().unwrap_or(0)),
        }
    }

    /// These settings, and for what they do not say those of `other`.
    #[must_use]
    pub fn or(self, other: Settings) -> Settings {
        Settings {
            name: self.name.or(other.name),
            listen: self.listen.or(other.listen),
            advertise: self.advertise.or(other.advertise),
            state: self.state.or(other.state),
            admin: self.admin.or(other.admin),
            log: self.log.or(other.log),
            congestion: self.congestion.or(other.congestion),
            volume: if self.volume.is_empty() { other.volume } else { self.volume },
            max_sites: self.max_sites.or(other.max_sites),
        }
    }

    /// The configuration that follows; `place` is where people look for what is wrong.
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn resolve(self, place: &str) -> Result<Config, ConfigError> {
        let wrong = |key: &str, what: String| ConfigError { place: format!("{place}: {key}"), what };
        if let Some(name) = &self.name {
            check_name(name).map_err(|what| wrong("name", what))?;
        }
        let address = |key: &str, text: &str| {
            text.parse::<SocketAddr>().map_err(|_| {
                wrong(
                    key,
                    format!(
                        "{text:?} is not an address with a port, as 192.0.2.1:7440 or [2001:db8::1]:7440"
                    ),
                )
            })
        };
        let listen = self.listen.as_deref().map_or(Ok(DEFAULT_LISTEN), |text| address("listen", text))?;
        let advertise = match &self.advertise {
            Some(all) => all.iter().map(|text| address("advertise", text)).collect::<Result<_, _>>()?,
            None if listen.ip().is_unspecified() => Vec::new(),
            None => vec![listen],
        };
        let admin = match self.admin.as_deref() {
            Some("off") => None,
            Some(text) => Some(address("admin", text)?),
            None => Some(DEFAULT_ADMIN),
        };
        let log = match self.log.as_deref() {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => return Err(wrong("log", format!("{other:?} is neither \"text\" nor \"json\""))),
        };
        let congestion = match self.congestion.as_deref() {
            None => Some(DEFAULT_CONGESTION.to_owned()),
            Some("system") => None,
            Some(name) => {
                let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                if name.is_empty() || name.len() > CONGESTION_LEN_MAX || !name.chars().all(fine) {
                    let what = format!(
                        "{name:?} is neither \"system\" nor a name of net.ipv4.tcp_available_congestion_control"
                    );
                    return Err(wrong("congestion", what));
                }
                Some(name.to_owned())
            }
        };
        let state = self.state.unwrap_or_else(|| DEFAULT_STATE.into());
        let mut volumes = self.volume;
        for (name, volume) in &mut volumes {
            let checked = check_name(name).and_then(|()| volume.read_filter()).and_then(|()| volume.check());
            checked.map_err(|what| wrong(&format!("volume.{name}"), what))?;
        }
        let max_sites = self.max_sites.unwrap_or(DEFAULT_MAX_SITES);
        if !(1..=SITES_LIMIT).contains(&max_sites) {
            return Err(wrong("max_sites", format!("it is a number from 1 to {SITES_LIMIT}")));
        }
        Ok(Config { name: self.name, listen, advertise, state, admin, log, congestion, volumes, max_sites })
    }
}

/// Checks the name of a site or a volume: it stands in tokens, file names and metrics.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(fine) || name.starts_with('.') {
        return Err(format!("{name:?} is no name: 1 to {NAME_LEN_MAX} letters, digits, '-', '_' and '.'"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("driftless.toml");
        std::fs::write(&path, text).unwrap();
        Settings::of_file(&path, true)?.resolve("driftless.toml")
    }

    #[test]
    fn settings_come_from_the_file_the_environment_and_defaults() {
        let config = of("name = \"oslo\"\nlisten = \"192.0.2.1:7440\"\nadmin = \"off\"\n").unwrap();
        assert_eq!(config.name.as_deref(), Some("oslo"));
        assert_eq!(config.advertise, [config.listen]);
        assert_eq!((config.admin, config.log), (None, Format::Text));
        assert_eq!(config.congestion.as_deref(), Some(DEFAULT_CONGESTION));
        assert_eq!(of("congestion = \"system\"").unwrap().congestion, None);
        assert_eq!(of("congestion = \"cubic\"").unwrap().congestion.as_deref(), Some("cubic"));
        assert_eq!(config.state, Path::new(DEFAULT_STATE));
        let env = Settings::of_env(|key| (key == "DRIFTLESS_LISTEN").then(|| "0.0.0.0:1".into()));
        let both = env.or(Settings {
            listen: Some("0.0.0.0:2".into()),
            log: Some("json".into()),
            ..Settings::default()
        });
        let config = both.resolve("x").unwrap();
        assert_eq!((config.listen.port(), config.log), (1, Format::Json));
        assert!(config.advertise.is_empty(), "every address is no address to be told");
        let nothing = Settings::of_file(Path::new("/nowhere/driftless.toml"), false).unwrap();
        assert_eq!(nothing, Settings::default());
        assert!(Settings::of_file(Path::new("/nowhere/driftless.toml"), true).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, says) in [
            ("lisen = \"x\"", "lisen"),
            ("listen = \"oslo\"", "listen"),
            ("name = \"a/b\"", "name"),
            ("name = \"\"", "name"),
            ("log = \"xml\"", "log"),
            ("congestion = \"\"", "congestion"),
            ("congestion = \"bbr cubic\"", "congestion"),
            ("admin = 7", "admin"),
            ("max_sites = 0", "max_sites"),
            ("name = \"a\"\nname = \"b\"", "duplicate"),
            ("[volume.data]\ntrash_keep = \"x\"", "volume.data: trash_keep"),
            ("[volume.data.link.b]\nbwlimit = \"x\"", "volume.data: link.b.bwlimit"),
            ("[volume.data]\nfilter_from = \"/nowhere/f\"", "/nowhere/f"),
            ("[volume.data]\ntrash = \"1d\"", "trash"),
        ] {
            let e = of(text).unwrap_err().to_string();
            assert!(e.contains(says), "{text}: {e}");
        }
    }
}
