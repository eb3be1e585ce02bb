//! Programs that keep a file open while the other side replaces, removes or renames it: no byte they write before they
//! close it is lost.

use crate::common::*;
use driftless_testkit::{WRITER_FILE_LEN, Writer, WriterKind as Kind};
use driftless_volume::{Directory, OpenOptions};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What is in the file when it is opened.
const BEFORE: [u8; WRITER_FILE_LEN] = [b'.'; WRITER_FILE_LEN];

/// What the other side does to the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    Replace,
    Remove,
    Rename,
    RenameOver,
    BecomeDirectory,
}

const DEEDS: [Deed; 5] = [Deed::Replace, Deed::Remove, Deed::Rename, Deed::RenameOver, Deed::BecomeDirectory];

impl Deed {
    fn act(self, root: &Path) {
        let file = root.join("dir/file");
        match self {
            Deed::Replace => {
                fs::write(root.join("dir/.tmp"), "theirs").unwrap();
                fs::rename(root.join("dir/.tmp"), &file).unwrap();
            }
            Deed::Remove => fs::remove_file(&file).unwrap(),
            Deed::Rename => fs::rename(&file, root.join("dir/renamed")).unwrap(),
            Deed::RenameOver => fs::rename(root.join("dir/other"), &file).unwrap(),
            Deed::BecomeDirectory => {
                fs::remove_file(&file).unwrap();
                put(root, "dir/file/in it", "theirs");
            }
        }
    }

    /// True if the file that is open would have to go for it.
    fn destroys(self) -> bool {
        self != Deed::Rename
    }

    /// Contents that the other side made, which must be there at the end.
    fn made(self) -> &'static [&'static str] {
        match self {
            Deed::Replace | Deed::BecomeDirectory => &["theirs"],
            Deed::RenameOver => &["other"],
            Deed::Remove | Deed::Rename => &[],
        }
    }
}

/// Contents of all files below `root`, what is in the private directory left out.
fn contents(root: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path == root.join(".driftless") {
                continue;
            }
            if path.is_dir() { todo.push(path) } else { found.push(fs::read(path).unwrap()) }
        }
    }
    found
}

fn has_leases() -> bool {
    let tmp = tempfile::tempdir().unwrap();
    let volume = Directory::open(tmp.path(), OpenOptions { create_private: true }).unwrap();
    let has = volume.capabilities().leases;
    if !has {
        eprintln!("skipped: no leases here");
    }
    has
}

/// The other side acts while a program has the file open here; then the program writes more, and closes it.
fn written_while_open(kind: Kind, deed: Deed, killed: bool) {
    let what = format!("{kind:?}, {deed:?}, killed: {killed}");
    let pair = Pair::new();
    fs::create_dir(pair.a.join("dir")).unwrap();
    fs::write(pair.a.join("dir/file"), BEFORE).unwrap();
    put(&pair.a, "dir/other", "other");
    pair.once(&[]);
    let mut running = pair.start(&[]);
    let mut writer = match Writer::open(kind, &pair.a.join("dir/file")) {
        Ok(writer) => writer,
        Err(e) => return eprintln!("skipped: {e:#}"),
    };
    deed.act(&pair.b);
    put(&pair.b, "after", "theirs");
    wait_until("what else the other side did", || match pair.a.join("after").exists() {
        true => Ok(()),
        false => Err("not there".into()),
    });
    if deed.destroys() {
        let waits = running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "busy");
        assert!(waits["path"]["text"].as_str().unwrap().starts_with("dir/"), "{what}: {waits}");
    }
    if killed {
        running.kill();
        running = Running::start(&mut pair.sync_command(&["--json"]));
        // It waits as before; that is no news.
        running.wait_for_row(|e| e["event"] == "phase" && e["side"] == "a" && e["phase"] == "watching");
    }
    writer.write(b'1').unwrap();
    writer.write(b'2').unwrap();
    drop(writer);
    let wrote = Writer::content_after(kind, &BEFORE, b"12");
    wait_until(&what, || {
        for root in [&pair.a, &pair.b] {
            let found = contents(root);
            let made = deed.made().iter().map(|text| text.as_bytes().to_vec());
            for wanted in made.chain([wrote.clone()]) {
                if !found.contains(&wanted) {
                    let found: Vec<_> = found.iter().map(|c| (c.len(), c.first().copied())).collect();
                    return Err(format!("{}: a version is missing among {found:?}", root.display()));
                }
            }
        }
        Ok(())
    });
    pair.wait_same(&what);
    wait_until(&what, || match pair.ask(&["failures"]) {
        ran if ran.code == 0 => Ok(()),
        ran => Err(ran.out),
    });
    let (outcome, code) = running.stop();
    assert_eq!(code, 0, "{what}: {outcome:#}");
    for root in [&pair.a, &pair.b] {
        assert_eq!(left_private(root), Vec::<PathBuf>::new(), "{what}");
    }
}

#[test]
fn a_plain_writer_loses_nothing() {
    if has_leases() {
        DEEDS.iter().for_each(|deed| written_while_open(Kind::Plain, *deed, false));
    }
}

#[test]
fn an_appending_writer_loses_nothing() {
    if has_leases() {
        DEEDS.iter().for_each(|deed| written_while_open(Kind::Append, *deed, false));
    }
}

#[test]
fn a_direct_writer_loses_nothing() {
    if has_leases() {
        DEEDS.iter().for_each(|deed| written_while_open(Kind::Direct, *deed, false));
    }
}

#[test]
fn a_mapping_writer_loses_nothing() {
    if has_leases() {
        DEEDS.iter().for_each(|deed| written_while_open(Kind::Mapped, *deed, false));
    }
}

#[test]
fn a_kill_meanwhile_changes_nothing_about_that() {
    if has_leases() {
        for (kind, deed) in
            [(Kind::Plain, Deed::Replace), (Kind::Append, Deed::Remove), (Kind::Mapped, Deed::Replace)]
        {
            written_while_open(kind, deed, true);
        }
    }
}

/// One of many files that the other side removes at once is open, and one has another name: the others go.
#[test]
fn hundreds_go_at_once_but_not_what_is_written_to() {
    if !has_leases() {
        return;
    }
    let pair = Pair::new();
    for n in 0..900 {
        put(&pair.a, &format!("dir/{}/{n}", n % 3), "gone");
    }
    fs::write(pair.a.join("dir/1/open"), BEFORE).unwrap();
    fs::hard_link(pair.a.join("dir/2/2"), pair.a.join("kept")).unwrap();
    fs::hard_link(pair.a.join("dir/2/5"), pair.a.join("dir/2/other")).unwrap();
    pair.once(&[]);
    let mut running = pair.start(&["--max-delete", "100%"]);
    let mut writer = Writer::open(Kind::Plain, &pair.a.join("dir/1/open")).unwrap();
    fs::remove_dir_all(pair.b.join("dir")).unwrap();
    let waits = running.wait_for_row(|e| e["event"] == "waiting" && e["reason"] == "busy");
    assert_eq!(waits["path"]["text"], "dir/1/open");
    wait_until("what is not open goes", || {
        match (names(&pair.a.join("dir")), names(&pair.a.join("dir/1"))) {
            (dirs, files) if dirs == ["1"] && files == ["open"] => Ok(()),
            (dirs, files) => Err(format!("{dirs:?}, {} files", files.len())),
        }
    });
    writer.write(b'1').unwrap();
    writer.write(b'2').unwrap();
    drop(writer);
    let wrote = Writer::content_after(Kind::Plain, &BEFORE, b"12");
    wait_until("what was written", || {
        let has = |root: &Path| contents(root).len() == 2 && contents(root).contains(&wrote);
        if has(&pair.a) && has(&pair.b) { Ok(()) } else { Err("missing".into()) }
    });
    pair.wait_same("what was written");
    assert_eq!(read(&pair.a, "kept"), "gone");
    // What waited may be tried once more after both are the same, and both agreed while it waited.
    running.wait_settled();
    assert_eq!(running.stop().1, 0);
    for root in [&pair.a, &pair.b] {
        assert_eq!(left_private(root), Vec::<PathBuf>::new());
    }
}

/// A file of A was replaced, and is in limbo: a kill came between the exchange and the seal.
fn killed_before_the_seal() -> (Pair, PathBuf) {
    loop {
        let pair = Pair::new();
        fs::write(pair.a.join("file"), BEFORE).unwrap();
        pair.once(&[]);
        fs::write(pair.b.join(".tmp"), "theirs").unwrap();
        fs::rename(pair.b.join(".tmp"), pair.b.join("file")).unwrap();
        let running = Running::start(&mut pair.sync_command(&["--json"]));
        wait_until("their version", || match fs::read(pair.a.join("file")).unwrap() == b"theirs" {
            true => Ok(()),
            false => Err("not there".into()),
        });
        running.kill();
        match left_private(&pair.a).pop() {
            Some(path) if path.starts_with(pair.a.join(".driftless/limbo")) => return (pair, path),
            // The kill came too late.
            _ => {}
        }
    }
}

/// A program that had found the file by its name just before it was replaced opens it in limbo: what it writes there comes
/// back into the tree when it has closed it. (The test opens it there by its name.)
#[test]
fn what_is_written_in_limbo_comes_back() {
    if !has_leases() {
        return;
    }
    for kind in [Kind::Plain, Kind::Append, Kind::Mapped] {
        let (pair, victim) = killed_before_the_seal();
        let mut writer = Writer::open(kind, &victim).unwrap();
        let mut running = Running::start(&mut pair.sync_command(&["--json"]));
        let warns = |e: &serde_json::Value| {
            e["event"] == "log" && e["text"].as_str().is_some_and(|text| text.contains("has it open"))
        };
        running.wait_for_row(warns);
        assert!(victim.exists());
        writer.write(b'1').unwrap();
        writer.write(b'2').unwrap();
        drop(writer);
        let wrote = Writer::content_after(kind, &BEFORE, b"12");
        wait_until("what was written", || match contents(&pair.a).contains(&wrote) {
            true => Ok(()),
            false => Err("missing".into()),
        });
        pair.wait_same("what was written");
        assert_eq!(running.stop().1, 0);
        assert_eq!(left_private(&pair.a), Vec::<PathBuf>::new());
    }
}

/// The command without the privilege to ask for leases on files of others.
fn without_lease_privilege(pair: &Pair) -> Command {
    let plain = pair.sync_command(&["--json"]);
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set=-lease").arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Where nobody can tell that a file is open it is replaced all the same; it waits, and comes back if it was written to.
fn written_unnoticed(kind: Kind, deed: Deed, killed: bool) {
    let what = format!("{kind:?}, {deed:?}, killed: {killed}");
    let pair = Pair::new();
    fs::create_dir(pair.a.join("dir")).unwrap();
    let file = pair.a.join("dir/file");
    fs::write(&file, BEFORE).unwrap();
    if std::os::unix::fs::chown(&file, Some(1), None).is_err() || !has("setpriv") {
        return eprintln!("skipped: needs root and setpriv");
    }
    put(&pair.a, "dir/other", "other");
    pair.once(&[]);
    let mut running = Running::start(&mut without_lease_privilege(&pair));
    running.wait_for("in_sync");
    let mut writer = Writer::open(kind, &file).unwrap();
    deed.act(&pair.b);
    pair.wait_same(&what);
    let resting = || match left_private(&pair.a).len() {
        1 => Ok(()),
        n => Err(format!("{n} files rest")),
    };
    wait_until(&what, resting);
    if killed {
        running.kill();
        running = Running::start(&mut without_lease_privilege(&pair));
        running.wait_for("in_sync");
    } else {
        // A seal comes 300 ms after the last change: it must not drop it.
        std::thread::sleep(Duration::from_millis(700));
    }
    assert_eq!(resting(), Ok(()), "{what}");
    writer.write(b'1').unwrap();
    writer.write(b'2').unwrap();
    drop(writer);
    let wrote = Writer::content_after(kind, &BEFORE, b"12");
    wait_until(&what, || {
        let made = deed.made().iter().map(|text| text.as_bytes().to_vec());
        for wanted in made.chain([wrote.clone()]) {
            if !contents(&pair.a).contains(&wanted) || !contents(&pair.b).contains(&wanted) {
                return Err("a version is missing".into());
            }
        }
        Ok(())
    });
    pair.wait_same(&what);
    assert_eq!(running.stop().1, 0, "{what}");
    assert_eq!(left_private(&pair.a), Vec::<PathBuf>::new(), "{what}");
}

#[test]
fn writers_that_go_unnoticed_lose_nothing() {
    for (kind, deed, killed) in [
        (Kind::Plain, Deed::Replace, false),
        (Kind::Append, Deed::Remove, true),
        (Kind::Mapped, Deed::RenameOver, false),
        (Kind::Direct, Deed::BecomeDirectory, true),
    ] {
        written_unnoticed(kind, deed, killed);
    }
}

/// A file is written to, closed and moved by the other side within the same moments: what was written is not taken for
/// what the move gave back.
#[test]
fn what_is_written_around_a_rename_is_seen() {
    let pair = Pair::new();
    for i in 0..40 {
        put(&pair.a, &format!("from-{i}"), "before");
    }
    pair.once(&[]);
    let running = pair.start(&[]);
    for i in 0..40 {
        fs::rename(pair.b.join(format!("from-{i}")), pair.b.join(format!("to-{i}"))).unwrap();
        // Written by whichever name it has at A by then.
        let written = format!("written {i}");
        let names = [pair.a.join(format!("from-{i}")), pair.a.join(format!("to-{i}"))];
        std::thread::sleep(Duration::from_micros(100 * i));
        let open = |path: &PathBuf| fs::OpenOptions::new().write(true).open(path).ok();
        wait_until("the file", || match names.iter().find_map(open) {
            Some(file) => {
                file.write_all_at(written.as_bytes(), 0).unwrap();
                Ok(())
            }
            None => Err("not there".into()),
        });
    }
    pair.wait_same("what was written");
    for i in 0..40 {
        assert_eq!(read(&pair.b, &format!("to-{i}")), format!("written {i}"));
    }
    assert_eq!(running.stop().1, 0);
}
