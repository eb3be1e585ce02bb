//! Killed processes: the index goes back to its last durable commit, the disk stays as it is.

use crate::site::Op;
use crate::world::{Verdict, World};
use driftless_core::Content;

impl World {
    /// The process is gone; users go on.
    pub(crate) fn stop(&mut self, i: usize) {
        if self.sites[i].blind {
            return;
        }
        self.hang_up(i);
        self.forget_positions(i);
        self.forgotten += usize::from(std::mem::take(&mut self.sites[i].moved_unrecorded));
        for content in std::mem::take(&mut self.sites[i].removed_unrecorded) {
            self.tokens.entry(content).or_default().born += 1;
        }
        self.sites[i].lose_lazy();
        (self.sites[i].stopped, self.sites[i].blind) = (true, true);
    }

    /// Changes whose records are lost get other positions in the feed.
    fn forget_positions(&mut self, i: usize) {
        let (me, durable) = (self.sites[i].me, self.sites[i].durable_head());
        for token in self.tokens.values_mut() {
            for (r, n) in &mut token.touched {
                if *r == me && *n > durable {
                    *n = crate::world::UNRECORDED;
                }
            }
        }
    }

    /// What a crash hides from the next start of what a user did: a directory that a plan made is renamed before its record
    /// is durable (by what name it was made is all that intents tell of it, so that it is new then), or a file is
    /// removed or replaced where no durable record has it.
    pub(crate) fn note_unrecorded(&mut self, i: usize, op: &Op) {
        match op {
            Op::Mv(from, to) => {
                self.note_moved_dir(i, from);
                self.note_removed(i, to);
            }
            Op::Rm(path) | Op::Save(path, _) | Op::SaveSeen(path, _) => self.note_removed(i, path),
            _ => {}
        }
    }

    fn note_moved_dir(&mut self, i: usize, path: &str) {
        let site = &mut self.sites[i];
        let Some((dir, name)) = site.spot(path) else { return };
        let Some(ino) = site.disk.get(dir, &name).filter(|ino| site.disk.is_dir(*ino)) else { return };
        if !site.is_durably_known(ino) {
            site.moved_unrecorded = true;
            self.forgotten += usize::from(site.stopped);
        }
    }

    fn note_removed(&mut self, i: usize, path: &str) {
        let site = &mut self.sites[i];
        let Some((dir, name)) = site.spot(path) else { return };
        let Some(ino) = site.disk.get(dir, &name) else { return };
        if let Some(content) = site.disk.inodes[&ino].content.as_ref().map(Content::identity)
            && !site.is_durably_at(ino, dir, &name)
        {
            match site.stopped {
                true => self.tokens.entry(content).or_default().born += 1,
                false => site.removed_unrecorded.push(content),
            }
        }
    }

    /// It starts again: what it meant to do is judged, then the tree is looked at.
    pub(crate) fn start(&mut self, i: usize) -> Verdict {
        if !self.sites[i].stopped {
            return Ok(());
        }
        (self.sites[i].stopped, self.sites[i].blind) = (false, false);
        for digest in crate::planned::recover(&mut self.sites[i])? {
            self.tokens.entry(digest).or_default().born += 1;
        }
        crate::crawl::crawl(&mut self.sites[i])?;
        // What was judged must not be judged again.
        self.sites[i].harden();
        self.check_records(i)
    }

    /// A plan is begun and the process killed after so many of its steps.
    pub(crate) fn crash_in_show(&mut self, i: usize, steps: usize) -> Verdict {
        if self.sites[i].blind {
            return Ok(());
        }
        let available = self.available();
        if crate::planned::begin(&mut self.sites[i], &available, steps)? {
            self.count(crate::world::Fault::TornPlan);
        }
        self.stop(i);
        self.start(i)
    }
}
