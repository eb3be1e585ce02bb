//! `sync --once`: what is the same afterwards, and what was not touched.

use crate::common::*;
use driftless_testkit::{Spec, grow};
use std::fs;

#[test]
fn an_empty_b_gets_everything_of_a() {
    let pair = Pair::new();
    grow(&pair.a, 1, &Spec::default()).unwrap();
    pair.once(&[]);
    pair.assert_same();
}

#[test]
fn an_empty_a_gets_everything_of_b() {
    let pair = Pair::new();
    grow(&pair.b, 2, &Spec::default()).unwrap();
    pair.once(&[]);
    pair.assert_same();
}

#[test]
fn a_second_run_does_no_work() {
    let pair = Pair::new();
    grow(&pair.a, 3, &Spec::default()).unwrap();
    pair.once(&[]);
    let before = (fingerprints(&pair.a), fingerprints(&pair.b));
    // Fingerprints younger than the clock tick of the file system must be looked at once more.
    std::thread::sleep(std::time::Duration::from_millis(50));
    pair.once(&[]);
    let ran = pair.once(&["--json", "-v"]);
    assert_eq!(ran.events("step"), Vec::<serde_json::Value>::new());
    let outcome = &ran.events("outcome")[0];
    for end in 0..2 {
        for count in ["recorded", "applied", "applied_bytes", "hashed_bytes"] {
            assert_eq!(outcome["counts"][end][count], 0, "{count} of end {end}: {outcome:#}");
        }
    }
    assert_eq!(before, (fingerprints(&pair.a), fingerprints(&pair.b)));
}

#[test]
fn two_populated_trees_become_their_union() {
    let pair = Pair::new();
    for root in [&pair.a, &pair.b] {
        for i in 0..20 {
            put(root, &format!("same/{i}"), &format!("equal {i}"));
            set_mtime(&root.join(format!("same/{i}")), 1_700_000_000 + i);
        }
    }
    put(&pair.a, "only/a", "from a");
    put(&pair.b, "only/b", "from b");
    put(&pair.a, "both/newer-at-a.txt", "new text of a");
    put(&pair.b, "both/newer-at-a.txt", "old text of b");
    set_mtime(&pair.a.join("both/newer-at-a.txt"), 1_700_000_200);
    set_mtime(&pair.b.join("both/newer-at-a.txt"), 1_700_000_100);
    put(&pair.a, "both/newer-at-b", "old one of a");
    put(&pair.b, "both/newer-at-b", "new one of b");
    set_mtime(&pair.a.join("both/newer-at-b"), 1_700_000_100);
    set_mtime(&pair.b.join("both/newer-at-b"), 1_700_000_200);
    let equal = |root| {
        fingerprints(root)
            .into_iter()
            .filter(|(p, _)| p.starts_with("same") && p.components().count() == 2)
            .collect::<Vec<_>>()
    };
    let before = (equal(&pair.a), equal(&pair.b));

    pair.once(&[]);
    pair.assert_same();
    assert_eq!(before, (equal(&pair.a), equal(&pair.b)), "equal files were touched");
    assert_eq!((read(&pair.b, "only/a"), read(&pair.a, "only/b")), ("from a".into(), "from b".into()));
    assert_eq!(read(&pair.b, "both/newer-at-a.txt"), "new text of a");
    assert_eq!(read(&pair.a, "both/newer-at-b"), "new one of b");
    let copies = copies(&pair.a.join("both"));
    assert_eq!(copies.len(), 2, "{copies:?}");
    let texts: Vec<String> = copies.iter().map(|c| read(&pair.a, &format!("both/{c}"))).collect();
    assert!(texts.contains(&"old text of b".into()) && texts.contains(&"old one of a".into()), "{texts:?}");
    assert!(copies.iter().any(|c| c.ends_with(".txt")), "the extension stays: {copies:?}");

    pair.once(&[]);
    assert_eq!(names(&pair.a.join("both")).len(), 4, "a second run makes no more copies");
    pair.assert_same();
}

#[test]
fn changes_made_between_runs_are_carried_over() {
    let pair = Pair::new();
    grow(&pair.a, 4, &Spec { special: false, ..Spec::default() }).unwrap();
    put(&pair.a, "x/deleted", "1");
    put(&pair.a, "x/edited", "1");
    put(&pair.a, "x/kept", "1");
    put(&pair.b, "y/from b", "1");
    pair.once(&[]);
    fs::remove_file(pair.a.join("x/deleted")).unwrap();
    put(&pair.b, "x/edited", "22");
    fs::rename(pair.b.join("y"), pair.b.join("z")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(names(&pair.b.join("x")), ["edited", "kept"]);
    assert_eq!(read(&pair.a, "x/edited"), "22");
    assert_eq!(read(&pair.a, "z/from b"), "1");
    assert!(!pair.a.join("y").exists());
}

#[test]
fn a_renamed_directory_is_renamed_and_not_written_again() {
    let pair = Pair::new();
    grow(&pair.a.join("big"), 5, &Spec::plain(500, 1000)).unwrap();
    pair.once(&[]);
    let before = inodes(&pair.b.join("big"));
    fs::create_dir(pair.a.join("deep")).unwrap();
    fs::rename(pair.a.join("big"), pair.a.join("deep/moved")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(inodes(&pair.b.join("deep/moved")), before);
}

#[test]
fn names_taken_over_by_one_new_inode_are_links_of_one_file() {
    let pair = Pair::new();
    put(&pair.a, "was/a dir/with a file", "gone");
    put(&pair.a, "one", "1");
    put(&pair.a, "two", "2");
    pair.once(&[]);
    fs::remove_dir_all(pair.b.join("was")).unwrap();
    fs::remove_file(pair.b.join("one")).unwrap();
    fs::remove_file(pair.b.join("two")).unwrap();
    put(&pair.b, "one", "linked");
    for name in ["two", "was", "new"] {
        fs::hard_link(pair.b.join("one"), pair.b.join(name)).unwrap();
    }
    pair.once(&[]);
    pair.assert_same();
    // All of them are one file from now on.
    put(&pair.a, "was", "written once");
    pair.once(&[]);
    pair.assert_same();
}

#[test]
fn two_edits_of_one_file_both_stay() {
    let pair = Pair::new();
    put(&pair.a, "report.docx", "first");
    pair.once(&[]);
    put(&pair.a, "report.docx", "as a wants it");
    put(&pair.b, "report.docx", "as b wants it!");
    pair.once(&[]);
    pair.assert_same();
    let copies = copies(&pair.a);
    assert_eq!(copies.len(), 1, "{:?}", names(&pair.a));
    let mut both = [read(&pair.a, "report.docx"), read(&pair.a, &copies[0])];
    both.sort();
    assert_eq!(both, ["as a wants it", "as b wants it!"]);
}

#[test]
fn an_edit_survives_a_concurrent_removal() {
    let pair = Pair::new();
    put(&pair.a, "d/f", "first");
    pair.once(&[]);
    fs::remove_dir_all(pair.a.join("d")).unwrap();
    put(&pair.b, "d/f", "edited meanwhile");
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(read(&pair.a, "d/f"), "edited meanwhile");
}

#[test]
fn excluded_paths_stay_where_they_are() {
    let pair = Pair::new();
    for path in ["a.tmp", "keep.tmp", "d/b.tmp", "cache/x", "d/cache/y", "plain"] {
        put(&pair.a, path, path);
    }
    put(&pair.b, "own.tmp", "of b");
    put(&pair.b, "cache/of-b", "of b");
    let flags = ["--include", "keep.tmp", "--exclude", "*.tmp", "--exclude", "/cache/"];
    for _ in 0..2 {
        pair.once(&flags);
        assert_eq!(names(&pair.b), ["cache", "d", "keep.tmp", "own.tmp", "plain"]);
        assert_eq!(names(&pair.b.join("d")), ["cache"]);
        assert_eq!(names(&pair.b.join("cache")), ["of-b"]);
        assert_eq!(names(&pair.a), ["a.tmp", "cache", "d", "keep.tmp", "plain"]);
        assert_eq!(read(&pair.b, "d/cache/y"), "d/cache/y");
    }
}

#[test]
fn the_bandwidth_limit_is_kept() {
    let pair = Pair::new();
    fs::write(pair.a.join("big"), vec![7u8; 100]).unwrap();
    // Random bytes, which no compression makes smaller.
    fs::write(pair.a.join("random"), driftless_testkit::Rng::new(6).bytes(1_500_000)).unwrap();
    let started = std::time::Instant::now();
    pair.once(&["--bwlimit", "500k"]);
    assert!(started.elapsed().as_secs_f64() > 1.5, "1.5 MB at 500 kB/s took {:?}", started.elapsed());
    pair.assert_same();
}

#[test]
fn a_save_by_rename_that_got_a_link_keeps_both_names() {
    let pair = Pair::new();
    put(&pair.a, "d/f", "old");
    pair.once(&[]);
    put(&pair.a, "d/.f.tmp", "new");
    fs::rename(pair.a.join("d/.f.tmp"), pair.a.join("d/f")).unwrap();
    fs::hard_link(pair.a.join("d/f"), pair.a.join("other")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(read(&pair.b, "d/f"), "new");
}

#[test]
fn a_file_that_takes_the_name_of_its_directory_is_a_move() {
    let pair = Pair::new();
    put(&pair.a, "d/s/f", "moves up");
    put(&pair.a, "d/s/g", "gets two names");
    pair.once(&[]);
    fs::hard_link(pair.a.join("d/s/g"), pair.a.join("d/h")).unwrap();
    fs::rename(pair.a.join("d/s/f"), pair.a.join("d/tmp")).unwrap();
    fs::remove_dir_all(pair.a.join("d/s")).unwrap();
    fs::rename(pair.a.join("d/tmp"), pair.a.join("d/s")).unwrap();
    fs::hard_link(pair.a.join("d/h"), pair.a.join("d/i")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(read(&pair.b, "d/s"), "moves up");
}

#[test]
fn directories_that_changed_places_with_each_other_arrive() {
    let pair = Pair::new();
    put(&pair.a, "d/e/f", "x");
    put(&pair.a, "p/1", "one");
    put(&pair.a, "q/2", "two");
    pair.once(&[]);
    fs::rename(pair.a.join("d/e"), pair.a.join("tmp")).unwrap();
    fs::rename(pair.a.join("d"), pair.a.join("tmp/e")).unwrap();
    fs::rename(pair.a.join("tmp"), pair.a.join("d")).unwrap();
    fs::rename(pair.a.join("p"), pair.a.join("tmp")).unwrap();
    fs::rename(pair.a.join("q"), pair.a.join("p")).unwrap();
    fs::rename(pair.a.join("tmp"), pair.a.join("q")).unwrap();
    let before = inodes(&pair.b);
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(read(&pair.b, "q/1"), "one");
    assert_eq!(inodes(&pair.b)[std::path::Path::new("d")], before[std::path::Path::new("d/e")]);
}

#[test]
fn a_known_file_takes_the_name_of_a_directory_that_moved() {
    let pair = Pair::new();
    put(&pair.a, "d/in", "stays in it");
    put(&pair.a, "x", "takes its name");
    put(&pair.a, "y", "goes into it");
    fs::create_dir(pair.a.join("e")).unwrap();
    pair.once(&[]);
    let before = inodes(&pair.b);
    fs::rename(pair.a.join("y"), pair.a.join("d/y")).unwrap();
    put(&pair.a, "y", "new");
    fs::rename(pair.a.join("d"), pair.a.join("e/d")).unwrap();
    fs::rename(pair.a.join("x"), pair.a.join("d")).unwrap();
    pair.once(&[]);
    pair.assert_same();
    assert_eq!(inodes(&pair.b)[std::path::Path::new("e/d/in")], before[std::path::Path::new("d/in")]);
}
