//! Remote ends through a stand-in for ssh: a shell that runs the remote command here.

#![allow(clippy::unwrap_used)] // Helpers of tests, too.

use driftless_net::ssh::{Remote, Session, SpawnError, quote, spawn};
use driftless_net::{CarrierOptions, Frame, GreetingError, StartError};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Like ssh: `fake-ssh target command...` runs the words joined by blanks in a shell, with `$TARGET` set.
fn fake_ssh(dir: &Path) -> OsString {
    let path = dir.join("fake-ssh");
    std::fs::write(&path, "TARGET=$1; export TARGET; shift; exec sh -c \"$*\"\n").unwrap();
    // Read by a shell, not executed itself: another test's fork may still hold it open for writing.
    let mut command = OsString::from("/bin/sh ");
    command.push(path);
    command
}

fn run(remote_bin: &str, args: &[OsString]) -> Result<Session, SpawnError> {
    let dir = tempfile::tempdir().unwrap();
    let ssh_command = Some(fake_ssh(dir.path()));
    spawn(&Remote { target: "far", remote_bin, args, ssh_command }, CarrierOptions::default())
}

fn error(remote_bin: &str) -> SpawnError {
    run(remote_bin, &[]).map(|_| ()).unwrap_err()
}

#[test]
fn frames_go_through_a_process() {
    // An echo: our own greeting and frames come back.
    let session = run("cat", &[]).unwrap();
    session.carrier.send(Frame::Control(b"hear me".to_vec())).unwrap();
    assert_eq!(session.carrier.recv().unwrap(), Frame::Control(b"hear me".to_vec()));
    let status = session.finish("done", PATIENCE).unwrap();
    assert!(status.success());
}

#[test]
fn arguments_arrive_as_they_are() {
    let odd: Vec<OsString> = [
        &b"/plain/path"[..],
        b"",
        b"with blank",
        b"it's",
        b"''",
        b"$(touch /nowhere) `id` ${HOME} \\ \" * ? [a] ~ #",
        b"new\nline\ttab",
        b"\xff\xfe\x80 not text",
        b"-rf",
        b"a;b|c&d<e>f",
        b"!event",
    ]
    .iter()
    .map(|b| OsString::from_vec(b.to_vec()))
    .collect();
    // Greets, then sends its arguments back as one control frame, each followed by a zero byte.
    let script = r#"reply() {
        printf 'driftless 1 1\n'
        body=$(mktemp); printf '%s\0' "$TARGET" "$@" > "$body"
        len=$(wc -c < "$body")
        printf "\\000\\000\\$(printf %03o $((len / 256)))\\$(printf %03o $((len % 256)))\\020\\000"
        cat "$body"; rm "$body"; cat > /dev/null
    }; reply"#;
    let session = run(script, &odd).unwrap();
    let Frame::Control(body) = session.carrier.recv().unwrap() else { panic!() };
    let mut expected = b"far\0".to_vec();
    for arg in &odd {
        expected.extend(arg.clone().into_vec());
        expected.push(0);
    }
    assert_eq!(body.escape_ascii().to_string(), expected.escape_ascii().to_string());
    assert!(session.finish("done", PATIENCE).unwrap().success());
}

#[test]
fn quoted_words_survive_a_shell() {
    let all: Vec<u8> = (1..=255).collect();
    let out = Command::new("sh")
        .arg("-c")
        .arg(OsString::from_vec([b"printf %s ".to_vec(), quote(&all)].concat()))
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(out.stdout, all);
    assert_eq!(quote(b"/srv/a-b_c.d:e"), b"/srv/a-b_c.d:e");
    assert_eq!(quote(b""), b"''");
}

#[test]
fn failures_say_what_to_do() {
    match error("no-such-command-anywhere") {
        SpawnError::NoCommand { target, remote_bin, stderr } => {
            assert_eq!((&target[..], &remote_bin[..]), ("far", "no-such-command-anywhere"));
            assert!(stderr.contains("not found"), "{stderr}");
        }
        other => panic!("{other:?}"),
    }
    match error("echo 'Permission denied (publickey).' >&2; exit 255") {
        SpawnError::Ssh { stderr, .. } => assert_eq!(stderr, "Permission denied (publickey)."),
        other => panic!("{other:?}"),
    }
    match error("echo 'Last login: yesterday'; cat > /dev/null") {
        SpawnError::Start { source: StartError::Greeting(GreetingError::Stranger { said }), .. } => {
            assert_eq!(said, "Last login: yesterday\\n");
        }
        other => panic!("{other:?}"),
    }
    match error("echo 'driftless 77 99'; cat > /dev/null") {
        SpawnError::Start { source: StartError::Greeting(GreetingError::Version { theirs, .. }), .. } => {
            assert_eq!(theirs, (77, 99));
        }
        other => panic!("{other:?}"),
    }
    match error("echo oops >&2; exit 3") {
        e @ SpawnError::Start { .. } => assert!(e.to_string().contains("oops"), "{e}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_ssh_must_not_get_is_refused() {
    let remote = |target, args| Remote { target, remote_bin: "x", args, ssh_command: None };
    for target in ["", "-oProxyCommand=evil", "a\0b"] {
        let e = spawn(&remote(target, &[]), CarrierOptions::default()).map(|_| ()).unwrap_err();
        assert!(matches!(e, SpawnError::Target(_)), "{e:?}");
    }
    let nul = [OsString::from("a\0b")];
    let e = spawn(&remote("host", &nul), CarrierOptions::default()).map(|_| ()).unwrap_err();
    assert!(matches!(e, SpawnError::Argument));
    let gone = Remote { ssh_command: Some("/no/such/program -p 22".into()), ..remote("host", &[]) };
    let e = spawn(&gone, CarrierOptions::default()).map(|_| ()).unwrap_err();
    assert!(matches!(e, SpawnError::Program { .. }), "{e:?}");
}

#[test]
fn a_process_that_does_not_end_is_killed() {
    let session = run("cat; exec sleep 1000", &[]).unwrap();
    let status = session.finish("done", Duration::from_millis(100)).unwrap();
    assert!(!status.success());
}

#[test]
fn the_end_of_standard_error_is_kept() {
    let mut script = tempfile::NamedTempFile::new().unwrap();
    writeln!(script, "i=0; while [ $i -lt 2000 ]; do echo \"line $i\" >&2; i=$((i+1)); done; exit 1")
        .unwrap();
    let e = error(&format!("sh {}", script.path().display()));
    let text = e.to_string();
    assert!(text.contains("line 1999") && !text.contains("line 3\n") && text.len() < 6000, "{text}");
}
