//! The authorisation configuration while the server runs.

use super::Authorizers;
use super::structured::Written;
use crate::config::file::{Into, Refused};
use async_trait::async_trait;
use std::sync::Arc;

/// What the file is read into.
pub struct Reload(pub Arc<Authorizers>);

#[async_trait]
impl Into for Reload {
    async fn take(&self, text: &str) -> Result<(), Refused> {
        let written = Written::parse(text);
        let checked = written.and_then(|w| w.check(self.0.required()));
        let taken = checked.and_then(|members| self.0.replace(&members));
        // Upstream gives up on a content that it couldn't use, whatever the cause.
        taken.map_err(|e| Refused::Content(format!("{e:#}")))
    }
}
