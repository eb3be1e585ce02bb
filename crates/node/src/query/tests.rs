//! One replica in memory: operations on it, questions about it.

use super::*;
use driftless_core::disk::{Bind, Claim, Fingerprint, Node, Place, Wanted};
use driftless_core::id::{Dot, EntryId, Kind, Name, ReplicaId};
use driftless_core::local::{self, Looked, Origin};
use driftless_core::meta::{Attrs, Content, Digest, Time};
use driftless_core::rows::{MemStore, Store as _};

const ME: ReplicaId = ReplicaId(7);

struct World {
    store: MemStore,
    now_ns: u64,
}

impl World {
    fn new() -> World {
        let store = MemStore::new();
        store.commit(Tx::create(ME)).unwrap();
        let mut world = World { store, now_ns: 1_000_000_000 };
        world.change(|tx| local::init_root(tx, &dir("root")));
        world
    }

    fn change(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<()>) {
        self.now_ns += 1_000_000_000;
        let snapshot = self.store.snapshot().unwrap();
        let mut tx = Tx::open(&*snapshot, Env { now_ns: self.now_ns, epoch: 0 }).unwrap();
        f(&mut tx).unwrap();
        let batch = tx.into_batch(self.now_ns);
        drop(snapshot);
        self.store.commit(batch).unwrap();
    }

    fn ask(&self, request: &Request) -> Response {
        answer(&*self.store.snapshot().unwrap(), request)
    }

    fn changes(&self, since: u64) -> Vec<ChangeRow> {
        match self.ask(&Request::Changes { since, limit: 100 }) {
            Response::Changes(rows) => rows,
            other => panic!("{other:?}"),
        }
    }

    fn why(&self, path: &str) -> Explanation {
        match self.ask(&Request::why(path.as_bytes())) {
            Response::Why(why) => *why,
            other => panic!("{other:?}"),
        }
    }
}

fn key(inode: &str) -> NodeKey {
    NodeKey::new(inode.as_bytes()).unwrap()
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

fn looked(inode: &str, kind: Kind, content: Option<&str>) -> Looked {
    let mtime = Time { sec: 1000, nsec: 5 };
    let size = content.map_or(0, |c| c.len() as u64);
    Looked {
        key: key(inode),
        kind,
        fingerprint: Fingerprint { size, mtime, ctime: mtime },
        racy: false,
        attrs: Attrs { mode: 0o640, uid: 3, gid: 4, ..Attrs::default() },
        content: content.map(|c| Content::File { size, mtime, digest: Digest::of(c.as_bytes()) }),
    }
}

fn dir(inode: &str) -> Looked {
    looked(inode, Kind::Dir, None)
}

fn file(inode: &str, content: &str) -> Looked {
    looked(inode, Kind::File, Some(content))
}

fn with_file() -> World {
    let mut w = World::new();
    w.change(|tx| {
        local::create(tx, (&key("root"), &name("d")), &dir("id"), Origin::User)?;
        local::create(tx, (&key("id"), &name("f")), &file("if", "one"), Origin::User)
    });
    w
}

#[test]
fn the_feed_has_each_entry_once_with_its_newest_change() {
    let mut w = with_file();
    let rows = w.changes(0);
    let told: Vec<_> =
        rows.iter().map(|r| (r.class, r.kind.as_str(), r.path.clone().unwrap().text)).collect();
    assert_eq!(told, [(Class::Entry, "dir", "d".into()), (Class::Entry, "file", "d/f".into())]);
    let file_row = &rows[1];
    assert_eq!((file_row.mode.as_str(), file_row.uid, file_row.gid), ("0640", 3, 4));
    assert_eq!((file_row.parent.as_str(), file_row.name.text.as_str()), (rows[0].entry.as_str(), "f"));
    assert_eq!(rows[0].parent, "root");

    w.change(|tx| local::write(tx, &file("if", "two")));
    let newer = w.changes(file_row.seq);
    assert_eq!(
        (newer.len(), newer[0].class, newer[0].entry.as_str()),
        (1, Class::Data, file_row.entry.as_str())
    );

    let mut chmod = file("if", "two");
    chmod.attrs.mode = 0o600;
    w.change(|tx| local::attrs(tx, &chmod));
    let newer = w.changes(newer[0].seq);
    assert_eq!((newer[0].class, newer[0].mode.as_str()), (Class::Meta, "0600"));

    w.change(|tx| local::unlink(tx, (&key("id"), &name("f"))));
    let newer = w.changes(newer[0].seq);
    assert_eq!((newer[0].class, newer[0].present, &newer[0].path), (Class::Entry, false, &None));
    assert_eq!(w.changes(0).len(), 2, "each entry once");
}

#[test]
fn why_says_what_is_there_what_was_and_what_waits() {
    let mut w = with_file();
    let why = w.why("d/f");
    let on_disk = why.on_disk.unwrap();
    assert_eq!((on_disk.kind.as_str(), on_disk.size, on_disk.mode.as_str()), ("file", 3, "0640"));
    assert_eq!(why.claimants.len(), 1);
    let version = &why.claimants[0].versions[0];
    assert!(version.wins && version.on_disk && version.counts);
    assert_eq!(w.why("d").on_disk.unwrap().kind, "dir");
    assert!(w.why("").summary[0].contains("root"));
    assert!(w.why("d/../f").summary[0].contains("No entry can be"));
    assert!(w.why("d/none").summary[0].contains("Nothing is known"));

    let id = w.changes(0)[1].entry.clone();
    w.change(|tx| {
        let entry = tx.feed_after(0, 10)?[1].1;
        let need =
            Need { reason: Reason::Denied, detail: "EACCES".into(), tries: 3, since_ns: 0, retry_ns: 0 };
        needs::put(tx, &Waiter::Entry(entry), &need);
        needs::put(tx, &Waiter::Path(b"d/secret".to_vec()), &Need { reason: Reason::Unreadable, ..need });
        Ok(())
    });
    assert!(w.why("d/f").summary[0].contains(Reason::Denied.advice()));
    assert_eq!(w.why("d/secret").waits[0].reason, Reason::Unreadable);
    let Response::Failures(page) = w.ask(&Request::Failures { after: None }) else { panic!() };
    let told: Vec<_> = page.rows.iter().map(|r| (r.path.text.as_str(), r.reason, r.entry.clone())).collect();
    assert_eq!(told, [("d/f", Reason::Denied, Some(id)), ("d/secret", Reason::Unreadable, None)]);
    assert_eq!(page.next, None);

    w.change(|tx| local::unlink(tx, (&key("id"), &name("f"))));
    let gone = w.why("d/f");
    assert!(gone.on_disk.is_none() && gone.claimants.len() == 1, "{gone:?}");
    assert!(gone.summary.iter().any(|l| l.contains("removed")), "{gone:?}");
}

#[test]
fn conflict_copies_are_found_over_all_pages() {
    let mut w = with_file();
    let version = Dot::new(ReplicaId(9), 4);
    w.change(|tx| {
        crate::sites::set_name(tx, version.replica, "oslo")?;
        for i in 0..3000 {
            let (node, at) = (key(&format!("n{i}")), name(&format!("f{i}")));
            let entry = EntryId(version);
            let claim = Claim { entry, link: driftless_core::LinkId(version), name_dot: version, version };
            let conflict_of = (i % 1000 == 0).then(|| name("f"));
            tx.put_place(&key("id"), &at, Place { node: node.clone(), claims: vec![claim], conflict_of });
            tx.put_node(
                &node,
                Node {
                    kind: Kind::File,
                    fingerprint: Fingerprint { size: 9, ..Fingerprint::default() },
                    racy: false,
                    given: Attrs::default(),
                    wanted: Wanted::UNKNOWN,
                    names: vec![(key("id"), at)],
                    bind: Bind::Leaf { identity: Digest([0; 32]) },
                },
            );
        }
        Ok(())
    });
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let Response::Conflicts(page) = w.ask(&Request::Conflicts { after }) else { panic!() };
        found.extend(page.rows);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let told: Vec<_> = found.iter().map(|r| (r.path.text.as_str(), r.winner.text.as_str(), r.size)).collect();
    assert_eq!(told, [("d/f0", "d/f", 9), ("d/f1000", "d/f", 9), ("d/f2000", "d/f", 9)]);
    assert_eq!(found[0].written_by, "oslo");
}

#[test]
fn nonsense_is_answered() {
    let w = World::new();
    let bad = Request::Why { path_hex: "zz".into() };
    assert!(matches!(w.ask(&bad), Response::Failed(_)));
    let bad = Request::Conflicts { after: Some(Cursor("0".into())) };
    assert!(matches!(w.ask(&bad), Response::Failed(_)));
}
