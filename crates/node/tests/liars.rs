//! A peer that is let in and lies: in its name, in what it claims of others, in whose changes it passes on, and beyond a Cut. It is
//! refused, and what it said is nowhere.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use crossbeam_channel::unbounded;
use driftless_core::entry::{At, Entry, Link, Version};
use driftless_core::link::{Batch, Hello, Message, Receipt, Role, SignedHead};
use driftless_core::membership::{Key, Member, Rights, Signature, View, head_bytes};
use driftless_core::meta::{Attrs, Content};
use driftless_core::tx::{Knowledge, Known};
use driftless_core::{Dot, EntryId, Kind, LinkId, Name, ReplicaId, Stamp, VersionVector};
use driftless_index::StateDir;
use driftless_net::identity::{Identity, PublicKey};
use driftless_node::api::{MaxDelete, Shared};
use driftless_node::replica::{FromLink, LinkEnd, Replica, ReplicaOptions, Service};
use driftless_node::trust::{Notary, Trust};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const VOLUME: u128 = 77;
const PATIENCE: Duration = Duration::from_secs(120);
/// The liar's replica, and that of an honest site that is not there.
const LIAR: ReplicaId = ReplicaId(0x11);
const THIRD: ReplicaId = ReplicaId(0x33);

struct Signer(Identity);

impl Notary for Signer {
    fn sign(&self, bytes: &[u8]) -> Signature {
        Signature(self.0.sign(bytes))
    }
    fn verify(&self, key: &Key, bytes: &[u8], signature: &Signature) -> bool {
        PublicKey(key.0).verify(bytes, &signature.0)
    }
}

/// A replica of an honest site, and what a liar is to it.
struct Scene {
    base: TempDir,
    replica: Replica,
    trust: Arc<Trust>,
    liar: Key,
    third: Identity,
}

impl Scene {
    fn new(may_relay: bool) -> Scene {
        driftless_volume::fault::users_within_this_process();
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("site");
        std::fs::create_dir(&root).unwrap();
        let own = Identity::generate().unwrap();
        let (liar, third) = (Key(Identity::generate().unwrap().public().0), Identity::generate().unwrap());
        let member = |site: &str, may_relay| Member {
            site: site.into(),
            rights: Rights { role: Role::Writer, may_relay, may_invite: false },
            addresses: Vec::new(),
            has_written: true,
        };
        let third_key = Key(third.public().0);
        let view = View {
            members: BTreeMap::from([
                (Key(own.public().0), member("oslo", true)),
                (liar, member("liar", may_relay)),
                (third_key, member("third", true)),
            ]),
            replicas: BTreeMap::from([(LIAR, liar), (THIRD, third_key)]),
            ..View::default()
        };
        let trust = Arc::new(Trust::new(Arc::new(Signer(own))));
        trust.set(Arc::new(view));
        let options = ReplicaOptions {
            root,
            state: StateDir::at(base.path().join("state")),
            service: Service { trust: trust.clone(), ..Service::first(VOLUME) },
            shared: Shared {
                active_passive: false,
                filters: Vec::new(),
                max_delete: MaxDelete::Default,
                on_rollback: Default::default(),
                dry_run: false,
                allow_unsafe_fs: false,
                once: false,
                site_names: ("oslo".into(), String::new()),
                verbose: false,
                trash: None,
                crawl_every_s: driftless_node::api::CRAWL_EVERY_DEFAULT_S,
            },
        };
        let replica = Replica::open(options, unbounded().0).unwrap();
        Scene { base, replica, trust, liar, third }
    }

    /// A connection on which the liar has introduced itself as `replica`.
    fn connect(&self, replica: ReplicaId) -> LinkEnd {
        let end = self.replica.connect_to(self.liar);
        end.give(Message::Hello(Hello {
            protocol: (1, 1),
            volume: VOLUME,
            replica,
            site: "liar".into(),
            role: Role::Writer,
            knowledge: Knowledge::new(),
            cursors: Vec::new(),
            inline: false,
            scanned: true,
        }));
        end
    }

    fn knows(&self, replica: ReplicaId) -> u64 {
        self.replica.claims(PATIENCE).unwrap().knowledge.get(replica)
    }

    fn head(&self, n: u64, signer: &Identity) -> Message {
        let signature = Signature(signer.sign(&head_bytes(VOLUME, THIRD, n, 7)));
        Message::Heads(vec![SignedHead { replica: THIRD, n, tag: 7, signature }])
    }
}

/// A new file that `author` says it made as its change `n`.
fn file(author: ReplicaId, n: u64, name: &str) -> Entry {
    let dot = Dot::new(author, n);
    let stamp = Stamp { epoch: 0, clock_ns: n, replica: author };
    let at = At { stamp, dot, parent: EntryId::ROOT, name: Name::new(name.as_bytes()).unwrap(), holds: dot };
    Entry {
        id: EntryId(dot),
        kind: Kind::Symlink,
        ctx: VersionVector::from_dot(dot),
        removed: VersionVector::new(),
        data: [Version {
            dot,
            stamp,
            content: Content::Symlink { target: b"x".to_vec().into(), mtime: Default::default() },
        }]
        .into_iter()
        .collect(),
        links: [Link { id: LinkId(dot), at, gone: VersionVector::new() }].into_iter().collect(),
        meta: (stamp, Attrs::default()),
        dir_time: None,
        hist: Vec::new(),
    }
}

fn batch(seq: u64, entries: Vec<Entry>, claims: &[(ReplicaId, u64)]) -> Message {
    let claim = |(r, n): &(ReplicaId, u64)| (*r, Known { n: *n, tag: 0 });
    let knowledge = (!claims.is_empty()).then(|| claims.iter().map(claim).collect());
    Message::Batch(Batch { seq, from: seq - 1, to: seq, entries, knowledge, ..Batch::default() })
}

/// What is answered to the batch with this number.
fn receipt(end: &LinkEnd, seq: u64) -> Receipt {
    loop {
        match end.outgoing().recv_timeout(PATIENCE).unwrap() {
            FromLink::Message(said) => match said.into_message() {
                Message::Receipt(receipt) if receipt.seq == seq => return receipt,
                _ => {}
            },
            FromLink::Refused(why) => panic!("{why:?}"),
        }
    }
}

/// Why the connection was ended.
fn refused(end: &LinkEnd) -> String {
    loop {
        match end.outgoing().recv_timeout(PATIENCE).unwrap() {
            FromLink::Message(_) => {}
            FromLink::Refused(why) => return why.what,
        }
    }
}

#[test]
fn nobody_introduces_itself_as_another() {
    let scene = Scene::new(true);
    let why = refused(&scene.connect(THIRD));
    assert!(why.contains("belongs to another site"), "{why}");
}

#[test]
fn who_may_not_relay_speaks_for_itself_only() {
    let scene = Scene::new(false);
    let end = scene.connect(LIAR);
    end.give(batch(1, vec![file(THIRD, 1, "forged"), file(LIAR, 1, "own")], &[(LIAR, 1), (THIRD, 9)]));
    let receipt = receipt(&end, 1);
    let reasons: Vec<&str> = receipt.refused.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(reasons, ["the peer may not speak for its author"]);
    assert_eq!(receipt.states.len(), 1);
    assert_eq!(scene.knows(THIRD), 0);
}

/// Changes of a site that has followed ever since count for nothing: they are refused by name, from a relay as well, and what else
/// comes is taken.
#[test]
fn who_follows_makes_no_changes() {
    let scene = Scene::new(true);
    let mut view = (*scene.trust.view()).clone();
    for key in [scene.liar, Key(scene.third.public().0)] {
        let member = view.members.get_mut(&key).unwrap();
        member.rights.role = Role::Follower;
        member.has_written = key != scene.liar;
    }
    scene.trust.set(Arc::new(view));
    let end = scene.connect(LIAR);
    end.give(batch(1, vec![file(LIAR, 1, "own"), file(THIRD, 1, "of an earlier writer")], &[(LIAR, 1)]));
    let receipt = receipt(&end, 1);
    let reasons: Vec<&str> = receipt.refused.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(reasons, ["it has a change of a site that follows and may make none"]);
    assert_eq!((receipt.states.len(), scene.knows(LIAR)), (1, 0));
    let root = scene.base.path().join("site");
    let until = std::time::Instant::now() + PATIENCE;
    while root.join("of an earlier writer").symlink_metadata().is_err() {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(root.join("own").symlink_metadata().is_err());
}

#[test]
fn claims_of_others_go_as_far_as_these_have_signed() {
    let scene = Scene::new(true);
    let end = scene.connect(LIAR);
    end.give(batch(1, Vec::new(), &[(LIAR, 1), (THIRD, 1 << 40)]));
    assert_eq!(receipt(&end, 1).knowledge.get(THIRD), 0);
    assert_eq!((scene.knows(THIRD), scene.knows(LIAR)), (0, 1));
    end.give(scene.head(5, &scene.third));
    end.give(batch(2, Vec::new(), &[(LIAR, 2), (THIRD, 1 << 40)]));
    assert_eq!(receipt(&end, 2).knowledge.get(THIRD), 5);
    assert_eq!(scene.knows(THIRD), 5);
    end.give(scene.head(1 << 40, &Identity::generate().unwrap()));
    let why = refused(&end);
    assert!(why.contains("did not sign"), "{why}");
    assert_eq!(scene.knows(THIRD), 5);
}

#[test]
fn nothing_beyond_a_cut_comes_from_anybody() {
    let scene = Scene::new(true);
    let mut view = (*scene.trust.view()).clone();
    view.cuts.insert(THIRD, 3);
    scene.trust.set(Arc::new(view));
    let end = scene.connect(LIAR);
    end.give(scene.head(9, &scene.third));
    end.give(batch(1, vec![file(THIRD, 4, "beyond"), file(THIRD, 3, "within")], &[(LIAR, 1), (THIRD, 9)]));
    let receipt = receipt(&end, 1);
    assert_eq!(receipt.refused.len(), 1);
    assert!(receipt.refused[0].1.contains("cut off"), "{receipt:?}");
    assert!(receipt.knowledge.get(THIRD) <= 3);
    assert!(!scene.base.path().join("site/beyond").exists());
    // Later claims neither.
    end.give(batch(2, Vec::new(), &[(LIAR, 2), (THIRD, 9)]));
    self::receipt(&end, 2);
    assert!(scene.knows(THIRD) <= 3);
}

/// It may have been merged, and be on the disk, before a person was asked.
#[test]
fn what_others_did_since_this_replica_was_cut_is_not_taken() {
    let scene = Scene::new(true);
    let end = scene.connect(LIAR);
    end.give(batch(1, vec![file(LIAR, 1, "before")], &[(LIAR, 1)]));
    receipt(&end, 1);
    let mut view = (*scene.trust.view()).clone();
    view.cuts.insert(scene.replica.status().replica.unwrap(), 0);
    scene.trust.set(Arc::new(view));
    end.give(batch(2, vec![file(LIAR, 2, "since")], &[(LIAR, 2)]));
    let until = std::time::Instant::now() + PATIENCE;
    while end.outgoing().recv_deadline(until).is_ok() {}
    let ended = scene.replica.status().ended.expect("the replica has ended").unwrap_err();
    assert!(ended.what.contains("was failed over"), "{ended:?}");
    assert!(scene.base.path().join("site/since").symlink_metadata().is_err());
}
