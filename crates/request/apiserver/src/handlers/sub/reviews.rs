//! Reviews: who is this token, may that user do this, what may I do, who am I.

mod selectors;

use super::{own_answer, own_body};
use crate::authz::{Attributes, Decision};
use crate::handlers::{Call, Served};
use crate::request::UserInfo;
use http::StatusCode;
use keelson_api::{ApiError, ApiResult, Cause, Map, Object, SchemaRef, Str, Value, value};
use keelson_registry::meta::{self, timestamp};
use keelson_registry::{Cx, Operation, internal, managed};

const GROUP: &str = "authorization.k8s.io";

pub async fn serve(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    call.write_options(&mut cx, "CreateOptions", false)?;
    let reviewed = reviewed(&call, &cx).await;
    call.gathered(&cx);
    let (review, schema) = reviewed?;
    own_answer(&call, StatusCode::CREATED, review, &schema)
}

/// What is asked, as any object that is made, and its answer.
async fn reviewed(call: &Call<'_>, cx: &Cx) -> ApiResult<(Object, SchemaRef)> {
    let kind = call.def.gvk();
    let (mut review, schema) = own_body(call, cx, &kind)?;
    meta::wipe_system_fields(&mut review);
    let namespace = if cx.def.namespaced { cx.namespace.as_str() } else { "" };
    meta::ensure_namespace(&mut review, namespace)?;
    managed::update(cx, None, &mut review, call.state.engine.now());
    let admission = call.state.admission.as_ref();
    admission.mutate(cx, Operation::Create, Some(&mut review), None).await?;
    admission.validate(cx, Operation::Create, Some(&review), None).await?;
    match kind.kind.as_str() {
        "TokenReview" => token(call, &mut review).await?,
        "SelfSubjectReview" => me(call, &mut review),
        "SelfSubjectRulesReview" => rules(call, &mut review)?,
        _ => access(call, cx, &mut review).await?,
    }
    Ok((review, schema))
}

fn me(call: &Call, review: &mut Object) {
    // The answer is an object of its own.
    review.insert("metadata", Map::new());
    review.set_meta("creationTimestamp", &timestamp(call.state.engine.now()));
    review.set_at(&["status", "userInfo"], call.context.user.to_value());
}

async fn token(call: &Call<'_>, review: &mut Object) -> ApiResult<()> {
    let token = review.str_at(&["spec", "token"]).unwrap_or_default().to_string();
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences = strings(review.at(&["spec", "audiences"]));
    let mut status = Map::new();
    match call
        .state
        .token_authenticator
        .authenticate_token(&token, &audiences)
        .await
    {
        Ok(Some(identity)) => {
            status.insert("authenticated", true);
            status.insert("user", identity.user.to_value());
            let list: Vec<Value> = identity.audiences.into_iter().map(Value::String).collect();
            if !list.is_empty() {
                status.insert("audiences", list);
            }
        }
        Ok(None) => {
            status.insert("user", Map::new());
            status.insert("error", "invalid bearer token");
        }
        Err(why) => {
            status.insert("user", Map::new());
            status.insert("error", why);
        }
    }
    review.insert("status", status);
    Ok(())
}

fn rules(call: &Call, review: &mut Object) -> ApiResult<()> {
    let namespace = review.str_at(&["spec", "namespace"]).unwrap_or_default().to_string();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let found = call.state.authorizer.rules(&call.context.user, &namespace);
    let mut status = value!({"incomplete": found.incomplete});
    status.set_at(&["resourceRules"], found.resource_rules);
    status.set_at(&["nonResourceRules"], found.non_resource_rules);
    if !found.evaluation_error.is_empty() {
        status.set_at(&["evaluationError"], found.evaluation_error);
    }
    review.insert("status", status);
    review.insert("spec", value!({}));
    review.insert("metadata", Map::new());
    Ok(())
}

async fn access(call: &Call<'_>, cx: &Cx, review: &mut Object) -> ApiResult<()> {
    let kind = review.kind().to_string();
    let errs = validate(cx, review, &kind);
    if !errs.is_empty() {
        // Upstream names the group alone.
        return Err(ApiError::invalid(GROUP, "", "", errs));
    }
    let user = if kind == "SelfSubjectAccessReview" {
        UserInfo::clone(&call.context.user)
    } else {
        let spec = review.get("spec").cloned().unwrap_or_default();
        UserInfo {
            name: spec.get("user").and_then(Value::as_str).unwrap_or_default().into(),
            ..UserInfo::from_value(&spec)
        }
    };
    let decision = call.state.authorizer.authorize(&attributes(user, review)).await;
    let mut status = value!({"allowed": decision.is_allowed()});
    if matches!(decision.decision, Decision::Deny(_)) {
        status.set_at(&["denied"], true);
    }
    if !decision.reason().is_empty() {
        status.set_at(&["reason"], decision.reason());
    }
    let mut errors: Vec<&str> = decision.error.as_deref().into_iter().collect();
    if let Some(r) = review.at(&["spec", "resourceAttributes"]).and_then(Value::as_object) {
        let both = ["fieldSelector", "labelSelector"].map(|key| selectors::read(r, key).ignored);
        errors.extend(both.into_iter().flatten());
    }
    if !errors.is_empty() {
        status.set_at(&["evaluationError"], errors.join("; "));
    }
    review.insert("status", status);
    Ok(())
}

fn attributes(user: UserInfo, review: &Object) -> Attributes {
    let text = |m: &Map, key: &str| Str::from(m.str(key).unwrap_or_default());
    if let Some(r) = review.at(&["spec", "resourceAttributes"]).and_then(Value::as_object) {
        let version = text(r, "version");
        return Attributes {
            user,
            verb: text(r, "verb"),
            is_resource_request: true,
            api_group: text(r, "group"),
            api_version: if version.is_empty() { "*".into() } else { version },
            resource: text(r, "resource"),
            subresource: text(r, "subresource"),
            namespace: text(r, "namespace"),
            name: text(r, "name"),
            field_selector: selectors::read(r, "fieldSelector").text,
            label_selector: selectors::read(r, "labelSelector").text,
            ..Attributes::default()
        };
    }
    let empty = Map::new();
    let r = review
        .at(&["spec", "nonResourceAttributes"])
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    Attributes {
        user,
        verb: text(r, "verb"),
        path: text(r, "path"),
        ..Attributes::default()
    }
}

fn validate(cx: &Cx, review: &Object, kind: &str) -> Vec<Cause> {
    let shown = |other: Option<&Value>| match other {
        Some(other) => internal::shown("authorization.NonResourceAttributes", Some(other)),
        None => "null".into(),
    };
    const ONE_OF: &str = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
    let mut errs = Vec::new();
    let resource = review.at(&["spec", "resourceAttributes"]).filter(|v| !v.is_null());
    let other = review.at(&["spec", "nonResourceAttributes"]).filter(|v| !v.is_null());
    if resource.is_some() == other.is_some() {
        errs.push(Cause::invalid_shown("spec", &shown(other), ONE_OF));
    }
    if kind != "SelfSubjectAccessReview" {
        let groups = review
            .at(&["spec", "groups"])
            .and_then(Value::as_array)
            .is_some_and(|g| !g.is_empty());
        if review.str_at(&["spec", "user"]).unwrap_or_default().is_empty() && !groups {
            errs.push(Cause::invalid(
                "spec.user",
                &"".into(),
                "at least one of user or group must be specified",
            ));
        }
    }
    if let Some(attributes) = resource.and_then(Value::as_object) {
        selectors::validate(attributes, &mut errs);
    }
    let local = kind == "LocalSubjectAccessReview";
    let foreign = review.meta().into_iter().flatten().any(|(k, v)| {
        let allowed = matches!(k.as_str(), "managedFields" | "creationTimestamp") || (local && k == "namespace");
        !allowed && !v.is_null() && v.as_str() != Some("")
    });
    if foreign {
        let why = if local {
            "must be empty except for namespace"
        } else {
            "must be empty"
        };
        let shown = internal::shown("v1.ObjectMeta", review.get("metadata"));
        errs.push(Cause::invalid_shown("metadata", &shown, why));
    }
    if local {
        if let Some(ns) = resource.map(|r| r.get("namespace").and_then(Value::as_str).unwrap_or_default())
            && ns != cx.namespace
        {
            errs.push(Cause::invalid(
                "spec.resourceAttributes.namespace",
                &ns.into(),
                "must match metadata.namespace",
            ));
        }
        if other.is_some() {
            let why = "disallowed on this kind of request";
            errs.push(Cause::invalid_shown("spec.nonResourceAttributes", &shown(other), why));
        }
    }
    errs
}

fn strings(list: Option<&Value>) -> Vec<Str> {
    list.and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Str::from)
        .collect()
}
