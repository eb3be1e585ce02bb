//! The bulk import of plain files through `core`'s transaction into an index on disk: the rows that a
//! first scan makes. `cargo run --release -p driftless-index --example import -- [FILES] [FILES PER COMMIT] [CACHE MiB]`

use driftless_core::local::{self, Looked, Origin};
use driftless_core::rows::{MemStore, Store};
use driftless_core::tx::{Env, Known};
use driftless_core::{Attrs, Content, Digest, Fingerprint, Kind, Name, NodeKey, ReplicaId, Time, Tx};
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
    let mut import = Import { directory: key(0), made: 0 };
    let snapshot = store.snapshot()?;
    let mut tx = Tx::open(&*snapshot, ENV)?;
    local::init_root(&mut tx, &looked(Kind::Dir, &key(0), None))?;
    store.commit(tx.into_batch(7))?;
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
        bytes += batch
            .tables()
            .flat_map(|(_, c)| c)
            .map(|(k, v)| k.len() + v.as_ref().map_or(0, Vec::len))
            .sum::<usize>();
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
    directory: NodeKey,
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
            self.directory = key(1_000_000_000 + self.made);
            let name = Name::new(format!("dir-{:06}", self.made).as_bytes())?;
            let new = looked(Kind::Dir, &self.directory, None);
            local::create(tx, (&key(0), &name), &new, Origin::Import)?;
        }
        self.made += 1;
        let name = Name::new(format!("file-{:06}.dat", self.made).as_bytes())?;
        let digest = Digest::of(&self.made.to_be_bytes());
        let content = Content::File { size: 4096, mtime: MTIME, digest };
        let new = looked(Kind::File, &key(self.made), Some(content));
        local::create(tx, (&self.directory, &name), &new, Origin::Import)?;
        Ok(())
    }
}

const MTIME: Time = Time { sec: 1_765_000_000, nsec: 123_456_789 };

fn looked(kind: Kind, key: &NodeKey, content: Option<Content>) -> Looked {
    let fingerprint = Fingerprint { size: 4096, mtime: MTIME, ctime: MTIME };
    let dir_mtime = kind.is_dir().then_some(MTIME);
    let attrs = Attrs { mode: 0o644, uid: 1000, gid: 1000, dir_mtime, ..Attrs::default() };
    Looked { key: key.clone(), kind, fingerprint, racy: false, attrs, content }
}
