//! Links: what the engine keeps of each peer that is connected now.
//!
//! One engine has any number of links, each with machines of its own ([`Sender`], [`Receiver`], [`Fetcher`]), so a peer that is
//! slow or gone holds up nobody else. What comes by one is merged into the one index, where the senders of the others
//! find it: nothing is passed from link to link. What a peer remembers of another between connections is in the index
//! ([`driftless_core::link::PeerRow`]); a [`Link`] lasts as long as its connection, and its [`LinkId`] is never used again.

use super::pace::Pace;
use super::{Engine, Fail, FromEngine, HEARTBEAT_EVERY, wall_ns, weight};
use crate::outqueue::{OUT_BYTES_FULL, OUT_BYTES_MAX, OutQueue};
use driftless_core::link::{self, Batch, FeedCursor, FetchLimits, Fetcher, Message, Receiver, Sender, Want};
use driftless_core::membership::Key;
use driftless_core::{EntryId, ReplicaId, Tx};
use driftless_net::size_of_batch;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Batches of one peer that may be here at once without a receipt. Ours keep to [`super::pace::LIGHT_WINDOW`]; who sends
/// more than this fills our memory.
const BATCHES_MAX: usize = 16;
/// What these may take together: twice what as many as are on their way at once have at their greatest.
const BATCH_BYTES_MAX: usize = 256 << 20;
/// Wants that wait because what was asked for before has not been taken: twice what one of ours asks for at once.
const WANTS_MAX: usize = 8192;

/// A peer that has not looked at its tree may wait to hear that it has read our feed to its end, also where nothing in it is new
/// to it: so long it waits for word of that, instead of a container's age.
const CURSOR_AGE_MS: u64 = 50;

/// Names one connection to a peer. Given by whoever connects, each once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LinkId(pub(crate) u64);

impl LinkId {
    /// The one link of a session of two ends.
    pub(crate) const ONLY: LinkId = LinkId(0);
}

/// How what is sent to a peer is cut into batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// A batch is full with so many bytes.
    pub container_bytes: u64,
    /// Under load, a batch that is not full leaves when its oldest change is so old.
    pub container_age_ms: u64,
}

impl Tuning {
    /// Fewer bytes are not worth a message.
    pub const BYTES_MIN: u64 = 64 << 10;
    /// Several of these are in memory at both ends, for each link.
    pub const BYTES_MAX: u64 = 32 << 20;
    /// What a peer waits for longer than this is not worth saving messages for.
    pub const AGE_MS_MAX: u64 = 3_600_000;
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning { container_bytes: 8 << 20, container_age_ms: 30_000 }
    }
}

/// One connection to a peer.
pub(super) struct Link {
    /// The key that the other end has proven to have.
    pub(super) key: Option<Key>,
    /// Who it is; `None` until it has introduced itself.
    pub(super) peer: Option<Peer>,
    /// What is asked of it.
    pub(super) fetcher: Fetcher,
    /// How its batches are cut.
    pub(super) tuning: Tuning,
    /// Entries that are to be asked for when there is room.
    pub(super) no_room: VecDeque<EntryId>,
    /// Its batches that have come and are not merged yet.
    pub(super) batches: usize,
    pub(super) batch_bytes: usize,
    /// What it was sent and has not been taken; `None` if nobody counts.
    queue: Option<Arc<OutQueue>>,
    /// What it asks for, to be answered when there is room.
    wants: VecDeque<Want>,
    /// Head and messages when there was nothing to be sent to it the last time.
    pub(super) send_blocked_at: Option<(u64, u64)>,
    /// It has acknowledged all of our feed.
    pub(super) sent_all: bool,
    /// When its engine was heard last, in nanoseconds since 1970.
    pub(super) heard_ns: u64,
    /// Sums of what was got from and given to it.
    pub(super) messages_in: u64,
    pub(super) messages_out: u64,
}

/// A peer that has introduced itself.
pub(super) struct Peer {
    pub(super) id: ReplicaId,
    /// Of the protocol that both speak.
    pub(super) version: u16,
    pub(super) sender: Sender,
    pub(super) pace: Pace,
    pub(super) receiver: Receiver,
    /// Its whole tree has been looked at since its start.
    pub(super) scanned: bool,
    /// Its tree was taken in as a whole before this session.
    pub(super) has_tree: bool,
    /// How far its feed goes, as far as it has told.
    pub(super) head: u64,
    /// It has told.
    pub(super) head_told: bool,
    pub(super) inline: bool,
    /// The heads that it was sent.
    pub(super) heads_sent: BTreeMap<ReplicaId, u64>,
    /// What it was told of this disk, and what was looked at then.
    pub(super) held_told: Option<link::Held>,
    pub(super) held_looked_at: Option<(u64, u64)>,
}

impl Peer {
    /// Cuts its batches like this from now on.
    pub(super) fn tune(&mut self, tuning: Tuning) {
        let age_limit_ms = match self.scanned {
            true => tuning.container_age_ms,
            false => tuning.container_age_ms.min(CURSOR_AGE_MS),
        };
        self.sender.tune(tuning.container_bytes, age_limit_ms);
    }
}

impl Link {
    fn new(key: Option<Key>, queue: Option<Arc<OutQueue>>) -> Link {
        Link {
            key,
            peer: None,
            fetcher: Fetcher::new(FetchLimits::default()),
            tuning: Tuning::default(),
            no_room: VecDeque::new(),
            batches: 0,
            batch_bytes: 0,
            queue,
            wants: VecDeque::new(),
            send_blocked_at: None,
            sent_all: false,
            heard_ns: wall_ns(),
            messages_in: 0,
            messages_out: 0,
        }
    }

    /// True if what was found of its sender was found with the feed ending at `head`.
    pub(super) fn is_current(&self, head: u64) -> bool {
        self.send_blocked_at.is_some_and(|(at, _)| at == head)
    }

    /// So much waits for it that nothing is sent that can wait, too.
    pub(super) fn is_full(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.is_full())
    }

    /// True if it would be with so many bytes more.
    pub(super) fn is_full_with(&self, bytes: usize) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.bytes() + bytes >= OUT_BYTES_FULL)
    }

    fn count_out(&mut self, message: &Message) {
        self.messages_out += weight(message);
        if let Some(queue) = &self.queue {
            queue.add(message);
        }
    }

    /// When there is something to do for it though nothing happens.
    pub(super) fn poll_at_ms(&self) -> Option<u64> {
        let peer = self.peer.as_ref().filter(|_| !self.is_full())?;
        let sends = match peer.pace.closed_until_ms() {
            // Its next chance is a receipt.
            Some(u64::MAX) => None,
            Some(at_ms) => Some(at_ms),
            None => peer.sender.poll_at_ms(),
        };
        [sends, peer.receiver.poll_at_ms()].into_iter().flatten().min()
    }
}

/// All links of an engine.
#[derive(Default)]
pub(super) struct Links {
    up: BTreeMap<LinkId, Link>,
    /// Somebody has said something since the start.
    pub(super) met: bool,
    /// Sums of links that have ended.
    ended_in: u64,
    ended_out: u64,
}

impl Links {
    pub(super) fn get(&self, id: LinkId) -> Option<&Link> {
        self.up.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.up.get_mut(&id)
    }

    pub(super) fn ids(&self) -> Vec<LinkId> {
        self.up.keys().copied().collect()
    }

    /// Takes a link out, to work with it and the engine at once; [`Links::put`] brings it back.
    pub(super) fn take(&mut self, id: LinkId) -> Option<Link> {
        self.up.remove(&id)
    }

    pub(super) fn put(&mut self, id: LinkId, link: Link) {
        self.up.insert(id, link);
    }

    pub(super) fn len(&self) -> usize {
        self.up.len()
    }

    /// Links whose peers have introduced themselves.
    pub(super) fn peers(&self) -> impl Iterator<Item = (LinkId, &Peer)> {
        self.up.iter().filter_map(|(id, link)| Some((*id, link.peer.as_ref()?)))
    }

    pub(super) fn peer(&self, id: LinkId) -> Option<&Peer> {
        self.up.get(&id)?.peer.as_ref()
    }

    pub(super) fn peer_mut(&mut self, id: LinkId) -> Option<&mut Peer> {
        self.up.get_mut(&id)?.peer.as_mut()
    }

    /// Nothing is asked of anybody.
    pub(super) fn ask_nothing(&self) -> bool {
        self.up.values().all(|link| link.fetcher.is_empty() && link.no_room.is_empty())
    }

    pub(super) fn fetcher_mut(&mut self, id: LinkId) -> Option<&mut Fetcher> {
        self.up.get_mut(&id).map(|link| &mut link.fetcher)
    }

    /// Every peer that is connected has acknowledged all of our feed, and there is one.
    pub(super) fn sent_all(&self) -> bool {
        !self.up.is_empty() && self.up.values().all(|link| link.sent_all)
    }

    pub(super) fn messages_in(&self) -> u64 {
        self.ended_in + self.up.values().map(|link| link.messages_in).sum::<u64>()
    }

    pub(super) fn messages_out(&self) -> u64 {
        self.ended_out + self.up.values().map(|link| link.messages_out).sum::<u64>()
    }

    /// What has been merged from one peer may be news for the others.
    pub(super) fn look_again(&mut self) {
        self.up.values_mut().for_each(|link| link.send_blocked_at = None);
    }

    pub(super) fn poll_at_ms(&self) -> Option<u64> {
        self.up.values().filter_map(Link::poll_at_ms).min()
    }
}

impl Engine {
    /// A connection to a peer: it is greeted.
    pub(super) fn link_up(
        &mut self,
        id: LinkId,
        key: Option<Key>,
        queue: Option<Arc<OutQueue>>,
    ) -> Result<(), Fail> {
        if self.setting_aside {
            let what = "it sets aside what is beyond a Cut first".to_owned();
            let e = Fail::Refused { what, advice: "it goes on by itself".into() };
            let whose = self.volume_name();
            return self.post(FromEngine::LinkEnded(id, e.into_error(&whose)));
        }
        let own = self.own_hello();
        let snapshot = self.store.snapshot()?;
        let mut hello = link::hello(&mut Tx::open(&*snapshot, self.env())?, &own)?;
        // Whom else we hear, though nothing has come yet: what they made need not be relayed.
        for (_, peer) in self.links.peers() {
            if !hello.cursors.iter().any(|c| c.replica == peer.id) {
                hello.cursors.push(FeedCursor { replica: peer.id, n: 0, tag: 0 });
            }
        }
        hello.cursors.sort_unstable_by_key(|c| c.replica);
        self.links.put(id, Link::new(key, queue));
        self.send_to(id, Message::Hello(hello))
    }

    /// Cuts its batches differently from now on.
    pub(super) fn tune(&mut self, id: LinkId, tuning: Tuning) {
        let Some(link) = self.links.get_mut(id) else { return };
        link.tuning = tuning;
        if let Some(peer) = &mut link.peer {
            peer.tune(tuning);
        }
    }

    /// A connection ended: what it knew is kept, and what was asked of it is asked of others.
    pub(super) fn link_down(&mut self, id: LinkId) -> Result<(), Fail> {
        let Some(link) = self.links.take(id) else { return Ok(()) };
        self.links.ended_in += link.messages_in;
        self.links.ended_out += link.messages_out;
        self.forget_deferred(id);
        if let Some(peer) = &link.peer {
            self.save_peer(peer)?;
        }
        self.fetches_move(id, link.no_room)?;
        // Batches of it that are being staged are dropped when they come back.
        self.status.idle = false;
        Ok(())
    }

    /// What came by a link. In a session of two its errors end the engine, else the link only.
    pub(super) fn take_from_link(&mut self, id: LinkId, message: Message) -> Result<(), Fail> {
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        link.messages_in += weight(&message);
        link.heard_ns = wall_ns();
        link.send_blocked_at = None;
        let refuses = link.queue.as_ref().is_some_and(|queue| queue.bytes() > OUT_BYTES_MAX);
        self.links.met = true;
        self.heed_cut()?;
        let result = match refuses {
            true => Err(Fail::Peer("it asks and asks, and takes nothing of what it is answered".into())),
            false => self.handle_message(id, message),
        };
        self.contain(id, result)
    }

    /// Answers a want now, or when there is room.
    pub(super) fn take_want(&mut self, id: LinkId, want: Want) -> Result<(), Fail> {
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        if !link.is_full() && link.wants.is_empty() {
            return self.serve(id, &want);
        }
        link.wants.push_back(want);
        match link.wants.len() {
            0..=WANTS_MAX => Ok(()),
            _ => Err(Fail::Peer(format!("it asks for more than {WANTS_MAX} pieces and takes none"))),
        }
    }

    /// The same for one that has waited: what is wrong with it is the link's trouble only.
    pub(super) fn want_again(&mut self, id: LinkId, want: Want) -> Result<(), Fail> {
        let result = self.take_want(id, want);
        self.contain(id, result)
    }

    /// A peer has taken what it was sent.
    pub(super) fn room_for(&mut self, id: LinkId) -> Result<(), Fail> {
        if let Some(link) = self.links.get_mut(id) {
            link.send_blocked_at = None;
        }
        loop {
            let Some(link) = self.links.get_mut(id).filter(|link| !link.is_full()) else { return Ok(()) };
            let Some(want) = link.wants.pop_front() else { return Ok(()) };
            self.serve(id, &want)?;
        }
    }

    /// Ends the link, not the engine, if it is the peer who did wrong and there may be others.
    pub(super) fn contain(&mut self, id: LinkId, result: Result<(), Fail>) -> Result<(), Fail> {
        match result {
            Err(e) if self.service.is_some() && matches!(e, Fail::Peer(_) | Fail::Refused { .. }) => {
                self.link_down(id)?;
                let whose = self.volume_name();
                self.post(FromEngine::LinkEnded(id, e.into_error(&whose)))
            }
            other => other,
        }
    }

    /// Counts a batch that came; who sends more than was ever agreed fills our memory.
    pub(super) fn count_batch(&mut self, id: LinkId, batch: &Batch) -> Result<(), Fail> {
        let Some(link) = self.links.get_mut(id) else { return Ok(()) };
        link.batches += 1;
        link.batch_bytes += size_of_batch(batch);
        if link.batches > BATCHES_MAX || link.batch_bytes > BATCH_BYTES_MAX {
            return Err(Fail::Peer(format!(
                "it sent more than {BATCHES_MAX} batches, or {BATCH_BYTES_MAX} bytes of them, without a receipt"
            )));
        }
        Ok(())
    }

    pub(super) fn send_to(&mut self, id: LinkId, m: Message) -> Result<(), Fail> {
        if let Some(link) = self.links.get_mut(id) {
            link.count_out(&m);
            self.post(FromEngine::Link(id, m))?;
        }
        Ok(())
    }

    /// As [`Engine::send_to`], for a link that is taken out.
    pub(super) fn send_on(&mut self, (id, link): (LinkId, &mut Link), m: Message) -> Result<(), Fail> {
        link.count_out(&m);
        self.post(FromEngine::Link(id, m))
    }

    /// However much there is to do: who works is no one that stands still.
    pub(super) fn beat_if_due(&mut self) -> Result<(), Fail> {
        if self.last_beat.elapsed() >= HEARTBEAT_EVERY { self.beat() } else { Ok(()) }
    }

    pub(super) fn beat(&mut self) -> Result<(), Fail> {
        self.last_beat = Instant::now();
        let (head, scanned) = (self.head, self.scanned && self.crawled);
        let ids: Vec<LinkId> = self.links.peers().map(|(id, _)| id).collect();
        ids.into_iter().try_for_each(|id| self.send_to(id, Message::Heartbeat { head, scanned }))
    }

    /// Sends each peer what it lacks, as far as its window allows.
    pub(super) fn pump_send(&mut self) -> Result<bool, Fail> {
        let mut worked = false;
        for id in self.links.ids() {
            let Some(mut link) = self.links.take(id) else { continue };
            let sent_all = link.sent_all;
            let result = self.pump_link(id, &mut link);
            let told = link.sent_all == sent_all || !link.sent_all;
            self.links.put(id, link);
            worked |= result?;
            if !told {
                self.tell_status_now()?;
            }
        }
        Ok(worked)
    }

    /// Tells peers what was learnt of others, so that they need not relay it.
    pub(super) fn pump_news(
        &mut self,
        id: LinkId,
        link: &mut Link,
        tx: &mut Tx<'_>,
        now_ms: u64,
    ) -> Result<(), Fail> {
        // With one link there are no others.
        if self.links.len() == 0 {
            return Ok(());
        }
        let Some(peer) = &mut link.peer else { return Ok(()) };
        match peer.receiver.poll(tx, now_ms)? {
            Some(receipt) => self.send_on((id, link), Message::Receipt(receipt)),
            None => Ok(()),
        }
    }

    /// Whom to ask for a version: its maker, else who brought its state, else who knows it, else anybody; nobody who has said
    /// that it is not there.
    pub(super) fn source_of(&self, key: (EntryId, driftless_core::Dot)) -> Option<LinkId> {
        let said_no = self.contents.said_no(key);
        let rank = |(id, peer): &(LinkId, &Peer)| {
            if peer.id == key.1.replica {
                0
            } else if self.merging_from == Some(*id) {
                1
            } else if peer.sender.peer_knowledge().covers(key.1) {
                2
            } else {
                3
            }
        };
        let candidates = self.links.peers().filter(|(id, _)| !said_no.iter().any(|no| no.link == *id));
        candidates.min_by_key(rank).map(|(id, _)| id)
    }
}
