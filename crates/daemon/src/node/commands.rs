//! What commands ask of a node.

use super::{APPROVED_FOR, Shared, addresses, lock, now_ms, now_s, settings};
use crate::config::check_name;
use crate::control::{Answer, Ask, LinkVerb};
use crate::link;
use crate::preface::{Request, Response};
use crate::records::{self, Admission, Mode, Volume, Wanted};
use crate::settings::{LinkSettings, VolumeSettings};
use crate::token::{Secret, Token};
use driftless_core::link::Role;
use driftless_core::membership::Action;
use driftless_node::api::{OnRollback, PathText, SessionError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A command waits no longer than this, in seconds.
const TIMEOUT_MAX_S: u64 = 24 * 3600;

impl Shared {
    pub(super) fn answer(&self, ask: Ask) -> Answer {
        let done = match ask {
            Ask::Status => Ok(Answer::Status(Box::new(self.status()))),
            Ask::Invite { volumes, admission, expires_s } => self.invite(&volumes, admission, expires_s),
            Ask::Join { token, volumes, seed_from } => self.join(&token, &volumes, seed_from.as_deref()),
            Ask::Preview { token, volume, after } => self.preview_join(&token, volume, after),
            Ask::RemoveSite { name } => self.remove_site(&name),
            Ask::Rekey { fresh } => self.rekey(fresh),
            Ask::Role { volume, site, follower } => self.set_role(&volume, &site, follower),
            Ask::Switchover { volume, to, timeout_s } => {
                self.switchover(&volume, &to, Duration::from_secs(timeout_s.min(TIMEOUT_MAX_S)))
            }
            Ask::Failover { volume, from, yes } => self.failover(&volume, from.as_deref(), yes),
            Ask::Rejoin { volume } => self.rejoin(&volume),
            Ask::AddVolume { name, root, from, seed_from, settings } => {
                self.add_volume(&name, root, (from.as_deref(), seed_from.as_deref()), settings)
            }
            Ask::RemoveVolume { name } => self.remove_volume(&name),
            Ask::Approve { name, heal } => self.approve(&name, heal),
            Ask::Why { volume, path_hex } => self.why(&volume, &path_hex),
            Ask::Flush { volume, to, timeout_s } => self.flush(&volume, to.as_deref(), timeout_s),
            Ask::Retry { volume } => self.retry(&volume),
            Ask::Skip { volume, what } => self.skip(&volume, &what),
            Ask::SetVolume { name, settings } => self.set_volume(&name, settings),
            Ask::SetLink { volume, to, settings } => self.set_link(&volume, &to, settings),
            Ask::CreateLink { volume, to, mode, settings, filter } => {
                self.create_link(&volume, &to, mode, (settings, filter))
            }
            Ask::Link { volume, to, verb } => self.change_link(&volume, &to, verb),
        };
        done.unwrap_or_else(|failed| failed)
    }

    fn invite(&self, volumes: &[String], admission: Admission, expires_s: u64) -> Result<Answer, Answer> {
        let addresses = lock(&self.advertise).clone();
        if addresses.is_empty() {
            return Err(Answer::failed(
                "it is not known at which address other sites reach this one",
                "set advertise in the configuration, or give --advertise to driftless serve",
            ));
        }
        let secret = Secret::random().map_err(|e| Answer::failed(e, "see the message"))?;
        let now = now_s();
        let name = self.change(|records| {
            for volume in volumes.iter().filter_map(|v| Some((v, records.volumes.get(v)?.id()?))) {
                let view = self.members.view(volume.1);
                if !view.members.is_empty() {
                    self.may_govern(&view, volume.0)?;
                }
            }
            if records.sites.len() + 1 >= self.max_sites() {
                return Err(self.too_many(records.sites.len() + 1));
            }
            records
                .invite(&secret, volumes, admission, now.saturating_add(expires_s), now)
                .map_err(|what| Answer::failed(what, "driftless volume list shows what there is"))?;
            Ok(records.name.clone().unwrap_or_default())
        })?;
        Ok(Answer::Token(Token { name, addresses, key: self.key, secret }.to_string()))
    }

    fn add_volume(
        &self,
        name: &str,
        root: PathText,
        (from, seed_from): (Option<&str>, Option<&str>),
        settings: VolumeSettings,
    ) -> Result<Answer, Answer> {
        check_name(name).map_err(|what| Answer::failed(what, "give the volume another name"))?;
        settings
            .check()
            .map_err(|what| Answer::failed(what, "write it as driftless volume add --help shows"))?;
        let Some(from) = from else {
            if seed_from.is_some() {
                return Err(Answer::failed(
                    "a volume that begins here is taken from no other site",
                    "name the site that has it, too: --from SITE",
                ));
            }
            let id = getrandom::u64().and_then(|a| Ok((u128::from(a) << 64) | u128::from(getrandom::u64()?)));
            let id =
                id.map_err(|e| Answer::failed(format!("the system gives no random numbers: {e}"), ""))?;
            self.check_root(&root, None)?;
            let id = format!("{:032x}", id.max(1));
            let links = BTreeMap::new();
            let declined = BTreeSet::new();
            let seed_from = None;
            let volume =
                Volume { id, root, first: true, follower: false, links, settings, declined, seed_from };
            self.record_volume(name, volume)?;
            return Ok(Answer::Done(format!("volume {name} begins here")));
        };
        let site = self.lock().records.sites.get(from).cloned();
        let Some((key, at)) = site.and_then(|s| Some((s.key()?, addresses(&s.addresses)))) else {
            return Err(Answer::failed(
                format!("no site {from} is known"),
                "join it first: driftless site join",
            ));
        };
        let asked = link::ask_site(&self.tls, &at, key, &Request::Volume { name: name.to_owned() });
        match asked {
            Ok(Response::Volume(info)) => {
                let first = self.seed(std::slice::from_ref(&info), &[name], seed_from)?;
                self.have_volume(&info, root, (from, first), settings)?;
                Ok(Answer::Done(format!("volume {name} comes from {}", seed_from.unwrap_or(from))))
            }
            Ok(Response::Refused { why, .. }) => Err(Answer::failed(
                format!("{from} refuses: {why}"),
                format!("link it there first: driftless link create {name} --to <this site>"),
            )),
            Ok(_) => Err(other_version()),
            Err(why) => Err(Answer::failed(
                format!("{from} cannot be reached: {why}"),
                "run it again when it can: which volume is meant is asked there",
            )),
        }
    }

    /// What is found wrong with a directory now need not be found later in the log.
    pub(super) fn check_root(&self, root: &PathText, id: Option<u128>) -> Result<(), Answer> {
        use std::os::unix::ffi::OsStringExt as _;
        let path = PathBuf::from(std::ffi::OsString::from_vec(root.bytes()));
        let wrong = |e: SessionError| Answer::failed(e.what, e.advice);
        let real = driftless_node::roots::check_root(&path).map_err(wrong)?;
        for (name, volume) in &self.lock().records.volumes {
            let Ok(other) = volume.root().canonicalize() else { continue };
            if driftless_node::roots::check_pair(&real, &other).is_err() {
                return Err(Answer::failed(
                    format!(
                        "{} and {}, the directory of volume {name}, overlap",
                        real.display(),
                        other.display()
                    ),
                    "name a directory of its own",
                ));
            }
        }
        match driftless_node::replica::volume_of(&real) {
            Some(known) if Some(known) != id => Err(Answer::failed(
                format!("{} is kept in sync as another volume already", real.display()),
                "end that and remove `.driftless` in it; it is then taken as it is, and no file is touched by that",
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn record_volume(&self, name: &str, volume: Volume) -> Result<(), Answer> {
        self.change(|records| {
            match records.volumes.get_mut(name) {
                // Had from one more site.
                Some(known) if known.id == volume.id && !volume.first => known.links.extend(volume.links),
                Some(_) => {
                    return Err(Answer::failed(
                        format!("there is another volume {name} already"),
                        "give this one another name, or remove that one first",
                    ));
                }
                None => _ = records.volumes.insert(name.to_owned(), volume),
            }
            Ok(())
        })
    }

    fn remove_volume(&self, name: &str) -> Result<Answer, Answer> {
        let mut gone = None;
        self.change(|records| match records.volumes.remove(name) {
            Some(volume) => {
                gone = volume.id();
                Ok(())
            }
            None => Err(no_volume(name)),
        })?;
        if let Some(id) = gone {
            // A file that stays is of no harm: its volume is not served.
            let _ = self.members.forget(id);
        }
        Ok(Answer::Done(format!("volume {name} is forgotten here; its files stay, here and everywhere")))
    }

    /// Here at once, at all other members when they hear of it.
    fn approve(&self, name: &str, heal: bool) -> Result<Answer, Answer> {
        let id = self.lock().records.volumes.get(name).ok_or_else(|| no_volume(name))?.id().unwrap_or(0);
        let view = self.members.view(id);
        let member = view.members.get(&self.members.own());
        let everywhere = member.is_some_and(|m| m.rights.role == Role::Writer);
        if everywhere {
            self.sign(id, vec![Action::Approve { heal, at_ms: now_ms() }])?;
        } else {
            let mut inner = self.lock();
            let running = inner.volumes.get_mut(name).ok_or_else(|| no_volume(name))?;
            let how = if heal { OnRollback::Heal } else { OnRollback::Accept };
            running.approved = Some((how, Instant::now() + APPROVED_FOR));
            running.reopen = true;
        }
        let minutes = APPROVED_FOR.as_secs() / 60;
        let place = if everywhere {
            "everywhere"
        } else {
            "here (this site makes no changes, so it approves for itself only)"
        };
        Ok(Answer::Done(match heal {
            true => format!(
                "{name}: newer versions come back from the other sites; its guards are off for {minutes} minutes, {place}"
            ),
            false => {
                format!("{name}: what was held is done; its guards are off for {minutes} minutes, {place}")
            }
        }))
    }

    fn create_link(
        &self,
        volume: &str,
        to: &str,
        mode: Mode,
        (settings, filter): (LinkSettings, Option<String>),
    ) -> Result<Answer, Answer> {
        settings::check_link(&settings, filter.as_deref())?;
        self.change(|records| {
            if !records.sites.contains_key(to) {
                return Err(Answer::failed(
                    format!("no site {to} is known"),
                    "invite it (driftless site invite), or join it (driftless site join)",
                ));
            }
            let known = records.volumes.get_mut(volume).ok_or_else(|| no_volume(volume))?;
            // One that the other site has made meanwhile becomes this one's own.
            let theirs = known.links.get(to).cloned();
            if theirs.as_ref().is_some_and(|link| !link.by_member) {
                return Err(Answer::failed(
                    format!("{volume} is linked to {to} already"),
                    "driftless status shows how it stands",
                ));
            }
            let admit = Some(Admission::full(mode));
            let created_s = now_s();
            let replica = theirs.and_then(|link| link.replica);
            let new = records::Link::default();
            let link = records::Link { mode, created_s, settings, filter, admit, replica, ..new };
            known.links.insert(to.to_owned(), link);
            known.declined.remove(to);
            self.admit(records, volume, to)
        })?;
        Ok(Answer::Done(format!(
            "{volume} is linked to {to}; there, unless it has it already: driftless volume add {volume} DIR --from <this site>"
        )))
    }

    fn change_link(&self, volume: &str, to: &str, verb: LinkVerb) -> Result<Answer, Answer> {
        // Once it is not connected it could not be seen any more which replica is there.
        self.note_replicas();
        self.change(|records| {
            let known = records.volumes.get_mut(volume).ok_or_else(|| no_volume(volume))?;
            let none = || Answer::failed(format!("{volume} is not linked to {to}"), "driftless link create");
            let link = known.links.get_mut(to).ok_or_else(none)?;
            match verb {
                LinkVerb::Start | LinkVerb::Resume => link.wanted = Wanted::Running,
                LinkVerb::Pause => link.wanted = Wanted::Paused,
                LinkVerb::Stop => link.wanted = Wanted::Stopped,
                LinkVerb::Remove => {
                    known.links.remove(to);
                    known.declined.insert(to.to_owned());
                }
            }
            Ok(())
        })?;
        if !matches!(verb, LinkVerb::Start | LinkVerb::Resume) {
            let link = self.lock().volumes.get_mut(volume).and_then(|running| running.links.remove(to));
            // Without the lock: it ends with what is on its way. When the command is done, nothing goes over it any more.
            drop(link);
        }
        Ok(Answer::Done(match verb {
            LinkVerb::Start | LinkVerb::Resume => format!("the link of {volume} to {to} runs"),
            LinkVerb::Pause => format!("the link of {volume} to {to} is paused"),
            LinkVerb::Stop => format!("the link of {volume} to {to} is stopped"),
            LinkVerb::Remove => format!(
                "the link of {volume} to {to} is removed; it stays a member, and has {volume} from others: to end that, \
                 driftless site remove {to}"
            ),
        }))
    }
}

pub(super) fn other_version() -> Answer {
    Answer::failed("the other site answers something else", "install the same version")
}

pub(super) fn no_volume(name: &str) -> Answer {
    Answer::failed(format!("there is no volume {name} here"), "driftless status shows what there is")
}
