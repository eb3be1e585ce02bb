//! One replica with many peers: chains, rings, stars and meshes of real directories, with users at every site and links that
//! are cut and healed. At the end all are equal and nothing is lost.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod sites;

use driftless_testkit::{CompareOptions, Rng, User, check_no_loss, compare};
use sites::{Sites, wait_until};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

const CHAIN: [(usize, usize); 3] = [(0, 1), (1, 2), (2, 3)];
const RING: [(usize, usize); 4] = [(0, 1), (1, 2), (2, 3), (3, 0)];
const STAR: [(usize, usize); 3] = [(0, 1), (0, 2), (0, 3)];
const MESH: [(usize, usize); 6] = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];

#[test]
fn a_chain_with_users_at_all_sites() {
    users_everywhere(&CHAIN, 4, 1);
}

#[test]
fn a_ring_with_users_at_all_sites() {
    users_everywhere(&RING, 4, 2);
}

#[test]
fn a_star_with_users_at_all_sites() {
    users_everywhere(&STAR, 4, 3);
}

#[test]
fn a_mesh_with_users_at_all_sites() {
    users_everywhere(&MESH, 4, 4);
}

fn users_everywhere(links: &[(usize, usize)], n: usize, seed: u64) {
    let mut sites = Sites::new(n);
    sites.open_all();
    let mut rng = Rng::new(seed);
    let mut cables: Vec<_> = links.iter().map(|(a, b)| Some(sites.join(*a, *b))).collect();
    let trash = sites.base.path().join("trash");
    fs::create_dir(&trash).unwrap();
    let mut users: Vec<User> =
        (0..n).map(|i| User::beside_others(&sites.roots[i], 100 * seed + i as u64, &trash)).collect();
    for round in 0..6 {
        // One link is cut in every other round, and healed in the next.
        let cut = rng.below(links.len() as u64) as usize;
        if round % 2 == 0 {
            cables[cut] = None;
        } else {
            for (cable, (a, b)) in cables.iter_mut().zip(links) {
                cable.get_or_insert_with(|| sites.join(*a, *b));
            }
        }
        for _ in 0..40 {
            users[rng.below(n as u64) as usize].step().unwrap();
            if rng.one_in(4) {
                std::thread::sleep(Duration::from_millis(rng.below(20)));
            }
        }
    }
    // A start looks at everything: what happens in directories that are moved at the same moment is, once in many runs, seen
    // by the next crawl only.
    drop(cables);
    sites.stop_all();
    sites.open_all();
    let cables: Vec<_> = links.iter().map(|(a, b)| sites.join(*a, *b)).collect();
    sites.wait_same();
    let journals: Vec<_> = users.iter().map(User::journal).collect();
    let lost = check_no_loss(&journals, &sites.roots[0]).unwrap();
    assert!(lost.is_empty(), "{lost:#?}");
    drop(cables);
    sites.stop_all();
}

/// In a mesh every content crosses each necessary path once, though every site could send it to every other.
#[test]
fn a_mesh_sends_each_content_once_to_each() {
    let mut sites = Sites::new(4);
    sites.open_all();
    let cables: Vec<_> = MESH.iter().map(|(a, b)| sites.join(*a, *b)).collect();
    for (i, root) in sites.roots.iter().enumerate() {
        fs::write(root.join(format!("first{i}")), "so that all have heard of all").unwrap();
    }
    sites.wait_same();
    sites.wait_quiet();
    // News of third replicas is told a moment later.
    std::thread::sleep(Duration::from_secs(1));
    let before: u64 = cables.iter().map(sites::Cable::content_bytes).sum();
    const FILES: usize = 20;
    const LEN: usize = 20_000;
    for i in 0..FILES {
        fs::write(sites.roots[0].join(format!("f{i}")), vec![i as u8; LEN]).unwrap();
    }
    fs::write(sites.roots[1].join("large"), vec![7; 2_000_000]).unwrap();
    sites.wait_same();
    sites.wait_quiet();
    let sent: u64 = cables.iter().map(sites::Cable::content_bytes).sum::<u64>() - before;
    let needed = 3 * (FILES * LEN + 2_000_000) as u64;
    assert!(sent >= needed && sent <= needed + needed / 10, "{sent} bytes were sent, {needed} are needed");
}

/// What one brought reaches those who cannot hear it, at once and without an outage of the link in between.
#[test]
fn a_chain_relays_what_is_large_and_small() {
    let mut sites = Sites::new(4);
    sites.open_all();
    let _cables: Vec<_> = CHAIN.iter().map(|(a, b)| sites.join(*a, *b)).collect();
    fs::create_dir(sites.roots[0].join("d")).unwrap();
    fs::write(sites.roots[0].join("d/small"), "small").unwrap();
    fs::write(sites.roots[0].join("d/large"), vec![1; 5_000_000]).unwrap();
    sites.wait_same();
    fs::rename(sites.roots[3].join("d"), sites.roots[3].join("e")).unwrap();
    sites.wait_same();
    assert_eq!(fs::read(sites.roots[0].join("e/small")).unwrap(), b"small");
}

/// A peer that takes nothing costs the others nothing, and its lag says since when.
#[test]
fn a_peer_that_stands_still_holds_up_nobody() {
    let mut sites = Sites::new(3);
    sites.open_all();
    let first = sites.join(0, 1);
    let _other = sites.join(0, 2);
    fs::write(sites.roots[0].join("f"), "1").unwrap();
    sites.wait_same();
    first.stall();
    for i in 0..200 {
        fs::write(sites.roots[0].join(format!("g{i}")), vec![3; 10_000]).unwrap();
    }
    sites.wait_equal(0, 2);
    assert!(!sites.roots[1].join("g199").exists());
    let behind = |sites: &Sites| sites.peers_behind(0);
    wait_until("the lag to show", || match behind(&sites)[..] {
        [1] => Ok(()),
        ref others => Err(format!("behind: {others:?}")),
    });
    drop(first);
    // It is behind still, connected or not.
    assert_eq!(behind(&sites), [1]);
    let _again = sites.join(0, 1);
    sites.wait_same();
    wait_until("the lag to be gone", || match &behind(&sites)[..] {
        [] => Ok(()),
        others => Err(format!("behind: {others:?}")),
    });
}

/// A replica that was down comes back to several peers at once, whatever happened meanwhile.
#[test]
fn a_site_that_was_down_catches_up() {
    let mut sites = Sites::new(3);
    sites.open_all();
    let cables: Vec<_> = [(0, 1), (1, 2), (0, 2)].iter().map(|(a, b)| sites.join(*a, *b)).collect();
    for i in 0..50 {
        fs::write(sites.roots[i % 3].join(format!("f{i}")), format!("{i}")).unwrap();
    }
    sites.wait_same();
    drop(cables);
    sites.stop(2);
    let _up = sites.join(0, 1);
    fs::create_dir(sites.roots[0].join("d")).unwrap();
    for i in 0..50 {
        fs::rename(sites.roots[0].join(format!("f{i}")), sites.roots[0].join(format!("d/f{i}"))).unwrap();
    }
    fs::write(sites.roots[2].join("f7"), "edited where it was, while the site was down").unwrap();
    sites.wait_equal(0, 1);
    sites.open(2);
    let _cables = [sites.join(0, 2), sites.join(1, 2)];
    sites.wait_same();
    let found = compare(&sites.roots[0], &sites.roots[2], &CompareOptions::default()).unwrap();
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(fs::read_dir(sites.roots[1].join("d")).unwrap().count(), 50);
    assert_eq!(
        fs::read(sites.roots[1].join("d/f7")).unwrap(),
        b"edited where it was, while the site was down"
    );
}

/// Two versions of a file come from both ends of a chain: in its middle each site waits for the one that the other has got and
/// cannot show before it has both.
#[test]
fn two_versions_that_meet_in_a_chain_arrive_everywhere() {
    const LEN: usize = 20_000_000;
    let mut sites = Sites::new(4);
    sites.open_all();
    let cables: Vec<_> = CHAIN.iter().map(|(a, b)| sites.join(*a, *b)).collect();
    fs::write(sites.roots[0].join("f"), "first").unwrap();
    sites.wait_same();
    sites.wait_quiet();
    drop(cables);
    for i in [0, 3] {
        let before = sites.replica(i).status().standing.head;
        fs::write(sites.roots[i].join("f"), Rng::new(i as u64).bytes(LEN)).unwrap();
        wait_until("the edit to be recorded", || {
            let status = sites.replica(i).status();
            if status.standing.head > before && status.idle { Ok(()) } else { Err(format!("{status:?}")) }
        });
    }
    let _cables: Vec<_> = CHAIN.iter().map(|(a, b)| sites.join(*a, *b)).collect();
    sites.wait_same();
    let sizes = fs::read_dir(&sites.roots[2]).unwrap().map(|e| e.unwrap().metadata().unwrap());
    assert_eq!(sizes.filter(|m| m.len() == LEN as u64).count(), 2);
}

/// More than are kept open: a directory that is open is found wherever it is.
const OTHERS: usize = 220;
const ROUNDS: usize = 3;

fn append(path: &Path, text: &str) {
    fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// The event of a change in a directory and that of the directory's move are judged in any order, and nothing may be missed.
#[test]
fn what_changes_in_a_directory_that_moves_is_seen() {
    let mut sites = Sites::new(2);
    sites.open_all();
    let _cable = sites.join(0, 1);
    let root = sites.roots[0].clone();
    for dir in ["a", "b"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for i in 0..ROUNDS {
        fs::create_dir_all(root.join(format!("a/d{i}/deep"))).unwrap();
        for name in ["f", "g", "deep/h"] {
            fs::write(root.join(format!("a/d{i}/{name}")), "first\n").unwrap();
        }
    }
    for i in 0..OTHERS {
        fs::create_dir(root.join(format!("o{i}"))).unwrap();
    }
    sites.wait_same();
    for i in 0..ROUNDS {
        for other in 0..OTHERS {
            append(&root.join(format!("o{other}/f")), "another round\n");
        }
        sites.wait_same();
        sites.wait_quiet();
        let (from, to) = (root.join(format!("a/d{i}")), root.join(format!("b/d{i}")));
        match i {
            0 => {
                append(&from.join("f"), "before\n");
                fs::rename(&from, &to).unwrap();
                append(&to.join("deep/h"), "after\n");
            }
            1 => {
                fs::rename(&from, &to).unwrap();
                fs::write(to.join(".g.tmp"), "another g\n").unwrap();
                fs::rename(to.join(".g.tmp"), to.join("g")).unwrap();
            }
            _ => {
                fs::create_dir_all(from.join("new/deep")).unwrap();
                fs::write(from.join("new/deep/f"), "new\n").unwrap();
                fs::rename(&from, &to).unwrap();
                fs::rename(to.join("new"), root.join(format!("n{i}"))).unwrap();
                fs::write(root.join(format!("n{i}/g")), "newer\n").unwrap();
            }
        }
        sites.wait_same();
    }
    sites.stop_all();
}
