//! A crawl: what the disk shows is compared with what is recorded, and the differences are translated as a user's
//! doing, by the rules of the engine: what is new, renames in an order that puts no directory below itself, saves over
//! known names, then removals, then contents and attributes.

use crate::disk::{Disk, ROOT};
use crate::site::Site;
use driftless_core::local::{self, Origin};
use driftless_core::plan::At;
use driftless_core::tx::{Result, Tx};
use driftless_core::{Bind, Content, Name, NodeKey};
use std::collections::{BTreeMap, BTreeSet};

/// Passes after which a disk that nobody touches must be taken in.
const PASSES_MAX: usize = 100;

/// Takes in all that users did while nobody looked.
pub fn crawl(site: &mut Site) -> std::result::Result<(), String> {
    let disk = site.disk.clone();
    let (shipped_n, after_cut) = (site.shipped_n, site.after_cut);
    site.tx(|tx| {
        let mut crawl =
            Crawl { disk: &disk, shipped_n, after_cut, spots: spots(&disk), aside: BTreeSet::new() };
        for _ in 0..PASSES_MAX {
            if !crawl.pass(tx)? && !crawl.looks(tx)? {
                return Ok(Ok(()));
            }
        }
        Ok(Err("a crawl does not end".to_string()))
    })?;
    site.disk.touched.clear();
    Ok(())
}

struct Crawl<'a> {
    disk: &'a Disk,
    shipped_n: u64,
    /// The power went: what was not synced may be torn.
    after_cut: bool,
    /// Where every name of the disk is, directories before what is in them.
    spots: Vec<(NodeKey, Name, u64)>,
    /// Inodes that were in the way.
    aside: BTreeSet<NodeKey>,
}

fn spots(disk: &Disk) -> Vec<(NodeKey, Name, u64)> {
    let mut inodes: BTreeMap<Vec<Name>, u64> = BTreeMap::from([(Vec::new(), ROOT)]);
    let mut out = Vec::new();
    for (path, ino) in disk.paths() {
        let (name, above) = path.split_last().unwrap();
        out.push((Disk::key(inodes[above]), name.clone(), ino));
        inodes.insert(path, ino);
    }
    out
}

impl Crawl<'_> {
    /// True if anything was recorded: then another pass has to follow.
    fn pass(&mut self, tx: &mut Tx<'_>) -> Result<bool> {
        Ok(self.take_new(tx)? || self.take_moves(tx)? || self.take_replaced(tx)? || self.take_missing(tx)?)
    }

    fn on_disk(&self, dir: &NodeKey, name: &Name) -> Option<NodeKey> {
        self.disk.get(Disk::ino(dir), name).map(Disk::key)
    }

    /// Inodes nobody knows, at names where nothing is recorded.
    fn take_new(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let mut any = false;
        for (dir, name, ino) in &self.spots {
            let known = tx.node(&Disk::key(*ino))?.is_some();
            if known || tx.node(dir)?.is_none() || tx.place(dir, name)?.is_some() {
                continue;
            }
            local::create(tx, (dir, name), &self.disk.looked(*ino), Origin::User)?;
            any = true;
        }
        Ok(any)
    }

    /// Known inodes at names where they are not recorded.
    fn take_moves(&mut self, tx: &mut Tx<'_>) -> Result<bool> {
        let mut movers: Vec<(NodeKey, Name, NodeKey)> = Vec::new();
        for (dir, name, ino) in &self.spots {
            let key = Disk::key(*ino);
            let here = tx.place(dir, name)?.is_some_and(|p| p.node == key);
            if !here && tx.node(&key)?.is_some() && tx.node(dir)?.is_some() {
                movers.push((dir.clone(), name.clone(), key));
            }
        }
        // What moves with a directory is found where that is now.
        movers.sort_by_key(|(_, _, key)| !self.disk.is_dir(Disk::ino(key)));
        for (dir, name, key) in &movers {
            let is_dir = self.disk.is_dir(Disk::ino(key));
            if (is_dir && is_below(tx, dir, key)?) || self.is_in_the_way(tx, dir, name, key, &movers)? {
                continue;
            }
            self.take_move(tx, dir, name, key)?;
            return Ok(true);
        }
        for (_, _, key) in &movers {
            if self.step_aside(tx, key)? {
                return Ok(true);
            }
        }
        self.clear_for_new(tx)
    }

    /// Known inodes that have gone into directories nobody knows yet leave the names where these are to be recorded.
    fn clear_for_new(&mut self, tx: &mut Tx<'_>) -> Result<bool> {
        let inodes: BTreeSet<NodeKey> = self.spots.iter().map(|(_, _, ino)| Disk::key(*ino)).collect();
        let mut waiting = Vec::new();
        for (dir, name, ino) in &self.spots {
            if tx.node(&Disk::key(*ino))?.is_some() || tx.node(dir)?.is_none() {
                continue;
            }
            let Some(place) = tx.place(dir, name)? else { continue };
            if inodes.contains(&place.node) {
                waiting.push(place.node.clone());
            }
        }
        for key in waiting {
            if self.step_aside(tx, &key)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// An inode leaves the name that it is not at any more for one in the root, once. False if there is none.
    fn step_aside(&mut self, tx: &mut Tx<'_>, key: &NodeKey) -> Result<bool> {
        if self.aside.contains(key) {
            return Ok(false);
        }
        let Some((dir, name)) = self.left_name(tx, key)? else { return Ok(false) };
        let aside = Name::new(format!(".aside-{}", self.aside.len()).as_bytes()).unwrap();
        local::rename(tx, (&dir, &name), (&Disk::key(ROOT), &aside), u64::MAX)?;
        self.aside.insert(key.clone());
        Ok(true)
    }

    /// True if what is recorded at the target moves itself, or a mover is still recorded below it.
    fn is_in_the_way(
        &self,
        tx: &mut Tx<'_>,
        dir: &NodeKey,
        name: &Name,
        key: &NodeKey,
        movers: &[(NodeKey, Name, NodeKey)],
    ) -> Result<bool> {
        let Some(place) = tx.place(dir, name)?.filter(|p| p.node != *key) else { return Ok(false) };
        for (_, _, mover) in movers {
            if *mover == place.node {
                return Ok(true);
            }
            for (at, _) in tx.node_must(mover)?.names.clone() {
                if tx.node_must(&place.node)?.kind.is_dir() && is_below(tx, &at, &place.node)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn take_move(&self, tx: &mut Tx<'_>, dir: &NodeKey, name: &Name, key: &NodeKey) -> Result<()> {
        if let Some(place) = tx.place(dir, name)?
            && tx.node_must(&place.node)?.kind.is_dir()
        {
            remove_recorded(tx, dir, name)?;
        }
        if !local::forget_unknown(tx, key)?.is_empty() {
            // The next pass finds it.
            return Ok(());
        }
        match self.left_name(tx, key)? {
            Some((from_dir, from)) => {
                let shipped_n = if tx.place(dir, name)?.is_some() { self.shipped_n } else { u64::MAX };
                local::rename(tx, (&from_dir, &from), (dir, name), shipped_n)
            }
            None => {
                if tx.place(dir, name)?.is_some() {
                    local::unlink(tx, (dir, name))?;
                }
                local::link(tx, key, (dir, name))
            }
        }
    }

    /// The first of an inode's recorded names that does not show it any more.
    fn left_name(&self, tx: &mut Tx<'_>, key: &NodeKey) -> Result<Option<(NodeKey, Name)>> {
        let node = tx.node_must(key)?;
        Ok(node.names.iter().find(|(dir, name)| self.on_disk(dir, name).as_ref() != Some(key)).cloned())
    }

    /// Inodes nobody knows, at names where others are recorded.
    fn take_replaced(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let mut any = false;
        for (dir, name, ino) in &self.spots {
            if tx.node(&Disk::key(*ino))?.is_some() || tx.node(dir)?.is_none() {
                continue;
            }
            let Some(place) = tx.place(dir, name)? else { continue };
            any = true;
            if tx.node_must(&place.node)?.kind.is_dir() || self.disk.is_dir(*ino) {
                remove_recorded(tx, dir, name)?;
                continue;
            }
            let looked = self.disk.looked(*ino);
            if self.after_cut && !self.disk.inodes[ino].synced {
                crate::power::take_torn(tx, At { dir: dir.clone(), name: name.clone() }, looked)?;
            } else {
                local::replace(tx, (dir, name), &looked)?;
            }
        }
        Ok(any)
    }

    /// Names that are recorded and gone.
    fn take_missing(&self, tx: &mut Tx<'_>) -> Result<bool> {
        let (mut gone, mut todo) = (Vec::new(), vec![Disk::key(ROOT)]);
        while let Some(dir) = todo.pop() {
            for (name, place) in tx.places_in(&dir, None, usize::MAX)? {
                if self.on_disk(&dir, &name).is_none() {
                    gone.push((dir.clone(), name));
                } else if tx.node_must(&place.node)?.kind.is_dir() {
                    todo.push(place.node);
                }
            }
        }
        let mut any = false;
        for (dir, name) in gone {
            if tx.place(&dir, &name)?.is_some() {
                remove_recorded(tx, &dir, &name)?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Contents and attributes of what is where it is recorded. True if names have to be looked at again.
    fn looks(&self, tx: &mut Tx<'_>) -> Result<bool> {
        for (dir, name, ino) in &self.spots {
            let looked = self.disk.looked(*ino);
            let Some(node) = tx.node(&looked.key)? else { continue };
            let identity = looked.content.as_ref().map(Content::identity);
            let same = match &node.bind {
                Bind::Leaf { identity: known } => {
                    identity == Some(*known) && node.fingerprint.mtime == looked.fingerprint.mtime
                }
                Bind::Dir(_) => true,
            };
            if !same && !self.disk.inodes[ino].synced && self.after_cut {
                crate::power::take_torn(tx, At { dir: dir.clone(), name: name.clone() }, looked)?;
                return Ok(true);
            } else if !same {
                local::write(tx, &looked)?;
            } else if node.given != looked.attrs {
                local::attrs(tx, &looked)?;
            }
        }
        Ok(false)
    }
}

/// Records the removal of a name, of a directory with all that is recorded below it.
fn remove_recorded(tx: &mut Tx<'_>, dir: &NodeKey, name: &Name) -> Result<()> {
    let Some(place) = tx.place(dir, name)? else { return Ok(()) };
    if !tx.node_must(&place.node)?.kind.is_dir() {
        return local::unlink(tx, (dir, name));
    }
    for (below, _) in tx.places_in(&place.node, None, usize::MAX)? {
        remove_recorded(tx, &place.node, &below)?;
    }
    local::rmdir(tx, (dir, name))
}

/// True if the directory `dir` is recorded as `top` or below it. Of directories that users moved into each other one by one,
/// some may be recorded below themselves until all have been looked at.
fn is_below(tx: &mut Tx<'_>, dir: &NodeKey, top: &NodeKey) -> Result<bool> {
    let (mut at, mut seen) = (dir.clone(), BTreeSet::new());
    while seen.insert(at.clone()) {
        if at == *top {
            return Ok(true);
        }
        match tx.node(&at)?.and_then(|n| n.names.first().cloned()) {
            Some((above, _)) => at = above,
            None => break,
        }
    }
    Ok(false)
}
