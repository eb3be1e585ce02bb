//! Random trees with everything a POSIX tree can hold.

use crate::rng::Rng;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Longest path below the root that is made, in bytes: leaves room for the root within PATH_MAX.
const PATH_LEN_MAX: usize = 3000;

/// What to grow.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Number of regular files, hard links not counted.
    pub files: usize,
    /// Number of directories.
    pub dirs: usize,
    /// Greatest size of an ordinary file, in bytes; most are much smaller.
    pub size_max: u64,
    /// Every file has exactly `size_max` bytes.
    pub fixed_size: bool,
    /// Symlinks, hard links, FIFOs, sockets, devices (if privileged), in all about a fifth of `files`.
    pub special: bool,
    /// Names that are not UTF-8, have newlines, spaces, 255 bytes, ...
    pub odd_names: bool,
    /// Modes with setuid and sticky bits, extended attributes, times with nanoseconds.
    pub attributes: bool,
    /// Some files with holes.
    pub sparse: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            files: 60,
            dirs: 15,
            size_max: 300_000,
            fixed_size: false,
            special: true,
            odd_names: true,
            attributes: true,
            sparse: true,
        }
    }
}

impl Spec {
    /// `files` ordinary files of `size` bytes in directories of a hundred, as benchmarks want them.
    pub fn plain(files: usize, size: u64) -> Spec {
        Spec {
            files,
            dirs: files / 100,
            size_max: size,
            fixed_size: true,
            special: false,
            odd_names: false,
            attributes: false,
            sparse: false,
        }
    }
}

/// Grows a tree in directory `root`, made if missing. The same seed and spec give the same tree.
pub fn grow(root: &Path, seed: u64, spec: &Spec) -> io::Result<()> {
    fs::create_dir_all(root)?;
    let mut grower =
        Grower { spec, rng: Rng::new(seed), root, dirs: vec![PathBuf::new()], leaves: Vec::new() };
    for i in 0..spec.dirs {
        grower.dir(i)?;
    }
    for i in 0..spec.files {
        grower.file(i)?;
    }
    if spec.special {
        grower.specials()?;
    }
    if spec.attributes {
        grower.attributes()?;
    }
    Ok(())
}

struct Grower<'a> {
    spec: &'a Spec,
    rng: Rng,
    root: &'a Path,
    /// Relative to the root, parents before children; the first is the root.
    dirs: Vec<PathBuf>,
    /// Leaves to hang attributes and links on.
    leaves: Vec<PathBuf>,
}

impl Grower<'_> {
    fn full(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// A free path in some directory.
    fn spot(&mut self, prefix: &str, i: usize) -> PathBuf {
        // Ordinary trees are filled evenly, so that all directories get their hundred.
        let dir = match self.spec.odd_names {
            true => self.rng.pick(&self.dirs).cloned().unwrap_or_default(),
            false => self.dirs[(i + 1) % self.dirs.len()].clone(),
        };
        let name = self.name(prefix, i);
        if dir.as_os_str().len() + name.len() > PATH_LEN_MAX {
            return PathBuf::from(name);
        }
        dir.join(name)
    }

    /// Unique by `prefix` and `i`, whatever else is in it.
    fn name(&mut self, prefix: &str, i: usize) -> OsString {
        let plain = format!("{prefix}{i:05}");
        if !self.spec.odd_names || !self.rng.one_in(4) {
            return plain.into();
        }
        let mut name = plain.into_bytes();
        match self.rng.below(8) {
            0 => name.extend(b"\xff\xfe not utf-8 \x80"),
            1 => name.extend(b"\nnew\nline"),
            2 => name.splice(0..0, *b" space ").for_each(drop),
            3 => name.resize(255, b'x'),
            4 => name.extend("\u{4e9c}\u{301}\u{1f600}".bytes()),
            5 => name.extend(b"*?[]{}$`\"'\\|&;<>!#~%:"),
            6 => name.splice(0..0, *b"-rf --").for_each(drop),
            _ => name.splice(0..0, [b'.', 1, 0x7f, b'\t', b'\r']).for_each(drop),
        }
        OsString::from_vec(name)
    }

    fn dir(&mut self, i: usize) -> io::Result<()> {
        let path = match self.spec.odd_names {
            true => self.spot("d", i),
            false => PathBuf::from(format!("d{i:05}")),
        };
        fs::create_dir(self.full(&path))?;
        self.dirs.push(path);
        Ok(())
    }

    fn file(&mut self, i: usize) -> io::Result<()> {
        let path = self.spot("f", i);
        let size = self.size();
        let mut file = File::create_new(self.full(&path))?;
        if self.spec.sparse && self.rng.one_in(10) {
            self.sparse(&file)?;
        } else {
            file.write_all(&self.rng.bytes(size))?;
        }
        self.leaves.push(path);
        Ok(())
    }

    fn size(&mut self) -> usize {
        let most = self.spec.size_max;
        let size = match self.rng.below(10) {
            _ if self.spec.fixed_size => most,
            0 => 0,
            1..=7 => self.rng.below(8192.min(most + 1)),
            _ => self.rng.below(most + 1),
        };
        size as usize
    }

    /// Up to 8 MiB with a few islands of data; may end with a hole.
    fn sparse(&mut self, file: &File) -> io::Result<()> {
        let size = (1 + self.rng.below(8)) << 20;
        file.set_len(size)?;
        for _ in 0..self.rng.below(4) {
            let at = self.rng.below(size - (64 << 10));
            file.write_all_at(&self.rng.bytes(4096), at)?;
        }
        Ok(())
    }

    fn specials(&mut self) -> io::Result<()> {
        let files = self.leaves.clone();
        for i in 0..self.spec.files.div_ceil(15) {
            self.symlink(i)?;
            self.node("p", i, FileType::Fifo, 0)?;
            if let Some(file) = self.rng.pick(&files).cloned() {
                let link = self.spot("h", i);
                fs::hard_link(self.full(&file), self.full(&link))?;
            }
        }
        self.node("s", 0, FileType::Socket, 0)?;
        if rustix::process::geteuid().is_root() {
            self.node("c", 0, FileType::CharacterDevice, rustix::fs::makedev(1, 3))?;
            self.node("b", 0, FileType::BlockDevice, rustix::fs::makedev(7, 200))?;
        }
        Ok(())
    }

    fn symlink(&mut self, i: usize) -> io::Result<()> {
        let target = match self.rng.below(4) {
            0 => OsString::from_vec(b"dangling/\xff\n".to_vec()),
            1 => "../..".into(),
            2 => "/etc/hostname".into(),
            _ => self.rng.pick(&self.leaves).cloned().unwrap_or_default().into_os_string(),
        };
        let path = self.spot("l", i);
        symlink(target, self.full(&path))?;
        self.leaves.push(path);
        Ok(())
    }

    fn node(&mut self, prefix: &str, i: usize, kind: FileType, device: u64) -> io::Result<()> {
        let path = self.spot(prefix, i);
        match rustix::fs::mknodat(CWD, self.full(&path), kind, Mode::from(0o640), device) {
            Ok(()) => self.leaves.push(path),
            // Root in a container may not make devices.
            Err(rustix::io::Errno::PERM) if device != 0 => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Leaves first, then directories from the deepest up: a change inside moves a directory's time.
    fn attributes(&mut self) -> io::Result<()> {
        let dirs: Vec<PathBuf> = self.dirs[1..].iter().rev().cloned().collect();
        for path in self.leaves.clone() {
            self.attributes_of(&path, &[0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o444, 0o640])?;
        }
        for path in dirs {
            self.attributes_of(&path, &[0o755, 0o700, 0o1777, 0o2775, 0o750])?;
        }
        Ok(())
    }

    fn attributes_of(&mut self, path: &Path, modes: &[u32]) -> io::Result<()> {
        let full = self.full(path);
        let kind = fs::symlink_metadata(&full)?.file_type();
        if !kind.is_symlink() {
            let mode = self.rng.pick(modes).copied().unwrap_or(0o700);
            // User attributes need write permission on the way for anyone but root.
            if (kind.is_file() || kind.is_dir()) && self.rng.one_in(3) {
                self.xattrs(&full)?;
            }
            fs::set_permissions(&full, fs::Permissions::from_mode(mode))?;
        }
        let time = self.time();
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(CWD, &full, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// From 1960 to 2033.
    fn time(&mut self) -> Timespec {
        let tv_sec = self.rng.below(2_300_000_000) as i64 - 300_000_000;
        Timespec { tv_sec, tv_nsec: self.rng.below(1_000_000_000) as _ }
    }

    fn xattrs(&mut self, full: &Path) -> io::Result<()> {
        for i in 0..=self.rng.below(3) {
            let len = [0, 1, 20, 500][self.rng.below(4) as usize];
            let value = self.rng.bytes(len);
            set_xattr(full, &format!("user.k{i}"), &value)?;
        }
        if self.rng.one_in(2) {
            set_xattr(full, "system.posix_acl_access", &acl(self.rng.below(60_000) as u32))?;
        }
        Ok(())
    }
}

/// A file system without extended attributes gives a tree without them.
fn set_xattr(full: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    match rustix::fs::setxattr(full, name, value, XattrFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOTSUP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A POSIX ACL as the kernel has it: version 2, then (tag, permissions, id) of owner, one more
/// user, group, mask, others.
fn acl(user: u32) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let entries =
        [(0x01u16, 6u16, NO_ID), (0x02, 4, user), (0x04, 4, NO_ID), (0x10, 4, NO_ID), (0x20, 0, NO_ID)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
