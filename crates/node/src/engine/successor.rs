//! The index that follows one with changes beyond a Cut: of another replica, which begins with what the earlier one had within
//! the Cuts, and with the records of what the disk shows of that ([`driftless_core::cut`]).
//!
//! It is made beside the earlier one, and takes its name in one step when the engine has ended. Until then a stop only means
//! that it is made again.

use super::open::{SETTING_SCANNED, SETTING_VOLUME};
use super::quarantine::SETTING_CUTS;
use super::{Engine, Fail, lost, random_u64};
use driftless_core::cut::{self, Carry};
use driftless_core::rows::{Batch as Rows, Read, Store, Table};
use driftless_core::{Name, NodeKey, ReplicaId, Tx, tx};
use driftless_index::{Index, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The replica that this index follows: the marker may still name it.
const SETTING_FOLLOWS: &[u8] = b"follows";
/// Names of sites, for people.
const SETTINGS_OF_SITES: (&[u8], &[u8]) = (b"site/", b"site0");

impl Engine {
    /// Makes the successor of the index, as far as one is on disk.
    pub(super) fn build_successor(&mut self, carry: Carry<'_>, cuts: Vec<u8>) -> Result<(), Fail> {
        let Some(index) = self.index.clone() else { return Ok(()) };
        let path = beside(&index);
        remove(&path).map_err(|e| cannot(&path, &e))?;
        let options = OpenOptions { create: true, ..Default::default() };
        let new = Index::open(&path, options).map_err(|e| cannot(&path, &e))?;
        let store = self.store.clone();
        let old = store.snapshot()?;
        new.commit(self.first_rows(&*old, cuts)?)?;
        self.copy_states(&*old, &new, carry)?;
        self.copy_records(&*old, &new)
    }

    fn first_rows(&self, old: &dyn Read, cuts: Vec<u8>) -> Result<Rows, Fail> {
        let mut rows = Tx::create(ReplicaId(random_u64()?.max(1)));
        let me = Tx::open(old, self.env())?.me();
        let mut set = |key: &[u8], value: Vec<u8>| rows.insert((Table::Settings, key.to_vec()), Some(value));
        set(SETTING_FOLLOWS, me.0.to_be_bytes().to_vec());
        set(SETTING_VOLUME, self.volume_id.to_be_bytes().to_vec());
        set(SETTING_SCANNED, vec![1]);
        set(SETTING_CUTS, cuts);
        let (from, to) = SETTINGS_OF_SITES;
        for (key, name) in old.scan(Table::Settings, from, Some(to), usize::MAX)? {
            set(&key, name.to_vec());
        }
        Ok(rows)
    }

    fn copy_states(&self, old: &dyn Read, new: &Index, carry: Carry<'_>) -> Result<(), Fail> {
        let mut from = Some(Vec::new());
        while let Some(at) = from {
            from = self.one_page(old, new, |old, new| carry.states(old, new, &at))?;
        }
        Ok(())
    }

    fn copy_records(&self, old: &dyn Read, new: &Index) -> Result<(), Fail> {
        let Some(root) = self.one_page(old, new, cut::copy_root)? else { return Ok(()) };
        let mut todo: Vec<(NodeKey, Option<Name>)> = vec![(root, None)];
        while let Some((dir, after)) = todo.pop() {
            let page =
                self.one_page(old, new, |old, new| cut::copy_places(old, new, &dir, after.as_ref()))?;
            todo.extend(page.last.map(|last| (dir, Some(last))));
            todo.extend(page.below.into_iter().map(|dir| (dir, None)));
        }
        Ok(())
    }

    /// A transaction for each page: what it has read it keeps.
    fn one_page<T>(
        &self,
        old: &dyn Read,
        new: &Index,
        copy: impl FnOnce(&mut Tx<'_>, &mut Tx<'_>) -> tx::Result<T>,
    ) -> Result<T, Fail> {
        let snapshot = new.snapshot()?;
        let mut from = Tx::open(old, self.env())?;
        let mut to = Tx::open(&*snapshot, self.env())?;
        let result = copy(&mut from, &mut to)?;
        // No change of this replica is among them, so the commit needs no tag.
        let rows = to.into_batch(0);
        new.commit(rows)?;
        Ok(result)
    }
}

/// The replica that the index of `store` follows.
pub(super) fn follows(store: &dyn Read) -> Result<Option<ReplicaId>, Fail> {
    let value = store.get(Table::Settings, SETTING_FOLLOWS)?;
    Ok(value.and_then(|b| b.try_into().ok()).map(|b| ReplicaId(u64::from_be_bytes(b))))
}

/// Gives the successor the place of the index, which is kept beside it: where.
///
/// # Errors
/// What the file system says; then the index is as it was.
pub(super) fn take_over(index: &Path) -> io::Result<PathBuf> {
    let next = beside(index);
    let kept = lost::keep_index(index)?;
    std::fs::rename(&next, index)?;
    // Its successor has the room beside the index for its own.
    match std::fs::remove_file(next.with_extension("reserve")) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(kept),
    }
}

fn beside(index: &Path) -> PathBuf {
    index.with_file_name("next.redb")
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn cannot(path: &Path, e: &dyn std::fmt::Display) -> Fail {
    Fail::Refused {
        what: format!("the index that is to go on, {}, cannot be made: {e}", path.display()),
        advice: "make room in the state directory; what was set aside stays, and it is tried again".into(),
    }
}
