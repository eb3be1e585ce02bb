//! The receiving end of a feed: merges batches, moves the cursor, joins knowledge.
//!
//! Everything it remembers is in the peer's row of the index and changes in the same transaction as
//! what was merged, so a receipt, sent after that commit, never promises more than is durable.
//!
//! A peer is not trusted further than [`Authority`] says, and never with what would harm the index:
//! states out of shape, dots that nobody can have made, dots of ours that we have not made.

use super::hello::same_tag;
use super::message::{Batch, Receipt};
use super::peer::{PeerRow, peer_row, put_peer_row};
use crate::codec::{Encoder, ReplicaTable, well_formed};
use crate::entry::Entry;
use crate::id::{Dot, EntryId, ReplicaId, Stamp};
use crate::mutant::mutant;
use crate::tree::{self, Received};
use crate::tx::{self, Knowledge, Known, N_MAX, Tx, knowledge_vv};
use crate::vv::VersionVector;
use std::collections::BTreeSet;

/// Most replicas that one volume's index will hear of: what a peer can make us remember by inventing some.
pub const REPLICAS_MAX: usize = 4096;
/// Most refused entries remembered per peer. Beyond it the first stay, so knowledge stays unjoined.
const REFUSED_MAX: usize = 64;
/// Knowledge is told this long after it was gained: many gains in one message, and still well before others relay.
const NEWS_DELAY_MS: u64 = 500;
/// 1 January 2100. A stamp beyond it is a mistake or an attack, and would beat every honest one.
const CLOCK_MAX_NS: u64 = 4_102_444_800_000_000_000;

/// How far a peer may speak for a replica.
pub trait Authority {
    /// The greatest n of `replica` that dots from this peer may have, beyond what is known here already.
    fn limit(&self, replica: ReplicaId) -> u64;

    /// As [`Authority::limit`], for what the peer claims to know.
    fn claim_limit(&self, replica: ReplicaId) -> u64 {
        self.limit(replica)
    }

    /// Where `replica` ends: a dot of it with a greater n is no part of the volume, whoever brings it (the Cut).
    fn end(&self, _replica: ReplicaId) -> u64 {
        N_MAX
    }

    /// False if `replica` has never had the right to make changes: new dots of it are nobody's, whoever brings them.
    fn may_write(&self, _replica: ReplicaId) -> bool {
        true
    }
}

/// Believes all a peer says: for replicas of one owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Everything;

impl Authority for Everything {
    fn limit(&self, _: ReplicaId) -> u64 {
        N_MAX
    }
}

/// Why a state is refused that has a change beyond a Cut: told to the peer, which sets it aside itself once it knows.
const BEYOND_CUT: &str = "it has a change of a replica that was cut off before it";

/// Why a state is refused that has a change of a replica which may make none.
const BY_FOLLOWER: &str = "it has a change of a site that follows and may make none";

/// Why a batch was not taken. Nothing of it must be committed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The index failed.
    #[error(transparent)]
    Index(#[from] tx::Error),
    /// No correct peer sends this: end the connection.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The peer passes on changes of ours that we have not made: our index was put back to an older state, or cloned.
    /// Go on under a new replica id.
    #[error("the peer knows change {claimed} of this replica, whose last change is {ours}")]
    WeAreRolledBack {
        /// What it knows of us.
        claimed: u64,
        /// Our last change.
        ours: u64,
    },
}

/// Something worth an alarm that did not stop a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Anomaly {
    /// The peer and we know this replica's changes up to the same n, by different tags: one of us got them from a clone.
    TagsDiffer(ReplicaId),
    /// The peer claimed to know more of this replica than it may; cut to what it may.
    ClaimClipped(ReplicaId),
}

/// What a batch did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Merged {
    /// To be sent once the transaction is durable.
    pub receipt: Receipt,
    /// Entries that changed here, in batch order; the planner finds them in the feed too.
    pub changed: Vec<EntryId>,
    /// For [`super::Sender::handle_merged`] of the same peer.
    pub echoes: Echoes,
    /// Worth an alarm.
    pub anomalies: Vec<Anomaly>,
}

/// What a peer is known to have because it sent it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Echoes {
    /// Positions in our feed of states that are just what the peer sent.
    pub positions: Vec<u64>,
    /// The knowledge it claimed.
    pub knowledge: Option<VersionVector>,
}

/// Merges one peer's feed.
pub struct Receiver {
    peer: ReplicaId,
    authority: Box<dyn Authority + Send>,
    /// The latest batch that came, by its number.
    newest: u64,
    /// Our knowledge in the last receipt.
    told: VersionVector,
    /// Since when we know more than that.
    news_since_ms: Option<u64>,
}

impl Receiver {
    /// For the feed of `peer`, who is believed in everything.
    pub fn new(peer: ReplicaId) -> Self {
        Self::with_authority(peer, Box::new(Everything))
    }

    /// For the feed of `peer`, who is believed as far as `authority` says.
    pub fn with_authority(peer: ReplicaId, authority: Box<dyn Authority + Send>) -> Self {
        Self { peer, authority, newest: 0, told: VersionVector::new(), news_since_ms: None }
    }

    /// A receipt for no batch (`seq` 0), when this replica has learnt of third replicas' changes otherwise than from
    /// the peer, a moment ago: so that the peer need not relay them.
    pub fn poll(&mut self, tx: &mut Tx<'_>, now_ms: u64) -> tx::Result<Option<Receipt>> {
        let knowledge = knowledge_vv(&tx.knowledge()?);
        let me = tx.me();
        let is_news = |(r, n): (ReplicaId, u64)| r != me && r != self.peer && n > self.told.get(r);
        if !knowledge.iter().any(is_news) {
            self.news_since_ms = None;
            return Ok(None);
        }
        let since = *self.news_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since) < NEWS_DELAY_MS {
            return Ok(None);
        }
        self.told.join(&knowledge);
        self.news_since_ms = None;
        let cursor = peer_row(tx, self.peer)?.cursor;
        Ok(Some(Receipt { to: cursor, cursor, knowledge, ..Receipt::default() }))
    }

    /// When [`Receiver::poll`] should be called at the latest though nothing happened.
    pub fn poll_at_ms(&self) -> Option<u64> {
        self.news_since_ms.map(|t| t.saturating_add(NEWS_DELAY_MS))
    }

    /// Merges a batch. After an error the transaction must be dropped.
    pub fn handle_batch(&mut self, tx: &mut Tx<'_>, batch: &Batch) -> Result<Merged, ReceiveError> {
        check_shape(batch)?;
        let knowledge = tx.knowledge()?;
        let mut peer = peer_row(tx, self.peer)?;
        check_own_dots(tx.me(), &knowledge, batch)?;
        let mut merged = Merged::default();
        let vv = knowledge_vv(&knowledge);
        for entry in &batch.entries {
            self.merge(tx, entry, &vv, &mut peer, &mut merged)?;
        }
        let contiguous = batch.from <= peer.cursor;
        if (contiguous || mutant!(CursorOverGap)) && batch.to > peer.cursor {
            (peer.cursor, peer.tag) = (batch.to, batch.tag);
        }
        let mut known = vv;
        if let Some(claim) = &batch.knowledge {
            let claim = self.clip(claim, (tx.me(), &known), &mut merged.anomalies);
            let claim_vv = knowledge_vv(&claim);
            // What lies before an overtaken batch may have come by a later look at the feed, from which rows had gone that
            // this one counts on: it says nothing of what is known.
            let latest = batch.seq >= self.newest;
            if ((contiguous && latest) || mutant!(KnowledgeOverGap)) && peer.refused.is_empty() {
                join(tx, &knowledge, &claim, &mut merged.anomalies)?;
                known.join(&claim_vv);
            }
            peer.knowledge.join(&claim_vv);
            merged.echoes.knowledge = Some(claim_vv);
        }
        put_peer_row(tx, self.peer, &peer);
        self.newest = self.newest.max(batch.seq);
        self.told.join(&known);
        merged.receipt.seq = batch.seq;
        merged.receipt.to = batch.to;
        merged.receipt.cursor = peer.cursor;
        merged.receipt.knowledge = known;
        Ok(merged)
    }

    fn merge(
        &self,
        tx: &mut Tx<'_>,
        entry: &Entry,
        knowledge: &VersionVector,
        peer: &mut PeerRow,
        merged: &mut Merged,
    ) -> Result<(), ReceiveError> {
        if let Err(reason) = self.vet(tx, entry, knowledge) {
            merged.receipt.refused.push((entry.id, reason.to_string()));
            if !peer.refused.contains(&entry.id) && peer.refused.len() < REFUSED_MAX {
                peer.refused.push(entry.id);
            }
            return Ok(());
        }
        peer.refused.retain(|id| *id != entry.id);
        let received = tree::receive(tx, entry, knowledge)?;
        if received == Received::Ignored {
            return Ok(());
        }
        let row = tx.entry_must(entry.id)?;
        let same = row.entry.ctx == entry.ctx;
        if same {
            merged.receipt.states.push((entry.id, state_digest(&row.entry)));
        }
        if received == Received::Changed {
            merged.changed.push(entry.id);
            if same {
                merged.echoes.positions.push(row.n);
            }
        }
        Ok(())
    }

    /// Says why an entry must not be merged.
    fn vet(&self, tx: &Tx<'_>, e: &Entry, known: &VersionVector) -> Result<(), &'static str> {
        if !well_formed(e) {
            return Err("its state is out of shape");
        }
        if e.ctx.iter().any(|(r, n)| !can_be(Dot::new(r, n))) || stamps(e).any(|s| s.clock_ns > CLOCK_MAX_NS)
        {
            return Err("it has a dot or a stamp that nobody can have made");
        }
        if own_dots(e).any(|d| !can_be(d) || !e.ctx.covers(d)) || removals(e).any(|v| !e.ctx.covers_all(v)) {
            return Err("it has a dot that its context does not cover");
        }
        if parents(e).any(|p| !p.is_root() && !can_be(p.0)) {
            return Err("its parent cannot be");
        }
        if e.ctx.iter().any(|(r, n)| n > self.authority.end(r)) {
            return Err(BEYOND_CUT);
        }
        if e.ctx.iter().any(|(r, n)| n > known.get(r) && !self.authority.may_write(r)) {
            return Err(BY_FOLLOWER);
        }
        if e.ctx.iter().any(|(r, n)| n > known.get(r) && n > self.authority.limit(r)) {
            return Err("the peer may not speak for its author");
        }
        let new: BTreeSet<ReplicaId> = replicas(e).filter(|r| tx.replicas().find(*r).is_none()).collect();
        if !new.is_empty() && tx.replicas().replicas().len() + new.len() > REPLICAS_MAX {
            return Err("it names more replicas than a volume may have");
        }
        Ok(())
    }

    /// What of a claim the peer may make, without what it says of us.
    fn clip(
        &self,
        claim: &Knowledge,
        (me, ours): (ReplicaId, &VersionVector),
        anomalies: &mut Vec<Anomaly>,
    ) -> Knowledge {
        let mut out = Knowledge::new();
        for (&replica, &known) in claim {
            let limit = self.authority.claim_limit(replica).max(ours.get(replica));
            let limit = limit.min(self.authority.end(replica));
            if replica != me && known.n > limit {
                anomalies.push(Anomaly::ClaimClipped(replica));
                out.insert(replica, Known { n: limit, tag: 0 });
            } else {
                out.insert(replica, known);
            }
        }
        out
    }
}

/// Joins a claim into what this replica knows, but for what it says of ourselves.
fn join(
    tx: &mut Tx<'_>,
    ours: &Knowledge,
    claim: &Knowledge,
    anomalies: &mut Vec<Anomaly>,
) -> Result<(), ReceiveError> {
    let new = claim.keys().filter(|r| !ours.contains_key(r)).count();
    if ours.len() + new > REPLICAS_MAX {
        return Err(ReceiveError::Protocol("knowledge of more replicas than a volume may have"));
    }
    let me = tx.me();
    for (&replica, &theirs) in claim.iter().filter(|(r, k)| **r != me && k.n > 0) {
        let known = ours.get(&replica).copied().unwrap_or_default();
        if theirs.n > known.n {
            tx.set_known(replica, theirs);
        } else if theirs.n == known.n && !same_tag(theirs.tag, known.tag) {
            anomalies.push(Anomaly::TagsDiffer(replica));
        }
    }
    Ok(())
}

fn check_shape(batch: &Batch) -> Result<(), ReceiveError> {
    if batch.from > batch.to || batch.to > N_MAX {
        return Err(ReceiveError::Protocol("a batch with positions that cannot be"));
    }
    let mut claims = batch.knowledge.iter().flatten();
    if claims.any(|(r, k)| r.0 == 0 || k.n > N_MAX) {
        return Err(ReceiveError::Protocol("knowledge of changes that cannot be"));
    }
    Ok(())
}

/// Merging dots of ours that we have not made would make our next changes look like old ones.
fn check_own_dots(me: ReplicaId, knowledge: &Knowledge, batch: &Batch) -> Result<(), ReceiveError> {
    let ours = knowledge.get(&me).map_or(0, |k| k.n);
    let claims = batch.knowledge.iter().filter_map(|k| k.get(&me)).map(|k| k.n);
    let ctxs = batch.entries.iter().map(|e| e.ctx.get(me));
    match claims.chain(ctxs).max() {
        Some(claimed) if claimed > ours => Err(ReceiveError::WeAreRolledBack { claimed, ours }),
        _ => Ok(()),
    }
}

fn can_be(d: Dot) -> bool {
    d.replica.0 != 0 && d.n > 0 && d.n <= N_MAX
}

/// Dots that changes of the entry itself made.
fn own_dots(e: &Entry) -> impl Iterator<Item = Dot> {
    let data = e.data.iter().map(|v| v.dot);
    let links = e.links.iter().flat_map(|l| [l.id.0, l.at.dot]);
    let holds = e.links.iter().map(|l| l.at.holds).filter(|d| *d != Dot::default());
    // The root is the one entry without a birth.
    data.chain(links).chain(holds).chain((!e.id.is_root()).then_some(e.id.0))
}

fn removals(e: &Entry) -> impl Iterator<Item = &VersionVector> {
    e.links.iter().map(|l| &l.gone).chain([&e.removed])
}

fn parents(e: &Entry) -> impl Iterator<Item = EntryId> {
    e.links.iter().map(|l| l.at.parent).chain(e.hist.iter().map(|h| h.0))
}

fn stamps(e: &Entry) -> impl Iterator<Item = Stamp> {
    let data = e.data.iter().map(|v| v.stamp);
    let links = e.links.iter().map(|l| l.at.stamp);
    data.chain(links).chain(e.hist.iter().map(|h| h.1)).chain([e.meta.0]).chain(e.dir_time.map(|t| t.0))
}

/// Every replica whose id the index would have to give a number to.
fn replicas(e: &Entry) -> impl Iterator<Item = ReplicaId> {
    let ctx = e.ctx.iter().map(|(r, _)| r);
    ctx.chain(stamps(e).map(|s| s.replica)).chain(parents(e).map(|p| p.0.replica))
}

/// Names a state in receipts: the first 8 bytes of BLAKE3 of its encoding with the replica ids in it.
/// States of equal `ctx` have equal digests.
pub fn state_digest(entry: &Entry) -> u64 {
    canonical(entry).0
}

/// The digest of a state and about how many bytes it takes in a batch.
pub(super) fn canonical(entry: &Entry) -> (u64, usize) {
    let mut table = ReplicaTable::default();
    let mut e = Encoder { buf: Vec::with_capacity(256) };
    e.entry(entry, &mut table);
    let len = e.buf.len();
    for replica in table.replicas() {
        e.fixed64(replica.0);
    }
    let hash = blake3::hash(&e.buf);
    let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    (u64::from_be_bytes(first), len)
}
