//! Frames over a pair of byte streams: one thread reads, one writes.
//!
//! Outgoing frames wait in two lanes: pieces of contents in one, everything else in the other, which goes first; so
//! a small message does not wait behind a large transfer. Long pieces are written in parts, with a look at the
//! other lane after each. Order is kept within a lane, not between the lanes.
//!
//! Both directions are bounded in bytes. Incoming frames count until the consumer drops or unwraps
//! them; when they are too many, the reader stops reading and the peer feels it.
//!
//! The end. [`Carrier::close`] lets both lanes drain, then says why; the peer sees [`End::Closed`]. Any other end of the
//! stream is [`End::Broken`]. Dropping a carrier stops the writer at once and leaves the peer with a broken stream.

use crate::compress::Compress;
use crate::greeting::{GreetingError, greet, read_greeting};
use crate::line::{Gauge, Line};
use crate::rate::{Rate, RateLimit, Traffic};
use crate::wire::{Frame, FrameReader, FrameWriter, PIECE_PART_LEN_MAX, WireError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use driftless_core::Entry;
use driftless_core::link::{Batch, Message, PROTOCOL_STREAM, Piece};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of frames waiting to be written; beyond it [`Carrier::send`] waits. One more frame may always pass it.
const OUT_BYTES_MAX: usize = 32 << 20;
/// Bytes of frames read and not taken yet; beyond it nothing is read.
const IN_BYTES_MAX: usize = 32 << 20;
/// After so many bytes of other frames a waiting piece has its turn, so that contents never starve.
const FAIR_BYTES: usize = 4 << 20;
/// Buffer of each direction: many small messages in one system call.
const BUFFER_LEN: usize = 64 << 10;
/// With a rate limit at most this share of a second passes between two looks at the lanes.
const PACED_PARTS_PER_S: u64 = 20;
/// The first protocol version whose ends know LZ4.
const LZ4_SINCE: u16 = 2;
/// Shortest part of a piece, however low the limit.
const PACED_PART_LEN_MIN: usize = 4 << 10;

/// How a carrier works.
#[derive(Clone, Debug, Default)]
pub struct CarrierOptions {
    /// Most bytes per second that are written.
    pub rate: Rate,
    /// How payloads are compressed where it pays.
    pub compress: Compress,
    /// Tells how fast the line is, for [`Compress::Auto`]; without it every line counts as slow.
    pub gauge: Option<Gauge>,
    /// Where bytes are counted: frames as they are written and read.
    pub traffic: Traffic,
}

/// Why a carrier could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The other end is not what we want.
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    /// The system did not give what it takes.
    #[error("cannot start the connection: {0}")]
    Io(#[from] io::Error),
}

/// The connection has ended: nothing can be sent any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the connection has ended: {0}")]
pub struct SendError(pub String);

/// How the incoming stream ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// In good order, for this reason.
    Closed(String),
    /// Without a word, or by an error.
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Closed(reason) => write!(f, "the other end closed the connection: {reason}"),
            End::Broken(why) => write!(f, "the connection broke: {why}"),
        }
    }
}

/// What comes out of a carrier.
#[derive(Debug)]
pub enum Incoming {
    /// A frame. It counts against the bound of incoming bytes until it is dropped or unwrapped.
    Frame(Received),
    /// The last thing that comes.
    End(End),
}

/// A frame that was read.
#[derive(Debug)]
pub struct Received {
    frame: Frame,
    permit: Permit,
}

impl Received {
    /// The frame; room for others is made.
    pub fn into_frame(self) -> Frame {
        self.frame
    }

    /// The frame, and its share of the bound: for who passes the frame on to somebody who may be slow.
    pub fn into_parts(self) -> (Frame, Permit) {
        (self.frame, self.permit)
    }
}

/// A share of the bound of incoming bytes. Dropping it makes room for others.
#[derive(Debug)]
pub struct Permit {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// One end of a connection.
pub struct Carrier {
    out: Arc<Outbox>,
    incoming: Receiver<Incoming>,
    /// Disconnected when the writer has ended.
    writer_ended: Receiver<()>,
    budget: Arc<Budget>,
    version: u16,
}

impl Carrier {
    /// Greets the other end, waits for its greeting and starts the threads. Dropping `writer` must end the
    /// stream for the peer, as it does with pipes.
    pub fn start(
        reader: impl Read + Send + 'static,
        mut writer: impl Write + Send + 'static,
        options: CarrierOptions,
    ) -> Result<Carrier, StartError> {
        greet(&mut writer).map_err(GreetingError::Io)?;
        let mut reader = BufReader::with_capacity(BUFFER_LEN, reader);
        let version = read_greeting(&mut reader)?;
        let frames = FrameReader::new(Counted { inner: reader, traffic: options.traffic.clone() })?;
        let out = Arc::new(Outbox::default());
        let paced = Paced {
            inner: writer,
            rate: options.rate.clone(),
            limit: None,
            out: out.clone(),
            traffic: options.traffic,
        };
        let compress = match options.compress {
            Compress::Lz4 if version < LZ4_SINCE => Compress::Zstd,
            other => other,
        };
        let buffered = BufWriter::with_capacity(BUFFER_LEN, paced);
        let writer = match version {
            PROTOCOL_STREAM.. => FrameWriter::going_on(buffered, compress)?,
            _ => FrameWriter::new(buffered, compress)?,
        };
        let budget = Arc::new(Budget::default());
        let (to_consumer, incoming) = unbounded();
        let (writer_out, reader_out, reader_budget) = (out.clone(), out.clone(), budget.clone());
        std::thread::Builder::new()
            .name("carrier-read".into())
            .spawn(move || read_all(frames, &to_consumer, &reader_budget, &reader_out))?;
        // Only what is compressed by the way asks what the line is like.
        let line = Line::new(options.gauge.filter(|_| compress == Compress::Auto));
        let (writer_alive, writer_ended) = bounded::<()>(0);
        std::thread::Builder::new().name("carrier-write".into()).spawn(move || {
            write_all(writer, &writer_out, &options.rate, line);
            drop(writer_alive);
        })?;
        Ok(Carrier { out, incoming, writer_ended, budget, version })
    }

    /// A carrier over this process's standard input and output. Nothing else may read or write them.
    pub fn stdio(options: CarrierOptions) -> Result<Carrier, StartError> {
        use std::os::fd::AsFd;
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        Carrier::start(std::fs::File::from(input), std::fs::File::from(output), options)
    }

    /// The protocol version that both ends speak.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Puts a frame into its lane; waits while too many bytes are in front of it.
    pub fn send(&self, frame: Frame) -> Result<(), SendError> {
        self.out.put(frame)
    }

    /// True if [`Carrier::send`] would not wait now.
    pub fn has_room(&self) -> bool {
        self.out.lock().bytes < OUT_BYTES_MAX
    }

    /// What comes in, to wait for together with other channels. Ends with [`Incoming::End`].
    pub fn incoming(&self) -> &Receiver<Incoming> {
        &self.incoming
    }

    /// Waits for the next frame.
    pub fn recv(&self) -> Result<Frame, End> {
        match self.incoming.recv() {
            Ok(Incoming::Frame(received)) => Ok(received.into_frame()),
            Ok(Incoming::End(end)) => Err(end),
            Err(_) => Err(End::Broken("the connection had ended before".into())),
        }
    }

    /// Ends the connection at once: whoever waits in [`Carrier::send`] is woken, and nothing more is written.
    pub fn break_off(&self, why: &str) {
        self.out.break_off(why);
    }

    /// Writes what waits, then the reason, and ends our direction. Waits until all that is written, at most
    /// `patience`; then the connection is broken off. The other direction goes on until the peer ends it.
    pub fn close(&self, reason: &str, patience: Duration) -> Result<(), SendError> {
        self.out.close(reason);
        if self.writer_ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            self.out.break_off("the other end does not read");
        }
        match &self.out.lock().broken {
            Some(why) => Err(SendError(why.clone())),
            None => Ok(()),
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.out.break_off("the connection was dropped");
        self.budget.end();
    }
}

// ----- the reader

/// Bytes read and not taken yet.
#[derive(Default, Debug)]
struct Budget {
    /// (bytes, nobody takes any more).
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Budget {
    fn lock(&self) -> MutexGuard<'_, (usize, bool)> {
        // Two numbers are whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `bytes`, then waits until there is room for more. False if nobody takes any more.
    fn take(&self, bytes: usize) -> bool {
        let mut state = self.lock();
        while state.0 >= IN_BYTES_MAX && !state.1 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.0 += bytes;
        !state.1
    }

    fn give_back(&self, bytes: usize) {
        self.lock().0 -= bytes;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().1 = true;
        self.changed.notify_all();
    }
}

fn read_all<R: Read>(mut frames: FrameReader<R>, to: &Sender<Incoming>, budget: &Arc<Budget>, out: &Outbox) {
    let end = loop {
        let frame = match frames.read() {
            Ok(Some(Frame::Close(reason))) => break End::Closed(reason),
            Ok(Some(frame)) => frame,
            Ok(None) => break End::Broken("the other end hung up".into()),
            Err(e) => break End::Broken(e.to_string()),
        };
        let bytes = size_of_frame(&frame);
        let goes_on = budget.take(bytes);
        let received = Received { frame, permit: Permit { bytes, budget: budget.clone() } };
        if !goes_on || to.send(Incoming::Frame(received)).is_err() {
            return;
        }
    };
    if let End::Broken(why) = &end {
        out.break_off(why);
    }
    // If nobody listens any more, nobody needs to know.
    let _ = to.send(Incoming::End(end));
}

// ----- the writer

/// What waits to be written.
#[derive(Default)]
struct Outbox {
    state: Mutex<OutState>,
    changed: Condvar,
}

#[derive(Default)]
struct OutState {
    messages: VecDeque<Frame>,
    pieces: VecDeque<Piece>,
    /// How much of the first piece is written.
    piece_at: usize,
    bytes: usize,
    /// Bytes of messages written since the last piece.
    unfair_bytes: usize,
    closing: Option<String>,
    broken: Option<String>,
}

enum Job {
    Frame(Frame),
    Part { piece: Piece, at: usize },
    Close(String),
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, OutState> {
        // No code that can panic runs between the changes of one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, frame: Frame) -> Result<(), SendError> {
        let bytes = size_of_frame(&frame);
        let mut state = self.lock();
        loop {
            if let Some(why) = &state.broken {
                return Err(SendError(why.clone()));
            }
            if state.closing.is_some() {
                return Err(SendError("it is being closed".into()));
            }
            if state.bytes < OUT_BYTES_MAX {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.bytes += bytes;
        match frame {
            Frame::Message(Message::Piece(piece)) => state.pieces.push_back(piece),
            frame => state.messages.push_back(frame),
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn close(&self, reason: &str) {
        self.lock().closing.get_or_insert_with(|| reason.to_owned());
        self.changed.notify_all();
    }

    fn break_off(&self, why: &str) {
        self.lock().broken.get_or_insert_with(|| why.to_owned());
        self.changed.notify_all();
    }

    /// The next job; with `wait` only `None` when broken.
    fn take(&self, wait: bool) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.broken.is_some() {
                return None;
            }
            if let Some(job) = state.next() {
                drop(state);
                self.changed.notify_all();
                return Some(job);
            }
            if !wait {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts back what is left of a piece.
    fn put_back(&self, piece: Piece, at: usize) {
        let mut state = self.lock();
        state.bytes += size_of_piece(&piece);
        state.piece_at = at;
        state.pieces.push_front(piece);
    }

    /// Waits, unless the connection breaks before.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.lock();
        while state.broken.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl OutState {
    fn next(&mut self) -> Option<Job> {
        let fair = self.unfair_bytes < FAIR_BYTES || self.pieces.is_empty();
        if fair && let Some(frame) = self.messages.pop_front() {
            let bytes = size_of_frame(&frame);
            self.bytes -= bytes;
            self.unfair_bytes = if self.pieces.is_empty() { 0 } else { self.unfair_bytes + bytes };
            return Some(Job::Frame(frame));
        }
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= size_of_piece(&piece);
            self.unfair_bytes = 0;
            return Some(Job::Part { piece, at: std::mem::take(&mut self.piece_at) });
        }
        self.closing.clone().map(Job::Close)
    }
}

fn write_all<W: Write>(mut w: FrameWriter<W>, out: &Outbox, rate: &Rate, line: Line) {
    if let Err(e) = write_until_closed(&mut w, out, rate, line) {
        out.break_off(&e.to_string());
    }
}

fn write_until_closed<W: Write>(
    w: &mut FrameWriter<W>,
    out: &Outbox,
    rate: &Rate,
    mut line: Line,
) -> Result<(), WireError> {
    loop {
        let job = match out.take(false) {
            Some(job) => job,
            None => {
                w.flush()?;
                match out.take(true) {
                    Some(job) => job,
                    None => return Ok(()),
                }
            }
        };
        match job {
            Job::Frame(frame) => {
                // A limit is a slow line.
                w.pause_compression(rate.get().is_none() && line.is_fast(size_of_frame(&frame)));
                w.write(&frame)?;
            }
            Job::Part { piece, at } => {
                let end = piece.bytes.len().min(at + part_len(rate.get()));
                w.pause_compression(rate.get().is_none() && line.is_fast(end - at));
                w.write_piece(&piece, at..end)?;
                if end < piece.bytes.len() {
                    out.put_back(piece, end);
                }
            }
            Job::Close(reason) => {
                w.write(&Frame::Close(reason))?;
                return w.flush();
            }
        }
    }
}

/// With a limit, parts are short enough for the lanes to be looked at often.
fn part_len(bytes_per_s_max: Option<u64>) -> usize {
    let paced = bytes_per_s_max.map_or(u64::MAX, |rate| rate / PACED_PARTS_PER_S);
    usize::try_from(paced).unwrap_or(usize::MAX).clamp(PACED_PART_LEN_MIN, PIECE_PART_LEN_MAX)
}

/// Lets bytes through no faster than allowed.
struct Paced<W> {
    inner: W,
    rate: Rate,
    limit: Option<RateLimit>,
    out: Arc<Outbox>,
    traffic: Traffic,
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    traffic: Traffic,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(bytes)?;
        self.traffic.received(len);
        Ok(len)
    }
}

impl<W: Write> Write for Paced<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let allowed = self.rate.get();
        if self.limit.as_ref().map(RateLimit::bytes_per_s) != allowed {
            self.limit = allowed.map(RateLimit::new);
        }
        let Some(limit) = &mut self.limit else {
            let written = self.inner.write(bytes)?;
            self.traffic.sent(written);
            return Ok(written);
        };
        // So much at once that the pauses stay short.
        let len = bytes.len().min(part_len(Some(limit.bytes_per_s())));
        let written = self.inner.write(&bytes[..len])?;
        self.traffic.sent(written);
        let pause = limit.take(written, Instant::now());
        self.out.pause(pause);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// About what a frame takes in memory.
fn size_of_frame(frame: &Frame) -> usize {
    match frame {
        Frame::Control(body) => SMALL + body.len(),
        Frame::Close(reason) => SMALL + reason.len(),
        Frame::Message(message) => size_of_message(message),
    }
}

/// What a message takes beside its bytes, and a small part of one.
const SMALL: usize = 256;

/// About what a message takes in memory, in bytes.
pub fn size_of_message(message: &Message) -> usize {
    match message {
        Message::Piece(piece) => size_of_piece(piece),
        Message::Batch(batch) => SMALL + size_of_batch(batch),
        Message::Receipt(r) => SMALL + r.states.len() * 32 + r.refused.len() * SMALL,
        Message::Recipe(r) => SMALL + std::mem::size_of_val(r.recipe.items()),
        _ => SMALL,
    }
}

/// About what a batch takes in memory, in bytes.
pub fn size_of_batch(batch: &Batch) -> usize {
    let inline: usize = batch.inline.iter().map(|i| i.bytes.len() + SMALL).sum();
    inline + batch.entries.iter().map(size_of_entry).sum::<usize>()
}

fn size_of_piece(piece: &Piece) -> usize {
    SMALL + piece.bytes.len()
}

fn size_of_entry(e: &Entry) -> usize {
    let xattrs: usize = e.meta.1.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
    size_of::<Entry>() + e.links.len() * 256 + e.data.len() * 128 + e.hist.len() * 48 + xattrs
}
