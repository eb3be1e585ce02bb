//! Copies of files that never settle ([`driftless_volume`]: reading busy files): what was recorded of such a file is gone
//! from the file a moment later, so peers fetch it from the copy that was read.
//!
//! A copy has no name and costs nothing at first; as its file changes, the file system keeps the old blocks for it.
//! So there are few, and none longer than somebody asks for it: whoever comes later is told that the file has changed,
//! which makes a newer copy.

use super::RelPath;
use driftless_core::Digest;
use driftless_volume::ReadHandle;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Copies at a time: each keeps a descriptor and, in the worst case, as much disk as its file.
const COPIES_MAX: usize = 16;
/// A copy goes after so long without being asked for.
const KEPT: Duration = Duration::from_secs(600);
/// One that was asked for within this time is on its way to somebody: were a newer one to take its place, a large file
/// would never arrive anywhere.
const SENDING: Duration = Duration::from_secs(10);

struct Copy {
    digest: Digest,
    handle: ReadHandle,
    made: Instant,
    asked: Option<Instant>,
}

impl Copy {
    fn last_use(&self) -> Instant {
        self.asked.unwrap_or(self.made)
    }

    fn is_being_sent(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| now < asked + SENDING)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Copies(HashMap<RelPath, Copy>);

impl Copies {
    /// What was read of the file at `path`, in place of an earlier copy.
    pub(super) fn put(&mut self, path: &RelPath, digest: Digest, handle: ReadHandle, now: Instant) {
        self.expire(now);
        if self.0.len() >= COPIES_MAX
            && !self.0.contains_key(path)
            && let Some(oldest) =
                self.0.iter().min_by_key(|(_, copy)| copy.last_use()).map(|(p, _)| p.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(path.clone(), Copy { digest, handle, made: now, asked: None });
    }

    /// A copy with this content, which somebody asks for.
    pub(super) fn with(&mut self, digest: &Digest, now: Instant) -> Option<&ReadHandle> {
        let copy = self.0.values_mut().find(|copy| copy.digest == *digest)?;
        copy.asked = Some(now);
        Some(&copy.handle)
    }

    /// True if somebody fetches the copy of the file at `path`.
    pub(super) fn is_being_sent(&self, path: &RelPath, now: Instant) -> bool {
        self.0.get(path).is_some_and(|copy| copy.is_being_sent(now))
    }

    /// Lets go of copies that nobody has asked for in a long time.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, copy| now < copy.last_use() + KEPT);
    }

    /// When the next may have to go.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.0.values().map(|copy| copy.last_use() + KEPT).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_core::Name;

    fn path(text: &str) -> RelPath {
        RelPath(vec![Name::new(text.as_bytes()).unwrap()])
    }

    fn handle(dir: &tempfile::TempDir, text: &str) -> (Digest, ReadHandle) {
        let file = dir.path().join(text);
        std::fs::write(&file, text).unwrap();
        (Digest::of(text.as_bytes()), driftless_volume::open_source(&file).unwrap())
    }

    #[test]
    fn one_is_kept_while_it_is_asked_for() {
        let (dir, start) = (tempfile::tempdir().unwrap(), Instant::now());
        let mut copies = Copies::default();
        let (digest, file) = handle(&dir, "a");
        copies.put(&path("f"), digest, file, start);
        assert!(!copies.is_being_sent(&path("f"), start), "nobody has asked yet");
        let later = start + KEPT / 2;
        assert_eq!(copies.with(&digest, later).unwrap().read_at(0, 9).unwrap(), b"a");
        assert!(
            copies.is_being_sent(&path("f"), later) && !copies.is_being_sent(&path("f"), later + SENDING)
        );
        assert!(copies.with(&Digest::of(b"b"), later).is_none());
        copies.expire(start + KEPT);
        assert_eq!(copies.next_expiry(), Some(later + KEPT));
        copies.expire(later + KEPT);
        assert!(copies.with(&digest, later).is_none() && copies.next_expiry().is_none());
    }

    #[test]
    fn there_are_few_and_one_for_a_file() {
        let (dir, start) = (tempfile::tempdir().unwrap(), Instant::now());
        let mut copies = Copies::default();
        for i in 0..COPIES_MAX + 3 {
            let (digest, file) = handle(&dir, &i.to_string());
            copies.put(&path(&i.to_string()), digest, file, start + Duration::from_secs(i as u64));
        }
        assert_eq!(copies.0.len(), COPIES_MAX);
        assert!(!copies.0.contains_key(&path("2")) && copies.0.contains_key(&path("3")), "the oldest went");
        let (digest, file) = handle(&dir, "newer");
        copies.put(&path("5"), digest, file, start + Duration::from_secs(60));
        assert_eq!((copies.0.len(), copies.0[&path("5")].digest), (COPIES_MAX, digest));
    }
}
