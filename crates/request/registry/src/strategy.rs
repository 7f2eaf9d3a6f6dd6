//! What is particular to a kind, in the places where upstream's strategies speak.
//!
//! Built-in kinds are [`Behaviour`]s: tables of functions with defaults, one constant a kind under `resources`. Custom
//! resources implement [`Strategy`] over their CRD. All functions see objects in the version of the request.

use crate::admission::{Admission, Operation};
use crate::context::Cx;
use crate::engine::Engine;
use crate::options::DeleteOptions;
use crate::resources::withheld::{self, Withheld};
use async_trait::async_trait;
use keelson_api::{ApiResult, Cause, FieldType, Object, Value};
use keelson_machinery::canonical;
use std::fmt;
use std::sync::Arc;

/// What the garbage collector does by default with an owner's dependents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GcPolicy {
    #[default]
    Delete,
    Orphan,
    /// Events: never owns anything.
    Unsupported,
}

/// Undoes or completes what a hook reserved, once the write has succeeded or failed.
#[async_trait]
pub trait Finish: Send + Sync {
    async fn finish(self: Box<Self>, engine: &Engine, success: bool);
}

/// A kind's part in the engine's work.
#[async_trait]
pub trait Strategy: Send + Sync + fmt::Debug {
    /// Defaults that depend on other fields; constant ones stand in the schema.
    fn default(&self, _obj: &mut Object) {}
    fn prepare_create(&self, _cx: &Cx, _obj: &mut Object) {}
    fn prepare_update(&self, _cx: &Cx, _new: &mut Object, _old: &Object) {}
    fn validate(&self, _cx: &Cx, _obj: &Object) -> Vec<Cause> {
        Vec::new()
    }
    fn validate_update(&self, _cx: &Cx, _new: &Object, _old: &Object) -> Vec<Cause> {
        Vec::new()
    }
    fn warnings(&self, _cx: &Cx, _new: &Object, _old: Option<&Object>) -> Vec<String> {
        Vec::new()
    }
    fn canonicalize(&self, _obj: &mut Object) {}
    fn allow_create_on_update(&self) -> bool {
        false
    }
    fn allow_unconditional_update(&self) -> bool {
        true
    }
    fn gc_policy(&self) -> GcPolicy {
        GcPolicy::Delete
    }
    /// `None`: the kind knows no grace. Otherwise whether this deletion is graceful, `options` holding the period.
    fn graceful(&self, _obj: &Object, _options: &mut DeleteOptions) -> Option<bool> {
        None
    }
    /// A kind's own word on whether an update that leaves no finalizers deletes the object.
    fn delete_during_update(&self, _new: &Object, _old: &Object) -> bool {
        true
    }
    /// DELETE answers with the object rather than a Status.
    fn returns_deleted(&self) -> bool {
        false
    }
    /// The store forgets the object after a time (events).
    fn expires(&self) -> bool {
        false
    }
    /// Before a write is committed: allocation of addresses and ports.
    async fn begin(
        &self,
        _engine: &Engine,
        _cx: &Cx,
        _op: Operation,
        _new: &mut Object,
        _old: Option<&Object>,
    ) -> ApiResult<Option<Box<dyn Finish>>> {
        Ok(None)
    }
    /// After an object is gone.
    async fn after_delete(&self, _engine: &Engine, _cx: &Cx, _obj: &Object) {}
    /// A kind whose deletion is its own (namespaces); `None`: the engine's.
    async fn delete(
        &self,
        _engine: &Engine,
        _cx: &Cx,
        _admit: &dyn Admission,
        _options: &DeleteOptions,
    ) -> Option<ApiResult<crate::engine::Deleted>> {
        None
    }
}

/// How `metadata.generation` follows the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The kind has none.
    Untouched,
    /// 1 at creation, one more when anything named changes.
    Follows(&'static [&'static str]),
    /// Follows everything but metadata, and labels and annotations (EndpointSlice).
    Everything,
}

/// The strategy of a built-in kind as a table of facts and functions.
pub struct Behaviour {
    /// The kind has a status of its own: cleared at creation, kept by updates, set through `/status` only.
    pub status: bool,
    /// What an update through `/status` may not change besides everything outside `status`: members of metadata.
    pub status_keeps: &'static [&'static str],
    pub generation: Generation,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    pub gc: GcPolicy,
    pub returns_deleted: bool,
    pub default: fn(&mut Object),
    /// What isn't kept of what clients say.
    pub withheld: Withheld,
    pub prepare_create: fn(&Cx, &mut Object),
    pub prepare_update: fn(&Cx, &mut Object, &Object),
    /// After the generic part of an update through `/status`.
    pub prepare_status: fn(&Cx, &mut Object, &Object),
    /// For subresources that write other parts than the object's or the status.
    pub prepare_sub: &'static [(&'static str, fn(&Cx, &mut Object, &Object))],
    pub validate: fn(&Cx, &Object) -> Vec<Cause>,
    pub validate_update: fn(&Cx, &Object, &Object) -> Vec<Cause>,
    pub validate_status: fn(&Cx, &Object, &Object) -> Vec<Cause>,
    pub warnings: fn(&Cx, &Object, Option<&Object>) -> Vec<String>,
    pub canonicalize: fn(&mut Object),
    pub graceful: Option<fn(&Object, &mut DeleteOptions) -> bool>,
    pub delete_during_update: fn(&Object, &Object) -> bool,
    pub expires: bool,
    pub hooks: Option<&'static dyn Hooks>,
}

/// The parts of a strategy that do I/O.
#[async_trait]
pub trait Hooks: Send + Sync {
    async fn begin(
        &self,
        _engine: &Engine,
        _cx: &Cx,
        _op: Operation,
        _new: &mut Object,
        _old: Option<&Object>,
    ) -> ApiResult<Option<Box<dyn Finish>>> {
        Ok(None)
    }
    async fn after_delete(&self, _engine: &Engine, _cx: &Cx, _obj: &Object) {}
    async fn delete(
        &self,
        _engine: &Engine,
        _cx: &Cx,
        _admit: &dyn Admission,
        _options: &DeleteOptions,
    ) -> Option<ApiResult<crate::engine::Deleted>> {
        None
    }
}

impl Behaviour {
    pub const DEFAULT: Behaviour = Behaviour {
        status: false,
        status_keeps: &[],
        generation: Generation::Untouched,
        create_on_update: false,
        unconditional_update: true,
        gc: GcPolicy::Delete,
        returns_deleted: false,
        default: |_| (),
        withheld: &[],
        prepare_create: |_, _| (),
        prepare_update: |_, _, _| (),
        prepare_status: |_, _, _| (),
        prepare_sub: &[],
        validate: |_, _| Vec::new(),
        validate_update: |_, _, _| Vec::new(),
        validate_status: |_, _, _| Vec::new(),
        warnings: |_, _, _| Vec::new(),
        canonicalize: |_| (),
        graceful: None,
        delete_during_update: |_, _| true,
        expires: false,
        hooks: None,
    };
    /// A kind with `spec`, `status` and a generation that follows the spec.
    pub const WITH_STATUS: Behaviour = Behaviour {
        status: true,
        generation: Generation::Follows(&["spec"]),
        ..Behaviour::DEFAULT
    };
}

/// A [`Behaviour`] as a strategy.
pub struct BuiltIn(pub &'static Behaviour);

impl fmt::Debug for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("BuiltIn")
    }
}

pub fn built_in(b: &'static Behaviour) -> Arc<dyn Strategy> {
    Arc::new(BuiltIn(b))
}

impl BuiltIn {
    /// An update through `/status` changes the status and nothing else.
    fn keep_all_but_status(&self, new: &mut Object, old: &Object) {
        let keys: Vec<_> = new
            .keys()
            .filter(|k| !matches!(k.as_str(), "status" | "metadata" | "apiVersion" | "kind"))
            .cloned()
            .collect();
        for key in keys {
            if !old.contains_key(&key) {
                new.remove(&key);
            }
        }
        for (key, value) in old.iter() {
            if !matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind") {
                new.insert(key.clone(), value.clone());
            }
        }
        for key in self.0.status_keeps {
            match *key {
                // All of it but what the engine itself keeps (managed fields, revision).
                "*" => {
                    for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
                        restore(new.meta_mut(), old.meta(), key);
                    }
                }
                key => restore(new.meta_mut(), old.meta(), key),
            }
        }
    }
}

/// The status of an object that has none yet, as an empty struct is written.
pub fn zero_status(cx: &Cx, obj: &mut Object) {
    let zero = cx.def.schema.def().field("status").and_then(|f| match &f.ty {
        FieldType::Struct(id) => Some(canonical::fill_zero(&cx.def.schema.at(*id))),
        _ => None,
    });
    match zero {
        Some(v) => {
            obj.insert("status", v);
        }
        None => {
            obj.remove("status");
        }
    }
}

/// Puts `key` back to what it was.
pub fn restore(new: &mut keelson_api::Map, old: Option<&keelson_api::Map>, key: &str) {
    match old.and_then(|o| o.get(key)) {
        Some(v) => {
            new.insert(key, v.clone());
        }
        None => {
            new.remove(key);
        }
    }
}

/// Equality in which an absent list and an empty one are the same. What is canonical has an empty map only where that is another
/// thing than none.
pub fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    fn empty(v: Option<&Value>) -> bool {
        match v {
            None | Some(Value::Null) => true,
            Some(Value::Array(a)) => a.is_empty(),
            _ => false,
        }
    }
    match (a, b) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            x == y
                || x.iter().all(|(k, v)| same(Some(v), y.get(k)))
                    && y.iter().all(|(k, v)| x.contains_key(k) || empty(Some(v)))
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(Some(a), Some(b)))
        }
        (a, b) => a == b || empty(a) && empty(b),
    }
}

#[async_trait]
impl Strategy for BuiltIn {
    fn default(&self, obj: &mut Object) {
        (self.0.default)(obj);
    }
    fn prepare_create(&self, cx: &Cx, obj: &mut Object) {
        if self.0.status {
            zero_status(cx, obj);
        }
        if self.0.generation != Generation::Untouched {
            obj.meta_mut().insert("generation", 1i64);
        }
        withheld::drop(self.0.withheld, obj, None);
        (self.0.prepare_create)(cx, obj);
    }
    fn prepare_update(&self, cx: &Cx, new: &mut Object, old: &Object) {
        withheld::drop(self.0.withheld, new, Some(old));
        if let Some((_, prepare)) = self
            .0
            .prepare_sub
            .iter()
            .find(|(name, _)| *name == cx.subresource.as_str())
        {
            return prepare(cx, new, old);
        }
        match cx.subresource.as_str() {
            "status" => {
                self.keep_all_but_status(new, old);
                (self.0.prepare_status)(cx, new, old);
            }
            _ => {
                if self.0.status {
                    restore(&mut new.0, Some(&old.0), "status");
                }
                (self.0.prepare_update)(cx, new, old);
                let changed = match self.0.generation {
                    Generation::Untouched => false,
                    Generation::Follows(keys) => keys.iter().any(|path| {
                        let path: Vec<&str> = path.split('.').collect();
                        !same(new.at(&path), old.at(&path))
                    }),
                    Generation::Everything => {
                        let outside = |a: &Object, b: &Object| {
                            a.iter()
                                .all(|(k, v)| matches!(k.as_str(), "metadata" | "status") || same(Some(v), b.get(k)))
                        };
                        !(outside(new, old)
                            && outside(old, new)
                            && same(new.at(&["metadata", "labels"]), old.at(&["metadata", "labels"]))
                            && same(
                                new.at(&["metadata", "annotations"]),
                                old.at(&["metadata", "annotations"]),
                            ))
                    }
                };
                if changed {
                    new.meta_mut().insert("generation", old.generation() + 1);
                }
            }
        }
    }
    fn validate(&self, cx: &Cx, obj: &Object) -> Vec<Cause> {
        (self.0.validate)(cx, obj)
    }
    fn validate_update(&self, cx: &Cx, new: &Object, old: &Object) -> Vec<Cause> {
        if cx.subresource == "status" {
            (self.0.validate_status)(cx, new, old)
        } else {
            (self.0.validate_update)(cx, new, old)
        }
    }
    fn warnings(&self, cx: &Cx, new: &Object, old: Option<&Object>) -> Vec<String> {
        (self.0.warnings)(cx, new, old)
    }
    fn canonicalize(&self, obj: &mut Object) {
        (self.0.canonicalize)(obj);
    }
    fn allow_create_on_update(&self) -> bool {
        self.0.create_on_update
    }
    fn allow_unconditional_update(&self) -> bool {
        self.0.unconditional_update
    }
    fn gc_policy(&self) -> GcPolicy {
        self.0.gc
    }
    fn graceful(&self, obj: &Object, options: &mut DeleteOptions) -> Option<bool> {
        self.0.graceful.map(|f| f(obj, options))
    }
    fn delete_during_update(&self, new: &Object, old: &Object) -> bool {
        (self.0.delete_during_update)(new, old)
    }
    fn returns_deleted(&self) -> bool {
        self.0.returns_deleted
    }
    fn expires(&self) -> bool {
        self.0.expires
    }
    async fn begin(
        &self,
        engine: &Engine,
        cx: &Cx,
        op: Operation,
        new: &mut Object,
        old: Option<&Object>,
    ) -> ApiResult<Option<Box<dyn Finish>>> {
        match self.0.hooks {
            Some(h) => h.begin(engine, cx, op, new, old).await,
            None => Ok(None),
        }
    }
    async fn after_delete(&self, engine: &Engine, cx: &Cx, obj: &Object) {
        if let Some(h) = self.0.hooks {
            h.after_delete(engine, cx, obj).await;
        }
    }
    async fn delete(
        &self,
        engine: &Engine,
        cx: &Cx,
        admit: &dyn Admission,
        options: &DeleteOptions,
    ) -> Option<ApiResult<crate::engine::Deleted>> {
        match self.0.hooks {
            Some(h) => h.delete(engine, cx, admit, options).await,
            None => None,
        }
    }
}
