//! Where the command meets the engine.

pub(crate) use driftless_node::session::{StopFlag, run};
