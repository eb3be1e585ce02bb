//! What an engine has said to one peer and nobody has taken yet, counted in bytes.
//!
//! Between the engine and whoever writes to the peer are channels without a bound: an engine must not wait for one peer while
//! others have something to say. So it is the engine that keeps to a bound, link by link: it sends no batches and answers no wants
//! while [`OutQueue::is_full`], and goes on when there is room again.

use crate::engine::{LinkId, ToEngine};
use crossbeam_channel::Sender;
use driftless_core::link::Message;
use driftless_net::size_of_message;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// With so many bytes that nobody has taken, nothing is sent that can wait. One more batch, or one more piece, may pass it.
/// Enough for a writer to be never idle; what a connection keeps itself comes on top.
pub(crate) const OUT_BYTES_FULL: usize = 16 << 20;
/// Answers that cannot wait (receipts, refusals) come on top of that. Who has so many of them made and takes none loses the
/// connection: it is no slow peer. Greater than any batch that may have passed [`OUT_BYTES_FULL`].
pub(crate) const OUT_BYTES_MAX: usize = 128 << 20;

/// See the module.
pub(crate) struct OutQueue {
    link: LinkId,
    bytes: AtomicUsize,
    engine: Sender<ToEngine>,
}

impl OutQueue {
    pub(crate) fn new(link: LinkId, engine: Sender<ToEngine>) -> OutQueue {
        OutQueue { link, bytes: AtomicUsize::new(0), engine }
    }

    /// A message is put into it.
    pub(crate) fn add(&self, message: &Message) {
        self.bytes.fetch_add(size_of_message(message), Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes() >= OUT_BYTES_FULL
    }
}

/// A message for a peer. As long as it is not taken it counts against what may wait for that peer.
pub struct Outgoing {
    message: Message,
    share: Share,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.message.fmt(f)
    }
}

struct Share {
    bytes: usize,
    queue: Arc<OutQueue>,
}

impl Outgoing {
    /// One that was [added](OutQueue::add) before.
    pub(crate) fn new(message: Message, queue: &Arc<OutQueue>) -> Outgoing {
        let bytes = size_of_message(&message);
        Outgoing { message, share: Share { bytes, queue: queue.clone() } }
    }

    /// About what it takes in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.share.bytes
    }

    /// Takes it: there is room for others.
    pub fn into_message(self) -> Message {
        self.message
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let before = self.queue.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if before >= OUT_BYTES_FULL && before - self.bytes < OUT_BYTES_FULL {
            // An engine that has ended sends nothing more.
            let _ = self.queue.engine.send(ToEngine::Room(self.queue.link));
        }
    }
}
