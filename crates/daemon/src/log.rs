//! The log: one line per event on the standard error output, for people or as JSON.

use driftless_node::api::Level;
use serde_json::{Map, Value};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// `2026-11-20T10:11:12Z warn link=data/bergen ...`
    #[default]
    Text,
    /// One object per line.
    Json,
}

static JSON: AtomicBool = AtomicBool::new(false);

/// How lines look from now on.
pub fn set_format(format: Format) {
    JSON.store(format == Format::Json, Ordering::Relaxed);
}

/// Writes one line. `fields` are names and values; no secret may be among them.
pub(crate) fn line(level: Level, text: &str, fields: &[(&str, &str)]) {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let line = format(JSON.load(Ordering::Relaxed), &driftless_core::tree::utc(secs), level, text, fields);
    // A log that cannot be written stops nothing.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

fn format(json: bool, time: &str, level: Level, text: &str, fields: &[(&str, &str)]) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    if json {
        let mut object = Map::new();
        for (key, value) in [("time", time), ("level", level), ("text", text)].iter().chain(fields) {
            object.insert((*key).into(), Value::from(*value));
        }
        return format!("{}\n", Value::Object(object));
    }
    let fields: String = fields.iter().map(|(key, value)| format!("{key}={value} ")).collect();
    // A name from elsewhere must not look like another line.
    let safe: String =
        format!("{fields}{text}").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{time} {level} {safe}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_line() {
        let fields = [("site", "bergen")];
        let text = format(false, "T", Level::Warn, "a\nb", &fields);
        assert_eq!(text, "T warn site=bergen a b\n");
        let json = format(true, "T", Level::Info, "a\nb", &fields);
        assert_eq!(json, "{\"level\":\"info\",\"site\":\"bergen\",\"text\":\"a\\nb\",\"time\":\"T\"}\n");
    }
}
