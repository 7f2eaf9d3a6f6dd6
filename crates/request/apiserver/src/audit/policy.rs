//! The audit policy (`audit.k8s.io/v1 Policy`): the first rule that matches a request says how much of it is logged.

use crate::request::{RequestInfo, UserInfo};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::path::Path;

/// How much of a request is logged; each includes what the one before has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    /// With the body of the request.
    Request,
    /// With the body of the response too.
    RequestResponse,
}

/// A point in a request's life at which an event may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
pub enum Stage {
    RequestReceived,
    /// The head of a long-running response is out.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

/// What the policy says of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict<'a> {
    pub level: Level,
    omitted: [&'a [Stage]; 2],
    pub omit_managed_fields: bool,
}

impl Verdict<'_> {
    pub fn omits(&self, stage: Stage) -> bool {
        self.omitted.iter().any(|list| list.contains(&stage))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    /// Accepted as every object's; means nothing here.
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What is logged when nobody has said what: every change of an object and every way into a pod, with who made it; reading
/// of secrets; who failed to prove an identity; nothing of what components write to do their work, and no bodies.
const DEFAULT: &str = include_str!("default-policy.yaml");

impl Policy {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("the audit policy {}", path.display()))
    }

    pub fn parse(text: &str) -> Result<Self> {
        let policy: Policy = serde_saphyr::from_str(text)?;
        policy.check()?;
        Ok(policy)
    }

    /// The policy of a server that was given none.
    pub fn standard() -> Result<Self> {
        Self::parse(DEFAULT).context("the built-in audit policy")
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.api_version == "audit.k8s.io/v1" && self.kind == "Policy",
            "unknown group version field {}, Kind={} in policy",
            self.api_version,
            self.kind
        );
        for (i, rule) in self.rules.iter().enumerate() {
            rule.check().with_context(|| format!("rules[{i}]"))?;
        }
        ensure!(!self.rules.is_empty(), "loaded illegal policy with 0 rules");
        Ok(())
    }

    /// `user` is nobody where authentication failed.
    pub fn verdict(&self, user: Option<&UserInfo>, info: &RequestInfo) -> Verdict<'_> {
        let Some(rule) = self.rules.iter().find(|r| r.matches(user, info)) else {
            return Verdict::default();
        };
        Verdict {
            level: rule.level,
            omitted: [&self.omit_stages, &rule.omit_stages],
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn check(&self) -> Result<()> {
        for url in self.non_resource_urls.iter().filter(|u| *u != "*") {
            ensure!(
                url.starts_with('/'),
                "nonResourceURLs: Invalid value: {url:?}: non-resource URL rules must begin with a '/' character"
            );
            ensure!(
                !url[..url.len() - 1].contains('*'),
                "nonResourceURLs: Invalid value: {url:?}: non-resource URL wildcards '*' must be the final character of the rule"
            );
        }
        for r in &self.resources {
            if r.group.contains('/') {
                bail!("resources.group: Invalid value: {:?}: a group has no version", r.group);
            }
            ensure!(
                r.resource_names.is_empty() || !r.resources.is_empty(),
                "resources.resourceNames: Invalid value: {:?}: using resourceNames requires at least one resource",
                r.resource_names
            );
        }
        ensure!(
            self.non_resource_urls.is_empty() || self.resources.is_empty() && self.namespaces.is_empty(),
            "nonResourceURLs: Invalid value: {:?}: rules cannot apply to both regular resources and non-resource URLs",
            self.non_resource_urls
        );
        Ok(())
    }

    fn matches(&self, user: Option<&UserInfo>, info: &RequestInfo) -> bool {
        let one_of = |list: &[String], text: &str| list.is_empty() || list.iter().any(|l| l == text);
        let named = self.users.is_empty() || user.is_some_and(|u| one_of(&self.users, &u.name));
        let grouped =
            self.user_groups.is_empty() || user.is_some_and(|u| self.user_groups.iter().any(|g| u.in_group(g)));
        named
            && grouped
            && one_of(&self.verbs, &info.verb)
            && if !self.resources.is_empty() || !self.namespaces.is_empty() {
                info.is_resource_request && self.takes_resource(info)
            } else {
                self.non_resource_urls.is_empty() || !info.is_resource_request && self.takes_path(&info.path)
            }
    }

    fn takes_path(&self, path: &str) -> bool {
        self.non_resource_urls
            .iter()
            .any(|u| u == "*" || u == path || u.strip_suffix('*').is_some_and(|p| path.starts_with(p)))
    }

    /// A namespace of "" stands for what has none.
    fn takes_resource(&self, info: &RequestInfo) -> bool {
        if !self.namespaces.is_empty() && !self.namespaces.iter().any(|n| *n == info.namespace.as_str()) {
            return false;
        }
        let with_sub = info.resource_with_sub();
        self.resources.is_empty()
            || self.resources.iter().any(|g| {
                (g.group == "*" || g.group == info.api_group.as_str())
                    && (g.resource_names.is_empty() || g.resource_names.iter().any(|n| *n == info.name.as_str()))
                    && (g.resources.is_empty()
                        || g.resources.iter().any(|r| {
                            r == "*"
                                || *r == with_sub
                                || r.strip_prefix("*/").is_some_and(|sub| sub == info.subresource)
                                || r.strip_suffix("/*").is_some_and(|own| own == info.resource)
                        }))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn policy(rules: &str) -> Result<Policy> {
        Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}"))
    }

    fn level(policy: &Policy, method: Method, uri: &str, user: &UserInfo) -> Level {
        let info = RequestInfo::parse(&method, &uri.parse().unwrap()).unwrap();
        policy.verdict(Some(user), &info).level
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let policy = policy(
            "omitStages: [RequestReceived]\nrules:\n- {level: None, verbs: [watch]}\n\
             - {level: Request, omitManagedFields: true, omitStages: [Panic], resources: [{group: '', resources: [pods]}]}\n\
             - {level: RequestResponse, namespaces: ['']}\n- {level: None, nonResourceURLs: ['/healthz*']}\n- {level: Metadata}\n",
        )
        .unwrap();
        let level = |uri: &str| level(&policy, Method::GET, uri, &UserInfo::anonymous());
        assert_eq!(level("/api/v1/pods?watch=true"), Level::None);
        assert_eq!(level("/api/v1/namespaces/a/pods"), Level::Request);
        assert_eq!(level("/api/v1/namespaces/a/pods/p/log"), Level::Metadata);
        assert_eq!(level("/api/v1/nodes"), Level::RequestResponse);
        assert_eq!(level("/healthz/ping"), Level::None);
        assert_eq!(level("/version"), Level::Metadata);
        let info = RequestInfo::parse(&Method::GET, &"/api/v1/pods".parse().unwrap()).unwrap();
        let verdict = policy.verdict(None, &info);
        assert!(verdict.omits(Stage::RequestReceived) && verdict.omits(Stage::Panic));
        assert!(!verdict.omits(Stage::ResponseComplete) && verdict.omit_managed_fields);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let refused = |text: &str, why: &str| {
            let error = format!("{:#}", policy(text).unwrap_err());
            assert!(error.contains(why), "{error}");
        };
        refused("rules: []\n", "0 rules");
        refused("rules:\n- {verbs: [get]}\n", "level");
        refused("rules:\n- {level: Everything}\n", "Everything");
        refused("rules:\n- {level: None, verb: [get]}\n", "verb");
        refused("rules:\n- {level: None, omitStages: [Later]}\n", "Later");
        refused(
            "rules:\n- {level: None, nonResourceURLs: [healthz]}\n",
            "must begin with a '/'",
        );
        refused(
            "rules:\n- {level: None, nonResourceURLs: ['/a*/b']}\n",
            "final character",
        );
        refused(
            "rules:\n- {level: None, nonResourceURLs: ['/a'], namespaces: [a]}\n",
            "both regular",
        );
        refused(
            "rules:\n- {level: None, resources: [{resourceNames: [a]}]}\n",
            "at least one resource",
        );
        refused("rules:\n- {level: None, resources: [{group: apps/v1}]}\n", "no version");
        let error =
            Policy::parse("apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]\n").unwrap_err();
        assert!(error.to_string().contains("unknown group version"), "{error}");
    }

    #[test]
    fn the_standard_policy_logs_what_people_do() {
        let policy = Policy::standard().unwrap();
        let ana = UserInfo::new("ana", &["system:authenticated"]);
        let kubelet = UserInfo::new("system:node:n1", &["system:nodes", "system:authenticated"]);
        let of = |method: Method, uri: &str, user: &UserInfo| level(&policy, method, uri, user);
        assert_eq!(of(Method::POST, "/api/v1/namespaces/a/pods", &ana), Level::Metadata);
        assert_eq!(
            of(Method::DELETE, "/apis/apps/v1/namespaces/a/deployments/d", &ana),
            Level::Metadata
        );
        assert_eq!(of(Method::GET, "/api/v1/namespaces/a/secrets/s", &ana), Level::Metadata);
        assert_eq!(
            of(Method::GET, "/api/v1/namespaces/a/pods/p/exec?command=sh", &ana),
            Level::Metadata
        );
        assert_eq!(of(Method::GET, "/api/v1/namespaces/a/pods/p", &ana), Level::None);
        assert_eq!(of(Method::GET, "/healthz", &ana), Level::None);
        assert_eq!(of(Method::GET, "/healthz", &UserInfo::anonymous()), Level::None);
        let pods = RequestInfo::parse(&Method::GET, &"/api/v1/pods".parse().unwrap()).unwrap();
        assert_eq!(policy.verdict(None, &pods).level, Level::Metadata);
        assert_eq!(of(Method::PATCH, "/api/v1/nodes/n1/status", &kubelet), Level::None);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
        assert_eq!(of(Method::PUT, lease, &kubelet), Level::None);
        assert_eq!(
            of(Method::POST, "/api/v1/namespaces/a/pods/p/eviction", &kubelet),
            Level::Metadata
        );
        let token = "/api/v1/namespaces/a/serviceaccounts/s/token";
        assert_eq!(of(Method::POST, token, &kubelet), Level::None);
        assert_eq!(of(Method::POST, token, &ana), Level::Metadata);
    }
}
