//! What could not be looked at because its directory is not where it is recorded.
//!
//! A user moves a directory and changes a file in it: two events, which may be judged in either order, or with the move between
//! the event and the look. Recording the move takes along what is recorded below the directory, but looks at none of it, so
//! that the change in it would never be seen. What could not be looked at is kept here until the directory is
//! recorded where it is, which the event of its own move brings about. If that does not come, the tree is crawled.

use super::{Engine, Fail};
use driftless_core::{Name, NodeKey, Tx};
use driftless_volume::Located;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// So long the event of a move may take: removals wait up to five seconds before they are recorded.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many names are kept; where there are more, a crawl costs less.
const KEPT_MAX: usize = 10_000;

/// See the module.
#[derive(Default)]
pub(super) struct Elsewhere {
    dirs: BTreeMap<NodeKey, Kept>,
    names_n: usize,
    /// When the first of them was kept.
    since: Option<Instant>,
}

/// What is to be looked at in a directory.
#[derive(Default)]
struct Kept {
    names: BTreeSet<Name>,
    all: bool,
}

impl Elsewhere {
    pub(super) fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }

    /// When waiting ends.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + PATIENCE)
    }

    fn keep(&mut self, dir: &NodeKey) -> &mut Kept {
        self.since.get_or_insert_with(Instant::now);
        self.names_n += 1;
        self.dirs.entry(dir.clone()).or_default()
    }
}

impl Engine {
    /// Looks at the name once its directory is recorded where it is.
    pub(super) fn look_when_found(&mut self, dir: &NodeKey, name: &Name) {
        if !self.follows() {
            self.elsewhere.keep(dir).names.insert(name.clone());
        }
    }

    /// Lists the directory once it is recorded where it is.
    pub(super) fn list_when_found(&mut self, dir: &NodeKey) {
        if !self.follows() {
            self.elsewhere.keep(dir).all = true;
        }
    }

    /// True if the directory is somewhere below the root, as far as can be told.
    pub(super) fn may_be_elsewhere(&self, dir: &NodeKey) -> bool {
        matches!(self.volume.locate(dir), Located::At(_) | Located::Unknown)
    }

    /// After a pass: what can be found now is looked at, what has gone is forgotten.
    pub(super) fn look_where_found(&mut self) -> Result<(), Fail> {
        if self.elsewhere.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let Elsewhere { dirs, since, .. } = std::mem::take(&mut self.elsewhere);
        for (dir, kept) in dirs {
            // Not recorded any more: it is looked at as a whole if it comes again.
            let Some(path) = self.path_of_node(&mut tx, &dir)? else { continue };
            if self.volume.dir(&path, Some(&dir)).is_ok() {
                if kept.all {
                    self.lists.insert(dir.clone());
                }
                self.hints.extend(kept.names.into_iter().map(|name| (dir.clone(), name)));
            } else if self.may_be_elsewhere(&dir) {
                self.elsewhere.names_n += kept.names.len();
                self.elsewhere.since = since;
                self.elsewhere.dirs.insert(dir, kept);
            }
        }
        Ok(())
    }

    /// Crawls if the events of moves do not come, or if too much waits for them.
    pub(super) fn crawl_for_what_is_elsewhere(&mut self) {
        let overdue = self.elsewhere.due().is_some_and(|at| at <= Instant::now());
        if overdue || self.elsewhere.names_n > KEPT_MAX {
            self.elsewhere = Elsewhere::default();
            self.want_crawl = true;
        }
    }
}
