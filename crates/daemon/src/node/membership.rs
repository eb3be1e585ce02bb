//! What follows for this node from the membership of its volumes: which sites it knows, what its replicas may do, whom it
//! answers; and what this node says of itself and of those that it admits.

use super::{Shared, lock, now_ms};
use crate::control::Answer;
use crate::link::Order;
use crate::log;
use crate::members::heir;
use crate::records::{self, Admission, Link, Mode, Records, Volume, Wanted};
use driftless_core::ReplicaId;
use driftless_core::link::Role;
use driftless_core::membership::{Action, Key, Member, Rights, View};
use driftless_net::identity::PublicKey;
use driftless_node::api::{Level, OnRollback};
use driftless_node::replica::Replica;
use std::collections::BTreeSet;
use std::time::Instant;

fn rights(admission: Admission) -> Rights {
    let role = if admission.mode == Mode::ActivePassive { Role::Follower } else { Role::Writer };
    Rights { role, may_relay: admission.may_relay, may_invite: admission.may_invite }
}

/// May this site have the volume, by its membership?
pub(super) enum Standing {
    /// It is a member.
    Member,
    /// It was one.
    Removed,
    /// It never was, or nothing is known of the members.
    Unknown,
}

pub(super) fn standing(view: &View, key: PublicKey) -> Standing {
    let key = Key(key.0);
    if view.members.contains_key(&key) {
        Standing::Member
    } else if view.removed.get(&key).is_some_and(|r| r.now.is_none()) {
        Standing::Removed
    } else {
        Standing::Unknown
    }
}

/// Who a key belongs or belonged to.
pub(super) fn site_named(view: &View, key: &Key) -> String {
    let member = view.members.get(key).map(|m| m.site.clone());
    let member = member.or_else(|| view.removed.get(key).map(|r| r.site.clone()));
    member.unwrap_or_else(|| PublicKey(key.0).short())
}

impl Shared {
    /// Does what follows from changed memberships, and says what this node has to say.
    pub(super) fn tend_members(&self) {
        let mut told = BTreeSet::new();
        self.found_and_introduce();
        let mut lines = Vec::new();
        let changed = self.change(|records| {
            let me = self.members.own();
            let names: Vec<String> = records.volumes.keys().cloned().collect();
            for name in names {
                let Some(id) = records.volumes.get(&name).and_then(Volume::id) else { continue };
                let view = self.members.view(id);
                take_view(records, &name, &view, me, self.max_sites(), &mut lines);
                if view.members.contains_key(&me) {
                    self.admit_late(records, &name);
                }
            }
            Ok(())
        });
        // Tried again by the next round.
        let _ = changed;
        for (volume, line) in lines {
            log::line(Level::Info, &line, &[("volume", &volume)]);
        }
        let mut inner = self.lock();
        let inner = &mut *inner;
        for (name, volume) in &inner.records.volumes {
            let Some(running) = inner.volumes.get_mut(name) else { continue };
            let Some(document) = volume.id().and_then(|id| self.members.document_bytes(id)) else { continue };
            if running.members.as_ref() != Some(&document) {
                running.members = Some(document);
                told.insert(name.clone());
            }
            let view = self.members.view(volume.id().unwrap_or(0));
            if running.role.is_some_and(|role| role != volume.role()) {
                let order = |replica: &Replica| replica.set_role(volume.role());
                running.role = with_replica(running, order).map(|()| volume.role());
            }
            if running.cuts.as_ref().is_some_and(|cuts| *cuts != view.cuts) {
                // It sees at its start whether it keeps them.
                (running.cuts, running.reopen) = (None, true);
            }
            let own = |r: &ReplicaId| view.replicas.get(r) == Some(&self.members.own());
            let replica = with_replica(running, |r| r.status().replica).flatten();
            if running.set_aside && replica.is_some_and(|r| own(&r) && !view.cuts.contains_key(&r)) {
                // It goes on as another replica now.
                running.set_aside = false;
            }
            let news = view.approvals.iter().skip(running.approvals.unwrap_or(view.approvals.len()));
            if let Some((by, _, heal)) = news.last() {
                let how = if *heal { OnRollback::Heal } else { OnRollback::Accept };
                running.approved = Some((how, Instant::now() + super::APPROVED_FOR));
                running.reopen = true;
                let text = format!("what the guards hold was approved by {}", site_named(&view, by));
                log::line(Level::Info, &text, &[("volume", name)]);
            }
            running.approvals = Some(view.approvals.len());
        }
        for name in told {
            let links = inner.volumes.get(&name).map(|r| &r.links);
            links.into_iter().flatten().for_each(|(_, link)| link.order(Order::Tell));
        }
    }

    /// A volume that began here gets its first member; this node says which replica is its own and where it is.
    fn found_and_introduce(&self) {
        let addresses: Vec<String> = lock(&self.advertise).iter().map(ToString::to_string).collect();
        let me = self.members.own();
        let mut due = Vec::new();
        {
            let inner = self.lock();
            for (name, volume) in &inner.records.volumes {
                let Some(id) = volume.id() else { continue };
                let view = self.members.view(id);
                let mut actions = Vec::new();
                if view.members.is_empty() && view.removed.is_empty() && volume.first {
                    let site = inner.records.name.clone().unwrap_or_default();
                    actions.push(Action::Found { site });
                    // Sites that were linked before there were memberships.
                    for (site, link) in &volume.links {
                        let Some(known) = inner.records.sites.get(site) else { continue };
                        let Some(key) = known.key() else { continue };
                        let all = Admission::full(link.mode);
                        actions.push(put(site, key, known.addresses.clone(), rights(all)));
                    }
                } else if !view.members.contains_key(&me) {
                    continue;
                }
                let replica =
                    inner.volumes.get(name).and_then(|r| lock(&r.replica).as_ref()?.status().replica);
                if let Some(replica) = replica.filter(|r| !view.replicas.contains_key(r)) {
                    actions.push(Action::Replica(replica));
                }
                let known = view.members.get(&me).map(|m| &m.addresses);
                if !addresses.is_empty() && known != Some(&addresses) {
                    actions.push(Action::At(addresses.clone()));
                }
                if !actions.is_empty() {
                    due.push((name.clone(), id, actions));
                }
            }
        }
        for (name, id, actions) in due {
            if let Err(e) = self.members.change(id, actions) {
                let text = format!("the membership cannot be written down: {e}");
                log::line(Level::Error, &text, &[("volume", &name)]);
            }
        }
    }

    /// Admits a site to a volume as its link says, if it is known who the members are; else that is done later.
    pub(super) fn admit(&self, records: &mut Records, volume: &str, site: &str) -> Result<(), Answer> {
        let known = records.sites.get(site).ok_or_else(|| no_site(site))?;
        let key = known.key().ok_or_else(|| no_site(site))?;
        let addresses = known.addresses.clone();
        let Some(record) = records.volumes.get_mut(volume) else { return Ok(()) };
        let id = record.id().unwrap_or(0);
        let Some(link) = record.links.get_mut(site) else { return Ok(()) };
        let view = self.members.view(id);
        let Some(how) = link.admit.filter(|_| !view.members.is_empty()) else { return Ok(()) };
        if view.members.contains_key(&Key(key.0)) {
            link.admit = None;
            return Ok(());
        }
        if let Standing::Removed = standing(&view, key) {
            return Err(Answer::failed(
                format!("the key of {site} was removed from volume {volume} for good"),
                "have that site make another: driftless site rekey --fresh there, then invite it again",
            ));
        }
        self.may_govern(&view, volume)?;
        if view.at_site(site).is_some() {
            return Err(Answer::failed(
                format!("volume {volume} has a member named {site} already, with another key"),
                "give one of the two another name, or remove the other first",
            ));
        }
        self.sign(id, vec![put(site, key, addresses, rights(how))])?;
        link.admit = None;
        Ok(())
    }

    /// Admits those who joined before it was known here who the members are.
    fn admit_late(&self, records: &mut Records, name: &str) {
        let Some(volume) = records.volumes.get(name) else { return };
        let open = volume.links.iter().filter(|(_, link)| link.admit.is_some()).map(|(site, _)| site.clone());
        for site in open.collect::<Vec<String>>() {
            if let Err(Answer::Failed { what, .. }) = self.admit(records, name, &site) {
                log::line(
                    Level::Warn,
                    &format!("not admitted: {what}"),
                    &[("volume", name), ("site", &site)],
                );
                if let Some(link) = records.volumes.get_mut(name).and_then(|v| v.links.get_mut(&site)) {
                    link.admit = None;
                }
            }
        }
    }

    /// Fails unless this site may admit, change and remove members.
    pub(super) fn may_govern(&self, view: &View, volume: &str) -> Result<(), Answer> {
        match view.members.get(&self.members.own()) {
            Some(member) if member.rights.may_invite => Ok(()),
            _ => Err(Answer::failed(
                format!("this site may not admit, change or remove members of volume {volume}"),
                "do it at a site that may: driftless site list shows which",
            )),
        }
    }

    /// Signs changes and writes them down.
    pub(super) fn sign(&self, id: u128, actions: Vec<Action>) -> Result<(), Answer> {
        self.members.change(id, actions).map_err(|e| {
            Answer::failed(
                format!("the membership cannot be written down: {e}"),
                "free some space in the state directory; nothing was changed",
            )
        })
    }

    /// The greatest number of sites that this one knows, itself included.
    pub(super) fn max_sites(&self) -> usize {
        self.max_sites.load(std::sync::atomic::Ordering::Relaxed)
    }
}

pub(super) fn put(site: &str, key: PublicKey, addresses: Vec<String>, rights: Rights) -> Action {
    Action::Put { key: Key(key.0), site: site.to_owned(), rights, addresses }
}

pub(super) fn no_site(name: &str) -> Answer {
    Answer::failed(format!("no site {name} is known"), "driftless site list shows who is")
}

/// Brings the records in line with what a membership says.
fn take_view(
    records: &mut Records,
    name: &str,
    view: &View,
    me: Key,
    max_sites: usize,
    lines: &mut Vec<(String, String)>,
) {
    let own = records.name.clone().unwrap_or_default();
    let mut say = |text: String| lines.push((name.to_owned(), text));
    for (key, member) in view.members.iter().filter(|(key, _)| **key != me) {
        if member.site == own || crate::config::check_name(&member.site).is_err() {
            continue; // it cannot be told from this one, or by anybody
        }
        let count = records.sites.len() + 1;
        match records.sites.get_mut(&member.site) {
            None if count >= max_sites => {}
            None => {
                say(format!("{} is a member, key {}", member.site, PublicKey(key.0).short()));
                records.sites.insert(member.site.clone(), of_member(*key, member));
            }
            Some(site) => {
                let known = site.key().map(|k| Key(k.0));
                if known.is_some_and(|old| {
                    view.removed.get(&old).is_some_and(|r| heir(view, r.now) == Some(*key))
                }) {
                    say(format!("{} has another key now: {}", member.site, PublicKey(key.0).short()));
                    site.key = PublicKey(key.0).to_string();
                }
            }
        }
    }
    let Some(volume) = records.volumes.get_mut(name) else { return };
    if let Some(member) = view.members.get(&me) {
        let follower = member.rights.role == Role::Follower;
        if volume.follower != follower {
            say(format!("this site {} now", if follower { "follows" } else { "makes changes" }));
            volume.follower = follower;
        }
    }
    let sites = &records.sites;
    volume.links.retain(|site, _| {
        let key = sites.get(site).and_then(records::Site::key);
        let gone = key.is_some_and(|key| matches!(standing(view, key), Standing::Removed));
        if gone {
            say(format!("{site} was removed"));
        }
        !gone
    });
}

fn of_member(key: Key, member: &Member) -> records::Site {
    let fine = |a: &&String| a.parse::<std::net::SocketAddr>().is_ok();
    let addresses = member.addresses.iter().filter(fine).cloned().collect();
    records::Site { key: PublicKey(key.0).to_string(), addresses, joined_s: now_ms() / 1000 }
}

/// A link that a member has made from its side.
pub(super) fn linked_by_member(member: &Member, created_s: u64) -> Link {
    let mode = if member.rights.role == Role::Follower { Mode::ActivePassive } else { Mode::ActiveActive };
    Link { mode, wanted: Wanted::Running, created_s, by_member: true, ..Link::default() }
}

/// The replica of a running volume, if it runs.
pub(super) fn with_replica<T>(running: &super::Running, f: impl FnOnce(&Replica) -> T) -> Option<T> {
    lock(&running.replica).as_ref().map(f)
}
