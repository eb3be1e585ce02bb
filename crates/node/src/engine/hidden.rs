//! What a filter hides and nobody else may have.
//!
//! A file that was shown here leaves this disk when somebody renames it to where the filter of this site hides it. He may have
//! done so before its bytes came to him: he renames the directory that it will be in. Without filters what counts is always
//! shown somewhere, and so on this disk; here it is not. So what this replica wrote, or gave its name, stays in limbo, and is
//! served from there, as long as the version counts and nothing on this disk shows it. The name counts because who wrote the file
//! may have removed it at the same moment: then it lives by that name alone.

use super::{Engine, Fail};
use driftless_core::plan::At;
use driftless_core::{Digest, Dot, EntryId, Tx};
use driftless_volume::ReadHandle;
use std::collections::{BTreeSet, HashSet};

/// Entries read from the index at once.
const ENTRIES_AT_ONCE: usize = 1024;

/// Versions of which limbo may have the only copy.
#[derive(Default)]
pub(super) struct Hidden(BTreeSet<(Digest, EntryId, Dot)>);

impl Engine {
    /// What is recorded at `at` goes to limbo, by a step that is not recorded yet.
    pub(super) fn note_hidden(&mut self, tx: &mut Tx<'_>, at: &At, identity: Digest) -> Result<(), Fail> {
        if self.filter.is_empty() {
            return Ok(());
        }
        let Some(place) = tx.place(&at.dir, &at.name)? else { return Ok(()) };
        let me = tx.me();
        for claim in place.claims.iter().filter(|c| c.version.replica == me || c.name_dot.replica == me) {
            self.hidden.0.insert((identity, claim.entry, claim.version));
        }
        Ok(())
    }

    /// After a restart: finds again what the last process kept. Reads the whole index, if there is a filter and anything is in
    /// limbo at all.
    pub(super) fn find_hidden(&mut self) -> Result<(), Fail> {
        if self.filter.is_empty() || self.limbos.is_empty() {
            return Ok(());
        }
        let snapshot = self.store.snapshot()?;
        let mut after = 0;
        loop {
            // A transaction for each page: what it has read it keeps.
            let mut tx = Tx::open(&*snapshot, self.env())?;
            let rows = tx.feed_after(after, ENTRIES_AT_ONCE)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            after = *last;
            for (_, id) in rows {
                let (row, me) = (tx.entry_must(id)?, tx.me());
                let named = row.entry.shown_links().iter().any(|link| link.at.dot.replica == me);
                for version in row.entry.counting().filter(|v| named || v.dot.replica == me) {
                    let identity = version.content.identity();
                    if self.limbos.has(&identity) {
                        self.hidden.0.insert((identity, id, version.dot));
                    }
                }
            }
        }
    }

    /// The contents that have to stay in limbo; the others are forgotten.
    pub(super) fn hidden_contents(&mut self) -> Result<HashSet<Digest>, Fail> {
        let mut stay = BTreeSet::new();
        if !self.hidden.0.is_empty() {
            let snapshot = self.store.snapshot()?;
            let mut tx = Tx::open(&*snapshot, self.env())?;
            for one in std::mem::take(&mut self.hidden.0) {
                let (identity, id, version) = one;
                let Some(row) = tx.entry(id)? else { continue };
                let counts = row.entry.counting().any(|v| v.dot == version);
                if counts && !self.on_disk(&mut tx, &row.bound, &identity)? {
                    stay.insert(one);
                }
            }
        }
        let contents = stay.iter().map(|(identity, ..)| *identity).collect();
        self.hidden = Hidden(stay);
        Ok(contents)
    }

    /// The bytes of a version that only limbo has. Who gets them compares the digest.
    pub(super) fn open_hidden(&self, entry: EntryId, digest: &Digest) -> Option<ReadHandle> {
        let from = (*digest, entry, Dot::default());
        self.hidden.0.range(from..).next().filter(|(d, id, _)| d == digest && *id == entry)?;
        self.volume.open_private_file(&self.limbos.with(digest)?.as_private()).ok().flatten()
    }
}
