//! The scalars with a form of their own: quantities, times, durations, bytes.

use keelson_api::{Quantity, Str, Time, Value, duration};

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
    use keelson_api::codec::base64_error;

    #[test]
    fn base64_is_checked() {
        for good in ["", "YQ==", "YWI=", "YWJj", "YW\nJj"] {
            assert_eq!(base64_error(good), None, "{good}");
        }
        for (bad, at) in [
            ("Y", 0),
            ("YQ", 0),
            ("YWJjY", 4),
            ("YQ=", 3),
            ("YW*=", 2),
            ("YQ=a", 2),
            ("YQ==x", 4),
            ("YWI=x", 4),
            ("=", 0),
        ] {
            assert_eq!(base64_error(bad), Some(at), "{bad}");
        }
    }
}
