//! Nodes of several sites in network namespaces, joined by a switch: partitions, delay, a frozen site and killed nodes in a chain, a
//! ring, a star and a mesh. Needs root and iproute2; skipped with a message otherwise. Delay needs the kernel's netem and is
//! left out where that is missing. With the program of a WAN emulator in `DRIFTLESS_WAN` that makes the network, with delay and loss.

use crate::common::*;
use crate::sites::{Site, wait_same};
use driftless_testkit::{Rng, User, check_no_loss};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const NAMES: [&str; 4] = ["oslo", "bergen", "tromso", "paris"];
const CHAIN: &[(usize, usize)] = &[(0, 1), (1, 2), (2, 3)];
const RING: &[(usize, usize)] = &[(0, 1), (1, 2), (2, 3), (3, 0)];
const STAR: &[(usize, usize)] = &[(0, 1), (0, 2), (0, 3)];
const MESH: &[(usize, usize)] = &[(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];
/// One way, on each site's line.
const DELAY: &str = "5ms";
/// The emulator's lines between any two sites: a round trip of 50 ms.
const EMULATED: &[&str] = &["--delay-ms", "25", "--loss", "0.1"];

/// A switch in a namespace of its own, and one namespace for each site with a line to it; or what an emulator makes.
struct Net {
    prefix: String,
    emulator: Option<String>,
}

impl Net {
    /// `None` where it cannot be made.
    fn new(tag: &str) -> Option<Net> {
        let emulator = std::env::var("DRIFTLESS_WAN").ok();
        let net = Net { prefix: format!("dl{}{tag}", std::process::id()), emulator };
        if net.emulator.is_some() {
            net.emulate(&[&["up", "--hosts", &NAMES.join(",")], EMULATED].concat());
            return Some(net);
        }
        let switch = net.of("switch");
        let made = ip(&["netns", "add", &switch])
            && ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])
            && ip(&["-n", &switch, "link", "set", "br0", "up"])
            && NAMES.iter().enumerate().all(|(i, name)| net.add(i, name, &net.address(i)));
        if !made {
            eprintln!("skipped: network namespaces need root, iproute2 and a kernel with veth and bridges");
            return None;
        }
        Some(net)
    }

    /// Runs the emulator, which must be there.
    fn emulate(&self, args: &[&str]) {
        let program = self.emulator.as_ref().expect("only with an emulator");
        let ran = Command::new(program).args(args).args(["--net", &self.prefix]).output().unwrap();
        assert!(ran.status.success(), "{program} {args:?}: {ran:?}");
    }

    fn address(&self, i: usize) -> String {
        let net = if self.emulator.is_some() { "10.77.0" } else { "10.66.0" };
        format!("{net}.{}", i + 1)
    }

    fn of(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn add(&self, i: usize, name: &str, address: &str) -> bool {
        let (own, switch, port) = (self.of(name), self.of("switch"), format!("p{i}"));
        ip(&["netns", "add", &own])
            && ip(&["-n", &own, "link", "set", "lo", "up"])
            && ip(&[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &own,
            ])
            && ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])
            && ip(&["-n", &own, "addr", "add", &format!("{address}/24"), "dev", "eth0"])
            && ip(&["-n", &own, "link", "set", "eth0", "up"])
    }

    /// Delays what each site sends, if the kernel can.
    fn delay(&self) {
        if self.emulator.is_some() {
            return;
        }
        let delayed = |name: &&str| {
            let args =
                ["netns", "exec", &self.of(name), "tc", "qdisc", "add", "dev", "eth0", "root", "netem"];
            ip(&[&args[..], &["delay", DELAY]].concat())
        };
        if !NAMES.iter().all(delayed) {
            eprintln!("without delay: this kernel has no netem");
        }
    }

    /// Nothing goes between two sites any more, both ways, without any end being told; or does again.
    fn cut(&self, (a, b): (usize, usize), cut: bool) {
        if self.emulator.is_some() {
            self.emulate(&[if cut { "cut" } else { "heal" }, NAMES[a], NAMES[b]]);
            return;
        }
        let verb = if cut { "add" } else { "del" };
        for (from, to) in [(a, b), (b, a)] {
            let to = format!("{}/32", self.address(to));
            assert!(ip(&["-n", &self.of(NAMES[from]), "route", verb, "blackhole", &to]));
        }
    }

    /// Bytes that all sites have sent.
    fn sent(&self) -> u64 {
        let sent = |name: &&str| {
            let device = if self.emulator.is_some() { "wan0" } else { "eth0" };
            let file = format!("/sys/class/net/{device}/statistics/tx_bytes");
            let output =
                Command::new("ip").args(["netns", "exec", &self.of(name), "cat", &file]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<u64>().unwrap()
        };
        NAMES.iter().map(sent).sum()
    }

    /// Sites with the volume `data`, linked so.
    fn sites(&self, base: &TempDir, links: &[(usize, usize)]) -> Vec<Site> {
        let site = |i: usize| {
            let listen = format!("{}:7440", self.address(i));
            Site::within(base.path(), NAMES[i], &self.of(NAMES[i]), &listen)
        };
        let sites: Vec<Site> = (0..NAMES.len()).map(site).collect();
        sites[0].ok(&["volume", "add", "data", sites[0].dir.to_str().unwrap()]);
        let mut has = vec![0];
        for &(a, b) in links {
            let token = sites[a].ok(&["site", "invite", "--for", "data"]);
            sites[b].ok(&["site", "join", &token]);
            let (a_name, dir) = (NAMES[a], sites[b].dir.to_str().unwrap());
            if has.contains(&b) {
                sites[b].ok(&["link", "create", "data", "--to", a_name]);
            } else {
                has.push(b);
                sites[b].ok(&["volume", "add", "data", dir, "--from", a_name]);
            }
        }
        sites
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if self.emulator.is_some() {
            return self.emulate(&["down", "--kill"]);
        }
        for name in NAMES.iter().chain(&["switch"]) {
            ip(&["netns", "del", &self.of(name)]);
        }
    }
}

fn ip(args: &[&str]) -> bool {
    let ran = Command::new("ip").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

fn all(sites: &[Site]) -> Vec<&Site> {
    sites.iter().collect()
}

/// Users at all sites, links that are cut and healed, nodes that are killed; in the end all are the same and nothing is lost.
fn users_everywhere(tag: &str, links: &[(usize, usize)], seed: u64) {
    let Some(net) = Net::new(tag) else { return };
    let base = TempDir::new().unwrap();
    let mut sites = net.sites(&base, links);
    net.delay();
    put(&sites[0].dir, "first", "so that all have it");
    wait_same(&all(&sites));
    let trash = base.path().join("trash");
    fs::create_dir(&trash).unwrap();
    let user = |i: usize| User::beside_others(&sites[i].dir, 100 * seed + i as u64, &trash);
    let mut users: Vec<User> = (0..sites.len()).map(user).collect();
    let mut rng = Rng::new(seed);
    for round in 0..4 {
        let link = links[rng.below(links.len() as u64) as usize];
        net.cut(link, true);
        for _ in 0..40 {
            users[rng.below(NAMES.len() as u64) as usize].step().unwrap();
        }
        if round % 2 == 0 {
            let i = rng.below(NAMES.len() as u64) as usize;
            sites[i].end(Signal::KILL);
            users[i].step().unwrap();
            sites[i].start();
        }
        net.cut(link, false);
    }
    // A start looks at everything, so that this is about the network alone.
    for site in &mut sites {
        site.end(Signal::TERM);
        site.start();
    }
    wait_same(&all(&sites));
    let journals: Vec<_> = users.iter().map(User::journal).collect();
    let lost = check_no_loss(&journals, &sites[0].dir).unwrap();
    assert!(lost.is_empty(), "{lost:#?}");
}

#[test]
fn a_chain_over_a_network() {
    users_everywhere("c", CHAIN, 11);
}

#[test]
fn a_ring_over_a_network() {
    users_everywhere("r", RING, 12);
}

#[test]
fn a_star_over_a_network() {
    users_everywhere("s", STAR, 13);
}

#[test]
fn users_in_a_mesh_over_a_network() {
    users_everywhere("u", MESH, 14);
}

/// In a mesh: each content crosses each path once; one frozen site does not slow the others, and its lag is told as it is; a
/// partition is named and heals.
#[test]
fn a_mesh_over_a_network() {
    let Some(net) = Net::new("m") else { return };
    let base = TempDir::new().unwrap();
    let sites = net.sites(&base, MESH);
    for (i, site) in sites.iter().enumerate() {
        put(&site.dir, &format!("first{i}"), "so that all have heard of all");
    }
    wait_same(&all(&sites));
    sites.iter().for_each(|site| drop(site.ok(&["flush"])));
    const LEN: u64 = 4_000_000;
    let before = net.sent();
    fs::write(sites[0].dir.join("large"), Rng::new(1).bytes(LEN as usize)).unwrap();
    sites[0].ok(&["flush"]);
    let sent = net.sent() - before;
    assert!((3 * LEN..3 * LEN * 13 / 10).contains(&sent), "{sent} bytes for three copies of {LEN}");

    let pid = Pid::from_child(sites[3].node.as_ref().unwrap());
    kill_process(pid, Signal::STOP).unwrap();
    let frozen = Instant::now();
    for i in 0..50 {
        put(&sites[0].dir, &format!("while-frozen{i}"), &format!("{i}"));
    }
    wait_same(&all(&sites[..3]));
    assert!(frozen.elapsed() < Duration::from_secs(30), "the others took {:?}", frozen.elapsed());
    let named = time_until("paris to be named", || match sites[0].link("paris") {
        link if link["state"] == "unreachable" || link["state"] == "stalled" => Ok(()),
        link => Err(format!("{link}")),
    });
    let took = frozen.elapsed();
    let lag = sites[0].link("paris")["lag_ms"].as_u64().unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    assert!(named < Duration::from_secs(10), "named after {named:?}");
    assert!(u128::from(lag) + 3000 > took.as_millis(), "behind by {lag} ms after {took:?}");
    wait_same(&all(&sites));

    // Halves that go on each by itself.
    let across = [(0, 2), (0, 3), (1, 2), (1, 3)];
    across.iter().for_each(|pair| net.cut(*pair, true));
    put(&sites[0].dir, "north", "1");
    put(&sites[2].dir, "south", "2");
    wait_same(&all(&sites[..2]));
    wait_same(&all(&sites[2..]));
    sites[0].wait_link("tromso", "unreachable");
    across.iter().for_each(|pair| net.cut(*pair, false));
    wait_same(&all(&sites));
    assert_eq!(read(&sites[0].dir, "south"), "2");
}
