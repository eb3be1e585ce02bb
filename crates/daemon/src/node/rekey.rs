//! Another key for this site. It is made and told while the node runs, and used from its next start on: connections that are open go on
//! with the old one until then.

use super::Shared;
use crate::control::Answer;
use crate::log;
use crate::records::Volume;
use driftless_core::membership::{Action, Key, Signature, rekey_bytes};
use driftless_net::identity::{Identity, IdentityError};
use driftless_node::api::Level;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The key pair in the state directory ...
const KEY_FILE: &str = "key";
/// ... the one that takes its place at the next start ...
const NEXT_FILE: &str = "key.next";
/// ... and the one before.
const LAST_FILE: &str = "key.last";

/// The node's key pair: the next one if there is one, else the one it has, else a new one.
///
/// # Errors
/// If a file cannot be read, made or renamed.
pub(super) fn identity(state: &Path) -> Result<Identity, IdentityError> {
    let (key, next) = (state.join(KEY_FILE), state.join(NEXT_FILE));
    let io = |source| IdentityError::Io { path: key.display().to_string(), source };
    if Identity::load(&next)?.is_some() {
        match fs::rename(&key, state.join(LAST_FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
            _ => {}
        }
        fs::rename(&next, &key).and_then(|()| File::open(state)?.sync_all()).map_err(io)?;
    }
    if let Some(identity) = Identity::load(&key)? {
        return Ok(identity);
    }
    let identity = Identity::generate()?;
    identity.save(&key)?;
    Ok(identity)
}

impl Shared {
    /// `site rekey`. A `fresh` key is nobody's successor: for a site that was removed and is to be invited again.
    pub(super) fn rekey(&self, fresh: bool) -> Result<Answer, Answer> {
        let wrong = |e: IdentityError| {
            Answer::failed(e.to_string(), "correct the file or its directory; nothing was changed")
        };
        let path = self.state.join(NEXT_FILE);
        if Identity::load(&path).map_err(wrong)?.is_some() {
            return Err(Answer::failed(
                "there is a new key already, which waits for the node's next start",
                "restart the node: driftless serve",
            ));
        }
        let next = Identity::generate().map_err(wrong)?;
        let (old, new) = (self.members.own(), Key(next.public().0));
        next.save(&path).map_err(wrong)?;
        let volumes: Vec<(String, Option<u128>)> =
            self.lock().records.volumes.iter().map(|(name, v)| (name.clone(), Volume::id(v))).collect();
        let mut told = 0;
        for id in volumes.into_iter().filter_map(|(_, id)| id) {
            if fresh || !self.members.view(id).members.contains_key(&old) {
                continue;
            }
            let proof = Signature(next.sign(&rekey_bytes(id, old, new)));
            self.sign(id, vec![Action::Rekey { key: new, proof }])?;
            told += 1;
        }
        let text = format!("this site has a new key, {}, from the next start on", next.public().short());
        log::line(Level::Warn, &text, &[]);
        let how = match (fresh, told) {
            (true, _) => "no site knows it: restart the node, and have it invited again".to_owned(),
            (false, 0) => "it is a member of no volume, so no site hears of it: restart the node, and have it invited again".to_owned(),
            (false, n) => format!(
                "the members of {n} {} hear of it now, those that are away when they are back. Restart the node to use it",
                if n == 1 { "volume" } else { "volumes" }
            ),
        };
        Ok(Answer::Done(format!("{text}; {how}")))
    }
}
