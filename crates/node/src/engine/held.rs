//! Telling the peer what is on this disk for good, and keeping what it tells of its own: *held*, where knowledge only says
//! what was heard of.
//!
//! One message speaks of everything that was merged before it, so it costs nothing per file: it leaves when moves have been
//! covered by a sync and nothing is left to be planned, and only if it says something new. A session that is to end asks
//! the disk for that sync as soon as both feeds are read, since it would have to at its end anyway.

use super::{Engine, Fail};
use crate::needs::Waiter;
use driftless_core::Tx;
use driftless_core::link::{self, Held, Message};

impl Engine {
    /// Tells the peer what is held here, if that is more than it was told.
    pub(super) fn tell_held(&mut self) -> Result<(), Fail> {
        let planned = self.queue.is_empty() && self.backlog_from.is_none() && self.may_plan();
        if !planned || !self.open_plans.is_empty() || self.shared.dry_run {
            return Ok(());
        }
        let waiting = self.entries_waiting();
        // The cursor moves by messages only.
        let state = (self.messages_in, waiting);
        let Some(peer) = self.peer.as_mut().filter(|p| p.held_looked_at != Some(state)) else {
            return Ok(());
        };
        peer.held_looked_at = Some(state);
        let id = peer.id;
        let snapshot = self.store.snapshot()?;
        let tx = Tx::open(&*snapshot, self.env())?;
        let held = Held { cursor: link::peer_row(&tx, id)?.cursor, waiting };
        match self.peer.as_mut().filter(|p| p.held_told != Some(held)) {
            Some(peer) => {
                peer.held_told = Some(held);
                self.send(Message::Held(held))
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
        if !self.shared.once || self.shared.dry_run || !open || !self.status.sent_all {
            return Ok(());
        }
        let Some(peer) = self.peer.as_ref().filter(|p| p.scanned) else { return Ok(()) };
        let snapshot = self.store.snapshot()?;
        let tx = Tx::open(&*snapshot, self.env())?;
        if link::peer_row(&tx, peer.id)?.cursor < peer.head {
            return Ok(());
        }
        drop(tx);
        self.seal()
    }

    /// True if the peer has said that it holds all that it was brought.
    pub(super) fn peer_holds(&self) -> Option<bool> {
        // What a dry run brings nowhere is held by nobody.
        (!self.shared.dry_run).then(|| self.peer.as_ref().is_some_and(|p| p.sender.is_held()))
    }

    /// Writes down what the peer has told of itself, for when it cannot be reached.
    pub(super) fn save_peer(&mut self) -> Result<(), Fail> {
        if self.shared.dry_run {
            return Ok(());
        }
        let Some(peer) = self.peer.take() else { return Ok(()) };
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let saved = self.open_tx(&*snapshot).and_then(|mut tx| Ok((peer.sender.save(&mut tx)?, tx)));
        self.peer = Some(peer);
        match saved? {
            (true, tx) => self.commit_sealed_lazily(tx),
            _ => Ok(()),
        }
    }
}
