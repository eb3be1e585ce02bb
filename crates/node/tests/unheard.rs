//! What users do is heard under the name that a file had when they did it, and what replicas do is not heard at all. (So users are
//! processes of their own here.)
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod sites;

use sites::{Sites, wait_until};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

fn user_does(script: &str, dir: &Path) {
    assert!(Command::new("sh").args(["-ec", script]).current_dir(dir).status().unwrap().success());
}

#[test]
fn what_is_written_right_before_its_move_is_seen() {
    let mut sites = Sites::with_users_elsewhere(2);
    fs::write(sites.roots[0].join("file"), "before").unwrap();
    sites.open_all();
    let _cable = sites.join(0, 1);
    sites.wait_same();
    sites.wait_quiet();
    let (root, (wrote, written)) = (sites.roots[1].clone(), mpsc::channel());
    driftless_volume::fault::do_before_move(Box::new(move || {
        user_does("printf 'a users words' > file", &root);
        wrote.send(()).unwrap();
    }));
    user_does("mv file renamed", &sites.roots[0]);
    written.recv().unwrap();
    wait_until("what the user wrote", || match fs::read_to_string(sites.roots[0].join("renamed")) {
        Ok(text) if text == "a users words" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    sites.wait_same();
    sites.stop_all();
}
