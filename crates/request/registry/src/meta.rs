//! What holds for the metadata of every object: system fields, namespaces, generated names, owner references, validation.

use crate::options::check_field_manager;
use keelson_api::codec::json;
use keelson_api::{ApiError, ApiResult, Cause, Causes, Map, Object, Str, Value};
use keelson_machinery::names;
use rand::Rng;
use std::collections::HashSet;

const ANNOTATIONS_LIMIT: usize = 256 * 1024;
const IMMUTABLE: &str = "field is immutable";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const ORPHAN: &str = "orphan";
pub const FOREGROUND: &str = "foregroundDeletion";

/// The present, as the API writes it.
pub fn now() -> Str {
    timestamp(keelson_clock::now())
}

/// RFC 3339 with whole seconds, as objects carry times.
pub fn timestamp(t: jiff::Timestamp) -> Str {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

pub fn parse_time(s: &str) -> Option<jiff::Timestamp> {
    s.parse().ok()
}

/// A revision as Go reads it: digits only; else what its error says.
pub fn parse_revision(text: &str) -> Result<u64, String> {
    let why = match text.parse() {
        Ok(revision) if !text.starts_with('+') => return Ok(revision),
        _ if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => "value out of range",
        _ => "invalid syntax",
    };
    Err(format!("strconv.ParseUint: parsing {text:?}: {why}"))
}

/// Removes what only the system may set.
pub fn wipe_system_fields(obj: &mut Object) {
    let meta = obj.meta_mut();
    for key in [
        "creationTimestamp",
        "uid",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        meta.remove(key);
    }
}

/// Of this thread's random numbers, which the kernel isn't asked for each time.
pub fn random_uuid() -> Str {
    let uuid = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let mut text = uuid::Uuid::encode_buffer();
    Str::from(&*uuid.hyphenated().encode_lower(&mut text))
}

pub fn fill_system_fields(obj: &mut Object, now: jiff::Timestamp) {
    obj.set_meta("creationTimestamp", &timestamp(now));
    obj.set_meta("uid", &random_uuid());
}

/// Upstream's alphabet for generated names: no vowels, nothing that looks alike.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

pub fn random_suffix(n: usize) -> String {
    let mut rng = rand::rng();
    (0..n)
        .map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char)
        .collect()
}

/// `base` and five random characters, at most 63 in all.
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(58);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], random_suffix(5))
}

/// Fills in the namespace of the request, or refuses another one.
pub fn ensure_namespace(obj: &mut Object, requested: &str) -> ApiResult<()> {
    let own = obj.namespace();
    if own == requested {
        return Ok(());
    }
    if own.is_empty() || requested.is_empty() {
        obj.set_meta("namespace", requested);
        return Ok(());
    }
    Err(ApiError::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}

/// Drops repeated owner references; answers with the UIDs that were repeated.
pub fn dedup_owners(obj: &mut Object) -> Vec<String> {
    let Some(refs) = obj.meta().and_then(|m| m.arr("ownerReferences")) else {
        return Vec::new();
    };
    let mut seen = HashSet::with_capacity(refs.len());
    let (kept, repeated): (Vec<&Value>, Vec<&Value>) = refs.iter().partition(|r| seen.insert(json::encode(r)));
    let uid = |r: &Value| r.get("uid").and_then(Value::as_str).unwrap_or_default().to_string();
    let dropped: Vec<String> = repeated.into_iter().map(uid).collect();
    let kept: Vec<Value> = kept.into_iter().cloned().collect();
    if !dropped.is_empty() {
        obj.meta_mut().insert("ownerReferences", kept);
    }
    dropped
}

/// Names that can't stand in a path.
pub fn path_segment_errors(name: &str) -> Vec<String> {
    match name {
        "." => return vec!["may not be '.'".into()],
        ".." => return vec!["may not be '..'".into()],
        _ => {}
    }
    path_segment_prefix_errors(name)
}

fn path_segment_prefix_errors(name: &str) -> Vec<String> {
    ["/", "%"]
        .iter()
        .filter(|c| name.contains(**c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// Upstream's trick: a prefix that ends in a dash stands for names that go on.
pub fn mask_trailing_dash(name: &str) -> String {
    let mut rest = match name.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => rest.to_string(),
        _ => return name.to_string(),
    };
    rest.pop();
    rest.push('a');
    rest
}

fn strings(meta: &Map, key: &str) -> Vec<Str> {
    meta.arr(key)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Str::from)
        .collect()
}

fn validate_labels(meta: &Map, errs: &mut Causes) {
    for (k, v) in meta.obj("labels").into_iter().flatten() {
        errs.extend(
            names::label_key(k)
                .iter()
                .map(|m| Cause::invalid("metadata.labels", &k.as_str().into(), m)),
        );
        let text = v.as_str().unwrap_or_default();
        errs.extend(
            names::label_value(text)
                .iter()
                .map(|m| Cause::invalid("metadata.labels", &text.into(), m)),
        );
    }
}

fn validate_annotations(meta: &Map, errs: &mut Causes) {
    let mut size = 0;
    for (k, v) in meta.obj("annotations").into_iter().flatten() {
        size += k.len() + v.as_str().map_or(0, str::len);
        let lower = k.to_ascii_lowercase();
        errs.extend(
            names::label_key(&lower)
                .iter()
                .map(|m| Cause::invalid("metadata.annotations", &k.as_str().into(), m)),
        );
    }
    if size > ANNOTATIONS_LIMIT {
        errs.push(Cause::too_long("metadata.annotations", ANNOTATIONS_LIMIT));
    }
}

fn validate_owners(meta: &Map, errs: &mut Causes) {
    let mut controller: Option<String> = None;
    let Some(refs) = meta.arr("ownerReferences") else {
        return;
    };
    for (i, r) in refs.iter().enumerate() {
        let path = format!("metadata.ownerReferences[{i}]");
        let get = |k: &str| r.get(k).and_then(Value::as_str).unwrap_or_default();
        for key in ["apiVersion", "kind", "name", "uid"] {
            if get(key).is_empty() {
                errs.push(Cause::required(format!("{path}.{key}"), "must not be empty"));
            }
        }
        let api_version = get("apiVersion");
        if !api_version.is_empty() && (api_version.matches('/').count() > 1 || api_version.ends_with('/')) {
            errs.push(Cause::invalid(
                format!("{path}.apiVersion"),
                &api_version.into(),
                "must be <group>/<version> or <version>",
            ));
        }
        if api_version == "v1" && get("kind") == "Event" {
            errs.push(Cause::invalid(
                path,
                r,
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if r.get("controller").and_then(Value::as_bool) == Some(true) {
            let this = format!("{}/{}", get("kind"), get("name"));
            match &controller {
                Some(one) => errs.push(Cause::invalid(
                    "metadata.ownerReferences",
                    &refs.clone().into(),
                    &format!("Only one reference can have Controller set to true. Found \"true\" in references for {one} and {this}"),
                )),
                None => controller = Some(this),
            }
        }
    }
}

fn validate_finalizers(meta: &Map, errs: &mut Causes) {
    let finalizers = strings(meta, "finalizers");
    for f in &finalizers {
        errs.extend(
            names::label_key(f)
                .iter()
                .map(|m| Cause::invalid("metadata.finalizers", &f.as_str().into(), m)),
        );
    }
    if finalizers.iter().any(|f| f == ORPHAN) && finalizers.iter().any(|f| f == FOREGROUND) {
        let shown: Vec<Value> = finalizers.into_iter().map(Value::String).collect();
        let why = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        errs.push(Cause::invalid("metadata.finalizers", &shown.into(), &why));
    }
}

fn validate_managed_fields(meta: &Map, errs: &mut Causes) {
    for (i, entry) in meta.arr("managedFields").into_iter().flatten().enumerate() {
        let path = format!("metadata.managedFields[{i}]");
        let get = |k: &str| entry.get(k).and_then(Value::as_str).unwrap_or_default();
        match get("operation") {
            "" => errs.push(Cause::required(format!("{path}.operation"), "must not be empty")),
            "Apply" | "Update" => {}
            other => errs.push(Cause::not_supported(
                format!("{path}.operation"),
                &other.into(),
                &["Apply", "Update"],
            )),
        }
        if !matches!(get("fieldsType"), "" | "FieldsV1") {
            errs.push(Cause::invalid(
                format!("{path}.fieldsType"),
                &get("fieldsType").into(),
                "must be `FieldsV1`",
            ));
        }
        check_field_manager(get("manager"), &format!("{path}.manager"), errs);
        if get("subresource").len() > 256 {
            errs.push(Cause::too_long(format!("{path}.subresource"), 256));
        }
    }
}

/// What upstream checks of every object's metadata; names may hold whatever fits in a path unless the kind says more.
pub fn validate(obj: &Object, namespaced: bool) -> Vec<Cause> {
    let mut errs = Causes::default();
    let empty = Map::new();
    let meta = obj.meta().unwrap_or(&empty);
    let generate = obj.generate_name();
    if !generate.is_empty() {
        let field = "metadata.generateName";
        errs.extend(
            path_segment_prefix_errors(generate)
                .iter()
                .map(|m| Cause::invalid(field, &generate.into(), m)),
        );
    }
    let name = obj.name();
    if name.is_empty() {
        errs.push(Cause::required("metadata.name", "name or generateName is required"));
    } else {
        errs.extend(
            path_segment_errors(name)
                .iter()
                .map(|m| Cause::invalid("metadata.name", &name.into(), m)),
        );
    }
    let namespace = obj.namespace();
    match (namespaced, namespace.is_empty()) {
        (true, true) => errs.push(Cause::required("metadata.namespace", "")),
        (true, false) => errs.extend(
            names::dns1123_label(namespace)
                .iter()
                .map(|m| Cause::invalid("metadata.namespace", &namespace.into(), m)),
        ),
        (false, false) => errs.push(Cause::forbidden("metadata.namespace", "not allowed on this type")),
        (false, true) => {}
    }
    if obj.generation() < 0 {
        errs.push(Cause::invalid(
            "metadata.generation",
            &obj.generation().into(),
            NOT_NEGATIVE,
        ));
    }
    validate_labels(meta, &mut errs);
    validate_annotations(meta, &mut errs);
    validate_owners(meta, &mut errs);
    validate_finalizers(meta, &mut errs);
    validate_managed_fields(meta, &mut errs);
    errs.into()
}

/// What may not change about metadata.
pub fn validate_update(new: &Object, old: &Object) -> Vec<Cause> {
    let mut errs = Causes::default();
    if old.deletion_timestamp().is_some() {
        let had: Vec<&str> = old.finalizers().collect();
        let mut extra: Vec<&str> = new.finalizers().filter(|f| !had.contains(f)).collect();
        if !extra.is_empty() {
            extra.sort_unstable();
            let list: Vec<String> = extra.iter().map(|f| format!("{f:?}")).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            errs.push(Cause::forbidden("metadata.finalizers", &why));
        }
    }
    if new.resource_version().is_empty() {
        errs.push(Cause::invalid(
            "metadata.resourceVersion",
            &"".into(),
            "must be specified for an update",
        ));
    }
    if new.generation() < old.generation() {
        errs.push(Cause::invalid(
            "metadata.generation",
            &new.generation().into(),
            "must not be decremented",
        ));
    }
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let of = |o: &Object| o.meta().and_then(|m| m.get(key)).cloned().unwrap_or(Value::Null);
        if of(new) != of(old) {
            errs.push(Cause::invalid(format!("metadata.{key}"), &of(new), IMMUTABLE));
        }
    }
    errs.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn object(v: Value) -> Object {
        Object::try_from(v).unwrap()
    }

    #[test]
    fn generated_names_fit_and_use_the_safe_alphabet() {
        let name = generate_name(&"x".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(name[58..].bytes().all(|b| ALPHABET.contains(&b)));
    }

    #[test]
    fn metadata_errors_are_worded_as_upstream_words_them() {
        let o = object(
            value!({"metadata": {"name": "a/b", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}}),
        );
        let errs: Vec<String> = validate(&o, true)
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect();
        assert_eq!(
            errs,
            [
                "metadata.name: Invalid value: \"a/b\": may not contain '/'",
                "metadata.namespace: Required value",
                "metadata.ownerReferences[0].uid: Required value: must not be empty",
            ]
        );
    }

    #[test]
    fn a_deleted_object_takes_no_new_finalizers() {
        let old = object(
            value!({"metadata": {"name": "a", "resourceVersion": "1", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/a"]}}),
        );
        let mut new = old.clone();
        new.set_finalizers(vec!["x/a".into(), "x/b".into()]);
        assert_eq!(validate_update(&new, &old).len(), 1);
        new.set_finalizers(vec![]);
        assert!(validate_update(&new, &old).is_empty());
    }

    #[test]
    fn prefixes_may_end_in_any_character() {
        assert_eq!(mask_trailing_dash("web-"), "wea");
        assert_eq!(mask_trailing_dash("é-"), "a");
        assert_eq!(mask_trailing_dash("-"), "-");
        assert_eq!(mask_trailing_dash("web"), "web");
    }

    #[test]
    fn owners_are_kept_once() {
        let r = value!({"uid": "u", "name": "n"});
        let mut o = object(value!({"metadata": {}}));
        o.meta_mut().insert("ownerReferences", vec![r.clone(), r]);
        assert_eq!(dedup_owners(&mut o), ["u"]);
        assert_eq!(o.owner_references().count(), 1);
    }

    #[test]
    fn revisions_are_digits() {
        assert_eq!(parse_revision("18446744073709551615"), Ok(u64::MAX));
        for (text, why) in [
            ("+5", "invalid syntax"),
            ("-5", "invalid syntax"),
            ("", "invalid syntax"),
            ("18446744073709551616", "value out of range"),
        ] {
            let wanted = format!("strconv.ParseUint: parsing {text:?}: {why}");
            assert_eq!(parse_revision(text), Err(wanted));
        }
    }
}
