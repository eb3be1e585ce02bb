//! A row on disk: the value, then four bytes that depend on table, key and value.
//!
//! redb verifies its pages only when it repairs a file. These bytes tell damage of a row when it is
//! read, before anything is decided by it.

use driftless_core::rows::Table;

/// Length of the check behind each value, in bytes.
const CHECK_LEN: usize = 4;

/// Appends the stored form of `value` to the empty buffer `out`.
pub(crate) fn seal(table: Table, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(value);
    out.extend_from_slice(&check(table, key, value).to_le_bytes());
}

/// The value in `stored`; `None` if it is damaged.
pub(crate) fn unseal(table: Table, key: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
    let (value, found) = stored.split_last_chunk::<CHECK_LEN>()?;
    (u32::from_le_bytes(*found) == check(table, key, value)).then(|| value.to_vec())
}

/// Against bad disks, not against people: each step is a bijection of the state, so damage within one
/// word always changes the full hash, and all other damage goes unseen once in four thousand million times.
fn check(table: Table, key: &[u8], value: &[u8]) -> u32 {
    let lengths = (key.len() as u64) << 32 ^ value.len() as u64;
    let mut hash = mix(table as u64, lengths);
    for bytes in [key, value] {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            hash = mix(hash, u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = mix(hash, u64::from_le_bytes(last));
    }
    (hash >> 32) as u32
}

fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_bit_is_seen() {
        for len in [0, 1, 7, 8, 9, 40] {
            let (key, value) = (b"key of it".to_vec(), vec![0x5a; len]);
            let mut stored = Vec::new();
            seal(Table::Entries, &key, &value, &mut stored);
            assert_eq!(unseal(Table::Entries, &key, &stored), Some(value));
            assert_eq!(unseal(Table::Names, &key, &stored), None);
            for bit in 0..8 * stored.len() {
                let mut damaged = stored.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(unseal(Table::Entries, &key, &damaged), None, "bit {bit} of {len} bytes");
            }
            for bit in 0..8 * key.len() {
                let mut other = key.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(unseal(Table::Entries, &other, &stored), None);
            }
            for cut in 0..stored.len() {
                assert_eq!(unseal(Table::Entries, &key, &stored[..cut]), None);
            }
        }
    }

    /// A change here is a new format.
    #[test]
    fn the_check_is_the_documented_one() {
        let mut stored = Vec::new();
        seal(Table::Feed, &[0, 0, 0, 0, 0, 0, 0, 1], b"slot", &mut stored);
        assert_eq!(stored, [b's', b'l', b'o', b't', 188, 243, 159, 31]);
    }
}
