//! Files that were taken in although somebody has them open for writing, and did not close them in a long time: logs,
//! disk images, databases.
//!
//! No event tells of what is written to them before they are closed, so they are looked at again and again, and taken
//! in again if they have changed.

use super::{Engine, Fail, RelPath};
use driftless_volume::Writers;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Pause between two looks at such a file: what is shipped of a growing log is at most so old, and the time it takes to
/// settle.
const PAUSE: Duration = Duration::from_secs(10);
/// So many are followed; what others write is seen when they are closed.
const FILES_MAX: usize = 1024;

/// See the module.
#[derive(Default)]
pub(super) struct OpenFiles {
    due: HashMap<RelPath, Instant>,
    order: BTreeMap<(Instant, Vec<u8>), RelPath>,
}

impl OpenFiles {
    /// The file was taken in while somebody writes to it.
    pub(super) fn follow(&mut self, path: &RelPath) {
        self.follow_from(path, Instant::now());
    }

    fn follow_from(&mut self, path: &RelPath, now: Instant) {
        if self.due.len() < FILES_MAX && !self.due.contains_key(path) {
            self.due.insert(path.clone(), now + PAUSE);
            self.order.insert((now + PAUSE, path.join_bytes()), path.clone());
        }
    }

    /// True if it is known to stay open.
    pub(super) fn follows(&self, path: &RelPath) -> bool {
        self.due.contains_key(path)
    }

    /// When one is to be looked at next.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.order.first_key_value().map(|((at, _), _)| *at)
    }

    /// One that is to be looked at by now. It is followed no more.
    fn take_due(&mut self, now: Instant) -> Option<RelPath> {
        let first = self.order.first_entry().filter(|first| first.key().0 <= now)?;
        let path = first.remove();
        self.due.remove(&path);
        Some(path)
    }
}

impl Engine {
    /// Looks at those that are due, and follows them on while they are open.
    pub(super) fn look_at_open_files(&mut self) -> Result<(), Fail> {
        let now = Instant::now();
        self.copies.expire(now);
        while let Some(path) = self.open_files.take_due(now) {
            let Some((name, parents)) = path.split_last() else { continue };
            let open = self.volume.dir(parents, None).map(|dir| dir.writers(name));
            self.look_at_path_soon(&path)?;
            if matches!(open, Ok(Writers::Some)) {
                self.open_files.follow_from(&path, now);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_core::Name;

    fn path(text: &str) -> RelPath {
        RelPath(vec![Name::new(text.as_bytes()).unwrap()])
    }

    #[test]
    fn each_is_due_once_a_pause_in_order() {
        let (mut files, start) = (OpenFiles::default(), Instant::now());
        files.follow_from(&path("b"), start);
        files.follow_from(&path("a"), start + Duration::from_secs(1));
        files.follow_from(&path("b"), start + Duration::from_secs(5));
        assert_eq!(files.next_look(), Some(start + PAUSE));
        assert!(files.take_due(start).is_none());
        let late = start + 2 * PAUSE;
        assert_eq!(files.take_due(late), Some(path("b")));
        assert_eq!(files.take_due(late), Some(path("a")));
        assert!(files.take_due(late).is_none() && files.next_look().is_none());
    }

    #[test]
    fn no_more_than_a_bound_are_followed() {
        let mut files = OpenFiles::default();
        (0..FILES_MAX + 10).for_each(|i| files.follow(&path(&i.to_string())));
        assert_eq!(files.order.len(), FILES_MAX);
    }
}
