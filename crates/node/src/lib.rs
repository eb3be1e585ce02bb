//! The engine: one owner per volume, links, sessions.

pub mod api;
pub mod control;
mod engine;
pub mod filter;
pub mod needs;
mod outqueue;
mod overlay;
mod pace;
pub mod query;
pub mod remote;
pub mod replica;
pub mod roots;
pub mod session;
pub mod sites;
pub mod trust;

pub use engine::accept_lost;
