//! `authorizer` in expressions: what somebody may do, asked of the server's authorisers.

use super::{Review, matching::Subject};
use crate::authz::{Attributes, Authorizers, Verdict};
use crate::request::UserInfo;
use keelson_api::Str;
use keelson_machinery::cel::{CelError, Dynamic, Val};
use keelson_machinery::names;
use std::fmt;
use std::sync::Arc;

/// `authorizer` and `authorizer.requestResource` for a request.
pub fn values<'a>(review: &Review<'a>, subject: &Subject) -> (Val<'a>, Val<'a>) {
    let cx = review.cx;
    let whose = Whose {
        authorizer: review.authorizer,
        user: cx.user.clone(),
    };
    let own = ResourceCheck {
        whose: whose.clone(),
        attributes: Attributes {
            is_resource_request: true,
            api_group: cx.def.gvr.group.clone(),
            resource: cx.def.gvr.resource.clone(),
            subresource: cx.subresource.clone(),
            namespace: subject.namespace.clone(),
            name: subject.name.clone(),
            ..Attributes::default()
        },
    };
    (dynamic(Root(whose)), dynamic(own))
}

fn dynamic<'a>(d: impl Dynamic<'a> + 'a) -> Val<'a> {
    Val::Dynamic(Arc::new(d))
}

/// Whose rights are asked for, and of whom.
#[derive(Clone)]
struct Whose<'a> {
    authorizer: &'a Authorizers,
    user: Arc<UserInfo>,
}

impl<'a> Whose<'a> {
    fn decide(&self, attributes: &Attributes, verb: &str) -> Val<'a> {
        let attributes = Attributes {
            user: self.user.as_ref().clone(),
            verb: verb.into(),
            ..attributes.clone()
        };
        dynamic(Answer(self.authorizer.authorize_blocking(&attributes)))
    }
}

struct Root<'a>(Whose<'a>);
struct PathCheck<'a>(Whose<'a>, Str);
struct GroupCheck<'a>(Whose<'a>, Str);
struct ResourceCheck<'a> {
    whose: Whose<'a>,
    attributes: Attributes,
}
struct Answer(Verdict);

macro_rules! shown_by_type {
    ($($ty:ty),*) => {$(
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Dynamic::type_name(self))
            }
        }
    )*};
}
shown_by_type!(Root<'_>, PathCheck<'_>, GroupCheck<'_>, ResourceCheck<'_>, Answer);

type Called<'a> = Option<Result<Val<'a>, CelError>>;

fn text<'v>(args: &'v [Val<'_>]) -> Option<&'v str> {
    match args {
        [one] => one.as_str(),
        _ => None,
    }
}

impl<'a> Dynamic<'a> for Root<'a> {
    fn field(&self, _: &str) -> Called<'a> {
        None
    }
    fn call(&self, method: &str, args: &[Val<'a>]) -> Called<'a> {
        let made = match (method, args) {
            ("path", _) => match text(args)? {
                p if p.trim().is_empty() => Err(CelError::new("path must not be empty")),
                p => Ok(dynamic(PathCheck(self.0.clone(), p.into()))),
            },
            ("group", _) => Ok(dynamic(GroupCheck(self.0.clone(), text(args)?.into()))),
            ("serviceAccount", [namespace, name]) => {
                let (namespace, name) = (namespace.as_str()?, name.as_str()?);
                if !names::dns1123_subdomain(name).is_empty() {
                    Err(CelError::new("Invalid service account name"))
                } else if !names::dns1123_label(namespace).is_empty() {
                    Err(CelError::new("Invalid service account namespace"))
                } else {
                    let user = Arc::new(UserInfo::service_account(namespace, name, ""));
                    Ok(dynamic(Root(Whose { user, ..self.0.clone() })))
                }
            }
            _ => return None,
        };
        Some(made)
    }
    fn type_name(&self) -> &'static str {
        "kubernetes.authorization.Authorizer"
    }
}

impl<'a> Dynamic<'a> for PathCheck<'a> {
    fn field(&self, _: &str) -> Called<'a> {
        None
    }
    fn call(&self, method: &str, args: &[Val<'a>]) -> Called<'a> {
        let verb = text(args).filter(|_| method == "check")?;
        Some(Ok(self.0.decide(
            &Attributes {
                path: self.1.clone(),
                ..Attributes::default()
            },
            verb,
        )))
    }
    fn type_name(&self) -> &'static str {
        "kubernetes.authorization.PathCheck"
    }
}

impl<'a> Dynamic<'a> for GroupCheck<'a> {
    fn field(&self, _: &str) -> Called<'a> {
        None
    }
    fn call(&self, method: &str, args: &[Val<'a>]) -> Called<'a> {
        let resource = text(args).filter(|_| method == "resource")?;
        if resource.trim().is_empty() {
            return Some(Err(CelError::new("resource must not be empty")));
        }
        let attributes = Attributes {
            is_resource_request: true,
            api_group: self.1.clone(),
            api_version: Str::const_new("*"),
            resource: resource.into(),
            ..Attributes::default()
        };
        Some(Ok(dynamic(ResourceCheck {
            whose: self.0.clone(),
            attributes,
        })))
    }
    fn type_name(&self) -> &'static str {
        "kubernetes.authorization.GroupCheck"
    }
}

impl<'a> Dynamic<'a> for ResourceCheck<'a> {
    fn field(&self, _: &str) -> Called<'a> {
        None
    }
    fn call(&self, method: &str, args: &[Val<'a>]) -> Called<'a> {
        let arg = text(args)?;
        if method == "check" {
            return Some(Ok(self.whose.decide(&self.attributes, arg)));
        }
        let mut attributes = self.attributes.clone();
        let part = match method {
            "subresource" => &mut attributes.subresource,
            "namespace" => &mut attributes.namespace,
            "name" => &mut attributes.name,
            "fieldSelector" => &mut attributes.field_selector,
            "labelSelector" => &mut attributes.label_selector,
            _ => return None,
        };
        *part = arg.into();
        Some(Ok(dynamic(ResourceCheck {
            whose: self.whose.clone(),
            attributes,
        })))
    }
    fn type_name(&self) -> &'static str {
        "kubernetes.authorization.ResourceCheck"
    }
}

impl<'a> Dynamic<'a> for Answer {
    fn field(&self, _: &str) -> Called<'a> {
        None
    }
    fn call(&self, method: &str, args: &[Val<'a>]) -> Called<'a> {
        let value = match (method, args) {
            ("allowed", []) => Val::Bool(self.0.is_allowed()),
            ("reason", []) => Val::str(self.0.reason()),
            ("errored", []) => Val::Bool(self.0.error.is_some()),
            ("error", []) => Val::str(self.0.error.as_deref().unwrap_or_default()),
            _ => return None,
        };
        Some(Ok(value))
    }
    fn type_name(&self) -> &'static str {
        "kubernetes.authorization.Decision"
    }
}
