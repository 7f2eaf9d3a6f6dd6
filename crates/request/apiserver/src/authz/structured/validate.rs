//! What a configuration may say, with upstream's words for what it may not; and what is made of it.

use super::{Checked, Go, Hook, Kind, Member, Webhook, Written};
use keelson_api::Cause;
use keelson_machinery::cel::{Env, ObjectTy, Program, Record, Ty, compile};
use keelson_machinery::names;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// A condition under which a webhook is asked, compiled.
#[derive(Debug)]
pub struct Condition {
    pub source: String,
    pub program: Program,
}

const KINDS: [&str; 6] = ["ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
/// The most conditions of a webhook.
const MAX_CONDITIONS: usize = 64;
const LONGEST_TIMEOUT: Go = Go(30_000_000_000);

pub fn all(written: &Written) -> (Vec<Checked>, Vec<Cause>) {
    let mut c = Checker::default();
    let members = written.authorizers.as_deref().unwrap_or_default();
    if members.is_empty() {
        c.required("authorizers", "at least one authorization mode must be defined");
    }
    let checked = members
        .iter()
        .enumerate()
        .filter_map(|(i, m)| c.member(m, &format!("authorizers[{i}]")));
    let checked = checked.collect();
    (checked, c.wrong)
}

#[derive(Default)]
struct Checker {
    wrong: Vec<Cause>,
    kinds: BTreeSet<String>,
    names: BTreeSet<String>,
}

impl Checker {
    fn required(&mut self, at: impl Into<String>, why: &str) {
        self.wrong.push(Cause::required(at, why));
    }
    fn invalid(&mut self, at: impl Into<String>, value: &str, why: &str) {
        self.wrong.push(Cause::invalid(at, &value.into(), why));
    }
    fn duplicate(&mut self, at: impl Into<String>, value: &str) {
        self.wrong.push(Cause::duplicate(at, &value.into()));
    }
    fn unsupported(&mut self, at: impl Into<String>, value: &str, known: &[&str]) {
        self.wrong.push(Cause::not_supported(at, &value.into(), known));
    }

    fn member(&mut self, m: &Member, at: &str) -> Option<Checked> {
        let kind = m.kind.as_str();
        if kind.is_empty() {
            self.required(format!("{at}.type"), "");
            return None;
        }
        if !KINDS.contains(&kind) {
            self.unsupported(format!("{at}.type"), kind, &KINDS);
            return None;
        }
        if !self.kinds.insert(kind.to_string()) && kind != "Webhook" {
            self.duplicate(format!("{at}.type"), kind);
            return None;
        }
        self.name(&m.name, &format!("{at}.name"));
        let kind = match (kind, &m.webhook) {
            ("Webhook", None) => {
                self.required(format!("{at}.webhook"), "required when type=Webhook");
                return None;
            }
            ("Webhook", Some(webhook)) => Kind::Webhook(self.webhook(webhook, at)?),
            (_, Some(_)) => {
                let why = "may only be specified when type=Webhook";
                self.invalid(format!("{at}.webhook"), "non-null", why);
                return None;
            }
            ("Node", None) => Kind::Node,
            ("RBAC", None) => Kind::Rbac,
            ("AlwaysAllow", None) => Kind::AlwaysAllow,
            ("AlwaysDeny", None) => Kind::AlwaysDeny,
            // Of what is known nothing else is left.
            (_, None) => Kind::Abac,
        };
        Some(Checked {
            kind,
            name: m.name.clone(),
        })
    }

    fn name(&mut self, name: &str, at: &str) {
        let wrong = names::dns1123_subdomain(name);
        if name.is_empty() {
            self.required(at, "");
        } else if self.names.contains(name) {
            self.duplicate(at, name);
        } else if !wrong.is_empty() {
            let why = format!("authorizer name is invalid: {}", wrong.join(", "));
            self.invalid(at, name, &why);
        }
        self.names.insert(name.to_string());
    }

    fn webhook(&mut self, w: &Webhook, at: &str) -> Option<Hook> {
        let before = self.wrong.len();
        let shown = |d: Go| keelson_api::duration::format(d.0);
        if w.timeout == Go(0) {
            self.required(format!("{at}.timeout"), "");
        } else if w.timeout.0 > LONGEST_TIMEOUT.0 || w.timeout.0 < 0 {
            self.invalid(format!("{at}.timeout"), &shown(w.timeout), "must be > 0s and <= 30s");
        }
        for (ttl, name) in [
            (w.authorized_ttl, "authorizedTTL"),
            (w.unauthorized_ttl, "unauthorizedTTL"),
        ] {
            if ttl == Go(0) {
                self.required(format!("{at}.{name}"), "");
            } else if ttl.0 < 0 {
                self.invalid(format!("{at}.{name}"), &shown(ttl), "must be > 0s");
            }
        }
        let version = w.subject_access_review_version.as_str();
        let version_at = format!("{at}.subjectAccessReviewVersion");
        match version {
            "" => self.required(version_at, ""),
            "v1" | "v1beta1" => {}
            other => self.unsupported(version_at, other, &["v1", "v1beta1"]),
        }
        let conditions = w.match_conditions.as_deref().unwrap_or_default();
        let version_at = format!("{at}.matchConditionSubjectAccessReviewVersion");
        match w.match_condition_subject_access_review_version.as_str() {
            "" if !conditions.is_empty() => {
                self.required(version_at, "required if match conditions are specified");
            }
            "" | "v1" => {}
            other => self.unsupported(version_at, other, &["v1"]),
        }
        let policy_at = format!("{at}.failurePolicy");
        match w.failure_policy.as_str() {
            "" => self.required(policy_at, ""),
            "NoOpinion" | "Deny" => {}
            other => self.unsupported(policy_at, other, &["NoOpinion", "Deny"]),
        }
        self.connection(w, &format!("{at}.connectionInfo"));
        let conditions = self.conditions(w, at);
        let remembered = |ttl: Go, on: Option<bool>| match on {
            Some(false) => std::time::Duration::ZERO,
            _ => ttl.duration(),
        };
        (before == self.wrong.len()).then(|| Hook {
            kubeconfig: w.connection_info.kube_config_file.clone().unwrap_or_default().into(),
            timeout: w.timeout.duration(),
            authorized_ttl: remembered(w.authorized_ttl, w.cache_authorized_requests),
            unauthorized_ttl: remembered(w.unauthorized_ttl, w.cache_unauthorized_requests),
            version: version.to_string(),
            deny_on_failure: w.failure_policy == "Deny",
            conditions: Arc::new(conditions),
        })
    }

    fn connection(&mut self, w: &Webhook, at: &str) {
        let (info, file_at) = (&w.connection_info, format!("{at}.kubeConfigFile"));
        match (info.kind.as_str(), &info.kube_config_file) {
            ("", _) => self.required(format!("{at}.type"), ""),
            ("InClusterConfig", Some(file)) => {
                self.invalid(file_at, file, "can only be set when type=KubeConfigFile");
            }
            ("InClusterConfig", None) => {}
            ("KubeConfigFile", file) => match file.as_deref().unwrap_or_default() {
                "" => self.required(file_at, ""),
                file if !file.starts_with('/') => self.invalid(file_at, file, "must be an absolute path"),
                file => match std::fs::metadata(Path::new(file)) {
                    Err(e) => {
                        let why = format!("error loading file: stat {file}: {e}");
                        self.invalid(file_at, file, &why);
                    }
                    Ok(found) if !found.is_file() => self.invalid(file_at, file, "must be a regular file"),
                    Ok(_) => {}
                },
            },
            (other, file) => {
                let file = file.as_deref().map_or("null".to_string(), |f| format!("{f:?}"));
                let why = format!(
                    "Unsupported value: {{\"Type\":{other:?},\"KubeConfigFile\":{file}}}: supported values: \"InClusterConfig\", \"KubeConfigFile\""
                );
                self.wrong
                    .push(Cause::new("FieldValueNotSupported", format!("{at}.type"), why));
            }
        }
    }

    fn conditions(&mut self, w: &Webhook, at: &str) -> Vec<Condition> {
        let list = w.match_conditions.as_deref().unwrap_or_default();
        if list.len() > MAX_CONDITIONS {
            let why = format!("Too many: {}: must have at most {MAX_CONDITIONS} items", list.len());
            self.wrong
                .push(Cause::new("FieldValueTooMany", format!("{at}.matchConditions"), why));
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let mut made = Vec::new();
        for (i, condition) in list.iter().enumerate() {
            let at = format!("{at}.matchConditions[{i}].expression");
            let source = condition.expression.as_str();
            if source.trim().is_empty() {
                self.required(at, "");
            } else if !seen.insert(source) {
                self.duplicate(at, source);
            } else {
                match compile(source, &REVIEW) {
                    Err(why) => self.invalid(at, source, &format!("compilation failed: {why}")),
                    Ok(program) if !matches!(program.ty, Ty::Bool) => {
                        let why = format!("must evaluate to bool but got {}", program.ty);
                        self.invalid(at, source, &why);
                    }
                    Ok(program) => made.push(Condition {
                        source: source.to_string(),
                        program,
                    }),
                }
            }
        }
        made
    }
}

/// `request` in conditions: the specification of a SubjectAccessReview.
static REVIEW: LazyLock<Env> = LazyLock::new(|| {
    let record = |name: &str, fields: Vec<(&str, Ty)>| {
        Ty::Object(ObjectTy::Record(Arc::new(Record {
            name: format!("kubernetes.{name}"),
            fields: fields.into_iter().map(|(n, ty)| (n.to_string(), ty)).collect(),
        })))
    };
    let texts = |names: &[&'static str]| names.iter().map(|n| (*n, Ty::String)).collect::<Vec<_>>();
    let requirement = || {
        let mut fields = texts(&["key", "operator"]);
        fields.push(("values", Ty::list(Ty::String)));
        record("SelectorRequirement", fields)
    };
    let selector = |name| {
        let mut fields = texts(&["rawSelector"]);
        fields.push(("requirements", Ty::list(requirement())));
        record(name, fields)
    };
    let mut resource = texts(&[
        "namespace",
        "verb",
        "group",
        "version",
        "resource",
        "subresource",
        "name",
    ]);
    resource.push(("fieldSelector", selector("FieldSelectorAttributes")));
    resource.push(("labelSelector", selector("LabelSelectorAttributes")));
    let mut spec = texts(&["user", "uid"]);
    spec.extend([
        ("resourceAttributes", record("ResourceAttributes", resource)),
        (
            "nonResourceAttributes",
            record("NonResourceAttributes", texts(&["path", "verb"])),
        ),
        ("groups", Ty::list(Ty::String)),
        ("extra", Ty::map(Ty::String, Ty::list(Ty::String))),
    ]);
    Env::default().with("request", record("SubjectAccessReviewSpec", spec))
});
