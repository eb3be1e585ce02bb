//! What goes over a link, as values. How it becomes bytes is not decided here.

use super::heads::SignedHead;
use crate::entry::Entry;
use crate::id::{Dot, EntryId, ReplicaId};
use crate::meta::Digest;
use crate::recipe::{Cut, Recipe};
use crate::tx::Knowledge;
use crate::vv::VersionVector;

/// What a replica may do to its volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Makes changes.
    Writer,
    /// Makes none; what differs on its disk is listed as drift.
    Follower,
}

/// Everything that goes over a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// First message of each side.
    Hello(Hello),
    /// What replicas say of themselves; goes before the batch whose claims it allows.
    Heads(Vec<SignedHead>),
    /// Entry states in feed order.
    Batch(Batch),
    /// Answer to a batch.
    Receipt(Receipt),
    /// What the sender of this message has durably on disk. One for many batches: after a sync that has covered them.
    Held(Held),
    /// Please send bytes of a version.
    Want(Want),
    /// Bytes of a version.
    Piece(Piece),
    /// The version cannot be had here.
    NotHere(NotHere),
    /// Please say what a part of a version is made of. From protocol 3 on.
    RecipeWant(RecipeWant),
    /// What a part of a version is made of. From protocol 3 on.
    Recipe(RecipePart),
    /// Through the data path, so that a frozen feed is noticed.
    Heartbeat {
        /// Head of the sender's feed.
        head: u64,
        /// True once the sender's whole tree is in its feed: a joining replica that has read up to `head` may
        /// scan its own tree then.
        scanned: bool,
    },
    /// No more: why.
    Bye {
        /// For people.
        reason: String,
    },
}

/// Handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Least and greatest protocol version spoken.
    pub protocol: (u16, u16),
    /// The volume both must share; 0 = has none yet and takes the peer's.
    pub volume: u128,
    /// The sender's replica.
    pub replica: ReplicaId,
    /// The name people know the site by.
    pub site: String,
    /// The sender's role.
    pub role: Role,
    /// What it knows (with tags).
    pub knowledge: Knowledge,
    /// How far it has read other replicas' feeds. All of them, since the first message of each side goes out
    /// before it knows who the other is; ordered by replica.
    pub cursors: Vec<FeedCursor>,
    /// Send small contents inside batches (no while its own tree is not scanned yet).
    pub inline: bool,
    /// Its tree was taken in as a whole once: what it has no state of is not in it.
    pub scanned: bool,
}

/// How far somebody has read a replica's feed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeedCursor {
    /// Whose feed.
    pub replica: ReplicaId,
    /// Read up to this position.
    pub n: u64,
    /// Tag of that replica's last own commit at or before `n`; 0 = none.
    pub tag: u64,
}

/// Entry states in feed order, closed under ancestors, built in one snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// Numbers the batches of one sender, from 1; the receipt repeats it.
    pub seq: u64,
    /// Rows after this feed position ...
    pub from: u64,
    /// ... up to this one are in it or need not be sent.
    pub to: u64,
    /// Tag of the sender's last own commit at or before `to`; 0 = none.
    pub tag: u64,
    /// Whole states. Some may stand beyond `to` in the feed: then they only come early.
    pub entries: Vec<Entry>,
    /// Small contents of versions in it.
    pub inline: Vec<Inline>,
    /// The sender's knowledge in the snapshot, if no row follows `to` there.
    pub knowledge: Option<Knowledge>,
}

/// A small content inside a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inline {
    /// Whose.
    pub entry: EntryId,
    /// Which version.
    pub version: Dot,
    /// Its bytes; verified against the version's digest by the receiver.
    pub bytes: Vec<u8>,
}

/// What the receiver did with a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Receipt {
    /// The batch's `seq`; 0 = for no batch, only to tell cursor and knowledge.
    pub seq: u64,
    /// The batch's `to`.
    pub to: u64,
    /// The receiver's cursor now: less than `to` if a batch before was lost.
    pub cursor: u64,
    /// Digests of the merged states whose ctx equals what was sent, in batch order: the sender compares.
    pub states: Vec<(EntryId, u64)>,
    /// Entries not accepted, with the reason.
    pub refused: Vec<(EntryId, String)>,
    /// The receiver's knowledge vector now.
    pub knowledge: VersionVector,
}

/// What a replica *holds*, where knowledge says what it has heard of: everything it knew when it had merged the
/// peer's feed up to `cursor` is on its disk as its rules want it, durably, but for `waiting` entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// The cursor in the feed of the peer that this is told to.
    pub cursor: u64,
    /// Entries whose contents, names or attributes are not on the disk yet.
    pub waiting: u64,
}

/// A range of a version's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// Whose.
    pub entry: EntryId,
    /// Which version.
    pub version: Dot,
    /// The digest it must have.
    pub digest: Digest,
    /// First byte.
    pub offset: u64,
    /// How many. 0 = none: what came was not this version; the answer is why ([`NotHere`]).
    pub len: u64,
}

/// Bytes of a wanted range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Whose.
    pub entry: EntryId,
    /// Which version.
    pub version: Dot,
    /// First byte.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A part of a version whose recipe is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecipeWant {
    /// Whose.
    pub entry: EntryId,
    /// Which version.
    pub version: Dot,
    /// The digest it must have.
    pub digest: Digest,
    /// How it is to be cut.
    pub cut: Cut,
    /// Where the part starts.
    pub offset: u64,
    /// How many bytes it has, at most [`crate::recipe::PART_LEN`].
    pub len: u64,
}

/// The recipe of a part of a version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecipePart {
    /// Whose.
    pub entry: EntryId,
    /// Which version.
    pub version: Dot,
    /// Where the part starts.
    pub offset: u64,
    /// Its chunks.
    pub recipe: Recipe,
}

/// A version cannot be had here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotHere {
    /// Whose.
    pub entry: EntryId,
    /// Which version.
    pub version: Dot,
    /// One of the words below, and what the system said after `: `; anything else is for people.
    pub reason: String,
}

impl NotHere {
    /// Reason: it is not on this disk, and this replica lacks it itself.
    pub const ABSENT: &str = "absent";
    /// Reason: the file is being changed at this moment, or has been since.
    pub const CHANGED: &str = "changed";
    /// Reason: it is on this disk, which fails when it is read.
    pub const UNREADABLE: &str = "unreadable";
    /// Reason: it is recorded as being on this disk, which has something else there that nobody wrote.
    pub const DAMAGED: &str = "damaged";
    /// Reason: it is on this disk, and may not be read.
    pub const DENIED: &str = "denied";
    /// Reason: it is lost, and a person has given it up: who has an earlier version publishes that again.
    pub const GIVEN_UP: &str = "given-up";

    /// True if a reason says that the version does not come there by itself soon.
    pub fn is_final(reason: &str) -> bool {
        let word = reason.split_once(": ").map_or(reason, |(word, _)| word);
        [Self::ABSENT, Self::UNREADABLE, Self::DAMAGED, Self::GIVEN_UP].contains(&word)
    }

    /// The reason's word, and what the system said.
    pub fn parts(&self) -> (&str, &str) {
        self.reason.split_once(": ").unwrap_or((&self.reason, ""))
    }
}
