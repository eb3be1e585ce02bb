//! Becoming a writer or a follower while running.
//!
//! Who becomes a writer records what had drifted. Who stops being one records first what users have done: the whole tree is
//! looked at once more, so that nothing that was written before is left behind.

use super::{Engine, Fail, FromEngine};
use driftless_core::ReplicaId;
use driftless_core::link::Role;

/// How far this replica is on its way to follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Becoming {
    /// It is not.
    #[default]
    Nothing,
    /// Its tree is to be looked at.
    Looking,
    /// That is done: what was seen meanwhile is to be recorded.
    Looked,
}

impl Becoming {
    /// A crawl is over that began after the wish.
    pub(super) fn looked(&mut self) {
        if *self == Becoming::Looking {
            *self = Becoming::Looked;
        }
    }
}

impl Engine {
    pub(super) fn change_role(&mut self, role: Role) -> Result<(), Fail> {
        match role {
            // It ends in a moment.
            _ if self.setting_aside => {}
            Role::Follower if self.role == Role::Follower => {}
            Role::Follower => {
                // One that is under way does as well: what it has passed is watched.
                if self.pass.is_none() && self.scanned {
                    self.start_crawl();
                }
                self.becoming = Becoming::Looking;
            }
            Role::Writer => {
                self.becoming = Becoming::Nothing;
                if self.role == Role::Follower {
                    self.role = Role::Writer;
                    self.drifted.clear();
                    self.want_crawl = true;
                }
            }
        }
        let me = self.me()?;
        self.tell_role(me)
    }

    /// True if it has just become one, or has all that is to be set aside.
    pub(super) fn become_follower(&mut self) -> Result<bool, Fail> {
        let recorded = self.pass.is_none()
            && !self.has_hints()
            && self.hasher.is_idle()
            && self.later.is_empty()
            && !self.rollback.is_waiting();
        if self.becoming != Becoming::Looked || !recorded {
            return Ok(false);
        }
        self.becoming = Becoming::Nothing;
        if self.setting_aside {
            return self.looked_before_setting_aside().map(|()| true);
        }
        self.role = Role::Follower;
        let me = self.me()?;
        self.tell_role(me)?;
        Ok(true)
    }

    pub(super) fn tell_role(&mut self, me: ReplicaId) -> Result<(), Fail> {
        match self.service {
            Some(_) => self.post(FromEngine::Replica(me, self.role)),
            None => Ok(()),
        }
    }
}
