//! Objects as tables: what `kubectl get` prints.

use super::negotiate::Output;
use keelson_api::{ApiError, ApiResult, Map, Object, Value};
use keelson_registry::ResourceDef;
use keelson_registry::codec::partial_metadata;

/// Checks `includeObject`.
pub fn check_include(include: &str) -> ApiResult<()> {
    if matches!(include, "" | "Metadata" | "Object" | "None") {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "Unable to convert to Table as requested: includeObject: Invalid value: {include:?}: must be 'Metadata', 'Object', 'None', or empty"
    )))
}

/// A `meta.k8s.io Table` of the objects, with or without the columns' definitions.
pub fn table(
    def: &ResourceDef,
    objects: Vec<Object>,
    out: Output,
    include: &str,
    version: &str,
    headers: bool,
) -> ApiResult<Value> {
    check_include(include)?;
    let now = keelson_clock::now();
    let rows: Vec<Value> = objects.into_iter().map(|o| row(def, o, out, include, now)).collect();
    let mut table = Map::new();
    table.push("apiVersion", out.meta_version());
    table.push("columnDefinitions", if headers { columns(def) } else { Value::Null });
    table.push("kind", "Table");
    let version = Some(("resourceVersion", version)).filter(|(_, version)| !version.is_empty());
    table.push("metadata", version.into_iter().collect::<Map>());
    table.push("rows", rows);
    Ok(table.into())
}

/// The columns' definitions.
pub fn columns(def: &ResourceDef) -> Value {
    def.columns
        .columns
        .iter()
        .map(|c| c.to_value())
        .collect::<Vec<_>>()
        .into()
}

/// A row without its object. Cells don't look at managed fields.
pub fn cells(def: &ResourceDef, object: &Object, now: jiff::Timestamp) -> Map {
    let mut row = Map::new();
    row.push("cells", def.columns.cells.cells(object, now));
    let conditions = def.columns.cells.conditions(object);
    if !conditions.is_empty() {
        row.push("conditions", conditions);
    }
    row
}

pub fn row(def: &ResourceDef, object: Object, out: Output, include: &str, now: jiff::Timestamp) -> Value {
    let mut row = cells(def, &object, now);
    let shown = match include {
        "Object" => Value::from(object),
        "None" => Value::Null,
        _ => partial_metadata(&object, out.meta_version()).into(),
    };
    row.push("object", shown);
    row.into()
}
