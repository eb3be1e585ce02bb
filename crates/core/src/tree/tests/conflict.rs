//! Conflict names: their shape, and how they live beside real names.

use super::super::conflict::parse_conflict;
use super::*;
use proptest::prelude::*;

fn given(base: &str, round: u32) -> String {
    conflict_name(&name(base), dot(1, 2), stamp(1_795_169_472_123_456_789, 1), round).to_string()
}

#[test]
fn a_conflict_name_keeps_stem_and_extension() {
    for (base, start, end) in [
        ("report.docx", "report.conflict-20261120T101112Z-", ".docx"),
        ("README", "README.conflict-20261120T101112Z-", ""),
        (".bashrc", ".bashrc.conflict-20261120T101112Z-", ""),
        ("a.tar.gz", "a.tar.conflict-20261120T101112Z-", ".gz"),
        ("end.", "end..conflict-20261120T101112Z-", ""),
        ("v1.a-very-long-extension", "v1.a-very-long-extension.conflict-20261120T101112Z-", ""),
    ] {
        let got = given(base, 0);
        assert!(got.starts_with(start) && got.ends_with(end), "{got}");
        assert_eq!(got.len(), start.len() + 8 + end.len(), "{got}");
        assert_eq!(given(base, 1).len(), got.len() + 24);
    }
}

#[test]
fn a_long_stem_is_cut_between_characters() {
    let base = "\u{e4}".repeat(125) + ".txt";
    let got = given(&base, 0);
    assert!(got.len() >= 252 && got.len() <= 255 && got.ends_with(".txt"), "{got}");
    assert!(got.split_once(".conflict-").unwrap().0.chars().all(|c| c == '\u{e4}'));
}

proptest! {
    #[test]
    fn conflict_names_are_valid_and_tell_their_base(
        base in prop_oneof![
            proptest::collection::vec(any::<u8>(), 1..20),
            proptest::collection::vec(any::<u8>(), 200..=255),
            "[a.]{1,12}".prop_map(String::into_bytes),
        ],
        (n, clock_ns) in any::<(u64, u64)>(),
        round in 0u32..3,
    ) {
        let Ok(base) = Name::new(&base) else { return Ok(()) };
        let got = conflict_name(&base, dot(1, n), stamp(clock_ns, 1), round);
        let (stem, extension) = parse_conflict(got.as_bytes()).unwrap();
        let whole = [stem, extension].concat();
        prop_assert!(whole == base.as_bytes() || (got.as_bytes().len() >= 252 && base.as_bytes().starts_with(stem)));
        // And of a conflict name, as of a settled copy that has copies again.
        let again = conflict_name(&got, dot(1, n), stamp(clock_ns, 1), 0);
        prop_assert!(again != got && parse_conflict(again.as_bytes()).is_some());
    }
}

#[test]
fn a_directory_has_the_name_before_all_files() {
    with_tree(|tx| {
        put(tx, leaf(id(1, 1), ROOT, "x", "one"));
        put(tx, dir(id(2, 1), ROOT, "x"));
        assert_eq!(take_pending(tx), [id(1, 1)]);
        let shown = shown_at(tx, &[ROOT], &name("x")).unwrap();
        assert_eq!(shown.dir, [id(2, 1)]);
        assert!(shown.groups[0].conflict);
        put(tx, removed(&dir(id(2, 1), ROOT, "x"), (2, 2)));
        assert_eq!(take_pending(tx), [id(1, 1)]);
        assert_eq!(path(tx, id(1, 1)).unwrap(), "x");
    });
}

/// A real name takes the name given to a copy, whose next tag is longer; when it goes, the copy has it again.
#[test]
fn real_names_come_before_given_ones() {
    for base in ["f.txt".to_owned(), "g".repeat(255)] {
        with_tree(|tx| {
            put(tx, leaf(id(1, 1), ROOT, &base, "one"));
            put(tx, leaf(id(2, 2), ROOT, &base, "two"));
            take_pending(tx);
            let copy = path(tx, id(1, 1)).unwrap();
            let real = leaf(id(3, 1), ROOT, &copy, "three");
            put(tx, real.clone());
            assert_eq!(take_pending(tx), [id(1, 1), id(2, 2)]);
            assert_eq!(path(tx, real.id).unwrap(), copy);
            assert_ne!(path(tx, id(1, 1)).unwrap(), copy);
            put(tx, removed(&real, (3, 2)));
            assert_eq!(take_pending(tx), [id(1, 1), id(2, 2)]);
            assert_eq!(path(tx, id(1, 1)).unwrap(), copy);
        });
    }
}

/// Model finding G9, as the tree sees it: a settled copy keeps the name it showed.
#[test]
fn a_settled_copy_stays_where_it_was() {
    with_tree(|tx| {
        let (f, other) = (leaf(id(1, 1), ROOT, "f", "one"), leaf(id(2, 2), ROOT, "f", "two"));
        put(tx, f.clone());
        put(tx, other);
        let copy = path(tx, f.id).unwrap();
        put(tx, moved(&f, ROOT, &copy, (1, 3)));
        assert_eq!(path(tx, f.id).unwrap(), copy);
        assert_eq!(path(tx, id(2, 2)).unwrap(), "f");
        assert!(!is_conflicted(tx, f.id).unwrap());
    });
}

#[test]
fn kinds_with_equal_contents_stay_apart() {
    with_tree(|tx| {
        for (n, kind) in [(1, Kind::Fifo), (2, Kind::Socket)] {
            let mut e = leaf(id(1, n), ROOT, "s", "");
            e.kind = kind;
            e.data[0].content = Content::Special { rdev: 0, mtime: Default::default() };
            put(tx, e);
        }
        assert_eq!(shown_at(tx, &[ROOT], &name("s")).unwrap().groups.len(), 2);
    });
}
