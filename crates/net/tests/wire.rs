//! Frames as bytes: round trips, old bytes, damaged bytes.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

use driftless_core::entry::{At, Entry, Link, Version};
use driftless_core::link::{
    Batch, FeedCursor, Held, Hello, Inline, Message, NotHere, Piece, Receipt, RecipePart, RecipeWant, Role,
    SignedHead, Want,
};
use driftless_core::membership::Signature;
use driftless_core::meta::{Attrs, Content, Digest, Time};
use driftless_core::recipe::{Chunk, ChunkHash, Cut, Item, PART_LEN, Recipe};
use driftless_core::tx::{Knowledge, Known};
use driftless_core::{Dot, EntryId, Kind, LinkId, Name, ReplicaId, Stamp, VersionVector};
use driftless_net::wire::{FrameReader, FrameWriter};
use driftless_net::{Compress, Frame, WireError};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

// ----- memory

thread_local! {
    /// Greatest single allocation of this thread since it was last reset.
    static GREATEST: Cell<usize> = const { Cell::new(0) };
    /// Bytes that this thread holds beyond those it held when it was last reset, and the most it held since.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// Allocates nothing: the cells need no beginning and no end.
fn note(more: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + more);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

struct Watching;

#[allow(unsafe_code)]
// SAFETY: passes everything on to the system's allocator unchanged; the notes taken allocate nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = GREATEST.try_with(|g| g.set(g.get().max(layout.size())));
        note(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

// ----- making values

fn dot() -> impl Strategy<Value = Dot> {
    // The root's dot is the only one of replica 0.
    prop_oneof![
        9 => (1u64..6, prop_oneof![0u64..300, any::<u64>()]).prop_map(|(r, n)| Dot::new(ReplicaId(r << 60), n)),
        1 => Just(Dot::default()),
    ]
}

fn entry_id() -> impl Strategy<Value = EntryId> {
    (1u64..6, 1u64..1 << 48).prop_map(|(r, n)| EntryId(Dot::new(ReplicaId(r), n)))
}

fn vv() -> impl Strategy<Value = VersionVector> {
    vec((1u64..9, 1u64..1 << 40), 0..5).prop_map(|v| v.into_iter().map(|(r, n)| (ReplicaId(r), n)).collect())
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (0u64..3, any::<u64>(), 0u64..5).prop_map(|(epoch, clock_ns, r)| Stamp {
        epoch,
        clock_ns,
        replica: ReplicaId(r),
    })
}

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(sec, nsec)| Time { sec, nsec })
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn name() -> impl Strategy<Value = Name> {
    vec(any::<u8>(), 1..40).prop_filter_map("a name", |b| Name::new(&b).ok())
}

fn content(kind: Kind) -> BoxedStrategy<Content> {
    match kind {
        Kind::File => (any::<u64>(), time(), digest())
            .prop_map(|(size, mtime, digest)| Content::File { size, mtime, digest })
            .boxed(),
        Kind::Symlink => (vec(1u8.., 1..80), time())
            .prop_map(|(target, mtime)| Content::Symlink { target: target.into(), mtime })
            .boxed(),
        _ => (any::<u64>(), time()).prop_map(|(rdev, mtime)| Content::Special { rdev, mtime }).boxed(),
    }
}

fn attrs() -> impl Strategy<Value = Attrs> {
    let names = option::of((vec(any::<u8>(), 0..9), vec(any::<u8>(), 0..9)));
    let xattrs = proptest::collection::btree_map(vec(any::<u8>(), 1..20), vec(any::<u8>(), 0..50), 0..3);
    (0u32..0o10000, any::<u32>(), any::<u32>(), names, xattrs).prop_map(
        |(mode, uid, gid, owner_names, xattrs)| Attrs {
            mode,
            uid,
            gid,
            owner_names,
            xattrs: xattrs.into_iter().collect(),
            dir_mtime: None,
        },
    )
}

fn link() -> impl Strategy<Value = Link> {
    (dot(), stamp(), dot(), dot(), name(), dot(), vv()).prop_map(
        |(id, stamp, dot, parent, name, holds, gone)| Link {
            id: LinkId(id),
            at: At { stamp, dot, parent: EntryId(parent), name, holds },
            gone,
        },
    )
}

fn entry() -> impl Strategy<Value = Entry> {
    (0u8..7).prop_map(|code| Kind::from_code(code).unwrap()).prop_flat_map(|kind| {
        let is_dir = kind == Kind::Dir;
        let data = vec((dot(), stamp(), content(kind)), 0..if is_dir { 1 } else { 3 });
        let links = vec(link(), 1..if is_dir { 2 } else { 4 });
        let dir_time = option::of((stamp(), time())).prop_map(move |t| t.filter(|_| is_dir));
        let hist = vec((entry_id(), stamp()), 0..if is_dir { 3 } else { 1 });
        (Just(kind), entry_id(), vv(), vv(), data, links, ((stamp(), attrs()), dir_time), hist).prop_map(
            |(kind, id, ctx, removed, data, mut links, (meta, dir_time), mut hist)| {
                let version = |(dot, stamp, content)| Version { dot, stamp, content };
                let mut data: Vec<_> = data.into_iter().map(version).collect();
                data.sort_by_key(|v| v.dot);
                data.dedup_by_key(|v| v.dot);
                links.sort_by_key(|l| l.id);
                links.dedup_by_key(|l| l.id);
                hist.sort_by_key(|h| h.0);
                hist.dedup_by_key(|h| h.0);
                let (data, links) = (data.into(), links.into());
                Entry { id, kind, ctx, removed, data, links, meta, dir_time, hist }
            },
        )
    })
}

fn knowledge() -> impl Strategy<Value = Knowledge> {
    vec((dot(), any::<u64>()), 0..5).prop_map(|k| {
        let known = |(d, tag): (Dot, u64)| (d.replica, Known { n: d.n, tag });
        k.into_iter().map(known).collect()
    })
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..60).prop_map(|c| c.into_iter().collect())
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..2000),
        // Compressible.
        (any::<u8>(), 0usize..9000).prop_map(|(b, n)| vec![b; n]),
    ]
}

fn hello() -> impl Strategy<Value = Message> {
    let cursors = vec((dot(), any::<u64>()), 0..4);
    let start = (any::<(u16, u16)>(), any::<u128>(), any::<u64>(), text(), any::<[bool; 3]>());
    (start, knowledge(), cursors).prop_map(
        |((protocol, volume, replica, site, [follows, inline, scanned]), knowledge, cursors)| {
            let cursor = |(d, tag): (Dot, u64)| FeedCursor { replica: d.replica, n: d.n, tag };
            Message::Hello(Hello {
                protocol,
                volume,
                replica: ReplicaId(replica),
                site,
                role: if follows { Role::Follower } else { Role::Writer },
                knowledge,
                cursors: cursors.into_iter().map(cursor).collect(),
                inline,
                scanned,
            })
        },
    )
}

fn batch() -> impl Strategy<Value = Message> {
    let inline =
        (entry_id(), dot(), bytes()).prop_map(|(entry, version, bytes)| Inline { entry, version, bytes });
    (any::<[u64; 4]>(), vec(entry(), 0..6), vec(inline, 0..3), option::of(knowledge())).prop_map(
        |([seq, from, to, tag], entries, inline, knowledge)| {
            Message::Batch(Batch { seq, from, to, tag, entries, inline, knowledge })
        },
    )
}

fn receipt() -> impl Strategy<Value = Message> {
    let (states, refused) = (vec((entry_id(), any::<u64>()), 0..40), vec((entry_id(), text()), 0..4));
    (any::<[u64; 3]>(), states, refused, vv()).prop_map(|([seq, to, cursor], states, refused, knowledge)| {
        Message::Receipt(Receipt { seq, to, cursor, states, refused, knowledge })
    })
}

fn message() -> impl Strategy<Value = Message> {
    let head = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u8>()).prop_map(|(replica, n, tag, b)| {
        SignedHead { replica: ReplicaId(replica), n, tag, signature: Signature([b; 64]) }
    });
    let heads = vec(head, 0..4).prop_map(Message::Heads);
    let held = any::<(u64, u64)>().prop_map(|(cursor, waiting)| Message::Held(Held { cursor, waiting }));
    let want = (entry_id(), dot(), digest(), any::<(u64, u64)>()).prop_map(
        |(entry, version, digest, (offset, len))| Message::Want(Want { entry, version, digest, offset, len }),
    );
    let piece = (entry_id(), dot(), any::<u64>(), bytes())
        .prop_map(|(entry, version, offset, bytes)| Message::Piece(Piece { entry, version, offset, bytes }));
    let not_here = (entry_id(), dot(), text())
        .prop_map(|(entry, version, reason)| Message::NotHere(NotHere { entry, version, reason }));
    let heartbeat = any::<(u64, bool)>().prop_map(|(head, scanned)| Message::Heartbeat { head, scanned });
    let bye = text().prop_map(|reason| Message::Bye { reason });
    prop_oneof![hello(), batch(), receipt(), heads, held, want, piece, not_here, heartbeat, bye]
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        8 => message().prop_map(Frame::Message),
        1 => bytes().prop_map(Frame::Control),
        1 => text().prop_map(Frame::Close),
    ]
}

// ----- bytes and back

/// How frames are compressed, and whether that goes on from one to the next.
#[derive(Clone, Copy, Debug)]
struct How(Compress, bool);

impl From<Compress> for How {
    fn from(compress: Compress) -> How {
        How(compress, false)
    }
}

fn how() -> impl Strategy<Value = How> {
    let compress = prop_oneof![Just(Compress::None), Just(Compress::Lz4), Just(Compress::Zstd)];
    (compress, any::<bool>()).prop_map(|(compress, goes_on)| How(compress, goes_on))
}

fn write(frames: &[Frame], how: impl Into<How>) -> Vec<u8> {
    let mut out = Vec::new();
    let How(compress, goes_on) = how.into();
    let new = if goes_on { FrameWriter::going_on } else { FrameWriter::new };
    let mut w = new(&mut out, compress).unwrap();
    for f in frames {
        w.write(f).unwrap();
    }
    w.flush().unwrap();
    out
}

fn read(bytes: &[u8]) -> Result<Vec<Frame>, WireError> {
    let mut r = FrameReader::new(bytes)?;
    let mut frames = Vec::new();
    while let Some(f) = r.read()? {
        frames.push(f);
    }
    Ok(frames)
}

/// What one frame of hostile bytes may make us allocate at once: the greatest body (64 MiB), or what a
/// body of few bytes becomes as values.
fn read_watched(bytes: &[u8], allocation_max: usize) {
    GREATEST.set(0);
    let _ = read(bytes);
    let greatest = GREATEST.get();
    assert!(greatest <= allocation_max, "{greatest} bytes for {} bytes", bytes.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_comes_back(frames in vec(frame(), 1..4), compress in how()) {
        let bytes = write(&frames, compress);
        prop_assert_eq!(read(&bytes).unwrap(), frames);
    }

    #[test]
    fn changed_bytes_give_errors_or_other_frames(
        f in frame(),
        compress in how(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = write(&[f], compress);
        for (at, to) in changes {
            // The length stays: what is behind it is of interest here.
            let at = 4 + at.index(bytes.len() - 4);
            bytes[at] = to;
        }
        read_watched(&bytes, 64 << 20);
        read_watched(&bytes[..cut.index(bytes.len())], 64 << 20);
    }

    #[test]
    fn random_payloads_give_errors_or_frames(
        t in 0u8..20,
        flags in prop_oneof![4 => Just(0u8), 1 => any::<u8>()],
        payload in vec(any::<u8>(), 0..600),
    ) {
        let mut bytes = (payload.len() as u32).to_be_bytes().to_vec();
        bytes.extend([t, flags]);
        bytes.extend(&payload);
        read_watched(&bytes, 64 << 20);
    }
}

/// The table of replicas has room before the fields, for most; and what one message has left is no part of the next.
#[test]
fn messages_with_any_number_of_replicas_come_back_one_after_the_other() {
    let head = |n: u64| SignedHead { replica: ReplicaId(n), n, tag: n, signature: Signature([n as u8; 64]) };
    let counts = [0, 1, 62, 63, 64, 200, 2, 0];
    let frames: Vec<Frame> =
        counts.iter().map(|n| Frame::Message(Message::Heads((0..*n).map(head).collect()))).collect();
    assert_eq!(read(&write(&frames, Compress::None)).unwrap(), frames);
}

#[test]
fn a_length_alone_costs_little_memory() {
    for t in 1..=17u8 {
        for len in [u32::MAX, 64 << 20, 1 << 20] {
            let mut bytes = len.to_be_bytes().to_vec();
            bytes.extend([t, 0]);
            bytes.extend([0; 40]);
            read_watched(&bytes, 512 << 10);
        }
    }
}

#[test]
fn a_raw_length_beyond_the_bound_is_refused_before_memory_is_taken() {
    let mut bytes = 10u32.to_be_bytes().to_vec();
    bytes.extend([2, 1]);
    bytes.extend(((64 << 20) + 1u32).to_be_bytes());
    bytes.extend([0; 6]);
    assert!(matches!(read(&bytes), Err(WireError::TooLong { frame: "batch", .. })));
    read_watched(&bytes, 512 << 10);
}

#[test]
fn a_raw_length_within_the_bound_costs_what_is_really_unpacked() {
    let (raw_len, claimed) = (100 << 10, 33 << 20);
    let mut bytes = write(&[Frame::Control(vec![7; raw_len])], Compress::Zstd);
    // Length and type; then flags, raw length, and what Zstandard made of it.
    assert_eq!(bytes[5..10], [1, 0, 1, 0x90, 0], "compressed");
    bytes[4] = 2;
    bytes[6..10].copy_from_slice(&(claimed as u32).to_be_bytes());
    HELD.set(0);
    MOST.set(0);
    assert!(matches!(read(&bytes), Err(WireError::Compressed { frame: "batch", .. })));
    let most = usize::try_from(MOST.get()).unwrap();
    assert!((raw_len..4 * raw_len).contains(&most), "{most} bytes held for {} bytes", bytes.len());
}

#[test]
fn counts_that_the_payload_could_not_hold_are_refused() {
    // No replicas, seq, from, to, tag, no knowledge, then a count of entries of 2^62.
    let mut batch = vec![0, 1, 0, 0];
    batch.extend([0; 8 + 1]);
    batch.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f]);
    let mut bytes = (batch.len() as u32).to_be_bytes().to_vec();
    bytes.extend([2, 0]);
    bytes.extend(&batch);
    assert!(matches!(read(&bytes), Err(WireError::Damaged { frame: "batch", .. })));
    read_watched(&bytes, 512 << 10);
}

#[test]
fn an_end_inside_a_frame_is_an_error() {
    let bytes = write(&[Frame::Close("why".into()), Frame::Control(vec![1, 2, 3])], Compress::None);
    assert_eq!(read(&bytes).unwrap().len(), 2);
    for cut in 1..bytes.len() {
        let whole = cut == 9;
        assert_eq!(read(&bytes[..cut]).is_ok(), whole, "cut at {cut}");
    }
}

#[test]
fn frames_beyond_their_bounds_are_not_written() {
    let mut w = FrameWriter::new(Vec::new(), Compress::Zstd).unwrap();
    let result = w.write(&Frame::Control(vec![0; (16 << 20) + 1]));
    assert!(matches!(result, Err(WireError::TooLong { frame: "control", .. })));
    w.write(&Frame::Control(vec![0; 16 << 20])).unwrap();
}

#[test]
fn long_texts_are_cut_between_characters() {
    let long = "€".repeat(5000);
    let bytes = write(
        &[Frame::Message(Message::Bye { reason: long }), Frame::Close("ä".repeat(9999))],
        Compress::None,
    );
    match &read(&bytes).unwrap()[..] {
        [Frame::Message(Message::Bye { reason }), Frame::Close(close)] => {
            assert_eq!((reason.len(), close.len()), (4095, 4096));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_piece_in_parts_is_the_same_bytes() {
    let dot = Dot::new(ReplicaId(1), 2);
    let piece = Piece { entry: EntryId(dot), version: dot, offset: 500, bytes: (0..100).collect() };
    let mut out = Vec::new();
    let mut w = FrameWriter::new(&mut out, Compress::None).unwrap();
    w.write_piece(&piece, 0..60).unwrap();
    w.write_piece(&piece, 60..100).unwrap();
    let parts = read(&out).unwrap();
    let [Frame::Message(Message::Piece(a)), Frame::Message(Message::Piece(b))] = &parts[..] else {
        panic!("{parts:?}")
    };
    assert_eq!((a.offset, b.offset), (500, 560));
    assert_eq!([&a.bytes[..], &b.bytes].concat(), piece.bytes);
}

// ----- old bytes

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// One of each, every field filled.
fn samples() -> Vec<(&'static str, Frame)> {
    let (r1, r2) = (ReplicaId(0x1111_2222_3333_4444), ReplicaId(0x5555_6666_7777_8888));
    let (d1, d2) = (Dot::new(r1, 300), Dot::new(r2, 7));
    let at = |clock_ns, replica| Stamp { epoch: 1, clock_ns, replica };
    let mtime = Time { sec: -1, nsec: 999_999_999 };
    let name = |s: &str| Name::new(s.as_bytes()).unwrap();
    let vv = |of: &[Dot]| of.iter().map(|d| (d.replica, d.n)).collect::<VersionVector>();
    let digest = Digest([0xab; 32]);
    let file = Entry {
        id: EntryId(d1),
        kind: Kind::File,
        ctx: vv(&[d1, d2]),
        removed: vv(&[Dot::new(r1, 299)]),
        data: [Version { dot: d2, stamp: at(5, r2), content: Content::File { size: 9, mtime, digest } }]
            .into(),
        links: [Link {
            id: LinkId(d1),
            at: At { stamp: at(4, r1), dot: d1, parent: EntryId(d2), name: name("f\u{e4}"), holds: d2 },
            gone: vv(&[Dot::new(r2, 1)]),
        }]
        .into(),
        meta: (
            at(6, r1),
            Attrs {
                mode: 0o644,
                uid: 1000,
                gid: 100,
                owner_names: Some((b"u".to_vec(), b"g".to_vec())),
                xattrs: vec![(b"user.k".to_vec(), b"v".to_vec())],
                dir_mtime: None,
            },
        ),
        dir_time: None,
        hist: Vec::new(),
    };
    let dir = Entry {
        id: EntryId(d2),
        kind: Kind::Dir,
        ctx: vv(&[d2]),
        removed: VersionVector::new(),
        data: Default::default(),
        links: [Link {
            id: LinkId(d2),
            at: At {
                stamp: at(3, r2),
                dot: d2,
                parent: EntryId::ROOT,
                name: name("d"),
                holds: Dot::default(),
            },
            gone: VersionVector::new(),
        }]
        .into(),
        meta: (at(3, r2), Attrs { mode: 0o755, ..Attrs::default() }),
        dir_time: Some((at(3, r2), mtime)),
        hist: vec![(EntryId::ROOT, at(3, r2))],
    };
    let knowledge = Knowledge::from([(r1, Known { n: 300, tag: 0xfeed }), (r2, Known { n: 7, tag: 1 })]);
    let hello = Hello {
        protocol: (1, 1),
        volume: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
        replica: r1,
        site: "oslo".into(),
        role: Role::Follower,
        knowledge: knowledge.clone(),
        cursors: vec![FeedCursor { replica: r2, n: 6, tag: 2 }],
        inline: true,
        scanned: false,
    };
    let batch = Batch {
        seq: 3,
        from: 290,
        to: 300,
        tag: 0xfeed,
        entries: vec![dir, file],
        inline: vec![Inline { entry: EntryId(d1), version: d2, bytes: b"nine byte".to_vec() }],
        knowledge: Some(knowledge),
    };
    let receipt = Receipt {
        seq: 3,
        to: 300,
        cursor: 290,
        states: vec![(EntryId(d1), 0xdddd)],
        refused: vec![(EntryId(d2), "no".into())],
        knowledge: vv(&[d1, d2]),
    };
    let want = Want { entry: EntryId(d1), version: d2, digest, offset: 1 << 20, len: 4096 };
    let piece = Piece { entry: EntryId(d1), version: d2, offset: 1 << 20, bytes: b"bytes".to_vec() };
    let not_here = NotHere { entry: EntryId(d1), version: d2, reason: "changed".into() };
    let head = SignedHead { replica: d1.replica, n: 300, tag: 0xeeee, signature: Signature([0x5a; 64]) };
    vec![
        ("hello", Frame::Message(Message::Hello(hello))),
        ("batch", Frame::Message(Message::Batch(batch))),
        ("receipt", Frame::Message(Message::Receipt(receipt))),
        ("held", Frame::Message(Message::Held(Held { cursor: 300, waiting: 2 }))),
        ("want", Frame::Message(Message::Want(want))),
        ("piece", Frame::Message(Message::Piece(piece.clone()))),
        ("not-here", Frame::Message(Message::NotHere(not_here))),
        ("heartbeat", Frame::Message(Message::Heartbeat { head: 300, scanned: true })),
        ("bye", Frame::Message(Message::Bye { reason: "stop".into() })),
        ("heads", Frame::Message(Message::Heads(vec![head]))),
        ("control", Frame::Control(b"{}".to_vec())),
        ("close", Frame::Close("done".into())),
        ("control compressed", Frame::Control(vec![b'a'; 300])),
        ("piece compressed", Frame::Message(Message::Piece(Piece { bytes: vec![b'a'; 300], ..piece }))),
    ]
}

fn samples_of_version_3() -> Vec<(&'static str, Frame)> {
    let (r1, r2) = (ReplicaId(0x1111_2222_3333_4444), ReplicaId(0x5555_6666_7777_8888));
    let (entry, version) = (EntryId(Dot::new(r1, 300)), Dot::new(r2, 7));
    let (digest, cut, offset) = (Digest([0xab; 32]), Cut::of_size(0, ChunkHash::Blake3), PART_LEN);
    let item = |n, len| Item { len, chunk: Chunk([n; Chunk::LEN]) };
    let recipe = Recipe::new(vec![item(0x11, 300), item(0x22, 7)]).unwrap();
    vec![
        (
            "recipe-want",
            Frame::Message(Message::RecipeWant(RecipeWant { entry, version, digest, cut, offset, len: 300 })),
        ),
        ("recipe", Frame::Message(Message::Recipe(RecipePart { entry, version, offset, recipe }))),
    ]
}

/// Protocol version 1 as it was first written. These bytes must stay readable, and what is not compressed
/// must still be written the same.
#[test]
fn frames_of_version_1_are_as_they_were() {
    as_they_were(include_str!("fixtures/frames-v1.hex"), &samples());
}

/// What version 3 has added.
#[test]
fn frames_of_version_3_are_as_they_were() {
    as_they_were(include_str!("fixtures/frames-v3.hex"), &samples_of_version_3());
}

/// What version 5 has added: chunks that are known by their XXH3.
#[test]
fn frames_of_version_5_are_as_they_were() {
    let mut samples = samples_of_version_3();
    samples.truncate(1);
    let [(_, Frame::Message(Message::RecipeWant(want)))] = &mut samples[..] else { panic!("a want") };
    want.cut = Cut::of_size(1 << 30, ChunkHash::Xxh3);
    as_they_were(include_str!("fixtures/frames-v5.hex"), &samples);
}

/// What version 4 has added: frames of one connection, compressed as one stream. They are read one after the other.
#[test]
fn frames_of_version_4_are_as_they_were() {
    let now: Vec<Frame> = samples_of_version_4();
    let written = write(&now, How(Compress::Zstd, true));
    assert_eq!(read(&written).unwrap(), now);
    let fixture = include_str!("fixtures/frames-v4.hex");
    let bytes: String = fixture.lines().filter(|l| !l.starts_with('#')).collect();
    let then =
        read(&unhex(&bytes)).unwrap_or_else(|e| panic!("{e}; all that is written today:\n{}", hex(&written)));
    assert_eq!(then, now);
}

fn samples_of_version_4() -> Vec<Frame> {
    let lines = |from: u32, n: u32| -> Vec<u8> {
        (from..from + n).flat_map(|i| format!("line {} of what is sent\n", i * i).into_bytes()).collect()
    };
    let dot = Dot::new(ReplicaId(0x1111_2222_3333_4444), 300);
    let piece = Piece { entry: EntryId(dot), version: dot, offset: 0, bytes: lines(0, 40) };
    vec![
        Frame::Message(Message::Piece(piece.clone())),
        Frame::Control(lines(10, 20)),
        Frame::Control(b"too short to be compressed".to_vec()),
        Frame::Message(Message::Piece(Piece { offset: 7, ..piece })),
    ]
}

fn as_they_were(fixture: &str, now: &[(&'static str, Frame)]) {
    let old: Vec<(&str, &str)> = fixture.lines().filter_map(|l| l.split_once(": ")).collect();
    let write = |name: &str, f: &Frame| {
        let how = if name.ends_with("compressed") { Compress::Zstd } else { Compress::None };
        hex(&write(std::slice::from_ref(f), how))
    };
    let written: String = now.iter().map(|(name, f)| format!("{name}: {}\n", write(name, f))).collect();
    assert_eq!(old.len(), now.len(), "all that is written today:\n{written}");
    for ((name, f), (old_name, bytes)) in now.iter().zip(old) {
        assert_eq!(*name, old_name);
        assert_eq!(read(&unhex(bytes)).unwrap(), std::slice::from_ref(f), "{name}");
        if !name.ends_with("compressed") {
            assert_eq!(write(name, f), bytes, "{name}");
        }
    }
}
