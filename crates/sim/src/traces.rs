//! Each case that once broke the rules, by name: the counter-examples of the executable model (G1 to G14, and what its
//! longer runs found), and those of the review. Every one is run with the planner and without it.
//!
//! A script is a list of commands: `0 mv f g` is what the user of site 0 does; `all` synchronises everything and shows
//! it; `sync 0 1` only brings states; `show 1` makes a disk show its tree, `showsome 1 2 3` three entries of it after two
//! others; `connect 0 1` begins to talk, `poll 0 1` lets 0 say something, `wait 2` seconds pass, `send 0 1 3` puts a batch
//! of at most three rows on the wire, `deliver 0` delivers the first message there, `again 0` too but leaves a duplicate,
//! `lost 0` loses it; `collect 0`, `forget 0` (the index), `blind 0` (no index yet), `join 0`, `stop 0` (the process is
//! killed), `start 0`, `seal 0` (a sync) and `cut 0 5` (the power goes; 5 says what is left). `is 0 f=1 g~=2` compares a tree; `~` stands for a conflict name.

use crate::disk::Tree;
use crate::site::{Op, base_of, file};
use crate::world::{Rules, Step, World};
use driftless_core::{Digest, Kind, Name};
use std::collections::BTreeMap;

/// Runs a script in a full mesh, heals the world, checks everything, and compares the tree at the end.
fn trace(sites: usize, script: &str, end: &str) {
    trace_in(World::mesh(sites).rules, script, end);
}

fn trace_in(rules: Rules, script: &str, end: &str) {
    // A disk that is built anew has no intents that a crash leaves.
    for planner in [false, true].into_iter().filter(|p| *p || !rules.crashes) {
        let mut w = World::new(Rules { planner, ..rules.clone() });
        run(&mut w, script);
        w.finish().unwrap_or_else(|why| panic!("planner {planner}: {why}"));
        assert_eq!(text(&w.sites[0].tree()), end, "planner {planner}");
    }
}

/// A world whose processes can be killed.
fn crashing(sites: usize) -> Rules {
    Rules { crashes: true, ..World::mesh(sites).rules }
}

/// A world whose power goes.
fn powered(sites: usize) -> Rules {
    Rules { power: true, ..crashing(sites) }
}

fn run(w: &mut World, script: &str) {
    for command in script.split([';', '\n']).map(str::trim).filter(|c| !c.is_empty()) {
        step(w, command).unwrap_or_else(|why| panic!("{command}: {why}"));
    }
}

fn step(w: &mut World, command: &str) -> Result<(), String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let number = |i: usize| words.get(i).map_or(usize::MAX, |n| n.parse().unwrap());
    let step = match words[0] {
        "all" => return w.heal(),
        "is" => {
            assert_eq!(text(&w.sites[number(1)].tree()), words[2..].join(" "), "{command}");
            return Ok(());
        }
        "blind" => Step::Blind(number(1)),
        "sync" => Step::Sync(number(1), number(2)),
        "send" => Step::Send(number(1), number(2), number(3)),
        "connect" => Step::Connect(number(1), number(2)),
        "deliver" => Step::Deliver(number(1), false),
        "again" => Step::Deliver(number(1), true),
        "lost" => Step::Lose(number(1)),
        "poll" => Step::Poll(number(1), number(2)),
        "wait" => Step::Wait(number(1) as u64),
        "show" => Step::Show(number(1)),
        "showsome" => Step::ShowSome(number(1), number(2), number(3)),
        "collect" => Step::Collect(number(1)),
        "forget" => Step::Forget(number(1)),
        "join" => Step::Join(number(1)),
        "stop" => Step::Stop(number(1)),
        "start" => Step::Start(number(1)),
        "seal" => Step::Seal(number(1)),
        "failing" => Step::ShowFailing(number(1), number(2) as u64),
        "crash" => Step::CrashInShow(number(1), number(2)),
        "cut" => Step::PowerCut(number(1), number(2) as u64),
        _ => {
            let token = |i: usize| number(i) as u64;
            let path = |i: usize| words[i].to_string();
            let op = match words[1] {
                "create" => Op::Create(path(2), token(3)),
                "symlink" => Op::Symlink(path(2), token(3)),
                "mkdir" => Op::Mkdir(path(2)),
                "write" => Op::Write(path(2), token(3)),
                "save" => Op::Save(path(2), token(3)),
                "savetmp" => Op::SaveSeen(path(2), token(3)),
                "mv" => Op::Mv(path(2), path(3)),
                "ln" => Op::Ln(path(2), path(3)),
                "rm" => Op::Rm(path(2)),
                "rmdir" => Op::Rmdir(path(2)),
                "chmod" => Op::Chmod(path(2), token(3) as u32),
                "touch" => Op::Touch(path(2), token(3) as i64),
                "open" => Op::Open(path(2)),
                "late" => Op::WriteOpen(0, token(2)),
                "close" => Op::Close(0),
                other => panic!("no command {other}"),
            };
            assert!(w.act_at(number(0), &op)?, "{command} cannot be done");
            return Ok(());
        }
    };
    w.step(&step)
}

/// A tree in one line: directories end in a slash, files say what they hold.
fn text(tree: &Tree) -> String {
    let known: BTreeMap<Digest, u64> = (0..100).map(|t| (file(t, 0).identity(), t)).collect();
    let name = |n: &Name| base_of(n).map_or_else(|| n.to_string(), |base| base + "~");
    let one = |(path, seen): (&Vec<Name>, &crate::disk::Seen)| {
        let path: Vec<String> = path.iter().map(name).collect();
        match (seen.kind, seen.identity) {
            (Kind::Dir, _) => path.join("/") + "/",
            (Kind::File, Some(d)) => {
                let what = known.get(&d).map_or("torn".into(), u64::to_string);
                format!("{}={what}", path.join("/"))
            }
            (kind, _) => format!("{}:{}", path.join("/"), kind.word()),
        }
    };
    tree.iter().map(one).collect::<Vec<_>>().join(" ")
}

// ----- what holds as written

#[test]
fn rmdir_against_create_inside_keeps_the_chain() {
    let start = "0 mkdir a; 0 mkdir a/b; all; 0 rmdir a/b; 0 rmdir a; 1 create a/b/f 1; all";
    trace(2, start, "a/ a/b/ a/b/f=1");
}

#[test]
fn a_kept_directory_goes_with_its_last_child() {
    trace(2, "0 mkdir a; all; 0 rmdir a; 1 create a/f 1; all; is 0 a/ a/f=1; 0 rm a/f", "");
    trace(2, "0 mkdir a; 0 create a/f 1; all; 0 rm a/f; 0 rmdir a; 1 write a/f 2; all; 0 rm a/f", "");
    // Who works in it after he heard of the removal makes it again.
    trace(2, "0 mkdir a; all; 0 rmdir a; 1 create a/f 1; all; 1 write a/f 2; 1 rm a/f", "a/");
}

#[test]
fn rename_over_an_edited_file_keeps_both() {
    trace(2, "0 create f 1; 0 create g 2; all; 0 mv g f; 1 write f 3", "f=3 f~=2");
}

#[test]
fn one_file_renamed_to_two_names_has_one() {
    trace(2, "0 create f 1; all; 0 mv f g; 1 mv f h", "h=1");
}

#[test]
fn directories_made_on_both_sides_are_one() {
    let both = "0 mkdir d; 0 create d/f 1; 1 mkdir d; 1 create d/g 2; all;";
    trace(2, both, "d/ d/f=1 d/g=2");
    trace(2, &format!("{both} 0 mv d e; 1 create d/h 3"), "e/ e/f=1 e/g=2 e/h=3");
    trace(2, &format!("{both} 0 rm d/f; 0 rm d/g; 0 rmdir d; all"), "");
}

// ----- G1: stamps above all that was seen

#[test]
fn g1_a_smaller_epoch_still_renames_and_removes() {
    let mut rules = World::mesh(2).rules;
    rules.epochs = vec![0, 2];
    trace_in(rules.clone(), "1 create b 1; all; 0 mv b a", "a=1");
    trace_in(rules.clone(), "1 create b 1; all; 0 rm b", "");
    trace_in(rules.clone(), "1 create b 1; all; 0 write b 2; all; is 1 b=2", "b=2");
    trace_in(rules, "1 mkdir b; all; 0 mv b a; all; 1 chmod a 448; all; 0 chmod a 511", "a/");
}

#[test]
fn g1_a_clock_behind_still_wins_over_what_it_saw() {
    let mut rules = World::mesh(2).rules;
    rules.skews_ns = vec![0, 1_000_000_000_000];
    trace_in(rules.clone(), "1 create b 1; all; 0 mv b a; all; 0 write a 2", "a=2");
    trace_in(rules, "1 create f 1; 0 create f 2; all; is 0 f=1 f~=2; 0 mv f~0 f", "f=2");
}

// ----- G2 to G4: what a removal takes

#[test]
fn g2_a_removed_name_does_not_return_with_a_write() {
    trace(1, "0 create b 1; 0 ln b c; 0 rm c; 0 write b 2", "b=2");
    trace(2, "0 create b 1; 0 ln b c; all; 1 rm c; all; 0 write b 2", "b=2");
}

#[test]
fn g2_each_removes_the_name_the_other_relied_on() {
    trace(2, "0 create f 1; 0 ln f g; all; 0 rm f; 1 rm g", "g=1");
}

#[test]
fn g2_a_name_that_is_relied_on_is_given_again() {
    // R0 still sees f when it removes g.
    trace(2, "0 create f 1; 0 ln f g; all; 1 rm f; sync 1 0; 0 rm g", "f=1");
}

#[test]
fn g3_nothing_is_wanted_that_nobody_has() {
    trace(2, "0 create a 1; all; 0 write a 2; 0 rm a; 1 mv a c", "");
}

#[test]
fn g3_a_rename_wins_over_a_removal_whatever_the_stamps() {
    trace(2, "0 create f 1; all; 0 mv f x; 1 rm f", "x=1");
    trace(2, "0 create f 1; all; 1 rm f; 0 mv f x", "x=1");
    let mut rules = World::mesh(2).rules;
    rules.epochs = vec![0, 9];
    trace_in(rules, "0 create f 1; all; 0 mv f x; 1 rm f", "x=1");
}

#[test]
fn g4_a_removal_does_not_take_what_its_disk_did_not_show() {
    trace(2, "0 create b 1; all; 1 write b 2; sync 1 0; 0 rm b", "b=2");
    trace(2, "0 create b 1; all; 1 mv b c; sync 1 0; 0 rm b", "c=1");
    trace(2, "0 mkdir d; all; 1 mv d e; sync 1 0; 0 rmdir d", "e/");
}

#[test]
fn g4_a_write_replaces_only_what_its_path_showed() {
    let two = "0 create f 1; all; 0 write f 2; 1 write f 3; all; is 0 f=3 f~=2;";
    trace(2, &format!("{two} 0 write f 4"), "f=4 f~=2");
    trace(2, &format!("{two} 0 write f~0 4"), "f=3 f~=4");
    trace(2, &format!("{two} 0 rm f~0"), "f=3");
    // A removal of the winner leaves the copy where it was.
    trace(2, &format!("{two} 0 rm f"), "f~=2");
}

// ----- G6 and 3.7: joining with a tree

#[test]
fn g6_equal_trees_meet_and_nothing_comes_back() {
    let meet = "blind 1; 1 mkdir a; 1 mkdir a/b; 1 create a/b/c 1; 0 mkdir a; 0 mkdir a/b; 0 create a/b/c 1; join 1; all; \
                is 1 a/ a/b/ a/b/c=1;";
    trace(2, &format!("{meet} 1 rm a/b/c"), "a/ a/b/");
    trace(2, &format!("{meet} 1 write a/b/c 2"), "a/ a/b/ a/b/c=2");
    trace(2, &format!("{meet} 0 mv a z"), "z/ z/b/ z/b/c=1");
}

#[test]
fn g6_a_path_does_not_fuse_strangers() {
    trace(2, "blind 1; 1 create p 2; 0 create p 1; 0 mv p q; join 1", "p=2 q=1");
}

#[test]
fn g6_a_file_meets_a_directory() {
    trace(2, "blind 1; 1 create p 2; 0 mkdir p; 0 create p/f 1; join 1", "p/ p/f=1 p~=2");
    trace(2, "blind 1; 1 mkdir p; 1 create p/f 2; 0 create p 1; join 1", "p/ p/f=2 p~=1");
}

#[test]
fn other_content_at_one_path_becomes_a_sibling_and_the_newer_wins() {
    trace(2, "blind 1; 0 create p 1; 1 create p 2; join 1; is 1 p=2 p~=1", "p=2 p~=1");
    trace(2, "blind 1; 1 create p 2; 0 create p 1; join 1; is 1 p=1 p~=2", "p=1 p~=2");
}

#[test]
fn hard_links_are_adopted() {
    let one = "blind 1; 1 create f 1; 1 ln f g; 0 create f 1;";
    trace(2, &format!("{one} 0 ln f g; join 1; all; 1 write g 2"), "f=2 g=2");
    // The tree has only one of the names: the other is new.
    trace(2, &format!("{one} join 1; all; 1 write g 2"), "f=2 g=2");
}

#[test]
fn two_files_here_that_are_one_there_become_one() {
    trace(
        2,
        "blind 1; 1 create f 1; 1 create g 1; 0 create f 1; 0 ln f g; join 1; all; 1 write g 2",
        "f=2 g=2",
    );
}

#[test]
fn a_third_site_joins_with_its_own_tree() {
    let script = "blind 2; 0 mkdir d; 0 create d/f 1; 1 mkdir d; 1 create d/g 2; sync 0 1; sync 1 0; show 0; show 1; \
                  2 mkdir d; 2 create d/f 1; 2 create d/g 7; 2 create h 8; join 2";
    trace(3, script, "d/ d/f=1 d/g=7 d/g~=2 h=8");
}

// ----- G7: collection

#[test]
fn g7_a_late_batch_does_not_bring_back_what_was_collected() {
    let script = "1 create b 1; send 1 0; 1 rm b; sync 1 0; sync 0 1; collect 0; is 0; deliver 0; is 0";
    trace(2, script, "");
}

#[test]
fn g7_a_tombstone_waits_for_what_members_did_before_they_knew() {
    let script = "0 mkdir c; all; 1 rmdir c; 0 create c/a 1; sync 1 0; sync 0 1; collect 1; sync 0 1; sync 1 0; collect 1";
    trace(2, script, "c/ c/a=1");
    // As it was found: R1 must not collect before it has what R0 did.
    let script = "0 mkdir c; all; 1 rmdir c; 0 create c/a 1; sync 1 0; collect 1; sync 0 1";
    trace(2, script, "c/ c/a=1");
}

#[test]
fn g7_a_directory_stays_while_a_lagging_disk_has_it() {
    let script = "0 mkdir b; 0 mkdir b/c; 0 mkdir c; all; 0 mv b/c c; sync 0 1; sync 1 0; collect 0; collect 1; \
                  1 create c/b 1";
    trace(2, script, "b/ c/ c/b=1");
}

#[test]
fn g7_everything_goes_in_the_end() {
    let mut w = World::mesh(3);
    run(
        &mut w,
        "0 mkdir a; 0 mkdir a/b; 0 create a/b/f 1; 0 ln a/b/f g; all; 1 rm g; all; 2 rm a/b/f; 2 rmdir a/b; 2 rmdir a; all; all",
    );
    for i in 0..3 {
        w.step(&Step::Collect(i)).unwrap();
        assert_eq!(*w.sites[i].states(), [], "site {i}");
    }
    w.finish().unwrap();
}

#[test]
fn collection_counts_tombstones_inside_a_directory() {
    // A removed file that cannot go yet holds its directory's tombstone too.
    let mut w = World::mesh(2);
    run(
        &mut w,
        "0 mkdir a; 0 create a/f 1; all; 0 rm a/f; 0 rmdir a; sync 0 1; 1 chmod a/f 384; show 1; collect 1",
    );
    assert_eq!(w.sites[1].states().len(), 2);
    run(&mut w, "all; collect 1");
    assert_eq!(w.sites[1].states().len(), 0);
}

// ----- G8: repaired cycles

const CYCLE: &str = "0 mkdir b; 0 mkdir b/c; 0 mkdir c; all; 0 mv c b/c/a; 1 mv b/c c/c; all;";

#[test]
fn g8_changes_inside_a_repaired_cycle_move_nothing_else() {
    // Fidelity is checked with every change.
    let w = |script: &str| {
        for planner in [false, true] {
            let mut w = World::new(Rules { planner, ..World::mesh(2).rules });
            run(&mut w, CYCLE);
            let dirs: Vec<String> = {
                let site = &w.sites[0];
                site.disk.paths().iter().map(|(p, _)| site.text(p)).collect()
            };
            for (i, dir) in dirs.iter().enumerate() {
                let mut v = World::new(Rules { planner, ..World::mesh(2).rules });
                run(&mut v, CYCLE);
                let command = script.replace("DIR", dir).replace("TO", &format!("t{i}"));
                if step(&mut v, &command).is_ok() {
                    v.finish().unwrap_or_else(|why| panic!("{command}: {why}"));
                }
            }
        }
    };
    w("0 mkdir DIR/x");
    w("0 create DIR/x 1");
    w("0 mv DIR TO");
}

#[test]
fn g8_a_directory_that_leaves_a_repaired_cycle_goes_alone() {
    trace(
        2,
        "0 mkdir a; 0 mkdir b; 0 mkdir a/b; all; 1 mv a b/e; 0 mv b a/b/b; sync 0 1; show 1; 1 mv b/e/b y",
        "b/ b/e/ y/",
    );
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir b/c; all; 1 mv a b/c/b; 0 mv b a/a; sync 1 0; 0 mkdir c; show 0; is 0 a/ a/c/ a/c/b/ c/; \
                  0 mv a/c/b c/c";
    trace(2, script, "a/ a/c/ c/ c/c/");
}

#[test]
fn g8_a_repaired_cycle_has_no_orphans() {
    let mut w = World::mesh(2);
    run(&mut w, CYCLE);
    let dirs = w.sites[0].disk.paths().len();
    assert_eq!(dirs, 3, "{}", text(&w.sites[0].tree()));
    w.finish().unwrap();
}

#[test]
fn a_union_in_a_cycle() {
    let script = "0 mkdir a; 0 mkdir b; all; 0 mv a b/a; 1 mv b a/b; 1 mkdir c; 0 mkdir c; all; 0 create c/f 1; 1 mv c d; all; \
                  0 create d/g 2";
    let mut w = World::mesh(2);
    run(&mut w, script);
    w.finish().unwrap();
}

// ----- G9, G10: conflict copies

const CONFLICT: &str = "0 create f 1; all; 0 write f 2; 1 write f 3; all; is 0 f=3 f~=2;";

#[test]
fn g9_a_vacated_name_is_not_taken_by_its_copies() {
    trace(2, &format!("{CONFLICT} 0 rm f; 0 rm f~0"), "");
    trace(2, &format!("{CONFLICT} 0 mv f g"), "f~=2 g=3");
    trace(2, &format!("{CONFLICT} 0 rm f; 0 mv f~0 f"), "f=2");
    trace(2, &format!("{CONFLICT} 0 mv f g; 0 mv f~0 f"), "f=2 g=3");
    let in_dir = "0 mkdir d; 0 create d/f 1; all; 0 write d/f 2; 1 write d/f 3; all;";
    trace(2, &format!("{in_dir} 0 rm d/f; 0 rm d/f~0; 0 rmdir d"), "");
}

#[test]
fn a_copy_that_is_written_or_renamed_is_a_file_of_its_own() {
    trace(2, &format!("{CONFLICT} 0 mv f~0 h; all; 0 write f 4"), "f=4 h=2");
    trace(2, &format!("{CONFLICT} 0 write f~0 5; all; 1 rm f"), "f~=5");
    trace(2, &format!("{CONFLICT} 0 ln f~0 h; all; 1 write h 6"), "f=3 f~=6 h=6");
    trace(2, &format!("{CONFLICT} 0 chmod f~0 384; all; 1 rm f"), "f~=2");
}

#[test]
fn a_copy_over_the_winner_chooses_it() {
    trace(2, &format!("{CONFLICT} 0 mv f~0 f; all; is 1 f=2; 1 write f 4"), "f=4");
    trace(2, &format!("{CONFLICT} 0 mv f f~0"), "f~=3");
}

#[test]
fn g10_a_chosen_version_survives_its_concurrent_removal() {
    trace(2, &format!("{CONFLICT} 0 mv f~0 f; 1 rm f~0"), "f=2");
}

#[test]
fn both_choose_differently_and_both_stay() {
    trace(2, &format!("{CONFLICT} 0 mv f~0 f; 1 rm f~0; 1 write f 4"), "f=4 f~=2");
}

// ----- G11, G12: links and files shown once

#[test]
fn g11_links_made_on_both_sides_both_stay() {
    trace(2, "0 create f 1; all; 0 ln f x; 1 ln f y", "f=1 x=1 y=1");
    trace(2, "0 create f 1; all; 0 ln f x; 1 ln f x; all; 0 write x 2", "f=2 x=2");
    trace(2, "0 create f 1; all; 0 ln f x; 1 ln f x; all; 0 rm x", "f=1");
}

#[test]
fn g12_equal_files_are_shown_once_and_change_as_one() {
    let once = "0 create f 1; 1 create f 1; all; is 0 f=1;";
    trace(2, &format!("{once} 0 write f 2"), "f=2");
    trace(2, &format!("{once} 0 mv f g"), "g=1");
    trace(2, &format!("{once} 0 rm f"), "");
    trace(2, &format!("{once} 0 ln f g; all; 1 write g 2"), "f=2 g=2");
}

#[test]
fn g12_only_what_is_on_this_disk_is_acted_on() {
    trace(2, "0 create f 1; 1 create f 1; sync 1 0; 0 rm f", "f=1");
    trace(2, "0 mkdir d; 1 mkdir d; 1 create d/g 1; sync 1 0; 0 rmdir d", "d/ d/g=1");
}

#[test]
fn g12_a_hidden_name_is_lost_alone() {
    let two = "0 create f 1; 1 create g 1; 1 ln g f; all; is 0 f=1 g=1;";
    trace(2, &format!("{two} 0 rm f; all; 0 write g 2"), "g=2");
    let three = "1 create y 1; 1 ln y x; 0 create x 1; 0 mkdir y; sync 1 0; show 0; is 0 x=1 y/ y~=1;";
    trace(2, &format!("{three} 0 write y~0 2; is 0 x=1 y/ y~=2"), "x=1 y/ y~=2");
    trace(2, &format!("{three} 0 savetmp y~0 2; is 0 x=1 y/ y~=2"), "x=1 y/ y~=2");
}

#[test]
fn equal_files_with_two_names_each_are_written_as_one() {
    // World equal-contents, seed 312: the file of the other site lost its names one by one, and got the first again
    // because the second went.
    let script = "1 create y 2; 0 create x 1; 0 ln x y; 1 write y 1; 1 ln y x; sync 1 0; show 0; 0 write y 5";
    trace(2, script, "x=5 y=5");
}

// ----- G13, G14

#[test]
fn g13_a_batch_brings_the_directories_above() {
    let script = "0 mkdir d; 0 create d/f 1; 0 chmod d 448; send 0 1 1; deliver 0; is 1 d/ d/f=1; show 1; 1 write d/f 2";
    trace(2, script, "d/ d/f=2");
}

#[test]
fn g14_a_lost_index_goes_on_as_another_replica() {
    let tree = "0 mkdir d; 0 create d/f 1; 0 create g 2; 0 create h 3; all;";
    // Nothing happened meanwhile: nothing happens.
    trace(2, &format!("{tree} forget 1; all; 1 write g 4"), "d/ d/f=1 g=4 h=3");
    // Removed elsewhere: it does not come back. Made here and never told: it stays.
    trace(2, &format!("{tree} 0 rm g; 1 create i 5; forget 1"), "d/ d/f=1 h=3 recovered/ recovered/i=5");
    trace(2, &format!("{tree} 0 rm d/f; 0 rmdir d; forget 1"), "g=2 h=3");
    trace(
        2,
        &format!("{tree} 0 rm d/f; 0 rmdir d; 1 create d/i 5; forget 1"),
        "g=2 h=3 recovered/ recovered/d_i=5",
    );
    // Lost twice: what was put aside stays there.
    trace(
        2,
        &format!("{tree} 1 create i 5; forget 1; forget 1"),
        "d/ d/f=1 g=2 h=3 recovered/ recovered/i=5",
    );
    // Another name that was removed elsewhere.
    trace(2, "0 create g 2; 0 ln g k; all; 0 rm k; forget 1", "g=2");
    // Made anew with the same content: another version than the one that was removed.
    trace(
        2,
        &format!("{tree} 0 rm g; 1 rm g; 1 create g 2; forget 1"),
        "d/ d/f=1 h=3 recovered/ recovered/g=2",
    );
    // Written here and never told: beside what others have.
    trace(2, &format!("{tree} 1 write h 6; forget 1"), "d/ d/f=1 g=2 h=6 h~=3");
    // Conflict copies on the disk are known again.
    trace(2, &format!("{CONFLICT} forget 1; all; 1 rm f~0"), "f=3");
}

// ----- what a longer run of the model found

#[test]
fn longer_1_asserting_a_directory_pins_all_repaired_edges() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir c; 0 mkdir a/b; 0 mkdir b/c; all; \
                  0 mv b a/b/c; 2 mv a b/c/c; 1 mv b/c a/b/c; 2 mv c b/c/c/a; sync 2 1; \
                  0 rmdir a/b/c/c; 0 rmdir a/b/c; 1 mkdir b/b; sync 0 1; show 1";
    for planner in [false, true] {
        let mut w = World::new(Rules { planner, ..World::mesh(3).rules });
        run(&mut w, script);
        let dirs: Vec<String> = {
            let site = &w.sites[1];
            site.disk.paths().iter().map(|(p, _)| site.text(p)).collect()
        };
        for dir in dirs {
            let mut v = World::new(Rules { planner, ..World::mesh(3).rules });
            run(&mut v, script);
            run(&mut v, &format!("1 create {dir}/new 1"));
            v.finish().unwrap();
        }
    }
}

#[test]
fn longer_2_a_directory_is_not_collected_while_something_refers_to_it() {
    for planner in [false, true] {
        let mut w = World::new(Rules { planner, ..World::mesh(2).rules });
        run(
            &mut w,
            "blind 1; 0 mkdir a; 0 create c 1; 1 mkdir a; 1 create c 1; join 1; all; \
             0 mv c a/a; sync 0 1; 0 rm a/a; 0 rmdir a; sync 0 1; sync 1 0; collect 1; collect 0; 1 write c 2",
        );
        w.finish().unwrap();
        assert!(text(&w.sites[1].tree()).ends_with("=2"), "{}", text(&w.sites[1].tree()));
    }
}

#[test]
fn longer_3_names_moved_over_a_copy_keep_their_binding() {
    let script = "0 create a 1; 0 create b 2; all; 0 rm a; 1 write b 3; 0 write b 4; 0 ln b a; sync 1 0; show 0; \
                  0 mv a b~0; 0 mv b~0 a; 0 write a 7";
    for planner in [false, true] {
        let mut w = World::new(Rules { planner, ..World::mesh(2).rules });
        run(&mut w, script);
        w.finish().unwrap();
    }
}

// ----- the review's cases of feeds and knowledge

#[test]
fn review_4a_a_row_that_moves_behind_the_cursor_is_not_skipped() {
    // B merges C's concurrent chmod into what it has of A, so the row moves; the receiver knows C's change already.
    let script = "0 mkdir d; 0 create f 1; all; 0 write f 2; 2 chmod f 384; sync 2 3; sync 0 1; send 1 3 1; sync 2 1; \
                  deliver 0; sync 1 3; is 3 d/ f=2";
    trace(4, script, "d/ f=2");
}

#[test]
fn review_4c_a_resolution_is_sent() {
    trace(2, &format!("{CONFLICT} 0 rm f~0; sync 0 1; is 1 f=3"), "f=3");
}

#[test]
fn review_4d_knowledge_is_claimed_on_a_busy_replica() {
    let mut w = World::mesh(2);
    run(&mut w, "0 create f 1; send 0 1; 0 create g 2; deliver 0");
    // The head of the snapshot counts, not the live one.
    assert_eq!(w.sites[1].knowledge().get(w.sites[0].me), 1);
    w.finish().unwrap();
}

#[test]
fn a_lost_batch_moves_nothing_and_a_duplicate_nothing_twice() {
    let script = "0 mkdir d; 0 create d/f 1; send 0 1 1; lost 0; send 0 1; again 0; deliver 0; is 1 d/ d/f=1";
    trace(2, script, "d/ d/f=1");
}

#[test]
fn review_5d_a_late_state_after_collection_is_dropped() {
    let script =
        "0 create f 1; send 0 1; sync 0 1; show 1; 1 rm f; all; all; collect 0; collect 1; deliver 0; is 1";
    trace(2, script, "");
}

// ----- saving, attributes, kinds

#[test]
fn a_save_by_temporary_file_is_a_write() {
    for save in ["save", "savetmp"] {
        trace(2, &format!("0 create f 1; all; 0 {save} f 2; 1 mv f g"), "g=2");
        trace(2, &format!("0 create f 1; all; 0 {save} f 2; 1 write f 3"), "f=3 f~=2");
        // Other names keep what they had.
        trace(2, &format!("0 create f 1; 0 ln f g; all; 0 {save} f 2"), "f=2 g=1");
    }
}

#[test]
fn a_temporary_file_that_was_shipped_is_a_file() {
    trace(2, "0 create f 1; all; 0 create t 2; sync 0 1; show 1; 0 mv t f; 1 write t 3", "f=3");
    trace(2, "0 create f 1; all; 0 create t 2; sync 0 1; 0 mv t f; 1 write f 3", "f=3 f~=2");
}

#[test]
fn other_kinds_at_one_name() {
    trace(2, "0 create f 1; 1 symlink f 2; all; 0 rm f~0", "f:symlink");
    trace(2, "0 symlink l 1; all; 0 rm l; 0 create l 2; 1 mv l m", "l=2 m:symlink");
}

#[test]
fn concurrent_chmod_and_write_both_happen() {
    let mut w = World::mesh(2);
    run(&mut w, "0 create f 1; all; 0 chmod f 384; 1 write f 2");
    w.finish().unwrap();
    let tree = w.sites[1].tree();
    assert_eq!(text(&tree), "f=2");
    assert_eq!(tree.values().next().unwrap().mode, 0o600);
}

#[test]
fn what_went_into_a_union_early_leaves_it_with_its_own_directory() {
    for (make, left) in [("create a/x 1", "u/x=1"), ("mkdir a/x", "u/x/")] {
        // Whichever of the entries has its turn alone, while `a` is to become one with `u`.
        for skip in 0..6 {
            let script = format!(
                "0 mkdir a; 0 {make}; all; 1 mkdir u; sync 1 2; show 2; 0 mv a u; sync 0 2; \
                 showsome 2 {skip} 1; 1 mv u v; sync 1 2; show 2"
            );
            trace(3, &script, &format!("u/ {left} v/"));
        }
    }
}

#[test]
fn a_name_given_while_nobody_watches_outlives_a_removal_elsewhere() {
    let script = "0 mkdir b; 0 create y 3; all; stop 1; 0 rm y; 1 ln y b/c; start 1";
    trace_in(crashing(2), script, "b/ b/c=3");
}

#[test]
fn directories_moved_into_one_that_took_the_place_of_another_are_found_after_a_crash() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; 0 create b/c/f 1; all; \
                  0 mv b/c a/b/b; 0 mv b a/c; 0 mkdir b; 0 mv a/c b/b; 0 mv a/b b/c; stop 0; 0 mv a b/c/b/b; start 0";
    trace_in(crashing(2), script, "b/ b/b/ b/c/ b/c/b/ b/c/b/b/ b/c/b/f=1");
}

#[test]
fn who_was_shown_a_new_name_before_he_knew_the_head_may_remove_it() {
    let script = "0 create x 2; 0 mkdir a; 0 create a/x 4; 0 create y 3; all; \
                  1 mv x a/x; 1 write y 8; 1 symlink z 9; send 1 0 3; deliver 0; show 0; 0 rm a/x";
    trace(2, script, "a/ y=8 z:symlink");
}

#[test]
fn a_copy_renamed_elsewhere_outlives_the_removal_of_winner_and_copy() {
    trace(3, "1 mkdir x; 0 create x 8; all; 0 mv x~0 y; 2 rmdir x; 2 rm x~0", "y=8");
    trace(2, "0 create x 1; 1 create x 2; all; 0 mv x~0 y; 1 rm x; 1 rm x~0", "y=1");
}

#[test]
fn collection_hears_only_of_what_a_crash_leaves() {
    let script = "0 mkdir d; sync 0 1; 0 rmdir d; send 0 1 9; deliver 0; collect 0; stop 1; start 1";
    trace_in(crashing(2), script, "");
}

#[test]
fn of_two_new_names_one_wins_whatever_version_it_holds() {
    trace(3, "0 create y 3; all; 0 write y 7; sync 0 1; show 1; 1 mv y x; 2 mv y x; 0 rm y", "");
}

#[test]
fn names_that_go_one_by_one_may_all_go() {
    let script = "0 create x 2; all; 0 ln x l; 1 savetmp x 7; sync 1 0; show 0; sync 0 2; show 2; \
                  1 mv x m; sync 0 1; show 1; 2 savetmp x 9; 2 rm l; 1 rm m";
    trace(3, script, "x=9");
}

#[test]
fn a_cut_takes_back_that_a_directory_became_one_with_another() {
    // Whichever state the cut leaves.
    for cut in 0..20 {
        let script = format!(
            "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; sync 0 2; sync 2 1; 0 mv a/b b/c/b; show 1; 1 mv a b/c; \
             send 1 0 8; send 0 1 3; deliver 1; show 1; cut 1 {cut}"
        );
        trace_in(powered(3), &script, "b/ b/c/ b/c/b/");
    }
}

#[test]
fn a_file_with_two_names_that_a_cut_tore_keeps_both() {
    for cut in 0..20 {
        let mut w = World::new(Rules { planner: true, ..powered(2) });
        run(
            &mut w,
            &format!(
                "0 mkdir b; 0 create x 2; sync 0 1; show 1; seal 1; 1 ln x b/b; 1 write x 6; cut 1 {cut}"
            ),
        );
        w.finish().unwrap_or_else(|why| panic!("cut {cut}: {why}"));
        assert!(
            w.sites[0].tree().keys().any(|path| path.len() == 1 && path[0].to_string() == "x"),
            "cut {cut}"
        );
    }
}

#[test]
fn a_copy_put_over_another_file_stays_although_somebody_removes_it() {
    let script = "0 create x 2; 0 create y 3; all; 1 mv y x; 2 write x 5; 0 write x 6; 1 write x 8; all
                  is 0 x=8 x~=5 x~=6; 0 mv x~0 x; is 0 x=5 x~=6; 1 rm x~0";
    trace(3, script, "x=5 x~=6");
}

#[test]
fn who_writes_forgets_no_version_that_a_name_holds() {
    // 0 renames what 1 removes; 2, which knows of the removal only, writes another version of the file.
    let known = "0 create f 1; all; 1 write f 8; 2 write f 9; sync 1 0; show 0; 1 rm f; sync 1 2; show 2";
    trace(3, &format!("{known}; 0 mv f g; 2 write f 10"), "g=10 g~=8");
}

#[test]
fn a_copy_of_a_removed_file_does_not_take_its_name() {
    // 2, whose disk is behind, writes one of two siblings whose entry 1 removed and 0 renamed.
    let siblings = "0 create x 1; all; 1 write x 2; 2 write x 3; all; is 0 x=3 x~=2";
    trace(3, &format!("{siblings}; 0 mv x z; 1 rm x; sync 1 2; 2 write x~0 10"), "x~=10 x~=2 z=3");
}

#[test]
fn two_files_of_one_content_may_each_be_replaced() {
    // 0 makes a file of its own of the copy that 1 chooses.
    let copies = "0 mkdir d; 0 create x 2; 0 create y 3; sync 0 2; sync 2 1; show 1; 1 mv x d/x; all; 2 savetmp y 7; 1 mv y x;
        0 mv d/x x; 1 save d/x 9; 0 write y 10; 1 write x 13; all; 0 mv x~0 x; 1 rm x~0; 1 mv x~1 x; all; is 0 d/ x=10 x~=9 x~=10 x~=7";
    trace(3, &format!("{copies}; 1 mv x~0 x; 2 write x~1 30"), "d/ x=9 x~=30 x~=7");
}

#[test]
fn of_two_who_rename_a_copy_the_winner_may_remove_it() {
    let copies = "0 create x 2; sync 0 1; sync 1 2; show 1; show 2; 2 write x 9; 1 write x 10; all; 4 write x~0 18; 3 write x 21;
        2 write x 28; 1 write x 29; all; is 0 x=29 x~=18 x~=21 x~=28";
    trace(5, &format!("{copies}; 2 mv x~0 x; 0 mv x~0 x~2; 0 rm x~1"), "x~=21 x~=28");
}

#[test]
fn a_time_set_before_a_failed_step_is_set_again() {
    // What a directory stands for could not be recorded, so that it got the time of the removed one back.
    let moved = "0 mkdir a; 0 mkdir a/b; 0 mkdir c; all; 1 mv c a/b; 0 create c/a 6; sync 1 0";
    trace(2, &format!("{moved}; failing 0 7001017642119124328"), "a/ a/b/ a/b/a=6");
}

#[test]
fn what_is_left_of_siblings_outlives_the_removal_of_one() {
    // 3 puts files over others twice, which leaves one of five contents; 0 knows it as one of several, and removes that.
    let siblings = "0 create x 2; sync 0 1; sync 1 2; sync 2 3; show 1; show 2; 1 savetmp x 5; show 3; 2 write x 6; 3 write x 7; all;
        3 mv x~0 x; 1 write x 10; 2 write x 11; all; 3 write x 12; 2 write x 13; all; is 0 x=13 x~=6 x~=5 x~=10 x~=12";
    trace(4, &format!("{siblings}; 3 mv x~0 x; 3 mv x~2 x; 0 rm x~1; 0 rm x~2"), "x=12 x~=5 x~=10");
}

#[test]
fn a_real_name_like_that_of_a_copy_goes_without_renaming_the_copy() {
    // The copy has a longer name, because a name that was settled at 2 looks like its own.
    let start = "3 create y 2; 2 create y 3; 1 symlink y 4; 0 symlink y 5; 2 write y 6; all; 2 rm y; 2 ln y~2 y; 1 write y 21; all";
    trace(5, &format!("{start}; 4 rm y~2"), "y=21 y~=2 y~:symlink y~:symlink");
}

#[test]
fn of_equal_siblings_a_removal_leaves_the_one_that_a_rename_keeps() {
    // A copy stands for two siblings of one content; 1 puts it over the winner while 2 removes it.
    let siblings = "0 create x 2; 0 create y 3; sync 0 2; sync 2 1; sync 2 4; sync 4 3; show 1; show 2; show 3; show 4; 0 mv y x;
        1 write y 7; 3 savetmp x 8; 4 savetmp x 9; 2 write y 11; all; 4 mv x x~0; 1 mv x~0 x; all; 2 mv x~0 x; all;
        is 1 x=8 x~=9 x~=11";
    trace(5, &format!("{siblings}; 1 mv x~0 x; 2 rm x~0"), "x=9 x~=11");
}

#[test]
fn a_copy_keeps_its_name_when_one_of_the_files_it_shows_is_written() {
    // Two copies show one content, the second a name of the first and somebody's sibling as well.
    let copies = "0 create x 2; all; 4 write x 13; 0 write x 14; all; 4 mv x~0 x; 2 ln x~0 y; 0 mv x y; 2 write x 18; all;
        is 1 x~=13 y=18 y~=13";
    trace(5, &format!("{copies}; 1 savetmp x~0 20"), "x~=20 y=18 y~=13");
}

#[test]
fn the_content_of_another_kind_is_no_earlier_version() {
    // The cut takes the symlink that was put over a file, which the first site still shows.
    let before = "0 mkdir a; 0 mkdir b; 0 mkdir b/c; 0 create a/x 4; sync 0 1; show 1; 1 mv a b/c/b; 1 symlink a 5; 1 mv a b/c/b/x";
    let chain = Rules { edges: vec![(0, 1), (1, 2), (2, 3)], ..powered(4) };
    trace_in(chain, &format!("{before}; connect 1 2; cut 1 11235961602570275440"), "b/ b/c/ b/c/b/");
}

#[test]
fn a_second_name_that_a_cut_took_outlives_the_removal_of_the_first() {
    for cut in 0..20 {
        let named = "0 mkdir a; 0 create x 2; sync 0 1; show 1; seal 1; 1 ln x a/c";
        trace_in(powered(2), &format!("{named}; sync 1 0; cut 1 {cut}; 1 rm x"), "a/ a/c=2");
    }
}

#[test]
fn a_settled_name_yields_to_a_rename_by_who_owns_less() {
    // Removing or renaming the winner settles the copy, in a later epoch than the rename elsewhere.
    let owned = |epochs: &[u64]| Rules { epochs: epochs.to_vec(), ..World::mesh(epochs.len()).rules };
    trace_in(owned(&[0, 1]), "0 create y 15; 1 create y 22; all; 1 rm y; 0 mv y~0 y; 1 rm y~0", "y=15");
    let moved = "2 create x 4; 0 symlink x 7; all; 0 mv x~0 x; 2 mv x y; 2 rm x~0";
    trace_in(owned(&[0, 1, 1]), moved, "x:symlink y=4");
}

#[test]
fn a_rename_keeps_what_others_removed_as_the_whole_file() {
    // Who removes it has heard of a second version, but shows only the one that is renamed.
    let written = "0 mkdir a; 0 create a/x 4; sync 0 1; sync 1 2; show 1; show 2; 1 write a/x 8; 2 write a/x 6; sync 1 2; sync 2 1; show 1";
    let owned = Rules { epochs: vec![1, 1, 2], ..World::mesh(3).rules };
    trace_in(owned, &format!("{written}; 2 rm a/x; 1 mv a/x b"), "a/ a/x~=8 b=6");
    // The name that he removes holds it.
    let joined = "blind 2; 2 create x 3; 0 create x 2; join 2; show 2; send 2 1 8; deliver 0; sync 1 0";
    trace(3, &format!("{joined}; 2 mv x y; 0 rm x"), "x~=3 y=2");
    // He has seen both, and removes one after the other.
    let seen = "0 mkdir a; 0 create x 2; sync 0 1; show 1; 0 write x 5; sync 0 1; 1 write x 6; show 1";
    trace(2, &format!("{seen}; 0 mv x a/x; 1 rm x; 1 rm x~0"), "a/ a/x=5");
}

#[test]
fn a_version_that_a_second_name_keeps_stays_when_that_name_goes() {
    let kept = "0 create x 2; sync 0 1; show 1; 0 write x 5; 1 write x 6; all; 0 mv x~0 x; 1 ln x y; sync 1 0; show 0; 0 savetmp y 7";
    trace(2, kept, "x=5 y=7");
}

#[test]
fn an_overtaken_batch_says_nothing_of_what_is_known() {
    // What 1 sends again begins after a row that has moved on in the feed; then the last of the batches before arrives.
    let rules =
        Rules { planner: true, live: true, relay_delay_ms: 2000, batch_entries: 5, ..World::mesh(3).rules };
    let mut w = World::new(rules);
    run(
        &mut w,
        "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; 0 mkdir c; 0 create x 2; 0 create y 3; sync 0 1; sync 1 2; show 1;
         connect 0 1; 0 mv y x; show 2; connect 1 2; 2 create c/a 5; poll 2 1; 2 create b/c/b 6; poll 2 1; wait 2; poll 2 1;
         deliver 1; 1 mv b/c a/a; poll 0 1; 1 create a/a/c 9; poll 1 2; 1 create a/c 10; poll 1 2; wait 2; poll 1 2; lost 3;
         deliver 3; 0 mv b/c a/b/a; poll 0 1; poll 0 1; wait 2; poll 0 1; lost 4; deliver 4; 2 symlink b/b 13; poll 1 2",
    );
    w.finish().unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn a_copy_of_a_removed_file_is_not_new_after_a_lost_index() {
    trace(2, "0 create x 3; sync 0 1; 1 mkdir x; show 1; 0 rm x; forget 1", "recovered/ recovered/x/");
}

#[test]
fn a_directory_renamed_just_before_a_cut_stays_that_directory() {
    // Its record had changed since the last sync, the record of the rename went with the power, the rename did not.
    let edges = vec![(0, 1), (1, 2), (0, 3), (2, 3)];
    let touched = "0 mkdir a; 0 mkdir b; 0 mkdir b/c; 0 create x 2; 0 create a/x 4; sync 0 1; sync 0 3; sync 3 2; show 1;
        seal 1; 1 touch a 165; show 2; 2 rm a/x; 1 rm x; connect 0 1; 1 mv a b/c/a";
    trace_in(
        Rules { edges, ..powered(4) },
        &format!("{touched}; cut 1 5091594860871769932"),
        "b/ b/c/ b/c/a/",
    );
}

#[test]
fn a_cut_leaves_a_directory_out_of_the_way_with_another_time() {
    let edges = vec![(0, 1), (1, 3), (2, 3), (3, 4), (0, 4)];
    let moved =
        "0 mkdir a; 0 mkdir b; sync 0 1; sync 1 3; sync 3 2; show 3; 3 mv a b/a; show 2; sync 3 4; sync 4 0;
        send 0 2 2; deliver 0; 2 mv b a/a; seal 2; show 2; cut 2 5899434262045274474";
    trace_in(Rules { edges, planner: true, ..powered(5) }, moved, "a/ a/a/");
    let mesh = Rules { skews_ns: vec![41492572845, 76728748998, 2768594031], ..powered(3) };
    let chain = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; 0 mkdir c; sync 0 2; sync 2 1; show 1; show 2; seal 0;
        0 mv b a/b/b; 2 mv a/b c/b; 0 mv c a/b/b/c/a; cut 0 11215356682951067989; 1 mv a b/c/a; seal 1; 0 mv c a/b/b/b;
        sync 0 2; sync 2 1; show 1; cut 1 16077149399084731409; show 1; collect 0; cut 1 4922770378997637901";
    trace_in(mesh, chain, "b/ b/b/ b/b/b/ b/b/b/c/ b/b/b/c/a/");
}

#[test]
fn a_directory_below_one_out_of_the_way_gets_its_time_again() {
    let moved = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; 0 mkdir c; sync 0 1; show 1; 1 mv a c/c; sync 1 0; 1 mv c/c/b b/c/b;
        show 0; 0 mv b c/c/b/b; sync 0 1; seal 1; 1 mv c b/c/b; show 1; cut 1 17400465843189470407";
    trace_in(powered(2), moved, "b/ b/c/ b/c/b/ b/c/b/b/ b/c/b/b/c/");
}

#[test]
fn a_cut_leaves_a_directory_where_it_was_between_two_renames() {
    let moved =
        "0 mkdir a; 0 mkdir b; 0 mkdir c; 0 create y 3; 0 create a/x 4; sync 0 2; show 2; seal 0; 0 mv a c/b;
        2 savetmp a/x 5; 0 save y 6; 0 mv c/b b/b; stop 0; start 0; cut 0 2643624850437732283";
    let rules = Rules { live: true, edges: vec![(0, 1), (0, 2)], ..powered(3) };
    trace_in(rules, moved, "b/ c/ c/b/ c/b/x=5 y=torn");
}

#[test]
fn the_name_that_alone_keeps_a_file_goes_and_the_file_stays() {
    // A file that somebody removed has a second name, and is kept by the first, which somebody gave it meanwhile.
    let kept = "0 mkdir d; 0 create x 2; 0 create y 3; sync 0 4; sync 4 3; show 3; 3 ln y d/x; all; 3 rm y; 3 mv d/x y; sync 3 1;
        0 write d/x 8; sync 0 1; show 1; sync 1 0; 3 mv y d/y; 0 save d/x 11; 1 mv x y; all; 2 save y~0 13";
    trace(5, kept, "d/ d/x=11 d/y=8 y=2 y~=13");
}

#[test]
fn what_a_later_step_made_tells_that_an_earlier_one_was_done() {
    let ring = Rules { edges: vec![(0, 1), (1, 2), (0, 3), (2, 3)], batch_entries: 5, ..powered(4) };
    let turned = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; 0 mkdir c; sync 0 1; sync 1 2; sync 0 3; show 2; show 3;
        3 mv c a/b/c; 2 mv a b/c/c; crash 2 2; 0 mv a b/c; 0 mv b/c/b c/b; 3 mv a/b/c a/b/a; showsome 2 3 1; sync 0 3; show 3;
        2 mv a b/c/c/c; 3 mv a b/c/a; 0 mv b c/b/b; sync 0 3; sync 2 3; 3 mv b/c/a b/c/b; crash 3 6";
    trace_in(ring, turned, "b/ b/b/ b/b/b/ b/b/b/c/ b/b/b/c/c/ b/b/b/c/c/b/ b/b/b/c/c/c/");
    let star = Rules { edges: vec![(0, 1), (0, 2), (1, 2)], ..crashing(3) };
    let replaced = "0 create x 2; 0 create y 3; sync 0 2; sync 2 1; show 1; 0 mv x y; 0 create x 6; sync 0 1; show 1; 0 rm y; crash 1 1";
    trace_in(star, replaced, "x=6");
}

#[test]
fn what_a_plan_placed_and_a_user_put_elsewhere_is_recorded_once() {
    let moved = "0 mkdir d; 0 create x 2; 0 create y 3; sync 0 1; sync 1 3; 3 symlink y 5; show 3; 3 mv x y; cut 3 1963527928818620233";
    trace_in(powered(4), moved, "d/ x=2 y=3 y~=2");
}

/// A world in which these sites have filters.
fn filtered(filtered: &[bool]) -> Rules {
    Rules { planner: true, filtered: filtered.to_vec(), ..World::mesh(filtered.len()).rules }
}

#[test]
fn a_directory_that_leaves_what_a_filter_hides_comes_with_what_is_in_it() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir b/c; 0 create b/c/e 6; sync 0 1; show 1; 0 mv b/c a/e; sync 0 1; show 1";
    let mut w = World::new(filtered(&[false, true]));
    run(&mut w, script);
    assert_eq!(text(&w.sites[1].disk_tree()), "a/ a/e/ a/e/e=6 b/");
    w.finish().unwrap();
}

#[test]
fn a_directory_that_lives_by_what_a_filter_hides_comes_again() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; sync 0 1; show 1; 1 mv b a/b/a; 1 rmdir a/b/a; sync 1 2;
        show 2; 2 rmdir a/b/a; show 2";
    let mut w = World::new(filtered(&[false, true, true]));
    run(&mut w, script);
    assert_eq!(text(&w.sites[2].disk_tree()), "a/ a/b/ a/b/a/");
    w.finish().unwrap();
}

#[test]
fn all_of_several_directories_that_became_one_go_where_a_filter_hides_it() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir c; sync 0 1; sync 1 2; sync 2 3; show 1; show 2; show 3; 3 mv a/b c/c;
        2 mv b a/b/b; 1 mkdir a/b/a; 2 mv a/b/b a/b/a; all";
    let mut w = World::new(filtered(&[false, true, true, false]));
    run(&mut w, script);
    assert_eq!(text(&w.sites[1].disk_tree()), "a/");
    w.finish().unwrap();
}

#[test]
fn what_came_with_a_directory_that_a_filter_hides_now_goes_from_the_one_it_was_one_with() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir c; sync 0 3; sync 3 1; sync 3 2; show 1; show 2; show 3; 2 create b/a 5;
        sync 2 1; 3 mv b c/c; 1 mv a/b b; show 1; all";
    let mut w = World::new(filtered(&[false, true, false, false]));
    run(&mut w, script);
    assert_eq!(text(&w.sites[1].disk_tree()), "a/ b/");
    w.finish().unwrap();
}

#[test]
fn what_is_written_to_a_file_that_was_removed_elsewhere_comes_back() {
    let rules = Rules { planner: true, open_files: true, ..World::mesh(2).rules };
    let mut w = World::new(rules);
    run(&mut w, "0 create x 2; all; 0 open x; 1 rm x; sync 1 0; show 0; 0 late 9; show 0; 0 late 15; show 0");
    assert_eq!(text(&w.sites[0].disk_tree()), "");
    run(&mut w, "0 close; show 0; all");
    assert_eq!(text(&w.sites[1].disk_tree()), "x.recovered-3=15");
    w.finish().unwrap();
}

#[test]
fn what_lives_by_a_name_that_was_given_where_a_filter_hides_it_is_kept_there() {
    let script = "0 mkdir a; 0 mkdir a/b; 0 create a/x 4; sync 0 1; show 1; 0 rm a/x; 0 mv a/b a/y; 1 mv a/x a/b/b; sync 0 1; show 1; all";
    let mut w = World::new(filtered(&[false, true]));
    run(&mut w, script);
    assert_eq!(text(&w.sites[0].disk_tree()), "a/ a/y/ a/y/b=4");
    w.finish().unwrap();
}

#[test]
fn a_symlink_that_was_changed_and_removed_elsewhere_can_be_renamed() {
    let renamed = "0 symlink x 4; forget 0; sync 0 1; show 1; 0 symlink recovered/y 9; 0 mv recovered/y recovered/x;
        1 mv recovered/x recovered/y; 1 mkdir recovered/x; 0 save recovered/x 14; sync 0 1; 1 mv recovered/y recovered/x/x; all";
    trace(2, renamed, "recovered/ recovered/x/ recovered/x/x:symlink recovered/x~=14");
}
