//! Resource quantities (`100m`, `1.5Gi`, `12e6`): parsing, the canonical text, arithmetic.
//!
//! A quantity is a number of nano-units: upstream rounds finer ones up, and caps binary ones at 2^63-1, so 128 bits hold
//! every amount that is meant seriously; decimal amounts beyond them are capped.

use crate::Str;
use std::cmp::Ordering;
use std::fmt;

/// Which family of suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `k`, `M`, `G`, … and `m`, `u`, `n`
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`, `Gi`, …
    BinarySi,
    /// `e3`, `e6`, …
    DecimalExponent,
}

/// An amount of a resource. Equality and order look at the amount only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;
const MAX_BINARY: i128 = i64::MAX as i128 * NANO;
/// Digits that an `i64` surely holds.
const SAFE_DIGITS: i32 = 18;

/// The pieces of a quantity's text.
struct Parts<'a> {
    negative: bool,
    /// Whole digits without leading zeros, `0` when there are none.
    whole: &'a str,
    fraction: &'a str,
    /// There was no digit at all.
    no_digits: bool,
    suffix: &'a str,
}

fn digits(s: &str) -> (&str, &str) {
    s.split_at(s.bytes().take_while(u8::is_ascii_digit).count())
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (all_digits, rest) = digits(unsigned);
    let whole = all_digits.trim_start_matches('0');
    let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), digits);
    let letters = rest.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let exponent = rest[letters..].strip_prefix(['-', '+']).unwrap_or(&rest[letters..]);
    if !digits(exponent).1.is_empty() {
        return Err(QuantityError::Format);
    }
    Ok(Parts {
        negative,
        whole: if whole.is_empty() { "0" } else { whole },
        fraction,
        no_digits: all_digits.is_empty() && fraction.is_empty() && !rest.is_empty(),
        suffix: rest,
    })
}

/// The base, exponent and format of a suffix.
fn interpret(suffix: &str) -> Result<(u8, i64, Format), QuantityError> {
    let decimal = |e| Ok((10, e, Format::DecimalSi));
    let binary = |e| Ok((2, e, Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => match suffix.strip_prefix(['e', 'E']) {
            Some(n) if !n.is_empty() => n
                .parse::<i64>()
                .map(|e| (10, e, Format::DecimalExponent))
                .map_err(|_| QuantityError::Suffix),
            _ => Err(QuantityError::Suffix),
        },
    }
}

/// `mantissa` × 10^`exponent`, rounded away from zero; capped.
fn scaled(mantissa: i128, exponent: i64) -> i128 {
    if mantissa == 0 {
        return 0;
    }
    match u32::try_from(exponent.unsigned_abs()) {
        Ok(e) if exponent >= 0 => 10i128
            .checked_pow(e)
            .and_then(|p| mantissa.checked_mul(p))
            .unwrap_or(i128::MAX),
        Ok(e) => 10i128
            .checked_pow(e)
            .map_or(1, |p| mantissa / p + i128::from(mantissa % p != 0)),
        Err(_) if exponent > 0 => i128::MAX,
        Err(_) => 1,
    }
}

impl Quantity {
    pub const ZERO: Quantity = Quantity {
        nanos: 0,
        format: Format::DecimalSi,
    };

    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        Ok(parse(text)?.0)
    }
    /// The text that upstream writes for a quantity that was read from `text`.
    pub fn normalize(text: &str) -> Result<Str, QuantityError> {
        let (quantity, as_written) = parse(text)?;
        if as_written {
            Ok(text.into())
        } else {
            Ok(compact_str::format_compact!("{quantity}"))
        }
    }
    pub fn new(value: i64, format: Format) -> Quantity {
        Quantity {
            nanos: i128::from(value) * NANO,
            format,
        }
    }
    pub fn from_milli(milli: i64, format: Format) -> Quantity {
        Quantity {
            nanos: i128::from(milli) * (NANO / 1000),
            format,
        }
    }
    pub fn format(&self) -> Format {
        self.format
    }
    pub fn with_format(self, format: Format) -> Quantity {
        Quantity { format, ..self }
    }
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }
    /// Whole units, rounded away from zero, capped.
    pub fn value(&self) -> i64 {
        self.rounded(NANO)
    }
    /// Thousandths, rounded away from zero, capped.
    pub fn milli_value(&self) -> i64 {
        self.rounded(NANO / 1000)
    }
    fn rounded(&self, unit: i128) -> i64 {
        let n = self.nanos / unit + i128::from(self.nanos % unit != 0) * self.nanos.signum();
        i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
    }
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }
    /// Whether the amount is a whole number of thousandths.
    pub fn is_whole_milli(&self) -> bool {
        self.nanos % (NANO / 1000) == 0
    }
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }
    /// Adds; a zero takes the other's format, as upstream has it.
    pub fn add(&mut self, other: Quantity) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_add(other.nanos);
    }
    pub fn sub(&mut self, other: Quantity) {
        if self.nanos == 0 {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_sub(other.nanos);
    }
    #[allow(clippy::should_implement_trait)]
    pub fn neg(self) -> Quantity {
        Quantity {
            nanos: self.nanos.saturating_neg(),
            ..self
        }
    }
    #[allow(clippy::should_implement_trait)]
    pub fn mul(self, factor: i64) -> Quantity {
        Quantity {
            nanos: self.nanos.saturating_mul(factor.into()),
            ..self
        }
    }
}

/// Also whether upstream keeps the text as it was written.
fn parse(text: &str) -> Result<(Quantity, bool), QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let p = split(text)?;
    let (base, exponent, mut format) = interpret(p.suffix)?;
    if p.no_digits {
        return Err(QuantityError::Numeric);
    }
    let mut mantissa: i128 = 0;
    // Digits beyond 38 of the fraction change nothing after rounding up, but that they aren't zero does.
    let mut dropped = false;
    let mut fraction_digits = 0i64;
    let mut overflow = 0i64;
    for (i, b) in p.whole.bytes().chain(p.fraction.bytes()).enumerate() {
        let in_fraction = i >= p.whole.len();
        match mantissa
            .checked_mul(10)
            .and_then(|m| m.checked_add(i128::from(b - b'0')))
        {
            Some(m) if mantissa < i128::MAX / 4096 => {
                mantissa = m;
                fraction_digits += i64::from(in_fraction);
            }
            _ => {
                dropped |= b != b'0';
                overflow += i64::from(!in_fraction);
            }
        }
    }
    if dropped {
        mantissa += 1;
    }
    let exponent10 = if base == 10 { exponent } else { 0 };
    let power = 9 - fraction_digits + overflow + exponent10;
    let mut nanos = if base == 2 {
        match mantissa.checked_mul(1i128 << exponent) {
            Some(m) => scaled(m, power),
            // Divide first where multiplying first would overflow: such amounts end at the cap anyway.
            None => scaled(mantissa, power).saturating_mul(1i128 << exponent),
        }
    } else {
        scaled(mantissa, power)
    };
    if format == Format::BinarySi {
        nanos = nanos.min(MAX_BINARY);
        if nanos > 0 && nanos < NANO {
            format = Format::DecimalSi;
        }
    }
    let quantity = Quantity {
        nanos: if p.negative { -nanos } else { nanos },
        format,
    };
    Ok((quantity, kept_as_written(&p, base, exponent)))
}

/// Upstream's quick path keeps the text it has read when it is nearly canonical.
fn kept_as_written(p: &Parts, base: u8, exponent: i64) -> bool {
    let count = (p.whole.len() + p.fraction.len()) as i32;
    if base == 2 {
        let room = 15 - p.whole.len() as i32 - (exponent as f32 * 3.0 / 10.0) as i32 - 1;
        return room >= 0
            && p.fraction.is_empty()
            && exponent % 10 == 0
            && p.whole.parse::<i64>().is_ok_and(|v| v & 7 != 0);
    }
    let scale = exponent - p.fraction.len() as i64;
    let ends_in_zeros = if p.fraction.len() >= 3 {
        p.fraction.ends_with("000")
    } else {
        p.fraction.bytes().all(|b| b == b'0') && p.whole.ends_with(&"000"[p.fraction.len()..])
    };
    SAFE_DIGITS - count >= 0 && scale >= -9 && scale % 3 == 0 && !ends_in_zeros && !p.whole.starts_with('0')
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.is_whole() {
            let (mut n, mut power) = (self.nanos / NANO, 0);
            while n % 1024 == 0 && power < 6 {
                n /= 1024;
                power += 1;
            }
            return write!(f, "{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut n, mut exponent) = (self.nanos, -9i32);
        let most = if self.format == Format::DecimalExponent {
            i32::MAX
        } else {
            18
        };
        while n % 1000 == 0 && exponent < most {
            n /= 1000;
            exponent += 3;
        }
        match (self.format, exponent) {
            (Format::DecimalExponent, 0) => write!(f, "{n}"),
            (Format::DecimalExponent, e) => write!(f, "{n}e{e}"),
            (_, e) => {
                let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                write!(f, "{n}{}", suffixes[usize::try_from((e + 9) / 3).unwrap_or(0).min(9)])
            }
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}
impl std::str::FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Quantity::parse(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_normalised_as_upstream_does() {
        for (text, want) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("100000", "100k"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("1E", "1E"),
            ("12e6", "12e6"),
            ("100e3", "100e3"),
            ("1.500", "1.500"),
            ("100Mi", "100Mi"),
            ("8Mi", "8Mi"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("0.1Ki", "102400m"),
            ("0.1n", "1n"),
            ("1.1n", "2n"),
            ("-1.5", "-1500m"),
            ("+1", "+1"),
            ("01", "01"),
            ("16Ei", "9223372036854775807"),
            ("3.5k", "3500"),
            ("250m", "250m"),
            ("1100m", "1100m"),
            ("1.1", "1100m"),
            ("12345678901234567890", "12345678901234567890"),
            (".5", "500m"),
            ("5.", "5."),
            ("10000000000Ki", "9765625Mi"),
        ] {
            assert_eq!(
                Quantity::normalize(text).map(|s| s.to_string()),
                Ok(want.to_string()),
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_texts_are_refused() {
        for (text, want) in [
            ("", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1i", QuantityError::Suffix),
            ("1ki", QuantityError::Suffix),
            ("Mi", QuantityError::Numeric),
            ("1e", QuantityError::Suffix),
            ("1.2.3", QuantityError::Format),
        ] {
            assert_eq!(Quantity::parse(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn amounts_compare_add_and_round() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1") && q("-1") < q("0"));
        let mut sum = Quantity::ZERO;
        sum.add(q("512Mi"));
        sum.add(q("512Mi"));
        assert_eq!(sum.to_string(), "1Gi");
        assert_eq!(
            (q("1.5").value(), q("-1.5").value(), q("1.5").milli_value()),
            (2, -2, 1500)
        );
        assert_eq!(Quantity::from_milli(1500, Format::DecimalSi).to_string(), "1500m");
    }
}
