//! Tokens of other issuers (OpenID Connect): a token whose `iss` is a trusted issuer's is checked by the keys that the issuer
//! publishes, and its claims are made a user.
//!
//! * [`provider`]: finding an issuer's keys, also when it is away at first.
//! * [`keys`]: the keys, cached and fetched anew, at most once a second whatever comes in.
//! * [`verify`]: a token's signature, issuer, audience and time.
//! * [`claims`]: what claims make of a user.
//! * [`distributed`]: groups that the token doesn't hold itself, but says where they are.
//!
//! Only a token that names the issuer waits for it.

mod claims;
mod distributed;
mod fetch;
mod keys;
mod provider;
mod verify;

use super::structured::Trusted;
use crate::config::file::{hash, together};
use crate::request::UserInfo;
use claims::Claims;
use distributed::Resolver;
use fetch::Client;
use keys::Told;
use parking_lot::RwLock;
use provider::Provider;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use verify::Expected;

pub use keelson_pki::jwt::keyset::ALGORITHMS;

/// How long a changed configuration waits for all of its issuers, as upstream.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long tokens that are being checked may still need what was replaced.
const GRACE: Duration = Duration::from_secs(60);

/// The issuers in force.
pub struct Issuers {
    current: RwLock<Arc<Set>>,
    algorithms: Vec<String>,
}

/// The issuers of one configuration. Their looking for keys ends with it.
struct Set {
    issuers: Vec<Issuer>,
    _stop: DropGuard,
}

struct Issuer {
    trusted: Arc<Trusted>,
    provider: Arc<Provider>,
    expected: Expected,
    resolver: Option<Resolver>,
}

impl Issuers {
    /// Starts to look for the issuers' keys. `algorithms`: those that tokens may be signed with.
    pub fn new(trusted: &[Arc<Trusted>], algorithms: Vec<String>) -> anyhow::Result<Issuers> {
        Ok(Issuers {
            current: RwLock::new(Arc::new(Set::start(trusted, &algorithms)?)),
            algorithms,
        })
    }

    /// Puts other issuers in force, once all of them are found; until then, and if they aren't, those before stay.
    pub async fn replace(&self, trusted: &[Arc<Trusted>]) -> Result<(), String> {
        let next = Set::start(trusted, &self.algorithms).map_err(|e| format!("{e:#}"))?;
        let found = futures::future::join_all(next.issuers.iter().map(|i| i.provider.found()));
        if tokio::time::timeout(PATIENCE, found).await.is_err() {
            let missing = next.issuers.iter().filter_map(|i| i.provider.health().err());
            return Err(together(missing.collect()));
        }
        let before = std::mem::replace(&mut *self.current.write(), Arc::new(next));
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            drop(before);
        });
        Ok(())
    }

    /// Adds to the page of metrics when the keys of each issuer in force were fetched, and which they were. `server`: its id.
    pub fn write(&self, page: &mut String, server: &str) {
        const FETCHED: &str = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_timestamp_seconds";
        const KEYS: &str = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info";
        let (set, id) = (self.current.read().clone(), hash(server));
        let of_issuers: Vec<(String, Told)> = set
            .issuers
            .iter()
            .filter_map(|issuer| Some((hash(&issuer.trusted.issuer.url), issuer.provider.keys()?.told())))
            .collect();
        let _ = writeln!(page, "# TYPE {FETCHED} gauge");
        for (issuer, told) in &of_issuers {
            for (result, at) in [("failure", told.failure), ("success", told.success)] {
                if let Some(at) = at {
                    let _ = writeln!(
                        page,
                        "{FETCHED}{{apiserver_id_hash=\"{id}\",jwt_issuer_hash=\"{issuer}\",result=\"{result}\"}} {at}"
                    );
                }
            }
        }
        let _ = writeln!(page, "# TYPE {KEYS} gauge");
        for (issuer, told) in &of_issuers {
            if let Some(keys) = &told.hash {
                let _ = writeln!(
                    page,
                    "{KEYS}{{apiserver_id_hash=\"{id}\",hash=\"{keys}\",jwt_issuer_hash=\"{issuer}\"}} 1"
                );
            }
        }
    }

    /// The user of a token. `None`: it is no trusted issuer's.
    pub async fn authenticate(&self, token: &str) -> Result<Option<UserInfo>, String> {
        let Some(claimed) = verify::claimed_issuer(token) else {
            return Ok(None);
        };
        let set = self.current.read().clone();
        match set.issuers.iter().find(|i| i.trusted.issuer.url == claimed) {
            Some(issuer) => issuer.authenticate(token).await.map(Some),
            None => Ok(None),
        }
    }
}

impl Set {
    fn start(trusted: &[Arc<Trusted>], algorithms: &[String]) -> anyhow::Result<Set> {
        let stop = CancellationToken::new();
        let issuers = trusted
            .iter()
            .map(|t| Issuer::start(t.clone(), algorithms, &stop))
            .collect::<anyhow::Result<_>>()?;
        Ok(Set {
            issuers,
            _stop: stop.drop_guard(),
        })
    }
}

impl Issuer {
    fn start(trusted: Arc<Trusted>, algorithms: &[String], stop: &CancellationToken) -> anyhow::Result<Issuer> {
        let issuer = &trusted.issuer;
        anyhow::ensure!(
            issuer.egress_selector_type.is_empty(),
            "oidc: egress lookup required with egress selector type {:?}",
            issuer.egress_selector_type
        );
        let client = Client::trusting(&issuer.certificate_authority)?;
        let expected = Expected {
            audiences: trusted.audiences.clone(),
            algorithms: algorithms.to_vec(),
        };
        let document = issuer.discovery_url.as_deref().filter(|u| !u.is_empty());
        let provider = Provider::start(client.clone(), &issuer.url, document, stop.clone());
        let resolver = trusted
            .groups_claim()
            .map(|claim| Resolver::new(claim, client, expected.clone(), stop.clone()));
        Ok(Issuer {
            provider,
            expected,
            resolver,
            trusted,
        })
    }

    async fn authenticate(&self, token: &str) -> Result<UserInfo, String> {
        let keys = self.provider.keys().ok_or("oidc: authenticator not initialized")?;
        let payload = self
            .expected
            .verify(token, self.provider.issuer(), keys)
            .await
            .map_err(|why| format!("oidc: verify token: {why}"))?;
        let mut claims = Claims::parse(&payload).map_err(|why| format!("oidc: parse claims: {why}"))?;
        if let Some(resolver) = &self.resolver {
            resolver
                .expand(&mut claims)
                .await
                .map_err(|why| format!("oidc: could not expand distributed claims: {why}"))?;
        }
        claims.user(&self.trusted)
    }
}
