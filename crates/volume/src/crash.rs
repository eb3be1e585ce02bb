//! Named moments at which a test ends the process, or cuts the power: what is true of the disk and of the index between
//! two steps is what a restart has to cope with.
//!
//! Compiled in with the feature `crash-points` only; else [`at`] does nothing. `DRIFTLESS_CRASH_AT=NAME:N` says where:
//! when point NAME is passed for the N-th time. There `DRIFTLESS_CRASH_HOOK`, if set, is run by a shell and waited for
//! (it may shut a file system down); then the process ends itself with SIGKILL.

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A moment between two steps.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All of them, in the order in which a change passes them.
            pub const ALL: &[Point] = &[$(Point::$point),*];

            /// Its name in `DRIFTLESS_CRASH_AT`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// A user's change is recorded, not durably.
    LocalRecorded = "local-recorded",
    /// Records of users' changes are durable; nothing of them has left.
    LocalDurable = "local-durable",
    /// What was received is merged, not durably.
    Merged = "merged",
    /// What was merged is durable and applied; the sender has no receipt.
    ReceiptDue = "receipt-due",
    /// Contents are staged, not durably.
    Staged = "staged",
    /// Staged contents are durable; no intent row speaks of them.
    StagedDurable = "staged-durable",
    /// Intent rows are durable; nothing was moved.
    Intended = "intended",
    /// A directory was made; it has no attributes.
    DirMade = "dir-made",
    /// An inode was moved to a free name.
    Moved = "moved",
    /// An inode was exchanged with its victim, which nobody has looked at again.
    Exchanged = "exchanged",
    /// A victim that was looked at again is in limbo.
    InLimbo = "in-limbo",
    /// A removed file is in limbo and has not been looked at again.
    Removed = "removed",
    /// A directory was removed.
    DirRemoved = "dir-removed",
    /// A new link waits in the private directory.
    Linked = "linked",
    /// An inode was moved out of the way.
    Parked = "parked",
    /// All moves of a plan are done, none is recorded.
    MovesDone = "moves-done",
    /// The moves of a plan are recorded, not durably.
    MovesRecorded = "moves-recorded",
    /// A seal begins.
    SealDue = "seal-due",
    /// The file system has been synced; the records of what was done may not be durable.
    SealSynced = "seal-synced",
    /// The records are durable; limbo has everything.
    SealHardened = "seal-hardened",
    /// A file in limbo was dropped.
    LimboDropped = "limbo-dropped",
    /// Limbo was emptied; the intent rows are there.
    SealDropped = "seal-dropped",
    /// The seal is over.
    Sealed = "sealed",
    /// A restart has judged the intent rows.
    IntentsJudged = "intents-judged",
    /// A restart has done again what was not done.
    IntentsRedone = "intents-redone",
}

/// Passes a point.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn at(_: Point) {}

#[cfg(feature = "crash-points")]
pub use armed::at;

#[cfg(feature = "crash-points")]
mod armed {
    use super::Point;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Where the process ends.
    struct Armed {
        point: Point,
        /// Passings that are left; the last one is the end.
        left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    /// Passes a point: the process ends here if it was told to.
    pub fn at(point: Point) {
        let Some(armed) = ARMED.get_or_init(from_environment) else { return };
        if armed.point == point && armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            end(point);
        }
    }

    fn from_environment() -> Option<Armed> {
        let text = std::env::var("DRIFTLESS_CRASH_AT").ok()?;
        let armed = parse(&text);
        if armed.is_none() {
            let names: Vec<&str> = Point::ALL.iter().map(|p| p.name()).collect();
            eprintln!("DRIFTLESS_CRASH_AT={text} is not NAME:N with N from 1 and one of {}", names.join(" "));
            std::process::abort();
        }
        armed
    }

    fn parse(text: &str) -> Option<Armed> {
        let (name, n) = text.split_once(':')?;
        let point = *Point::ALL.iter().find(|p| p.name() == name)?;
        let left = n.parse().ok().filter(|n| *n > 0)?;
        Some(Armed { point, left: AtomicU64::new(left) })
    }

    fn end(point: Point) -> ! {
        eprintln!("crash point {}", point.name());
        if let Some(hook) = std::env::var_os("DRIFTLESS_CRASH_HOOK") {
            // Whatever becomes of the hook, the process ends here.
            let _ = std::process::Command::new("/bin/sh").arg("-c").arg(hook).status();
        }
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort() // not reached: nobody survives that signal
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_named_with_a_count() {
            let armed = parse("seal-synced:3").unwrap();
            assert_eq!((armed.point, armed.left.into_inner()), (Point::SealSynced, 3));
            for wrong in ["", "sealed", "sealed:", "sealed:0", "sealed:x", "nowhere:1"] {
                assert!(parse(wrong).is_none(), "{wrong}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Point;
    use std::collections::HashSet;

    #[test]
    fn names_differ() {
        let names: HashSet<&str> = Point::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
