//! Nobody grants what they don't hold: roles and bindings are checked when they are written, unless the writer may
//! `escalate` the role, or `bind` it.

use super::rbac::Rbac;
use super::rule::Rule;
use super::{Attributes, Authorizers};
use crate::admission::{Phase, Plugin, Review};
use crate::request::user::SYSTEM_MASTERS;
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Object};
use keelson_registry::{Cx, Operation};
use std::sync::Arc;

const GROUP: &str = "rbac.authorization.k8s.io";

pub struct EscalationCheck(pub Arc<Rbac>);

#[async_trait]
impl Plugin for EscalationCheck {
    fn name(&self) -> &'static str {
        "RBACEscalationCheck"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let (cx, Some(new)) = (review.cx, new) else {
            return Ok(());
        };
        if cx.def.gvr.group != GROUP || !matches!(review.op, Operation::Create | Operation::Update) {
            return Ok(());
        }
        if cx.user.in_group(SYSTEM_MASTERS) {
            return Ok(());
        }
        match cx.def.gvr.resource.as_str() {
            "roles" | "clusterroles" => self.role(cx, review.authorizer, new, old).await,
            "rolebindings" | "clusterrolebindings" => self.binding(cx, review.authorizer, new, old).await,
            _ => Ok(()),
        }
    }
}

impl EscalationCheck {
    async fn role(&self, cx: &Cx, authorizer: &Authorizers, new: &Object, old: Option<&Object>) -> ApiResult<()> {
        let same = |key: &str| old.is_some_and(|o| o.get(key) == new.get(key));
        if (same("rules") && same("aggregationRule"))
            || may(cx, authorizer, "escalate", &cx.def.gvr.resource, new.name()).await
        {
            return Ok(());
        }
        let forbidden = |why: String| ApiError::forbidden(GROUP, &cx.def.gvr.resource, new.name(), why);
        self.0
            .confirm_no_escalation(&cx.user, &cx.namespace, &Rule::list_of(new))
            .map_err(forbidden)?;
        if new.get("aggregationRule").is_some_and(|a| !a.is_null()) {
            self.0
                .confirm_no_escalation(&cx.user, &cx.namespace, &everything())
                .map_err(|e| {
                    forbidden(format!(
                        "must have cluster-admin privileges to use an aggregationRule: {e}"
                    ))
                })?;
        }
        Ok(())
    }

    async fn binding(&self, cx: &Cx, authorizer: &Authorizers, new: &Object, old: Option<&Object>) -> ApiResult<()> {
        let same = |key: &str| old.is_some_and(|o| o.get(key) == new.get(key));
        if same("roleRef") && same("subjects") {
            return Ok(());
        }
        let kind = new.str_at(&["roleRef", "kind"]).unwrap_or_default();
        let name = new.str_at(&["roleRef", "name"]).unwrap_or_default();
        let resource = if kind == "Role" { "roles" } else { "clusterroles" };
        if may(cx, authorizer, "bind", resource, name).await {
            return Ok(());
        }
        let rules = self.0.role_rules(kind, name, &cx.namespace);
        let rules = rules.map_err(|_| ApiError::not_found(GROUP, &kind.to_ascii_lowercase(), name))?;
        self.0
            .confirm_no_escalation(&cx.user, &cx.namespace, &rules)
            .map_err(|e| ApiError::forbidden(GROUP, &cx.def.gvr.resource, new.name(), e))
    }
}

/// Whether the user has the verb that allows it after all.
async fn may(cx: &Cx, authorizer: &Authorizers, verb: &str, resource: &str, name: &str) -> bool {
    let attributes = Attributes {
        user: cx.user.as_ref().clone(),
        verb: verb.into(),
        is_resource_request: true,
        api_group: GROUP.into(),
        api_version: "*".into(),
        resource: resource.into(),
        namespace: cx.namespace.clone(),
        name: name.into(),
        ..Attributes::default()
    };
    authorizer.authorize(&attributes).await.is_allowed()
}

fn everything() -> [Rule; 2] {
    let all = || vec!["*".into()];
    [
        Rule {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..Rule::default()
        },
        Rule {
            verbs: all(),
            non_resource_urls: all(),
            ..Rule::default()
        },
    ]
}
