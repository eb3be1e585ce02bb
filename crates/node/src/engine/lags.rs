//! How far each peer is behind, connected or not, and how the links stand: for those who watch.

use super::link::LinkId;
use super::propagation::Propagation;
use super::{Engine, Fail, FromEngine, wall_ns};
use crate::sites;
use driftless_core::link::{Held, Lag, PeerRow, peer_row, peer_rows};
use driftless_core::membership::Key;
use driftless_core::{ReplicaId, Tx};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Rows looked at to find the oldest change that a peer lacks; beyond it the age of the first of them counts.
const LOOK_MAX: usize = 256;
/// At most so often is it told how the links stand, while that changes all the time.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// How a peer stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// Its replica.
    pub replica: ReplicaId,
    /// The name of its site, as it told.
    pub site: String,
    /// The key that it has proven to have, if it was connected since the start.
    pub key: Option<Key>,
    /// The connection to it, if there is one.
    pub link: Option<LinkId>,
    /// When the oldest change was made that is not on its disk for good; `None`: it has all.
    pub behind_since_ns: Option<u64>,
    /// At most so many entries are still to be sent or have no receipt.
    pub backlog_items: u64,
    /// Bytes on their way to it.
    pub in_flight_bytes: u64,
    /// Entries that wait over there.
    pub waiting_there: u64,
    /// It holds everything up to this position of this replica's feed, but for what waits there.
    pub held: u64,
    /// Everything up to the end of its feed, as it told last, is known here, and its whole tree was in that.
    pub taken_all: bool,
    /// The second at which its engine was heard last, since 1970, if it is connected: it says something every five seconds.
    pub heard_s: Option<u64>,
}

/// What is told of the peers.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Standing {
    /// Every peer ever met.
    pub peers: Vec<PeerStatus>,
    /// The last position of this replica's feed.
    pub head: u64,
    /// How long changes of others took to get here.
    pub propagation: Propagation,
}

/// See the module.
#[derive(Default)]
pub(super) struct Lags {
    peers: BTreeMap<ReplicaId, Known>,
    told: Standing,
    told_at: Option<Instant>,
}

struct Known {
    site: String,
    key: Option<Key>,
    lag: Lag,
    held: Held,
    waiting_since_ns: Option<u64>,
}

impl Engine {
    /// Peers of earlier connections: how far they were.
    pub(super) fn load_lags(&mut self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        if self.service.is_none() {
            return Ok(());
        }
        let head = tx.head();
        for (replica, row) in peer_rows(tx)? {
            let oldest = oldest_lacking(tx, replica, &row)?;
            let lag = match oldest {
                Some(since_ns) => Lag::new(row.held.cursor, head, since_ns),
                None => Lag::new(head, head, 0),
            };
            let site = sites::name(tx, replica)?.unwrap_or_default();
            let waiting_since_ns = (row.held.waiting > 0).then(wall_ns);
            self.lags.peers.insert(replica, Known { site, key: None, lag, held: row.held, waiting_since_ns });
        }
        Ok(())
    }

    /// A peer has introduced itself.
    pub(super) fn note_peer(&mut self, replica: ReplicaId, site: &str, key: Option<Key>) {
        if self.service.is_none() {
            return;
        }
        let (head, now_ns) = (self.head, wall_ns());
        let new = || Known {
            site: site.to_owned(),
            key,
            lag: Lag::new(0, head, now_ns),
            held: Held::default(),
            waiting_since_ns: None,
        };
        let known = self.lags.peers.entry(replica).or_insert_with(new);
        known.site = site.to_owned();
        known.key = key.or(known.key);
    }

    /// Tells how the links stand, if that has changed; not too often unless `now`.
    pub(super) fn tell_peers(&mut self, now: bool) -> Result<(), Fail> {
        if self.service.is_none() || (!now && self.lags.told_at.is_some_and(|at| at.elapsed() < TELL_EVERY)) {
            return Ok(());
        }
        self.lags.told_at = Some(Instant::now());
        let taken = self.taken_all()?;
        let (peers, head, propagation) = (self.peer_statuses(&taken), self.head, self.propagation.clone());
        let standing = Standing { peers, head, propagation };
        if standing != self.lags.told {
            self.lags.told.clone_from(&standing);
            self.post(FromEngine::Peers(standing))?;
        }
        Ok(())
    }

    /// Peers all of whose feeds has been taken in.
    fn taken_all(&self) -> Result<BTreeSet<ReplicaId>, Fail> {
        let snapshot = self.store.snapshot()?;
        let tx = Tx::open(&*snapshot, self.env())?;
        let mut taken = BTreeSet::new();
        for (_, peer) in self.links.peers().filter(|(_, p)| p.scanned) {
            if peer_row(&tx, peer.id)?.cursor >= peer.head {
                taken.insert(peer.id);
            }
        }
        Ok(taken)
    }

    fn peer_statuses(&mut self, taken: &BTreeSet<ReplicaId>) -> Vec<PeerStatus> {
        let (head, now_ns) = (self.head, wall_ns());
        let mut out = Vec::with_capacity(self.lags.peers.len());
        for (replica, known) in &mut self.lags.peers {
            known.lag.head_is(head, now_ns);
            let mut backlog_items = head.saturating_sub(known.held.cursor);
            let (mut link, mut in_flight_bytes, mut heard_s) = (None, 0, None);
            if let Some((id, peer)) = self.links.peers().find(|(_, p)| p.id == *replica) {
                link = Some(id);
                heard_s = self.links.get(id).map(|l| l.heard_ns / 1_000_000_000);
                let backlog = peer.sender.backlog(head);
                (backlog_items, in_flight_bytes) = (backlog.rows, backlog.in_flight_bytes);
                known.held = peer.sender.held_there().unwrap_or(known.held);
                known.lag.held_to(known.held.cursor);
                let all = self.links.get(id).is_some_and(|l| l.sent_all && l.is_current(head));
                if all && peer.sender.is_held() {
                    known.lag.holds_all();
                }
            }
            known.waiting_since_ns = match known.held.waiting {
                0 => None,
                _ => known.waiting_since_ns.or(Some(now_ns)),
            };
            if known.lag.since_ns().is_none() {
                backlog_items = 0;
            }
            out.push(PeerStatus {
                replica: *replica,
                site: known.site.clone(),
                key: known.key,
                link,
                behind_since_ns: known.lag.since_ns().into_iter().chain(known.waiting_since_ns).min(),
                backlog_items,
                in_flight_bytes,
                waiting_there: known.held.waiting,
                held: if known.lag.since_ns().is_none() { head } else { known.held.cursor },
                taken_all: taken.contains(replica),
                heard_s,
            });
        }
        out
    }
}

/// When the oldest change was made that a peer does not hold, by the stamp it was given.
fn oldest_lacking(tx: &mut Tx<'_>, replica: ReplicaId, row: &PeerRow) -> Result<Option<u64>, Fail> {
    let rows = tx.feed_after(row.held.cursor, LOOK_MAX)?;
    let more = rows.len() == LOOK_MAX;
    let mut oldest: Option<u64> = None;
    let mut first = None;
    for (_, id) in rows {
        let entry = tx.entry_must(id)?;
        let stamp_ns = entry.entry.stamp_max().clock_ns;
        first.get_or_insert(stamp_ns);
        let has = |(r, n): (ReplicaId, u64)| r == replica || n <= row.knowledge.get(r);
        if !entry.entry.ctx.iter().all(has) {
            oldest = Some(oldest.map_or(stamp_ns, |o| o.min(stamp_ns)));
        }
    }
    Ok(oldest.or(first.filter(|_| more)))
}
