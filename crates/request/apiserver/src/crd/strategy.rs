//! The strategy of custom resources: their schema's validation and rules, status, generation.

use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Object, Value};
use keelson_machinery::canonical;
use keelson_machinery::cel::rules::Rules;
use keelson_machinery::structural::{Structural, validate};
use keelson_registry::strategy::{Finish, Strategy};
use keelson_registry::{Cx, Engine, Operation};
use std::fmt;

/// How the resources of one version of a definition behave.
pub struct CustomStrategy {
    pub status: bool,
    pub rules: Option<Rules>,
    /// The definition is being deleted: nothing new may be created.
    pub terminating: bool,
}

impl fmt::Debug for CustomStrategy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("CustomStrategy")
    }
}

fn schema(cx: &Cx) -> Option<&Structural> {
    canonical::structural(&cx.def.schema)
}

fn is_own(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata" | "status")
}

impl CustomStrategy {
    fn check(&self, cx: &Cx, new: &Object, old: Option<&Object>) -> Vec<Cause> {
        let Some(s) = schema(cx) else { return Vec::new() };
        let new = Value::Object(new.0.clone());
        let old = old.map(|o| Value::Object(o.0.clone()));
        let mut causes = validate::validate(&new, old.as_ref(), s);
        let blocked = causes.iter().any(|c| {
            matches!(
                c.reason.as_str(),
                "FieldValueTooLong" | "FieldValueTooMany" | "FieldValueRequired" | "FieldValueTypeInvalid"
            )
        });
        match &self.rules {
            Some(_) if blocked => {
                let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
                causes.push(Cause::invalid("<nil>", &Value::Null, why));
            }
            Some(rules) => causes.extend(rules.validate(&new, old.as_ref(), s)),
            None => {}
        }
        causes
    }
}

#[async_trait]
impl Strategy for CustomStrategy {
    fn prepare_create(&self, _: &Cx, obj: &mut Object) {
        if self.status {
            obj.remove("status");
        }
        obj.meta_mut().insert("generation", 1i64);
    }

    fn prepare_update(&self, cx: &Cx, new: &mut Object, old: &Object) {
        match cx.subresource.as_str() {
            "status" => {
                // Only the status changes.
                let status = new.get("status").cloned();
                let meta = new.get("metadata").cloned();
                *new = old.clone();
                for (key, v) in [("status", status), ("metadata", meta)] {
                    match v {
                        Some(v) => drop(new.insert(key, v)),
                        None => drop(new.remove(key)),
                    }
                }
                for key in ["labels", "annotations", "finalizers", "ownerReferences", "generation"] {
                    keelson_registry::strategy::restore(new.meta_mut(), old.meta(), key);
                }
            }
            _ => {
                if self.status {
                    keelson_registry::strategy::restore(&mut new.0, Some(&old.0), "status");
                }
                let counted = |o: &Object| -> Vec<(String, Value)> {
                    o.iter()
                        .filter(|(k, _)| !is_own(k) || (k.as_str() == "status" && !self.status))
                        .map(|(k, v)| (k.to_string(), v.clone()))
                        .collect()
                };
                if counted(new) != counted(old) {
                    new.meta_mut().insert("generation", old.generation() + 1);
                }
            }
        }
    }

    fn validate(&self, cx: &Cx, obj: &Object) -> Vec<Cause> {
        self.check(cx, obj, None)
    }
    fn validate_update(&self, cx: &Cx, new: &Object, old: &Object) -> Vec<Cause> {
        self.check(cx, new, Some(old))
    }
    fn allow_unconditional_update(&self) -> bool {
        false
    }
    fn returns_deleted(&self) -> bool {
        false
    }

    async fn begin(
        &self,
        _: &Engine,
        cx: &Cx,
        op: Operation,
        _: &mut Object,
        _: Option<&Object>,
    ) -> ApiResult<Option<Box<dyn Finish>>> {
        if self.terminating && op == Operation::Create {
            return Err(ApiError::method_not_allowed(
                &cx.def.gvr.group,
                &cx.def.gvr.resource,
                "create",
            ));
        }
        Ok(None)
    }
}
