//! Links: pairs of pure machines that bring one replica's feed to another (design section 5).
//!
//! [`check_hello`] says whether two replicas may talk and from where in the feed to start. [`Sender`]
//! walks the feed and stacks rows into batches; [`Receiver`] merges them, moves its cursor and joins
//! knowledge; receipts go back. [`Fetcher`] turns contents that a replica lacks into wants by ranges
//! and accounts for the pieces. All take messages, time and a transaction and return messages; who
//! carries these is not their business.
//!
//! Rule K, on which everything rests: *knowledge* ("the state of everything replica R changed up to
//! n") may be claimed only with a batch after which no row follows in the snapshot it was built in,
//! is read in that snapshot, and is joined only by a receiver that has merged every batch since its
//! cursor. A row is skipped only if the receiver's knowledge covers the entry's whole `ctx`.

mod fetch;
mod heads;
mod hello;
mod lag;
mod message;
mod peer;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;
mod window;

pub use fetch::{FetchFile, FetchLimits, Fetcher, PieceVerdict};
pub use heads::{SignedHead, head_of, heads, heads_for, put_head};
pub use hello::{
    HelloVerdict, OwnHello, PROTOCOL_MAX, PROTOCOL_MIN, PROTOCOL_RECIPES, PROTOCOL_STREAM, PROTOCOL_XXH3,
    check_hello, hello, tag_at,
};
pub use lag::Lag;
pub use message::{
    Batch, FeedCursor, Held, Hello, Inline, Message, NotHere, Piece, Receipt, RecipePart, RecipeWant, Role,
    Want,
};
pub use peer::{PeerRow, peer_row, peer_rows, put_peer_row};
pub use receiver::{
    Anomaly, Authority, Echoes, Everything, Merged, REPLICAS_MAX, ReceiveError, Receiver, state_digest,
};
pub use sender::{
    Backlog, INLINE_LEN_MAX, InlineWish, Outgoing, SendFailure, SendFailureReason, SendLimits, Sender,
};
