//! Strategic merge patch: lists merged by key, with the directives `$patch`, `$retainKeys`, `$setElementOrder/…` and
//! `$deleteFromPrimitiveList/…`.
//!
//! The strategy and the merge key of a field come from the schema. Custom resources have none: callers refuse the
//! content type for them before they come here.

use super::json_patch;
use crate::go::go_value;
use keelson_api::codec::json;
use keelson_api::schema::{FieldType, PatchStrategy, Schema, SchemaRef, TypeDef};
use keelson_api::{ApiError, ApiResult, Map, Reason, Str, Value};
use std::collections::HashMap;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList";
const ORDER_PREFIX: &str = "$setElementOrder";

/// Applies a strategic merge patch to an object of the type.
pub fn apply(original: &Value, patch: &Value, schema: &SchemaRef) -> ApiResult<Value> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(ApiError::bad_request("invalid JSON document"));
    };
    let node = Node {
        schema: &schema.schema,
        kind: Kind::Struct(schema.def()),
    };
    merge_map(original.clone(), patch.clone(), node)
        .map(Value::Object)
        .map_err(refusal)
}

/// Upstream says of a few failures that the request is to blame, and of one kind nothing but that; all others are the server's.
fn refusal(why: String) -> ApiError {
    match why.as_str() {
        BAD_DELETION | BAD_RETAIN_KEYS | BAD_ORDER => ApiError::bad_request(why),
        LISTS_OF_LISTS => json_patch::unspecified(),
        _ => ApiError::new(Reason::Unknown, why),
    }
}

const BAD_DELETION: &str = "invalid patch format of primitive list";
const BAD_RETAIN_KEYS: &str = "invalid patch format of retainKeys";
const BAD_ORDER: &str = "invalid patch format of setElementOrder list";
const LISTS_OF_LISTS: &str = "lists of lists are not supported";

type Res<T> = Result<T, String>;

/// The type of the value being merged.
#[derive(Clone, Copy)]
struct Node<'a> {
    schema: &'a Schema,
    kind: Kind<'a>,
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Struct(&'a TypeDef),
    Map(&'a FieldType),
    /// Nothing is known below: merged by the defaults.
    Untyped,
    Scalar,
}

struct Meta<'a> {
    node: Node<'a>,
    strategy: PatchStrategy,
    key: &'a str,
}

impl<'a> Node<'a> {
    fn of(self, ty: &'a FieldType) -> Node<'a> {
        let kind = match ty {
            FieldType::Struct(id) => Kind::Struct(self.schema.get(*id)),
            FieldType::Map(v) => Kind::Map(v),
            FieldType::RawExtension | FieldType::Any | FieldType::FieldsV1 => Kind::Untyped,
            _ => Kind::Scalar,
        };
        Node { kind, ..self }
    }
    /// What is known of the member `key`; for a list, of its elements.
    fn lookup(self, key: &str, list: bool) -> Res<Meta<'a>> {
        let plain = |node| Meta {
            node,
            strategy: PatchStrategy::default(),
            key: "",
        };
        let (ty, strategy, merge_key) = match self.kind {
            Kind::Struct(def) => match (def.field(key), &def.additional) {
                (Some(f), _) => (&f.ty, f.patch_strategy, f.patch_merge_key.as_str()),
                (None, Some(ty)) => (ty, PatchStrategy::default(), ""),
                (None, None) => {
                    let name = def.name.rsplit('.').next().unwrap_or_default();
                    return Err(format!(
                        "unable to find api field in struct {name} for the json field \"{key}\""
                    ));
                }
            },
            Kind::Map(ty) => (ty, PatchStrategy::default(), ""),
            Kind::Untyped => return Ok(plain(self)),
            Kind::Scalar => {
                return Err("merging an object in json but data type is not struct, instead is: string".to_string());
            }
        };
        let ty = match ty {
            FieldType::List(el) if list => el,
            FieldType::ListOf(def) if list => &def.element,
            FieldType::RawExtension | FieldType::Any | FieldType::FieldsV1 => return Ok(plain(self.of(ty))),
            _ if list => return Err("expected slice or array type, but got: struct".to_string()),
            other => other,
        };
        Ok(Meta {
            node: self.of(ty),
            strategy,
            key: merge_key,
        })
    }
    fn name(self) -> &'static str {
        match self.kind {
            Kind::Struct(_) => "struct",
            Kind::Map(_) => "map",
            Kind::Untyped => "interface",
            Kind::Scalar => "string",
        }
    }
}

fn no_merge_key(m: &Value, key: &str) -> String {
    format!("map: {} does not contain declared merge key: {key}", go_value(m))
}

fn bad_type(expected: &str, actual: &Value) -> String {
    format!("expected a {expected}, but received a {}", go_type(actual))
}

fn go_type(v: &Value) -> &'static str {
    match v {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int64",
        Value::Float(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// Strips a prefix such as `$setElementOrder/` off a key.
fn directive_target<'a>(key: &'a str, prefix: &str, what: &str) -> Res<&'a str> {
    key.strip_prefix(prefix)
        .and_then(|k| k.strip_prefix('/'))
        .ok_or_else(|| what.to_string())
}

fn merge_map(mut original: Map, mut patch: Map, node: Node) -> Res<Map> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Map::new()),
            _ => Err(format!(
                "unknown patch type: {} in map: {}",
                go_value(directive),
                go_value(&Value::Object(patch.clone()))
            )),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_order(&mut original, &mut patch, node)?;

    for (key, new) in patch {
        let (key, deleting) = if key.starts_with(DELETE_PREFIX) {
            let target = directive_target(&key, DELETE_PREFIX, BAD_DELETION)?;
            (Str::from(target), true)
        } else {
            (key, false)
        };
        if new.is_null() {
            original.remove(&key);
            continue;
        }
        match (original.remove(&key), new) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let meta = node.lookup(&key, false)?;
                let merged = if meta.strategy.replace {
                    new
                } else {
                    merge_map(old, new, meta.node)?
                };
                original.insert(key, merged);
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                let meta = node.lookup(&key, true)?;
                let merged = if meta.strategy.merge || deleting {
                    merge_list(old, new, &meta, deleting)?
                } else {
                    new
                };
                original.insert(key, merged);
            }
            (old, new) => {
                // Absent, or of another type: the patch's value is taken; a deletion from nothing changes nothing.
                let value = if deleting {
                    old
                } else {
                    without_directives(without_nulls(new))
                };
                if let Some(value) = value {
                    original.insert(key, value);
                }
            }
        }
    }
    Ok(original)
}

fn without_nulls(v: Value) -> Value {
    match v {
        Value::Object(m) => Value::Object(
            m.into_iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k, without_nulls(v)))
                .collect(),
        ),
        Value::Array(a) => Value::Array(a.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// `None` when the value itself is a directive.
fn without_directives(v: Value) -> Option<Value> {
    match v {
        Value::Object(m) if m.contains_key(DIRECTIVE) => None,
        Value::Object(m) => Some(Value::Object(
            m.into_iter()
                .filter_map(|(k, v)| without_directives(v).map(|v| (k, v)))
                .collect(),
        )),
        Value::Array(a) => Some(Value::Array(a.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

fn retain_keys(original: &mut Map, patch: &mut Map) -> Res<()> {
    let bad = || BAD_RETAIN_KEYS.to_string();
    let Some(list) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let list = list.as_array().ok_or_else(bad)?;
    let listed = |key: &str| list.iter().any(|v| v.as_str() == Some(key));
    for (key, value) in patch.iter() {
        if value.is_null() || key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX) {
            continue;
        }
        if !listed(key) {
            return Err(bad());
        }
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// Merges each list that has an ordering directive, and takes both out of the patch.
fn set_element_order(original: &mut Map, patch: &mut Map, node: Node) -> Res<()> {
    let keys: Vec<Str> = patch.keys().filter(|k| k.starts_with(ORDER_PREFIX)).cloned().collect();
    for key in keys {
        let Some(order) = patch.remove(&key) else { continue };
        let Value::Array(order) = order else {
            return Err(bad_type("[]interface {}", &order));
        };
        let field = directive_target(&key, ORDER_PREFIX, BAD_ORDER)?;
        let as_list = |v: Option<Value>| match v {
            None => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(other) => Err(bad_type("[]interface {}", &other)),
        };
        let had = as_list(original.get(field).cloned())?;
        let new = as_list(patch.get(field).cloned())?;
        let meta = node.lookup(field, true)?;
        check_order(new.as_deref().unwrap_or_default(), &order, meta.key)?;
        let live = had.clone().unwrap_or_default();
        let kind_of = [live.clone(), new.clone().unwrap_or_default()];
        let merged = match (had, new) {
            (Some(had), None) => had,
            (None, Some(new)) => new.into_iter().filter_map(without_directives).collect(),
            (Some(had), Some(new)) => {
                if meta.strategy.merge {
                    merge_list(had, new, &meta, false)?
                } else {
                    new
                }
            }
            (None, None) => continue,
        };
        let (in_order, server_only) = partition(merged, &order, meta.key)?;
        element_kind(&kind_of)?;
        let all = normalise(in_order, server_only, &order, &live, meta.key);
        original.insert(field, all);
        patch.remove(field);
    }
    Ok(())
}

/// The patch's items must appear in the order list, in its order.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Res<()> {
    if order.is_empty() || patch.is_empty() {
        return Ok(());
    }
    let is_delete = |v: &Value| v.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
    let items: Vec<&Value> = patch.iter().filter(|v| key.is_empty() || !is_delete(v)).collect();
    let (mut p, mut o) = (0, 0);
    while p < items.len() && o < order.len() {
        if items[p].get(DIRECTIVE).is_some() {
            p += 1;
            continue;
        }
        if same_key(items[p], &order[o], key)? {
            p += 1;
        }
        o += 1;
    }
    if p < items.len() && o >= order.len() {
        return Err(format!(
            "The order in patch list:\n{}\n doesn't match {ORDER_PREFIX} list:\n{}\n",
            go_value(&Value::Array(patch.to_vec())),
            go_value(&Value::Array(order.to_vec()))
        ));
    }
    Ok(())
}

fn same_key(a: &Value, b: &Value, key: &str) -> Res<bool> {
    if key.is_empty() {
        return Ok(a == b);
    }
    for v in [a, b] {
        let Value::Object(m) = v else {
            return Err(bad_type("map[string]interface {}", v));
        };
        if !m.contains_key(key) {
            return Err(no_merge_key(v, key));
        }
    }
    Ok(a.get(key) == b.get(key))
}

/// All elements must be of one type, not lists; whether they are maps.
fn element_kind(lists: &[Vec<Value>; 2]) -> Res<bool> {
    let mut all = lists.iter().flatten();
    let Some(first) = all.next() else {
        return Err("no elements in any of the given slices".into());
    };
    if matches!(first, Value::Array(_)) {
        return Err(LISTS_OF_LISTS.into());
    }
    if all.any(|v| go_type(v) != go_type(first)) {
        let shown: Vec<String> = lists.iter().map(|l| go_value(&Value::Array(l.clone()))).collect();
        return Err(format!("list element types are not identical: [{}]", shown.join(" ")));
    }
    Ok(matches!(first, Value::Object(_)))
}

fn merge_list(original: Vec<Value>, patch: Vec<Value>, meta: &Meta, deleting: bool) -> Res<Vec<Value>> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let both = [original, patch];
    let maps = element_kind(&both)?;
    let [mut original, mut patch] = both;
    let merged = if !maps {
        if deleting {
            original.retain(|v| !patch.contains(v));
            return Ok(original);
        }
        let mut all = original.clone();
        all.extend(patch.iter().cloned());
        deduplicate(all)
    } else {
        if meta.key.is_empty() {
            return Err(format!("cannot merge lists without merge key for {}", meta.node.name()));
        }
        (original, patch) = list_directives(original, patch, meta.key)?;
        let mut merged = original.clone();
        let mut places = Places::of(&merged, meta.key);
        for item in &patch {
            let Value::Object(new) = item else {
                return Err(bad_type("map[string]interface {}", item));
            };
            if !new.contains_key(meta.key) {
                return Err(no_merge_key(item, meta.key));
            }
            match places.get(item) {
                Some(i) => {
                    let Value::Object(old) = std::mem::take(&mut merged[i]) else {
                        continue;
                    };
                    merged[i] = Value::Object(merge_map(old, new.clone(), meta.node)?);
                }
                None => {
                    places.add(item, merged.len());
                    merged.push(item.clone());
                }
            }
        }
        merged
    };
    let (in_patch, server_only) = partition(merged, &patch, meta.key)?;
    Ok(normalise(in_patch, server_only, &patch, &original, meta.key))
}

/// Handles elements that are directives; gives back what is left of both lists.
fn list_directives(mut original: Vec<Value>, patch: Vec<Value>, key: &str) -> Res<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        let Some(directive) = item.get(DIRECTIVE).cloned() else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let Some(want) = item.get(key) else {
                    return Err(no_merge_key(&item, key));
                };
                while let Some(i) = find(&original, key, want)? {
                    original.remove(i);
                }
            }
            Some("replace") => replace = true,
            Some("merge") => return Err("merging lists cannot yet be specified in the patch".into()),
            _ => {
                return Err(format!(
                    "unknown patch type: {} in map: {}",
                    go_value(&directive),
                    go_value(&item)
                ));
            }
        }
    }
    Ok(if replace {
        (plain, Vec::new())
    } else {
        (original, plain)
    })
}

fn find(list: &[Value], key: &str, want: &Value) -> Res<Option<usize>> {
    for (i, v) in list.iter().enumerate() {
        let Value::Object(m) = v else {
            return Err(format!("value for key {i} is not a map"));
        };
        if m.get(key) == Some(want) {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

/// Removes duplicates the way upstream does: the last element takes the place of a duplicate.
fn deduplicate(mut all: Vec<Value>) -> Vec<Value> {
    let mut i = 0;
    while i + 1 < all.len() {
        let mut j = i + 1;
        while j < all.len() {
            if all[i] == all[j] {
                all.swap_remove(j);
            } else {
                j += 1;
            }
        }
        i += 1;
    }
    all
}

/// Splits into items that occur in `by` and the others.
fn partition(list: Vec<Value>, by: &[Value], key: &str) -> Res<(Vec<Value>, Vec<Value>)> {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    let places = Places::of(by, key);
    let no_map = by.iter().position(|v| !matches!(v, Value::Object(_)));
    for v in list {
        if !key.is_empty() {
            let Value::Object(m) = &v else {
                return Err(bad_type("map[string]interface {}", &v));
            };
            if !m.contains_key(key) {
                return Err(no_merge_key(&v, key));
            }
        }
        match (places.get(&v), no_map) {
            (Some(_), _) => inside.push(v),
            (None, Some(i)) if !key.is_empty() => return Err(format!("value for key {i} is not a map")),
            (None, _) => outside.push(v),
        }
    }
    Ok((inside, outside))
}

/// Where the items of a list stand, by their merge keys (or by themselves): lists of a client may be long.
struct Places<'a> {
    key: &'a str,
    first: HashMap<Vec<u8>, usize>,
}

impl<'a> Places<'a> {
    fn of(list: &[Value], key: &'a str) -> Self {
        let first = HashMap::with_capacity(list.len());
        let mut places = Places { key, first };
        list.iter().enumerate().for_each(|(i, v)| places.add(v, i));
        places
    }
    fn name(&self, item: &Value) -> Option<Vec<u8>> {
        let by = if self.key.is_empty() { item } else { item.get(self.key)? };
        Some(json::encode(by))
    }
    fn add(&mut self, item: &Value, place: usize) {
        if let Some(name) = self.name(item) {
            self.first.entry(name).or_insert(place);
        }
    }
    fn get(&self, item: &Value) -> Option<usize> {
        self.first.get(&self.name(item)?).copied()
    }
}

/// Sorts each part by its order list, then puts the server's own items among the patch's as the live list had them.
fn normalise(
    mut patch: Vec<Value>,
    mut server: Vec<Value>,
    patch_order: &[Value],
    live: &[Value],
    key: &str,
) -> Vec<Value> {
    let (patch_order, live) = (Places::of(patch_order, key), Places::of(live, key));
    let rank = |order: &Places, v: &Value| order.get(v).unwrap_or(usize::MAX);
    patch.sort_by_cached_key(|v| rank(&patch_order, v));
    server.sort_by_cached_key(|v| rank(&live, v));
    let mut out = Vec::with_capacity(patch.len() + server.len());
    let mut patch = patch.into_iter().peekable();
    let mut server = server.into_iter().peekable();
    loop {
        let take_server = match (server.peek(), patch.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(s), Some(p)) => match (live.get(s), live.get(p)) {
                (Some(s), Some(p)) => s < p,
                _ => false,
            },
        };
        out.extend(if take_server { server.next() } else { patch.next() });
    }
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
