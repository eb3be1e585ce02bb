//! Taking back a version that nobody holds: a power cut took its content before anybody else had it.

use super::{Result, Tx, change_with, names, records};
use crate::disk::{Claim, NodeKey, Place};
use crate::entry::Version;
use crate::id::{Dot, EntryId, Name, ReplicaId};
use crate::link;
use crate::meta::Content;

/// True if `version` was made here or by `peer` and, as far as is known, no third replica has ever had its state: if it is
/// neither here nor there, it is nowhere.
///
/// # Errors
/// If the index cannot be read.
pub fn may_withdraw(tx: &mut Tx<'_>, id: EntryId, version: Dot, peer: ReplicaId) -> Result<bool> {
    let Some(row) = tx.entry(id)? else { return Ok(false) };
    let ours = version.replica == tx.me() || version.replica == peer;
    if !ours || !row.entry.counting().any(|v| v.dot == version) {
        return Ok(false);
    }
    let others = link::peer_rows(tx)?;
    Ok(others.iter().all(|(r, known)| *r == peer || !known.knowledge.covers(version)))
}

/// Takes `version` back, as a change that follows it. An earlier version that this disk still shows comes again in its
/// place; if there is none and no other version counts, the entry is removed.
///
/// # Errors
/// If the index cannot be read.
pub fn withdraw(tx: &mut Tx<'_>, id: EntryId, version: Dot) -> Result<()> {
    let earlier = earlier_version(tx, id)?;
    let content = earlier.as_ref().map(|e| e.content.clone());
    let dot = change_with(tx, id, |tx, e, dot| {
        let stamp = tx.stamp_above(e.stamp_max());
        e.data = e.data.iter().filter(|v| e.counts(v) && v.dot != version).cloned().collect();
        e.data.extend(content.map(|content| Version { dot, stamp, content }));
        e.data.sort_by_key(|v| v.dot);
        if e.data.is_empty() {
            let ctx = e.ctx.clone();
            e.links.iter_mut().for_each(|link| link.gone.join(&ctx));
            e.removed.join(&ctx);
        }
        Ok(())
    })?;
    if let Some(Earlier { spot: (dir, name), mut place, claim, .. }) = earlier {
        let same = |c: &&mut Claim| (c.entry, c.version) == (claim.entry, claim.version);
        place.claims.iter_mut().filter(same).for_each(|c| c.version = dot);
        let node = place.node.clone();
        records::set_place(tx, (&dir, &name), place)?;
        names::follow_version(tx, &node, claim, dot)?;
    }
    tx.add_pending(id);
    Ok(())
}

/// A version on this disk that counts no more.
struct Earlier {
    spot: (NodeKey, Name),
    place: Place,
    claim: Claim,
    content: Content,
}

fn earlier_version(tx: &mut Tx<'_>, id: EntryId) -> Result<Option<Earlier>> {
    let row = tx.entry_must(id)?;
    for (dir, name, place) in records::places_of(tx, id)? {
        let Some(claim) = place.claims.iter().find(|c| c.entry == id).copied() else { continue };
        if row.entry.counting().any(|v| v.dot == claim.version) {
            continue;
        }
        if let Some(content) = records::recorded_content(&*tx.node_must(&place.node)?) {
            return Ok(Some(Earlier { spot: (dir, name), place, claim, content }));
        }
    }
    Ok(None)
}
