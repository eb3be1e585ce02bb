//! Inode identities: file handles as [`NodeKey`] bytes.
//!
//! ```text
//! usual handle:   type (0..=0xfe)                handle bytes
//! other handle:   0xff 0x01  type (4, big-endian) handle bytes
//! no handles:     0xff 0x00  inode (8) birth seconds (8) birth nanoseconds (4), big-endian
//! ```
//! In handles of common file systems the inode number comes first and is big-endian. So the keys of inodes made one
//! after the other are neighbours, and so are their rows in the index: a commit changes few of its pages, not one for
//! each row.
//!
//! The file system is not part of a key: a volume does not leave its file system. No key starts as provisional
//! keys of plans do (`0xff 0xff`). The watcher and the look make equal keys of equal inodes.

use crate::sys;
use driftless_core::NodeKey;
use rustix::fs::{Statx, StatxFlags};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::ffi::CStr;
use std::os::fd::AsFd;

const ESCAPE: u8 = 0xff;
const NO_HANDLE: u8 = 0;
const WIDE_TYPE: u8 = 1;

/// How inodes are named on a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// By handles that can be opened again (given the privilege).
    Handle,
    /// By handles that can only be compared.
    HandleOnlyCompared,
    /// By inode number and birth time.
    InodeAndBirth,
}

/// The key of a handle. `None` if the kernel gave nonsense.
pub(crate) fn of_handle(kind: i32, bytes: &[u8]) -> Option<NodeKey> {
    let mut key = [0u8; NodeKey::LEN_MAX + 2];
    let start = match u8::try_from(kind) {
        Ok(kind) if kind != ESCAPE => {
            key[0] = kind;
            1
        }
        _ => {
            key[..2].copy_from_slice(&[ESCAPE, WIDE_TYPE]);
            key[2..6].copy_from_slice(&kind.to_be_bytes());
            6
        }
    };
    let end = start + bytes.len();
    let ordered = key.get_mut(start..end)?;
    for (to, from) in ordered.iter_mut().zip(order(kind, bytes.len())) {
        *to = bytes[from];
    }
    NodeKey::new(&key[..end])
}

/// The handle in a key: type and bytes. `None` for keys without one.
pub(crate) fn to_handle(key: &NodeKey) -> Option<(i32, SmallVec<[u8; 20]>)> {
    let (kind, ordered) = match key.as_bytes() {
        [ESCAPE, WIDE_TYPE, a, b, c, d, ordered @ ..] => (i32::from_be_bytes([*a, *b, *c, *d]), ordered),
        [ESCAPE, ..] | [] => return None,
        [kind, ordered @ ..] => (i32::from(*kind), ordered),
    };
    let mut bytes = SmallVec::from_elem(0, ordered.len());
    for (from, to) in ordered.iter().zip(order(kind, ordered.len())) {
        bytes[to] = *from;
    }
    Some((kind, bytes))
}

/// Where in a handle the inode number is, as offset and length of its parts, highest first: known of common file systems.
fn inode_parts(kind: i32, len: usize) -> &'static [(usize, usize)] {
    match (kind, len) {
        // ext4, XFS with small inode numbers: inode, generation.
        (1, 8) => &[(0, 4)],
        // tmpfs: generation, low and high half of the inode.
        (1, 12) => &[(8, 4), (4, 4)],
        // XFS, inode 64 bit, generation. Btrfs: object, root, generation.
        (0x81, 12) | (0x4d, 20) => &[(0, 8)],
        _ => &[],
    }
}

/// The positions of a handle's bytes in the order in which a key has them: the inode number from its highest byte to its
/// lowest, then the rest as it is.
fn order(kind: i32, len: usize) -> impl Iterator<Item = usize> {
    let parts = inode_parts(kind, len);
    let number = parts.iter().flat_map(|&(start, len)| {
        (0..len).map(move |i| start + if cfg!(target_endian = "little") { len - 1 - i } else { i })
    });
    number.chain((0..len).filter(|at| !parts.iter().any(|&(start, len)| (start..start + len).contains(at))))
}

fn of_inode(stat: &Statx) -> Option<NodeKey> {
    let mut key = [0u8; 22];
    key[..2].copy_from_slice(&[ESCAPE, NO_HANDLE]);
    key[2..10].copy_from_slice(&stat.stx_ino.to_be_bytes());
    if stat.stx_mask & StatxFlags::BTIME.bits() != 0 {
        key[10..18].copy_from_slice(&stat.stx_btime.tv_sec.to_be_bytes());
        key[18..22].copy_from_slice(&stat.stx_btime.tv_nsec.to_be_bytes());
    }
    NodeKey::new(&key)
}

/// The key of `name` in `dir` (of `dir` itself if `name` is empty), of which `stat` was just taken. `Ok(None)`: the
/// name went to another inode between the two calls; look again.
pub(crate) fn of_name(
    identity: Identity,
    dir: impl AsFd,
    name: &CStr,
    stat: &Statx,
) -> Result<Option<NodeKey>, Errno> {
    let only_compared = match identity {
        Identity::InodeAndBirth => return Ok(of_inode(stat)),
        Identity::Handle => false,
        Identity::HandleOnlyCompared => true,
    };
    let handle = sys::name_to_handle(dir, name, only_compared)?;
    // Stacked file systems show other inode numbers than their handles have.
    let inode = (!only_compared).then(|| inode_in(handle.kind, handle.bytes())).flatten();
    if inode.is_some_and(|inode| inode != stat.stx_ino) {
        return Ok(None);
    }
    of_handle(handle.kind, handle.bytes()).ok_or(Errno::OVERFLOW).map(Some)
}

/// The inode number inside the handles of common file systems. It costs nothing to compare it with the one of the
/// stat, and tells when a name was given to another inode between the two calls.
fn inode_in(kind: i32, bytes: &[u8]) -> Option<u64> {
    let len = inode_parts(kind, bytes.len()).iter().map(|(_, len)| len).sum();
    let number = order(kind, bytes.len()).take(len);
    (len > 0).then(|| number.fold(0, |n, at| n << 8 | u64::from(bytes[at])))
}

/// True if `stat`, taken just now, is certainly of the inode `key`, given that it has the fingerprint this inode had:
/// a second inode of the same number has another ctime. Or given that this inode is open.
pub(crate) fn is_same_inode(key: &NodeKey, stat: &Statx) -> bool {
    to_handle(key).and_then(|(kind, bytes)| inode_in(kind, &bytes)) == Some(stat.stx_ino)
}

/// True if inodes have a birth time, which tells one from the next of the same number.
pub(crate) fn has_birth_time(fd: impl AsFd) -> bool {
    crate::stat::stat_fd(fd).is_ok_and(|stat| stat.stx_mask & StatxFlags::BTIME.bits() != 0)
}

/// Which identity works for `root`.
pub(crate) fn probe(root: impl AsFd) -> Identity {
    if sys::name_to_handle(root.as_fd(), c"", false).is_ok() {
        Identity::Handle
    } else if sys::name_to_handle(root, c"", true).is_ok() {
        Identity::HandleOnlyCompared
    } else {
        Identity::InodeAndBirth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_survive_the_way_through_keys() {
        for (kind, bytes) in [
            (1, &b"12345678"[..]),
            (1, b"123456789012"),
            (0x81, b"123456789012"),
            (0xff, b"x"),
            (-3, b""),
            (0x10001, b"yy"),
        ] {
            let key = of_handle(kind, bytes).unwrap();
            assert_eq!(to_handle(&key), Some((kind, SmallVec::from_slice(bytes))));
            assert!(!driftless_core::plan::Plan::is_provisional(&key));
        }
    }

    #[test]
    fn keys_are_ordered_as_inode_numbers_are() {
        let numbers = [0, 1, 0xff, 0x100, 0xffff, 0x1_0000, 0x7fff_ffff];
        let small = |n: u32| [&n.to_ne_bytes()[..], b"gene"].concat();
        let tmpfs = |n: u32| [&(!n).to_ne_bytes()[..], &n.to_ne_bytes(), &(n >> 4).to_ne_bytes()].concat();
        let xfs = |n: u32| [&(u64::from(n) << 20).to_ne_bytes()[..], b"gene"].concat();
        for (kind, handles) in [(1, numbers.map(small)), (1, numbers.map(tmpfs)), (0x81, numbers.map(xfs))] {
            let keys = handles.each_ref().map(|h| of_handle(kind, h).unwrap());
            assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
            let inodes = handles.each_ref().map(|h| inode_in(kind, h).unwrap());
            assert!(inodes.is_sorted_by(|a, b| a < b), "{inodes:x?}");
        }
        assert_eq!(inode_in(1, &small(77)), Some(77));
        assert_eq!(inode_in(1, &tmpfs(0x71)), Some(0x7_0000_0071));
        assert_eq!(inode_in(0x99, b"12345678"), None);
    }

    #[test]
    fn the_longest_handle_fits_and_a_longer_one_is_refused() {
        assert!(of_handle(1, &[7; sys::HANDLE_LEN_MAX]).is_some());
        assert!(of_handle(1, &[7; 200]).is_none());
    }
}
