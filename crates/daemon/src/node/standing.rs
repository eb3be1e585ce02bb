//! How a node stands: from what runs and what is recorded to what is said.

use super::membership::site_named;
use super::{Running, Shared, lock, now_ms};
use crate::http::{Get, Page};
use crate::link::{self, LinkThread};
use crate::metrics;
use crate::records::{self, Volume, Wanted};
use crate::status::{self, LinkStatus, MemberStatus, NodeStatus, SiteStatus, VolumeStatus};
use driftless_core::link::Role;
use driftless_core::membership::{Key, Member, View};
use driftless_net::identity::PublicKey;
use driftless_node::replica::{LinkId, PeerStatus, Replica, ReplicaStatus};
use std::time::Duration;

impl Shared {
    pub(super) fn page(&self, get: &Get) -> Page {
        match get.path.as_str() {
            "/metrics" => ("200 OK", "text/plain; version=0.0.4", metrics::render(&self.status())),
            // Load balancers learn no more than they need.
            "/health" => match self.status().well {
                true => ("200 OK", "text/plain", "well\n".into()),
                false => ("503 Service Unavailable", "text/plain", "not well\n".into()),
            },
            path if path.starts_with("/volumes/") => self.feed_page(get),
            _ => {
                let text = "there are /metrics, /health and /volumes/NAME/changes\n";
                ("404 Not Found", "text/plain", text.into())
            }
        }
    }

    pub(super) fn status(&self) -> NodeStatus {
        let inner = self.lock();
        let volumes: Vec<VolumeStatus> = inner
            .records
            .volumes
            .iter()
            .map(|(name, volume)| {
                let view = self.members.view(volume.id().unwrap_or(0));
                volume_status(name, volume, inner.volumes.get(name), &view, self.members.own())
            })
            .collect();
        let sites = inner.records.sites.iter().map(|(name, site)| SiteStatus {
            name: name.clone(),
            key: site.key.clone(),
            addresses: site.addresses.clone(),
            connected: volumes.iter().flat_map(|v| &v.links).any(|l| l.site == *name && l.state.is_well()),
            volumes: volumes
                .iter()
                .filter(|v| v.links.iter().any(|l| l.site == *name))
                .map(|v| v.name.clone())
                .collect(),
        });
        let sites = sites.collect();
        let (well, verdict) = status::verdict(&volumes);
        NodeStatus {
            verdict,
            well,
            name: inner.records.name.clone().unwrap_or_default(),
            key: self.key.to_string(),
            listen: self.listen.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: self.started.elapsed().as_secs(),
            sites,
            volumes,
        }
    }
}

fn members(view: &View) -> Vec<MemberStatus> {
    let status = |(key, member): (&Key, &Member)| MemberStatus {
        site: member.site.clone(),
        key: PublicKey(key.0).to_string(),
        follower: member.rights.role == Role::Follower,
        may_relay: member.rights.may_relay,
        may_invite: member.rights.may_invite,
    };
    let mut members: Vec<MemberStatus> = view.members.iter().map(status).collect();
    members.sort_by(|a, b| a.site.cmp(&b.site));
    members
}

fn volume_status(
    name: &str,
    volume: &Volume,
    running: Option<&Running>,
    view: &View,
    me: Key,
) -> VolumeStatus {
    let replica = running.and_then(|r| lock(&r.replica).as_ref().map(Replica::status));
    let runs = replica.as_ref().is_some_and(|s| s.ended.is_none());
    let seen = replica.unwrap_or_default();
    let links = volume.links.iter().map(|(site, link)| {
        let running = running.and_then(|r| r.links.get(site));
        let thread = running.map(LinkThread::seen).unwrap_or_default();
        let (sent_bytes, received_bytes, sent_bytes_per_s) =
            running.map(LinkThread::traffic).unwrap_or_default();
        let status = link_status(site, link, &thread, &seen, runs);
        let held = peer_of(link, thread.connected, &seen).map_or(0, |p| p.held);
        let to_go_bytes = status.to_go_bytes.saturating_sub(running.map_or(0, |r| r.sent_since(held)));
        let time_left_s = status::time_left_s(status.lag_ms, to_go_bytes, sent_bytes_per_s);
        LinkStatus { sent_bytes, received_bytes, sent_bytes_per_s, to_go_bytes, time_left_s, ..status }
    });
    VolumeStatus {
        name: name.to_owned(),
        id: volume.id.clone(),
        root: volume.root.clone(),
        follower: volume.follower,
        scanned: seen.scanned,
        waiting_items: seen.waiting,
        waiting_by_reason: seen.standing.waiting.clone(),
        skipped_items: seen.standing.skipped,
        conflicts: seen.counts.conflicts,
        head: seen.standing.head,
        recorded: seen.counts.recorded,
        received: seen.counts.received,
        applied_bytes: seen.counts.applied_bytes,
        propagation: seen.standing.propagation.clone(),
        error: running.and_then(|r| r.error.clone()),
        members: members(view),
        removed_by: view.removed.get(&me).filter(|r| r.now.is_none()).map(|r| site_named(view, &r.by)),
        seed_from: volume.seed_from.clone(),
        links: links.collect(),
    }
}

/// The peer at the other end of a link, or the one that was there.
pub(super) fn peer_of<'a>(
    link: &records::Link,
    connected: Option<LinkId>,
    replica: &'a ReplicaStatus,
) -> Option<&'a PeerStatus> {
    let is_it = |p: &&PeerStatus| {
        connected
            .map_or_else(|| link.replica == Some(format!("{:016x}", p.replica.0)), |id| p.link == Some(id))
    };
    replica.standing.peers.iter().find(is_it)
}

fn link_status(
    site: &str,
    link: &records::Link,
    thread: &link::Seen,
    replica: &ReplicaStatus,
    volume_runs: bool,
) -> LinkStatus {
    let connected: Option<LinkId> = thread.connected;
    let peer = peer_of(link, connected, replica);
    let since_ms = match peer {
        Some(peer) => peer.behind_since_ns.map(|ns| ns / 1_000_000),
        // Never met: it has nothing.
        None => Some(link.created_s.saturating_mul(1000)),
    };
    let unheard_s = peer.and_then(|p| p.heard_s).map(|at| (now_ms() / 1000).saturating_sub(at));
    let seen = status::Seen {
        stopped: link.wanted == Wanted::Stopped,
        paused: link.wanted == Wanted::Paused,
        volume_runs,
        connected: connected.is_some() && peer.is_some(),
        refused: thread.refused,
        failed: thread.failed,
        behind: since_ms.is_some(),
        unheard: unheard_s.is_some_and(|s| s >= status::STALLED_AFTER_S),
    };
    let state = status::link_state(&seen);
    // What a site holds that cannot be asked is not known: its lag counts from when it was heard last.
    let silent = unheard_s.filter(|_| state == status::LinkState::Stalled).map(Duration::from_secs);
    let unheard = thread.down_since.map(|since| since.elapsed()).or(silent);
    let lag_ms = since_ms.map(|since| now_ms().saturating_sub(since));
    let unheard_ms = unheard.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    LinkStatus {
        site: site.to_owned(),
        mode: link.mode,
        state,
        // Never nothing: what happens there now is not known.
        lag_ms: lag_ms.or(unheard_ms.filter(|_| !state.is_well())).map(|ms| ms.max(1)),
        backlog_items: peer.map_or(0, |p| p.backlog_items),
        in_flight_bytes: peer.map_or(0, |p| p.in_flight_bytes),
        to_go_bytes: peer.map_or(0, |p| p.to_go_bytes),
        time_left_s: None,
        sent_bytes: 0,
        received_bytes: 0,
        sent_bytes_per_s: 0,
        behind_since_ms: since_ms,
        waiting_there_items: peer.map_or(0, |p| p.waiting_there),
        last_error: thread.last_error.as_ref().map(|(_, text)| text.clone()),
        last_error_age_s: thread.last_error.as_ref().map(|(at, _)| at.elapsed().as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::LinkState;
    use driftless_core::ReplicaId;
    use driftless_node::replica::Standing;
    use std::time::Instant;

    fn peer(heard_s: u64, behind_since_ns: Option<u64>) -> PeerStatus {
        PeerStatus {
            replica: ReplicaId(7),
            site: "bergen".into(),
            key: None,
            link: None,
            behind_since_ns,
            backlog_items: 0,
            in_flight_bytes: 0,
            to_go_bytes: 0,
            waiting_there: 0,
            held: 0,
            taken_all: true,
            heard_s: Some(heard_s),
        }
    }

    fn status_of(thread: &link::Seen, peer: PeerStatus) -> LinkStatus {
        let peers = vec![PeerStatus { link: thread.connected, ..peer }];
        let standing = Standing { peers, ..Standing::default() };
        let link = records::Link { replica: Some("0000000000000007".into()), ..records::Link::default() };
        link_status("bergen", &link, thread, &ReplicaStatus { standing, ..ReplicaStatus::default() }, true)
    }

    /// The connection stands, but its volume says nothing: what it holds is not known, so it is behind.
    #[test]
    fn a_feed_that_is_frozen_is_named_and_never_in_sync() {
        let now_s = now_ms() / 1000;
        let thread = link::Seen { connected: Some(LinkId::default()), ..link::Seen::default() };
        let well = status_of(&thread, peer(now_s, None));
        assert_eq!((well.state, well.lag_ms), (LinkState::InSync, None));
        for missed_s in [status::STALLED_AFTER_S, 10, 1000] {
            let frozen = status_of(&thread, peer(now_s - missed_s, None));
            assert_eq!(frozen.state, LinkState::Stalled);
            assert!(frozen.lag_ms >= Some(missed_s * 1000), "{frozen:?}");
        }
    }

    #[test]
    fn who_cannot_be_reached_is_never_up_to_date() {
        let thread = link::Seen { failed: true, down_since: Some(Instant::now()), ..link::Seen::default() };
        let status = status_of(&thread, peer(0, None));
        assert_eq!(status.state, LinkState::Unreachable);
        assert!(status.lag_ms > Some(0), "{status:?}");
    }
}
