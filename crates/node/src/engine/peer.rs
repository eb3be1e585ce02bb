//! The engine's end of the link: introducing itself, merging what comes, sending what is new.

use super::observe::Taking;
use super::open::SETTING_LOST;
use super::stager::{self, Ready};
use super::{ENTRIES_PER_BATCH, Engine, Fail, FromEngine, Peer, QUEUE_MAX, apply, steady_ns, weight};
use crate::api::{Level, Phase, Side};
use crate::sites;
use driftless_core::link::{self, HelloVerdict, Message, Receiver, SendLimits, Sender};
use driftless_core::rows::Table;
use driftless_core::{EntryId, Tx, local, tx};
use driftless_volume::crash::{self, Point};
use std::collections::HashSet;
use std::time::Instant;

impl Engine {
    pub(super) fn handle_message(&mut self, message: Message) -> Result<(), Fail> {
        match message {
            Message::Hello(hello) => self.handle_hello(&hello),
            Message::Batch(batch) => {
                // Before the first crawl is over nothing is planned: contents wait in memory, not staged.
                let useful = self.may_plan() || self.staging > 0;
                if useful && self.stager.is_some() {
                    let new_dirs = self.new_dirs_of(&batch)?;
                    if let Some(stager) = &mut self.stager {
                        stager.give(batch, new_dirs);
                        self.staging += 1;
                    }
                } else {
                    self.batches.push_back(Ready::plain(batch));
                }
                Ok(())
            }
            Message::Receipt(receipt) => {
                let Some(peer) = &mut self.peer else { return Ok(()) };
                let failures = peer.sender.handle_receipt(&receipt);
                for f in failures {
                    self.log(
                        Level::Warn,
                        format!("{}: the other side did not take it: {:?}", f.entry, f.reason),
                    );
                }
                Ok(())
            }
            Message::Held(held) => {
                if let Some(peer) = &mut self.peer {
                    peer.sender.handle_held(&held);
                }
                self.found_there(&held)
            }
            Message::Want(want) => self.serve(&want),
            Message::Piece(piece) => self.take_piece(piece),
            Message::NotHere(answer) => self.take_not_here(&answer),
            Message::Heartbeat { head, scanned } => {
                if let Some(peer) = &mut self.peer {
                    peer.head = head;
                    peer.scanned = scanned;
                }
                Ok(())
            }
            Message::Bye { reason } => Err(Fail::Peer(reason)),
        }
    }

    pub(super) fn handle_hello(&mut self, hello: &link::Hello) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let refused =
            |what: &str, advice: &str| Err(Fail::Refused { what: what.into(), advice: advice.into() });
        match link::check_hello(&mut tx, self.volume_id, hello)? {
            HelloVerdict::Fine { start_cursor, distrusted, .. } => {
                let me = tx.me();
                if self.volume_id == 0 {
                    self.take_volume_id(hello.volume, me, hello.replica)?;
                }
                let limits = SendLimits {
                    // What a session keeps of contents in memory. Small batches overlap better: while one is synced,
                    // the next ones are staged.
                    batch_bytes: 8 << 20,
                    window: 4,
                    batch_entries: ENTRIES_PER_BATCH,
                    first_batch_bytes: 1 << 20,
                    fill_rows: 2048,
                    relay_delay_ms: 0,
                    inline: hello.inline,
                    ..SendLimits::default()
                };
                let mut sender =
                    Sender::new(hello.replica, start_cursor, tx::knowledge_vv(&hello.knowledge), limits);
                sender.distrust(distrusted);
                self.peer = Some(Peer {
                    id: hello.replica,
                    sender,
                    receiver: Receiver::new(hello.replica),
                    scanned: false,
                    head: 0,
                    inline: hello.inline,
                    has_tree: hello.scanned,
                    held_told: None,
                    held_looked_at: None,
                });
                sites::set_name(&mut tx, hello.replica, &hello.site)?;
                self.decide_first_scan(tx, hello)?;
                // The peer may be waiting for a scan that is over already.
                self.beat()
            }
            HelloVerdict::PeerRolledBack => Ok(()),
            // One of two with the same id has to take another.
            HelloVerdict::OwnReplicaId if self.side == Side::A => Ok(()),
            HelloVerdict::WeAreRolledBack | HelloVerdict::OwnReplicaId => self.rebuild(),
            HelloVerdict::DifferentVolume => refused(
                "the two directories belong to different volumes",
                "each is kept in sync with another directory already; to join them anyway, remove `.driftless` and the \
                 state of one of them: it is then taken as a copy that joins the other",
            ),
            HelloVerdict::Protocol { ours, theirs } => refused(
                &format!(
                    "the other side speaks protocol {}-{}, this one {}-{}",
                    theirs.0, theirs.1, ours.0, ours.1
                ),
                "install the same version at both ends",
            ),
        }
    }

    /// The first replica of a volume imports its tree; all others receive before they scan.
    pub(super) fn decide_first_scan(&mut self, mut tx: Tx<'_>, hello: &link::Hello) -> Result<(), Fail> {
        if self.scanned {
            return self.commit(tx);
        }
        // A first scan that was interrupted may have told the peer a part of itself: that is no state of others.
        let me = self.me()?;
        let peer_has_states = hello.knowledge.keys().any(|r| *r != me);
        if !peer_has_states || !hello.scanned {
            // Nobody knows what was removed: two trees meet as if for the first time.
            tx.put(Table::Settings, SETTING_LOST.to_vec(), None);
        }
        let import = self.side == Side::A && !peer_has_states;
        if import {
            self.taking = Taking::Import;
            let planned = self.is_planned();
            local::import_root(&mut tx)?;
            self.commit(tx)?;
            if planned {
                self.planned = self.head;
            }
            self.start_crawl();
        } else {
            self.taking = Taking::Adopt;
            self.commit(tx)?;
            self.set_phase(Phase::Receiving);
        }
        Ok(())
    }

    /// Directories that can be staged with their files, since nobody has them here.
    fn new_dirs_of(&mut self, batch: &link::Batch) -> Result<HashSet<EntryId>, Fail> {
        if self.staging == 0 && self.batches.is_empty() {
            self.dirs_on_their_way.clear();
        }
        let mut dirs = stager::dirs_of(batch);
        dirs.retain(|dir| self.dirs_on_their_way.insert(*dir));
        if dirs.is_empty() {
            return Ok(HashSet::new());
        }
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut new = HashSet::new();
        for dir in dirs {
            if tx.entry(dir)?.is_none() {
                new.insert(dir);
            }
        }
        Ok(new)
    }

    /// Merges and applies the batches that have come, as one: one sync of the disk serves them all.
    pub(super) fn merge_batches(&mut self) -> Result<(), Fail> {
        let Some(mut peer) = self.peer.take() else {
            self.batches.clear();
            return Ok(());
        };
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        let (mut changed, mut receipts, mut told) = (Vec::new(), Vec::new(), false);
        while let Some(Ready { batch, early, dirs, .. }) = self.next_of_group(changed.len()) {
            self.early.extend(early);
            self.early_dirs.extend(dirs);
            let merged = match peer.receiver.handle_batch(&mut tx, &batch) {
                Ok(m) => m,
                Err(link::ReceiveError::Index(e)) => return Err(e.into()),
                Err(link::ReceiveError::WeAreRolledBack { .. }) => return self.rebuild(),
                Err(e) => return Err(Fail::Peer(e.to_string())),
            };
            peer.sender.handle_merged(&merged.echoes);
            self.counts.received += batch.entries.len() as u64;
            told |= batch.knowledge.is_some() || batch.to > batch.from;
            for inline in batch.inline {
                self.contents.put_inline(inline.entry, inline.version, inline.bytes);
            }
            for a in merged.anomalies {
                self.log(Level::Warn, format!("odd claims of the other side: {a:?}"));
            }
            changed.extend(merged.changed);
            receipts.push(merged.receipt);
        }
        self.peer = Some(peer);
        changed.sort_unstable();
        changed.dedup();
        self.take_merged(tx, &changed, told)?;
        self.drop_early()?;
        self.status.idle = false;
        self.tell_status_now()?;
        // A receipt promises that what was merged is durable.
        self.harden_merges()?;
        crash::at(Point::ReceiptDue);
        receipts.into_iter().try_for_each(|receipt| self.send(Message::Receipt(receipt)))
    }

    /// The next batch that is there, while a group has room for it.
    pub(super) fn next_of_group(&mut self, entries: usize) -> Option<Ready> {
        let fits =
            |next: &Ready| entries == 0 || entries + next.batch.entries.len() <= apply::ENTRIES_PER_PLAN;
        if self.batches.front().is_some_and(fits) { self.batches.pop_front() } else { None }
    }

    /// Commits what was merged and brings it to the disk, or remembers it until that may be done.
    pub(super) fn take_merged(
        &mut self,
        mut tx: Tx<'_>,
        changed: &[EntryId],
        told: bool,
    ) -> Result<(), Fail> {
        // Few that cannot be planned yet are remembered one by one, so that what the crawl records meanwhile need
        // not be planned with them.
        let few = changed.len() + self.queue.len() <= QUEUE_MAX;
        let remember = !self.may_plan() && few && self.is_planned();
        if remember {
            changed.iter().for_each(|id| tx.add_pending(*id));
            self.planned = tx.head();
        }
        if tx.head() != self.head || !changed.is_empty() || told {
            self.drop_overtaken(&mut tx, changed)?;
            self.commit_lazily(tx)?;
            self.merges_lazy = true;
            crash::at(Point::Merged);
        }
        if remember {
            changed.iter().for_each(|id| _ = self.enqueue(*id));
        } else if !self.may_plan() {
            // Found in the feed when the crawl is over: keeping them here would grow with the tree.
            self.backlog_from.get_or_insert(self.planned);
        } else {
            for chunk in changed.chunks(apply::ENTRIES_PER_PLAN) {
                self.set_phase(Phase::Applying);
                self.plan_and_apply(chunk)?;
            }
            self.advance_planned()?;
        }
        Ok(())
    }

    /// What was staged for a batch and not used is not kept: what still wants it asks again.
    pub(super) fn drop_early(&mut self) -> Result<(), Fail> {
        for (_, e) in std::mem::take(&mut self.early) {
            self.volume.unstage(&e.staged).map_err(Fail::Volume)?;
        }
        self.early_dirs.clear();
        Ok(())
    }

    pub(super) fn pump_send(&mut self) -> Result<bool, Fail> {
        let Some(mut peer) = self.peer.take() else { return Ok(false) };
        let result = self.pump_peer(&mut peer);
        self.peer = Some(peer);
        result
    }

    pub(super) fn pump_peer(&mut self, peer: &mut Peer) -> Result<bool, Fail> {
        let now_ms = steady_ns() / 1_000_000;
        let state = (self.head, self.messages_in);
        if self.send_blocked_at == Some(state) && peer.sender.poll_at_ms().is_none_or(|t| t > now_ms) {
            return Ok(false);
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        let mut batches = Vec::new();
        while let Some(mut out) = peer.sender.poll(&mut tx, now_ms)? {
            if peer.inline {
                for wish in std::mem::take(&mut out.inline) {
                    if let Some(bytes) = self.read_small(&mut tx, &wish)? {
                        out.batch.inline.push(link::Inline {
                            entry: wish.entry,
                            version: wish.version,
                            bytes,
                        });
                    }
                }
            }
            self.shipped_n = self.shipped_n.max(out.batch.to).max(self.head);
            batches.push(out.batch);
        }
        if batches.is_empty() {
            self.send_blocked_at = Some(state);
            let sent_all = peer.sender.at_head(&tx);
            if self.status.sent_all != sent_all {
                self.status.sent_all = sent_all;
                self.tell_status_now()?;
            }
            return Ok(false);
        }
        self.status.sent_all = false;
        drop(tx);
        // A change must not leave before it is durable: its dot would be given out twice.
        self.harden()?;
        crash::at(Point::LocalDurable);
        for batch in batches {
            self.send(Message::Batch(batch))?;
        }
        Ok(true)
    }

    pub(super) fn send(&mut self, m: Message) -> Result<(), Fail> {
        self.messages_out += weight(&m);
        self.post(FromEngine::Link(m))
    }

    pub(super) fn post(&mut self, m: FromEngine) -> Result<(), Fail> {
        // The session is gone: there is nobody left to tell, so this ends quietly.
        if self.out.send(m).is_err() {
            self.stopping = true;
        }
        Ok(())
    }

    pub(super) fn beat(&mut self) -> Result<(), Fail> {
        self.last_beat = Instant::now();
        if self.peer.is_some() {
            let (head, scanned) = (self.head, self.scanned && self.crawled);
            self.send(Message::Heartbeat { head, scanned })?;
        }
        Ok(())
    }
}
