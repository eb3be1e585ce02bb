//! What could not be done yet: the needs list, and trying again.

use super::observe;
use super::{
    Engine, Fail, REMOVAL_WINDOW, RelPath, TRIES_BEFORE_GIVING_UP, pause_ns, retry_pause_ns, steady_ns,
    wall_ns,
};
use crate::api::{Event, PathText, Reason};
use crate::needs::{self, NEVER_NS, Need, Waiter};
use driftless_core::plan::At;
use driftless_core::{EntryId, Name, NodeKey, Tx};
use std::time::{Duration, Instant};

/// What is being tried is due again after this, if nothing comes of it.
const TRYING_NS: u64 = 60_000_000_000;

impl Engine {
    pub(super) fn retry_due(&mut self) -> Result<bool, Fail> {
        let mut worked = false;
        let now = Instant::now();
        self.stay_alive();
        if now.duration_since(self.removal_window_at) >= REMOVAL_WINDOW {
            self.removal_window_at = now;
            self.removals_in_window = 0;
            self.removed_in_window = 0;
        }
        self.expire_trash();
        self.probe_causes()?;
        while let Some(entry) = self.later.first_entry() {
            if *entry.key() > now {
                break;
            }
            for path in entry.remove() {
                self.look_at_path_soon(&path)?;
                worked = true;
            }
        }
        self.look_at_open_files()?;
        self.crawl_for_what_is_elsewhere();
        self.judge_rollback_when_quiet()?;
        let now_ns = steady_ns();
        for w in self.waiting.take_due(now_ns, now_ns + TRYING_NS) {
            match &w {
                Waiter::Entry(id) => {
                    if self.enqueue(*id) {
                        worked = true;
                    }
                }
                Waiter::Path(path) => {
                    let names: Option<Vec<Name>> =
                        path.split(|b| *b == b'/').map(|n| Name::new(n).ok()).collect();
                    if names.is_none() && !self.crawled {
                        continue; // the first crawl tells
                    }
                    let tries = self.waiting.get(&w).map_or(0, |n| n.tries);
                    self.waiting.count_try(&w, now_ns + retry_pause_ns(tries));
                    match names {
                        Some(names) => self.look_at_path_soon(&RelPath(names))?,
                        // The root: held removals are judged again by a crawl.
                        None => self.want_crawl = true,
                    }
                    worked = true;
                }
            }
        }
        Ok(worked)
    }

    pub(super) fn look_at_path_soon(&mut self, path: &RelPath) -> Result<(), Fail> {
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        match self.volume.dir(parents, None) {
            Ok(fd) => {
                if let Ok(Some(s)) = fd.look(name)
                    && s.kind.is_dir()
                {
                    self.lists.insert(s.key);
                }
                self.hints.insert((fd.key().clone(), name.clone()));
            }
            // Gone with its directory: what waited there is looked at wherever it is now.
            Err(e) if observe::is_gone(&e) && self.waiting.contains(&Engine::path_waiter(path)) => {
                let snapshot = self.store.snapshot()?;
                let mut tx = Tx::open(&*snapshot, self.env())?;
                self.settle_path(&mut tx, path)?;
                self.commit_lazily(tx)?;
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// The fingerprint is too young to be trusted: looked at again when it is not.
    pub(super) fn look_again_later(&mut self, path: &RelPath) {
        let tick = Duration::from_nanos(self.volume.capabilities().tick_ns).max(Duration::from_millis(10));
        self.look_again_after(path, tick * 2);
    }

    pub(super) fn look_again_after(&mut self, path: &RelPath, pause: Duration) {
        if self.shared.dry_run {
            return; // records then say what would be, the disk what is: no look may compare the two
        }
        self.later.entry(Instant::now() + pause).or_default().push(path.clone());
    }

    pub(super) fn look_soon(&mut self, dir: NodeKey, name: Name) {
        self.hints.insert((dir, name));
    }

    pub(super) fn list_soon(&mut self, dir: NodeKey) {
        self.lists.insert(dir);
    }

    pub(super) fn list_at_soon(&mut self, at: &At) {
        self.hints.insert((at.dir.clone(), at.name.clone()));
        self.want_crawl = true;
    }

    pub(super) fn enqueue(&mut self, id: EntryId) -> bool {
        let new = self.queued.insert(id);
        if new {
            self.queue.push_back(id);
        }
        new
    }

    pub(super) fn waits(
        &mut self,
        tx: &mut Tx<'_>,
        who: Waiter,
        path: &[u8],
        reason: Reason,
        detail: String,
    ) -> Result<(), Fail> {
        if reason == Reason::TooManyOpen {
            // What is only kept open to be faster makes room.
            self.forget_dirs();
            self.contents.close_served();
        }
        let before = self.waiting.get(&who).cloned();
        let now = wall_ns();
        let tries = before.as_ref().map_or(0, |n| n.tries) + 1;
        let since_ns = before.as_ref().filter(|n| n.reason == reason).map_or(now, |n| n.since_ns);
        // A few tries by itself come first: a session that is to end waits for them.
        let probed = tries >= TRIES_BEFORE_GIVING_UP || reason == Reason::TrashFull;
        let pause = match if probed { self.probed_pause_ns(tx, &who, reason)? } else { None } {
            Some(pause) => pause,
            None => pause_ns(reason, tries),
        };
        // For another reason it is another failure.
        let skipped = before.as_ref().is_some_and(|n| n.is_skipped() && n.reason == reason);
        let retry_ns = if skipped { NEVER_NS } else { steady_ns() + pause };
        let need = Need { reason, detail: detail.clone(), tries, since_ns, retry_ns };
        needs::put(tx, &who, &need);
        // One that was on the list when this process began has not been told by it.
        if before.is_none_or(|b| b.reason != reason || b.tries == 0) {
            self.say(Event::Waiting { side: self.side, path: PathText::new(path), reason, detail });
        }
        self.waiting.insert(who, need);
        self.counts.waiting = self.waiting.len() as u64;
        Ok(())
    }

    pub(super) fn resolved(&mut self, tx: &mut Tx<'_>, who: &Waiter, path: &[u8]) {
        if self.waiting.remove(who).is_some() {
            needs::remove(tx, who);
            self.counts.waiting = self.waiting.len() as u64;
            if let Waiter::Entry(id) = who
                && self.waiting.has(Reason::ParentWaits)
                && tx.entry(*id).is_ok_and(|row| row.is_some_and(|r| r.entry.kind.is_dir()))
            {
                self.waiting.retry(Reason::ParentWaits);
            }
            self.say(Event::Resolved { side: self.side, path: PathText::new(path) });
        }
    }

    /// Something on this disk cannot be taken in.
    pub(super) fn path_waits(
        &mut self,
        tx: &mut Tx<'_>,
        path: Vec<u8>,
        reason: Reason,
        detail: String,
    ) -> Result<(), Fail> {
        self.waits(tx, Waiter::Path(path.clone()), &path, reason, detail)
    }

    /// A look at the path worked.
    pub(super) fn settle_path(&mut self, tx: &mut Tx<'_>, path: &RelPath) -> Result<(), Fail> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let who = Engine::path_waiter(path);
        if self.waiting.contains(&who) {
            self.resolved(tx, &who, &path.join_bytes());
        }
        Ok(())
    }

    pub(super) fn hold_removals(&mut self, tx: &mut Tx<'_>, text: String) -> Result<(), Fail> {
        self.path_waits(tx, b".".to_vec(), Reason::MassRemoval, text)
    }

    /// A whole crawl held nothing back.
    pub(super) fn settle_held(&mut self, tx: &mut Tx<'_>) {
        let who = Waiter::Path(b".".to_vec());
        let held = |n: &Need| matches!(n.reason, Reason::MassRemoval | Reason::MassRollback);
        if self.waiting.get(&who).is_some_and(held) {
            self.resolved(tx, &who, b".");
        }
    }
}
