//! CustomResourceDefinitions: which versions were ever stored, validation, and a deletion that waits for the resources.

use crate::context::Cx;
use crate::engine::{Deleted, Engine};
use crate::internal;
use crate::options::DeleteOptions;
use crate::resources::validation;
use crate::strategy::{Behaviour, Hooks};
use async_trait::async_trait;
use keelson_api::{ApiResult, Cause, Object, Str, Value};
use keelson_machinery::structural::definition;

/// Removed when no resource of the definition is left.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
const STORED: [&str; 2] = ["status", "storedVersions"];

pub const CRD: Behaviour = Behaviour {
    status_keeps: &["*"],
    unconditional_update: false,
    prepare_create: |_, o| remember_storage_version(o),
    prepare_update: |_, new, _| remember_storage_version(new),
    validate: |cx, o| {
        let mut told = validation::create(cx, o);
        told.extend(validate(o, None));
        told
    },
    validate_update: |cx, new, old| {
        let mut told = validation::update(cx, new, old);
        told.extend(validate(new, Some(old)));
        told
    },
    validate_status: |_, new, _| definition::validate_status(&Value::Object(new.0.clone())),
    warnings,
    hooks: Some(&CrdHooks),
    ..Behaviour::WITH_STATUS
};

/// The storage version joins the versions that stored objects may be in.
fn remember_storage_version(o: &mut Object) {
    let versions = o.at(&["spec", "versions"]).and_then(Value::as_array);
    let storage = versions
        .into_iter()
        .flatten()
        .find(|v| v.get("storage").and_then(Value::as_bool) == Some(true));
    let Some(name) = storage.and_then(|v| v.get("name")).cloned() else {
        return;
    };
    let mut stored = o.at(&STORED).and_then(Value::as_array).cloned().unwrap_or_default();
    if !stored.contains(&name) {
        stored.push(name);
        o.set_at(&STORED, stored);
    }
}

fn validate(new: &Object, old: Option<&Object>) -> Vec<Cause> {
    let old = old.map(|o| Value::Object(o.0.clone()));
    definition::validate(&Value::Object(new.0.clone()), old.as_ref(), internal::shown)
}

fn warnings(cx: &Cx, new: &Object, old: Option<&Object>) -> Vec<String> {
    if cx.subresource == "status" {
        return Vec::new();
    }
    let old = old.map(|o| Value::Object(o.0.clone()));
    definition::warnings(&Value::Object(new.0.clone()), old.as_ref())
}

struct CrdHooks;

#[async_trait]
impl Hooks for CrdHooks {
    async fn delete(
        &self,
        engine: &Engine,
        cx: &Cx,
        admit: &dyn crate::Admission,
        options: &DeleteOptions,
    ) -> Option<ApiResult<Deleted>> {
        match begin_cleanup(engine, cx, admit, options).await {
            Ok(done) => done.map(Ok),
            Err(e) => Some(Err(e)),
        }
    }
}

/// The first request marks the definition and adds the finalizer; `None`: it is marked already, the engine goes on.
async fn begin_cleanup(
    engine: &Engine,
    cx: &Cx,
    admit: &dyn crate::Admission,
    options: &DeleteOptions,
) -> ApiResult<Option<Deleted>> {
    let mark = |o: &mut Object| {
        let mut finalizers: Vec<Str> = o.finalizers().map(Str::from).collect();
        if !finalizers.iter().any(|f| f == CLEANUP_FINALIZER) {
            finalizers.push(CLEANUP_FINALIZER.into());
        }
        o.set_finalizers(finalizers);
        let conditions = o.at(&["status", "conditions"]).and_then(Value::as_array);
        let mut conditions = conditions.cloned().unwrap_or_default();
        conditions.retain(|c| c.get("type").and_then(Value::as_str) != Some("Terminating"));
        conditions.push(keelson_api::value!({
            "type": "Terminating", "status": "True", "reason": "InstanceDeletionPending",
            "lastTransitionTime": o.deletion_timestamp(),
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
        }));
        o.set_at(&["status", "conditions"], conditions);
    };
    let begun = engine.begin_deletion(cx, admit, options, "precondition failed", mark);
    Ok(begun.await?.ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn storage_versions_are_remembered_once() {
        let mut o = Object::try_from(
            value!({"spec": {"versions": [{"name": "v1", "storage": false}, {"name": "v2", "storage": true}]},
            "status": {"storedVersions": ["v1"]}}),
        )
        .unwrap();
        remember_storage_version(&mut o);
        remember_storage_version(&mut o);
        assert_eq!(o.at(&STORED), Some(&value!(["v1", "v2"])));
    }
}
