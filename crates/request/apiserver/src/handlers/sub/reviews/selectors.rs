//! What a review says of selectors: as text, or as requirements, which are checked and then written as requests write them.
//!
//! A requirement that can't be written so is left out: then more is asked for, and never something else. So what is written is
//! read back, and has to be what was meant.

use keelson_api::{Cause, Map, Str, Value};
use keelson_machinery::names;
use keelson_machinery::selector::{
    FieldRequirement, FieldSelector, LabelSelector, Operator, Requirement, escape_value,
};

/// A selector of the attributes, and what the answer says of the parts that are left out.
pub struct Selector {
    pub text: Str,
    pub ignored: Option<&'static str>,
}

const FIELDS: &str = "fieldSelector";

/// `key`: `fieldSelector` or `labelSelector`.
pub fn read(attributes: &Map, key: &str) -> Selector {
    let Some(selector) = attributes.obj(key) else {
        return Selector {
            text: Str::default(),
            ignored: None,
        };
    };
    let of_fields = key == FIELDS;
    let list = selector.arr("requirements").map_or(&[][..], |l| l);
    let (written, all) = match selector.str("rawSelector").filter(|raw| !raw.is_empty()) {
        Some(raw) if list.is_empty() => {
            let readable = match of_fields {
                true => FieldSelector::parse(raw).is_ok(),
                false => LabelSelector::parse(raw).is_ok(),
            };
            (Vec::from_iter(readable.then(|| raw.to_string())), 1)
        }
        _ => {
            let write = if of_fields { field } else { label };
            (list.iter().filter_map(write).collect(), list.len())
        }
    };
    let ignored = match (written.len(), of_fields) {
        (n, _) if n == all => None,
        (0, true) => Some("spec.resourceAttributes.fieldSelector ignored due to parse error"),
        (0, false) => Some("spec.resourceAttributes.labelSelector ignored due to parse error"),
        (_, true) => Some("spec.resourceAttributes.fieldSelector partially ignored due to parse error"),
        (_, false) => Some("spec.resourceAttributes.labelSelector partially ignored due to parse error"),
    };
    Selector {
        text: written.join(",").into(),
        ignored,
    }
}

fn text<'a>(requirement: &'a Value, key: &str) -> &'a str {
    requirement.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn values(requirement: &Value) -> Vec<Str> {
    super::strings(requirement.get("values"))
}

fn field(requirement: &Value) -> Option<String> {
    let values = values(requirement);
    let [value] = values.as_slice() else { return None };
    let (sign, negated) = match text(requirement, "operator") {
        "In" => ("=", false),
        "NotIn" => ("!=", true),
        _ => return None,
    };
    let key = text(requirement, "key");
    let written = format!("{key}{sign}{}", escape_value(value));
    let meant = FieldRequirement {
        field: key.into(),
        value: value.clone(),
        negated,
    };
    let read = FieldSelector::parse(&written).ok()?;
    (read.requirements == [meant]).then_some(written)
}

fn label(requirement: &Value) -> Option<String> {
    let (key, values) = (text(requirement, "key"), values(requirement));
    let (operator, written) = match text(requirement, "operator") {
        "In" => (Operator::In, format!("{key} in ({})", values.join(","))),
        "NotIn" => (Operator::NotIn, format!("{key} notin ({})", values.join(","))),
        "Exists" => (Operator::Exists, key.to_string()),
        "DoesNotExist" => (Operator::DoesNotExist, format!("!{key}")),
        _ => return None,
    };
    let sorted = |mut requirement: Requirement| {
        requirement.values.sort();
        requirement.values.dedup();
        requirement
    };
    let meant = sorted(Requirement::new(key, operator, values).ok()?);
    let read = LabelSelector::parse(&written).ok()?;
    let [read] = read.requirements() else { return None };
    (sorted(read.clone()) == meant).then_some(written)
}

/// Upstream's validation. Operators that aren't known come from clients that are newer, and are let through.
pub fn validate(attributes: &Map, errs: &mut Vec<Cause>) {
    for key in [FIELDS, "labelSelector"] {
        if let Some(selector) = attributes.obj(key) {
            one(selector, key, &format!("spec.resourceAttributes.{key}"), errs);
        }
    }
}

fn one(selector: &Map, key: &str, at: &str, errs: &mut Vec<Cause>) {
    let raw = selector.str("rawSelector").unwrap_or_default();
    let list = selector.arr("requirements").map_or(&[][..], |l| l);
    match (raw.is_empty(), list.is_empty()) {
        (false, false) => errs.push(Cause::invalid(
            format!("{at}.rawSelector"),
            &raw.into(),
            "may not specified at the same time as requirements",
        )),
        (true, true) => errs.push(Cause::required(
            format!("{at}.requirements"),
            &format!("when {at} is specified, requirements or rawSelector is required"),
        )),
        _ => {}
    }
    for (i, requirement) in list.iter().enumerate() {
        let at = format!("{at}.requirements[{i}]");
        let (name, values) = (text(requirement, "key"), values(requirement));
        if key == FIELDS && name.is_empty() {
            errs.push(Cause::required(format!("{at}.key"), "must be specified"));
        }
        match text(requirement, "operator") {
            "In" | "NotIn" if values.is_empty() => errs.push(Cause::required(
                format!("{at}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errs.push(Cause::forbidden(
                format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            _ => {}
        }
        if key == FIELDS {
            continue;
        }
        let refuse = |at: String, value: &str, why: String| Cause::invalid(at, &value.into(), &why);
        let key_errors = names::label_key(name).into_iter();
        errs.extend(key_errors.map(|why| refuse(format!("{at}.key"), name, why)));
        for (n, value) in values.iter().enumerate() {
            let value_errors = names::label_value(value).into_iter();
            errs.extend(value_errors.map(|why| refuse(format!("{at}.values[{n}]"), value, why)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn of(key: &str, selector: Value) -> (String, Option<&'static str>) {
        let attributes = value!({key: selector});
        let read = read(attributes.as_object().unwrap(), key);
        (read.text.to_string(), read.ignored)
    }

    #[test]
    fn nothing_else_is_asked_than_what_is_said() {
        let two = |key: &str| {
            value!({"requirements": [
                {"key": key, "operator": "In", "values": ["n1"]},
                {"key": "status.phase", "operator": "NotIn", "values": ["a,b=c\\"]},
            ]})
        };
        let whole = "spec.nodeName=n1,status.phase!=a\\,b\\=c\\\\";
        assert_eq!(of(FIELDS, two("spec.nodeName")), (whole.into(), None));
        // A name that would read as a requirement of its own.
        for key in ["spec.nodeName=n1,x", "spec.nodeName=n1\\", "a!", ",a", "a=b"] {
            let (text, ignored) = of(FIELDS, two(key));
            assert_eq!(text, "status.phase!=a\\,b\\=c\\\\", "{key}");
            assert!(ignored.unwrap().contains("fieldSelector partially ignored"));
        }
        let label = |key: &str, operator: &str, values: Value| value!({"requirements": [{"key": key, "operator": operator, "values": values}]});
        for (selector, text) in [
            (label("a", "In", value!(["y", "x", "y"])), "a in (y,x,y)"),
            (label("a", "DoesNotExist", value!([])), "!a"),
            (label("a,b=c", "Exists", value!([])), ""),
            (label("a", "In", value!(["x),b in (y"])), ""),
            (label("a", "Newer", value!(["x"])), ""),
        ] {
            let (found, ignored) = of("labelSelector", selector.clone());
            assert_eq!(
                (found.as_str(), ignored.is_some()),
                (text, text.is_empty()),
                "{selector:?}"
            );
        }
        let raw = |raw: &str| value!({"rawSelector": raw});
        assert_eq!(of(FIELDS, raw("a=b")), ("a=b".into(), None));
        let (text, ignored) = of(FIELDS, raw("a=b=c"));
        assert_eq!(text, "");
        assert_eq!(
            ignored,
            Some("spec.resourceAttributes.fieldSelector ignored due to parse error")
        );
        assert_eq!(of("labelSelector", raw("a in (b")).0, "");
    }

    #[test]
    fn requirements_are_checked() {
        let wrong = |selector: Value| {
            let (mut errs, attributes) = (Vec::new(), value!({"labelSelector": selector}));
            validate(attributes.as_object().unwrap(), &mut errs);
            errs.into_iter()
                .map(|e| format!("{}: {}", e.field, e.message))
                .collect::<Vec<_>>()
        };
        let at = "spec.resourceAttributes.labelSelector";
        assert_eq!(
            wrong(value!({})),
            [format!(
                "{at}.requirements: Required value: when {at} is specified, requirements or rawSelector is required"
            )]
        );
        let both = value!({"rawSelector": "a", "requirements": [{"key": "a", "operator": "Exists", "values": ["b"]}]});
        assert_eq!(
            wrong(both),
            [
                format!("{at}.rawSelector: Invalid value: \"a\": may not specified at the same time as requirements"),
                format!(
                    "{at}.requirements[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                ),
            ]
        );
        let strange = wrong(
            value!({"requirements": [{"key": "a b", "operator": "In", "values": ["-"]}, {"key": "a", "operator": "Newer"}]}),
        );
        assert_eq!(strange.len(), 2, "{strange:?}");
        assert!(strange[0].starts_with(&format!("{at}.requirements[0].key: Invalid value: \"a b\"")));
    }
}
