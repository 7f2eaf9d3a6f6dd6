//! `serviceaccounts/token`: a signed token for a service account, bound to what it is used by.

use super::{own_answer, own_body};
use crate::authn::{BoundObject, TokenSpec};
use crate::handlers::{Call, Served};
use http::StatusCode;
use keelson_api::{ApiError, ApiResult, Cause, GroupVersionKind, Object, Reason, Str, Value};
use keelson_registry::meta::timestamp;
use keelson_registry::{Cx, Operation};

const GROUP: &str = "authentication.k8s.io";
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

pub async fn serve(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    call.write_options(&mut cx, "CreateOptions", false)?;
    let kind = GroupVersionKind::new(GROUP, "v1", "TokenRequest");
    let (mut request, schema) = own_body(&call, &cx, &kind)?;
    let admission = call.state.admission.as_ref();
    admission
        .mutate(&cx, Operation::Create, Some(&mut request), None)
        .await?;
    let result = issue(&call, &cx, &mut request).await;
    call.gathered(&cx);
    result?;
    own_answer(&call, StatusCode::CREATED, request, &schema)
}

fn must_match(cx: &Cx, request: &Object) -> ApiResult<()> {
    let account = [
        ("name", request.name(), cx.name.as_str()),
        ("namespace", request.namespace(), cx.namespace.as_str()),
    ];
    for (field, has, wanted) in account {
        if !has.is_empty() && has != wanted {
            let why = format!("must match the service account {field} if specified");
            let cause = Cause::invalid(format!("metadata.{field}"), &has.into(), &why);
            return Err(ApiError::invalid(GROUP, "TokenRequest", &cx.name, vec![cause]));
        }
    }
    Ok(())
}

fn validate(request: &Object) -> ApiResult<i64> {
    let seconds = request
        .at(&["spec", "expirationSeconds"])
        .and_then(Value::as_i64)
        .unwrap_or(3600);
    let why = match seconds {
        s if s < MIN_SECONDS => "may not specify a duration less than 10 minutes",
        s if s > MAX_SECONDS => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(seconds),
    };
    let cause = Cause::invalid("spec.expirationSeconds", &seconds.into(), why);
    Err(ApiError::invalid(GROUP, "TokenRequest", "", vec![cause]))
}

async fn issue(call: &Call<'_>, cx: &Cx, request: &mut Object) -> ApiResult<()> {
    must_match(cx, request)?;
    let engine = &call.state.engine;
    let account = engine.get(cx, "").await?;
    if !request.uid().is_empty() && request.uid() != account.uid() {
        return Err(ApiError::conflict(
            GROUP,
            "TokenRequest",
            &cx.name,
            format!(
                "the UID in the token request ({}) does not match the UID of the service account ({})",
                request.uid(),
                account.uid()
            ),
        ));
    }
    request.set_meta("name", account.name());
    request.set_meta("namespace", account.namespace());
    request.set_meta("uid", account.uid());
    request.set_meta("creationTimestamp", &timestamp(engine.now()));
    let mut expiration_seconds = validate(request)?;
    call.state
        .admission
        .validate(cx, Operation::Create, Some(request), None)
        .await?;
    let mut spec = TokenSpec {
        namespace: account.namespace().into(),
        service_account: bound(&account),
        audiences: strings(request.at(&["spec", "audiences"])),
        ..TokenSpec::default()
    };
    if let Some(reference) = request
        .at(&["spec", "boundObjectRef"])
        .and_then(Value::as_object)
        .cloned()
    {
        bind(call, cx, &Object(reference), &mut spec).await?;
    }
    if let Some(most) = call
        .state
        .config
        .serving
        .max_token_expiration
        .filter(|most| expiration_seconds > *most)
    {
        cx.warn(format!(
            "requested expiration of {expiration_seconds} seconds shortened to {most} seconds"
        ));
        expiration_seconds = most;
    }
    spec.expiration_seconds = expiration_seconds;
    let issued = call.state.token_issuer.issue(&spec)?;
    cx.annotate(
        "authentication.kubernetes.io/issued-credential-id",
        format!("JTI={}", issued.id),
    );
    let audiences: Vec<Value> = issued.audiences.iter().cloned().map(Value::String).collect();
    request.set_at(&["spec", "audiences"], audiences);
    request.set_at(&["spec", "expirationSeconds"], issued.expiration_seconds);
    request.set_at(
        &["status"],
        keelson_api::value!({"token": issued.token, "expirationTimestamp": timestamp(issued.expires).as_str()}),
    );
    Ok(())
}

fn bound(o: &Object) -> BoundObject {
    BoundObject {
        name: o.name().into(),
        uid: o.uid().into(),
    }
}

fn strings(list: Option<&Value>) -> Vec<Str> {
    list.and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Str::from)
        .collect()
}

/// Looks up what the token is to be bound to.
async fn bind(call: &Call<'_>, cx: &Cx, reference: &Object, spec: &mut TokenSpec) -> ApiResult<()> {
    let text = |key: &str| reference.str(key).unwrap_or_default().to_string();
    let (kind, name) = (text("kind"), text("name"));
    let core = matches!(text("apiVersion").as_str(), "" | "v1");
    let found = match kind.as_str() {
        "Pod" if core => {
            let pod = get(call, cx, "pods", &cx.namespace, &name).await?;
            if pod.str_at(&["spec", "serviceAccountName"]).unwrap_or_default() != cx.name {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    cx.name.as_str()
                )));
            }
            if let Some(node) = pod.str_at(&["spec", "nodeName"]).filter(|n| !n.is_empty()) {
                spec.node = Some(match get(call, cx, "nodes", "", node).await {
                    Ok(n) => bound(&n),
                    Err(e) if e.is(Reason::NotFound) => BoundObject {
                        name: node.into(),
                        uid: Str::default(),
                    },
                    Err(e) => return Err(e),
                });
            }
            spec.pod = Some(bound(&pod));
            pod
        }
        "Node" if core => {
            let node = get(call, cx, "nodes", "", &name).await?;
            spec.node = Some(bound(&node));
            node
        }
        "Secret" if core => {
            let secret = get(call, cx, "secrets", &cx.namespace, &name).await?;
            spec.secret = Some(bound(&secret));
            secret
        }
        _ => {
            let gv = keelson_api::GroupVersion::parse(&text("apiVersion"));
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {}/{}, Kind={kind}",
                gv.group, gv.version
            )));
        }
    };
    let uid = text("uid");
    if !uid.is_empty() && uid != found.uid() {
        return Err(ApiError::conflict(
            "",
            &kind,
            &name,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    Ok(())
}

async fn get(call: &Call<'_>, cx: &Cx, resource: &str, namespace: &str, name: &str) -> ApiResult<Object> {
    let engine = &call.state.engine;
    let def = engine
        .table
        .get("", "v1", resource)
        .ok_or_else(|| ApiError::internal(format!("{resource} are not served")))?;
    engine.get(&cx.derive(def, namespace, name), "").await
}
