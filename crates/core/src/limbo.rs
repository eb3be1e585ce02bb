//! When what was replaced or removed may go for good.
//!
//! A program that had the file open before it went to limbo may still write to it: nothing is dropped before a look
//! has shown that nobody can, or, where the file system cannot tell, before a generous time has passed without a
//! change. What was written to after all is a user's version and goes back into the tree.

use crate::mutant::mutant;

/// What can be known of writers of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Writers {
    /// Nobody has the file open for writing or maps it shared and writable.
    None,
    /// Somebody has.
    Some,
    /// It cannot be told here (not our file, or the file system has no leases).
    Unknown,
}

/// What a look at a file in limbo shows. The writers are asked for before the file is looked at: who is gone by then
/// has written what the look shows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shown {
    /// Nothing is there.
    Nothing,
    /// Another inode than the one that was put there.
    Stranger,
    /// It has other names: whatever is written to it stays, whether this name goes or not.
    Linked,
    /// Length and time as when it was put there.
    Same,
    /// Another length or time.
    Changed,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// It may go.
    Drop,
    /// As [`Verdict::Drop`], if a last look finds the content that was replaced: a store through a mapping may have
    /// left no trace but the content.
    DropIfSame,
    /// Looked at again later.
    Wait,
    /// A user's version: back into the tree.
    GiveBack,
    /// Not ours to touch: kept, and told.
    Leave,
}

/// How long a file stays in limbo where nobody can tell whether it is open: ten minutes, longer than editors and
/// batch jobs usually keep one file open, and bounded because it takes room.
pub const UNKNOWN_WAIT_NS: u64 = 600_000_000_000;

/// Decides about one file that a sync has covered. `waited_ns` is how long it has been there.
pub fn judge(shown: Shown, writers: Writers, waited_ns: u64) -> Verdict {
    match (shown, writers) {
        (Shown::Same | Shown::Changed, Writers::Some) if mutant!(WritersNotAskedFor) => Verdict::Drop,
        (Shown::Nothing | Shown::Linked, _) => Verdict::Drop,
        (Shown::Stranger, _) => Verdict::Leave,
        (Shown::Same | Shown::Changed, Writers::Some) => Verdict::Wait,
        (Shown::Same, Writers::None) => Verdict::Drop,
        (Shown::Same, Writers::Unknown) if waited_ns < UNKNOWN_WAIT_NS => Verdict::Wait,
        (Shown::Same, Writers::Unknown) => Verdict::DropIfSame,
        // If it is still open, its writer goes on in the tree, where the observer follows it.
        (Shown::Changed, Writers::None | Writers::Unknown) => Verdict::GiveBack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_can_write_to_is_never_dropped() {
        for shown in [Shown::Same, Shown::Changed] {
            for waited_ns in [0, UNKNOWN_WAIT_NS, u64::MAX] {
                assert_eq!(judge(shown, Writers::Some, waited_ns), Verdict::Wait);
            }
        }
    }

    #[test]
    fn what_was_written_to_goes_back() {
        for writers in [Writers::None, Writers::Unknown] {
            for waited_ns in [0, UNKNOWN_WAIT_NS] {
                assert_eq!(judge(Shown::Changed, writers, waited_ns), Verdict::GiveBack);
            }
        }
    }

    #[test]
    fn what_nobody_can_tell_of_waits_its_time_and_is_compared() {
        assert_eq!(judge(Shown::Same, Writers::Unknown, 0), Verdict::Wait);
        assert_eq!(judge(Shown::Same, Writers::Unknown, UNKNOWN_WAIT_NS - 1), Verdict::Wait);
        assert_eq!(judge(Shown::Same, Writers::Unknown, UNKNOWN_WAIT_NS), Verdict::DropIfSame);
        assert_eq!(judge(Shown::Same, Writers::None, 0), Verdict::Drop);
    }

    #[test]
    fn a_name_among_several_goes_whoever_writes_and_a_stranger_stays() {
        for writers in [Writers::None, Writers::Some, Writers::Unknown] {
            assert_eq!(judge(Shown::Linked, writers, 0), Verdict::Drop);
            assert_eq!(judge(Shown::Nothing, writers, 0), Verdict::Drop);
            assert_eq!(judge(Shown::Stranger, writers, u64::MAX), Verdict::Leave);
        }
    }
}
