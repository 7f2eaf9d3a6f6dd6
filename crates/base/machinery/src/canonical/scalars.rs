//! The scalars with a form of their own: quantities, times, durations, bytes.

use keelson_api::{Quantity, Str, Time, Value, duration};

/// The byte at which base64 text goes wrong, as Go's decoder counts it.
pub(super) fn base64_error(s: &str) -> Option<usize> {
    let b: Vec<(usize, u8)> = s
        .bytes()
        .enumerate()
        .filter(|(_, c)| !matches!(c, b'\n' | b'\r'))
        .collect();
    let is_digit = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/');
    for (n, (at, c)) in b.iter().enumerate() {
        if is_digit(*c) {
            continue;
        }
        let rest = &b[n..];
        let padding = match n % 4 {
            2 => 2,
            3 => 1,
            _ => 0,
        };
        let ok = *c == b'=' && rest.len() == padding && rest.iter().all(|(_, c)| *c == b'=');
        return if ok { None } else { Some(*at) };
    }
    if b.len().is_multiple_of(4) {
        None
    } else {
        Some(s.len() - b.len() % 4)
    }
}

/// Brings a quantity (text or number) into its canonical text.
pub(super) fn quantity(v: &mut Value) -> Result<(), String> {
    let text = match &*v {
        Value::String(s) => s.clone(),
        other => Str::from(serde_json::to_string(other).unwrap_or_default()),
    };
    *v = Value::String(Quantity::normalize(&text).map_err(|e| e.to_string())?);
    Ok(())
}

/// Rewrites a time as UTC with whole seconds.
pub(super) fn time(s: &mut Str) -> Result<(), String> {
    // The usual form needs no parsing to stay as it is, only to be checked.
    let t = Time::parse(s).map_err(|e| e.0)?;
    *s = t.rfc3339().into();
    Ok(())
}

/// Rewrites a time as UTC with six digits.
pub(super) fn micro_time(s: &mut Str) -> Result<(), String> {
    let t = Time::parse_micro(s).map_err(|e| e.0)?;
    *s = t.rfc3339_micro().into();
    Ok(())
}

/// Rewrites a duration as Go prints it.
pub(super) fn duration(s: &mut Str) -> Result<(), String> {
    let nanos = duration::parse(s).map_err(|e| e.0)?;
    *s = duration::format(nanos).into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_checked() {
        for good in ["", "YQ==", "YWI=", "YWJj", "YW\nJj"] {
            assert_eq!(base64_error(good), None, "{good}");
        }
        assert_eq!(base64_error("Y"), Some(0));
        assert_eq!(base64_error("YW*="), Some(2));
        assert_eq!(base64_error("YQ=a"), Some(2));
    }
}
