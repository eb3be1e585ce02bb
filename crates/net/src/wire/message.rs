//! Link messages as payloads.

use super::Type;
use driftless_core::codec::{Decoded, Decoder, Encoder, ReplicaTable, Resolve};
use driftless_core::link::{
    Batch, FeedCursor, Held, Hello, Inline, Message, NotHere, Piece, Receipt, RecipePart, RecipeWant, Role,
    SignedHead, Want,
};
use driftless_core::membership::Signature;
use driftless_core::meta::Digest;
use driftless_core::recipe::{Cut, Recipe};
use driftless_core::tx::{Knowledge, Known};
use driftless_core::{Dot, EntryId, ReplicaId};

/// Longest text for people; longer ones are cut when written.
pub(super) const TEXT_LEN_MAX: usize = 4096;
/// Longest site name.
const SITE_LEN_MAX: usize = 255;
/// Most replicas one message may name: a volume's index takes no more than half as many.
const REPLICAS_MAX: usize = 8192;
/// Most entries and contents in one batch: bounds what a small body can become in memory.
const BATCH_ITEMS_MAX: usize = 65_536;
/// What the shortest entry, dot and so on take at least.
const ENTRY_LEN_MIN: usize = 12;
const DOT_LEN_MIN: usize = 2;
const SIGNATURE_LEN: usize = 64;
const HEAD_LEN_MIN: usize = DOT_LEN_MIN + 8 + SIGNATURE_LEN;

/// The payload of any message but a piece.
///
/// It is made in `memory`, which is given back with the message at its end: a large one costs more in memory that is new to the
/// process than all else. The second value is where it begins.
pub(super) fn encode(m: &Message, mut memory: Vec<u8>) -> (Vec<u8>, usize) {
    memory.clear();
    memory.resize(TABLE_ROOM, 0);
    let mut p = Payload { e: Encoder { buf: memory }, table: ReplicaTable::default() };
    match m {
        Message::Hello(h) => p.hello(h),
        Message::Batch(b) => p.batch(b),
        Message::Receipt(r) => p.receipt(r),
        Message::Held(h) => {
            p.e.uint(h.cursor);
            p.e.uint(h.waiting);
        }
        Message::Want(w) => p.want(w),
        Message::Piece(piece) => p.piece_head(piece, 0),
        Message::NotHere(n) => {
            p.dot(n.entry.0);
            p.dot(n.version);
            p.text(&n.reason);
        }
        Message::RecipeWant(w) => {
            p.dot(w.entry.0);
            p.dot(w.version);
            p.e.raw(&w.digest.0);
            p.e.u8(w.cut.number());
            p.e.uint(w.offset);
            p.e.uint(w.len);
        }
        Message::Recipe(r) => {
            p.dot(r.entry.0);
            p.dot(r.version);
            p.e.uint(r.offset);
            r.recipe.encode(&mut p.e);
        }
        Message::Heartbeat { head, scanned } => {
            p.e.uint(*head);
            p.e.u8((*scanned).into());
        }
        Message::Bye { reason } => p.text(reason),
        Message::Heads(heads) => p.heads(heads),
    }
    p.finish_in_place()
}

/// A piece's head with its length, for the part that starts `skip` bytes into the piece.
pub(super) fn encode_piece_head(piece: &Piece, skip: u64) -> Vec<u8> {
    let mut p = Payload::default();
    p.piece_head(piece, skip);
    let head = p.finish();
    // Two replicas, two dots and an offset are at most 62 bytes.
    let mut out = vec![head.len() as u8];
    out.extend_from_slice(&head);
    out
}

/// The message with this payload.
pub(super) fn decode(t: Type, payload: &[u8]) -> Decoded<Message> {
    let mut d = Decoder::new(payload);
    let table = table(&mut d)?;
    let m = match t {
        Type::Hello => Message::Hello(hello(&mut d, &table)?),
        Type::Batch => Message::Batch(batch(&mut d, &table)?),
        Type::Receipt => Message::Receipt(receipt(&mut d, &table)?),
        Type::Held => Message::Held(Held { cursor: d.uint()?, waiting: d.uint()? }),
        Type::Want => Message::Want(want(&mut d, &table)?),
        Type::NotHere => {
            let (entry, version) = (entry_id(&mut d, &table)?, d.dot(&table)?);
            Message::NotHere(NotHere { entry, version, reason: text_field(&mut d, TEXT_LEN_MAX)? })
        }
        Type::RecipeWant => Message::RecipeWant(recipe_want(&mut d, &table)?),
        Type::Recipe => {
            let (entry, version) = (entry_id(&mut d, &table)?, d.dot(&table)?);
            let (offset, recipe) = (d.uint()?, Recipe::decode(&mut d)?);
            Message::Recipe(RecipePart { entry, version, offset, recipe })
        }
        Type::Heartbeat => Message::Heartbeat { head: d.uint()?, scanned: flag(&mut d)? },
        Type::Bye => Message::Bye { reason: text_field(&mut d, TEXT_LEN_MAX)? },
        Type::Heads => Message::Heads(heads(&mut d, &table)?),
        Type::Piece | Type::Control | Type::Close => return d.bad("message"),
    };
    d.end()?;
    Ok(m)
}

/// The piece with this head (without its length) and these bytes.
pub(super) fn decode_piece(head: &[u8], bytes: Vec<u8>) -> Decoded<Message> {
    let mut d = Decoder::new(head);
    let table = table(&mut d)?;
    let (entry, version, offset) = (entry_id(&mut d, &table)?, d.dot(&table)?, d.uint()?);
    d.end()?;
    Ok(Message::Piece(Piece { entry, version, offset, bytes }))
}

fn heads(d: &mut Decoder<'_>, table: &ReplicaTable) -> Decoded<Vec<SignedHead>> {
    let count = d.count(HEAD_LEN_MIN)?;
    let mut heads = Vec::with_capacity(count);
    for _ in 0..count {
        let (Dot { replica, n }, tag) = (d.dot(table)?, d.fixed64()?);
        let Some(signature) = d.raw(SIGNATURE_LEN)?.first_chunk() else { return d.bad("signature") };
        heads.push(SignedHead { replica, n, tag, signature: Signature(*signature) });
    }
    Ok(heads)
}

/// The next `len` bytes as text.
pub(super) fn text(d: &mut Decoder<'_>, len: usize) -> Decoded<String> {
    let bytes = d.raw(len)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => d.bad("text"),
    }
}

/// The table of replicas comes first and is known last: room for one of 63.
const TABLE_ROOM: usize = 512;

/// Fields with the table of replicas they refer to.
#[derive(Default)]
struct Payload {
    e: Encoder,
    table: ReplicaTable,
}

impl Payload {
    fn finish(self) -> Vec<u8> {
        [self.table_bytes(), self.e.buf].concat()
    }

    /// Of fields that have [`TABLE_ROOM`] before them.
    fn finish_in_place(mut self) -> (Vec<u8>, usize) {
        let table = self.table_bytes();
        let Some(start) = TABLE_ROOM.checked_sub(table.len()) else {
            self.e.buf.splice(..TABLE_ROOM, table);
            return (self.e.buf, 0);
        };
        self.e.buf[start..TABLE_ROOM].copy_from_slice(&table);
        (self.e.buf, start)
    }

    fn table_bytes(&self) -> Vec<u8> {
        let replicas = self.table.replicas();
        let mut table = Encoder { buf: Vec::with_capacity(8 * replicas.len() + 3) };
        table.uint(replicas.len() as u64);
        for r in replicas {
            table.fixed64(r.0);
        }
        table.buf
    }

    fn heads(&mut self, heads: &[SignedHead]) {
        self.e.uint(heads.len() as u64);
        for head in heads {
            self.dot(Dot::new(head.replica, head.n));
            self.e.fixed64(head.tag);
            self.e.raw(&head.signature.0);
        }
    }

    fn dot(&mut self, d: Dot) {
        self.e.dot(d, &mut self.table);
    }

    fn text(&mut self, text: &str) {
        self.e.bytes(super::cut(text, TEXT_LEN_MAX).as_bytes());
    }

    fn hello(&mut self, h: &Hello) {
        self.e.uint(h.protocol.0.into());
        self.e.uint(h.protocol.1.into());
        self.e.raw(&h.volume.to_be_bytes());
        self.e.fixed64(h.replica.0);
        self.e.bytes(super::cut(&h.site, SITE_LEN_MAX).as_bytes());
        self.e.u8(match h.role {
            Role::Writer => 0,
            Role::Follower => 1,
        });
        self.e.u8(u8::from(h.inline) | u8::from(h.scanned) << 1);
        self.knowledge(&h.knowledge);
        self.e.uint(h.cursors.len() as u64);
        for c in &h.cursors {
            self.dot(Dot::new(c.replica, c.n));
            self.e.fixed64(c.tag);
        }
    }

    fn knowledge(&mut self, k: &Knowledge) {
        self.e.uint(k.len() as u64);
        for (replica, known) in k {
            self.dot(Dot::new(*replica, known.n));
            self.e.fixed64(known.tag);
        }
    }

    fn batch(&mut self, b: &Batch) {
        self.e.uint(b.seq);
        self.e.uint(b.from);
        self.e.uint(b.to);
        self.e.fixed64(b.tag);
        self.e.u8(b.knowledge.is_some().into());
        if let Some(k) = &b.knowledge {
            self.knowledge(k);
        }
        self.e.uint(b.entries.len() as u64);
        for entry in &b.entries {
            self.e.entry(entry, &mut self.table);
        }
        self.e.uint(b.inline.len() as u64);
        for i in &b.inline {
            self.dot(i.entry.0);
            self.dot(i.version);
            self.e.bytes(&i.bytes);
        }
    }

    fn receipt(&mut self, r: &Receipt) {
        self.e.uint(r.seq);
        self.e.uint(r.to);
        self.e.uint(r.cursor);
        self.e.vv(&r.knowledge, &mut self.table);
        self.e.uint(r.states.len() as u64);
        for (entry, digest) in &r.states {
            self.dot(entry.0);
            self.e.fixed64(*digest);
        }
        self.e.uint(r.refused.len() as u64);
        for (entry, reason) in &r.refused {
            self.dot(entry.0);
            self.text(reason);
        }
    }

    fn want(&mut self, w: &Want) {
        self.dot(w.entry.0);
        self.dot(w.version);
        self.e.raw(&w.digest.0);
        self.e.uint(w.offset);
        self.e.uint(w.len);
    }

    fn piece_head(&mut self, piece: &Piece, skip: u64) {
        self.dot(piece.entry.0);
        self.dot(piece.version);
        self.e.uint(piece.offset.saturating_add(skip));
    }
}

fn table(d: &mut Decoder<'_>) -> Decoded<ReplicaTable> {
    let count = d.count(8)?;
    if count > REPLICAS_MAX {
        return d.bad("replica table");
    }
    let mut replicas = Vec::with_capacity(count);
    for _ in 0..count {
        replicas.push(ReplicaId(d.fixed64()?));
    }
    Ok(ReplicaTable::with(replicas))
}

fn hello(d: &mut Decoder<'_>, table: &dyn Resolve) -> Decoded<Hello> {
    let protocol = (version(d)?, version(d)?);
    let volume = d.raw(16)?.try_into().or_else(|_| d.bad("volume"))?;
    let replica = ReplicaId(d.fixed64()?);
    let site = text_field(d, SITE_LEN_MAX)?;
    let role = match d.u8()? {
        0 => Role::Writer,
        1 => Role::Follower,
        _ => return d.bad("role"),
    };
    let (inline, scanned) = two_flags(d)?;
    let knowledge = knowledge(d, table)?;
    let count = d.count(DOT_LEN_MIN + 8)?;
    let mut cursors = Vec::with_capacity(count);
    for _ in 0..count {
        let Dot { replica, n } = d.dot(table)?;
        cursors.push(FeedCursor { replica, n, tag: d.fixed64()? });
    }
    let volume = u128::from_be_bytes(volume);
    Ok(Hello { protocol, volume, replica, site, role, knowledge, cursors, inline, scanned })
}

fn knowledge(d: &mut Decoder<'_>, table: &dyn Resolve) -> Decoded<Knowledge> {
    let count = d.count(DOT_LEN_MIN + 8)?;
    let mut out = Knowledge::new();
    for _ in 0..count {
        let Dot { replica, n } = d.dot(table)?;
        out.insert(replica, Known { n, tag: d.fixed64()? });
    }
    Ok(out)
}

fn batch(d: &mut Decoder<'_>, table: &dyn Resolve) -> Decoded<Batch> {
    let (seq, from, to, tag) = (d.uint()?, d.uint()?, d.uint()?, d.fixed64()?);
    let knowledge = if flag(d)? { Some(knowledge(d, table)?) } else { None };
    let count = items(d, ENTRY_LEN_MIN)?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(d.entry(table)?);
    }
    let count = items(d, 2 * DOT_LEN_MIN + 1)?;
    let mut inline = Vec::with_capacity(count);
    for _ in 0..count {
        let (entry, version) = (entry_id(d, table)?, d.dot(table)?);
        inline.push(Inline { entry, version, bytes: d.bytes()?.to_vec() });
    }
    Ok(Batch { seq, from, to, tag, entries, inline, knowledge })
}

fn receipt(d: &mut Decoder<'_>, table: &dyn Resolve) -> Decoded<Receipt> {
    let (seq, to, cursor, knowledge) = (d.uint()?, d.uint()?, d.uint()?, d.vv(table)?);
    let count = items(d, DOT_LEN_MIN + 8)?;
    let mut states = Vec::with_capacity(count);
    for _ in 0..count {
        states.push((entry_id(d, table)?, d.fixed64()?));
    }
    let count = items(d, DOT_LEN_MIN + 1)?;
    let mut refused = Vec::with_capacity(count);
    for _ in 0..count {
        refused.push((entry_id(d, table)?, text_field(d, TEXT_LEN_MAX)?));
    }
    Ok(Receipt { seq, to, cursor, states, refused, knowledge })
}

fn want(d: &mut Decoder<'_>, table: &dyn Resolve) -> Decoded<Want> {
    let (entry, version) = (entry_id(d, table)?, d.dot(table)?);
    let digest = Digest(d.raw(32)?.try_into().or_else(|_| d.bad("digest"))?);
    Ok(Want { entry, version, digest, offset: d.uint()?, len: d.uint()? })
}

fn recipe_want(d: &mut Decoder<'_>, table: &dyn Resolve) -> Decoded<RecipeWant> {
    let (entry, version) = (entry_id(d, table)?, d.dot(table)?);
    let digest = Digest(d.raw(32)?.try_into().or_else(|_| d.bad("digest"))?);
    let Some(cut) = Cut::from_number(d.u8()?) else { return d.bad("cut") };
    Ok(RecipeWant { entry, version, digest, cut, offset: d.uint()?, len: d.uint()? })
}

fn items(d: &mut Decoder<'_>, each: usize) -> Decoded<usize> {
    let count = d.count(each)?;
    if count > BATCH_ITEMS_MAX { d.bad("count") } else { Ok(count) }
}

fn entry_id(d: &mut Decoder<'_>, table: &dyn Resolve) -> Decoded<EntryId> {
    Ok(EntryId(d.dot(table)?))
}

fn version(d: &mut Decoder<'_>) -> Decoded<u16> {
    let v = d.uint()?;
    u16::try_from(v).or_else(|_| d.bad("protocol version"))
}

/// The lowest two bits of a byte.
fn two_flags(d: &mut Decoder<'_>) -> Decoded<(bool, bool)> {
    match d.u8()? {
        bits @ 0..=3 => Ok((bits & 1 != 0, bits & 2 != 0)),
        _ => d.bad("flags"),
    }
}

fn flag(d: &mut Decoder<'_>) -> Decoded<bool> {
    match d.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => d.bad("flag"),
    }
}

fn text_field(d: &mut Decoder<'_>, len_max: usize) -> Decoded<String> {
    let len = d.count(1)?;
    if len > len_max {
        return d.bad("text");
    }
    text(d, len)
}
