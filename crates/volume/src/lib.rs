//! Directory volumes: seeing what is in a tree, reading it, changing it. System calls only; what they mean is
//! decided elsewhere.
//!
//! A [`Directory`] is opened once; it gives [`DirFd`]s, and everything else happens relative to one of these and a
//! single name. Looking: [`DirFd::list`], [`DirFd::look`]. Reading: [`DirFd::hash`], [`DirFd::open_read`].
//! Changing: an inode is made whole in the private directory ([`Directory::stage_small`] and its siblings), made
//! durable ([`Directory::make_durable`]), and shown by a rename ([`Directory::place`]). Nothing destroys but a rename
//! into limbo, and limbo is emptied only when told to ([`Directory::drop_limbo`]). Hearing of changes:
//! [`Watcher`].
//!
//! What is deliberately absent: any memory of what was seen, any retry, any policy.

mod apply;
mod attrs;
mod busy;
mod capability;
pub mod crash;
mod directory;
mod dirfd;
mod doctor;
mod error;
#[cfg(test)]
mod fallbacks;
pub mod fault;
mod key;
mod limbo;
mod listing;
mod patch;
mod quarantine;
mod read;
mod recover;
mod stage;
mod staged_dir;
mod stat;
mod sys;
mod trash;
mod watch;

pub use apply::Placed;
pub use capability::{Capabilities, Created};
pub use directory::{Directory, Located, Marker, OpenOptions, Part, PrivateEntry, dirs_open_for_limit};
pub use dirfd::{DirFd, Seen};
pub use doctor::{Examination, examine, file_system_of};
pub use driftless_core::fitness::{Finding, Fitness, FsClass, Weight};
pub use driftless_core::limbo::{Shown, Writers};
pub use driftless_core::local::Looked;
pub use driftless_core::plan::{Outcome, Victim};
pub use error::{ApplyError, Reason, VolumeError};
pub use key::Identity;
pub use limbo::Limbo;
pub use listing::Listing;
pub use patch::Patch;
pub use quarantine::{Quarantine, QuarantineBatch};
pub use read::{DigestSoFar, HashOutcome, Hashed, ReadHandle, open_source};
pub use stage::{SYNC_SINGLY_MAX, StageId, Staged, StagedWriter};
pub use staged_dir::StagedDir;
pub use stat::MountId;
pub use sys::local_time;
pub use trash::{Taken, Trash, TrashItem, TrashWriter, sum_of as trash_sum};
pub use watch::{Delivery, Hint, WatchMode, WatchOptions, Watcher};
