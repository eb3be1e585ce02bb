//! What the tests share: a volume in a temporary directory, and short ways to look at it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses a part")]

use driftless_core::plan::Victim;
use driftless_core::{Attrs, Content, Digest, Kind, Name, Time};
use driftless_volume::{DirFd, Directory, HashOutcome, Hashed, OpenOptions, Seen, StageId, Staged};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// More than the largest small file of the tests.
pub const KEEP: usize = 128 << 10;
/// A time no file gets by itself.
pub const WHEN: Time = Time { sec: 1_234_567_890, nsec: 123_456_789 };

pub struct Volume {
    pub tmp: Tmp,
    pub volume: Directory,
    ids: AtomicU64,
}

/// A directory that goes with the volume, or one that somebody else cleans up.
pub enum Tmp {
    Owned(tempfile::TempDir),
    Lent(PathBuf),
}

impl Tmp {
    pub fn path(&self) -> &Path {
        match self {
            Tmp::Owned(tmp) => tmp.path(),
            Tmp::Lent(path) => path,
        }
    }
}

impl Volume {
    pub fn new() -> Volume {
        Volume::at(tempfile::tempdir().unwrap())
    }

    pub fn at(tmp: tempfile::TempDir) -> Volume {
        Volume::open(Tmp::Owned(tmp))
    }

    pub fn at_path(path: PathBuf) -> Volume {
        Volume::open(Tmp::Lent(path))
    }

    fn open(tmp: Tmp) -> Volume {
        let volume = Directory::open(tmp.path(), OpenOptions { create_private: true }).unwrap();
        Volume { tmp, volume, ids: AtomicU64::new(1) }
    }

    pub fn id(&self) -> StageId {
        StageId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    pub fn root(&self) -> DirFd {
        self.volume.dir(&[], None).unwrap()
    }

    pub fn dir(&self, path: &str) -> DirFd {
        let names: Vec<Name> = path.split('/').map(name).collect();
        self.volume.dir(&names, None).unwrap()
    }

    pub fn write(&self, at: &str, bytes: &[u8]) {
        std::fs::write(self.path(at), bytes).unwrap();
    }

    pub fn stage(&self, bytes: &[u8]) -> Staged {
        self.volume.stage_small(self.id(), bytes, &plain(), WHEN).unwrap()
    }

    pub fn staging(&self, staged: &Staged) -> PathBuf {
        let shard = format!("{:02x}", staged.id.0 / 512 % 16);
        self.path(".driftless/staging").join(shard).join(staged.id.to_string())
    }

    /// All that is in staging.
    pub fn staged(&self) -> Vec<PathBuf> {
        let staging = self.path(".driftless/staging");
        names(&staging).iter().flat_map(|shard| paths(&staging.join(shard))).collect()
    }

    pub fn limbo(&self, id: StageId) -> PathBuf {
        self.path(".driftless/limbo").join(id.to_string())
    }
}

/// Where [`in_mount_namespace`] says the volume is.
const MOUNTED_DIR: &str = "DRIFTLESS_TEST_MOUNTED_DIR";

/// Makes the directories `volume` and `other` in a new directory, runs `mount` there in a mount name space of its own,
/// and in that the ignored test `test` of this file.
pub fn in_mount_namespace(mount: &str, test: &str) {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(tmp.path().join("volume/.driftless")).unwrap();
    std::fs::create_dir(tmp.path().join("other")).unwrap();
    let done = std::process::Command::new("unshare")
        .args(["-m", "sh", "-ec", &format!("{mount}; exec \"$0\" --exact --ignored {test}")])
        .arg(std::env::current_exe().unwrap())
        .current_dir(tmp.path())
        .env(MOUNTED_DIR, tmp.path().join("volume"))
        .output();
    match done {
        Ok(done) if done.status.success() => {
            assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"), "{done:?}");
        }
        Ok(done) if String::from_utf8_lossy(&done.stderr).contains("unshare: ") => {
            eprintln!("skipped: not permitted to mount");
        }
        other => panic!("{other:?}"),
    }
}

/// The volume of [`in_mount_namespace`].
pub fn mounted() -> Volume {
    Volume::at_path(std::env::var_os(MOUNTED_DIR).unwrap().into())
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub fn seen(dir: &DirFd, at: &str) -> Seen {
    dir.look(&name(at)).unwrap().unwrap()
}

pub fn victim(dir: &DirFd, at: &str) -> Victim {
    let seen = seen(dir, at);
    Victim { node: seen.key, kind: seen.kind, fingerprint: seen.fingerprint }
}

pub fn hashed(dir: &DirFd, at: &str) -> Box<Hashed> {
    match dir.hash(&name(at), &seen(dir, at), KEEP).unwrap() {
        HashOutcome::Looked(hashed) => hashed,
        other => panic!("{other:?}"),
    }
}

/// Attributes of an ordinary file of the user running the tests.
pub fn plain() -> Attrs {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Attrs { mode: 0o644, uid, gid, ..Attrs::default() }
}

pub fn file_content(bytes: &[u8]) -> Content {
    Content::File { size: bytes.len() as u64, mtime: WHEN, digest: Digest::of(bytes) }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn paths(dir: &Path) -> Vec<PathBuf> {
    names(dir).iter().map(|name| dir.join(name)).collect()
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn listed(dir: &DirFd) -> Vec<Seen> {
    let names = dir.list().unwrap();
    (0..names.len()).map(|i| dir.look(&names.name(i).unwrap().unwrap()).unwrap().unwrap()).collect()
}

pub fn kinds(dir: &DirFd) -> Vec<(String, Kind)> {
    listed(dir).into_iter().map(|seen| (seen.name.to_string(), seen.kind)).collect()
}
