//! What other sites ask of this node: to join, what a volume is, to be linked.

use super::membership::{Standing, linked_by_member, site_named, standing};
use super::{Shared, addresses, now_s};
use crate::control::Answer;
use crate::link::{Open, Order};
use crate::listen::{NO_SUCH_VOLUME, Refusal};
use crate::log;
use crate::preface::{self, MemberInfo, Response, VolumeInfo};
use crate::records::{self, Mode, Records, Wanted};
use crate::token::Secret;
use driftless_core::link::Role;
use driftless_core::membership::Key;
use driftless_net::identity::PublicKey;
use driftless_node::api::Level;
use driftless_node::query::{self, Cursor};
use std::net::SocketAddr;

/// Members that a joining site is told: more than a volume has.
const MEMBERS_TOLD_MAX: usize = 256;

impl Shared {
    pub(crate) fn site_of(&self, key: &PublicKey) -> Option<String> {
        self.lock().records.site_of(key).map(str::to_owned)
    }

    pub(crate) fn take_join(
        &self,
        secret: &str,
        name: &str,
        key: PublicKey,
        addresses: Vec<String>,
    ) -> Result<Response, String> {
        let secret: Secret = secret.parse().map_err(|_| "the invitation is damaged".to_owned())?;
        let joined = self.change(|records| {
            let volumes = records
                .join(&secret, (name, key), addresses, self.max_sites(), now_s())
                .map_err(|e| Answer::failed(e.to_string(), String::new()))?;
            // Before the site is told that it has joined.
            volumes.iter().try_for_each(|volume| self.admit(records, volume, name))?;
            let infos = volumes.iter().filter_map(|v| self.with_members(info(records, v, name)?)).collect();
            Ok((records.name.clone().unwrap_or_default(), infos))
        });
        match joined {
            Ok((own, volumes)) => {
                log::line(Level::Info, &format!("site {name} has joined, key {}", key.short()), &[]);
                Ok(Response::Joined { name: own, volumes })
            }
            Err(Answer::Failed { what, .. }) => Err(what),
            Err(_) => Err("it cannot be done now".into()),
        }
    }

    pub(crate) fn volume_info(&self, name: &str, site: &str) -> Option<VolumeInfo> {
        let inner = self.lock();
        let volume = inner.records.volumes.get(name)?;
        let view = self.members.view(volume.id()?);
        let member = view.members.get(&Key(inner.records.sites.get(site)?.key()?.0));
        let linked = info(&inner.records, name, site);
        match member {
            Some(member) => {
                let follower = member.rights.role == Role::Follower;
                let filter = volume.links.get(site).and_then(|l| l.filter.clone());
                let (name, id) = (name.to_owned(), volume.id.clone());
                self.with_members(VolumeInfo { name, id, follower, filter, members: Vec::new() })
            }
            None if view.members.is_empty() => linked,
            None => None,
        }
    }

    /// Says who has the volume, too.
    fn with_members(&self, info: VolumeInfo) -> Option<VolumeInfo> {
        let view = self.members.view(u128::from_str_radix(&info.id, 16).ok()?);
        let members = view.members.iter().take(MEMBERS_TOLD_MAX).map(|(key, member)| MemberInfo {
            site: member.site.clone(),
            key: PublicKey(key.0).to_string(),
            addresses: member.addresses.clone(),
        });
        Some(VolumeInfo { members: members.collect(), ..info })
    }

    /// What would be if a site joined; nothing is changed.
    pub(crate) fn preview(
        &self,
        secret: &str,
        who: (&str, PublicKey),
        volume: Option<&str>,
        after: Option<Cursor>,
    ) -> Result<Response, String> {
        let secret: Secret = secret.parse().map_err(|_| "the invitation is damaged".to_owned())?;
        let (name, infos) = {
            let inner = self.lock();
            let records = &inner.records;
            let judged = records.preview(&secret, who, self.max_sites(), now_s());
            let (volumes, mode) = judged.map_err(|e| e.to_string())?;
            let infos = volumes.iter().filter_map(|name| {
                let info = VolumeInfo {
                    name: name.clone(),
                    id: records.volumes.get(name)?.id.clone(),
                    follower: mode == Mode::ActivePassive,
                    filter: None,
                    members: Vec::new(),
                };
                self.with_members(info)
            });
            (records.name.clone().unwrap_or_default(), infos.collect::<Vec<_>>())
        };
        let page = match volume {
            None => None,
            Some(volume) if infos.iter().any(|i| i.name == volume) => {
                let failed = |answer| match answer {
                    Answer::Failed { what, .. } => what,
                    _ => "it cannot be done now".to_owned(),
                };
                match self.query(volume, &query::Request::Listing { after }).map_err(failed)? {
                    query::Response::Listing(page) => Some(page),
                    _ => return Err("its index answers something else".into()),
                }
            }
            Some(volume) => return Err(format!("the invitation is not for a volume {volume}")),
        };
        Ok(Response::Preview { name, volumes: infos, page })
    }

    /// A key that is not known says that it has taken the place of one that is.
    pub(crate) fn take_heir(&self, key: PublicKey, volume: &str, document: &str) -> Result<(), String> {
        let id = u128::from_str_radix(volume, 16).map_err(|_| NO_SUCH_VOLUME.to_owned())?;
        let bytes = preface::document_bytes(document).ok_or("its document is damaged")?;
        // Of a volume that is not here nothing is known, and the answer is the same.
        self.members.learn_of_heir(id, &bytes, Key(key.0)).map_err(|e| e.to_string())?;
        log::line(Level::Info, &format!("a site has another key now: {}", key.short()), &[]);
        Ok(())
    }

    /// What shows that this node's key has taken another's place, for a member.
    pub(crate) fn succession_for(&self, volume: &str, site: &str) -> Option<String> {
        let id = u128::from_str_radix(volume, 16).ok()?;
        let key = self.lock().records.sites.get(site)?.key()?;
        self.members.view(id).members.get(&Key(key.0))?;
        preface::document_hex(&self.members.succession(id)?)
    }

    /// A site wants to bring a volume up to date: where to hand its connection.
    pub(crate) fn accept_link(
        &self,
        id: &str,
        site: &str,
        told: Vec<String>,
    ) -> Result<impl FnOnce(Box<Open>) + use<>, Refusal> {
        self.note_addresses(site, &told);
        self.take_linked(id, site)?;
        let inner = self.lock();
        let Some((name, volume)) = inner.records.volume_for(id, site) else {
            return Err(no_such_volume());
        };
        let now = |why: &str| Refusal { why: why.into(), for_now: true };
        match volume.links.get(site).map(|l| l.wanted) {
            Some(Wanted::Running) => {}
            Some(Wanted::Paused) => return Err(now("the link is paused at the other site")),
            _ => return Err(now("the link is stopped at the other site")),
        }
        let running = inner.volumes.get(name);
        let Some(link) = running.and_then(|r| r.links.get(site)) else {
            return Err(now("the volume is being started at the other site"));
        };
        if link.goes_first_now() {
            return Err(now("the other site is connecting itself"));
        }
        let orders = link.orders();
        // A thread that has ended takes nothing; the connection is dropped, and made again.
        Ok(move |open| _ = orders.send(Order::Take(open)))
    }

    /// Judges by the membership whether a site may have a volume; a member's own link is one here too.
    fn take_linked(&self, id: &str, site: &str) -> Result<(), Refusal> {
        let (view, key, linked, name) = {
            let inner = self.lock();
            let Some((name, volume)) = inner.records.volumes.iter().find(|(_, v)| v.id == id) else {
                return Err(no_such_volume());
            };
            let key =
                inner.records.sites.get(site).and_then(records::Site::key).ok_or_else(no_such_volume)?;
            let view = self.members.view(volume.id().unwrap_or(0));
            let linked = volume.links.contains_key(site) || volume.declined.contains(site);
            (view, key, linked, name.clone())
        };
        match standing(&view, key) {
            Standing::Removed => {
                let by = view.removed.get(&Key(key.0)).map_or_else(String::new, |r| site_named(&view, &r.by));
                let why = format!(
                    "this site was removed from volume {name} by {by}: what it has it keeps, what it \
                                   changes nobody takes; to belong to it again it needs another key and an invitation"
                );
                return Err(Refusal { why, for_now: false });
            }
            // Nobody has founded it: whoever is linked may have it.
            Standing::Unknown if view.members.is_empty() => return Ok(()),
            Standing::Unknown => return Err(no_such_volume()),
            Standing::Member if linked => return Ok(()),
            Standing::Member => {}
        }
        let Some(member) = view.members.get(&Key(key.0)) else { return Ok(()) };
        let made = self.change(|records| {
            if let Some(volume) = records.volumes.get_mut(&name) {
                volume.links.entry(site.to_owned()).or_insert_with(|| linked_by_member(member, now_s()));
            }
            Ok(())
        });
        log::line(Level::Info, "a member has linked itself", &[("volume", &name), ("site", site)]);
        self.members.wake();
        // What cannot be written down now is tried again with the next connection.
        made.map_err(|_| Refusal { why: "it cannot be done now".into(), for_now: true })
    }

    /// A site that has moved says where it is now.
    fn note_addresses(&self, site: &str, told: &[String]) {
        let fine = !told.is_empty()
            && told.len() <= crate::token::ADDRESSES_MAX
            && told.iter().all(|a| a.parse::<SocketAddr>().is_ok());
        if fine {
            {
                let inner = self.lock();
                if inner.records.sites.get(site).is_none_or(|s| s.addresses == told) {
                    return;
                }
                for link in inner.volumes.values().filter_map(|running| running.links.get(site)) {
                    link.order(Order::Moved(addresses(told)));
                }
            }
            // What cannot be written down is told again by the next connection.
            let _ = self.change(|records| {
                if let Some(site) = records.sites.get_mut(site) {
                    site.addresses = told.to_vec();
                }
                Ok(())
            });
        }
    }
}

fn no_such_volume() -> Refusal {
    Refusal { why: NO_SUCH_VOLUME.into(), for_now: false }
}

/// What a site that may have a volume is told of it.
fn info(records: &Records, name: &str, site: &str) -> Option<VolumeInfo> {
    let volume = records.volumes.get(name)?;
    let link = volume.links.get(site)?;
    // A follower that is followed makes no changes that could be followed: its followers follow the same writers.
    let follower = link.mode == Mode::ActivePassive;
    let (name, id, filter) = (name.to_owned(), volume.id.clone(), link.filter.clone());
    Some(VolumeInfo { name, id, follower, filter, members: Vec::new() })
}
