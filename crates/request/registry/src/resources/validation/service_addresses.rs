//! Addresses and families of services: each for itself, with each other, and what of them may change.

use super::check::{Errs, ip, s};
use keelson_api::{Cause, Map, Object, Value};
use std::collections::BTreeSet;

fn texts<'a>(spec: &'a Map, key: &str) -> Vec<&'a str> {
    let all = spec.arr(key).into_iter().flatten();
    all.filter_map(Value::as_str).collect()
}

fn shown(spec: &Map, key: &str) -> Value {
    spec.get(key).cloned().unwrap_or(Value::Null)
}

pub fn headless(spec: &Map) -> bool {
    texts(spec, "clusterIPs") == ["None"]
}

/// What has to be so before families and addresses are chosen. An address that the service has already is not judged anew.
pub fn check(new: &Object, old: Option<&Object>) -> Vec<Cause> {
    let empty = Map::new();
    let mut e = Errs::default();
    let had = old.and_then(|old| old.obj("spec")).unwrap_or(&empty);
    e.within("spec", |e| fields(e, new.obj("spec").unwrap_or(&empty), had));
    e.list.into()
}

pub fn fields(e: &mut Errs, spec: &Map, had: &Map) {
    if s(spec, "type") == "ExternalName" {
        return;
    }
    let (first, list) = (s(spec, "clusterIP"), texts(spec, "clusterIPs"));
    match (first.is_empty(), list.first()) {
        (false, None) => e.required("clusterIPs", ""),
        (false, Some(x)) if *x != first => e.invalid(
            "clusterIPs",
            shown(spec, "clusterIPs"),
            "first value must match `clusterIP`",
        ),
        (true, Some(_)) => e.invalid(
            "clusterIPs",
            shown(spec, "clusterIPs"),
            "must be empty when `clusterIP` is not specified",
        ),
        _ => {}
    }
    let (mut families, mut seen) = (Vec::new(), BTreeSet::new());
    e.each_str(spec, "ipFamilies", |e, _, family| {
        let known = ["IPv4", "IPv6"];
        if !known.contains(&family) {
            e.not_supported("", family, &known);
        }
        if !seen.insert(family.to_string()) {
            e.duplicate("", family);
        }
        families.push(family.to_string());
    });
    e.optional_one_of(
        spec,
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    if addresses(e, spec, &list, &texts(had, "clusterIPs")) && !headless(spec) {
        for (i, (address, family)) in list.iter().zip(&families).enumerate() {
            let is_of_six = address.contains(':');
            if (family == "IPv4" && is_of_six) || (family == "IPv6" && !is_of_six) {
                let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
                e.invalid(&format!("clusterIPs[{i}]"), *address, &why);
            }
        }
    }
}

/// Whether all are addresses: only then they are compared with anything.
fn addresses(e: &mut Errs, spec: &Map, list: &[&str], had: &[&str]) -> bool {
    let mut sound = true;
    for (i, address) in list.iter().enumerate() {
        if i == 0 && *address == "None" {
            if list.len() > 1 {
                sound = false;
                let why = "'None' must be the first and only value";
                e.invalid("clusterIPs", shown(spec, "clusterIPs"), why);
            }
        } else if !had.contains(address) {
            sound &= ip(address).is_empty();
            e.format(&format!("clusterIPs[{i}]"), address, ip);
        }
    }
    if list.len() > 2 {
        e.invalid("clusterIPs", shown(spec, "clusterIPs"), "may only hold up to 2 values");
    }
    let of_both = list.iter().any(|a| a.contains(':')) && !list.iter().all(|a| a.contains(':'));
    if sound && list.len() > 1 && !of_both {
        let why = "may specify no more than one IP for each IP family";
        e.invalid("clusterIPs", shown(spec, "clusterIPs"), why);
    }
    sound
}

/// The first of each stays; a second one comes, or goes if the policy says so.
pub fn update(e: &mut Errs, new: &Map, old: &Map) {
    if s(new, "type") == "ExternalName" || s(old, "type") == "ExternalName" {
        return;
    }
    let (ips, had) = (texts(new, "clusterIPs"), texts(old, "clusterIPs"));
    if !(headless(new) && headless(old)) {
        let changed = |e: &mut Errs, i: usize| {
            let why = "may not change once set";
            e.invalid(&format!("spec.clusterIPs[{i}]"), shown(new, "clusterIPs"), why);
        };
        if ips.len() == had.len() {
            for (i, _) in ips.iter().zip(&had).enumerate().filter(|(_, (now, was))| now != was) {
                changed(e, i);
            }
        } else if ips.is_empty() {
            let why = "primary clusterIP can not be unset";
            e.invalid("spec.clusterIPs[0]", shown(new, "clusterIPs"), why);
        } else if had.first().is_some_and(|was| *was != ips[0]) {
            changed(e, 0);
        }
        released(e, new, ips.len(), had.len(), "clusterIP");
    }
    if headless(new) || headless(old) {
        return;
    }
    let (families, had) = (texts(new, "ipFamilies"), texts(old, "ipFamilies"));
    if families.len() == had.len() {
        let differing = families.iter().zip(&had).filter(|(now, was)| now != was);
        for _ in differing {
            let why = "may not change once set";
            e.invalid("spec.ipFamilies[0]", shown(new, "ipFamilies"), why);
        }
    } else {
        if families.len() < had.len() && ips.is_empty() {
            let why = "primary ipFamily can not be unset";
            e.invalid("spec.ipFamilies[0]", shown(new, "ipFamilies"), why);
        }
        if let (Some(now), Some(was)) = (families.first(), had.first())
            && now != was
        {
            // Upstream shows the addresses, too.
            let why = "may not change once set";
            e.invalid("spec.ipFamilies[0]", shown(new, "clusterIPs"), why);
        }
    }
    released(e, new, families.len(), had.len(), "ipFamily");
}

fn released(e: &mut Errs, new: &Map, now: usize, before: usize, what: &str) {
    if now == 1 && before > 1 && s(new, "ipFamilyPolicy") != "SingleStack" {
        let why = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        e.invalid("spec.ipFamilyPolicy", shown(new, "ipFamilyPolicy"), &why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn an_unknown_family_is_told_once() {
        for address in ["10.0.0.1", "fd00::1"] {
            let service = value!({"spec": {"clusterIP": address, "clusterIPs": [address], "ipFamilies": ["foo"]}});
            let refused = check(&Object(service.as_object().cloned().unwrap_or_default()), None);
            let fields: Vec<&str> = refused.iter().map(|cause| cause.field.as_str()).collect();
            assert_eq!(fields, ["spec.ipFamilies[0]"], "{address}");
        }
    }
}
