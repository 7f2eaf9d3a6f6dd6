//! IP families: one or two, as asked for and as the cluster has them.

use super::fields::{cluster_ip, has_selector, is_external_name, is_headless, kind, set_strings, strings};
use super::ips::Ranges;
use crate::resources::validation::service_addresses;
use keelson_api::{ApiError, ApiResult, Cause, Object, Str, Value};

pub const V4: &str = "IPv4";
pub const V6: &str = "IPv6";

pub fn family_of(ip: &str) -> &'static str {
    if ip.contains(':') { V6 } else { V4 }
}

fn other(family: &str) -> &'static str {
    if family == V4 { V6 } else { V4 }
}

fn policy(svc: &Object) -> Option<&str> {
    svc.str_at(&["spec", "ipFamilyPolicy"])
}

/// A service that prefers two families stays as it is when only the cluster changed.
pub fn keeps_preference(new: &Object, old: Option<&Object>) -> bool {
    let Some(old) = old else { return false };
    let prefers = |s: &Object| policy(s) == Some("PreferDualStack");
    kind(old) == kind(new)
        && !is_external_name(new)
        && prefers(new)
        && prefers(old)
        && cluster_ip(new) == cluster_ip(old)
        && strings(new, "clusterIPs") == strings(old, "clusterIPs")
        && strings(new, "ipFamilies") == strings(old, "ipFamilies")
}

/// Fills in policy and families, or says what can't be.
pub fn init(new: &mut Object, old: Option<&Object>, ranges: &Ranges) -> ApiResult<()> {
    if is_external_name(new) || keeps_preference(new, old) {
        return Ok(());
    }
    let selectorless = is_headless(new) && !has_selector(new);
    if policy(new).is_none() {
        let inherited = old.and_then(policy).map(String::from);
        let default = if selectorless {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        new.set_at(
            &["spec", "ipFamilyPolicy"],
            inherited.unwrap_or_else(|| default.to_string()),
        );
    }
    refuse(new, &mut service_addresses::check(new, old))?;
    let single = policy(new) == Some("SingleStack");
    let shown = Value::from(policy(new).unwrap_or_default());
    let mut errs = Vec::new();
    if let Some(old) = old {
        shrink(new, old, single, &shown, &mut errs);
    }
    let (ips, mut families) = (strings(new, "clusterIPs"), strings(new, "ipFamilies"));
    let field = "spec.ipFamilyPolicy";
    if single && ips.len() == 2 {
        errs.push(Cause::invalid(
            field,
            &shown,
            "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
        ));
    }
    if single && families.len() == 2 {
        errs.push(Cause::invalid(
            field,
            &shown,
            "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ));
    }
    for (i, ip) in ips.iter().enumerate() {
        if ip == "None" {
            break;
        }
        if i < families.len() || ip.is_empty() {
            continue;
        }
        let family = family_of(ip);
        if ranges.has(family) {
            families.push(family.into());
        } else {
            let list: Vec<Value> = ips.iter().cloned().map(Value::String).collect();
            errs.push(Cause::invalid(
                format!("spec.clusterIPs[{i}]"),
                &list.into(),
                &format!("{family} is not configured on this cluster"),
            ));
        }
    }
    refuse(new, &mut errs)?;
    if selectorless {
        if families.is_empty() {
            families.push(ranges.default_family().into());
        }
        if families.len() < 2 && !single {
            families.push(other(&families[0]).into());
        }
        set_strings(new, "ipFamilies", &families);
        return Ok(());
    }
    if policy(new) == Some("RequireDualStack") && !ranges.is_dual() {
        errs.push(Cause::invalid(
            field,
            &shown,
            "this cluster is not configured for dual-stack services",
        ));
    }
    for (i, family) in families.iter().enumerate().filter(|(_, f)| !ranges.has(f)) {
        errs.push(Cause::invalid(
            format!("spec.ipFamilies[{i}]"),
            &family.as_str().into(),
            "not configured on this cluster",
        ));
    }
    refuse(new, &mut errs)?;
    if families.is_empty() {
        families.push(ranges.default_family().into());
    }
    if !single && families.len() == 1 && ranges.is_dual() {
        families.push(other(&families[0]).into());
    }
    set_strings(new, "ipFamilies", &families);
    Ok(())
}

fn refuse(svc: &Object, errs: &mut Vec<Cause>) -> ApiResult<()> {
    if errs.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid("", "Service", svc.name(), std::mem::take(errs)))
    }
}

/// Going back to one family: the policy says so, and the second of each goes.
fn shrink(new: &mut Object, old: &Object, single: bool, shown: &Value, errs: &mut Vec<Cause>) {
    for (key, what) in [
        ("clusterIPs", "secondary cluster IP"),
        ("ipFamilies", "secondary IP family"),
    ] {
        let (before, mut after): (Vec<Str>, Vec<Str>) = (strings(old, key), strings(new, key));
        if single {
            if before == after && after.len() > 1 {
                after.truncate(1);
                set_strings(new, key, &after);
            }
        } else if !after.is_empty() && after.len() == 1 && before.len() == 2 {
            errs.push(Cause::invalid(
                "spec.ipFamilyPolicy",
                shown,
                &format!("must be 'SingleStack' to release the {what}"),
            ));
        }
    }
}
