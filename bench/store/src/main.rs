//! The index's own work on several embedded stores: `core`'s transactions over the same narrow trait, so
//! that each store sees the reads and batches which the engine makes.
//!
//! `driftless-store-bench redb|fjall|sqlite FILES DIRECTORY [CACHE MiB]`: one store in one process, so that memory,
//! processor time and bytes written are its own. `DIRECTORY` is made and must not exist.

mod stores;
mod workload;

use rustix::time::{ClockId, clock_gettime};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, files, directory, rest @ ..] = &arguments[..] else {
        return Err("usage: driftless-store-bench redb|fjall|sqlite FILES DIRECTORY [CACHE MiB]".into());
    };
    let (files, directory) = (files.parse()?, PathBuf::from(directory));
    let cache_bytes = rest.first().map_or(Ok(24), |a| a.parse())? << 20;
    std::fs::create_dir(&directory)?;
    let open = || stores::open(engine, &directory, cache_bytes);
    let store = open()?;
    measure(engine, "import", files, || workload::import(&*store, files, 2000))?;
    let updates = files.min(100_000) / 500 * 500;
    measure(engine, "update", updates, || workload::update(&*store, files, updates, 500))?;
    let store = reopened(engine, store, open)?;
    let reads = files.min(100_000);
    measure(engine, "read", reads, || workload::read(&*store, files, reads))?;
    measure(engine, "crawl", files, || workload::crawl(&*store, files))?;
    measure(engine, "single", 300, || workload::update(&*store, files, 300, 1))?;
    println!("{engine} space {} MiB, peak memory {} MiB", size(&directory)? >> 20, peak_memory_kib()? >> 10);
    Ok(())
}

fn reopened<S>(engine: &str, store: S, open: impl Fn() -> Result<S, Error>) -> Result<S, Error> {
    drop(store);
    let start = Instant::now();
    let store = open()?;
    println!("{engine} reopen {:.1?}", start.elapsed());
    Ok(store)
}

fn measure(
    engine: &str,
    what: &str,
    count: u64,
    work: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let (start, cpu, written) = (Instant::now(), cpu(), written_bytes()?);
    work()?;
    let (wall, cpu, written) = (start.elapsed(), self::cpu() - cpu, written_bytes()? - written);
    let us = |d: Duration| d.as_secs_f64() * 1e6 / count as f64;
    println!(
        "{engine} {what} {count}: {wall:.2?} wall, {:.1} us wall each, {:.1} us processor each, {} MiB written",
        us(wall),
        us(cpu),
        written >> 20
    );
    Ok(())
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn field(path: &str, name: &str) -> Result<u64, Error> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|l| l.strip_prefix(name)).ok_or("a field is missing in /proc")?;
    Ok(line.split_whitespace().next().ok_or("an empty field in /proc")?.parse()?)
}

fn written_bytes() -> Result<u64, Error> {
    field("/proc/self/io", "write_bytes:")
}

fn peak_memory_kib() -> Result<u64, Error> {
    field("/proc/self/status", "VmHWM:")
}

fn size(dir: &Path) -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { size(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}
