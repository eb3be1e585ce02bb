//! What may be lost with a site that is gone: what is known of its replicas here and at every member that can be asked, directly or
//! through others, against what it has announced.

use super::asking::ANSWER_PATIENCE;
use super::roles::Subject;
use super::{Shared, lock};
use crate::control::Answer;
use crate::preface::{Request, Response};
use crate::status::{Loss, LostPath, PathVersion, ReplicaLoss, SiteKnows};
use driftless_core::ReplicaId;
use driftless_core::membership::Key;
use driftless_node::api::PathText;
use driftless_node::query;
use driftless_node::replica::Claims;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long an engine may take to say what it knows: it answers between two pieces of work.
const CLAIMS_PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether what others know has come.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What others know more than this site must come within this time, or a failover goes on without it: it is relayed after
/// two seconds.
const GATHER_PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of paths that other sites are asked for: a question is one line.
const ASKED_BYTES_MAX: usize = 8 << 10;
/// Versions that one question may name, however short their paths are.
const VERSIONS_MAX: usize = 256;

/// What is known of a volume, here and elsewhere.
pub(super) struct Known {
    here: Claims,
    elsewhere: Vec<SiteKnows>,
}

impl Known {
    /// The last change of each replica of `of` that counts: what is known here or at a neighbour. What sites further away know is
    /// not taken at their word; it is waited for.
    pub(super) fn cuts(&self, subject: &Subject, of: Key) -> Vec<(ReplicaId, u64)> {
        let replicas = subject.replicas_of(of);
        let others = || self.here.peers.iter().filter(|(id, ..)| !replicas.contains(id));
        let last = |r: ReplicaId| others().map(|(_, known, _)| known.get(r)).max().unwrap_or(0);
        replicas.iter().map(|r| (*r, self.here.knowledge.get(*r).max(last(*r)))).collect()
    }

    /// What anybody knows who was asked.
    fn anywhere(&self, replica: ReplicaId) -> u64 {
        self.elsewhere.iter().filter_map(|site| site.knowledge.get(&hex(replica))).copied().max().unwrap_or(0)
    }

    fn announced(&self, replica: ReplicaId) -> u64 {
        let here = self.here.announced.get(&replica).copied().unwrap_or(0);
        let told = self.elsewhere.iter().filter_map(|site| site.announced.get(&hex(replica)));
        told.copied().fold(here, u64::max)
    }
}

impl Shared {
    /// What is known of the replicas of `of`, here and at every member that can be reached; that which others know more comes
    /// first, if it comes soon.
    pub(super) fn gather(&self, subject: &Subject, of: Key) -> Result<Known, Answer> {
        let until = Instant::now() + GATHER_PATIENCE;
        let mut elsewhere = self.known_elsewhere(subject, of, Vec::new());
        loop {
            let known = Known { here: self.claims(&subject.name)?, elsewhere };
            let is_behind =
                |(r, n): &(ReplicaId, u64)| known.here.knowledge.get(*r) < (*n).max(known.anywhere(*r));
            let behind = known.cuts(subject, of).iter().any(is_behind);
            if !behind || Instant::now() >= until {
                return self.with_holders(subject, of, known);
            }
            elsewhere = known.elsewhere;
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Asks who has the contents that are not here.
    fn with_holders(&self, subject: &Subject, of: Key, known: Known) -> Result<Known, Answer> {
        let versions = asked_for(&known.here.lacking.versions);
        if versions.is_empty() {
            return Ok(known);
        }
        Ok(Known { elsewhere: self.known_elsewhere(subject, of, versions), ..known })
    }

    fn claims(&self, name: &str) -> Result<Claims, Answer> {
        let replica = self.lock().volumes.get(name).map(|running| running.replica.clone());
        let claims = replica.and_then(|r| lock(&r).as_ref().and_then(|r| r.claims(CLAIMS_PATIENCE)));
        claims.ok_or_else(|| {
            Answer::failed(
                format!("volume {name} does not run here, or does not answer"),
                "driftless status says why; run it again then",
            )
        })
    }

    /// What all others know that can be asked, but the site that is gone.
    fn known_elsewhere(&self, subject: &Subject, of: Key, versions: Vec<PathVersion>) -> Vec<SiteKnows> {
        let Some((_, own)) = self.names(&subject.name) else { return Vec::new() };
        let gone = subject.view.members.get(&of).map(|m| m.site.clone());
        let asked: BTreeSet<String> = [own.clone()].into_iter().chain(gone).collect();
        let mut found = self.known_from(&subject.name, &asked, &versions);
        found.retain(|site| site.site != own);
        found
    }

    /// Asked by another site.
    pub(crate) fn known_for(
        &self,
        id: &str,
        site: &str,
        asked: &[String],
        versions: &[PathVersion],
    ) -> Option<Vec<SiteKnows>> {
        let volume = self.name_for(id, site)?;
        let versions = &versions[..versions.len().min(VERSIONS_MAX)];
        Some(self.known_from(&volume, &asked.iter().cloned().collect(), versions))
    }

    fn known_from(&self, volume: &str, asked: &BTreeSet<String>, versions: &[PathVersion]) -> Vec<SiteKnows> {
        let Some((id, own)) = self.names(volume) else { return Vec::new() };
        let mut neighbours = self.neighbours(volume);
        neighbours.retain(|n| !asked.contains(&n.site));
        let mut all = asked.clone();
        all.insert(own.clone());
        all.extend(neighbours.iter().map(|n| n.site.clone()));
        let (asked, versions_asked) = (all.into_iter().collect(), versions.to_vec());
        let request = Request::Known { volume: id, asked, versions: versions_asked };
        let mut found: Vec<SiteKnows> = self.known_here(volume, own, versions).into_iter().collect();
        std::thread::scope(|scope| {
            let asking: Vec<_> = neighbours
                .iter()
                .map(|n| scope.spawn(|| self.ask_if_up(n, &request, ANSWER_PATIENCE)))
                .collect();
            for thread in asking {
                // A panicked thread has said so on stderr; who does not answer is told by not being in the list.
                if let Ok(Ok(Response::Known(more))) = thread.join() {
                    found.extend(more);
                }
            }
        });
        found.sort_by(|a, b| a.site.cmp(&b.site));
        found.dedup_by(|later, first| later.site == first.site);
        found
    }

    fn known_here(&self, volume: &str, own: String, versions: &[PathVersion]) -> Option<SiteKnows> {
        let claims = self.claims(volume).ok()?;
        let by_hex = |(replica, n): (ReplicaId, u64)| (hex(replica), n);
        let holds = |of: &&PathVersion| {
            let request = query::Request::Why { path_hex: of.path_hex.clone() };
            let Ok(query::Response::Why(why)) = self.query(volume, &request) else { return false };
            let mut shown = why.claimants.iter().flat_map(|c| &c.versions);
            shown.any(|v| v.on_disk && v.version == of.version)
        };
        Some(SiteKnows {
            site: own,
            knowledge: claims.knowledge.iter().map(by_hex).collect(),
            announced: claims.announced.into_iter().map(by_hex).collect::<BTreeMap<_, _>>(),
            holds: versions.iter().filter(holds).cloned().collect(),
        })
    }

    /// What may be lost if the replicas of a site end there.
    pub(super) fn loss(
        &self,
        subject: &Subject,
        site: &str,
        cuts: &[(ReplicaId, u64)],
        known: &Known,
    ) -> Loss {
        let down = self.down_since(&subject.name, site);
        let own = self.names(&subject.name).map(|(_, own)| own).unwrap_or_default();
        let asked: BTreeSet<String> = known.elsewhere.iter().map(|s| s.site.clone()).chain([own]).collect();
        let members = subject.view.members.values().map(|m| m.site.clone());
        let not_asked: BTreeSet<String> = members.filter(|m| m != site && !asked.contains(m)).collect();
        let replicas = cuts.iter().map(|(replica, kept_up_to)| ReplicaLoss {
            replica: hex(*replica),
            kept_up_to: *kept_up_to,
            announced: known.announced(*replica),
            known_elsewhere: known.anywhere(*replica),
        });
        let held: BTreeSet<&PathVersion> = known.elsewhere.iter().flat_map(|s| &s.holds).collect();
        let lacking =
            known.here.lacking.versions.iter().map(|(path, version)| (path, path_version(path, *version)));
        let paths: Vec<LostPath> = lacking
            .filter(|(_, of)| !held.contains(of))
            .map(|(path, of)| LostPath { path: PathText::new(path), version: of.version })
            .collect();
        let elsewhere = known.here.lacking.versions.len() - paths.len();
        Loss {
            site: site.to_owned(),
            connected: down.is_none() && self.link_of(&subject.name, site).is_some(),
            heard_ago_s: down.map(|since| since.elapsed().as_secs()),
            replicas: replicas.collect(),
            asked: asked.iter().cloned().collect(),
            not_asked: not_asked.into_iter().collect(),
            paths_total: known.here.lacking.items.saturating_sub(elsewhere as u64),
            paths,
        }
    }
}

fn hex(replica: ReplicaId) -> String {
    format!("{:016x}", replica.0)
}

fn path_version(path: &[u8], version: driftless_core::Dot) -> PathVersion {
    let path_hex = path.iter().map(|b| format!("{b:02x}")).collect();
    PathVersion { path_hex, version: version.to_string() }
}

/// Those that fit into one question.
fn asked_for(lacking: &[(Vec<u8>, driftless_core::Dot)]) -> Vec<PathVersion> {
    let mut bytes = 0;
    let all = lacking.iter().map(|(path, version)| path_version(path, *version));
    let fits = |of: &PathVersion| {
        bytes += of.path_hex.len() + of.version.len() + 64;
        bytes <= ASKED_BYTES_MAX
    };
    all.take(VERSIONS_MAX).take_while(fits).collect()
}
