//! The index of a volume on disk: [`driftless_core::rows::Store`] on redb, one file per volume.
//!
//! Invariants:
//! - A commit is atomic and durable when [`Store::commit`](driftless_core::rows::Store::commit)
//!   returns. After a failed one the instance writes no more: what reached the disk is unknown
//!   until the file is opened again.
//! - A file of a newer format, or one that is no index, is refused before a byte of it is changed.
//! - A disk that is full does not end an index that was opened for a replica ([`Store::has_room`](driftless_core::rows::Store::has_room)).
//! - A damaged file gives [`IndexError::Damaged`], never an empty index: an index that silently
//!   starts anew would take every file of the volume for new.
//!
//! [`state_dir`] says where index files live, [`lock`] keeps two processes from using one of them.

mod batch;
mod guard;
pub mod lock;
mod reserve;
mod row;
mod snapshot;
pub mod state_dir;
mod store;

pub use lock::{Lock, LockError};
pub use state_dir::{ReplicaDir, StateDir, StateDirError};
pub use store::{FORMAT_VERSION, Index, IndexError, OpenOptions};
