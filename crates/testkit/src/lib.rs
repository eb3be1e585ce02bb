//! Shared by tests: what a tree is ([`compare`]), trees to begin with ([`grow`](grow::grow)), users who work in them
//! ([`user`]) and a check that nothing they wrote was lost ([`journal`]), small file systems ([`mount`]).
//!
//! Everything random comes from a seed: the same seed gives the same tree and, on a tree that
//! nobody else touches, the same operations.

pub mod compare;
pub mod fuzz;
pub mod grow;
pub mod journal;
pub mod mount;
mod rng;
pub mod user;
pub mod writer;

pub use compare::{CompareOptions, Difference, compare};
pub use grow::{Spec, grow};
pub use journal::{Journal, Lost, check_no_loss, digests_in};
pub use rng::Rng;
pub use user::User;
pub use writer::{WRITER_FILE_LEN, Writer, WriterKind};
