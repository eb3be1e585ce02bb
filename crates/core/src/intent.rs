//! Intent rows: what a batch is about to move, written durably before the first move, so that a restart
//! can tell what is ours, what was done, and what a user did meanwhile (design section 6).
//!
//! One row of the `intents` table holds all intents of one plan:
//!
//! ```text
//! format (1 byte) · count · count x
//!   plan · operation (1) · entry · dot · parent handle · name · node
//!   · flags (1: source, 2: staged, 4: victim) · [source: handle, name]
//!   · [staged: name, handle, size, mtime, attributes]
//!   · [victim: kind (1), handle, fingerprint] · limbo name
//! entry, dot: replica (8 bytes), n        handles, names: length, bytes
//! ```
//!
//! The flow at a restart: for each intent look at its source (the staged name, or the name it was to
//! move from) and at its target, say what is there ([`IntentRow::at_source`], [`IntentRow::at_target`]),
//! and ask [`recover`].

use crate::codec::{Decoded, Decoder, Encoder, Malformed};
use crate::disk::{Fingerprint, NodeKey};
use crate::id::{Dot, EntryId, Kind, Name, ReplicaId};
use crate::meta::{Attrs, Time};
use crate::mutant::mutant;
use crate::plan::{At, Binding, Plan, Step, Victim};

/// What is to be done. The number is part of the on-disk format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Operation {
    /// Make a directory; its handle is not known before.
    MakeDir = 1,
    /// Show a staged inode.
    Put = 2,
    /// Give an inode another name.
    Link = 3,
    /// Take an inode from one name to another (parked ones too).
    Move = 4,
    /// Take a name away.
    Remove = 5,
}

impl Operation {
    fn from_code(code: u8) -> Option<Operation> {
        use Operation::*;
        [MakeDir, Put, Link, Move, Remove].into_iter().find(|o| *o as u8 == code)
    }
}

/// A staged file, as the file system stored it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct StagedFile {
    /// Its name in staging.
    pub name: Vec<u8>,
    /// Its handle.
    pub node: NodeKey,
    /// Its length in bytes.
    pub size: u64,
    /// Its modification time, as given back.
    pub mtime: Time,
    /// Its attributes, as given back.
    pub given: Attrs,
}

/// One intent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IntentRow {
    /// The plan it belongs to.
    pub plan: u64,
    /// For which entry; [`EntryId::ROOT`] if the step names none (removing, parking).
    pub entry: EntryId,
    /// The version shown; [`Dot::default`] for directories and where the step names none.
    pub dot: Dot,
    /// What is to be done.
    pub operation: Operation,
    /// Where.
    pub at: At,
    /// What is linked, moved or removed; the provisional key of what is made.
    pub node: NodeKey,
    /// The name it comes from, if it is moved or linked.
    pub source: Option<At>,
    /// What is shown, if it was staged.
    pub staged: Option<StagedFile>,
    /// What is expected at the target; `None`: nothing.
    pub victim: Option<Victim>,
    /// The name that the victim gets in limbo; empty if none was given yet.
    pub limbo: Vec<u8>,
}

impl IntentRow {
    /// The intent of a step of plan number `plan`; `staged` is what was staged for it. `None` for steps that
    /// move nothing.
    pub fn of(plan: u64, step: &Step, staged: Option<StagedFile>) -> Option<IntentRow> {
        let (operation, at, source) = match step {
            Step::MakeDir { at, .. } => (Operation::MakeDir, at.clone(), None),
            Step::Put { at, .. } => (Operation::Put, at.clone(), None),
            Step::Link { from, to, .. } => (Operation::Link, to.clone(), Some(from.clone())),
            Step::Move { from, to, .. } => (Operation::Move, to.clone(), Some(from.clone())),
            Step::Park { from, node, .. } => (Operation::Move, Plan::parked(node), Some(from.clone())),
            Step::Unpark { to, node, .. } => (Operation::Move, to.clone(), Some(Plan::parked(node))),
            Step::Remove { at, .. } => (Operation::Remove, at.clone(), None),
            Step::SetAttrs { .. } | Step::Rebind { .. } => return None,
        };
        let (entry, dot) = subject(step);
        Some(IntentRow {
            plan,
            entry,
            dot,
            operation,
            at,
            node: step.node().clone(),
            source,
            staged,
            victim: step.victim().cloned(),
            limbo: Vec::new(),
        })
    }

    /// The inode that is ours: staged, or moved. A removal has none.
    pub fn ours(&self) -> Option<&NodeKey> {
        match (&self.staged, self.operation) {
            (Some(staged), _) => Some(&staged.node),
            (None, Operation::Link | Operation::Move) => Some(&self.node),
            (None, _) => None,
        }
    }

    /// Says what an inode found at the source (the staged name, or the name that it comes from) or at the
    /// target is. A victim is compared without its change time, which an exchange may move.
    pub fn sight(&self, found: Option<(&NodeKey, &Fingerprint)>) -> Sight {
        let Some((key, now)) = found else { return Sight::Nothing };
        if self.ours() == Some(key) {
            return Sight::Ours;
        }
        match &self.victim {
            Some(v) if v.node == *key => {
                let same = (v.fingerprint.size, v.fingerprint.mtime) == (now.size, now.mtime);
                if same || v.kind.is_dir() { Sight::Victim } else { Sight::Other }
            }
            _ => Sight::Other,
        }
    }
}

/// Entry and version that a step shows.
fn subject(step: &Step) -> (EntryId, Dot) {
    let of = |binding: &Binding| {
        let claim = binding.claims.first().map(|c| (c.entry, c.version));
        claim.or(binding.members.first().map(|m| (*m, Dot::default())))
    };
    let found = match step {
        Step::Put { entry, version, .. } => Some((*entry, *version)),
        Step::MakeDir { binding, .. }
        | Step::Link { binding, .. }
        | Step::Move { binding, .. }
        | Step::Unpark { binding, .. } => of(binding),
        _ => None,
    };
    found.unwrap_or((EntryId::ROOT, Dot::default()))
}

/// What is found at a name that an intent speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sight {
    /// The name is free.
    Nothing,
    /// The inode that the intent shows or moves.
    Ours,
    /// The expected victim, as it was expected.
    Victim,
    /// Anything else: another inode, or the victim with other content.
    Other,
}

/// What a restart does about an intent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Recovery {
    /// It was not moved, and the target is as expected: do it again.
    Redo,
    /// It was not moved, and the target is not as expected (any more): observe the target, plan again.
    Replan,
    /// It was moved and the victim is still at the source: take that to limbo and record the move.
    Finish,
    /// It was moved: record it.
    Done,
    /// A user's version came out of the exchange: keep it, it becomes a sibling.
    KeepRaced,
    /// It was moved for sure; then a user removed or replaced it: observe that.
    UserChanged,
}

/// Decides what became of an intent. `replaces`: a victim is expected at the target. `sealed`: it was moved for sure: a sync
/// of the file system that began after the move has succeeded, or what was replaced waits in limbo, or what was moved
/// has another name in the tree by now.
///
/// | source | target | |
/// | --- | --- | --- |
/// | ours | as expected | [`Recovery::Redo`] |
/// | ours | anything else | [`Recovery::Replan`] |
/// | victim | any | [`Recovery::Finish`] |
/// | other | any | [`Recovery::KeepRaced`] |
/// | nothing | ours | [`Recovery::Done`] |
/// | nothing | anything else | [`Recovery::UserChanged`] if sealed, else [`Recovery::Redo`] if as expected, else [`Recovery::Replan`] |
///
/// For links, whose source stays, and directories, which are made in place, the target alone decides:
/// [`recover_in_place`].
pub fn recover(source: Sight, target: Sight, replaces: bool, sealed: bool) -> Recovery {
    let expected = target == if replaces { Sight::Victim } else { Sight::Nothing };
    match (source, target) {
        (Sight::Ours, _) if expected => Recovery::Redo,
        (Sight::Ours, _) => Recovery::Replan,
        (Sight::Victim, _) => Recovery::Finish,
        (Sight::Other, _) => Recovery::KeepRaced,
        (Sight::Nothing, Sight::Ours) if mutant!(MoveNotRecognised) => Recovery::Replan,
        (Sight::Nothing, Sight::Ours) => Recovery::Done,
        (Sight::Nothing, _) if sealed => Recovery::UserChanged,
        (Sight::Nothing, _) if expected => Recovery::Redo,
        (Sight::Nothing, _) => Recovery::Replan,
    }
}

/// Decides what became of a link or a removal by its target alone. A directory that was to be made counts
/// as ours if it is one that the index does not know.
pub fn recover_in_place(operation: Operation, target: Sight, replaces: bool, sealed: bool) -> Recovery {
    let wanted = match operation {
        Operation::Remove => Sight::Nothing,
        _ => Sight::Ours,
    };
    let expected = target == if replaces { Sight::Victim } else { Sight::Nothing };
    match target {
        t if t == wanted => Recovery::Done,
        _ if sealed => Recovery::UserChanged,
        _ if expected => Recovery::Redo,
        _ => Recovery::Replan,
    }
}

// ----- bytes

/// The format that [`encode_intents`] writes.
const FORMAT: u8 = 1;
const HAS_SOURCE: u8 = 1;
const HAS_STAGED: u8 = 2;
const HAS_VICTIM: u8 = 4;
/// Longest name in staging or limbo, in bytes: a file name.
const PRIVATE_NAME_LEN_MAX: usize = 255;
/// Bytes that the shortest intent takes; a count that the rest could not hold is refused.
const ROW_LEN_MIN: usize = 28;

/// The table row of one plan's intents.
pub fn encode_intents(rows: &[IntentRow]) -> Vec<u8> {
    let mut e = Encoder { buf: Vec::with_capacity(16 + rows.len() * 128) };
    e.u8(FORMAT);
    e.uint(rows.len() as u64);
    for row in rows {
        encode_row(&mut e, row);
    }
    e.buf
}

fn encode_row(e: &mut Encoder, row: &IntentRow) {
    let flag = |bit: u8, set: bool| if set { bit } else { 0 };
    e.uint(row.plan);
    e.u8(row.operation as u8);
    put_dot(e, row.entry.0);
    put_dot(e, row.dot);
    put_at(e, &row.at);
    e.bytes(row.node.as_bytes());
    e.u8(flag(HAS_SOURCE, row.source.is_some())
        | flag(HAS_STAGED, row.staged.is_some())
        | flag(HAS_VICTIM, row.victim.is_some()));
    if let Some(source) = &row.source {
        put_at(e, source);
    }
    if let Some(s) = &row.staged {
        e.bytes(&s.name);
        e.bytes(s.node.as_bytes());
        e.uint(s.size);
        e.time(s.mtime);
        e.attrs(&s.given);
    }
    if let Some(v) = &row.victim {
        e.u8(v.kind as u8);
        e.bytes(v.node.as_bytes());
        e.fingerprint(&v.fingerprint);
    }
    e.bytes(&row.limbo);
}

fn put_dot(e: &mut Encoder, dot: Dot) {
    e.fixed64(dot.replica.0);
    e.uint(dot.n);
}

fn put_at(e: &mut Encoder, at: &At) {
    e.bytes(at.dir.as_bytes());
    e.bytes(at.name.as_bytes());
}

/// Reads a table row.
///
/// # Errors
/// [`Malformed`] if the bytes are not what [`encode_intents`] writes.
pub fn decode_intents(bytes: &[u8]) -> Result<Vec<IntentRow>, Malformed> {
    let mut d = Decoder::new(bytes);
    if d.u8()? != FORMAT {
        return d.bad("format of intents");
    }
    let count = d.count(ROW_LEN_MIN)?;
    let mut rows = Vec::with_capacity(count);
    for _ in 0..count {
        rows.push(decode_row(&mut d)?);
    }
    d.end()?;
    Ok(rows)
}

fn decode_row(d: &mut Decoder<'_>) -> Decoded<IntentRow> {
    let plan = d.uint()?;
    let code = d.u8()?;
    let Some(operation) = Operation::from_code(code) else { return d.bad("operation") };
    let (entry, dot) = (EntryId(get_dot(d)?), get_dot(d)?);
    let (at, node) = (get_at(d)?, d.node_key()?);
    let flags = d.u8()?;
    if flags > (HAS_SOURCE | HAS_STAGED | HAS_VICTIM) {
        return d.bad("flags");
    }
    let has = |bit: u8| flags & bit != 0;
    let source = has(HAS_SOURCE).then(|| get_at(d)).transpose()?;
    let staged = has(HAS_STAGED).then(|| get_staged(d)).transpose()?;
    let victim = has(HAS_VICTIM).then(|| get_victim(d)).transpose()?;
    let limbo = get_private_name(d)?;
    Ok(IntentRow { plan, entry, dot, operation, at, node, source, staged, victim, limbo })
}

fn get_dot(d: &mut Decoder<'_>) -> Decoded<Dot> {
    Ok(Dot::new(ReplicaId(d.fixed64()?), d.uint()?))
}

fn get_at(d: &mut Decoder<'_>) -> Decoded<At> {
    let (dir, name): (NodeKey, Name) = (d.node_key()?, d.name()?);
    Ok(At { dir, name })
}

fn get_staged(d: &mut Decoder<'_>) -> Decoded<StagedFile> {
    let (name, node) = (get_private_name(d)?, d.node_key()?);
    Ok(StagedFile { name, node, size: d.uint()?, mtime: d.time()?, given: d.attrs()? })
}

fn get_victim(d: &mut Decoder<'_>) -> Decoded<Victim> {
    let code = d.u8()?;
    let Some(kind) = Kind::from_code(code) else { return d.bad("kind") };
    Ok(Victim { node: d.node_key()?, kind, fingerprint: d.fingerprint()? })
}

fn get_private_name(d: &mut Decoder<'_>) -> Decoded<Vec<u8>> {
    let name = d.bytes()?;
    if name.len() > PRIVATE_NAME_LEN_MAX { d.bad("private name") } else { Ok(name.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = NodeKey> {
        prop::collection::vec(any::<u8>(), 1..40).prop_map(|b| NodeKey::new(&b).unwrap())
    }
    fn names() -> impl Strategy<Value = Name> {
        prop::collection::vec(1u8..46, 1..20).prop_filter_map("dots", |b| Name::new(&b).ok())
    }
    fn ats() -> impl Strategy<Value = At> {
        (keys(), names()).prop_map(|(dir, name)| At { dir, name })
    }
    fn times() -> impl Strategy<Value = Time> {
        (any::<i64>(), 0u32..1_000_000_000).prop_map(|(sec, nsec)| Time { sec, nsec })
    }
    fn dots() -> impl Strategy<Value = Dot> {
        (any::<u64>(), any::<u64>()).prop_map(|(r, n)| Dot::new(ReplicaId(r), n))
    }
    fn prints() -> impl Strategy<Value = Fingerprint> {
        (any::<u64>(), times(), times()).prop_map(|(size, mtime, ctime)| Fingerprint { size, mtime, ctime })
    }
    fn staged() -> impl Strategy<Value = StagedFile> {
        let name = prop::collection::vec(any::<u8>(), 0..20);
        (name, keys(), any::<u64>(), times(), 0u32..0o10000).prop_map(|(name, node, size, mtime, mode)| {
            let given = Attrs { mode, ..Attrs::default() };
            StagedFile { name, node, size, mtime, given }
        })
    }
    fn victims() -> impl Strategy<Value = Victim> {
        (keys(), 0u8..7, prints()).prop_map(|(node, kind, fingerprint)| Victim {
            node,
            kind: Kind::from_code(kind).unwrap(),
            fingerprint,
        })
    }
    fn rows() -> impl Strategy<Value = IntentRow> {
        let first = (any::<u64>(), dots(), dots(), 1u8..6, ats());
        let rest = (keys(), prop::option::of(ats()), prop::option::of(staged()), prop::option::of(victims()));
        (first, rest, prop::collection::vec(any::<u8>(), 0..20)).prop_map(
            |((plan, entry, dot, op, at), (node, source, staged, victim), limbo)| IntentRow {
                plan,
                entry: EntryId(entry),
                dot,
                operation: Operation::from_code(op).unwrap(),
                at,
                node,
                source,
                staged,
                victim,
                limbo,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in prop::collection::vec(rows(), 0..5)) {
            prop_assert_eq!(decode_intents(&encode_intents(&rows)).unwrap(), rows);
        }

        #[test]
        fn any_bytes_give_rows_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_intents(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            if let Ok(rows) = decode_intents(&bytes) {
                prop_assert!(rows.len() * ROW_LEN_MIN <= bytes.len());
            }
        }

        #[test]
        fn a_cut_row_is_refused(rows in prop::collection::vec(rows(), 1..3), cut in 1usize..20) {
            let bytes = encode_intents(&rows);
            let left = bytes.len() - cut.min(bytes.len() - 1);
            prop_assert!(decode_intents(&bytes[..left]).is_err());
        }
    }

    const SIGHTS: [Sight; 4] = [Sight::Nothing, Sight::Ours, Sight::Victim, Sight::Other];

    /// Each case written out: (source, target) -> with a victim unsealed, sealed; without unsealed, sealed.
    #[test]
    fn every_case_of_the_recovery_table() {
        use Recovery::*;
        let table = |source, target| match (source, target) {
            (Sight::Ours, Sight::Nothing) => [Replan, Replan, Redo, Redo],
            (Sight::Ours, Sight::Victim) => [Redo, Redo, Replan, Replan],
            (Sight::Ours, Sight::Ours | Sight::Other) => [Replan; 4],
            (Sight::Victim, _) => [Finish; 4],
            (Sight::Other, _) => [KeepRaced; 4],
            (Sight::Nothing, Sight::Ours) => [Done; 4],
            (Sight::Nothing, Sight::Nothing) => [Replan, UserChanged, Redo, UserChanged],
            (Sight::Nothing, Sight::Victim) => [Redo, UserChanged, Replan, UserChanged],
            (Sight::Nothing, Sight::Other) => [Replan, UserChanged, Replan, UserChanged],
        };
        for source in SIGHTS {
            for target in SIGHTS {
                let got = [(true, false), (true, true), (false, false), (false, true)]
                    .map(|(replaces, sealed)| recover(source, target, replaces, sealed));
                assert_eq!(got, table(source, target), "{source:?} {target:?}");
            }
        }
    }

    #[test]
    fn every_case_without_a_source() {
        use Recovery::*;
        for sealed in [false, true] {
            let late = |r| if sealed { UserChanged } else { r };
            for target in SIGHTS {
                let removed = match target {
                    Sight::Nothing => Done,
                    Sight::Victim => late(Redo),
                    Sight::Ours | Sight::Other => late(Replan),
                };
                assert_eq!(recover_in_place(Operation::Remove, target, true, sealed), removed);
                let over = match target {
                    Sight::Ours => Done,
                    Sight::Victim => late(Redo),
                    Sight::Nothing | Sight::Other => late(Replan),
                };
                assert_eq!(recover_in_place(Operation::Link, target, true, sealed), over);
                let new = match target {
                    Sight::Ours => Done,
                    Sight::Nothing => late(Redo),
                    Sight::Victim | Sight::Other => late(Replan),
                };
                assert_eq!(recover_in_place(Operation::Link, target, false, sealed), new);
            }
        }
    }

    #[test]
    fn what_is_found_is_told_apart_by_handle_size_and_mtime() {
        let key = |b: u8| NodeKey::new(&[b]).unwrap();
        let at = At { dir: key(9), name: Name::new(b"f").unwrap() };
        let print = Fingerprint { size: 4, ..Fingerprint::default() };
        let victim = Victim { node: key(1), kind: Kind::File, fingerprint: print };
        let step = Step::Move {
            from: at.clone(),
            to: at,
            node: key(2),
            kind: Kind::File,
            victim: Some(victim),
            binding: Binding::default(),
        };
        let row = IntentRow::of(3, &step, None).unwrap();
        let later = Fingerprint { ctime: Time { sec: 5, nsec: 0 }, ..print };
        let grown = Fingerprint { size: 5, ..print };
        assert_eq!(row.sight(None), Sight::Nothing);
        assert_eq!(row.sight(Some((&key(2), &grown))), Sight::Ours);
        assert_eq!(row.sight(Some((&key(1), &later))), Sight::Victim);
        assert_eq!(row.sight(Some((&key(1), &grown))), Sight::Other);
        assert_eq!(row.sight(Some((&key(3), &print))), Sight::Other);
    }
}
