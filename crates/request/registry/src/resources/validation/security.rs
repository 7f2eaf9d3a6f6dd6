//! Security contexts of containers, and the profiles that pods and containers name alike.

use super::check::{Errs, is_true, s};
use keelson_api::{Map, Value};

pub fn security_context(e: &mut Errs, sc: &Map, host_users: bool) {
    e.in_range(sc, "runAsUser", 0, i32::MAX.into());
    e.in_range(sc, "runAsGroup", 0, i32::MAX.into());
    if sc.contains_key("procMount") {
        e.optional_one_of(sc, "procMount", &["Default", "Unmasked"]);
        if host_users && s(sc, "procMount") == "Unmasked" {
            e.invalid("procMount", "Unmasked", "`hostUsers` must be false to use `Unmasked`");
        }
    }
    e.child(sc, "seccompProfile", seccomp);
    e.child(sc, "appArmorProfile", app_armor);
    if sc.bool("allowPrivilegeEscalation") == Some(false) {
        if is_true(sc, "privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            e.invalid("", sc.clone(), why);
        }
        let added = sc.obj("capabilities").and_then(|c| c.arr("add")).into_iter().flatten();
        if added.filter_map(Value::as_str).any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            e.invalid("", sc.clone(), why);
        }
    }
}

pub fn seccomp(e: &mut Errs, p: &Map) {
    match s(p, "type") {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => e.required("type", "type is required when seccompProfile is set"),
        other => e.not_supported("type", other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    match (s(p, "type"), p.str("localhostProfile")) {
        ("Localhost", None) => e.required("localhostProfile", "must be set when seccomp type is Localhost"),
        ("Localhost", Some(path)) => e.local_path("localhostProfile", path),
        (_, Some(_)) => {
            e.invalid_as(
                "core.SeccompProfile",
                "localhostProfile",
                Some(&Value::Object(p.clone())),
                "can only be set when seccomp type is Localhost",
            );
        }
        _ => {}
    }
}

pub fn app_armor(e: &mut Errs, p: &Map) {
    let profile = p.str("localhostProfile");
    match s(p, "type") {
        "Localhost" => match profile {
            None => e.required("localhostProfile", "must be set when AppArmor type is Localhost"),
            Some(text) if text.trim() != text => {
                e.invalid("localhostProfile", text, "must not be padded with whitespace");
            }
            Some("") => e.required("localhostProfile", "must be set when AppArmor type is Localhost"),
            Some(text) if text.len() > 4095 => e.too_long("localhostProfile", 4095),
            Some(_) => {}
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(text) = profile {
                e.invalid(
                    "localhostProfile",
                    text,
                    "can only be set when AppArmor type is Localhost",
                );
            }
        }
        "" => e.required("type", "type is required when appArmorProfile is set"),
        other => e.not_supported("type", other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}
