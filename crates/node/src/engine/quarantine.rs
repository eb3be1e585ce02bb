//! Keeping a Cut: what this replica has of changes beyond one is set aside, and its index is made anew from the others.
//!
//! Such changes come about when a site is failed over or removed that had made more than anybody could be asked for. Nobody
//! takes them from it ([`super::believe`]); at the site itself, and at any that has heard of them, the files they made or
//! changed are moved to `.driftless/quarantine` with a list of all of them. The index that has their states is put
//! aside, and the tree goes on as another replica, with an index that begins with what was within the Cuts ([`super::successor`]).
//! A file whose newest version came from beyond and is not here stays as it is, with the version that it shows.
//!
//! The replica that was cut waits for a person to say so (`driftless rejoin`), and looks at its whole tree first: what was
//! changed while it did not run was changed after the Cut too. Others do it by themselves.

use super::role::Becoming;
use super::{Engine, Fail, RelPath, wall_ns};
use crate::api::{Level, PathText};
use crate::query;
use driftless_core::cut::{Carry, Cuts, change_beyond};
use driftless_core::link::Role;
use driftless_core::rows::Table;
use driftless_core::{EntryId, Name, NodeKey, Place, Tx, tree};
use driftless_volume::Quarantine;
use serde::{Deserialize, Serialize};

/// The Cuts that this index is known to keep.
pub(super) const SETTING_CUTS: &[u8] = b"cuts";
/// Rows read at once.
const STEP: usize = 1024;

/// A line of the quarantine's list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its number in the batch.
    pub item: u32,
    /// Where it was.
    pub path: PathText,
    /// What was done to it.
    pub what: QuarantinedChange,
    /// What it is: `file`, `dir`, ...
    pub kind: String,
    /// Its entry.
    pub entry: String,
    /// The replica whose change it is.
    pub replica: String,
    /// The number of that change.
    pub n: u64,
    /// When it was set aside.
    pub time: String,
}

/// What was done beyond a Cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantinedChange {
    /// Made.
    Created,
    /// Written to, renamed, or its attributes were changed.
    Changed,
    /// Removed: it comes back from the others.
    Removed,
}

impl QuarantinedChange {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            QuarantinedChange::Created => "created",
            QuarantinedChange::Changed => "changed",
            QuarantinedChange::Removed => "removed",
        }
    }
}

/// One thing that is beyond a Cut.
struct Found {
    line: Quarantined,
    /// Where it is on this disk.
    place: Option<(NodeKey, Name, NodeKey)>,
    /// What this place shows is within the Cut: it is listed and stays.
    stays: bool,
    is_dir: bool,
    depth: usize,
}

impl Engine {
    /// At the start, before anything is done for anybody: does this index keep all Cuts?
    pub(super) fn check_cuts(&mut self) -> Result<(), Fail> {
        let Some(service) = &self.service else { return Ok(()) };
        let cuts: Cuts = service.trust.view().cuts.clone();
        if cuts.is_empty() {
            return Ok(());
        }
        let (set_aside, snapshot) = (service.set_aside, self.store.snapshot()?);
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let me = tx.me();
        if let Some(cut) = cuts.get(&me) {
            if !set_aside {
                return Err(self.deposed(&mut tx, &cuts, *cut)?);
            }
            if !self.scanned {
                return self.put_aside_beyond(&cuts);
            }
            // A person's edits while this did not run are changes too: they are found by the crawl.
            self.setting_aside = true;
            self.becoming = Becoming::Looking;
            self.role = driftless_core::link::Role::Writer;
            return Ok(());
        }
        let known = tx.get(Table::Settings, SETTING_CUTS)?;
        let kept = digest(&cuts);
        if known.as_ref() == Some(&kept) {
            return Ok(());
        }
        let claims = tx.knowledge()?.iter().any(|(r, k)| cuts.get(r).is_some_and(|cut| k.n > *cut));
        if claims || !self.beyond(&mut tx, &cuts)?.is_empty() {
            return self.put_aside_beyond(&cuts);
        }
        tx.put(Table::Settings, SETTING_CUTS.to_vec(), Some(kept));
        self.commit(tx)
    }

    /// While it runs, before anything is taken from a peer: a membership goes ahead of all that others did since, and none of that
    /// touches the tree of a replica that was cut before a person says so.
    pub(super) fn heed_cut(&self) -> Result<(), Fail> {
        let Some(service) = &self.service else { return Ok(()) };
        let view = service.trust.view();
        if self.setting_aside || view.cuts.is_empty() {
            return Ok(());
        }
        let snapshot = self.store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        match view.cuts.get(&tx.me()) {
            Some(cut) => Err(self.deposed(&mut tx, &view.cuts, *cut)?),
            None => Ok(()),
        }
    }

    /// The tree has been looked at, and what was seen is recorded.
    pub(super) fn looked_before_setting_aside(&mut self) -> Result<(), Fail> {
        let Some(service) = &self.service else { return Ok(()) };
        let cuts = service.trust.view().cuts.clone();
        self.put_aside_beyond(&cuts)
    }

    fn put_aside_beyond(&mut self, cuts: &Cuts) -> Result<(), Fail> {
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let carry = Carry { cuts, changed_files: !cuts.contains_key(&tx.me()) };
        let mut found = Vec::new();
        for id in self.beyond(&mut tx, cuts)? {
            self.describe(&mut tx, id, carry, &mut found)?;
        }
        drop(tx);
        let moved = self.set_aside(&found)?;
        self.build_successor(carry, digest(cuts))?;
        let (all, what) = (found.len(), if found.len() == 1 { "change" } else { "changes" });
        self.log(
            Level::Warn,
            format!("{all} {what} beyond a Cut set aside, {moved} files moved: driftless quarantine list"),
        );
        Err(Fail::Succeeded(format!("{all} {what} beyond a Cut set aside (driftless quarantine list)")))
    }

    /// Why this replica, whose changes count up to `cut`, does not go on.
    fn deposed(&self, tx: &mut Tx<'_>, cuts: &Cuts, cut: u64) -> Result<Fail, Fail> {
        let last = tx.knowledge()?.get(&tx.me()).map_or(0, |known| known.n);
        let what = match self.beyond(tx, cuts)?.len() {
            0 => {
                "this site was failed over, or removed: its changes count up to the last one that others have"
                    .into()
            }
            n => format!(
                "this site was failed over, or removed, after its change {cut}; it made {} more, to {n} entries that \
                 others do not have",
                last.saturating_sub(cut)
            ),
        };
        Ok(Fail::Refused {
            what,
            advice: "driftless rejoin VOLUME sets aside what was changed after that (driftless quarantine list shows it, and \
                     can apply it again) and goes on from what the others have"
                .into(),
        })
    }

    /// Entries whose states have a change beyond a Cut.
    fn beyond(&self, tx: &mut Tx<'_>, cuts: &Cuts) -> Result<Vec<EntryId>, Fail> {
        let (mut found, mut from) = (Vec::new(), Vec::new());
        loop {
            let rows = tx.scan(Table::Entries, &from, None, STEP)?;
            let Some((last, _)) = rows.last() else { return Ok(found) };
            from = [&last[..], &[0]].concat();
            for (_, value) in &rows {
                let entry = tx.decode_entry_row(value)?.entry;
                if change_beyond(&entry, cuts).is_some() && !entry.id.is_root() {
                    found.push(entry.id);
                }
            }
        }
    }

    fn describe(
        &mut self,
        tx: &mut Tx<'_>,
        id: EntryId,
        carry: Carry<'_>,
        found: &mut Vec<Found>,
    ) -> Result<(), Fail> {
        let row = tx.entry_must(id)?;
        let Some((replica, n)) = change_beyond(&row.entry, carry.cuts) else { return Ok(()) };
        let made = carry.cuts.get(&id.0.replica).is_some_and(|cut| id.0.n > *cut);
        let time = query::time_of_ns(wall_ns());
        let kind = row.entry.kind;
        let line = |item: usize, path: &[u8], what| Quarantined {
            item: u32::try_from(item).unwrap_or(u32::MAX),
            path: PathText::new(path),
            what,
            kind: kind.word().to_owned(),
            entry: id.to_string(),
            replica: replica.to_string(),
            n,
            time: time.clone(),
        };
        let mut shown = false;
        for key in &row.bound {
            let names = tx.node(key)?.map(|node| node.names.clone()).unwrap_or_default();
            for (dir, name) in names {
                let Some(mut path) = self.path_of_node(tx, &dir)? else { continue };
                path.push(&name);
                shown = true;
                let what = if made { QuarantinedChange::Created } else { QuarantinedChange::Changed };
                let line = line(found.len(), &path.join_bytes(), what);
                let stays = match tx.place(&dir, &name)? {
                    Some(place) => self.stays(tx, carry, &place)?,
                    None => false,
                };
                let place = Some((dir, name, key.clone()));
                found.push(Found { line, place, stays, is_dir: kind.is_dir(), depth: path.len() });
            }
        }
        // What was made and removed beyond the Cut was nobody's.
        if !shown && !made {
            let last = row.entry.links.iter().max_by_key(|l| l.at.stamp);
            let mut path = RelPath::default();
            if let Some(link) = last {
                path = RelPath(tree::path_of(tx, link.at.parent)?.unwrap_or_default());
                path.push(&link.at.name);
            }
            let line = line(found.len(), &path.join_bytes(), QuarantinedChange::Removed);
            found.push(Found { line, place: None, stays: false, is_dir: kind.is_dir(), depth: path.len() });
        }
        Ok(())
    }

    /// True if a path of a file shows nothing from beyond: its state goes over; or, where changes are made, what it shows is taken for
    /// a file of its own, for nobody else may have it.
    fn stays(&self, tx: &mut Tx<'_>, carry: Carry<'_>, place: &Place) -> Result<bool, Fail> {
        if carry.keeps_place(tx, place)? {
            return Ok(true);
        }
        let within = |r: driftless_core::Dot| carry.cuts.get(&r.replica).is_none_or(|cut| r.n <= *cut);
        let shows_none = !place.claims.is_empty() && place.claims.iter().all(|c| within(c.version));
        Ok(shows_none && carry.changed_files && self.role == Role::Writer)
    }

    /// Writes the list, then moves what it names. How many things were moved.
    fn set_aside(&mut self, found: &[Found]) -> Result<usize, Fail> {
        if found.is_empty() {
            return Ok(0);
        }
        let mut lines = Vec::new();
        for one in found {
            serde_json::to_writer(&mut lines, &one.line).map_err(|e| Fail::Bug(e.to_string()))?;
            lines.push(b'\n');
        }
        let none = || Fail::Root("there is no private directory to set anything aside in".into());
        let quarantine: Quarantine = self.volume.quarantine(true).map_err(Fail::Volume)?.ok_or_else(none)?;
        let batch = quarantine.begin(&lines).map_err(Fail::Volume)?;
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut moved = 0;
        for one in found.iter().filter(|f| !f.is_dir && !f.stays) {
            let Some((dir, name, key)) = &one.place else { continue };
            let Some(path) = self.path_of_node(&mut tx, dir)? else { continue };
            let from = self.volume.dir(&path, Some(dir)).map_err(Fail::Volume)?;
            moved += usize::from(batch.take(&from, name, key, one.line.item).map_err(Fail::Volume)?);
        }
        // Deepest first: one that is empty now may have been all that was in another.
        let made = |f: &&Found| f.is_dir && f.line.what == QuarantinedChange::Created;
        let mut dirs: Vec<&Found> = found.iter().filter(made).collect();
        dirs.sort_by_key(|f| std::cmp::Reverse(f.depth));
        for one in dirs {
            let Some((dir, name, key)) = &one.place else { continue };
            let Some(path) = self.path_of_node(&mut tx, dir)? else { continue };
            let from = self.volume.dir(&path, Some(dir)).map_err(Fail::Volume)?;
            from.remove_empty(name, key).map_err(Fail::Volume)?;
        }
        batch.sync().map_err(Fail::Volume)?;
        self.forget_dirs();
        Ok(moved)
    }
}

fn digest(cuts: &Cuts) -> Vec<u8> {
    cuts.iter().flat_map(|(replica, n)| [replica.0.to_be_bytes(), n.to_be_bytes()].concat()).collect()
}
