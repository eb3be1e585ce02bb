//! Commands that ask a running node: `status`, `site`, `volume`, `link`.

use crate::error::{CliError, ExitCode};
use crate::everywhere;
use crate::join_preview;
use crate::node_args::{
    FailoverArgs, LinkArgs, LinkCommand, LinkName, ModeArg, NodeArgs, RejoinArgs, RoleArg, SiteArgs,
    SiteCommand, StatusArgs, SwitchoverArgs, VolumeArgs, VolumeCommand,
};
use crate::settings_args::filter;
use crate::units;
use driftless_daemon::config::DEFAULT_STATE;
use driftless_daemon::control::LinkVerb;
use driftless_daemon::status::{LinkState, LinkStatus, NodeStatus, age};
use driftless_daemon::{Admission, Answer, Ask, Mode, ask, init};
use driftless_node::api::PathText;
use serde_json::json;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

pub(crate) fn status(args: &StatusArgs) -> Result<ExitCode, CliError> {
    loop {
        if args.watch && !args.node.json && io::stdout().is_terminal() {
            // Home, and clear what is below: no flicker.
            print!("\x1b[H\x1b[J");
        }
        let code = show(&args.node, &print_status)?;
        if !args.watch {
            return Ok(code);
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

pub(crate) fn site(args: SiteArgs) -> Result<ExitCode, CliError> {
    match args.command {
        SiteCommand::Init { name, listen, node } => {
            let key = init(&state(&node), &name, listen.as_deref())?;
            match node.json {
                true => println!("{}", json!({ "name": name, "key": key.to_string() })),
                false => println!("this site is {name}, its key {}", key.short()),
            }
            Ok(ExitCode::InSync)
        }
        SiteCommand::Invite { volumes, mode, no_relay, no_invite, expires, node } => {
            let admission = Admission { mode: mode.into(), may_relay: !no_relay, may_invite: !no_invite };
            do_it(&node, &Ask::Invite { volumes, admission, expires_s: expires })
        }
        SiteCommand::Join { token, volumes, dry_run, all, seed_from, node } => {
            let volumes = volumes.iter().map(|v| volume_dir(v)).collect::<Result<Vec<_>, _>>()?;
            match dry_run {
                true => join_preview::run(&token, &volumes, seed_from.as_deref(), all, &node),
                false => do_it(&node, &Ask::Join { token, volumes, seed_from }),
            }
        }
        SiteCommand::Rekey { fresh, node } => do_it(&node, &Ask::Rekey { fresh }),
        SiteCommand::List(node) => show(&node, &print_sites),
        SiteCommand::Status(node) => show(&node, &print_status),
        SiteCommand::Remove { name, node } => do_it(&node, &Ask::RemoveSite { name }),
    }
}

pub(crate) fn volume(args: VolumeArgs) -> Result<ExitCode, CliError> {
    match args.command {
        VolumeCommand::Add { name, dir, from, seed_from, settings, node } => {
            let settings = settings.settings()?;
            do_it(&node, &Ask::AddVolume { name, root: absolute(&dir)?, from, seed_from, settings })
        }
        VolumeCommand::Config { name, settings, node } => {
            do_it(&node, &Ask::SetVolume { name, settings: settings.settings()? })
        }
        VolumeCommand::List(node) => show(&node, &print_volumes),
        VolumeCommand::Approve { name, heal, node } => do_it(&node, &Ask::Approve { name, heal }),
        VolumeCommand::Role { volume, site, role, node } => {
            do_it(&node, &Ask::Role { volume, site, follower: role == RoleArg::Follower })
        }
        VolumeCommand::Remove { name, node } => do_it(&node, &Ask::RemoveVolume { name }),
    }
}

pub(crate) fn switchover(args: SwitchoverArgs) -> Result<ExitCode, CliError> {
    do_it(&args.node, &Ask::Switchover { volume: args.volume, to: args.to, timeout_s: args.timeout })
}

/// Says what may be lost, and asks, unless told not to.
pub(crate) fn failover(args: FailoverArgs) -> Result<ExitCode, CliError> {
    let FailoverArgs { volume, from, yes, node } = args;
    let asked = |yes| Ask::Failover { volume: volume.clone(), from: from.clone(), yes };
    if yes {
        return do_it(&node, &asked(true));
    }
    match ask_node(&node, &asked(false))? {
        Answer::Plan(loss) if node.json => {
            println!("{}", json!(loss));
            Ok(ExitCode::Waiting)
        }
        Answer::Plan(loss) if io::stdin().is_terminal() => {
            println!("{}.", loss.text());
            print!("Go on? [y/N] ");
            io::stdout().flush().map_err(|e| CliError::failed(e.to_string(), "give --yes"))?;
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).map_err(|e| CliError::failed(e.to_string(), "give --yes"))?;
            match answer.trim() {
                "y" | "Y" | "yes" => do_it(&node, &asked(true)),
                _ => Err(CliError::failed("nothing was changed", "answer y to go on")),
            }
        }
        Answer::Plan(loss) => {
            Err(CliError::failed(format!("{}. Nothing was changed", loss.text()), "give --yes to do it"))
        }
        Answer::Failed { what, advice } => Err(CliError::failed(what, advice)),
        _ => Err(CliError::failed("the node answers something else", "restart it: it is of another version")),
    }
}

pub(crate) fn rejoin(args: RejoinArgs) -> Result<ExitCode, CliError> {
    do_it(&args.node, &Ask::Rejoin { volume: args.volume })
}

pub(crate) fn link(args: LinkArgs) -> Result<ExitCode, CliError> {
    let verb = |LinkName { volume, to, node }: LinkName, verb| do_it(&node, &Ask::Link { volume, to, verb });
    match args.command {
        LinkCommand::Create { link: LinkName { volume, to, node }, mode, filter_from, settings } => {
            let (settings, filter) = (settings.into(), filter(filter_from.as_deref())?);
            do_it(&node, &Ask::CreateLink { volume, to, mode: mode.into(), settings, filter })
        }
        LinkCommand::Config { link: LinkName { volume, to, node }, settings } => {
            do_it(&node, &Ask::SetLink { volume, to, settings: settings.into() })
        }
        LinkCommand::Checkpoint { link: LinkName { volume, to, node }, timeout } => {
            everywhere::checkpoint(&node, &volume, Some(to), timeout)
        }
        LinkCommand::Start(name) => verb(name, LinkVerb::Start),
        LinkCommand::Stop(name) => verb(name, LinkVerb::Stop),
        LinkCommand::Pause(name) => verb(name, LinkVerb::Pause),
        LinkCommand::Resume(name) => verb(name, LinkVerb::Resume),
        LinkCommand::Remove(name) => verb(name, LinkVerb::Remove),
        LinkCommand::Status(node) => show(&node, &print_status),
    }
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Mode {
        match mode {
            ModeArg::ActiveActive => Mode::ActiveActive,
            ModeArg::ActivePassive => Mode::ActivePassive,
        }
    }
}

pub(crate) fn state(node: &NodeArgs) -> PathBuf {
    let env = || std::env::var_os("DRIFTLESS_STATE").map(PathBuf::from);
    node.state.clone().or_else(env).unwrap_or_else(|| DEFAULT_STATE.into())
}

/// `data=/srv/data`.
fn volume_dir(text: &str) -> Result<(String, PathText), CliError> {
    let (volume, dir) = text.split_once('=').ok_or_else(|| {
        CliError::usage(format!("{text:?} is not VOLUME=DIR"), "as in --dir data=/srv/data")
    })?;
    Ok((volume.to_owned(), absolute(Path::new(dir))?))
}

/// The node has another working directory.
fn absolute(dir: &Path) -> Result<PathText, CliError> {
    let path = std::path::absolute(dir)
        .map_err(|e| CliError::usage(format!("{}: {e}", dir.display()), "name a directory"))?;
    Ok(PathText::new(path.as_os_str().as_bytes()))
}

pub(crate) fn ask_node(node: &NodeArgs, what: &Ask) -> Result<Answer, CliError> {
    let state = state(node);
    ask(&state, what).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CliError::failed(
            format!("no node runs with the state in {}", state.display()),
            "start it: driftless serve; or name its state directory with --state",
        ),
        _ => CliError::failed(
            format!("the node with the state in {} does not answer: {e}", state.display()),
            "commands need the rights of the user that runs the node",
        ),
    })
}

pub(crate) fn unexpected_answer() -> CliError {
    CliError::failed("the node answers something else", "restart it: it is of another version")
}

pub(crate) fn do_it(node: &NodeArgs, what: &Ask) -> Result<ExitCode, CliError> {
    match ask_node(node, what)? {
        Answer::Done(text) => match node.json {
            true => println!("{}", json!({ "done": text })),
            false => println!("{text}"),
        },
        Answer::Token(token) => match node.json {
            true => println!("{}", json!({ "token": token })),
            false => println!("{token}"),
        },
        Answer::Status(status) => println!("{}", json!(status)),
        Answer::Why(_) | Answer::Flushed { .. } | Answer::Offer(_) | Answer::Plan(_) => {
            return Err(unexpected_answer());
        }
        Answer::Failed { what, advice } => return Err(CliError::failed(what, advice)),
    }
    Ok(ExitCode::InSync)
}

fn show(node: &NodeArgs, print: &dyn Fn(&NodeStatus)) -> Result<ExitCode, CliError> {
    let status = match ask_node(node, &Ask::Status)? {
        Answer::Status(status) => status,
        Answer::Failed { what, advice } => return Err(CliError::failed(what, advice)),
        _ => return Err(unexpected_answer()),
    };
    match node.json {
        true => println!("{}", json!(status)),
        false => print(&status),
    }
    Ok(if status.well { ExitCode::InSync } else { ExitCode::Waiting })
}

fn print_status(status: &NodeStatus) {
    println!("{}", status.verdict);
    println!(
        "site {}, up {}, listens at {}",
        status.name,
        age(status.uptime_s.saturating_mul(1000)),
        status.listen
    );
    for volume in &status.volumes {
        let role = if volume.follower { ", follows" } else { "" };
        println!("\nvolume {}  {}{role}", volume.name, volume.root.text);
        if let Some(site) = &volume.seed_from {
            println!("  takes everything from {site} first");
        }
        if volume.waiting_items > 0 {
            let skipped = match volume.skipped_items {
                0 => String::new(),
                n => format!(", {n} of them skipped"),
            };
            println!(
                "  {} entries wait here{skipped}: driftless failures --volume {}",
                volume.waiting_items, volume.name
            );
        }
        for link in &volume.links {
            println!("  {}", link_line(link));
            if let (Some(error), Some(ago)) = (&link.last_error, link.last_error_age_s)
                && link.state != LinkState::InSync
            {
                println!("    last error, {} ago: {error}", age(ago.saturating_mul(1000)));
            }
        }
    }
}

fn link_line(link: &LinkStatus) -> String {
    let lag = link.lag_ms.map_or_else(|| "holds everything".into(), |ms| format!("behind by {}", age(ms)));
    let mut line = format!("{:<16} {:<12} {lag}", link.site, link.state.word());
    if link.backlog_items > 0 || link.in_flight_bytes > 0 {
        line += &format!(
            ", at most {} entries to go, {} bytes on their way",
            link.backlog_items, link.in_flight_bytes
        );
        if link.sent_bytes_per_s > 0 {
            line += &format!(", {}/s", units::bytes(link.sent_bytes_per_s));
        }
    }
    if link.to_go_bytes > 0 {
        line += &match link.time_left_s {
            Some(left_s) => format!(", about {} left", units::span(left_s)),
            None => ", time left unknown".into(),
        };
    }
    if link.waiting_there_items > 0 {
        line += &format!(", {} entries wait there", link.waiting_there_items);
    }
    line
}

fn print_volumes(status: &NodeStatus) {
    for volume in &status.volumes {
        let links: Vec<&str> = volume.links.iter().map(|l| l.site.as_str()).collect();
        let role = if volume.follower { "follower" } else { "writer" };
        println!("{:<16} {role:<9} {:<32} {}", volume.name, volume.root.text, links.join(","));
    }
}

fn print_sites(status: &NodeStatus) {
    println!(
        "{:<16} {:<14} {:<18} this site, {}",
        status.name,
        "-",
        &status.key[..16.min(status.key.len())],
        status.listen
    );
    for site in &status.sites {
        let connected = if site.connected { "connected" } else { "not connected" };
        let key = &site.key[..16.min(site.key.len())];
        println!(
            "{:<16} {connected:<14} {key:<18} {} {}",
            site.name,
            site.addresses.join(","),
            site.volumes.join(",")
        );
    }
    for volume in &status.volumes {
        for member in &volume.members {
            let role = if member.follower { "follower" } else { "writer" };
            let relay = if member.may_relay { "" } else { ", may not relay" };
            let invite = if member.may_invite { "" } else { ", may not invite" };
            println!("{:<16} {:<14} {role}{relay}{invite}", member.site, volume.name);
        }
    }
}
