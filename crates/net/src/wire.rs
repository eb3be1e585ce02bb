//! Frames as bytes (`docs/protocol.md` draws them).
//!
//! ```text
//! frame    length u32 | type u8 | flags u8 | body of `length` bytes
//! body     payload                                  all types but piece
//!          head length u8 | head | payload          piece: so that its bytes are never copied
//! payload  as it is                                 flag 1 not set
//!          raw length u32 | one zstd frame          flag 1 set
//!          raw length u32 | one LZ4 block           flag 2 set (from protocol 2 on)
//!          raw length u32 | more of the zstd stream flag 4 set (from protocol 4 on)
//! ```
//!
//! Numbers of fixed width are big-endian; the rest is the core's codec. A payload (a piece's head) that has
//! replicas in it starts with the table of them. Lengths are checked against the type's bound before
//! anything is allocated, and memory for a body grows only as its bytes come in.

mod message;

use crate::compress::{Compress, Packer, Packing, Probe, Unpacker};
use driftless_core::codec::{Decoder, Malformed};
use driftless_core::link::{Message, Piece};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;

/// What goes over a carrier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Of the link between two replicas.
    Message(Message),
    /// Between the command line and an engine elsewhere; not looked into here.
    Control(Vec<u8>),
    /// The writer ends the connection in good order, for this reason. Carriers send it themselves.
    Close(String),
}

/// Bytes that are no frame.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Reading or writing failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The stream ended inside a frame.
    #[error("the connection ended in the middle of a {0} frame")]
    Cut(&'static str),
    /// No frame has this type.
    #[error("the other end sent a frame of unknown type {0}")]
    UnknownType(u8),
    /// A flag we do not know.
    #[error("the other end sent a {frame} frame with unknown flags {flags:#x}")]
    UnknownFlags {
        /// Of which type.
        frame: &'static str,
        /// All its flags.
        flags: u8,
    },
    /// More bytes than frames of this type may have.
    #[error("a {frame} frame of {len} bytes is more than the {max} allowed")]
    TooLong {
        /// Of which type.
        frame: &'static str,
        /// What it says.
        len: u64,
        /// What is allowed.
        max: usize,
    },
    /// The body is not what it should be.
    #[error("the other end sent a damaged {frame} frame: {source}")]
    Damaged {
        /// Of which type.
        frame: &'static str,
        /// Where.
        source: Malformed,
    },
    /// The payload does not decompress.
    #[error("the other end sent a {frame} frame that does not decompress: {source}")]
    Compressed {
        /// Of which type.
        frame: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Length, type and flags.
const HEADER_LEN: usize = 6;
/// The flag of each way to pack a payload; one frame has at most one.
const PACKINGS: [(u8, Packing); 3] = [(1, Packing::Zstd), (2, Packing::Lz4), (4, Packing::Stream)];
/// Memory for a body is taken in steps of this as its bytes come in: a length alone costs nothing.
const READ_STEP_LEN: usize = 256 << 10;

/// The sorts of frames. The number is part of the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Type {
    Hello = 1,
    Batch = 2,
    Receipt = 3,
    Held = 4,
    Want = 5,
    Piece = 6,
    NotHere = 7,
    Heartbeat = 8,
    Bye = 9,
    Heads = 10,
    RecipeWant = 11,
    Recipe = 12,
    Control = 16,
    Close = 17,
}

impl Type {
    const ALL: [Type; 14] = [
        Type::Hello,
        Type::Batch,
        Type::Receipt,
        Type::Held,
        Type::Want,
        Type::Piece,
        Type::NotHere,
        Type::Heartbeat,
        Type::Bye,
        Type::Heads,
        Type::RecipeWant,
        Type::Recipe,
        Type::Control,
        Type::Close,
    ];

    fn from_code(code: u8) -> Option<Type> {
        Self::ALL.into_iter().find(|t| *t as u8 == code)
    }

    fn of(frame: &Frame) -> Type {
        match frame {
            Frame::Control(_) => Type::Control,
            Frame::Close(_) => Type::Close,
            Frame::Message(m) => match m {
                Message::Hello(_) => Type::Hello,
                Message::Batch(_) => Type::Batch,
                Message::Receipt(_) => Type::Receipt,
                Message::Held(_) => Type::Held,
                Message::Want(_) => Type::Want,
                Message::Piece(_) => Type::Piece,
                Message::NotHere(_) => Type::NotHere,
                Message::Heartbeat { .. } => Type::Heartbeat,
                Message::Bye { .. } => Type::Bye,
                Message::Heads(_) => Type::Heads,
                Message::RecipeWant(_) => Type::RecipeWant,
                Message::Recipe(_) => Type::Recipe,
            },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Type::Hello => "hello",
            Type::Batch => "batch",
            Type::Receipt => "receipt",
            Type::Held => "held",
            Type::Want => "want",
            Type::Piece => "piece",
            Type::NotHere => "not-here",
            Type::Heartbeat => "heartbeat",
            Type::Bye => "bye",
            Type::Heads => "heads",
            Type::RecipeWant => "recipe-want",
            Type::Recipe => "recipe",
            Type::Control => "control",
            Type::Close => "close",
        }
    }

    /// Most bytes of a body, and of a payload once decompressed.
    fn len_max(self) -> usize {
        match self {
            // Four times the capacity of a batch: the last entry or content may pass it.
            Type::Batch => 64 << 20,
            // An entry takes about 15 bytes of the receipt for its batch.
            Type::Receipt => 4 << 20,
            Type::Piece => 4 << 20,
            // 4096 peers and replicas at some 20 bytes each.
            Type::Hello => 256 << 10,
            // As many at some 90 bytes each.
            Type::Heads => 512 << 10,
            Type::Control => 16 << 20,
            // The most chunks there are, at 19 bytes each, and room.
            Type::Recipe => 1 << 20,
            Type::NotHere | Type::Bye | Type::Close => 16 << 10,
            Type::Held | Type::Want | Type::RecipeWant | Type::Heartbeat => 256,
        }
    }
}

/// Longest bytes of one piece frame that is written; longer pieces are written in parts.
pub const PIECE_PART_LEN_MAX: usize = 256 << 10;

/// So much memory of a message is kept for the next one.
const MEMORY_KEPT_MAX: usize = 8 << 20;

/// Writes frames.
pub struct FrameWriter<W> {
    inner: W,
    /// What the last message was made in.
    memory: Vec<u8>,
    packer: Packer,
    pieces: Probe,
    others: Probe,
}

impl<W: Write> FrameWriter<W> {
    /// On top of `inner`, which should be buffered. Payloads are compressed where it pays, each by itself.
    pub fn new(inner: W, compress: Compress) -> io::Result<Self> {
        Self::with_packer(inner, Packer::new(compress, false)?)
    }

    /// The same, but zstd goes on from payload to payload, for a reader of all frames that knows this (from protocol 4 on).
    pub fn going_on(inner: W, compress: Compress) -> io::Result<Self> {
        Self::with_packer(inner, Packer::new(compress, true)?)
    }

    fn with_packer(inner: W, packer: Packer) -> io::Result<Self> {
        let (pieces, others) = (Probe::default(), Probe::default());
        Ok(Self { inner, memory: Vec::new(), packer, pieces, others })
    }

    /// Writes a frame; it may stay in `inner`'s buffer until [`FrameWriter::flush`]. Frames beyond their bounds are
    /// errors here rather than at the other end.
    pub fn write(&mut self, frame: &Frame) -> Result<(), WireError> {
        match frame {
            Frame::Message(Message::Piece(piece)) => self.write_piece(piece, 0..piece.bytes.len()),
            Frame::Control(body) => self.write_body(Type::Control, &[], body),
            Frame::Close(reason) => {
                self.write_body(Type::Close, &[], cut(reason, message::TEXT_LEN_MAX).as_bytes())
            }
            Frame::Message(m) => {
                let (bytes, start) = message::encode(m, std::mem::take(&mut self.memory));
                let written = self.write_body(Type::of(frame), &[], bytes.get(start..).unwrap_or_default());
                self.memory = kept(bytes);
                written
            }
        }
    }

    /// Writes a part of a piece as a piece of its own.
    pub fn write_piece(&mut self, piece: &Piece, part: Range<usize>) -> Result<(), WireError> {
        let head = message::encode_piece_head(piece, part.start as u64);
        let bytes = piece.bytes.get(part).unwrap_or_default();
        self.write_body(Type::Piece, &head, bytes)
    }

    /// Whether what follows goes as it is although it could be made shorter.
    pub fn pause_compression(&mut self, paused: bool) {
        self.packer.pause(paused);
    }

    /// Passes everything on.
    pub fn flush(&mut self) -> Result<(), WireError> {
        Ok(self.inner.flush()?)
    }

    fn write_body(&mut self, t: Type, head: &[u8], payload: &[u8]) -> Result<(), WireError> {
        let len = head.len() + payload.len();
        if len > t.len_max() {
            return Err(WireError::TooLong { frame: t.name(), len: len as u64, max: t.len_max() });
        }
        let probe = if t == Type::Piece { &mut self.pieces } else { &mut self.others };
        let packed = self.packer.pack(payload, probe)?;
        let mut start = Vec::with_capacity(HEADER_LEN + head.len() + 4);
        let (flags, extra, payload) = match packed {
            Some((packed, packing)) => (flag(packing), Some(payload.len() as u32), packed),
            None => (0, None, payload),
        };
        let len = head.len() + extra.map_or(0, |_| 4) + payload.len();
        start.extend_from_slice(&(len as u32).to_be_bytes());
        start.extend_from_slice(&[t as u8, flags]);
        start.extend_from_slice(head);
        if let Some(raw_len) = extra {
            start.extend_from_slice(&raw_len.to_be_bytes());
        }
        self.inner.write_all(&start)?;
        Ok(self.inner.write_all(payload)?)
    }
}

fn flag(packing: Packing) -> u8 {
    PACKINGS.iter().find(|(_, p)| *p == packing).map_or(0, |(flag, _)| *flag)
}

/// Memory to be used again, if it is not too much to be kept.
fn kept(memory: Vec<u8>) -> Vec<u8> {
    if memory.capacity() <= MEMORY_KEPT_MAX { memory } else { Vec::new() }
}

/// Texts are for people: what is too long is cut, between two characters.
fn cut(text: &str, len_max: usize) -> &str {
    let mut len = text.len().min(len_max);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text[..len]
}

/// Reads frames.
pub struct FrameReader<R> {
    inner: R,
    /// What the last message was read into.
    memory: Vec<u8>,
    unpacker: Unpacker,
}

impl<R: Read> FrameReader<R> {
    /// On top of `inner`, which should be buffered.
    pub fn new(inner: R) -> io::Result<Self> {
        Ok(Self { inner, memory: Vec::new(), unpacker: Unpacker::new()? })
    }

    /// The next frame; `None` at an end between frames.
    pub fn read(&mut self) -> Result<Option<Frame>, WireError> {
        let mut header = [0; HEADER_LEN];
        if !self.read_header(&mut header)? {
            return Ok(None);
        }
        let [a, b, c, d, code, flags] = header;
        let t = Type::from_code(code).ok_or(WireError::UnknownType(code))?;
        let packing = PACKINGS.iter().find(|(flag, _)| *flag == flags).map(|(_, packing)| *packing);
        if packing.is_none() && flags != 0 {
            return Err(WireError::UnknownFlags { frame: t.name(), flags });
        }
        let len = check_len(t, u32::from_be_bytes([a, b, c, d]))?;
        let head = if t == Type::Piece { self.read_head(len)? } else { Vec::new() };
        // A piece's head has its length in front; other frames have none.
        let head_len = if t == Type::Piece { head.len() + 1 } else { 0 };
        let memory = std::mem::take(&mut self.memory);
        let mut payload = self.read_into(memory, t, len - head_len)?;
        if let Some(packing) = packing {
            let unpacked = self.unpack(t, packing, &payload)?;
            self.memory = kept(std::mem::replace(&mut payload, unpacked));
        }
        let decoded = match t {
            Type::Control => return Ok(Some(Frame::Control(payload))),
            Type::Close => message::text(&mut Decoder::new(&payload), payload.len()).map(Frame::Close),
            Type::Piece => message::decode_piece(&head, payload).map(Frame::Message),
            _ => {
                let message = message::decode(t, &payload);
                if packing.is_none() {
                    self.memory = kept(payload);
                }
                message.map(Frame::Message)
            }
        };
        decoded.map(Some).map_err(|source| WireError::Damaged { frame: t.name(), source })
    }

    /// False at the end of the stream.
    fn read_header(&mut self, header: &mut [u8; HEADER_LEN]) -> Result<bool, WireError> {
        let mut filled = 0;
        while filled < HEADER_LEN {
            match self.inner.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(WireError::Cut("new")),
                Ok(n) => filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    fn read_head(&mut self, body_len: usize) -> Result<Vec<u8>, WireError> {
        let short = |at| WireError::Damaged { frame: "piece", source: Malformed { what: "head", at } };
        if body_len == 0 {
            return Err(short(0));
        }
        let len = usize::from(self.read_exact(Type::Piece, 1)?[0]);
        if len + 1 > body_len {
            return Err(short(1));
        }
        self.read_exact(Type::Piece, len)
    }

    fn read_exact(&mut self, t: Type, len: usize) -> Result<Vec<u8>, WireError> {
        self.read_into(Vec::new(), t, len)
    }

    fn read_into(&mut self, mut bytes: Vec<u8>, t: Type, len: usize) -> Result<Vec<u8>, WireError> {
        bytes.clear();
        bytes.reserve(len.min(READ_STEP_LEN));
        let read = Read::by_ref(&mut self.inner).take(len as u64).read_to_end(&mut bytes)?;
        if read < len {
            return Err(WireError::Cut(t.name()));
        }
        Ok(bytes)
    }

    fn unpack(&mut self, t: Type, packing: Packing, payload: &[u8]) -> Result<Vec<u8>, WireError> {
        let Some((raw_len, packed)) = payload.split_first_chunk::<4>() else {
            return Err(WireError::Damaged {
                frame: t.name(),
                source: Malformed { what: "raw length", at: 0 },
            });
        };
        let raw_len = check_len(t, u32::from_be_bytes(*raw_len))?;
        let unpacked = self.unpacker.unpack(packing, packed, raw_len);
        unpacked.map_err(|source| WireError::Compressed { frame: t.name(), source })
    }
}

fn check_len(t: Type, len: u32) -> Result<usize, WireError> {
    let max = t.len_max();
    match usize::try_from(len) {
        Ok(n) if n <= max => Ok(n),
        _ => Err(WireError::TooLong { frame: t.name(), len: len.into(), max }),
    }
}
