//! Which amounts of a device's capacity can be asked for: some, or a range in steps.

use super::super::check::{Errs, NOT_NEGATIVE, quantity};
use keelson_api::{Map, Quantity, Value};

const MOST_VALUES: usize = 10;
const TOO_LARGE: &str = "must not be larger than 9223372036854775807";

/// A device that has one user has all of it.
pub fn capacity(e: &mut Errs, c: &Map, is_shared: bool) {
    let Some(policy) = c.obj("requestPolicy") else { return };
    if !is_shared {
        return e.forbidden("requestPolicy", "allowMultipleAllocations must be true");
    }
    let most = amount(c, "value").unwrap_or_default();
    e.within("requestPolicy", |e| request_policy(e, policy, most));
}

fn amount(m: &Map, key: &str) -> Option<Quantity> {
    m.get(key).filter(|v| !v.is_null()).map(quantity)
}

fn request_policy(e: &mut Errs, policy: &Map, most: Quantity) {
    let values = policy.arr("validValues").map(Vec::as_slice).unwrap_or_default();
    let (kind, range) = match (values, policy.obj("validRange")) {
        ([], None) => return,
        ([_, ..], Some(_)) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            return e.forbidden("", why);
        }
        ([], Some(range)) => ("validRange", range),
        (_, None) => ("validValues", policy),
    };
    let Some(default) = amount(policy, "default") else {
        return e.required("default", &format!("required when {kind} is defined"));
    };
    match kind {
        "validValues" => valid_values(e, values, default, most),
        _ => e.within(kind, |e| valid_range(e, range, default, most)),
    }
}

fn valid_values(e: &mut Errs, values: &[Value], default: Quantity, most: Quantity) {
    let all: Vec<Quantity> = values.iter().map(quantity).collect();
    let at = |i: usize| format!("validValues[{i}]");
    for (i, pair) in all.windows(2).enumerate() {
        if pair[0] > pair[1] {
            e.invalid(
                &at(i + 1),
                pair[1].to_string(),
                "values must be sorted in ascending order",
            );
        }
    }
    if all.len() > MOST_VALUES {
        e.too_many("validValues", all.len(), MOST_VALUES);
    }
    for (i, value) in all.iter().enumerate().take(MOST_VALUES) {
        if *value > most {
            e.invalid(
                &at(i),
                value.to_string(),
                &format!("option is larger than capacity value: {most}"),
            );
        }
        if all[..i].contains(value) {
            e.duplicate(&at(i), value.to_string());
        }
    }
    if !all.contains(&default) {
        e.invalid(
            "validValues",
            default.to_string(),
            "default value is not valid according to the requestPolicy",
        );
    }
}

fn valid_range(e: &mut Errs, range: &Map, default: Quantity, most: Quantity) {
    let Some(min) = amount(range, "min") else {
        return e.required("min", "required when validRange is defined");
    };
    let (max, step) = (amount(range, "max"), amount(range, "step"));
    let mut told = |key: &str, value: Quantity, why: String| e.invalid(key, value.to_string(), &why);
    if min > most {
        told("min", min, format!("min is larger than capacity value: {most}"));
    }
    if default < min {
        told("default", default, format!("default is less than min: {min}"));
    }
    if let Some(max) = max {
        if min > max {
            told("max", min, format!("min is larger than max: {max}"));
        }
        if max > most {
            told("max", max, format!("max is larger than capacity value: {most}"));
        }
        if default > max {
            told("default", default, format!("default is more than max: {max}"));
        }
    }
    let all = [
        ("default", Some(default)),
        ("min", Some(min)),
        ("max", max),
        ("step", step),
    ];
    let all = all.into_iter().filter_map(|(key, value)| Some((key, value?)));
    // Amounts with fractions are counted in thousandths, others as they are.
    let has_fractions = all.clone().any(|(_, value)| !value.is_whole());
    if has_fractions {
        // A capped one isn't what was asked for, either.
        let is_odd = |value: Quantity| Quantity::from_milli(value.milli_value(), value.format()) != value;
        let odd: Vec<_> = all.clone().filter(|(_, value)| is_odd(*value)).collect();
        if !odd.is_empty() {
            return odd
                .into_iter()
                .for_each(|(key, value)| told(key, value, "value cannot be represented as a milli value".into()));
        }
    }
    let Some(step) = step else { return };
    if step.is_zero() || step.is_negative() {
        return told("step", step, "must be greater than zero".into());
    }
    let mut next = min;
    next.add(step);
    if next > most {
        told(
            "step",
            step,
            format!("one step {next} is larger than capacity value: {most}"),
        );
    }
    if !has_fractions {
        let mut is_beyond = false;
        for (key, value) in all {
            let why = match value {
                v if v.is_negative() => NOT_NEGATIVE,
                v if v > Quantity::new(i64::MAX, v.format()) => TOO_LARGE,
                _ => continue,
            };
            is_beyond = true;
            told(key, value, why.into());
        }
        if is_beyond {
            return;
        }
    }
    let number = |q: Quantity| i128::from(if has_fractions { q.milli_value() } else { q.value() });
    for value in [Some(default), max].into_iter().flatten() {
        if number(step) != 0 && (number(value) - number(min)) % number(step) != 0 {
            told(
                "step",
                value,
                format!("value is not a multiple of a given step ({step}) from ({min})"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn told(policy: Value, is_shared: bool) -> Vec<String> {
        let mut e = Errs::default();
        let c = value!({"value": "10", "requestPolicy": policy});
        capacity(&mut e, c.as_object().unwrap(), is_shared);
        let told = e.list.into_iter();
        told.map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn policies_are_of_shared_devices_and_of_one_kind() {
        let values = value!({"default": "2", "validValues": ["1", "2", "4"]});
        assert_eq!(told(values.clone(), true), [""; 0]);
        assert_eq!(
            told(values, false),
            ["requestPolicy: Forbidden: allowMultipleAllocations must be true"]
        );
        let both = told(
            value!({"default": "1", "validValues": ["1"], "validRange": {"min": "1"}}),
            true,
        );
        assert!(
            both[0].starts_with("requestPolicy: Forbidden: exactly one policy"),
            "{both:?}"
        );
        let bare = told(value!({"validValues": ["1"]}), true);
        assert_eq!(
            bare,
            ["requestPolicy.default: Required value: required when validValues is defined"]
        );
    }

    #[test]
    fn values_are_sorted_fit_and_have_the_default() {
        let wrong = told(value!({"default": "3", "validValues": ["4", "1", "1000m", "11"]}), true);
        assert_eq!(
            wrong,
            [
                "requestPolicy.validValues[1]: Invalid value: \"1\": values must be sorted in ascending order",
                "requestPolicy.validValues[2]: Duplicate value: \"1\"",
                "requestPolicy.validValues[3]: Invalid value: \"11\": option is larger than capacity value: 10",
                "requestPolicy.validValues: Invalid value: \"3\": default value is not valid according to the requestPolicy",
            ]
        );
    }

    #[test]
    fn ranges_are_within_the_capacity_and_in_steps() {
        let range = |default: &str, range: Value| told(value!({"default": default, "validRange": range}), true);
        assert_eq!(range("2", value!({"min": "1", "max": "9", "step": "1"})), [""; 0]);
        assert_eq!(
            range("1500m", value!({"min": "1", "max": "2", "step": "500m"})),
            [""; 0]
        );
        for (default, of, why) in [
            (
                "2",
                value!({}),
                "validRange.min: Required value: required when validRange is defined",
            ),
            (
                "0",
                value!({"min": "1"}),
                "validRange.default: Invalid value: \"0\": default is less than min: 1",
            ),
            (
                "2",
                value!({"min": "1", "max": "12"}),
                "validRange.max: Invalid value: \"12\": max is larger than capacity value: 10",
            ),
            (
                "2",
                value!({"min": "1", "step": "0"}),
                "validRange.step: Invalid value: \"0\": must be greater than zero",
            ),
            (
                "2",
                value!({"min": "1", "step": "2"}),
                "validRange.step: Invalid value: \"2\": value is not a multiple of a given step (2) from (1)",
            ),
            (
                "1500m",
                value!({"min": "1", "step": "1"}),
                "validRange.step: Invalid value: \"1500m\": value is not a multiple of a given step (1) from (1)",
            ),
            (
                "1u",
                value!({"min": "0"}),
                "validRange.default: Invalid value: \"1u\": value cannot be represented as a milli value",
            ),
            (
                "9223372036854776500m",
                value!({"min": "0"}),
                "validRange.default: Invalid value: \"9223372036854776500m\": value cannot be represented as a milli value",
            ),
        ] {
            assert_eq!(range(default, of), [format!("requestPolicy.{why}")], "{default}");
        }
    }
}
