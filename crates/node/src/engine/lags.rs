//! How far each peer is behind, connected or not, and how the links stand: for those who watch.

use super::link::LinkId;
use super::propagation::Propagation;
use super::{Engine, Fail, FromEngine, wall_ns};
use crate::api::Reason;
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
/// At most so often is it estimated what a peer lacks: it costs [`LOOK_MAX`] rows.
const ESTIMATE_EVERY: Duration = Duration::from_secs(1);

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
    /// About so many bytes of contents are in what it does not hold, with what is on its way.
    pub to_go_bytes: u64,
    /// Entries that wait over there.
    pub waiting_there: u64,
    /// It holds everything up to this position of this replica's feed, but for what waits there.
    pub held: u64,
    /// Everything up to the end of its feed, as it told last, is known here, and its whole tree was in that.
    pub taken_all: bool,
    /// The second at which its engine was heard last, since 1970, if it is connected: it says something every three seconds.
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
    /// How many entries wait here, for each reason.
    pub waiting: BTreeMap<Reason, u64>,
    /// How many of them are not to be tried.
    pub skipped: u64,
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
    to_go: ToGo,
    /// The end of its feed, as it told since the start.
    announced: u64,
}

/// An estimate of what a peer lacks.
#[derive(Default)]
struct ToGo {
    /// Position of the feed up to which it held everything, and the feed's end, when it was made.
    of: (u64, u64),
    made_at: Option<Instant>,
    bytes: u64,
}

impl Lags {
    /// Where feeds of peers ended, as they told since the start.
    pub(super) fn announced(&self) -> impl Iterator<Item = (ReplicaId, u64)> {
        self.peers.iter().map(|(replica, known)| (*replica, known.announced)).filter(|(_, n)| *n > 0)
    }
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
            let (held, to_go) = (row.held, ToGo::default());
            self.lags
                .peers
                .insert(replica, Known { site, key: None, lag, held, waiting_since_ns, to_go, announced: 0 });
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
            to_go: ToGo::default(),
            announced: 0,
        };
        let known = self.lags.peers.entry(replica).or_insert_with(new);
        known.site = site.to_owned();
        known.key = key.or(known.key);
    }

    /// A peer has told where its feed ends.
    pub(super) fn note_announced(&mut self, replica: ReplicaId, head: u64) {
        if let Some(known) = self.lags.peers.get_mut(&replica) {
            known.announced = known.announced.max(head);
        }
    }

    /// Tells how the links stand, if that has changed; not too often unless `now`.
    pub(super) fn tell_peers(&mut self, now: bool) -> Result<(), Fail> {
        if self.service.is_none() || (!now && self.lags.told_at.is_some_and(|at| at.elapsed() < TELL_EVERY)) {
            return Ok(());
        }
        self.lags.told_at = Some(Instant::now());
        let taken = self.taken_all()?;
        self.estimate_to_go()?;
        let (peers, head, propagation) = (self.peer_statuses(&taken), self.head, self.propagation.clone());
        let (waiting, skipped) = (self.waiting.by_reason(), self.waiting.skipped());
        let standing = Standing { peers, head, propagation, waiting, skipped };
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

    /// What peers that are behind lack, from a part of the feed: to say how long it may take.
    fn estimate_to_go(&mut self) -> Result<(), Fail> {
        let (head, env) = (self.head, self.env());
        let due = |k: &Known| k.lag.since_ns().is_some() && k.to_go.is_due((k.held.cursor, head));
        if !self.lags.peers.values().any(due) {
            return Ok(());
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        for known in self.lags.peers.values_mut().filter(|k| due(k)) {
            let mut tx = Tx::open(&*snapshot, env)?;
            let of = (known.held.cursor, head);
            known.to_go.bytes = bytes_after(&mut tx, of.0, known.held_rows(head))?;
            (known.to_go.of, known.to_go.made_at) = (of, Some(Instant::now()));
        }
        Ok(())
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
            let mut to_go_bytes = known.to_go.bytes;
            if known.lag.since_ns().is_none() {
                (backlog_items, to_go_bytes) = (0, 0);
            }
            out.push(PeerStatus {
                replica: *replica,
                site: known.site.clone(),
                key: known.key,
                link,
                behind_since_ns: known.lag.since_ns().into_iter().chain(known.waiting_since_ns).min(),
                backlog_items,
                in_flight_bytes,
                to_go_bytes,
                waiting_there: known.held.waiting,
                held: if known.lag.since_ns().is_none() { head } else { known.held.cursor },
                taken_all: taken.contains(replica),
                heard_s,
            });
        }
        out
    }
}

impl Known {
    /// At most so many rows of the feed it does not hold.
    fn held_rows(&self, head: u64) -> u64 {
        head.saturating_sub(self.held.cursor)
    }
}

impl ToGo {
    fn is_due(&self, of: (u64, u64)) -> bool {
        self.of != of && self.made_at.is_none_or(|at| at.elapsed() >= ESTIMATE_EVERY)
    }
}

/// About how many bytes of contents are in the rows of the feed after a position, of which there are at most `rows`.
fn bytes_after(tx: &mut Tx<'_>, after: u64, rows: u64) -> Result<u64, Fail> {
    let sample = tx.feed_after(after, LOOK_MAX)?;
    let (n, whole) = (sample.len() as u64, sample.len() < LOOK_MAX);
    let mut bytes = 0u64;
    for (_, id) in sample {
        let row = tx.entry_must(id)?;
        // A size is what a peer says.
        bytes = row.entry.counting().map(|v| v.content.size()).fold(bytes, u64::saturating_add);
    }
    Ok(if whole { bytes } else { (bytes / n.max(1)).saturating_mul(rows) })
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
