//! The status in the text format of Prometheus. Names carry their units.

use crate::status::{LinkState, NodeStatus};
use driftless_node::api::Reason;
use driftless_node::replica::{PROPAGATION_BOUNDS_S, Propagation};
use std::fmt::Write as _;

/// One metric: name, type, help.
type Head = (&'static str, &'static str, &'static str);

const UP: Head = ("driftless_up", "gauge", "1 while the node runs.");
const UPTIME: Head = ("driftless_uptime_seconds", "gauge", "Since the node was started.");
const VOLUME_UP: Head = ("driftless_volume_up", "gauge", "1 if the volume's replica here runs.");
const WAITING: Head =
    ("driftless_waiting_items", "gauge", "Entries that could not be brought to this disk yet.");
const WAITING_FOR: Head = (
    "driftless_waiting_by_reason_items",
    "gauge",
    "Entries that could not be brought to this disk yet, for each reason; the list of reasons is closed.",
);
const SKIPPED: Head = (
    "driftless_skipped_items",
    "gauge",
    "Of those that wait, how many are not tried any more: somebody has said so.",
);
const TO_GO: Head = (
    "driftless_backlog_bytes",
    "gauge",
    "About so many bytes of contents are not on the other site's disk yet.",
);
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
const SINCE: Head = (
    "driftless_oldest_unapplied_change_timestamp_seconds",
    "gauge",
    "When the oldest change was made that is not on the other site's disk for good, since 1970; 0 if there is none.",
);
const SENT: Head =
    ("driftless_link_sent_bytes_total", "counter", "Bytes of frames sent since the link was started.");
const RECEIVED: Head = (
    "driftless_link_received_bytes_total",
    "counter",
    "Bytes of frames received since the link was started.",
);
const FEED_HEAD: Head = ("driftless_feed_head", "gauge", "The last position of the volume's feed here.");
const RECORDED: Head =
    ("driftless_recorded_changes_total", "counter", "Local changes recorded since the volume was opened.");
const STATES: Head =
    ("driftless_received_states_total", "counter", "Entry states received since the volume was opened.");
const APPLIED: Head =
    ("driftless_applied_bytes_total", "counter", "Bytes of contents written since the volume was opened.");
const PROPAGATION: Head = (
    "driftless_propagation_seconds",
    "histogram",
    "From when a change was made at another site until it was on this disk, by the two sites' clocks.",
);
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
    let reasons = status.volumes.iter().flat_map(|v| {
        Reason::ALL.map(|reason| {
            let count = v.waiting_by_reason.get(&reason).copied().unwrap_or(0);
            (format!("volume=\"{}\",reason=\"{}\"", v.name, reason.word()), count as f64)
        })
    });
    page.metric(WAITING_FOR, &reasons.collect::<Vec<_>>());
    page.metric(SKIPPED, &volumes(&|v| v.skipped_items as f64));
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
    page.metric(TO_GO, &values(&|l| l.to_go_bytes as f64));
    page.metric(IN_FLIGHT, &values(&|l| l.in_flight_bytes as f64));
    page.metric(WAITING_THERE, &values(&|l| l.waiting_there_items as f64));
    page.metric(SINCE, &values(&|l| l.behind_since_ms.unwrap_or(0) as f64 / 1000.0));
    page.metric(SENT, &values(&|l| l.sent_bytes as f64));
    page.metric(RECEIVED, &values(&|l| l.received_bytes as f64));
    page.metric(FEED_HEAD, &volumes(&|v| v.head as f64));
    page.metric(RECORDED, &volumes(&|v| v.recorded as f64));
    page.metric(STATES, &volumes(&|v| v.received as f64));
    page.metric(APPLIED, &volumes(&|v| v.applied_bytes as f64));
    page.histogram(PROPAGATION, status.volumes.iter().map(|v| (v.name.as_str(), &v.propagation)));
    page.0
}

struct Page(String);

impl Page {
    fn histogram<'a>(
        &mut self,
        (name, kind, help): Head,
        of: impl Iterator<Item = (&'a str, &'a Propagation)>,
    ) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (volume, all) in of {
            let mut up_to = 0;
            for (bound, count) in PROPAGATION_BOUNDS_S.iter().zip(all.counts) {
                up_to += count;
                let _ = writeln!(self.0, "{name}_bucket{{volume=\"{volume}\",le=\"{bound}\"}} {up_to}");
            }
            let count = all.count();
            let _ = writeln!(self.0, "{name}_bucket{{volume=\"{volume}\",le=\"+Inf\"}} {count}");
            let _ = writeln!(self.0, "{name}_sum{{volume=\"{volume}\"}} {}", all.sum_s);
            let _ = writeln!(self.0, "{name}_count{{volume=\"{volume}\"}} {count}");
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{LinkStatus, VolumeStatus};
    use std::collections::BTreeSet;

    /// Everything that has the form of one of our names.
    fn names(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
        words.filter(|w| w.starts_with("driftless_")).map(str::to_owned).collect()
    }

    #[test]
    fn dashboard_and_alerts_name_what_there_is() {
        let link = r#"{"site":"b","mode":"active-active","state":"in-sync","lag_ms":1500,"backlog_items":0,
            "in_flight_bytes":0,"waiting_there_items":0,"last_error":null,"last_error_age_s":null}"#;
        let link: LinkStatus = serde_json::from_str(link).unwrap();
        let volume = r#"{"name":"data","id":"7","root":{"text":"/srv"},"follower":false,"scanned":true,
            "waiting_items":3,"waiting_by_reason":{"busy":3},"conflicts":0,"error":null,"links":[]}"#;
        let volume: VolumeStatus = serde_json::from_str(volume).unwrap();
        let status = NodeStatus {
            verdict: String::new(),
            well: true,
            name: "a".into(),
            key: String::new(),
            listen: String::new(),
            version: String::new(),
            uptime_s: 1,
            sites: Vec::new(),
            volumes: vec![VolumeStatus { links: vec![link], ..volume }],
        };
        let page = render(&status);
        assert!(
            page.contains("driftless_replication_lag_seconds{volume=\"data\",peer=\"b\"} 1.5\n"),
            "{page}"
        );
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.word());
            let row =
                format!("driftless_waiting_by_reason_items{{volume=\"data\",reason=\"{}\"}} ", reason.word());
            let value = if reason == Reason::Busy { "3" } else { "0" };
            assert!(page.contains(&format!("{row}{value}\n")), "{row}{page}");
        }
        let values: String = page.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        let there = names(&values);
        for (file, text) in [
            ("dashboard.json", include_str!("../../../packaging/monitoring/dashboard.json")),
            ("alerts.yaml", include_str!("../../../packaging/monitoring/alerts.yaml")),
        ] {
            let named = names(text);
            assert!(named.len() > 5, "{file}: {named:?}");
            let missing: Vec<_> = named.difference(&there).collect();
            assert!(missing.is_empty(), "{file} names what there is not: {missing:?}");
        }
        serde_json::from_str::<serde_json::Value>(include_str!(
            "../../../packaging/monitoring/dashboard.json"
        ))
        .unwrap();
    }
}
