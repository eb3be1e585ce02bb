//! Who belongs to a volume: one document per volume, a set of signed changes that only grows. Every member has it whole; what
//! two members have is joined ([`Members::merge`]), and what follows from the set ([`Members::view`]) is a function of it
//! alone, so that all who have the same changes see the same members, whatever way these came.
//!
//! - A change names its author, numbers itself among that author's changes (`seq`), has a `clock` above all that its author had
//!   seen, and is signed with the author's key. The first one founds the volume; all others count only if their author was
//!   admitted.
//! - Members are ranked: the founder first, then by distance from the founder, then by the order in which they were admitted. Of two
//!   that remove each other the senior one stays.
//! - A removal names the last change of the removed key that its author had seen (`seen`): later ones are void, whatever they
//!   say of their time. A key that was removed never comes back; its site may be admitted again with a new one.
//! - A **Cut** is `replica -> last accepted n`: what that replica changed after it is no state of the volume, anywhere. Of
//!   several for one replica the least counts.
//!
//! How a signature is checked is the caller's: `verify` is a pure function of key, bytes and signature.

mod codec;
#[cfg(test)]
mod tests;
mod view;

pub use view::{Member, Removed, View};

use crate::codec::Malformed;
use crate::id::ReplicaId;
use crate::link::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most changes of one document.
pub const CHANGES_MAX: usize = 4096;
/// Most changes of one author: what one member can make all others keep.
pub const CHANGES_OF_ONE_MAX: usize = 1024;
/// Longest document in bytes: all changes with room for names and addresses.
pub const DOCUMENT_LEN_MAX: usize = 2 << 20;
/// Most addresses of a site, and their length in bytes.
pub const ADDRESSES_MAX: usize = 16;
pub(crate) const ADDRESS_LEN_MAX: usize = 64;
/// Longest name of a site in bytes.
pub const SITE_LEN_MAX: usize = 64;
/// Most replicas that one Cut names.
const CUTS_MAX: usize = 256;
/// Of an author's changes of its addresses the newest are kept.
const ADDRESS_CHANGES_KEPT: usize = 2;

/// The public key of a node: 32 bytes of Ed25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A signature: 64 bytes of Ed25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature")
    }
}

/// Says whether `signature` is that of `key` over the bytes.
pub type Verify<'a> = &'a dyn Fn(&Key, &[u8], &Signature) -> bool;

/// What a member may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// Whether its replicas make changes.
    pub role: Role,
    /// It may pass on what others changed.
    pub may_relay: bool,
    /// It may admit, change and remove members, and write Cuts.
    pub may_invite: bool,
}

/// What a change does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Begins the document: the author is the first member and may do everything.
    Found {
        /// The author's site.
        site: String,
    },
    /// Admits a key, or changes what it may do.
    Put {
        /// The key.
        key: Key,
        /// Its site.
        site: String,
        /// What it may do.
        rights: Rights,
        /// Where the site is, as far as the author knows.
        addresses: Vec<String>,
    },
    /// Removes a key for good.
    Remove {
        /// The key.
        key: Key,
        /// The last of its changes to this document that still counts.
        seen: u64,
        /// Where its replicas end.
        cuts: Vec<(ReplicaId, u64)>,
    },
    /// Ends replicas, as after a failover.
    Cut(Vec<(ReplicaId, u64)>),
    /// The author speaks for this replica.
    Replica(ReplicaId),
    /// Where the author's site is.
    At(Vec<String>),
    /// The author's site has another key from now on.
    Rekey {
        /// The new key.
        key: Key,
        /// Its signature over [`rekey_bytes`].
        proof: Signature,
    },
    /// What guards hold may be done everywhere.
    Approve {
        /// Newer versions come back instead of a tree's going back.
        heal: bool,
        /// Milliseconds since 1970, for people.
        at_ms: u64,
    },
}

/// A signed change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Who made it.
    pub author: Key,
    /// Its number among its author's changes, from 1.
    pub seq: u64,
    /// Greater than that of every change its author had seen.
    pub clock: u64,
    /// What it does.
    pub action: Action,
    /// By the author, over [`signed_bytes`].
    pub signature: Signature,
}

/// Identity and order of changes: by clock, then author, then number, then bytes.
type Place = (u64, Key, u64, [u8; 32]);

/// What was not taken of another member's document. Nothing was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotMerged {
    /// The bytes are no document.
    #[error("the membership it sent is damaged: {0}")]
    Damaged(#[from] Malformed),
    /// It is about another volume.
    #[error("the membership it sent is of another volume")]
    OtherVolume,
    /// It was founded by somebody else than the one that is known.
    #[error("the membership it sent was begun by another key: the volume was begun twice, or somebody lies")]
    OtherFounder,
    /// A signature is wrong.
    #[error("the membership it sent has a change that its author did not sign")]
    Forged,
    /// More changes than anybody needs.
    #[error("the membership it sent has too many changes")]
    TooMany,
}

/// The document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Members {
    volume: u128,
    changes: BTreeMap<Place, Change>,
}

impl Members {
    /// One that knows of nobody yet.
    pub fn new(volume: u128) -> Members {
        Members { volume, changes: BTreeMap::new() }
    }

    /// Nobody has founded it yet, as far as is known here.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes it has.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// The volume it is about.
    pub fn volume(&self) -> u128 {
        self.volume
    }

    /// All changes, in order.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.values()
    }

    /// The change that `author` would make next, to be signed over [`signed_bytes`].
    pub fn next(&self, author: Key, action: Action) -> Unsigned {
        let seq = self.last_seq(author) + 1;
        let clock = self.changes.keys().next_back().map_or(0, |p| p.0).saturating_add(1);
        Unsigned { volume: self.volume, author, seq, clock, action }
    }

    /// The greatest number of `author`'s changes that is known.
    pub fn last_seq(&self, author: Key) -> u64 {
        self.changes.values().filter(|c| c.author == author).map(|c| c.seq).max().unwrap_or(0)
    }

    /// Takes a change that this node made.
    pub fn add(&mut self, change: Change) {
        self.changes.insert(codec::place(self.volume, &change), change);
        self.prune();
    }

    /// Takes what another member has. True if something was new.
    ///
    /// # Errors
    /// If it is not what an honest member sends; nothing is taken then.
    pub fn merge(&mut self, bytes: &[u8], verify: Verify<'_>) -> Result<bool, NotMerged> {
        let theirs = Members::decode(bytes)?;
        if theirs.volume != self.volume {
            return Err(NotMerged::OtherVolume);
        }
        if !self.is_empty() && theirs.founder() != self.founder() {
            return Err(NotMerged::OtherFounder);
        }
        let mut merged = self.clone();
        for (place, change) in theirs.changes {
            if merged.changes.contains_key(&place) {
                continue;
            }
            if !change.is_signed(self.volume, verify) {
                return Err(NotMerged::Forged);
            }
            merged.changes.insert(place, change);
        }
        merged.prune();
        merged.check_bounds()?;
        let new = merged.changes.len() != self.changes.len() || merged.changes.keys().ne(self.changes.keys());
        *self = merged;
        Ok(new)
    }

    /// A document as it was stored here; its signatures were checked when it came.
    ///
    /// # Errors
    /// If the bytes are no document.
    pub fn decode(bytes: &[u8]) -> Result<Members, Malformed> {
        codec::decode(bytes)
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// What follows from it.
    pub fn view(&self) -> View {
        view::view(self)
    }

    /// The author of the first change that founds.
    fn founder(&self) -> Option<Key> {
        let founds = |c: &&Change| matches!(c.action, Action::Found { .. });
        self.changes.values().find(founds).map(|c| c.author)
    }

    /// Drops what can never count: changes of keys that nobody admitted, and addresses that are older than others.
    fn prune(&mut self) {
        let admitted = view::admitted(self);
        let mut newest: BTreeMap<Key, BTreeSet<u64>> = BTreeMap::new();
        for change in self.changes.values().filter(|c| matches!(c.action, Action::At(_))) {
            let seqs = newest.entry(change.author).or_default();
            seqs.insert(change.seq);
            if seqs.len() > ADDRESS_CHANGES_KEPT {
                seqs.pop_first();
            }
        }
        self.changes.retain(|_, c| {
            let old = matches!(c.action, Action::At(_))
                && newest.get(&c.author).is_some_and(|seqs| !seqs.contains(&c.seq));
            admitted.contains(&c.author) && !old
        });
    }

    fn check_bounds(&self) -> Result<(), NotMerged> {
        let mut of: BTreeMap<Key, usize> = BTreeMap::new();
        self.changes.values().for_each(|c| *of.entry(c.author).or_default() += 1);
        if self.changes.len() > CHANGES_MAX || of.values().any(|n| *n > CHANGES_OF_ONE_MAX) {
            return Err(NotMerged::TooMany);
        }
        Ok(())
    }
}

/// A change without its signature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unsigned {
    volume: u128,
    author: Key,
    seq: u64,
    clock: u64,
    action: Action,
}

impl Unsigned {
    /// What is to be signed.
    pub fn bytes(&self) -> Vec<u8> {
        codec::signed_bytes(self.volume, self.author, self.seq, self.clock, &self.action)
    }

    /// With its signature.
    pub fn signed(self, signature: Signature) -> Change {
        let Unsigned { author, seq, clock, action, .. } = self;
        Change { author, seq, clock, action, signature }
    }
}

impl Change {
    fn is_signed(&self, volume: u128, verify: Verify<'_>) -> bool {
        let bytes = codec::signed_bytes(volume, self.author, self.seq, self.clock, &self.action);
        let proven = match &self.action {
            Action::Rekey { key, proof } => verify(key, &rekey_bytes(volume, self.author, *key), proof),
            _ => true,
        };
        proven && verify(&self.author, &bytes, &self.signature)
    }
}

/// What a new key signs to prove that whoever names it has it.
pub fn rekey_bytes(volume: u128, old: Key, new: Key) -> Vec<u8> {
    [&b"driftless rekey 1\n"[..], &volume.to_be_bytes(), &old.0, &new.0].concat()
}

/// What is signed to say: `replica` has made its changes up to `n`, the last of them in the commit with this tag.
pub fn head_bytes(volume: u128, replica: ReplicaId, n: u64, tag: u64) -> Vec<u8> {
    let numbers = [replica.0, n, tag].map(u64::to_be_bytes).concat();
    [&b"driftless head 1\n"[..], &volume.to_be_bytes(), &numbers].concat()
}
