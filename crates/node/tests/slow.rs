//! A peer that asks and does not take: what waits for it is bounded, others are served meanwhile, and it gets everything once it takes.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod sites;

use driftless_core::link::{Hello, Message, Piece, Role, Want};
use driftless_core::meta::{Content, Digest};
use driftless_core::tx::Knowledge;
use driftless_core::{Dot, EntryId, ReplicaId};
use driftless_node::replica::{FromLink, LinkEnd, Outgoing};
use sites::{Sites, wait_until};
use std::fs;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const PIECE_LEN: u64 = 1 << 20;
/// What is asked for, in pieces: far more than may wait.
const PIECES: u64 = 300;
/// What may wait for one peer, and one piece.
const WAITING_MAX: usize = 18 << 20;

/// Memory of this process.
fn rss_bytes() -> usize {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
}

fn next(end: &LinkEnd) -> Outgoing {
    match end.outgoing().recv_timeout(PATIENCE).unwrap() {
        FromLink::Message(said) => said,
        FromLink::Refused(why) => panic!("{why:?}"),
    }
}

/// A link to the first site, once that has looked at its tree: everything is in one batch then.
fn connect(sites: &Sites) -> LinkEnd {
    wait_until("the first site to be idle", || match sites.replica(0).status() {
        status if status.idle && status.scanned => Ok(()),
        status => Err(format!("{status:?}")),
    });
    sites.replica(0).connect()
}

type Version = (EntryId, Dot, Digest);

/// Says who it is; the version of the one file that it hears of.
fn introduce(end: &LinkEnd) -> Version {
    end.give(Message::Hello(Hello {
        protocol: (1, 1),
        volume: 77,
        replica: ReplicaId(0x51),
        site: "slow".into(),
        role: Role::Follower,
        knowledge: Knowledge::new(),
        cursors: Vec::new(),
        inline: false,
        scanned: true,
    }));
    loop {
        let Message::Batch(batch) = next(end).into_message() else { continue };
        let found = batch.entries.iter().find_map(|e| match e.data.first().map(|v| (&v.content, v.dot)) {
            Some((Content::File { digest, .. }, dot)) => Some((e.id, dot, *digest)),
            _ => None,
        });
        if let Some(found) = found {
            return found;
        }
    }
}

fn piece_of((entry, version, digest): Version, offset: u64) -> Message {
    Message::Want(Want { entry, version, digest, offset, len: PIECE_LEN })
}

#[test]
fn what_waits_for_a_slow_peer_is_bounded() {
    let mut sites = Sites::new(2);
    let large = sites.roots[0].join("large");
    fs::write(&large, vec![7; 8 << 20]).unwrap();
    sites.open_all();
    let slow = connect(&sites);
    let file = introduce(&slow);
    let before = rss_bytes();
    for i in 0..PIECES {
        slow.give(piece_of(file, i % 8 * PIECE_LEN));
    }
    // The engine takes everything in order: when this has arrived, all wants have been taken in.
    fs::write(sites.roots[0].join("for-others"), "goes on").unwrap();
    let cable = sites.join(0, 1);
    sites.wait_same();
    let grown = rss_bytes().saturating_sub(before);
    assert!(grown < 4 * WAITING_MAX, "{grown} bytes for a peer that takes nothing");

    // Not taken means not taken by anybody: looking at it makes no room.
    let waiting: Vec<Outgoing> = slow
        .outgoing()
        .try_iter()
        .map(|said| match said {
            FromLink::Message(said) => said,
            FromLink::Refused(why) => panic!("{why:?}"),
        })
        .collect();
    let bytes: usize = waiting.iter().map(Outgoing::bytes).sum();
    assert!((1 << 20..WAITING_MAX).contains(&bytes), "{bytes} bytes wait");

    // Now it takes: every piece comes, in order.
    let mut got = 0;
    let mut take = |said: Outgoing| {
        if let Message::Piece(Piece { offset, bytes, .. }) = said.into_message() {
            assert_eq!((offset, bytes.len() as u64), (got % 8 * PIECE_LEN, PIECE_LEN));
            got += 1;
        }
        got
    };
    waiting.into_iter().for_each(|said| _ = take(said));
    while take(next(&slow)) < PIECES {}
    drop(cable);
}

/// One that asks for more than anybody may, and takes nothing, is let go.
#[test]
fn who_asks_without_end_is_let_go() {
    let mut sites = Sites::new(1);
    fs::write(sites.roots[0].join("f"), vec![7; 3 << 20]).unwrap();
    sites.open_all();
    let greedy = connect(&sites);
    let file = introduce(&greedy);
    for _ in 0..20_000 {
        greedy.give(piece_of(file, 0));
    }
    let mut kept = Vec::new();
    let why = loop {
        match greedy.outgoing().recv_timeout(PATIENCE).unwrap() {
            FromLink::Message(said) => kept.push(said),
            FromLink::Refused(why) => break why,
        }
    };
    assert!(why.what.contains("asks for more than"), "{why:?}");
    assert!(kept.iter().map(Outgoing::bytes).sum::<usize>() < WAITING_MAX);
}
