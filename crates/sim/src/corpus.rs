//! Writes what the fuzz tests start from: rows and records as a history of a world leaves them.

use crate::scene::{self, Scene};
use crate::world::World;
use driftless_core::codec::{Encoder, ReplicaTable};
use driftless_core::intent::{IntentRow, StagedFile, encode_intents};
use driftless_core::plan::{Plan, PlanOptions, Step, plan_entry};
use driftless_core::recipe::{Chunk, Item, Recipe};
use driftless_core::rows::{Read, Table};
use driftless_core::trash::{self, Record, Why};
use driftless_core::tx::{Env, Tx};
use driftless_core::{Attrs, EntryId, Kind, NodeKey, ReplicaId, Time};
use std::path::PathBuf;

/// Rows of each kind: enough to have every kind of entry.
const ROWS_MAX: usize = 12;

fn write(name: &str, about: &str, inputs: &[Vec<u8>]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let hex = |b: &Vec<u8>| b.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
    let text: String = inputs.iter().map(hex).collect();
    std::fs::write(path, format!("# {about}\n{text}")).unwrap();
}

fn lived(scene: Scene) -> World {
    let mut world = World::new(scene::rules(scene, 3));
    scene::live(scene, 3, &mut world, &mut Vec::new()).unwrap();
    world
}

fn raw(read: &dyn Read, table: Table) -> Vec<Vec<u8>> {
    let rows = read.scan(table, &[], None, usize::MAX).unwrap();
    let step = (rows.len() / ROWS_MAX).max(1);
    rows.into_iter().step_by(step).map(|(_, v)| v).take(ROWS_MAX).collect()
}

#[test]
#[ignore = "writes the corpus anew"]
fn write_corpus() {
    let (mut rows, mut records) = (Vec::new(), Vec::new());
    for scene in [Scene::Unions, Scene::HardLinks, Scene::ConflictCopies] {
        let world = lived(scene);
        let site = &world.sites[0];
        let mut table = ReplicaTable::with((1..6).map(ReplicaId));
        let states = site.states();
        for e in states.iter().step_by((states.len() / ROWS_MAX).max(1)) {
            let mut out = Encoder::new();
            out.entry(e, &mut table);
            rows.push(out.buf);
        }
        let snapshot = site.store.snapshot();
        rows.extend(raw(&*snapshot, Table::Nodes));
        rows.extend(raw(&*snapshot, Table::Places));
        records.push(encode_intents(&intents(&world)));
        let tx = Tx::open(&*snapshot, Env { now_ns: 1, epoch: 0 }).unwrap();
        records.extend(before(tx));
    }
    rows.sort();
    rows.dedup();
    write("rows.hex", "entries, nodes and places as the index has them", &rows);
    write("records.hex", "intent rows, and what paths showed before", &records);
    write("lists.hex", "recipes and lists of the trash", &lists());
}

/// The intents of a disk that has to be made anew.
fn intents(world: &World) -> Vec<IntentRow> {
    let mut fresh = crate::site::Site::new(50, 0, 0);
    let states = world.sites[0].states();
    fresh.tx(|tx| {
        for e in &*states {
            driftless_core::tree::receive(tx, e, &Default::default())?;
        }
        Ok(())
    });
    let mut plan = Plan::new();
    fresh.read(|tx| {
        for e in &*states {
            plan_entry(tx, e.id, &mut plan, &PlanOptions::default())?;
        }
        Ok(())
    });
    let staged = |step: &Step| {
        matches!(step, Step::Put { .. }).then(|| StagedFile {
            name: b"0000000000000001".to_vec(),
            node: NodeKey::new(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap(),
            size: 7,
            mtime: Time { sec: 1, nsec: 2 },
            given: Attrs::default(),
        })
    };
    plan.steps.iter().filter_map(|s| IntentRow::of(9, s, staged(s))).collect()
}

/// The row that a commit leaves of what the paths it changes showed before.
fn before(mut tx: Tx<'_>) -> Option<Vec<u8>> {
    let root = tx.root_node().unwrap().unwrap();
    let (name, place) = tx.places_in(&root, None, 1).unwrap().into_iter().next()?;
    let node = (*tx.node_must(&place.node).unwrap()).clone();
    tx.delete_place(&root, &name);
    tx.put_node(&place.node, driftless_core::Node { racy: !node.racy, ..node });
    let (batch, _, _) = tx.into_batch_with_before(1, 1).unwrap();
    batch.table(Table::Before).values().flatten().next().cloned()
}

fn lists() -> Vec<Vec<u8>> {
    let item = |n: u8| Item { chunk: Chunk([n; Chunk::LEN]), len: 1000 + u32::from(n) };
    let mut chunks = Encoder::new();
    Recipe::new((0..5).map(item).collect()).unwrap().encode(&mut chunks);
    let record = |item: u32, path: &str| Record {
        item,
        time_ns: 1_700_000_000_000_000_000,
        why: Why::Removed,
        kind: Kind::File,
        size: 7,
        mtime: Time { sec: 1, nsec: 2 },
        entry: EntryId::ROOT,
        site: "oslo".into(),
        path: path.as_bytes().to_vec(),
    };
    let list = trash::encode(&[record(1, "a/b"), record(2, "report.docx")]);
    vec![chunks.buf, [&trash::header()[..], &list].concat(), trash::header().to_vec()]
}
