//! Times as the API writes them: RFC 3339 in UTC, with whole seconds or with six digits.
//!
//! Parsing accepts and refuses what Go's `time.Parse` does, and says the same about it. No clock is read here.

use std::fmt;

/// A moment: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

/// The second at which Go's zero time stands: 1 January of year 1.
pub const ZERO_SECONDS: i64 = -62_135_596_800;

/// Why a text is not a time, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TimeError(pub String);

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

impl Time {
    pub fn from_seconds(seconds: i64) -> Time {
        Time { seconds, nanos: 0 }
    }
    /// Reads a `metav1.Time`; a fraction of a second is read and not written again.
    pub fn parse(text: &str) -> Result<Time, TimeError> {
        parse(text, RFC3339)
    }
    /// Reads a `metav1.MicroTime`: six digits are required.
    pub fn parse_micro(text: &str) -> Result<Time, TimeError> {
        parse(text, RFC3339_MICRO)
    }
    pub fn is_zero(&self) -> bool {
        self.seconds == ZERO_SECONDS && self.nanos == 0
    }
    /// `2006-01-02T15:04:05Z`
    pub fn rfc3339(&self) -> String {
        let mut out = String::with_capacity(20);
        Civil::of(self.seconds).write(&mut out);
        out.push('Z');
        out
    }
    /// `2006-01-02T15:04:05.000000Z`
    pub fn rfc3339_micro(&self) -> String {
        format!("{}.{:06}Z", Civil::of(self.seconds), self.nanos / 1000)
    }
    /// `2006-01-02T15:04:05.999999999Z`: a fraction without trailing zeros.
    pub fn rfc3339_nano(&self) -> String {
        let fraction = format!(".{:09}", self.nanos);
        let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
        format!("{}{fraction}Z", Civil::of(self.seconds))
    }
}

/// A date and a time of day in UTC.
struct Civil {
    year: i64,
    month: u32,
    day: u32,
    second_of_day: u32,
}

impl Civil {
    /// Howard Hinnant's days-to-civil algorithm.
    fn of(seconds: i64) -> Civil {
        let days = seconds.div_euclid(86_400) + 719_468;
        let era = days.div_euclid(146_097);
        let doe = days.rem_euclid(146_097);
        let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        Civil {
            year: yoe + era * 400 + i64::from(month <= 2),
            month: month as u32,
            day: (doy - (153 * mp + 2) / 5 + 1) as u32,
            second_of_day: seconds.rem_euclid(86_400) as u32,
        }
    }
    fn seconds(&self) -> i64 {
        let y = self.year - i64::from(self.month <= 2);
        let era = y.div_euclid(400);
        let yoe = y.rem_euclid(400);
        let mp = i64::from(if self.month > 2 { self.month - 3 } else { self.month + 9 });
        let doy = (153 * mp + 2) / 5 + i64::from(self.day) - 1;
        let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
        (era * 146_097 + doe - 719_468) * 86_400 + i64::from(self.second_of_day)
    }
}

impl Civil {
    /// `2006-01-02T15:04:05`, digit by digit: this stands on the path of every object.
    fn write(&self, out: &mut String) {
        let mut two = |n: u32, after: &str| {
            out.push((b'0' + (n / 10 % 10) as u8) as char);
            out.push((b'0' + (n % 10) as u8) as char);
            out.push_str(after);
        };
        let year = self.year.rem_euclid(10_000) as u32;
        let (h, m, s) = (
            self.second_of_day / 3600,
            self.second_of_day / 60 % 60,
            self.second_of_day % 60,
        );
        two(year / 100, "");
        two(year % 100, "-");
        two(self.month, "-");
        two(self.day, "T");
        two(h, ":");
        two(m, ":");
        two(s, "");
    }
}

impl fmt::Display for Civil {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut out = String::with_capacity(20);
        self.write(&mut out);
        f.write_str(&out)
    }
}

fn days_in(month: u32, year: i64) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A text being read, piece by piece of a layout.
struct Reader<'a> {
    text: &'a str,
    layout: &'static str,
    rest: &'a str,
}

impl Reader<'_> {
    fn refuse<T>(&self, at: &str, piece: &str) -> Result<T, TimeError> {
        Err(TimeError(format!(
            "parsing time {:?} as {:?}: cannot parse {at:?} as {piece:?}",
            self.text, self.layout
        )))
    }
    fn out_of_range<T>(&self, what: &str) -> Result<T, TimeError> {
        Err(TimeError(format!("parsing time {:?}: {what} out of range", self.text)))
    }
    fn literal(&mut self, piece: &'static str) -> Result<(), TimeError> {
        match self.rest.strip_prefix(piece) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => self.refuse(self.rest, piece),
        }
    }
    fn number(&mut self, len: usize, piece: &'static str) -> Result<u32, TimeError> {
        match self.rest.get(..len) {
            Some(d) if d.bytes().all(|b| b.is_ascii_digit()) => {
                self.rest = &self.rest[len..];
                Ok(d.bytes().fold(0, |n, b| n * 10 + u32::from(b - b'0')))
            }
            _ => self.refuse(self.rest, piece),
        }
    }
    /// A fraction of exactly `len` digits, or of any number of them when 0.
    fn fraction(&mut self, len: usize) -> Result<u32, TimeError> {
        let digits = match self.rest.strip_prefix('.') {
            Some(d) => d.bytes().take_while(u8::is_ascii_digit).count(),
            None => 0,
        };
        if len > 0 && digits < len {
            return self.refuse(self.rest, ".000000");
        }
        let take = if len > 0 { len } else { digits };
        if take == 0 {
            return Ok(0);
        }
        let nanos = self.rest[1..=take].bytes().chain(std::iter::repeat(b'0')).take(9);
        let nanos = nanos.fold(0, |n, b| n * 10 + u32::from(b - b'0'));
        self.rest = &self.rest[take + 1..];
        Ok(nanos)
    }
    /// Seconds east of UTC.
    fn zone(&mut self) -> Result<i64, TimeError> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let at = self.rest;
        let b = at.as_bytes();
        let digits =
            |i: usize| Some((b.get(i)?, b.get(i + 1)?)).filter(|(x, y)| x.is_ascii_digit() && y.is_ascii_digit());
        match (b.first(), digits(1), b.get(3), digits(4)) {
            (Some(sign @ (b'+' | b'-')), Some(h), Some(b':'), Some(m)) => {
                let two = |(x, y): (&u8, &u8)| i64::from(x - b'0') * 10 + i64::from(y - b'0');
                let (hours, minutes) = (two(h), two(m));
                if hours > 24 {
                    return self.out_of_range("time zone offset hour");
                }
                if minutes > 60 {
                    return self.out_of_range("time zone offset minute");
                }
                self.rest = &at[6..];
                Ok((hours * 3600 + minutes * 60) * if *sign == b'-' { -1 } else { 1 })
            }
            _ => self.refuse(at, "Z07:00"),
        }
    }
}

fn parse(text: &str, layout: &'static str) -> Result<Time, TimeError> {
    let mut r = Reader {
        text,
        layout,
        rest: text,
    };
    let year = i64::from(r.number(4, "2006")?);
    r.literal("-")?;
    let month = r.number(2, "01")?;
    if !(1..=12).contains(&month) {
        return r.out_of_range("month");
    }
    r.literal("-")?;
    let day = r.number(2, "02")?;
    r.literal("T")?;
    let hour = r.number(2, "15")?;
    if hour > 23 {
        return r.out_of_range("hour");
    }
    r.literal(":")?;
    let minute = r.number(2, "04")?;
    if minute > 59 {
        return r.out_of_range("minute");
    }
    r.literal(":")?;
    let second = r.number(2, "05")?;
    if second > 59 {
        return r.out_of_range("second");
    }
    let nanos = r.fraction(if layout == RFC3339_MICRO { 6 } else { 0 })?;
    let offset = r.zone()?;
    if !r.rest.is_empty() {
        return Err(TimeError(format!("parsing time {text:?}: extra text: {:?}", r.rest)));
    }
    if day < 1 || day > days_in(month, year) {
        return r.out_of_range("day");
    }
    let civil = Civil {
        year,
        month,
        day,
        second_of_day: hour * 3600 + minute * 60 + second,
    };
    Ok(Time {
        seconds: civil.seconds() - offset,
        nanos,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("2024-02-29T23:59:59.987654321Z", "2024-02-29T23:59:59Z"),
            ("2024-03-01T01:00:00+02:00", "2024-02-29T23:00:00Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Time::parse(text).unwrap().rfc3339(), want);
        }
        assert!(Time::parse("0001-01-01T00:00:00Z").unwrap().is_zero());
        assert_eq!(
            Time::parse_micro("2024-01-02T03:04:05.000600Z")
                .unwrap()
                .rfc3339_micro(),
            "2024-01-02T03:04:05.000600Z"
        );
    }

    #[test]
    fn wrong_times_are_refused_in_gos_words() {
        let said = |t: &str| Time::parse(t).unwrap_err().0;
        assert_eq!(
            said(""),
            r#"parsing time "" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "2006""#
        );
        assert_eq!(
            said("2024-13-01T00:00:00Z"),
            r#"parsing time "2024-13-01T00:00:00Z": month out of range"#
        );
        assert_eq!(
            said("2024-02-30T00:00:00Z"),
            r#"parsing time "2024-02-30T00:00:00Z": day out of range"#
        );
        assert_eq!(
            said("2024-02-03"),
            r#"parsing time "2024-02-03" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#
        );
        assert!(Time::parse_micro("2024-01-02T03:04:05Z").is_err());
    }

    #[test]
    fn every_day_goes_there_and_back() {
        for day in (-800_000i64..800_000).step_by(17) {
            let seconds = day * 86_400 + 3_723;
            assert_eq!(Civil::of(seconds).seconds(), seconds);
        }
    }
}
