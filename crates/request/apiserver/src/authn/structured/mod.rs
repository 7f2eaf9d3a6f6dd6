//! `AuthenticationConfiguration` (apiserver.config.k8s.io): which issuers' tokens are taken, what of their claims makes a
//! user, and which paths are open to who shows nothing. Read from a file, or made of the `--oidc-*` options.
//!
//! What comes out of here has been checked with upstream's rules, and its expressions are compiled.

mod url;
mod validate;

pub use validate::{Mapping, Rule, Source, Trusted};

use crate::config::file::aggregate;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::sync::Arc;

/// The configuration as written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Written {
    api_version: String,
    kind: String,
    pub jwt: Option<Vec<Jwt>>,
    pub anonymous: Option<Anonymous>,
}

/// Who is let in without a proof of identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
    /// The paths, if not all.
    pub conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Condition {
    pub path: String,
}

impl Anonymous {
    pub fn everywhere(enabled: bool) -> Anonymous {
        Anonymous {
            enabled,
            conditions: None,
        }
    }
    pub fn takes(&self, path: &str) -> bool {
        let conditions = self.conditions.as_deref().unwrap_or_default();
        self.enabled && (conditions.is_empty() || conditions.iter().any(|c| c.path == path))
    }
}

/// An issuer, and what its tokens mean.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Jwt {
    pub issuer: Issuer,
    pub claim_validation_rules: Option<Vec<ClaimRule>>,
    pub claim_mappings: ClaimMappings,
    pub user_validation_rules: Option<Vec<UserRule>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Issuer {
    pub url: String,
    /// Where its discovery document is, if not below the URL.
    #[serde(rename = "discoveryURL")]
    pub discovery_url: Option<String>,
    /// In PEM; none: the machine's.
    pub certificate_authority: String,
    pub audiences: Option<Vec<String>>,
    pub audience_match_policy: String,
    pub egress_selector_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClaimRule {
    pub claim: String,
    pub required_value: String,
    pub expression: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClaimMappings {
    pub username: Prefixed,
    pub groups: Prefixed,
    pub uid: ClaimOrExpression,
    pub extra: Option<Vec<Extra>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Prefixed {
    pub claim: String,
    pub prefix: Option<String>,
    pub expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClaimOrExpression {
    pub claim: String,
    pub expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Extra {
    pub key: String,
    pub value_expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct UserRule {
    pub expression: String,
    pub message: String,
}

/// The versions that upstream reads; they have the same fields.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

impl Written {
    pub fn parse(text: &str) -> Result<Written> {
        ensure!(!text.is_empty(), "empty config data");
        let written: Written = serde_saphyr::from_str(text).context("no AuthenticationConfiguration")?;
        let known = written
            .api_version
            .strip_prefix("apiserver.config.k8s.io/")
            .is_some_and(|version| VERSIONS.contains(&version));
        ensure!(
            known && written.kind == "AuthenticationConfiguration",
            "no kind \"{}\" is registered for version \"{}\"",
            written.kind,
            written.api_version
        );
        Ok(written)
    }

    /// The issuers, checked; `own` are this server's, which nobody else may have.
    pub fn check(&self, own: &[String]) -> Result<Vec<Arc<Trusted>>> {
        let (trusted, wrong) = validate::all(self, own);
        ensure!(
            wrong.is_empty(),
            "invalid authentication configuration: {}",
            aggregate(&wrong)
        );
        Ok(trusted)
    }
}

#[cfg(test)]
mod tests;
