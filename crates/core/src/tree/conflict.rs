//! Conflict names: what a group of leaves is called that lost its name.

use super::{Group, PAGE, Shares, entries_at};
use crate::id::{Dot, EntryId, Name, Stamp};
use crate::tx::{Result, Tx};

/// Stands between stem and time in a conflict name.
pub(crate) const MARK: &[u8] = b".conflict-";
/// Length of the time, `20261120T101112Z`.
const TIME_LEN: usize = 16;
/// Hexadecimal digits of the tag of a name that is neither cut nor displaced.
const TAG_LEN: usize = 8;
/// Hexadecimal digits of all other tags: nobody can find two versions with the same.
const LONG_TAG_LEN: usize = 32;
/// The longest extension, dot included, that stays at the end of the name.
const EXTENSION_MAX: usize = 16;

/// The name a group that lost `base` gets: `<stem>.conflict-<time>-<tag><extension>`, where time (UTC)
/// and tag come from the lowest version dot in the group and its stamp; the stem is cut so that 255 bytes
/// are enough. `round` > 0 gives other, longer tags, for when a name is taken. A function of its arguments
/// only, so all replicas give the same; different bases never get the same name.
pub fn conflict_name(base: &Name, lowest: Dot, made: Stamp, round: u32) -> Name {
    let (stem, extension) = split_extension(base.as_bytes());
    let full = |tag: usize| MARK.len() + TIME_LEN + 1 + tag + extension.len();
    let short = round == 0 && stem.len() + full(TAG_LEN) <= Name::LEN_MAX;
    let tag_len = if short { TAG_LEN } else { LONG_TAG_LEN };
    let stem = cut(stem, Name::LEN_MAX - full(tag_len));
    let time = utc(made.clock_ns / 1_000_000_000);
    let tag = tag(base, lowest, round, tag_len);
    let bytes = [stem, MARK, time.as_bytes(), b"-", tag.as_bytes(), extension].concat();
    // Not empty, not too long, no forbidden byte that the base had not; a staged file's prefix has no dot after
    // its first byte, so that neither a cut stem nor what follows can make one that the base was not.
    Name::new(&bytes).expect("a conflict name of a valid name is valid")
}

/// The first conflict name of a group that is neither a real name nor given to another group.
pub(super) fn free_conflict_name(
    tx: &mut Tx<'_>,
    class: &[EntryId],
    base: &Name,
    group: &[(Shares, Stamp)],
    given: &[Group],
) -> Result<Name> {
    let lowest = group.iter().map(|(c, stamp)| (c.version, *stamp)).min();
    let (lowest, made) = lowest.unwrap_or_default();
    let mut round = 0;
    loop {
        let name = conflict_name(base, lowest, made, round);
        let free = given.iter().all(|g| g.name != name) && entries_at(tx, class, &name)?.is_empty();
        if free {
            return Ok(name);
        }
        round += 1;
    }
}

/// Real names whose conflict copies could have been given `name`. Nearly always none.
pub(crate) fn conflict_bases(tx: &mut Tx<'_>, class: &[EntryId], name: &Name) -> Result<Vec<Name>> {
    let Some((stem, _)) = parse_conflict(name.as_bytes()) else { return Ok(Vec::new()) };
    let mut out: Vec<Name> = conflict_base(name).into_iter().collect();
    // A cut stem does not tell the rest. A cut may fall short by the bytes of one character.
    if name.as_bytes().len() + 3 >= Name::LEN_MAX
        && let Ok(prefix) = Name::new(stem)
    {
        for member in class {
            names_with_prefix(tx, *member, &prefix, &mut out)?;
        }
        out.retain(|base| base != name);
    }
    Ok(out)
}

/// The real name whose copies are called like `name`, if its stem is not cut.
pub(crate) fn conflict_base(name: &Name) -> Option<Name> {
    let (stem, extension) = parse_conflict(name.as_bytes())?;
    Name::new(&[stem, extension].concat()).ok()
}

fn names_with_prefix(tx: &mut Tx<'_>, dir: EntryId, prefix: &Name, out: &mut Vec<Name>) -> Result<()> {
    let mut last = (prefix.clone(), EntryId::ROOT);
    loop {
        let page = tx.names_in(dir, Some((&last.0, last.1)), PAGE)?;
        let Some(end) = page.last().cloned() else { return Ok(()) };
        for (name, _) in page {
            if !name.as_bytes().starts_with(prefix.as_bytes()) {
                return Ok(());
            }
            out.push(name);
        }
        last = end;
    }
}

/// Stem and extension (with its dot; empty if there is none or a long one).
fn split_extension(base: &[u8]) -> (&[u8], &[u8]) {
    match base.iter().rposition(|b| *b == b'.') {
        Some(i) if i > 0 && (2..=EXTENSION_MAX).contains(&(base.len() - i)) => base.split_at(i),
        _ => (base, &[]),
    }
}

/// Stem and extension of what [`conflict_name`] may have made.
pub(super) fn parse_conflict(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = name.windows(MARK.len()).rposition(|w| w == MARK)?;
    let rest = &name[at + MARK.len()..];
    let tag_at = TIME_LEN + 1;
    if at == 0 || rest.len() < tag_at + TAG_LEN || rest[TIME_LEN] != b'-' {
        return None;
    }
    let tag_len = rest[tag_at..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let extension = &rest[tag_at + tag_len..];
    let plain = tag_len == TAG_LEN || tag_len == LONG_TAG_LEN;
    (plain && (extension.is_empty() || extension[0] == b'.')).then_some((&name[..at], extension))
}

/// At most `len` bytes of `stem`, not in the middle of a UTF-8 character.
fn cut(stem: &[u8], len: usize) -> &[u8] {
    if stem.len() <= len {
        return stem;
    }
    let is_start = |i: &usize| stem[*i] & 0xc0 != 0x80;
    let end = (len.saturating_sub(3)..=len).rev().find(is_start).unwrap_or(len);
    &stem[..end]
}

fn tag(base: &Name, lowest: Dot, round: u32, len: usize) -> String {
    let mut h = blake3::Hasher::new();
    h.update(&lowest.replica.0.to_be_bytes());
    h.update(&lowest.n.to_be_bytes());
    h.update(&round.to_be_bytes());
    h.update(base.as_bytes());
    h.finalize().to_hex()[..len].to_string()
}

/// `20261120T101112Z` for seconds since 1970.
pub fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days by eras of 400 years that start on 1 March 0000.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}
