//! The one strict comparison of two trees: names, kinds, contents, modes, owners, times, extended
//! attributes (ACLs are among them), hard links, symlink targets, device numbers, holes.
//!
//! The roots themselves are not compared, only what is in them: the root of a volume has no state
//! of its own. The private directory at a root is left out.

use rustix::fs::{SeekFrom, seek};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The private directory of Driftless, left out at the roots.
const PRIVATE: &str = ".driftless";

/// Holes smaller than this are not compared: file systems round them as they like.
const HOLE_LEN_MIN: u64 = 64 << 10;

/// What to leave out. By default nothing.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// Compare modification times of directories.
    pub dir_mtime: bool,
    /// Compare modification times of everything else.
    pub mtime: bool,
    /// Compare owner and group.
    pub owner: bool,
    /// Compare extended attributes.
    pub xattrs: bool,
    /// Compare where files have holes.
    pub holes: bool,
    /// Compare which names are one inode.
    pub hard_links: bool,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self { dir_mtime: true, mtime: true, owner: true, xattrs: true, holes: true, hard_links: true }
    }
}

/// What differs at a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Aspect {
    /// Only one tree has the name.
    Presence,
    /// Directory, file, symlink, ...
    Kind,
    /// Bytes of a file.
    Content,
    /// Permission bits.
    Mode,
    /// Owner or group.
    Owner,
    /// Modification time.
    Mtime,
    /// Extended attributes.
    Xattrs,
    /// Which names are one inode.
    HardLinks,
    /// Target of a symlink.
    Target,
    /// Device number.
    Rdev,
    /// Where a file has holes.
    Holes,
}

/// One difference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Difference {
    /// Where, relative to the roots.
    pub path: PathBuf,
    /// What.
    pub aspect: Aspect,
    /// What the first tree has.
    pub a: String,
    /// What the second tree has.
    pub b: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.as_os_str().as_bytes().escape_ascii();
        write!(f, "{path}: {:?}: {} | {}", self.aspect, self.a, self.b)
    }
}

/// All differences between the trees in directories `a` and `b`, ordered by path.
///
/// # Errors
/// If something cannot be read, or changes while it is being compared.
pub fn compare(a: &Path, b: &Path, options: &CompareOptions) -> io::Result<Vec<Difference>> {
    let mut walk = Walk {
        options,
        roots: [a, b],
        first_names: [HashMap::new(), HashMap::new()],
        differences: Vec::new(),
    };
    walk.directory(Path::new(""))?;
    walk.differences.sort();
    Ok(walk.differences)
}

struct Walk<'a> {
    options: &'a CompareOptions,
    roots: [&'a Path; 2],
    /// Per tree: inode of a file with several names -> the name met first.
    first_names: [HashMap<(u64, u64), PathBuf>; 2],
    differences: Vec<Difference>,
}

impl Walk<'_> {
    fn differ(&mut self, path: &Path, aspect: Aspect, a: impl Into<String>, b: impl Into<String>) {
        self.differences.push(Difference { path: path.to_owned(), aspect, a: a.into(), b: b.into() });
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        let names = [self.names(0, path)?, self.names(1, path)?];
        for (name, (in_a, in_b)) in merged(names) {
            let path = path.join(name);
            match (in_a, in_b) {
                (true, true) => self.entry(&path)?,
                (true, false) => self.lone(&path, 0)?,
                _ => self.lone(&path, 1)?,
            }
        }
        Ok(())
    }

    fn names(&self, side: usize, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.roots[side].join(path))? {
            let name = entry?.file_name();
            if !(path.as_os_str().is_empty() && name == PRIVATE) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn lone(&mut self, path: &Path, side: usize) -> io::Result<()> {
        let what = kind_word(&fs::symlink_metadata(self.roots[side].join(path))?);
        let mut words = ["nothing"; 2];
        words[side] = what;
        self.differ(path, Aspect::Presence, words[0], words[1]);
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> io::Result<()> {
        let full = self.roots.map(|r| r.join(path));
        let meta = [fs::symlink_metadata(&full[0])?, fs::symlink_metadata(&full[1])?];
        let kinds = [kind_word(&meta[0]), kind_word(&meta[1])];
        if kinds[0] != kinds[1] {
            self.differ(path, Aspect::Kind, kinds[0], kinds[1]);
            return Ok(());
        }
        self.attributes(path, &meta);
        if self.options.xattrs {
            self.xattrs(path, &full)?;
        }
        match kinds[0] {
            "dir" => self.directory(path)?,
            "file" => self.file(path, &full, &meta)?,
            "symlink" => self.symlink(path, &full)?,
            _ => self.rdev(path, &meta),
        }
        if self.options.hard_links && kinds[0] != "dir" {
            self.hard_links(path, &meta);
        }
        Ok(())
    }

    fn attributes(&mut self, path: &Path, meta: &[Metadata; 2]) {
        let [a, b] = meta;
        let is_dir = a.is_dir();
        if !a.is_symlink() && a.mode() != b.mode() {
            let text = |m: &Metadata| format!("{:04o}", m.mode() & 0o7777);
            self.differ(path, Aspect::Mode, text(a), text(b));
        }
        if self.options.owner && (a.uid(), a.gid()) != (b.uid(), b.gid()) {
            let text = |m: &Metadata| format!("{}:{}", m.uid(), m.gid());
            self.differ(path, Aspect::Owner, text(a), text(b));
        }
        let wanted = if is_dir { self.options.dir_mtime } else { self.options.mtime };
        if wanted && (a.mtime(), a.mtime_nsec()) != (b.mtime(), b.mtime_nsec()) {
            let text = |m: &Metadata| format!("{}.{:09}", m.mtime(), m.mtime_nsec());
            self.differ(path, Aspect::Mtime, text(a), text(b));
        }
    }

    fn xattrs(&mut self, path: &Path, full: &[PathBuf; 2]) -> io::Result<()> {
        let (a, b) = (xattrs_of(&full[0])?, xattrs_of(&full[1])?);
        if a != b {
            self.differ(path, Aspect::Xattrs, xattrs_text(&a, &b), xattrs_text(&b, &a));
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, full: &[PathBuf; 2], meta: &[Metadata; 2]) -> io::Result<()> {
        if let Some((a, b)) = content_difference(full, meta)? {
            self.differ(path, Aspect::Content, a, b);
            return Ok(());
        }
        if self.options.holes && meta[0].len() >= HOLE_LEN_MIN {
            let (a, b) = (holes_of(&full[0])?, holes_of(&full[1])?);
            if a.differ(&b) {
                self.differ(path, Aspect::Holes, a.to_string(), b.to_string());
            }
        }
        Ok(())
    }

    fn symlink(&mut self, path: &Path, full: &[PathBuf; 2]) -> io::Result<()> {
        let (a, b) = (fs::read_link(&full[0])?, fs::read_link(&full[1])?);
        if a != b {
            self.differ(path, Aspect::Target, format!("{a:?}"), format!("{b:?}"));
        }
        Ok(())
    }

    fn rdev(&mut self, path: &Path, meta: &[Metadata; 2]) {
        let [a, b] = meta;
        if a.rdev() != b.rdev() {
            self.differ(path, Aspect::Rdev, format!("{:#x}", a.rdev()), format!("{:#x}", b.rdev()));
        }
    }

    /// Both trees are walked in one order, so equal structures have equal first names.
    fn hard_links(&mut self, path: &Path, meta: &[Metadata; 2]) {
        let mut first = |side: usize| {
            let m: &Metadata = &meta[side];
            if m.nlink() < 2 {
                return path.to_owned();
            }
            self.first_names[side].entry((m.dev(), m.ino())).or_insert_with(|| path.to_owned()).clone()
        };
        let (a, b) = (first(0), first(1));
        if a != b {
            let text = |p: &Path| format!("one with {}", p.as_os_str().as_bytes().escape_ascii());
            self.differ(path, Aspect::HardLinks, text(&a), text(&b));
        }
    }
}

fn merged(names: [Vec<OsString>; 2]) -> BTreeMap<OsString, (bool, bool)> {
    let [a, b] = names;
    let mut all: BTreeMap<OsString, (bool, bool)> = a.into_iter().map(|n| (n, (true, false))).collect();
    for name in b {
        all.entry(name).or_default().1 = true;
    }
    all
}

fn kind_word(meta: &Metadata) -> &'static str {
    let t = meta.file_type();
    match () {
        _ if t.is_dir() => "dir",
        _ if t.is_file() => "file",
        _ if t.is_symlink() => "symlink",
        _ if t.is_fifo() => "fifo",
        _ if t.is_socket() => "socket",
        _ if t.is_char_device() => "chardev",
        _ => "blockdev",
    }
}

type Xattrs = BTreeMap<OsString, Vec<u8>>;

/// `None`: the file system knows no extended attributes, which is the same as having none.
fn supported<T>(result: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(v) => Ok(Some(v)),
        Err(rustix::io::Errno::NOTSUP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn xattrs_of(path: &Path) -> io::Result<Xattrs> {
    let mut names = vec![0u8; 64 << 10];
    let Some(len) = supported(rustix::fs::llistxattr(path, &mut names[..]))? else {
        return Ok(Xattrs::new());
    };
    let mut found = Xattrs::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        // Labels come from the system's policy, not from users.
        if name == b"security.selinux" {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let mut value = vec![0u8; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

/// Those of `these` that `others` have not or have otherwise.
fn xattrs_text(these: &Xattrs, others: &Xattrs) -> String {
    let differing = these.iter().filter(|(k, v)| others.get(*k) != Some(*v));
    let text = differing.map(|(k, v)| format!("{}={}", k.as_bytes().escape_ascii(), v.escape_ascii()));
    text.collect::<Vec<_>>().join(" ")
}

fn content_difference(full: &[PathBuf; 2], meta: &[Metadata; 2]) -> io::Result<Option<(String, String)>> {
    let [a, b] = meta;
    if a.len() != b.len() {
        return Ok(Some((format!("{} bytes", a.len()), format!("{} bytes", b.len()))));
    }
    let (mut fa, mut fb) = (File::open(&full[0])?, File::open(&full[1])?);
    let (mut ba, mut bb) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let mut offset = 0u64;
    while offset < a.len() {
        let len = (a.len() - offset).min(ba.len() as u64) as usize;
        fa.read_exact(&mut ba[..len])?;
        fb.read_exact(&mut bb[..len])?;
        if let Some(i) = (0..len).find(|i| ba[*i] != bb[*i]) {
            let at = offset + i as u64;
            return Ok(Some((
                format!("{:#04x} at byte {at}", ba[i]),
                format!("{:#04x} at byte {at}", bb[i]),
            )));
        }
        offset += len as u64;
    }
    Ok(None)
}

/// Holes of at least [`HOLE_LEN_MIN`]: how many, how long together.
struct Holes {
    count: u64,
    bytes: u64,
}

impl Holes {
    /// Each end of a hole may be rounded to a block of the file system.
    fn differ(&self, other: &Holes) -> bool {
        let tolerance = HOLE_LEN_MIN * (1 + self.count.max(other.count));
        self.bytes.abs_diff(other.bytes) > tolerance
    }
}

impl fmt::Display for Holes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} holes", self.bytes, self.count)
    }
}

fn holes_of(path: &Path) -> io::Result<Holes> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let (mut holes, mut at) = (Holes { count: 0, bytes: 0 }, 0);
    while at < len {
        let start = seek(&file, SeekFrom::Hole(at))?;
        // No data after a hole: it goes to the end.
        let end = match seek(&file, SeekFrom::Data(start)) {
            Ok(end) => end,
            Err(rustix::io::Errno::NXIO) => len,
            Err(e) => return Err(e.into()),
        };
        if end.saturating_sub(start) >= HOLE_LEN_MIN {
            holes.count += 1;
            holes.bytes += end - start;
        }
        at = end.max(at + 1);
    }
    Ok(holes)
}
