//! Durations as Go writes them: `1m30s`, `1.5h`, `0s`.

use std::fmt::Write;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DurationError(pub String);

const UNITS: [(&str, i128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration into nanoseconds.
pub fn parse(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError(format!("time: invalid duration {text:?}"));
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (whole, fraction) = rest[..number].split_once('.').unwrap_or((&rest[..number], ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(invalid());
        }
        rest = &rest[number..];
        let unit = &rest[..rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len())];
        if unit.is_empty() {
            return Err(DurationError(format!("time: missing unit in duration {text:?}")));
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(DurationError(format!(
                "time: unknown unit {unit:?} in duration {text:?}"
            )));
        };
        rest = &rest[unit.len()..];
        let whole: i128 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| invalid())?
        };
        let nanos = whole.checked_mul(*scale).and_then(|part| total.checked_add(part));
        total = nanos.ok_or_else(invalid)?;
        if total > i128::from(i64::MAX) + 1 {
            return Err(invalid());
        }
        let mut place = *scale;
        for b in fraction.bytes() {
            place /= 10;
            total += i128::from(b - b'0') * place;
        }
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// Reads a length of time: a duration that isn't negative.
pub fn length(text: &str) -> Result<Duration, DurationError> {
    let nanos = parse(text)?;
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| DurationError(format!("{text} must not be negative")))
}

/// Writes nanoseconds as Go does.
pub fn format(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let with_fraction = |n: u64, unit: u64, name: &str| {
        let width = unit.ilog10() as usize;
        let text = format!("{}.{:0width$}", n / unit, n % unit);
        let text = if width == 0 {
            (n / unit).to_string()
        } else {
            text.trim_end_matches('0').trim_end_matches('.').into()
        };
        format!("{text}{name}")
    };
    if n < 1_000_000_000 {
        let (unit, name) = match n {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "\u{b5}s"),
            _ => (1_000_000, "ms"),
        };
        return format!("{sign}{}", with_fraction(n, unit, name));
    }
    let (hours, minutes) = (n / 3_600_000_000_000, n / 60_000_000_000 % 60);
    let mut out = String::from(sign);
    if hours > 0 {
        let _ = write!(out, "{hours}h");
    }
    if hours > 0 || minutes > 0 {
        let _ = write!(out, "{minutes}m");
    }
    out + &with_fraction(n % 60_000_000_000, 1_000_000_000, "s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_go_there_and_back() {
        for (text, want) in [
            ("1m30s", "1m30s"),
            ("90s", "1m30s"),
            ("1.5h", "1h30m0s"),
            ("0", "0s"),
            ("-2ms", "-2ms"),
            ("1500us", "1.5ms"),
            ("100ns", "100ns"),
            ("1h", "1h0m0s"),
            ("2.5s", "2.5s"),
            ("1us", "1\u{b5}s"),
        ] {
            assert_eq!(format(parse(text).unwrap()), want, "{text}");
        }
        assert_eq!(parse("5").unwrap_err().0, r#"time: missing unit in duration "5""#);
        assert_eq!(parse("x").unwrap_err().0, r#"time: invalid duration "x""#);
        assert_eq!(parse("1y").unwrap_err().0, r#"time: unknown unit "y" in duration "1y""#);
        for long in [
            "2562048h".to_owned(),
            format!("1h{}ns", i128::MAX),
            format!("{}.9us", i128::MAX / 1000),
        ] {
            assert_eq!(parse(&long).unwrap_err().0, format!("time: invalid duration {long:?}"));
        }
    }
}
