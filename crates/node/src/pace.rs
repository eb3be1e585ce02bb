//! Holds messages between two local ends back so that their contents keep to a rate (`--bwlimit`). Over SSH the
//! carrier does the same to bytes on the wire.
//!
//! Messages keep their order. A message leaves when all that left before it has been paid for: so a small one after a
//! quiet time leaves at once, and what is large is paid for afterwards.

use driftless_core::link::Message;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// One direction of a link.
#[derive(Default)]
pub(crate) struct Pacer {
    bytes_per_s: Option<u64>,
    queue: VecDeque<Message>,
    /// When everything that has left is paid for.
    paid_at: Option<Instant>,
}

impl Pacer {
    /// At most so many bytes per second; `None` = at once.
    pub(crate) fn new(bytes_per_s: Option<u64>) -> Pacer {
        Pacer { bytes_per_s, ..Pacer::default() }
    }

    /// Takes a message to be passed on.
    pub(crate) fn push(&mut self, message: Message) {
        self.queue.push_back(message);
    }

    /// The next message that may leave now.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Message> {
        if self.paid_at.is_some_and(|at| at > now) {
            return None;
        }
        let message = self.queue.pop_front()?;
        if let Some(rate) = self.bytes_per_s {
            let cost = Duration::from_secs_f64(content_bytes(&message) as f64 / rate.max(1) as f64);
            self.paid_at = Some(now + cost);
        }
        Some(message)
    }

    /// When [`Pacer::poll`] has something, if anything waits.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        self.paid_at.filter(|_| !self.queue.is_empty())
    }
}

/// What is counted: contents, and a guess at an entry's state.
fn content_bytes(message: &Message) -> u64 {
    const STATE_BYTES: u64 = 100;
    match message {
        Message::Piece(piece) => piece.bytes.len() as u64,
        Message::Batch(batch) => {
            let inline: u64 = batch.inline.iter().map(|i| i.bytes.len() as u64).sum();
            inline + STATE_BYTES * batch.entries.len() as u64
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftless_core::id::{Dot, EntryId};
    use driftless_core::link::Piece;

    fn piece(len: usize) -> Message {
        Message::Piece(Piece {
            entry: EntryId::ROOT,
            version: Dot::default(),
            offset: 0,
            bytes: vec![0; len],
        })
    }

    #[test]
    fn a_rate_is_kept_and_order_too() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Some(1000));
        for len in [500, 1000, 1] {
            pacer.push(piece(len));
        }
        let mut left = Vec::new();
        for ms in (0..=2000).step_by(100) {
            while let Some(Message::Piece(p)) = pacer.poll(start + Duration::from_millis(ms)) {
                left.push((ms, p.bytes.len()));
            }
        }
        assert_eq!(left, [(0, 500), (500, 1000), (1500, 1)]);
        assert_eq!(pacer.poll_at(), None);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pacer = Pacer::new(None);
        pacer.push(piece(1 << 20));
        pacer.push(piece(1));
        assert!(pacer.poll(Instant::now()).is_some() && pacer.poll(Instant::now()).is_some());
    }
}
