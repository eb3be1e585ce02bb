//! The names in a directory, in little memory: there may be millions.

use driftless_core::{Name, NameError};

/// Names in byte order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    bytes: Vec<u8>,
    /// Where each name begins, and its length. 64 bits would double what short names take; who has names of more than
    /// 4 GiB in one directory is told so.
    spans: Vec<(u32, u8)>,
}

impl Listing {
    /// Adds a name; false if there is no room for it.
    pub(crate) fn push(&mut self, name: &[u8]) -> bool {
        let (Ok(at), Ok(len)) = (u32::try_from(self.bytes.len()), u8::try_from(name.len())) else {
            return false;
        };
        self.bytes.extend_from_slice(name);
        self.spans.push((at, len));
        true
    }

    pub(crate) fn sort(&mut self) {
        let Listing { bytes, spans } = self;
        spans.sort_unstable_by(|a, b| slice(bytes, *a).cmp(slice(bytes, *b)));
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The `i`-th name, or why it is none that a volume has.
    pub fn name(&self, i: usize) -> Option<Result<Name, NameError>> {
        self.bytes_of(i).map(Name::new)
    }

    /// The bytes of the `i`-th name.
    pub fn bytes_of(&self, i: usize) -> Option<&[u8]> {
        Some(slice(&self.bytes, *self.spans.get(i)?))
    }

    /// True if this name is there.
    pub fn contains(&self, name: &[u8]) -> bool {
        self.spans.binary_search_by(|span| slice(&self.bytes, *span).cmp(name)).is_ok()
    }
}

fn slice(bytes: &[u8], (at, len): (u32, u8)) -> &[u8] {
    &bytes[at as usize..at as usize + usize::from(len)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_order_and_are_found() {
        let mut listing = Listing::default();
        for name in [&b"b"[..], b"", b"a\xff", b"a", &[b'x'; 255]] {
            assert!(listing.push(name));
        }
        listing.sort();
        let all: Vec<_> = (0..listing.len()).filter_map(|i| listing.bytes_of(i)).collect();
        assert_eq!(all, [&b""[..], b"a", b"a\xff", b"b", &[b'x'; 255]]);
        assert!(listing.contains(b"a\xff") && !listing.contains(b"c") && !listing.contains(b"ab"));
        assert!(matches!(listing.name(0), Some(Err(NameError::Empty))) && listing.name(5).is_none());
        assert!(!listing.push(&[b'x'; 256]), "no file system has such");
    }
}
