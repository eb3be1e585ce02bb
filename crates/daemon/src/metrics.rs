//! The status in the text format of Prometheus. Names carry their units.

use crate::status::{LinkState, NodeStatus};
use std::fmt::Write as _;

/// One metric: name, type, help.
type Head = (&'static str, &'static str, &'static str);

const UP: Head = ("driftless_up", "gauge", "1 while the node runs.");
const UPTIME: Head = ("driftless_uptime_seconds", "gauge", "Since the node was started.");
const VOLUME_UP: Head = ("driftless_volume_up", "gauge", "1 if the volume's replica here runs.");
const WAITING: Head =
    ("driftless_waiting_items", "gauge", "Entries that could not be brought to this disk yet.");
const CONFLICTS: Head = ("driftless_conflicts_total", "counter", "Conflict copies seen since the start.");
const STATE: Head = ("driftless_link_state", "gauge", "1 for the state that the link is in.");
const LAG: Head = (
    "driftless_replication_lag_seconds",
    "gauge",
    "Age of the oldest change here that is not on the other site's disk for good. Grows while the site cannot be reached.",
);
const BACKLOG: Head =
    ("driftless_backlog_items", "gauge", "At most so many entries are to be sent to the other site yet.");
const IN_FLIGHT: Head = ("driftless_in_flight_bytes", "gauge", "Bytes on their way to the other site.");
const WAITING_THERE: Head = ("driftless_peer_waiting_items", "gauge", "Entries that wait at the other site.");

/// The whole page.
pub(crate) fn render(status: &NodeStatus) -> String {
    let mut page = Page(String::new());
    page.metric(UP, &[(String::new(), 1.0)]);
    page.metric(UPTIME, &[(String::new(), status.uptime_s as f64)]);
    let volumes = |value: &dyn Fn(&crate::status::VolumeStatus) -> f64| -> Vec<(String, f64)> {
        status.volumes.iter().map(|v| (format!("volume=\"{}\"", v.name), value(v))).collect()
    };
    page.metric(VOLUME_UP, &volumes(&|v| f64::from(u8::from(v.error.is_none()))));
    page.metric(WAITING, &volumes(&|v| v.waiting_items as f64));
    page.metric(CONFLICTS, &volumes(&|v| v.conflicts as f64));
    let links = || status.volumes.iter().flat_map(|v| v.links.iter().map(move |l| (v, l)));
    let labels = |v: &crate::status::VolumeStatus, l: &crate::status::LinkStatus| {
        format!("volume=\"{}\",peer=\"{}\"", v.name, l.site)
    };
    let states: Vec<(String, f64)> = links()
        .flat_map(|(v, l)| {
            LinkState::ALL.map(|s| {
                (format!("{},state=\"{}\"", labels(v, l), s.word()), f64::from(u8::from(l.state == s)))
            })
        })
        .collect();
    page.metric(STATE, &states);
    let values = |value: &dyn Fn(&crate::status::LinkStatus) -> f64| -> Vec<(String, f64)> {
        links().map(|(v, l)| (labels(v, l), value(l))).collect()
    };
    page.metric(LAG, &values(&|l| l.lag_ms.unwrap_or(0) as f64 / 1000.0));
    page.metric(BACKLOG, &values(&|l| l.backlog_items as f64));
    page.metric(IN_FLIGHT, &values(&|l| l.in_flight_bytes as f64));
    page.metric(WAITING_THERE, &values(&|l| l.waiting_there_items as f64));
    page.0
}

struct Page(String);

impl Page {
    fn metric(&mut self, (name, kind, help): Head, values: &[(String, f64)]) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in values {
            // Names of sites and volumes have no quotes and no backslashes.
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}
