use super::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

const REPLICAS: [ReplicaId; 3] = [ReplicaId(7), ReplicaId(70), ReplicaId(u64::MAX)];

fn dot() -> impl Strategy<Value = Dot> {
    // Few numbers, so that dots meet; some great ones.
    (0..REPLICAS.len(), prop_oneof![1u64..4, Just(1 << 40)]).prop_map(|(r, n)| Dot::new(REPLICAS[r], n))
}

fn any_dot() -> impl Strategy<Value = Dot> {
    prop_oneof![4 => dot(), 1 => Just(Dot::default())]
}

fn stamp() -> impl Strategy<Value = Stamp> {
    let full = (0u64..3, prop_oneof![0u64..3, Just(1_770_000_000_000_000_000)], 0..REPLICAS.len());
    prop_oneof![
        1 => Just(Stamp::MIN),
        3 => full.prop_map(|(epoch, clock_ns, r)| Stamp { epoch, clock_ns, replica: REPLICAS[r] }),
    ]
}

fn vv() -> impl Strategy<Value = VersionVector> {
    vec(dot(), 0..3).prop_map(|dots| dots.into_iter().map(|d| (d.replica, d.n)).collect())
}

fn time() -> impl Strategy<Value = Time> {
    (prop_oneof![any::<i64>(), -2i64..2_000_000_000], 0u32..1_000_000_000)
        .prop_map(|(sec, nsec)| Time { sec, nsec })
}

fn name() -> impl Strategy<Value = Name> {
    vec(1u8..=255, 1..9).prop_filter_map("a name", |b| Name::new(&b).ok())
}

fn node_key() -> impl Strategy<Value = NodeKey> {
    vec(any::<u8>(), 1..24).prop_filter_map("a key", |b| NodeKey::new(&b))
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn attrs(dir: bool) -> impl Strategy<Value = Attrs> {
    let bytes = || vec(any::<u8>(), 0..4);
    let dir_mtime = if dir { option::of(time()).boxed() } else { Just(None).boxed() };
    let xattrs = btree_map(bytes(), bytes(), 0..3);
    (0u32..=0o7777, any::<u32>(), any::<u32>(), option::of((bytes(), bytes())), xattrs, dir_mtime).prop_map(
        |(mode, uid, gid, owner_names, xattrs, dir_mtime)| Attrs {
            mode,
            uid,
            gid,
            owner_names,
            xattrs: xattrs.into_iter().collect(),
            dir_mtime,
        },
    )
}

fn content(kind: Kind) -> BoxedStrategy<Content> {
    match kind {
        Kind::File => (any::<u64>(), time(), digest())
            .prop_map(|(size, mtime, digest)| Content::File { size, mtime, digest })
            .boxed(),
        Kind::Symlink => (vec(1u8..=255, 1..30), time())
            .prop_map(|(t, mtime)| Content::Symlink { target: SmallVec::from_vec(t), mtime })
            .boxed(),
        _ => (any::<u64>(), time()).prop_map(|(rdev, mtime)| Content::Special { rdev, mtime }).boxed(),
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    (0u8..7).prop_filter_map("a kind", Kind::from_code)
}

fn link(id: Dot) -> impl Strategy<Value = Link> {
    (stamp(), any_dot(), any_dot(), name(), any_dot(), vv()).prop_map(
        move |(stamp, dot, parent, name, holds, gone)| Link {
            id: LinkId(id),
            at: At { stamp, dot, parent: EntryId(parent), name, holds },
            gone,
        },
    )
}

fn links(kind: Kind) -> impl Strategy<Value = SmallVec<[Link; 1]>> {
    let most = if kind.is_dir() { 1 } else { 3 };
    btree_set(dot(), 1..=most)
        .prop_flat_map(|ids| ids.into_iter().map(link).collect::<Vec<_>>())
        .prop_map(SmallVec::from_vec)
}

fn versions(kind: Kind) -> impl Strategy<Value = SmallVec<[Version; 1]>> {
    let most = if kind.is_dir() { 0 } else { 3 };
    btree_map(dot(), (stamp(), content(kind)), 0..=most)
        .prop_map(|m| m.into_iter().map(|(dot, (stamp, content))| Version { dot, stamp, content }).collect())
}

fn entry() -> impl Strategy<Value = Entry> {
    let of_kind = |kind: Kind| {
        let hist_most = if kind.is_dir() { 3 } else { 0 };
        let hist = btree_map(any_dot().prop_map(EntryId), stamp(), 0..=hist_most);
        let dir_time = if kind.is_dir() { option::of((stamp(), time())).boxed() } else { Just(None).boxed() };
        let meta = ((stamp(), attrs(false)), dir_time);
        let parts = (dot(), vv(), vv(), versions(kind), links(kind), meta, hist);
        (parts, any::<bool>()).prop_map(
            move |((id, ctx, removed, data, links, (meta, dir_time), hist), usual)| {
                let mut hist: Vec<_> = hist.into_iter().collect();
                if usual {
                    hist = hist_of_links(kind, &links).into_iter().collect();
                }
                let ctx = if usual { VersionVector::from_dot(id) } else { ctx };
                Entry { id: EntryId(id), kind, ctx, removed, data, links, meta, dir_time, hist }
            },
        )
    };
    kind().prop_flat_map(of_kind)
}

fn node() -> impl Strategy<Value = Node> {
    let bind = prop_oneof![
        vec(any_dot().prop_map(EntryId), 0..3).prop_map(Bind::Dir),
        digest().prop_map(|identity| Bind::Leaf { identity }),
    ];
    let fingerprint =
        (any::<u64>(), time(), time()).prop_map(|(size, mtime, ctime)| Fingerprint { size, mtime, ctime });
    let names = vec((node_key(), name()), 0..3);
    (kind(), fingerprint, any::<bool>(), attrs(true), any::<u64>().prop_map(Wanted), names, bind).prop_map(
        |(kind, fingerprint, racy, given, wanted, names, bind)| Node {
            kind,
            fingerprint,
            racy,
            given,
            wanted,
            names,
            bind,
        },
    )
}

fn place() -> impl Strategy<Value = Place> {
    let claim = (dot(), dot(), dot(), any_dot()).prop_map(|(entry, link, name_dot, version)| Claim {
        entry: EntryId(entry),
        link: LinkId(link),
        name_dot,
        version,
    });
    (node_key(), vec(claim, 0..3), option::of(name())).prop_map(|(node, claims, conflict_of)| Place {
        node,
        claims,
        conflict_of,
    })
}

fn round_trip<T: PartialEq + std::fmt::Debug>(
    value: &T,
    write: impl Fn(&mut Encoder, &mut ReplicaTable),
    read: impl Fn(&mut Decoder<'_>, &ReplicaTable) -> Decoded<T>,
) {
    let (mut e, mut table) = (Encoder::new(), ReplicaTable::default());
    write(&mut e, &mut table);
    let mut d = Decoder::new(&e.buf);
    assert_eq!(read(&mut d, &table).as_ref(), Ok(value));
    d.end().unwrap();
    for cut in 0..e.buf.len() {
        let mut d = Decoder::new(&e.buf[..cut]);
        assert!(read(&mut d, &table).is_err(), "cut at {cut} of {}", e.buf.len());
    }
}

proptest! {
    #[test]
    fn entries_come_back(e in entry()) {
        round_trip(&e, |w, t| w.entry(&e, t), |d, t| d.entry(t));
    }

    #[test]
    fn nodes_come_back(n in node()) {
        round_trip(&n, |w, t| w.node(&n, t), |d, t| d.node(t));
    }

    #[test]
    fn places_come_back(p in place()) {
        round_trip(&p, |w, t| w.place(&p, t), |d, t| d.place(t));
    }

    #[test]
    fn garbage_gives_errors_not_panics(bytes in vec(any::<u8>(), 0..200)) {
        let table = ReplicaTable::with(REPLICAS);
        let _ = Decoder::new(&bytes).entry(&table);
        let _ = Decoder::new(&bytes).node(&table);
        let _ = Decoder::new(&bytes).place(&table);
    }

    #[test]
    fn a_changed_byte_gives_an_error_or_a_well_formed_entry(e in entry(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let (mut w, mut table) = (Encoder::new(), ReplicaTable::default());
        w.entry(&e, &mut table);
        let at = at.index(w.buf.len());
        w.buf[at] = to;
        if let Ok(read) = Decoder::new(&w.buf).entry(&table) {
            prop_assert!(well_formed(&read));
        }
    }
}

/// The bytes of the most usual row, as docs/formats.md shows them: a change here is a new format.
#[test]
fn an_untouched_file_is_written_as_documented() {
    let birth = Dot::new(ReplicaId(7), 300);
    let stamp = Stamp { epoch: 0, clock_ns: 0x1122_3344_5566_7788, replica: birth.replica };
    let mtime = Time { sec: 1, nsec: 5 };
    let name = Name::new(b"a.txt").unwrap();
    let at = At { stamp: Stamp::MIN, dot: birth, parent: EntryId::ROOT, name, holds: birth };
    let digest = Digest([0xdd; 32]);
    let e = Entry {
        id: EntryId(birth),
        kind: Kind::File,
        ctx: VersionVector::from_dot(birth),
        removed: VersionVector::new(),
        data: SmallVec::from_iter([Version {
            dot: birth,
            stamp,
            content: Content::File { size: 4096, mtime, digest },
        }]),
        links: SmallVec::from_iter([Link { id: LinkId(birth), at, gone: VersionVector::new() }]),
        meta: (stamp, Attrs { mode: 0o644, uid: 1000, gid: 1000, ..Attrs::default() }),
        dir_time: None,
        hist: Vec::new(),
    };
    let (mut w, mut table) = (Encoder::new(), ReplicaTable::default());
    w.entry(&e, &mut table);
    let head = [0x39, 0x01, 0xac, 0x02];
    let version = [
        0x01, 0x00, 0x02, 0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x01, 0x01, 0x80, 0x20, 0x02,
        0x05,
    ];
    let link = [0x01, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x05, b'a', b'.', b't', b'x', b't', 0x00];
    let meta = [0x00, 0x00, 0xa4, 0x03, 0xe8, 0x07, 0xe8, 0x07, 0x00];
    assert_eq!(w.buf, [&head[..], &version, &digest.0, &link, &meta].concat());
}

#[test]
fn an_untouched_files_place_takes_few_bytes() {
    let birth = Dot::new(ReplicaId(7), 300);
    let claim = Claim { entry: EntryId(birth), link: LinkId(birth), name_dot: birth, version: birth };
    let place = Place { node: NodeKey::new(b"12345678").unwrap(), claims: vec![claim], conflict_of: None };
    let mut w = Encoder::new();
    w.place(&place, &mut ReplicaTable::default());
    assert_eq!(w.buf, b"\x0812345678\x00\x01\x01\xac\x02\x00\x00\x00");
}

/// Some bytes overwritten, some put in, some cut out.
fn mutate(bytes: &mut Vec<u8>, how: &[(prop::sample::Index, u8, u8)]) {
    for (at, what, byte) in how {
        let at = at.index(bytes.len().max(1));
        match what % 3 {
            0 => bytes.insert(at.min(bytes.len()), *byte),
            1 => drop(bytes.splice(at..bytes.len().min(at + 1), [])),
            _ if at < bytes.len() => bytes[at] = *byte,
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn decoders_are_total_on_mutated_bytes(
        (e, n, p) in (entry(), node(), place()),
        how in vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..6),
    ) {
        let mut table = ReplicaTable::default();
        let mut w = Encoder::new();
        w.entry(&e, &mut table);
        mutate(&mut w.buf, &how);
        if let Ok(read) = Decoder::new(&w.buf).entry(&table) {
            // What was accepted can be written and read again.
            let mut again = Encoder::new();
            again.entry(&read, &mut table);
            prop_assert_eq!(Decoder::new(&again.buf).entry(&table), Ok(read));
        }
        let mut w = Encoder::new();
        w.node(&n, &mut table);
        mutate(&mut w.buf, &how);
        let _ = Decoder::new(&w.buf).node(&table);
        let mut w = Encoder::new();
        w.place(&p, &mut table);
        mutate(&mut w.buf, &how);
        let _ = Decoder::new(&w.buf).place(&table);
    }
}
