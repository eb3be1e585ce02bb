//! `driftless sync`: checks what was asked, runs the session on a thread of its own, and brings its events to a
//! printer and signals to it.

use crate::args::{AgentArgs, RollbackArg, SyncArgs};
use crate::endpoint;
use crate::engine::{self, StopFlag};
use crate::error::{CliError, ExitCode};
use crate::print::json::Json;
use crate::print::plain::Plain;
use crate::print::terminal::Terminal;
use crate::print::{About, End, Printer, Verbosity};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use driftless_node::api::{
    Endpoint, Event, MaxDelete, OnRollback, Outcome, SessionError, Shared, SyncOptions, TrashLimits,
};
use driftless_node::filter::Filter;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

/// Events that may wait for the printer. Beyond it the session waits: a slow terminal slows the session,
/// but does not fill the memory.
const EVENTS_MAX: usize = 1024;

/// How often a printer hears that time has passed.
const TICK: Duration = Duration::from_millis(100);

/// Runs `driftless sync`.
pub(crate) fn run(args: SyncArgs) -> Result<ExitCode, CliError> {
    let verbosity = Verbosity::of(args.verbose);
    let json = args.json;
    let options = options(args)?;
    let about = About {
        ends: (endpoint::shown(&options.a), endpoint::shown(&options.b)),
        dry_run: options.shared.dry_run,
        active_passive: options.shared.active_passive,
        verbosity,
    };
    let mut printer = printer(about, json);
    let outcome = session(options.clone(), printer.as_mut())?;
    Ok(exit_code(&outcome, options.shared.dry_run))
}

/// Checks everything that can be checked without touching either end.
fn options(args: SyncArgs) -> Result<SyncOptions, CliError> {
    let end = |text| endpoint::parse(text).map_err(|e| CliError::usage(e, "see driftless sync --help"));
    let (a, b) = (end(&args.a)?, end(&args.b)?);
    Filter::new(&args.filters.0).map_err(|e| {
        CliError::usage(e.to_string(), "correct the glob: * and ? match within a name, ** across names")
    })?;
    let site_names = args.site_names.unwrap_or_else(|| site_names(&a, &b));
    Ok(SyncOptions {
        a,
        b,
        state_dir: args.state,
        shared: Shared {
            active_passive: args.active_passive,
            filters: args.filters.0,
            max_delete: args.max_delete.unwrap_or(MaxDelete::Default),
            on_rollback: match args.on_rollback {
                RollbackArg::Ask => OnRollback::Ask,
                RollbackArg::Accept => OnRollback::Accept,
                RollbackArg::Heal => OnRollback::Heal,
            },
            dry_run: args.dry_run,
            allow_unsafe_fs: args.allow_unsafe_fs,
            // A plan has an end: there is nothing to watch for.
            once: args.once || args.dry_run,
            site_names,
            verbose: args.verbose > 0,
            trash: trash_limits(args.trash_keep, args.trash_max),
            crawl_every_s: args.crawl_every,
        },
        bwlimit_bytes_per_s: args.bwlimit,
        remote_bin: args.remote_bin,
    })
}

/// Either limit asks for the trash.
fn trash_limits(keep_s: Option<u64>, bytes_max: Option<u64>) -> Option<TrashLimits> {
    (keep_s.is_some() || bytes_max.is_some()).then_some(TrashLimits { keep_s, bytes_max })
}

/// Names that tell the two ends apart: of the hosts where these differ, else `A` and `B`.
fn site_names(a: &Endpoint, b: &Endpoint) -> (String, String) {
    let host = |end: &Endpoint| match end {
        Endpoint::Local(_) => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        Endpoint::Ssh { target, .. } => target.rsplit('@').next().unwrap_or_default().to_owned(),
    };
    let plain = |host: String| -> String {
        let first = host.split('.').next().unwrap_or_default();
        first.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(32).collect()
    };
    let names = (plain(host(a)), plain(host(b)));
    if names.0 == names.1 || names.0.is_empty() || names.1.is_empty() {
        ("A".into(), "B".into())
    } else {
        names
    }
}

fn printer(about: About, json: bool) -> Box<dyn Printer> {
    let now = Instant::now();
    if json {
        Box::new(Json::new(about))
    } else if io::stderr().is_terminal() {
        Box::new(Terminal::new(about, now))
    } else {
        Box::new(Plain::new(about, now))
    }
}

/// Runs the session to its end.
fn session(options: SyncOptions, printer: &mut dyn Printer) -> Result<Outcome, CliError> {
    let stop = StopFlag::default();
    let notices = signals(stop.clone())?;
    let (send, events) = bounded(EVENTS_MAX);
    let thread = std::thread::Builder::new()
        .name("session".into())
        .spawn(move || engine::run(options, send, stop))
        .map_err(|e| {
            CliError::failed(format!("cannot start a thread: {e}"), "raise the limit of processes")
        })?;
    relay(&events, &notices, printer);
    let result = thread.join().unwrap_or_else(|_| {
        Err(SessionError::new(
            "the session broke off by an error of its own (see above)",
            "run it again: nothing is lost; please report what it said",
        ))
    });
    let now = Instant::now();
    match result {
        Ok(outcome) => {
            printer.finish(now, &End::Outcome(outcome.clone()));
            Ok(outcome)
        }
        Err(e) => {
            printer.finish(now, &End::Failed);
            Err(e.into())
        }
    }
}

/// Brings events to the printer until the session has dropped its sender.
fn relay(events: &Receiver<Event>, notices: &Receiver<&'static str>, printer: &mut dyn Printer) {
    let mut ticked = Instant::now();
    loop {
        let event = events.recv_timeout(TICK);
        let now = Instant::now();
        match event {
            Ok(event) => printer.event(now, &event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for notice in notices.try_iter() {
            printer.notice(notice);
        }
        if now.duration_since(ticked) >= TICK {
            printer.tick(now);
            ticked = now;
        }
    }
}

/// The first signal asks the session to end, the second ends the process: whatever is on disk then is
/// what a crash leaves, and the next run goes on from it.
fn signals(stop: StopFlag) -> Result<Receiver<&'static str>, CliError> {
    let failed =
        |e: io::Error| CliError::failed(format!("cannot handle signals: {e}"), "raise the process limits");
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let (say, notices) = bounded(1);
    let watch = move || {
        for (n, signal) in signals.forever().enumerate() {
            if n > 0 {
                // As a shell reports a process that a signal ended.
                std::process::exit(128 + signal);
            }
            // First the notice: a session may end at once.
            let _ = say.send("stopping: finishing what is under way (once more to leave at once)");
            stop.request();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map_err(failed)?;
    Ok(notices)
}

/// What a session's end means for the exit code.
pub(crate) fn exit_code(outcome: &Outcome, dry_run: bool) -> ExitCode {
    if dry_run || (outcome.in_sync && outcome.waiting == 0) { ExitCode::InSync } else { ExitCode::Waiting }
}

/// Runs the remote end of a session on the standard input and output.
pub(crate) fn agent(args: &AgentArgs) -> Result<ExitCode, CliError> {
    driftless_node::remote::run_agent(args.state.clone(), args.bwlimit)?;
    Ok(ExitCode::InSync)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let outcome = |in_sync, waiting| Outcome { in_sync, waiting, ..Outcome::default() };
        assert_eq!(exit_code(&outcome(true, 0), false), ExitCode::InSync);
        assert_eq!(exit_code(&outcome(true, 1), false), ExitCode::Waiting);
        assert_eq!(exit_code(&outcome(false, 0), false), ExitCode::Waiting);
        assert_eq!(exit_code(&outcome(false, 2), true), ExitCode::InSync);
    }

    #[test]
    fn sites_are_told_apart() {
        let ssh = |target: &str| Endpoint::Ssh { target: target.into(), path: b"/x".to_vec() };
        let names = |a: &str, b: &str| site_names(&ssh(a), &ssh(b));
        assert_eq!(names("me@oslo.example.com", "bergen"), ("oslo".into(), "bergen".into()));
        assert_eq!(names("oslo", "me@oslo"), ("A".into(), "B".into()));
        assert_eq!(names("::1", "x"), ("1".into(), "x".into()));
    }
}
