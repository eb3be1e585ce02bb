//! Whole-volume verbs: who writes, and what ends where. Each says what it does before it does what cannot be undone.

use super::membership::{no_site, put};
use super::{Shared, lock};
use crate::control::Answer;
use crate::link::LinkThread;
use crate::log;
use crate::records;
use driftless_core::ReplicaId;
use driftless_core::link::Role;
use driftless_core::membership::{Action, Key, Member, Rights, View};
use driftless_net::identity::PublicKey;
use driftless_node::api::Level;
use driftless_node::replica::{Replica, ReplicaStatus};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked whether what a switchover waits for has come.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A volume as these verbs see it.
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) id: u128,
    pub(super) view: Arc<View>,
    pub(super) me: Key,
    /// Replicas that were met at the other end of a link, by the key of the site there.
    met: Vec<(Key, ReplicaId)>,
}

impl Subject {
    fn member(&self, site: &str) -> Result<(Key, Member), Answer> {
        let found = self.view.at_site(site).map(|(key, member)| (*key, member.clone()));
        found.ok_or_else(|| {
            Answer::failed(
                format!("{site} is no member of volume {}", self.name),
                "driftless site list shows who is",
            )
        })
    }

    fn own(&self) -> Result<Member, Answer> {
        self.view.members.get(&self.me).cloned().ok_or_else(|| {
            Answer::failed(
                format!("this site is no member of volume {}", self.name),
                "have a member invite it: driftless site invite --for VOLUME there",
            )
        })
    }

    /// The replicas of a member: those that it has named, and the one that was met at its site.
    pub(super) fn replicas_of(&self, key: Key) -> BTreeSet<ReplicaId> {
        let met = self.met.iter().filter(|(k, r)| *k == key && !self.view.replicas.contains_key(r));
        self.view.replicas_of(key).chain(met.map(|(_, r)| *r)).collect()
    }

    /// The change that gives a member a role.
    fn role(key: Key, member: &Member, role: Role) -> Action {
        let rights = Rights { role, ..member.rights };
        put(&member.site, PublicKey(key.0), Vec::new(), rights)
    }
}

impl Shared {
    fn subject(&self, name: &str) -> Result<Subject, Answer> {
        self.note_replicas();
        let none = || {
            Answer::failed(format!("there is no volume {name} here"), "driftless status shows what there is")
        };
        let inner = self.lock();
        let volume = inner.records.volumes.get(name).ok_or_else(none)?;
        let id = volume.id().ok_or_else(none)?;
        let met = volume.links.iter().filter_map(|(site, link)| {
            let key = inner.records.sites.get(site)?.key()?;
            let replica = u64::from_str_radix(link.replica.as_deref()?, 16).ok()?;
            Some((Key(key.0), ReplicaId(replica)))
        });
        let met = met.collect();
        Ok(Subject { name: name.to_owned(), id, view: self.members.view(id), me: self.members.own(), met })
    }

    /// `volume role`: one member's role, at once.
    pub(super) fn set_role(&self, name: &str, site: &str, follower: bool) -> Result<Answer, Answer> {
        let subject = self.subject(name)?;
        self.may_govern(&subject.view, name)?;
        let (key, member) = subject.member(site)?;
        let role = if follower { Role::Follower } else { Role::Writer };
        let word = if follower { "follows" } else { "makes changes" };
        if member.rights.role == role {
            return Ok(Answer::Done(format!("{site} {word} already")));
        }
        self.sign(subject.id, vec![Subject::role(key, &member, role)])?;
        Ok(Answer::Done(format!("{site} {word} in {name} from when it hears of it")))
    }

    /// `switchover`: another site writes instead of this one, once it holds everything.
    pub(super) fn switchover(&self, name: &str, to: &str, timeout: Duration) -> Result<Answer, Answer> {
        let subject = self.subject(name)?;
        self.may_govern(&subject.view, name)?;
        let (own, (key, member)) = (subject.own()?, subject.member(to)?);
        if own.rights.role != Role::Writer || key == subject.me {
            return Err(Answer::failed(
                format!("this site does not write in {name}, or is the one to write"),
                "run switchover at the site that writes now; if that one is gone: driftless failover",
            ));
        }
        let until = Instant::now() + timeout;
        self.wait_all_held(&subject, to, until)?;
        self.order_role(name, Role::Follower)?;
        let drained = self
            .wait_until(until, || self.seen_of(name).and_then(|s| s.role) == Some(Role::Follower))
            .then_some(())
            .ok_or_else(|| late(name, "the tree of this site is not recorded yet"))
            .and_then(|()| self.wait_all_held(&subject, to, until));
        if let Err(e) = drained {
            self.order_role(name, Role::Writer)?;
            return Err(e);
        }
        let actions =
            vec![Subject::role(subject.me, &own, Role::Follower), Subject::role(key, &member, Role::Writer)];
        if let Err(e) = self.sign(subject.id, actions) {
            self.order_role(name, Role::Writer)?;
            return Err(e);
        }
        log::line(Level::Info, &format!("switched over to {to}"), &[("volume", name)]);
        Ok(Answer::Done(format!(
            "{to} holds all of {name} and writes now; this site follows: what is changed here from now on is listed as drift"
        )))
    }

    fn wait_all_held(&self, subject: &Subject, to: &str, until: Instant) -> Result<(), Answer> {
        let held = || {
            let Some(status) = self.seen_of(&subject.name) else { return false };
            let linked = self.link_of(&subject.name, to);
            let peer = status.standing.peers.iter().find(|p| p.link.is_some() && p.link == linked);
            status.idle && peer.is_some_and(|p| p.behind_since_ns.is_none())
        };
        match self.wait_until(until, held) {
            true => Ok(()),
            false => Err(late(&subject.name, &format!("{to} does not hold everything yet"))),
        }
    }

    /// `failover`: this site writes, and a site that is gone does not any more. Without `yes` it only says what that means.
    pub(super) fn failover(&self, name: &str, from: Option<&str>, yes: bool) -> Result<Answer, Answer> {
        let subject = self.subject(name)?;
        self.may_govern(&subject.view, name)?;
        let own = subject.own()?;
        let (old, member) = self.deposed(&subject, from)?;
        let known = self.gather(&subject, old)?;
        let cuts = known.cuts(&subject, old);
        if cuts.is_empty() {
            return Err(Answer::failed(
                format!(
                    "it is not known here which replica is that of {}, so nothing of it could be cut off",
                    member.site
                ),
                "it has never been linked to this site, or to one that this site has heard of: driftless site remove, if it is gone",
            ));
        }
        let loss = self.loss(&subject, &member.site, &cuts, &known);
        let said = loss.text();
        if !yes {
            return Ok(Answer::Plan(Box::new(loss)));
        }
        let mut actions = vec![Action::Cut(cuts), Subject::role(old, &member, Role::Follower)];
        if own.rights.role != Role::Writer {
            actions.push(Subject::role(subject.me, &own, Role::Writer));
        }
        self.sign(subject.id, actions)?;
        log::line(Level::Warn, &format!("failed over from {}: {said}", member.site), &[("volume", name)]);
        Ok(Answer::Done(format!("{said}\nthis site writes in {name} now")))
    }

    /// Who is failed over: the one that is named, or the only other writer.
    fn deposed(&self, subject: &Subject, from: Option<&str>) -> Result<(Key, Member), Answer> {
        if let Some(site) = from {
            let (key, member) = subject.member(site)?;
            return match key == subject.me {
                true => Err(Answer::failed(
                    "this site cannot fail over from itself",
                    "run it where writing is to go on",
                )),
                false => Ok((key, member)),
            };
        }
        let writers =
            subject.view.members.iter().filter(|(k, m)| **k != subject.me && m.rights.role == Role::Writer);
        let writers: Vec<_> = writers.collect();
        match writers[..] {
            [(key, member)] => Ok((*key, member.clone())),
            _ => {
                let names: Vec<&str> = writers.iter().map(|(_, m)| m.site.as_str()).collect();
                Err(Answer::failed(
                    format!(
                        "other sites that write in {}: {}",
                        subject.name,
                        if names.is_empty() { "none".into() } else { names.join(", ") }
                    ),
                    "say which one is gone: --from SITE",
                ))
            }
        }
    }

    /// `rejoin`: what this site has beyond its Cut is set aside, and it goes on from what the others have.
    pub(super) fn rejoin(&self, name: &str) -> Result<Answer, Answer> {
        let subject = self.subject(name)?;
        let replica = self.seen_of(name).and_then(|s| s.replica);
        let by_me = |r: &ReplicaId| subject.view.replicas.get(r) == Some(&subject.me) || Some(*r) == replica;
        if !subject.view.cuts.keys().any(by_me) {
            return Err(Answer::failed(
                format!("this site was not failed over in {name}: there is nothing to rejoin"),
                "if it was, it has not heard of it yet: it needs a link to a member that has",
            ));
        }
        let mut inner = self.lock();
        let running = inner.volumes.get_mut(name).ok_or_else(|| no_site(name))?;
        running.set_aside = true;
        running.reopen = true;
        drop(inner);
        self.members.wake();
        Ok(Answer::Done(format!(
            "{name}: what was changed here beyond the Cut is being set aside (driftless quarantine list DIR shows it); this site then \
             goes on from what the others have"
        )))
    }

    /// `site remove`: for good, whether the site can be reached or not.
    pub(super) fn remove_site(&self, name: &str) -> Result<Answer, Answer> {
        let key =
            self.lock().records.sites.get(name).and_then(records::Site::key).ok_or_else(|| no_site(name))?;
        let key = Key(key.0);
        let volumes: Vec<String> = self.lock().records.volumes.keys().cloned().collect();
        let mut text = format!("{name} is removed");
        for volume in volumes {
            let subject = self.subject(&volume)?;
            if !subject.view.members.contains_key(&key) {
                continue;
            }
            self.may_govern(&subject.view, &volume)?;
            let cuts = self.gather(&subject, key)?.cuts(&subject, key);
            let seen = self.members.document(subject.id).map_or(0, |d| d.last_seq(key));
            self.sign(subject.id, vec![Action::Remove { key, seen, cuts: cuts.clone() }])?;
            let last: Vec<String> = cuts.iter().map(|(_, n)| n.to_string()).collect();
            text += &format!(
                "; from {volume}, of whose changes by it those up to number {} stay",
                last.join(", ")
            );
        }
        self.change(|records| {
            records.sites.remove(name);
            records.volumes.values_mut().for_each(|v| _ = v.links.remove(name));
            Ok(())
        })?;
        Ok(Answer::Done(format!(
            "{text}. What it has on its disks it keeps; its key is good for nothing any more"
        )))
    }

    // ----- looking at what runs

    fn wait_until(&self, until: Instant, is_so: impl Fn() -> bool) -> bool {
        while !is_so() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }

    fn order_role(&self, name: &str, role: Role) -> Result<(), Answer> {
        let replica = self.lock().volumes.get(name).map(|running| running.replica.clone());
        let ordered = replica.and_then(|r| lock(&r).as_ref().map(|r| r.set_role(role)));
        ordered.ok_or_else(|| late(name, "the volume does not run here"))
    }

    fn seen_of(&self, name: &str) -> Option<ReplicaStatus> {
        let replica = self.lock().volumes.get(name)?.replica.clone();
        let guard = lock(&replica);
        guard.as_ref().map(Replica::status)
    }

    pub(super) fn link_of(&self, volume: &str, site: &str) -> Option<driftless_node::replica::LinkId> {
        self.lock().volumes.get(volume)?.links.get(site).map(LinkThread::seen)?.connected
    }

    pub(super) fn down_since(&self, volume: &str, site: &str) -> Option<Instant> {
        self.lock().volumes.get(volume)?.links.get(site).map(LinkThread::seen)?.down_since
    }
}

fn late(name: &str, what: &str) -> Answer {
    Answer::failed(
        format!("{what}: {name} was not switched over, and nothing has changed"),
        "driftless status shows what is on its way; stop what writes here and run it again, or give --timeout",
    )
}
