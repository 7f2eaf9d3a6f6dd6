//! PodSecurity: the levels of the Pod Security Standards that a namespace's labels ask for, enforced on pods, and told as
//! warnings and audit annotations for pods and for what makes pods.

mod checks;
mod settings;

pub use settings::Settings;

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Map, Object, Value};
use keelson_registry::Operation;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// So many pods are looked at when a namespace's level rises.
const MAX_PODS: usize = 3000;
/// Paths of pods that change no pod's specification.
const IGNORED: [&str; 8] = [
    "exec",
    "attach",
    "binding",
    "eviction",
    "log",
    "portforward",
    "proxy",
    "status",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

const MINOR: &str = "must be \"latest\" or \"v1.x\"";

/// The minor version that a text names, of which `None` is the latest.
fn minor(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let digits = text.strip_prefix("v1.")?;
    let plain = digits == "0" || !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    let minor: i64 = digits.parse().ok().filter(|_| plain)?;
    Some(Some(u32::try_from(minor).unwrap_or(u32::MAX)))
}

impl Level {
    const ONE_OF: &str = "must be one of privileged, baseline, restricted";

    fn parse(text: &str) -> Option<Level> {
        Some(match text {
            "privileged" => Level::Privileged,
            "baseline" => Level::Baseline,
            "restricted" => Level::Restricted,
            _ => return None,
        })
    }
}

/// A level of the standards as of a minor version; `None`: the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    level: Level,
    minor: Option<u32>,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

impl Policy {
    /// What the pod violates, in detail and in short.
    fn violations(self, meta: &Map, spec: &Map) -> Vec<checks::Violation> {
        if self.level == Level::Privileged {
            Vec::new()
        } else {
            checks::run(self.level, self.minor.unwrap_or(u32::MAX), meta, spec)
        }
    }
}

fn details(list: &[checks::Violation]) -> String {
    list.iter()
        .map(|v| {
            if v.detail.is_empty() {
                v.reason.clone()
            } else {
                format!("{} ({})", v.reason, v.detail)
            }
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// The three policies of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policies {
    enforce: Policy,
    audit: Policy,
    warn: Policy,
}

impl Policies {
    /// A label that can't be read asks for the strictest when enforcing, for nothing otherwise; where there is none the
    /// defaults hold. With what is wrong with labels, in upstream's order.
    fn of(labels: Option<&Map>, defaults: &Policies) -> (Self, Vec<Cause>) {
        let label = |mode: &str, suffix: &str| {
            labels.and_then(|l| l.str(&format!("pod-security.kubernetes.io/{mode}{suffix}")))
        };
        let mut wrong = Vec::new();
        let mut refuse = |mode: &str, suffix: &str, text: &str, why: &str| {
            let at = format!("metadata.labels[pod-security.kubernetes.io/{mode}{suffix}]");
            wrong.push(Cause::invalid(at, &text.into(), why));
        };
        let mut policy = |mode: &str, default: Policy, on_error: Level| {
            let mut policy = default;
            if let Some(text) = label(mode, "") {
                policy.level = Level::parse(text).unwrap_or_else(|| {
                    refuse(mode, "", text, Level::ONE_OF);
                    on_error
                });
            }
            if let Some(text) = label(mode, "-version") {
                policy.minor = minor(text).unwrap_or_else(|| {
                    refuse(mode, "-version", text, MINOR);
                    None
                });
            }
            policy
        };
        let enforce = policy("enforce", defaults.enforce, Level::Restricted);
        let audit = policy("audit", defaults.audit, Level::Privileged);
        let mut warn = policy("warn", defaults.warn, Level::Privileged);
        let enforces = label("enforce", "").and_then(Level::parse).is_some();
        if label("warn", "").is_none() && enforces && enforce.level > warn.level {
            warn.level = enforce.level;
            if label("warn", "-version").is_none() {
                warn.minor = enforce.minor;
            }
        }
        (Policies { enforce, audit, warn }, wrong)
    }

    fn are_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn]
            .iter()
            .all(|p| p.level == Level::Privileged)
    }
}

pub struct PodSecurity(pub Arc<Settings>);

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(new) = new.filter(|_| matches!(review.op, Operation::Create | Operation::Update)) else {
            return Ok(());
        };
        let def = &review.cx.def;
        let sub = review.cx.subresource.as_str();
        if def.is("", "namespaces") && sub.is_empty() {
            return self.namespace(review, new, old).await;
        }
        if def.is("", "pods") && !IGNORED.contains(&sub) {
            if self.exempts(review) {
                return Ok(());
            }
            if old.is_some_and(|old| !is_significant(new, old)) {
                return Ok(());
            }
            let Some(spec) = new.obj("spec") else { return Ok(()) };
            return self.evaluate(review, new, new.meta(), spec, true).await;
        }
        let template: &[&str] = match (def.gvr.group.as_str(), def.gvr.resource.as_str(), sub) {
            ("", "podtemplates", "") => &["template"],
            ("", "replicationcontrollers", "")
            | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets", "")
            | ("batch", "jobs", "") => &["spec", "template"],
            ("batch", "cronjobs", "") => &["spec", "jobTemplate", "spec", "template"],
            _ => return Ok(()),
        };
        if self.exempts(review) {
            return Ok(());
        }
        let Some(template) = new.at(template).and_then(Value::as_object) else {
            return Ok(());
        };
        let Some(spec) = template.obj("spec") else {
            return Ok(());
        };
        self.evaluate(review, new, template.obj("metadata"), spec, false).await
    }
}

const EXEMPT: &str = "pod-security.kubernetes.io/exempt";

/// Only images can change in a way that matters, and ephemeral containers can come.
fn is_significant(new: &Object, old: &Object) -> bool {
    let images = |o: &Object| -> Vec<(String, String, String)> {
        ["containers", "initContainers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|l| {
                o.at(&["spec", l])
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .map(move |c| (l, c))
            })
            .map(|(l, c)| {
                let text = |key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
                (l.to_string(), text("name"), text("image"))
            })
            .collect()
    };
    images(new) != images(old)
}

impl PodSecurity {
    /// Whether the namespace or the user is exempt; the audit log is told.
    fn exempts(&self, review: &Review<'_>) -> bool {
        let cx = review.cx;
        let why = if self.0.exempts_namespace(&cx.namespace) {
            "namespace"
        } else if self.0.exempts_user(&cx.user.name) {
            "user"
        } else {
            return false;
        };
        cx.annotate(EXEMPT, why.to_string());
        true
    }

    /// Who labels a namespace that is exempt is told that it has no effect.
    fn ignored(&self, review: &Review<'_>, namespace: &Object, policies: &Policies) {
        if policies.are_privileged() || *policies == self.0.defaults {
            return;
        }
        let labels = namespace.labels();
        let has = |label: String| labels.is_some_and(|l| l.get(&label).is_some());
        let modes = [
            ("enforce", policies.enforce),
            ("audit", policies.audit),
            ("warn", policies.warn),
        ];
        let said: Vec<String> = modes
            .iter()
            .filter(|(mode, policy)| {
                let label = format!("pod-security.kubernetes.io/{mode}");
                policy.level != Level::Privileged && (has(label.clone()) || has(format!("{label}-version")))
            })
            .map(|(mode, policy)| format!("{mode}={policy}"))
            .collect();
        review.cx.warn(format!(
            "namespace {:?} is exempt from Pod Security, and the policy ({}) will be ignored",
            namespace.name(),
            said.join(", ")
        ));
    }

    async fn evaluate(
        &self,
        review: &Review<'_>,
        object: &Object,
        meta: Option<&Map>,
        spec: &Map,
        enforce: bool,
    ) -> ApiResult<()> {
        let cx = review.cx;
        if self.0.exempts_class(spec.str("runtimeClassName")) {
            cx.annotate(EXEMPT, "runtimeClass".to_string());
            return Ok(());
        }
        let Some(namespace) = review.lookup.cached("", "namespaces", "", &cx.namespace).await? else {
            return Ok(());
        };
        let (policies, _) = Policies::of(namespace.labels(), &self.0.defaults);
        let empty = Map::new();
        let meta = meta.unwrap_or(&empty);
        if enforce {
            cx.annotate(
                "pod-security.kubernetes.io/enforce-policy",
                policies.enforce.to_string(),
            );
            let found = policies.enforce.violations(meta, spec);
            if !found.is_empty() {
                return Err(review.forbidden(
                    Some(object),
                    format!("violates PodSecurity \"{}\": {}", policies.enforce, details(&found)),
                ));
            }
        }
        let found = policies.audit.violations(meta, spec);
        if !found.is_empty() {
            let text = format!("would violate PodSecurity \"{}\": {}", policies.audit, details(&found));
            cx.annotate("pod-security.kubernetes.io/audit-violations", text);
        }
        let found = policies.warn.violations(meta, spec);
        if !found.is_empty() {
            cx.warn(format!(
                "would violate PodSecurity \"{}\": {}",
                policies.warn,
                details(&found)
            ));
        }
        Ok(())
    }

    /// Labels have to be readable, but for those that were no better before. A namespace that enforces more than before: tells
    /// which of its pods would not be let in any more.
    async fn namespace(&self, review: &Review<'_>, new: &Object, old: Option<&Object>) -> ApiResult<()> {
        let of = |o: &Object| Policies::of(o.labels(), &self.0.defaults);
        let is_exempt = self.0.exempts_namespace(new.name());
        let (policies, wrong) = of(new);
        let before = old.map(of);
        if !wrong.is_empty() && before.as_ref().is_none_or(|(_, before)| wrong != *before) {
            return Err(ApiError::invalid("", "Namespace", new.name(), wrong));
        }
        let Some((before, _)) = before else {
            if is_exempt {
                self.ignored(review, new, &policies);
            }
            return Ok(());
        };
        let (after, before) = (policies.enforce, before.enforce);
        let relaxed = after.minor == before.minor && after.level <= before.level;
        if after == before || after.level == Level::Privileged || relaxed {
            return Ok(());
        }
        if is_exempt {
            self.ignored(review, new, &policies);
            return Ok(());
        }
        let pods = review.lookup.list("", "pods", new.name()).await?;
        let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for pod in pods.iter().take(MAX_PODS) {
            let (Some(meta), Some(spec)) = (pod.meta(), pod.obj("spec")) else {
                continue;
            };
            if self.0.exempts_class(spec.str("runtimeClassName")) {
                continue;
            }
            let found = after.violations(meta, spec);
            if !found.is_empty() {
                let reason = found.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ");
                by_reason.entry(reason).or_default().push(pod.name());
            }
        }
        if pods.len() > MAX_PODS {
            review.cx.warn(format!(
                "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
                pods.len()
            ));
        }
        if by_reason.is_empty() {
            return Ok(());
        }
        review.cx.warn(format!(
            "existing pods in namespace {:?} violate the new PodSecurity enforce level \"{after}\"",
            new.name()
        ));
        let mut lines: Vec<String> = by_reason
            .into_iter()
            .map(|(reason, mut names)| {
                names.sort_unstable();
                match names.len() - 1 {
                    0 => format!("{}: {reason}", names[0]),
                    1 => format!("{} (and 1 other pod): {reason}", names[0]),
                    n => format!("{} (and {n} other pods): {reason}", names[0]),
                }
            })
            .collect();
        lines.sort();
        lines.into_iter().for_each(|l| review.cx.warn(l));
        Ok(())
    }
}
