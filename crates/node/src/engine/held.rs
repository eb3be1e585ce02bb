//! Telling peers what is on this disk for good, and keeping what they tell of their own: *held*, where knowledge only says
//! what was heard of.
//!
//! One message speaks of everything that was merged before it, so it costs nothing per file: it leaves when moves have been
//! covered by a sync and nothing is left to be planned, and only if it says something new. A session that is to end asks
//! the disk for that sync as soon as both feeds are read, since it would have to at its end anyway.

use super::link::{LinkId, Peer};
use super::{Engine, Fail};
use crate::needs::Waiter;
use driftless_core::Tx;
use driftless_core::link::{self, Held, Message};

impl Engine {
    /// Tells each peer what is held here, if that is more than it was told.
    pub(super) fn tell_held(&mut self) -> Result<(), Fail> {
        if self.open_plans.is_empty() { self.tell_sealed() } else { Ok(()) }
    }

    /// The same when a sync has just covered all moves.
    pub(super) fn tell_sealed(&mut self) -> Result<(), Fail> {
        let planned = self.queue.is_empty() && self.backlog_from.is_none() && self.may_plan();
        if !planned || self.shared.dry_run {
            return Ok(());
        }
        let waiting = self.entries_waiting();
        self.links.ids().into_iter().try_for_each(|id| self.tell_held_to(id, waiting))
    }

    fn tell_held_to(&mut self, id: LinkId, waiting: u64) -> Result<(), Fail> {
        // The cursor moves by its messages only.
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        let state = (link.messages_in, waiting);
        let Some(peer) = link.peer.as_mut().filter(|p| p.held_looked_at != Some(state)) else {
            return Ok(());
        };
        peer.held_looked_at = Some(state);
        let replica = peer.id;
        let snapshot = self.store.snapshot()?;
        let tx = Tx::open(&*snapshot, self.env())?;
        let held = Held { cursor: link::peer_row(&tx, replica)?.cursor, waiting };
        match self.links.peer_mut(id).filter(|p| p.held_told != Some(held)) {
            Some(peer) => {
                peer.held_told = Some(held);
                self.send_to(id, Message::Held(held))
            }
            None => Ok(()),
        }
    }

    /// Entries that are not on this disk as they should be.
    fn entries_waiting(&self) -> u64 {
        let listed = self.waiting.entries();
        let on_their_way = |id: &&_| !self.waiting.contains(&Waiter::Entry(**id));
        (listed + self.nowhere.here() + self.contents.wanted_entries().filter(on_their_way).count()) as u64
    }

    /// In a session that is to end: once both feeds are read, what was done is sealed at once, not after a quiet time.
    pub(super) fn seal_to_end(&mut self) -> Result<(), Fail> {
        let open = !self.open_plans.is_empty() || !self.before.is_empty();
        if !self.shared.once || self.shared.dry_run || !open || !self.links.sent_all() {
            return Ok(());
        }
        let snapshot = self.store.snapshot()?;
        let tx = Tx::open(&*snapshot, self.env())?;
        for (_, peer) in self.links.peers() {
            if !peer.scanned || link::peer_row(&tx, peer.id)?.cursor < peer.head {
                return Ok(());
            }
        }
        drop(tx);
        self.seal()
    }

    /// True if every peer has said that it holds all that it was brought.
    pub(super) fn peer_holds(&self) -> Option<bool> {
        // What a dry run brings nowhere is held by nobody.
        let mut peers = self.links.peers().map(|(_, p)| p.sender.is_held()).peekable();
        (!self.shared.dry_run).then(|| peers.peek().is_some() && peers.all(|held| held))
    }

    /// Writes down what the peers have told of themselves, for when they cannot be reached.
    pub(super) fn save_peers(&mut self) -> Result<(), Fail> {
        for id in self.links.ids() {
            let Some(link) = self.links.take(id) else { continue };
            let saved = link.peer.as_ref().map_or(Ok(()), |peer| self.save_peer(peer));
            self.links.put(id, link);
            saved?;
        }
        Ok(())
    }

    /// The same of one.
    pub(super) fn save_peer(&mut self, peer: &Peer) -> Result<(), Fail> {
        if self.shared.dry_run {
            return Ok(());
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        if peer.sender.save(&mut tx)? { self.commit_sealed_lazily(tx) } else { Ok(()) }
    }
}
