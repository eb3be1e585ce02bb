//! The other end on another machine: `ssh target 'command'`, with its standard input and output as carrier.
//!
//! What ssh and the remote side print on standard error is kept, at least its end, because it says why a connection
//! could not be made. Passwords and host keys ssh asks for at the terminal itself.

use crate::carrier::{Carrier, CarrierOptions, StartError};
use crate::greeting::GreetingError;
use crossbeam_channel::{Receiver, RecvTimeoutError, after, bounded};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names another program to use for ssh, with arguments, as `rsync -e` does.
pub const SSH_ENV: &str = "DRIFTLESS_SSH";
/// How much of standard error is kept.
const STDERR_LEN_MAX: usize = 4096;
/// How long an ended connection may take to end its process before it is killed.
const EXIT_WAIT: Duration = Duration::from_secs(5);
/// How long the last words of a process that has ended are waited for.
const STDERR_WAIT: Duration = Duration::from_millis(500);
/// Time between two looks at a process that is about to end.
const EXIT_LOOK: Duration = Duration::from_millis(5);
/// Longer than anybody waits, and short enough to be added to any clock.
const PATIENCE_MAX: Duration = Duration::from_secs(86_400);
/// ssh's own failures.
const STATUS_SSH: i32 = 255;
/// The remote shell did not find the command, or could not run it.
const STATUS_NO_COMMAND: [i32; 2] = [127, 126];

/// What to start where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote<'a> {
    /// `[user@]host`, as ssh takes it.
    pub target: &'a str,
    /// The command there. Shell text, so that `~/bin/driftless` works.
    pub remote_bin: &'a str,
    /// Its arguments; any bytes but NUL. Quoted here.
    pub args: &'a [OsString],
    /// Program and arguments instead of `ssh`, split at blanks; see [`SSH_ENV`].
    pub ssh_command: Option<OsString>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// ssh would take it for an option, or it is empty.
    #[error("\"{0}\" is no host")]
    Target(String),
    /// An argument cannot be passed on.
    #[error("an argument for the remote command has a NUL byte")]
    Argument,
    /// The program for ssh could not be started.
    #[error("cannot start {program}: {source}")]
    Program {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The remote command does not exist.
    #[error(
        "{target} has no command {remote_bin}: install driftless there, or name its place{}",
        said(stderr)
    )]
    NoCommand {
        /// Where.
        target: String,
        /// What was tried.
        remote_bin: String,
        /// The end of standard error.
        stderr: String,
    },
    /// ssh could not connect or log in.
    #[error("cannot connect to {target}{}", said(stderr))]
    Ssh {
        /// Where.
        target: String,
        /// The end of standard error.
        stderr: String,
    },
    /// Connected, but not to driftless.
    #[error("{target}: {source}{}", said(stderr))]
    Start {
        /// Where.
        target: String,
        /// What is wrong.
        source: StartError,
        /// The end of standard error.
        stderr: String,
    },
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it says: {stderr}") }
}

/// A process and the carrier to it. Dropping it kills the process.
pub struct Session {
    /// The connection.
    pub carrier: Carrier,
    process: Process,
}

impl Session {
    /// The end of what was printed on standard error.
    pub fn stderr_tail(&self) -> String {
        self.process.tail.text()
    }

    /// Ends in good order: sends what waits and the reason, then waits for the process. Takes at most
    /// `patience` for each; then the process is killed.
    pub fn finish(mut self, reason: &str, patience: Duration) -> io::Result<ExitStatus> {
        // A stream that is broken already ends the process as well.
        let _ = self.carrier.close(reason, patience);
        self.process.wait(patience)
    }
}

/// Starts the remote end, and waits for its greeting.
pub fn spawn(remote: &Remote<'_>, options: CarrierOptions) -> Result<Session, SpawnError> {
    let mut command = command(remote)?;
    let program = command.get_program().to_string_lossy().into_owned();
    let no_program = |source| SpawnError::Program { program: program.clone(), source };
    let mut child = command.spawn().map_err(no_program)?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(no_program(io::Error::other("no pipes")));
    };
    let mut process = Process::watch(child, stderr).map_err(no_program)?;
    match Carrier::start(stdout, stdin, options) {
        Ok(carrier) => Ok(Session { carrier, process }),
        Err(source) => {
            let status = match source {
                // It is ending by itself: its status says why.
                StartError::Greeting(GreetingError::Silent | GreetingError::Io(_)) => {
                    process.wait(EXIT_WAIT).ok()
                }
                _ => process.wait(Duration::ZERO).ok(),
            };
            Err(failure(remote, source, status, process.tail.text()))
        }
    }
}

fn failure(
    remote: &Remote<'_>,
    source: StartError,
    status: Option<ExitStatus>,
    stderr: String,
) -> SpawnError {
    let target = remote.target.to_owned();
    match (&source, status.and_then(|s| s.code())) {
        (_, Some(code)) if STATUS_NO_COMMAND.contains(&code) => {
            SpawnError::NoCommand { target, remote_bin: remote.remote_bin.to_owned(), stderr }
        }
        (StartError::Greeting(GreetingError::Silent | GreetingError::Io(_)), Some(STATUS_SSH)) => {
            SpawnError::Ssh { target, stderr }
        }
        _ => SpawnError::Start { target, source, stderr },
    }
}

fn command(remote: &Remote<'_>) -> Result<Command, SpawnError> {
    if remote.target.is_empty() || remote.target.starts_with('-') || remote.target.contains('\0') {
        return Err(SpawnError::Target(remote.target.to_owned()));
    }
    if remote.args.iter().any(|a| a.as_bytes().contains(&0)) {
        return Err(SpawnError::Argument);
    }
    let given = remote.ssh_command.as_deref().map(OsStr::as_bytes).unwrap_or_default();
    let mut words = given.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
    let mut command = match words.next() {
        Some(program) => {
            let mut c = Command::new(OsStr::from_bytes(program));
            c.args(words.map(OsStr::from_bytes));
            c
        }
        None => {
            let mut c = Command::new("ssh");
            // No terminal there, and a dead connection is noticed.
            c.args(["-T", "-o", "ServerAliveInterval=15"]);
            c
        }
    };
    let mut line = remote.remote_bin.as_bytes().to_vec();
    for arg in remote.args {
        line.push(b' ');
        line.extend_from_slice(&quote(arg.as_bytes()));
    }
    command.arg(remote.target).arg(OsString::from_vec(line));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// One word for a POSIX shell that stands for exactly `bytes` (which have no NUL).
pub fn quote(bytes: &[u8]) -> Vec<u8> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+,:@%".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return bytes.to_vec();
    }
    let mut out = vec![b'\''];
    for b in bytes {
        match b {
            b'\'' => out.extend_from_slice(b"'\\''"),
            b => out.push(*b),
        }
    }
    out.push(b'\'');
    out
}

/// A child process whose standard error is read.
struct Process {
    child: Child,
    tail: Arc<Tail>,
    /// Disconnected when standard error has ended, which it does with the process.
    stderr_ended: Receiver<()>,
}

impl Process {
    fn watch(child: Child, stderr: impl Read + Send + 'static) -> io::Result<Process> {
        let tail = Arc::new(Tail::default());
        let (alive, stderr_ended) = bounded(0);
        let kept = tail.clone();
        let process = Process { child, tail, stderr_ended };
        std::thread::Builder::new().name("ssh-stderr".into()).spawn(move || {
            kept.read_all(stderr);
            drop(alive);
        })?;
        Ok(process)
    }

    /// Waits for the end of the process; kills it after `patience`.
    fn wait(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        let until = Instant::now() + patience.min(PATIENCE_MAX);
        loop {
            if let Some(status) = self.child.try_wait()? {
                // What it said last may still be on its way.
                let _ = self.stderr_ended.recv_timeout(STDERR_WAIT);
                return Ok(status);
            }
            if Instant::now() >= until {
                self.child.kill()?;
                return self.child.wait();
            }
            // Standard error mostly ends with the process; but an ssh master that stays in the background
            // keeps it open, and a process may close it early. So it only makes the look come sooner.
            if self.stderr_ended.recv_timeout(EXIT_LOOK) == Err(RecvTimeoutError::Disconnected) {
                let _ = after(EXIT_LOOK).recv();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended, and been waited for, already: then both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of a stream.
#[derive(Default)]
struct Tail(Mutex<Vec<u8>>);

impl Tail {
    fn read_all(&self, mut r: impl Read) {
        let mut buf = [0; 1024];
        while let Ok(n) = r.read(&mut buf) {
            if n == 0 {
                return;
            }
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buf[..n]);
            let excess = kept.len().saturating_sub(STDERR_LEN_MAX);
            kept.drain(..excess);
        }
    }

    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim().to_owned()
    }
}
