//! `pods/binding` and `bindings`: a scheduler gives a pod its node.

use super::{own_answer, own_body, success};
use crate::handlers::{Call, Served};
use http::StatusCode;
use keelson_api::{ApiError, ApiResult, Cause, GroupVersionKind, Map, Object, Reason, Value, builtin, value};
use keelson_registry::meta::timestamp;
use keelson_registry::{Cx, Operation};

pub async fn serve(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    call.write_options(&mut cx, "CreateOptions", false)?;
    let kind = GroupVersionKind::new("", "v1", "Binding");
    let (mut binding, _) = own_body(&call, &cx, &kind)?;
    if binding.namespace().is_empty() {
        binding.set_meta("namespace", &cx.namespace);
    }
    if cx.name.is_empty() {
        cx.name = binding.name().into();
    } else if binding.name() != cx.name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object").into());
    }
    let admission = call.state.admission.as_ref();
    admission
        .mutate(&cx, Operation::Create, Some(&mut binding), None)
        .await?;
    validate(&binding)?;
    admission.validate(&cx, Operation::Create, Some(&binding), None).await?;
    let result = bind(&call, &cx, &binding).await;
    call.gathered(&cx);
    result?;
    let schema = builtin::builtin_kind_at("v1", "Status").ok_or_else(|| ApiError::internal("no schema of Status"))?;
    own_answer(&call, StatusCode::CREATED, success(201), &schema)
}

fn validate(binding: &Object) -> ApiResult<()> {
    let mut errs = Vec::new();
    let kind = binding.str_at(&["target", "kind"]).unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        errs.push(Cause::not_supported("target.kind", &kind.into(), &["Node", "<empty>"]));
    }
    if binding.str_at(&["target", "name"]).unwrap_or_default().is_empty() {
        errs.push(Cause::required("target.name", ""));
    }
    if errs.is_empty() {
        return Ok(());
    }
    let text: Vec<String> = errs.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
    Err(ApiError::new(Reason::Unknown, text.join(", ")))
}

/// Sets the node, unless the pod has one, is gated, or is going.
async fn bind(call: &Call<'_>, cx: &Cx, binding: &Object) -> ApiResult<()> {
    let engine = &call.state.engine;
    let pods = engine
        .table
        .get("", "v1", "pods")
        .ok_or_else(|| ApiError::internal("pods are not served"))?;
    let pod_cx = cx.derive(pods, &cx.namespace, &cx.name);
    loop {
        let current = engine
            .current(&pod_cx)
            .await?
            .ok_or_else(|| pod_cx.not_found(&cx.name))?;
        let pod = bound(&current.object, binding, engine.now())
            .map_err(|why| ApiError::conflict("", "pods/binding", &cx.name, why))?;
        if engine.swap(&pod_cx, &current, pod).await?.is_some() {
            return Ok(());
        }
    }
}

fn bound(pod: &Object, binding: &Object, now: jiff::Timestamp) -> Result<Object, String> {
    let name = pod.name();
    let (uid, rv) = (binding.uid(), binding.resource_version());
    if !uid.is_empty() && uid != pod.uid() {
        return Err(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            pod.uid()
        ));
    }
    if !rv.is_empty() && rv != pod.resource_version() {
        let has = pod.resource_version();
        return Err(format!(
            "Precondition failed: ResourceVersion in precondition: {rv}, ResourceVersion in object meta: {has}"
        ));
    }
    if pod.deletion_timestamp().is_some() {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(node) = pod.str_at(&["spec", "nodeName"]).filter(|n| !n.is_empty()) {
        return Err(format!("pod {name} is already assigned to node {node:?}"));
    }
    if pod
        .at(&["spec", "schedulingGates"])
        .and_then(Value::as_array)
        .is_some_and(|g| !g.is_empty())
    {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut out = pod.clone();
    out.set_at(
        &["spec", "nodeName"],
        binding.str_at(&["target", "name"]).unwrap_or_default(),
    );
    out.remove_at(&["status", "nominatedNodeName"]);
    for key in ["annotations", "labels"] {
        let added: Option<&Map> = binding.meta().and_then(|m| m.obj(key));
        for (k, v) in added.into_iter().flatten() {
            out.set_at(&["metadata", key, k], v.clone());
        }
    }
    set_condition(&mut out, value!({"type": "PodScheduled", "status": "True"}), now);
    Ok(out)
}

/// Sets a condition of a pod; its transition time moves only when the status does.
pub fn set_condition(pod: &mut Object, mut condition: Value, now: jiff::Timestamp) {
    let kind = condition
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_string();
    condition.set_at(&["lastProbeTime"], Value::Null);
    condition.set_at(&["lastTransitionTime"], timestamp(now));
    let mut list = pod
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    match list
        .iter_mut()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(&kind))
    {
        Some(old) => {
            if old.get("status") == condition.get("status")
                && let Some(since) = old.get("lastTransitionTime").cloned()
            {
                condition.set_at(&["lastTransitionTime"], since);
            }
            *old = condition;
        }
        None => list.push(condition),
    }
    pod.set_at(&["status", "conditions"], list);
}
