//! The expressions of admission: which variables they may use, and whether they compile.

use keelson_machinery::cel::{Env, ObjectTy, Program, Record, Ty, compile, opaque};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an expression may speak of besides the objects and the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope {
    pub params: bool,
    pub authorizer: bool,
}

fn record(name: &str, fields: &[(&str, Ty)]) -> Ty {
    let fields: BTreeMap<String, Ty> = fields.iter().map(|(k, t)| (k.to_string(), t.clone())).collect();
    Ty::Object(ObjectTy::Record(Arc::new(Record {
        name: name.into(),
        fields,
    })))
}

/// The type of `request`.
fn request() -> Ty {
    let kind = record(
        "kubernetes.GroupVersionKind",
        &[("group", Ty::String), ("version", Ty::String), ("kind", Ty::String)],
    );
    let resource = record(
        "kubernetes.GroupVersionResource",
        &[("group", Ty::String), ("version", Ty::String), ("resource", Ty::String)],
    );
    let user = record(
        "kubernetes.UserInfo",
        &[
            ("username", Ty::String),
            ("uid", Ty::String),
            ("groups", Ty::list(Ty::String)),
            ("extra", Ty::map(Ty::String, Ty::list(Ty::String))),
        ],
    );
    record(
        "kubernetes.AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", Ty::String),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", Ty::String),
            ("name", Ty::String),
            ("namespace", Ty::String),
            ("operation", Ty::String),
            ("userInfo", user),
            ("dryRun", Ty::Bool),
            ("options", Ty::Dyn),
        ],
    )
}

/// The type of `namespaceObject`.
fn namespace() -> Ty {
    let text_map = || Ty::map(Ty::String, Ty::String);
    let metadata = record(
        "kubernetes.NamespaceMetadata",
        &[
            ("name", Ty::String),
            ("generateName", Ty::String),
            ("namespace", Ty::String),
            ("labels", text_map()),
            ("annotations", text_map()),
            ("UID", Ty::String),
            ("creationTimestamp", Ty::Timestamp),
            ("deletionGracePeriodSeconds", Ty::Int),
            ("deletionTimestamp", Ty::Timestamp),
            ("generation", Ty::Int),
            ("resourceVersion", Ty::String),
            ("finalizers", Ty::list(Ty::String)),
        ],
    );
    let spec = record("kubernetes.NamespaceSpec", &[("finalizers", Ty::list(Ty::String))]);
    let status = record("kubernetes.NamespaceStatus", &[("phase", Ty::String)]);
    record(
        "kubernetes.Namespace",
        &[("metadata", metadata), ("spec", spec), ("status", status)],
    )
}

/// The variables of an expression; objects are of any type.
pub fn env(scope: Scope) -> Env {
    let mut env = Env::default()
        .with("object", Ty::Dyn)
        .with("oldObject", Ty::Dyn)
        .with("request", request())
        .with("namespaceObject", namespace());
    if scope.params {
        env = env.with("params", Ty::Dyn);
    }
    if scope.authorizer {
        env = env
            .with("authorizer", Ty::Opaque(opaque::AUTHORIZER))
            .with("authorizer.requestResource", Ty::Opaque(opaque::RESOURCE_CHECK));
    }
    env
}

/// The environment with the variables that a policy has declared so far.
pub fn with_variables(env: &Env, variables: &BTreeMap<String, Ty>) -> Env {
    if variables.is_empty() {
        return env.clone();
    }
    let record = Record {
        name: "kubernetes.variables".into(),
        fields: variables.clone(),
    };
    env.clone()
        .with("variables", Ty::Object(ObjectTy::Record(Arc::new(record))))
}

/// Compiles an expression that must yield one of `wanted` (none: anything); the error is what validation says.
pub fn check(source: &str, env: &Env, wanted: &[&str]) -> Result<Program, String> {
    let program = compile(source, env).map_err(|e| format!("compilation failed: {e}"))?;
    let name = program.ty.to_string();
    let fits = wanted.is_empty() || program.ty.is_dyn() || wanted.contains(&name.as_str());
    match (fits, wanted) {
        (true, _) => Ok(program),
        (false, [one]) => Err(format!("must evaluate to {one} but got {name}")),
        (false, many) => {
            let many = many.join(" ").replace("null", "null_type");
            Err(format!("must evaluate to one of [{many}] but got {name}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_compiled_against_what_they_may_use() {
        let env = env(Scope {
            params: false,
            authorizer: true,
        });
        for good in [
            "request.operation == 'CREATE' && object.metadata.name.startsWith('x')",
            "has(request.userInfo.groups) && request.userInfo.groups.exists(g, g == 'system:nodes')",
            "authorizer.group('').resource('pods').check('get').allowed()",
            "authorizer.requestResource.check('custom').allowed()",
            "namespaceObject.metadata.labels['a'] == 'b'",
        ] {
            assert!(
                check(good, &env, &["bool"]).is_ok(),
                "{good}: {:?}",
                check(good, &env, &["bool"]).err()
            );
        }
        for (bad, why) in [
            ("... [bad expression]", "compilation failed: "),
            ("params.x == 1", "compilation failed: "),
            ("request.nope == 1", "compilation failed: "),
            ("'text'", "must evaluate to bool"),
        ] {
            let said = check(bad, &env, &["bool"]).unwrap_err();
            assert!(said.starts_with(why), "{bad}: {said}");
        }
    }
}
