//! Small hand-built schemas for the unit tests of this crate.

use keelson_api::schema::{Field, FieldType, ListType, Omit, PatchStrategy, Schema, SchemaRef, TypeDef, TypeId};
use keelson_api::{Str, Value};
use std::sync::Arc;

/// Builds a schema a type at a time.
#[derive(Default)]
pub struct Builder(Schema);

pub fn field(name: &str, ty: FieldType) -> Field {
    Field {
        name: name.into(),
        ty,
        omit: Omit::Empty,
        ..Field::default()
    }
}

pub trait FieldExt: Sized {
    fn never(self) -> Self;
    fn pointer(self) -> Self;
    fn map_list(self, keys: &[&str]) -> Self;
    fn set(self) -> Self;
    fn merge(self, key: &str) -> Self;
    fn default_to(self, v: impl Into<Value>) -> Self;
    fn atomic_map(self) -> Self;
}
impl FieldExt for Field {
    fn never(mut self) -> Self {
        self.omit = Omit::Never;
        self
    }
    fn pointer(mut self) -> Self {
        self.pointer = true;
        self
    }
    fn map_list(mut self, keys: &[&str]) -> Self {
        self.list_type = ListType::Map;
        self.list_map_keys = keys.iter().map(|k| Str::from(*k)).collect();
        self
    }
    fn set(mut self) -> Self {
        self.list_type = ListType::Set;
        self
    }
    fn merge(mut self, key: &str) -> Self {
        self.patch_strategy = PatchStrategy {
            merge: true,
            ..PatchStrategy::default()
        };
        self.patch_merge_key = key.into();
        self
    }
    fn default_to(mut self, v: impl Into<Value>) -> Self {
        self.default = Some(v.into());
        self
    }
    fn atomic_map(mut self) -> Self {
        self.map_atomic = true;
        self
    }
}

impl Builder {
    pub fn add(&mut self, name: &str, mut fields: Vec<Field>) -> TypeId {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let id = TypeId(self.0.types.len() as u32);
        self.0.types.push(TypeDef {
            name: name.into(),
            fields,
            ..TypeDef::default()
        });
        self.0.by_name.insert(name.into(), id);
        id
    }
    pub fn finish(self, ty: TypeId) -> SchemaRef {
        SchemaRef {
            schema: Arc::new(self.0),
            ty,
        }
    }
}

pub fn list(el: FieldType) -> FieldType {
    FieldType::List(Box::new(el))
}
pub fn map(el: FieldType) -> FieldType {
    FieldType::Map(Box::new(el))
}

/// Something between a Pod and a Deployment, with one of each kind of field.
pub fn pod_like() -> SchemaRef {
    use FieldType::*;
    let mut b = Builder::default();
    let meta = b.add(
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
        vec![
            field("name", String),
            field("namespace", String),
            field("uid", String),
            field("resourceVersion", String),
            field("generation", Int64),
            field("creationTimestamp", Time).never(),
            field("labels", map(String)),
            field("annotations", map(String)),
            field("finalizers", list(String)).set().merge(""),
            field("managedFields", list(Any)),
        ],
    );
    let port = b.add(
        "io.k8s.api.core.v1.ContainerPort",
        vec![
            field("name", String),
            field("containerPort", Int32).never(),
            field("protocol", String).default_to("TCP"),
        ],
    );
    let env = b.add(
        "io.k8s.api.core.v1.EnvVar",
        vec![field("name", String).never(), field("value", String)],
    );
    let container = b.add(
        "io.k8s.api.core.v1.Container",
        vec![
            field("name", String).never(),
            field("image", String),
            field("command", list(String)),
            field("ports", list(Struct(port)))
                .map_list(&["containerPort", "protocol"])
                .merge("containerPort"),
            field("env", list(Struct(env))).map_list(&["name"]).merge("name"),
            field("limits", map(Quantity)),
        ],
    );
    let rolling = b.add(
        "io.k8s.api.apps.v1.RollingUpdate",
        vec![field("maxSurge", IntOrString).pointer()],
    );
    let strategy = b.add(
        "io.k8s.api.apps.v1.Strategy",
        vec![field("type", String), field("rollingUpdate", Struct(rolling)).pointer()],
    );
    let mut strategy_field = field("strategy", Struct(strategy));
    strategy_field.patch_strategy = PatchStrategy {
        retain_keys: true,
        ..PatchStrategy::default()
    };
    let spec = b.add(
        "io.k8s.api.core.v1.PodSpec",
        vec![
            field("replicas", Int32).pointer(),
            field("paused", Bool),
            field("containers", list(Struct(container)))
                .never()
                .map_list(&["name"])
                .merge("name"),
            field("nodeSelector", map(String)).atomic_map(),
            field("tolerations", list(Any)),
            strategy_field,
        ],
    );
    let status = b.add(
        "io.k8s.api.core.v1.PodStatus",
        vec![field("phase", String), field("startTime", Time).pointer()],
    );
    let pod = b.add(
        "io.k8s.api.core.v1.Pod",
        vec![
            field("apiVersion", String),
            field("kind", String),
            field("metadata", Struct(meta)),
            field("spec", Struct(spec)),
            field("status", Struct(status)),
        ],
    );
    b.finish(pod)
}
