//! How soon a change is at the other site, compared with what the line between them takes. What is promised exactly is measured by
//! command ([`crate::shows`]); here only that nothing waits for a whole round trip which needs none.

use crate::common::*;
use crate::shows::{far_sites, far_sites_with};
use crate::sites::{Site, wait_same};
use driftless_testkit::Rng;
use std::fs;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const ONE_WAY: Duration = Duration::from_millis(300);
/// For everything but the line, on a machine that is busy with other tests.
const SLACK: Duration = Duration::from_millis(250);

/// Writes that follow each other sooner than a receipt comes back: the first leaves at once, and so do the next ones. If each waited for
/// the receipt of the one before, most would take a round trip and a half.
#[test]
fn small_writes_in_a_row_do_not_wait_for_receipts() {
    const N: usize = 8;
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = far_sites(&base, ONE_WAY);
    put(&oslo.dir, "first", "1");
    wait_same(&[&oslo, &bergen]);
    let at = |dir: &std::path::Path, i: usize| dir.join(format!("row{i}"));
    let mut written = Vec::new();
    let mut took = vec![None; N];
    let began = Instant::now();
    while took.contains(&None) {
        assert!(began.elapsed() < PATIENCE, "{}", bergen.log());
        if written.len() < N && began.elapsed() >= Duration::from_millis(40) * written.len() as u32 {
            let new = oslo.base.join("new");
            fs::write(&new, Rng::new(written.len() as u64).bytes(1024)).unwrap();
            fs::rename(&new, at(&oslo.dir, written.len())).unwrap();
            written.push(Instant::now());
        }
        for (i, written) in written.iter().enumerate() {
            if took[i].is_none() && at(&bergen.dir, i).exists() {
                took[i] = Some(written.elapsed());
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut took: Vec<Duration> = took.into_iter().flatten().collect();
    took.sort_unstable();
    assert!(took[0] >= ONE_WAY, "{took:?} over a line that takes {ONE_WAY:?}");
    assert!(took[N / 2] < ONE_WAY + SLACK, "{took:?} over a line that takes {ONE_WAY:?}");
}

/// How long a small write takes from one site to the other: the middle of five.
fn one_write(from: &Site, to: &Site) -> Duration {
    let mut took: Vec<Duration> = (0..5)
        .map(|i| {
            let (new, name) = (from.base.join("new"), format!("{}{i}", from.name));
            fs::write(&new, Rng::new(i).bytes(1024)).unwrap();
            let began = Instant::now();
            fs::rename(&new, from.dir.join(&name)).unwrap();
            while !to.dir.join(&name).exists() {
                assert!(began.elapsed() < PATIENCE, "{}", to.log());
                std::thread::sleep(Duration::from_millis(1));
            }
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[2]
}

/// Sites that have to look at a tree first cannot take contents along with changes when they connect. Afterwards they can, on the same
/// connection: else each write would take another round trip for as long as that stands, which may be months.
#[test]
fn sites_that_had_files_when_they_joined_get_small_writes_as_soon_as_others() {
    let base = TempDir::new().unwrap();
    let (oslo, bergen) = far_sites_with(&base, ONE_WAY, |oslo, bergen| {
        put(oslo, "both", "1");
        put(bergen, "both", "1");
        put(bergen, "own", "2");
    });
    wait_same(&[&oslo, &bergen]);
    oslo.ok(&["flush"]);
    for (from, to) in [(&oslo, &bergen), (&bergen, &oslo)] {
        let took = one_write(from, to);
        assert!(
            (ONE_WAY..ONE_WAY + SLACK).contains(&took),
            "{took:?} from {} over a line that takes {ONE_WAY:?}",
            from.name
        );
    }
}
