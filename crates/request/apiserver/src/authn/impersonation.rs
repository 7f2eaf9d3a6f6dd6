//! Impersonation: a user acts as another, if it may. Each part that is asked for (user, groups, extra, UID) is
//! authorised by itself.

use crate::authz::{Attributes, Authorizers};
use crate::request::UserInfo;
use crate::request::user::{ANONYMOUS, AUTHENTICATED, SERVICE_ACCOUNTS, UNAUTHENTICATED};
use http::{HeaderMap, HeaderName};
use keelson_api::{ApiError, ApiResult, Str};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// Stands in a request of somebody who acts as another.
#[derive(Clone, Copy)]
pub struct Acting;

/// The user to act as; `None` when none is asked for. The headers are taken off.
pub async fn impersonate(
    requestor: &UserInfo,
    headers: &mut HeaderMap,
    authorizer: &Authorizers,
) -> ApiResult<Option<UserInfo>> {
    let asked: Vec<HeaderName> = headers
        .keys()
        .filter(|k| matches!(k.as_str(), USER | GROUP | UID) || k.as_str().starts_with(EXTRA))
        .cloned()
        .collect();
    if asked.is_empty() {
        return Ok(None);
    }
    let all = |key: &HeaderName| -> Vec<Str> {
        headers
            .get_all(key)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .map(Str::from)
            .collect()
    };
    let one = |key: &str| {
        headers
            .get(key)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_string()
    };
    let name = one(USER);
    if name.is_empty() {
        let names: Vec<&str> = asked.iter().map(HeaderName::as_str).collect();
        return Err(ApiError::bad_request(format!(
            "requested [{}] without impersonating a user",
            names.join(" ")
        )));
    }
    let mut target = UserInfo {
        name: name.as_str().into(),
        ..UserInfo::default()
    };
    let may = async |group: &str, version: &str, resource: &str, sub: &str, namespace: &str, name: &str| {
        let a = Attributes {
            user: requestor.clone(),
            verb: "impersonate".into(),
            is_resource_request: true,
            api_group: group.into(),
            api_version: version.into(),
            resource: resource.into(),
            subresource: sub.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        let decision = authorizer.authorize(&a).await;
        if decision.is_allowed() {
            Ok(())
        } else {
            Err(a.forbidden(decision.reason()))
        }
    };
    let groups_given = asked.iter().any(|k| k == GROUP);
    let account = target
        .service_account_name()
        .map(|(ns, n)| (Str::from(ns), Str::from(n)));
    match &account {
        Some((namespace, account)) => {
            may("", "v1", "serviceaccounts", "", namespace, account).await?;
            if !groups_given {
                target.groups = vec![
                    SERVICE_ACCOUNTS.into(),
                    format!("{SERVICE_ACCOUNTS}:{namespace}").into(),
                ];
            }
        }
        None => may("", "v1", "users", "", "", &name).await?,
    }
    for key in &asked {
        if key == GROUP {
            for group in all(key) {
                may("", "v1", "groups", "", "", &group).await?;
                target.groups.push(group);
            }
        } else if let Some(field) = key.as_str().strip_prefix(EXTRA) {
            let field = percent_encoding::percent_decode_str(field)
                .decode_utf8_lossy()
                .to_string();
            for value in all(key) {
                may("authentication.k8s.io", "v1", "userextras", &field, "", &value).await?;
                target.extra.entry(field.as_str().into()).or_default().push(value);
            }
        }
    }
    let uid = one(UID);
    if !uid.is_empty() {
        may("authentication.k8s.io", "v1", "uids", "", "", &uid).await?;
        target.uid = uid.into();
    }
    if target.name == ANONYMOUS {
        if !target.in_group(UNAUTHENTICATED) {
            target.groups.push(UNAUTHENTICATED.into());
        }
    } else if !target.in_group(AUTHENTICATED) && !target.in_group(UNAUTHENTICATED) {
        target.groups.push(AUTHENTICATED.into());
    }
    for key in asked {
        headers.remove(key);
    }
    Ok(Some(target))
}
