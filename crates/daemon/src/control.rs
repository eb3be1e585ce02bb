//! What commands ask of a running node, and the socket by which they do: `control.sock` in the state directory, one JSON line
//! in, one out. Only the user that runs the node can connect.

use crate::accept::{self, Stop};
use crate::records::{Admission, Mode};
use crate::settings::{LinkSettings, VolumeSettings};
use crate::status::{Loss, NodeStatus, SiteHeld, SiteWhy};
use driftless_node::api::PathText;
use driftless_node::control::short;
use driftless_node::query::{Cursor, ListedRow, Page};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The socket in the state directory.
const SOCKET: &str = "control.sock";
/// Longest question, in bytes: a path with room.
const ASK_LEN_MAX: u64 = 64 << 10;
/// Longest answer that is read, in bytes: the status of many links.
const ANSWER_LEN_MAX: u64 = 64 << 20;
/// A client that says nothing for so long is left.
const CLIENT_IDLE_MAX: Duration = Duration::from_secs(5);
/// How long a command waits: a join talks to another site meanwhile, a failover asks all.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// Clients that are answered at once.
const CLIENTS_MAX: usize = 32;

/// What is asked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// How everything stands.
    Status,
    /// A token for another site.
    Invite {
        /// Volumes that come with it.
        volumes: Vec<String>,
        /// What the site may do in them.
        admission: Admission,
        /// Seconds until it expires.
        expires_s: u64,
    },
    /// Become known to the site that gave this token.
    Join {
        /// The token.
        token: String,
        /// Volumes to have here, and where.
        volumes: Vec<(String, PathText)>,
        /// The member that they come from first.
        #[serde(default)]
        seed_from: Option<String>,
    },
    /// What would be if this site joined; nothing is changed, here or there.
    Preview {
        /// The token.
        token: String,
        /// A volume, what it shows, and the directory that it would come to.
        volume: Option<(String, PathText)>,
        /// Where the part before ended.
        after: Option<Cursor>,
    },
    /// Remove a site from all volumes for good.
    RemoveSite {
        /// Its name.
        name: String,
    },
    /// Another key for this site.
    Rekey {
        /// One that is nobody's successor.
        fresh: bool,
    },
    /// Change what a member does in a volume.
    Role {
        /// The volume.
        volume: String,
        /// The member's site.
        site: String,
        /// It makes no changes any more; else it makes some.
        follower: bool,
    },
    /// Have another site write instead of this one, once it holds everything.
    Switchover {
        /// The volume.
        volume: String,
        /// The site.
        to: String,
        /// How long that may take.
        timeout_s: u64,
    },
    /// Write here instead of at a site that is gone.
    Failover {
        /// The volume.
        volume: String,
        /// That site; `None`: the only other writer.
        from: Option<String>,
        /// Do it; else only say what it means.
        yes: bool,
    },
    /// Set aside what this site has beyond its Cut, and go on.
    Rejoin {
        /// The volume.
        volume: String,
    },
    /// A volume that begins here, or, with `from`, that is had from another site.
    AddVolume {
        /// Its name.
        name: String,
        /// Its directory.
        root: PathText,
        /// The site that has it.
        from: Option<String>,
        /// The member that it comes from first.
        #[serde(default)]
        seed_from: Option<String>,
        /// What is set of it here from the beginning.
        #[serde(default)]
        settings: VolumeSettings,
    },
    /// Forget a volume. Its files stay.
    RemoveVolume {
        /// Its name.
        name: String,
    },
    /// Do what the guards of a volume hold: many removals, or a tree that went back to an earlier state.
    Approve {
        /// The volume.
        name: String,
        /// Newer versions come back from other sites instead.
        heal: bool,
    },
    /// What each site says of a path of a volume.
    Why {
        /// The volume.
        volume: String,
        /// Bytes of the path below its root, in hex.
        path_hex: String,
    },
    /// Wait until other sites hold what was changed here before now.
    Flush {
        /// The volume.
        volume: String,
        /// Only this one, which is linked; else all there are.
        to: Option<String>,
        /// Seconds to wait at most.
        timeout_s: u64,
    },
    /// Do not try something that waits here again, until it changes or everything is tried.
    Skip {
        /// The volume.
        volume: String,
        /// Its path below the root, or its entry's id.
        what: PathText,
    },
    /// Try what waits here at once, what was skipped too.
    Retry {
        /// The volume.
        volume: String,
    },
    /// Change what is set of a volume here; what is not said stays.
    SetVolume {
        /// The volume.
        name: String,
        /// New values.
        settings: VolumeSettings,
    },
    /// Change what is set of a link; what is not said stays.
    SetLink {
        /// The volume.
        volume: String,
        /// The site.
        to: String,
        /// New values.
        settings: LinkSettings,
    },
    /// Link a volume to a site, which may have it from then on.
    CreateLink {
        /// The volume.
        volume: String,
        /// The site.
        to: String,
        /// Who makes changes.
        mode: Mode,
        /// For what is sent to it.
        #[serde(default)]
        settings: LinkSettings,
        /// Patterns that it begins with.
        #[serde(default)]
        filter: Option<String>,
    },
    /// Change what is wanted of a link.
    Link {
        /// The volume.
        volume: String,
        /// The site.
        to: String,
        /// What.
        verb: LinkVerb,
    },
}

/// What can be done with a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkVerb {
    /// Run it.
    Start,
    /// End it until it is started; the other site is told that it is stopped here.
    Stop,
    /// Pass nothing on for a while; the connection ends.
    Pause,
    /// Go on.
    Resume,
    /// Forget it: the other site may not have the volume from here any more.
    Remove,
}

/// What is answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done; a sentence for people.
    Done(String),
    /// See [`Ask::Invite`].
    Token(String),
    /// What would be lost, for people to agree to.
    Plan(Box<Loss>),
    /// See [`Ask::Preview`].
    Offer(Box<Offer>),
    /// See [`Ask::Status`].
    Status(Box<NodeStatus>),
    /// See [`Ask::Why`].
    Why(Vec<SiteWhy>),
    /// See [`Ask::Flush`].
    Flushed {
        /// Which sites hold it.
        held: Vec<SiteHeld>,
        /// Entries that wait here: no site gets them from here.
        waiting_here: u64,
    },
    /// It could not be done: what, and what to do.
    Failed {
        /// What happened.
        what: String,
        /// What to do.
        advice: String,
    },
}

/// What an invitation offers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The site that has given it.
    pub site: String,
    /// Volumes that it is for.
    pub volumes: Vec<OfferedVolume>,
    /// A part of what the volume that was asked for shows.
    pub page: Option<Page<ListedRow>>,
}

/// A volume of an invitation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OfferedVolume {
    /// Its name.
    pub name: String,
    /// The site would make no changes in it.
    pub follower: bool,
    /// Sites that have it.
    pub members: Vec<String>,
}

impl Answer {
    pub(crate) fn failed(what: impl Into<String>, advice: impl Into<String>) -> Answer {
        Answer::Failed { what: what.into(), advice: advice.into() }
    }
}

/// Answers on the socket until dropped.
pub(crate) struct ControlServer {
    path: PathBuf,
    stop: Stop,
}

impl ControlServer {
    pub(crate) fn start(
        state: &Path,
        answer: impl Fn(Ask) -> Answer + Send + Sync + 'static,
    ) -> io::Result<ControlServer> {
        let path = state.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = short(&path, UnixListener::bind)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let accept = move || listener.accept().map(|(client, _)| client);
        // What goes wrong with one client is that client's business.
        let served = move |client| drop(serve(client, &answer));
        let stop = accept::start("control", CLIENTS_MAX, accept, served)?;
        Ok(ControlServer { path, stop })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.set();
        // Wakes the thread out of `accept`; if it cannot be woken it ends with the process.
        let _ = short(&self.path, UnixStream::connect);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(client: UnixStream, answer: &impl Fn(Ask) -> Answer) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_IDLE_MAX))?;
    client.set_write_timeout(Some(CLIENT_IDLE_MAX))?;
    let mut line = Vec::new();
    BufReader::new((&client).take(ASK_LEN_MAX)).read_until(b'\n', &mut line)?;
    let said = match serde_json::from_slice(&line) {
        Ok(ask) => answer(ask),
        Err(e) => Answer::failed(
            format!("the node does not understand what was asked: {e}"),
            "the command and the running node are of different versions: restart the node",
        ),
    };
    let mut bytes = serde_json::to_vec(&said)?;
    bytes.push(b'\n');
    (&client).write_all(&bytes)
}

/// Asks the node whose state directory this is.
///
/// # Errors
/// If none runs, or it does not answer.
pub fn ask(state: &Path, ask: &Ask) -> io::Result<Answer> {
    let stream = short(&state.join(SOCKET), UnixStream::connect)?;
    let waits = match ask {
        Ask::Flush { timeout_s, .. } | Ask::Switchover { timeout_s, .. } => Duration::from_secs(*timeout_s),
        _ => Duration::ZERO,
    };
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX.saturating_add(waits)))?;
    let mut bytes = serde_json::to_vec(ask)?;
    bytes.push(b'\n');
    (&stream).write_all(&bytes)?;
    let mut line = Vec::new();
    BufReader::new((&stream).take(ANSWER_LEN_MAX)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}
