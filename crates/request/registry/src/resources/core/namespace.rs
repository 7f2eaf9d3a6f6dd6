//! Namespaces: deletion marks them, a controller empties them, and the last finalizer of `spec` lets them go.

use crate::context::Cx;
use crate::engine::{Deleted, Engine};
use crate::meta::{FOREGROUND, ORPHAN};
use crate::options::DeleteOptions;
use crate::strategy::{Behaviour, Hooks};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object, Str, Value};

const NAME_LABEL: [&str; 3] = ["metadata", "labels", "kubernetes.io/metadata.name"];
const FINALIZERS: [&str; 2] = ["spec", "finalizers"];

pub const NAMESPACE: Behaviour = Behaviour {
    status: true,
    returns_deleted: true,
    default: label_with_name,
    canonicalize: label_with_name,
    prepare_create: create,
    prepare_update: update,
    delete_during_update: |new, _| !has_finalizers(new),
    hooks: Some(&NamespaceHooks),
    ..Behaviour::DEFAULT
};

fn label_with_name(o: &mut Object) {
    let name = o.name().to_string();
    if !name.is_empty() {
        o.set_at(&NAME_LABEL, name);
    }
}

fn create(_: &Cx, o: &mut Object) {
    o.set_at(&["status"], keelson_api::value!({"phase": "Active"}));
    let mut list = o.at(&FINALIZERS).and_then(Value::as_array).cloned().unwrap_or_default();
    if !list.iter().any(|f| f.as_str() == Some("kubernetes")) {
        list.push("kubernetes".into());
    }
    o.set_at(&FINALIZERS, list);
}

/// Only `/finalize` changes the finalizers of the spec.
fn update(cx: &Cx, new: &mut Object, old: &Object) {
    if cx.subresource == "finalize" {
        return;
    }
    match old.at(&FINALIZERS) {
        Some(f) => new.set_at(&FINALIZERS, f.clone()),
        None => {
            new.remove_at(&FINALIZERS);
        }
    }
}

fn has_finalizers(o: &Object) -> bool {
    o.at(&FINALIZERS)
        .and_then(Value::as_array)
        .is_some_and(|l| !l.is_empty())
}

struct NamespaceHooks;

#[async_trait]
impl Hooks for NamespaceHooks {
    async fn delete(
        &self,
        engine: &Engine,
        cx: &Cx,
        admit: &dyn crate::Admission,
        options: &DeleteOptions,
    ) -> Option<ApiResult<Deleted>> {
        match begin_termination(engine, cx, admit, options).await {
            Ok(done) => done.map(Ok),
            Err(e) => Some(Err(e)),
        }
    }
}

/// `None`: nothing is left to wait for, the engine may delete.
async fn begin_termination(
    engine: &Engine,
    cx: &Cx,
    admit: &dyn crate::Admission,
    options: &DeleteOptions,
) -> ApiResult<Option<Deleted>> {
    let mark = |o: &mut Object| {
        o.set_at(&["status", "phase"], "Terminating");
        o.set_finalizers(wanted_finalizers(o, options));
    };
    let begun = engine.begin_deletion(cx, admit, options, "Precondition failed", mark);
    Ok(match begun.await? {
        Ok(marked) => Some(marked),
        Err(object) => has_finalizers(&object).then_some(Deleted {
            object,
            gone: false,
            show_object: true,
        }),
    })
}

fn wanted_finalizers(old: &Object, options: &DeleteOptions) -> Vec<Str> {
    let has = |f: &str| old.finalizers().any(|x| x == f);
    let policy = options.propagation_policy.as_deref();
    let (orphan, foreground) = match (options.orphan_dependents, policy) {
        (Some(orphan), _) => (orphan, !orphan),
        (None, Some(p)) => (p == "Orphan", p == "Foreground"),
        (None, None) => (has(ORPHAN), has(FOREGROUND)),
    };
    let mut list: Vec<Str> = old
        .finalizers()
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .map(Str::from)
        .collect();
    list.extend(orphan.then(|| Str::from(ORPHAN)));
    list.extend(foreground.then(|| Str::from(FOREGROUND)));
    list
}
