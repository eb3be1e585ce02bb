//! Connections that last: the link machines of two sites, and what is on its way between them.

use crate::world::{Fault, Verdict, World};
use driftless_core::ReplicaId;
use driftless_core::link::{
    Batch, Hello, HelloVerdict, OwnHello, Receipt, Receiver, Role, SendLimits, Sender, check_hello, hello,
};
use driftless_core::tx::knowledge_vv;
use std::collections::BTreeMap;

/// The volume that all replicas share.
const VOLUME: u128 = 7;
/// A connection says something at least so often when there is anything to say; in worlds time runs fast.
const AGE_LIMIT_MS: u64 = 3_000;
/// A batch without a receipt is sent again after this long: the wire loses messages, which real carriers do only by ending.
const RESEND_AFTER_MS: u64 = 8_000;
/// Seconds of silence after which a network is at rest: longer than any delay of the machines.
const QUIET_S: u64 = 12;
/// Rounds after which a network that faults have left must have come to rest.
const ROUNDS_MAX: usize = 600;

/// Something on its way.
#[derive(Clone)]
pub(crate) struct Message {
    pub from: usize,
    pub to: usize,
    /// The connection it belongs to; 0 = none.
    pub session: u64,
    pub body: Body,
}

#[derive(Clone)]
pub(crate) enum Body {
    Batch(Batch),
    Receipt(Receipt),
}

/// One direction of a connection: the feed of one site comes to another.
pub(crate) struct Flow {
    session: u64,
    sender: Sender,
    receiver: Receiver,
}

/// All connections.
#[derive(Default)]
pub(crate) struct Links {
    flows: BTreeMap<(usize, usize), Flow>,
    sessions: u64,
}

impl Links {
    /// True if there was a connection.
    pub fn cut(&mut self, a: usize, b: usize) -> bool {
        self.flows.remove(&(b, a));
        self.flows.remove(&(a, b)).is_some()
    }

    pub fn cut_all(&mut self, site: usize) {
        self.flows.retain(|(a, b), _| *a != site && *b != site);
    }

    fn flow(&mut self, from: usize, to: usize, session: u64) -> Option<&mut Flow> {
        self.flows.get_mut(&(from, to)).filter(|f| f.session == session)
    }
}

impl World {
    fn hello_of(&mut self, i: usize) -> Hello {
        let own = OwnHello {
            volume: VOLUME,
            site: format!("s{i}"),
            role: Role::Writer,
            inline: false,
            scanned: true,
        };
        self.sites[i].harden_to_send();
        self.sites[i].read(|tx| hello(tx, &own))
    }

    /// What `peer` says in its greeting shows `i` that its index is an older one.
    pub(crate) fn greets_as_rolled_back(&mut self, i: usize, peer: usize) -> bool {
        let greeting = self.hello_of(peer);
        let verdict = self.sites[i].read(|tx| check_hello(tx, VOLUME, &greeting));
        matches!(verdict, HelloVerdict::WeAreRolledBack)
    }

    pub(crate) fn connect(&mut self, a: usize, b: usize) -> Verdict {
        if self.sites[a].blind || self.sites[b].blind {
            return Ok(());
        }
        self.links.cut(a, b);
        let (of_a, of_b) = (self.hello_of(a), self.hello_of(b));
        let at_a = self.sites[a].read(|tx| check_hello(tx, VOLUME, &of_b));
        let at_b = self.sites[b].read(|tx| check_hello(tx, VOLUME, &of_a));
        for (i, verdict) in [(a, &at_a), (b, &at_b)] {
            if matches!(verdict, HelloVerdict::WeAreRolledBack) {
                return self.forget(i);
            }
        }
        if matches!(at_b, HelloVerdict::OwnReplicaId) {
            return self.forget(b);
        }
        let session = self.links.sessions + 1;
        for (from, to, verdict, greeting) in [(a, b, at_a, of_b), (b, a, at_b, of_a)] {
            let HelloVerdict::Fine { start_cursor, distrusted, .. } = verdict else { return Ok(()) };
            let mut sender =
                Sender::new(greeting.replica, start_cursor, knowledge_vv(&greeting.knowledge), self.limits());
            sender.distrust(distrusted);
            let receiver = Receiver::new(self.sites[from].me);
            self.links.flows.insert((from, to), Flow { session, sender, receiver });
        }
        self.links.sessions = session;
        Ok(())
    }

    fn limits(&self) -> SendLimits {
        SendLimits {
            batch_entries: self.rules.batch_entries,
            relay_delay_ms: if self.rules.sites > 2 { self.rules.relay_delay_ms } else { 0 },
            age_limit_ms: AGE_LIMIT_MS,
            resend_after_ms: Some(RESEND_AFTER_MS),
            inline: false,
            ..SendLimits::default()
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock_ns / 1_000_000
    }

    /// Lets both machines of the direction `a` to `b` say what they have to say. True if they said anything.
    pub(crate) fn poll_link(&mut self, a: usize, b: usize) -> Result<bool, String> {
        let now_ms = self.now_ms();
        let Some(flow) = self.links.flows.get_mut(&(a, b)) else { return Ok(false) };
        let session = flow.session;
        self.sites[a].harden_to_send();
        let out = self.sites[a].read(|tx| flow.sender.poll(tx, now_ms));
        let news = self.sites[b].read(|tx| flow.receiver.poll(tx, now_ms));
        let said = out.is_some() || news.is_some();
        if let Some(out) = out {
            self.sites[a].note_shipped();
            self.check_not_echoed(a, &out.batch)?;
            self.wire.push(Message { from: a, to: b, session, body: Body::Batch(out.batch) });
        }
        if let Some(receipt) = news {
            self.sites[b].harden_to_send();
            self.wire.push(Message { from: b, to: a, session, body: Body::Receipt(receipt) });
        }
        Ok(said)
    }

    /// With one writer and two sites nothing can ever have to go back (thrift).
    fn check_not_echoed(&self, a: usize, batch: &Batch) -> Verdict {
        let me: ReplicaId = self.sites[a].me;
        if self.rules.sites != 2 || self.forgotten > 0 {
            return Ok(());
        }
        match batch.entries.iter().find(|e| e.ctx.get(me) == 0) {
            Some(e) => Err(format!("thrift: {a} sends {} back to where it comes from", e.id)),
            None => Ok(()),
        }
    }

    pub(crate) fn deliver(&mut self, m: &Message) -> Verdict {
        match &m.body {
            Body::Batch(batch) => self.deliver_batch(m, batch),
            Body::Receipt(receipt) => self.deliver_receipt(m, receipt),
        }
    }

    fn deliver_batch(&mut self, m: &Message, batch: &Batch) -> Verdict {
        let Some(flow) = self.links.flow(m.from, m.to, m.session) else {
            // What is late by a whole connection is merged all the same, but not believed to be the latest.
            let late =
                Batch { knowledge: batch.knowledge.clone().filter(|_| m.session == 0), ..batch.clone() };
            return self.merge_alone(m.from, m.to, &late);
        };
        let merged = self.sites[m.to].tx_or(|tx| flow.receiver.handle_batch(tx, batch));
        let Some(merged) = self.after_merge(m.from, m.to, batch, merged)? else { return Ok(()) };
        if let Some(back) = self.links.flow(m.to, m.from, m.session) {
            back.sender.handle_merged(&merged.echoes);
        }
        self.sites[m.to].harden_to_send();
        let body = Body::Receipt(merged.receipt);
        self.wire.push(Message { from: m.to, to: m.from, session: m.session, body });
        Ok(())
    }

    fn deliver_receipt(&mut self, m: &Message, receipt: &Receipt) -> Verdict {
        let Some(flow) = self.links.flow(m.to, m.from, m.session) else { return Ok(()) };
        let failures = flow.sender.handle_receipt(receipt);
        match failures.first() {
            Some(f) => Err(format!("receipt of {} at {}: {:?} of {}", m.from, m.to, f.reason, f.entry)),
            None => Ok(()),
        }
    }

    /// All connections stand, nothing is lost any more, and time passes until nobody has anything to say.
    pub(crate) fn run_links(&mut self) -> Verdict {
        let (mut quiet_s, mut rounds) = (0, 0);
        for _ in 0..ROUNDS_MAX {
            // The longer it is quiet, the less often anybody looks.
            rounds += 1;
            self.tick(rounds);
            quiet_s += rounds;
            if self.round()? {
                (quiet_s, rounds) = (0, 0);
            }
            if quiet_s > QUIET_S {
                return self.check_all_said();
            }
        }
        Err(format!("liveness: no rest after {ROUNDS_MAX} rounds without a fault"))
    }

    fn round(&mut self) -> Result<bool, String> {
        let mut said = !self.wire.is_empty();
        for (a, b) in self.rules.edges.clone() {
            if !self.links.flows.contains_key(&(a, b)) {
                self.connect(a, b)?;
            }
        }
        for (from, to) in self.links.flows.keys().copied().collect::<Vec<_>>() {
            said |= self.poll_link(from, to)?;
        }
        // In the order they were sent.
        for m in std::mem::take(&mut self.wire) {
            self.deliver(&m)?;
        }
        Ok(said)
    }

    /// At rest every sender has told all it has, and every receiver's cursor is where it should be.
    fn check_all_said(&self) -> Verdict {
        for ((a, b), flow) in &self.links.flows {
            if !self.sites[*a].read(|tx| Ok(flow.sender.at_head(tx))) {
                let head = self.sites[*a].head();
                return Err(format!(
                    "liveness: {a} has {:?} left for {b}, which read to {} of {head}",
                    flow.sender.backlog(head),
                    flow.sender.acked_cursor()
                ));
            }
        }
        Ok(())
    }

    /// Thrift: a quiet system sends no states.
    pub(crate) fn check_quiet(&mut self) -> Verdict {
        if !self.rules.live {
            return Ok(());
        }
        self.run_links()?;
        let mut quiet_s = 0;
        for seconds in 1.. {
            self.tick(seconds);
            quiet_s += seconds;
            for (a, b) in self.links.flows.keys().copied().collect::<Vec<_>>() {
                self.poll_link(a, b)?;
            }
            if let Some(m) = self.wire.first() {
                return Err(format!("thrift: {} says something to {} in a quiet world", m.from, m.to));
            }
            if quiet_s > QUIET_S {
                break;
            }
        }
        Ok(())
    }

    /// A connection ends with the process at one of its ends.
    pub(crate) fn hang_up(&mut self, i: usize) {
        self.links.cut_all(i);
        self.count(Fault::Crash);
    }
}
