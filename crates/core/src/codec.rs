//! Bytes of states and records: varints (LEB128), length-prefixed byte strings, dots with interned
//! replicas. The same encoding of an entry's state is used in index rows (numbers from the index's
//! `replicas` table) and on the wire (numbers from the container's own table).
//!
//! Most entries were made by one change and never touched again. So dots are written relative to
//! the entry's birth, stamps relative to the one before: one byte each where they are equal.
//!
//! Byte by byte: `docs/formats.md`.
//!
//! Decoders are total: any bytes give a value or [`Malformed`], and nothing is allocated for a
//! length that the remaining bytes could not hold.

use crate::disk::{Bind, Claim, Fingerprint, Node, NodeKey, Place, Recorded, Wanted};
use crate::entry::{At, Entry, Link, Version};
use crate::id::{Dot, EntryId, Kind, LinkId, Name, ReplicaId, Stamp};
use crate::meta::{Attrs, Content, Digest, Time};
use crate::vv::VersionVector;
use smallvec::SmallVec;

/// Bytes that are not what they should be: what was being read, and at which offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed {what} at byte {at}")]
pub struct Malformed {
    /// What was being read.
    pub what: &'static str,
    /// Offset of the first byte not understood.
    pub at: usize,
}

/// Numbers for replicas: small integers instead of 8 bytes each.
pub trait Intern {
    /// The number of `replica`, given out now if it had none.
    fn number(&mut self, replica: ReplicaId) -> u16;
}

/// Replicas by number.
pub trait Resolve {
    /// The replica with this number.
    fn replica(&self, number: u16) -> Option<ReplicaId>;
}

/// A table of replicas: position = number. 0 is always replica 0, which made nothing (the root).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaTable(Vec<ReplicaId>);

impl Default for ReplicaTable {
    fn default() -> Self {
        Self(vec![ReplicaId(0)])
    }
}

impl ReplicaTable {
    /// A table with these replicas as numbers 1, 2, ...
    pub fn with(replicas: impl IntoIterator<Item = ReplicaId>) -> Self {
        let mut t = Self::default();
        t.0.extend(replicas);
        t
    }
    /// All replicas from number 1 on.
    pub fn replicas(&self) -> &[ReplicaId] {
        &self.0[1..]
    }
    /// The number of `replica` if it has one.
    pub fn find(&self, replica: ReplicaId) -> Option<u16> {
        // Few replicas: a scan is faster than a map. The cast holds: `number` stops at u16::MAX.
        self.0.iter().position(|r| *r == replica).map(|i| i as u16)
    }
}

impl Intern for ReplicaTable {
    fn number(&mut self, replica: ReplicaId) -> u16 {
        if let Some(n) = self.find(replica) {
            return n;
        }
        assert!(self.0.len() < usize::from(u16::MAX), "more than 65,534 replicas in one volume");
        self.0.push(replica);
        (self.0.len() - 1) as u16
    }
}

impl Resolve for ReplicaTable {
    fn replica(&self, number: u16) -> Option<ReplicaId> {
        self.0.get(usize::from(number)).copied()
    }
}

/// How a stamp is written: equal to the near one, the smallest, in full.
const NEAR_SAME: u8 = 0;
const NEAR_MIN: u8 = 1;
const NEAR_FULL: u8 = 2;

/// Flags of an entry, above the three bits of its kind: what needs no bytes of its own.
const KIND_BITS: u8 = 0x07;
/// `ctx` covers the birth dot and nothing else.
const CTX_IS_BIRTH: u8 = 0x08;
/// `removed` covers nothing.
const NOTHING_REMOVED: u8 = 0x10;
/// `hist` is what the links say: for a directory its only link's place, for others nothing.
const HIST_IS_LINK: u8 = 0x20;
/// `dir_time` is there.
const HAS_DIR_TIME: u8 = 0x40;
const ENTRY_BITS: u8 = KIND_BITS | CTX_IS_BIRTH | NOTHING_REMOVED | HIST_IS_LINK | HAS_DIR_TIME;

fn entry_flags(e: &Entry) -> u8 {
    let mut flags = 0;
    // The root has no birth: its n of 0 is what every vector has for replica 0.
    if e.ctx.len() == 1 && e.id.0.n > 0 && e.ctx.get(e.id.0.replica) == e.id.0.n {
        flags |= CTX_IS_BIRTH;
    }
    if e.removed.is_empty() {
        flags |= NOTHING_REMOVED;
    }
    if e.hist.iter().copied().eq(hist_of_links(e.kind, &e.links)) {
        flags |= HIST_IS_LINK;
    }
    if e.dir_time.is_some() {
        flags |= HAS_DIR_TIME;
    }
    flags
}

/// The history of a directory that was never moved.
fn hist_of_links(kind: Kind, links: &[Link]) -> Option<(EntryId, Stamp)> {
    if kind.is_dir() { links.first().map(|l| (l.at.parent, l.at.stamp)) } else { None }
}

/// Most rows fit: their bytes are allocated once.
const ROW_LEN_COMMON: usize = 96;

/// Writes values to a byte vector.
#[derive(Default)]
pub struct Encoder {
    /// What was written so far.
    pub buf: Vec<u8>,
}

impl Encoder {
    /// An empty one.
    pub fn new() -> Self {
        Self { buf: Vec::with_capacity(ROW_LEN_COMMON) }
    }
    /// One byte.
    pub fn u8(&mut self, v: u8) {
        self.buf.push(v);
    }
    /// An unsigned varint: 7 bits a byte, least significant first.
    pub fn uint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.buf.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.buf.push(v as u8);
    }
    /// A signed varint (zigzag).
    pub fn int(&mut self, v: i64) {
        self.uint(((v << 1) ^ (v >> 63)) as u64);
    }
    /// Eight bytes, big-endian.
    pub fn fixed64(&mut self, v: u64) {
        self.buf.extend_from_slice(&v.to_be_bytes());
    }
    /// Bytes as they are.
    pub fn raw(&mut self, b: &[u8]) {
        self.buf.extend_from_slice(b);
    }
    /// Length, then bytes.
    pub fn bytes(&mut self, b: &[u8]) {
        self.uint(b.len() as u64);
        self.raw(b);
    }
    /// Seconds (signed), nanoseconds.
    pub fn time(&mut self, t: Time) {
        self.int(t.sec);
        self.uint(t.nsec.into());
    }
    /// Replica number, n.
    pub fn dot(&mut self, d: Dot, i: &mut dyn Intern) {
        self.uint(i.number(d.replica).into());
        self.uint(d.n);
    }
    /// Epoch, clock, replica number.
    pub fn stamp(&mut self, s: Stamp, i: &mut dyn Intern) {
        self.uint(s.epoch);
        self.uint(s.clock_ns);
        self.uint(i.number(s.replica).into());
    }
    /// 0 if `d` is `near`; else replica number + 1, n.
    fn near_dot(&mut self, d: Dot, near: Dot, i: &mut dyn Intern) {
        if d == near {
            return self.u8(0);
        }
        self.uint(u64::from(i.number(d.replica)) + 1);
        self.uint(d.n);
    }
    /// 0 if `s` is `near`, 1 if it is the smallest; else 2, epoch, clock (eight bytes), replica
    /// number, and `s` is the near one from now on.
    fn near_stamp(&mut self, s: Stamp, near: &mut Stamp, i: &mut dyn Intern) {
        if s == *near {
            return self.u8(NEAR_SAME);
        }
        if s == Stamp::MIN {
            return self.u8(NEAR_MIN);
        }
        *near = s;
        self.u8(NEAR_FULL);
        self.uint(s.epoch);
        self.fixed64(s.clock_ns);
        self.uint(i.number(s.replica).into());
    }
    /// Count, then each as [`Encoder::near_dot`].
    fn near_vv(&mut self, v: &VersionVector, near: Dot, i: &mut dyn Intern) {
        self.uint(v.len() as u64);
        for (r, n) in v.iter() {
            self.near_dot(Dot::new(r, n), near, i);
        }
    }
    /// Count, then (replica number, n) each.
    pub fn vv(&mut self, v: &VersionVector, i: &mut dyn Intern) {
        self.uint(v.len() as u64);
        for (r, n) in v.iter() {
            self.dot(Dot::new(r, n), i);
        }
    }
    /// A content: tag 1 file, 2 symlink, 3 special.
    pub fn content(&mut self, c: &Content) {
        match c {
            Content::File { size, mtime, digest } => {
                self.u8(1);
                self.uint(*size);
                self.time(*mtime);
                self.raw(&digest.0);
            }
            Content::Symlink { target, mtime } => {
                self.u8(2);
                self.time(*mtime);
                self.bytes(target);
            }
            Content::Special { rdev, mtime } => {
                self.u8(3);
                self.time(*mtime);
                self.uint(*rdev);
            }
        }
    }
    /// Attributes: flags (1 owner names, 2 directory mtime), mode, uid, gid, xattrs, then what the flags say.
    pub fn attrs(&mut self, a: &Attrs) {
        let flags = u8::from(a.owner_names.is_some()) | (u8::from(a.dir_mtime.is_some()) << 1);
        self.u8(flags);
        self.uint(a.mode.into());
        self.uint(a.uid.into());
        self.uint(a.gid.into());
        self.uint(a.xattrs.len() as u64);
        for (k, v) in &a.xattrs {
            self.bytes(k);
            self.bytes(v);
        }
        if let Some((u, g)) = &a.owner_names {
            self.bytes(u);
            self.bytes(g);
        }
        if let Some(t) = a.dir_mtime {
            self.time(t);
        }
    }
    /// A whole entry state: kind and flags, birth dot, then what the flags do not say already.
    pub fn entry(&mut self, e: &Entry, i: &mut dyn Intern) {
        let birth = e.id.0;
        let mut stamp = Stamp::MIN;
        let flags = entry_flags(e);
        self.u8(e.kind as u8 | flags);
        self.dot(birth, i);
        if flags & CTX_IS_BIRTH == 0 {
            self.near_vv(&e.ctx, birth, i);
        }
        if flags & NOTHING_REMOVED == 0 {
            self.near_vv(&e.removed, birth, i);
        }
        self.uint(e.data.len() as u64);
        for v in &e.data {
            self.near_dot(v.dot, birth, i);
            self.near_stamp(v.stamp, &mut stamp, i);
            self.content(&v.content);
        }
        self.uint(e.links.len() as u64);
        for l in &e.links {
            self.link(l, birth, &mut stamp, i);
        }
        self.near_stamp(e.meta.0, &mut stamp, i);
        self.attrs(&e.meta.1);
        if let Some((at, time)) = e.dir_time {
            self.near_stamp(at, &mut stamp, i);
            self.time(time);
        }
        if flags & HIST_IS_LINK == 0 {
            self.hist(&e.hist, &mut stamp, i);
        }
    }
    fn link(&mut self, l: &Link, birth: Dot, stamp: &mut Stamp, i: &mut dyn Intern) {
        self.near_dot(l.id.0, birth, i);
        self.near_dot(l.at.dot, birth, i);
        self.near_dot(l.at.holds, birth, i);
        self.near_stamp(l.at.stamp, stamp, i);
        self.dot(l.at.parent.0, i);
        self.bytes(l.at.name.as_bytes());
        self.near_vv(&l.gone, birth, i);
    }
    fn hist(&mut self, hist: &[(EntryId, Stamp)], stamp: &mut Stamp, i: &mut dyn Intern) {
        self.uint(hist.len() as u64);
        for (parent, at) in hist {
            self.dot(parent.0, i);
            self.near_stamp(*at, stamp, i);
        }
    }
    /// A fingerprint: size, mtime, ctime with its seconds relative to mtime's.
    pub fn fingerprint(&mut self, f: &Fingerprint) {
        self.uint(f.size);
        self.time(f.mtime);
        self.int(f.ctime.sec.wrapping_sub(f.mtime.sec));
        self.uint(f.ctime.nsec.into());
    }
    /// A node record.
    pub fn node(&mut self, n: &Node, i: &mut dyn Intern) {
        self.u8(n.kind as u8);
        self.fingerprint(&n.fingerprint);
        self.u8(n.racy.into());
        self.attrs(&n.given);
        self.fixed64(n.wanted.0);
        self.uint(n.names.len() as u64);
        for (dir, name) in &n.names {
            self.bytes(dir.as_bytes());
            self.bytes(name.as_bytes());
        }
        match &n.bind {
            Bind::Dir(members) => {
                self.u8(1);
                self.uint(members.len() as u64);
                for m in members {
                    self.dot(m.0, i);
                }
            }
            Bind::Leaf { identity } => {
                self.u8(2);
                self.raw(&identity.0);
            }
        }
    }
    /// A place record.
    pub fn place(&mut self, p: &Place, i: &mut dyn Intern) {
        self.bytes(p.node.as_bytes());
        self.bytes(p.conflict_of.as_ref().map_or(&[][..], |n| n.as_bytes()));
        self.uint(p.claims.len() as u64);
        for c in &p.claims {
            self.dot(c.entry.0, i);
            self.near_dot(c.link.0, c.entry.0, i);
            self.near_dot(c.name_dot, c.entry.0, i);
            self.near_dot(c.version, c.entry.0, i);
        }
    }
}

/// Reads values from bytes.
pub struct Decoder<'a> {
    all: &'a [u8],
    at: usize,
}

/// What a decoder step gives.
pub type Decoded<T> = Result<T, Malformed>;

impl<'a> Decoder<'a> {
    /// At the start of `all`.
    pub fn new(all: &'a [u8]) -> Self {
        Self { all, at: 0 }
    }
    /// An error about `what` here.
    pub fn bad<T>(&self, what: &'static str) -> Decoded<T> {
        Err(Malformed { what, at: self.at })
    }
    /// Bytes left.
    pub fn left(&self) -> usize {
        self.all.len() - self.at
    }
    /// Fails unless everything was read.
    pub fn end(&self) -> Decoded<()> {
        if self.left() == 0 { Ok(()) } else { self.bad("end") }
    }
    /// The next `n` bytes.
    pub fn raw(&mut self, n: usize) -> Decoded<&'a [u8]> {
        if self.left() < n {
            return self.bad("bytes");
        }
        self.at += n;
        Ok(&self.all[self.at - n..self.at])
    }
    /// One byte.
    pub fn u8(&mut self) -> Decoded<u8> {
        Ok(self.raw(1)?[0])
    }
    /// An unsigned varint.
    pub fn uint(&mut self) -> Decoded<u64> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            let bits = u64::from(b & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            v |= bits << shift;
            if b & 0x80 == 0 {
                return Ok(v);
            }
        }
        self.bad("varint")
    }
    /// An unsigned varint that fits 32 bits.
    pub fn u32(&mut self) -> Decoded<u32> {
        let v = self.uint()?;
        u32::try_from(v).or_else(|_| self.bad("32-bit number"))
    }
    /// A signed varint.
    pub fn int(&mut self) -> Decoded<i64> {
        let v = self.uint()?;
        Ok((v >> 1) as i64 ^ -((v & 1) as i64))
    }
    /// Eight bytes, big-endian.
    pub fn fixed64(&mut self) -> Decoded<u64> {
        let b = self.raw(8)?;
        Ok(u64::from_be_bytes(b.try_into().or_else(|_| self.bad("number"))?))
    }
    /// A count of things that take at least `each` bytes: refused if the rest could not hold them.
    pub fn count(&mut self, each: usize) -> Decoded<usize> {
        let n = self.uint()?;
        match usize::try_from(n) {
            Ok(n) if n.saturating_mul(each.max(1)) <= self.left() => Ok(n),
            _ => self.bad("count"),
        }
    }
    /// Length-prefixed bytes.
    pub fn bytes(&mut self) -> Decoded<&'a [u8]> {
        let n = self.count(1)?;
        self.raw(n)
    }
    /// A time.
    pub fn time(&mut self) -> Decoded<Time> {
        let (sec, nsec) = (self.int()?, self.u32()?);
        if nsec >= 1_000_000_000 {
            return self.bad("nanoseconds");
        }
        Ok(Time { sec, nsec })
    }
    fn replica(&mut self, r: &dyn Resolve) -> Decoded<ReplicaId> {
        let n = self.uint()?;
        match u16::try_from(n).ok().and_then(|n| r.replica(n)) {
            Some(id) => Ok(id),
            None => self.bad("replica number"),
        }
    }
    /// A dot.
    pub fn dot(&mut self, r: &dyn Resolve) -> Decoded<Dot> {
        Ok(Dot::new(self.replica(r)?, self.uint()?))
    }
    /// A stamp.
    pub fn stamp(&mut self, r: &dyn Resolve) -> Decoded<Stamp> {
        Ok(Stamp { epoch: self.uint()?, clock_ns: self.uint()?, replica: self.replica(r)? })
    }
    fn near_dot(&mut self, near: Dot, r: &dyn Resolve) -> Decoded<Dot> {
        let n = match self.uint()? {
            0 => return Ok(near),
            n => n - 1,
        };
        match u16::try_from(n).ok().and_then(|n| r.replica(n)) {
            Some(replica) => Ok(Dot::new(replica, self.uint()?)),
            None => self.bad("replica number"),
        }
    }
    fn near_stamp(&mut self, near: &mut Stamp, r: &dyn Resolve) -> Decoded<Stamp> {
        match self.u8()? {
            NEAR_SAME => {}
            NEAR_MIN => return Ok(Stamp::MIN),
            NEAR_FULL => {
                *near = Stamp { epoch: self.uint()?, clock_ns: self.fixed64()?, replica: self.replica(r)? };
            }
            _ => return self.bad("stamp"),
        }
        Ok(*near)
    }
    fn near_vv(&mut self, near: Dot, r: &dyn Resolve) -> Decoded<VersionVector> {
        let n = self.count(1)?;
        let mut v = VersionVector::new();
        for _ in 0..n {
            v.add(self.near_dot(near, r)?);
        }
        Ok(v)
    }
    /// A version vector.
    pub fn vv(&mut self, r: &dyn Resolve) -> Decoded<VersionVector> {
        let n = self.count(2)?;
        let mut v = VersionVector::new();
        for _ in 0..n {
            v.add(self.dot(r)?);
        }
        Ok(v)
    }
    /// A file name.
    pub fn name(&mut self) -> Decoded<Name> {
        let b = self.bytes()?;
        Name::new(b).or_else(|_| self.bad("name"))
    }
    fn digest(&mut self) -> Decoded<Digest> {
        let b = self.raw(32)?;
        Ok(Digest(b.try_into().or_else(|_| self.bad("digest"))?))
    }
    /// A node key.
    pub fn node_key(&mut self) -> Decoded<NodeKey> {
        let b = self.bytes()?;
        NodeKey::new(b).map_or_else(|| self.bad("node key"), Ok)
    }
    /// A content.
    pub fn content(&mut self) -> Decoded<Content> {
        Ok(match self.u8()? {
            1 => Content::File { size: self.uint()?, mtime: self.time()?, digest: self.digest()? },
            2 => {
                let mtime = self.time()?;
                let target = self.bytes()?;
                if target.is_empty() || target.len() > Content::TARGET_LEN_MAX || target.contains(&0) {
                    return self.bad("symlink target");
                }
                Content::Symlink { target: SmallVec::from_slice(target), mtime }
            }
            3 => {
                let mtime = self.time()?;
                Content::Special { rdev: self.uint()?, mtime }
            }
            _ => return self.bad("content"),
        })
    }
    /// Attributes.
    pub fn attrs(&mut self) -> Decoded<Attrs> {
        let flags = self.u8()?;
        let (mode, uid, gid) = (self.u32()?, self.u32()?, self.u32()?);
        if flags > 3 || mode > 0o7777 {
            return self.bad("attributes");
        }
        let n = self.count(2)?;
        let mut xattrs = Vec::with_capacity(n);
        for _ in 0..n {
            xattrs.push((self.bytes()?.to_vec(), self.bytes()?.to_vec()));
        }
        let owner_names =
            if flags & 1 != 0 { Some((self.bytes()?.to_vec(), self.bytes()?.to_vec())) } else { None };
        let dir_mtime = if flags & 2 != 0 { Some(self.time()?) } else { None };
        Ok(Attrs { mode, uid, gid, owner_names, xattrs, dir_mtime })
    }
    fn kind(&mut self) -> Decoded<Kind> {
        let code = self.u8()?;
        self.kind_of(code)
    }
    fn kind_of(&self, code: u8) -> Decoded<Kind> {
        Kind::from_code(code).map_or_else(|| self.bad("kind"), Ok)
    }
    /// A whole entry state. Checked for shape: sorted parts, content that fits the kind, one link for
    /// a directory, at least one link.
    pub fn entry(&mut self, r: &dyn Resolve) -> Decoded<Entry> {
        let flags = self.u8()?;
        if flags & !ENTRY_BITS != 0 {
            return self.bad("entry flags");
        }
        let kind = self.kind_of(flags & KIND_BITS)?;
        let birth = self.dot(r)?;
        let mut stamp = Stamp::MIN;
        let ctx = match flags & CTX_IS_BIRTH {
            0 => self.near_vv(birth, r)?,
            _ => VersionVector::from_dot(birth),
        };
        let removed = match flags & NOTHING_REMOVED {
            0 => self.near_vv(birth, r)?,
            _ => VersionVector::new(),
        };
        let data = self.versions(birth, &mut stamp, r)?;
        let links = self.links(birth, &mut stamp, r)?;
        let meta = (self.near_stamp(&mut stamp, r)?, self.attrs()?);
        let dir_time = match flags & HAS_DIR_TIME {
            0 => None,
            _ => Some((self.near_stamp(&mut stamp, r)?, self.time()?)),
        };
        let hist = match flags & HIST_IS_LINK {
            0 => self.hist(&mut stamp, r)?,
            _ => hist_of_links(kind, &links).into_iter().collect(),
        };
        let e = Entry { id: EntryId(birth), kind, ctx, removed, data, links, meta, dir_time, hist };
        if well_formed(&e) { Ok(e) } else { self.bad("entry") }
    }
    fn versions(
        &mut self,
        birth: Dot,
        stamp: &mut Stamp,
        r: &dyn Resolve,
    ) -> Decoded<SmallVec<[Version; 1]>> {
        let n = self.count(6)?;
        let mut data = SmallVec::with_capacity(n);
        for _ in 0..n {
            let (dot, stamp) = (self.near_dot(birth, r)?, self.near_stamp(stamp, r)?);
            data.push(Version { dot, stamp, content: self.content()? });
        }
        Ok(data)
    }
    fn links(&mut self, birth: Dot, stamp: &mut Stamp, r: &dyn Resolve) -> Decoded<SmallVec<[Link; 1]>> {
        let n = self.count(9)?;
        let mut links = SmallVec::with_capacity(n);
        for _ in 0..n {
            let (id, dot) = (LinkId(self.near_dot(birth, r)?), self.near_dot(birth, r)?);
            let (holds, stamp) = (self.near_dot(birth, r)?, self.near_stamp(stamp, r)?);
            let (parent, name) = (EntryId(self.dot(r)?), self.name()?);
            let gone = self.near_vv(birth, r)?;
            links.push(Link { id, at: At { stamp, dot, parent, name, holds }, gone });
        }
        Ok(links)
    }
    fn hist(&mut self, stamp: &mut Stamp, r: &dyn Resolve) -> Decoded<Vec<(EntryId, Stamp)>> {
        let n = self.count(3)?;
        let mut hist = Vec::with_capacity(n);
        for _ in 0..n {
            hist.push((EntryId(self.dot(r)?), self.near_stamp(stamp, r)?));
        }
        Ok(hist)
    }
    /// A fingerprint.
    pub fn fingerprint(&mut self) -> Decoded<Fingerprint> {
        let (size, mtime, mut ctime) = (self.uint()?, self.time()?, self.time()?);
        ctime.sec = ctime.sec.wrapping_add(mtime.sec);
        Ok(Fingerprint { size, mtime, ctime })
    }
    /// A node record.
    pub fn node(&mut self, r: &dyn Resolve) -> Decoded<Node> {
        let kind = self.kind()?;
        let fingerprint = self.fingerprint()?;
        let racy = self.u8()? != 0;
        let given = self.attrs()?;
        let wanted = Wanted(self.fixed64()?);
        let n = self.count(2)?;
        let mut names = Vec::with_capacity(n);
        for _ in 0..n {
            names.push((self.node_key()?, self.name()?));
        }
        let bind = match self.u8()? {
            1 => {
                let n = self.count(2)?;
                let mut members = Vec::with_capacity(n);
                for _ in 0..n {
                    members.push(EntryId(self.dot(r)?));
                }
                Bind::Dir(members)
            }
            2 => Bind::Leaf { identity: self.digest()? },
            _ => return self.bad("bind"),
        };
        Ok(Node { kind, fingerprint, racy, given, wanted, names, bind })
    }
    /// What of a node record a stat can be compared with; the rest is passed over. `None` if the record is racy.
    pub fn node_head(&mut self) -> Decoded<Option<Recorded>> {
        let (kind, fingerprint, racy) = (self.kind()?, self.fingerprint()?, self.u8()? != 0);
        let _flags = self.u8()?;
        let (mode, uid, gid) = (self.u32()?, self.u32()?, self.u32()?);
        self.at = self.all.len();
        Ok((!racy).then_some(Recorded { kind, fingerprint, mode, uid, gid }))
    }
    /// The inode of a place record; the rest is passed over.
    pub fn place_inode(&mut self) -> Decoded<NodeKey> {
        let node = self.node_key()?;
        self.at = self.all.len();
        Ok(node)
    }
    /// A place record.
    pub fn place(&mut self, r: &dyn Resolve) -> Decoded<Place> {
        let node = self.node_key()?;
        let conflict_of = match self.bytes()? {
            [] => None,
            b => Some(Name::new(b).or_else(|_| self.bad("name"))?),
        };
        let n = self.count(5)?;
        let mut claims = Vec::with_capacity(n);
        for _ in 0..n {
            let entry = self.dot(r)?;
            claims.push(Claim {
                entry: EntryId(entry),
                link: LinkId(self.near_dot(entry, r)?),
                name_dot: self.near_dot(entry, r)?,
                version: self.near_dot(entry, r)?,
            });
        }
        Ok(Place { node, claims, conflict_of })
    }
}

/// The shape every correct author gives a state.
pub(crate) fn well_formed(e: &Entry) -> bool {
    let fits = |c: &Content| {
        matches!(
            (e.kind, c),
            (Kind::File, Content::File { .. })
                | (Kind::Symlink, Content::Symlink { .. })
                | (Kind::Fifo | Kind::Socket | Kind::CharDev | Kind::BlockDev, Content::Special { .. })
        )
    };
    if e.id.is_root() {
        return root_well_formed(e);
    }
    e.data.is_sorted_by(|a, b| a.dot < b.dot)
        && e.links.is_sorted_by(|a, b| a.id < b.id)
        && e.hist.is_sorted_by(|a, b| a.0 < b.0)
        && e.data.iter().all(|v| fits(&v.content))
        && !e.links.is_empty()
        && (!e.kind.is_dir() || (e.links.len() == 1 && e.data.is_empty()))
        && (e.kind.is_dir() || (e.hist.is_empty() && e.dir_time.is_none()))
        && e.meta.1.dir_mtime.is_none()
        && e.meta.1.xattrs.is_sorted_by(|a, b| a.0 < b.0)
}

/// The root has attributes and nothing else: it cannot be moved, removed or written to.
fn root_well_formed(e: &Entry) -> bool {
    e.kind.is_dir()
        && e.data.is_empty()
        && e.links.is_empty()
        && e.hist.is_empty()
        && e.removed.is_empty()
        && e.meta.1.dir_mtime.is_none()
        && e.meta.1.xattrs.is_sorted_by(|a, b| a.0 < b.0)
}

#[cfg(test)]
mod tests;
