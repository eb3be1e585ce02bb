//! How far a peer is believed: what follows for one connection from the membership of the volume.

use super::link::LinkId;
use super::{Engine, Fail};
use crate::api::Reason;
use crate::needs::Waiter;
use crate::query;
use crate::trust::Trust;
use crossbeam_channel::Sender;
use driftless_core::link::{self, Authority, Receiver, SignedHead};
use driftless_core::membership::{Key, head_bytes};
use driftless_core::tx::{Knowledge, N_MAX, knowledge_vv};
use driftless_core::{Dot, EntryId, ReplicaId, Tx, VersionVector};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of all replicas of a volume.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// What this replica knows.
    pub knowledge: VersionVector,
    /// What replicas that are connected know, and the ends of their feeds as they told last.
    pub peers: Vec<(ReplicaId, VersionVector, u64)>,
    /// The last positions of feeds that were ever announced: by signed heads, and by what their replicas said of themselves since
    /// the start. What a replica announced and nobody knows is lost with it.
    pub announced: BTreeMap<ReplicaId, u64>,
    /// Versions that should be on this disk and whose contents are not here.
    pub lacking: Lacking,
    /// Entries whose contents, names or attributes are not on this disk yet.
    pub waiting: u64,
    /// Nothing is to be done here but to wait.
    pub idle: bool,
}

/// Versions whose contents are missing.
#[derive(Clone, Debug, Default)]
pub struct Lacking {
    /// Paths and versions: at most [`LACKING_TOLD_MAX`].
    pub versions: Vec<(Vec<u8>, Dot)>,
    /// How many there are, with those that are not told.
    pub items: u64,
}

/// Versions that are told of those whose contents are missing: more than anybody reads.
pub const LACKING_TOLD_MAX: usize = 1000;

/// The newest signed heads that are known, for all links of an engine.
pub(super) type Heads = Arc<Mutex<BTreeMap<ReplicaId, u64>>>;

/// One peer, by the key that it has proven to have.
struct Speaker {
    trust: Arc<Trust>,
    heads: Heads,
    key: Key,
    replica: ReplicaId,
}

impl Authority for Speaker {
    fn limit(&self, replica: ReplicaId) -> u64 {
        let view = self.trust.view();
        // Nothing is known of anybody.
        if view.members.is_empty() {
            return N_MAX;
        }
        let Some(member) = view.members.get(&self.key) else { return 0 };
        let own = replica == self.replica || view.replicas.get(&replica) == Some(&self.key);
        if own || member.rights.may_relay { N_MAX } else { 0 }
    }

    /// Nobody's word of a third replica goes further than its own.
    fn claim_limit(&self, replica: ReplicaId) -> u64 {
        let limit = self.limit(replica);
        if replica == self.replica || self.trust.view().members.is_empty() || self.trust.notary().is_none() {
            return limit;
        }
        limit.min(lock(&self.heads).get(&replica).copied().unwrap_or(0))
    }

    fn end(&self, replica: ReplicaId) -> u64 {
        self.trust.view().cuts.get(&replica).copied().unwrap_or(N_MAX)
    }

    fn may_write(&self, replica: ReplicaId) -> bool {
        let view = self.trust.view();
        // What it introduces itself as before it has named it is its own as well.
        let follows = |key: &Key| view.members.get(key).is_some_and(|member| !member.has_written);
        let unnamed = replica == self.replica && !view.replicas.contains_key(&replica);
        view.may_have_written(replica) && !(unnamed && follows(&self.key))
    }
}

impl Engine {
    pub(super) fn tell_claims(&mut self, to: &Sender<Claims>) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let knowledge = knowledge_vv(&Tx::open(&*snapshot, self.env())?.knowledge()?);
        let peers =
            self.links.peers().map(|(_, p)| (p.id, p.sender.peer_knowledge().clone(), p.head)).collect();
        let (waiting, idle) = (self.waiting.len() as u64, self.is_idle());
        let mut announced = lock(&self.heads).clone();
        for (replica, n) in self.lags.announced() {
            let known = announced.entry(replica).or_default();
            *known = n.max(*known);
        }
        let lacking = self.lacking_versions()?;
        // Who asked may have stopped waiting.
        let _ = to.send(Claims { knowledge, peers, announced, lacking, waiting, idle });
        Ok(())
    }

    /// Versions whose contents are asked for, or are nowhere, and where they would be.
    fn lacking_versions(&mut self) -> Result<Lacking, Fail> {
        let mut ids: BTreeSet<EntryId> = self.contents.wanted_entries().copied().collect();
        for (who, need) in self.waiting.iter() {
            if let (Waiter::Entry(id), Reason::ContentMissing | Reason::ContentNowhere) = (who, need.reason) {
                ids.insert(*id);
            }
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut found = Lacking::default();
        for id in ids {
            let Some(lack) = self.lacking(&mut tx, id)?.into_iter().next() else { continue };
            found.items += 1;
            if found.versions.len() < LACKING_TOLD_MAX {
                found.versions.push((query::entry_path(&mut tx, id)?.unwrap_or_default(), lack.version));
            }
        }
        Ok(found)
    }

    /// A replica belongs to one member: nobody else may introduce itself as it.
    pub(super) fn check_speaker(&self, id: LinkId, replica: ReplicaId) -> Result<(), Fail> {
        let Some(service) = &self.service else { return Ok(()) };
        let Some(key) = self.links.get(id).and_then(|link| link.key) else { return Ok(()) };
        let view = service.trust.view();
        match view.replicas.get(&replica) {
            Some(owner) if *owner != key => Err(Fail::Peer(format!(
                "it introduced itself as replica {replica}, which belongs to another site"
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn receiver_for(&self, id: LinkId, replica: ReplicaId) -> Receiver {
        let key = self.links.get(id).and_then(|link| link.key);
        match (&self.service, key) {
            (Some(service), Some(key)) => {
                let heads = self.heads.clone();
                let speaker = Speaker { trust: service.trust.clone(), heads, key, replica };
                Receiver::with_authority(replica, Box::new(speaker))
            }
            _ => Receiver::new(replica),
        }
    }

    /// What was signed by earlier connections' peers.
    pub(super) fn load_heads(&mut self, tx: &Tx<'_>) -> Result<(), Fail> {
        let known = link::heads(tx)?;
        lock(&self.heads).extend(known.into_iter().map(|h| (h.replica, h.n)));
        Ok(())
    }

    /// Heads that came by a link: those that are new and signed by whom their replica belongs to are kept.
    pub(super) fn take_heads(&mut self, heads: &[SignedHead]) -> Result<(), Fail> {
        let Some(service) = &self.service else { return Ok(()) };
        let trust = service.trust.clone();
        let Some(notary) = trust.notary() else { return Ok(()) };
        let view = trust.view();
        let (volume, mut new) = (self.volume_id, Vec::new());
        for head in heads {
            if head.is_nonsense() || lock(&self.heads).get(&head.replica).is_some_and(|n| *n >= head.n) {
                continue;
            }
            let bytes = head_bytes(volume, head.replica, head.n, head.tag);
            let signed = |key: &Key| notary.verify(key, &bytes, &head.signature);
            let earlier = || view.removed.iter().filter(|(_, r)| r.now.is_some()).map(|(key, _)| key);
            let fine = match view.replicas.get(&head.replica) {
                Some(owner) => signed(owner) || earlier().any(signed),
                // No member has named it yet, or it was not heard of here: it may be anybody's.
                None => view.members.keys().any(signed) || earlier().any(signed),
            };
            if !fine && view.replicas.contains_key(&head.replica) {
                return Err(Fail::Peer(format!(
                    "it sent a head of replica {} that its site did not sign",
                    head.replica
                )));
            }
            if fine {
                new.push(*head);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        for head in &new {
            link::put_head(&mut tx, head);
        }
        self.commit_lazily(tx)?;
        lock(&self.heads).extend(new.into_iter().map(|h| (h.replica, h.n)));
        Ok(())
    }

    /// The heads that go before a batch with these claims: this replica's, signed now, and others' that are new to the peer.
    pub(super) fn heads_before(
        &self,
        tx: &Tx<'_>,
        claim: &Knowledge,
        sent: &mut BTreeMap<ReplicaId, u64>,
    ) -> Result<Vec<SignedHead>, Fail> {
        let notary = self.service.as_ref().and_then(|service| service.trust.notary());
        let Some(notary) = notary else { return Ok(Vec::new()) };
        let mut heads = link::heads_for(tx, claim, sent)?;
        let me = tx.me();
        if let Some(own) = claim.get(&me).filter(|own| sent.get(&me).is_none_or(|n| *n < own.n)) {
            sent.insert(me, own.n);
            let signature = notary.sign(&head_bytes(self.volume_id, me, own.n, own.tag));
            heads.push(SignedHead { replica: me, n: own.n, tag: own.tag, signature });
        }
        Ok(heads)
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map is whole between two calls.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
