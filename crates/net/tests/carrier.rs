//! Carriers over socket pairs.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

use driftless_core::link::{Message, Piece};
use driftless_core::{Dot, EntryId, ReplicaId};
use driftless_net::wire::FrameReader;
use driftless_net::{
    Carrier, CarrierOptions, Compress, End, Frame, GreetingError, Incoming, Rate, StartError,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A socket's writing half: unlike a pipe's, it does not end by itself when dropped.
struct Half(UnixStream);

impl Write for Half {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }
}

fn start(stream: UnixStream, options: CarrierOptions) -> Carrier {
    Carrier::start(stream.try_clone().unwrap(), Half(stream), options).unwrap()
}

fn pair(options: CarrierOptions) -> (Carrier, Carrier) {
    let (a, b) = UnixStream::pair().unwrap();
    let other_options = options.clone();
    let other = thread::spawn(move || start(b, other_options));
    (start(a, options), other.join().unwrap())
}

fn piece(len: usize) -> Piece {
    let dot = Dot::new(ReplicaId(3), 4);
    // Not compressible, and every part different.
    let mut x = 1u32;
    let bytes = (0..len).map(|_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    });
    Piece { entry: EntryId(dot), version: dot, offset: 1000, bytes: bytes.collect() }
}

fn heartbeat(head: u64) -> Frame {
    Frame::Message(Message::Heartbeat { head, scanned: false })
}

/// Takes pieces until `len` bytes have come, in order.
fn collect(c: &Carrier, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        match c.recv().unwrap() {
            Frame::Message(Message::Piece(p)) => {
                assert_eq!(p.offset, 1000 + all.len() as u64);
                all.extend(p.bytes);
            }
            other => panic!("{other:?}"),
        }
    }
    all
}

#[test]
fn frames_go_both_ways_in_order_and_close_in_good_order() {
    let (a, b) = pair(CarrierOptions::default());
    assert_eq!((a.version(), b.version()), (5, 5));
    for i in 0..2000 {
        a.send(heartbeat(i)).unwrap();
    }
    b.send(Frame::Control(b"{}".to_vec())).unwrap();
    for i in 0..2000 {
        assert_eq!(b.recv().unwrap(), heartbeat(i));
    }
    assert_eq!(a.recv().unwrap(), Frame::Control(b"{}".to_vec()));
    a.send(Frame::Message(Message::Piece(piece(3 << 20)))).unwrap();
    let drained = thread::spawn(move || {
        collect(&b, 3 << 20) == piece(3 << 20).bytes && { b.recv() == Err(End::Closed("done".into())) }
    });
    a.close("done", PATIENCE).unwrap();
    assert!(a.send(heartbeat(0)).is_err());
    assert!(drained.join().unwrap(), "what waited is written before the end");
}

/// A carrier whose peer has greeted, but reads only when told to.
fn with_lazy_peer() -> (Carrier, FrameReader<UnixStream>) {
    let (a, mut b) = UnixStream::pair().unwrap();
    b.write_all(b"driftless 1 1\n").unwrap();
    let a = start(a, CarrierOptions::default());
    let mut greeting = [0; 14];
    b.read_exact(&mut greeting).unwrap();
    (a, FrameReader::new(b).unwrap())
}

#[test]
fn small_messages_overtake_pieces() {
    let (a, mut peer) = with_lazy_peer();
    // Far more than the socket holds.
    a.send(Frame::Message(Message::Piece(piece(8 << 20)))).unwrap();
    a.send(heartbeat(7)).unwrap();
    let mut before = 0;
    loop {
        match peer.read().unwrap().unwrap() {
            Frame::Message(Message::Piece(p)) => before += p.bytes.len(),
            frame => {
                assert_eq!(frame, heartbeat(7));
                break;
            }
        }
    }
    assert!(before < 2 << 20, "it came after {before} bytes");
}

#[test]
fn pieces_do_not_starve() {
    let (a, mut peer) = with_lazy_peer();
    // Bodies that do not compress. The first keeps the writer busy.
    let control = Frame::Control(piece(1 << 20).bytes);
    a.send(control.clone()).unwrap();
    a.send(Frame::Message(Message::Piece(piece(1000)))).unwrap();
    for _ in 0..16 {
        a.send(control.clone()).unwrap();
    }
    let mut before = 0;
    while peer.read().unwrap().unwrap() == control {
        before += 1;
    }
    assert!((1..8).contains(&before), "it came after {before} MiB");
}

#[test]
fn a_consumer_that_does_not_take_stops_the_sender() {
    let (a, b) = pair(CarrierOptions { compress: Compress::None, ..CarrierOptions::default() });
    let body = vec![0; 4 << 20];
    let mut sent = 0;
    while a.has_room() && sent < 100 {
        a.send(Frame::Control(body.clone())).unwrap();
        sent += 1;
        // The reader takes what it may before the next look.
        let until = Instant::now() + Duration::from_millis(300);
        while !a.has_room() && Instant::now() < until {
            thread::yield_now();
        }
    }
    assert!((8..40).contains(&sent), "{sent} frames of 4 MiB in two bounds of 32 MiB");
    for _ in 0..sent {
        assert_eq!(b.recv().unwrap(), Frame::Control(body.clone()));
    }
}

#[test]
fn an_end_without_a_word_is_seen_by_both_directions() {
    let (a, b) = pair(CarrierOptions::default());
    drop(a);
    assert!(matches!(b.recv(), Err(End::Broken(_))));
    assert!(b.send(heartbeat(1)).is_err());
    assert!(matches!(b.recv(), Err(End::Broken(_))), "and stays ended");
}

#[test]
fn closing_does_not_wait_for_ever() {
    let (a, peer) = with_lazy_peer();
    a.send(Frame::Control(piece(8 << 20).bytes)).unwrap();
    let start = Instant::now();
    let closed = a.close("enough", Duration::from_millis(100)).unwrap_err();
    assert!(closed.to_string().contains("does not read"), "{closed}");
    assert!(start.elapsed() < PATIENCE);
    drop(peer);
}

#[test]
fn the_other_end_may_be_no_driftless() {
    for (said, expected) in [
        (&b"Welcome to example.org!\r\n"[..], "Welcome to example.org!\\r\\n"),
        (b"bash: driftless: command not found\n", "bash: driftless: command not found\\n"),
    ] {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(said).unwrap();
        match Carrier::start(a.try_clone().unwrap(), a, CarrierOptions::default()).map(|_| ()) {
            Err(StartError::Greeting(GreetingError::Stranger { said })) => assert_eq!(said, expected),
            other => panic!("{other:?}"),
        }
    }
    let (a, b) = UnixStream::pair().unwrap();
    drop(b);
    let silent = Carrier::start(a.try_clone().unwrap(), a, CarrierOptions::default()).map(|_| ());
    assert!(matches!(silent, Err(StartError::Greeting(GreetingError::Silent | GreetingError::Io(_)))));
}

#[test]
fn garbage_after_the_greeting_breaks_the_connection() {
    let (a, mut b) = UnixStream::pair().unwrap();
    b.write_all(b"driftless 1 1\nnot a frame, this").unwrap();
    let a = start(a, CarrierOptions::default());
    match a.recv() {
        Err(End::Broken(why)) => assert!(why.contains("unknown type"), "{why}"),
        other => panic!("{other:?}"),
    }
    let mut greeting = [0; 14];
    b.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"driftless 1 5\n");
}

#[test]
fn the_rate_limit_holds_and_lets_small_messages_through() {
    let rate = 400_000;
    let options =
        CarrierOptions { rate: Rate::new(Some(rate)), compress: Compress::None, ..CarrierOptions::default() };
    let (a, b) = pair(options);
    let len = 600_000;
    let start = Instant::now();
    a.send(Frame::Message(Message::Piece(piece(len)))).unwrap();
    a.send(heartbeat(5)).unwrap();
    let (mut got, mut beat_after) = (0, None);
    while got < len || beat_after.is_none() {
        match b.incoming().recv_timeout(PATIENCE).unwrap() {
            Incoming::Frame(f) => match f.into_frame() {
                Frame::Message(Message::Piece(p)) => got += p.bytes.len(),
                _ => beat_after = Some(got),
            },
            Incoming::End(end) => panic!("{end:?}"),
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let expected = len as f64 / rate as f64;
    assert!(seconds > expected * 0.85, "{seconds} s instead of {expected}");
    assert!(seconds < expected * 4.0, "{seconds} s instead of {expected}");
    assert!(beat_after.unwrap() < len / 2, "the heartbeat came after {beat_after:?} bytes");
}

/// A peer of version 3 knows nothing of a stream.
#[test]
fn only_who_knows_of_it_gets_one_compressed_stream() {
    for (greeting, flags) in [(b"driftless 1 3\n", 1), (b"driftless 1 4\n", 4)] {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(greeting).unwrap();
        let a = start(a, CarrierOptions::default());
        a.send(Frame::Control(vec![7; 1000])).unwrap();
        let mut begin = [0; 14 + 6];
        b.read_exact(&mut begin).unwrap();
        assert_eq!(begin[19], flags);
    }
}
