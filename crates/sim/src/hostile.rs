//! A hostile peer: states, positions and claims that no correct replica sends, pushed into a replica by the link machines.
//! Whatever comes, the replica must not panic, its index must stay whole, and what it shows must be a tree.

use crate::prng::Prng;
use crate::scene::Scene;
use crate::site::Site;
use crate::world::{Available, World};
use crate::{planned, scene};
use driftless_core::link::{
    Batch, Hello, OwnHello, Receipt, ReceiveError, Receiver, Role, SendLimits, Sender,
};
use driftless_core::link::{check_hello, hello};
use driftless_core::tx::Known;
use driftless_core::*;
use std::rc::Rc;

/// Messages of one attack.
const MESSAGES: usize = 40;

/// What became of an attack's messages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Batches that ended the connection.
    pub ended: u64,
    /// Batches of which something was merged.
    pub merged: u64,
    /// States that were refused.
    pub refused: u64,
}

/// One attack, on a replica with some history. The error says what broke.
pub fn attack(seed: u64) -> Result<Tally, String> {
    let mut tally = Tally::default();
    crate::run::quietly(|| attack_or_panic(seed, &mut tally))?;
    Ok(tally)
}

fn attack_or_panic(seed: u64, tally: &mut Tally) -> Result<(), String> {
    let mut world = World::new(scene::rules(Scene::Mixed, seed));
    // What is wrong with a history is for other runs to say.
    let _ = scene::live(Scene::Mixed, seed, &mut world, &mut Vec::new());
    let mut a = Attacker { rng: Prng::new(seed ^ 0xa77a_c4e5), me: ReplicaId(0xbad), states: Vec::new() };
    a.states = world.sites[0].states().to_vec();
    let site = &mut world.sites[0];
    let mut receiver = Receiver::new(a.me);
    let mut sender = Sender::new(a.me, 0, VersionVector::new(), SendLimits::default());
    for _ in 0..MESSAGES {
        let batch = a.batch();
        // Whoever reads has checked the shape of every state.
        match site.tx_or(|tx| receiver.handle_batch(tx, &batch)) {
            Ok(merged) => {
                tally.merged += u64::from(!merged.changed.is_empty());
                tally.refused += merged.receipt.refused.len() as u64;
                sender.handle_merged(&merged.echoes);
            }
            Err(ReceiveError::Index(e)) => return Err(format!("the index: {e} after {batch:?}")),
            Err(_) => {
                tally.ended += 1;
                receiver = Receiver::new(a.me);
            }
        }
        if sender.poll_at_ms().is_none_or(|t| t == 0) || a.rng.one_in(2) {
            site.read(|tx| sender.poll(tx, 10_000));
        }
        sender.handle_receipt(&a.receipt(site));
        let greeting = a.hello(site);
        site.read(|tx| check_hello(tx, 1, &greeting));
        check(site)?;
    }
    Ok(())
}

/// The tree is a tree, and a disk can be made to show it.
fn check(site: &mut Site) -> Result<(), String> {
    let tree = site.tree();
    for path in tree.keys() {
        if let [.., _] = path.as_slice()
            && path.len() > 1
            && !tree.contains_key(&path[..path.len() - 1])
        {
            return Err(format!("{path:?} is below nothing"));
        }
    }
    let available = tree.values().filter_map(|s| s.identity).collect();
    planned::show(site, &Available::new(vec![Rc::new(available)])).map(|_| ())
}

struct Attacker {
    rng: Prng,
    me: ReplicaId,
    /// True states, to start from.
    states: Vec<Entry>,
}

impl Attacker {
    fn batch(&mut self) -> Batch {
        let count = self.rng.below(6);
        let entries = (0..count).filter_map(|_| self.entry()).collect();
        let knowledge = self.rng.one_in(3).then(|| {
            let count = self.rng.below(5);
            (0..count).map(|_| (self.replica(), Known { n: self.number(), tag: self.rng.next() })).collect()
        });
        let (from, to) = (self.number(), self.number());
        Batch {
            seq: self.number(),
            from: from.min(to),
            to: if self.rng.one_in(8) { from } else { from.max(to) },
            tag: self.rng.next(),
            entries,
            inline: Vec::new(),
            knowledge,
        }
    }

    fn receipt(&mut self, site: &Site) -> Receipt {
        let mut states = Vec::new();
        for _ in 0..self.rng.below(4) {
            states.push((self.id(), self.rng.next()));
        }
        let mut knowledge = if self.rng.one_in(2) { site.knowledge() } else { VersionVector::new() };
        knowledge.add(self.dot());
        let refused = vec![(self.id(), "no".to_string())];
        let (seq, to, cursor) = (self.rng.below(50) as u64, self.number(), self.number());
        Receipt { seq, to, cursor, states, refused, knowledge }
    }

    fn hello(&mut self, site: &Site) -> Hello {
        let own = OwnHello { volume: 1, site: "?".into(), role: Role::Writer, inline: true, scanned: true };
        let mut hello = site.read(|tx| hello(tx, &own));
        hello.replica = self.replica();
        hello.knowledge.insert(self.replica(), Known { n: self.number(), tag: self.rng.next() });
        for c in &mut hello.cursors {
            c.n = self.number();
        }
        hello
    }

    fn number(&mut self) -> u64 {
        let edges = [0, 1, 2, 7, 100, u64::MAX, u64::MAX - 1, 1 << 48, (1 << 48) - 1, 1 << 47];
        if self.rng.one_in(4) { *self.rng.pick(&edges).unwrap() } else { self.rng.next() % 60 }
    }

    fn replica(&mut self) -> ReplicaId {
        match self.rng.below(5) {
            0 => self.me,
            1 => ReplicaId(self.number()),
            _ => ReplicaId(1 + self.rng.next() % 5),
        }
    }

    fn dot(&mut self) -> Dot {
        let replica = self.replica();
        Dot::new(replica, self.number())
    }

    fn stamp(&mut self) -> Stamp {
        Stamp { epoch: self.number(), clock_ns: self.number(), replica: self.replica() }
    }

    fn id(&mut self) -> EntryId {
        match self.rng.below(6) {
            0 => EntryId::ROOT,
            1 => EntryId(self.dot()),
            _ => self.rng.pick(&self.states).map_or(EntryId::ROOT, |e| e.id),
        }
    }

    /// A true state with some of its parts replaced.
    fn entry(&mut self) -> Option<Entry> {
        let mut e = self.rng.pick(&self.states)?.clone();
        for _ in 0..self.rng.below(5) {
            self.bend(&mut e);
        }
        if self.rng.one_in(2) {
            // What the receiver looks for first is in order, so that it looks further.
            let dots = e
                .data
                .iter()
                .map(|v| v.dot)
                .chain(e.links.iter().flat_map(|l| [l.id.0, l.at.dot, l.at.holds]));
            for dot in dots.chain([e.id.0]).filter(|d| *d != Dot::default()).collect::<Vec<_>>() {
                e.ctx.add(dot);
            }
            e.data.sort_by_key(|v| v.dot);
            e.links.sort_by_key(|l| l.id);
        }
        Some(e)
    }

    fn bend(&mut self, e: &mut Entry) {
        let (dot, stamp, id) = (self.dot(), self.stamp(), self.id());
        match self.rng.below(14) {
            0 => e.id = id,
            1 => e.kind = if e.kind.is_dir() { Kind::File } else { Kind::Dir },
            2 => e.ctx.add(dot),
            3 => e.removed.add(dot),
            4 => e.links.iter_mut().for_each(|l| l.at.parent = id),
            5 => e.links.iter_mut().for_each(|l| l.at.dot = dot),
            6 => e.links.iter_mut().for_each(|l| l.at.holds = dot),
            7 => e.links.iter_mut().for_each(|l| l.gone.add(dot)),
            8 => e.links.iter_mut().for_each(|l| l.at.stamp = stamp),
            9 => e.hist.push((id, stamp)),
            10 => e.note_hist(id, stamp),
            11 => e.data.iter_mut().for_each(|v| (v.dot, v.stamp) = (dot, stamp)),
            12 => {
                let more = e.links.first().cloned().map(|l| entry::Link { id: LinkId(dot), ..l });
                e.links.extend(more);
            }
            _ => e.meta.0 = stamp,
        }
    }
}
