//! Amounts of bytes as options say them.

/// A number of bytes, with a unit or without.
pub fn size(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let shift = match unit {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _ => return Err("a number of bytes, or with Ki, Mi, Gi or Ti".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "a number of bytes, or with Ki, Mi, Gi or Ti")?;
    number
        .checked_mul(1 << shift)
        .filter(|n| *n > 0)
        .ok_or_else(|| "no size that there is".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_quantities() {
        assert_eq!(size("3Mi"), Ok(3 << 20));
        assert_eq!(size("7"), Ok(7));
        assert!(
            ["", "0", "-1", "1.5Gi", "99999999999Ti", "1GB"]
                .into_iter()
                .all(|text| size(text).is_err())
        );
    }
}
