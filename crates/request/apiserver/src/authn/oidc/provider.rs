//! Finding an issuer: its discovery document says where its keys are. Who isn't there is looked for every ten seconds, as
//! upstream does; until then its tokens are refused, and nobody waits.

use super::fetch::Client;
use super::keys::RemoteKeys;
use parking_lot::Mutex;
use serde::Deserialize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const AGAIN: Duration = Duration::from_secs(10);

pub struct Provider {
    issuer: String,
    keys: OnceLock<Arc<RemoteKeys>>,
    failure: Mutex<String>,
    told: Notify,
}

/// What counts of a discovery document.
#[derive(Deserialize)]
struct Discovered {
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    jwks_uri: String,
}

impl Provider {
    /// Looks for the issuer until it is found or `stop`. `document`: where its discovery document is, if not below its URL.
    pub fn start(client: Client, issuer: &str, document: Option<&str>, stop: CancellationToken) -> Arc<Provider> {
        let provider = Arc::new(Provider {
            issuer: issuer.to_string(),
            keys: OnceLock::new(),
            failure: Mutex::new(format!("oidc: authenticator for issuer {issuer:?} is not initialized")),
            told: Notify::new(),
        });
        let below = || {
            let base = issuer.strip_suffix('/').unwrap_or(issuer);
            format!("{base}/.well-known/openid-configuration")
        };
        let document = document.map_or_else(below, str::to_string);
        let looking = provider.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = looking.look(client, &document) => {}
                () = stop.cancelled() => {}
            }
        });
        provider
    }

    async fn look(&self, client: Client, document: &str) {
        loop {
            match self.discover(&client, document).await {
                Ok(url) => {
                    let keys = self.keys.set(Arc::new(RemoteKeys::new(client, url)));
                    debug_assert!(keys.is_ok(), "an issuer is found once");
                    self.told.notify_waiters();
                    return;
                }
                Err(why) => {
                    tracing::error!(issuer = self.issuer, "oidc authenticator: initializing plugin: {why}");
                    *self.failure.lock() = why;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn discover(&self, client: &Client, document: &str) -> Result<String, String> {
        let found = client.get(document, None).await?;
        let found = found.ok().map_err(|(status, body)| format!("{status}: {body}"))?;
        let found: Discovered = serde_json::from_slice(&found.body)
            .map_err(|e| format!("oidc: failed to decode provider discovery object: {e}"))?;
        if found.issuer != self.issuer {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {:?}",
                self.issuer, found.issuer
            ));
        }
        match found.jwks_uri.as_str() {
            "" => Err("provider did not return JWKS URL".into()),
            url => Ok(url.to_string()),
        }
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }
    pub fn keys(&self) -> Option<&Arc<RemoteKeys>> {
        self.keys.get()
    }
    /// Why there are no keys yet.
    pub fn health(&self) -> Result<(), String> {
        match self.keys.get() {
            Some(_) => Ok(()),
            None => Err(format!(
                "oidc: authenticator for issuer {:?} is not healthy: {}",
                self.issuer,
                self.failure.lock()
            )),
        }
    }
    /// Resolves when the issuer has been found.
    pub async fn found(&self) {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if self.keys.get().is_some() {
                return;
            }
            told.await;
        }
    }
}
