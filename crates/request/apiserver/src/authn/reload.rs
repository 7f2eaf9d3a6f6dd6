//! The authentication configuration while the server runs: a changed file is in force when all of its issuers are found.

use super::oidc::Issuers;
use super::structured::{Anonymous, Written};
use crate::config::file::{Into, Refused};
use async_trait::async_trait;
use std::sync::Arc;

/// What the file is read into.
pub struct Reload {
    pub issuers: Arc<Issuers>,
    /// As it stood at the start; it can't change.
    pub anonymous: Option<Anonymous>,
    /// Issuers that no other may claim to be.
    pub own: Vec<String>,
}

#[async_trait]
impl Into for Reload {
    async fn take(&self, text: &str) -> Result<(), Refused> {
        let never = |e: anyhow::Error| Refused::Content(format!("{e:#}"));
        let written = Written::parse(text).map_err(never)?;
        let trusted = written.check(&self.own).map_err(never)?;
        if written.anonymous != self.anonymous {
            let why = "anonymous: Forbidden: changed from initial configuration file";
            return Err(Refused::Content(why.into()));
        }
        self.issuers.replace(&trusted).await.map_err(Refused::NotNow)
    }
}
