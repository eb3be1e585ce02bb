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

mod found;

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
