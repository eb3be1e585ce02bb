//! The real command on real directories: what a user would see, from outside.

// Helpers of tests are tests; clippy only knows those that are marked.
#![allow(clippy::unwrap_used)]

mod active_passive;
mod busy;
mod common;
mod continuous;
mod crash;
mod deltas;
mod dir_times;
mod doctor;
mod dry_run;
mod fingerprints;
mod guards;
mod hostile;
mod joining;
mod latency;
mod lost;
mod mounts;
mod netns;
mod nowhere;
mod once;
mod operations;
mod power;
mod queries;
mod resources;
mod rollback;
mod settings;
mod shows;
mod sites;
mod ssh;
mod stress;
mod terminal;
mod trash;
mod trust;
mod waiting;
mod writers;
