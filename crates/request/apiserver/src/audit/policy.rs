//! The audit policy: the first rule that matches a request gives its level.

use crate::request::{RequestInfo, UserInfo};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// `audit.k8s.io/v1 Policy`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

impl Policy {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_saphyr::from_str(&text).map_err(|e| anyhow::anyhow!("the audit policy {}: {e}", path.display()))
    }
    pub fn level(&self, user: &UserInfo, info: &RequestInfo) -> Level {
        self.rules
            .iter()
            .find(|r| r.matches(user, info))
            .map_or(Level::None, |r| r.level)
    }
    pub fn omits(&self, stage: &str) -> bool {
        self.omit_stages.iter().any(|s| s == stage)
    }
}

impl Rule {
    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        let is = |list: &[String], text: &str| list.is_empty() || list.iter().any(|l| l == text);
        let grouped = self.user_groups.is_empty() || self.user_groups.iter().any(|g| user.in_group(g));
        is(&self.users, &user.name)
            && grouped
            && is(&self.verbs, &info.verb)
            && if self.resources.is_empty() && self.namespaces.is_empty() && self.non_resource_urls.is_empty() {
                true
            } else if info.is_resource_request {
                self.takes_resource(info)
            } else {
                self.non_resource_urls.iter().any(|u| {
                    u == "*"
                        || *u == info.path.as_str()
                        || u.strip_suffix('*').is_some_and(|p| info.path.starts_with(p))
                })
            }
    }
    fn takes_resource(&self, info: &RequestInfo) -> bool {
        if !self.namespaces.is_empty() && !self.namespaces.iter().any(|n| *n == info.namespace.as_str()) {
            return false;
        }
        if self.resources.is_empty() {
            return !self.namespaces.is_empty();
        }
        let with_sub = info.resource_with_sub();
        self.resources.iter().any(|g| {
            g.group == info.api_group.as_str()
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

    #[test]
    fn the_first_matching_rule_decides() {
        let policy: Policy = serde_json::from_str(
            r#"{"rules":[{"level":"None","verbs":["watch"]},{"level":"Request","resources":[{"group":"","resources":["pods"]}]},{"level":"Metadata"}]}"#,
        )
        .unwrap();
        let level = |uri: &str| {
            let info = RequestInfo::parse(&http::Method::GET, &uri.parse().unwrap()).unwrap();
            policy.level(&UserInfo::anonymous(), &info)
        };
        assert_eq!(level("/api/v1/pods?watch=true"), Level::None);
        assert_eq!(level("/api/v1/pods"), Level::Request);
        assert_eq!(level("/api/v1/namespaces/a/pods/p/log"), Level::Metadata);
        assert_eq!(level("/healthz"), Level::Metadata);
    }
}
