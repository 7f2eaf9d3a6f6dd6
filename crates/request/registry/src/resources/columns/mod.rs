//! What `kubectl get` shows of each built-in kind: one table a group of kinds, a column a line.
//!
//! A column is its definition and the function that computes its cell. Nothing here decides anything but words.

mod cells;
mod cluster;
mod pod;
mod policy;
mod workloads;

use crate::columns::{Cells, Column, Columns};
use cells::{Col, Row};
use keelson_api::codec::proto::Only;
use keelson_api::{Object, SchemaRef, Value};
use std::sync::{Arc, OnceLock};

/// The columns of a built-in kind; name and creation time where upstream has none of its own.
pub fn of(group: &str, kind: &str) -> Columns {
    match table(group, kind) {
        Some(table) => Columns {
            columns: table
                .iter()
                .map(|c| Column::new(c.name, c.kind, c.format, c.priority, ""))
                .collect(),
            cells: Arc::new(Listed {
                table,
                pod: group.is_empty() && kind == "Pod",
                only: OnceLock::new(),
            }),
        },
        None => Columns::default(),
    }
}

fn table(group: &str, kind: &str) -> Option<&'static [Col]> {
    match group {
        "" => cluster::core(kind)
            .or_else(|| workloads::core(kind))
            .or_else(|| (kind == "Pod").then_some(pod::POD)),
        "apps" | "batch" | "autoscaling" | "policy" => workloads::groups(group, kind),
        _ => cluster::groups(group, kind).or_else(|| policy::groups(group, kind)),
    }
}

#[derive(Debug)]
struct Listed {
    table: &'static [Col],
    pod: bool,
    only: OnceLock<Option<Only>>,
}

impl Cells for Listed {
    fn cells(&self, object: &Object, now: jiff::Timestamp) -> Vec<Value> {
        let row = Row::new(object, now);
        self.table.iter().map(|c| (c.cell)(&row)).collect()
    }
    fn conditions(&self, object: &Object) -> Vec<Value> {
        if self.pod { pod::conditions(object) } else { Vec::new() }
    }
    fn looks_at(&self, schema: &SchemaRef) -> Option<&Only> {
        let only = || self.pod.then(|| Only::new(schema, pod::LOOKS_AT)).flatten();
        self.only.get_or_init(only).as_ref()
    }
}
