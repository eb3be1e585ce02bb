//! Values as text for people and JSON: hex, times, joined paths, names of sites.

use crate::sites;
use driftless_core::id::{Name, ReplicaId};
use driftless_core::meta::Time;
use driftless_core::tx::{Result, Tx};

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes that `hex` says, if it is hex.
pub(crate) fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Names with slashes between them.
pub(super) fn join(names: &[Name]) -> Vec<u8> {
    names.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/')
}

/// The site of a replica: its name if we know one, else the replica's id.
pub(crate) fn site(tx: &Tx<'_>, replica: ReplicaId) -> Result<String> {
    Ok(sites::name(tx, replica)?.unwrap_or_else(|| format!("replica {replica}")))
}

/// Nanoseconds since 1970 as RFC 3339, UTC.
pub fn time_of_ns(ns: u64) -> String {
    const SECOND: u64 = 1_000_000_000;
    // Fits: 2^64 ns are 584 years.
    time(Time { sec: (ns / SECOND) as i64, nsec: (ns % SECOND) as u32 })
}

/// RFC 3339, UTC, with nanoseconds where there are any. Years beyond four digits have more.
pub fn time(t: Time) -> String {
    let (days, second) = (t.sec.div_euclid(86_400), t.sec.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = if t.nsec == 0 { String::new() } else { format!(".{:09}", t.nsec) };
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}{fraction}Z")
}

/// Year, month, day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms"): years begin in March, so that the leap day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (sec, nsec, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (-1, 5, "1969-12-31T23:59:59.000000005Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_795_169_472, 120_000_000, "2026-11-20T10:11:12.120000000Z"),
            (253_402_300_800, 0, "10000-01-01T00:00:00Z"),
        ] {
            assert_eq!(time(Time { sec, nsec }), text);
        }
        time(Time { sec: i64::MIN, nsec: 0 });
        time(Time { sec: i64::MAX, nsec: 0 });
    }

    #[test]
    fn hex_comes_back() {
        assert_eq!(unhex(&hex(b"\x00\xffa")).unwrap(), b"\x00\xffa");
        assert_eq!((unhex("0"), unhex("0g"), unhex("é0")), (None, None, None));
    }
}
