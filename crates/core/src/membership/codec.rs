//! A membership document as bytes (`docs/formats.md` has it byte by byte). Decoding is total and bounded; equal documents have
//! equal bytes.

use super::{
    ADDRESS_LEN_MAX, ADDRESSES_MAX, Action, CHANGES_MAX, CUTS_MAX, Change, DOCUMENT_LEN_MAX, Key, Members,
    Place, Rights, SITE_LEN_MAX, Signature,
};
use crate::codec::{Decoder, Encoder, Malformed};
use crate::id::ReplicaId;
use crate::link::Role;
use crate::tx::N_MAX;

type Decoded<T> = Result<T, Malformed>;

const FORMAT: u8 = 1;
/// Author, number, clock, the shortest action, signature.
const CHANGE_LEN_MIN: usize = 32 + 1 + 1 + 2 + 64;

const FOUND: u8 = 1;
const PUT: u8 = 2;
const REMOVE: u8 = 3;
const CUT: u8 = 4;
const REPLICA: u8 = 5;
const AT: u8 = 6;
const REKEY: u8 = 7;
const APPROVE: u8 = 8;

const WRITER: u8 = 1;
const MAY_RELAY: u8 = 2;
const MAY_INVITE: u8 = 4;

pub(super) fn encode(members: &Members) -> Vec<u8> {
    let mut e = Encoder::new();
    e.u8(FORMAT);
    e.raw(&members.volume.to_be_bytes());
    e.uint(members.changes.len() as u64);
    for change in members.changes.values() {
        body(&mut e, change.author, change.seq, change.clock, &change.action);
        e.raw(&change.signature.0);
    }
    e.buf
}

pub(super) fn decode(bytes: &[u8]) -> Decoded<Members> {
    let mut d = Decoder::new(bytes);
    if bytes.len() > DOCUMENT_LEN_MAX {
        return d.bad("length of a membership");
    }
    if d.u8()? != FORMAT {
        return d.bad("format of a membership");
    }
    let mut members = Members::new(u128::from_be_bytes(array(&mut d)?));
    let count = d.count(CHANGE_LEN_MIN)?;
    if count > CHANGES_MAX {
        return d.bad("number of changes");
    }
    for _ in 0..count {
        let (author, seq, clock) = (Key(array(&mut d)?), d.uint()?, d.uint()?);
        // The greatest are left free: nobody can make all who come later stand still.
        if seq == 0 || clock == 0 || seq > N_MAX || clock > N_MAX {
            return d.bad("number of a change");
        }
        let action = action(&mut d)?;
        let change = Change { author, seq, clock, action, signature: Signature(array(&mut d)?) };
        members.changes.insert(place(members.volume, &change), change);
    }
    d.end()?;
    Ok(members)
}

pub(super) fn place(volume: u128, change: &Change) -> Place {
    let bytes = signed_bytes(volume, change.author, change.seq, change.clock, &change.action);
    let mut hash = blake3::Hasher::new();
    hash.update(&bytes).update(&change.signature.0);
    (change.clock, change.author, change.seq, *hash.finalize().as_bytes())
}

pub(super) fn signed_bytes(volume: u128, author: Key, seq: u64, clock: u64, action: &Action) -> Vec<u8> {
    let mut e = Encoder::new();
    e.raw(b"driftless membership 1\n");
    e.raw(&volume.to_be_bytes());
    body(&mut e, author, seq, clock, action);
    e.buf
}

fn body(e: &mut Encoder, author: Key, seq: u64, clock: u64, action: &Action) {
    e.raw(&author.0);
    e.uint(seq);
    e.uint(clock);
    match action {
        Action::Found { site } => {
            e.u8(FOUND);
            e.bytes(site.as_bytes());
        }
        Action::Put { key, site, rights, addresses } => {
            e.u8(PUT);
            e.raw(&key.0);
            e.bytes(site.as_bytes());
            e.u8(bits(*rights));
            put_addresses(e, addresses);
        }
        Action::Remove { key, seen, cuts } => {
            e.u8(REMOVE);
            e.raw(&key.0);
            e.uint(*seen);
            put_cuts(e, cuts);
        }
        Action::Cut(cuts) => {
            e.u8(CUT);
            put_cuts(e, cuts);
        }
        Action::Replica(replica) => {
            e.u8(REPLICA);
            e.fixed64(replica.0);
        }
        Action::At(addresses) => {
            e.u8(AT);
            put_addresses(e, addresses);
        }
        Action::Rekey { key, proof } => {
            e.u8(REKEY);
            e.raw(&key.0);
            e.raw(&proof.0);
        }
        Action::Approve { heal, at_ms } => {
            e.u8(APPROVE);
            e.u8(u8::from(*heal));
            e.uint(*at_ms);
        }
    }
}

fn action(d: &mut Decoder<'_>) -> Decoded<Action> {
    Ok(match d.u8()? {
        FOUND => Action::Found { site: site(d)? },
        PUT => {
            Action::Put { key: Key(array(d)?), site: site(d)?, rights: rights(d)?, addresses: addresses(d)? }
        }
        REMOVE => Action::Remove { key: Key(array(d)?), seen: d.uint()?, cuts: cuts(d)? },
        CUT => Action::Cut(cuts(d)?),
        REPLICA => Action::Replica(replica(d)?),
        AT => Action::At(addresses(d)?),
        REKEY => Action::Rekey { key: Key(array(d)?), proof: Signature(array(d)?) },
        APPROVE => Action::Approve { heal: flag(d)?, at_ms: d.uint()? },
        _ => return d.bad("kind of a change"),
    })
}

fn bits(rights: Rights) -> u8 {
    let writer = if rights.role == Role::Writer { WRITER } else { 0 };
    let relay = if rights.may_relay { MAY_RELAY } else { 0 };
    writer | relay | if rights.may_invite { MAY_INVITE } else { 0 }
}

fn rights(d: &mut Decoder<'_>) -> Decoded<Rights> {
    let bits = d.u8()?;
    if bits & !(WRITER | MAY_RELAY | MAY_INVITE) != 0 {
        return d.bad("rights");
    }
    let role = if bits & WRITER != 0 { Role::Writer } else { Role::Follower };
    Ok(Rights { role, may_relay: bits & MAY_RELAY != 0, may_invite: bits & MAY_INVITE != 0 })
}

fn put_addresses(e: &mut Encoder, addresses: &[String]) {
    e.uint(addresses.len() as u64);
    addresses.iter().for_each(|a| e.bytes(a.as_bytes()));
}

fn addresses(d: &mut Decoder<'_>) -> Decoded<Vec<String>> {
    let count = d.count(1)?;
    if count > ADDRESSES_MAX {
        return d.bad("number of addresses");
    }
    (0..count).map(|_| text(d, ADDRESS_LEN_MAX)).collect()
}

fn put_cuts(e: &mut Encoder, cuts: &[(ReplicaId, u64)]) {
    e.uint(cuts.len() as u64);
    for (replica, n) in cuts {
        e.fixed64(replica.0);
        e.uint(*n);
    }
}

fn cuts(d: &mut Decoder<'_>) -> Decoded<Vec<(ReplicaId, u64)>> {
    let count = d.count(9)?;
    if count > CUTS_MAX {
        return d.bad("number of cuts");
    }
    (0..count).map(|_| Ok((replica(d)?, d.uint()?))).collect()
}

fn replica(d: &mut Decoder<'_>) -> Decoded<ReplicaId> {
    match d.fixed64()? {
        0 => d.bad("replica"),
        id => Ok(ReplicaId(id)),
    }
}

fn flag(d: &mut Decoder<'_>) -> Decoded<bool> {
    match d.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => d.bad("flag"),
    }
}

fn site(d: &mut Decoder<'_>) -> Decoded<String> {
    text(d, SITE_LEN_MAX)
}

fn text(d: &mut Decoder<'_>, len_max: usize) -> Decoded<String> {
    let bytes = d.bytes()?;
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.len() <= len_max && !text.chars().any(char::is_control) => {
            Ok(text.to_owned())
        }
        _ => d.bad("text"),
    }
}

fn array<const N: usize>(d: &mut Decoder<'_>) -> Decoded<[u8; N]> {
    let at = d.left();
    d.raw(N)?.first_chunk().copied().ok_or(Malformed { what: "bytes", at })
}
