//! One thread for each link: it makes the connection or is given one, passes messages between it and the replica, and notes how
//! it went.
//!
//! Either site may connect; so that they do not do so at the same moment again and again, the one with the lesser key goes
//! first and the other waits a little longer. A connection that is taken over replaces the one before: the other site
//! would not have made it if that one were well.

use crate::log;
use crate::members::Membership;
use crate::preface::{self, Request, Response};
use crate::settings::LinkRules;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select, unbounded};
use driftless_core::membership::Key;
use driftless_net::identity::PublicKey;
use driftless_net::tls::{Tls, TlsError, TlsOptions, TlsReader, TlsStop, TlsWriter};
use driftless_net::{Carrier, CarrierOptions, Compress, Frame, Incoming, Rate, Received, Traffic};
use driftless_node::api::Level;
use driftless_node::replica::{FromLink, LinkEnd, LinkId, Replica, Tuning};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a connection and its handshake may take each. With [`SILENCE_MAX`] it keeps the promise that a site that
/// cannot be reached is named within ten seconds.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(4);
/// A sign of life is given so often.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// A peer that gives none for so long is not there.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(8);
/// Pauses between attempts to connect: the first, about as long as the other site takes to start a volume that was added a moment
/// ago, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How fast it goes is told over so long.
pub(crate) const PACE_OVER: Duration = Duration::from_secs(3);
/// The site that does not go first waits so much longer.
const SECOND_WAITS: Duration = Duration::from_secs(2);
/// The same before its first attempt: who goes first may have been refused already, for the volume was not here yet.
const SECOND_BEGINS_AFTER: Duration = Duration::from_millis(200);
/// Begins a control frame with a membership document.
const CONTROL_MEMBERS: u8 = 1;
/// How long what waits may take to be written when a link ends in good order.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// A connection on which the first words have been said.
pub(crate) struct Open {
    pub(crate) reader: TlsReader,
    pub(crate) writer: TlsWriter,
    pub(crate) stop: TlsStop,
    pub(crate) from: String,
    /// The key that the other end has proven to have.
    pub(crate) key: PublicKey,
}

/// What a link is told.
pub(crate) enum Order {
    /// The other site has connected.
    Take(Box<Open>),
    /// The other site is somewhere else now.
    Moved(Vec<SocketAddr>),
    /// The volume runs (again).
    Again,
    /// Batches are cut differently from now on.
    Tune(Tuning),
    /// A new connection is to be made: frames are to be compressed differently.
    Anew,
    /// The membership has changed.
    Tell,
}

/// Where the other site is, and who.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) site: String,
    pub(crate) volume: String,
    pub(crate) volume_id: String,
    pub(crate) key: PublicKey,
    pub(crate) addresses: Vec<SocketAddr>,
    /// Where this site is.
    pub(crate) own_addresses: Vec<String>,
    /// This site goes first.
    pub(crate) first: bool,
}

impl Target {
    fn volume_number(&self) -> u128 {
        // Records that are damaged have no volume that runs.
        u128::from_str_radix(&self.volume_id, 16).unwrap_or(0)
    }
}

/// How a link went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The replica's end of it, while it is connected.
    pub(crate) connected: Option<LinkId>,
    pub(crate) refused: bool,
    pub(crate) failed: bool,
    pub(crate) last_error: Option<(Instant, String)>,
    /// Since when nothing has been heard of it, if an attempt has failed.
    pub(crate) down_since: Option<Instant>,
    /// When something came the last time, on the connection that there is or was.
    pub(crate) heard: Option<Instant>,
}

/// A link that runs. Dropping it ends it.
pub(crate) struct LinkThread {
    /// The key of the other site.
    pub(crate) key: PublicKey,
    orders: Sender<Order>,
    stop: Option<Sender<()>>,
    seen: Arc<Mutex<Seen>>,
    how: Arc<How>,
    pace: Mutex<Pace>,
    /// What the other site held when that changed last, and what had been sent by then.
    held: Mutex<(u64, u64)>,
    connecting: Arc<AtomicBool>,
    /// This site goes first and is at it: from dialling until the other end has greeted.
    going_first: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How fast bytes went lately.
#[derive(Default)]
struct Pace {
    at: Option<(Instant, u64)>,
    bytes_per_s: u64,
}

/// How what this site sends is sent; may change while the link runs.
#[derive(Default)]
struct How {
    rate: Rate,
    traffic: Traffic,
    cut: Mutex<(Tuning, Compress)>,
}

impl LinkThread {
    /// `replica` gives an end of a link to the volume's replica, if that runs.
    pub(crate) fn start(
        target: Target,
        tls: TlsOptions,
        members: Arc<Membership>,
        replica: Arc<Mutex<Option<Replica>>>,
    ) -> std::io::Result<LinkThread> {
        let (orders, taken) = unbounded();
        let (stop, stopped) = bounded(0);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let addresses = Mutex::new(target.addresses.clone());
        let how = Arc::new(How::default());
        let (connecting, going_first) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let key = target.key;
        let runs = Runs {
            target,
            addresses,
            tls,
            members,
            replica,
            seen: seen.clone(),
            how: how.clone(),
            connecting: connecting.clone(),
            going_first: going_first.clone(),
            orders: taken,
            stopped,
        };
        let thread = std::thread::Builder::new().name("link".into()).spawn(move || runs.run())?;
        let (pace, held) = (Mutex::default(), Mutex::default());
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(LinkThread { key, orders, stop, seen, how, pace, held, connecting, going_first, thread })
    }

    /// Keeps to what is set, at this day and minute of it.
    pub(crate) fn keep_to(&self, rules: &LinkRules, now: (u32, u32)) {
        self.how.rate.set(rules.bytes_per_s_at(now));
        let cut = (rules.tuning, rules.compress);
        let before = std::mem::replace(&mut *lock(&self.how.cut), cut);
        if before.0 != cut.0 {
            self.order(Order::Tune(cut.0));
        }
        if before.1 != cut.1 {
            self.order(Order::Anew);
        }
    }

    /// Bytes sent and received since the link was started, and bytes sent per second lately.
    pub(crate) fn traffic(&self) -> (u64, u64, u64) {
        let (sent, received) = self.how.traffic.get();
        (sent, received, lock(&self.pace).bytes_per_s)
    }

    /// Looks how fast it goes; to be called now and then.
    pub(crate) fn note_pace(&self) {
        let (now, sent) = (Instant::now(), self.how.traffic.get().0);
        let mut pace = lock(&self.pace);
        match pace.at {
            Some((at, before)) if now.duration_since(at) >= PACE_OVER => {
                let passed = now.duration_since(at).as_secs_f64();
                pace.bytes_per_s = (sent.saturating_sub(before) as f64 / passed) as u64;
                pace.at = Some((now, sent));
            }
            Some(_) => {}
            None => pace.at = Some((now, sent)),
        }
    }

    /// Bytes sent since the other site held more than before; to be called now and then with the position that it holds.
    pub(crate) fn sent_since(&self, held: u64) -> u64 {
        let sent = self.how.traffic.get().0;
        let mut known = lock(&self.held);
        if known.0 != held {
            *known = (held, sent);
        }
        sent.saturating_sub(known.1)
    }

    pub(crate) fn order(&self, order: Order) {
        // A thread that has ended is about to be dropped.
        let _ = self.orders.send(order);
    }

    /// True while a connection that the other site makes would cross one that this site makes: each end would wait to be
    /// greeted by the one that the other does not look at.
    pub(crate) fn goes_first_now(&self) -> bool {
        self.going_first.load(Ordering::SeqCst)
    }

    /// Where to hand connections that the other site makes.
    pub(crate) fn orders(&self) -> Sender<Order> {
        self.orders.clone()
    }

    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

impl Drop for LinkThread {
    fn drop(&mut self) {
        self.stop = None;
        // One that is connecting holds nothing and ends by itself, in seconds that nobody has to wait for.
        let waits = !self.connecting.load(Ordering::SeqCst);
        if let Some(thread) = self.thread.take().filter(|_| waits) {
            // A panicked thread has said so on stderr.
            let _ = thread.join();
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is replaced as a whole.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Runs {
    target: Target,
    /// Where the other site is now.
    addresses: Mutex<Vec<SocketAddr>>,
    tls: TlsOptions,
    members: Arc<Membership>,
    replica: Arc<Mutex<Option<Replica>>>,
    seen: Arc<Mutex<Seen>>,
    how: Arc<How>,
    connecting: Arc<AtomicBool>,
    going_first: Arc<AtomicBool>,
    orders: Receiver<Order>,
    stopped: Receiver<()>,
}

/// Why a connection is over.
enum Over {
    /// Another has come in its place.
    Replaced(Box<Open>),
    /// The link is to end.
    Stopped,
    /// It is to be made anew.
    Anew,
    /// It broke, or was refused.
    Failed(String),
}

impl Runs {
    fn run(self) {
        let mut pause = RETRY_FIRST;
        let mut wait = if self.target.first { Duration::ZERO } else { SECOND_BEGINS_AFTER };
        loop {
            let open = select! {
                recv(self.stopped) -> _ => return,
                recv(self.orders) -> order => match order {
                    Ok(Order::Take(open)) => open,
                    Ok(Order::Moved(to)) => { *lock(&self.addresses) = to; continue }
                    Ok(Order::Again) => { pause = RETRY_FIRST; wait = Duration::ZERO; continue }
                    // Heeded by the next connection.
                    Ok(Order::Tune(_) | Order::Anew | Order::Tell) => continue,
                    Err(_) => return,
                },
                default(wait) => match self.connect_unless_stopped() {
                    Ok(Some(open)) => Box::new(open),
                    Ok(None) => return,
                    Err(Failed { why, refused }) => {
                        self.failed(&why, refused);
                        wait = pause + if self.target.first { Duration::ZERO } else { SECOND_WAITS };
                        pause = (pause * 2).min(RETRY_MAX);
                        continue;
                    }
                },
            };
            let begun = Instant::now();
            let mut next = Some(open);
            while let Some(open) = next.take() {
                match self.serve(*open) {
                    Over::Replaced(open) => next = Some(open),
                    Over::Stopped => return,
                    Over::Anew => {}
                    Over::Failed(why) => self.failed(&why, false),
                }
            }
            // One that ends at once is not made again at once.
            pause = if begun.elapsed() > RETRY_MAX { RETRY_FIRST } else { (pause * 2).min(RETRY_MAX) };
            wait = pause + if self.target.first { Duration::ZERO } else { SECOND_WAITS };
        }
    }

    fn failed(&self, why: &str, refused: bool) {
        let mut seen = lock(&self.seen);
        let known = seen.last_error.as_ref().is_some_and(|(_, text)| text == why) && seen.connected.is_none();
        let now = Instant::now();
        *seen = Seen {
            connected: None,
            refused,
            failed: true,
            last_error: Some((now, why.into())),
            down_since: seen.down_since.or(seen.heard).or(Some(now)),
            heard: None,
        };
        drop(seen);
        if !known {
            self.log(Level::Warn, why);
        }
    }

    /// Something came.
    fn hear(&self, received: Received) -> Received {
        lock(&self.seen).heard = Some(Instant::now());
        received
    }

    fn log(&self, level: Level, text: &str) {
        log::line(level, text, &[("volume", &self.target.volume), ("site", &self.target.site)]);
    }

    /// `None` if the link was stopped meanwhile.
    fn connect_unless_stopped(&self) -> Result<Option<Open>, Failed> {
        self.connecting.store(true, Ordering::SeqCst);
        self.going_first.store(self.target.first, Ordering::SeqCst);
        let connected = self.connect();
        self.connecting.store(false, Ordering::SeqCst);
        if connected.is_err() {
            self.going_first.store(false, Ordering::SeqCst);
        }
        match self.stopped.try_recv() {
            Err(TryRecvError::Disconnected) => Ok(None),
            _ => connected.map(Some),
        }
    }

    fn connect(&self) -> Result<Open, Failed> {
        if lock(&self.replica).is_none() {
            return Err(Failed::broken("the volume does not run here"));
        }
        let mut why = Failed::broken("it is not known where this site is: it has to connect");
        let addresses = lock(&self.addresses).clone();
        for address in addresses {
            match self.connect_to(address) {
                Ok(open) => return Ok(open),
                Err(e) => why = e,
            }
        }
        Err(why)
    }

    fn connect_to(&self, address: SocketAddr) -> Result<Open, Failed> {
        let broken = |e: &dyn std::fmt::Display| Failed::broken(&format!("{address}: {e}"));
        let tls = match self.tls.connect(address, self.target.key, CONNECT_PATIENCE) {
            Err(TlsError::WrongKey { found, .. }) if self.learn_of_heir(address, found) => {
                return Err(broken(&"it has another key, which has taken the place of the one before"));
            }
            other => other.map_err(|e| broken(&e))?,
        };
        let (mut reader, mut writer, stop) = tls.split(SILENCE_MAX).map_err(|e| broken(&e))?;
        let request = Request::Link {
            volume: self.target.volume_id.clone(),
            addresses: self.target.own_addresses.clone(),
        };
        preface::write(&mut writer, request).map_err(|e| broken(&e))?;
        match preface::read(&mut reader).map_err(|e| broken(&e))? {
            Response::Linked => {
                Ok(Open { reader, writer, stop, from: address.to_string(), key: self.target.key })
            }
            Response::Refused { why, unknown_key, .. } => {
                if unknown_key && self.succeed(address) {
                    return Err(broken(&"it was told that this site has another key now"));
                }
                Err(Failed { why: format!("{address}: {why}"), refused: true })
            }
            _ => Err(broken(&"it answered something else than was asked")),
        }
    }

    /// Tells a site that does not know this one's key what says whose place it has taken. True if it is known there now.
    fn succeed(&self, address: SocketAddr) -> bool {
        let document = self.members.succession(self.target.volume_number());
        let Some(document) = document.and_then(|bytes| preface::document_hex(&bytes)) else { return false };
        let request = Request::Succeed { volume: self.target.volume_id.clone(), document };
        matches!(ask_site(&self.tls, &[address], self.target.key, &request), Ok(Response::Succeeded))
    }

    /// Asks whoever answers with another key what says that it has taken the place of the one that is known. True if it has: the
    /// node hears of it, and makes this link anew.
    fn learn_of_heir(&self, address: SocketAddr, found: PublicKey) -> bool {
        let request = Request::Succession { volume: self.target.volume_id.clone() };
        let Ok(Response::Succession { document }) = ask_site(&self.tls, &[address], found, &request) else {
            return false;
        };
        let Some(bytes) = preface::document_bytes(&document) else { return false };
        self.members.learn_of_heir(self.target.volume_number(), &bytes, Key(found.0)).is_ok()
    }

    /// Passes messages until the connection is over.
    fn serve(&self, open: Open) -> Over {
        let Open { reader, writer, stop, from, key } = open;
        let (tuning, compress) = *lock(&self.how.cut);
        // Without it the line counts as slow.
        let gauge = writer.gauge().ok();
        let options = CarrierOptions {
            rate: self.how.rate.clone(),
            compress,
            gauge,
            traffic: self.how.traffic.clone(),
        };
        let started = Carrier::start(reader, writer, options);
        self.going_first.store(false, Ordering::SeqCst);
        let carrier = match started {
            Ok(carrier) => carrier,
            Err(e) => return Over::Failed(format!("{from}: {e}")),
        };
        let end = match lock(&self.replica).as_ref() {
            Some(replica) => replica.connect_to(Key(key.0)),
            None => return Over::Failed("the volume does not run here".into()),
        };
        end.tune(tuning);
        {
            let mut seen = lock(&self.seen);
            let last_error = seen.last_error.take();
            let (connected, heard) = (Some(end.id()), Some(Instant::now()));
            *seen = Seen { connected, last_error, heard, ..Seen::default() };
        }
        self.log(Level::Info, &format!("connected to {from}"));
        let over = self.pass(&carrier, &end);
        lock(&self.seen).connected = None;
        stop.stop();
        over
    }

    fn pass(&self, carrier: &Carrier, end: &LinkEnd) -> Over {
        // Closed when this side is done, and when the writer is.
        let (done, is_done) = bounded::<()>(0);
        let (writes, written) = bounded::<String>(1);
        let (tell, told) = bounded::<()>(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let why = self.write_all(carrier, end, &is_done, &told).err().unwrap_or_default();
                // Nobody waits for it when this side ended first.
                let _ = writes.send(why);
            });
            let over = self.read_all(carrier, end, &written, &tell);
            drop(done);
            // Both wake a writer that waits for a peer which takes nothing.
            match over {
                // What waits is written if that is quick; the other site goes on from what it has got.
                Over::Stopped | Over::Anew => {
                    _ = carrier.close("the other site has ended the link", CLOSE_PATIENCE)
                }
                _ => carrier.break_off("the link ends"),
            }
            over
        })
    }

    /// Writes what the replica has for the peer, the membership whenever it has changed, and signs of life until it is `done`; or
    /// why it stopped before.
    fn write_all(
        &self,
        carrier: &Carrier,
        end: &LinkEnd,
        done: &Receiver<()>,
        told: &Receiver<()>,
    ) -> Result<(), String> {
        let ticks = crossbeam_channel::tick(ALIVE_EVERY);
        let mut known: Option<Arc<Vec<u8>>> = None;
        loop {
            self.tell_members(carrier, &mut known)?;
            let frame = select! {
                recv(end.outgoing()) -> said => match said {
                    Ok(FromLink::Message(outgoing)) => {
                        // It is judged by the membership, and may follow from one that came while it was waited for.
                        self.tell_members(carrier, &mut known)?;
                        Frame::Message(outgoing.into_message())
                    }
                    Ok(FromLink::Refused(e)) => return Err(e.what),
                    Err(_) => return Err("the volume has stopped here".into()),
                },
                recv(ticks) -> _ => Frame::Control(Vec::new()),
                recv(told) -> _ => continue,
                recv(done) -> _ => return Ok(()),
            };
            carrier.send(frame).map_err(|e| e.to_string())?;
        }
    }

    /// Sends the membership if `known` is not the newest.
    fn tell_members(&self, carrier: &Carrier, known: &mut Option<Arc<Vec<u8>>>) -> Result<(), String> {
        let Some(document) = self.members.document_bytes(self.target.volume_number()) else { return Ok(()) };
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &document)) {
            return Ok(());
        }
        let body = [&[CONTROL_MEMBERS], &document[..]].concat();
        *known = Some(document);
        carrier.send(Frame::Control(body)).map_err(|e| e.to_string())
    }

    /// What the other node says beside its replica; why the link ends.
    fn take_control(&self, body: &[u8]) -> Result<(), String> {
        match body.split_first() {
            // A sign of life.
            None => Ok(()),
            Some((&CONTROL_MEMBERS, document)) => {
                // What comes after it goes by it: without it nothing more is taken. It is sent again with the next connection.
                self.members.learn(self.target.volume_number(), document).map_err(|e| e.to_string())
            }
            // Of a later version.
            Some(_) => Ok(()),
        }
    }

    fn read_all(
        &self,
        carrier: &Carrier,
        end: &LinkEnd,
        written: &Receiver<String>,
        tell: &Sender<()>,
    ) -> Over {
        loop {
            select! {
                recv(carrier.incoming()) -> item => match item {
                    Ok(Incoming::Frame(received)) => match self.hear(received).into_parts() {
                        // Until the replica has worked on it, it counts as not taken.
                        (Frame::Message(message), permit) => end.give_counted(message, permit),
                        (Frame::Control(body), _) => if let Err(why) = self.take_control(&body) {
                            return Over::Failed(why);
                        },
                        (Frame::Close(why), _) => return Over::Failed(why),
                    },
                    Ok(Incoming::End(why)) => return Over::Failed(why.to_string()),
                    Err(_) => return Over::Failed("the connection ended".into()),
                },
                recv(written) -> why => return Over::Failed(why.unwrap_or_else(|_| "the connection ended".into())),
                recv(self.orders) -> order => match order {
                    Ok(Order::Take(open)) => return Over::Replaced(open),
                    Ok(Order::Moved(to)) => *lock(&self.addresses) = to,
                    Ok(Order::Again) => {}
                    Ok(Order::Tune(tuning)) => end.tune(tuning),
                    Ok(Order::Anew) => return Over::Anew,
                    // Full: the writer is about to look anyway.
                    Ok(Order::Tell) => _ = tell.try_send(()),
                    Err(_) => return Over::Stopped,
                },
                recv(self.stopped) -> _ => return Over::Stopped,
            }
        }
    }
}

/// Why there is no connection.
struct Failed {
    why: String,
    refused: bool,
}

impl Failed {
    fn broken(why: &str) -> Failed {
        Failed { why: why.into(), refused: false }
    }
}

/// Asks a site something; the connection ends with the answer.
pub(crate) fn ask_site(
    tls: &TlsOptions,
    addresses: &[SocketAddr],
    key: PublicKey,
    request: &Request,
) -> Result<Response, String> {
    ask_site_for(tls, addresses, key, request, SILENCE_MAX)
}

/// As [`ask_site`], of one that may take so long to answer.
pub(crate) fn ask_site_for(
    tls: &TlsOptions,
    addresses: &[SocketAddr],
    key: PublicKey,
    request: &Request,
    patience: Duration,
) -> Result<Response, String> {
    let mut why = "no address of it is known".to_owned();
    for address in addresses {
        let asked = || -> Result<Response, String> {
            let tls: Tls = tls.connect(*address, key, CONNECT_PATIENCE).map_err(|e| e.to_string())?;
            let (mut reader, mut writer, _stop) = tls.split(patience).map_err(|e| e.to_string())?;
            preface::write(&mut writer, request).map_err(|e| e.to_string())?;
            preface::read_answer(&mut reader).map_err(|e| e.to_string())
        };
        match asked() {
            Ok(response) => return Ok(response),
            Err(e) => why = format!("{address}: {e}"),
        }
    }
    Err(why)
}
