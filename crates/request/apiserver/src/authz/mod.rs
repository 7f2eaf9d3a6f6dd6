//! May this user do this? Those who are configured are asked in their order; the first with an opinion decides.
//!
//! Nodes' rules and RBAC answer from memory: roles and bindings are followed by watches, never read on a request. So do
//! policies of a file (ABAC), which is read once. Webhooks are asked.

pub mod abac;
mod chain;
pub mod escalation;
pub mod node;
pub mod options;
pub mod rbac;
pub mod reload;
pub mod rule;
pub mod structured;
pub mod webhook;

pub use chain::Authorizers;
pub use options::{Options, Settings};

use crate::request::{RequestInfo, UserInfo};
use keelson_api::status::Details;
use keelson_api::{ApiError, Reason, Str, Value};

/// What is asked: a request reduced to what authorisers look at (also built from SubjectAccessReviews).
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    pub user: UserInfo,
    pub verb: Str,
    pub is_resource_request: bool,
    pub api_group: Str,
    pub api_version: Str,
    pub resource: Str,
    pub subresource: Str,
    pub namespace: Str,
    pub name: Str,
    /// Of requests for no resource.
    pub path: Str,
    pub field_selector: Str,
    pub label_selector: Str,
}

impl Attributes {
    pub fn of(user: &UserInfo, info: &RequestInfo) -> Self {
        Attributes {
            user: user.clone(),
            verb: info.verb.clone(),
            is_resource_request: info.is_resource_request,
            api_group: info.api_group.clone(),
            api_version: info.api_version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            path: info.path.clone(),
            field_selector: info.field_selector.clone(),
            label_selector: info.label_selector.clone(),
        }
    }
    /// `pods/log`, as rules name it.
    pub fn resource_with_sub(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_string()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
    /// Upstream's 403 for these attributes.
    pub fn forbidden(&self, reason: &str) -> ApiError {
        let user = &self.user.name;
        let tail = if reason.is_empty() {
            String::new()
        } else {
            format!(": {reason}")
        };
        if !self.is_resource_request {
            return ApiError::new(
                Reason::Forbidden,
                format!(
                    "forbidden: User {:?} cannot {} path {:?}{tail}",
                    user.as_str(),
                    self.verb,
                    self.path.as_str()
                ),
            )
            .with_details(Details::default());
        }
        let scope = if self.namespace.is_empty() {
            " at the cluster scope".to_string()
        } else {
            format!(" in the namespace {:?}", self.namespace.as_str())
        };
        let why = format!(
            "User {:?} cannot {} resource {:?} in API group {:?}{scope}{tail}",
            user.as_str(),
            self.verb,
            self.resource_with_sub(),
            self.api_group.as_str()
        );
        ApiError::forbidden(&self.api_group, &self.resource, &self.name, why)
    }
}

/// The answer of an authoriser, each with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    Deny(String),
    NoOpinion(String),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }
    pub fn reason(&self) -> &str {
        match self {
            Decision::Allow(r) | Decision::Deny(r) | Decision::NoOpinion(r) => r,
        }
    }
}

/// A decision, and what went wrong on the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    pub error: Option<String>,
}

impl Verdict {
    pub fn is_allowed(&self) -> bool {
        self.decision.is_allowed()
    }
    pub fn reason(&self) -> &str {
        self.decision.reason()
    }
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        Verdict { decision, error: None }
    }
}

/// What a user may do in a namespace (`SelfSubjectRulesReview.status`).
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Each with `verbs`, `apiGroups`, `resources`, `resourceNames`.
    pub resource_rules: Vec<Value>,
    /// Each with `verbs`, `nonResourceURLs`.
    pub non_resource_rules: Vec<Value>,
    pub incomplete: bool,
    pub evaluation_error: String,
}

/// Decides from memory what users may do.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, a: &Attributes) -> Decision;
    fn rules(&self, user: &UserInfo, namespace: &str) -> Rules;
}
