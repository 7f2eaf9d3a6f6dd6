//! Cron schedules, as far as one can tell whether they are well formed: five fields or a descriptor.

/// Each field with its range and the names of its values.
const FIELDS: [(u32, u32, &[&str]); 5] = [
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (
        1,
        12,
        &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    ),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// Says what is wrong with a schedule.
pub fn check(schedule: &str) -> Result<(), String> {
    let mut text = schedule.trim();
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        text = text.split_once(' ').map_or("", |(_, rest)| rest).trim();
    }
    if text.is_empty() {
        return Err("empty spec string".into());
    }
    if let Some(name) = text.strip_prefix('@') {
        return match name.split_once(' ') {
            Some(("every", interval)) => keelson_api::duration::parse(interval)
                .map(|_| ())
                .map_err(|e| format!("failed to parse duration {text}: {e}")),
            None if matches!(
                name,
                "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly"
            ) =>
            {
                Ok(())
            }
            _ => Err(format!("unrecognized descriptor: {text}")),
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    for (text, (min, max, names)) in fields.iter().zip(FIELDS) {
        text.split(',').try_for_each(|part| range(part, min, max, names))?;
    }
    Ok(())
}

fn range(text: &str, min: u32, max: u32, names: &[&str]) -> Result<(), String> {
    let (span, step) = match text.split_once('/') {
        Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {text}")),
        Some((span, step)) => (span, Some(step)),
        None => (text, None),
    };
    let value = |v: &str| -> Result<u32, String> {
        if let Some(i) = names.iter().position(|n| n.eq_ignore_ascii_case(v)) {
            return Ok(i as u32 + min);
        }
        v.parse()
            .map_err(|_| format!("failed to parse int from {v}: strconv.Atoi: parsing {v:?}: invalid syntax"))
    };
    let (start, end) = match span {
        "*" | "?" => (min, max),
        _ => match span.split_once('-') {
            Some((_, b)) if b.contains('-') => return Err(format!("too many hyphens: {text}")),
            Some((a, b)) => (value(a)?, value(b)?),
            None => {
                let start = value(span)?;
                (start, if step.is_some() { max } else { start })
            }
        },
    };
    if step.map(value).transpose()? == Some(0) {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    if start < min {
        return Err(format!("beginning of range ({start}) below minimum ({min}): {text}"));
    }
    if end > max {
        return Err(format!("end of range ({end}) above maximum ({max}): {text}"));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {text}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn schedules_are_judged_as_upstream_judges_them() {
        for good in [
            "*/1 * * * ?",
            "0 0 1 JAN mon-fri",
            "@hourly",
            "@every 1h30m",
            "5,10-20/3 * * * *",
            "TZ=UTC 0 0 * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert_eq!(check(bad), Err(why.to_string()));
        }
    }
}
