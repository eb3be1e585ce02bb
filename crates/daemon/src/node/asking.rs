//! Questions that concern other sites: why a path is as it is there, and whether they hold what is here. And what is asked of a
//! volume's index while its replica runs.
//!
//! A question goes to all linked sites at once, and from them to those that only they are linked to; who was asked already is said
//! with it, so that it ends in any topology.

use super::commands::no_volume;
use super::{Shared, addresses, lock};
use crate::control::Answer;
use crate::link::{self, CONNECT_PATIENCE};
use crate::preface::{Request, Response};
use crate::status::{HeldAt, LinkState, SiteHeld, SiteWhy};
use driftless_index::StateDir;
use driftless_net::identity::PublicKey;
use driftless_node::api::PathText;
use driftless_node::control;
use driftless_node::query::{self, Explanation, VersionRow};
use driftless_node::replica::{Replica, ReplicaStatus};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Most sites that one question goes to.
const ASKED_MAX: usize = 256;
/// How long an answer from another site may take, besides what it waits for itself.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(8);
/// Local changes are recorded within this time after they were made, or the replica is that busy that what is recorded by then
/// counts.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// Events of changes made just now have come after this.
const EVENTS_COME_WITHIN: Duration = Duration::from_millis(100);
/// How often it is looked whether a site holds everything.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A replica that is busy answers within this time.
const SKIP_PATIENCE: Duration = Duration::from_secs(20);
/// Longest that one waits at another site's request.
const FLUSH_MAX_S: u64 = 24 * 3600;

/// A linked site, and how to ask it.
pub(super) struct Neighbour {
    pub(super) site: String,
    key: Option<PublicKey>,
    addresses: Vec<SocketAddr>,
    state: LinkState,
}

impl Shared {
    /// Asks the index of a volume whose replica runs here.
    pub(super) fn query(&self, volume: &str, request: &query::Request) -> Result<query::Response, Answer> {
        let root = {
            let inner = self.lock();
            inner.records.volumes.get(volume).ok_or_else(|| no_volume(volume))?.root()
        };
        let failed = |e: &dyn std::fmt::Display| {
            Answer::failed(
                format!("volume {volume} does not answer: {e}"),
                "driftless status says how it stands",
            )
        };
        let real = root.canonicalize().map_err(|e| failed(&e))?;
        let state = StateDir::at(self.state.join("volumes"));
        let replicas = state.replicas().map_err(|e| failed(&e))?;
        let found = replicas.into_iter().find(|r| r.root().is_ok_and(|r| r == real));
        let found = found.ok_or_else(|| failed(&"it has no index yet"))?;
        match control::ask(&found.control(), request).map_err(|e| failed(&e))? {
            query::Response::Failed(why) => Err(failed(&why)),
            response => Ok(response),
        }
    }

    fn replica_status(&self, volume: &str) -> Option<ReplicaStatus> {
        let inner = self.lock();
        let replica = lock(&inner.volumes.get(volume)?.replica);
        replica.as_ref().map(Replica::status)
    }

    pub(super) fn neighbours(&self, volume: &str) -> Vec<Neighbour> {
        let states: Vec<(String, LinkState)> = self
            .status()
            .volumes
            .into_iter()
            .filter(|v| v.name == volume)
            .flat_map(|v| v.links.into_iter().map(|l| (l.site, l.state)))
            .collect();
        let inner = self.lock();
        let neighbour = |(site, state): (String, LinkState)| {
            let known = inner.records.sites.get(&site);
            let key = known.and_then(|s| s.key());
            let addresses = known.map(|s| addresses(&s.addresses)).unwrap_or_default();
            Neighbour { site, key, addresses, state }
        };
        states.into_iter().map(neighbour).collect()
    }

    /// The volume's id, and this site's name.
    pub(super) fn names(&self, volume: &str) -> Option<(String, String)> {
        let inner = self.lock();
        Some((inner.records.volumes.get(volume)?.id.clone(), inner.records.name.clone()?))
    }

    /// The name of a volume here that a site may have.
    pub(super) fn name_for(&self, id: &str, site: &str) -> Option<String> {
        self.lock().records.volume_for(id, site).map(|(name, _)| name.to_owned())
    }

    fn ask_neighbour(
        &self,
        to: &Neighbour,
        request: &Request,
        patience: Duration,
    ) -> Result<Response, String> {
        let key = to.key.ok_or("its key is damaged")?;
        link::ask_site_for(&self.tls, &to.addresses, key, request, patience)
    }

    // ----- why

    /// What each site says of a path.
    pub(super) fn why(&self, volume: &str, path_hex: &str) -> Result<Answer, Answer> {
        let (_, own) = self.names(volume).ok_or_else(|| no_volume(volume))?;
        self.query(volume, &query::Request::Why { path_hex: path_hex.to_owned() })?;
        let mut found = self.why_from(volume, path_hex, &BTreeSet::from([own]));
        judge(&mut found);
        Ok(Answer::Why(found))
    }

    /// Asked by another site.
    pub(crate) fn why_for(
        &self,
        id: &str,
        site: &str,
        path_hex: &str,
        asked: &[String],
    ) -> Option<Vec<SiteWhy>> {
        let volume = self.name_for(id, site)?;
        Some(self.why_from(&volume, path_hex, &asked.iter().take(ASKED_MAX).cloned().collect()))
    }

    fn why_from(&self, volume: &str, path_hex: &str, asked: &BTreeSet<String>) -> Vec<SiteWhy> {
        let Some((id, own)) = self.names(volume) else { return Vec::new() };
        let here = self.query(volume, &query::Request::Why { path_hex: path_hex.to_owned() });
        let here = match here {
            Ok(query::Response::Why(why)) => SiteWhy::new(&own, Ok(*why)),
            Ok(_) => SiteWhy::new(&own, Err("its index answers something else".into())),
            Err(Answer::Failed { what, .. }) => SiteWhy::new(&own, Err(what)),
            Err(_) => SiteWhy::new(&own, Err("it does not answer".into())),
        };
        let mut neighbours = self.neighbours(volume);
        neighbours.retain(|n| !asked.contains(&n.site));
        let mut all = asked.clone();
        all.insert(own);
        all.extend(neighbours.iter().map(|n| n.site.clone()));
        let request =
            Request::Why { volume: id, path_hex: path_hex.to_owned(), asked: all.into_iter().collect() };
        let mut found = vec![here];
        std::thread::scope(|scope| {
            let asking: Vec<_> = neighbours
                .iter()
                .map(|n| {
                    let request = &request;
                    scope.spawn(move || (n, self.ask_if_up(n, request, ANSWER_PATIENCE)))
                })
                .collect();
            for thread in asking {
                // A panicked thread has said so on stderr.
                let Ok((neighbour, answer)) = thread.join() else { continue };
                match answer {
                    Ok(Response::Why(more)) => found.extend(more),
                    Ok(Response::Refused { why, .. }) => {
                        found.push(SiteWhy::unasked(&neighbour.site, neighbour.state, why));
                    }
                    Ok(_) => {
                        found.push(SiteWhy::unasked(
                            &neighbour.site,
                            neighbour.state,
                            "it answers something else",
                        ));
                    }
                    Err(why) => found.push(SiteWhy::unasked(&neighbour.site, neighbour.state, why)),
                }
            }
        });
        found.sort_by(|a, b| (&a.site, a.why.is_none()).cmp(&(&b.site, b.why.is_none())));
        // One that two sites cannot reach, or that only one of them can.
        found.dedup_by(|later, first| later.site == first.site);
        found
    }

    /// One whose link is down is not tried again for a question.
    pub(super) fn ask_if_up(
        &self,
        to: &Neighbour,
        request: &Request,
        patience: Duration,
    ) -> Result<Response, String> {
        match to.state {
            state if state.is_well() || state == LinkState::Stalled => {
                self.ask_neighbour(to, request, patience)
            }
            state => Err(format!("its link is {}", state.word())),
        }
    }

    // ----- flush

    /// Waits until sites hold everything that was changed here before now: those in `only`, or all there are.
    pub(super) fn flush(&self, volume: &str, only: Option<&str>, timeout_s: u64) -> Result<Answer, Answer> {
        let (_, own) = self.names(volume).ok_or_else(|| no_volume(volume))?;
        if let Some(site) = only
            && !self.neighbours(volume).iter().any(|n| n.site == site)
        {
            return Err(Answer::failed(
                format!("{volume} is not linked to {site}"),
                "driftless status shows its links",
            ));
        }
        let until = Instant::now() + Duration::from_secs(timeout_s.min(FLUSH_MAX_S));
        let held = self.flush_from(volume, &BTreeSet::from([own]), only, until);
        let waiting = self.replica_status(volume).map_or(0, |s| s.waiting);
        Ok(Answer::Flushed { held, waiting_here: waiting })
    }

    /// Asked by another site.
    pub(crate) fn flush_for(
        &self,
        id: &str,
        site: &str,
        asked: &[String],
        timeout_s: u64,
    ) -> Option<Vec<SiteHeld>> {
        let volume = self.name_for(id, site)?;
        let until = Instant::now() + Duration::from_secs(timeout_s.min(FLUSH_MAX_S));
        Some(self.flush_from(&volume, &asked.iter().take(ASKED_MAX).cloned().collect(), None, until))
    }

    fn flush_from(
        &self,
        volume: &str,
        asked: &BTreeSet<String>,
        only: Option<&str>,
        until: Instant,
    ) -> Vec<SiteHeld> {
        let Some((id, own)) = self.names(volume) else { return Vec::new() };
        let head = self.settled_head(volume, until);
        let mut neighbours = self.neighbours(volume);
        neighbours.retain(|n| !asked.contains(&n.site) && only.is_none_or(|site| n.site == site));
        let mut all = asked.clone();
        all.insert(own);
        all.extend(neighbours.iter().map(|n| n.site.clone()));
        let all: Vec<String> = all.into_iter().collect();
        let mut found = Vec::new();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = neighbours
                .iter()
                .map(|n| {
                    let (id, all) = (&id, &all);
                    scope.spawn(move || {
                        let first = self.wait_held(volume, &n.site, head, until);
                        let beyond = first.at == HeldAt::Held && only.is_none();
                        let mut held = vec![first];
                        if beyond {
                            held.extend(self.flush_beyond(n, id, all, until));
                        }
                        held
                    })
                })
                .collect();
            // A panicked thread has said so on stderr.
            waiting.into_iter().filter_map(|t| t.join().ok()).for_each(|held| found.extend(held));
        });
        found.sort_by(|a, b| a.site.cmp(&b.site).then(b.at.cmp(&a.at)));
        found
    }

    /// Those that only this neighbour is linked to.
    fn flush_beyond(&self, to: &Neighbour, id: &str, asked: &[String], until: Instant) -> Vec<SiteHeld> {
        let left = until.saturating_duration_since(Instant::now());
        let timeout_s = left.as_secs().max(1);
        let request = Request::Flush { volume: id.to_owned(), asked: asked.to_vec(), timeout_s };
        match self.ask_neighbour(to, &request, left + ANSWER_PATIENCE + CONNECT_PATIENCE) {
            Ok(Response::Flushed(held)) => held,
            // It holds everything itself, which was what it was asked for first.
            _ => Vec::new(),
        }
    }

    /// The last position of the feed when all changes made before now are recorded.
    fn settled_head(&self, volume: &str, until: Instant) -> u64 {
        let begun = Instant::now();
        std::thread::sleep(EVENTS_COME_WITHIN);
        loop {
            let status = self.replica_status(volume).unwrap_or_default();
            if status.idle || begun.elapsed() >= SETTLE_MAX || Instant::now() >= until {
                return status.standing.head;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn wait_held(&self, volume: &str, site: &str, head: u64, until: Instant) -> SiteHeld {
        loop {
            let state = self.neighbours(volume).into_iter().find(|n| n.site == site).map(|n| n.state);
            let standing = self.replica_status(volume).unwrap_or_default().standing;
            let replica = self.replica_at(volume, site);
            let peer = standing.peers.iter().find(|p| Some(format!("{:016x}", p.replica.0)) == replica);
            let waiting = peer.map_or(0, |p| p.waiting_there);
            if peer.is_some_and(|p| p.held >= head) {
                return SiteHeld { site: site.to_owned(), at: HeldAt::Held, waiting };
            }
            if Instant::now() >= until {
                let at =
                    if state.is_some_and(LinkState::is_well) { HeldAt::Behind } else { HeldAt::Unreachable };
                return SiteHeld { site: site.to_owned(), at, waiting };
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn replica_at(&self, volume: &str, site: &str) -> Option<String> {
        self.lock().records.volumes.get(volume)?.links.get(site)?.replica.clone()
    }

    /// Has what waits under a path, or an entry, not tried again.
    pub(super) fn skip(&self, volume: &str, what: &PathText) -> Result<Answer, Answer> {
        let replica = self.lock().volumes.get(volume).ok_or_else(|| no_volume(volume))?.replica.clone();
        let skipped = lock(&replica).as_ref().and_then(|replica| replica.skip(&what.bytes(), SKIP_PATIENCE));
        match skipped {
            None => Err(Answer::failed(
                format!("volume {volume} does not run, or does not answer"),
                "see driftless status",
            )),
            Some(0) => Err(Answer::failed(
                format!("nothing waits under {}", what.text),
                format!(
                    "driftless failures --volume {volume} --all lists what waits; name one of these paths"
                ),
            )),
            Some(n) => Ok(Answer::Done(format!(
                "{volume}: {} is not tried any more ({n} {}), until another version of it comes or driftless failures --retry",
                what.text,
                if n == 1 { "entry" } else { "entries" }
            ))),
        }
    }

    /// Has what waits tried at once.
    pub(super) fn retry(&self, volume: &str) -> Result<Answer, Answer> {
        let inner = self.lock();
        let running = inner.volumes.get(volume).ok_or_else(|| no_volume(volume))?;
        match lock(&running.replica).as_ref() {
            Some(replica) => replica.retry(),
            None => {
                return Err(Answer::failed(format!("volume {volume} does not run"), "see driftless status"));
            }
        }
        Ok(Answer::Done(format!("{volume}: what waits is tried now")))
    }
}

/// Says which sites have the newest version that anybody knows.
fn judge(found: &mut [SiteWhy]) {
    let versions =
        |why: &Explanation| why.claimants.iter().flat_map(|c| c.versions.clone()).collect::<Vec<_>>();
    let all: Vec<VersionRow> = found.iter().filter_map(|s| s.why.as_ref()).flat_map(versions).collect();
    // Who says that one was removed knows more than who still has it.
    let removed: BTreeSet<&str> = all.iter().filter(|v| !v.counts).map(|v| v.version.as_str()).collect();
    let count = all.iter().filter(|v| v.wins && !removed.contains(v.version.as_str()));
    let newest = count.map(|v| (v.made_ns, v.version.as_str())).max();
    for site in found.iter_mut() {
        let Some(why) = &site.why else { continue };
        site.newest = Some(match newest {
            Some((_, version)) => versions(why).iter().any(|v| v.on_disk && v.version == version),
            None if !removed.is_empty() => why.on_disk.is_none(),
            // Of what has no versions, as directories, being there is all there is.
            None => why.on_disk.is_some(),
        });
    }
}
