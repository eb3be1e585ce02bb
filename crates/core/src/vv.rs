//! Version vectors: for each replica, how many of its changes are covered.

use crate::id::{Dot, ReplicaId};
use smallvec::SmallVec;
use std::cmp::Ordering;
use std::fmt;

/// A map replica -> n, sorted by replica, without zeroes. `covers(dot)` = `n >= dot.n`.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct VersionVector(SmallVec<[(ReplicaId, u64); 2]>);

impl VersionVector {
    /// Covers nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Covers exactly the changes of `dot.replica` up to `dot.n`.
    pub fn from_dot(dot: Dot) -> Self {
        let mut v = Self::new();
        v.add(dot);
        v
    }

    /// The greatest covered n of `replica`, or 0.
    pub fn get(&self, replica: ReplicaId) -> u64 {
        match self.0.binary_search_by_key(&replica, |e| e.0) {
            Ok(i) => self.0[i].1,
            Err(_) => 0,
        }
    }

    /// True if `dot` is covered.
    pub fn covers(&self, dot: Dot) -> bool {
        self.get(dot.replica) >= dot.n
    }

    /// True if every dot of `other` is covered.
    pub fn covers_all(&self, other: &VersionVector) -> bool {
        other.0.iter().all(|&(r, n)| self.get(r) >= n)
    }

    /// Covers `dot` and all before it as well.
    pub fn add(&mut self, dot: Dot) {
        if dot.n == 0 {
            return;
        }
        match self.0.binary_search_by_key(&dot.replica, |e| e.0) {
            Ok(i) => self.0[i].1 = self.0[i].1.max(dot.n),
            Err(i) => self.0.insert(i, (dot.replica, dot.n)),
        }
    }

    /// Covers all of `other` as well.
    pub fn join(&mut self, other: &VersionVector) {
        for &(replica, n) in &other.0 {
            self.add(Dot::new(replica, n));
        }
    }

    /// What both cover.
    pub fn meet(&self, other: &VersionVector) -> VersionVector {
        VersionVector(self.0.iter().map(|&(r, n)| (r, n.min(other.get(r)))).filter(|e| e.1 > 0).collect())
    }

    /// Replicas with their n, ordered by replica.
    pub fn iter(&self) -> impl Iterator<Item = (ReplicaId, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Number of replicas in it.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialOrd for VersionVector {
    /// The causal order; `None` when concurrent.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self.covers_all(other), other.covers_all(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

impl FromIterator<(ReplicaId, u64)> for VersionVector {
    fn from_iter<I: IntoIterator<Item = (ReplicaId, u64)>>(iter: I) -> Self {
        let mut v = Self::new();
        for (replica, n) in iter {
            v.add(Dot::new(replica, n));
        }
        v
    }
}

impl fmt::Debug for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vv(of: &[(u64, u64)]) -> VersionVector {
        of.iter().map(|&(r, n)| (ReplicaId(r), n)).collect()
    }

    #[test]
    fn join_meet_and_order() {
        let (a, b) = (vv(&[(1, 5), (2, 1)]), vv(&[(1, 3), (3, 7)]));
        let mut j = a.clone();
        j.join(&b);
        assert_eq!(j, vv(&[(1, 5), (2, 1), (3, 7)]));
        assert_eq!(a.meet(&b), vv(&[(1, 3)]));
        assert_eq!(a.partial_cmp(&b), None);
        assert!(j > a && j.covers_all(&b));
        assert!(j.covers(Dot::new(ReplicaId(3), 7)) && !j.covers(Dot::new(ReplicaId(3), 8)));
        assert!(a.covers(Dot::new(ReplicaId(9), 0)));
    }
}
