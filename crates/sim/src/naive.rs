//! Makes a disk show the effective tree by building it anew: the reference for the planner.

use crate::disk::{Disk, PARKED, ROOT};
use crate::site::Site;
use crate::world::Available;
use driftless_core::tree::{self, Shares};
use driftless_core::tx::{Result, Tx};
use driftless_core::*;
use std::collections::{BTreeMap, BTreeSet};

struct Builder {
    disk: Disk,
    files: BTreeMap<(EntryId, Dot), u64>,
    bound: BTreeMap<EntryId, BTreeSet<u64>>,
    nodes: BTreeMap<u64, Node>,
}

/// False, and nothing happens, if a content is nowhere to be had.
pub fn show(site: &mut Site, available: &Available) -> bool {
    if !available.has_all_of(&site.own_tree()) {
        return false;
    }
    let old = site.disk.clone();
    let mut disk = old.clone();
    disk.inodes.retain(|ino, _| [ROOT, PARKED].contains(ino));
    disk.inodes.get_mut(&ROOT).unwrap().names.clear();
    let mut b = Builder { disk, files: BTreeMap::new(), bound: BTreeMap::new(), nodes: BTreeMap::new() };
    site.tx(|tx| {
        forget(tx, &old)?;
        b.fill(tx, ROOT, &[EntryId::ROOT])?;
        for (ino, mut node) in std::mem::take(&mut b.nodes) {
            if let Bind::Dir(members) = &node.bind {
                b.set_time(ino, crate::site::time_of_union(tx, members)?, &mut node);
            }
            tx.put_node(&Disk::key(ino), node);
        }
        for (entry, inodes) in &b.bound {
            let mut row = (*tx.entry_must(*entry)?).clone();
            row.bound = inodes.iter().map(|i| Disk::key(*i)).collect();
            tx.put_entry(row)?;
        }
        Ok(())
    });
    b.disk.touched.clear();
    site.disk = b.disk;
    true
}

fn forget(tx: &mut Tx<'_>, old: &Disk) -> Result<()> {
    for (ino, inode) in old.inodes.iter() {
        for name in inode.names.keys() {
            tx.delete_place(&Disk::key(*ino), name);
        }
        if ![ROOT, PARKED].contains(ino) {
            tx.delete_node(&Disk::key(*ino));
        }
    }
    for (_, id) in tx.feed_after(0, usize::MAX)? {
        let mut row = (*tx.entry_must(id)?).clone();
        row.bound.clear();
        tx.put_entry(row)?;
    }
    Ok(())
}

impl Builder {
    fn set_time(&mut self, ino: u64, mtime: Option<Time>, node: &mut Node) {
        if let (Some(inode), Some(mtime)) = (self.disk.inodes.get_mut(&ino), mtime) {
            inode.mtime = mtime;
        }
        let looked = self.disk.looked(ino);
        (node.fingerprint, node.given) = (looked.fingerprint, looked.attrs);
    }

    fn fill(&mut self, tx: &mut Tx<'_>, dir: u64, class: &[EntryId]) -> Result<()> {
        for name in tree::children(tx, class, None, usize::MAX)? {
            let shown = tree::shown_at(tx, class, &name)?;
            if !shown.dir.is_empty() {
                let mode = crate::site::mode_of_union(tx, &shown.dir)?;
                let ino = self.disk.new_inode(Kind::Dir, None, mode);
                self.place(tx, dir, &name, ino, Bind::Dir(shown.dir.clone()), &[], None);
                for m in &shown.dir {
                    self.bound.entry(*m).or_default().insert(ino);
                }
                self.fill(tx, ino, &shown.dir)?;
            }
            for g in &shown.groups {
                let owner = &g.claims[0];
                let row = tx.entry_must(owner.entry)?;
                let content = row.entry.version(owner.version).unwrap().content.clone();
                let identity = content.identity();
                let (disk, mode) = (&mut self.disk, row.entry.meta.1.mode);
                let ino = *self
                    .files
                    .entry((owner.entry, owner.version))
                    .or_insert_with(|| disk.new_inode(row.entry.kind, Some(content), mode));
                let base = g.conflict.then(|| name.clone());
                self.place(tx, dir, &g.name, ino, Bind::Leaf { identity }, &g.claims, base);
                for c in &g.claims {
                    self.bound.entry(c.entry).or_default().insert(ino);
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn place(
        &mut self,
        tx: &mut Tx<'_>,
        dir: u64,
        name: &Name,
        ino: u64,
        bind: Bind,
        claims: &[Shares],
        conflict_of: Option<Name>,
    ) {
        self.disk.put(dir, name, ino);
        let looked = self.disk.looked(ino);
        let node = self.nodes.entry(ino).or_insert_with(|| Node {
            kind: looked.kind,
            fingerprint: looked.fingerprint,
            racy: false,
            given: looked.attrs,
            wanted: Wanted::UNKNOWN,
            names: Vec::new(),
            bind,
        });
        node.names.push((Disk::key(dir), name.clone()));
        let claims = claims
            .iter()
            .map(|s| Claim { entry: s.entry, link: s.link, name_dot: s.name_dot, version: s.version })
            .collect();
        tx.put_place(&Disk::key(dir), name, Place { node: Disk::key(ino), claims, conflict_of });
    }
}
