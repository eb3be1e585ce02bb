//! Whether a line is so fast that making payloads shorter would only hold them up.
//!
//! One processor makes some 400 MB a second of sources a sixth of that. A line that takes more than [`FAST_BYTES_PER_S`] is
//! not what a link waits for, and compressing only takes processors from who works beside it: a first copy of sources over such a line
//! took a fifth longer with it than without.

use crate::sys::{self, TcpInfo};
use std::fmt;
use std::net::TcpStream;
use std::sync::Arc;

/// Bytes per second beyond which a line is fast: above what any line of 2 gigabit gets.
const FAST_BYTES_PER_S: u64 = 256_000_000;
/// Who answers within this is in the same place: until such a line shows how fast it is, it counts as fast. What leaves before that is little for
/// a line of a gigabit, and who compresses nothing needs no memory for it.
const NEAR_RTT_US: u32 = 1000;
/// Bytes written between two looks: a look is one call of the system.
const LOOK_BYTES: usize = 1 << 20;

/// Asks the kernel about the connection that frames leave by.
#[derive(Clone)]
pub struct Gauge(Arc<TcpStream>);

impl Gauge {
    pub(crate) fn new(socket: TcpStream) -> Gauge {
        Gauge(Arc::new(socket))
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauge")
    }
}

/// What is known of a line.
pub(crate) struct Line {
    gauge: Option<Gauge>,
    speed: Speed,
    unlooked_bytes: usize,
}

impl Line {
    /// Without a gauge a line counts as slow.
    pub(crate) fn new(gauge: Option<Gauge>) -> Line {
        let first = gauge.as_ref().and_then(|gauge| sys::tcp_info(&gauge.0).ok());
        Line { gauge, speed: first.map(Speed::at_first).unwrap_or_default(), unlooked_bytes: 0 }
    }

    /// After `bytes` more have been written: is it fast?
    pub(crate) fn is_fast(&mut self, bytes: usize) -> bool {
        self.unlooked_bytes += bytes;
        if self.unlooked_bytes >= LOOK_BYTES
            && let Some(gauge) = &self.gauge
        {
            self.unlooked_bytes = 0;
            match sys::tcp_info(&gauge.0) {
                Ok(info) => self.speed.note(info),
                // Nothing is known of it then, now or later.
                Err(_) => (self.gauge, self.speed) = (None, Speed::default()),
            }
        }
        self.speed.fast
    }
}

/// What follows from what the kernel said so far.
#[derive(Default)]
struct Speed {
    fast: bool,
    /// (busy, window full) at the last look, in microseconds.
    seen_us: (u64, u64),
}

impl Speed {
    fn at_first(info: TcpInfo) -> Speed {
        Speed { fast: info.least_rtt_us <= NEAR_RTT_US, ..Speed::default() }
    }

    fn note(&mut self, info: TcpInfo) {
        let busy_us = info.busy_us.saturating_sub(self.seen_us.0);
        let window_full_us = info.window_full_us.saturating_sub(self.seen_us.1);
        self.seen_us = (info.busy_us, info.window_full_us);
        if info.delivery_bytes_per_s > FAST_BYTES_PER_S {
            self.fast = true;
        } else if !info.app_limited && window_full_us <= busy_us / 2 {
            // Neither this end had too little to send, nor did the other one take it too slowly: that is the line.
            self.fast = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(delivery_bytes_per_s: u64, app_limited: bool, busy_us: u64, window_full_us: u64) -> TcpInfo {
        TcpInfo { delivery_bytes_per_s, app_limited, least_rtt_us: u32::MAX, busy_us, window_full_us }
    }

    #[test]
    fn only_the_line_itself_counts() {
        let mut speed = Speed::default();
        assert!(!speed.fast, "until it shows");
        speed.note(info(25_000_000, false, 1000, 0));
        assert!(!speed.fast);
        speed.note(info(1_000_000_000, true, 2000, 0));
        assert!(speed.fast, "if there had been more to send, it would not have been slower");
        speed.note(info(1_000_000, true, 3000, 0));
        assert!(speed.fast, "there was little to send");
        speed.note(info(50_000_000, false, 5000, 1500));
        assert!(speed.fast, "the other end took it slowly");
        speed.note(info(50_000_000, false, 7000, 1500));
        assert!(!speed.fast, "now it is the line");
        speed.note(info(50_000_000, false, 9000, 3500));
        assert!(!speed.fast);
    }

    #[test]
    fn who_is_near_is_fast_until_the_line_shows() {
        let first = |least_rtt_us| Speed::at_first(TcpInfo { least_rtt_us, ..info(0, true, 0, 0) });
        assert!(!first(20_000).fast);
        assert!(!first(u32::MAX).fast, "nothing is known");
        let mut near = first(200);
        assert!(near.fast);
        near.note(info(110_000_000, false, 10_000, 0));
        assert!(!near.fast, "a gigabit");
    }

    #[test]
    fn without_a_gauge_nothing_is_fast() {
        assert!(!Line::new(None).is_fast(usize::MAX));
    }
}
