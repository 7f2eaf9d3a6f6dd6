//! One create/update/patch/delete for every kind: resource table, strategies, validation, columns.

pub mod admission;
pub mod apply;
pub mod codec;
pub mod columns;
pub mod context;
pub mod convert;
pub mod def;
pub mod engine;
pub mod internal;
pub mod managed;
pub mod meta;
pub mod options;
pub mod patch;
mod patched;
mod recent;
pub mod resources;
pub mod selection;
pub mod strategy;
pub mod table;
pub mod user;

pub use admission::{Admission, AdmitAll, Operation};
pub use context::{Cx, FieldValidation};
pub use def::{ResourceDef, StorageDef};
pub use engine::Engine;
pub use table::ResourceTable;
pub use user::UserInfo;
