//! The vocabulary of the cluster, without I/O.
//!
//! * [`value`]: the one dynamic value every object in the server is made of.
//! * [`object`]: a value that is an API object, with accessors for its metadata.
//! * [`schema`]: what is known of a type: names, protobuf numbers, defaults, list types.
//! * [`causes`]: what is wrong with an object, bounded.
//! * [`status`]: the error every layer of the server speaks: a `metav1.Status`.
//! * [`resources`], [`builtin`]: what is served by default, and the schema of it.
//! * [`quantity`], [`time`], [`duration`]: scalars with a form of their own.
//! * [`codec`]: JSON, YAML and protobuf.
//! * [`accept`]: what `Accept` headers say.
//! * [`gates`]: the feature gates of 1.37, and how each stands here.
//! * [`gvk`]: groups, versions, kinds and resources.
//!
//! Nothing here knows HTTP, the store or any single kind.

pub mod accept;
pub mod builtin;
pub mod causes;
pub mod codec;
pub mod duration;
pub mod gates;
pub mod go_names;
pub mod gvk;
pub mod object;
pub mod quantity;
mod quote;
pub mod resources;
pub mod schema;
pub mod status;
pub mod time;
pub mod value;

pub use causes::Causes;
pub use gvk::{GroupKind, GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource};
pub use object::Object;
pub use quantity::{Quantity, QuantityError};
pub use quote::go_quote;
pub use schema::{Field, FieldType, Schema, SchemaRef, TypeDef, TypeId};
pub use status::{ApiError, ApiResult, Cause, Reason};
pub use time::Time;
pub use value::{Map, Str, Value};
