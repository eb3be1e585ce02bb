//! What runs of the simulator found, shrunk: each of these once broke a rule.

use super::*;

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
        3 mv c a/b/c; 2 mv a b/c/c; crash 2 2; 0 mv a b/c; 0 mv b/c/b c/b; 3 mv a/b/c a/b/a; showsome 2 2 1; sync 0 3; show 3;
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

#[test]
fn a_name_given_to_a_file_outlives_its_removal_though_somebody_writes_to_a_copy_of_it() {
    let script =
        "0 create x 2; sync 0 1; sync 1 2; show 2; 3 create x 9; 0 savetmp x 10; sync 0 1; 1 create x 11;
        send 3 2 4; show 1; 1 mv x~0 x; deliver 0; show 2; 2 write x~0 20; 0 rm x";
    trace_in(
        Rules { edges: vec![(0, 1), (1, 2), (2, 3)], ..World::mesh(4).rules },
        script,
        "x=20 x~=9 x~=10",
    );
}

#[test]
fn what_was_taken_out_of_the_way_and_came_back_had_been_there() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; 0 mkdir c; sync 0 1; 0 mv c b/c/b; 0 mv b a/c; show 1;
        0 mv a/c/c c; 0 mv c a/b/b; 0 mv a/b/b a/c/c; 0 mv a/c a/b/b; 1 mv b/c a/b/a; send 1 0 2; show 1;
        1 mv a/b/a b/a; 1 mv a/b c/b; stop 1; start 1; sync 1 0;
        crash 0 7";
    trace_in(crashing(2), script, "a/ a/b/ a/b/b/ a/b/b/b/");
}

#[test]
fn a_file_saved_over_a_copy_of_the_name_it_leaves_takes_its_place() {
    let script = "0 mkdir d; 0 create x 2; sync 0 1; sync 1 2; show 1; show 2; 2 create d/y 7; 1 write x 9; 2 mv d/y x;
        forget 3; 3 create x 10; show 3; 3 mv x x~1";
    trace(4, script, "d/ x~=9 x~=10");
}

#[test]
fn a_version_hidden_behind_an_equal_file_does_not_follow_to_another_name() {
    let removed = "blind 1; 1 create x 1; 1 create y 1; 1 mkdir a; 0 symlink x 2; 0 save x 3; 0 ln x y; 1 ln x a/x; join 1;
        showsome 1 12 1; 1 rm x~0";
    let mut w = World::new(Rules { epochs: vec![1, 0], planner: true, ..World::mesh(2).rules });
    run(&mut w, removed);
    w.finish().unwrap();
    assert_eq!(text(&w.sites[1].disk_tree()), "a/ a/x=1 x=1 y=3");
    let written = "blind 1; 1 create x 1; 1 create y 1; 0 mkdir d; 0 create x 2; 0 create y 3; join 1; show 1; connect 0 1;
        0 mv x y; 0 ln y d/x; poll 0 1; deliver 0; 1 mv y~0 y; show 1; 1 write d/x 14";
    trace(2, written, "d/ d/x=14 y=1 y~=14");
}

#[test]
fn what_is_in_a_directory_stays_what_it_is_when_a_cut_takes_the_record_of_its_rename() {
    let script =
        "0 mkdir a; 0 mkdir b; 0 mkdir b/c; 0 mkdir c; 0 create a/x 4; sync 0 1; show 1; seal 1; 1 mv a b/a;
        0 write a/x 5; 1 mv c b/c/b; cut 1 8735788938112407674; 1 mv b/a c/b; send 1 0 6; 1 mv c b/c/b;
        cut 1 9062040834919627644";
    trace_in(Rules { epochs: vec![0, 2], ..powered(2) }, script, "b/ b/c/ b/c/b/ b/c/b/b/ b/c/b/b/x=5");
}

#[test]
fn what_was_put_into_a_directory_before_a_kill_is_planned_with_it() {
    let script =
        "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir c; 0 create a/x 4; sync 0 1; sync 1 3; sync 3 2; show 3;
        show 2; 3 mv a b/a; 2 mv b a/b/c; sync 3 2; 2 mkdir c/a; crash 2 4; 2 mv c a";
    trace_in(crashing(4), script, "a/ a/a/ c/ c/a/ c/a/b/ c/a/x=4");
}

#[test]
fn a_rename_over_what_no_durable_record_has_may_come_undone_with_a_kill() {
    let script =
        "0 create x 4; send 0 1 8; 2 symlink y 5; deliver 0; show 1; 0 mv x y; sync 2 0; 0 mv y x; sync 0 1;
        show 1; 1 mv y x; stop 1; start 1";
    trace_in(crashing(3), script, "x:symlink x~=4");
}

#[test]
fn what_a_plan_had_moved_before_a_cut_is_not_new() {
    let script =
        "0 mkdir a; 0 mkdir b; 0 mkdir b/c; 0 mkdir c; 0 create a/x 4; sync 0 1; show 1; 1 symlink c/c 5;
        0 chmod a/x 384; sync 0 1; seal 1; 0 mv b c/a; send 1 0 3; send 0 1 1; 1 mv c b/c/b; again 1;
        showsome 1 11 4; cut 1 16882299823644060929";
    trace_in(powered(2), script, "a/ a/x=4 b/ b/a/ b/a/c/ b/c:symlink");
}

#[test]
fn a_copy_whose_first_names_are_taken_keeps_its_name_when_one_of_these_goes() {
    let script = "2 create y 4; 1 symlink y 5; 2 write y 7; all; 0 mv y~0 y; 1 savetmp y~0 14; 1 write y 16; all; \
                  0 mv y~0 y; 2 savetmp y~0 20; 1 write y 22; all; 1 rm y~0";
    trace(3, script, "y=22 y~:symlink y~=14");
}

#[test]
fn a_name_that_nobody_gave_is_no_later_for_attributes_that_somebody_gave() {
    let script = "0 create y 2; 1 symlink y 5; all; 0 chmod y~0 384; 1 mv y~0 y; 0 rm y; 0 rm y~0";
    let rules = Rules { skews_ns: vec![53_998_309_504, 36_677_480_231], ..World::mesh(2).rules };
    trace_in(rules, script, "y:symlink");
}

#[test]
fn a_link_that_the_states_have_forgotten_takes_attributes_and_names() {
    let start = "1 symlink x 2; 0 mkdir x; sync 1 0; sync 0 1; 0 rmdir x; 0 symlink c 6; show 0; show 1; 0 mv c x; sync 0 1;";
    trace(2, &format!("{start} 1 chmod x~0 389"), "x:symlink");
    trace(2, &format!("{start} 1 ln x~0 z"), "x:symlink x~:symlink z:symlink");
    trace(2, &format!("{start} 1 mv x~0 z"), "x:symlink z:symlink");
}

#[test]
fn what_a_plan_removed_before_a_kill_is_gone_where_the_plan_put_something() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir b/c; 0 mkdir c; sync 0 1; show 1; 0 mv c b/c/a; send 0 1 3; 1 mv b c/a; \
                  0 symlink c 6; send 0 1 4; deliver 1; show 1; crash 1 7; 0 rm c";
    let rules = Rules { skews_ns: vec![39_251_306_362, 77_136_655_688], ..crashing(2) };
    trace_in(rules, script, "a/ a/a/ a/a/c/");
}

#[test]
fn who_saw_what_was_saved_over_a_file_may_remove_it_before_he_knows_the_times_of_directories() {
    let script = "0 mkdir d; sync 0 1; show 1; 1 mv d y; 1 symlink y/x 7; 0 mkdir y; 1 mv y/x x; 1 savetmp x 9; sync 1 0; \
                  show 0; 0 create y/y 10; 0 mv y/y x; send 0 1 3; deliver 0; show 1; 1 rm x";
    trace_in(Rules { epochs: vec![2, 2], ..World::mesh(2).rules }, script, "y/");
}

#[test]
fn one_of_several_versions_that_was_removed_elsewhere_is_not_new_after_a_lost_index() {
    let script = "0 mkdir a; 0 create a/x 4; sync 0 2; show 2; 2 save a/x 5; send 2 0 2; 0 write a/x 7; 2 savetmp a/x 8; deliver 0; \
                  sync 0 2; show 2; 0 rm a/x; forget 2";
    trace(3, script, "a/ a/x=8 a/x~=5");
}

#[test]
fn what_was_taken_out_of_several_versions_may_be_put_aside_after_a_lost_index() {
    let script = "0 create y 3; sync 0 4; sync 4 3; show 3; show 4; 4 write y 5; 3 write y 10; forget 2; sync 2 0; show 0; \
                  0 rm y~0; show 2; forget 2";
    trace(5, script, "recovered/ recovered/y~0=5 y=10");
}

#[test]
fn a_second_name_that_looks_like_a_copy_is_a_name() {
    let script = "blind 3; 3 create x 20; 3 mkdir a; 3 create a/x 22; 0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; 0 mkdir c; \
                  0 create x 2; 0 create a/x 20; sync 0 1; sync 1 2; join 3; show 1; 0 mv b/c b/b; show 2; 2 mv a/b a/c; sync 3 2; \
                  2 mv x a/x; 1 mv a c/b; sync 2 3; show 3; 3 mv b a/c/a; 1 mv c/b c/c; 1 mv c b/c; sync 3 0; 0 mv b/b c/a; \
                  1 ln b/c/c/x b/c/a; sync 0 1; show 1; 1 rmdir c/a";
    let rules = Rules {
        edges: vec![(0, 1), (1, 2), (0, 3), (2, 3)],
        relay_delay_ms: 2000,
        batch_entries: 1,
        ..World::mesh(4).rules
    };
    trace_in(rules, script, "c/ c/a~=20 c/c/ c/c/c/ c/c/c/a/ c/c/x=2 c/c/x~=22 c/c/x~=20");
}

#[test]
fn what_is_written_where_a_directory_had_left_for_an_empty_one_before_a_kill_is_the_next_version() {
    let script = "0 mkdir a; 0 mkdir b; 0 mkdir a/b; 0 mkdir b/c; sync 0 1; show 1; 1 mv b/c a/b; 1 create b/c 5; sync 1 0; show 0; \
                  0 write b/c 8; crash 0 4";
    trace_in(Rules { epochs: vec![2, 2], ..crashing(2) }, script, "a/ a/b/ b/ b/c=8");
}

#[test]
fn what_was_put_back_before_a_kill_and_replaced_by_a_user_is_not_out_of_the_way() {
    let script = "0 mkdir d; 0 create x 2; sync 0 1; sync 1 2; show 1; show 2; 1 mv x d/x; 1 mv d x; crash 1 5; sync 1 2; show 2; \
                  stop 2; 2 savetmp x/x 9";
    trace_in(crashing(3), script, "d/ x/ x/x=9 x/x~=2");
}

#[test]
fn what_a_user_makes_where_a_file_had_left_for_another_before_a_kill_is_no_rename_of_his() {
    let script = "0 create x 2; 0 create y 3; sync 0 1; show 1; 0 mv y x; sync 0 1; show 1; 0 rm x; 1 create y 6; crash 1 6";
    trace_in(crashing(2), script, "y=6");
}
