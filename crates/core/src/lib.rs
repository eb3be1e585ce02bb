//! The pure heart of Driftless: what an entry is, how two states of it merge, which tree follows
//! from all entries, what has to be told to a peer, and what has to be done to a disk.
//!
//! Nothing here does I/O, reads a clock, draws a random number or awaits. Time, randomness, bytes
//! and index reads come in as arguments; states, messages and plans go out as values. So the same
//! code runs in the daemon and in a simulator.
//!
//! The flow, module by module: a change seen on a disk ([`disk`]) is translated into new entry states
//! ([`local`]); a state that comes from a peer is merged ([`entry`], [`tree::receive`]); both go through
//! one transaction ([`tx`]) on the rows of the index ([`rows`], [`codec`]); the effective tree
//! ([`tree`]) says what should be shown; the planner ([`plan`]) compares that with what the disk
//! is known to show; links ([`link`]) tell peers.

pub mod adopt;
pub mod codec;
pub mod collect;
pub mod cut;
pub mod disk;
pub mod entry;
pub mod fitness;
pub mod id;
pub mod intent;
pub mod limbo;
pub mod link;
pub mod local;
pub mod lost;
pub mod membership;
pub mod memdisk;
pub mod meta;
pub mod mutant;
pub mod plan;
pub mod recipe;
pub mod rollback;
pub mod rows;
pub mod trash;
pub mod tree;
pub mod tx;
pub mod unsealed;
pub mod vv;

pub use disk::{Bind, Claim, Fingerprint, Node, NodeKey, Place, Recorded, Wanted};
pub use entry::{At, Entry, Link, Version};
pub use id::{Dot, EntryId, Kind, LinkId, Name, NameError, ReplicaId, Stamp};
pub use meta::{Attrs, Content, Digest, Time};
pub use tx::{Error, Result, Tx};
pub use vv::VersionVector;
