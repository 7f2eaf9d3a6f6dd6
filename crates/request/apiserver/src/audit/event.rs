//! An event of the log, in the form of `audit.k8s.io/v1`.

use super::policy::{Level, Stage};
use crate::request::{RequestContext, UserInfo};
use keelson_api::Str;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: Level,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: Stage,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'a str,
    user: User<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<User<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authentication_metadata: Option<AuthenticationMetadata>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Option::is_none")]
    source_ips: Option<[String; 1]>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<ObjectRef<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<Outcome<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<&'a RawValue>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<Str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationMetadata {
    impersonation_constraint: &'static str,
}

#[derive(Serialize)]
struct User<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "<[Str]>::is_empty")]
    groups: &'a [Str],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: &'a BTreeMap<Str, Vec<Str>>,
}

impl<'a> From<&'a UserInfo> for User<'a> {
    fn from(user: &'a UserInfo) -> Self {
        User {
            username: &user.name,
            uid: &user.uid,
            groups: &user.groups,
            extra: &user.extra,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_group: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subresource: &'a str,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Outcome<'a> {
    metadata: Empty,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    code: u16,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Empty {}

impl<'a> Outcome<'a> {
    pub fn code(code: u16) -> Self {
        Outcome {
            code,
            ..Self::default()
        }
    }
    pub fn failure(code: u16, message: &'a str) -> Self {
        Outcome {
            status: Some("Failure"),
            message: Some(message),
            ..Self::code(code)
        }
    }
}

/// What is known of a request besides what its context has.
#[derive(Default)]
pub struct Facts<'a> {
    pub user: Option<&'a UserInfo>,
    pub impersonated: Option<&'a UserInfo>,
    /// The verb of the mode that allowed it.
    pub constraint: Option<&'static str>,
    pub outcome: Option<Outcome<'a>>,
    pub request_object: Option<&'a RawValue>,
    pub response_object: Option<&'a RawValue>,
    pub annotations: BTreeMap<Str, String>,
}

/// The most that a client can say of itself, or of what it wants without being somebody. Bytes, as upstream's user agents.
const LONGEST: usize = 1024;

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

/// One line of the log, with its line break.
pub fn line(context: &RequestContext, level: Level, stage: Stage, facts: Facts<'_>) -> serde_json::Result<Vec<u8>> {
    let info = &context.info;
    let nobody = UserInfo::default();
    let stamp = |t: jiff::Timestamp| t.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let event = Event {
        kind: "Event",
        api_version: "audit.k8s.io/v1",
        level,
        audit_id: &context.audit_id,
        stage,
        request_uri: facts.user.map_or_else(|| cut(&context.uri), |_| &context.uri),
        verb: &info.verb,
        user: facts.user.unwrap_or(&nobody).into(),
        impersonated_user: facts.impersonated.map(User::from),
        authentication_metadata: facts.constraint.map(|verb| AuthenticationMetadata {
            impersonation_constraint: verb,
        }),
        source_ips: context.remote.map(|r| [r.ip().to_string()]),
        user_agent: cut(&context.user_agent),
        object_ref: info.is_resource_request.then(|| ObjectRef {
            resource: &info.resource,
            namespace: &info.namespace,
            name: &info.name,
            api_group: &info.api_group,
            api_version: &info.api_version,
            subresource: &info.subresource,
        }),
        response_status: facts.outcome,
        request_object: facts.request_object,
        response_object: facts.response_object,
        request_received_timestamp: stamp(context.received),
        stage_timestamp: stamp(keelson_clock::now()),
        annotations: facts.annotations,
    };
    let mut line = serde_json::to_vec(&event)?;
    line.push(b'\n');
    Ok(line)
}
