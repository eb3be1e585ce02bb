//! What a peer holds, beside what it knows.

use super::*;

#[test]
fn what_is_acknowledged_is_not_held_before_the_peer_says_so() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.create(Kind::File, EntryId::ROOT, "x");
    let mut s = a.sender_to(&b, eager());
    assert!(!s.is_held(), "nothing was said");
    bring(&a, &mut s, &mut b, 0);
    assert!(a.read(|tx| s.at_head(tx)));
    s.handle_held(&Held { cursor: 0, waiting: 0 });
    assert!(!s.is_held(), "from before");
    s.handle_held(&Held { cursor: 1, waiting: 1 });
    assert!(s.is_held(), "what waits is named, and waited for no more");
    assert_eq!(s.held_there(), Some(Held { cursor: 1, waiting: 1 }));

    let f = a.create(Kind::File, EntryId::ROOT, "y");
    assert!(s.is_held(), "not brought yet");
    let out = a.poll(&mut s, 0).unwrap();
    assert!(!s.is_held(), "in flight");
    let merged = b.receive(a.me, &out.batch);
    s.handle_receipt(&merged.receipt);
    assert!(b.state(f).is_some() && !s.is_held(), "known there, not held");
    s.handle_held(&Held { cursor: 2, waiting: 0 });
    assert!(s.is_held());
}

#[test]
fn a_peer_cannot_hold_what_it_was_never_sent() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.create(Kind::File, EntryId::ROOT, "x");
    let mut s = a.sender_to(&b, eager());
    s.handle_held(&Held { cursor: u64::MAX, waiting: 0 });
    bring(&a, &mut s, &mut b, 0);
    assert!(!s.is_held());
}

#[test]
fn what_a_peer_holds_is_kept_and_a_row_of_the_first_format_is_read() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.create(Kind::File, EntryId::ROOT, "x");
    let mut s = a.sender_to(&b, eager());
    bring(&a, &mut s, &mut b, 0);
    s.handle_held(&Held { cursor: 1, waiting: 3 });
    assert!(a.commit(|tx| s.save(tx).unwrap()));
    assert!(!a.commit(|tx| s.save(tx).unwrap()), "nothing new");
    let row = a.read(|tx| peer_row(tx, b.me).unwrap());
    assert_eq!((row.acked, row.held), (1, Held { cursor: 1, waiting: 3 }));

    let key = b.me.0.to_be_bytes().to_vec();
    a.commit(|tx| {
        let mut bytes = tx.get(Table::Peers, &key).unwrap().unwrap();
        bytes[0] = 1;
        bytes.truncate(bytes.len() - 2);
        tx.put(Table::Peers, key.clone(), Some(bytes));
    });
    let old = a.read(|tx| peer_row(tx, b.me).unwrap());
    assert_eq!(old, PeerRow { held: Held::default(), ..row });
}
