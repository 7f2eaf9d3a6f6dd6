//! A moment, as people write it.

use crate::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use keelson_store::Revision;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Revision(Revision),
    Time(Timestamp),
}

impl At {
    /// `812` (a revision), `10m`, `1h30m`, `2d` (so long before `now`), or a date as RFC 3339 has it.
    pub fn parse(text: &str, now: Timestamp) -> Result<At> {
        let text = text.trim();
        let wrong = || Error::Invalid {
            what: format!(
                "{text:?} is no moment: it can be a revision (812), an age (10m, 1h30m, 2d) or a date (2026-03-01T12:00:00Z)"
            ),
        };
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(At::Revision).map_err(|_| wrong());
        }
        if let Some(seconds) = age(text) {
            let then = now
                .checked_sub(SignedDuration::from_secs(seconds))
                .map_err(|_| wrong())?;
            return Ok(At::Time(then));
        }
        text.parse().map(At::Time).map_err(|_| wrong())
    }
}

fn age(text: &str) -> Option<i64> {
    let (mut total, mut rest) = (0i64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
        let (number, after) = rest.split_at(digits);
        let unit = match after.as_bytes().first()? {
            b'd' => 24 * 3600,
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
        rest = &after[1..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_revisions_ages_and_dates() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let time = |text: &str| At::Time(text.parse().unwrap());
        for (text, is) in [
            ("812", At::Revision(812)),
            ("10m", time("2026-03-01T11:50:00Z")),
            ("1h30m", time("2026-03-01T10:30:00Z")),
            ("2d1s", time("2026-02-27T11:59:59Z")),
            ("2026-02-01T00:00:00+01:00", time("2026-01-31T23:00:00Z")),
        ] {
            assert_eq!(At::parse(text, now).unwrap(), is, "{text}");
        }
        for wrong in [
            "",
            "m",
            "10x",
            "-5m",
            "yesterday",
            "99999999999999999999",
            "9999999999d",
        ] {
            assert!(At::parse(wrong, now).is_err(), "{wrong}");
        }
    }
}
