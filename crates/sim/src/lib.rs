//! The simulator: seeded worlds of replicas that run the production core (merge, effective tree, local changes,
//! planner, link machines, collection, adoption) over indexes and disks in memory, on a virtual clock and a
//! network with faults. While everything goes wrong nothing may get lost or out of shape; once faults end,
//! everything has to come to rest and be the same everywhere.
//!
//! A seed names one history of one world on every machine and for ever: what fails is replayed bit by bit, and shrunk
//! to the shortest list of steps found that still fails.
//!
//! The parts: `scene` names the worlds and makes their rules and steps from a seed; `world` lets steps happen;
//! `check` says what must be true; `site` is a replica with its user; `disk` a POSIX tree; `planned` and `naive` bring
//! a disk to what its tree says, by the planner and (the reference) by building it anew; [`run`] goes through
//! seeds on all processors; [`report`] prints what came out.

// A broken assumption of the simulator is a failure of the run and is reported with its seed, as any panic is.
#![allow(clippy::unwrap_used)]
// Modules are private: `pub` in them says what is used beyond the module.
#![allow(unreachable_pub)]

mod check;
#[cfg(test)]
mod corpus;
mod crash;
mod crawl;
mod disk;
pub mod hostile;
mod memo;
#[cfg(feature = "mutants")]
pub mod mutants;
mod naive;
mod network;
mod planned;
mod power;
mod prng;
mod refused;
pub mod report;
pub mod run;
mod scene;
mod site;
mod stats;
#[cfg(test)]
mod traces;
mod world;

pub use scene::Scene;
