//! Taking clients: one thread waits for them, each gets one of its own, and there are never more than so many.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A pause after a client could not be taken (no descriptors left, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Says that no more clients are to be taken. Whoever has set it wakes the thread by one more client.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Serves the clients that `accept` gives, at most `clients_max` at once: others are hung up on, and come again.
///
/// # Errors
/// If no thread can be started.
pub(crate) fn start<S: Send + 'static>(
    name: &'static str,
    clients_max: usize,
    accept: impl Fn() -> io::Result<S> + Send + 'static,
    serve: impl Fn(S) + Send + Sync + 'static,
) -> io::Result<Stop> {
    let stop = Stop::default();
    let stopped = stop.clone();
    let (serve, clients) = (Arc::new(serve), Arc::new(AtomicUsize::new(0)));
    std::thread::Builder::new().name(name.into()).spawn(move || {
        loop {
            let client = accept();
            if stopped.0.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else {
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            if clients.fetch_add(1, Ordering::SeqCst) >= clients_max {
                clients.fetch_sub(1, Ordering::SeqCst);
                continue; // hung up: whoever wants so much comes again
            }
            let (serve, served) = (serve.clone(), Served(clients.clone()));
            let thread = std::thread::Builder::new().name(format!("{name}-client")).spawn(move || {
                serve(client);
                drop(served);
            });
            // No thread: the client sees that it was hung up on.
            drop(thread);
        }
    })?;
    Ok(stop)
}

/// A client that is counted as long as this lives, however its thread ends.
struct Served(Arc<AtomicUsize>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
