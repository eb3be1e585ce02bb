//! The bulk import of plain files through `core`'s transaction into an index on disk: the rows that a
//! first scan makes. `cargo run --release -p driftless-index --example import -- [FILES] [FILES PER COMMIT] [CACHE MiB]`

use driftless_core::rows::{MemStore, Store};
use driftless_core::tx::{Env, Known};
use driftless_core::{
    At, Attrs, Bind, Claim, Content, Digest, Dot, Entry, EntryId, Fingerprint, Kind, Link, LinkId, Name,
    Node, NodeKey, Place, ReplicaId, Stamp, Time, Tx, VersionVector, tree,
};
use driftless_index::{Index, OpenOptions};
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const FILES_PER_DIRECTORY: u64 = 100;
const ME: ReplicaId = ReplicaId(0x1234_5678_9abc_def0);
const ENV: Env = Env { now_ns: 1_770_000_000_123_456_789, epoch: 0 };

fn main() -> Result<()> {
    let argument = |i: usize, default: u64| std::env::args().nth(i).map_or(Ok(default), |a| a.parse());
    let (files, per_commit) = (argument(1, 50_000)?, argument(2, 5_000)?);
    let cache_bytes = argument(3, OpenOptions::CACHE_BYTES as u64 >> 20)? as usize * (1 << 20);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("index.redb");
    let disk = Index::open(&path, OpenOptions { cache_bytes, create: true })?;
    run("disk", &disk, files, per_commit)?;
    println!("file {} MiB, peak memory {}", std::fs::metadata(&path)?.len() >> 20, peak_memory()?);
    if std::env::args().nth(4).is_some() {
        run("memory", &MemStore::new(), files, per_commit)?;
    }
    Ok(())
}

/// Processor time of this process: other processes do not count.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn peak_memory() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("?").trim().to_owned())
}

fn run(what: &str, store: &dyn Store, files: u64, per_commit: u64) -> Result<()> {
    store.commit(Tx::create(ME))?;
    let (mut changes, mut batches, mut commits) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let (mut rows, mut bytes) = (0, 0);
    let mut import = Import { directory: (EntryId::ROOT, key(0)), made: 0 };
    while import.made < files {
        let start = cpu();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, ENV)?;
        for _ in 0..per_commit.min(files - import.made) {
            import.file(&mut tx)?;
        }
        changes += cpu() - start;
        let start = cpu();
        let batch = tx.into_batch(7);
        batches += cpu() - start;
        rows += batch.len();
        bytes += batch.iter().map(|((_, k), v)| k.len() + v.as_ref().map_or(0, Vec::len)).sum::<usize>();
        let start = cpu();
        store.commit(batch)?;
        commits += cpu() - start;
    }
    let total = changes + batches + commits;
    println!(
        "{what}: {files} files, {rows} rows, {bytes} bytes of CPU: {total:.0?} (changes {changes:.0?}, batches {batches:.0?}, commits {commits:.0?}), {:.0} files/s, {:.0} rows/s",
        files as f64 / total.as_secs_f64(),
        rows as f64 / total.as_secs_f64(),
    );
    let start = cpu();
    let snapshot = store.snapshot()?;
    let mut tx = Tx::open(&*snapshot, ENV)?;
    let mut read = 0;
    while let found @ [_, ..] = &tx.feed_after(read, 1000)?[..] {
        for (n, id) in found {
            tx.entry_must(*id)?;
            read = *n;
        }
    }
    println!("{what}: feed with entries read in {:.0?}; {:?}", cpu() - start, Known { n: read, tag: 7 });
    Ok(())
}

/// Files in the order a crawl finds them.
struct Import {
    directory: (EntryId, NodeKey),
    made: u64,
}

/// A file handle as ext4 gives it: type, inode number, generation.
fn key(n: u64) -> NodeKey {
    let inode = (n as u32).wrapping_mul(7);
    let generation = (n as u32).wrapping_mul(2_654_435_761);
    let bytes = [1u32.to_be_bytes(), inode.to_be_bytes(), generation.to_be_bytes()].concat();
    NodeKey::new(&bytes).unwrap_or_else(|| unreachable!("twelve bytes are a key"))
}

impl Import {
    fn file(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        if self.made.is_multiple_of(FILES_PER_DIRECTORY) {
            let id = self.inode(tx, Kind::Dir, EntryId::ROOT, &key(0))?;
            self.directory = (id, key(id.0.n));
        }
        let (parent, parent_key) = self.directory.clone();
        self.inode(tx, Kind::File, parent, &parent_key)?;
        self.made += 1;
        Ok(())
    }

    /// The rows of one new inode.
    fn inode(&self, tx: &mut Tx<'_>, kind: Kind, parent: EntryId, dir: &NodeKey) -> Result<EntryId> {
        let dot = tx.new_dot();
        let name = Name::new(format!("file-{:06}.dat", self.made).as_bytes())?;
        let node = key(dot.n);
        tx.place(dir, &name)?;
        tx.node(&node)?;
        tree::put_state(tx, entry(tx, dot, kind, parent, &name), dot.n)?;
        let mut row = (*tx.entry_must(EntryId(dot))?).clone();
        row.bound.push(node.clone());
        let identity = row.entry.data.first().map(|v| v.content.identity());
        let given = row.entry.meta.1.clone();
        tx.put_entry(row)?;
        let bind = match identity {
            Some(identity) => Bind::Leaf { identity },
            None => Bind::Dir(vec![EntryId(dot)]),
        };
        let wanted = driftless_core::disk::Wanted::of(&given, Some(MTIME));
        let fingerprint = Fingerprint { size: 4096, mtime: MTIME, ctime: MTIME };
        let names = vec![(dir.clone(), name.clone())];
        tx.put_node(&node, Node { kind, fingerprint, racy: false, given, wanted, names, bind });
        let claim = Claim { entry: EntryId(dot), link: LinkId(dot), name_dot: dot, version: dot };
        let claims = if kind.is_dir() { vec![] } else { vec![claim] };
        tx.put_place(dir, &name, &Place { node, claims, conflict_of: None });
        Ok(EntryId(dot))
    }
}

const MTIME: Time = Time { sec: 1_765_000_000, nsec: 123_456_789 };

fn entry(tx: &Tx<'_>, dot: Dot, kind: Kind, parent: EntryId, name: &Name) -> Entry {
    let stamp = tx.stamp_above(Stamp::MIN);
    let digest = Digest::of(&dot.n.to_be_bytes());
    let content = Content::File { size: 4096, mtime: MTIME, digest };
    let file = !kind.is_dir();
    let at = At {
        stamp: Stamp::MIN,
        dot,
        parent,
        name: name.clone(),
        holds: if file { dot } else { Dot::default() },
    };
    let mtime = (!file).then_some(MTIME);
    Entry {
        id: EntryId(dot),
        kind,
        ctx: VersionVector::from_dot(dot),
        removed: VersionVector::new(),
        data: file.then(|| driftless_core::Version { dot, stamp, content }).into_iter().collect(),
        links: std::iter::once(Link { id: LinkId(dot), at, gone: VersionVector::new() }).collect(),
        meta: (stamp, Attrs { mode: 0o644, uid: 1000, gid: 1000, dir_mtime: mtime, ..Attrs::default() }),
        hist: if file { vec![] } else { vec![(parent, Stamp::MIN)] },
    }
}
