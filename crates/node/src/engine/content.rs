//! Bytes of files: kept a moment, read for peers, asked of peers.
//!
//! Small contents come inside batches and wait in memory until they are staged; what is larger is asked for by
//! ranges and written into a staged file as it comes. A file's staged name follows from its entry and version, so
//! that a transfer goes on where an earlier process left it. Nothing is published before its digest was checked.

use super::delta::Transfer;
use super::link::LinkId;
use super::{Engine, Fail, steady_ns};
use driftless_core::link::{FetchFile, InlineWish, Message, NotHere, Piece, PieceVerdict, Want, peer_rows};
use driftless_core::local;
use driftless_core::meta::Digest;
use driftless_core::recipe::Cut;
use driftless_core::{
    Attrs, Bind, Content, Dot, EntryId, Fingerprint, Kind, Node, NodeKey, ReplicaId, Time, Tx,
};
use driftless_volume::{Part, ReadHandle, StageId, StagedWriter, VolumeError};
use lru::LruCache;
use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

/// Contents up to this length are kept in memory until staged.
pub(super) const SMALL_LEN_MAX: u64 = 128 << 10;
/// Bytes of small contents kept after hashing, for the batch that ships them soon.
const CACHE_BYTES_MAX: usize = 12 << 20;
/// What one of them takes beside its bytes, about: among tiny files that is most of it.
const CACHE_OVERHEAD_BYTES: usize = 160;
/// Files of ours kept open while the peer reads them piece by piece.
const SERVED_MAX: usize = 8;
/// Staged names of transfers have this bit; others count up from a small number.
const TRANSFER_BIT: u64 = 1 << 63;
/// Those of transfers that are put together from what is here have this one too: what is there of them is no beginning, but parts.
const DELTA_BIT: u64 = 1 << 62;

/// Files that are copied from others here at once: each is three open files.
const COPYING_MAX: usize = 16;
/// Files with one content that are looked at, for one that is still as it was recorded.
const SAME_LOOKED_AT_MAX: usize = 16;
/// Entries planned again at once because there is room to ask for them.
const ROOM_STEP: usize = 1024;

pub(super) type Key = (EntryId, Dot);

/// A version whose bytes are not on this disk.
#[derive(Clone, Debug)]
pub(super) struct Lack {
    pub(super) version: Dot,
    digest: Digest,
    pub(super) size: u64,
    mtime: Time,
    attrs: Attrs,
}

impl Lack {
    /// The version's bytes, if it is a file's.
    pub(super) fn of(
        entry: EntryId,
        version: Dot,
        content: &Content,
        attrs: &Attrs,
    ) -> Option<(EntryId, Lack)> {
        match content {
            Content::File { size, mtime, digest } => {
                let (size, mtime, digest, attrs) = (*size, *mtime, *digest, attrs.clone());
                Some((entry, Lack { version, digest, size, mtime, attrs }))
            }
            _ => None,
        }
    }
}

/// How a fetch begins.
struct Begun {
    sink: Sink,
    have: std::ops::Range<u64>,
    origin: Origin,
}

/// Where the bytes come from.
enum Origin {
    /// All that is not there yet from the peer.
    Peer,
    /// From the peer what is not in the file here that it is compared with.
    Both(Arc<Transfer>, Cut),
    /// From another file here, which has the same content.
    Here(Arc<Transfer>),
}

enum Sink {
    Memory(Vec<u8>),
    Disk(Box<StagedWriter>),
}

struct Fetch {
    /// Who is asked.
    from: LinkId,
    lack: Lack,
    sink: Sink,
    /// Set if it is put together from what is here.
    delta: Option<Arc<Transfer>>,
    /// All of it: nobody is asked.
    here: bool,
}

/// A peer's answer that a version cannot be had there.
pub(super) struct SaidNo {
    pub(super) link: LinkId,
    pub(super) reason: String,
}

/// See the module.
pub(super) struct Contents {
    inline: HashMap<Key, Vec<u8>>,
    by_digest: HashMap<Digest, Vec<u8>>,
    /// Contents put there since it was last emptied.
    cached: usize,
    by_digest_bytes: usize,
    fetching: HashMap<Key, Fetch>,
    /// Those of them that are copied from another file here.
    copying: usize,
    fetched: HashMap<Key, StagedWriter>,
    /// What came of them stays in staging, for a later attempt.
    given_up: HashSet<Key>,
    /// What came of them was something else.
    wrong: HashSet<Key>,
    /// Put together from what is here they were something else: all of them is fetched.
    whole: HashSet<Key>,
    wanted: HashMap<EntryId, usize>,
    /// Entries of which something is wanted while there is nobody to ask.
    no_source: VecDeque<EntryId>,
    /// Who has answered that a version is not there, since all were asked the last time.
    said_no: HashMap<Key, Vec<SaidNo>>,
    served: LruCache<Key, Arc<ReadHandle>>,
}

impl Contents {
    pub(super) fn new() -> Self {
        Contents {
            inline: HashMap::new(),
            by_digest: HashMap::new(),
            cached: 0,
            by_digest_bytes: 0,
            fetching: HashMap::new(),
            copying: 0,
            fetched: HashMap::new(),
            given_up: HashSet::new(),
            wrong: HashSet::new(),
            whole: HashSet::new(),
            wanted: HashMap::new(),
            no_source: VecDeque::new(),
            said_no: HashMap::new(),
            served: LruCache::new(NonZeroUsize::new(SERVED_MAX).unwrap_or(NonZeroUsize::MIN)),
        }
    }

    pub(super) fn put_inline(&mut self, entry: EntryId, version: Dot, bytes: Vec<u8>) {
        self.inline.insert((entry, version), bytes);
    }

    /// Closes files kept open for the peer.
    pub(super) fn close_served(&mut self) {
        self.served.clear();
    }

    /// True if something of the entry is being fetched, or waits to be.
    pub(super) fn is_wanted(&self, entry: EntryId) -> bool {
        self.wanted.contains_key(&entry)
    }

    /// Entries of which something is being fetched, or waits to be.
    pub(super) fn wanted_entries(&self) -> impl Iterator<Item = &EntryId> {
        self.wanted.keys()
    }

    /// Who has said that the version is not there.
    pub(super) fn said_no(&self, key: Key) -> &[SaidNo] {
        if self.said_no.is_empty() {
            return &[];
        }
        self.said_no.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Who is being asked for the version.
    pub(super) fn asked_of(&self, key: Key) -> Option<LinkId> {
        self.fetching.get(&key).map(|fetch| fetch.from)
    }

    /// True if the version's bytes have come and are not on the disk yet.
    pub(super) fn has_come(&self, key: Key) -> bool {
        self.inline.contains_key(&key) || self.fetched.contains_key(&key)
    }

    /// A piece of what has come and is not on the disk yet. Who asks checks the digest of the whole, as everybody does.
    fn read_come(&self, want: &Want) -> Option<Result<Vec<u8>, VolumeError>> {
        let key = (want.entry, want.version);
        let len = usize::try_from(want.len.min(PIECE_MAX)).unwrap_or(0);
        match self.inline.get(&key) {
            Some(bytes) => {
                let from = usize::try_from(want.offset).unwrap_or(usize::MAX).min(bytes.len());
                Some(Ok(bytes[from..from.saturating_add(len).min(bytes.len())].to_vec()))
            }
            None => self.fetched.get(&key).map(|staged| staged.read_at(want.offset, len)),
        }
    }

    /// True if bytes are on their way, or what came is being read.
    pub(super) fn is_fetching(&self) -> bool {
        !self.fetching.is_empty()
    }

    /// What was begun is over.
    fn end_fetch(&mut self, key: &Key) -> Option<Fetch> {
        let fetch = self.fetching.remove(key)?;
        self.copying -= usize::from(fetch.here);
        Some(fetch)
    }

    /// How the version is put together, if it is.
    pub(super) fn delta_of(&self, key: Key) -> Option<Arc<Transfer>> {
        self.fetching.get(&key).and_then(|fetch| fetch.delta.clone())
    }

    /// True if this is how the version is put together now, and not what was given up.
    pub(super) fn is_delta(&self, transfer: &Arc<Transfer>) -> bool {
        let now = self.fetching.get(&transfer.key).and_then(|fetch| fetch.delta.as_ref());
        now.is_some_and(|now| Arc::ptr_eq(now, transfer))
    }

    fn unwant(&mut self, entry: EntryId) {
        if let Some(n) = self.wanted.get_mut(&entry) {
            *n -= 1;
            if *n == 0 {
                self.wanted.remove(&entry);
            }
        }
    }

    fn take_digest(&mut self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = self.by_digest.remove(digest)?;
        self.by_digest_bytes -= bytes.len() + CACHE_OVERHEAD_BYTES;
        Some(bytes)
    }

    fn cache(&mut self, digest: Digest, bytes: Vec<u8>) {
        let total = self.by_digest_bytes + bytes.len() + CACHE_OVERHEAD_BYTES;
        if total > CACHE_BYTES_MAX || self.by_digest.contains_key(&digest) {
            return;
        }
        self.by_digest_bytes = total;
        self.by_digest.insert(digest, bytes);
        self.cached += 1;
    }

    /// What was cached for a batch that has left is of no more use.
    fn forget_cache(&mut self) {
        self.by_digest.clear();
        self.cached = 0;
        self.by_digest_bytes = 0;
    }
}

impl Engine {
    // ----- small contents on their way out

    /// How long a content may be to be kept after hashing; 0 if there is no room or no use.
    pub(super) fn cache_room(&self) -> usize {
        // With several peers each would have to be in step with the others.
        let useful = self.only_peer().is_some_and(|p| p.inline);
        if useful { CACHE_BYTES_MAX.saturating_sub(self.contents.by_digest_bytes) } else { 0 }
    }

    pub(super) fn cache_small(&mut self, digest: Digest, bytes: Vec<u8>) {
        self.contents.cache(digest, bytes);
    }

    /// The bytes of a small version for a batch, or `None` if they cannot be read any more.
    pub(super) fn read_small(&mut self, tx: &mut Tx<'_>, wish: &InlineWish) -> Result<Option<Vec<u8>>, Fail> {
        if let Some(bytes) = self.contents.take_digest(&wish.identity) {
            return Ok(Some(bytes));
        }
        if self.contents.cached > 2 * self.contents.by_digest.len() + 16 {
            self.contents.forget_cache();
        }
        let Some(handle) = self.open_version(tx, wish.entry, &wish.identity)? else { return Ok(None) };
        let Ok(len) = usize::try_from(wish.size) else { return Ok(None) };
        match handle.read_at(0, len) {
            // Written to since it was hashed: what it is now is looked at first.
            Ok(bytes) if bytes.len() == len && Digest::of(&bytes) == wish.identity => Ok(Some(bytes)),
            _ => Ok(None),
        }
    }

    /// A file of this disk that shows the version, if one does, or the copy that was read of one that has changed since.
    fn open_version(
        &mut self,
        tx: &mut Tx<'_>,
        entry: EntryId,
        digest: &Digest,
    ) -> Result<Option<ReadHandle>, Fail> {
        if let Some(copy) = self.copies.with(digest, Instant::now())
            && let Ok(handle) = copy.try_clone()
        {
            return Ok(Some(handle));
        }
        let Some(row) = tx.entry(entry)? else { return Ok(None) };
        for key in &row.bound {
            let shows = tx
                .node(key)?
                .is_some_and(|n| matches!(&n.bind, Bind::Leaf { identity } if identity == digest));
            if shows && let Some(h) = self.open_node_in(tx, key)? {
                return Ok(Some(h));
            }
        }
        Ok(self.open_hidden(entry, digest))
    }

    /// A leaf of this disk, open, if it is still what was recorded.
    pub(super) fn open_node(&mut self, key: &NodeKey) -> Result<Option<ReadHandle>, Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        self.open_node_in(&mut tx, key)
    }

    pub(super) fn open_node_in(
        &mut self,
        tx: &mut Tx<'_>,
        key: &NodeKey,
    ) -> Result<Option<ReadHandle>, Fail> {
        let Some(node) = tx.node(key)? else { return Ok(None) };
        for (dir, name) in &node.names {
            let Some(path) = self.path_of_node(tx, dir)? else { continue };
            let Ok(fd) = self.volume.dir(&path, Some(dir)) else { continue };
            if let Ok(h) = fd.open_read(name, key)
                && may_have(h.fingerprint(), &node)
                && !self.is_damaged(key, h.fingerprint())
            {
                return Ok(Some(h));
            }
        }
        Ok(None)
    }

    /// A file of this disk with the bytes of a version, kept open for the next who asks.
    pub(super) fn served_file(&mut self, key: Key, digest: &Digest) -> Result<Option<Arc<ReadHandle>>, Fail> {
        // As long as it is asked for its copy stays, if there is one.
        let _ = self.copies.with(digest, Instant::now());
        if let Some(file) = self.contents.served.get(&key) {
            return Ok(Some(file.clone()));
        }
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let Some(file) = self.open_version(&mut tx, key.0, digest)?.map(Arc::new) else { return Ok(None) };
        self.contents.served.put(key, file.clone());
        Ok(Some(file))
    }

    /// Answers a want with a piece, or says that it cannot.
    pub(super) fn serve(&mut self, link: LinkId, want: &Want) -> Result<(), Fail> {
        let key = (want.entry, want.version);
        // None is asked for by who got something else.
        let doubted = want.len == 0;
        let file = if doubted { None } else { self.served_file(key, &want.digest)? };
        let read = match file {
            Some(h) => {
                h.read_at(want.offset, usize::try_from(want.len.min(PIECE_MAX)).unwrap_or(0)).map(Some)
            }
            // What has come for a plan that still waits for something else is there for others: they may have that.
            None if !doubted => self.contents.read_come(want).transpose(),
            None => Ok(None),
        };
        let (entry, version) = key;
        match read {
            Ok(Some(bytes)) if !bytes.is_empty() => {
                self.send_to(link, Message::Piece(Piece { entry, version, offset: want.offset, bytes }))
            }
            other => {
                self.contents.served.pop(&key);
                self.answer_not_here(link, want, other.err())
            }
        }
    }

    // ----- contents on their way in

    /// Versions of the entry that should be on this disk and whose bytes are nowhere here.
    pub(super) fn lacking(&mut self, tx: &mut Tx<'_>, id: EntryId) -> Result<Vec<Lack>, Fail> {
        let Some(row) = tx.entry(id)? else { return Ok(Vec::new()) };
        if row.entry.kind != Kind::File || self.shared.dry_run {
            return Ok(Vec::new());
        }
        let mut out = Vec::new();
        for v in row.entry.counting() {
            let Content::File { size, mtime, digest } = &v.content else { continue };
            let key = (id, v.dot);
            let here = *size == 0
                || self.early.contains_key(&key)
                || self.contents.inline.contains_key(&key)
                || self.contents.fetched.contains_key(&key)
                || self.has_private(&key, digest)
                || self.on_disk(tx, &row.bound, digest)?;
            if !here {
                let attrs = row.entry.meta.1.clone();
                out.push(Lack { version: v.dot, digest: *digest, size: *size, mtime: *mtime, attrs });
            }
        }
        if !out.is_empty() && !self.filter.is_empty() {
            let shown = driftless_core::tree::path_of(tx, id)?;
            if shown.is_none_or(|p| self.filter.hides(&p, false)) {
                out.clear();
            }
        }
        Ok(out)
    }

    pub(super) fn on_disk(
        &self,
        tx: &mut Tx<'_>,
        bound: &[driftless_core::NodeKey],
        digest: &Digest,
    ) -> Result<bool, Fail> {
        for key in bound {
            if let Some(node) = tx.node(key)?
                && matches!(&node.bind, Bind::Leaf { identity } if identity == digest)
                && !node.names.is_empty()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Asks for a version's bytes; or, if something else came the last time, why.
    pub(super) fn want(&mut self, entry: EntryId, lack: Lack) -> Result<(), Fail> {
        let key = (entry, lack.version);
        if self.contents.fetching.contains_key(&key) {
            return Ok(());
        }
        let Some(from) = self.source_of(key) else {
            *self.contents.wanted.entry(entry).or_default() += 1;
            self.contents.no_source.push_back(entry);
            return Ok(());
        };
        if self.contents.wrong.remove(&key) {
            let Lack { version, digest, .. } = lack;
            return self.send_to(from, Message::Want(Want { entry, version, digest, offset: 0, len: 0 }));
        }
        *self.contents.wanted.entry(entry).or_default() += 1;
        let Some(link) = self.links.get_mut(from) else { return Ok(()) };
        if !link.fetcher.has_room() || self.contents.copying >= COPYING_MAX {
            link.no_room.push_back(entry);
            return Ok(());
        }
        let Ok(Begun { sink, have, origin }) = self.begin_fetch(from, entry, &lack)? else { return Ok(()) };
        let nothing_missing = have.start == 0 && have.end >= lack.size;
        let (delta, cut, asks) = match origin {
            Origin::Peer => (None, None, !nothing_missing),
            Origin::Both(transfer, cut) => (Some(transfer), Some(cut), true),
            Origin::Here(transfer) => (Some(transfer), None, false),
        };
        let (version, size, digest) = (lack.version, lack.size, lack.digest);
        let file = FetchFile { entry, version, size, digest, have: vec![have], cut };
        // A size is what a peer says.
        self.counts.to_apply_bytes = self.counts.to_apply_bytes.saturating_add(lack.size);
        self.contents.given_up.remove(&key);
        let here = delta.is_some() && !asks;
        self.contents.copying += usize::from(here);
        self.contents.fetching.insert(key, Fetch { from, lack, sink, delta, here });
        if let Some(fetcher) = self.links.fetcher_mut(from).filter(|_| asks) {
            fetcher.want(&file);
        }
        if !asks && !here {
            self.fetched_all(key);
        }
        Ok(())
    }

    /// Where the bytes will go, and what is there already. If that cannot be, it is told and the entry is not wanted.
    fn begin_fetch(&mut self, from: LinkId, entry: EntryId, lack: &Lack) -> Result<Result<Begun, ()>, Fail> {
        if lack.size <= SMALL_LEN_MAX {
            return Ok(Ok(Begun { sink: Sink::Memory(Vec::new()), have: 0..0, origin: Origin::Peer }));
        }
        let key = (entry, lack.version);
        let (same, base) = match self.contents.whole.contains(&key) || self.peer_in_process {
            true => (None, None),
            false => match self.same_content(lack)? {
                None => (None, self.delta_base(from, entry, lack)?),
                same => (same, None),
            },
        };
        let opened = match (same, base) {
            (Some(same), _) => self.open_copy(delta_id(key), lack).map(|writer| {
                let copy = self.begin_copy(key, from, lack.size, same, &writer);
                let origin = copy.map_or(Origin::Peer, Origin::Here);
                Begun { sink: Sink::Disk(Box::new(writer)), have: 0..0, origin }
            }),
            (None, Some(base)) => self.open_transfer(delta_id(key), lack).map(|writer| {
                let delta = self.begin_delta(key, from, lack.size, base, &writer);
                // Without it the file is fetched from its start: what is there of it is parts.
                let origin = delta.map_or(Origin::Peer, |(transfer, cut)| Origin::Both(transfer, cut));
                Begun { sink: Sink::Disk(Box::new(writer)), have: 0..0, origin }
            }),
            (None, None) => self.open_transfer(transfer_id(key), lack).map(|writer| {
                let have = 0..writer.written_to().min(lack.size);
                Begun { sink: Sink::Disk(Box::new(writer)), have, origin: Origin::Peer }
            }),
        };
        Ok(opened.map_err(|e| {
            self.contents.unwant(entry);
            self.log(crate::api::Level::Warn, e.to_string());
        }))
    }

    /// What came of a version was something else: its source is asked why before it is fetched again.
    pub(super) fn came_wrong(&mut self, key: Key) {
        self.contents.wrong.insert(key);
    }

    /// Another file of this disk that has the same content, as recorded.
    fn same_content(&mut self, lack: &Lack) -> Result<Option<ReadHandle>, Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        for key in tx.nodes_with(&lack.digest, SAME_LOOKED_AT_MAX)? {
            let file = self.open_node_in(&mut tx, &key)?;
            if file.as_ref().is_some_and(|file| file.fingerprint().size == lack.size) {
                return Ok(file);
            }
        }
        Ok(None)
    }

    /// For a copy: without what an earlier attempt left.
    fn open_copy(&self, id: StageId, lack: &Lack) -> Result<StagedWriter, VolumeError> {
        if let Ok(left) = self.volume.reopen(id, &lack.attrs, lack.mtime) {
            left.discard()?;
        }
        self.volume.stage_file(id, &lack.attrs, lack.mtime)
    }

    fn open_transfer(&self, id: StageId, lack: &Lack) -> Result<StagedWriter, VolumeError> {
        match self.volume.reopen(id, &lack.attrs, lack.mtime) {
            Ok(w) => Ok(w),
            Err(_) => self.volume.stage_file(id, &lack.attrs, lack.mtime),
        }
    }

    /// Sends what the fetchers ask for next.
    pub(super) fn pump_wants(&mut self) -> Result<bool, Fail> {
        let (mut any, now_ms) = (false, steady_ns() / 1_000_000);
        for id in self.links.ids() {
            let Some(link) = self.links.get_mut(id).filter(|link| link.peer.is_some()) else { continue };
            let has_room = link.fetcher.has_room() && self.contents.copying < COPYING_MAX;
            let room = if has_room { link.no_room.len().min(ROOM_STEP) } else { 0 };
            let entries: Vec<EntryId> = link.no_room.drain(..room).collect();
            let wants = link.fetcher.poll(now_ms);
            let recipes = link.fetcher.poll_recipes();
            for entry in entries {
                self.contents.unwant(entry);
                self.enqueue(entry);
            }
            any |= !wants.is_empty() || !recipes.is_empty();
            for w in wants {
                self.send_to(id, Message::Want(w))?;
            }
            for w in recipes {
                self.send_to(id, Message::RecipeWant(w))?;
            }
        }
        Ok(any)
    }

    /// There is somebody (else) to ask.
    pub(super) fn ask_new_source(&mut self) {
        for entry in std::mem::take(&mut self.contents.no_source) {
            self.contents.unwant(entry);
            self.enqueue(entry);
        }
    }

    /// A connection ended: what was asked of it, or was to be, is asked of others. What came stays in staging.
    pub(super) fn fetches_move(&mut self, from: LinkId, no_room: VecDeque<EntryId>) -> Result<(), Fail> {
        let keys: Vec<Key> =
            self.contents.fetching.iter().filter(|(_, f)| f.from == from).map(|(key, _)| *key).collect();
        for key in keys {
            self.give_up_fetch(key);
            self.enqueue(key.0);
        }
        for entry in no_room {
            self.contents.unwant(entry);
            self.enqueue(entry);
        }
        self.contents.said_no.retain(|_, said| {
            said.retain(|no| no.link != from);
            !said.is_empty()
        });
        Ok(())
    }

    pub(super) fn take_piece(&mut self, link: LinkId, piece: Piece) -> Result<(), Fail> {
        let Some(fetcher) = self.links.fetcher_mut(link) else { return Ok(()) };
        let PieceVerdict::Write { complete } = fetcher.piece(&piece, steady_ns() / 1_000_000) else {
            return Ok(());
        };
        let key = (piece.entry, piece.version);
        let Some(fetch) = self.contents.fetching.get_mut(&key) else { return Ok(()) };
        let written = match &mut fetch.sink {
            Sink::Memory(bytes) => {
                bytes.extend_from_slice(&piece.bytes);
                Ok(())
            }
            Sink::Disk(w) => w.write_at(piece.offset, &piece.bytes),
        };
        let delta = fetch.delta.clone();
        if let Err(e) = written {
            return self.fetch_fails(key, &e);
        }
        match delta {
            Some(delta) if complete => self.verify_delta(delta)?,
            Some(delta) => self.digest_goes_on(delta)?,
            None if complete => self.fetched_all(key),
            None => {}
        }
        Ok(())
    }

    /// This disk does not take it now.
    pub(super) fn fetch_fails(&mut self, key: Key, e: &VolumeError) -> Result<(), Fail> {
        self.give_up_fetch(key);
        self.fetch_waits(key.0, super::volume_reason(e), e.to_string())
    }

    /// A file that was put together was read: it is what it should be, or fetched as a whole.
    pub(super) fn delta_is_read(&mut self, key: Key, digest: Option<Digest>) -> Result<(), Fail> {
        let Some(fetch) = self.contents.fetching.get_mut(&key) else { return Ok(()) };
        if digest == Some(fetch.lack.digest) {
            if let Sink::Disk(writer) = &mut fetch.sink {
                writer.was_read(fetch.lack.digest);
            }
            self.fetched_all(key);
            return Ok(());
        }
        // The base was written to meanwhile, or what an earlier attempt left is damaged.
        self.contents.whole.insert(key);
        if let Some(writer) = self.give_up_fetch(key) {
            self.discard(writer);
        }
        self.contents.given_up.remove(&key);
        self.enqueue(key.0);
        Ok(())
    }

    fn fetched_all(&mut self, key: Key) {
        let Some(fetch) = self.contents.end_fetch(&key) else { return };
        self.counts.to_apply_bytes = self.counts.to_apply_bytes.saturating_sub(fetch.lack.size);
        self.contents.unwant(key.0);
        self.contents.said_no.remove(&key);
        self.contents.whole.remove(&key);
        match fetch.sink {
            Sink::Memory(bytes) => {
                self.contents.inline.insert(key, bytes);
            }
            Sink::Disk(w) => {
                self.contents.fetched.insert(key, *w);
            }
        }
        self.enqueue(key.0);
    }

    /// Asks for it no more. What came of it stays in staging: a later attempt goes on from there.
    fn give_up_fetch(&mut self, key: Key) -> Option<StagedWriter> {
        if let Some(f) = self.contents.end_fetch(&key) {
            self.counts.to_apply_bytes = self.counts.to_apply_bytes.saturating_sub(f.lack.size);
            self.contents.unwant(key.0);
            if let Some(fetcher) = self.links.fetcher_mut(f.from) {
                fetcher.cancel(key.0, key.1);
            }
            if let Some(delta) = f.delta {
                delta.give_up();
            }
            if let Sink::Disk(writer) = f.sink {
                self.contents.given_up.insert(key);
                return Some(*writer);
            }
        }
        None
    }

    /// Drops what was fetched, or is being fetched, of versions that do not count any more: a file that is written
    /// to all the time would leave one behind for each time it was overtaken.
    pub(super) fn drop_overtaken(&mut self, tx: &mut Tx<'_>, changed: &[EntryId]) -> Result<(), Fail> {
        let c = &self.contents;
        let keys = c.fetching.keys().chain(c.fetched.keys()).chain(c.inline.keys()).chain(&c.given_up);
        let mut keys: Vec<Key> = keys.copied().collect();
        if keys.is_empty() {
            return Ok(());
        }
        let changed: HashSet<EntryId> = changed.iter().copied().collect();
        keys.retain(|(entry, _)| changed.contains(entry));
        for key in keys {
            let row = tx.entry(key.0)?;
            if row.is_some_and(|r| r.entry.counting().any(|v| v.dot == key.1)) {
                continue;
            }
            self.contents.inline.remove(&key);
            let begun = self.give_up_fetch(key).or_else(|| self.contents.fetched.remove(&key));
            let given_up = self.contents.given_up.remove(&key);
            // Found again by its name; if it cannot be opened there is nothing to drop.
            let again = |id| self.volume.reopen(id, &Attrs::default(), Time::default()).ok();
            let mut left: Vec<StagedWriter> = begun.into_iter().collect();
            if left.is_empty() && given_up {
                left.extend([transfer_id(key), delta_id(key)].into_iter().filter_map(again));
            }
            for writer in left {
                self.discard(writer);
            }
            self.contents.whole.remove(&key);
        }
        Ok(())
    }

    fn discard(&mut self, writer: StagedWriter) {
        if let Err(e) = writer.discard() {
            self.log(crate::api::Level::Warn, e.to_string());
        }
    }

    /// At the end, with nothing under way: transfers stay for the next start only if their entry waits for them.
    pub(super) fn sweep_transfers(&mut self) -> Result<(), Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut wanted = HashSet::new();
        for id in tx.pending(usize::MAX)? {
            if let Some(row) = tx.entry(id)? {
                let ids = |dot| [transfer_id((id, dot)).0, delta_id((id, dot)).0];
                wanted.extend(row.entry.counting().flat_map(|v| ids(v.dot)));
            }
        }
        for entry in self.volume.list_private().map_err(Fail::Volume)? {
            let id = StageId::parse(&entry.name).filter(|id| is_transfer(*id));
            if entry.part == Part::Staging && id.is_some_and(|id| !wanted.contains(&id.0)) {
                self.volume.drop_private(&entry).map_err(Fail::Volume)?;
            }
        }
        Ok(())
    }

    /// It cannot be had from that peer. Somebody else is asked if there is one; else the answer that leaves most hope, if it
    /// is over now.
    pub(super) fn stop_fetching(&mut self, link: LinkId, answer: NotHere) -> Option<NotHere> {
        let key = (answer.entry, answer.version);
        if let Some(fetcher) = self.links.fetcher_mut(link) {
            fetcher.not_here(&answer);
        }
        // Who is not asked (any more) tells nothing new.
        if self.contents.fetching.get(&key).is_some_and(|f| f.from != link) {
            return None;
        }
        self.give_up_fetch(key);
        if self.links.len() < 2 {
            return Some(answer);
        }
        let said = self.contents.said_no.entry(key).or_default();
        said.push(SaidNo { link, reason: answer.reason.clone() });
        if self.source_of(key).is_some() {
            self.enqueue(key.0);
            return None;
        }
        let said = self.contents.said_no.remove(&key).unwrap_or_default();
        let hopeful = |no: &SaidNo| !NotHere::is_final(&no.reason);
        let reason = said.into_iter().find(hopeful).map_or(answer.reason, |no| no.reason);
        Some(NotHere { reason, ..answer })
    }

    /// A version that neither side has any more is taken back. False if it is none.
    pub(super) fn take_back(&mut self, link: LinkId, entry: EntryId, version: Dot) -> Result<bool, Fail> {
        let Some(peer) = self.links.peer(link).map(|p| p.id) else { return Ok(false) };
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let lacking = self.lacking(&mut tx, entry)?;
        if self.follows()
            || !lacking.iter().any(|lack| lack.version == version)
            || !self.only_two(&tx, peer)?
            || !local::may_withdraw(&mut tx, entry, version, peer)?
        {
            return Ok(false);
        }
        local::withdraw(&mut tx, entry, version)?;
        let path = self.entry_path(&mut tx, entry)?;
        self.log(
            crate::api::Level::Warn,
            format!(
                "{}: what was written last was lost by a power cut before anybody else had it: it is taken back",
                String::from_utf8_lossy(&path)
            ),
        );
        self.commit(tx)?;
        self.enqueue(entry);
        Ok(true)
    }

    /// True if nobody else can have been told of anything: what others know is written down only now and then.
    fn only_two(&self, tx: &Tx<'_>, peer: ReplicaId) -> Result<bool, Fail> {
        Ok(self.service.is_none() || peer_rows(tx)?.iter().all(|(r, _)| *r == peer))
    }

    pub(super) fn fetch_waits(
        &mut self,
        entry: EntryId,
        reason: crate::api::Reason,
        detail: String,
    ) -> Result<(), Fail> {
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        tx.add_pending(entry);
        let path = self.entry_path(&mut tx, entry)?;
        self.waits(&mut tx, crate::needs::Waiter::Entry(entry), &path, reason, detail)?;
        self.commit(tx)
    }

    /// The bytes of a small version that came with a batch or by a want, if their digest is right.
    pub(super) fn take_inline(&mut self, entry: EntryId, version: Dot, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = self.contents.inline.remove(&(entry, version))?;
        if Digest::of(&bytes) == *digest {
            return Some(bytes);
        }
        self.came_wrong((entry, version));
        None
    }

    /// The staged file of a transferred version.
    pub(super) fn take_fetched(&mut self, entry: EntryId, version: Dot) -> Option<StagedWriter> {
        self.contents.fetched.remove(&(entry, version))
    }

    pub(super) fn next_stage_id(&mut self) -> StageId {
        StageId(self.stage_ids.take() & !TRANSFER_BIT)
    }
}

/// True if a file that is so now may have the bytes of what was recorded: it is as it was, or has grown, as what was
/// recorded while somebody wrote to it may. Whoever gets them compares the digest.
fn may_have(now: &Fingerprint, recorded: &Node) -> bool {
    let then = &recorded.fingerprint;
    (now.size, now.mtime) == (then.size, then.mtime) || (recorded.racy && now.size > then.size)
}

/// Longest piece served, whatever is asked for: what a peer can make us hold in memory.
const PIECE_MAX: u64 = 4 << 20;

fn transfer_id((entry, version): Key) -> StageId {
    let mut bytes = Vec::with_capacity(32);
    for d in [entry.0, version] {
        bytes.extend_from_slice(&d.replica.0.to_be_bytes());
        bytes.extend_from_slice(&d.n.to_be_bytes());
    }
    let h = Digest::of(&bytes).0;
    let n = u64::from_be_bytes([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]]);
    StageId((n | TRANSFER_BIT) & !DELTA_BIT)
}

/// Of a transfer that is put together from what is here.
fn delta_id(key: Key) -> StageId {
    StageId(transfer_id(key).0 | DELTA_BIT)
}

/// True for staged names of transfers, which survive a restart.
pub(super) fn is_transfer(id: StageId) -> bool {
    id.0 & TRANSFER_BIT != 0
}
