//! Who belongs to a volume, who writes in it, and what becomes of those who do not any more.

use crate::common::*;
use crate::sites::*;
use rustix::process::Signal;
use std::fs;
use tempfile::TempDir;

/// A site that has the volume of another, by an invitation with these flags.
fn join(host: &Site, guest: &Site, flags: &[&str]) {
    let token = host.ok(&[&["site", "invite", "--for", "data"], flags].concat());
    guest.ok(&["site", "join", &token, "--dir", &format!("data={}", guest.dir.display())]);
}

fn begin(site: &Site) {
    site.ok(&["volume", "add", "data", site.dir.to_str().unwrap()]);
}

/// What a site knows of the members: names, in order, those that follow in brackets.
fn members(site: &Site) -> Vec<String> {
    let status = site.try_status().unwrap();
    let members = status["volumes"][0]["members"].as_array().cloned().unwrap_or_default();
    let name = |m: &serde_json::Value| {
        let site = m["site"].as_str().unwrap();
        if m["follower"] == true { format!("[{site}]") } else { site.to_owned() }
    };
    members.iter().map(name).collect()
}

fn wait_members(sites: &[&Site], want: &[&str]) {
    for site in sites {
        wait_until(&format!("{} to know the members {want:?}", site.name), || match members(site) {
            found if found == want => Ok(()),
            found => Err(format!("{found:?}\n{}", site.log())),
        });
    }
}

fn wait_file(site: &Site, name: &str, content: &str) {
    wait_until(&format!("{name} to be {content:?} at {}", site.name), || {
        match fs::read_to_string(site.dir.join(name)) {
            Ok(found) if found == content => Ok(()),
            other => Err(format!("{other:?}\n{}", site.log())),
        }
    });
}

fn wait_says(site: &Site, says: &str) {
    wait_until(&format!("{} to say {says:?}", site.name), || {
        let status = site.try_status().unwrap();
        let verdict = status["verdict"].as_str().unwrap();
        if verdict.contains(says) { Ok(()) } else { Err(format!("{status}\n{}", site.log())) }
    });
}

/// A third site hears of a new member from the second, takes its link, and forgets it when it is removed.
#[test]
fn members_are_known_by_hearsay() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    let mut tromso = Site::new(base.path(), "tromso");
    put(&oslo.dir, "f", "from oslo");
    begin(&oslo);
    join(&oslo, &bergen, &[]);
    join(&bergen, &tromso, &["--no-invite"]);
    wait_members(&[&oslo, &bergen, &tromso], &["bergen", "oslo", "tromso"]);
    // Its exit code tells whether all are connected at this moment.
    wait_until("oslo lists tromso", || {
        let listed = run(oslo.command().args(["site", "list"]));
        let told = listed.out.contains("tromso           data           writer, may not invite");
        if listed.code == 0 && told { Ok(()) } else { Err(format!("{listed:?}")) }
    });
    // Nobody at oslo has heard of tromso but by that.
    tromso.ok(&["link", "create", "data", "--to", "oslo"]);
    oslo.wait_link("tromso", "in-sync");
    wait_same(&[&oslo, &bergen, &tromso]);
    assert!(tromso.fails(&["site", "invite", "--for", "data"]).contains("may not admit"));

    // Removed while it does not run, by a site that never invited it: known everywhere, and told so when it comes back.
    tromso.end(Signal::KILL);
    assert!(oslo.ok(&["site", "remove", "tromso"]).contains("from data"));
    wait_members(&[&oslo, &bergen], &["bergen", "oslo"]);
    put(&tromso.dir, "late", "from a site that was removed");
    tromso.start();
    wait_until("tromso to be refused", || match tromso.log() {
        log if log.contains("was removed from volume data by oslo") => Ok(()),
        log => Err(log),
    });
    put(&oslo.dir, "g", "2");
    wait_file(&bergen, "g", "2");
    assert!(!bergen.dir.join("late").exists() && !oslo.dir.join("late").exists());
    assert!(!tromso.dir.join("g").exists());
    let token = oslo.ok(&["site", "invite", "--for", "data"]);
    assert!(tromso.fails(&["site", "join", &token]).contains("was removed from volume data for good"));
}

/// No more sites than the limit, and both sides say which one it was.
#[test]
fn too_many_sites_are_refused() {
    let base = TempDir::new().unwrap();
    let mut oslo = Site::new(base.path(), "oslo");
    let bergen = Site::new(base.path(), "bergen");
    begin(&oslo);
    let (one, other) = (oslo.ok(&["site", "invite"]), oslo.ok(&["site", "invite"]));
    bergen.ok(&["site", "join", &one]);
    oslo.end(Signal::TERM);
    oslo.flags = vec!["--max-sites".into(), "2".into()];
    // It must be where the invitation says.
    oslo.listen = other.split('/').nth(2).unwrap().to_owned();
    oslo.start();
    let tromso = Site::new(base.path(), "tromso");
    assert!(tromso.fails(&["site", "join", &other]).contains("there are 2 sites already"));
    wait_until("oslo to say so too", || match oslo.log() {
        log if log.contains("there are 2 sites already") => Ok(()),
        log => Err(log),
    });
    assert!(oslo.fails(&["site", "invite"]).contains("its limit is 2"));
}

/// Turns an active-passive pair round, both ways, with nothing lost and nothing sent anew.
#[test]
fn a_switchover_and_back() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    put(&oslo.dir, "f", "1");
    begin(&oslo);
    join(&oslo, &bergen, &["--mode", "active-passive"]);
    wait_same(&[&oslo, &bergen]);
    wait_members(&[&oslo, &bergen], &["[bergen]", "oslo"]);
    assert!(bergen.fails(&["switchover", "data", "--to", "oslo"]).contains("does not write"));
    for i in 0..50 {
        put(&oslo.dir, &format!("d/{i}"), "written just before");
    }
    oslo.ok(&["switchover", "data", "--to", "bergen"]);
    for i in 0..50 {
        assert_eq!(read(&bergen.dir, &format!("d/{i}")), "written just before");
    }
    wait_members(&[&oslo, &bergen], &["bergen", "[oslo]"]);
    put(&oslo.dir, "drift", "stays here");
    put(&bergen.dir, "f", "2");
    wait_file(&oslo, "f", "2");
    assert!(!bergen.dir.join("drift").exists());
    bergen.wait_link("oslo", "in-sync");
    bergen.ok(&["switchover", "data", "--to", "oslo"]);
    // What had drifted is a change now.
    wait_file(&bergen, "drift", "stays here");
    put(&oslo.dir, "f", "3");
    wait_file(&bergen, "f", "3");
    // And both write.
    oslo.ok(&["volume", "role", "data", "bergen", "writer"]);
    wait_members(&[&oslo, &bergen], &["bergen", "oslo"]);
    put(&bergen.dir, "g", "4");
    wait_file(&oslo, "g", "4");
}

/// The writer is cut off and goes on writing; the other takes over. What was written meanwhile is set aside when it comes back, is
/// nowhere else, and can be applied again.
#[test]
fn a_failover_of_two_and_a_rejoin() {
    let base = TempDir::new().unwrap();
    let mut oslo = Site::new(base.path(), "oslo");
    let bergen = Site::new(base.path(), "bergen");
    for name in ["kept", "edited", "removed", "renamed"] {
        put(&oslo.dir, name, "before");
    }
    begin(&oslo);
    join(&oslo, &bergen, &["--mode", "active-passive"]);
    wait_same(&[&oslo, &bergen]);
    oslo.wait_link("bergen", "in-sync");
    // Cut off: what oslo does now nobody hears of.
    oslo.ok(&["link", "pause", "data", "--to", "bergen"]);
    put(&oslo.dir, "edited", "by oslo alone");
    put(&oslo.dir, "new/file", "by oslo alone");
    fs::remove_file(oslo.dir.join("removed")).unwrap();
    fs::rename(oslo.dir.join("renamed"), oslo.dir.join("moved")).unwrap();
    wait_until("oslo to have recorded it", || match oslo.link("bergen")["backlog_items"].as_u64() {
        Some(n) if n >= 5 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    oslo.end(Signal::KILL);

    let said = bergen.fails(&["failover", "data"]);
    assert!(said.contains("counts no more") && said.contains("give --yes"), "{said}");
    wait_members(&[&bergen], &["[bergen]", "oslo"]);
    bergen.ok(&["failover", "data", "--yes"]);
    wait_members(&[&bergen], &["bergen", "[oslo]"]);
    put(&bergen.dir, "edited", "by bergen");
    put(&bergen.dir, "more", "by bergen");

    oslo.start();
    oslo.ok(&["link", "resume", "data", "--to", "bergen"]);
    wait_says(&oslo, "was failed over");
    assert_eq!(read(&oslo.dir, "edited"), "by oslo alone", "nothing is touched before somebody says so");
    oslo.ok(&["rejoin", "data"]);
    wait_same(&[&oslo, &bergen]);
    assert_eq!(read(&oslo.dir, "edited"), "by bergen");
    for (name, there) in [("new/file", false), ("moved", false), ("removed", true), ("renamed", true)] {
        assert_eq!(bergen.dir.join(name).exists(), there, "{name}");
    }
    let dir = oslo.dir.to_str().unwrap();
    let listed = oslo.ok(&["quarantine", "list", dir]);
    for says in
        ["changed file  edited", "created file  new/file", "removed file  removed", "changed file  moved"]
    {
        assert!(listed.contains(says), "{says}: {listed}");
    }
    let copy = base.path().join("copy");
    oslo.ok(&["quarantine", "export", dir, copy.to_str().unwrap()]);
    assert_eq!(read(&copy, "edited"), "by oslo alone");
    assert_eq!(read(&copy, "new/file"), "by oslo alone");

    // Back to oslo, and what was set aside is applied again.
    bergen.wait_link("oslo", "in-sync");
    bergen.ok(&["switchover", "data", "--to", "oslo"]);
    wait_members(&[&oslo, &bergen], &["[bergen]", "oslo"]);
    oslo.ok(&["quarantine", "apply", dir, "new/file"]);
    assert!(oslo.fails(&["quarantine", "apply", dir, "edited"]).contains("is taken"));
    oslo.ok(&["quarantine", "apply", dir, "edited", "--to", "edited-by-oslo"]);
    wait_file(&bergen, "new/file", "by oslo alone");
    wait_file(&bergen, "edited-by-oslo", "by oslo alone");
}

/// Of three, the writer dies when only one of the others has heard its last words; the other takes over, having gathered them. A third that had
/// heard more than anybody who could be asked sets that aside too.
#[test]
fn a_failover_of_three_gathers_and_cuts_everywhere() {
    let base = TempDir::new().unwrap();
    let mut oslo = Site::new(base.path(), "oslo");
    let (bergen, mut tromso) = (Site::new(base.path(), "bergen"), Site::new(base.path(), "tromso"));
    put(&oslo.dir, "f", "1");
    begin(&oslo);
    join(&oslo, &bergen, &["--mode", "active-passive"]);
    join(&oslo, &tromso, &["--mode", "active-passive"]);
    wait_members(&[&oslo, &bergen, &tromso], &["[bergen]", "oslo", "[tromso]"]);
    bergen.ok(&["link", "create", "data", "--to", "tromso"]);
    wait_same(&[&oslo, &bergen, &tromso]);
    bergen.wait_link("tromso", "in-sync");
    // Only tromso hears this, and bergen from it.
    oslo.ok(&["link", "pause", "data", "--to", "bergen"]);
    put(&oslo.dir, "gathered", "by tromso");
    wait_file(&tromso, "gathered", "by tromso");
    wait_file(&bergen, "gathered", "by tromso");
    // Only tromso hears that, and is away when it is asked.
    bergen.ok(&["link", "pause", "data", "--to", "tromso"]);
    put(&oslo.dir, "f", "2, which tromso alone has heard of");
    put(&oslo.dir, "beyond", "which tromso alone has heard of");
    wait_file(&tromso, "f", "2, which tromso alone has heard of");
    wait_file(&tromso, "beyond", "which tromso alone has heard of");
    // On its disk for good, and in its index.
    oslo.wait_link("tromso", "in-sync");
    oslo.end(Signal::KILL);
    tromso.end(Signal::KILL);
    bergen.ok(&["failover", "data", "--yes"]);
    put(&bergen.dir, "f", "3");

    bergen.ok(&["link", "resume", "data", "--to", "tromso"]);
    tromso.start();
    wait_same(&[&bergen, &tromso]);
    assert_eq!(read(&bergen.dir, "f"), "3");
    assert!(!bergen.dir.join("beyond").exists(), "{}\n{}", bergen.log(), tromso.log());
    let listed = tromso.ok(&["quarantine", "list", tromso.dir.to_str().unwrap()]);
    assert!(listed.contains("changed file  f") && listed.contains("created file  beyond"), "{listed}");
    assert_eq!(read(&bergen.dir, "gathered"), "by tromso");

    oslo.start();
    oslo.ok(&["link", "resume", "data", "--to", "bergen"]);
    wait_says(&oslo, "was failed over");
    oslo.ok(&["rejoin", "data"]);
    wait_same(&[&oslo, &bergen, &tromso]);
    wait_members(&[&oslo, &bergen, &tromso], &["bergen", "[oslo]", "[tromso]"]);
    put(&bergen.dir, "last", "5");
    wait_file(&oslo, "last", "5");
    wait_file(&tromso, "last", "5");
}

/// What may be lost is said before anybody agrees to it, as precisely as it is known: changes that were announced and have not come,
/// and paths whose contents nobody has; and sites behind others are asked, too.
#[test]
fn a_failover_says_what_may_be_lost() {
    let base = TempDir::new().unwrap();
    let mut oslo = Site::new(base.path(), "oslo");
    let (bergen, mut tromso) = (Site::new(base.path(), "bergen"), Site::new(base.path(), "tromso"));
    let narvik = Site::new(base.path(), "narvik");
    put(&oslo.dir, "f", "1");
    let mut rng = driftless_testkit::Rng::new(3);
    // Too long to come with its state.
    let edited = rng.bytes(200_000);
    fs::write(oslo.dir.join("edited"), &edited).unwrap();
    begin(&oslo);
    // oslo, which narvik hears too; bergen in the middle; tromso and narvik behind it.
    join(&oslo, &bergen, &[]);
    join(&bergen, &tromso, &[]);
    join(&tromso, &narvik, &[]);
    wait_same(&[&oslo, &bergen, &tromso, &narvik]);
    wait_members(&[&oslo, &bergen], &["bergen", "narvik", "oslo", "tromso"]);
    oslo.wait_link("bergen", "in-sync");
    bergen.wait_link("tromso", "in-sync");
    let plan = |site: &Site| -> serde_json::Value {
        let ran = run(site.command().args(["failover", "data", "--from", "oslo", "--json"]));
        assert_eq!(ran.code, 3, "{ran:?}");
        serde_json::from_str(&ran.out).unwrap()
    };
    let loss = plan(&bergen);
    assert_eq!(loss["asked"], serde_json::json!(["bergen", "narvik", "tromso"]), "{loss}");
    assert_eq!((&loss["connected"], &loss["paths_total"]), (&true.into(), &0.into()), "{loss}");
    assert_eq!(loss["replicas"][0]["kept_up_to"], loss["replicas"][0]["announced"], "{loss}");

    // States arrive at once, contents of this length slowly; oslo dies meanwhile.
    let slow = ["--bwlimit", "20k", "--container-size", "64KiB", "--compress", "none"];
    oslo.ok(&[&["link", "config", "data", "--to", "bergen"], &slow[..]].concat());
    // Heeded within a moment.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let large = rng.bytes(3_000_000);
    fs::write(oslo.dir.join("large"), &large).unwrap();
    wait_until("bergen to fetch it", || match plan(&bergen)["paths_total"].as_u64() {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}: {}", bergen.log())),
    });
    // Many small ones, of which the last have been announced only: no more than four containers are on their way at once.
    for i in 0..600 {
        put(&oslo.dir, &format!("small/{i}"), &format!("{i}").repeat(400));
    }
    wait_until("the small ones to be announced", || {
        match plan(&bergen)["replicas"][0]["announced"].as_u64() {
            Some(600..) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // Recorded after all of them, and so beyond what comes.
    fs::write(oslo.dir.join("edited"), rng.bytes(200_000)).unwrap();
    wait_until("more to be announced than has come", || {
        let loss = plan(&bergen);
        let of = |what: &str| loss["replicas"][0][what].as_u64().unwrap();
        if of("announced") > of("kept_up_to") { Ok(()) } else { Err(loss.to_string()) }
    });
    oslo.end(Signal::KILL);
    bergen.wait_link("oslo", "unreachable");
    tromso.end(Signal::KILL);
    bergen.wait_link("tromso", "unreachable");
    let loss = plan(&bergen);
    assert_eq!(loss["asked"], serde_json::json!(["bergen"]), "{loss}");
    assert_eq!(loss["not_asked"], serde_json::json!(["narvik", "tromso"]), "{loss}");
    assert!(loss["heard_ago_s"].is_u64(), "{loss}");
    let paths = loss["paths"].as_array().unwrap();
    assert!(paths.iter().any(|p| p["path"]["text"] == "large"), "{loss}");
    let (kept, announced) = (&loss["replicas"][0]["kept_up_to"], &loss["replicas"][0]["announced"]);
    assert!(announced.as_u64() > kept.as_u64(), "{loss}");
    let said = bergen.fails(&["failover", "data", "--from", "oslo"]);
    for says in ["could not be asked: narvik, tromso", "have not come", "large", "Nothing was changed"] {
        assert!(said.contains(says), "{says}: {said}");
    }
    wait_members(&[&bergen], &["bergen", "narvik", "oslo", "tromso"]);

    // The loss that was announced is the loss that happens: the rest is set aside at oslo.
    bergen.ok(&["failover", "data", "--from", "oslo", "--yes"]);
    tromso.start();
    oslo.start();
    oslo.ok(&["link", "config", "data", "--to", "bergen", "--bwlimit", "none"]);
    wait_says(&oslo, "was failed over");
    oslo.ok(&["rejoin", "data"]);
    // What was announced as without content anywhere comes from oslo after all, for it was changed before the Cut.
    wait_same(&[&oslo, &bergen, &tromso, &narvik]);
    assert_eq!(fs::read(bergen.dir.join("large")).unwrap(), large, "{}", bergen.log());
    assert_eq!(fs::read(bergen.dir.join("edited")).unwrap(), edited, "{}", bergen.log());
    let conflicts =
        names(&bergen.dir).into_iter().filter(|n| n.contains(".conflict-") || n.starts_with("recovered-"));
    assert_eq!(conflicts.collect::<Vec<_>>(), Vec::<String>::new());
    // At the other end of the Cut is the rest, and nothing else.
    let listed = oslo.ok(&["quarantine", "list", oslo.dir.to_str().unwrap()]);
    assert!(listed.contains("small/599"), "{listed}");
}

/// A site that was away while another changed its key hears of it when it is back, whoever of the two can reach the other.
#[test]
fn a_key_is_changed_while_another_site_is_away() {
    for bergen_is_found in [false, true] {
        let base = TempDir::new().unwrap();
        let (mut oslo, mut bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
        put(&oslo.dir, "f", "1");
        begin(&oslo);
        join(&oslo, &bergen, &[]);
        wait_same(&[&oslo, &bergen]);
        bergen.wait_link("oslo", "in-sync");
        oslo.wait_link("bergen", "in-sync");
        // The other one listens somewhere else from its next start on, so that nobody can connect to it.
        let stays = if bergen_is_found { &mut bergen } else { &mut oslo };
        stays.listen = stays.address();
        bergen.end(Signal::TERM);
        oslo.ok(&["site", "rekey"]);
        oslo.end(Signal::TERM);
        oslo.start();
        put(&oslo.dir, "f", "2");
        bergen.start();
        wait_file(&bergen, "f", "2");
        put(&bergen.dir, "g", "3");
        wait_file(&oslo, "g", "3");
        wait_members(&[&oslo, &bergen], &["bergen", "oslo"]);
        let (key, known) =
            (&oslo.try_status().unwrap()["key"], &bergen.try_status().unwrap()["sites"][0]["key"]);
        assert_eq!(key, known);
    }
}

/// A site changes its key: the others hear of it before, and know it afterwards; the old one is good for nothing.
#[test]
fn a_site_changes_its_key() {
    let base = TempDir::new().unwrap();
    let (mut oslo, bergen) = (Site::new(base.path(), "oslo"), Site::new(base.path(), "bergen"));
    put(&oslo.dir, "f", "1");
    begin(&oslo);
    join(&oslo, &bergen, &[]);
    wait_same(&[&oslo, &bergen]);
    let key = |site: &Site| site.try_status().unwrap()["key"].as_str().unwrap().to_owned();
    let pinned = |site: &Site| site.try_status().unwrap()["sites"][0]["key"].as_str().unwrap().to_owned();
    let old = key(&oslo);
    assert_eq!(pinned(&bergen), old);
    oslo.ok(&["site", "rekey"]);
    assert!(oslo.fails(&["site", "rekey"]).contains("waits for the node's next start"));
    wait_until(
        "bergen to know the new key",
        || if pinned(&bergen) == old { Err(bergen.log()) } else { Ok(()) },
    );
    let state = oslo.base.join("state");
    fs::copy(state.join("key"), base.path().join("stolen")).unwrap();
    oslo.end(Signal::TERM);
    oslo.start();
    assert_eq!(key(&oslo), pinned(&bergen));
    put(&oslo.dir, "f", "2");
    wait_file(&bergen, "f", "2");
    // Who has the old key is nobody.
    oslo.end(Signal::TERM);
    fs::rename(base.path().join("stolen"), state.join("key")).unwrap();
    oslo.start();
    put(&oslo.dir, "f", "3");
    wait_until("the old key to be refused", || match bergen.log() {
        log if log.contains("not known here") => Ok(()),
        log => Err(log),
    });
    assert_eq!(read(&bergen.dir, "f"), "2");
}
