//! Deletes bootstrap tokens when they have expired. The API server refuses them from that moment on; here they are cleared
//! away.

use crate::context::{Context, now};
use crate::wire;
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use keelson_client::{
    ApiObject, Controller, Informer, InformerOptions, Kind, ObjectKey, Objects, Outcome, Reconcile, delete_options,
    is_not_found,
};

pub fn start(context: &Context) {
    let rest = context.rest("token-cleaner");
    let options = InformerOptions {
        namespace: "kube-system".into(),
        fields: "type=bootstrap.kubernetes.io/token".into(),
        ..InformerOptions::default()
    };
    let tokens: Informer<Secret> = Informer::start(&rest, options, &context.stop);
    let controller = Controller::new("token-cleaner-controller")
        .input(&tokens)
        .output(Secret::RESOURCE);
    wire::own(&tokens, &controller.queue());
    let objects = Objects::new(&rest);
    context.run(controller, Cleaner { tokens, objects });
}

struct Cleaner {
    tokens: Informer<Secret>,
    objects: Objects<Secret>,
}

/// When the token ends, if ever. What is no date never was a valid token: it has ended.
fn expires(token: &Secret) -> Option<Timestamp> {
    let text = token.data.as_ref()?.get("expiration").filter(|t| !t.0.is_empty())?;
    let text = String::from_utf8_lossy(&text.0);
    Some(text.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

#[async_trait]
impl Reconcile for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(token) = self.tokens.store().get_key(key).filter(|t| !t.is_deleting()) else {
            return Ok(Outcome::Done);
        };
        let Some(at) = expires(&token) else {
            return Ok(Outcome::Done);
        };
        if at > now() {
            return Ok(Outcome::At(at));
        }
        let options = delete_options(None, Some(token.uid()), None);
        match self.objects.delete(&key.namespace, &key.name, &options).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_ends_when_it_says_and_at_once_if_it_says_nonsense() {
        let at = |expiration: Option<&str>| {
            let encoded = expiration.map(|e| k8s_openapi::ByteString(e.as_bytes().to_vec()));
            let token: Secret = serde_json::from_value(json!({"data": {"expiration": encoded}})).expect("a secret");
            expires(&token).map(|t| t.to_string())
        };
        assert_eq!(
            at(Some("2026-01-01T00:00:00Z")).as_deref(),
            Some("2026-01-01T00:00:00Z")
        );
        assert_eq!(at(Some("soon")).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!((at(None), at(Some(""))), (None, None));
    }
}
