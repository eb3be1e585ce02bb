use super::*;
use proptest::prelude::*;

const VOLUME: u128 = 7;

fn key(n: u8) -> Key {
    Key([n; 32])
}

/// Stands for a signature: a hash of key and bytes.
fn sign(key: Key, bytes: &[u8]) -> Signature {
    let mut hash = blake3::Hasher::new_keyed(&key.0);
    let mut out = [0; 64];
    hash.update(bytes).finalize_xof().fill(&mut out);
    Signature(out)
}

fn verify(key: &Key, bytes: &[u8], signature: &Signature) -> bool {
    sign(*key, bytes) == *signature
}

fn make(members: &mut Members, author: Key, action: Action) {
    let unsigned = members.next(author, action);
    let signature = sign(author, &unsigned.bytes());
    members.add(unsigned.signed(signature));
}

fn founded() -> Members {
    let mut members = Members::new(VOLUME);
    make(&mut members, key(1), Action::Found { site: "s1".into() });
    members
}

fn put(n: u8, role: Role, may_invite: bool) -> Action {
    let rights = Rights { role, may_relay: true, may_invite };
    Action::Put { key: key(n), site: format!("s{n}"), rights, addresses: vec![format!("192.0.2.{n}:7440")] }
}

fn admit(n: u8) -> Action {
    put(n, Role::Writer, true)
}

fn remove(members: &Members, n: u8) -> Action {
    Action::Remove { key: key(n), seen: members.last_seq(key(n)), cuts: vec![(ReplicaId(n.into()), 9)] }
}

fn sites(members: &Members) -> Vec<String> {
    members.view().members.into_values().map(|m| m.site).collect()
}

fn merged(a: &Members, b: &Members) -> Members {
    let mut joined = a.clone();
    joined.merge(&b.encode(), &verify).unwrap();
    let mut other = b.clone();
    other.merge(&a.encode(), &verify).unwrap();
    assert_eq!(joined, other);
    joined
}

#[test]
fn members_admit_members() {
    let mut members = founded();
    make(&mut members, key(1), admit(2));
    make(&mut members, key(2), put(3, Role::Follower, false));
    make(&mut members, key(3), admit(4));
    make(&mut members, key(9), admit(5));
    assert_eq!(sites(&members), ["s1", "s2", "s3"]);
    let view = members.view();
    assert_eq!(view.members[&key(3)].rights.role, Role::Follower);
    assert_eq!(view.at_site("s2").unwrap().0, &key(2));
    // A name belongs to one.
    let action = Action::Put {
        key: key(6),
        site: "s2".into(),
        rights: view.members[&key(2)].rights,
        addresses: vec![],
    };
    make(&mut members, key(1), action);
    assert!(!members.view().members.contains_key(&key(6)));
}

#[test]
fn a_removed_key_does_nothing_more_whatever_the_time_it_claims() {
    let mut members = founded();
    make(&mut members, key(1), admit(2));
    make(&mut members, key(2), admit(3));
    let before = members.clone();
    let action = remove(&members, 2);
    make(&mut members, key(1), action);
    assert_eq!(sites(&members), ["s1", "s3"], "whom it admitted before stays");
    // Its next change, made as if it had never heard of that.
    let mut rogue = before;
    make(&mut rogue, key(2), admit(4));
    let action = remove(&rogue, 1);
    make(&mut rogue, key(2), action);
    let all = merged(&members, &rogue);
    assert_eq!(sites(&all), ["s1", "s3"]);
    let view = all.view();
    assert_eq!((view.removed[&key(2)].by, view.removed[&key(2)].site.as_str()), (key(1), "s2"));
    assert_eq!(view.cuts[&ReplicaId(2)], 9);
    // It does not come back, but its site does, with another key.
    let mut all = all;
    make(&mut all, key(1), admit(2));
    let rights = Rights { role: Role::Writer, may_relay: true, may_invite: false };
    let again = Action::Put { key: key(22), site: "s2".into(), rights, addresses: vec![] };
    make(&mut all, key(1), again);
    assert_eq!(all.view().at_site("s2").unwrap().0, &key(22));
}

#[test]
fn of_two_that_remove_each_other_the_senior_stays() {
    let mut members = founded();
    make(&mut members, key(1), admit(3));
    make(&mut members, key(1), admit(2));
    let (mut a, mut b) = (members.clone(), members.clone());
    // The junior's removal has the lesser clock.
    let action = remove(&b, 3);
    make(&mut b, key(2), action);
    make(&mut a, key(3), Action::At(vec!["192.0.2.33:1".into()]));
    let action = remove(&a, 2);
    make(&mut a, key(3), action);
    assert_eq!(sites(&b), ["s1", "s2"]);
    assert_eq!(sites(&merged(&a, &b)), ["s1", "s3"]);
    // A junior removes a senior that is gone.
    let mut c = members;
    let action = remove(&c, 1);
    make(&mut c, key(2), action);
    assert_eq!(sites(&c), ["s2", "s3"]);
    make(&mut c, key(1), admit(8));
    assert_eq!(sites(&c), ["s2", "s3"]);
}

#[test]
fn who_may_not_invite_limits_nobody() {
    let mut members = founded();
    make(&mut members, key(1), put(2, Role::Writer, false));
    make(&mut members, key(1), admit(3));
    let mut rogue = members.clone();
    let action = remove(&rogue, 3);
    make(&mut rogue, key(2), action);
    make(&mut rogue, key(2), admit(4));
    let action = Action::Remove { key: key(3), seen: 0, cuts: vec![] };
    make(&mut rogue, key(4), action);
    make(&mut members, key(3), admit(5));
    let all = merged(&members, &rogue);
    assert_eq!(sites(&all), ["s1", "s2", "s3", "s5"], "what a member does whom nobody may remove counts");
    assert!(all.view().removed.is_empty() && all.view().cuts.is_empty());
    // A key that is handed on to itself goes on.
    let mut own = founded();
    let proof = sign(key(1), &rekey_bytes(VOLUME, key(1), key(1)));
    make(&mut own, key(1), Action::Rekey { key: key(1), proof });
    make(&mut own, key(1), admit(2));
    assert_eq!(sites(&own), ["s1", "s2"]);
}

#[test]
fn a_key_is_handed_on() {
    let mut members = founded();
    make(&mut members, key(1), admit(2));
    make(&mut members, key(2), Action::Replica(ReplicaId(20)));
    make(&mut members, key(3), Action::Replica(ReplicaId(20)));
    let (old, new) = (key(2), key(12));
    let forged = Action::Rekey { key: new, proof: sign(key(5), &rekey_bytes(VOLUME, old, new)) };
    let mut bad = members.clone();
    make(&mut bad, old, forged);
    assert_eq!(members.clone().merge(&bad.encode(), &verify), Err(NotMerged::Forged));
    make(&mut members, old, Action::Rekey { key: new, proof: sign(new, &rekey_bytes(VOLUME, old, new)) });
    make(&mut members, old, admit(7));
    make(&mut members, new, admit(8));
    let view = members.view();
    assert_eq!(sites(&members), ["s1", "s8", "s2"]);
    assert_eq!(view.member_of(ReplicaId(20)).unwrap().0, &new);
    assert_eq!(view.removed[&old].now, Some(new));
}

#[test]
fn roles_cuts_and_approvals() {
    let mut members = founded();
    make(&mut members, key(1), put(2, Role::Follower, true));
    make(&mut members, key(2), Action::Approve { heal: false, at_ms: 1 });
    assert_eq!(members.view().approvals, [], "a follower removes nothing");
    make(&mut members, key(2), Action::Cut(vec![(ReplicaId(1), 50)]));
    make(&mut members, key(2), admit(2));
    make(&mut members, key(2), put(1, Role::Follower, true));
    make(&mut members, key(2), Action::Cut(vec![(ReplicaId(1), 60), (ReplicaId(4), 0)]));
    make(&mut members, key(2), Action::Approve { heal: true, at_ms: 1 });
    let view = members.view();
    assert_eq!((view.cuts[&ReplicaId(1)], view.cuts[&ReplicaId(4)]), (50, 0));
    assert!(view.accepts(ReplicaId(1), 50) && !view.accepts(ReplicaId(1), 51));
    assert!(view.accepts(ReplicaId(5), u64::MAX) && !view.accepts(ReplicaId(4), 1));
    assert_eq!(
        (view.members[&key(1)].rights.role, view.members[&key(2)].rights.role),
        (Role::Follower, Role::Writer)
    );
    assert_eq!(view.approvals, [(key(2), 6, true)]);
}

#[test]
fn liars_are_refused_and_nothing_of_theirs_is_taken() {
    let mut members = founded();
    make(&mut members, key(1), admit(2));
    let before = members.clone();
    let mut forged = members.clone();
    let unsigned = forged.next(key(1), admit(9));
    forged.add(unsigned.signed(Signature([0; 64])));
    assert_eq!(members.merge(&forged.encode(), &verify), Err(NotMerged::Forged));
    let mut other = Members::new(VOLUME);
    make(&mut other, key(0), Action::Found { site: "liar".into() });
    assert_eq!(members.merge(&other.encode(), &verify), Err(NotMerged::OtherFounder));
    // Behind the true one, it is never looked at.
    let found = other.changes().next().unwrap().clone();
    let mut both = members.clone();
    both.changes.insert(codec::place(VOLUME, &found), found);
    assert_eq!(members.merge(&both.encode(), &verify), Err(NotMerged::OtherFounder));
    assert_eq!(members.merge(&Members::new(8).encode(), &verify), Err(NotMerged::OtherVolume));
    let mut flood = members.clone();
    for i in 0..=CHANGES_OF_ONE_MAX {
        let unsigned = flood.next(key(2), Action::Replica(ReplicaId(i as u64 + 1)));
        let signature = sign(key(2), &unsigned.bytes());
        let change = unsigned.signed(signature);
        flood.changes.insert(codec::place(VOLUME, &change), change);
    }
    assert_eq!(members.merge(&flood.encode(), &verify), Err(NotMerged::TooMany));
    assert_eq!(members, before);
    assert_eq!(members.merge(&before.encode(), &verify), Ok(false));
}

/// By a key that is used at two places at once: at one it admits whom it removes at the other.
#[test]
fn who_is_removed_before_it_is_admitted_stays_out() {
    let (mut a, mut b) = (founded(), founded());
    make(&mut a, key(1), admit(2));
    let removal = remove(&a, 3);
    make(&mut a, key(2), removal);
    let removal = remove(&b, 2);
    make(&mut b, key(1), removal);
    let view = merged(&a, &b).view();
    assert!(!view.members.contains_key(&key(2)) && view.removed.contains_key(&key(2)), "{view:?}");
}

/// A key is admitted by two, and takes the place of the founder: whom it admitted is known whichever of that is heard of first.
#[test]
fn the_order_of_merges_is_no_matter_for_a_key_that_is_admitted_twice() {
    let (mut a, mut b, mut c) = (founded(), founded(), founded());
    make(&mut a, key(1), admit(4));
    make(&mut a, key(4), admit(2));
    make(&mut a, key(2), admit(3));
    b.merge(&a.encode(), &verify).unwrap();
    make(
        &mut a,
        key(1),
        Action::Rekey { key: key(2), proof: sign(key(2), &rekey_bytes(VOLUME, key(1), key(2))) },
    );
    make(&mut b, key(3), admit(1));
    make(&mut c, key(1), admit(2));
    assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
}

#[test]
fn old_addresses_are_dropped() {
    let mut members = founded();
    for port in 0..50 {
        make(&mut members, key(1), Action::At(vec![format!("192.0.2.1:{port}")]));
    }
    assert_eq!(members.len(), 1 + ADDRESS_CHANGES_KEPT);
    assert_eq!(members.view().members[&key(1)].addresses, ["192.0.2.1:49"]);
}

/// Today's bytes stay readable.
#[test]
fn the_first_format_is_kept() {
    let mut members = founded();
    make(&mut members, key(1), put(2, Role::Follower, false));
    make(&mut members, key(2), Action::Replica(ReplicaId(0x0102_0304_0506_0708)));
    make(&mut members, key(2), Action::At(vec!["192.0.2.2:7440".into()]));
    make(&mut members, key(1), Action::Approve { heal: false, at_ms: 300 });
    make(&mut members, key(1), Action::Cut(vec![(ReplicaId(5), 300)]));
    let proof = sign(key(3), &rekey_bytes(VOLUME, key(2), key(3)));
    make(&mut members, key(2), Action::Rekey { key: key(3), proof });
    make(&mut members, key(1), Action::Remove { key: key(3), seen: 0, cuts: vec![(ReplicaId(6), 1)] });
    let text = include_str!("membership-v1.hex");
    let bytes: Vec<u8> = text
        .split_whitespace()
        .flat_map(|line| (0..line.len()).step_by(2).map(|i| u8::from_str_radix(&line[i..i + 2], 16).unwrap()))
        .collect();
    let hex: String = members.encode().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(Members::decode(&bytes).as_ref(), Ok(&members), "{hex}");
    assert_eq!(members.encode(), bytes);
}

#[derive(Clone, Debug)]
enum Step {
    Make { at: usize, author: u8, what: u8, whom: u8 },
    Tell { from: usize, to: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let make = (0..3usize, 1..6u8, 0..6u8, 1..6u8).prop_map(|(at, author, what, whom)| Step::Make {
        at,
        author,
        what,
        whom,
    });
    let tell = (0..3usize, 0..3usize).prop_map(|(from, to)| Step::Tell { from, to });
    prop::collection::vec(prop_oneof![2 => make, 1 => tell], 0..40)
}

fn run(steps: &[Step]) -> Vec<Members> {
    let mut docs = vec![founded(); 3];
    for step in steps {
        match *step {
            Step::Make { at, author, what, whom } => {
                let doc = &mut docs[at];
                let action = match what {
                    0 | 1 => admit(whom),
                    2 => put(whom, Role::Follower, true),
                    3 => remove(doc, whom),
                    4 => Action::Rekey {
                        key: key(whom),
                        proof: sign(key(whom), &rekey_bytes(VOLUME, key(author), key(whom))),
                    },
                    _ => Action::Cut(vec![(ReplicaId(whom.into()), author.into())]),
                };
                make(doc, key(author), action);
            }
            Step::Tell { from, to } => {
                let bytes = docs[from].encode();
                docs[to].merge(&bytes, &verify).unwrap();
            }
        }
    }
    docs
}

proptest! {
    /// Whatever was done and told in whatever order: who has heard of everything sees the same.
    #[test]
    fn all_orders_give_one_view(steps in steps()) {
        let docs = run(&steps);
        let (a, b, c) = (&docs[0], &docs[1], &docs[2]);
        let all = merged(&merged(a, b), c);
        prop_assert_eq!(&all, &merged(a, &merged(b, c)));
        prop_assert_eq!(&all, &merged(&merged(c, a), b));
        prop_assert_eq!(&all, &merged(&all, a));
        prop_assert_eq!(&Members::decode(&all.encode()).unwrap(), &all);
        let view = all.view();
        prop_assert!(view.members.keys().all(|k| !view.removed.contains_key(k)));
        let names: BTreeSet<&str> = view.members.values().map(|m| m.site.as_str()).collect();
        prop_assert_eq!(names.len(), view.members.len());
        // Cuts only get stricter.
        for (replica, n) in a.view().cuts {
            let voided = view.cuts.get(&replica).is_none_or(|cut| *cut > n);
            prop_assert!(!voided || !view.removed.is_empty());
        }
    }

    /// Nobody gets in by changes that only outsiders signed.
    #[test]
    fn outsiders_change_nothing(whom in 2..6u8, others in prop::collection::vec((2..6u8, 1..6u8), 0..8)) {
        let mut doc = founded();
        for (author, target) in others {
            make(&mut doc, key(author), admit(target));
        }
        make(&mut doc, key(whom), admit(whom));
        prop_assert_eq!(sites(&doc), ["s1"]);
        prop_assert_eq!(doc.len(), 1);
    }

    #[test]
    fn decoding_is_total(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0..800usize, at in 0..800usize, with: u8) {
        let _ = Members::decode(&bytes);
        let mut doc = founded();
        make(&mut doc, key(1), admit(2));
        make(&mut doc, key(1), Action::Cut(vec![(ReplicaId(5), 300)]));
        let mut good = doc.encode();
        if let Some(byte) = good.get_mut(at) {
            *byte ^= with;
        }
        if let Ok(read) = Members::decode(&good) {
            prop_assert!(with == 0 || at >= doc.encode().len() || founded().merge(&read.encode(), &verify).is_err());
        }
        good.truncate(cut);
        let _ = Members::decode(&good);
    }
}
