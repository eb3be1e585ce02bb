//! What users wrote and what they took away knowingly, and the check that nothing else is gone.
//!
//! Every closed version has unique bytes, so its digest names it. A version must be found in the
//! final tree, under whatever name, unless some user overwrote or removed it *knowing it*: having
//! had that very inode before the operation and finding it without a name after it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name of a version: BLAKE3 of its bytes.
pub type Digest = [u8; 32];

/// This many random bytes at the beginning make a version one of its kind.
pub(crate) const UNIQUE_LEN: usize = 8;

/// One closed version.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its bytes' digest.
    pub digest: Digest,
    /// Where it was written, relative to the root.
    pub path: PathBuf,
    /// Number of the step that wrote it.
    pub step: u64,
}

/// The deeds of one user.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// Who.
    pub user: String,
    /// What was done or tried, for people.
    pub deeds: Vec<String>,
    /// Versions written.
    pub written: Vec<Written>,
    /// Versions taken away knowingly.
    pub taken: HashSet<Digest>,
    /// Last names of files that were taken away although another inode had been looked at before:
    /// a replica was faster than the user. What it was nobody can tell.
    pub taken_unseen: Vec<OsString>,
    /// What the step under way wrote and took, for people.
    versions: Vec<String>,
}

/// A version that should be there.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Who wrote it.
    pub user: String,
    /// What.
    pub written: Written,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let w = &self.written;
        let name = short(&w.digest);
        write!(
            f,
            "{} wrote {:?} ({name}) in step {}, nobody removed it, and it is gone",
            self.user, w.path, w.step
        )
    }
}

impl Journal {
    /// An empty journal of `user`.
    pub fn new(user: impl Into<String>) -> Journal {
        Journal { user: user.into(), ..Journal::default() }
    }

    pub(crate) fn wrote(&mut self, step: u64, path: &Path, bytes: &[u8]) {
        // Empty files are all one version, and very short ones may be: there is nothing to lose.
        if bytes.len() >= UNIQUE_LEN {
            let digest = *blake3::hash(bytes).as_bytes();
            self.versions.push(format!("wrote {}", short(&digest)));
            self.written.push(Written { digest, path: path.to_owned(), step });
        }
    }

    /// Digests of the versions written.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.written.iter().map(|w| w.digest)
    }

    pub(crate) fn took(&mut self, bytes: &[u8]) {
        let digest = *blake3::hash(bytes).as_bytes();
        self.versions.push(format!("took {}", short(&digest)));
        self.taken.insert(digest);
    }

    /// One of the names of a version that has others.
    pub(crate) fn took_name(&mut self, bytes: &[u8]) {
        self.versions.push(format!("took a name of {}", short(blake3::hash(bytes).as_bytes())));
    }

    /// Says in the last deed which versions it was about.
    pub(crate) fn tell_versions(&mut self) {
        let versions = std::mem::take(&mut self.versions);
        if let Some(deed) = self.deeds.last_mut().filter(|_| !versions.is_empty()) {
            *deed = format!("{deed} ({})", versions.join(", "));
        }
    }
}

/// Enough of a digest for people to find it again.
fn short(digest: &Digest) -> String {
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Versions in `journals` that neither `tree` holds nor any user took away knowingly.
///
/// Versions written under a name that some user took away unseen are given the benefit of the doubt.
pub fn check_no_loss(journals: &[&Journal], tree: &Path) -> io::Result<Vec<Lost>> {
    let present = digests_in(tree)?;
    let taken: HashSet<&Digest> = journals.iter().flat_map(|j| &j.taken).collect();
    let doubtful: HashSet<&OsString> = journals.iter().flat_map(|j| &j.taken_unseen).collect();
    let doubt = |w: &Written| w.path.file_name().is_some_and(|n| doubtful.contains(&n.to_owned()));
    let missing = |w: &&Written| !present.contains(&w.digest) && !taken.contains(&w.digest) && !doubt(w);
    let lost_of = |j: &&Journal| -> Vec<Lost> {
        let lost = j.written.iter().filter(missing);
        lost.map(|w| Lost { user: j.user.clone(), written: w.clone() }).collect()
    };
    Ok(journals.iter().flat_map(lost_of).collect())
}

/// Digests of all regular files below `tree`, our private directory left out.
pub fn digests_in(tree: &Path) -> io::Result<HashSet<Digest>> {
    let mut found = HashSet::new();
    let mut todo = vec![tree.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && !(dir == tree && entry.file_name() == ".driftless") {
                todo.push(entry.path());
            } else if kind.is_file() {
                found.insert(*blake3::hash(&fs::read(entry.path())?).as_bytes());
            }
        }
    }
    Ok(found)
}
