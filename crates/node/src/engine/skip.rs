//! What somebody has said not to try again: it stays on the needs list, marked, and is tried when another version of its entry comes,
//! when it fails for another reason, or when somebody says so.

use super::{Engine, Fail, steady_ns};
use crate::needs::{self, NEVER_NS, Need, Waiter};
use crate::query;
use crossbeam_channel::Sender;
use driftless_core::{EntryId, Tx};

impl Engine {
    /// Skips what waits under this path, or is the entry with this id; says how many that are.
    pub(super) fn skip(&mut self, what: &[u8], to: &Sender<u64>) -> Result<(), Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut found = Vec::new();
        for (who, need) in self.waiting.iter() {
            let is_it = match who {
                Waiter::Path(path) => path == what,
                Waiter::Entry(id) if id.to_string().as_bytes() == what => true,
                Waiter::Entry(id) => query::entry_path(&mut tx, *id)?.is_some_and(|path| path == what),
            };
            if is_it {
                found.push((who.clone(), Need { retry_ns: NEVER_NS, ..need.clone() }));
            }
        }
        self.put_needs(tx, &found)?;
        // Who asked may have stopped waiting.
        let _ = to.send(found.len() as u64);
        Ok(())
    }

    /// Everything is tried at once, what was skipped too.
    pub(super) fn retry_everything(&mut self) -> Result<(), Fail> {
        let skipped = self.waiting.iter().filter(|(_, need)| need.is_skipped()).map(|(who, _)| who.clone());
        let skipped: Vec<Waiter> = skipped.collect();
        self.skip_no_more(&skipped)?;
        self.waiting.retry_all();
        self.want_crawl |= self.waiting.get(&Waiter::Path(b".".to_vec())).is_some();
        Ok(())
    }

    /// Other versions of these entries have come.
    pub(super) fn entries_changed(&mut self, changed: &[EntryId]) -> Result<(), Fail> {
        if self.waiting.skipped() == 0 {
            return Ok(());
        }
        let waiters = changed.iter().map(|id| Waiter::Entry(*id));
        let skipped = waiters.filter(|who| self.waiting.get(who).is_some_and(Need::is_skipped));
        let skipped: Vec<Waiter> = skipped.collect();
        self.skip_no_more(&skipped)
    }

    fn skip_no_more(&mut self, whom: &[Waiter]) -> Result<(), Fail> {
        let due = |who: &Waiter| {
            Some((who.clone(), Need { retry_ns: steady_ns(), ..self.waiting.get(who)?.clone() }))
        };
        let needs: Vec<(Waiter, Need)> = whom.iter().filter_map(due).collect();
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let tx = Tx::open(&*snapshot, self.env())?;
        self.put_needs(tx, &needs)
    }

    fn put_needs(&mut self, mut tx: Tx<'_>, list: &[(Waiter, Need)]) -> Result<(), Fail> {
        if list.is_empty() {
            return Ok(());
        }
        for (who, need) in list {
            needs::put(&mut tx, who, need);
            self.waiting.insert(who.clone(), need.clone());
        }
        self.commit(tx)
    }
}
