//! Where the command meets the engine.

use crossbeam_channel::Sender;
use driftless_node::api::{Event, Outcome, SessionError, SyncOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks a session to end.
#[derive(Clone, Default)]
pub(crate) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks.
    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs a session.
pub(crate) fn run(
    _options: SyncOptions,
    _events: Sender<Event>,
    _stop: StopFlag,
) -> Result<Outcome, SessionError> {
    Err(SessionError { what: "this build has no engine yet".into(), advice: "use a later one".into() })
}
