//! What the server is told about authentication, in upstream's options, and what follows from it.

use super::oidc::ALGORITHMS;
use super::static_tokens::StaticTokens;
use super::structured::{Anonymous, ClaimMappings, ClaimRule, Issuer, Jwt, Prefixed, Trusted, Written};
use super::webhook;
use crate::config::file;
use anyhow::{Result, bail, ensure};
use std::path::PathBuf;
use std::sync::Arc;

/// As given: nothing is decided yet.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--authentication-config`
    pub config: Option<PathBuf>,
    /// `--anonymous-auth`
    pub anonymous: Option<bool>,
    pub oidc: Oidc,
    pub webhook: webhook::Options,
    /// `--token-auth-file`
    pub token_file: Option<PathBuf>,
}

/// `--oidc-*`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Oidc {
    pub issuer_url: Option<String>,
    pub client_id: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub username_claim: Option<String>,
    pub username_prefix: Option<String>,
    pub groups_claim: Option<String>,
    pub groups_prefix: Option<String>,
    pub signing_algs: Option<Vec<String>>,
    /// `claim=value` each.
    pub required_claims: Option<Vec<String>>,
}

/// How identities are proven besides the server's own ways.
#[derive(Clone, Debug)]
pub struct Settings {
    pub anonymous: Anonymous,
    pub trusted: Vec<Arc<Trusted>>,
    /// What tokens of these issuers may be signed with.
    pub algorithms: Vec<String>,
    /// The file it was read from, which is followed.
    pub file: Option<Source>,
    pub webhook: Option<Arc<webhook::Webhook>>,
    pub static_tokens: Option<Arc<StaticTokens>>,
}

#[derive(Clone, Debug)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
    /// As it stood at the start; it can't change.
    pub anonymous: Option<Anonymous>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            anonymous: Anonymous::everywhere(true),
            trusted: Vec::new(),
            algorithms: Vec::new(),
            file: None,
            webhook: None,
            static_tokens: None,
        }
    }
}

impl Options {
    /// `own`: issuers of this server's service accounts, which no other may claim to be.
    pub fn resolve(&self, own: &[String]) -> Result<Settings> {
        let any_oidc = self.oidc != Oidc::default();
        let mut written = Written::default();
        let mut source = None;
        let mut algorithms = Vec::new();
        match &self.config {
            Some(path) => {
                ensure!(
                    !any_oidc,
                    "authentication-config file and oidc-* flags are mutually exclusive"
                );
                let text = file::read(path)?;
                written = Written::parse(&text)?;
                algorithms = ALGORITHMS.map(str::to_string).to_vec();
                source = Some(Source {
                    path: path.clone(),
                    text,
                    anonymous: written.anonymous.clone(),
                });
            }
            None if any_oidc => {
                written.jwt = Some(vec![self.oidc.to_jwt()?]);
                algorithms = self.oidc.algorithms()?;
            }
            None => {}
        }
        let anonymous = match (&written.anonymous, self.anonymous) {
            (Some(_), Some(_)) => bail!(
                "anonymous: Forbidden: --anonymous-auth flag cannot be set when anonymous field is configured in authentication configuration file"
            ),
            (Some(written), None) => written.clone(),
            (None, flag) => Anonymous::everywhere(flag.unwrap_or(true)),
        };
        Ok(Settings {
            anonymous,
            trusted: written.check(own)?,
            algorithms,
            file: source,
            webhook: self.webhook.open()?.map(Arc::new),
            static_tokens: self
                .token_file
                .as_deref()
                .map(StaticTokens::open)
                .transpose()?
                .map(Arc::new),
        })
    }
}

impl Oidc {
    /// The same as a configuration would say it.
    fn to_jwt(&self) -> Result<Jwt> {
        let given = |text: &Option<String>| text.clone().unwrap_or_default();
        let (url, client) = (given(&self.issuer_url), given(&self.client_id));
        ensure!(
            !url.is_empty() && !client.is_empty(),
            "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set"
        );
        let claim = self.username_claim.clone().unwrap_or_else(|| "sub".into());
        let prefix = match self.username_prefix.as_deref().unwrap_or_default() {
            // Names of other issuers' users must not be this one's by chance; addresses are nobody else's anyway.
            "" if claim != "email" => format!("{url}#"),
            "-" => String::new(),
            prefix => prefix.to_string(),
        };
        let groups = match given(&self.groups_claim) {
            none if none.is_empty() => Prefixed::default(),
            claim => Prefixed {
                claim,
                prefix: Some(given(&self.groups_prefix)),
                expression: String::new(),
            },
        };
        let certificate_authority = match &self.ca_file {
            Some(path) => file::read(path)?,
            None => String::new(),
        };
        Ok(Jwt {
            issuer: Issuer {
                url,
                certificate_authority,
                audiences: Some(vec![client]),
                ..Issuer::default()
            },
            claim_validation_rules: Some(self.required()?),
            claim_mappings: ClaimMappings {
                username: Prefixed {
                    claim,
                    prefix: Some(prefix),
                    expression: String::new(),
                },
                groups,
                ..ClaimMappings::default()
            },
            user_validation_rules: None,
        })
    }

    fn required(&self) -> Result<Vec<ClaimRule>> {
        let mut rules: Vec<ClaimRule> = Vec::new();
        for pair in self.required_claims.iter().flatten() {
            let Some((claim, value)) = pair.split_once('=') else {
                bail!("--oidc-required-claim {pair}: malformed pair, expect string=string");
            };
            // The last one counts, as with upstream's option.
            rules.retain(|r| r.claim != claim.trim());
            rules.push(ClaimRule {
                claim: claim.trim().into(),
                required_value: value.trim().into(),
                ..ClaimRule::default()
            });
        }
        Ok(rules)
    }

    fn algorithms(&self) -> Result<Vec<String>> {
        let given = self.signing_algs.clone().filter(|algs| !algs.is_empty());
        let algorithms = given.unwrap_or_else(|| vec!["RS256".into()]);
        for alg in &algorithms {
            ensure!(
                ALGORITHMS.contains(&alg.as_str()),
                "oidc: unsupported signing alg: {alg:?}"
            );
        }
        Ok(algorithms)
    }
}

#[cfg(test)]
mod tests;
