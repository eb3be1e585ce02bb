//! An end on another machine: the same engine behind an SSH pipe.
//!
//! Here [`open`] starts `driftless agent` on the other machine and makes an [`End`] of it, which looks to the session
//! like a local one; there [`run_agent`] runs the engine and passes on what it says. Link messages go as they are;
//! everything else is JSON in control frames.

use crate::api::{Counts, Event, SessionError, Shared, Side, SyncOptions};
use crate::engine::{self, EngineOptions, FromEngine, LinkId, Status, ToEngine};
use crate::roots;
use crate::session::{End, guard_state, state_dir};
use crossbeam_channel::{Receiver as Channel, Sender as ChannelSender, bounded, select, unbounded};
use driftless_net::ssh::{self, Remote, Session};
use driftless_net::{Carrier, CarrierOptions, Frame, Incoming, Rate};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

/// How long an end may take to write what waits when the session is over.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// What the agent is told first.
#[derive(Serialize, Deserialize)]
struct Start {
    side: Side,
    path: Vec<u8>,
    shared: Shared,
}

/// From the session to the agent.
#[derive(Serialize, Deserialize)]
enum Command {
    Start(Start),
    Stop,
    LinkDown,
}

/// From the agent to the session.
#[derive(Serialize, Deserialize)]
enum Report {
    Event(Event),
    Status(Status),
    Ended(Result<Counts, SessionError>),
}

/// Starts the remote end.
pub(crate) fn open(
    side: Side,
    target: &str,
    path: &[u8],
    options: &SyncOptions,
) -> Result<End, SessionError> {
    let mut args: Vec<OsString> = vec!["agent".into(), "--stdio".into()];
    if let Some(limit) = options.bwlimit_bytes_per_s {
        args.extend(["--bwlimit".into(), limit.to_string().into()]);
    }
    let remote = Remote {
        target,
        remote_bin: &options.remote_bin,
        args: &args,
        ssh_command: std::env::var_os(ssh::SSH_ENV),
    };
    let carrier =
        CarrierOptions { rate: Rate::new(options.bwlimit_bytes_per_s), ..CarrierOptions::default() };
    let session = ssh::spawn(&remote, carrier).map_err(|e| {
        SessionError::new(
            e.to_string(),
            "check that `ssh` to that host works without a password prompt in scripts, and that driftless is \
                 installed there (--remote-bin names its place)",
        )
    })?;
    let start = Start { side, path: path.to_vec(), shared: options.shared.clone() };
    let started = encode(&Command::Start(start))
        .and_then(|frame| session.carrier.send(frame).map_err(|e| broken(target, &e.to_string())));
    started?;
    let (to, commands) = unbounded();
    let (out, from) = unbounded();
    let target = target.to_owned();
    let join = std::thread::Builder::new()
        .name(format!("remote-{side:?}"))
        .spawn(move || pass_on(&target, session, &commands, &out))
        .map_err(|e| {
            SessionError::new(
                format!("cannot start a thread: {e}"),
                "raise the limit of processes (ulimit -u)",
            )
        })?;
    Ok(End::new(to, from, Some(join)))
}

/// Between the session's channels and the carrier, until the agent has ended.
fn pass_on(target: &str, session: Session, commands: &Channel<ToEngine>, out: &ChannelSender<FromEngine>) {
    let incoming = session.carrier.incoming().clone();
    std::thread::scope(|scope| {
        let carrier = &session.carrier;
        // Writing waits when the pipe is full; reading must go on meanwhile, or both sides could wait for each other.
        scope.spawn(move || {
            for command in commands {
                let stop = matches!(command, ToEngine::Stop);
                let frame = match command {
                    ToEngine::Link(_, m) => Ok(Frame::Message(m)),
                    // The engine over there has one link, from its start to its end.
                    ToEngine::LinkUp(..)
                    | ToEngine::Counted(..)
                    | ToEngine::Room(_)
                    | ToEngine::Claims(_)
                    | ToEngine::Role(_)
                    | ToEngine::Tune(..)
                    | ToEngine::Skip(..)
                    | ToEngine::Retry => continue,
                    ToEngine::LinkDown(_) => encode(&Command::LinkDown),
                    ToEngine::Stop => encode(&Command::Stop),
                };
                // A broken pipe is told by the reader, with what ssh said.
                if frame.is_ok_and(|f| carrier.send(f).is_err()) || stop {
                    return;
                }
            }
        });
        let ended = read_reports(target, &session, &incoming, out);
        // Nobody listens any more if this fails: the session has ended.
        let _ = out.send(FromEngine::Ended(ended));
    });
    // The agent has said its last word; how its process ends changes nothing any more.
    let _ = session.finish("the session is over", CLOSE_PATIENCE);
}

fn read_reports(
    target: &str,
    session: &Session,
    incoming: &Channel<Incoming>,
    out: &ChannelSender<FromEngine>,
) -> Result<Counts, SessionError> {
    for item in incoming {
        let frame = match item {
            Incoming::Frame(f) => f.into_frame(),
            Incoming::End(end) => {
                let said = session.stderr_tail();
                let said = if said.is_empty() { String::new() } else { format!("; it says: {said}") };
                return Err(broken(target, &format!("{end:?}{said}")));
            }
        };
        let message = match frame {
            Frame::Message(m) => FromEngine::Link(LinkId::ONLY, m),
            Frame::Control(body) => match decode(&body)? {
                Report::Event(e) => FromEngine::Event(e),
                Report::Status(s) => FromEngine::Status(s),
                Report::Ended(result) => {
                    return result.map_err(|e| SessionError { what: format!("{target}: {}", e.what), ..e });
                }
            },
            Frame::Close(reason) => return Err(broken(target, &reason)),
        };
        // The session is gone: the agent is told to stop by the end of the pipe.
        if out.send(message).is_err() {
            break;
        }
    }
    Err(broken(target, "the connection ended"))
}

fn broken(target: &str, why: &str) -> SessionError {
    SessionError::new(
        format!("the connection to {target} broke: {why}"),
        "run it again when the host can be reached: it goes on where it was",
    )
}

fn encode<T: Serialize>(value: &T) -> Result<Frame, SessionError> {
    serde_json::to_vec(value)
        .map(Frame::Control)
        .map_err(|e| SessionError::new(format!("cannot be put into JSON: {e}"), "please report it"))
}

fn decode<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, SessionError> {
    serde_json::from_slice(body).map_err(|e| {
        SessionError::new(
            format!("the other end sent a command that is not understood: {e}"),
            "install the same version at both ends",
        )
    })
}

/// The remote end itself: `driftless agent --stdio`. Returns when the session is over.
pub fn run_agent(state: Option<PathBuf>, bwlimit_bytes_per_s: Option<u64>) -> Result<(), SessionError> {
    let options = CarrierOptions { rate: Rate::new(bwlimit_bytes_per_s), ..CarrierOptions::default() };
    let carrier = Carrier::stdio(options).map_err(|e| {
        SessionError::new(
            e.to_string(),
            "this command is started by `driftless sync` on another machine, not by hand",
        )
    })?;
    let result = serve(&carrier, state);
    let ended = encode(&Report::Ended(result))?;
    // If the pipe is broken the session knows already.
    let _ = carrier.send(ended);
    let _ = carrier.close("the engine has ended", CLOSE_PATIENCE);
    Ok(())
}

fn serve(carrier: &Carrier, state: Option<PathBuf>) -> Result<Counts, SessionError> {
    let incoming = carrier.incoming().clone();
    let start = match incoming.recv() {
        Ok(Incoming::Frame(f)) => match f.into_frame() {
            Frame::Control(body) => decode::<Command>(&body)?,
            _ => return Err(broken("the session", "it began with something else than a start")),
        },
        _ => return Err(broken("the session", "it ended before it began")),
    };
    let Command::Start(Start { side, path, shared }) = start else {
        return Err(broken("the session", "it began with something else than a start"));
    };
    let state = state_dir(state.as_deref())?;
    let root = roots::check_root(&PathBuf::from(OsString::from_vec(path)))?;
    guard_state(&root, state.path())?;
    let (to, inbox) = engine::inbox();
    let (out, from) = unbounded();
    let options = EngineOptions { side, root, state, shared, peer_in_process: false, service: None };
    let join = engine::start(options, inbox, out)
        .map_err(|e| SessionError::new(format!("cannot start a thread: {e}"), ""))?;
    // An engine that has ended already says why.
    let _ = to.send(ToEngine::LinkUp(LinkId::ONLY, None, None));
    let result = exchange(carrier, &incoming, &to, &from);
    // The engine has ended, or ends now.
    let _ = to.send(ToEngine::Stop);
    let _ = join.join();
    result
}

/// Between the pipe and the engine, until the engine has ended.
fn exchange(
    carrier: &Carrier,
    incoming: &Channel<Incoming>,
    to: &ChannelSender<ToEngine>,
    from: &Channel<FromEngine>,
) -> Result<Counts, SessionError> {
    std::thread::scope(|scope| {
        // Closed, without a word, when the engine has ended by itself.
        let (ends, ended) = bounded::<()>(0);
        let writer = scope.spawn(move || {
            let _ends = ends;
            write_reports(carrier, from)
        });
        loop {
            let command = select! {
                recv(incoming) -> item => match item {
                    Ok(item) => command_of(item),
                    Err(_) => ToEngine::Stop,
                },
                recv(ended) -> _ => break,
            };
            let stop = matches!(command, ToEngine::Stop);
            // An engine that has ended takes nothing more.
            if to.send(command).is_err() || stop {
                break;
            }
        }
        match writer.join() {
            Ok(result) => result,
            Err(_) => Err(broken("the engine", "it panicked")),
        }
    })
}

/// What the session said, for the engine. Whatever is not understood, or the end of the pipe, ends it.
fn command_of(item: Incoming) -> ToEngine {
    match item {
        Incoming::Frame(f) => match f.into_frame() {
            Frame::Message(m) => ToEngine::Link(LinkId::ONLY, m),
            Frame::Control(body) => match decode::<Command>(&body) {
                Ok(Command::LinkDown) => ToEngine::LinkDown(LinkId::ONLY),
                _ => ToEngine::Stop,
            },
            Frame::Close(_) => ToEngine::Stop,
        },
        Incoming::End(_) => ToEngine::Stop,
    }
}

fn write_reports(carrier: &Carrier, from: &Channel<FromEngine>) -> Result<Counts, SessionError> {
    loop {
        let frame = match from.recv() {
            Ok(FromEngine::Link(_, m)) => Frame::Message(m),
            // The only link ends with its engine, and tells by its status how the peer stands.
            Ok(FromEngine::LinkEnded(..) | FromEngine::Replica(..) | FromEngine::Peers(_)) => continue,
            Ok(FromEngine::Event(e)) => encode(&Report::Event(e))?,
            Ok(FromEngine::Status(s)) => encode(&Report::Status(s))?,
            Ok(FromEngine::Ended(result)) => return result,
            Err(_) => return Err(broken("the engine", "it stopped without saying why")),
        };
        if let Err(e) = carrier.send(frame) {
            return Err(broken("the session", &e.to_string()));
        }
    }
}
