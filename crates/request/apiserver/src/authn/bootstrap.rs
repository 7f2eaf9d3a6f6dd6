//! Bootstrap tokens: by which a machine that joins asks for its certificate.

use super::TokenIdentity;
use crate::request::UserInfo;
use crate::serve::Loopback;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{Object, Str};
use keelson_pki::BootstrapToken;

const GROUP: &str = "system:bootstrappers";

/// Checks a token against its Secret; `None` for what is no valid bootstrap token.
pub async fn authenticate(
    token: &str,
    reader: &Loopback,
    now: jiff::Timestamp,
) -> Result<Option<TokenIdentity>, String> {
    let Ok(token) = token.parse::<BootstrapToken>() else {
        return Ok(None);
    };
    let path = format!("/api/v1/namespaces/kube-system/secrets/{}", token.secret_name());
    let Some(secret) = reader.object(&path).await.map_err(|e| e.message)? else {
        return Ok(None);
    };
    let data = |key: &str| data(&secret, key);
    let valid = secret.str("type") == Some("bootstrap.kubernetes.io/token")
        && secret.deletion_timestamp().is_none()
        && data("token-id").as_deref() == Some(token.id.as_str())
        && same(
            data("token-secret").unwrap_or_default().as_bytes(),
            token.secret.as_bytes(),
        )
        && data("usage-bootstrap-authentication").as_deref() == Some("true")
        && match data("expiration") {
            None => true,
            Some(text) => text.parse::<jiff::Timestamp>().is_ok_and(|expires| now < expires),
        };
    if !valid {
        return Ok(None);
    }
    let mut groups: Vec<Str> = vec![GROUP.into()];
    for group in data("auth-extra-groups")
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|g| !g.is_empty())
    {
        if !is_bootstrap_group(group) {
            return Err(format!(
                "bootstrap group {group:?} is invalid (must match system:bootstrappers:*)"
            ));
        }
        groups.push(group.into());
    }
    let name = format!("system:bootstrap:{}", token.id);
    let user = UserInfo {
        name: name.into(),
        groups,
        ..UserInfo::default()
    };
    Ok(Some(TokenIdentity {
        user,
        ..TokenIdentity::default()
    }))
}

/// The text of a secret's value.
pub(super) fn data(secret: &Object, key: &str) -> Option<String> {
    let encoded = secret.obj("data")?.str(key)?;
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
}

fn is_bootstrap_group(group: &str) -> bool {
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        (1..=256).contains(&rest.len())
            && rest
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b':' || b == b'-')
            && rest.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
    })
}

/// Compares in a time that doesn't tell where texts differ.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}
