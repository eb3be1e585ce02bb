use super::*;
use crate::id::ReplicaId;
use crate::meta::Digest;
use proptest::prelude::*;
use smallvec::smallvec;

fn dot(r: u64, n: u64) -> Dot {
    Dot::new(ReplicaId(r), n)
}

fn stamp(clock_ns: u64, r: u64) -> Stamp {
    Stamp { epoch: 0, clock_ns, replica: ReplicaId(r) }
}

fn content(text: u8) -> Content {
    Content::File { size: 1, mtime: Time::default(), digest: Digest::of(&[text]) }
}

fn at(parent: u64, stamp: Stamp, dot: Dot, holds: Dot) -> At {
    At { stamp, dot, parent: EntryId(Dot::new(ReplicaId(9), parent)), name: Name::new(b"f").unwrap(), holds }
}

/// The state right after its creation by replica 1.
fn born(kind: Kind) -> Entry {
    let (birth, stamp) = (dot(1, 1), stamp(1, 1));
    let dir = kind.is_dir();
    let first = at(1, stamp, birth, if dir { Dot::default() } else { birth });
    let version = Version { dot: birth, stamp, content: content(0) };
    Entry {
        id: EntryId(birth),
        kind,
        ctx: VersionVector::from_dot(birth),
        removed: VersionVector::new(),
        data: if dir { smallvec![] } else { smallvec![version] },
        links: smallvec![Link { id: LinkId(birth), at: first.clone(), gone: VersionVector::new() }],
        meta: (stamp, Attrs::default()),
        dir_time: dir.then_some((stamp, Time::default())),
        hist: if dir { vec![(first.parent, stamp)] } else { Vec::new() },
    }
}

/// What a replica does to its copy. Numbers choose among what there is, modulo.
#[derive(Clone, Debug)]
enum Act {
    /// New content instead of the winner, or of all versions.
    Write {
        text: u8,
        all: bool,
    },
    Move {
        link: usize,
        parent: u64,
    },
    Link {
        parent: u64,
    },
    /// Takes a name and, if `removed`, all versions.
    Remove {
        link: usize,
        removed: bool,
    },
    Chmod {
        mode: u32,
    },
    /// Sets a directory's time, forth or back.
    Touch {
        sec: i64,
    },
    /// Merges another replica's copy.
    Learn {
        from: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u8..3, any::<bool>()).prop_map(|(text, all)| Act::Write { text, all }),
        (0usize..4, 1u64..4).prop_map(|(link, parent)| Act::Move { link, parent }),
        (1u64..4).prop_map(|parent| Act::Link { parent }),
        (0usize..4, any::<bool>()).prop_map(|(link, removed)| Act::Remove { link, removed }),
        (0u32..3).prop_map(|mode| Act::Chmod { mode }),
        (0i64..3).prop_map(|sec| Act::Touch { sec }),
        (0usize..3).prop_map(|from| Act::Learn { from }),
    ]
}

fn change(e: &mut Entry, act: &Act, dot: Dot, epoch: u64) {
    let stamp = Stamp::above(e.stamp_max(), epoch, 0, dot.replica);
    let holds = e.winner().map(|v| v.dot).unwrap_or_default();
    e.ctx.add(dot);
    match *act {
        Act::Write { text, all } if !e.kind.is_dir() => {
            e.data.retain(|v| !all && v.dot != holds);
            e.data.push(Version { dot, stamp, content: content(text) });
            e.data.sort_by_key(|v| v.dot);
        }
        Act::Move { link, parent } => {
            let i = link % e.links.len();
            e.links[i].at = at(parent, stamp, dot, holds);
            if e.kind.is_dir() {
                e.note_hist(e.links[i].at.parent, stamp);
            }
        }
        Act::Link { parent } if !e.kind.is_dir() => {
            let gone = VersionVector::new();
            e.links.push(Link { id: LinkId(dot), at: at(parent, stamp, dot, holds), gone });
            e.links.sort_by_key(|l| l.id);
        }
        Act::Remove { link, removed } => {
            let (i, ctx) = (link % e.links.len(), e.ctx.clone());
            e.links[i].gone.join(&ctx);
            if removed {
                e.removed.join(&ctx);
            }
        }
        Act::Chmod { mode } => e.meta = (stamp, Attrs { mode, ..Attrs::default() }),
        Act::Touch { sec } if e.kind.is_dir() => e.dir_time = Some((stamp, Time { sec, nsec: 0 })),
        _ => {}
    }
}

/// All states that three replicas of an entry went through.
fn states() -> impl Strategy<Value = Vec<Entry>> {
    let acts = proptest::collection::vec((0usize..3, act()), 1..24);
    (any::<bool>(), acts).prop_map(|(dir, acts)| {
        let mut copies = vec![born(if dir { Kind::Dir } else { Kind::File }); 3];
        let mut n = [1u64; 3];
        let mut all = vec![copies[0].clone()];
        for (who, act) in acts {
            match act {
                Act::Learn { from } => {
                    let other = copies[from].clone();
                    copies[who].merge(&other);
                }
                _ => {
                    n[who] += 1;
                    change(&mut copies[who], &act, dot(who as u64 + 1, n[who]), who as u64 % 2);
                }
            }
            all.push(copies[who].clone());
        }
        all
    })
}

fn merged(a: &Entry, b: &Entry) -> Entry {
    let mut m = a.clone();
    m.merge(b);
    m
}

proptest! {
    #[test]
    fn merge_is_commutative_associative_and_idempotent(
        all in states(),
        i in any::<[prop::sample::Index; 3]>(),
    ) {
        let [a, b, c] = i.map(|i| i.get(&all).clone());
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a);
    }

    #[test]
    fn merge_tells_whether_it_changed_something(all in states(), i in any::<[prop::sample::Index; 2]>()) {
        let [a, b] = i.map(|i| i.get(&all).clone());
        let mut m = a.clone();
        prop_assert_eq!(m.merge(&b), m != a);
        prop_assert!(!m.merge(&a) && !m.merge(&b));
    }

    #[test]
    fn merge_keeps_what_the_other_side_has_not_seen(all in states(), i in any::<[prop::sample::Index; 2]>()) {
        let [a, b] = i.map(|i| i.get(&all).clone());
        let m = merged(&a, &b);
        for v in &a.data {
            prop_assert!(m.version(v.dot).is_some() || (b.version(v.dot).is_none() && b.ctx.covers(v.dot)));
        }
        prop_assert!(m.stamp_max() >= a.stamp_max().max(b.stamp_max()));
        prop_assert!(crate::codec::well_formed(&m));
    }

    #[test]
    fn all_orders_lead_to_one_state((all, shuffled) in states().prop_flat_map(|s| (Just(s.clone()), Just(s).prop_shuffle()))) {
        let fold = |of: &[Entry]| of.iter().skip(1).fold(of[0].clone(), |m, e| merged(&m, e));
        prop_assert_eq!(fold(&all), fold(&shuffled));
    }
}

/// Model finding G3, `mv f x | rm f` -> `x`: the mover's name holds the version, whatever the stamps.
#[test]
fn a_moved_file_survives_its_removal() {
    for removers_epoch in [0, 5] {
        let old = born(Kind::File);
        let (mut remover, mut mover) = (old.clone(), old);
        change(&mut remover, &Act::Remove { link: 0, removed: true }, dot(1, 2), removers_epoch);
        change(&mut mover, &Act::Move { link: 0, parent: 2 }, dot(2, 1), 0);
        assert!(remover.shown_links().is_empty());
        let m = merged(&remover, &mover);
        assert_eq!(m.shown_links()[0].at, mover.links[0].at);
        assert_eq!(m.winner().unwrap().dot, dot(1, 1));
    }
}

/// Model finding G3, `write f v2; rm f | mv f x`: v1 is overwritten and v2's content is gone, so that
/// nothing may be shown that nobody can serve.
#[test]
fn a_removed_version_that_no_name_holds_is_never_wanted() {
    let old = born(Kind::File);
    let (mut remover, mut mover) = (old.clone(), old);
    change(&mut remover, &Act::Write { text: 2, all: true }, dot(1, 2), 0);
    change(&mut remover, &Act::Remove { link: 0, removed: true }, dot(1, 3), 0);
    change(&mut mover, &Act::Move { link: 0, parent: 2 }, dot(2, 1), 0);
    let m = merged(&remover, &mover);
    assert!(m.links[0].present() && m.winner().is_none() && m.shown_links().is_empty());
}

/// Model finding G11, `link f x | link f y`: both names stay.
#[test]
fn names_made_at_once_on_two_sites_both_stay() {
    let (mut a, mut b) = (born(Kind::File), born(Kind::File));
    change(&mut a, &Act::Link { parent: 2 }, dot(1, 2), 0);
    change(&mut b, &Act::Link { parent: 3 }, dot(2, 1), 0);
    assert_eq!(merged(&a, &b).shown_links().len(), 3);
}

#[test]
fn a_removed_version_counts_while_a_present_name_holds_it() {
    let mut e = born(Kind::File);
    let ctx = e.ctx.clone();
    e.removed.join(&ctx);
    assert_eq!(e.winner().unwrap().dot, dot(1, 1));
    assert_eq!(e.shown_links().len(), 1);
    e.links[0].gone.join(&ctx);
    assert!(e.winner().is_none() && e.shown_links().is_empty());
}

#[test]
fn a_version_without_a_present_name_is_shown_under_the_newest() {
    let mut e = born(Kind::File);
    change(&mut e, &Act::Link { parent: 2 }, dot(1, 2), 0);
    for i in [0, 1] {
        change(&mut e, &Act::Remove { link: i, removed: false }, dot(1, 3 + i as u64), 0);
    }
    assert_eq!(e.present_links().count(), 0);
    let shown = e.shown_links();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].id, LinkId(dot(1, 2)));
}

#[test]
fn a_new_stamp_is_above_all_in_the_entry() {
    let mut e = born(Kind::Dir);
    e.hist[0].1 = stamp(70, 2);
    assert_eq!(e.stamp_max(), stamp(70, 2));
    e.meta.0 = Stamp { epoch: 1, ..stamp(5, 1) };
    assert_eq!(e.stamp_max(), e.meta.0);
    e.dir_time = Some((Stamp { epoch: 1, ..stamp(6, 1) }, Time::default()));
    assert_eq!(e.stamp_max(), Stamp { epoch: 1, ..stamp(6, 1) });
    e.note_hist(e.hist[0].0, stamp(60, 2));
    assert_eq!(e.hist, [(e.hist[0].0, stamp(70, 2))]);
}

/// A directory that `cp -a` makes has the time of its making first and gets an older one when it is filled.
#[test]
fn a_directorys_time_may_go_back_and_wins_over_nothing_else() {
    let old = born(Kind::Dir);
    let (mut a, mut b) = (old.clone(), old.clone());
    change(&mut a, &Act::Touch { sec: 900 }, dot(1, 2), 0);
    let filled = a.clone();
    change(&mut a, &Act::Touch { sec: 5 }, dot(1, 3), 0);
    assert_eq!(merged(&filled, &a).attrs().dir_mtime, Some(Time { sec: 5, nsec: 0 }));
    // Its stamps are the greater ones; the mode is another register.
    change(&mut b, &Act::Chmod { mode: 0o700 }, dot(2, 1), 0);
    let m = merged(&a, &b);
    assert!(a.dir_time.unwrap().0 > b.meta.0);
    assert_eq!((m.meta.1.mode, m.attrs().dir_mtime), (0o700, Some(Time { sec: 5, nsec: 0 })));
}

#[test]
fn of_imported_directory_times_the_greatest_wins() {
    let imported = |sec| Entry { dir_time: Some((Stamp::MIN, Time { sec, nsec: 0 })), ..born(Kind::Dir) };
    assert_eq!(merged(&imported(3), &imported(8)).attrs().dir_mtime, Some(Time { sec: 8, nsec: 0 }));
    let mut touched = imported(8);
    change(&mut touched, &Act::Touch { sec: 1 }, dot(2, 1), 0);
    assert_eq!(merged(&imported(8), &touched).attrs().dir_mtime, Some(Time { sec: 1, nsec: 0 }));
}
