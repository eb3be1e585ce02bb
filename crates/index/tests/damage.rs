//! Whatever happens to the pages of an index file: errors that name it, or right answers. Never a panic,
//! never other rows than were stored.

#![allow(clippy::unwrap_used)]

use driftless_core::rows::{Batch, Change, Store, Table};
use driftless_index::{Index, OpenOptions};
use std::fs;
use std::path::Path;

const PAGE: usize = 4096;
const ROWS: u32 = 3000;

fn row(i: u32) -> Change {
    ((Table::Entries, i.to_be_bytes().to_vec()), Some(vec![i as u8; 100]))
}

/// A file with trees of some depth, closed cleanly.
fn fill(path: &Path) {
    let index = Index::open(path, OpenOptions { create: true, ..OpenOptions::default() }).unwrap();
    for group in 0..6 {
        index.commit((0..ROWS).filter(|i| i % 6 == group).map(row).collect::<Batch>()).unwrap();
    }
}

/// Opens the file, reads all of it, changes all of it. The first error's text.
fn use_all(path: &Path) -> Result<(), String> {
    let index = Index::open(path, OpenOptions::default()).map_err(|e| e.to_string())?;
    let snapshot = index.snapshot().map_err(|e| e.to_string())?;
    for table in Table::ALL {
        let rows = snapshot.scan(table, &[], None, usize::MAX).map_err(|e| e.to_string())?;
        let wanted = if table == Table::Entries { ROWS } else { 0 };
        let wanted = (0..wanted).map(|i| (row(i).0.1, row(i).1.unwrap()));
        assert!(rows.into_iter().eq(wanted), "other rows than were stored in {}", table.name());
    }
    index.commit((0..ROWS).map(row).collect::<Batch>()).map_err(|e| e.to_string())
}

#[test]
fn damaged_pages_give_errors_that_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    fill(&path);
    let whole = fs::read(&path).unwrap();
    // The panics inside that become errors would fill the output.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut errors = Vec::new();
    let damages: [fn(&mut [u8]); 3] = [
        |page| page.fill(0),
        |page| page.iter_mut().enumerate().for_each(|(i, b)| *b = (i * 37) as u8),
        |page| page[PAGE / 2] ^= 0x40,
    ];
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for page in (0..whole.len() / PAGE).step_by(5) {
            for damage in damages {
                let mut bytes = whole.clone();
                damage(&mut bytes[page * PAGE..][..PAGE]);
                fs::write(&path, &bytes).unwrap();
                errors.extend(use_all(&path).err());
            }
        }
    }));
    std::panic::set_hook(hook);
    tried.unwrap();
    assert!(errors.len() > 20, "{}", errors.len());
    for e in errors {
        assert!(e.contains(&*path.to_string_lossy()) && e.contains("move the file away"), "{e}");
    }
}
