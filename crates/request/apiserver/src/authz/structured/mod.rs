//! `AuthorizationConfiguration` (apiserver.config.k8s.io): who decides what users may do, and in which order. Read from a
//! file, or made of the `--authorization-*` options.

mod validate;

pub use validate::Condition;

use crate::config::file::{aggregate, together};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The configuration as written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Written {
    api_version: String,
    kind: String,
    pub authorizers: Option<Vec<Member>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Member {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub webhook: Option<Webhook>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Webhook {
    #[serde(rename = "authorizedTTL")]
    pub authorized_ttl: Go,
    pub cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    pub unauthorized_ttl: Go,
    pub cache_unauthorized_requests: Option<bool>,
    pub timeout: Go,
    pub subject_access_review_version: String,
    pub match_condition_subject_access_review_version: String,
    pub failure_policy: String,
    pub connection_info: ConnectionInfo,
    pub match_conditions: Option<Vec<MatchCondition>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ConnectionInfo {
    #[serde(rename = "type")]
    pub kind: String,
    pub kube_config_file: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MatchCondition {
    pub expression: String,
}

/// A duration as Go writes it, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Go(pub i64);

impl<'de> Deserialize<'de> for Go {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(d)?.unwrap_or_default();
        match text.as_str() {
            "" => Ok(Go(0)),
            text => keelson_api::duration::parse(text)
                .map(Go)
                .map_err(serde::de::Error::custom),
        }
    }
}

impl Go {
    pub fn seconds(n: i64) -> Go {
        Go(n * 1_000_000_000)
    }
    pub fn duration(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<Duration> for Go {
    fn from(d: Duration) -> Go {
        Go(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// One of those who decide, checked.
#[derive(Debug)]
pub struct Checked {
    pub kind: Kind,
    pub name: String,
}

#[derive(Debug)]
pub enum Kind {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    /// By policies that an option names, whatever configures the others.
    Abac,
    Webhook(Hook),
}

impl Kind {
    /// As configurations name it.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::Rbac => "RBAC",
            Kind::AlwaysAllow => "AlwaysAllow",
            Kind::AlwaysDeny => "AlwaysDeny",
            Kind::Abac => "ABAC",
            Kind::Webhook(_) => "Webhook",
        }
    }
}

/// What a webhook is told.
#[derive(Debug)]
pub struct Hook {
    pub kubeconfig: PathBuf,
    pub timeout: Duration,
    /// Zero: not remembered.
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
    pub version: String,
    /// What it means that it couldn't be asked.
    pub deny_on_failure: bool,
    pub conditions: Arc<Vec<Condition>>,
}

/// The versions that upstream reads; they have the same fields.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

impl Written {
    pub fn parse(text: &str) -> Result<Written> {
        const LOADING: &str = "failed to load AuthorizationConfiguration from file";
        let mut written: Written = serde_saphyr::from_str(text).context(LOADING)?;
        let known = written
            .api_version
            .strip_prefix("apiserver.config.k8s.io/")
            .is_some_and(|version| VERSIONS.contains(&version));
        ensure!(
            known && written.kind == "AuthorizationConfiguration",
            "{LOADING}: no kind \"{}\" is registered for version \"{}\"",
            written.kind,
            written.api_version
        );
        let hooks = written
            .authorizers
            .iter_mut()
            .flatten()
            .filter_map(|m| m.webhook.as_mut());
        hooks.for_each(Webhook::set_defaults);
        Ok(written)
    }

    /// What options say.
    pub fn of(members: Vec<Member>) -> Written {
        Written {
            authorizers: Some(members),
            ..Written::default()
        }
    }

    /// Those who decide. `required`: kinds that have to be among them, since they were at the start.
    pub fn check(&self, required: &[&'static str]) -> Result<Vec<Checked>> {
        let (checked, wrong) = validate::all(self);
        ensure!(wrong.is_empty(), "{}", aggregate(&wrong));
        let mut wrong = Vec::new();
        for member in checked.iter().filter(|m| !matches!(m.kind, Kind::Webhook(_))) {
            let (kind, wanted) = (member.kind.name(), member.kind.name().to_ascii_lowercase());
            if member.name != wanted {
                wrong.push(format!(
                    "expected name {wanted} for authorizer {kind} instead of {}",
                    member.name
                ));
            }
        }
        let mut missing = required.to_vec();
        missing.retain(|kind| checked.iter().all(|m| m.kind.name() != *kind));
        missing.sort_unstable();
        if !missing.is_empty() {
            wrong.push(format!("missing required types: [{}]", missing.join(" ")));
        }
        ensure!(wrong.is_empty(), "{}", together(wrong));
        Ok(checked)
    }
}

impl Webhook {
    fn set_defaults(&mut self) {
        if self.authorized_ttl == Go(0) {
            self.authorized_ttl = Go::seconds(5 * 60);
        }
        if self.unauthorized_ttl == Go(0) {
            self.unauthorized_ttl = Go::seconds(30);
        }
    }
}

#[cfg(test)]
mod tests;
