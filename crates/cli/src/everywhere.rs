//! Commands that concern all sites of a volume: `why --volume`, `flush`, `link checkpoint`, `failures --retry`; and where the indexes
//! of a node's volumes are, for the commands that read one.

use crate::args::{CommonArgs, FlushArgs};
use crate::error::{CliError, ExitCode};
use crate::node::{ask_node, do_it, unexpected_answer};
use crate::node_args::NodeArgs;
use crate::print::{json_line, path, result_line};
use driftless_daemon::status::{HeldAt, SiteHeld, SiteWhy};
use driftless_daemon::{Answer, Ask};
use driftless_node::api::PathText;
use driftless_node::query::Request;
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// What a node's state directory has and no other.
const NODE_FILE: &str = "node.json";
/// Where the indexes are in it.
const VOLUMES: &str = "volumes";

/// Which state directory and which root a command means.
pub(crate) fn place(common: &CommonArgs) -> Result<(Option<PathBuf>, Option<PathBuf>), CliError> {
    match &common.volume {
        Some(name) => {
            let root = root_of(&node(common), name)?;
            Ok((Some(crate::node::state(&node(common)).join(VOLUMES)), Some(root)))
        }
        None => Ok((indexes(common.state.as_deref()), common.root.clone())),
    }
}

/// The directory with the indexes: of a node, if the given one, or else the one in the environment, is a node's.
pub(crate) fn indexes(given: Option<&Path>) -> Option<PathBuf> {
    let of_node = |dir: &Path| dir.join(NODE_FILE).exists().then(|| dir.join(VOLUMES));
    match given {
        Some(dir) => of_node(dir).or_else(|| Some(dir.to_owned())),
        None => std::env::var_os("DRIFTLESS_STATE").and_then(|dir| of_node(Path::new(&dir))),
    }
}

fn node(common: &CommonArgs) -> NodeArgs {
    NodeArgs { state: common.state.clone(), json: common.json }
}

/// Where a volume's directory is here.
pub(crate) fn root_of(node: &NodeArgs, volume: &str) -> Result<PathBuf, CliError> {
    let Answer::Status(status) = ask_node(node, &Ask::Status)? else { return Err(unexpected_answer()) };
    let found = status.volumes.into_iter().find(|v| v.name == volume);
    let root = found.map(|v| v.root.bytes()).ok_or_else(|| {
        CliError::failed(
            format!("there is no volume {volume} here"),
            "driftless volume list shows what there is",
        )
    })?;
    Ok(OsString::from_vec(root).into())
}

/// `driftless why --volume NAME PATH`: what each site says.
pub(crate) fn why(common: &CommonArgs, volume: &str, wanted: &Path) -> Result<ExitCode, CliError> {
    let node = node(common);
    let root = root_of(&node, volume)?;
    let real = root.canonicalize().unwrap_or_else(|_| root.clone());
    let below = wanted.strip_prefix(&root).or_else(|_| wanted.strip_prefix(&real)).unwrap_or(wanted);
    let Request::Why { path_hex } = Request::why(below.as_os_str().as_bytes()) else {
        return Err(unexpected_answer());
    };
    let found = match ask_node(&node, &Ask::Why { volume: volume.to_owned(), path_hex })? {
        Answer::Why(found) => found,
        Answer::Failed { what, advice } => return Err(CliError::failed(what, advice)),
        _ => return Err(unexpected_answer()),
    };
    let all = found.iter().all(|site| site.newest == Some(true));
    if common.json {
        found.iter().for_each(json_line);
    } else {
        result_line(&path(&below.display().to_string()));
        found.iter().for_each(print_site);
    }
    Ok(if all { ExitCode::InSync } else { ExitCode::Waiting })
}

fn print_site(site: &SiteWhy) {
    let name = path(&site.site);
    let Some(why) = &site.why else {
        let link = site.link.map_or_else(String::new, |l| format!("{}, ", l.word()));
        let error = site.error.as_deref().unwrap_or("it did not answer");
        return result_line(&format!("  {name:<16} not known: {link}{}", path(error)));
    };
    let has = match site.newest {
        Some(true) => "has the newest version",
        Some(false) => "has not the newest version",
        None => "not known",
    };
    result_line(&format!("  {name:<16} {has}"));
    for wait in &why.waits {
        let detail = if wait.detail.is_empty() { String::new() } else { format!(": {}", path(&wait.detail)) };
        result_line(&format!("    waits since {}: {}{detail}", wait.since, wait.reason.words()));
        result_line(&format!("    tried again {}; {}", wait.retry, wait.advice));
    }
    if site.newest == Some(false) && why.waits.is_empty() {
        let text = match why.claimants.is_empty() {
            true => "it has not heard of it yet, or leaves it out; its link says how far it is",
            false => "it is on its way",
        };
        result_line(&format!("    {text}"));
    }
    why.summary.iter().filter(|_| why.waits.is_empty()).for_each(|line| result_line(&format!("    {line}")));
}

/// `driftless flush`: all volumes, or one.
pub(crate) fn flush(args: &FlushArgs) -> Result<ExitCode, CliError> {
    let Answer::Status(status) = ask_node(&args.node, &Ask::Status)? else { return Err(unexpected_answer()) };
    let all = status.volumes.into_iter().map(|v| v.name);
    let volumes: Vec<String> = match &args.volume {
        Some(volume) => vec![volume.clone()],
        None => all.collect(),
    };
    let mut code = ExitCode::InSync;
    for volume in volumes {
        if checkpoint(&args.node, &volume, None, args.timeout)? != ExitCode::InSync {
            code = ExitCode::Waiting;
        }
    }
    Ok(code)
}

/// Waits until sites hold what was changed before now, and says which do.
pub(crate) fn checkpoint(
    node: &NodeArgs,
    volume: &str,
    to: Option<String>,
    timeout_s: u64,
) -> Result<ExitCode, CliError> {
    let (held, waiting_here) = match ask_node(node, &Ask::Flush { volume: volume.to_owned(), to, timeout_s })?
    {
        Answer::Flushed { held, waiting_here } => (held, waiting_here),
        Answer::Failed { what, advice } => return Err(CliError::failed(what, advice)),
        _ => return Err(unexpected_answer()),
    };
    let reached = held.iter().all(|site| site.at == HeldAt::Held);
    let clean = reached && waiting_here == 0 && held.iter().all(|site| site.waiting == 0);
    if node.json {
        json_line(
            &json!({ "volume": volume, "reached": reached, "sites": held, "waiting_here": waiting_here }),
        );
    } else {
        print_held(volume, &held, waiting_here, (reached, clean));
    }
    Ok(if clean { ExitCode::InSync } else { ExitCode::Waiting })
}

fn print_held(volume: &str, held: &[SiteHeld], waiting_here: u64, (reached, clean): (bool, bool)) {
    result_line(&match (reached, clean, held.is_empty()) {
        (_, _, true) => format!("{volume}: no other site has it"),
        (true, true, _) => format!("{volume}: done, every site holds what was changed before"),
        (true, false, _) => format!("{volume}: done except these"),
        (false, ..) => format!("{volume}: not done in time"),
    });
    for site in held {
        let at = match site.at {
            HeldAt::Held => "holds it",
            HeldAt::Behind => "is behind",
            HeldAt::Unreachable => "cannot be reached",
        };
        let waits = match site.waiting {
            0 => String::new(),
            n => {
                format!(", but for {n} entries that wait there (driftless failures at {})", path(&site.site))
            }
        };
        result_line(&format!("  {:<16} {at}{waits}", path(&site.site)));
    }
    if waiting_here > 0 {
        result_line(&format!("  {waiting_here} entries wait here: driftless failures --volume {volume}"));
    }
}

/// `driftless failures --skip PATH --volume NAME`.
pub(crate) fn skip(common: &CommonArgs, what: &Path) -> Result<ExitCode, CliError> {
    let Some(volume) = &common.volume else {
        return Err(CliError::usage(
            "--skip needs --volume",
            "a sync in the foreground has nobody who skips",
        ));
    };
    let node = node(common);
    let root = root_of(&node, volume)?;
    let real = root.canonicalize().unwrap_or_else(|_| root.clone());
    let below = what.strip_prefix(&root).or_else(|_| what.strip_prefix(&real)).unwrap_or(what);
    let what = PathText::new(below.as_os_str().as_bytes());
    do_it(&node, &Ask::Skip { volume: volume.clone(), what })
}

/// `driftless failures --retry --volume NAME`.
pub(crate) fn retry(common: &CommonArgs) -> Result<ExitCode, CliError> {
    match &common.volume {
        Some(volume) => do_it(&node(common), &Ask::Retry { volume: volume.clone() }),
        None => {
            Err(CliError::usage("--retry needs --volume", "a sync in the foreground tries again by itself"))
        }
    }
}
