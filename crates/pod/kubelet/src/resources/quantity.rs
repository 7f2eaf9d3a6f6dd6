//! Arithmetic on the API's quantities as the kubelet needs it: milli-units for CPU, whole units for everything else.
//! Knows nothing of pods. Unparseable text counts as zero, because validation happened in the API server.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// A resource list as the API has it.
pub type ResourceList = BTreeMap<String, Quantity>;

const NANO: i128 = 1_000_000_000;

/// The quantity in billionths, or `None` when the text is no quantity.
pub fn nanos(q: &Quantity) -> Option<i128> {
    let s = q.0.trim();
    let split = s
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_digit() || *c == '.' || ((*c == '-' || *c == '+') && *i == 0)))
        .map_or(s.len(), |(i, _)| i);
    let (number, suffix) = s.split_at(split);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut mantissa: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10i128.pow(fraction.len() as u32);
    mantissa = mantissa.checked_mul(scale)?;
    if !fraction.is_empty() {
        mantissa = mantissa.checked_add(fraction.parse().ok()?)?;
    }
    let (num, den): (i128, i128) = match suffix {
        "" => (NANO, 1),
        "n" => (1, 1),
        "u" => (1_000, 1),
        "m" => (1_000_000, 1),
        "k" => (NANO * 1_000, 1),
        "M" => (NANO * 1_000_000, 1),
        "G" => (NANO * 1_000_000_000, 1),
        "T" => (NANO * 1_000_000_000_000, 1),
        "P" => (NANO * 1_000_000_000_000_000, 1),
        "E" => (NANO * 1_000_000_000_000_000_000, 1),
        "Ki" => (NANO << 10, 1),
        "Mi" => (NANO << 20, 1),
        "Gi" => (NANO << 30, 1),
        "Ti" => (NANO << 40, 1),
        "Pi" => (NANO << 50, 1),
        "Ei" => (NANO << 60, 1),
        other => {
            let exponent: i32 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            if exponent >= 0 {
                (NANO.checked_mul(10i128.checked_pow(exponent as u32)?)?, 1)
            } else {
                (NANO, 10i128.checked_pow(exponent.unsigned_abs())?)
            }
        }
    };
    let value = div_ceil(mantissa.checked_mul(num)?, scale.checked_mul(den)?);
    Some(if negative { -value } else { value })
}

fn div_ceil(a: i128, b: i128) -> i128 {
    if a <= 0 { a / b } else { (a - 1) / b + 1 }
}

/// Whole units, rounded up.
pub fn value(q: &Quantity) -> i64 {
    nanos(q).map_or(0, |n| {
        div_ceil(n, NANO).clamp(i64::MIN as i128, i64::MAX as i128) as i64
    })
}

/// Thousandths, rounded up.
pub fn milli(q: &Quantity) -> i64 {
    nanos(q).map_or(0, |n| {
        div_ceil(n, 1_000_000).clamp(i64::MIN as i128, i64::MAX as i128) as i64
    })
}

/// Whether two quantities mean the same amount.
pub fn same(a: &Quantity, b: &Quantity) -> bool {
    nanos(a).unwrap_or(0) == nanos(b).unwrap_or(0)
}

/// A CPU amount in canonical form.
pub fn from_milli(m: i64) -> Quantity {
    if m % 1000 == 0 {
        decimal(m / 1000)
    } else {
        Quantity(format!("{m}m"))
    }
}

/// A plain amount in canonical decimal form (`1k`, not `1000`).
pub fn decimal(v: i64) -> Quantity {
    suffixed(v, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

/// A plain number, as counts of CPUs and pods are written.
pub fn decimal_plain(v: i64) -> Quantity {
    Quantity(v.to_string())
}

/// A number of bytes in canonical binary form (`64Mi`).
pub fn bytes(v: i64) -> Quantity {
    suffixed(v, 1024, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}

fn suffixed(v: i64, base: i64, suffixes: &[&str]) -> Quantity {
    let (mut v, mut i) = (v, 0);
    while v != 0 && v % base == 0 && i + 1 < suffixes.len() {
        v /= base;
        i += 1;
    }
    Quantity(format!("{v}{}", suffixes[i]))
}

/// The amount of `name` in thousandths; absent is zero.
pub fn milli_of(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|l| l.get(name)).map_or(0, milli)
}

/// The amount of `name` in whole units; absent is zero.
pub fn value_of(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|l| l.get(name)).map_or(0, value)
}

/// Adds `more` to `into`, name by name.
pub fn add(into: &mut ResourceList, more: &ResourceList) {
    for (name, q) in more {
        let sum = into.get(name).map_or(0, |have| nanos(have).unwrap_or(0)) + nanos(q).unwrap_or(0);
        into.insert(name.clone(), canonical(sum, q));
    }
}

/// Raises each amount of `into` to at least that of `other`.
pub fn raise(into: &mut ResourceList, other: &ResourceList) {
    for (name, q) in other {
        if into
            .get(name)
            .is_none_or(|have| nanos(have).unwrap_or(0) < nanos(q).unwrap_or(0))
        {
            into.insert(name.clone(), q.clone());
        }
    }
}

/// `nanos` written in the style (binary or decimal) of `like`.
fn canonical(nanos: i128, like: &Quantity) -> Quantity {
    let whole = nanos % NANO == 0;
    if !whole {
        return Quantity(format!("{}m", div_ceil(nanos, 1_000_000)));
    }
    let v = (nanos / NANO) as i64;
    if like.0.ends_with('i') { bytes(v) } else { decimal(v) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(s: &str) -> Quantity {
        Quantity(s.into())
    }

    #[test]
    fn parses_every_suffix() {
        for (text, want) in [
            ("100m", 100),
            ("1", 1000),
            ("0.5", 500),
            ("1.0005", 1001),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
            ("1Ki", 1_024_000),
            ("-1", -1000),
            ("500u", 1),
            ("1n", 1),
        ] {
            assert_eq!(milli(&q(text)), want, "{text}");
        }
        assert_eq!(value(&q("1.5Gi")), 1_610_612_736);
        assert_eq!(nanos(&q("abc")), None);
    }

    #[test]
    fn writes_canonical_forms() {
        assert_eq!(from_milli(1500).0, "1500m");
        assert_eq!(from_milli(2000).0, "2");
        assert_eq!(bytes(64 << 20).0, "64Mi");
        assert_eq!(decimal(1000).0, "1k");
    }

    #[test]
    fn adds_and_raises() {
        let mut a = ResourceList::from([("memory".into(), q("64Mi"))]);
        add(
            &mut a,
            &ResourceList::from([("memory".into(), q("64Mi")), ("cpu".into(), q("100m"))]),
        );
        assert_eq!((a["memory"].0.as_str(), a["cpu"].0.as_str()), ("128Mi", "100m"));
        raise(&mut a, &ResourceList::from([("cpu".into(), q("1"))]));
        assert_eq!(a["cpu"].0, "1");
    }
}
