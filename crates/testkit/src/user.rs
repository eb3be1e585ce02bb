//! A random user of one tree, who keeps a journal of what was written and taken away.
//!
//! Names come from a small set, so that users of two trees meet. Operations that fail because the
//! tree changed meanwhile (a replica is at work in it) are no errors: the user shrugs.

use crate::journal::{Journal, UNIQUE_LEN};
use crate::rng::Rng;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Names of files and directories alike: a file here meets a directory there.
const NAMES: [&[u8]; 9] = [b"a", b"b", b"c", b"d", b"e", b"notes.txt", b"s p", b"\xff", b"new\nline"];

/// Deepest directory made, so that trees stay small and users meet.
const DEPTH_MAX: usize = 4;

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Op {
    /// A new file, opened exclusively.
    Create,
    /// New bytes into an existing file, in place.
    Overwrite,
    /// A temporary file renamed over the name.
    Save,
    /// Bytes at the end.
    Append,
    /// A shorter file.
    Truncate,
    /// A file to another name, over whatever file is there.
    RenameFile,
    /// A directory to another name.
    RenameDir,
    /// Another name of a file.
    Link,
    /// A name removed.
    Unlink,
    /// A directory with all in it.
    RemoveAll,
    /// An empty directory.
    Rmdir,
    /// A new directory.
    Mkdir,
    /// Other permission bits.
    Chmod,
    /// A new symlink.
    Symlink,
}

/// How often each is tried.
const WEIGHTS: [(Op, u64); 14] = [
    (Op::Create, 8),
    (Op::Overwrite, 5),
    (Op::Save, 6),
    (Op::Append, 3),
    (Op::Truncate, 2),
    (Op::RenameFile, 6),
    (Op::RenameDir, 4),
    (Op::Link, 3),
    (Op::Unlink, 5),
    (Op::RemoveAll, 1),
    (Op::Rmdir, 2),
    (Op::Mkdir, 5),
    (Op::Chmod, 3),
    (Op::Symlink, 2),
];

/// A user of the tree at a root.
pub struct User {
    root: PathBuf,
    /// Where what is taken away is looked at while others work in the tree.
    trash: Option<PathBuf>,
    rng: Rng,
    journal: Journal,
    step: u64,
}

/// Paths relative to the root.
#[derive(Default)]
struct Seen {
    files: Vec<PathBuf>,
    /// The root (empty path) is the first.
    dirs: Vec<PathBuf>,
}

impl User {
    /// A user of the tree at `root`; `seed` names him and his bytes, so no two users of a test may share one.
    pub fn new(root: &Path, seed: u64) -> User {
        let journal = Journal::new(format!("user {seed}"));
        User { root: root.to_owned(), trash: None, rng: Rng::new(seed), journal, step: 0 }
    }

    /// As [`User::new`], in a tree in which a replica is at work. Between a look and an unlink, or a rename over a
    /// name, it may put another version there, and nobody could tell which one was taken. So this user removes by a rename to
    /// `trash`, a directory on the same file system, and replaces by an exchange of names: what comes out is what was taken.
    pub fn beside_others(root: &Path, seed: u64, trash: &Path) -> User {
        User { trash: Some(trash.to_owned()), ..User::new(root, seed) }
    }

    /// What was done so far.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// One random operation: what was tried and whether it happened.
    ///
    /// # Errors
    /// For what a change of the tree by others does not explain.
    pub fn step(&mut self) -> io::Result<(Op, bool)> {
        self.step += 1;
        let op = self.choose();
        let seen = self.look()?;
        let (step, deeds) = (self.step, self.journal.deeds.len());
        let result = self.perform(op, &seen);
        for deed in &mut self.journal.deeds[deeds..] {
            let end = match &result {
                Ok(true) => String::new(),
                Ok(false) => ": not done".into(),
                Err(e) => format!(": {e}"),
            };
            *deed = format!("{step} {op:?} {deed}{end}");
        }
        self.journal.tell_versions();
        match result {
            Ok(done) => Ok((op, done)),
            Err(e) if explained(&e) => Ok((op, false)),
            Err(e) => Err(io::Error::new(e.kind(), format!("{op:?} in {}: {e}", self.root.display()))),
        }
    }

    /// Notes what is about to be done.
    fn note(&mut self, path: &Path, to: Option<&Path>) {
        let text = |p: &Path| p.as_os_str().as_bytes().escape_ascii().to_string();
        self.journal.deeds.push(match to {
            Some(to) => format!("{} -> {}", text(path), text(to)),
            None => text(path),
        });
    }

    fn choose(&mut self) -> Op {
        let mut at = self.rng.below(WEIGHTS.iter().map(|w| w.1).sum());
        for (op, weight) in WEIGHTS {
            if at < weight {
                return op;
            }
            at -= weight;
        }
        Op::Create
    }

    fn perform(&mut self, op: Op, seen: &Seen) -> io::Result<bool> {
        match op {
            Op::Create => self.create(seen),
            Op::Save => self.save(seen),
            Op::Mkdir => self.mkdir(seen),
            Op::Symlink => self.symlink(seen),
            Op::RenameDir => self.rename_dir(seen),
            Op::Rmdir | Op::RemoveAll => self.remove_dir(op, seen),
            _ => match self.rng.pick(&seen.files).cloned() {
                Some(file) => self.with_file(op, &file, seen),
                None => Ok(false),
            },
        }
    }

    fn with_file(&mut self, op: Op, file: &Path, seen: &Seen) -> io::Result<bool> {
        match op {
            Op::Overwrite | Op::Append | Op::Truncate => self.modify(op, file),
            Op::RenameFile => {
                let to = self.spot(seen);
                self.note(file, Some(&to));
                self.replace(file, &to)
            }
            Op::Link => {
                let to = self.spot(seen);
                self.note(file, Some(&to));
                fs::hard_link(self.full(file), self.full(&to)).map(|()| true)
            }
            Op::Unlink => {
                self.note(file, None);
                self.unlink(file).map(|()| true)
            }
            _ => {
                let mode = [0o644, 0o600, 0o755, 0o664, 0o4755][self.rng.below(5) as usize];
                self.note(file, Some(Path::new(&format!("{mode:o}"))));
                fs::set_permissions(self.full(file), fs::Permissions::from_mode(mode)).map(|()| true)
            }
        }
    }

    fn full(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// What is in the tree now.
    fn look(&self) -> io::Result<Seen> {
        let mut seen = Seen::default();
        let mut todo = vec![PathBuf::new()];
        while let Some(dir) = todo.pop() {
            for (name, kind) in list(&self.full(&dir))? {
                let path = dir.join(name);
                if kind.is_dir() && path != Path::new(".driftless") {
                    todo.push(path);
                } else if kind.is_file() && !is_staged(&path) {
                    seen.files.push(path);
                }
            }
            seen.dirs.push(dir);
        }
        seen.files.sort();
        seen.dirs.sort();
        Ok(seen)
    }

    /// A name in some directory, taken or not.
    fn spot(&mut self, seen: &Seen) -> PathBuf {
        let dir = self.rng.pick(&seen.dirs).cloned().unwrap_or_default();
        let name = NAMES[self.rng.below(NAMES.len() as u64) as usize];
        dir.join(OsStr::from_bytes(name))
    }

    /// Bytes nobody wrote before.
    fn bytes(&mut self) -> Vec<u8> {
        let len = match self.rng.below(6) {
            0 => 0,
            1 => 100_000,
            _ => 3000,
        };
        // Random bytes come first: what is cut off later must leave something that nobody else wrote.
        let mut bytes = self.rng.bytes(UNIQUE_LEN);
        bytes.extend(format!(" {} step {}\n", self.journal.user, self.step).into_bytes());
        let more = self.rng.below(len) as usize;
        bytes.extend(self.rng.bytes(more));
        bytes
    }

    fn create(&mut self, seen: &Seen) -> io::Result<bool> {
        let path = self.spot(seen);
        self.note(&path, None);
        let bytes = self.bytes();
        let mut file = File::create_new(self.full(&path))?;
        file.write_all(&bytes)?;
        self.journal.wrote(self.step, &path, &bytes);
        Ok(true)
    }

    /// In place, through one descriptor: the version taken is exactly the one that was read.
    fn modify(&mut self, op: Op, path: &Path) -> io::Result<bool> {
        self.note(path, None);
        let mut file = File::options().read(true).write(true).open(self.full(path))?;
        let mut old = Vec::new();
        file.read_to_end(&mut old)?;
        let new = match op {
            Op::Append => [&old[..], &self.bytes()].concat(),
            // Not at a fixed part of the length: a file that grew to twice its size would become what it was.
            Op::Truncate => old[..self.rng.below(old.len() as u64) as usize].to_vec(),
            _ => self.bytes(),
        };
        // Written as far as it differs, as an editor or a log writer does it.
        let same = if op == Op::Overwrite { 0 } else { old.len().min(new.len()) };
        file.set_len(same as u64)?;
        file.seek(io::SeekFrom::Start(same as u64))?;
        file.write_all(&new[same..])?;
        self.journal.took(&old);
        self.journal.wrote(self.step, path, &new);
        Ok(true)
    }

    fn save(&mut self, seen: &Seen) -> io::Result<bool> {
        let known = self.rng.pick(&seen.files).cloned();
        let path = match known {
            Some(path) if !self.rng.one_in(4) => path,
            _ => self.spot(seen),
        };
        let temporary = path.with_file_name(format!(".save-{}-{}", self.rng.next_u64(), self.step));
        self.note(&path, None);
        let bytes = self.bytes();
        fs::write(self.full(&temporary), &bytes)?;
        self.journal.wrote(self.step, &path, &bytes);
        let done = self.replace(&temporary, &path);
        if !matches!(done, Ok(true)) {
            self.unlink(&temporary)?;
        }
        done
    }

    /// Renames `from` over `to`.
    fn replace(&mut self, from: &Path, to: &Path) -> io::Result<bool> {
        if self.trash.is_some() {
            return self.replace_beside_others(from, to);
        }
        let ino = fs::symlink_metadata(self.full(from))?.ino();
        let victim = Victim::look(&self.full(to))?;
        fs::rename(self.full(from), self.full(to))?;
        // Two names of one inode: rename does nothing, and nothing is taken.
        let other = |v: &Victim| v.file.metadata().is_ok_and(|m| m.ino() != ino);
        self.account(victim.filter(other), to)?;
        Ok(true)
    }

    /// Changes places with what is there, and takes that; or takes a name that is free. A plain rename would replace
    /// what came there after the look, and nobody would know that it was taken.
    fn replace_beside_others(&mut self, from: &Path, to: &Path) -> io::Result<bool> {
        let rename = |flags| renameat_with(CWD, self.full(from), CWD, self.full(to), flags);
        if is_leaf(&self.full(to)) {
            rename(RenameFlags::EXCHANGE)?;
            self.take(from)?;
        } else {
            rename(RenameFlags::NOREPLACE)?;
        }
        Ok(true)
    }

    /// Moves whatever is at a name out of the tree, and looks at it there.
    fn take(&mut self, path: &Path) -> io::Result<()> {
        let Some(trash) = &self.trash else { return Ok(()) };
        let taken = trash.join(format!("{} {}", self.journal.user, self.journal.taken.len()));
        renameat_with(CWD, self.full(path), CWD, &taken, RenameFlags::NOREPLACE)?;
        let meta = fs::symlink_metadata(&taken)?;
        if meta.is_dir() {
            // It came there after the look; somebody else's now.
            let back = renameat_with(CWD, &taken, CWD, self.full(path), RenameFlags::NOREPLACE);
            return back.map_err(|e| io::Error::other(format!("a directory cannot go back: {e}")));
        }
        if meta.is_file() {
            let bytes = fs::read(&taken)?;
            match self.has_inode(meta.ino())? {
                true => self.journal.took_name(&bytes),
                false => self.journal.took(&bytes),
            }
        }
        fs::remove_file(&taken)
    }

    fn has_inode(&self, ino: u64) -> io::Result<bool> {
        let inode = |p: &PathBuf| fs::symlink_metadata(self.full(p)).map(|m| m.ino()).ok();
        Ok(self.look()?.files.iter().any(|p| inode(p) == Some(ino)))
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        if self.trash.is_some() {
            return self.take(path);
        }
        let victim = Victim::look(&self.full(path))?;
        fs::remove_file(self.full(path))?;
        self.account(victim, path)
    }

    fn account(&mut self, victim: Option<Victim>, path: &Path) -> io::Result<()> {
        let Some(victim) = victim else { return Ok(()) };
        let links = victim.file.metadata()?.nlink();
        if links == 0 {
            self.journal.took(&victim.bytes);
        } else if links >= victim.links {
            self.journal.taken_unseen.extend(path.file_name().map(OsStr::to_owned));
        }
        Ok(())
    }

    fn mkdir(&mut self, seen: &Seen) -> io::Result<bool> {
        let path = self.spot(seen);
        if path.components().count() > DEPTH_MAX {
            return Ok(false);
        }
        self.note(&path, None);
        fs::create_dir(self.full(&path)).map(|()| true)
    }

    fn symlink(&mut self, seen: &Seen) -> io::Result<bool> {
        let (path, target) = (self.spot(seen), self.spot(seen));
        self.note(&path, Some(&target));
        symlink(target, self.full(&path)).map(|()| true)
    }

    fn rename_dir(&mut self, seen: &Seen) -> io::Result<bool> {
        let Some(from) = self.rng.pick(&seen.dirs[1..]).cloned() else { return Ok(false) };
        let to = self.spot(seen);
        if to.components().count() > DEPTH_MAX {
            return Ok(false);
        }
        self.note(&from, Some(&to));
        // With a slash at its end only a directory is renamed: a file that came there after the look might replace one.
        fs::rename(self.full(&from).join(""), self.full(&to)).map(|()| true)
    }

    fn remove_dir(&mut self, op: Op, seen: &Seen) -> io::Result<bool> {
        let Some(dir) = self.rng.pick(&seen.dirs[1..]).cloned() else { return Ok(false) };
        self.note(&dir, None);
        if op == Op::RemoveAll {
            self.remove_contents(&dir)?;
        }
        fs::remove_dir(self.full(&dir)).map(|()| true)
    }

    fn remove_contents(&mut self, dir: &Path) -> io::Result<()> {
        for (name, kind) in list(&self.full(dir))? {
            let path = dir.join(name);
            if kind.is_dir() {
                self.remove_contents(&path)?;
                fs::remove_dir(self.full(&path))?;
            } else {
                self.unlink(&path)?;
            }
        }
        Ok(())
    }
}

/// A regular file about to be taken away, kept open to see whether it was the one that went.
struct Victim {
    file: File,
    bytes: Vec<u8>,
    links: u64,
}

impl Victim {
    /// `None` if there is no regular file.
    fn look(path: &Path) -> io::Result<Option<Victim>> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
        let mut file = File::open(path)?;
        let links = file.metadata()?.nlink();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(Victim { file, bytes, links }))
    }
}

fn is_leaf(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| !m.is_dir())
}

/// Names in a directory in a fixed order; none if it is gone.
fn list(dir: &Path) -> io::Result<Vec<(OsString, fs::FileType)>> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if explained(&e) => return Ok(names),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        match entry.file_type() {
            Ok(kind) => names.push((entry.file_name(), kind)),
            Err(e) if explained(&e) => {}
            Err(e) => return Err(e),
        }
    }
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

/// Staged files of Driftless beside their targets are not the user's to touch.
fn is_staged(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_bytes().starts_with(b".driftless"))
}

/// Errors that come from a name being free or taken, which random operations and busy replicas make usual.
fn explained(e: &io::Error) -> bool {
    use ErrorKind::*;
    let usual = [
        NotFound,
        AlreadyExists,
        NotADirectory,
        IsADirectory,
        DirectoryNotEmpty,
        InvalidInput,
        InvalidFilename,
        StaleNetworkFileHandle,
        TooManyLinks,
        ExecutableFileBusy,
    ];
    usual.contains(&e.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::digests_in;
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Somebody puts versions to a name while a user renames files to it and removes them: each one is there, or the
    /// user knows that he took it.
    #[test]
    fn a_user_beside_others_knows_what_he_took() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["tree", "trash", "staging"] {
            fs::create_dir(at(name)).unwrap();
        }
        let mut user = User::beside_others(&at("tree"), 1, &at("trash"));
        let (from, to, stop) = (Path::new("from"), Path::new("to"), AtomicBool::new(false));
        let put = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let (mut rng, mut put) = (Rng::new(2), HashSet::new());
                while !stop.load(Ordering::Relaxed) {
                    let (bytes, staged, shown) = (rng.bytes(UNIQUE_LEN), at("staging/new"), at("tree/to"));
                    fs::write(&staged, &bytes).unwrap();
                    while shown.exists() && !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    // At another moment of what the user does each time.
                    (0..rng.below(20_000)).for_each(|_| std::hint::spin_loop());
                    if renameat_with(CWD, &staged, CWD, &shown, RenameFlags::NOREPLACE).is_ok() {
                        put.insert(*blake3::hash(&bytes).as_bytes());
                    }
                }
                put
            });
            for _ in 0..3000 {
                fs::write(at("tree/from"), "mine").unwrap();
                for done in [user.replace(from, to).map(drop), user.unlink(to)] {
                    done.or_else(|e| if explained(&e) { Ok(()) } else { Err(e) }).unwrap();
                }
            }
            stop.store(true, Ordering::Relaxed);
            other.join().unwrap()
        });
        let there = digests_in(&at("tree")).unwrap();
        let unseen = put.iter().filter(|d| !there.contains(*d) && !user.journal.taken.contains(*d)).count();
        assert_eq!(unseen, 0, "of {}", put.len());
    }
}
