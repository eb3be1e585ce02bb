//! Limits that change with the hour: `Mon-Fri 08:00,5M 19:00,off`.
//!
//! Words between blanks. A day (`Sat`), some days (`Mon-Fri`) or `daily` say for which days the hours that follow are; hours before the first such
//! word are for every day. An hour is `HH:MM,RATE` or `HH:MM,off`, by this machine's clock. What was said last counts until
//! the next word, over midnight and over days without any.

use crate::units::parse_rate;

const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MINUTES_OF_DAY: u32 = 24 * 60;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// Minute of the week, from Sunday 00:00, and the limit from then on; in order, not empty.
    changes: Vec<(u32, Option<u64>)>,
}

impl Schedule {
    /// Reads one.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        let mut changes = Vec::new();
        let mut days: Vec<u32> = (0..7).collect();
        for word in text.split_ascii_whitespace() {
            match word.split_once(',') {
                None => days = parse_days(word)?,
                Some((hour, rate)) => {
                    let minute = parse_hour(hour)?;
                    let rate = if rate == "off" { None } else { Some(parse_rate(rate)?) };
                    changes.extend(days.iter().map(|day| (day * MINUTES_OF_DAY + minute, rate)));
                }
            }
        }
        if changes.is_empty() {
            return Err(format!("'{text}' names no hour: write for example Mon-Fri 08:00,5M 19:00,off"));
        }
        changes.sort_by_key(|(minute, _)| *minute);
        Ok(Schedule { changes })
    }

    /// The limit in bytes per second on this day (0 = Sunday) at this minute of it.
    pub fn at(&self, day: u32, minute: u32) -> Option<u64> {
        let now = day * MINUTES_OF_DAY + minute;
        let before = self.changes.partition_point(|(at, _)| *at <= now);
        // Before the first of the week the last of the week before counts.
        let i = before.checked_sub(1).unwrap_or(self.changes.len() - 1);
        self.changes[i].1
    }
}

fn parse_days(word: &str) -> Result<Vec<u32>, String> {
    let day = |text: &str| {
        let text = text.to_ascii_lowercase();
        let found = DAYS.iter().position(|d| *d == text);
        found
            .map(|i| i as u32)
            .ok_or_else(|| format!("'{word}' is no day: write for example Mon, Mon-Fri or daily"))
    };
    if word.eq_ignore_ascii_case("daily") {
        return Ok((0..7).collect());
    }
    let (first, last) = match word.split_once('-') {
        Some((first, last)) => (day(first)?, day(last)?),
        None => (day(word)?, day(word)?),
    };
    let count = (last + 7 - first) % 7 + 1;
    Ok((0..count).map(|i| (first + i) % 7).collect())
}

fn parse_hour(text: &str) -> Result<u32, String> {
    let bad = || format!("'{text}' is no hour: write for example 08:00");
    let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
    let number =
        |t: &str| t.parse::<u32>().ok().filter(|_| t.len() <= 2 && t.bytes().all(|b| b.is_ascii_digit()));
    match (number(hour), number(minute)) {
        (Some(h), Some(m)) if h < 24 && m < 60 => Ok(h * 60 + m),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_switch_on_time() {
        let s = Schedule::parse("Mon-Fri 08:00,5M 19:00,off").unwrap();
        for (day, hour, minute, limit) in [
            (0, 12, 0, None),
            (1, 7, 59, None),
            (1, 8, 0, Some(5_000_000)),
            (1, 18, 59, Some(5_000_000)),
            (1, 19, 0, None),
            (5, 9, 0, Some(5_000_000)),
            (6, 9, 0, None),
        ] {
            assert_eq!(s.at(day, hour * 60 + minute), limit, "{day} {hour}:{minute}");
        }
        let s = Schedule::parse("06:30,1M 22:00,off Sat-Sun 10:00,2M").unwrap();
        assert_eq!(s.at(0, 0), None, "since Saturday 22:00");
        assert_eq!(s.at(0, 9 * 60), Some(1_000_000));
        assert_eq!(s.at(0, 11 * 60), Some(2_000_000));
        assert_eq!(s.at(3, 11 * 60), Some(1_000_000));
        let s = Schedule::parse("Fri-Mon 00:00,7 daily 12:00,off").unwrap();
        assert_eq!((s.at(6, 0), s.at(2, 0), s.at(2, 720)), (Some(7), None, None));
    }

    #[test]
    fn nonsense_is_named() {
        for bad in [
            "",
            "Mon",
            "08:00",
            "8,5M",
            "24:00,5M",
            "08:60,5M",
            "08:00,fast",
            "Mon-Foo 08:00,5M",
            "008:00,1M",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }
}
