//! A hostile peer against a real directory: what a replica sends is bent on its way (names, parents, kinds, contents,
//! positions, claims, pieces), as far as the wire lets it through. The replica goes on, nothing is written outside of its root,
//! and another peer that is honest still gets what its users write.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod sites;

use crossbeam_channel::select;
use driftless_core::entry::Entry;
use driftless_core::link::Message;
use driftless_core::recipe::{Chunk, Item, Recipe};
use driftless_core::{Content, Digest, Dot, EntryId, Kind, LinkId, Name, ReplicaId, Stamp, Time};
use driftless_net::Compress;
use driftless_net::wire::{Frame, FrameReader, FrameWriter};
use driftless_node::replica::{FromLink, LinkEnd};
use driftless_testkit::Rng;
use sites::{Sites, wait_until};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Attacks, every day; `DRIFTLESS_FUZZ_INPUTS` tries a thousandth as many of them, `DRIFTLESS_FUZZ_FIRST` says which is first.
const ATTACKS: u64 = 4;
/// One attack goes on for so many messages ...
const MESSAGES: usize = 300;
/// ... or so long.
const ATTACK_TIME_MAX: Duration = Duration::from_secs(4);
/// With nothing said for so long both have come to rest: users do something, or the link begins anew.
const QUIET: Duration = Duration::from_millis(60);

#[test]
fn nothing_is_written_outside_the_root() {
    let number = |variable: &str| std::env::var(variable).ok()?.parse::<u64>().ok();
    let first = number("DRIFTLESS_FUZZ_FIRST").unwrap_or(1);
    let count = number("DRIFTLESS_FUZZ_INPUTS").map_or(ATTACKS, |n| n.div_ceil(1000));
    let mut bent = 0;
    for seed in first..first + count {
        bent += attack(seed);
    }
    // An attack whose messages all stop at the wire tries nothing.
    assert!(bent > 0);
}

/// Gives how many bent messages reached the replica.
fn attack(seed: u64) -> u64 {
    let mut sites = Sites::new(3);
    let outside = sites.base.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "untouched").unwrap();
    for (i, root) in sites.roots.iter().take(2).enumerate() {
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join(format!("a/f{i}")), vec![i as u8; 300_000]).unwrap();
        fs::write(root.join(format!("a/b/g{i}")), "small").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("out")).unwrap();
    }
    sites.open_all();
    let mut bender = Bender {
        rng: Rng::new(seed),
        outside: outside.clone(),
        victim: ReplicaId(0),
        known: Vec::new(),
        said: Vec::new(),
        bent: 0,
    };
    let begun = Instant::now();
    let mut messages = 0;
    while messages < MESSAGES
        && begun.elapsed() < ATTACK_TIME_MAX
        && sites.replica(0).status().ended.is_none()
    {
        messages += connection(&sites, &mut bender, begun);
        let file = sites.roots[0].join(format!("a/n{messages}"));
        fs::write(file, format!("{messages}"))
            .or_else(|_| fs::create_dir_all(sites.roots[0].join("a")))
            .unwrap();
        // A large file that is at the other end already, so that its recipe is asked for.
        fs::write(sites.roots[0].join("large"), vec![1; 300_000 + messages]).unwrap();
    }
    assert_untouched(&sites, &outside, seed);
    // It serves whoever is honest: a site that has heard of no lie.
    assert!(
        sites.replica(1).status().ended.is_none(),
        "attack {seed}: {:?}",
        sites.replica(1).status().ended
    );
    let _honest = sites.join(1, 2);
    fs::write(sites.roots[1].join("after"), "the attack").unwrap();
    wait_until(&format!("attack {seed}: what is written after it"), || {
        match fs::read(sites.roots[2].join("after")) {
            Ok(bytes) if bytes == b"the attack" => Ok(()),
            other => Err(format!("{other:?} {:?}", sites.replica(1).status())),
        }
    });
    assert_untouched(&sites, &outside, seed);
    bender.bent
}

/// One link, until it is quiet or one end has had enough. Gives how many messages went over it.
fn connection(sites: &Sites, bender: &mut Bender, begun: Instant) -> usize {
    let (liar, victim) = (sites.replica(0).connect(), sites.replica(1).connect());
    let mut messages = 0;
    while begun.elapsed() < ATTACK_TIME_MAX {
        select! {
            recv(liar.outgoing()) -> said => match said {
                Ok(FromLink::Message(said)) => bender.pass(said.into_message(), &victim),
                Ok(FromLink::Refused(_)) => return messages,
                // It heard of changes of its own that it never made: it takes its index for restored.
                Err(_) => return messages,
            },
            recv(victim.outgoing()) -> said => match said {
                Ok(FromLink::Message(said)) => {
                    let message = said.into_message();
                    if let Message::Hello(hello) = &message {
                        bender.victim = hello.replica;
                    }
                    liar.give(message);
                }
                Ok(FromLink::Refused(_)) => return messages,
                Err(_) => panic!("the replica has ended: {:?}", sites.replica(1).status().ended),
            },
            default(QUIET) => return messages + 1,
        }
        messages += 1;
    }
    messages
}

fn assert_untouched(sites: &Sites, outside: &Path, seed: u64) {
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(outside), ["secret"], "attack {seed}");
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"untouched", "attack {seed}");
    let here = ["outside", "site0", "site1", "site2", "state0", "state1", "state2"];
    assert_eq!(names(sites.base.path()), here, "attack {seed}");
}

struct Bender {
    rng: Rng,
    outside: std::path::PathBuf,
    victim: ReplicaId,
    /// Entries that were told of.
    known: Vec<EntryId>,
    /// Messages to say again.
    said: Vec<Message>,
    bent: u64,
}

impl Bender {
    fn pass(&mut self, mut message: Message, to: &LinkEnd) {
        if let Message::Batch(batch) = &message {
            self.known.extend(batch.entries.iter().map(|e| e.id));
        }
        let honest = message.clone();
        if self.rng.one_in(2) {
            self.bend(&mut message);
        }
        if self.rng.one_in(10)
            && let Some(again) = self.rng.pick(&self.said).cloned()
        {
            to.give(again);
        }
        // What no decoder lets through never comes to a replica.
        if let Some(read) = over_the_wire(&message) {
            self.bent += u64::from(read != honest);
            if self.said.len() < 50 {
                self.said.push(read.clone());
            }
            to.give(read);
        }
    }

    fn bend(&mut self, message: &mut Message) {
        match message {
            // That it knows more of a replica than the replica itself is believed: it is how a restored index is found.
            Message::Hello(hello) => {
                hello.site = "\u{1b}[2J../..".into();
                hello.scanned = self.rng.one_in(2);
                if self.rng.one_in(4) {
                    hello.replica = ReplicaId(self.rng.next_u64());
                }
            }
            Message::Batch(batch) => {
                for e in &mut batch.entries {
                    if self.rng.one_in(2) {
                        self.bend_entry(e);
                    }
                }
                for inline in &mut batch.inline {
                    if self.rng.one_in(3) {
                        bend_bytes(&mut self.rng, &mut inline.bytes);
                    }
                    if self.rng.one_in(6) {
                        inline.entry = self.id();
                    }
                }
                if self.rng.one_in(6) {
                    (batch.from, batch.to, batch.tag) = (self.number(), self.number(), self.rng.next_u64());
                }
                if self.rng.one_in(6) {
                    batch.knowledge = None;
                }
            }
            Message::Receipt(receipt) => {
                receipt.cursor = self.number();
                receipt.states.push((self.id(), self.rng.next_u64()));
                receipt.refused.push((self.id(), "\u{1b}[2Jno".into()));
                receipt.knowledge.add(self.dot());
            }
            Message::Heads(heads) => heads.iter_mut().for_each(|head| head.n = self.number()),
            Message::Held(held) => (held.cursor, held.waiting) = (self.number(), self.number()),
            Message::Want(want) => match self.rng.below(4) {
                0 => (want.offset, want.len) = (self.number(), self.number()),
                1 => want.version = self.dot(),
                2 => want.entry = self.id(),
                _ => want.digest = Digest([7; 32]),
            },
            Message::Piece(piece) => match self.rng.below(4) {
                0 => bend_bytes(&mut self.rng, &mut piece.bytes),
                1 => piece.offset = self.number(),
                2 => piece.version = self.dot(),
                _ => piece.entry = self.id(),
            },
            Message::RecipeWant(want) => match self.rng.below(3) {
                0 => (want.offset, want.len) = (self.number(), self.number()),
                1 => want.version = self.dot(),
                _ => want.digest = Digest([7; 32]),
            },
            Message::Recipe(part) => match self.rng.below(5) {
                0 => part.offset = self.number(),
                1 => part.recipe = Recipe::default(),
                2 => {
                    part.recipe =
                        self.bent_recipe(&part.recipe, |_, item| item.chunk = Chunk([9; Chunk::LEN]))
                }
                3 => part.recipe = self.bent_recipe(&part.recipe, |rng, item| item.len ^= 1 << rng.below(25)),
                _ => part.entry = self.id(),
            },
            Message::NotHere(no) => no.reason = "given-up: ../../etc/passwd".into(),
            Message::Heartbeat { head, scanned } => (*head, *scanned) = (self.number(), self.rng.one_in(2)),
            Message::Bye { .. } => {}
        }
    }

    /// One of its chunks is bent.
    fn bent_recipe(&mut self, recipe: &Recipe, bend: impl Fn(&mut Rng, &mut Item)) -> Recipe {
        let mut items = recipe.items().to_vec();
        let which = self.rng.below(items.len().max(1) as u64) as usize;
        if let Some(item) = items.get_mut(which) {
            bend(&mut self.rng, item);
        }
        Recipe::new(items).unwrap_or_default()
    }

    fn bend_entry(&mut self, e: &mut Entry) {
        for _ in 0..1 + self.rng.below(3) {
            let (id, dot, stamp, name) = (self.id(), self.dot(), self.stamp(), self.name());
            match self.rng.below(12) {
                0 => e.id = id,
                1 => self.make_symlink(e),
                2 => e.links.iter_mut().for_each(|l| l.at.parent = id),
                3 | 4 => e.links.iter_mut().for_each(|l| l.at.name = name.clone()),
                5 => e.links.iter_mut().for_each(|l| l.at.stamp = stamp),
                6 => e.links.iter_mut().for_each(|l| l.gone.add(dot)),
                7 => e.meta.1.mode = 0o7777,
                8 => {
                    e.meta.1.xattrs =
                        vec![(b"security.capability".to_vec(), vec![1; 20])].into_iter().collect()
                }
                9 => {
                    let content = Content::File {
                        size: self.number(),
                        mtime: Time { sec: i64::MIN, nsec: 0 },
                        digest: Digest([9; 32]),
                    };
                    e.data.iter_mut().for_each(|v| v.content = content.clone());
                }
                10 => {
                    let more =
                        e.links.first().cloned().map(|l| driftless_core::Link { id: LinkId(dot), ..l });
                    e.links.extend(more);
                    e.links.sort_by_key(|l| l.id);
                }
                _ => e.removed.add(dot),
            }
        }
        // What a receiver looks for first is in order, so that it looks further.
        let dots =
            e.data.iter().map(|v| v.dot).chain(e.links.iter().flat_map(|l| [l.id.0, l.at.dot, l.at.holds]));
        for dot in dots.chain([e.id.0]).filter(|d| *d != Dot::default()).collect::<Vec<_>>() {
            e.ctx.add(dot);
        }
    }

    /// A file or a directory is a way out now: what is below it would be outside.
    fn make_symlink(&mut self, e: &mut Entry) {
        let dot = e.id.0;
        let target = self.outside.as_os_str().as_encoded_bytes().iter().copied().collect();
        let content = Content::Symlink { target, mtime: Time::default() };
        e.kind = Kind::Symlink;
        e.hist.clear();
        e.dir_time = None;
        e.data = std::iter::once(driftless_core::Version { dot, stamp: self.stamp(), content }).collect();
        e.links.iter_mut().for_each(|l| l.at.holds = dot);
    }

    fn name(&mut self) -> Name {
        let names: [&[u8]; 7] = [b"out", b".driftless", b"a", b"b", b"...", b"secret", b"x\n\x1b[2J\xff"];
        Name::new(names[self.rng.below(7) as usize]).unwrap_or_else(|_| Name::new(b"x").unwrap())
    }

    fn number(&mut self) -> u64 {
        let edges = [0, 1, 2, 100, u64::MAX, u64::MAX - 1, 1 << 48, 1 << 40, 300_000];
        *self.rng.pick(&edges).unwrap()
    }

    fn id(&mut self) -> EntryId {
        match self.rng.below(8) {
            0 => EntryId::ROOT,
            1 => EntryId(self.dot()),
            _ => self.rng.pick(&self.known).copied().unwrap_or(EntryId::ROOT),
        }
    }

    fn replica(&mut self) -> ReplicaId {
        let known = self.rng.pick(&self.known).map(|id| id.0.replica);
        known.filter(|_| !self.rng.one_in(4)).unwrap_or(ReplicaId(self.rng.next_u64()))
    }

    fn dot(&mut self) -> Dot {
        let replica = self.replica();
        let n = 1 + self.rng.below(60);
        // As in a hello: changes of the victim that it never made are believed, since a restored index is found by them.
        let made = self.known.iter().map(|id| id.0).find(|dot| dot.replica == self.victim);
        if replica == self.victim { made.unwrap_or_default() } else { Dot::new(replica, n) }
    }

    fn stamp(&mut self) -> Stamp {
        Stamp { epoch: self.rng.below(3), clock_ns: self.number(), replica: self.replica() }
    }
}

fn bend_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    match rng.below(3) {
        0 => bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize),
        1 => bytes.extend([1; 1000]),
        _ => bytes.iter_mut().step_by(100).for_each(|b| *b ^= 1),
    }
}

/// The message as it is read at the other end; `None` if it is not written or not read.
fn over_the_wire(message: &Message) -> Option<Message> {
    let mut bytes = Vec::new();
    FrameWriter::new(&mut bytes, Compress::None).ok()?.write(&Frame::Message(message.clone())).ok()?;
    match FrameReader::new(&bytes[..]).ok()?.read() {
        Ok(Some(Frame::Message(read))) => Some(read),
        _ => None,
    }
}
