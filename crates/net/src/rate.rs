//! A bound on bytes per second: a token bucket that may go into debt, so that a frame larger than the
//! bucket still passes, and what follows waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much unused allowance is kept: 100 ms. Over 30 s that is a third of a percent.
const BURST_S: f64 = 0.1;

/// A bound that may be changed while it is kept to: bytes per second, or none. Copies are the same one.
#[derive(Clone, Debug)]
pub struct Rate(Arc<AtomicU64>);

impl Rate {
    /// At most so many bytes per second; `None` = no bound.
    pub fn new(bytes_per_s_max: Option<u64>) -> Rate {
        let rate = Rate(Arc::default());
        rate.set(bytes_per_s_max);
        rate
    }

    /// From now on.
    pub fn set(&self, bytes_per_s_max: Option<u64>) {
        self.0.store(bytes_per_s_max.map_or(u64::MAX, |n| n.min(u64::MAX - 1)), Ordering::Relaxed);
    }

    /// What is allowed now.
    pub fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|n| *n != u64::MAX)
    }
}

impl Default for Rate {
    fn default() -> Rate {
        Rate::new(None)
    }
}

/// Bytes that have passed, over any number of connections. Copies are the same one.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<[AtomicU64; 2]>);

impl Traffic {
    pub(crate) fn sent(&self, bytes: usize) {
        self.0[0].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.0[1].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Sent and received so far.
    pub fn get(&self) -> (u64, u64) {
        (self.0[0].load(Ordering::Relaxed), self.0[1].load(Ordering::Relaxed))
    }
}

/// A token bucket.
#[derive(Clone, Debug)]
pub struct RateLimit {
    bytes_per_s: f64,
    /// Allowance in bytes; negative = in debt.
    tokens: f64,
    at: Option<Instant>,
}

impl RateLimit {
    /// Allows `bytes_per_s` (at least 1).
    pub fn new(bytes_per_s: u64) -> Self {
        let bytes_per_s = bytes_per_s.max(1) as f64;
        Self { bytes_per_s, tokens: bytes_per_s * BURST_S, at: None }
    }

    /// Takes `bytes` at `now`; they may be sent after the returned time has passed.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        let earned = passed.as_secs_f64() * self.bytes_per_s;
        self.tokens = (self.tokens + earned).min(self.bytes_per_s * BURST_S) - bytes as f64;
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        // A day is longer than anybody waits for one frame, and short enough for every clock.
        Duration::from_secs_f64((-self.tokens / self.bytes_per_s).min(86_400.0))
    }

    /// The allowance.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as allowed for 30 s of made-up time; gives the bytes that passed.
    fn passed_in_30_s(rate: u64, frame: usize) -> f64 {
        let start = Instant::now();
        let (mut limit, mut now, mut sent) = (RateLimit::new(rate), start, 0);
        loop {
            now += limit.take(frame, now);
            if now - start >= Duration::from_secs(30) {
                return sent as f64;
            }
            sent += frame;
        }
    }

    #[test]
    fn thirty_seconds_are_within_five_percent() {
        for rate in [50_000, 1_000_000, 125_000_000] {
            for frame in [100, 16_384, 65_536] {
                let share = passed_in_30_s(rate, frame) / (rate as f64 * 30.0);
                assert!((0.95..=1.05).contains(&share), "{share} at {rate} in frames of {frame}");
            }
        }
    }

    #[test]
    fn a_pause_earns_no_more_than_the_burst() {
        let start = Instant::now();
        let mut limit = RateLimit::new(1000);
        assert_eq!(limit.take(100, start), Duration::ZERO);
        let later = start + Duration::from_secs(3600);
        assert_eq!(limit.take(100, later), Duration::ZERO);
        assert_eq!(limit.take(500, later), Duration::from_millis(500));
        assert_eq!(limit.take(0, start), Duration::from_millis(500), "a clock that stands earns nothing");
    }
}
