//! What commands ask of a node.

use super::{APPROVED_FOR, Shared, addresses, lock, now_s, settings};
use crate::config::check_name;
use crate::control::{Answer, Ask, LinkVerb};
use crate::link;
use crate::preface::{Request, Response, VolumeInfo};
use crate::records::{self, Mode, Volume, Wanted};
use crate::settings::{LinkSettings, VolumeSettings};
use crate::token::{NoToken, Secret, Token};
use driftless_node::api::{OnRollback, PathText, SessionError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

impl Shared {
    pub(super) fn answer(&self, ask: Ask) -> Answer {
        let done = match ask {
            Ask::Status => Ok(Answer::Status(Box::new(self.status()))),
            Ask::Invite { volumes, mode, expires_s } => self.invite(&volumes, mode, expires_s),
            Ask::Join { token, volumes } => self.join(&token, &volumes),
            Ask::RemoveSite { name } => self.remove_site(&name),
            Ask::AddVolume { name, root, from, settings } => {
                self.add_volume(&name, root, from.as_deref(), settings)
            }
            Ask::RemoveVolume { name } => self.remove_volume(&name),
            Ask::Approve { name, heal } => self.approve(&name, heal),
            Ask::Why { volume, path_hex } => self.why(&volume, &path_hex),
            Ask::Flush { volume, to, timeout_s } => self.flush(&volume, to.as_deref(), timeout_s),
            Ask::Retry { volume } => self.retry(&volume),
            Ask::SetVolume { name, settings } => self.set_volume(&name, settings),
            Ask::SetLink { volume, to, settings } => self.set_link(&volume, &to, settings),
            Ask::CreateLink { volume, to, mode, settings, filter } => {
                self.create_link(&volume, &to, mode, (settings, filter))
            }
            Ask::Link { volume, to, verb } => self.change_link(&volume, &to, verb),
        };
        done.unwrap_or_else(|failed| failed)
    }

    fn invite(&self, volumes: &[String], mode: Mode, expires_s: u64) -> Result<Answer, Answer> {
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
            records
                .invite(&secret, volumes, mode, now.saturating_add(expires_s), now)
                .map_err(|what| Answer::failed(what, "driftless volume list shows what there is"))?;
            Ok(records.name.clone().unwrap_or_default())
        })?;
        Ok(Answer::Token(Token { name, addresses, key: self.key, secret }.to_string()))
    }

    fn join(&self, token: &str, wanted: &[(String, PathText)]) -> Result<Answer, Answer> {
        let token: Token =
            token.parse().map_err(|e: NoToken| Answer::failed(e.to_string(), "copy the whole line"))?;
        if token.key == self.key {
            return Err(Answer::failed(
                "this invitation was given by this very site",
                "use it at another site",
            ));
        }
        let own = self.lock().records.name.clone().unwrap_or_default();
        let taken = self.lock().records.sites.get(&token.name).is_some_and(|s| s.key() != Some(token.key));
        if taken || token.name == own {
            return Err(Answer::failed(
                format!("a site named {} is known here already", token.name),
                "remove it first (driftless site remove), or give this site another name",
            ));
        }
        let addresses = lock(&self.advertise).iter().map(ToString::to_string).collect();
        let request = Request::Join { secret: token.secret.to_string(), name: own, addresses };
        let response = link::ask_site(&self.tls, &token.addresses, token.key, &request).map_err(|why| {
            Answer::failed(
                format!("{} cannot be reached: {why}", token.name),
                "check that driftless serve runs there and that its port can be reached from here",
            )
        })?;
        let (name, volumes) = match response {
            Response::Joined { name, volumes } if name == token.name => (name, volumes),
            Response::Refused { why, .. } => {
                return Err(Answer::failed(
                    format!("{} refuses: {why}", token.name),
                    "ask for a new invitation there: driftless site invite",
                ));
            }
            _ => {
                return Err(Answer::failed(
                    "the other site answers something else",
                    "install the same version",
                ));
            }
        };
        self.change(|records| {
            let addresses = token.addresses.iter().map(ToString::to_string).collect();
            let site = records::Site { key: token.key.to_string(), addresses, joined_s: now_s() };
            records.sites.insert(name.clone(), site);
            Ok(())
        })?;
        let mut text = format!("joined {name}");
        for (volume, root) in wanted {
            let Some(info) = volumes.iter().find(|v| v.name == *volume) else {
                return Err(Answer::failed(
                    format!("{text}, but the invitation is not for a volume {volume}"),
                    format!("link it there: driftless link create {volume} --to <this site>"),
                ));
            };
            self.have_volume(info, root.clone(), &name, VolumeSettings::default())?;
            text += &format!("; volume {volume} comes to {}", root.text);
        }
        let others: Vec<&str> =
            volumes.iter().map(|v| v.name.as_str()).filter(|v| !wanted.iter().any(|(w, _)| w == v)).collect();
        if !others.is_empty() {
            text += &format!("; to have {}: driftless volume add NAME DIR --from {name}", others.join(", "));
        }
        Ok(Answer::Done(text))
    }

    fn remove_site(&self, name: &str) -> Result<Answer, Answer> {
        self.change(|records| {
            if records.sites.remove(name).is_none() {
                return Err(Answer::failed(
                    format!("no site {name} is known"),
                    "driftless site list shows who is",
                ));
            }
            records.volumes.values_mut().for_each(|v| _ = v.links.remove(name));
            Ok(())
        })?;
        Ok(Answer::Done(format!(
            "{name} is forgotten, and all links to it. What it has it keeps; what it tells others they may pass on"
        )))
    }

    fn add_volume(
        &self,
        name: &str,
        root: PathText,
        from: Option<&str>,
        settings: VolumeSettings,
    ) -> Result<Answer, Answer> {
        check_name(name).map_err(|what| Answer::failed(what, "give the volume another name"))?;
        settings
            .check()
            .map_err(|what| Answer::failed(what, "write it as driftless volume add --help shows"))?;
        let Some(from) = from else {
            let id = getrandom::u64().and_then(|a| Ok((u128::from(a) << 64) | u128::from(getrandom::u64()?)));
            let id =
                id.map_err(|e| Answer::failed(format!("the system gives no random numbers: {e}"), ""))?;
            self.check_root(&root, None)?;
            let id = format!("{:032x}", id.max(1));
            let links = BTreeMap::new();
            self.record_volume(name, Volume { id, root, first: true, follower: false, links, settings })?;
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
                self.have_volume(&info, root, from, settings)?;
                Ok(Answer::Done(format!("volume {name} comes from {from}")))
            }
            Ok(Response::Refused { why, .. }) => Err(Answer::failed(
                format!("{from} refuses: {why}"),
                format!("link it there first: driftless link create {name} --to <this site>"),
            )),
            Ok(_) => Err(Answer::failed("the other site answers something else", "install the same version")),
            Err(why) => Err(Answer::failed(
                format!("{from} cannot be reached: {why}"),
                "run it again when it can: which volume is meant is asked there",
            )),
        }
    }

    /// A volume that another site has, linked to that site.
    fn have_volume(
        &self,
        info: &VolumeInfo,
        root: PathText,
        from: &str,
        settings: VolumeSettings,
    ) -> Result<(), Answer> {
        let id = u128::from_str_radix(&info.id, 16).ok().filter(|id| *id != 0 && info.id.len() <= 32);
        let Some(id) = id else {
            return Err(Answer::failed(
                "the other site names a volume that cannot be",
                "install the same version",
            ));
        };
        check_name(&info.name).map_err(|what| Answer::failed(what, "the other site names it so"))?;
        self.check_root(&root, Some(id))?;
        let mode = if info.follower { Mode::ActivePassive } else { Mode::ActiveActive };
        let link = records::Link { mode, created_s: now_s(), ..records::Link::default() };
        let links = BTreeMap::from([(from.to_owned(), link)]);
        let told = VolumeSettings { filter: info.filter.clone(), ..VolumeSettings::default() };
        told.check()
            .map_err(|what| Answer::failed(what, format!("correct it at {from}: driftless link create")))?;
        let (id, settings) = (format!("{id:032x}"), settings.or(told));
        let volume = Volume { id, root, first: false, follower: info.follower, links, settings };
        self.record_volume(&info.name, volume)
    }

    /// What is found wrong with a directory now need not be found later in the log.
    fn check_root(&self, root: &PathText, id: Option<u128>) -> Result<(), Answer> {
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

    fn record_volume(&self, name: &str, volume: Volume) -> Result<(), Answer> {
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
        self.change(|records| match records.volumes.remove(name) {
            Some(_) => Ok(()),
            None => Err(no_volume(name)),
        })?;
        Ok(Answer::Done(format!("volume {name} is forgotten here; its files stay, here and everywhere")))
    }

    fn approve(&self, name: &str, heal: bool) -> Result<Answer, Answer> {
        let mut inner = self.lock();
        let running = inner.volumes.get_mut(name).ok_or_else(|| no_volume(name))?;
        let how = if heal { OnRollback::Heal } else { OnRollback::Accept };
        running.approved = Some((how, Instant::now() + APPROVED_FOR));
        running.reopen = true;
        let minutes = APPROVED_FOR.as_secs() / 60;
        Ok(Answer::Done(match heal {
            true => format!(
                "{name}: newer versions come back from the other sites; its guards are off for {minutes} minutes"
            ),
            false => format!("{name}: what was held is done; its guards are off for {minutes} minutes"),
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
            if known.links.contains_key(to) {
                return Err(Answer::failed(
                    format!("{volume} is linked to {to} already"),
                    "driftless status shows how it stands",
                ));
            }
            let link =
                records::Link { mode, created_s: now_s(), settings, filter, ..records::Link::default() };
            known.links.insert(to.to_owned(), link);
            Ok(())
        })?;
        Ok(Answer::Done(format!(
            "{volume} is linked to {to}; there, unless it has it already: driftless volume add {volume} DIR --from <this site>"
        )))
    }

    fn change_link(&self, volume: &str, to: &str, verb: LinkVerb) -> Result<Answer, Answer> {
        self.change(|records| {
            let known = records.volumes.get_mut(volume).ok_or_else(|| no_volume(volume))?;
            let none = || Answer::failed(format!("{volume} is not linked to {to}"), "driftless link create");
            let link = known.links.get_mut(to).ok_or_else(none)?;
            match verb {
                LinkVerb::Start | LinkVerb::Resume => link.wanted = Wanted::Running,
                LinkVerb::Pause => link.wanted = Wanted::Paused,
                LinkVerb::Stop => link.wanted = Wanted::Stopped,
                LinkVerb::Remove => _ = known.links.remove(to),
            }
            Ok(())
        })?;
        Ok(Answer::Done(match verb {
            LinkVerb::Start | LinkVerb::Resume => format!("the link of {volume} to {to} runs"),
            LinkVerb::Pause => format!("the link of {volume} to {to} is paused"),
            LinkVerb::Stop => format!("the link of {volume} to {to} is stopped"),
            LinkVerb::Remove => format!(
                "the link of {volume} to {to} is removed; {to} may not have {volume} from here any more"
            ),
        }))
    }
}

pub(super) fn no_volume(name: &str) -> Answer {
    Answer::failed(format!("there is no volume {name} here"), "driftless status shows what there is")
}
