//! zstd or LZ4 where it pays. A sample decides, but after what has shrunk: what does not shrink by a tenth is stored, and a stream that
//! goes on like that is probed only now and then.
//!
//! From protocol 4 on zstd goes on from payload to payload: files of one tree resemble each other more than themselves, and
//! what matches over a long distance need not be looked through. Measured on trees of sources against a level 1 that begins
//! anew with each 256 KiB: about half the bytes in three quarters of the time.

use std::io;
use zstd::bulk::Compressor;
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// Level 1: more than a gigabyte per second on what it cannot shrink, 300 MB/s on what it can.
const LEVEL: i32 = 1;
/// Bytes compressed to find out whether the rest pays.
const SAMPLE_LEN: usize = 64 << 10;
/// Payloads shorter than this are not worth a try.
const LEN_MIN: usize = 200;
/// After so many payloads in a row that did not shrink ...
const STREAK: u32 = 4;
/// ... only each of this many is probed.
const SKIPPED: u32 = 15;

/// A decompressor keeps this much (as a power of two: 2 MiB) of what it gave, and more is refused. Levels up to 3 want no
/// more for any length, and a stranger could ask for 128 MiB.
const WINDOW_LOG_MAX: u32 = 21;
/// A stream that goes on looks so far back (as a power of two: 4 MiB), and each end keeps as much, once there is anything to be
/// compressed: what it has found in trees of sources grows little beyond.
const STREAM_WINDOW_LOG: u32 = 22;
/// Places of it that are remembered (as a power of two, of 4 bytes each): level 1 has a quarter of them, too few for the window.
const STREAM_HASH_LOG: u32 = 17;
/// Memory taken for what is unpacked before any of it is seen, per packed byte: states shrink to about a tenth, and what
/// fits is unpacked in one go, without the window.
const FIRST_PER_BYTE: usize = 16;
/// Memory for what is unpacked then doubles, but by this much at least.
const GROWTH_LEN_MIN: usize = 64 << 10;

/// LZ4 makes at most 255 bytes of one, so who says more lies, and memory is taken for no more.
const LZ4_RATIO_MAX: usize = 256;

/// Holes are looked for in blocks of this length, that of most file systems.
const HOLE_LEN: usize = 4096;

/// How payloads are made shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compress {
    /// Not at all.
    None,
    /// Quickly. Where the other end does not know it (before protocol 2), zstd.
    Lz4,
    /// Well.
    Zstd,
    /// Well, unless the line is so fast that it would only cost time. Holes are not sent over such a line either.
    #[default]
    Auto,
}

/// What a stream of payloads of one sort was like so far.
#[derive(Default, Debug)]
pub(crate) struct Probe {
    streak: u32,
    skip: u32,
    /// The last one shrank: the next one is compressed without a sample.
    shrank: bool,
}

impl Probe {
    fn should_try(&mut self, len: usize) -> bool {
        if len < LEN_MIN {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        true
    }

    fn note(&mut self, shrank: bool) {
        self.shrank = shrank;
        self.streak = if shrank { 0 } else { self.streak + 1 };
        if self.streak >= STREAK {
            self.skip = SKIPPED;
        }
    }
}

/// True if at least half of the blocks are zeros, as the holes of a sparse file are read. Other blocks are told by their first bytes.
fn is_mostly_holes(raw: &[u8]) -> bool {
    // Bytes are taken together so that the compiler can do many at once.
    let is_zero =
        |block: &&[u8]| block.chunks(64).all(|bytes| bytes.iter().fold(0, |all, byte| all | byte) == 0);
    let blocks = raw.chunks_exact(HOLE_LEN);
    let count = blocks.len();
    count > 0 && 2 * blocks.filter(is_zero).count() >= count
}

fn shrank(compressed: usize, raw: usize) -> bool {
    compressed <= raw - raw / 10
}

/// How a payload was packed, for who unpacks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Packing {
    /// One zstd frame.
    Zstd,
    /// One LZ4 block.
    Lz4,
    /// Goes on with the connection's zstd stream.
    Stream,
}

/// Compresses payloads of one connection.
pub(crate) struct Packer {
    how: Compress,
    paused: bool,
    zstd: Compressor<'static>,
    /// It takes memory with the first payload that goes into it.
    stream: Option<Encoder<'static>>,
    out: Vec<u8>,
}

impl Packer {
    /// `goes_on`: zstd is one stream for the whole connection, whose other end must know that (from protocol 4 on).
    pub(crate) fn new(how: Compress, goes_on: bool) -> io::Result<Packer> {
        let zstd = matches!(how, Compress::Zstd | Compress::Auto);
        let stream = if goes_on && zstd { Some(stream()?) } else { None };
        Ok(Packer { how, paused: false, zstd: Compressor::new(LEVEL)?, stream, out: Vec::new() })
    }

    /// What follows goes as it is, or is compressed again.
    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The compressed form of `raw`, if that is worth it. It must reach the other end then: what follows may go on from it.
    pub(crate) fn pack(&mut self, raw: &[u8], probe: &mut Probe) -> io::Result<Option<(&[u8], Packing)>> {
        if self.paused && self.how != Compress::None && is_mostly_holes(raw) {
            return self.pack_holes(raw);
        }
        if self.how == Compress::None || self.paused || !probe.should_try(raw.len()) {
            return Ok(None);
        }
        if self.stream.is_some() {
            return self.pack_on(raw, probe);
        }
        let sample = if probe.shrank { raw } else { &raw[..raw.len().min(SAMPLE_LEN)] };
        let mut pays = shrank(self.run(sample)?, sample.len());
        if pays && sample.len() < raw.len() {
            pays = shrank(self.run(raw)?, raw.len());
        }
        probe.note(pays);
        Ok(pays.then_some((&self.out[..], self.packing())))
    }

    /// How what is packed by itself is packed.
    fn packing(&self) -> Packing {
        if self.how == Compress::Lz4 { Packing::Lz4 } else { Packing::Zstd }
    }

    /// What is paused for a fast line is not paused for what costs next to nothing. By itself: the stream needs its window.
    fn pack_holes(&mut self, raw: &[u8]) -> io::Result<Option<(&[u8], Packing)>> {
        let pays = shrank(self.run(raw)?, raw.len());
        Ok(pays.then_some((&self.out[..], self.packing())))
    }

    /// The same where zstd goes on. What did not shrink there is sent as it came out: it is part of the stream now.
    fn pack_on(&mut self, raw: &[u8], probe: &mut Probe) -> io::Result<Option<(&[u8], Packing)>> {
        let sample = &raw[..raw.len().min(SAMPLE_LEN)];
        if !probe.shrank && !shrank(self.run(sample)?, sample.len()) {
            probe.note(false);
            return Ok(None);
        }
        let Some(stream) = &mut self.stream else { return Ok(None) };
        self.out.clear();
        // Each block may be stored with three bytes before it.
        self.out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        let mut input = InBuffer::around(raw);
        let mut left = 1;
        while left > 0 {
            if self.out.len() == self.out.capacity() {
                self.out.reserve(GROWTH_LEN_MIN);
            }
            let at = self.out.len();
            let mut out = OutBuffer::around_pos(&mut self.out, at);
            left = if input.pos() < raw.len() {
                stream.run(&mut input, &mut out)?;
                1
            } else {
                stream.flush(&mut out)?
            };
        }
        probe.note(shrank(self.out.len(), raw.len()));
        Ok(Some((&self.out[..], Packing::Stream)))
    }

    fn run(&mut self, raw: &[u8]) -> io::Result<usize> {
        self.out.clear();
        if self.how == Compress::Lz4 {
            self.out.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
            let len = lz4_flex::block::compress_into(raw, &mut self.out).map_err(io::Error::other)?;
            self.out.truncate(len);
            return Ok(len);
        }
        self.out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.zstd.compress_to_buffer(raw, &mut self.out)
    }
}

fn stream() -> io::Result<Encoder<'static>> {
    let mut stream = Encoder::new(LEVEL)?;
    stream.set_parameter(CParameter::WindowLog(STREAM_WINDOW_LOG))?;
    stream.set_parameter(CParameter::HashLog(STREAM_HASH_LOG))?;
    Ok(stream)
}

/// Decompresses payloads of one connection.
pub(crate) struct Unpacker {
    alone: Decoder<'static>,
    stream: Decoder<'static>,
}

impl Unpacker {
    pub(crate) fn new() -> io::Result<Unpacker> {
        let decoder = |window_log| {
            let mut zstd = Decoder::new()?;
            zstd.set_parameter(DParameter::WindowLogMax(window_log)).map(|()| zstd)
        };
        Ok(Unpacker { alone: decoder(WINDOW_LOG_MAX)?, stream: decoder(STREAM_WINDOW_LOG)? })
    }

    /// Exactly `raw_len` bytes, or an error. The caller has checked that so many are allowed; memory for them is taken as
    /// they appear, for a length costs its sender nothing.
    pub(crate) fn unpack(&mut self, packing: Packing, packed: &[u8], raw_len: usize) -> io::Result<Vec<u8>> {
        let zstd = match packing {
            Packing::Lz4 => return unpack_lz4(packed, raw_len),
            Packing::Zstd => {
                self.alone.reinit()?;
                &mut self.alone
            }
            Packing::Stream => &mut self.stream,
        };
        let mut raw = Vec::with_capacity(raw_len.min(packed.len().saturating_mul(FIRST_PER_BYTE)));
        let mut input = InBuffer::around(packed);
        loop {
            if raw.len() == raw.capacity() {
                raw.reserve_exact(raw.len().max(GROWTH_LEN_MIN).min(raw_len.saturating_sub(raw.len())));
            }
            let before = (input.pos(), raw.len());
            let at = raw.len();
            let left = zstd.run(&mut input, &mut OutBuffer::around_pos(&mut raw, at))?;
            let over = match packing {
                // Its frames need not end.
                Packing::Stream => input.pos() == packed.len() && raw.len() >= raw_len,
                _ => left == 0,
            };
            if over {
                break;
            }
            // Nothing left to read, or no room although there is as much as there may be.
            if before == (input.pos(), raw.len()) {
                return Err(not_as_said());
            }
        }
        // The stream may have kept something back.
        let mut more = [0];
        let mut more = OutBuffer::around(&mut more[..]);
        if packing == Packing::Stream {
            zstd.run(&mut InBuffer::around(&[]), &mut more)?;
        }
        // The capacity may be more than what was asked for; the length is checked for that.
        if raw.len() != raw_len || input.pos() != packed.len() || more.pos() > 0 {
            return Err(not_as_said());
        }
        Ok(raw)
    }
}

/// What one LZ4 block holds: exactly `raw_len` bytes, or an error.
fn unpack_lz4(packed: &[u8], raw_len: usize) -> io::Result<Vec<u8>> {
    if raw_len > packed.len().saturating_mul(LZ4_RATIO_MAX) {
        return Err(not_as_said());
    }
    let mut raw = vec![0; raw_len];
    match lz4_flex::block::decompress_into(packed, &mut raw) {
        Ok(len) if len == raw_len => Ok(raw),
        Ok(_) => Err(not_as_said()),
        Err(e) => Err(io::Error::new(io::ErrorKind::InvalidData, e)),
    }
}

fn not_as_said() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not of the length it says")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn text_shrinks_and_comes_back() {
        let (mut p, mut u, mut probe) =
            (Packer::new(Compress::Zstd, false).unwrap(), Unpacker::new().unwrap(), Probe::default());
        for len in [LEN_MIN, SAMPLE_LEN - 1, SAMPLE_LEN + 1, 1 << 20] {
            let raw: Vec<u8> =
                b"what is written twice is shorter ".iter().cycle().take(len).copied().collect();
            let (packed, _) = p.pack(&raw, &mut probe).unwrap().unwrap();
            assert!(packed.len() < raw.len());
            assert_eq!(u.unpack(Packing::Zstd, packed, raw.len()).unwrap(), raw);
        }
        assert_eq!(p.pack(&[0; LEN_MIN - 1], &mut probe).unwrap(), None);
    }

    /// Over a line for which nothing is compressed the holes of a sparse file do not travel either.
    #[test]
    fn holes_are_not_sent_while_paused() {
        let (mut p, mut u, mut probe) =
            (Packer::new(Compress::Auto, true).unwrap(), Unpacker::new().unwrap(), Probe::default());
        let text: Vec<u8> =
            b"what is written twice is shorter ".iter().cycle().take(100_000).copied().collect();
        p.pause(true);
        for half in [noise(128 << 10), vec![0; 128 << 10], vec![]] {
            let raw = [vec![0; 128 << 10], half].concat();
            let (packed, packing) = p.pack(&raw, &mut probe).unwrap().unwrap();
            assert!(packed.len() <= raw.len() / 2 + 1024, "{}", packed.len());
            assert_eq!(packing, Packing::Zstd);
            assert_eq!(u.unpack(packing, packed, raw.len()).unwrap(), raw);
            // The stream goes on past it.
            p.pause(false);
            let (packed, packing) = p.pack(&text, &mut probe).unwrap().unwrap();
            assert_eq!(packing, Packing::Stream);
            assert_eq!(u.unpack(packing, packed, text.len()).unwrap(), text);
            p.pause(true);
        }
        let mut beyond_half = noise(260 << 10);
        beyond_half[..128 << 10].fill(0);
        for raw in [&text[..], &noise(256 << 10), &beyond_half, &[0; HOLE_LEN - 1]] {
            assert_eq!(p.pack(raw, &mut probe).unwrap(), None);
        }
        let mut none = Packer::new(Compress::None, true).unwrap();
        none.pause(true);
        assert_eq!(none.pack(&[0; 1 << 18], &mut probe).unwrap(), None);
    }

    #[test]
    fn lz4_comes_back_and_lies_do_not() {
        let (mut p, mut probe) = (Packer::new(Compress::Lz4, false).unwrap(), Probe::default());
        let raw: Vec<u8> =
            b"what is written twice is shorter ".iter().cycle().take(300_000).copied().collect();
        let packed = p.pack(&raw, &mut probe).unwrap().unwrap().0.to_vec();
        assert!(packed.len() < raw.len() / 10);
        assert_eq!(unpack_lz4(&packed, raw.len()).unwrap(), raw);
        for len in [0, 1, raw.len() - 1, raw.len() + 1, 64 << 20] {
            assert!(unpack_lz4(&packed, len).is_err(), "{len}");
        }
        for cut in 0..packed.len().min(200) {
            assert!(unpack_lz4(&packed[..cut], raw.len()).is_err(), "{cut}");
        }
        assert!(unpack_lz4(&[0xff; 64], 1000).is_err());
        assert_eq!(Packer::new(Compress::None, false).unwrap().pack(&raw, &mut probe).unwrap(), None);
    }

    #[test]
    fn noise_is_stored_and_soon_not_even_tried() {
        let (mut p, mut probe) = (Packer::new(Compress::Zstd, false).unwrap(), Probe::default());
        let raw = noise(SAMPLE_LEN * 2);
        for _ in 0..STREAK {
            assert_eq!(p.pack(&raw, &mut probe).unwrap(), None);
        }
        let text = vec![b'a'; SAMPLE_LEN];
        for i in 0..SKIPPED {
            assert_eq!(p.pack(&text, &mut probe).unwrap(), None, "{i}");
        }
        assert!(p.pack(&text, &mut probe).unwrap().is_some(), "probed again");
        assert!(p.pack(&text, &mut probe).unwrap().is_some(), "and believed again");
    }

    #[test]
    fn a_sample_that_pays_does_not_decide_for_the_rest() {
        let (mut p, mut probe) = (Packer::new(Compress::Zstd, false).unwrap(), Probe::default());
        let mut raw = vec![0; SAMPLE_LEN];
        raw.extend(noise(SAMPLE_LEN * 20));
        assert_eq!(p.pack(&raw, &mut probe).unwrap(), None);
    }

    #[test]
    fn what_shrank_a_lot_grows_back_in_steps() {
        let (mut p, mut u, mut probe) =
            (Packer::new(Compress::Zstd, false).unwrap(), Unpacker::new().unwrap(), Probe::default());
        // The longest that a frame may have, and lengths at which the memory for it just suffices, or does not.
        for len in [GROWTH_LEN_MIN - 1, GROWTH_LEN_MIN, GROWTH_LEN_MIN + 1, 3 << 20, 64 << 20] {
            let raw: Vec<u8> = (0..len).map(|i| (i / 1000) as u8).collect();
            let (packed, _) = p.pack(&raw, &mut probe).unwrap().unwrap();
            assert!(packed.len() * FIRST_PER_BYTE < raw.len(), "{len}");
            assert!(u.unpack(Packing::Zstd, packed, len).unwrap() == raw, "{len}");
        }
    }

    #[test]
    fn a_window_beyond_the_bound_is_refused() {
        // Longer than either window, which is else cut to the length.
        let (mut u, raw) = (Unpacker::new().unwrap(), vec![7; 5 << 20]);
        let mut p = Compressor::new(LEVEL).unwrap();
        for (log, allowed) in [(WINDOW_LOG_MAX, true), (WINDOW_LOG_MAX + 1, false)] {
            p.set_parameter(zstd::zstd_safe::CParameter::WindowLog(log)).unwrap();
            p.set_parameter(zstd::zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
            let packed = p.compress(&raw).unwrap();
            assert_eq!(u.unpack(Packing::Zstd, &packed, raw.len()).is_ok(), allowed, "{log}");
        }
    }

    #[test]
    fn one_frame_and_nothing_behind_it() {
        let (mut p, mut u, mut probe) =
            (Packer::new(Compress::Zstd, false).unwrap(), Unpacker::new().unwrap(), Probe::default());
        let packed = p.pack(&[7; 1000], &mut probe).unwrap().unwrap().0.to_vec();
        for cut in 0..packed.len() {
            assert!(u.unpack(Packing::Zstd, &packed[..cut], 1000).is_err(), "{cut}");
        }
        assert!(u.unpack(Packing::Zstd, &[&packed[..], &packed].concat(), 2000).is_err());
        assert!(u.unpack(Packing::Zstd, &[&packed[..], b"x"].concat(), 1000).is_err());
        assert_eq!(u.unpack(Packing::Zstd, &packed, 1000).unwrap(), [7; 1000], "errors leave nothing behind");
    }

    #[test]
    fn lies_about_the_length_are_errors() {
        let (mut p, mut u, mut probe) =
            (Packer::new(Compress::Zstd, false).unwrap(), Unpacker::new().unwrap(), Probe::default());
        let packed = p.pack(&[7; 1 << 20], &mut probe).unwrap().unwrap().0.to_vec();
        for len in [0, 100, (1 << 20) - 1, (1 << 20) + 1] {
            assert!(u.unpack(Packing::Zstd, &packed, len).is_err(), "{len}");
        }
        assert!(u.unpack(Packing::Zstd, b"garbage", 100).is_err());
        assert_eq!(u.unpack(Packing::Zstd, &packed, 1 << 20).unwrap().len(), 1 << 20);
    }

    /// Lines of text that repeat from one payload to the next, but not within one.
    fn pages(n: usize) -> Vec<Vec<u8>> {
        let words = noise(40_000);
        let page: Vec<u8> = words.iter().map(|b| b'a' + b % 16).collect();
        (0..n).map(|i| [&page[i..], &page[..i]].concat()).collect()
    }

    #[test]
    fn a_stream_goes_on_from_payload_to_payload() {
        let (mut p, mut u, mut probe) =
            (Packer::new(Compress::Zstd, true).unwrap(), Unpacker::new().unwrap(), Probe::default());
        let mut sent = Vec::new();
        for raw in pages(5) {
            let (packed, packing) = p.pack(&raw, &mut probe).unwrap().unwrap();
            assert_eq!(packing, Packing::Stream);
            sent.push(packed.len());
            assert_eq!(u.unpack(Packing::Stream, packed, raw.len()).unwrap(), raw);
        }
        assert!(sent[1..].iter().all(|len| len * 50 < sent[0]), "{sent:?}");
        // What does not shrink is tried once in the stream, then goes beside it.
        let noise = noise(300_000);
        let (packed, packing) = p.pack(&noise, &mut probe).unwrap().unwrap();
        assert_eq!(u.unpack(packing, packed, noise.len()).unwrap(), noise);
        assert_eq!(p.pack(&noise, &mut probe).unwrap(), None);
        let raw = pages(1).remove(0);
        let (packed, packing) = p.pack(&raw, &mut probe).unwrap().unwrap();
        assert!(packed.len() * 50 < raw.len());
        assert_eq!(u.unpack(packing, packed, raw.len()).unwrap(), raw);
        // Longer than the window, and in one go.
        let long: Vec<u8> = (0..64 << 20).map(|i| (i / 1000) as u8).collect();
        let (packed, packing) = p.pack(&long, &mut probe).unwrap().unwrap();
        assert!(u.unpack(packing, packed, long.len()).unwrap() == long);
    }

    #[test]
    fn a_stream_is_neither_cut_nor_longer_than_it_says() {
        let pages = pages(2);
        let mut p = Packer::new(Compress::Zstd, true).unwrap();
        let mut probe = Probe::default();
        let mut packed = pages.iter().map(|raw| p.pack(raw, &mut probe).unwrap().unwrap().0.to_vec());
        let (first, second) = (packed.next().unwrap(), packed.next().unwrap());
        let len = pages[0].len();
        let fresh = || Unpacker::new().unwrap();
        for cut in (0..first.len()).step_by(97) {
            assert!(fresh().unpack(Packing::Stream, &first[..cut], len).is_err(), "{cut}");
        }
        for wrong in [0, 1, len - 1, len + 1, 64 << 20] {
            assert!(fresh().unpack(Packing::Stream, &first, wrong).is_err(), "{wrong}");
        }
        assert!(fresh().unpack(Packing::Stream, &second, len).is_err(), "it follows nothing");
        assert!(fresh().unpack(Packing::Stream, b"garbage", 100).is_err());
        // A window beyond the bound.
        let mut wide = Compressor::new(LEVEL).unwrap();
        wide.set_parameter(CParameter::WindowLog(STREAM_WINDOW_LOG + 1)).unwrap();
        wide.set_parameter(CParameter::ContentSizeFlag(false)).unwrap();
        let raw = vec![7; 9 << 20];
        let packed = wide.compress(&raw).unwrap();
        assert!(fresh().unpack(Packing::Stream, &packed, raw.len()).is_err());
    }
}
