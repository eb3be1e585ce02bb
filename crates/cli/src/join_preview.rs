//! `driftless site join TOKEN --dry-run`: what would be if this site joined. The inviting site lists what the volume shows, the
//! directory here is read, and the two are compared by path; nothing is written anywhere, and the invitation stays good.

use crate::error::{CliError, ExitCode};
use crate::node::{ask_node, unexpected_answer};
use crate::node_args::NodeArgs;
use crate::print::{json_line, path, result_line};
use crate::units::count;
use driftless_core::meta::{Content, Time};
use driftless_core::{Kind, Name};
use driftless_daemon::control::{Offer, OfferedVolume};
use driftless_daemon::{Answer, Ask};
use driftless_node::api::PathText;
use driftless_node::query::ListedRow;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// How a path compares. A closed list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Class {
    /// The same at both.
    Equal,
    /// The volume has it not.
    OnlyHere,
    /// This directory has it not.
    OnlyThere,
    /// Something else is at the path in the volume.
    Different,
    /// It could not be read here.
    Unreadable,
}

impl Class {
    const ALL: [Class; 5] =
        [Class::Equal, Class::OnlyHere, Class::OnlyThere, Class::Different, Class::Unreadable];

    fn word(self) -> &'static str {
        match self {
            Class::Equal => "equal",
            Class::OnlyHere => "only here",
            Class::OnlyThere => "only there",
            Class::Different => "different",
            Class::Unreadable => "unreadable",
        }
    }

    /// What joining would do about it.
    fn then(self, follower: bool) -> &'static str {
        match (self, follower) {
            (Class::Equal, _) => "stay as they are, nothing is copied",
            (Class::OnlyHere, false) => "would go to the other sites",
            (Class::OnlyHere, true) => "would stay here only, listed as drift",
            (Class::OnlyThere, _) => "would come here",
            (Class::Different, false) => {
                "would both be kept: the newer has the name, the other stays beside it as a conflict copy"
            }
            (Class::Different, true) => "would stay as they are here, listed as drift",
            (Class::Unreadable, _) => "would wait until they can be read",
        }
    }
}

/// Compares each directory with its volume; without any, says what the invitation is for.
pub(crate) fn run(
    token: &str,
    wanted: &[(String, PathText)],
    seed_from: Option<&str>,
    all: bool,
    node: &NodeArgs,
) -> Result<ExitCode, CliError> {
    let offer = ask(node, token, None, None)?;
    for volume in &offer.volumes {
        check_seed(volume, seed_from)?;
        if wanted.is_empty() {
            print_offer(&offer.site, volume, node.json);
        }
    }
    for (name, root) in wanted {
        let Some(volume) = offer.volumes.iter().find(|v| v.name == *name) else {
            let names: Vec<&str> = offer.volumes.iter().map(|v| v.name.as_str()).collect();
            return Err(CliError::failed(
                format!("the invitation is not for a volume {name}; it is for: {}", names.join(", ")),
                "name one of these with --dir VOLUME=DIR",
            ));
        };
        let there = listing(node, token, (name.clone(), root.clone()))?;
        let found = compare(&directory(root), there)?;
        print_comparison(volume, root, &found, (node.json, all));
    }
    if !node.json {
        result_line("nothing was changed, here or there; the invitation is still good");
    }
    Ok(ExitCode::InSync)
}

fn check_seed(volume: &OfferedVolume, seed_from: Option<&str>) -> Result<(), CliError> {
    match seed_from {
        Some(site) if !volume.members.iter().any(|m| m == site) => Err(CliError::failed(
            format!(
                "{site} is no member of volume {}; its members are: {}",
                volume.name,
                volume.members.join(", ")
            ),
            "name one of these with --seed-from",
        )),
        _ => Ok(()),
    }
}

fn ask(
    node: &NodeArgs,
    token: &str,
    volume: Option<(String, PathText)>,
    after: Option<driftless_node::query::Cursor>,
) -> Result<Offer, CliError> {
    match ask_node(node, &Ask::Preview { token: token.to_owned(), volume, after })? {
        Answer::Offer(offer) => Ok(*offer),
        Answer::Failed { what, advice } => Err(CliError::failed(what, advice)),
        _ => Err(unexpected_answer()),
    }
}

/// Everything that the volume shows, by path.
fn listing(
    node: &NodeArgs,
    token: &str,
    wanted: (String, PathText),
) -> Result<BTreeMap<Vec<u8>, ListedRow>, CliError> {
    let (mut found, mut after) = (BTreeMap::new(), None);
    loop {
        let page = ask(node, token, Some(wanted.clone()), after)?.page.ok_or_else(unexpected_answer)?;
        found.extend(page.rows.into_iter().map(|row| (row.path.bytes(), row)));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}

fn directory(root: &PathText) -> PathBuf {
    OsString::from_vec(root.bytes()).into()
}

/// Each path of either, and how it compares.
fn compare(
    root: &Path,
    mut there: BTreeMap<Vec<u8>, ListedRow>,
) -> Result<BTreeMap<Vec<u8>, Class>, CliError> {
    let unreadable = |e: io::Error| {
        CliError::failed(
            format!("{} cannot be read: {e}", root.display()),
            "name a directory that this user may read",
        )
    };
    let device = fs::metadata(root).map_err(unreadable)?.dev();
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if dir == root => return Err(unreadable(e)),
            Err(_) => {
                found.insert(below(root, &dir), Class::Unreadable);
                continue;
            }
        };
        for entry in entries.flatten() {
            // Names of our own are no part of a volume.
            if Name::new(entry.file_name().as_bytes()).is_err() {
                continue;
            }
            let path = entry.path();
            let key = below(root, &path);
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let row = there.remove(&key);
            let class = class_of(&path, &metadata, row.as_ref()).unwrap_or(Class::Unreadable);
            found.insert(key, class);
            // What is mounted there is another volume's.
            if metadata.is_dir() && metadata.dev() == device {
                todo.push(path);
            }
        }
    }
    found.extend(there.into_keys().map(|key| (key, Class::OnlyThere)));
    Ok(found)
}

fn below(root: &Path, path: &Path) -> Vec<u8> {
    path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes().to_vec()
}

fn class_of(path: &Path, metadata: &Metadata, row: Option<&ListedRow>) -> io::Result<Class> {
    let Some(row) = row else { return Ok(Class::OnlyHere) };
    let kind = kind_of(metadata);
    if kind.word() != row.kind {
        return Ok(Class::Different);
    }
    let mtime = Time { sec: 0, nsec: 0 };
    let identity = match kind {
        Kind::Dir => return Ok(Class::Equal),
        Kind::File if metadata.len() != row.size => return Ok(Class::Different),
        Kind::File => {
            let digest = driftless_volume::open_source(path).and_then(|file| file.digest());
            match digest.map_err(|e| io::Error::other(e.to_string()))? {
                Some(digest) => digest,
                None => return Ok(Class::Different),
            }
        }
        Kind::Symlink => {
            let target = fs::read_link(path)?;
            let target = target.as_os_str().as_bytes();
            Content::Symlink { target: target.into(), mtime }.identity()
        }
        _ => Content::Special { rdev: metadata.rdev(), mtime }.identity(),
    };
    let hex: String = identity.0.iter().map(|b| format!("{b:02x}")).collect();
    Ok(if hex == row.identity { Class::Equal } else { Class::Different })
}

fn kind_of(metadata: &Metadata) -> Kind {
    let t = metadata.file_type();
    match () {
        () if t.is_dir() => Kind::Dir,
        () if t.is_symlink() => Kind::Symlink,
        () if t.is_fifo() => Kind::Fifo,
        () if t.is_socket() => Kind::Socket,
        () if t.is_char_device() => Kind::CharDev,
        () if t.is_block_device() => Kind::BlockDev,
        () => Kind::File,
    }
}

fn print_offer(site: &str, volume: &OfferedVolume, json: bool) {
    if json {
        return json_line(&serde_json::json!({
            "volume": volume.name, "site": site, "follower": volume.follower, "members": volume.members,
        }));
    }
    let role = if volume.follower { "follow in" } else { "make changes in" };
    let members = volume.members.join(", ");
    result_line(&format!(
        "{site} offers volume {}: this site would {role} it; sites that have it: {members}",
        volume.name
    ));
}

fn print_comparison(
    volume: &OfferedVolume,
    root: &PathText,
    found: &BTreeMap<Vec<u8>, Class>,
    (json, all): (bool, bool),
) {
    let of = |class| found.values().filter(|c| **c == class).count() as u64;
    if json {
        let [equal, only_here, only_there, different, unreadable] = Class::ALL.map(of);
        json_line(&serde_json::json!({
            "volume": volume.name, "root": root, "follower": volume.follower, "equal": equal, "only_here": only_here,
            "only_there": only_there, "different": different, "unreadable": unreadable,
        }));
        for (key, class) in found {
            json_line(
                &serde_json::json!({ "volume": volume.name, "path": PathText::new(key), "class": class }),
            );
        }
        return;
    }
    result_line(&format!("volume {} in {}, if this site joined:", volume.name, path(&root.text)));
    for class in Class::ALL.into_iter().filter(|class| of(*class) > 0 || *class != Class::Unreadable) {
        let n = count(of(class));
        result_line(&format!("  {n:>9} {:<10} {}", class.word(), class.then(volume.follower)));
    }
    for class in Class::ALL.into_iter().filter(|class| all || *class != Class::Equal) {
        for (key, _) in found.iter().filter(|(_, c)| **c == class) {
            result_line(&format!("{:<11} {}", class.word(), path(&PathText::new(key).text)));
        }
    }
    if !all && of(Class::Equal) > 0 {
        result_line("(--all lists what is equal, too)");
    }
}
