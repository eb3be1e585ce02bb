//! After a sync of the file system that failed.
//!
//! The kernel tells such a failure once, and may have dropped what it could not write: in memory a file may be as its user
//! wrote it, on the disk as it was before, with one and the same look, and a later sync that succeeds says nothing
//! about it. What this program stages is staged again from its source ([`super::apply`], [`super::stager`]). What users wrote
//! since the last seal, and was read and recorded, is read once more here, from the disk, when a sync has succeeded and
//! before anything is dropped or told to be held. What is not as recorded is judged as after a power cut ([`super::suspect`]):
//! as before a change, that is done again; anything else stands beside what was recorded, and does not follow it.
//!
//! That a sync has failed is written down: another process would not be told again.

use super::observe::Pass;
use super::suspect::Judged;
use super::{Engine, Fail, volume_reason};
use crate::api::{Level, Reason};
use driftless_core::disk::Node;
use driftless_core::local::Looked;
use driftless_core::plan::At;
use driftless_core::rows::Table;
use driftless_core::unsealed::{self, Image, Images};
use driftless_core::{Bind, Content, Kind, NodeKey, Tx};
use std::collections::HashSet;

/// Set from a sync that failed until what it may have been about has been read again.
const SETTING_SYNC_FAILED: &[u8] = b"sync_failed";

/// What is known of syncs that failed.
#[derive(Default)]
pub(super) struct FailedSyncs {
    /// How many this process has taken note of.
    seen: u64,
    /// Something has to be read again.
    unverified: bool,
    /// Files that were found damaged and are not as they should be yet.
    damaged: u64,
}

impl FailedSyncs {
    /// What was found damaged before has been seen to since.
    pub(super) fn expect_end(&mut self) {
        self.damaged = 0;
    }
}

/// What a file that has to be as recorded turns out to be.
enum Found {
    AsRecorded,
    /// Somebody has changed it since, or it is elsewhere: others look at it.
    Changed,
    Damaged(Box<Looked>),
    Unreadable(Reason, String),
}

impl Engine {
    /// Reads again, before anything else is done, what the last process could not.
    pub(super) fn verify_at_start(&mut self) -> Result<(), Fail> {
        let due = self.failed_syncs.unverified && !self.shared.dry_run;
        // After a power cut all of it was read from the disk just now.
        if due && self.last_moments.is_none() { self.try_seal() } else { Ok(()) }
    }

    /// A session that ends with files found damaged at its very end has not done what it was to do.
    pub(super) fn refuse_damaged(&self) -> Result<(), Fail> {
        match self.failed_syncs.damaged {
            0 => Ok(()),
            n => Err(Fail::Refused {
                what: format!("the disk lost what users wrote to {n} files"),
                advice: "look at the kernel log, and run it again: the other side's copies come back".into(),
            }),
        }
    }

    /// What the last process has left to be verified.
    pub(super) fn load_failed_syncs(&mut self) -> Result<(), Fail> {
        self.failed_syncs.unverified =
            self.store.snapshot()?.get(Table::Settings, SETTING_SYNC_FAILED)?.is_some();
        Ok(())
    }

    /// Takes note of syncs that failed, whoever asked for them.
    pub(super) fn note_failed_syncs(&mut self) -> Result<(), Fail> {
        let failures = self.volume.sync_failures();
        if failures == self.failed_syncs.seen {
            return Ok(());
        }
        self.failed_syncs.seen = failures;
        if !std::mem::replace(&mut self.failed_syncs.unverified, true) {
            let key = (Table::Settings, SETTING_SYNC_FAILED.to_vec());
            self.store.commit([(key, Some(vec![1]))].into())?;
        }
        Ok(())
    }

    /// To be called after a sync that succeeded: reads again what was recorded since the last seal, up to commit
    /// `covered`, if a sync has failed since.
    pub(super) fn verify_unsealed(&mut self, covered: u64) -> Result<(), Fail> {
        if !self.failed_syncs.unverified {
            return Ok(());
        }
        let store = self.store.clone();
        let snapshot = store.snapshot()?;
        let mut tx = Tx::open(&*snapshot, self.env())?;
        let mut images = Images::new();
        let end = covered.to_be_bytes();
        for (_, row) in snapshot.scan(Table::Before, &[], Some(&end), usize::MAX)? {
            unsealed::decode(&row, tx.replicas(), &mut images)?;
        }
        let (mut judged, mut read, mut damaged) = (Judged::default(), HashSet::new(), 0u64);
        for ((dir, name), images) in &images {
            let at = At { dir: dir.clone(), name: name.clone() };
            let Some(place) = tx.place(dir, name)? else { continue };
            let node = (*tx.node_must(&place.node)?).clone();
            if node.kind != Kind::File || !read.insert(place.node.clone()) {
                continue;
            }
            match self.read_again(&mut tx, &at, &place.node, &node)? {
                Found::AsRecorded => {}
                Found::Changed => self.look_soon(at.dir, at.name),
                Found::Unreadable(reason, why) => {
                    if let Some(mut path) = self.path_of_node(&mut tx, dir)? {
                        path.push(name);
                        self.path_waits(&mut tx, path.join_bytes(), reason, why)?;
                    }
                }
                Found::Damaged(looked) => {
                    damaged += 1;
                    self.judge_damaged(&mut tx, at, (images, &node), *looked, &mut judged)?;
                }
            }
        }
        self.take_beside(&mut tx, judged.beside)?;
        judged.concerned.iter().for_each(|id| tx.add_pending(*id));
        tx.put(Table::Settings, SETTING_SYNC_FAILED.to_vec(), None);
        self.commit(tx)?;
        self.failed_syncs.unverified = false;
        self.failed_syncs.damaged = damaged;
        self.tell_verified(read.len(), damaged);
        Ok(())
    }

    fn judge_damaged(
        &mut self,
        tx: &mut Tx<'_>,
        at: At,
        (images, node): (&[Option<Image>], &Node),
        looked: Looked,
        judged: &mut Judged,
    ) -> Result<(), Fail> {
        if node.names.len() > 1 {
            return self.take_torn(tx, &mut Pass::default(), at, looked);
        }
        self.judge_path(tx, at, images, Some(looked), judged)
    }

    /// Compares a file that looks as recorded with what the disk has of it.
    fn read_again(&mut self, tx: &mut Tx<'_>, at: &At, key: &NodeKey, node: &Node) -> Result<Found, Fail> {
        let Bind::Leaf { identity } = node.bind else { return Ok(Found::AsRecorded) };
        let Some(path) = self.path_of_node(tx, &at.dir)? else { return Ok(Found::Changed) };
        let Ok(dir) = self.volume.dir(&path, Some(&at.dir)) else { return Ok(Found::Changed) };
        let Ok(open) = dir.open_read(&at.name, key) else { return Ok(Found::Changed) };
        if *open.fingerprint() != node.fingerprint {
            return Ok(Found::Changed);
        }
        open.forget_cached();
        let digest = match open.digest() {
            Ok(digest) => digest,
            Err(e) => return Ok(Found::Unreadable(volume_reason(&e), e.to_string())),
        };
        if !open.unchanged().unwrap_or(false) {
            return Ok(Found::Changed);
        }
        Ok(match digest {
            Some(digest) if digest == identity => Found::AsRecorded,
            Some(digest) => {
                let fingerprint = node.fingerprint;
                let content = Content::File { size: fingerprint.size, mtime: fingerprint.mtime, digest };
                let (key, attrs) = (key.clone(), node.given.clone());
                let content = Some(content);
                let kind = Kind::File;
                Found::Damaged(Box::new(Looked { key, kind, fingerprint, racy: false, attrs, content }))
            }
            None => Found::Changed,
        })
    }

    fn tell_verified(&mut self, read: usize, damaged: u64) {
        let (level, text) = match damaged {
            0 => (
                Level::Warn,
                format!(
                    "after a sync that failed, {read} files written since the one before were read again: all are as they \
                     were written; look at the kernel log"
                ),
            ),
            n => (
                Level::Error,
                format!(
                    "after a sync that failed, {read} files written since the one before were read again: the disk lost what \
                     was written to {n}; the other side's copies of them come back, what the disk has now is kept \
                     beside them; look at the kernel log"
                ),
            ),
        };
        self.log(level, text);
    }
}
