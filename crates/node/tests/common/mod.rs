//! Sessions of two directories within this process, and questions to their indexes.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use driftless_core::rows::Store as _;
use driftless_index::{Index, OpenOptions, StateDir};
use driftless_node::accept_lost;
use driftless_node::api::{Endpoint, Event, MaxDelete, Outcome, Shared, SyncOptions};
use driftless_node::query::{self, AcceptOutcome, AcceptRow, LostVersion, Request, Response};
use driftless_node::session::{StopFlag, run};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(crate) struct Pair {
    pub(crate) base: TempDir,
    pub(crate) a: PathBuf,
    pub(crate) b: PathBuf,
}

impl Pair {
    pub(crate) fn new() -> Pair {
        let base = tempfile::tempdir().unwrap();
        let (a, b) = (base.path().join("a"), base.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        Pair { base, a, b }
    }

    pub(crate) fn options(&self) -> SyncOptions {
        SyncOptions {
            a: Endpoint::Local(self.a.clone()),
            b: Endpoint::Local(self.b.clone()),
            state_dir: Some(self.base.path().join("state")),
            shared: Shared {
                active_passive: false,
                filters: Vec::new(),
                max_delete: MaxDelete::Default,
                on_rollback: Default::default(),
                dry_run: false,
                allow_unsafe_fs: false,
                once: true,
                site_names: ("A".into(), "B".into()),
                verbose: false,
                trash: None,
                crawl_every_s: driftless_node::api::CRAWL_EVERY_DEFAULT_S,
            },
            bwlimit_bytes_per_s: None,
            remote_bin: "driftless".into(),
        }
    }

    /// `sync --once`.
    pub(crate) fn sync(&self) -> (Outcome, Vec<Event>) {
        let (send, events) = crossbeam_channel::unbounded();
        let outcome = run(self.options(), send, StopFlag::default()).unwrap();
        (outcome, events.try_iter().collect())
    }

    /// The index of the end at this root.
    pub(crate) fn index(&self, root: &Path) -> Index {
        let dirs = StateDir::at(self.base.path().join("state")).replicas().unwrap();
        let dir = dirs.iter().find(|d| d.root().unwrap() == root.canonicalize().unwrap()).unwrap();
        Index::open(&dir.index(), OpenOptions::default()).unwrap()
    }

    pub(crate) fn ask(&self, root: &Path, request: &Request) -> Response {
        let index = self.index(root);
        let snapshot = index.snapshot().unwrap();
        query::answer(&*snapshot, request)
    }

    pub(crate) fn lost(&self, root: &Path) -> Vec<LostVersion> {
        match self.ask(root, &Request::Lost { after: None }) {
            Response::Lost(page) => page.rows,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn accept(&self, root: &Path, row: &LostVersion) -> AcceptOutcome {
        let row = AcceptRow {
            entry: row.entry.clone(),
            version: row.version.clone(),
            remove: false,
            anyway: false,
        };
        match accept_lost(&self.index(root), &row) {
            Response::Accepted(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }
}
