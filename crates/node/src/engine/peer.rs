//! The engine's end of a link: judging who introduces itself, merging what comes, sending what is new.

use super::link::{Link, LinkId, Peer};
use super::observe::Taking;
use super::open::SETTING_LOST;
use super::pace::{self, Pace};
use super::stager::{self, Early, Ready};
use super::{ENTRIES_PER_BATCH, Engine, Fail, FromEngine, QUEUE_MAX, apply, steady_ns};
use crate::api::{Level, Phase, Side};
use crate::sites;
use driftless_core::link::{self, HelloVerdict, Message, SendLimits, Sender};
use driftless_core::rows::Table;
use driftless_core::{Dot, EntryId, Tx, local, tx};
use driftless_net::size_of_batch;
use driftless_volume::crash::{self, Point};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A batch with no more files, and no more bytes of them, is staged by the engine itself if it is idle.
const AT_ONCE_FILES_MAX: usize = 4;
const AT_ONCE_BYTES_MAX: usize = 256 << 10;
/// How long what third replicas changed waits for the peer to hear it from them, if it hears them: a mesh would send all
/// of it several times else.
const RELAY_DELAY_MS: u64 = 2000;

impl Engine {
    pub(super) fn handle_message(&mut self, id: LinkId, message: Message) -> Result<(), Fail> {
        match message {
            Message::Hello(hello) => self.handle_hello(id, &hello),
            Message::Heads(heads) => self.take_heads(&heads),
            Message::Batch(batch) => {
                self.count_batch(id, &batch)?;
                // Before the first crawl is over nothing is planned: contents wait in memory, not staged.
                let useful = (self.may_plan() && !self.stages_at_once(&batch)) || self.staging > 0;
                if useful && self.stager.is_some() {
                    let new_dirs = self.new_dirs_of(&batch)?;
                    if let Some(stager) = &mut self.stager {
                        stager.give(id, batch, new_dirs);
                        self.staging += 1;
                    }
                } else {
                    self.batches.push_back(Ready::plain(id, batch));
                }
                Ok(())
            }
            Message::Receipt(receipt) => {
                let Some(peer) = self.links.peer_mut(id) else { return Ok(()) };
                peer.pace.receipt(receipt.seq);
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
                if let Some(peer) = self.links.peer_mut(id) {
                    peer.sender.handle_held(&held);
                }
                self.found_there(id, &held)
            }
            Message::Want(want) => self.take_want(id, want),
            Message::Piece(piece) => self.take_piece(id, piece),
            Message::NotHere(answer) => self.take_not_here(id, answer),
            Message::RecipeWant(want) => self.serve_recipe(id, want),
            Message::Recipe(part) => self.take_recipe(id, part),
            Message::Heartbeat { head, scanned } => {
                let dry_run = self.shared.dry_run;
                let tuning = self.links.get(id).map(|link| link.tuning).unwrap_or_default();
                if let Some(peer) = self.links.peer_mut(id) {
                    (peer.head, peer.head_told) = (head, true);
                    if peer.scanned != scanned {
                        peer.scanned = scanned;
                        peer.tune(tuning);
                    }
                    // Its hello said no only because it was yet to compare what it has: else each small change would take
                    // a round trip more, for the want, as long as this connection stands.
                    if scanned && !peer.has_tree && !peer.inline && !dry_run {
                        peer.inline = true;
                        peer.sender.send_inline();
                    }
                    let replica = peer.id;
                    self.note_announced(replica, head);
                }
                Ok(())
            }
            Message::Bye { reason } => Err(Fail::Peer(reason)),
        }
    }

    pub(super) fn handle_hello(&mut self, id: LinkId, hello: &link::Hello) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        self.check_speaker(id, hello.replica)?;
        let refused =
            |what: &str, advice: &str| Err(Fail::Refused { what: what.into(), advice: advice.into() });
        match link::check_hello(&mut tx, self.volume_id, hello)? {
            HelloVerdict::Fine { version, start_cursor, distrusted } => {
                let me = tx.me();
                if self.volume_id == 0 {
                    self.take_volume_id(hello.volume, me, hello.replica)?;
                }
                let tuning = self.links.get(id).map(|link| link.tuning).unwrap_or_default();
                // How full and how old batches get is tuned below.
                let limits = SendLimits {
                    window: pace::LIGHT_WINDOW,
                    batch_entries: ENTRIES_PER_BATCH,
                    // When batches leave beside others is decided by their pace.
                    fill_rows: 1,
                    relay_delay_ms: if self.service.is_some() { RELAY_DELAY_MS } else { 0 },
                    inline: hello.inline,
                    ..SendLimits::default()
                };
                let mut sender =
                    Sender::new(hello.replica, start_cursor, tx::knowledge_vv(&hello.knowledge), limits);
                sender.distrust(distrusted);
                sender.hears_itself(hello.cursors.iter().map(|c| c.replica).filter(|r| *r != me));
                let mut peer = Peer {
                    id: hello.replica,
                    version,
                    sender,
                    pace: Pace::default(),
                    receiver: self.receiver_for(id, hello.replica),
                    scanned: false,
                    head: 0,
                    head_told: false,
                    inline: hello.inline,
                    has_tree: hello.scanned,
                    heads_sent: BTreeMap::new(),
                    held_told: None,
                    held_looked_at: None,
                };
                peer.tune(tuning);
                let key = self.links.get(id).and_then(|link| link.key);
                self.note_peer(peer.id, &hello.site, key);
                self.introduced(id, peer)?;
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

    /// The peer is known now. An older connection to it has ended, though nobody has noticed.
    fn introduced(&mut self, id: LinkId, peer: Peer) -> Result<(), Fail> {
        let same: Vec<LinkId> = self
            .links
            .peers()
            .filter(|(other, p)| *other != id && p.id == peer.id)
            .map(|(id, _)| id)
            .collect();
        for other in same {
            let replaced = Err(Fail::Peer("it has connected again".into()));
            self.contain(other, replaced)?;
        }
        if let Some(link) = self.links.get_mut(id) {
            link.peer = Some(peer);
        }
        self.ask_new_source();
        Ok(())
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
        let import = self.service.is_none() && self.side == Side::A && !peer_has_states;
        if self.taking != Taking::Watch {
            self.commit(tx)?; // begun already, with another peer
        } else if import {
            self.import(tx)?;
        } else {
            self.taking = Taking::Adopt;
            self.commit(tx)?;
            self.set_phase(Phase::Receiving);
        }
        Ok(())
    }

    /// What this tree has is the volume.
    fn import(&mut self, mut tx: Tx<'_>) -> Result<(), Fail> {
        self.taking = Taking::Import;
        let planned = self.is_planned();
        local::import_root(&mut tx)?;
        self.commit(tx)?;
        if planned {
            self.planned = self.head;
        }
        self.start_crawl();
        Ok(())
    }

    /// A daemon's engine needs no peer to look at its tree, if it is the first of its volume.
    pub(super) fn begin_alone(&mut self) -> Result<(), Fail> {
        let Some(service) = &self.service else { return Ok(()) };
        if self.scanned || !service.first || self.lost_index()? {
            return Ok(());
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let tx = Tx::open(&*snapshot, self.env())?;
        self.import(tx)
    }

    /// True for a few small contents while there is nothing else to do: this thread stages them sooner than it could hand them to another
    /// and get them back.
    fn stages_at_once(&self, batch: &link::Batch) -> bool {
        let bytes: usize = batch.inline.iter().map(|inline| inline.bytes.len()).sum();
        batch.inline.len() <= AT_ONCE_FILES_MAX
            && bytes <= AT_ONCE_BYTES_MAX
            && self.staging == 0
            && self.batches.is_empty()
            && self.queue.is_empty()
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

    /// Merges and applies the batches that have come from one peer, as one: one sync of the disk serves them all.
    pub(super) fn merge_batches(&mut self) -> Result<(), Fail> {
        let Some(id) = self.batches.front().map(|ready| ready.link) else { return Ok(()) };
        let Some(link) = self.links.take(id) else { return self.drop_batch() };
        self.merging_from = Some(id);
        let result = self.merge_group(id, link).and_then(|group| self.take_group(id, group));
        self.merging_from = None;
        // What was staged for a group that was refused is not needed.
        self.drop_early()?;
        self.contain(id, result)
    }

    /// The connection that it came by has ended: it comes again by the next.
    fn drop_batch(&mut self) -> Result<(), Fail> {
        if let Some(Ready { early, dirs, .. }) = self.batches.pop_front() {
            self.keep_early(early)?;
            self.early_dirs.extend(dirs);
            self.drop_early()?;
        }
        Ok(())
    }

    fn keep_early(&mut self, early: HashMap<(EntryId, Dot), Early>) -> Result<(), Fail> {
        if self.early.is_empty() {
            self.early = early;
            return Ok(());
        }
        for (key, staged) in early {
            // Two batches may bring the same.
            if let Some(other) = self.early.insert(key, staged) {
                self.volume.unstage(&other.staged).map_err(Fail::Volume)?;
            }
        }
        Ok(())
    }

    fn merge_group(&mut self, id: LinkId, mut link: Link) -> Result<Group, Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        let merged = self.merge_rows((id, &mut link), &mut tx);
        self.links.put(id, link);
        let mut group = merged?;
        self.commit_merged(tx, &mut group)?;
        Ok(group)
    }

    fn merge_rows(&mut self, (id, link): (LinkId, &mut Link), tx: &mut Tx<'_>) -> Result<Group, Fail> {
        let Some(peer) = &mut link.peer else {
            return Err(Fail::Peer("it sent entries before it introduced itself".into()));
        };
        let (mut group, mut refusals) = (Group::default(), Vec::new());
        while let Some(Ready { batch, bytes, early, dirs, .. }) = self.next_of_group(id, group.changed.len())
        {
            link.batches = link.batches.saturating_sub(1);
            link.batch_bytes = link.batch_bytes.saturating_sub(bytes);
            debug_assert!(
                link.batches > 0 || link.batch_bytes == 0,
                "{} bytes of no batch",
                link.batch_bytes
            );
            self.keep_early(early)?;
            self.early_dirs.extend(dirs);
            let merged = match peer.receiver.handle_batch(tx, &batch) {
                Ok(m) => m,
                Err(link::ReceiveError::Index(e)) => return Err(e.into()),
                Err(link::ReceiveError::WeAreRolledBack { .. }) => {
                    return self.rebuild().map(|()| Group::default());
                }
                Err(e) => return Err(Fail::Peer(e.to_string())),
            };
            // Its cursor has moved: what was looked at while the batch was being staged says nothing of it.
            peer.held_looked_at = None;
            peer.sender.handle_merged(&merged.echoes);
            self.counts.received += batch.entries.len() as u64;
            group.told |= batch.knowledge.is_some() || batch.to > batch.from;
            for inline in batch.inline {
                self.contents.put_inline(inline.entry, inline.version, inline.bytes);
            }
            for a in merged.anomalies {
                self.log(Level::Warn, format!("odd claims of the other side: {a:?}"));
            }
            if let Some((entry, why)) = merged.receipt.refused.first() {
                let n = merged.receipt.refused.len();
                refusals.push(format!("refused {n} of what it sent, {entry} first: {why}"));
            }
            group.changed.extend(merged.changed);
            group.receipts.push(merged.receipt);
        }
        let who = peer.id;
        let site = sites::name(tx, who)?.unwrap_or_else(|| who.to_string());
        refusals.into_iter().for_each(|text| self.log(Level::Warn, format!("{site}: {text}")));
        group.changed.sort_unstable();
        group.changed.dedup();
        Ok(group)
    }

    /// Brings to the disk what was merged, and acknowledges it.
    fn take_group(&mut self, id: LinkId, group: Group) -> Result<(), Fail> {
        // The others may lack what this peer brought.
        self.links.look_again();
        self.entries_changed(&group.changed)?;
        self.plan_merged(&group)?;
        self.drop_early()?;
        self.status.idle = false;
        self.tell_status_now()?;
        // A receipt promises that what was merged is durable.
        self.harden_merges()?;
        crash::at(Point::ReceiptDue);
        group.receipts.into_iter().try_for_each(|receipt| self.send_to(id, Message::Receipt(receipt)))
    }

    /// The next batch that is there, while a group has room for it. A group is of one peer: what is wrong with it is
    /// nobody else's trouble.
    fn next_of_group(&mut self, id: LinkId, entries: usize) -> Option<Ready> {
        let fits = |next: &Ready| {
            next.link == id && (entries == 0 || entries + next.batch.entries.len() <= apply::ENTRIES_PER_PLAN)
        };
        if self.batches.front().is_some_and(fits) { self.batches.pop_front() } else { None }
    }

    fn commit_merged(&mut self, mut tx: Tx<'_>, group: &mut Group) -> Result<(), Fail> {
        // Few that cannot be planned yet are remembered one by one, so that what the crawl records meanwhile need
        // not be planned with them.
        let few = group.changed.len() + self.queue.len() <= QUEUE_MAX;
        group.remembered = !self.may_plan() && few && self.is_planned();
        if group.remembered {
            group.changed.iter().for_each(|id| tx.add_pending(*id));
            self.planned = tx.head();
        }
        if tx.head() != self.head || !group.changed.is_empty() || group.told {
            self.drop_overtaken(&mut tx, &group.changed)?;
            self.commit_lazily(tx)?;
            self.merges_lazy = true;
            crash::at(Point::Merged);
        }
        Ok(())
    }

    /// Plans what was merged and committed, or remembers it until that may be done.
    fn plan_merged(&mut self, group: &Group) -> Result<(), Fail> {
        if group.remembered {
            group.changed.iter().for_each(|id| _ = self.enqueue(*id));
        } else if !self.may_plan() {
            // Found in the feed when the crawl is over: keeping them here would grow with the tree.
            self.backlog_from.get_or_insert(self.planned);
        } else {
            for chunk in group.changed.chunks(apply::ENTRIES_PER_PLAN) {
                self.set_phase(Phase::Applying);
                self.plan_and_apply(chunk)?;
                self.beat_if_due()?;
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

    /// Sends a peer what it lacks, as far as its window allows. True if there was anything.
    pub(super) fn pump_link(&mut self, id: LinkId, link: &mut Link) -> Result<bool, Fail> {
        let now_ms = steady_ns() / 1_000_000;
        let state = (self.head, link.messages_in);
        let due = link.poll_at_ms().is_some_and(|t| t <= now_ms);
        if link.peer.is_none() || link.is_full() || (link.send_blocked_at == Some(state) && !due) {
            return Ok(false);
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = self.open_tx(&*snapshot)?;
        self.pump_news(id, link, &mut tx, now_ms)?;
        let age_limit_ms = link.tuning.container_age_ms;
        let (mut batches, mut heads, mut bytes) = (Vec::new(), Vec::new(), 0);
        while !link.is_full_with(bytes) {
            let Some(peer) = &mut link.peer else { return Ok(false) };
            if !peer.pace.is_open(peer.sender.backlog(tx.head()), age_limit_ms, now_ms) {
                break;
            }
            let Some(mut out) = peer.sender.poll(&mut tx, now_ms)? else { break };
            peer.pace.sent(out.batch.seq, out.batch.entries.len(), now_ms);
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
            if let Some(claim) = &out.batch.knowledge {
                heads.extend(self.heads_before(&tx, claim, &mut peer.heads_sent)?);
            }
            self.shipped_n = self.shipped_n.max(out.batch.to).max(self.head);
            bytes += size_of_batch(&out.batch);
            batches.push(out.batch);
        }
        let Some(peer) = &mut link.peer else { return Ok(false) };
        if batches.is_empty() {
            link.send_blocked_at = Some(state);
            link.sent_all = peer.sender.at_head(&tx);
            return Ok(false);
        }
        link.sent_all = false;
        drop(tx);
        // A change must not leave before it is durable: its dot would be given out twice.
        self.harden()?;
        crash::at(Point::LocalDurable);
        if !heads.is_empty() {
            self.send_on((id, link), Message::Heads(heads))?;
        }
        for batch in batches {
            self.send_on((id, link), Message::Batch(batch))?;
        }
        Ok(true)
    }

    pub(super) fn post(&mut self, m: FromEngine) -> Result<(), Fail> {
        // The session is gone: there is nobody left to tell, so this ends quietly.
        if self.out.send(m).is_err() {
            self.stopping = true;
        }
        Ok(())
    }
}

/// What was merged of one peer's batches in one transaction.
#[derive(Default)]
struct Group {
    changed: Vec<EntryId>,
    receipts: Vec<link::Receipt>,
    /// A cursor moved, or knowledge did.
    told: bool,
    /// It is to be planned later, entry by entry.
    remembered: bool,
}
