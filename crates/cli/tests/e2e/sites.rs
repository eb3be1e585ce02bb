//! Nodes of several sites on one machine: joining, rings, outages, kills, and strangers.

use crate::common::*;
use driftless_testkit::{CompareOptions, compare};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A site: its directory, its state, its node while that runs.
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) base: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) node: Option<Child>,
    /// Where it listens. The system's choice differs from start to start: the site tells the others where it is now.
    pub(crate) listen: String,
    /// Flags of `serve` beside the usual ones.
    pub(crate) flags: Vec<String>,
    /// Variables in the environment of its node.
    pub(crate) env: Vec<(String, String)>,
    /// The network namespace that its node runs in, and its address there.
    netns: Option<(String, String)>,
}

impl Site {
    /// With a node that runs.
    pub(crate) fn new(base: &Path, name: &str) -> Site {
        let base = base.join(name);
        let dir = base.join("data");
        fs::create_dir_all(&dir).unwrap();
        let listen = "127.0.0.1:0".into();
        let mut site = Site {
            name: name.into(),
            base,
            dir,
            node: None,
            listen,
            flags: vec![],
            env: vec![],
            netns: None,
        };
        site.start();
        site
    }

    /// With a node that runs in a network namespace and listens at an address there.
    pub(crate) fn within(base: &Path, name: &str, netns: &str, address: &str) -> Site {
        let base = base.join(name);
        let dir = base.join("data");
        fs::create_dir_all(&dir).unwrap();
        let netns = Some((netns.into(), address.into()));
        let listen = address.into();
        let mut site =
            Site { name: name.into(), base, dir, node: None, listen, flags: vec![], env: vec![], netns };
        site.start();
        site
    }

    pub(crate) fn command(&self) -> Command {
        self.with_env(Command::new(env!("CARGO_BIN_EXE_driftless")))
    }

    fn with_env(&self, mut command: Command) -> Command {
        command.env("HOME", &self.base).env("DRIFTLESS_STATE", self.base.join("state")).stdin(Stdio::null());
        command
    }

    pub(crate) fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.base.join("log")).unwrap();
        let (mut command, admin) = match &self.netns {
            None => (self.command(), "127.0.0.1:0"),
            Some((netns, _)) => {
                // Not `ip netns exec`, whose mount namespace of its own makes each start look like one after a reboot.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{netns}")).arg(env!("CARGO_BIN_EXE_driftless"));
                (self.with_env(command), "off")
            }
        };
        command
            .args(["serve", "--name", &self.name, "--listen", &self.listen, "--admin", admin])
            .args(&self.flags)
            .envs(self.env.iter().cloned());
        let config = self.base.join("driftless.toml");
        if config.exists() {
            command.arg("--config").arg(config);
        }
        self.node = Some(command.stderr(log).stdout(Stdio::null()).spawn().unwrap());
        wait_until("the node to answer", || match self.try_status() {
            Some(_) => Ok(()),
            None => Err(self.log()),
        });
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.base.join("log")).unwrap_or_default()
    }

    /// The log since the last start.
    pub(crate) fn admin(&self) -> String {
        let log = self.log();
        let line = log.lines().rfind(|l| l.contains("metrics at http://")).unwrap();
        line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Runs a command, which must work; what it prints.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ran = run(self.command().args(args));
        assert_eq!(ran.code, 0, "{}: {args:?}: {ran:?}\n{}", self.name, self.log());
        ran.out.trim().to_owned()
    }

    /// Runs a command, which must fail; what it says.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let ran = run(self.command().args(args));
        assert_eq!(ran.code, 1, "{}: {args:?}: {ran:?}", self.name);
        ran.err
    }

    pub(crate) fn try_status(&self) -> Option<Value> {
        let output = self.command().args(["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).ok().filter(|v: &Value| v["verdict"].is_string())
    }

    /// How its link to a site stands.
    pub(crate) fn link(&self, to: &str) -> Value {
        let status = self.try_status().unwrap();
        let links = status["volumes"][0]["links"].as_array().cloned().unwrap_or_default();
        links.into_iter().find(|l| l["site"] == to).unwrap_or_default()
    }

    pub(crate) fn wait_link(&self, to: &str, state: &str) {
        wait_until(&format!("{} to find {to} {state}", self.name), || match self.link(to) {
            link if link["state"] == state => Ok(()),
            link => Err(format!("{link}\n{}", self.log())),
        });
    }

    pub(crate) fn address(&self) -> String {
        self.try_status().unwrap()["listen"].as_str().unwrap().to_owned()
    }

    pub(crate) fn end(&mut self, signal: Signal) {
        let mut node = self.node.take().unwrap();
        rustix::process::kill_process(Pid::from_child(&node), signal).unwrap();
        let code = node.wait().unwrap().code();
        assert!(signal != Signal::TERM || code == Some(0), "{code:?}: {}", self.log());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            // It may have ended already.
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

pub(crate) fn wait_same(sites: &[&Site]) {
    for site in &sites[1..] {
        wait_until(&format!("{} and {} to be the same", sites[0].name, site.name), || {
            let found =
                compare(&sites[0].dir, &site.dir, &CompareOptions::default()).map_err(|e| e.to_string())?;
            let logs = || sites.iter().map(|s| format!("{}:\n{}", s.name, s.log())).collect::<String>();
            if found.is_empty() { Ok(()) } else { Err(format!("{found:?}\n{}", logs())) }
        });
    }
}

/// From nothing to two sites that replicate, and on to a ring of three; one is killed, one is stopped.
#[test]
fn a_ring_of_three_with_a_kill() {
    let base = TempDir::new().unwrap();
    let mut oslo = Site::new(base.path(), "oslo");
    let mut bergen = Site::new(base.path(), "bergen");
    put(&oslo.dir, "d/f", "from oslo");
    put(&bergen.dir, "only", "here");
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    let dir = format!("data={}", bergen.dir.display());
    bergen.ok(&["site", "join", &token, "--dir", &dir]);
    wait_same(&[&oslo, &bergen]);
    assert_eq!(read(&oslo.dir, "only"), "here");

    let tromso = Site::new(base.path(), "tromso");
    let token = bergen.ok(&["site", "invite", "--for", "data", "--expires", "10m"]);
    tromso.ok(&["site", "join", &token]);
    tromso.ok(&["volume", "add", "data", tromso.dir.to_str().unwrap(), "--from", "bergen"]);
    let token = tromso.ok(&["site", "invite", "--for", "data"]);
    oslo.ok(&["site", "join", &token]);
    oslo.ok(&["link", "create", "data", "--to", "tromso"]);
    wait_same(&[&oslo, &bergen, &tromso]);
    for (site, others) in
        [(&oslo, ["bergen", "tromso"]), (&bergen, ["oslo", "tromso"]), (&tromso, ["oslo", "bergen"])]
    {
        others.iter().for_each(|other| site.wait_link(other, "in-sync"));
        let metrics = site.get("/metrics");
        assert!(metrics.contains("driftless_replication_lag_seconds{volume=\"data\",peer="), "{metrics}");
        assert!(site.get("/health").starts_with("HTTP/1.1 200"));
    }

    // A crash: the others go on, and say so.
    bergen.end(Signal::KILL);
    put(&oslo.dir, "while-away", "1");
    put(&tromso.dir, "d/too", "2");
    let took = time_until("bergen to be named", || match oslo.link("bergen") {
        link if link["state"] == "unreachable" => Ok(()),
        link => Err(format!("{link}")),
    });
    assert!(took < Duration::from_secs(10), "named after {took:?}");
    wait_same(&[&oslo, &tromso]);
    let first = oslo.link("bergen")["lag_ms"].as_u64().unwrap();
    wait_until("the lag to grow", || match oslo.link("bergen")["lag_ms"].as_u64() {
        Some(ms) if ms > first => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(oslo.get("/health").starts_with("HTTP/1.1 503"));
    put(&bergen.dir, "mine", "written while no node ran");
    bergen.start();
    wait_same(&[&oslo, &bergen, &tromso]);
    assert_eq!(read(&oslo.dir, "mine"), "written while no node ran");

    // In good order; and a link that is paused passes nothing, but what comes round the ring.
    oslo.end(Signal::TERM);
    oslo.start();
    oslo.ok(&["link", "pause", "data", "--to", "bergen"]);
    put(&oslo.dir, "round", "by tromso");
    wait_same(&[&oslo, &bergen, &tromso]);
    assert_eq!(oslo.link("bergen")["state"], "paused");
    oslo.ok(&["link", "resume", "data", "--to", "bergen"]);
    oslo.wait_link("bergen", "in-sync");
    oslo.ok(&["site", "remove", "bergen"]);
    bergen.wait_link("oslo", "refused");
}

/// A site that follows takes everything and gives nothing.
#[test]
fn an_active_passive_link() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    put(&oslo.dir, "f", "1");
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let token = oslo.ok(&["site", "invite", "--for", "data", "--mode", "active-passive"]);
    bergen.ok(&["site", "join", &token, "--dir", &format!("data={}", bergen.dir.display())]);
    wait_same(&[&oslo, &bergen]);
    put(&bergen.dir, "drift", "stays here");
    put(&oslo.dir, "g", "2");
    wait_until("g to arrive", || if bergen.dir.join("g").exists() { Ok(()) } else { Err(bergen.log()) });
    oslo.wait_link("bergen", "in-sync");
    assert!(!oslo.dir.join("drift").exists());
    assert_eq!(read(&bergen.dir, "drift"), "stays here");
}

/// Many removals at once wait for somebody to approve them; everything else flows.
#[test]
fn a_mass_removal_is_approved() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    (0..150).for_each(|i| put(&oslo.dir, &format!("d/f{i}"), "x"));
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    bergen.ok(&["site", "join", &token, "--dir", &format!("data={}", bergen.dir.display())]);
    wait_same(&[&oslo, &bergen]);
    fs::remove_dir_all(oslo.dir.join("d")).unwrap();
    wait_until("the removal to be held", || match oslo.try_status().unwrap()["volumes"][0]["waiting_items"]
        .as_u64()
    {
        Some(n) if n > 0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    put(&oslo.dir, "new", "flows");
    wait_until("new to arrive", || if bergen.dir.join("new").exists() { Ok(()) } else { Err(oslo.log()) });
    assert!(bergen.dir.join("d/f7").exists());
    // At the receiver the same guard holds, and the same approval counts.
    oslo.ok(&["volume", "approve", "data"]);
    wait_same(&[&oslo, &bergen]);
    assert!(!bergen.dir.join("d").exists());
}

/// Who cannot write down who belongs to a volume takes nothing that comes after that, says so, and goes on when it can.
#[test]
fn a_membership_that_cannot_be_written_down() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    let tromso = Site::new(base.path(), "tromso");
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let join = |site: &Site| {
        let token = oslo.ok(&["site", "invite", "--for", "data"]);
        site.ok(&["site", "join", &token, "--dir", &format!("data={}", site.dir.display())]);
    };
    put(&oslo.dir, "first", "brings the membership with it");
    join(&bergen);
    wait_same(&[&oslo, &bergen]);
    let members = bergen.base.join("state/members");
    let document = fs::read_dir(members).unwrap().next().unwrap().unwrap().path();
    // What is to become the document is written beside it first, and may be so at this moment.
    let in_the_way = document.with_extension("new");
    wait_until("the place beside the document to be free", || {
        fs::create_dir(&in_the_way).map_err(|e| e.to_string())
    });
    join(&tromso);
    put(&tromso.dir, "f", "of a member that bergen does not know");
    wait_same(&[&oslo, &tromso]);
    wait_until("bergen to say why", || match bergen.link("oslo")["last_error"].as_str() {
        Some(why) if why.contains("cannot be written down") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(!bergen.dir.join("f").exists());
    fs::remove_dir(&in_the_way).unwrap();
    wait_same(&[&oslo, &bergen, &tromso]);
    bergen.wait_link("oslo", "in-sync");
}

/// Whoever has no key that is known, or no invitation that is good, gets nothing; and that is in the log.
#[test]
fn strangers_get_nothing() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    let tromso = Site::new(base.path(), "tromso");
    put(&oslo.dir, "f", "secret");
    oslo.ok(&["volume", "add", "data", oslo.dir.to_str().unwrap()]);
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    let (front, secret) = token.rsplit_once('/').unwrap();
    let wrong = format!("{front}/{}", "0".repeat(secret.len()));
    assert!(bergen.fails(&["site", "join", &wrong]).contains("not known here"));
    assert!(bergen.fails(&["site", "join", &token[..token.len() - 1]]).contains("not an invitation"));
    // Another key than the one in the invitation is another site.
    let key = front.rsplit('/').next().unwrap();
    let other = tromso.try_status().unwrap()["key"].as_str().unwrap().to_owned();
    assert!(bergen.fails(&["site", "join", &token.replace(key, &other)]).contains("expected"));
    bergen.ok(&["site", "join", &token]);
    assert!(tromso.fails(&["site", "join", &token]).contains("was used"));
    let short = oslo.ok(&["site", "invite", "--for", "data", "--expires", "1s"]);
    std::thread::sleep(Duration::from_millis(2100));
    assert!(tromso.fails(&["site", "join", &short]).contains("expired"));
    // Known, but not for this volume: as if there were none.
    let token = oslo.ok(&["site", "invite"]);
    tromso.ok(&["site", "join", &token]);
    let dir = tromso.dir.to_str().unwrap();
    let forbidden = tromso.fails(&["volume", "add", "data", dir, "--from", "oslo"]);
    let unknown = tromso.fails(&["volume", "add", "none", dir, "--from", "oslo"]);
    assert_eq!(forbidden.replace("data", "none"), unknown);
    // No TLS, and no TLS of ours.
    for bytes in [&b"driftless 1 1\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]] {
        let mut stream = TcpStream::connect(oslo.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // At most the alert of TLS. Or it was reset.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 16, "{answer:?}");
    }
    let log = oslo.log();
    for says in
        ["refused: the invitation is not known here", "was used by", "has expired", "refused a connection"]
    {
        assert!(log.contains(says), "{says}:\n{log}");
    }
    assert!(!log.contains(secret), "secrets are not logged");
    // A second node with the same state, and a second site with the same name.
    assert!(run(oslo.command().args(["serve", "--listen", "127.0.0.1:0", "--admin", "off"])).code != 0);
    assert!(oslo.fails(&["site", "init", "--name", "other"]).contains("set up"));
}
