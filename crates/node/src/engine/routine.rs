//! Looking at the whole tree now and then, although nothing was heard of it.
//!
//! No event tells of what is written to a file that stays open, or to pages that stay mapped: databases and disk images do
//! both for months. One that was found open is followed ([`super::open_files`]); to find it, and whatever else no event
//! told of, the tree is crawled from time to time, after everything else that there is to do.

use super::Engine;
use crate::api::Shared;
use std::time::{Duration, Instant};

/// A crawl takes at most this part of the time, however large the tree is.
const SHARE_MAX: u32 = 100;

/// See the module.
pub(super) struct Routine {
    every: Option<Duration>,
    /// When the next crawl is due; none before the first one is over.
    due: Option<Instant>,
    /// When the present one began, if it is one of these.
    began: Option<Instant>,
}

impl Routine {
    pub(super) fn new(shared: &Shared) -> Routine {
        let ends = shared.once || shared.dry_run;
        let every = (shared.crawl_every_s > 0 && !ends).then(|| Duration::from_secs(shared.crawl_every_s));
        Routine { every, due: None, began: None }
    }

    /// When a crawl is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// True while a crawl is under way that nothing asked for.
    pub(super) fn is_under_way(&self) -> bool {
        self.began.is_some()
    }

    /// True if a crawl is to begin; it has begun then.
    fn begin(&mut self, now: Instant) -> bool {
        let begins = self.due.is_some_and(|due| due <= now);
        if begins {
            self.due = None;
            self.began = Some(now);
        }
        begins
    }

    /// A crawl is over, whoever asked for it.
    pub(super) fn crawl_over(&mut self, now: Instant) {
        let took = self.began.take().map_or(Duration::ZERO, |began| now.duration_since(began));
        self.due = self.every.map(|every| now + every.max(took * SHARE_MAX));
    }
}

impl Engine {
    /// Begins a crawl if it is time for one; says whether it did.
    pub(super) fn crawl_if_due(&mut self) -> bool {
        let begins = self.pass.is_none() && self.may_plan() && self.routine.begin(Instant::now());
        if begins {
            self.begin_crawl();
        }
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{MaxDelete, OnRollback};

    fn routine(crawl_every_s: u64, once: bool) -> Routine {
        Routine::new(&Shared {
            active_passive: false,
            filters: Vec::new(),
            max_delete: MaxDelete::Default,
            on_rollback: OnRollback::Ask,
            dry_run: false,
            once,
            allow_unsafe_fs: false,
            site_names: (String::new(), String::new()),
            verbose: false,
            trash: None,
            crawl_every_s,
        })
    }

    #[test]
    fn it_is_due_a_while_after_the_last_one() {
        let (mut r, start) = (routine(60, false), Instant::now());
        assert!(r.due().is_none() && !r.begin(start), "not before the first crawl is over");
        r.crawl_over(start);
        assert!(!r.begin(start + Duration::from_secs(59)));
        assert!(r.begin(start + Duration::from_secs(60)) && r.is_under_way());
        assert!(!r.begin(start + Duration::from_secs(300)), "one at a time");
        r.crawl_over(start + Duration::from_secs(62));
        assert!(!r.is_under_way());
        let long = Duration::from_secs(2) * SHARE_MAX;
        assert_eq!(r.due(), Some(start + Duration::from_secs(62) + long), "what takes long comes less often");
    }

    #[test]
    fn there_is_none_in_a_session_that_ends_or_where_it_is_off() {
        for mut r in [routine(60, true), routine(0, false)] {
            r.crawl_over(Instant::now());
            assert!(r.due().is_none());
        }
    }
}
