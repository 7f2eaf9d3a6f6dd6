//! Service-account tokens: checked by signature, time, audience and the objects they name; and issued.
//!
//! Tokens in secrets have a form of their own ([`legacy`]). Accepted tokens are remembered for ten seconds, as upstream remembers them, so that a busy client costs no reads.

use super::legacy;
pub use super::legacy::Uses;
use super::x509::CREDENTIAL_ID;
use super::{IssuedToken, TokenIdentity, TokenIssuer, TokenSpec};
use crate::request::UserInfo;
use crate::serve::Loopback;
use keelson_api::{ApiError, ApiResult, Object, Str};
use keelson_pki::jwt::{Claims, KubernetesClaims, LEEWAY_SECONDS, LEGACY_ISSUER, Ref, ServiceAccountKeys};
use std::sync::Arc;

/// What a kubelet asks for, to mark the token as one that gets renewed.
const WARN_AFTER_SECONDS: i64 = 60 * 60 + 7;
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;

/// The keys and names of the cluster's issuer.
pub struct ServiceAccountTokens {
    pub keys: Arc<ServiceAccountKeys>,
    /// The first signs; tokens of all are accepted.
    pub issuers: Vec<String>,
    /// The API server's audiences.
    pub audiences: Vec<Str>,
    /// Whether a pod's token outlives a client that doesn't read it anew.
    pub extends: bool,
    /// Of tokens in secrets.
    pub uses: Uses,
}

impl ServiceAccountTokens {
    /// `None`: not a token of ours.
    pub async fn authenticate(
        &self,
        token: &str,
        audiences: &[Str],
        reader: &Loopback,
        now: jiff::Timestamp,
    ) -> Result<Option<TokenIdentity>, String> {
        match ServiceAccountKeys::claimed_issuer(token) {
            Some(issuer) if issuer == LEGACY_ISSUER => {
                return legacy::authenticate(self, token, audiences, reader, now)
                    .await
                    .map(Some);
            }
            Some(issuer) if self.issuers.contains(&issuer) => {}
            _ => return Ok(None),
        }
        let claims = self.keys.verify(token).map_err(|e| e.to_string())?;
        if !self.issuers.contains(&claims.iss) {
            return Err(format!("token issuer {:?} is invalid", claims.iss));
        }
        let accepted = self.common_audiences(&claims.aud, audiences)?;
        let now = now.as_second();
        claims.check_time(now).map_err(|e| e.to_string())?;
        check_objects(&claims.kubernetes, reader, now - LEEWAY_SECONDS).await?;
        Ok(Some(TokenIdentity {
            user: user_of(&claims),
            audiences: accepted,
            id: claims.jti.as_str().into(),
            issued: claims.iat,
            ..TokenIdentity::default()
        }))
    }

    /// Of a token's audiences those that are wanted; one that names none is for this server.
    pub(super) fn common_audiences(&self, named: &[String], wanted: &[Str]) -> Result<Vec<Str>, String> {
        let of_token: Vec<Str> = if named.is_empty() {
            self.audiences.clone()
        } else {
            named.iter().map(Str::from).collect()
        };
        let wanted = if wanted.is_empty() { &self.audiences } else { wanted };
        let common: Vec<Str> = of_token.iter().filter(|a| wanted.contains(a)).cloned().collect();
        if common.is_empty() {
            return Err(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(&of_token),
                quoted(wanted)
            ));
        }
        Ok(common)
    }
}

fn quoted(list: &[Str]) -> String {
    let each: Vec<String> = list.iter().map(|s| format!("{:?}", s.as_str())).collect();
    format!("[{}]", each.join(" "))
}

const INVALIDATED: &str = "service account token has been invalidated";

/// Whether the objects that a token names still exist, with the same UID.
async fn check_objects(claims: &KubernetesClaims, reader: &Loopback, deleted_before: i64) -> Result<(), String> {
    let (namespace, account) = (&claims.namespace, &claims.serviceaccount);
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{}", account.name);
    let found = reader
        .object(&path)
        .await
        .map_err(|e| e.message)?
        .ok_or_else(|| format!("serviceaccounts {:?} not found", account.name))?;
    if found.uid() != account.uid {
        return Err(format!(
            "service account UID ({}) does not match claim ({})",
            found.uid(),
            account.uid
        ));
    }
    if gone(&found, deleted_before) {
        return Err(format!("service account {namespace}/{} has been deleted", account.name));
    }
    let bound = [
        (
            "secret",
            claims.secret.as_ref(),
            format!("/api/v1/namespaces/{namespace}/secrets"),
        ),
        (
            "pod",
            claims.pod.as_ref(),
            format!("/api/v1/namespaces/{namespace}/pods"),
        ),
        // The node of a pod's token is a remark; a token bound to a node names nothing else.
        (
            "node",
            claims.node.as_ref().filter(|_| claims.pod.is_none()),
            "/api/v1/nodes".to_string(),
        ),
    ];
    for (kind, reference, collection) in bound {
        if let Some(reference) = reference {
            check_bound(kind, reference, &collection, reader, deleted_before).await?;
        }
    }
    Ok(())
}

async fn check_bound(
    kind: &str,
    reference: &Ref,
    collection: &str,
    reader: &Loopback,
    deleted_before: i64,
) -> Result<(), String> {
    let found = match reader.object(&format!("{collection}/{}", reference.name)).await {
        Ok(Some(found)) => found,
        Ok(None) => return Err(INVALIDATED.into()),
        Err(e) => return Err(e.message),
    };
    if found.uid() != reference.uid {
        let title = match kind {
            "secret" => "secret",
            "pod" => "Pod",
            _ => "Node",
        };
        return Err(format!(
            "{title} UID ({}) does not match service account {kind} ref claim ({})",
            found.uid(),
            reference.uid
        ));
    }
    if gone(&found, deleted_before) {
        Err(INVALIDATED.into())
    } else {
        Ok(())
    }
}

fn gone(object: &Object, before: i64) -> bool {
    object
        .deletion_timestamp()
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .is_some_and(|deleted| deleted.as_second() < before)
}

fn user_of(claims: &Claims) -> UserInfo {
    let k = &claims.kubernetes;
    let mut user = UserInfo::service_account(&k.namespace, &k.serviceaccount.name, &k.serviceaccount.uid);
    // The chain adds this group to whoever is authenticated.
    user.groups.retain(|g| g != crate::request::user::AUTHENTICATED);
    let mut extra = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(key.into(), vec![value.into()]);
        }
    };
    if let Some(pod) = &k.pod {
        extra("authentication.kubernetes.io/pod-name", &pod.name);
        extra("authentication.kubernetes.io/pod-uid", &pod.uid);
    }
    if let Some(node) = &k.node {
        extra("authentication.kubernetes.io/node-name", &node.name);
        extra("authentication.kubernetes.io/node-uid", &node.uid);
    }
    if !claims.jti.is_empty() {
        extra(CREDENTIAL_ID, &format!("JTI={}", claims.jti));
    }
    user
}

/// Issues tokens.
pub struct Issuer(pub Arc<ServiceAccountTokens>);

impl TokenIssuer for Issuer {
    fn issue(&self, spec: &TokenSpec) -> ApiResult<IssuedToken> {
        let tokens = &self.0;
        let now = keelson_clock::now().as_second();
        let audiences = if spec.audiences.is_empty() {
            tokens.audiences.clone()
        } else {
            spec.audiences.clone()
        };
        let ours = audiences.iter().all(|a| tokens.audiences.contains(a));
        // A pod's token for the API server outlives a client that doesn't reload it, and says when it should have.
        let extended = tokens.extends && spec.pod.is_some() && ours && spec.expiration_seconds == WARN_AFTER_SECONDS;
        let lifetime = if extended {
            EXTENDED_SECONDS
        } else {
            spec.expiration_seconds
        };
        let reference = |o: &super::BoundObject| Ref {
            name: o.name.to_string(),
            uid: o.uid.to_string(),
        };
        let id = uuid::Uuid::new_v4().to_string();
        let claims = Claims {
            aud: audiences.iter().map(Str::to_string).collect(),
            exp: Some(now + lifetime),
            iat: Some(now),
            nbf: Some(now),
            iss: tokens.issuers.first().cloned().unwrap_or_default(),
            jti: id.clone(),
            sub: format!("system:serviceaccount:{}:{}", spec.namespace, spec.service_account.name),
            kubernetes: KubernetesClaims {
                namespace: spec.namespace.to_string(),
                serviceaccount: reference(&spec.service_account),
                pod: spec.pod.as_ref().map(reference),
                node: spec.node.as_ref().map(reference),
                secret: spec.secret.as_ref().map(reference),
                warnafter: extended.then_some(now + spec.expiration_seconds),
            },
        };
        let token = tokens.keys.sign(&claims).map_err(ApiError::internal)?;
        let expires = jiff::Timestamp::from_second(now + spec.expiration_seconds).map_err(ApiError::internal)?;
        Ok(IssuedToken {
            token,
            expires,
            audiences,
            expiration_seconds: spec.expiration_seconds,
            id,
        })
    }
}
