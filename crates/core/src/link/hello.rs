//! The handshake: may these two replicas talk, and from where in the feed.
//!
//! Each commit that makes dots has a random tag. A peer that knows of us an `n` we have not written,
//! or a commit with another tag, has seen a future that we lost: our index was put back to an older
//! state, or cloned. Then we must go on under a new replica id, or our next changes would reuse dots.

use super::message::{FeedCursor, Hello, Role};
use super::peer::peer_rows;
use crate::id::ReplicaId;
use crate::mutant::mutant;
use crate::rows::Table;
use crate::tx::{Known, Result, Tx, dec};

/// Least protocol version spoken.
pub const PROTOCOL_MIN: u16 = 1;
/// Greatest protocol version spoken.
pub const PROTOCOL_MAX: u16 = PROTOCOL_XXH3;
/// The first protocol version with recipes.
pub const PROTOCOL_RECIPES: u16 = 3;
/// The first one whose frames may be compressed as one stream.
pub const PROTOCOL_STREAM: u16 = 4;
/// The first one in which the chunks of recipes may be known by their XXH3.
pub const PROTOCOL_XXH3: u16 = 5;

/// What a hello says beside what the index knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnHello {
    /// Our volume; 0 = none yet.
    pub volume: u128,
    /// The name people know our site by.
    pub site: String,
    /// Our role.
    pub role: Role,
    /// Whether we want small contents inside batches.
    pub inline: bool,
    /// See [`Hello::scanned`].
    pub scanned: bool,
}

/// What a peer's hello means for us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HelloVerdict {
    /// Talk.
    Fine {
        /// The protocol version to speak: the greatest both know.
        version: u16,
        /// Our [`super::Sender`] starts after this position of our feed.
        start_cursor: u64,
        /// Third replicas that we and the peer know by different tags: nothing may be skipped on their account
        /// ([`super::Sender::distrust`]).
        distrusted: Vec<ReplicaId>,
    },
    /// The peer's index was put back or cloned: it has to go on under a new replica id. Nothing to do here.
    PeerRolledBack,
    /// Our index was put back or cloned: go on under a new replica id and connect again.
    WeAreRolledBack,
    /// The peer has another volume.
    DifferentVolume,
    /// The peer has our replica id: one of the two is a copy of the other's index, or a replica is linked with itself.
    OwnReplicaId,
    /// No protocol version in common.
    Protocol {
        /// What we speak, least and greatest.
        ours: (u16, u16),
        /// What the peer speaks.
        theirs: (u16, u16),
    },
}

/// Our hello, from the last commit.
pub fn hello(tx: &mut Tx<'_>, own: &OwnHello) -> Result<Hello> {
    let cursors = peer_rows(tx)?;
    let cursors = cursors.into_iter().filter(|(_, row)| row.cursor > 0);
    Ok(Hello {
        protocol: (PROTOCOL_MIN, PROTOCOL_MAX),
        volume: own.volume,
        replica: tx.me(),
        site: own.site.clone(),
        role: own.role,
        knowledge: tx.knowledge()?,
        cursors: cursors.map(|(replica, row)| FeedCursor { replica, n: row.cursor, tag: row.tag }).collect(),
        inline: own.inline,
        scanned: own.scanned,
    })
}

/// Judges a peer's hello. `volume` is ours, 0 if there is none yet.
pub fn check_hello(tx: &mut Tx<'_>, volume: u128, peer: &Hello) -> Result<HelloVerdict> {
    let version = PROTOCOL_MAX.min(peer.protocol.1);
    if version < PROTOCOL_MIN.max(peer.protocol.0) {
        let ours = (PROTOCOL_MIN, PROTOCOL_MAX);
        return Ok(HelloVerdict::Protocol { ours, theirs: peer.protocol });
    }
    if volume != 0 && peer.volume != 0 && volume != peer.volume {
        return Ok(HelloVerdict::DifferentVolume);
    }
    if peer.replica == tx.me() && !mutant!(OwnIdAccepted) {
        return Ok(HelloVerdict::OwnReplicaId);
    }
    let cursor = peer.cursors.iter().find(|c| c.replica == tx.me());
    let ours = tx.knowledge()?;
    let me = ours.get(&tx.me()).copied().unwrap_or_default();
    if let Some(claimed) = peer.knowledge.get(&tx.me())
        && !wrote(tx, me, *claimed)?
    {
        return Ok(HelloVerdict::WeAreRolledBack);
    }
    if let Some(cursor) = cursor
        && !mutant!(TagsNotCompared)
        && (cursor.n > tx.head() || !same_tag(cursor.tag, tag_at(tx, cursor.n)?))
    {
        return Ok(HelloVerdict::WeAreRolledBack);
    }
    let known = ours.get(&peer.replica).copied().unwrap_or_default();
    let theirs = peer.knowledge.get(&peer.replica).copied().unwrap_or_default();
    if known.n > theirs.n || (known.n == theirs.n && !same_tag(known.tag, theirs.tag)) {
        return Ok(HelloVerdict::PeerRolledBack);
    }
    let differs =
        |r: &ReplicaId, k: &Known| ours.get(r).is_some_and(|o| o.n == k.n && !same_tag(o.tag, k.tag));
    let distrusted = peer.knowledge.iter().filter(|(r, k)| differs(r, k)).map(|(r, _)| *r).collect();
    Ok(HelloVerdict::Fine { version, start_cursor: cursor.map_or(0, |c| c.n), distrusted })
}

/// True if we, who have written up to `me`, made the commit that ends at `claimed`.
fn wrote(tx: &Tx<'_>, me: Known, claimed: Known) -> Result<bool> {
    if mutant!(TagsNotCompared) {
        return Ok(true);
    }
    Ok(claimed.n <= me.n && same_tag(claimed.tag, tag_at(tx, claimed.n)?))
}

/// 0 stands for "not known" and contradicts nothing.
pub(super) fn same_tag(a: u64, b: u64) -> bool {
    a == 0 || b == 0 || a == b
}

/// Tag of this replica's last own commit at or before feed position `n`; 0 if there is none.
pub fn tag_at(tx: &Tx<'_>, n: u64) -> Result<u64> {
    let to = n.saturating_add(1).to_be_bytes();
    let first_from = |from: u64| -> Result<Option<(u64, u64)>> {
        match tx.scan(Table::Tags, &from.to_be_bytes(), Some(&to), 1)?.first() {
            Some((k, v)) => {
                let at = dec(Table::Tags, k, |d| d.fixed64())?;
                Ok(Some((at, dec(Table::Tags, v, |d| d.fixed64())?)))
            }
            None => Ok(None),
        }
    };
    // Tables are read forwards only, so the last row is searched by halves: at most 64 short reads.
    let Some((mut low, mut tag)) = first_from(0)? else { return Ok(0) };
    let mut high = n;
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match first_from(middle)? {
            Some(found) => (low, tag) = found,
            None => high = middle - 1,
        }
    }
    Ok(tag)
}
