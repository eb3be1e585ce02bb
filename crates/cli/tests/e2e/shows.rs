//! What is promised of a network of sites, measured: by command, since it takes minutes and a machine that has nothing else to do, and in small
//! every day. The numbers are printed (`--nocapture`), and must keep what is promised.

use crate::common::*;
use crate::sites::{Site, wait_same};
use crate::waiting::Closed;
use driftless_testkit::Rng;
use rustix::process::Signal;
use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A line with a delay: what comes in on one side leaves on the other so much later.
fn delayed_line(to: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect(to).unwrap());
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            for (from, to) in [(&near, &far), (&far, &near)] {
                carry(from.try_clone().unwrap(), to.try_clone().unwrap(), delay);
            }
        }
    });
    address
}

/// Bytes that are on their way, and whether no more come.
type OnTheWay = (VecDeque<(Instant, Vec<u8>)>, bool);

/// As much as is on a line of 10 Gbit/s with this delay, and no more.
const ON_THE_WAY_MAX: usize = 1024;

fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let line: Arc<(Mutex<OnTheWay>, Condvar)> = Arc::default();
    let filled = line.clone();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let n = from.read(&mut bytes).unwrap_or(0);
            let mut state = filled.0.lock().unwrap();
            while state.0.len() > ON_THE_WAY_MAX {
                state = filled.1.wait(state).unwrap();
            }
            match n {
                0 => state.1 = true,
                n => state.0.push_back((Instant::now() + delay, bytes[..n].to_vec())),
            }
            filled.1.notify_all();
            if n == 0 {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        loop {
            let (due, bytes) = {
                let mut state = line.0.lock().unwrap();
                loop {
                    if let Some(next) = state.0.pop_front() {
                        line.1.notify_all();
                        break next;
                    }
                    if state.1 {
                        // The other end may have gone already.
                        let _ = to.shutdown(Shutdown::Write);
                        return;
                    }
                    state = line.1.wait(state).unwrap();
                }
            };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
    });
}

fn begin(site: &Site) {
    site.ok(&["volume", "add", "data", site.dir.to_str().unwrap()]);
}

fn join(host: &Site, guest: &Site) {
    let token = host.ok(&["site", "invite", "--for", "data"]);
    guest.ok(&["site", "join", &token, "--dir", &format!("data={}", guest.dir.display())]);
}

/// Two sites with a volume, joined by a line with this delay.
pub(crate) fn far_sites(base: &TempDir, one_way: Duration) -> (Site, Site) {
    far_sites_with(base, one_way, |_, _| ())
}

/// The same, with what is put into the directories of oslo and bergen before they are joined.
pub(crate) fn far_sites_with(
    base: &TempDir,
    one_way: Duration,
    have: impl FnOnce(&Path, &Path),
) -> (Site, Site) {
    let (oslo, mut bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    // Nobody can connect to bergen, so that everything goes over the line.
    bergen.end(Signal::TERM);
    bergen.flags = vec!["--advertise".into(), "127.0.0.1:1".into()];
    bergen.start();
    have(&oslo.dir, &bergen.dir);
    begin(&oslo);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    let line = delayed_line(oslo.address().parse().unwrap(), one_way);
    let token = token.replace(&oslo.address(), &line.to_string());
    bergen.ok(&["site", "join", &token, "--dir", &format!("data={}", bergen.dir.display())]);
    (oslo, bergen)
}

/// How long a file of 1 KiB that is written at one site takes to be there at the other: the median of so many.
fn median_ms(from: &Site, to: &Site, tag: &str, n: usize) -> f64 {
    let mut took: Vec<Duration> = (0..n)
        .map(|i| {
            let name = format!("{tag}{i}");
            // Not at the pace of anything that ticks.
            std::thread::sleep(Duration::from_millis(150 + 37 * (i as u64 % 7)));
            let new = from.base.join("new");
            fs::write(&new, Rng::new(i as u64).bytes(1024)).unwrap();
            let began = Instant::now();
            fs::rename(&new, from.dir.join(&name)).unwrap();
            while fs::metadata(to.dir.join(&name)).map_or(true, |m| m.len() < 1024) {
                std::thread::sleep(Duration::from_micros(500));
                assert!(began.elapsed() < PATIENCE, "{}", to.log());
            }
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[n / 2].as_secs_f64() * 1000.0
}

#[test]
#[ignore = "measures, for a minute"]
fn a_small_write_is_there_soon_after_half_a_round_trip() {
    const ONE_WAY: Duration = Duration::from_millis(50);
    let base = TempDir::new().unwrap();
    // Both had files before they were joined, as most have.
    let (oslo, bergen) = far_sites_with(&base, ONE_WAY, |oslo, bergen| {
        for i in 0..200 {
            put(oslo, &format!("both{i}"), "1");
            put(bergen, &format!("both{i}"), "1");
        }
    });
    put(&oslo.dir, "first", "1");
    wait_same(&[&oslo, &bergen]);
    oslo.ok(&["flush"]);
    let idle_ms = median_ms(&oslo, &bergen, "idle", 41);
    println!("1 KiB on an idle line of 50 ms: there after {idle_ms:.1} ms (median of 41)");
    // So large that it is under way all the time.
    let large = oslo.dir.join("large");
    let mut file = fs::File::create(oslo.base.join("large")).unwrap();
    let mut rng = Rng::new(9);
    (0..64).for_each(|_| file.write_all(&rng.bytes(16 << 20)).unwrap());
    fs::rename(oslo.base.join("large"), &large).unwrap();
    wait_until("the large file to be under way", || match bergen.link("oslo")["received_bytes"].as_u64() {
        Some(n) if n > 50_000_000 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let busy_ms = median_ms(&oslo, &bergen, "busy", 15);
    println!(
        "the same beside a file of 1 GiB on its way: {busy_ms:.1} ms (median of 15); under way still: {}",
        !bergen.dir.join("large").exists()
    );
    assert!(idle_ms < 60.0, "{idle_ms}");
    assert!(busy_ms < 100.0, "{busy_ms}");
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Changes so many files, new or not, and waits until bergen holds them; how long that took.
fn change(oslo: &Site, n: usize, round: usize) -> f64 {
    let began = Instant::now();
    for i in 0..n {
        put(&oslo.dir, &format!("d{}/f{i}", i / 500), &format!("{round} of {i}"));
    }
    let done = oslo.ok(&["link", "checkpoint", "data", "--to", "bergen", "--timeout", "20m"]);
    assert!(done.contains("done"), "{done}");
    began.elapsed().as_secs_f64()
}

fn rss_mib(site: &Site) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", site.node.as_ref().unwrap().id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<u64>().unwrap() >> 10
}

fn disk_mib(dir: &Path) -> u64 {
    let output = std::process::Command::new("du").args(["-sm", dir.to_str().unwrap()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

/// Changes so many files in four rounds while one site of three is away. Rates are compared if `rates`.
fn one_is_away(files: usize, rates: bool) {
    let rounds = 4;
    let base = TempDir::new().unwrap();
    let [oslo, bergen, mut tromso] = ["oslo", "bergen", "tromso"].map(|name| Site::new(base.path(), name));
    begin(&oslo);
    join(&oslo, &bergen);
    join(&oslo, &tromso);
    let new_s = change(&oslo, files, 0);
    oslo.ok(&["flush", "data", "--timeout", "20m"]);
    let with_s = change(&oslo, files, 1);
    oslo.ok(&["flush", "data", "--timeout", "20m"]);
    let looks = || [rss_mib(&oslo), rss_mib(&bergen), disk_mib(&oslo.base.join("state"))];
    tromso.end(Signal::KILL);
    let mut without = Vec::new();
    let mut seen = vec![looks()];
    for round in 2..2 + rounds {
        without.push(change(&oslo, files, round));
        seen.push(looks());
    }
    let changes = files * rounds;
    println!(
        "{files} new files: {new_s:.1} s; changed with all there: {with_s:.1} s; each round without tromso: {without:.1?} s"
    );
    println!(
        "{changes} changes while it was away; memory of oslo, of bergen, state of oslo, MiB, before and after each round: {seen:?}"
    );
    let began = Instant::now();
    tromso.start();
    let last = format!("{} of 0", 1 + rounds);
    let first_s =
        time_until("the first file to come", || match fs::read_to_string(tromso.dir.join("d0/f0")) {
            Ok(text) if text == last => Ok(()),
            other => Err(format!("{other:?}")),
        });
    oslo.ok(&["flush", "data", "--timeout", "20m"]);
    let caught_up_s = began.elapsed().as_secs_f64();
    wait_same(&[&oslo, &tromso]);
    let received = tromso.try_status().unwrap()["volumes"][0]["received"].as_u64().unwrap();
    println!(
        "back: the first file after {:.1} s, all after {caught_up_s:.1} s; {received} states came for {files} files",
        first_s.as_secs_f64()
    );
    let slowest = without.iter().copied().fold(0.0, f64::max);
    assert!(!rates || slowest < with_s * 1.3 + 2.0, "the others were slowed: {without:?} after {with_s}");
    let (before, after) = (seen[0], seen[rounds]);
    let grown = (0..3).any(|i| after[i] >= before[i] * 3 / 2 + 64);
    assert!(!grown, "{seen:?}");
    // Directories, whose times change with their files, are states too.
    assert!(received < files as u64 * 102 / 100 + 2 * (files as u64 / 500) + 100, "{received}");
}

#[test]
fn a_site_that_is_away_gets_each_entry_once() {
    one_is_away(500, false);
}

#[test]
#[ignore = "measures, for some minutes"]
fn a_site_that_is_away_slows_nobody_and_gets_each_entry_once() {
    one_is_away(number("DRIFTLESS_SHOW_CHANGES", 100_000) / 4, true);
}

/// A chain of sites through which this goes while one of them is killed now and then.
struct Kills {
    sites: usize,
    victim: usize,
    kills: usize,
    /// Length of one large file.
    large_len: usize,
    /// How many files of 1 MB beside it.
    files: usize,
    /// Of each link.
    bwlimit: &'static str,
}

impl Kills {
    /// Bytes that went over each link, by the count of the end that lived on, and how many should have.
    fn sent(&self) -> (Vec<u64>, u64) {
        let base = TempDir::new().unwrap();
        let names = ["oslo", "bergen", "tromso"];
        let mut sites: Vec<Site> =
            names[..self.sites].iter().map(|name| Site::new(base.path(), name)).collect();
        // Who comes back is where it was.
        for site in &mut sites {
            site.listen = site.address();
        }
        begin(&sites[0]);
        for pair in sites.windows(2) {
            join(&pair[0], &pair[1]);
            let flags = ["--compress", "none", "--bwlimit", self.bwlimit];
            pair[0].ok(&[&["link", "config", "data", "--to", &pair[1].name], &flags[..]].concat());
        }
        put(&sites[0].dir, "first", "1");
        wait_same(&sites.iter().collect::<Vec<_>>());
        let seed = number("DRIFTLESS_SHOW_SEED", 4) as u64;
        let mut rng = Rng::new(seed);
        let mut large = fs::File::create(sites[0].dir.join("large")).unwrap();
        (0..self.large_len / 10_000_000).for_each(|_| large.write_all(&rng.bytes(10_000_000)).unwrap());
        drop(large);
        for i in 0..self.files {
            fs::write(sites[0].dir.join(format!("f{i}")), rng.bytes(1_000_000)).unwrap();
        }
        let len = (self.large_len + self.files * 1_000_000) as u64;
        // Moments: shares of the bytes of the link to or from the victim.
        let watched = self.victim.min(self.sites - 2);
        let mut moments: Vec<u64> = (0..self.kills).map(|_| len / 100 * (5 + rng.below(85))).collect();
        moments.sort_unstable();
        for moment in &moments {
            wait_until("a part to be sent", || match self.over(&sites, watched) {
                n if n > *moment => Ok(()),
                n => Err(format!("{n} of {moment}")),
            });
            sites[self.victim].end(Signal::KILL);
            sites[self.victim].start();
        }
        wait_same(&sites.iter().collect::<Vec<_>>());
        let sent: Vec<u64> = (0..self.sites - 1).map(|link| self.over(&sites, link)).collect();
        let more: Vec<String> =
            sent.iter().map(|n| format!("{:+.2} %", (*n as f64 / len as f64 - 1.0) * 100.0)).collect();
        println!(
            "{len} bytes, {} killed at {moments:?} (seed {seed}): over each link {sent:?} bytes: {}",
            names[self.victim],
            more.join(", ")
        );
        (sent, len)
    }

    /// What went over the link from this site to the next.
    fn over(&self, sites: &[Site], from: usize) -> u64 {
        let (near, far) = (&sites[from], &sites[from + 1]);
        let (by, other, what) =
            if self.victim == from { (far, near, "received_bytes") } else { (near, far, "sent_bytes") };
        by.link(&other.name)[what].as_u64().unwrap_or(0)
    }
}

const MEASURED: Kills =
    Kills { sites: 2, victim: 0, kills: 2, large_len: 300_000_000, files: 300, bwlimit: "60M" };

fn little_is_sent_again(kills: &Kills) {
    let (sent, len) = kills.sent();
    assert!(sent.iter().all(|n| *n < len * 101 / 100), "{sent:?} bytes for {len}");
}

/// In small: what is sent again is a few batches.
#[test]
fn a_sender_that_is_killed_sends_little_again() {
    let (sent, len) = Kills { kills: 1, large_len: 30_000_000, files: 10, bwlimit: "20M", ..MEASURED }.sent();
    assert!(sent.iter().all(|n| *n < len + 12_000_000), "{sent:?} bytes for {len}");
}

#[test]
#[ignore = "measures, for a minute"]
fn a_kill_of_the_receiver_makes_little_be_sent_again() {
    little_is_sent_again(&Kills { victim: 1, ..MEASURED });
}

#[test]
#[ignore = "measures, for a minute"]
fn a_kill_of_the_sender_makes_little_be_sent_again() {
    little_is_sent_again(&MEASURED);
}

#[test]
#[ignore = "measures, for a minute"]
fn a_kill_of_a_relay_makes_little_be_sent_again() {
    little_is_sent_again(&Kills { sites: 3, victim: 1, ..MEASURED });
}

/// Writes so many new files; how long until all are at the other site.
fn new_files(from: &Site, to: &Site, round: &str, n: usize) -> f64 {
    let began = Instant::now();
    (0..n).for_each(|i| put(&from.dir, &format!("open/{round}/f{i}"), &format!("{round} of {i}")));
    let there = to.dir.join(format!("open/{round}"));
    wait_until("all files to come", || match fs::read_dir(&there).map(Iterator::count) {
        Ok(count) if count == n => Ok(()),
        other => Err(format!("{other:?} of {n}\n{}", to.log())),
    });
    began.elapsed().as_secs_f64()
}

/// A directory that cannot be written to at one site: everything else goes on, what waits is named with cause and place, counted, and
/// healthy nobody calls it. The ratio of rates must be below `ratio_max`.
fn a_poison_entry(n: usize, ratio_max: f64) {
    let base = TempDir::new().unwrap();
    let [oslo, bergen] = ["oslo", "bergen"].map(|name| Site::new(base.path(), name));
    put(&oslo.dir, "closed/first", "1");
    begin(&oslo);
    let token = oslo.ok(&["site", "invite", "--for", "data", "--mode", "active-passive"]);
    bergen.ok(&["site", "join", &token, "--dir", &format!("data={}", bergen.dir.display())]);
    wait_same(&[&oslo, &bergen]);
    new_files(&oslo, &bergen, "warm", n);
    let without: Vec<f64> = (0..3).map(|i| new_files(&oslo, &bergen, &format!("without{i}"), n)).collect();
    oslo.wait_link("bergen", "in-sync");
    let Some(closed) = Closed::close(&bergen.dir.join("closed")) else { return };
    (0..20).for_each(|i| put(&oslo.dir, &format!("closed/poison{i}"), "2"));
    let metric = |site: &Site, line: &str| {
        wait_until(line, || match site.get("/metrics") {
            page if page.contains(line) => Ok(()),
            page => Err(page.lines().filter(|l| l.contains("waiting")).collect::<Vec<_>>().join("\n")),
        });
    };
    // Twenty files, and the directory, whose time has changed with them.
    metric(&bergen, "driftless_waiting_items{volume=\"data\"} 2");
    let with: Vec<f64> = (0..3).map(|i| new_files(&oslo, &bergen, &format!("with{i}"), n)).collect();
    let least = |all: &[f64]| all.iter().copied().fold(f64::INFINITY, f64::min);
    let ratio = least(&with) / least(&without);
    println!(
        "{n} new files: {without:.2?} s without, {with:.2?} s with 20 that wait: ratio of the best {ratio:.2}"
    );
    assert!(ratio < ratio_max, "{without:?} {with:?}");
    // What and where, at both sites, in words, numbers and for balancers.
    let listed = run(bergen.command().args(["failures", "--volume", "data"]));
    assert!(listed.code == 3 && listed.out.contains("closed/poison7"), "{listed:?}");
    // What the system says of such a directory differs with the means that closed it.
    let reason = ["denied", "read_only"].into_iter().find(|reason| {
        let words = if *reason == "denied" { "permission denied" } else { "read-only" };
        let why = run(oslo.command().args(["why", "--volume", "data", "closed/poison7"]));
        assert!(why.out.contains("bergen"), "{why:?}");
        listed.out.contains(words) && why.out.contains(words)
    });
    let reason = reason.unwrap_or_else(|| panic!("{listed:?}"));
    metric(&bergen, &format!("driftless_waiting_by_reason_items{{volume=\"data\",reason=\"{reason}\"}} 2"));
    metric(&oslo, "driftless_peer_waiting_items{volume=\"data\",peer=\"bergen\"} 2");
    assert!(bergen.get("/health").starts_with("HTTP/1.1 503"), "{}", bergen.get("/health"));
    drop(closed);
    wait_same(&[&oslo, &bergen]);
    metric(&bergen, "driftless_waiting_items{volume=\"data\"} 0");
    wait_until("health", || match bergen.get("/health") {
        page if page.starts_with("HTTP/1.1 200") => Ok(()),
        page => Err(page),
    });
}

#[test]
fn a_poison_entry_holds_up_only_itself() {
    a_poison_entry(200, 5.0);
}

#[test]
#[ignore = "measures, for a minute"]
fn a_poison_entry_slows_nothing() {
    a_poison_entry(number("DRIFTLESS_SHOW_FILES", 5000), 1.3);
}
