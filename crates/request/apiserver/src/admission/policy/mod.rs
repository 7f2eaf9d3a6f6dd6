//! Admission policies: expressions kept in the cluster that refuse or change what is written.
//!
//! A policy does nothing by itself; bindings say where it holds and with which parameters. Both are followed by watches
//! and compiled once, when they change.

mod mutating;
mod params;
mod source;
mod status;
mod typecheck;
mod validating;

pub use mutating::{MutatingPolicies, Mutations};
pub use source::Policies;
pub use status::PolicyStatus;
pub use validating::{ValidatingPolicies, Validations};

use super::Review;
use super::expressions::{Conditions, Declarations, env};
use super::matching::{Criteria, Subject, Target, is_configuration, is_review, namespace};
use keelson_api::{ApiResult, Map, Object, Str, Value};
use keelson_machinery::cel::Env;
use params::{ParamKind, ParamRef};

/// What policies of a kind have besides what all have.
pub trait Body: Send + Sync + Sized + 'static {
    fn parse(spec: &Map, env: &Env) -> Self;
}

/// A compiled policy.
#[derive(Debug)]
pub struct Policy<B> {
    name: Str,
    criteria: Option<Criteria>,
    params: Option<ParamKind>,
    conditions: Conditions,
    declarations: Declarations,
    fail_open: bool,
    body: B,
}

impl<B: Body> Policy<B> {
    fn parse(object: &Object) -> Policy<B> {
        let empty = Map::new();
        let spec = object.obj("spec").unwrap_or(&empty);
        let params = spec.obj("paramKind").map(ParamKind::parse);
        let base = env(params.is_some());
        let conditions = Conditions::parse(spec, &base);
        let (declarations, env) = Declarations::parse(spec, &base);
        Policy {
            name: object.name().into(),
            criteria: spec.obj("matchConstraints").map(Criteria::of_resources),
            params,
            conditions,
            declarations,
            fail_open: spec.str("failurePolicy") == Some("Ignore"),
            body: B::parse(spec, &env),
        }
    }
}

/// Where a policy holds.
#[derive(Debug)]
pub struct Binding {
    name: Str,
    policy: Str,
    criteria: Option<Criteria>,
    params: Option<ParamRef>,
    actions: Vec<Str>,
}

impl Binding {
    fn parse(object: &Object) -> Binding {
        let empty = Map::new();
        let spec = object.obj("spec").unwrap_or(&empty);
        let actions = spec.arr("validationActions").into_iter().flatten();
        Binding {
            name: object.name().into(),
            policy: spec.str("policyName").unwrap_or_default().into(),
            criteria: spec.obj("matchResources").map(Criteria::of_resources),
            params: spec.obj("paramRef").map(ParamRef::parse),
            actions: actions.filter_map(Value::as_str).map(Str::from).collect(),
        }
    }
}

/// A request as policies look at it.
struct Seen<'r> {
    review: &'r Review<'r>,
    subject: Subject,
    /// None for cluster-scoped objects and namespaces.
    namespace: Option<Object>,
}

impl<'r> Seen<'r> {
    fn of(review: &'r Review<'r>, new: Option<&Object>) -> Seen<'r> {
        Seen {
            review,
            subject: Subject::of(review, new),
            namespace: None,
        }
    }
    /// Whether policies are asked about the resource at all.
    fn is_exempt(review: &Review<'_>) -> bool {
        is_configuration(&review.cx.def) || is_review(&review.cx.def)
    }
    /// Fetches the namespace, once there is something to evaluate.
    async fn with_namespace(&mut self) -> ApiResult<()> {
        if self.namespace.is_none() && !self.subject.is_namespace && !self.subject.namespace.is_empty() {
            let mut found = namespace(self.review, &self.subject.namespace).await?;
            // Expressions see metadata, spec and status, without owners and managers.
            if let Some(Value::Object(meta)) = found.get_mut("metadata") {
                meta.remove("managedFields");
                meta.remove("ownerReferences");
            }
            found.remove("apiVersion");
            found.remove("kind");
            self.namespace = Some(found);
        }
        Ok(())
    }

    /// By what the request matches the policy.
    async fn matched<B>(
        &self,
        policy: &Policy<B>,
        new: Option<&Object>,
        old: Option<&Object>,
    ) -> Result<Option<Target>, String> {
        match &policy.criteria {
            Some(c) => c
                .matches(self.review, &self.subject, new, old)
                .await
                .map_err(|e| e.message),
            None => Err("policy contained no match constraints, a required field".into()),
        }
    }
    async fn bound(&self, binding: &Binding, new: Option<&Object>, old: Option<&Object>) -> Result<bool, String> {
        match &binding.criteria {
            Some(c) => {
                let found = c.matches(self.review, &self.subject, new, old).await;
                found.map(|t| t.is_some()).map_err(|e| e.message)
            }
            None => Ok(true),
        }
    }
}
