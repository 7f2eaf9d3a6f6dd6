//! When an indexed job has succeeded.

use super::check::Errs;
use keelson_api::Map;

const MOST_RULES: usize = 20;
const LONGEST_INDEXES: usize = 64 << 10;

pub fn policy(e: &mut Errs, spec: &Map, completions: i64) {
    e.child(spec, "successPolicy", |e, policy| {
        let count = policy.arr("rules").map_or(0, Vec::len);
        if count == 0 {
            e.required(
                "rules",
                "at least one rules must be specified when the successPolicy is specified",
            );
        }
        if count > MOST_RULES {
            e.too_many("rules", count, MOST_RULES);
        }
        e.each(policy, "rules", |e, _, r| rule(e, r, completions));
    });
}

fn rule(e: &mut Errs, rule: &Map, completions: i64) {
    let (count, indexes) = (rule.int("succeededCount"), rule.str("succeededIndexes"));
    if count.is_none() && indexes.is_none() {
        e.required(
            "",
            "at least one of succeededCount or succeededIndexes must be specified",
        );
    }
    let mut total = 0;
    if let Some(text) = indexes {
        if text.len() > LONGEST_INDEXES {
            e.too_long("succeededIndexes", LONGEST_INDEXES);
        }
        match number_of(text, completions) {
            Ok(n) => total = n,
            Err(why) => e.invalid(
                "succeededIndexes",
                text,
                &format!("error parsing succeededIndexes: {why}"),
            ),
        }
    }
    let Some(n) = count else { return };
    e.non_negative(rule, "succeededCount");
    let most = [
        (completions, "specified completions"),
        (total, "indexes in the specified succeededIndexes field"),
    ];
    for (most, what) in &most[..1 + usize::from(indexes.is_some())] {
        if n > *most {
            let why = format!("must be less than or equal to {most} (the number of {what})");
            e.invalid("succeededCount", n, &why);
        }
    }
}

/// How many indexes a text like `1,3-5` names.
pub fn number_of(text: &str, completions: i64) -> Result<i64, String> {
    let (mut last, mut total) = (None, 0);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (from, to) = interval(part, completions)?;
        if let Some(last) = last.filter(|last| *last >= from) {
            return Err(format!("non-increasing order, previous: {last}, current: {from}"));
        }
        total += to - from + 1;
        last = Some(to);
    }
    Ok(total)
}

fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let parts: Vec<&str> = text.split('-').collect();
    let index = |part: &str| match part.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {part:?}")),
        Ok(n) if n >= completions => Err(format!("too large index: {part:?}")),
        Ok(n) => Ok(n),
    };
    match parts.as_slice() {
        [one] => index(one).map(|n| (n, n)),
        [from, to] => match (index(from)?, index(to)?) {
            (from, to) if from >= to => Err(format!("non-increasing order, previous: {from}, current: {to}")),
            both => Ok(both),
        },
        _ => Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::number_of;

    #[test]
    fn indexes_are_counted_in_order() {
        assert_eq!(number_of("0,2-4", 5), Ok(4));
        assert_eq!(number_of("", 5), Ok(0));
        assert_eq!(
            number_of("3,1", 5),
            Err("non-increasing order, previous: 3, current: 1".into())
        );
        assert_eq!(number_of("5", 5), Err("too large index: \"5\"".into()));
        assert_eq!(
            number_of("x", 5),
            Err("cannot convert string to integer for index: \"x\"".into())
        );
        assert!(number_of("0-1-2", 5).is_err());
    }
}
