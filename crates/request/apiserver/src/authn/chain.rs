//! The authenticators in upstream's order: within the process, front proxy, client certificate, bearer token; nobody
//! known is anonymous, but who proves something wrong is refused.

use super::cache::{Found, TokenCache};
use super::oidc::Issuers;
use super::revoked::{Known, Proof, Revocations, Shown, Unknown, may_stay};
use super::static_tokens::StaticTokens;
use super::structured::Anonymous;
use super::tokens::ServiceAccountTokens;
use super::webhook::Webhook;
use super::x509::PeerCertificate;
use super::{Remarks, TokenAuthenticator, TokenIdentity, bootstrap};
use crate::config::file::together;
use crate::joining::Joining;
use crate::request::user::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::request::{Request, RequestContext, UserInfo, extra_key, name_of, socket};
use crate::serve::{InProcessIdentity, Loopback};
use crate::sync;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use keelson_api::Str;
use keelson_client::revocations::Shows;
use keelson_pki::{ServiceAccountKeys, revocation};
use std::sync::Arc;
use std::time::Duration;

pub struct Authenticator {
    chain: Arc<Tokens>,
    revocations: Arc<Revocations>,
    cache: Arc<TokenCache>,
    anonymous: Anonymous,
    /// Common names of front proxies; empty: any that their authority signed.
    front_proxy_names: Vec<Str>,
}

/// Those who know tokens: the server itself first, then others, who may have to be asked.
pub struct Tokens {
    pub service_accounts: Arc<ServiceAccountTokens>,
    pub reader: Loopback,
    /// Those of a file.
    pub named: Option<Arc<StaticTokens>>,
    pub joining: Option<Joining>,
    pub issuers: Option<Arc<Issuers>>,
    pub webhook: Option<Arc<Webhook>>,
}

/// How long a token counts as good without being looked at, as upstream has it. What isn't good is not remembered here.
const GOOD_FOR: Duration = Duration::from_secs(10);

const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

impl Authenticator {
    pub fn new(
        chain: Tokens,
        revocations: Arc<Revocations>,
        anonymous: Anonymous,
        front_proxy_names: Vec<Str>,
    ) -> Self {
        Authenticator {
            chain: Arc::new(chain),
            revocations,
            cache: TokenCache::new(GOOD_FOR, Duration::ZERO),
            anonymous,
            front_proxy_names,
        }
    }

    /// Who sent a request, and what proved it, which is taken off.
    pub async fn authenticate(&self, request: &mut Request, context: &RequestContext) -> Result<Known, Unknown> {
        if let Some(InProcessIdentity(user)) = request.extensions_mut().remove() {
            return Ok(Known::unproved(user));
        }
        let found = self.known(request, context).await;
        strip(request.headers_mut());
        match found {
            Ok(Some((mut user, proof))) => {
                add_authenticated(&mut user);
                Ok(Known {
                    user: Arc::new(user),
                    proof: Some(proof),
                })
            }
            Ok(None) if self.anonymous.takes(request.uri().path()) => {
                Ok(Known::unproved(Arc::new(UserInfo::anonymous())))
            }
            Ok(None) => Err(Unknown::Refused),
            Err(why) => Err(why),
        }
    }

    async fn known(
        &self,
        request: &mut Request,
        context: &RequestContext,
    ) -> Result<Option<(UserInfo, Proof)>, Unknown> {
        let mut errors = Vec::new();
        if let Some(peer) = request.extensions().get::<Arc<PeerCertificate>>() {
            if keelson_clock::now().as_second() > peer.not_after {
                errors.push("the client certificate has expired".to_string());
            } else {
                if peer.is_vouched_for() {
                    self.ready_to_judge().await?;
                    // Who shows what has been taken back isn't let in by something else, nor anonymously.
                    if let Some(why) = self.revocations.judge(&peer.credential()) {
                        return Err(Unknown::Revoked(why));
                    }
                }
                let proof = || Proof::Certificate(peer.clone());
                if let Some(user) = self.front_proxy(peer, request.headers()) {
                    return Ok(Some((user, proof())));
                }
                match &peer.client {
                    Ok(user) => return Ok(Some((user.clone(), proof()))),
                    Err(e) => errors.push(e.clone()),
                }
            }
        }
        let token = bearer_token(request.headers()).unwrap_or_else(|why| {
            errors.push(why.to_string());
            None
        });
        if let Some(token) = token {
            self.ready_to_judge().await?;
            match self.cached(&token, &[]).await {
                Ok(Some(identity)) => {
                    let stays = may_stay(&context.info, request.headers());
                    let shown = self.shown(&token, &identity, stays);
                    if let Some(why) = self.revocations.judge(&shown.credential()) {
                        return Err(Unknown::Revoked(why));
                    }
                    hide_websocket_token(request.headers_mut());
                    let Remarks { warnings, annotations } = identity.remarks;
                    warnings.into_iter().for_each(|w| context.warnings.add(w));
                    annotations.into_iter().for_each(|(k, v)| context.audit.add(k, v));
                    return Ok(Some((identity.user, Proof::Token(shown))));
                }
                Ok(None) => errors.push("invalid bearer token".into()),
                Err(e) => errors.push(e),
            }
        }
        if errors.is_empty() {
            return Ok(None);
        }
        tracing::debug!("unable to authenticate the request: {}", together(errors));
        Err(Unknown::Refused)
    }

    /// Nobody is believed before it is known what has been taken back.
    async fn ready_to_judge(&self) -> Result<(), Unknown> {
        match self.revocations.are_read(sync::PATIENCE).await {
            true => Ok(()),
            false => Err(Unknown::TooEarly),
        }
    }

    async fn cached(&self, token: &str, audiences: &[Str]) -> Found {
        let ask = || {
            let (chain, token, audiences) = (self.chain.clone(), token.to_string(), audiences.to_vec());
            async move { chain.ask(&token, &audiences).await }
        };
        self.cache.through(token, audiences, ask).await
    }

    /// What tells the token from others. Its text is only looked at where that is asked for, now or later.
    fn shown(&self, token: &str, identity: &TokenIdentity, stays: bool) -> Shown {
        let by_text = stays || self.revocations.has_token(token);
        Shown {
            name: identity.user.name.clone(),
            id: identity.id.clone(),
            issued: identity.issued,
            bearer: by_text.then(|| revocation::bearer(token)),
        }
    }

    /// The user that a front proxy vouches for.
    fn front_proxy(&self, peer: &PeerCertificate, headers: &HeaderMap) -> Option<UserInfo> {
        let proxy = peer.front_proxy.as_ref()?;
        if !self.front_proxy_names.is_empty() && !self.front_proxy_names.contains(proxy) {
            return None;
        }
        vouched(headers)
    }
}

/// The user that a front proxy's headers name.
fn vouched(headers: &HeaderMap) -> Option<UserInfo> {
    // Only what HTTP has around a value goes: a name may begin with another sort of space, and be somebody else's than the one without.
    let text = |v: &HeaderValue| Str::from(name_of(v).trim_matches([' ', '\t']));
    let name = headers.get("x-remote-user").map(text).filter(|n| !n.is_empty())?;
    let mut user = UserInfo {
        name,
        uid: headers.get("x-remote-uid").map(text).unwrap_or_default(),
        groups: headers
            .get_all("x-remote-group")
            .iter()
            .map(text)
            .filter(|group| !group.is_empty())
            .collect(),
        ..UserInfo::default()
    };
    for (key, value) in headers {
        if let Some(key) = key.as_str().strip_prefix("x-remote-extra-") {
            user.extra.entry(extra_key(key)).or_default().push(text(value));
        }
    }
    Some(user)
}

#[async_trait]
impl TokenAuthenticator for Authenticator {
    async fn authenticate_token(&self, token: &str, audiences: &[Str]) -> Result<Option<TokenIdentity>, String> {
        if !self.revocations.are_read(sync::PATIENCE).await {
            return Err("it isn't known yet which tokens have been revoked".into());
        }
        let found = self.cached(token, audiences).await?;
        if let Some(identity) = &found
            && let Some(why) = self.revocations.judge(&self.shown(token, identity, false).credential())
        {
            return Err(why);
        }
        Ok(found)
    }
}

impl Tokens {
    /// All are asked until one knows the token; if none does, what they had against it is told together.
    async fn ask(&self, token: &str, audiences: &[Str]) -> Found {
        let own = &self.service_accounts.audiences;
        let wanted = if audiences.is_empty() { own } else { audiences };
        // Who knows nothing of audiences vouches for this server's only.
        let common: Vec<Str> = own.iter().filter(|a| wanted.contains(a)).cloned().collect();
        let for_us = |user| TokenIdentity {
            user,
            audiences: common.clone(),
            ..TokenIdentity::default()
        };
        let now = keelson_clock::now();
        let mut errors = Vec::new();
        let mut take = |found: Found| match found {
            Ok(found) => found,
            Err(why) => {
                errors.push(why);
                None
            }
        };
        let server = self.joining.as_ref().filter(|_| !common.is_empty());
        if let Some(user) = server.and_then(|joining| joining.authenticate(token)) {
            let mut identity = for_us(user);
            add_authenticated(&mut identity.user);
            return Ok(Some(identity));
        }
        let named = self.named.as_ref().filter(|_| !common.is_empty());
        if let Some(user) = named.and_then(|named| named.authenticate(token)) {
            let mut identity = for_us(user);
            add_authenticated(&mut identity.user);
            return Ok(Some(identity));
        }
        let accounts = &self.service_accounts;
        let mut found = take(accounts.authenticate(token, audiences, &self.reader, now).await);
        if found.is_none() && !common.is_empty() {
            let bootstrap = bootstrap::authenticate(token, &self.reader, now).await;
            found = take(bootstrap.map(|f| f.map(|identity| for_us(identity.user))));
        }
        if let (None, Some(issuers), false) = (&found, &self.issuers, common.is_empty()) {
            found = take(issuers.authenticate(token).await.map(|user| user.map(for_us)));
            found = found.map(|identity| dated(identity, token));
        }
        if let (None, Some(webhook)) = (&found, &self.webhook) {
            found = take(webhook.authenticate(token, wanted, own).await);
            found = found.map(|identity| dated(identity, token));
        }
        match found {
            Some(mut identity) => {
                add_authenticated(&mut identity.user);
                Ok(Some(identity))
            }
            None if errors.is_empty() => Ok(None),
            None => Err(together(errors)),
        }
    }
}

/// With what a token that others vouch for says of itself.
fn dated(identity: TokenIdentity, token: &str) -> TokenIdentity {
    let Some(claims) = ServiceAccountKeys::unverified(token) else {
        return identity;
    };
    TokenIdentity {
        id: claims.jti.as_str().into(),
        issued: claims.iat,
        ..identity
    }
}

fn add_authenticated(user: &mut UserInfo) {
    if user.name != ANONYMOUS && !user.groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
}

fn bearer_token(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = name_of(value);
        let pair = value.trim().split_once(' ');
        let token = pair
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim_start())
            .filter(|token| !token.is_empty());
        return Ok(token.map(String::from));
    }
    if !socket::is_wanted(headers) {
        return Ok(None);
    }
    // Browsers can't set headers of a WebSocket; they pass the token as a sub-protocol. One more has to be there, to be
    // answered with.
    let offered = socket::offered(headers);
    let mut tokens = offered.iter().filter_map(|p| p.strip_prefix(WEBSOCKET_TOKEN));
    let Some(encoded) = tokens.next() else { return Ok(None) };
    if tokens.next().is_some() {
        return Err("multiple base64.bearer.authorization tokens specified");
    }
    let bytes = URL_SAFE_NO_PAD
        .decode(encoded)
        .map_err(|_| "invalid base64.bearer.authorization token encoding")?;
    let token = String::from_utf8(bytes).map_err(|_| "invalid base64.bearer.authorization token")?;
    if !token.is_empty() && offered.len() == 1 {
        return Err("missing additional subprotocol");
    }
    Ok(Some(token).filter(|token| !token.is_empty()))
}

fn hide_websocket_token(headers: &mut HeaderMap) {
    let mut kept = socket::offered(headers);
    kept.retain(|p| !p.starts_with(WEBSOCKET_TOKEN));
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let (false, Ok(value)) = (kept.is_empty(), HeaderValue::from_str(&kept.join(","))) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// What proves an identity goes no further.
fn strip(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    take_identity(headers);
}

/// Takes off the headers by which a front proxy says who asks.
pub fn take_identity(headers: &mut HeaderMap) {
    let remote: Vec<HeaderName> = headers
        .keys()
        .filter(|k| {
            matches!(k.as_str(), "x-remote-user" | "x-remote-uid" | "x-remote-group")
                || k.as_str().starts_with("x-remote-extra-")
        })
        .cloned()
        .collect();
    for name in remote {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_front_proxy_names_is_nobody_elses_namesake() {
        let mut headers = HeaderMap::new();
        let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).unwrap();
        assert_eq!(vouched(&headers), None);
        headers.insert("x-remote-user", value(" \u{a0}bob\t"));
        for group in ["\u{3000}system:masters", "", "people"] {
            headers.append("x-remote-group", value(group));
        }
        let user = vouched(&headers).unwrap();
        assert_eq!(user.name, "\u{a0}bob");
        assert_eq!(user.groups, ["\u{3000}system:masters", "people"]);
    }
}
