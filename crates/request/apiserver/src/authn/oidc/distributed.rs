//! Distributed claims (OpenID Connect Core, 5.6.2): a token may say at which address its groups are. The answer is a token
//! too, of any issuer that the same authorities vouch for.

use super::claims::Claims;
use super::fetch::Client;
use super::provider::Provider;
use super::verify::{Expected, claimed_issuer};
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The most issuers of such claims. Addresses come from tokens that a trusted issuer signed; more than these are refused.
const MAX_ISSUERS: usize = 16;

pub struct Resolver {
    claim: String,
    client: Client,
    expected: Expected,
    stop: CancellationToken,
    issuers: Mutex<BTreeMap<String, Arc<Provider>>>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Endpoint {
    endpoint: String,
    access_token: String,
}

impl Resolver {
    pub fn new(claim: &str, client: Client, expected: Expected, stop: CancellationToken) -> Resolver {
        Resolver {
            claim: claim.to_string(),
            client,
            expected,
            stop,
            issuers: Mutex::default(),
        }
    }

    /// Puts the claim among the token's, if the token says where it is.
    pub async fn expand(&self, claims: &mut Claims) -> Result<(), String> {
        if claims.has(&self.claim) || !claims.has("_claim_names") {
            return Ok(());
        }
        let names: BTreeMap<String, String> = claims
            .read("_claim_names")
            .map_err(|why| format!("oidc: error parsing distributed claim names: {why}"))?;
        if !claims.has("_claim_sources") {
            return Err("oidc: no claim sources".into());
        }
        let sources: BTreeMap<String, Endpoint> = claims
            .read("_claim_sources")
            .map_err(|why| format!("oidc: could not parse claim sources: {why}"))?;
        let Some(source) = names.get(&self.claim) else {
            return Ok(());
        };
        let endpoint = sources
            .get(source)
            .ok_or_else(|| format!("id token _claim_names contained a source {source} missing in _claims_sources"))?;
        if endpoint.endpoint.is_empty() {
            return Ok(());
        }
        self.resolve(endpoint, claims).await
    }

    async fn resolve(&self, endpoint: &Endpoint, claims: &mut Claims) -> Result<(), String> {
        let (claim, url) = (&self.claim, &endpoint.endpoint);
        let token = self
            .fetch(endpoint)
            .await
            .map_err(|why| format!("while getting distributed claim {claim:?}: {why}"))?;
        let issuer = claimed_issuer(&token).ok_or_else(|| {
            format!("getting untrusted issuer from endpoint {url} failed for claim {claim:?}: malformed token")
        })?;
        let provider = self.provider(&issuer)?;
        let keys = provider.keys().ok_or_else(|| {
            format!("verifying untrusted issuer {issuer} failed: verifier not initialized for issuer: {issuer:?}")
        })?;
        let payload = self
            .expected
            .verify(&token, &issuer, keys)
            .await
            .map_err(|why| format!("verify distributed claim token: {why}"))?;
        let found = Claims::parse(&payload)
            .map_err(|why| format!("could not parse distributed claims for claim {claim}: {why}"))?;
        let value = found.get(claim).ok_or_else(|| {
            format!("jwt returned by distributed claim endpoint {url:?} did not contain claim: {claim}")
        })?;
        claims.insert(claim, value.clone());
        Ok(())
    }

    async fn fetch(&self, endpoint: &Endpoint) -> Result<String, String> {
        let token = Some(endpoint.access_token.as_str()).filter(|t| !t.is_empty());
        let found = self.client.get(&endpoint.endpoint, token).await?;
        if !(200..=226).contains(&found.status.as_u16()) {
            return Err(format!("error while getting distributed claim JWT: {}", found.status));
        }
        String::from_utf8(found.body).map_err(|_| "could not decode distributed claim response".into())
    }

    /// The issuer's keys are looked for from the first time on that it is needed.
    fn provider(&self, issuer: &str) -> Result<Arc<Provider>, String> {
        let mut issuers = self.issuers.lock();
        if let Some(known) = issuers.get(issuer) {
            return Ok(known.clone());
        }
        if issuers.len() >= MAX_ISSUERS {
            return Err(format!(
                "verifying untrusted issuer {issuer} failed: claims of {MAX_ISSUERS} issuers are known, which is the most"
            ));
        }
        let provider = Provider::start(self.client.clone(), issuer, None, self.stop.clone());
        issuers.insert(issuer.to_string(), provider.clone());
        Ok(provider)
    }
}
