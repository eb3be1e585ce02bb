//! The sending end of a feed: walks it and stacks rows into batches.
//!
//! The walk. `walked` is the feed position up to which every row has been sent, skipped or put aside.
//! Rows that the peer's knowledge covers are skipped. *Relayed* rows, those with nothing new of our
//! own, are put aside (`held`) for a moment, because in a mesh the peer most likely hears them from
//! their author; rows behind them go meanwhile (`ahead`). A batch says `to`: the receiver may move its
//! cursor there, so `to` stops before the first held row and the first ahead row without a receipt.
//!
//! The pace. With nothing in flight a batch leaves at once; else when enough has come together, when its oldest
//! change reaches the age limit, or when a receipt frees a place in the window. So a lone change has no delay
//! and a stream of changes goes in few batches. The first batches after a quiet time are small, so that
//! the receiver starts early.
//!
//! Losses. Carriers keep order and lose only by ending, after which a new sender starts from the
//! receiver's cursor. Nevertheless a receipt that shows that the receiver did not move to `to` makes the
//! sender go back.

use super::hello::tag_at;
use super::message::{Batch, Held, Receipt};
use super::peer::{peer_row, put_peer_row};
use super::receiver::{Echoes, canonical};
use crate::entry::Entry;
use crate::id::{Dot, EntryId, ReplicaId};
use crate::meta::{Content, Digest};
use crate::mutant::mutant;
use crate::tx::{EntryRow, Error, Knowledge, Result, Tx, knowledge_vv};
use crate::vv::VersionVector;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

/// Contents up to this length travel inside batches.
pub const INLINE_LEN_MAX: u64 = 128 << 10;
/// Rows looked at in one poll: bounds its time and what the transaction keeps in memory. A poll that
/// ends here sends what it has, be it only the positions passed.
const WALK_MAX: usize = 8192;
/// Rows read from the feed at once.
const WALK_STEP: usize = 256;
/// Most relayed rows put aside, and most rows sent ahead of them; the walk stops there until some are due.
const HELD_MAX: usize = 8192;
/// Most positions remembered that the peer itself sent. Beyond it some states go back to their sender: waste, no damage.
const ECHOES_MAX: usize = 65_536;
/// A state that arrived differently is sent again this often, then reported.
const RESENDS_MAX: u8 = 3;
/// Entries being sent again at once; more are reported without trying: then it is no accident any more.
const TRIES_MAX: usize = 1024;
/// About what an entry or an inline content takes beside its bytes.
const ITEM_OVERHEAD_BYTES: u64 = 32;

/// Bounds and delays of a [`Sender`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendLimits {
    /// A batch is full with this many bytes, inline contents counted.
    pub batch_bytes: u64,
    /// A batch is full with this many entries.
    pub batch_entries: usize,
    /// Size of the first batch after a quiet time; doubles up to `batch_bytes`.
    pub first_batch_bytes: u64,
    /// Batches without a receipt at once.
    pub window: usize,
    /// With something in flight, a batch that is not full waits until this many feed positions are behind it ...
    pub fill_rows: u64,
    /// ... or until its oldest change was seen this long ago.
    pub age_limit_ms: u64,
    /// How long relayed rows wait for the peer to hear them from elsewhere; 0 if it hears no one else.
    pub relay_delay_ms: u64,
    /// Go back if there is no receipt for this long. `None` for carriers that do not lose: there a slow
    /// receiver must not be sent more.
    pub resend_after_ms: Option<u64>,
    /// Wish small contents inside batches: what the peer's hello asked for. See also [`Sender::send_inline`].
    pub inline: bool,
}

impl Default for SendLimits {
    fn default() -> Self {
        Self {
            // Up to `window` of these are in memory at both ends.
            batch_bytes: 16 << 20,
            batch_entries: 8192,
            first_batch_bytes: 1 << 20,
            window: 3,
            fill_rows: 1024,
            age_limit_ms: 30_000,
            relay_delay_ms: 2_000,
            resend_after_ms: None,
            inline: true,
        }
    }
}

/// A batch to send, once the shell has read the small contents into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Without inline contents yet.
    pub batch: Batch,
    /// Contents to put inside if they can be read; what cannot is left out, the receiver will ask.
    pub inline: Vec<InlineWish>,
}

/// A small content that should travel inside a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InlineWish {
    /// Whose.
    pub entry: EntryId,
    /// Which version.
    pub version: Dot,
    /// The digest its bytes must have.
    pub identity: Digest,
    /// Their length, 1 to [`INLINE_LEN_MAX`].
    pub size: u64,
}

/// An entry whose state does not arrive. For the failures list; it is not tried again before it changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SendFailure {
    /// Which entry.
    pub entry: EntryId,
    /// Why.
    pub reason: SendFailureReason,
}

/// Why an entry's state does not arrive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SendFailureReason {
    /// The receiver refused it.
    Refused(String),
    /// With equal contexts the states differ, again and again: one dot with two meanings.
    Differs,
}

/// What is still to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    /// At most this many rows were not sent yet or have no receipt.
    pub rows: u64,
    /// Bytes without a receipt.
    pub in_flight_bytes: u64,
}

struct Flight {
    seq: u64,
    to: u64,
    sent_ms: u64,
    bytes: u64,
    rows: u64,
    states: Vec<(EntryId, u64)>,
    ahead: Vec<u64>,
}

/// Brings our feed to one peer.
pub struct Sender {
    peer: ReplicaId,
    limits: SendLimits,
    peer_knowledge: VersionVector,
    distrusted: BTreeSet<ReplicaId>,
    /// Replicas that the peer hears itself; `None`: all.
    heard: Option<BTreeSet<ReplicaId>>,
    /// Small contents go inside batches since later than the hello.
    inline_since_hello: bool,
    /// See the module's text.
    walked: u64,
    held: BTreeMap<u64, (EntryId, u64)>,
    ahead: BTreeSet<u64>,
    /// `to` of the last batch.
    sent_to: u64,
    /// Greatest `to` of all batches.
    sent_to_max: u64,
    /// The receiver's cursor, as far as it told.
    acked: u64,
    /// What the receiver told last of what is on its disk, in this connection.
    held_there: Option<Held>,
    in_flight: VecDeque<Flight>,
    seq: u64,
    /// Knowledge sent since the sender last went back.
    told: VersionVector,
    echoes: BTreeSet<u64>,
    resend: BTreeSet<EntryId>,
    tries: BTreeMap<EntryId, u8>,
    batch_bytes_now: u64,
    slot_freed: bool,
    /// Since when something has been waiting to be sent.
    waiting_since_ms: Option<u64>,
    /// Since when the peer's cursor could move over rows that need not be sent.
    idle_since_ms: Option<u64>,
    /// Since when we know what others changed and the peer may not know it.
    news_since_ms: Option<u64>,
    /// The last walk stopped only because it was long enough.
    walk_on: bool,
}

/// What a batch is made of while it is stacked.
#[derive(Default)]
struct Stack {
    entries: Vec<Entry>,
    included: HashSet<EntryId>,
    states: Vec<(EntryId, u64)>,
    wishes: Vec<InlineWish>,
    positions: Vec<u64>,
    bytes: u64,
    rows_looked_at: usize,
}

impl Sender {
    /// For a peer that has merged our feed up to `start_cursor` and knows `peer_knowledge`.
    pub fn new(
        peer: ReplicaId,
        start_cursor: u64,
        peer_knowledge: VersionVector,
        limits: SendLimits,
    ) -> Self {
        Self {
            peer,
            limits,
            peer_knowledge,
            distrusted: BTreeSet::new(),
            heard: None,
            inline_since_hello: false,
            walked: start_cursor,
            held: BTreeMap::new(),
            ahead: BTreeSet::new(),
            sent_to: start_cursor,
            sent_to_max: start_cursor,
            acked: start_cursor,
            held_there: None,
            in_flight: VecDeque::new(),
            seq: 0,
            told: VersionVector::new(),
            echoes: BTreeSet::new(),
            resend: BTreeSet::new(),
            tries: BTreeMap::new(),
            batch_bytes_now: limits.first_batch_bytes,
            slot_freed: false,
            waiting_since_ms: None,
            idle_since_ms: None,
            news_since_ms: None,
            walk_on: false,
        }
    }

    /// Skips nothing any more on account of these replicas' changes (their tags differ).
    pub fn distrust(&mut self, replicas: impl IntoIterator<Item = ReplicaId>) {
        self.distrusted.extend(replicas);
    }

    /// The replicas, besides this one, from which the peer hears directly: only what these changed waits before it is
    /// relayed. A peer that hears no others gets small contents with it.
    pub fn hears_itself(&mut self, replicas: impl IntoIterator<Item = ReplicaId>) {
        self.heard = Some(replicas.into_iter().collect());
    }

    /// Other bounds from now on: how full a batch gets, and how old its oldest change.
    pub fn tune(&mut self, batch_bytes: u64, age_limit_ms: u64) {
        self.limits.batch_bytes = batch_bytes;
        self.limits.first_batch_bytes = self.limits.first_batch_bytes.min(batch_bytes);
        self.limits.age_limit_ms = age_limit_ms;
        self.batch_bytes_now = self.batch_bytes_now.min(batch_bytes);
    }

    /// From now on small contents go inside batches: the peer has looked at its tree, which it had not when it said hello.
    /// Not with what is relayed: by now it may hear others, who bring the same.
    pub fn send_inline(&mut self) {
        self.inline_since_hello = true;
    }

    // ----- input

    /// The next batch, if one should leave now. `tx` must be a fresh transaction without changes: what
    /// it shows is the snapshot that the batch speaks of, and all of it is durable.
    pub fn poll(&mut self, tx: &mut Tx<'_>, now_ms: u64) -> Result<Option<Outgoing>> {
        debug_assert!(!tx.has_new_dots(), "what is not durable must not leave");
        self.go_back_if_unanswered(now_ms);
        if self.in_flight.len() >= self.limits.window {
            return Ok(None);
        }
        self.pass_acked();
        let knowledge = tx.knowledge()?;
        if !self.should_stack(tx.head(), &knowledge, tx.me(), now_ms) {
            return Ok(None);
        }
        let mut stack = Stack::default();
        self.stack_resends(tx, &mut stack)?;
        self.stack_due(tx, &mut stack, now_ms)?;
        let end = self.stack_new(tx, &mut stack, now_ms)?;
        self.finish(tx, stack, end, knowledge, now_ms)
    }

    /// Takes a receipt. Returns what cannot be brought to the peer.
    pub fn handle_receipt(&mut self, receipt: &Receipt) -> Vec<SendFailure> {
        self.note_heard(&receipt.knowledge);
        self.peer_knowledge.join(&receipt.knowledge);
        self.acked = self.acked.max(receipt.cursor.min(self.sent_to_max));
        let Some(i) = self.in_flight.iter().position(|f| f.seq == receipt.seq) else {
            return Vec::new();
        };
        let Some(flight) = self.in_flight.remove(i) else { return Vec::new() };
        self.slot_freed = true;
        for n in &flight.ahead {
            self.ahead.remove(n);
        }
        let failures = self.compare(flight.states, receipt);
        if receipt.cursor < flight.to && self.acked < flight.to {
            self.go_back();
        }
        failures
    }

    /// Takes what the peer says of its disk.
    pub fn handle_held(&mut self, held: &Held) {
        let cursor = held.cursor.min(self.sent_to_max);
        self.held_there = Some(Held { cursor, ..*held });
    }

    /// Takes note of what came from the peer itself, which it need not be sent. To be called before the
    /// next poll that can see it.
    pub fn handle_merged(&mut self, echoes: &Echoes) {
        if let Some(knowledge) = &echoes.knowledge {
            self.note_heard(knowledge);
            self.peer_knowledge.join(knowledge);
        }
        self.echoes.extend(echoes.positions.iter().filter(|n| **n > self.walked));
        for n in &echoes.positions {
            self.held.remove(n);
        }
        while self.echoes.len() > ECHOES_MAX {
            self.echoes.pop_last();
        }
    }

    // ----- output

    /// When [`Sender::poll`] should be called at the latest though nothing happened; in the past = at once.
    pub fn poll_at_ms(&self) -> Option<u64> {
        if self.in_flight.len() >= self.limits.window {
            return self.unanswered_at_ms();
        }
        if self.walk_on {
            return Some(0);
        }
        let held_since = self.held.first_key_value().map(|(_, (_, since))| *since);
        let due = held_since
            .into_iter()
            .chain(self.news_since_ms)
            .map(|t| t.saturating_add(self.limits.relay_delay_ms))
            .min();
        let aged = self.waiting_since_ms.map(|t| t.saturating_add(self.limits.age_limit_ms));
        let idle = self.idle_since_ms.map(|t| t.saturating_add(self.limits.age_limit_ms));
        [due, aged, idle, self.unanswered_at_ms()].into_iter().flatten().min()
    }

    /// True if the peer has, or needs not be sent, everything that `tx` shows, as far as receipts tell.
    pub fn at_head(&self, tx: &Tx<'_>) -> bool {
        self.in_flight.is_empty()
            && self.held.is_empty()
            && self.resend.is_empty()
            && self.walked.max(self.acked) >= tx.head()
    }

    /// True if all that was brought to the peer, or needs not be, is on its disk, as far as it told; but for the
    /// entries that it says wait.
    pub fn is_held(&self) -> bool {
        self.in_flight.is_empty() && self.held_there.is_some_and(|held| held.cursor >= self.acked)
    }

    /// What the peer told last of its disk in this connection.
    pub fn held_there(&self) -> Option<Held> {
        self.held_there
    }

    /// The receiver's cursor in our feed, as far as it told.
    pub fn acked_cursor(&self) -> u64 {
        self.acked
    }

    /// What the peer is known to know.
    pub fn peer_knowledge(&self) -> &VersionVector {
        &self.peer_knowledge
    }

    /// What is still to be sent when the feed ends at `head`.
    pub fn backlog(&self, head: u64) -> Backlog {
        let in_flight: u64 = self.in_flight.iter().map(|f| f.rows).sum();
        let to_walk = head.saturating_sub(self.walked.max(self.acked));
        Backlog {
            rows: to_walk + self.held.len() as u64 + self.resend.len() as u64 + in_flight,
            in_flight_bytes: self.in_flight.iter().map(|f| f.bytes).sum(),
        }
    }

    /// Writes down what the peer told of its cursor, its knowledge and its disk, for after the connection. Never
    /// needs a commit of its own. False if it is written already.
    pub fn save(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let before = peer_row(tx, self.peer)?;
        let mut row = before.clone();
        row.acked = row.acked.max(self.acked);
        row.knowledge.join(&self.peer_knowledge);
        row.held = self.held_there.unwrap_or(row.held);
        if row != before {
            put_peer_row(tx, self.peer, &row);
        }
        Ok(row != before)
    }

    // ----- pace

    fn should_stack(&mut self, head: u64, knowledge: &Knowledge, me: ReplicaId, now_ms: u64) -> bool {
        let work = head > self.walked
            || !self.resend.is_empty()
            || self.next_due(now_ms).is_some()
            || self.news_is_due(knowledge, me, now_ms)
            || self.cursor_is_due(now_ms);
        if !work {
            self.waiting_since_ms = None;
            return false;
        }
        let since = *self.waiting_since_ms.get_or_insert(now_ms);
        self.in_flight.is_empty()
            || self.slot_freed
            || head.saturating_sub(self.walked) >= self.limits.fill_rows
            || now_ms.saturating_sub(since) >= self.limits.age_limit_ms
    }

    /// True if we know what the peer neither knows nor was told, and can claim it without rows. What
    /// others changed the peer may hear from them: that waits like a relayed row.
    fn news_is_due(&mut self, knowledge: &Knowledge, me: ReplicaId, now_ms: u64) -> bool {
        let is_news = |r: &ReplicaId| {
            let n = knowledge.get(r).map_or(0, |k| k.n);
            *r != self.peer && n > self.peer_knowledge.get(*r).max(self.told.get(*r))
        };
        if !self.held.is_empty() || !self.ahead.is_empty() || !knowledge.keys().any(is_news) {
            self.news_since_ms = None;
            return false;
        }
        let own = is_news(&me);
        let since = *self.news_since_ms.get_or_insert(now_ms);
        own || now_ms.saturating_sub(since) >= self.limits.relay_delay_ms
    }

    fn cursor_is_due(&self, now_ms: u64) -> bool {
        self.idle_since_ms.is_some_and(|t| now_ms.saturating_sub(t) >= self.limits.age_limit_ms)
    }

    fn next_due(&self, now_ms: u64) -> Option<u64> {
        // Later rows were put aside later.
        let (n, (_, since)) = self.held.first_key_value().filter(|_| !mutant!(RelayForgotten))?;
        (now_ms.saturating_sub(*since) >= self.limits.relay_delay_ms).then_some(*n)
    }

    fn unanswered_at_ms(&self) -> Option<u64> {
        let after = self.limits.resend_after_ms?;
        self.in_flight.front().map(|f| f.sent_ms.saturating_add(after))
    }

    fn go_back_if_unanswered(&mut self, now_ms: u64) {
        if !mutant!(NothingSentAgain) && self.unanswered_at_ms().is_some_and(|t| now_ms >= t) {
            self.go_back();
        }
    }

    /// Forgets what is in flight and starts again from the receiver's cursor.
    fn go_back(&mut self) {
        self.walked = self.acked;
        self.sent_to = self.acked;
        self.held.clear();
        self.ahead.clear();
        self.in_flight.clear();
        self.told = VersionVector::new();
        // Entries sent once more for a mismatch stand in the feed and will be compared again only if
        // they are behind the cursor; so they are asked for again.
        self.resend.extend(self.tries.keys().copied());
        self.slot_freed = true;
    }

    /// A receiver that is further than our walk (after going back) needs nothing up to there.
    fn pass_acked(&mut self) {
        if self.walked < self.acked {
            self.walked = self.acked;
        }
        self.sent_to = self.sent_to.max(self.acked);
        self.held = self.held.split_off(&(self.acked + 1));
        self.echoes = self.echoes.split_off(&(self.walked + 1));
    }

    // ----- stacking

    fn covered(&self, ctx: &VersionVector) -> bool {
        if mutant!(AnyDotSkips) {
            return ctx.iter().any(|(r, n)| self.peer_has(Dot::new(r, n)));
        }
        ctx.iter().all(|(r, n)| self.peer_has(Dot::new(r, n)))
    }

    /// A replica has all that it did itself.
    fn peer_has(&self, dot: Dot) -> bool {
        dot.replica == self.peer
            || (self.peer_knowledge.covers(dot) && !self.distrusted.contains(&dot.replica))
    }

    fn stack_resends(&mut self, tx: &mut Tx<'_>, stack: &mut Stack) -> Result<()> {
        while let Some(id) = self.resend.first().copied() {
            if self.is_full(stack) {
                break;
            }
            self.resend.pop_first();
            if let Some(row) = tx.entry(id)? {
                self.push(tx, stack, &row, false)?;
            }
        }
        Ok(())
    }

    /// Held rows whose time has come.
    fn stack_due(&mut self, tx: &mut Tx<'_>, stack: &mut Stack, now_ms: u64) -> Result<()> {
        while let Some(n) = self.next_due(now_ms) {
            if self.is_full(stack) {
                break;
            }
            let Some((id, _)) = self.held.remove(&n) else { break };
            // A row that moved on in the feed is met again there.
            let Some(row) = tx.entry(id)?.filter(|row| row.n == n) else { continue };
            if !self.covered(&row.entry.ctx) {
                self.push(tx, stack, &row, false)?;
            }
        }
        Ok(())
    }

    /// Rows after `walked`. True if the feed's end was reached.
    fn stack_new(&mut self, tx: &mut Tx<'_>, stack: &mut Stack, now_ms: u64) -> Result<bool> {
        loop {
            let rows = tx.feed_after(self.walked, WALK_STEP)?;
            if rows.is_empty() {
                self.walked = self.walked.max(tx.head());
                return Ok(true);
            }
            for (n, id) in rows {
                if self.is_full(stack) || stack.rows_looked_at >= WALK_MAX {
                    return Ok(false);
                }
                stack.rows_looked_at += 1;
                let row = tx.entry_must(id)?;
                if row.n != n {
                    return Err(Error::Inconsistent(format!("feed row {n} of entry {id} is not its own")));
                }
                if row.entry.kind.is_dir() && self.is_nearly_full(stack) {
                    return Ok(false);
                }
                if !self.take_row(tx, stack, &row, now_ms)? {
                    return Ok(false);
                }
                self.walked = n;
            }
        }
    }

    /// Sends, skips or puts aside one row; false if it has to wait and with it all behind it.
    fn take_row(
        &mut self,
        tx: &mut Tx<'_>,
        stack: &mut Stack,
        row: &Arc<EntryRow>,
        now_ms: u64,
    ) -> Result<bool> {
        let ctx = &row.entry.ctx;
        if (self.echoes.remove(&row.n) || self.covered(ctx)) && !mutant!(EchoOn) {
            return Ok(true);
        }
        let me = tx.me();
        let relayed = self.peer_has(Dot::new(me, ctx.get(me)));
        if relayed && self.limits.relay_delay_ms > 0 && self.may_hear_elsewhere(ctx) {
            if self.held.len() >= HELD_MAX {
                return Ok(false);
            }
            self.held.insert(row.n, (row.entry.id, now_ms));
            return Ok(true);
        }
        if self.ahead.len() + stack.positions.len() >= HELD_MAX && !self.held.is_empty() {
            return Ok(false);
        }
        // Contents go along with what is relayed only if nobody else brings it to the peer.
        let hears_others = !self.limits.inline || self.heard.as_ref().is_some_and(|h| !h.is_empty());
        let others = relayed && self.limits.relay_delay_ms > 0 && hears_others;
        self.push(tx, stack, row, (self.limits.inline || self.inline_since_hello) && !others)?;
        Ok(true)
    }

    /// What the peer knows and was not told here it has heard elsewhere.
    fn note_heard(&mut self, knowledge: &VersionVector) {
        let Some(heard) = &mut self.heard else { return };
        let known = |r: ReplicaId| self.peer_knowledge.get(r).max(self.told.get(r));
        let elsewhere = knowledge.iter().filter(|(r, n)| *r != self.peer && *n > known(*r));
        heard.extend(elsewhere.map(|(r, _)| r));
    }

    /// True if somebody whom the peer hears itself made what it lacks of a row.
    fn may_hear_elsewhere(&self, ctx: &VersionVector) -> bool {
        let Some(heard) = &self.heard else { return true };
        ctx.iter().any(|(r, n)| heard.contains(&r) && !self.peer_has(Dot::new(r, n)))
    }

    fn is_full(&self, stack: &Stack) -> bool {
        stack.bytes >= self.batch_bytes_now || stack.entries.len() >= self.limits.batch_entries
    }

    /// True if the batch had better end before a directory: what is in it often follows it in the feed, and a receiver
    /// shows a new directory with all that comes with it at once.
    fn is_nearly_full(&self, stack: &Stack) -> bool {
        let (bytes, entries) = (stack.bytes, stack.entries.len());
        entries > 0
            && (bytes.saturating_mul(4) >= self.batch_bytes_now.saturating_mul(3)
                || entries.saturating_mul(4) >= self.limits.batch_entries.saturating_mul(3))
    }

    /// Adds a state, after those directories above it that the peer may not have.
    fn push(&self, tx: &mut Tx<'_>, stack: &mut Stack, row: &Arc<EntryRow>, inline: bool) -> Result<()> {
        stack.positions.push(row.n);
        if stack.included.contains(&row.entry.id) {
            return Ok(());
        }
        for above in self.unknown_above(tx, stack, &row.entry)? {
            add_state(stack, &above.entry);
        }
        add_state(stack, &row.entry);
        if inline {
            self.wish(stack, &row.entry);
        }
        Ok(())
    }

    /// Directories above `entry` that the peer is not known to have and the batch has not, uppermost first.
    fn unknown_above(&self, tx: &mut Tx<'_>, stack: &Stack, entry: &Entry) -> Result<Vec<Arc<EntryRow>>> {
        let mut found: Vec<Arc<EntryRow>> = Vec::new();
        let mut seen = HashSet::from([entry.id]);
        for link in entry.links.iter().filter(|_| !mutant!(AncestorsLeftOut)) {
            // A directory has one name, so what is above one is a chain.
            let first_of_chain = found.len();
            let mut id = link.at.parent;
            while !id.is_root() && !stack.included.contains(&id) && seen.insert(id) {
                // A parent we do not know ourselves comes with whoever knows it.
                let Some(row) = tx.entry(id)? else { break };
                if row.n <= self.acked || self.covered(&row.entry.ctx) {
                    break;
                }
                let Some(above) = row.entry.dir_link() else { break };
                id = above.at.parent;
                found.push(row);
            }
            found[first_of_chain..].reverse();
        }
        Ok(found)
    }

    fn wish(&self, stack: &mut Stack, entry: &Entry) {
        for v in entry.counting() {
            let Content::File { size, digest, .. } = v.content else { continue };
            if size > 0 && size <= INLINE_LEN_MAX && !self.peer_has(v.dot) {
                stack.bytes += size + ITEM_OVERHEAD_BYTES;
                stack.wishes.push(InlineWish { entry: entry.id, version: v.dot, identity: digest, size });
            }
        }
    }

    // ----- shipping

    fn finish(
        &mut self,
        tx: &mut Tx<'_>,
        stack: Stack,
        end: bool,
        knowledge: Knowledge,
        now_ms: u64,
    ) -> Result<Option<Outgoing>> {
        let stop = self.held.keys().next().into_iter().chain(self.ahead.first()).min();
        let stop = stop.filter(|_| !mutant!(HeldRowPassed));
        let to = stop.map_or(self.walked, |n| (n - 1).min(self.walked)).max(self.sent_to);
        let claims = (end && to >= tx.head()) || mutant!(KnowledgeBeforeHead);
        let news = claims && self.news_is_due(&knowledge, tx.me(), now_ms);
        self.walk_on = stack.rows_looked_at >= WALK_MAX;
        let cursor_only = to > self.sent_to && (self.cursor_is_due(now_ms) || self.walk_on);
        if stack.entries.is_empty() && !news && !cursor_only {
            self.idle_since_ms = (to > self.sent_to).then(|| self.idle_since_ms.unwrap_or(now_ms));
            self.waiting_since_ms = None;
            return Ok(None);
        }
        if claims {
            self.told.join(&knowledge_vv(&knowledge));
            self.news_since_ms = None;
        }
        self.seq += 1;
        let batch = Batch {
            seq: self.seq,
            from: self.sent_to,
            to,
            tag: tag_at(tx, to)?,
            entries: stack.entries,
            inline: Vec::new(),
            knowledge: claims.then_some(knowledge),
        };
        let ahead: Vec<u64> = stack.positions.iter().copied().filter(|n| *n > to).collect();
        self.ahead.extend(&ahead);
        self.in_flight.push_back(Flight {
            seq: self.seq,
            to,
            sent_ms: now_ms,
            bytes: stack.bytes,
            rows: batch.entries.len() as u64,
            states: stack.states,
            ahead,
        });
        self.sent_to = to;
        self.sent_to_max = self.sent_to_max.max(to);
        self.batch_bytes_now = match end {
            true => self.limits.first_batch_bytes,
            false => self.batch_bytes_now.saturating_mul(2).min(self.limits.batch_bytes),
        };
        self.slot_freed = false;
        self.waiting_since_ms = None;
        self.idle_since_ms = None;
        Ok(Some(Outgoing { batch, inline: stack.wishes }))
    }

    // ----- receipts

    /// States with the context we sent must be the states we sent.
    fn compare(&mut self, states: Vec<(EntryId, u64)>, receipt: &Receipt) -> Vec<SendFailure> {
        let mut sent: BTreeMap<EntryId, u64> = states.into_iter().collect();
        let mut failures = Vec::new();
        for (id, digest) in &receipt.states {
            match sent.remove(id) {
                Some(ours) if ours == *digest => {
                    self.tries.remove(id);
                }
                Some(_) => failures.extend(self.try_again(*id)),
                None => {}
            }
        }
        for (id, reason) in &receipt.refused {
            if sent.remove(id).is_some() {
                let reason = SendFailureReason::Refused(reason.clone());
                failures.push(SendFailure { entry: *id, reason });
            }
        }
        failures
    }

    fn try_again(&mut self, id: EntryId) -> Option<SendFailure> {
        let tries = self.tries.get(&id).copied().unwrap_or(0);
        if tries < RESENDS_MAX && (tries > 0 || self.tries.len() < TRIES_MAX) {
            self.tries.insert(id, tries + 1);
            self.resend.insert(id);
            return None;
        }
        self.tries.remove(&id);
        Some(SendFailure { entry: id, reason: SendFailureReason::Differs })
    }
}

fn add_state(stack: &mut Stack, entry: &Entry) {
    let (digest, len) = canonical(entry);
    stack.bytes += len as u64 + ITEM_OVERHEAD_BYTES;
    stack.states.push((entry.id, digest));
    stack.included.insert(entry.id);
    stack.entries.push(entry.clone());
}
