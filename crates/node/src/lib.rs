//! The engine: one owner per volume, links, sessions.

pub mod api;
pub mod needs;
