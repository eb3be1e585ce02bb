//! How everything stands: what commands print and metrics count. Pure: from what was seen to what is said.

use crate::link::PACE_OVER;
use crate::records::Mode;
use driftless_node::api::{PathText, Reason};
use driftless_node::query::Explanation;
use driftless_node::replica::Propagation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a link stands. A closed list: every place that says so uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// The other site holds all that this one has.
    InSync,
    /// Connected, and something is on its way to the other site.
    CatchingUp,
    /// Connected, but nothing has come from the other site's volume for a while: it, or this one, stands still.
    Stalled,
    /// A connection is being made for the first time since it was asked for.
    Connecting,
    /// The other site does not answer.
    Unreachable,
    /// The other site does not want it, or speaks another version.
    Refused,
    /// Somebody has paused it here.
    Paused,
    /// Somebody has stopped it here.
    Stopped,
    /// This site's replica does not run: see the volume.
    VolumeDown,
}

impl LinkState {
    /// All of them.
    pub const ALL: [LinkState; 9] = [
        LinkState::InSync,
        LinkState::CatchingUp,
        LinkState::Stalled,
        LinkState::Connecting,
        LinkState::Unreachable,
        LinkState::Refused,
        LinkState::Paused,
        LinkState::Stopped,
        LinkState::VolumeDown,
    ];

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            LinkState::InSync => "in-sync",
            LinkState::CatchingUp => "catching-up",
            LinkState::Stalled => "stalled",
            LinkState::Connecting => "connecting",
            LinkState::Unreachable => "unreachable",
            LinkState::Refused => "refused",
            LinkState::Paused => "paused",
            LinkState::Stopped => "stopped",
            LinkState::VolumeDown => "volume-down",
        }
    }

    /// Nobody has to look at it.
    pub fn is_well(self) -> bool {
        matches!(self, LinkState::InSync | LinkState::CatchingUp)
    }
}

/// Each side says something through its volume every three seconds; two that are missed and a little are no accident. It is
/// named within ten seconds, whole seconds being what is told.
pub(crate) const STALLED_AFTER_S: u64 = 8;

/// What a site says of a path.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SiteWhy {
    /// The site.
    pub site: String,
    /// It has the newest version that any of the asked sites knows; `None`: it did not say.
    #[serde(default)]
    pub newest: Option<bool>,
    /// How the link to it stands, where it could not be asked.
    #[serde(default)]
    pub link: Option<LinkState>,
    /// Why it could not be asked.
    #[serde(default)]
    pub error: Option<String>,
    /// What it says.
    #[serde(default)]
    pub why: Option<Explanation>,
}

impl SiteWhy {
    pub(crate) fn new(site: &str, answer: Result<Explanation, String>) -> SiteWhy {
        let (why, error) = match answer {
            Ok(why) => (Some(why), None),
            Err(e) => (None, Some(e)),
        };
        SiteWhy { site: site.to_owned(), newest: None, link: None, error, why }
    }

    pub(crate) fn unasked(site: &str, link: LinkState, error: impl Into<String>) -> SiteWhy {
        SiteWhy { link: Some(link), ..SiteWhy::new(site, Err(error.into())) }
    }
}

/// Whether a site holds everything up to a position of a feed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldAt {
    /// Not yet.
    Behind,
    /// It cannot be reached, and was behind when it was heard last.
    Unreachable,
    /// It does, but for what waits there.
    Held,
}

/// A site, when it was asked whether it holds everything.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SiteHeld {
    /// The site.
    pub site: String,
    /// Whether it does.
    pub at: HeldAt,
    /// Entries that wait there.
    pub waiting: u64,
}

/// A version, and a path that should show it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PathVersion {
    /// Bytes of the path below the root, in hex.
    pub path_hex: String,
    /// The change that made it.
    pub version: String,
}

/// What a site knows of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SiteKnows {
    /// The site.
    pub site: String,
    /// Up to which number it knows the changes of each replica, by its id in hex.
    pub knowledge: BTreeMap<String, u64>,
    /// Up to which number each replica has announced changes, as far as this site heard.
    pub announced: BTreeMap<String, u64>,
    /// Of the versions that it was asked for, those whose contents are on its disk.
    pub holds: Vec<PathVersion>,
}

/// What may be lost with a site.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Loss {
    /// The site that is gone.
    pub site: String,
    /// It is connected here now: nothing need be lost.
    pub connected: bool,
    /// Seconds since it was heard last, if that is known here.
    pub heard_ago_s: Option<u64>,
    /// Its replicas.
    pub replicas: Vec<ReplicaLoss>,
    /// Sites that were asked what they know, this one included.
    pub asked: Vec<String>,
    /// Members that could not be asked: what only they know is not in this.
    pub not_asked: Vec<String>,
    /// Paths whose newest known version has contents that no site has which was asked.
    pub paths: Vec<LostPath>,
    /// How many such paths there are, as far as is known: at most so many, if not all could be asked for.
    pub paths_total: u64,
}

/// What may be lost of one replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaLoss {
    /// Its id, in hex.
    pub replica: String,
    /// Its changes up to this number stay.
    pub kept_up_to: u64,
    /// The greatest number that it announced to any site that was asked.
    pub announced: u64,
    /// A site that was asked knows them up to here; what is above `kept_up_to` has not come here in time.
    pub known_elsewhere: u64,
}

impl ReplicaLoss {
    /// At most so many changes that it announced have not come.
    pub fn missing(&self) -> u64 {
        self.announced.saturating_sub(self.kept_up_to)
    }
}

/// A path whose newest version may be lost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LostPath {
    /// The path below the root.
    pub path: PathText,
    /// The change that made the version.
    pub version: String,
}

impl Loss {
    /// In sentences, without a full stop at the end.
    pub fn text(&self) -> String {
        let heard = match (self.connected, self.heard_ago_s) {
            (true, _) => "is CONNECTED: consider driftless switchover there".into(),
            (false, Some(s)) => format!("was last heard {} ago", age(s.saturating_mul(1000))),
            (false, None) => "is not connected".into(),
        };
        let site = &self.site;
        let mut text = format!("{site} {heard}. Asked: {}", self.asked.join(", "));
        if !self.not_asked.is_empty() {
            text += &format!("; could not be asked: {}", self.not_asked.join(", "));
        }
        let kept: Vec<String> = self.replicas.iter().map(|r| r.kept_up_to.to_string()).collect();
        text += &format!(
            ". Changes by {site} up to number {} are here: these stay. What {site} changed after that counts no more, anywhere; it \
             stays on its disk, is set aside when it comes back, and can be applied again. This cannot be undone",
            kept.join(", ")
        );
        for replica in self.replicas.iter().filter(|r| r.missing() > 0) {
            text += &format!(
                ". Of changes that {site} announced, numbers {} to {} have not come",
                replica.kept_up_to + 1,
                replica.announced
            );
        }
        for replica in self.replicas.iter().filter(|r| r.known_elsewhere > r.kept_up_to) {
            text += &format!(
                ". A site that was asked knows them up to number {}: wait until that is here, and run it again",
                replica.known_elsewhere
            );
        }
        if self.paths_total > 0 {
            let shown: Vec<&str> =
                self.paths.iter().take(PATHS_SHOWN_MAX).map(|p| p.path.text.as_str()).collect();
            text += &format!(
                ". No site that was asked has the contents of the newest version of {} paths: {}",
                self.paths_total,
                shown.join(", ")
            );
            if self.paths_total > shown.len() as u64 {
                text += ", ... (--json lists them)";
            }
            text += &format!("; they are lost if {site} does not come back");
        }
        text
    }
}

/// Paths that a sentence names.
const PATHS_SHOWN_MAX: usize = 10;

/// A node and everything it has.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// One line: is all well?
    pub verdict: String,
    /// All is well.
    pub well: bool,
    /// This site.
    pub name: String,
    /// Its key, in hex.
    pub key: String,
    /// Where it listens.
    pub listen: String,
    /// The program's version.
    pub version: String,
    /// Seconds since it was started.
    pub uptime_s: u64,
    /// Other sites.
    pub sites: Vec<SiteStatus>,
    /// Volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// Another site.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SiteStatus {
    /// Its name.
    pub name: String,
    /// Its key, in hex.
    pub key: String,
    /// Where it says that it is.
    pub addresses: Vec<String>,
    /// A link of it is connected.
    pub connected: bool,
    /// Volumes that are linked.
    pub volumes: Vec<String>,
}

/// A volume.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its id, in hex.
    pub id: String,
    /// Its directory here.
    pub root: PathText,
    /// This replica makes no changes.
    pub follower: bool,
    /// Its tree has been looked at since the start.
    pub scanned: bool,
    /// Entries that wait here: `driftless failures` lists them.
    pub waiting_items: u64,
    /// How many of them wait for each reason.
    #[serde(default)]
    pub waiting_by_reason: BTreeMap<Reason, u64>,
    /// How many of them are not to be tried: somebody has said so.
    #[serde(default)]
    pub skipped_items: u64,
    /// Conflict copies seen since the start.
    pub conflicts: u64,
    /// The last position of its feed here.
    #[serde(default)]
    pub head: u64,
    /// Local changes recorded since the start.
    #[serde(default)]
    pub recorded: u64,
    /// Entry states received since the start.
    #[serde(default)]
    pub received: u64,
    /// Content bytes written since the start.
    #[serde(default)]
    pub applied_bytes: u64,
    /// How long changes of others took to get here; in metrics only.
    #[serde(skip)]
    pub propagation: Propagation,
    /// Why it does not run.
    pub error: Option<String>,
    /// Who belongs to it, as far as is known here.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    /// This site does not belong to it any more: who removed it.
    #[serde(default)]
    pub removed_by: Option<String>,
    /// Its contents come from this site first, before any other link runs.
    #[serde(default)]
    pub seed_from: Option<String>,
    /// Its links.
    pub links: Vec<LinkStatus>,
}

/// A member of a volume.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its site.
    pub site: String,
    /// Its key, in hex.
    pub key: String,
    /// It makes no changes.
    pub follower: bool,
    /// It may pass on what others change.
    pub may_relay: bool,
    /// It may admit, change and remove members.
    pub may_invite: bool,
}

/// A link.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The other site.
    pub site: String,
    /// Which replicas make changes.
    pub mode: Mode,
    /// How it stands.
    pub state: LinkState,
    /// Age of the oldest change here that is not on the other site's disk for good, in milliseconds; `None`: it has all.
    pub lag_ms: Option<u64>,
    /// At most so many entries are to be sent yet.
    pub backlog_items: u64,
    /// Bytes on their way.
    pub in_flight_bytes: u64,
    /// About so many bytes of contents are not on the other site's disk yet.
    #[serde(default)]
    pub to_go_bytes: u64,
    /// About so many seconds until they are, at the rate of late; `None`: there is nothing to go, or nothing goes.
    #[serde(default)]
    pub time_left_s: Option<u64>,
    /// Bytes sent since the link was started.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Bytes received since then.
    #[serde(default)]
    pub received_bytes: u64,
    /// Bytes sent per second lately.
    #[serde(default)]
    pub sent_bytes_per_s: u64,
    /// When the oldest change was made that is not on the other site's disk, in milliseconds since 1970.
    #[serde(default)]
    pub behind_since_ms: Option<u64>,
    /// Entries that wait at the other site.
    pub waiting_there_items: u64,
    /// What went wrong last, though it may be over.
    pub last_error: Option<String>,
    /// Seconds since then.
    pub last_error_age_s: Option<u64>,
}

/// What is known of a link when its state is to be said.
pub(crate) struct Seen {
    pub(crate) stopped: bool,
    pub(crate) paused: bool,
    pub(crate) volume_runs: bool,
    pub(crate) connected: bool,
    pub(crate) refused: bool,
    /// An attempt has failed since it was connected last, or since the start.
    pub(crate) failed: bool,
    pub(crate) behind: bool,
    /// It was not heard for [`STALLED_AFTER_S`].
    pub(crate) unheard: bool,
}

pub(crate) fn link_state(seen: &Seen) -> LinkState {
    match seen {
        Seen { stopped: true, .. } => LinkState::Stopped,
        Seen { paused: true, .. } => LinkState::Paused,
        Seen { volume_runs: false, .. } => LinkState::VolumeDown,
        Seen { connected: true, unheard: true, .. } => LinkState::Stalled,
        Seen { connected: true, behind: false, .. } => LinkState::InSync,
        Seen { connected: true, .. } => LinkState::CatchingUp,
        Seen { refused: true, .. } => LinkState::Refused,
        Seen { failed: true, .. } => LinkState::Unreachable,
        _ => LinkState::Connecting,
    }
}

/// The first line of a status: what is wrong, worst first, or that nothing is.
pub(crate) fn verdict(volumes: &[VolumeStatus]) -> (bool, String) {
    let mut wrong = Vec::new();
    for volume in volumes {
        if let Some(by) = &volume.removed_by {
            wrong.push(format!("this site was removed from volume {} by {by}", volume.name));
        }
        if let Some(e) = &volume.error {
            wrong.push(format!("volume {} does not run: {e}", volume.name));
        }
    }
    let links = || volumes.iter().flat_map(|v| v.links.iter().map(move |l| (v, l)));
    for state in [
        LinkState::Unreachable,
        LinkState::Stalled,
        LinkState::Refused,
        LinkState::Connecting,
        LinkState::Paused,
        LinkState::Stopped,
    ] {
        let such: Vec<String> = links()
            .filter(|(_, l)| l.state == state)
            .map(|(v, l)| match l.lag_ms {
                Some(ms) => format!("{} of {} (behind by {})", l.site, v.name, age(ms)),
                None => format!("{} of {}", l.site, v.name),
            })
            .collect();
        if !such.is_empty() {
            wrong.push(format!("{}: {}", state.word(), such.join(", ")));
        }
    }
    let waiting: u64 = volumes.iter().map(|v| v.waiting_items.saturating_sub(v.skipped_items)).sum::<u64>()
        + links().map(|(_, l)| l.waiting_there_items).sum::<u64>();
    if waiting > 0 {
        wrong.push(format!("{waiting} entries wait for something: driftless failures"));
    }
    if !wrong.is_empty() {
        return (false, wrong.join("; "));
    }
    if volumes.is_empty() {
        return (true, "nothing to do: there is no volume yet".into());
    }
    if links().next().is_none() {
        return (true, "nothing to do: no volume has a link yet".into());
    }
    let behind = links().filter_map(|(_, l)| l.lag_ms).max();
    match behind {
        Some(ms) => (true, format!("well: catching up, behind by {} at most", age(ms))),
        None => (true, "well: all sites hold everything".into()),
    }
}

/// How long it takes to bring so many bytes there; `None` if there are none, nothing goes, or it has not gone on so long that
/// the rate is that of this.
pub(crate) fn time_left_s(lag_ms: Option<u64>, to_go_bytes: u64, bytes_per_s: u64) -> Option<u64> {
    let known = lag_ms.is_some_and(|ms| u128::from(ms) >= 2 * PACE_OVER.as_millis());
    (known && to_go_bytes > 0 && bytes_per_s > 0).then(|| to_go_bytes.div_ceil(bytes_per_s))
}

/// A duration for people: `0.4 s`, `12 s`, `3 min`, `5 h`, `2 d`.
pub fn age(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        10_000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(links: Vec<LinkStatus>) -> VolumeStatus {
        VolumeStatus {
            name: "data".into(),
            id: "7".into(),
            root: PathText::new(b"/srv/data"),
            follower: false,
            scanned: true,
            waiting_items: 0,
            waiting_by_reason: BTreeMap::new(),
            skipped_items: 0,
            conflicts: 0,
            head: 0,
            recorded: 0,
            received: 0,
            applied_bytes: 0,
            propagation: Propagation::default(),
            error: None,
            members: Vec::new(),
            removed_by: None,
            seed_from: None,
            links,
        }
    }

    fn link(site: &str, state: LinkState, lag_ms: Option<u64>) -> LinkStatus {
        LinkStatus {
            site: site.into(),
            mode: Mode::ActiveActive,
            state,
            lag_ms,
            backlog_items: 0,
            in_flight_bytes: 0,
            to_go_bytes: 0,
            time_left_s: None,
            sent_bytes: 0,
            received_bytes: 0,
            sent_bytes_per_s: 0,
            behind_since_ms: None,
            waiting_there_items: 0,
            last_error: None,
            last_error_age_s: None,
        }
    }

    #[test]
    fn a_verdict_names_what_is_wrong() {
        assert_eq!(verdict(&[]), (true, "nothing to do: there is no volume yet".into()));
        assert_eq!(verdict(&[volume(vec![])]).1, "nothing to do: no volume has a link yet");
        let well = link("bergen", LinkState::InSync, None);
        assert_eq!(verdict(&[volume(vec![well.clone()])]), (true, "well: all sites hold everything".into()));
        let behind = link("paris", LinkState::CatchingUp, Some(1500));
        assert_eq!(
            verdict(&[volume(vec![well.clone(), behind])]),
            (true, "well: catching up, behind by 1.5 s at most".into())
        );
        let away = link("paris", LinkState::Unreachable, Some(200_000));
        assert_eq!(
            verdict(&[volume(vec![well.clone(), away])]),
            (false, "unreachable: paris of data (behind by 3 min)".into())
        );
        let skipped = VolumeStatus { waiting_items: 2, skipped_items: 2, ..volume(vec![well]) };
        assert!(verdict(&[skipped]).0, "somebody knows of it");
        let down = VolumeStatus { error: Some("not mounted".into()), waiting_items: 2, ..volume(vec![]) };
        let (fine, text) = verdict(&[down]);
        assert!(!fine && text.starts_with("volume data does not run: not mounted; 2 entries wait"), "{text}");
    }

    #[test]
    fn what_may_be_lost_is_said_as_precisely_as_it_is_known() {
        let replica = |kept_up_to, announced, known_elsewhere| ReplicaLoss {
            replica: "7".into(),
            kept_up_to,
            announced,
            known_elsewhere,
        };
        let path = |path: &str| LostPath { path: PathText::new(path.as_bytes()), version: "7-1".into() };
        let loss = Loss { site: "oslo".into(), asked: vec!["bergen".into()], ..Loss::default() };
        let nothing = Loss { replicas: vec![replica(8, 8, 8)], ..loss.clone() }.text();
        assert!(
            nothing.contains("oslo is not connected. Asked: bergen. Changes by oslo up to number 8 are"),
            "{nothing}"
        );
        assert!(!nothing.contains("announced") && !nothing.contains("contents of"), "{nothing}");
        let much = Loss {
            heard_ago_s: Some(12),
            not_asked: vec!["tromso".into()],
            replicas: vec![replica(8, 11, 9)],
            paths: vec![path("a"), path("d/b")],
            paths_total: 2,
            ..loss.clone()
        };
        let text = much.text();
        for says in [
            "last heard 12 s ago",
            "could not be asked: tromso",
            "numbers 9 to 11 have not come",
            "knows them up to number 9: wait",
            "of 2 paths: a, d/b; they are lost",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
        let many = Loss { paths: vec![path("p"); 11], paths_total: 11, ..loss };
        assert!(many.text().contains("(--json lists them)"));
    }

    #[test]
    fn the_time_left_follows_from_the_rate() {
        let left_s = |to_go, rate| time_left_s(Some(10_000), to_go, rate);
        assert_eq!((left_s(1000, 100), left_s(1, 100)), (Some(10), Some(1)));
        assert_eq!((left_s(0, 100), left_s(1000, 0)), (None, None));
        assert_eq!((time_left_s(Some(1000), 1000, 100), time_left_s(None, 1000, 100)), (None, None));
    }

    #[test]
    fn what_people_asked_for_comes_first() {
        let seen = Seen {
            stopped: false,
            paused: false,
            volume_runs: true,
            connected: false,
            refused: false,
            failed: false,
            behind: false,
            unheard: false,
        };
        assert_eq!(link_state(&seen), LinkState::Connecting);
        assert_eq!(link_state(&Seen { connected: true, unheard: true, ..seen }), LinkState::Stalled);
        assert_eq!(link_state(&Seen { failed: true, ..seen }), LinkState::Unreachable);
        let seen = Seen { refused: true, failed: true, ..seen };
        assert_eq!(link_state(&seen), LinkState::Refused);
        assert_eq!(link_state(&Seen { volume_runs: false, ..seen }), LinkState::VolumeDown);
        assert_eq!(link_state(&Seen { connected: true, behind: true, ..seen }), LinkState::CatchingUp);
        assert_eq!(link_state(&Seen { paused: true, volume_runs: false, ..seen }), LinkState::Paused);
        for state in LinkState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.word());
        }
    }
}
