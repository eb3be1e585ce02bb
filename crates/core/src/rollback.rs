//! Telling a tree that was put back to an earlier state (restored from a backup, emptied by a job that went wrong) from what
//! users do (design section 6, *Guards*).
//!
//! No single file proves anything: people do put back an older file. Many at once, with removals of what came since, are
//! no edits, and taken for edits they would replace what is newer everywhere else. So such changes are counted before
//! anything is recorded of them, and above a limit a person is asked.
//!
//! What does not count: new contents with new times, whatever they are (a checkout of an older commit); other times on the same
//! content (`touch`); files with old times at names that were free (`cp -a`).

use crate::disk::Fingerprint;
use crate::meta::Digest;

/// How a leaf was put back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Backward {
    /// Other content, with an earlier modification time than is recorded.
    Older,
    /// A file that had content has none.
    Emptied,
    /// The same content with an earlier modification time: goes with the others, proves nothing.
    TimeOnly,
}

impl Backward {
    /// True if many of these mean that the tree was put back.
    pub fn counts(self) -> bool {
        self != Backward::TimeOnly
    }
}

/// How the change from what was recorded of a leaf (`was`, with its content's identity) to what it is `now` goes back;
/// `None` if it does not.
///
/// Here, and nowhere else, times are compared for order: the outcome decides what is asked, never what is kept.
pub fn backward(was: (&Fingerprint, &Digest), now: (&Fingerprint, &Digest)) -> Option<Backward> {
    let ((was, was_identity), (now, identity)) = (was, now);
    if was_identity != identity && was.size > 0 && now.size == 0 {
        return Some(Backward::Emptied);
    }
    if now.mtime >= was.mtime {
        return None;
    }
    Some(if was_identity == identity { Backward::TimeOnly } else { Backward::Older })
}

/// What was found at once, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// [`Backward::Older`].
    pub older: u64,
    /// [`Backward::Emptied`].
    pub emptied: u64,
    /// Recorded, and not there any more.
    pub gone: u64,
}

impl Tally {
    /// Changes that go back.
    pub fn backward(self) -> u64 {
        self.older.saturating_add(self.emptied)
    }

    /// All of them.
    pub fn sum(self) -> u64 {
        self.backward().saturating_add(self.gone)
    }
}

/// What they are taken for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// What users do: recorded.
    Edits,
    /// A mass removal, with a few edits: the edits are recorded, the removals are another guard's.
    Removals,
    /// The tree was put back: nothing of it is recorded unasked.
    Rollback,
}

/// Of more removals than are allowed at once, fewer changes than one in so many that go back are edits beside a removal.
const BESIDE_REMOVALS: u64 = 10;

/// Judges what was found at once. `limit`: so many changes are users'.
pub fn judge(tally: Tally, limit: u64) -> Verdict {
    if tally.sum() <= limit {
        return Verdict::Edits;
    }
    if tally.backward() == 0 {
        return Verdict::Removals;
    }
    let beside = tally.backward().saturating_mul(BESIDE_REMOVALS) <= tally.gone;
    if beside && tally.gone > limit { Verdict::Removals } else { Verdict::Rollback }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Time;
    use proptest::prelude::*;

    fn print(size: u64, sec: i64) -> Fingerprint {
        let mtime = Time { sec, nsec: 5 };
        Fingerprint { size, mtime, ctime: Time { sec: 1_000, nsec: 0 } }
    }

    fn seen(was: (u64, i64, &[u8]), now: (u64, i64, &[u8])) -> Option<Backward> {
        let (a, b) = (Digest::of(was.2), Digest::of(now.2));
        backward((&print(was.0, was.1), &a), (&print(now.0, now.1), &b))
    }

    #[test]
    fn single_changes() {
        assert_eq!(seen((3, 50, b"new"), (3, 40, b"old")), Some(Backward::Older));
        assert_eq!(seen((3, 50, b"new"), (0, 60, b"")), Some(Backward::Emptied), "by a job, now");
        assert_eq!(seen((3, 50, b"new"), (0, 40, b"")), Some(Backward::Emptied));
        assert_eq!(seen((3, 50, b"new"), (3, 40, b"new")), Some(Backward::TimeOnly), "touch -d");
        assert_eq!(seen((3, 50, b"new"), (3, 60, b"old")), None, "a checkout");
        assert_eq!(seen((3, 50, b"new"), (3, 50, b"old")), None, "times set to one and the same");
        assert_eq!(seen((0, 50, b""), (0, 40, b"")), Some(Backward::TimeOnly));
        assert_eq!(seen((0, 50, b""), (0, 60, b"")), None);
    }

    #[test]
    fn times_below_a_second_count() {
        let at = |nsec| Fingerprint { mtime: Time { sec: 1, nsec }, ..print(1, 1) };
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(backward((&at(2), &a), (&at(1), &b)), Some(Backward::Older));
        assert_eq!(backward((&at(1), &a), (&at(2), &b)), None);
    }

    #[test]
    fn a_restore_is_told_from_a_removal() {
        let tally = |older, emptied, gone| Tally { older, emptied, gone };
        assert_eq!(judge(tally(300, 0, 0), 100), Verdict::Rollback);
        assert_eq!(judge(tally(0, 300, 0), 100), Verdict::Rollback);
        assert_eq!(judge(tally(60, 0, 60), 100), Verdict::Rollback, "together");
        assert_eq!(judge(tally(3, 0, 300), 100), Verdict::Removals);
        assert_eq!(judge(tally(0, 0, 300), 100), Verdict::Removals);
        assert_eq!(judge(tally(200, 0, 300), 100), Verdict::Rollback);
        assert_eq!(judge(tally(50, 20, 30), 100), Verdict::Edits, "at the limit");
    }

    proptest! {
        #[test]
        fn nothing_below_the_limit_is_held(older: u64, emptied: u64, gone: u64, limit: u64) {
            let tally = Tally { older, emptied, gone };
            let verdict = judge(tally, limit);
            prop_assert_eq!(verdict == Verdict::Edits, tally.sum() <= limit);
            if tally.backward() == 0 {
                prop_assert_ne!(verdict, Verdict::Rollback);
            }
        }

        /// What is put back besides makes nothing pass.
        #[test]
        fn more_of_it_is_never_less(
            older in 0..10_000u64, emptied in 0..10_000u64, gone in 0..10_000u64, more in 0..10_000u64,
            limit in 0..10_000u64,
        ) {
            if judge(Tally { older, emptied, gone }, limit) == Verdict::Rollback {
                prop_assert_eq!(judge(Tally { older: older + more, emptied, gone }, limit), Verdict::Rollback);
                prop_assert_eq!(judge(Tally { older, emptied: emptied + more, gone }, limit), Verdict::Rollback);
                prop_assert_ne!(judge(Tally { older, emptied, gone: gone + more }, limit), Verdict::Edits);
            }
        }

        /// Removals alone beyond the limit are held by one guard or the other.
        #[test]
        fn removals_never_pass_by_this(older in 0..500u64, gone in 0..500u64, limit in 0..500u64) {
            let verdict = judge(Tally { older, emptied: 0, gone }, limit);
            if gone > limit {
                prop_assert_ne!(verdict, Verdict::Edits);
            }
        }

        #[test]
        fn what_is_not_older_and_not_empty_is_no_way_back(
            was in (any::<u64>(), 0..1_000i64), now in (1..u64::MAX, 0..1_000i64), same: bool,
        ) {
            let (a, b) = (Digest::of(b"a"), Digest::of(if same { b"a" } else { b"b" }));
            let found = backward((&print(was.0, was.1), &a), (&print(now.0, now.1), &b));
            prop_assert_eq!(found.is_none(), now.1 >= was.1);
        }
    }
}
