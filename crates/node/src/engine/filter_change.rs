//! Another filter than the last time.
//!
//! What a filter hides is not looked at, not wanted and not made; what is recorded of it stays. When a filter changes, everything is
//! planned again, so that what it hides no more comes. A hidden name that was taken away meanwhile was taken away to
//! make room, not everywhere: its record is forgotten, so that it comes again, and no removal is recorded. For the same reason a
//! directory that is removed with something hidden in it takes only along what was not hidden.

use super::{Engine, Fail, QUEUE_MAX, RelPath};
use crate::api::{FilterRule, Level};
use crate::filter::Filter;
use driftless_core::plan::{self, At};
use driftless_core::rows::{Batch as Rows, Table};
use driftless_core::{EntryId, Name, NodeKey, Tx, unsealed};
use std::collections::BTreeSet;

/// The rules of the last time, as JSON; no row: there were none.
const SETTING_FILTER: &[u8] = b"filter";
/// Places read from the index at once.
const PLACES_AT_ONCE: usize = 1024;

impl Engine {
    /// Compares the filter with that of the last time, before anything is planned or looked at.
    pub(super) fn take_filter(&mut self) -> Result<(), Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let old: Vec<FilterRule> = match snapshot.get(Table::Settings, SETTING_FILTER)? {
            // A row that cannot be read hid something; what, is not known.
            Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            None => Vec::new(),
        };
        if old == self.shared.filters {
            return Ok(());
        }
        let hid = Filter::new(&old).unwrap_or_default();
        if !hid.is_empty() {
            let mut tx = Tx::open(&*snapshot, self.env())?;
            let concerned = self.forget_what_was_hidden(&mut tx, &hid)?;
            concerned.iter().for_each(|id| tx.add_pending(*id));
            self.commit(tx)?;
        }
        self.planned = 0;
        let value = match self.shared.filters.is_empty() {
            true => None,
            false => Some(serde_json::to_vec(&self.shared.filters).map_err(|e| Fail::Bug(e.to_string()))?),
        };
        self.store.commit(Rows::from([((Table::Settings, SETTING_FILTER.to_vec()), value)]))?;
        self.log(Level::Info, "the filter has changed: everything is planned again".into());
        Ok(())
    }

    /// What is in directories that come to this disk is planned as well: it may have been hidden with them before.
    pub(super) fn plan_below(&mut self, tx: &mut Tx<'_>, coming: &[EntryId]) -> Result<(), Fail> {
        match plan::lacking_below(tx, coming, QUEUE_MAX)? {
            Some(lacking) => {
                for id in lacking {
                    tx.add_pending(id);
                    self.enqueue(id);
                }
            }
            // Found in the feed: keeping them here would grow with the tree.
            None => {
                self.planned = 0;
                self.backlog_from = Some(0);
            }
        }
        Ok(())
    }

    /// Forgets recorded names that were hidden, are hidden no more, and are gone from the disk.
    fn forget_what_was_hidden(&mut self, tx: &mut Tx<'_>, hid: &Filter) -> Result<BTreeSet<EntryId>, Fail> {
        let mut concerned = BTreeSet::new();
        let mut todo = vec![(self.volume.root_key(), RelPath::default())];
        while let Some((dir, path)) = todo.pop() {
            let Ok(fd) = self.volume.dir(&path, Some(&dir)) else { continue };
            let mut after: Option<Name> = None;
            loop {
                let places = tx.places_in(&dir, after.as_ref(), PLACES_AT_ONCE)?;
                let Some(last) = places.last().map(|p| p.0.clone()) else { break };
                after = Some(last);
                for (name, place) in places {
                    let mut at = path.clone();
                    at.push(&name);
                    let is_dir = place.claims.is_empty();
                    let shown = hid.hides(&at, is_dir) && !self.filter.hides(&at, is_dir);
                    match fd.look(&name) {
                        Ok(None) if shown => self.forget_place(tx, (&dir, &name), &mut concerned)?,
                        Ok(Some(seen)) if is_dir && seen.key == place.node => todo.push((place.node, at)),
                        _ => {}
                    }
                }
            }
        }
        Ok(concerned)
    }

    /// Forgets a recorded name and what is recorded below it: no removal.
    fn forget_place(
        &mut self,
        tx: &mut Tx<'_>,
        (dir, name): (&NodeKey, &Name),
        concerned: &mut BTreeSet<EntryId>,
    ) -> Result<(), Fail> {
        let Some(place) = tx.place(dir, name)? else { return Ok(()) };
        let at = At { dir: dir.clone(), name: name.clone() };
        concerned.extend(unsealed::rebase(tx, &at, unsealed::Verdict::Missing, &[], None)?);
        if place.claims.is_empty() {
            concerned.extend(unsealed::forget_below(tx, &place.node)?);
        }
        self.paths.clear();
        Ok(())
    }

    /// If the filter hides a name that went with its directory, forgets it instead of recording that it was removed; true
    /// then.
    pub(super) fn forgets_hidden(
        &mut self,
        tx: &mut Tx<'_>,
        dir: &NodeKey,
        name: &Name,
    ) -> Result<bool, Fail> {
        if self.filter.is_empty() {
            return Ok(false);
        }
        let (Some(mut path), Some(place)) = (self.path_of_node(tx, dir)?, tx.place(dir, name)?) else {
            return Ok(false);
        };
        path.push(name);
        if !self.filter.hides(&path, place.claims.is_empty()) {
            return Ok(false);
        }
        self.forget_place(tx, (dir, name), &mut BTreeSet::new())?;
        Ok(true)
    }
}
