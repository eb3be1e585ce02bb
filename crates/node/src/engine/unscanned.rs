//! What is heard before the tree has been crawled: it is judged after that.
//!
//! A watcher may hear a whole file system: of a volume beside this one that is being filled, say, each file. So a directory in
//! which much happens is kept instead of its names, and looked at as a whole if it turns out to be one of this volume.

use driftless_core::{Name, NodeKey};
use std::collections::{BTreeSet, HashMap};

/// So many names of a directory are kept: listing one costs less than as many looks.
const NAMES_MAX: usize = 32;

/// See the module.
#[derive(Default)]
pub(super) struct Unscanned {
    /// `None`: all that is in it.
    dirs: HashMap<NodeKey, Option<Vec<Name>>>,
    names_n: usize,
}

impl Unscanned {
    /// Something happened at this name.
    pub(super) fn hear(&mut self, dir: NodeKey, name: Name) {
        let kept = self.dirs.entry(dir).or_insert_with(|| Some(Vec::new()));
        let Some(names) = kept else { return };
        if names.contains(&name) {
            return;
        }
        if names.len() == NAMES_MAX {
            self.names_n -= NAMES_MAX;
            *kept = None;
        } else {
            names.push(name);
            self.names_n += 1;
        }
    }

    /// What it holds: names, and directories without.
    pub(super) fn len(&self) -> usize {
        self.names_n + self.dirs.len()
    }

    /// All of it, to be judged now.
    pub(super) fn take(&mut self, names: &mut BTreeSet<(NodeKey, Name)>, dirs: &mut BTreeSet<NodeKey>) {
        for (dir, kept) in std::mem::take(self).dirs {
            match kept {
                Some(kept) => names.extend(kept.into_iter().map(|name| (dir.clone(), name))),
                None => _ = dirs.insert(dir),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_much_happens_all_is_looked_at() {
        let key = |n: u8| NodeKey::new(&[n; 12]).unwrap();
        let name = |n: usize| Name::new(format!("{n}").as_bytes()).unwrap();
        let mut unscanned = Unscanned::default();
        for n in 0..NAMES_MAX {
            unscanned.hear(key(1), name(n));
            unscanned.hear(key(2), name(n % 3));
        }
        assert_eq!(unscanned.len(), NAMES_MAX + 3 + 2);
        for n in 0..1000 {
            unscanned.hear(key(1), name(n));
        }
        assert_eq!(unscanned.len(), 3 + 2, "what is kept does not grow with what happens");
        let (mut names, mut dirs) = (BTreeSet::new(), BTreeSet::new());
        unscanned.take(&mut names, &mut dirs);
        assert_eq!(names, (0..3).map(|n| (key(2), name(n))).collect());
        assert_eq!(dirs, [key(1)].into());
        assert_eq!(unscanned.len(), 0);
    }
}
