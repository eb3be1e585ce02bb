//! What the engine does to an index.

use crate::Error;
use driftless_core::local::{self, Looked, Origin};
use driftless_core::rows::Store;
use driftless_core::tx::Env;
use driftless_core::{Attrs, Content, Digest, Fingerprint, Kind, Name, NodeKey, ReplicaId, Time, Tx};

const FILES_PER_DIRECTORY: u64 = 100;
const MTIME: Time = Time { sec: 1_765_000_000, nsec: 123_456_789 };
const ENV: Env = Env { now_ns: 1_770_000_000_123_456_789, epoch: 0 };

/// A file handle as ext4 gives it: type, inode number, generation.
fn key(n: u64) -> Result<NodeKey, Error> {
    let generation = (n as u32).wrapping_mul(2_654_435_761);
    let bytes = [1u32.to_be_bytes(), (n as u32).to_be_bytes(), generation.to_be_bytes()].concat();
    NodeKey::new(&bytes).ok_or("no key".into())
}

fn directory(file: u64) -> Result<NodeKey, Error> {
    key(1 << 31 | file / FILES_PER_DIRECTORY)
}

fn name(file: u64) -> Result<Name, Error> {
    Ok(Name::new(format!("file-{file:07}.dat").as_bytes())?)
}

fn looked(kind: Kind, key: NodeKey, version: u64) -> Looked {
    let content = Content::File { size: 4096, mtime: MTIME, digest: Digest::of(&version.to_be_bytes()) };
    let attrs = Attrs { mode: 0o644, uid: 1000, gid: 1000, ..Attrs::default() };
    let fingerprint = Fingerprint { size: 4096, mtime: MTIME, ctime: MTIME };
    Looked { key, kind, fingerprint, racy: false, attrs, content: (!kind.is_dir()).then_some(content) }
}

/// Same numbers on each store.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn commit(store: &dyn Store, change: impl FnOnce(&mut Tx<'_>) -> Result<(), Error>) -> Result<(), Error> {
    let snapshot = store.snapshot()?;
    let mut tx = Tx::open(&*snapshot, ENV)?;
    change(&mut tx)?;
    Ok(store.commit(tx.into_batch(7))?)
}

/// A first scan.
pub(crate) fn import(store: &dyn Store, files: u64, group: u64) -> Result<(), Error> {
    store.commit(Tx::create(ReplicaId(0x1234_5678_9abc_def0)))?;
    commit(store, |tx| Ok(local::init_root(tx, &looked(Kind::Dir, key(0)?, 0))?))?;
    for first in (0..files).step_by(group as usize) {
        commit(store, |tx| (first..(first + group).min(files)).try_for_each(|file| import_one(tx, file)))?;
    }
    Ok(())
}

fn import_one(tx: &mut Tx<'_>, file: u64) -> Result<(), Error> {
    let dir = directory(file)?;
    if file % FILES_PER_DIRECTORY == 0 {
        let new = looked(Kind::Dir, dir.clone(), 0);
        local::create(tx, (&key(0)?, &name(file)?), &new, Origin::Import)?;
    }
    let new = looked(Kind::File, key(file + 1)?, file);
    Ok(local::create(tx, (&dir, &name(file)?), &new, Origin::Import)?)
}

/// Files anywhere are written to.
pub(crate) fn update(store: &dyn Store, files: u64, count: u64, group: u64) -> Result<(), Error> {
    let mut random = Random(count + group);
    for first in (0..count).step_by(group as usize) {
        commit(store, |tx| {
            for i in first..first + group {
                let file = random.below(files);
                local::write(tx, &looked(Kind::File, key(file + 1)?, files + i * group + 1))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What is looked up for an event at a path: place, inode, entry.
pub(crate) fn read(store: &dyn Store, files: u64, count: u64) -> Result<(), Error> {
    let mut random = Random(5);
    let snapshot = store.snapshot()?;
    let mut tx = Tx::open(&*snapshot, ENV)?;
    for _ in 0..count {
        let file = random.below(files);
        let place = tx.place(&directory(file)?, &name(file)?)?.ok_or("a place is missing")?;
        tx.node_must(&place.node)?;
        tx.entry_must(place.claims.first().ok_or("a claim is missing")?.entry)?;
    }
    Ok(())
}

/// A later scan: all places of each directory with their inodes.
pub(crate) fn crawl(store: &dyn Store, files: u64) -> Result<(), Error> {
    let snapshot = store.snapshot()?;
    let mut tx = Tx::open(&*snapshot, ENV)?;
    let mut seen = 0;
    for first in (0..files).step_by(FILES_PER_DIRECTORY as usize) {
        for (_, place) in tx.places_in(&directory(first)?, None, usize::MAX)? {
            tx.node_must(&place.node)?;
            seen += 1;
        }
    }
    if seen == files { Ok(()) } else { Err(format!("{seen} files instead of {files}").into()) }
}
