//! Ends on other machines, played by an sshd of our own on the loopback.

use crate::common::*;
use driftless_testkit::{Spec, grow};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// An sshd for this test alone.
struct Sshd {
    child: Child,
    ssh: String,
    user: String,
    remote_bin: PathBuf,
}

impl Sshd {
    /// `None`, with a message, where there is no sshd.
    fn start(pair: &Pair) -> Option<Sshd> {
        if !has("sshd") || !has("ssh") || !has("ssh-keygen") {
            return None;
        }
        let dir = pair.base.path().join("ssh");
        fs::create_dir(&dir).unwrap();
        for key in ["host", "user"] {
            let keygen = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(key))
                .status();
            assert!(keygen.unwrap().success());
        }
        fs::copy(dir.join("user.pub"), dir.join("authorized_keys")).unwrap();
        // The privilege separation of a root's sshd wants this; Debian makes it at boot.
        let _ = fs::create_dir_all("/run/sshd");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let shown = dir.display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {shown}/host\nPidFile none\nUsePAM no\n\
             AuthorizedKeysFile {shown}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n\
             PermitRootLogin yes\nMaxStartups 100\n"
        );
        fs::write(dir.join("config"), config).unwrap();
        let sshd =
            ["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"].into_iter().find(|p| Path::new(p).is_file())?;
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new(sshd)
            .args(["-D", "-e", "-f"])
            .arg(dir.join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let sshd = Sshd {
            child,
            ssh: format!(
                "ssh -p {port} -i {shown}/user -o UserKnownHostsFile={shown}/known -o StrictHostKeyChecking=no \
                 -o BatchMode=yes -o LogLevel=ERROR"
            ),
            user: user_name(),
            remote_bin: remote_bin(pair),
        };
        wait_until("sshd listens", || match TcpStream::connect(("127.0.0.1", port)) {
            Ok(_) => Ok(()),
            Err(e) => Err(format!("{e}; it says {:?}", fs::read_to_string(dir.join("log")))),
        });
        Some(sshd)
    }

    fn end(&self, root: &Path) -> String {
        format!("{}@127.0.0.1:{}", self.user, root.display())
    }

    /// `driftless sync FLAGS A B`.
    fn command(&self, pair: &Pair, flags: &[&str], a: &str, b: &str) -> Command {
        let mut command = pair.command();
        command.env("DRIFTLESS_SSH", &self.ssh).arg("sync").arg("--state").arg(pair.state());
        if !flags.contains(&"--remote-bin") {
            command.arg("--remote-bin").arg(&self.remote_bin);
        }
        command.args(flags).args([a, b]);
        command
    }

    fn once(&self, pair: &Pair, flags: &[&str], a: &str, b: &str) -> Ran {
        let ran = run(&mut self.command(pair, &[&["--once"], flags].concat(), a, b));
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command as a remote host would have it: with a state directory of its own.
fn remote_bin(pair: &Pair) -> PathBuf {
    let path = pair.base.path().join("remote-driftless");
    let state = pair.base.path().join("remote-state");
    let exe = env!("CARGO_BIN_EXE_driftless");
    let script = format!("#!/bin/sh\nXDG_STATE_HOME='{}' exec '{exe}' \"$@\"\n", state.display());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn user_name() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn local(root: &Path) -> String {
    root.display().to_string()
}

#[test]
fn a_remote_b_becomes_the_same() {
    let pair = Pair::new();
    let Some(sshd) = Sshd::start(&pair) else { return };
    grow(&pair.a, 60, &Spec::default()).unwrap();
    put(&pair.b, "of b", "x");
    sshd.once(&pair, &[], &local(&pair.a), &sshd.end(&pair.b));
    pair.assert_same();
    fs::remove_file(pair.a.join("of b")).unwrap();
    sshd.once(&pair, &[], &local(&pair.a), &sshd.end(&pair.b));
    pair.assert_same();
}

#[test]
fn both_ends_may_be_remote() {
    let pair = Pair::new();
    let Some(sshd) = Sshd::start(&pair) else { return };
    grow(&pair.a, 61, &Spec::default()).unwrap();
    grow(&pair.b.join("of b"), 62, &Spec { files: 10, ..Spec::default() }).unwrap();
    sshd.once(&pair, &[], &sshd.end(&pair.a), &sshd.end(&pair.b));
    pair.assert_same();
}

#[test]
fn a_running_sync_over_ssh_carries_changes_both_ways() {
    let pair = Pair::new();
    let Some(sshd) = Sshd::start(&pair) else { return };
    let mut running =
        Running::start(&mut sshd.command(&pair, &["--json"], &local(&pair.a), &sshd.end(&pair.b)));
    running.wait_for("in_sync");
    put(&pair.a, "from a", "1");
    pair.wait_same("a change at a");
    put(&pair.b, "from b", "2");
    pair.wait_same("a change at b");
    assert_eq!((read(&pair.b, "from a"), read(&pair.a, "from b")), ("1".into(), "2".into()));
    assert_eq!(running.stop().1, 0);
}

#[test]
fn remote_ends_are_guarded() {
    let pair = Pair::new();
    let Some(sshd) = Sshd::start(&pair) else { return };
    put(&pair.b, "file", "x");
    let a = local(&pair.a);
    for (b, says) in [
        (sshd.end(&pair.b.join("none")), "does not exist"),
        (sshd.end(&pair.b.join("file")), "not a directory"),
        (sshd.end(&pair.a), "in use by process"),
        ("no-such-host.invalid:/x".to_owned(), "no-such-host.invalid"),
    ] {
        let ran = run(&mut sshd.command(&pair, &["--once"], &a, &b));
        assert_eq!(ran.code, 1, "{b}: {ran:#?}");
        assert!(ran.err.contains(says) && ran.err.contains("what to do:"), "{b}: {ran:#?}");
    }
    let mut command =
        sshd.command(&pair, &["--once", "--remote-bin", "/no/such/driftless"], &a, &sshd.end(&pair.b));
    let ran = run(&mut command);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.err.contains("--remote-bin") || ran.err.contains("/no/such/driftless"), "{ran:#?}");
}

#[test]
fn a_lost_connection_ends_it_and_the_next_run_goes_on() {
    let pair = Pair::new();
    let Some(sshd) = Sshd::start(&pair) else { return };
    grow(&pair.a, 63, &Spec { files: 300, ..Spec::default() }).unwrap();
    for _ in 0..4 {
        let running =
            Running::start(&mut sshd.command(&pair, &["--json"], &local(&pair.a), &sshd.end(&pair.b)));
        std::thread::sleep(std::time::Duration::from_millis(400));
        running.kill();
    }
    sshd.once(&pair, &[], &local(&pair.a), &sshd.end(&pair.b));
    pair.assert_same();
}

#[test]
fn a_remote_index_from_an_old_copy_is_rebuilt_within_the_session() {
    let pair = Pair::new();
    let Some(sshd) = Sshd::start(&pair) else { return };
    put(&pair.a, "file", "1");
    let (a, b) = (local(&pair.a), sshd.end(&pair.b));
    sshd.once(&pair, &[], &a, &b);
    let states = pair.base.path().join("remote-state/driftless");
    let index = fs::read_dir(&states).unwrap().next().unwrap().unwrap().path().join("index.redb");
    let old = fs::read(&index).unwrap();
    put(&pair.b, "told", "2");
    put(&pair.b, "removed since", "3");
    sshd.once(&pair, &[], &a, &b);
    fs::remove_file(pair.a.join("removed since")).unwrap();
    fs::write(&index, old).unwrap();
    put(&pair.b, "never told", "4");
    let ran = sshd.once(&pair, &["--json"], &a, &b);
    assert!(
        ran.events("log").iter().any(|l| l["text"].as_str().unwrap().contains("starting again")),
        "{ran:#?}"
    );
    pair.assert_same();
    let [aside] = &ran.events("put_aside")[..] else { panic!("{ran:#?}") };
    assert_eq!(
        (aside["path"]["text"].as_str(), read(&pair.a, aside["to"]["text"].as_str().unwrap())),
        (Some("never told"), "4".into())
    );
    assert_eq!((read(&pair.a, "told"), pair.a.join("removed since").exists()), ("2".into(), false));
}

#[test]
fn a_remote_tree_that_was_put_back_is_held_and_healed() {
    let pair = Pair::new();
    let Some(sshd) = Sshd::start(&pair) else { return };
    let (a, b) = (local(&pair.a), sshd.end(&pair.b));
    for i in 0..150 {
        put(&pair.a, &format!("d/{i}"), "new");
    }
    sshd.once(&pair, &[], &a, &b);
    for i in 0..150 {
        put(&pair.b, &format!("d/{i}"), "old");
        set_mtime(&pair.b.join(format!("d/{i}")), 1_700_000_000);
    }
    let ran = run(&mut sshd.command(&pair, &["--once"], &a, &b));
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("150 older than recorded"), "{ran:#?}");
    assert_eq!(read(&pair.a, "d/7"), "new");
    sshd.once(&pair, &["--on-rollback", "heal"], &a, &b);
    pair.assert_same();
    assert_eq!(read(&pair.b, "d/7"), "new");
}
