//! The change feed of a volume over HTTP: `GET /volumes/NAME/changes?after=N&limit=1000&wait=30&feed=ID`.
//!
//! A feed of states: each entry once, at its newest change. Whoever reads on from `next` misses nothing and may see an entry again
//! when it changes again; what was changed twice between two looks is seen once. Positions mean something in the
//! feed of one replica only, which the answer names: a replica that was made anew has another, to be read from 0.

use super::Shared;
use crate::http::{Get, Page};
use driftless_node::query::{ChangeRow, PAGE_ROWS_MAX, Request, Response};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Longest wait for something new.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether there is something new.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Serialize)]
struct Changes {
    volume: String,
    feed: String,
    after: u64,
    next: u64,
    head: u64,
    changes: Vec<ChangeRow>,
}

impl Shared {
    /// Answers a request for `/volumes/...`.
    pub(super) fn feed_page(&self, get: &Get) -> Page {
        let wrong = |status, text: &str| (status, "text/plain", format!("{text}\n"));
        if !get.local {
            return wrong(
                "403 Forbidden",
                "names of files are told to this machine only: ask through a proxy that knows who may",
            );
        }
        let volume = get.path.strip_prefix("/volumes/").and_then(|rest| rest.strip_suffix("/changes"));
        let Some(volume) = volume.filter(|v| !v.contains('/')) else {
            return wrong("404 Not Found", "there is /volumes/NAME/changes");
        };
        let number = |key: &str, default: u64| match get.value(key) {
            None => Ok(default),
            Some(text) => text.parse::<u64>().map_err(|_| format!("{key} is no number")),
        };
        let numbers = (number("after", 0), number("limit", PAGE_ROWS_MAX as u64), number("wait", 0));
        let (after, limit, wait) = match numbers {
            (Ok(after), Ok(limit), Ok(wait)) => (after, limit, wait),
            (after, limit, wait) => {
                let why = [after, limit, wait].into_iter().find_map(Result::err).unwrap_or_default();
                return wrong("400 Bad Request", &why);
            }
        };
        let until = Instant::now() + Duration::from_secs(wait).min(WAIT_MAX);
        match self.changes(volume, get.value("feed"), (after, limit), until) {
            Ok(page) => page,
            Err(why) => wrong("503 Service Unavailable", &why),
        }
    }

    fn changes(
        &self,
        volume: &str,
        feed: Option<&str>,
        (after, limit): (u64, u64),
        until: Instant,
    ) -> Result<Page, String> {
        let ask = |request| {
            self.query(volume, &request).map_err(|e| match e {
                crate::control::Answer::Failed { what, .. } => what,
                _ => "it cannot be asked now".into(),
            })
        };
        loop {
            let Response::Feed { replica, head } = ask(Request::Feed)? else {
                return Err("the index answers something else".into());
            };
            if feed.is_some_and(|feed| feed != replica) || after > head {
                let text = format!("the feed is {replica} now and ends at {head}: read it from 0\n");
                return Ok(("409 Conflict", "text/plain", text));
            }
            if after == head && Instant::now() < until {
                std::thread::sleep(LOOK_EVERY);
                continue;
            }
            let limit = usize::try_from(limit).unwrap_or(PAGE_ROWS_MAX).clamp(1, PAGE_ROWS_MAX);
            let Response::Changes(changes) = ask(Request::Changes { since: after, limit })? else {
                return Err("the index answers something else".into());
            };
            // Rows that were moved to the end meanwhile leave gaps: the last of a page that is not full is the head.
            let last = changes.last().map_or(after, |row| row.seq);
            let next = if changes.len() < limit { last.max(head) } else { last };
            let body = Changes { volume: volume.to_owned(), feed: replica, after, next, head, changes };
            let body = serde_json::to_string(&body).map_err(|e| e.to_string())?;
            return Ok(("200 OK", "application/json", body + "\n"));
        }
    }
}
