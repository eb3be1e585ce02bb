//! What is promised of a network of sites, measured: by command only, since it takes minutes and a machine that has nothing else to do.
//! The numbers are printed (`--nocapture`), and must keep what is promised.

use crate::common::*;
use crate::sites::{Site, wait_same};
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
    let (oslo, mut bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    // Nobody can connect to bergen, so that everything goes over the line.
    bergen.end(Signal::TERM);
    bergen.flags = vec!["--advertise".into(), "127.0.0.1:1".into()];
    bergen.start();
    begin(&oslo);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    let line = delayed_line(oslo.address().parse().unwrap(), ONE_WAY);
    let token = token.replace(&oslo.address(), &line.to_string());
    bergen.ok(&["site", "join", &token, "--dir", &format!("data={}", bergen.dir.display())]);
    put(&oslo.dir, "first", "1");
    wait_same(&[&oslo, &bergen]);
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

fn changes() -> usize {
    std::env::var("DRIFTLESS_SHOW_CHANGES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
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

#[test]
#[ignore = "measures, for some minutes"]
fn a_site_that_is_away_slows_nobody_and_gets_each_entry_once() {
    // So many files, changed in four rounds while one site is away.
    let (files, rounds) = (changes() / 4, 4);
    let base = TempDir::new().unwrap();
    let [oslo, bergen, mut tromso] = ["oslo", "bergen", "tromso"].map(|name| Site::new(base.path(), name));
    begin(&oslo);
    join(&oslo, &bergen);
    join(&oslo, &tromso);
    let new_s = change(&oslo, files, 0);
    oslo.ok(&["flush", "data", "--timeout", "20m"]);
    let with_s = change(&oslo, files, 1);
    oslo.ok(&["flush", "data", "--timeout", "20m"]);
    let before = (rss_mib(&oslo), disk_mib(&oslo.base.join("state")));
    tromso.end(Signal::KILL);
    let without: Vec<f64> = (2..2 + rounds).map(|round| change(&oslo, files, round)).collect();
    let after = (rss_mib(&oslo), disk_mib(&oslo.base.join("state")));
    let changes = files * rounds;
    println!(
        "{files} new files: {new_s:.1} s; changed with all there: {with_s:.1} s; each round without tromso: {without:.1?} s"
    );
    println!(
        "{changes} changes while it was away: memory {} to {} MiB, state {} to {} MiB",
        before.0, after.0, before.1, after.1
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
    assert!(slowest < with_s * 1.3 + 2.0, "the others were slowed: {without:?} after {with_s}");
    assert!(after.0 < before.0 * 3 / 2 + 64 && after.1 < before.1 * 3 / 2 + 64, "{before:?} {after:?}");
    // Directories, whose times change with their files, are states too.
    assert!(received < files as u64 * 102 / 100 + 2 * (files as u64 / 500) + 100, "{received}");
}

#[test]
#[ignore = "measures, for a minute"]
fn a_kill_makes_little_be_sent_again() {
    const LEN: u64 = 600_000_000;
    let base = TempDir::new().unwrap();
    let (mut oslo, mut bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    oslo.listen = oslo.address();
    bergen.listen = bergen.address();
    begin(&oslo);
    join(&oslo, &bergen);
    put(&oslo.dir, "first", "1");
    wait_same(&[&oslo, &bergen]);
    oslo.ok(&["link", "config", "data", "--to", "bergen", "--compress", "none", "--bwlimit", "60M"]);
    let mut rng = Rng::new(4);
    let mut large = fs::File::create(oslo.dir.join("large")).unwrap();
    (0..30).for_each(|_| large.write_all(&rng.bytes(10_000_000)).unwrap());
    drop(large);
    (0..300).for_each(|i| fs::write(oslo.dir.join(format!("f{i}")), rng.bytes(1_000_000)).unwrap());
    let sent = |oslo: &Site| oslo.link("bergen")["sent_bytes"].as_u64().unwrap();
    for part in 1..=2 {
        wait_until("a part to be sent", || match sent(&oslo) {
            n if n > LEN / 4 * part => Ok(()),
            n => Err(format!("{n}")),
        });
        bergen.end(Signal::KILL);
        bergen.start();
    }
    wait_same(&[&oslo, &bergen]);
    let total = sent(&oslo);
    println!(
        "{LEN} bytes with two kills of the receiver: {total} bytes sent ({:+.2} %)",
        (total as f64 / LEN as f64 - 1.0) * 100.0
    );
    assert!(total < LEN * 101 / 100, "{total} bytes for {LEN}");
}
