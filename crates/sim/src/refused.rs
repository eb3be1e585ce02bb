//! Plans of which some steps fail, as they do for want of space or rights, and are done later: one entry that cannot be
//! written holds up no other, and what failed is never taken for a user's doing.
//!
//! By the rules of the engine: a step is left out if it builds on one that was, and so is one that would destroy what a step
//! that was left out takes its content from; the entries concerned are planned again.

use crate::planned::{perform, restore_dir_times, todo};
use crate::prng::Prng;
use crate::site::Site;
use crate::world::Available;
use driftless_core::plan::{Plan, PlanOptions, Step, plan_entry, record, stands};
use driftless_core::tx::{Result as TxResult, Tx};
use driftless_core::{EntryId, NodeKey};
use std::collections::{BTreeSet, HashMap};

/// Plans all that is to be done and does what does not fail: one step in four does, by `seed`. Gives how many did.
pub fn show(site: &mut Site, available: &Available, seed: u64) -> u64 {
    if !available.has_all_of(&site.own_tree()) {
        return 0;
    }
    let todo = todo(site);
    let mut run = Run { rng: Prng::new(seed), ..Run::default() };
    let plan = site.read(|tx| {
        let mut plan = Plan::new();
        for id in &todo {
            if plan_entry(tx, *id, &mut plan, &PlanOptions::default())?.is_some() {
                run.failed.insert(*id);
            }
        }
        Ok(plan)
    });
    site.harden();
    let mut disk = site.disk.clone();
    disk.now.sec = 1 << 40;
    site.tx(|tx| {
        for step in &plan.steps {
            run.step(tx, &mut disk, step.clone())?;
        }
        restore_dir_times(tx, &mut disk)?;
        for id in todo.iter().filter(|id| !run.failed.contains(id)) {
            tx.remove_pending(*id);
        }
        run.failed.iter().for_each(|id| tx.add_pending(*id));
        Ok(())
    });
    site.disk = disk;
    site.plan_cursor = site.head();
    run.refused
}

struct Run {
    rng: Prng,
    /// Inodes that were made, by the names that the plan gave them.
    real: HashMap<NodeKey, NodeKey>,
    /// Entries that steps which were not done concern.
    failed: BTreeSet<EntryId>,
    /// Inodes that such steps take contents from.
    sources: BTreeSet<NodeKey>,
    refused: u64,
}

impl Default for Run {
    fn default() -> Run {
        let (real, failed, sources) = Default::default();
        Run { rng: Prng::new(0), real, failed, sources, refused: 0 }
    }
}

impl Run {
    fn step(&mut self, tx: &mut Tx<'_>, disk: &mut crate::disk::Disk, mut step: Step) -> TxResult<()> {
        let planned = step.node().clone();
        step.resolve(&self.real);
        let destroys = step.victim().is_some_and(|v| self.sources.contains(&v.node));
        // What is a matter of records alone does not fail.
        let refused = self.rng.one_in(4) && !matches!(step, Step::Rebind { .. });
        self.refused += u64::from(refused);
        if !refused && !step.is_unresolved() && !destroys && stands(tx, &step)? {
            step.refresh(tx)?;
            // A directory may hold what a step that failed should have taken away: that fails too.
            if let Ok(outcome) = perform(disk, &step) {
                if let Some(o) = &outcome {
                    self.real.insert(planned, o.node.clone());
                }
                step.resolve(&self.real);
                return record(tx, &step, outcome.as_ref());
            }
        }
        self.failed.extend(driftless_core::plan::concerned(tx, &step)?);
        self.sources.extend(step.source().cloned());
        Ok(())
    }
}
