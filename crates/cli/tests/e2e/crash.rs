//! `kill -9` at any moment loses nothing, and the next run goes on.

use crate::common::*;
use driftless_testkit::{Rng, Spec, grow};
use std::collections::BTreeMap;
use std::time::Duration;

#[test]
fn a_first_sync_that_is_killed_again_and_again_arrives() {
    let pair = Pair::new();
    grow(&pair.a, 50, &Spec { files: 400, size_max: 200_000, ..Spec::default() }).unwrap();
    let before = fingerprints(&pair.a);
    let mut rng = Rng::new(51);
    for _ in 0..10 {
        let running = Running::start(&mut pair.sync_command(&["--json"]));
        std::thread::sleep(Duration::from_millis(20 + rng.below(150)));
        running.kill();
    }
    pair.once(&[]);
    pair.assert_same();
    let mut touched = fingerprints(&pair.a);
    touched.retain(|path, now| before.get(path) != Some(now));
    assert_eq!(touched, BTreeMap::new(), "the source was touched");
    assert_eq!(copies(&pair.a), Vec::<String>::new());
}
