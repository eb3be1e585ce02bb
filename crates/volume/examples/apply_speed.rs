//! How fast small files are read from one volume and placed in another, beside `cp -a` and `rsync -a` in the same
//! run. Figures are ratios: the machine's own speed falls out.
//!
//! ```text
//! cargo run --release --example apply_speed -- [DIRECTORY [FILES]]
//! ```

use driftless_core::{Attrs, Content, Name};
use driftless_volume::{DirFd, Directory, HashOutcome, OpenOptions, Seen, StageId, VolumeError};
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const FILES_PER_DIR: usize = 100;
const FILE_LEN: usize = 4096;
/// As many files as one batch of the engine may have before it is made durable.
const BATCH: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let base = args.next().unwrap_or_else(|| ".".to_owned());
    let files: usize = args.next().map_or(Ok(50_000), |n| n.parse())?;
    let tmp = tempfile::tempdir_in(base)?;
    let source = tmp.path().join("source");
    make_source(&source, files / FILES_PER_DIR)?;
    rustix::fs::sync();
    println!("{files} files of {FILE_LEN} bytes, each run until durable");
    let cp = timed("cp -a", None, || tool("cp", &["-a"], &source, &tmp.path().join("cp")))?;
    timed("rsync -a", Some(cp), || tool("rsync", &["-a"], &source, &tmp.path().join("rsync")))?;
    for threads in [1, 2] {
        let label = format!("ours, {threads} thread(s)");
        timed(&label, Some(cp), || ours(&source, &tmp.path().join(format!("ours{threads}")), threads))?;
    }
    let volume = Directory::open(&source, OpenOptions { create_private: true })?;
    timed("list and look, ours", None, || list_all(&volume))?;
    timed("list, hash and attributes, ours", None, || read_all(&volume))?;
    Ok(())
}

type Done = Result<(), Box<dyn Error>>;

fn timed(
    label: &str,
    against: Option<Duration>,
    run: impl FnOnce() -> Done,
) -> Result<Duration, Box<dyn Error>> {
    rustix::fs::sync();
    let start = Instant::now();
    run()?;
    let taken = start.elapsed();
    let ratio =
        against.map_or(String::new(), |a| format!("  {:.2} of cp", taken.as_secs_f64() / a.as_secs_f64()));
    println!("{label:<34} {:>6} ms{ratio}", taken.as_millis());
    Ok(taken)
}

fn make_source(at: &Path, dirs: usize) -> Done {
    for dir in 0..dirs {
        let path = at.join(format!("d{dir}"));
        std::fs::create_dir_all(&path)?;
        for file in 0..FILES_PER_DIR {
            let mut bytes = [b'x'; FILE_LEN];
            bytes[..16].copy_from_slice(format!("{dir:08}{file:08}").as_bytes());
            std::fs::write(path.join(format!("f{file}")), bytes)?;
        }
    }
    Ok(())
}

fn tool(program: &str, flags: &[&str], source: &Path, target: &Path) -> Done {
    let status = Command::new(program).args(flags).arg(source).arg(target).status()?;
    rustix::fs::sync();
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}").into()) }
}

fn ours(source: &Path, target: &Path, threads: usize) -> Done {
    std::fs::create_dir(target)?;
    let from = Directory::open(source, OpenOptions::default())?;
    let to = Directory::open(target, OpenOptions { create_private: true })?;
    let dirs: Vec<Seen> = seen_in(&from.dir(&[], None)?)?.into_iter().filter(|s| s.kind.is_dir()).collect();
    let next = AtomicUsize::new(0);
    let ids = AtomicU64::new(1);
    let work = || -> Result<(), VolumeError> {
        while let Some(dir) = dirs.get(next.fetch_add(1, Ordering::Relaxed)) {
            copy_dir(&from, &to, &dir.name, &ids)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().try_for_each(|handle| {
            handle.join().map_err(|_| "a thread failed")?.map_err(Box::<dyn Error>::from)
        })
    })?;
    // The seal.
    Ok(to.sync()?)
}

fn copy_dir(from: &Directory, to: &Directory, name: &Name, ids: &AtomicU64) -> Result<(), VolumeError> {
    let path = std::slice::from_ref(name);
    let source = from.dir(path, None)?;
    let attrs = source.looked_self()?.attrs;
    to.make_dir(&to.dir(&[], None)?, name, &attrs).map_err(lost)?;
    let target = to.dir(path, None)?;
    let names = seen_in(&source)?;
    let mut staged = Vec::new();
    for seen in &names {
        let HashOutcome::Looked(read) = source.hash(&seen.name, seen, FILE_LEN)? else { continue };
        let id = StageId(ids.fetch_add(1, Ordering::Relaxed));
        let bytes = read.bytes.unwrap_or_default();
        let mtime = read.looked.content.as_ref().map(Content::mtime).unwrap_or_default();
        staged.push((to.stage_small(id, &bytes, &read.looked.attrs, mtime)?, seen.name.clone()));
        if id.0.is_multiple_of(BATCH as u64) {
            to.sync()?;
        }
    }
    place_all(to, &target, &staged, &attrs)
}

fn place_all(
    to: &Directory,
    target: &DirFd,
    staged: &[(driftless_volume::Staged, Name)],
    attrs: &Attrs,
) -> Result<(), VolumeError> {
    for (one, name) in staged {
        to.place(one, target, name, None).map_err(lost)?;
    }
    attrs.dir_mtime.map_or(Ok(()), |mtime| to.set_dir_mtime(target, mtime).map(drop))
}

/// In a fresh directory nothing but a failing call can go wrong.
fn lost(e: driftless_volume::ApplyError) -> VolumeError {
    match e {
        driftless_volume::ApplyError::Volume(e) => e,
        other => panic!("{other}"),
    }
}

fn list_all(volume: &Directory) -> Done {
    each_dir(volume, |_, _| Ok(()))
}

fn read_all(volume: &Directory) -> Done {
    each_dir(volume, |dir, seen| dir.hash(&seen.name, seen, FILE_LEN).map(drop))
}

fn each_dir(
    volume: &Directory,
    mut act: impl FnMut(&DirFd, &driftless_volume::Seen) -> Result<(), VolumeError>,
) -> Done {
    for dir in seen_in(&volume.dir(&[], None)?)? {
        let dir = volume.dir(&[dir.name], Some(&dir.key))?;
        seen_in(&dir)?.iter().try_for_each(|seen| act(&dir, seen))?;
    }
    Ok(())
}

/// What a directory has.
fn seen_in(dir: &DirFd) -> Result<Vec<Seen>, VolumeError> {
    let names = dir.list()?;
    let mut all = Vec::with_capacity(names.len());
    for name in (0..names.len()).filter_map(|i| names.name(i)?.ok()) {
        all.extend(dir.look(&name)?);
    }
    Ok(all)
}
