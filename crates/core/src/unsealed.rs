//! What paths showed before changes that no sync of the file system has covered yet, and how a start after a power cut
//! judges what it finds there (design section 6, *Seal*).
//!
//! Records are durable with the index, what they speak of with the file system, and a power cut may take back either. So
//! every commit keeps, until the seal, what the paths it changes were recorded with before. Then a start that finds such a
//! path as it was before knows that the change was taken back, by nobody: what was recorded is done again. What was
//! there neither before nor after is what the cut left of somebody's writing, or what somebody wrote that was never
//! looked at: kept, but not allowed to take the place of anything.
//!
//! One row of table `before` holds what one commit changed:
//!
//! ```text
//! format (1 byte) · count · count x (directory handle · name · 0, nothing was there | 1 · place · node)
//! ```
//!
//! with place and node as their tables have them, each with its length.

use crate::codec::{Decoder, Encoder, Malformed, ReplicaTable};
use crate::disk::{Bind, Fingerprint, Node, NodeKey, Place};
use crate::id::{EntryId, Kind, Name};
use crate::local::Looked;
use crate::meta::{Attrs, Digest, Time};
use crate::plan::{At, Binding, Plan, Step, forget, record, settle};
use crate::rows::{Batch, Read, Table};
use crate::tx::{Result, Tx, dec, place_key, place_of_key};
use crate::{Content, Wanted};
use std::collections::{BTreeMap, BTreeSet, btree_map};

/// What a path was recorded with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The path's record.
    pub place: Place,
    /// Its inode's.
    pub node: Node,
}

impl Image {
    /// What was seen there if the image is right.
    pub fn sighting(&self) -> Sighting {
        let identity = match self.node.bind {
            Bind::Leaf { identity } => Some(identity),
            Bind::Dir(_) => None,
        };
        Sighting { node: self.place.node.clone(), kind: self.node.kind, identity }
    }
}

/// Paths changed since the last seal, with what they were recorded with before each change, oldest first.
pub type Images = BTreeMap<(NodeKey, Name), Vec<Option<Image>>>;

/// What is at a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// The inode.
    pub node: NodeKey,
    /// Its kind.
    pub kind: Kind,
    /// What it holds; `None` for directories.
    pub identity: Option<Digest>,
}

impl Sighting {
    /// What a look gave.
    pub fn of(looked: &Looked) -> Sighting {
        let identity = looked.content.as_ref().map(Content::identity);
        Sighting { node: looked.key.clone(), kind: looked.kind, identity }
    }

    fn has_same_content(&self, other: &Sighting) -> bool {
        self.kind == other.kind && self.identity == other.identity && self.identity.is_some()
    }
}

/// What a start after a power cut makes of a path that had changed since the last seal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// It is as recorded.
    AsRecorded,
    /// It is as before one of the changes (its position among the images): what was done since is done again.
    Undone(usize),
    /// What is recorded there is gone: it comes again, and is not taken for removed.
    Missing,
    /// Something else than what is recorded or was before: it does not follow what is recorded, it stands beside it.
    Other,
    /// Nothing is recorded, and what is there was not there before: it is new.
    New,
    /// What is recorded there has another name now, at which nothing was ever recorded ([`Verdict::unless_moved`]): a user
    /// gave it that, and the record of it was lost. The next look sees it.
    Moved,
}

impl Verdict {
    /// What is missing, or has something else in its place (`now`), was moved by somebody if its inode stands at a path that did not
    /// change since the last seal, as far as the index knows, and at which it is not recorded.
    pub fn unless_moved(
        self,
        now: Option<&Sighting>,
        stands_elsewhere: impl FnOnce() -> Result<bool>,
    ) -> Result<Verdict> {
        let is_gone = match self {
            Verdict::Missing | Verdict::Other => true,
            Verdict::Undone(_) => now.is_none(),
            _ => false,
        };
        Ok(if is_gone && stands_elsewhere()? { Verdict::Moved } else { self })
    }
}

/// Judges a path that changed since the last seal: what is recorded there, what was recorded before each change (oldest
/// first), and what is there now.
///
/// | recorded | now | |
/// | --- | --- | --- |
/// | any | as recorded | [`Verdict::AsRecorded`] |
/// | any | as before a change | [`Verdict::Undone`] |
/// | something | content as before, on another inode | [`Verdict::Undone`] |
/// | something | nothing | [`Verdict::Missing`] |
/// | something | anything else | [`Verdict::Other`] |
/// | nothing | anything else | [`Verdict::New`] |
pub fn judge(recorded: Option<&Sighting>, before: &[Option<Sighting>], now: Option<&Sighting>) -> Verdict {
    if recorded == now {
        return Verdict::AsRecorded;
    }
    if let Some(i) = before.iter().rposition(|b| b.as_ref() == now) {
        return Verdict::Undone(i);
    }
    let (Some(recorded), Some(now)) = (recorded, now) else {
        return if recorded.is_some() { Verdict::Missing } else { Verdict::New };
    };
    if recorded.has_same_content(now) {
        return Verdict::Other; // another file of the same content: bound as it is when it is taken in
    }
    let alike = |b: &Option<Sighting>| b.as_ref().is_some_and(|b| b.has_same_content(now));
    before.iter().rposition(alike).map_or(Verdict::Other, Verdict::Undone)
}

/// Brings the records of a path, and of the inode there, to what is there now: no dot, no change of any state. Gives the
/// entries for which the disk now has to be brought to what their states say.
///
/// After [`Verdict::Other`] and [`Verdict::New`] nothing is recorded at the path: it has to be looked at as one that is
/// not known.
///
/// # Errors
/// If the index cannot be read.
pub fn rebase(
    tx: &mut Tx<'_>,
    at: &At,
    verdict: Verdict,
    images: &[Option<Image>],
    now: Option<&Looked>,
) -> Result<BTreeSet<EntryId>> {
    let mut concerned = BTreeSet::new();
    note_concerned(tx, at, &mut concerned)?;
    match (verdict, now) {
        (Verdict::AsRecorded, Some(now)) => {
            if !refresh(tx, images, now)? {
                concerned.clear();
            }
        }
        (Verdict::AsRecorded, None) | (Verdict::Moved, _) => concerned.clear(),
        (Verdict::Undone(i), now) => {
            forget(tx, at)?;
            if let (Some(Some(image)), Some(now)) = (images.get(i), now) {
                // Of a directory that moved, what it stood for where it had gone has to be shown elsewhere.
                concerned.extend(members_of(tx, &now.key)?);
                restore(tx, at, image, now)?;
                note_concerned(tx, at, &mut concerned)?;
            }
        }
        (Verdict::Missing | Verdict::Other | Verdict::New, _) => forget(tx, at)?,
    }
    Ok(concerned)
}

/// To be called with all that [`Verdict::Moved`] was said of, when all paths are judged. A directory may be recorded below one
/// that has gone back to below itself: its record goes, as if it were missing. Gives the entries that have to be planned.
///
/// # Errors
/// If the index cannot be read.
pub fn check_moved(tx: &mut Tx<'_>, moved: &[(At, NodeKey)]) -> Result<BTreeSet<EntryId>> {
    let mut concerned = BTreeSet::new();
    for (at, node) in moved {
        if tx.place(&at.dir, &at.name)?.is_some_and(|p| p.node == *node) && is_below(tx, &at.dir, node)? {
            concerned.extend(rebase(tx, at, Verdict::Missing, &[], None)?);
        }
    }
    Ok(concerned)
}

/// True if `dir` is recorded below `top`, or is it, or is recorded below itself.
fn is_below(tx: &mut Tx<'_>, dir: &NodeKey, top: &NodeKey) -> Result<bool> {
    let (mut at, mut seen) = (dir.clone(), BTreeSet::new());
    while seen.insert(at.clone()) {
        if at == *top {
            return Ok(true);
        }
        match tx.node(&at)?.and_then(|n| n.names.first().cloned()) {
            Some((above, _)) => at = above,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Records that an inode, which `image` says what it stood for, waits where plans move inodes out of the way
/// ([`Plan::parked`]): a cut took back that it left from there. `lost` are the names it is recorded with and does not
/// have. Gives the entries that have to be planned.
///
/// # Errors
/// If the index cannot be read.
pub fn park_again(
    tx: &mut Tx<'_>,
    image: &Image,
    fingerprint: Fingerprint,
    lost: &[At],
) -> Result<BTreeSet<EntryId>> {
    let (key, kind) = (&image.place.node, image.node.kind);
    let at = Plan::parked(key);
    let mut concerned = BTreeSet::new();
    for name in lost {
        note_concerned(tx, name, &mut concerned)?;
    }
    match lost.split_first() {
        Some((from, others)) => {
            others.iter().try_for_each(|name| forget(tx, name))?;
            record(tx, &Step::Park { from: from.clone(), node: key.clone(), kind }, None)?;
        }
        None => {
            let (key, attrs) = (key.clone(), image.node.given.clone());
            let now = Looked { key, kind, fingerprint, racy: false, attrs, content: None };
            restore(tx, &at, image, &now)?;
        }
    }
    note_time(tx, key, fingerprint.mtime)?;
    note_concerned(tx, &at, &mut concerned)?;
    Ok(concerned)
}

/// Records the time of a directory that waits where plans move inodes out of the way, as a cut left it: it is nobody's
/// doing, and the state's time is set again. What is in it is still to be looked at.
///
/// # Errors
/// If the index cannot be read.
pub fn note_time(tx: &mut Tx<'_>, parked: &NodeKey, mtime: Time) -> Result<()> {
    let Some(node) = tx.node(parked)?.filter(|node| node.kind.is_dir()) else { return Ok(()) };
    if node.given.dir_mtime != Some(mtime) {
        if let Bind::Dir(members) = &node.bind {
            members.iter().for_each(|member| tx.add_pending(*member));
        }
        let given = Attrs { dir_mtime: Some(mtime), ..node.given.clone() };
        tx.put_node(parked, Node { given, wanted: Wanted::UNKNOWN, ..(*node).clone() });
    }
    Ok(())
}

/// Forgets a directory's places when it is not known any more, and those below.
///
/// # Errors
/// If the index cannot be read.
pub fn forget_below(tx: &mut Tx<'_>, dir: &NodeKey) -> Result<BTreeSet<EntryId>> {
    let mut concerned = BTreeSet::new();
    let mut todo = vec![dir.clone()];
    while let Some(dir) = todo.pop() {
        if tx.node(&dir)?.is_some() {
            continue;
        }
        for (name, place) in tx.places_in(&dir, None, usize::MAX)? {
            let at = At { dir: dir.clone(), name };
            note_concerned(tx, &at, &mut concerned)?;
            forget(tx, &at)?;
            if place.claims.is_empty() {
                todo.push(place.node);
            }
        }
    }
    Ok(concerned)
}

/// The entries that a path is recorded with.
fn note_concerned(tx: &mut Tx<'_>, at: &At, concerned: &mut BTreeSet<EntryId>) -> Result<()> {
    let Some(place) = tx.place(&at.dir, &at.name)? else { return Ok(()) };
    concerned.extend(place.claims.iter().map(|c| c.entry));
    if let Some(node) = tx.node(&place.node)?
        && let Bind::Dir(members) = &node.bind
    {
        concerned.extend(members.iter().copied());
    }
    Ok(())
}

/// The inode is where it should be, with the content it should have. Attributes as before a change are not a user's doing;
/// neither is the time of a directory in which anything may have come or gone. True if the disk has to be brought to the
/// state.
fn refresh(tx: &mut Tx<'_>, images: &[Option<Image>], now: &Looked) -> Result<bool> {
    let Some(known) = tx.node(&now.key)? else { return Ok(false) };
    let looked = given_by(now);
    let undone = |given: &Attrs| timeless(given) == timeless(&looked);
    let node = match undone(&known.given) || images.iter().flatten().any(|i| undone(&i.node.given)) {
        true => Node { given: looked, fingerprint: now.fingerprint, ..(*known).clone() },
        false => {
            let given = Attrs { dir_mtime: looked.dir_mtime, ..known.given.clone() };
            Node { given, ..(*known).clone() }
        }
    };
    if node == *known {
        return Ok(false);
    }
    let changed = node.given != known.given || node.fingerprint.mtime != known.fingerprint.mtime;
    let wanted = if changed { Wanted::UNKNOWN } else { known.wanted };
    tx.put_node(&now.key, Node { wanted, ..node });
    Ok(changed)
}

/// Records a path as it was before, with the inode that is there now.
fn restore(tx: &mut Tx<'_>, at: &At, image: &Image, now: &Looked) -> Result<()> {
    let mut binding = Binding { conflict_of: image.place.conflict_of.clone(), ..Binding::default() };
    for claim in &image.place.claims {
        if tx.entry(claim.entry)?.is_some() {
            binding.claims.push(*claim);
        }
    }
    if let Bind::Dir(members) = &image.node.bind {
        for member in members {
            if tx.entry(*member)?.is_some() {
                binding.members.push(*member);
            }
        }
    }
    let is_dir_known = Plan::is_parked_dir(&at.dir) || tx.node(&at.dir)?.is_some();
    if (binding.claims.is_empty() && binding.members.is_empty()) || !is_dir_known {
        return Ok(()); // nothing is known of it any more: it is looked at as new
    }
    let names = tx.node(&now.key)?.map(|n| n.names.clone()).unwrap_or_default();
    let bind = match &image.node.bind {
        // Members come with the place, so that those are seen which are new or gone.
        Bind::Dir(_) => Bind::Dir(members_of(tx, &now.key)?),
        bind => bind.clone(),
    };
    let node = Node {
        kind: now.kind,
        fingerprint: now.fingerprint,
        racy: now.racy,
        given: given_by(now),
        wanted: Wanted::UNKNOWN,
        names,
        bind,
    };
    tx.put_node(&now.key, node);
    settle(tx, &now.key, at, &binding)
}

/// What a known directory stands for.
fn members_of(tx: &mut Tx<'_>, key: &NodeKey) -> Result<Vec<EntryId>> {
    Ok(match tx.node(key)?.as_deref() {
        Some(Node { bind: Bind::Dir(members), .. }) => members.clone(),
        _ => Vec::new(),
    })
}

fn given_by(now: &Looked) -> Attrs {
    match now.kind.is_dir() {
        true => now.attrs.clone(),
        false => timeless(&now.attrs),
    }
}

fn timeless(attrs: &Attrs) -> Attrs {
    Attrs { dir_mtime: None, ..attrs.clone() }
}

// ----- bytes

/// The format that [`encode`] writes.
const FORMAT: u8 = 1;

/// What the paths that `batch` changes were recorded with before, as a row; `None` if it changes none. `replicas` has all
/// that `base` refers to.
pub(crate) fn encode(base: &dyn Read, batch: &Batch, replicas: &ReplicaTable) -> Result<Option<Vec<u8>>> {
    let mut places: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
    for_each_old(base, batch, Table::Places, |key, new, old| {
        if old != *new {
            places.insert(key.to_vec(), old);
        }
        Ok(())
    })?;
    for_each_old(base, batch, Table::Nodes, |_, new, old| {
        let Some(old) = old.filter(|old| new.as_ref() != Some(old)) else { return Ok(()) };
        let node = dec(Table::Nodes, &old, |d| d.node(replicas))?;
        for (dir, name) in &node.names {
            if let btree_map::Entry::Vacant(place) = places.entry(place_key(dir, name).into_vec()) {
                let old = base.get(Table::Places, place.key())?;
                place.insert(old);
            }
        }
        Ok(())
    })?;
    if places.is_empty() {
        return Ok(None);
    }
    let mut e = Encoder::new();
    e.u8(FORMAT);
    e.uint(places.len() as u64);
    for (key, place) in places {
        let (dir, name) = place_of_key(&key)?;
        e.bytes(dir.as_bytes());
        e.bytes(name.as_bytes());
        let before = match place {
            Some(place) => {
                let of = dec(Table::Places, &place, |d| d.place(replicas))?.node;
                base.get(Table::Nodes, of.as_bytes())?.map(|node| (place, node))
            }
            None => None,
        };
        e.u8(before.is_some().into());
        if let Some((place, node)) = before {
            e.bytes(&place);
            e.bytes(&node);
        }
    }
    Ok(Some(e.buf))
}

/// Rows looked up by one scan, if nothing much lies between them.
const LOOKED_UP_AT_ONCE: usize = 64;

/// Calls `each` with the key of each row that `batch` changes in `table`, with its new value, and with the one it has in
/// `base`. New files bring runs of neighbours with next to nothing between them: a scan finds them missing all at once.
fn for_each_old(
    base: &dyn Read,
    batch: &Batch,
    table: Table,
    mut each: impl FnMut(&[u8], &Option<Vec<u8>>, Option<Vec<u8>>) -> Result<()>,
) -> Result<()> {
    let changes: Vec<_> = batch.table(table).iter().collect();
    for run in changes.chunks(LOOKED_UP_AT_ONCE) {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { break };
        let to = [last.as_slice(), &[0]].concat();
        let between = base.scan(table, first, Some(&to), LOOKED_UP_AT_ONCE)?;
        let is_all = between.len() < LOOKED_UP_AT_ONCE;
        let mut between = between.into_iter().peekable();
        for (key, new) in run {
            while between.next_if(|(k, _)| k < *key).is_some() {}
            let old = match between.next_if(|(k, _)| k == *key) {
                Some((_, value)) => Some(value),
                None if is_all || between.peek().is_some() => None,
                None => base.get(table, key)?,
            };
            each(key, new, old)?;
        }
    }
    Ok(())
}

/// Adds what a row says to `images`. Rows are to be read in the order of their commits.
///
/// # Errors
/// If the row is damaged.
pub fn decode(row: &[u8], replicas: &ReplicaTable, images: &mut Images) -> Result<()> {
    let read = |d: &mut Decoder<'_>| {
        if d.u8()? != FORMAT {
            return d.bad("format of what was before");
        }
        let count = d.count(3)?;
        for _ in 0..count {
            let at = (d.node_key()?, d.name()?);
            let image = match d.u8()? {
                0 => None,
                _ => Some(Image {
                    place: whole(d.bytes()?, |d| d.place(replicas))?,
                    node: whole(d.bytes()?, |d| d.node(replicas))?,
                }),
            };
            images.entry(at).or_default().push(image);
        }
        Ok(())
    };
    dec(Table::Before, row, read)
}

fn whole<T>(
    bytes: &[u8],
    read: impl FnOnce(&mut Decoder<'_>) -> std::result::Result<T, Malformed>,
) -> std::result::Result<T, Malformed> {
    let mut d = Decoder::new(bytes);
    let value = read(&mut d)?;
    d.end()?;
    Ok(value)
}

#[cfg(test)]
mod tests;
