//! JSON patch (RFC 6902), with the leniencies of upstream's library: `replace` of an absent key sets it, a `test` for
//! null passes on an absent key, and negative indices count from the end.

use keelson_api::codec::MAX_DEPTH;
use keelson_api::status::Details;
use keelson_api::{ApiError, ApiResult, Reason, Value};

/// The most operations that one patch may have.
pub const MAX_OPERATIONS: usize = 10_000;
/// The most bytes that `copy` may add.
pub const MAX_COPIED_BYTES: usize = 3 << 20;
/// The most values that are looked at for how deep they go when they move.
const MAX_WALKED: usize = 10_000_000;

/// Applies a JSON patch given as a decoded document; failures are upstream's statuses.
pub fn apply(doc: &Value, patch: &Value) -> ApiResult<Value> {
    let Value::Array(ops) = patch else {
        return Err(ApiError::bad_request(format!(
            "json: cannot unmarshal {} into Go value of type jsonpatch.Patch",
            patch.type_name()
        )));
    };
    if ops.len() > MAX_OPERATIONS {
        return Err(ApiError::new(
            Reason::RequestEntityTooLarge,
            format!(
                "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                ops.len()
            ),
        ));
    }
    let mut out = doc.clone();
    apply_operations(&mut out, ops).map_err(|_| unspecified())?;
    Ok(out)
}

/// What upstream says of a patch of which it doesn't tell what is wrong.
pub(super) fn unspecified() -> ApiError {
    let why = "the server rejected our request due to an error in our request";
    ApiError::new(Reason::Invalid, why).with_details(Details::default())
}

/// Applies the operations in order; stops at the first that fails and says why.
pub fn apply_operations(doc: &mut Value, ops: &[Value]) -> Result<(), String> {
    let mut spent = Spent::default();
    for op in ops {
        operation(doc, op, &mut spent)?;
    }
    Ok(())
}

/// What the operations so far have cost. No document is ever deeper than one that could be read.
#[derive(Default)]
struct Spent {
    copied: usize,
    walked: usize,
}

impl Spent {
    fn copy(&mut self, value: &Value) -> Result<(), String> {
        self.copied += serde_json::to_vec(value).map_or(0, |b| b.len());
        if self.copied <= MAX_COPIED_BYTES {
            return Ok(());
        }
        Err(format!(
            "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit {MAX_COPIED_BYTES}",
            self.copied
        ))
    }

    fn transfer(&mut self, value: &Value, from: &str, path: &str) -> Result<(), String> {
        if levels(path) <= levels(from) {
            return Ok(());
        }
        fits(value, path, &mut self.walked)?;
        if self.walked > MAX_WALKED {
            return Err("too much is moved".into());
        }
        Ok(())
    }
}

/// How many containers are around what a path leads to.
fn levels(path: &str) -> usize {
    path.bytes().filter(|b| *b == b'/').count()
}

/// Refuses a value that goes too deep at its place.
fn fits(value: &Value, path: &str, walked: &mut usize) -> Result<(), String> {
    let room = MAX_DEPTH.checked_sub(levels(path));
    match room.is_some_and(|room| within(value, room, walked)) {
        true => Ok(()),
        false => Err("exceeded max depth".into()),
    }
}

fn within(value: &Value, room: usize, walked: &mut usize) -> bool {
    *walked += 1;
    match (value, room.checked_sub(1)) {
        (Value::Object(m), Some(room)) => m.values().all(|v| within(v, room, walked)),
        (Value::Array(a), Some(room)) => a.iter().all(|v| within(v, room, walked)),
        (Value::Object(_) | Value::Array(_), None) => false,
        _ => true,
    }
}

fn operation(doc: &mut Value, op: &Value, spent: &mut Spent) -> Result<(), String> {
    let kind = op.get("op").and_then(Value::as_str).unwrap_or("unknown");
    let path = || {
        op.get("path")
            .and_then(Value::as_str)
            .ok_or_else(|| format!("{kind} operation failed to decode path: missing value"))
    };
    let from = || {
        op.get("from")
            .and_then(Value::as_str)
            .ok_or_else(|| format!("{kind} operation failed to decode from: missing value"))
    };
    let value = || op.get("value").cloned().unwrap_or_default();
    match kind {
        "add" => {
            let path = path()?;
            if path.is_empty() {
                *doc = value();
                return Ok(());
            }
            let (parent, key) = find(doc, path).ok_or_else(|| {
                format!("add operation does not apply: doc is missing path: \"{path}\": missing value")
            })?;
            let value = value();
            fits(&value, path, &mut 0)?;
            add(parent, &key, value).map_err(|e| format!("error in add for path: '{path}': {e}"))
        }
        "remove" => {
            let path = path()?;
            let (parent, key) = find(doc, path).ok_or_else(|| {
                format!("remove operation does not apply: doc is missing path: \"{path}\": missing value")
            })?;
            remove(parent, &key)
                .map(drop)
                .map_err(|e| format!("error in remove for path: '{path}': {e}"))
        }
        "replace" => {
            let path = path()?;
            if path.is_empty() {
                *doc = value();
                return Ok(());
            }
            let (parent, key) = find(doc, path).ok_or_else(|| {
                format!("replace operation does not apply: doc is missing path: {path}: missing value")
            })?;
            let value = value();
            fits(&value, path, &mut 0)?;
            match parent {
                Value::Object(m) => {
                    m.insert(key, value);
                }
                Value::Array(a) => {
                    let i = index(&key, a.len(), a.len()).map_err(|_| {
                        format!("replace operation does not apply: doc is missing key: {path}: missing value")
                    })?;
                    a[i] = value;
                }
                _ => {
                    return Err(format!(
                        "replace operation does not apply: doc is missing path: {path}: missing value"
                    ));
                }
            }
            Ok(())
        }
        "move" => {
            let (from, path) = (from()?, path()?);
            let (parent, key) = find(doc, from).ok_or_else(|| {
                format!("move operation does not apply: doc is missing from path: {from}: missing value")
            })?;
            let moved = remove(parent, &key).map_err(|e| format!("error in move for path: '{key}': {e}"))?;
            spent.transfer(&moved, from, path)?;
            let (parent, key) = find(doc, path).ok_or_else(|| {
                format!("move operation does not apply: doc is missing destination path: {path}: missing value")
            })?;
            add(parent, &key, moved).map_err(|e| format!("error in move for path: '{path}': {e}"))
        }
        "copy" => {
            let (from, path) = (from()?, path()?);
            let found = get(doc, from)
                .map_err(|e| format!("copy operation does not apply: doc is missing from path: {from}: {e}"))?
                .cloned()
                .unwrap_or_default();
            spent.copy(&found)?;
            fits(&found, path, &mut 0)?;
            let (parent, key) = find(doc, path).ok_or_else(|| {
                format!("copy operation does not apply: doc is missing destination path: {path}: missing value")
            })?;
            add(parent, &key, found).map_err(|e| format!("error while adding value during copy: {e}"))
        }
        "test" => {
            let path = path()?;
            let want = value();
            let have = if path.is_empty() {
                Some(&*doc)
            } else {
                get(doc, path).map_err(|e| format!("error in test for path: '{path}': {e}"))?
            };
            let same = match have {
                None | Some(Value::Null) => want.is_null(),
                Some(have) => equal(have, &want),
            };
            if same {
                Ok(())
            } else {
                Err(format!("testing value {path} failed: test failed"))
            }
        }
        other => Err(format!("Unexpected kind: {other}")),
    }
}

/// Equality of JSON: `1` and `1.0` are one number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b.iter())
                    .all(|((ka, va), (kb, vb))| ka == kb && equal(va, vb))
        }
        _ => a == b,
    }
}

fn decode(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// The container that the last segment of a path stands in, and that segment.
fn find<'a>(doc: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parents, last) = path.rsplit_once('/')?;
    let mut at = doc;
    for part in parents.split('/').skip(1).map(decode) {
        at = match at {
            Value::Object(m) => m.get_mut(&part)?,
            Value::Array(a) => {
                let i = index(&part, a.len(), a.len()).ok()?;
                &mut a[i]
            }
            _ => return None,
        };
    }
    matches!(at, Value::Object(_) | Value::Array(_)).then(|| (at, decode(last)))
}

/// What stands at a path: `None` for an absent key of a map, an error where the path leads nowhere.
fn get<'a>(doc: &'a Value, path: &str) -> Result<Option<&'a Value>, String> {
    let missing = || "missing value".to_string();
    let (parents, last) = path.rsplit_once('/').ok_or_else(missing)?;
    let mut at = doc;
    for part in parents.split('/').skip(1).map(decode) {
        at = match at {
            Value::Object(m) => m.get(&part).ok_or_else(missing)?,
            Value::Array(a) => &a[index(&part, a.len(), a.len())?],
            _ => return Err(missing()),
        };
    }
    let last = decode(last);
    match at {
        Value::Object(m) => Ok(m.get(&last)),
        Value::Array(a) => Ok(Some(&a[index(&last, a.len(), a.len())?])),
        _ => Err(missing()),
    }
}

/// An index into an array of `len`; it must lie below `bound`. Negative ones count from the end.
fn index(key: &str, len: usize, bound: usize) -> Result<usize, String> {
    let i: i64 = key
        .parse()
        .map_err(|_| format!("value was not a proper array index: '{key}'"))?;
    let from_end = if i < 0 { i + len as i64 } else { i };
    usize::try_from(from_end)
        .ok()
        .filter(|i| *i < bound)
        .ok_or_else(|| format!("Unable to access invalid index: {i}: invalid index referenced"))
}

fn add(parent: &mut Value, key: &str, value: Value) -> Result<(), String> {
    match parent {
        Value::Object(m) => {
            m.insert(key, value);
            Ok(())
        }
        Value::Array(a) if key == "-" => {
            a.push(value);
            Ok(())
        }
        Value::Array(a) => {
            let n = a.len() + 1;
            let i = index(key, n, n)?;
            a.insert(i, value);
            Ok(())
        }
        _ => Err("missing value".into()),
    }
}

fn remove(parent: &mut Value, key: &str) -> Result<Value, String> {
    match parent {
        Value::Object(m) => m
            .remove(key)
            .ok_or_else(|| format!("Unable to remove nonexistent key: {key}: missing value")),
        Value::Array(a) => {
            let i = index(key, a.len(), a.len())?;
            Ok(a.remove(i))
        }
        _ => Err("missing value".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn run(doc: Value, ops: Value) -> Result<Value, String> {
        let mut doc = doc;
        apply_operations(&mut doc, ops.as_array().unwrap())?;
        Ok(doc)
    }

    #[test]
    fn operations() {
        let doc = value!({"a": [1, 2], "b": {"c/d": "x"}});
        for (ops, want) in [
            (
                value!([{"op":"add","path":"/a/1","value":9}]),
                value!({"a": [1, 9, 2], "b": {"c/d": "x"}}),
            ),
            (
                value!([{"op":"add","path":"/a/-","value":9}]),
                value!({"a": [1, 2, 9], "b": {"c/d": "x"}}),
            ),
            (
                value!([{"op":"remove","path":"/b/c~1d"}]),
                value!({"a": [1, 2], "b": {}}),
            ),
            (
                value!([{"op":"replace","path":"/b/new","value":1}]),
                value!({"a": [1, 2], "b": {"c/d": "x", "new": 1}}),
            ),
            (
                value!([{"op":"move","from":"/a/0","path":"/b/n"}]),
                value!({"a": [2], "b": {"c/d": "x", "n": 1}}),
            ),
            (
                value!([{"op":"copy","from":"/b","path":"/c"}]),
                value!({"a": [1, 2], "b": {"c/d": "x"}, "c": {"c/d": "x"}}),
            ),
            (value!([{"op":"test","path":"/a","value":[1.0, 2]}]), doc.clone()),
            (value!([{"op":"test","path":"/nope","value":null}]), doc.clone()),
            (
                value!([{"op":"remove","path":"/a/-1"}]),
                value!({"a": [1], "b": {"c/d": "x"}}),
            ),
        ] {
            assert_eq!(run(doc.clone(), ops.clone()).unwrap(), want, "{ops:?}");
        }
    }

    #[test]
    fn failures() {
        let doc = value!({"a": [1]});
        for (ops, want) in [
            (
                value!([{"op":"test","path":"/a/0","value":2}]),
                "testing value /a/0 failed: test failed",
            ),
            (
                value!([{"op":"remove","path":"/x"}]),
                "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
            ),
            (
                value!([{"op":"add","path":"/x/y","value":1}]),
                "add operation does not apply: doc is missing path: \"/x/y\": missing value",
            ),
            (
                value!([{"op":"add","path":"/a/5","value":1}]),
                "error in add for path: '/a/5': Unable to access invalid index: 5: invalid index referenced",
            ),
            (value!([{"op":"zap","path":"/a"}]), "Unexpected kind: zap"),
            (
                value!([{"op":"add"}]),
                "add operation failed to decode path: missing value",
            ),
        ] {
            assert_eq!(run(doc.clone(), ops).unwrap_err(), want);
        }
        let status = apply(&doc, &value!([{"op":"remove","path":"/x"}])).unwrap_err();
        assert_eq!((status.code, status.reason), (422, Reason::Invalid));
        assert_eq!(apply(&doc, &value!({})).unwrap_err().code, 400);
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(value!(1), |inner, _| value!({"a": inner}))
    }

    #[test]
    fn copies_double_until_the_limit() {
        let copy = |i: usize| value!({"op": "copy", "from": "/a", "path": (format!("/a/{i}"))});
        let operations = Value::Array((0..40).map(copy).collect());
        let why = run(value!({"a": {"text": "0123456789"}}), operations.clone()).unwrap_err();
        assert!(why.starts_with("Unable to complete the copy"), "{why}");
        let status = apply(&value!({"a": {"text": "0123456789"}}), &operations).unwrap_err();
        assert_eq!((status.code, status.reason), (422, Reason::Invalid));
    }

    #[test]
    fn nothing_gets_deeper_than_what_can_be_read() {
        let deep = "/a".repeat(300);
        let doc = || value!({"a": nested(300), "b": nested(99), "c": nested(100)});
        for op in ["move", "copy"] {
            let op = |from| value!([{"op": op, "from": from, "path": (format!("{deep}/n"))}]);
            assert!(run(doc(), op("/b")).is_ok());
            assert_eq!(run(doc(), op("/c")).unwrap_err(), "exceeded max depth");
        }
        for op in ["add", "replace"] {
            let op = |levels| value!([{"op": op, "path": (deep.as_str()), "value": nested(levels)}]);
            assert!(run(doc(), op(100)).is_ok());
            assert_eq!(run(doc(), op(101)).unwrap_err(), "exceeded max depth");
        }
    }

    #[test]
    fn what_is_moved_again_and_again_is_looked_at_only_so_often() {
        let list = Value::Array((0..20_000).map(Value::from).collect());
        let there = value!({"op": "move", "from": "/a", "path": "/b/a"});
        let back = value!({"op": "move", "from": "/b/a", "path": "/a"});
        let operations: Vec<Value> = std::iter::repeat_n([there, back], 1000).flatten().collect();
        let why = run(value!({"a": list, "b": {}}), Value::Array(operations)).unwrap_err();
        assert_eq!(why, "too much is moved");
    }
}
