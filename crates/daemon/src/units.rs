//! Values that people write with units: sizes, rates, ages, shares.

use driftless_node::api::MaxDelete;

/// Bytes per second: `500k`, `20M`, `1.5MiB`, `2G`; a number alone is bytes. `k`, `M`, `G`, `T` are powers of
/// 1000, `Ki`, `Mi`, `Gi`, `Ti` of 1024; a final `B` or `B/s` may follow.
///
/// # Errors
/// What is wrong with it.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text.strip_suffix("/s").unwrap_or(text))?;
    if bytes == 0 {
        Err("a rate of 0 would never end; leave the flag out for no limit".into())
    } else {
        Ok(bytes)
    }
}

/// Bytes: as a rate, without `/s`. Not zero.
///
/// # Errors
/// What is wrong with it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("0 bytes hold nothing; leave the flag out".into()),
        bytes => Ok(bytes),
    }
}

/// Seconds: `45s`, `90m`, `12h`, `30d`, `2w`. Not zero.
///
/// # Errors
/// What is wrong with it.
pub fn parse_age(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is no age: write for example 45s, 90m, 12h, 30d, 2w");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(bad()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(bad)?;
    if seconds == 0 || seconds > AGE_MAX_S { Err(bad()) } else { Ok(seconds) }
}

/// As [`parse_age`], or 0 for `never`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_pause(text: &str) -> Result<u64, String> {
    if text == "never" { Ok(0) } else { parse_age(text) }
}

/// Longest age that is taken, a century: in nanoseconds it still fits 64 bits.
const AGE_MAX_S: u64 = 100 * 366 * 86_400;

fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is no size: write for example 500k, 20M, 1.5MiB");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let unit = unit.strip_suffix(['B', 'b']).unwrap_or(unit).to_ascii_lowercase();
    let factor: f64 = match unit.as_str() {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => 1024.0,
        "mi" => 1024f64.powi(2),
        "gi" => 1024f64.powi(3),
        "ti" => 1024f64.powi(4),
        _ => return Err(bad()),
    };
    let bytes = number * factor;
    // Every whole number up to 2^53 is exact; above, nobody counts single bytes.
    if bytes.is_finite() && bytes < 9e15 { Ok(bytes as u64) } else { Err(bad()) }
}

/// `N` or `P%`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_max_delete(text: &str) -> Result<MaxDelete, String> {
    let bad = || format!("'{text}' is neither a number nor a share: write for example 1000 or 20%");
    match text.strip_suffix('%') {
        Some(share) => match share.trim().parse::<f64>() {
            Ok(p) if (0.0..=100.0).contains(&p) => Ok(MaxDelete::Percent(p)),
            Ok(_) => Err(format!("'{text}' is not between 0% and 100%")),
            Err(_) => Err(bad()),
        },
        None => text.parse().map(MaxDelete::Count).map_err(|_| bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for (text, bytes) in [
            ("500k", 500_000),
            ("20M", 20_000_000),
            ("1.5MiB", 1_572_864),
            ("1.5MiB/s", 1_572_864),
            ("2G", 2_000_000_000),
            ("77", 77),
            ("1KB", 1000),
            ("1kib", 1024),
        ] {
            assert_eq!(parse_rate(text), Ok(bytes), "{text}");
        }
        for bad in ["", "M", "1.2.3M", "-5", "5X", "0", "1e99", "NaN", "9999999T"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages() {
        for (text, seconds) in
            [("45s", 45), ("90m", 5400), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)]
        {
            assert_eq!(parse_age(text), Ok(seconds), "{text}");
        }
        for bad in ["", "d", "30", "0d", "-1d", "1.5d", "1y", "99999999999999999999d", "9999999999d"] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn max_deletes() {
        assert_eq!(parse_max_delete("10"), Ok(MaxDelete::Count(10)));
        assert_eq!(parse_max_delete("12.5%"), Ok(MaxDelete::Percent(12.5)));
        for bad in ["", "%", "x", "101%", "-1", "-1%", "NaN%"] {
            assert!(parse_max_delete(bad).is_err(), "{bad}");
        }
    }
}
