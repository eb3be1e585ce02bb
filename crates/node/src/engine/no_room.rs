//! A start on a disk that is full: it waits for room instead of ending.
//!
//! Most of a start needs no room: what is written at each start lies in files that are there, and the index has its
//! reserve. What is left is a first start, and a disk whose reserve was used up by whoever ran before.

use super::open::{EngineOptions, Held};
use super::{Engine, Fail, FromEngine, ToEngine};
use crate::api::{Event, Level};
use crossbeam_channel::{Receiver as Channel, RecvTimeoutError, Sender as ChannelSender};
use driftless_core::link::Message;
use driftless_volume::Reason as Volume;
use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{Error, ErrorKind};
use std::time::{Duration, Instant};

/// First pause between two tries to begin; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// True if there is no room, or none left of what the user may take.
pub(super) fn is_full(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

pub(super) fn no_room(what: &dyn Display) -> Fail {
    Fail::NoRoom { what: what.to_string() }
}

fn waits_for_room(e: &Fail) -> bool {
    match e {
        Fail::NoRoom { .. } => true,
        Fail::Volume(e) => e.reason() == Volume::NoSpace,
        _ => false,
    }
}

/// Opens the replica, once its disks have the room for that. `None` if it was told to end in the meantime.
///
/// # Errors
/// As a start; that there is no room is one only in a session that is to end, or is to change nothing.
pub(super) fn open_when_there_is_room(
    options: &EngineOptions,
    inbox: &Channel<ToEngine>,
    out: &ChannelSender<FromEngine>,
) -> Result<Option<(Engine, Option<Held>)>, Fail> {
    let say = |level, text| {
        // A session that is gone needs no events.
        let _ = out.send(FromEngine::Event(Event::Log { side: Some(options.side), level, text }));
    };
    let (mut pause, mut told) = (PAUSE_MIN, false);
    let mut early = VecDeque::new();
    loop {
        let failed = match Engine::open(options.clone(), inbox.clone(), out.clone()) {
            Ok((mut engine, held)) => {
                if told {
                    say(Level::Info, "there is room again: going on".into());
                }
                engine.early_input = early;
                return Ok(Some((engine, held)));
            }
            Err(e) => e,
        };
        if !waits_for_room(&failed) || options.shared.once || options.shared.dry_run {
            return Err(failed);
        }
        if !std::mem::replace(&mut told, true) {
            let text = format!("{failed}: nothing is done here until there is room; free some space there");
            say(Level::Error, text);
        }
        if !wait(inbox, &mut early, Instant::now() + pause) {
            return Ok(None);
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Keeps what comes until `until`. False if it is to end.
fn wait(inbox: &Channel<ToEngine>, early: &mut VecDeque<ToEngine>, until: Instant) -> bool {
    loop {
        match inbox.recv_deadline(until) {
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) | Ok(ToEngine::Stop) => return false,
            // They tell that the other end lives, for as long as this one waits.
            Ok(ToEngine::Link(_, Message::Heartbeat { .. })) => {}
            Ok(other) => early.push_back(other),
        }
    }
}
