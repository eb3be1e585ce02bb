//! The engine: one owner per volume, links, sessions.

pub mod api;
pub mod control;
pub mod needs;
pub mod query;
pub mod roots;
pub mod sites;
