//! Tables as `kubectl get` shows them: column definitions and the cells of a row.

use keelson_api::codec::proto::Only;
use keelson_api::{Map, Object, SchemaRef, Value};

/// A column's definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `date`, …
    pub kind: String,
    /// `name` marks the object's name.
    pub format: String,
    pub description: String,
    /// 0: always shown; more: in wide tables.
    pub priority: i32,
}

impl Column {
    pub fn new(name: &str, kind: &str, format: &str, priority: i32, description: &str) -> Self {
        Column {
            name: name.into(),
            kind: kind.into(),
            format: format.into(),
            description: description.into(),
            priority,
        }
    }
    pub fn to_value(&self) -> Value {
        let mut m = Map::new();
        m.push("description", self.description.as_str());
        m.push("format", self.format.as_str());
        m.push("name", self.name.as_str());
        m.push("priority", i64::from(self.priority));
        m.push("type", self.kind.as_str());
        m.into()
    }
}

/// Computes the cells of an object, in the order of the columns.
pub trait Cells: Send + Sync + std::fmt::Debug {
    fn cells(&self, object: &Object, now: jiff::Timestamp) -> Vec<Value>;
    /// `rows[].conditions` (completed pods).
    fn conditions(&self, _object: &Object) -> Vec<Value> {
        Vec::new()
    }
    /// The fields that both look at, where those are few; `schema` is the kind's.
    fn looks_at(&self, _schema: &SchemaRef) -> Option<&Only> {
        None
    }
}

/// The table form of a kind.
#[derive(Clone, Debug)]
pub struct Columns {
    pub columns: Vec<Column>,
    pub cells: std::sync::Arc<dyn Cells>,
}

/// Name and creation time: for kinds without columns of their own.
#[derive(Debug)]
struct NameAndCreation;

impl Cells for NameAndCreation {
    fn cells(&self, object: &Object, _now: jiff::Timestamp) -> Vec<Value> {
        vec![object.name().into(), object.creation_timestamp().into()]
    }
}

impl Default for Columns {
    fn default() -> Self {
        Columns {
            columns: vec![
                Column::new("Name", "string", "name", 0, "Name must be unique within a namespace."),
                Column::new("Created At", "date", "", 0, "When the server created the object."),
            ],
            cells: std::sync::Arc::new(NameAndCreation),
        }
    }
}
