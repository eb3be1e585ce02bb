//! A replica whose index is gone, damaged, or older than its tree.
//!
//! It goes on under a new id: it receives before it scans, and binds what others have too. What only its tree has may be
//! a change nobody was told of, or something that was removed elsewhere since; as a new entry it could bring that
//! back. So it is moved, not copied, to `recovered-<site>-<date>/` under its old path, and told; a person decides.

use super::observe::Pass;
use super::{Engine, Fail, RelPath, wall_ns};
use crate::api::{Event, Level, PathText, Side};
use driftless_core::adopt::Adopted;
use driftless_core::local::{self, Looked, Origin};
use driftless_core::{Name, Tx, tree};
use driftless_volume::{ApplyError, DirFd, Seen};
use std::path::{Path, PathBuf};

/// Begins the name of a directory that holds what was put aside.
const RECOVERED: &[u8] = b"recovered-";
/// Length of the date that ends it.
const DATE_LEN: usize = 8;
/// Bytes of a site's name in it: a path must stay possible below it.
const SITE_LEN_MAX: usize = 64;

impl Engine {
    /// Takes in what [`driftless_core::adopt`] made no entry of, because the index was lost.
    pub(super) fn take_unknown(
        &mut self,
        tx: &mut Tx<'_>,
        pass: &mut Pass,
        fd: &DirFd,
        path: &RelPath,
        (seen, looked, how): (&Seen, &Looked, Adopted),
    ) -> Result<(), Fail> {
        let Some((_, above)) = path.split_last() else { return Ok(()) };
        if path.first().is_some_and(is_recovered) {
            // Put aside already, by a scan that was interrupted or at an earlier loss.
            let at = (fd.key(), &seen.name);
            match how {
                Adopted::LinkOnlyHere => local::link(tx, &seen.key, at)?,
                _ => local::create(tx, at, looked, Origin::Import)?,
            }
            pass.recorded += 1;
            pass.descend(seen);
            return Ok(());
        }
        if self.shared.dry_run {
            return Ok(());
        }
        match self.put_aside(fd, above, seen) {
            Ok(to) => {
                self.put_aside_n += 1;
                self.say(Event::PutAside {
                    side: self.side,
                    path: PathText::new(&path.join_bytes()),
                    to: PathText::new(&to.join_bytes()),
                });
                Ok(())
            }
            Err(e) => self.path_waits(tx, path.join_bytes(), super::apply_reason(&e), e.to_string()),
        }
    }

    /// Moves `seen` out of `fd`, which is at `above`, below the directory for such things.
    pub(super) fn put_aside(
        &mut self,
        fd: &DirFd,
        above: &[Name],
        seen: &Seen,
    ) -> Result<RelPath, ApplyError> {
        let before = fd.looked_self()?.fingerprint.mtime;
        let mut to = RelPath(vec![self.recovered_name()]);
        let mut dir = self.own_dir(&self.volume.dir(&[], None)?, &to, None)?;
        for (depth, name) in above.iter().enumerate() {
            let like = self.volume.dir(&above[..=depth], None)?;
            to.push(name);
            dir = self.own_dir(&dir, &to, Some(&like))?;
        }
        let mut name = seen.name.clone();
        let mut n = 1u32;
        while dir.look(&name)?.is_some() {
            name = numbered(&seen.name, n);
            n += 1;
        }
        let id = self.next_stage_id();
        self.volume.rename_node(fd, &seen.name, &dir, &name, &seen.key, None, id)?;
        if seen.kind.is_dir() {
            self.forget_dirs();
        }
        // Nothing that is known has changed in the directory: its time tells of that only.
        self.volume.set_dir_mtime(fd, before)?;
        to.push(&name);
        Ok(to)
    }

    /// The directory at `path`, whose last name is in `parent`, made if it is missing: with the attributes of `like`, else
    /// closed to others.
    fn own_dir(&self, parent: &DirFd, path: &RelPath, like: Option<&DirFd>) -> Result<DirFd, ApplyError> {
        let Some(name) = path.last() else { return Ok(parent.clone()) };
        match parent.look(name)? {
            Some(seen) if seen.kind.is_dir() => return Ok(self.volume.dir(path, Some(&seen.key))?),
            Some(seen) => return Err(ApplyError::Unexpected { seen: Some(Box::new(seen)) }),
            None => {}
        }
        let mut attrs = like.unwrap_or(parent).looked_self()?.attrs;
        if like.is_none() {
            attrs.mode = 0o700;
        }
        let made = self.volume.make_dir(parent, name, &attrs)?;
        Ok(self.volume.dir(path, Some(&made.node))?)
    }

    fn recovered_name(&self) -> Name {
        let site = match self.side {
            Side::A => &self.shared.site_names.0,
            Side::B => &self.shared.site_names.1,
        };
        let date = &tree::utc(wall_ns() / 1_000_000_000)[..DATE_LEN];
        let safe: String = site.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let site = &safe[..safe.len().min(SITE_LEN_MAX)];
        // A prefix, letters, digits and dashes: a valid name.
        Name::new(&[RECOVERED, site.as_bytes(), b"-", date.as_bytes()].concat())
            .expect("a name of letters, digits and dashes is valid")
    }

    /// Says that the index is being made anew, and what that means.
    pub(super) fn tell_lost(&mut self, kept_as: Option<&Path>) {
        let why = match kept_as {
            Some(p) => format!("the index cannot be used and is kept as {}", p.display()),
            None => "the index of this tree is gone".to_owned(),
        };
        self.log(
            Level::Warn,
            format!(
                "{why}: it is rebuilt from the other side and the tree; equal files are not copied, what only \
                 this tree has is moved to {}",
                String::from_utf8_lossy(self.recovered_name().as_bytes())
            ),
        );
    }

    /// The scan after a loss is over: what was put aside is looked at as what a user made.
    pub(super) fn tell_put_aside(&mut self) {
        if self.put_aside_n == 0 {
            return;
        }
        self.want_crawl = true;
        let (n, name) = (self.put_aside_n, self.recovered_name());
        self.log(
            Level::Warn,
            format!(
                "{n} {} that only this tree has {} moved to {}: move back what is needed, remove the rest",
                if n == 1 { "thing" } else { "things" },
                if n == 1 { "was" } else { "were" },
                String::from_utf8_lossy(name.as_bytes())
            ),
        );
    }
}

/// True for names that [`Engine::recovered_name`] makes, for any site and day.
fn is_recovered(name: &Name) -> bool {
    let bytes = name.as_bytes();
    bytes.strip_prefix(RECOVERED).is_some_and(|rest| {
        rest.len() > DATE_LEN
            && rest[rest.len() - DATE_LEN - 1] == b'-'
            && rest[rest.len() - DATE_LEN..].iter().all(u8::is_ascii_digit)
    })
}

/// `name` with a number, cut so that both fit.
fn numbered(name: &Name, n: u32) -> Name {
    let tail = format!(".{n}");
    let bytes = name.as_bytes();
    let stem = &bytes[..bytes.len().min(Name::LEN_MAX - tail.len())];
    // The start of a valid name with a dot and digits; it cannot be one of the reserved names.
    Name::new(&[stem, tail.as_bytes()].concat()).unwrap_or_else(|_| name.clone())
}

/// Moves an index file that cannot be used aside, beside itself, where a person can look at it.
///
/// # Errors
/// What the file system says.
pub(super) fn set_index_aside(index: &Path) -> std::io::Result<PathBuf> {
    let to = kept_name(index);
    std::fs::rename(index, &to)?;
    Ok(to)
}

/// As [`set_index_aside`], for one whose place another is about to take: where the file system can, it stays there as well, so that
/// there is one at all times.
///
/// # Errors
/// What the file system says.
pub(super) fn keep_index(index: &Path) -> std::io::Result<PathBuf> {
    let to = kept_name(index);
    std::fs::hard_link(index, &to).or_else(|_| std::fs::rename(index, &to))?;
    Ok(to)
}

fn kept_name(index: &Path) -> PathBuf {
    let time = tree::utc(wall_ns() / 1_000_000_000);
    let mut to = index.with_file_name(format!("index.kept-{time}.redb"));
    let mut n = 1;
    while to.symlink_metadata().is_ok() {
        to = index.with_file_name(format!("index.kept-{time}-{n}.redb"));
        n += 1;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> Name {
        Name::new(s.as_bytes()).unwrap()
    }

    #[test]
    fn directories_for_what_was_put_aside_are_known_again() {
        assert!(is_recovered(&name("recovered-B-20261121")));
        assert!(is_recovered(&name("recovered-new-york-20261121")));
        for other in ["recovered-", "recovered-20261121", "recovered-B-2026112x", "recovered-B", "recovered"]
        {
            assert!(!is_recovered(&name(other)), "{other}");
        }
    }

    #[test]
    fn a_long_name_takes_a_number() {
        let long = Name::new(&[b'x'; 255]).unwrap();
        let got = numbered(&long, 12);
        assert_eq!(got.as_bytes().len(), 255);
        assert!(got.as_bytes().ends_with(b"x.12"));
        assert_eq!(numbered(&name("a.txt"), 1), name("a.txt.1"));
    }
}
