//! How messages become bytes, and how bytes get to another machine.
//!
//! [`wire`] turns [`Frame`]s into bytes and back; [`Carrier`] moves frames over any pair of byte
//! streams with one reader thread and one writer thread; [`ssh`] starts the other end on another machine and makes a
//! carrier of its standard input and output; [`tls`] makes the streams between nodes that know each other by their keys
//! ([`identity`]). What the frames mean is decided elsewhere: link messages in the
//! core, control bodies between the command line and an engine in the node.
//!
//! `docs/protocol.md` describes the format byte by byte.

mod carrier;
mod compress;
mod greeting;
pub mod identity;
mod line;
mod rate;
pub mod ssh;
mod sys;
pub mod tls;
pub mod wire;

pub use carrier::{
    Carrier, CarrierOptions, End, Incoming, Permit, Received, SendError, StartError, size_of_batch,
    size_of_message,
};
pub use compress::Compress;
pub use greeting::GreetingError;
pub use line::Gauge;
pub use rate::{Rate, RateLimit, Traffic};
pub use wire::{Frame, WireError};
