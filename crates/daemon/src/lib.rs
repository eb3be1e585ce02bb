//! A node: one process that keeps any number of volumes, knows other sites by their keys, and has links that are made, paused
//! and removed while it runs.
//!
//! - [`settings`], [`schedule`], [`units`]: what can be set of volumes and links.
//! - [`config`]: the TOML file; what of it may be changed while the process runs.
//! - [`records`]: what is remembered between runs: volumes, sites, links, invitations.
//! - [`members`]: who belongs to which volume, as all its members see it.
//! - [`token`], [`preface`]: the invitation, and the first words on a connection.
//! - [`node`]: the process: owns the records and everything that runs.
//! - [`link`]: one thread for each link: connects, waits, passes messages on.
//! - [`listen`]: answers connections: joins, questions, links.
//! - [`control`]: the local socket that commands use.
//! - [`status`], [`metrics`]: how everything stands, for people and for Prometheus.
//! - [`http`], [`notify`], [`log`]: the admin endpoint, the service manager, the log.
//!
//! Threads, not tasks: a node has some tens of links, and what is slow in it is disks and the network.

mod accept;
pub mod config;
pub mod control;
#[cfg(test)]
mod fuzz;
mod http;
mod link;
mod listen;
pub mod log;
mod members;
mod metrics;
pub mod node;
mod notify;
mod preface;
mod records;
pub mod schedule;
pub mod settings;
pub mod status;
pub mod token;
pub mod units;

pub use control::{Answer, Ask, ask};
pub use node::{Node, NodeError, init, recorded};
pub use records::{Admission, Mode};
