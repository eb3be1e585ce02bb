//! What a node remembers between runs: its name, volumes, sites, links and invitations. One JSON file, written beside and
//! renamed, so that a crash leaves the old or the new one.
//!
//! The functions that judge an invitation or a site's rights are pure: they take the time and give a value.

use crate::settings::{LinkSettings, VolumeSettings};
use crate::token::Secret;
use driftless_core::link::Role;
use driftless_net::identity::PublicKey;
use driftless_node::api::PathText;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The file in the state directory.
const FILE: &str = "node.json";
/// The version of its format.
const FORMAT: u32 = 1;
/// Longest file: thousands of sites and volumes.
const FILE_LEN_MAX: u64 = 16 << 20;
/// Most invitations that are open or remembered as used.
const INVITATIONS_MAX: usize = 256;
/// Used and expired invitations are remembered so long, to be told apart from wrong ones.
const INVITATION_KEPT_S: u64 = 30 * 24 * 3600;

/// See the module.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Records {
    format: u32,
    /// This site's name.
    pub(crate) name: Option<String>,
    /// Where other sites connect, if the configuration does not say.
    #[serde(default)]
    pub(crate) listen: Option<String>,
    #[serde(default)]
    pub(crate) sites: BTreeMap<String, Site>,
    #[serde(default)]
    pub(crate) volumes: BTreeMap<String, Volume>,
    #[serde(default)]
    invitations: Vec<Invitation>,
}

/// Another site.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Site {
    /// Its key, in hex.
    pub(crate) key: String,
    /// Where it says that it is.
    pub(crate) addresses: Vec<String>,
    /// Seconds since 1970.
    pub(crate) joined_s: u64,
}

impl Site {
    pub(crate) fn key(&self) -> Option<PublicKey> {
        self.key.parse().ok()
    }
}

/// A volume of which this node has a replica.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Volume {
    /// 128 bits in hex.
    pub(crate) id: String,
    pub(crate) root: PathText,
    /// It began here.
    pub(crate) first: bool,
    /// This replica makes no changes.
    #[serde(default)]
    pub(crate) follower: bool,
    /// By name of the other site. A site without a link may not have the volume.
    #[serde(default)]
    pub(crate) links: BTreeMap<String, Link>,
    /// As commands have set them.
    #[serde(default)]
    pub(crate) settings: VolumeSettings,
    /// Sites whose link was removed here: a link that they make is not taken by itself.
    #[serde(default)]
    pub(crate) declined: BTreeSet<String>,
    /// Nothing is taken from other sites before everything that this one has is here.
    #[serde(default)]
    pub(crate) seed_from: Option<String>,
}

impl Volume {
    pub(crate) fn id(&self) -> Option<u128> {
        u128::from_str_radix(&self.id, 16).ok()
    }

    pub(crate) fn root(&self) -> PathBuf {
        use std::os::unix::ffi::OsStringExt as _;
        std::ffi::OsString::from_vec(self.root.bytes()).into()
    }

    pub(crate) fn role(&self) -> Role {
        if self.follower { Role::Follower } else { Role::Writer }
    }
}

/// What is wanted of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    #[default]
    Running,
    Paused,
    Stopped,
}

/// Which replicas of a link make changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Both.
    #[default]
    ActiveActive,
    /// The other site follows, or, at the other site, this one does.
    ActivePassive,
}

/// What a site that is admitted may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Admission {
    /// Active-passive: it follows.
    pub mode: Mode,
    /// It may pass on what others change.
    pub may_relay: bool,
    /// It may admit, change and remove members.
    pub may_invite: bool,
}

impl Admission {
    /// It may do everything that its role allows.
    pub fn full(mode: Mode) -> Admission {
        Admission { mode, may_relay: true, may_invite: true }
    }
}

/// A link of a volume to a site.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) mode: Mode,
    #[serde(default)]
    pub(crate) wanted: Wanted,
    pub(crate) created_s: u64,
    /// The replica there, once met, in hex.
    #[serde(default)]
    pub(crate) replica: Option<String>,
    /// As commands have set them, for what is sent to the other site.
    #[serde(default)]
    pub(crate) settings: LinkSettings,
    /// Patterns that the other site is told to begin with when it gets the volume.
    #[serde(default)]
    pub(crate) filter: Option<String>,
    /// The other site, a member, has made it; nobody here has.
    #[serde(default)]
    pub(crate) by_member: bool,
    /// The site is to be admitted so, once it is known here who the members are.
    #[serde(default)]
    pub(crate) admit: Option<Admission>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Invitation {
    digest: String,
    expires_s: u64,
    /// Names of volumes that come with it.
    volumes: Vec<String>,
    #[serde(default)]
    mode: Mode,
    /// The site may not pass on what others change.
    #[serde(default)]
    no_relay: bool,
    /// The site may not admit others.
    #[serde(default)]
    no_invite: bool,
    #[serde(default)]
    used_by: Option<String>,
}

/// Why an invitation is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NotInvited {
    #[error("the invitation is not known here")]
    Unknown,
    #[error("the invitation has expired")]
    Expired,
    #[error("the invitation was used by {0}")]
    Used(String),
    #[error("a site named {0} with another key is known here; remove it first, or join under another name")]
    NameTaken(String),
    #[error(
        "there are {0} sites already, the limit of the site that was asked (max_sites in its configuration)"
    )]
    TooMany(usize),
    #[error("the name or an address of the joining site makes no sense")]
    Nonsense,
}

impl Records {
    /// What is remembered; nothing yet if there is no file.
    pub(crate) fn load(state: &Path) -> io::Result<Records> {
        let path = state.join(FILE);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Records { format: FORMAT, ..Records::default() });
            }
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
        let wrong =
            |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let records: Records = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        match records.format {
            FORMAT => Ok(records),
            other => Err(wrong(format!("format {other} is not known to this version"))),
        }
    }

    /// Writes it down. Durable when this returns.
    pub(crate) fn save(&self, state: &Path) -> io::Result<()> {
        let (new, path) = (state.join("node.json.new"), state.join(FILE));
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(state)?.sync_all()
    }

    /// The site with this key.
    pub(crate) fn site_of(&self, key: &PublicKey) -> Option<&str> {
        self.sites.iter().find(|(_, site)| site.key() == Some(*key)).map(|(name, _)| name.as_str())
    }

    /// The volume with this id, if `site` may have it: it has a link.
    pub(crate) fn volume_for(&self, id: &str, site: &str) -> Option<(&str, &Volume)> {
        let found = self.volumes.iter().find(|(_, v)| v.id == id && v.links.contains_key(site))?;
        Some((found.0, found.1))
    }

    /// Notes an invitation.
    pub(crate) fn invite(
        &mut self,
        secret: &Secret,
        volumes: &[String],
        admission: Admission,
        expires_s: u64,
        now_s: u64,
    ) -> Result<(), String> {
        self.invitations.retain(|i| i.expires_s.saturating_add(INVITATION_KEPT_S) > now_s);
        if self.invitations.len() >= INVITATIONS_MAX {
            return Err(format!(
                "{INVITATIONS_MAX} invitations are remembered; wait until some are 30 days old"
            ));
        }
        if let Some(unknown) = volumes.iter().find(|v| !self.volumes.contains_key(*v)) {
            return Err(format!("there is no volume {unknown}"));
        }
        let digest = secret.digest();
        self.invitations.push(Invitation {
            digest,
            expires_s,
            volumes: volumes.to_vec(),
            mode: admission.mode,
            no_relay: !admission.may_relay,
            no_invite: !admission.may_invite,
            used_by: None,
        });
        Ok(())
    }

    /// Whether a site may join by an invitation, and its place in the list. Changes nothing.
    fn judge(
        &self,
        secret: &Secret,
        (name, key): (&str, PublicKey),
        max_sites: usize,
        now_s: u64,
    ) -> Result<usize, NotInvited> {
        if crate::config::check_name(name).is_err() || self.name.as_deref() == Some(name) {
            return Err(NotInvited::Nonsense);
        }
        let digest = secret.digest();
        let known = self.sites.get(name);
        if known.is_some_and(|site| site.key() != Some(key)) {
            return Err(NotInvited::NameTaken(name.into()));
        }
        // This one counts too.
        if known.is_none() && self.sites.len() + 1 >= max_sites {
            return Err(NotInvited::TooMany(self.sites.len() + 1));
        }
        let at = self.invitations.iter().position(|i| i.digest == digest).ok_or(NotInvited::Unknown)?;
        let invitation = &self.invitations[at];
        match &invitation.used_by {
            Some(by) if *by != key.to_string() => Err(NotInvited::Used(by[..16.min(by.len())].to_owned())),
            None if invitation.expires_s <= now_s => Err(NotInvited::Expired),
            _ => Ok(at),
        }
    }

    /// What a site would have if it joined by an invitation: volumes, and whether it would follow in them.
    pub(crate) fn preview(
        &self,
        secret: &Secret,
        who: (&str, PublicKey),
        max_sites: usize,
        now_s: u64,
    ) -> Result<(Vec<String>, Mode), NotInvited> {
        let invitation = &self.invitations[self.judge(secret, who, max_sites, now_s)?];
        Ok((invitation.volumes.clone(), invitation.mode))
    }

    /// A site joins by an invitation: it is known from now on, and linked to the volumes that come with it. Joining once more
    /// with the same key changes nothing but addresses: the answer may have been lost.
    pub(crate) fn join(
        &mut self,
        secret: &Secret,
        (name, key): (&str, PublicKey),
        addresses: Vec<String>,
        max_sites: usize,
        now_s: u64,
    ) -> Result<Vec<String>, NotInvited> {
        if addresses.len() > crate::token::ADDRESSES_MAX
            || addresses.iter().any(|a| a.parse::<std::net::SocketAddr>().is_err())
        {
            return Err(NotInvited::Nonsense);
        }
        let at = self.judge(secret, (name, key), max_sites, now_s)?;
        let invitation = &mut self.invitations[at];
        invitation.used_by = Some(key.to_string());
        let (volumes, mode) = (invitation.volumes.clone(), invitation.mode);
        let admission =
            Admission { mode, may_relay: !invitation.no_relay, may_invite: !invitation.no_invite };
        self.sites.insert(name.into(), Site { key: key.to_string(), addresses, joined_s: now_s });
        for volume in &volumes {
            if let Some(volume) = self.volumes.get_mut(volume) {
                let link = Link { mode, created_s: now_s, admit: Some(admission), ..Link::default() };
                volume.links.entry(name.into()).or_insert(link);
                volume.declined.remove(name);
            }
        }
        Ok(volumes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_volume() -> Records {
        let mut records = Records { format: FORMAT, name: Some("oslo".into()), ..Records::default() };
        let volume = Volume {
            id: "7".into(),
            root: PathText::new(b"/srv/\xff"),
            first: true,
            follower: false,
            links: BTreeMap::new(),
            settings: VolumeSettings::default(),
            declined: BTreeSet::new(),
            seed_from: None,
        };
        records.volumes.insert("data".into(), volume);
        records
    }

    #[test]
    fn an_invitation_is_used_once_and_expires() {
        let mut records = with_volume();
        let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let secrets: Vec<Secret> = (0..3).map(|_| Secret::random().unwrap()).collect();
        for secret in &secrets[..2] {
            records.invite(secret, &["data".into()], Admission::full(Mode::ActiveActive), 100, 0).unwrap();
        }
        assert!(
            records
                .invite(&secrets[2], &["other".into()], Admission::full(Mode::ActiveActive), 100, 0)
                .is_err()
        );
        let joined = || Ok(vec!["data".to_owned()]);
        let at = || vec!["192.0.2.7:7440".to_owned()];
        assert_eq!(records.join(&secrets[2], ("bergen", a), at(), 9, 50), Err(NotInvited::Unknown));
        assert_eq!(records.join(&secrets[0], ("oslo", a), at(), 9, 50), Err(NotInvited::Nonsense));
        assert_eq!(
            records.join(&secrets[0], ("bergen", a), vec!["x".into()], 9, 50),
            Err(NotInvited::Nonsense)
        );
        assert!(records.volume_for("7", "bergen").is_none());
        assert_eq!(records.join(&secrets[0], ("bergen", a), at(), 9, 50), joined());
        assert_eq!(records.volume_for("7", "bergen").unwrap().0, "data");
        assert_eq!(records.join(&secrets[0], ("bergen", a), at(), 9, 500), joined(), "once more");
        assert!(matches!(records.join(&secrets[0], ("tromso", b), at(), 9, 50), Err(NotInvited::Used(_))));
        assert_eq!(
            records.join(&secrets[1], ("bergen", b), at(), 9, 50),
            Err(NotInvited::NameTaken("bergen".into()))
        );
        assert_eq!(records.join(&secrets[1], ("tromso", b), at(), 2, 50), Err(NotInvited::TooMany(2)));
        assert_eq!(records.join(&secrets[1], ("tromso", b), at(), 9, 100), Err(NotInvited::Expired));
        assert_eq!((records.site_of(&a), records.site_of(&b)), (Some("bergen"), None));
    }

    #[test]
    fn records_survive() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Records::load(dir.path()).unwrap().name, None);
        let records = with_volume();
        records.save(dir.path()).unwrap();
        let back = Records::load(dir.path()).unwrap();
        assert_eq!(back, records);
        assert_eq!(back.volumes["data"].root().as_os_str().as_encoded_bytes(), b"/srv/\xff");
        for bad in ["", "{", "{\"format\":9,\"name\":null}"] {
            fs::write(dir.path().join(FILE), bad).unwrap();
            assert!(Records::load(dir.path()).is_err(), "{bad}");
        }
    }
}
