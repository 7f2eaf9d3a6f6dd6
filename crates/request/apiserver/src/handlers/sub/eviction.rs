//! `pods/eviction`: deletion that a disruption budget may refuse.

use super::binding::set_condition;
use super::{own_answer, own_body, success};
use crate::handlers::{Call, Served};
use async_trait::async_trait;
use http::StatusCode;
use keelson_api::{ApiError, ApiResult, Cause, GroupVersionKind, Object, Reason, Str, Value, builtin, value};
use keelson_machinery::selector::LabelSelector;
use keelson_registry::engine::{Engine, UpdateSource};
use keelson_registry::meta::timestamp;
use keelson_registry::options::{DeleteOptions, ListOptions};
use keelson_registry::{AdmitAll, Cx, Operation};

/// So often conflicting writers are tried against.
const RETRIES: usize = 20;
/// Evictions that a budget's controller has not confirmed yet.
const MAX_DISRUPTED: usize = 2000;

pub async fn serve(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    call.write_options(&mut cx, "CreateOptions", false)?;
    let kind = GroupVersionKind::new("policy", "v1", "Eviction");
    let (mut eviction, _) = own_body(&call, &cx, &kind)?;
    if eviction.name() != cx.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object").into());
    }
    let options = match eviction.obj("deleteOptions") {
        Some(o) => DeleteOptions::from_object(&Object(o.clone()))?,
        None => DeleteOptions::default(),
    };
    let admission = call.state.admission.as_ref();
    admission
        .mutate(&cx, Operation::Create, Some(&mut eviction), None)
        .await?;
    admission
        .validate(&cx, Operation::Create, Some(&eviction), None)
        .await?;
    let result = evict(&call.state.engine, &cx, options).await;
    call.gathered(&cx);
    result?;
    let schema = builtin::builtin_kind_at("v1", "Status").ok_or_else(|| ApiError::internal("no schema of Status"))?;
    own_answer(&call, StatusCode::CREATED, success(201), &schema)
}

async fn evict(engine: &Engine, cx: &Cx, mut options: DeleteOptions) -> ApiResult<()> {
    let dry = cx.dry_run || options.is_dry_run();
    if dry && options.dry_run.is_empty() {
        options.dry_run = vec!["All".into()];
    }
    let mut pod_cx = cx.derive(cx.def.clone(), &cx.namespace, &cx.name);
    pod_cx.dry_run = dry;
    let own_revision = options.resource_version.is_some();
    for attempt in 1.. {
        let pod = engine.get(&pod_cx, "").await?;
        if !is_past_budgets(&pod) {
            return evict_running(engine, &pod_cx, pod, options).await;
        }
        let mut options = options.clone();
        let terminal = matches!(phase(&pod), "Succeeded" | "Failed") || pod.deletion_timestamp().is_some();
        if !terminal && !own_revision {
            options.resource_version = Some(pod.resource_version().into());
        }
        match mark_and_delete(engine, &pod_cx, options).await {
            Err(e) if e.is(Reason::Conflict) && !own_revision && attempt < RETRIES => continue,
            done => return done,
        }
    }
    Ok(())
}

fn phase(pod: &Object) -> &str {
    pod.str_at(&["status", "phase"]).unwrap_or_default()
}

/// Pods that don't run disrupt nothing when they go.
fn is_past_budgets(pod: &Object) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed" | "Pending") || pod.deletion_timestamp().is_some()
}

async fn evict_running(engine: &Engine, cx: &Cx, pod: Object, mut options: DeleteOptions) -> ApiResult<()> {
    let own_revision = options.resource_version.is_some();
    let budgets = budgets_of(engine, cx, &pod).await?;
    let mut name = String::new();
    let mut guarded = false;
    match budgets.as_slice() {
        [] => {}
        [budget] => {
            name = budget.name().to_string();
            if may_go_unhealthy(&pod, budget) {
                // The pod must not have become healthy since it was looked at.
                guarded = true;
                options
                    .resource_version
                    .get_or_insert_with(|| pod.resource_version().into());
            } else {
                spend(engine, cx, &name, pod.name()).await?;
            }
        }
        _ => {
            let mut e = ApiError::new(
                Reason::Unknown,
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            );
            e.code = 500;
            return Err(e);
        }
    }
    match mark_and_delete(engine, cx, options).await {
        Err(e) if e.is(Reason::Conflict) && guarded && !own_revision => Err(try_later(&name)),
        done => done,
    }
}

async fn budgets_of(engine: &Engine, cx: &Cx, pod: &Object) -> ApiResult<Vec<Object>> {
    let def = engine
        .table
        .get("policy", "v1", "poddisruptionbudgets")
        .ok_or_else(|| ApiError::internal("budgets are not served"))?;
    let all = engine
        .list_objects(&cx.derive(def, &cx.namespace, ""), &ListOptions::default())
        .await?;
    let guards =
        |b: &Object| LabelSelector::from_object(b.at(&["spec", "selector"])).is_ok_and(|s| s.matches(pod.labels()));
    Ok(all.into_iter().filter(guards).collect())
}

fn status_int(budget: &Object, key: &str) -> i64 {
    budget.at(&["status", key]).and_then(Value::as_i64).unwrap_or(0)
}

/// A pod that isn't ready may go when the rest is healthy, or when the budget says so.
fn may_go_unhealthy(pod: &Object, budget: &Object) -> bool {
    let conditions = pod.at(&["status", "conditions"]).and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|c| {
        c.get("type").and_then(Value::as_str) == Some("Ready")
            && c.get("status").and_then(Value::as_str) == Some("True")
    });
    if ready {
        return false;
    }
    if budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == Some("AlwaysAllow") {
        return true;
    }
    let desired = status_int(budget, "desiredHealthy");
    status_int(budget, "currentHealthy") >= desired && desired > 0
}

fn budget_cause(message: String) -> Vec<Cause> {
    vec![Cause {
        reason: Str::from("DisruptionBudget"),
        message,
        field: String::new(),
    }]
}

const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

fn try_later(budget: &str) -> ApiError {
    ApiError::new(Reason::TooManyRequests, VIOLATES)
        .with_causes(budget_cause(format!(
            "The disruption budget {budget} is still being processed by the server."
        )))
        .with_retry_after(10)
}

/// Takes one disruption from the budget.
async fn spend(engine: &Engine, cx: &Cx, budget: &str, pod: &str) -> ApiResult<()> {
    let def = engine
        .table
        .get("policy", "v1", "poddisruptionbudgets")
        .ok_or_else(|| ApiError::internal("budgets are not served"))?;
    let mut budget_cx = cx.derive(def, &cx.namespace, budget).with_subresource("status");
    budget_cx.dry_run = cx.dry_run;
    for _ in 0..RETRIES {
        let Some(current) = engine.current(&budget_cx).await? else {
            return Err(budget_cx.not_found(budget));
        };
        let mut new = current.object.clone();
        check_and_spend(&mut new, pod, engine.now())?;
        if engine.swap(&budget_cx, &current, new).await?.is_some() {
            return Ok(());
        }
    }
    let mut e = ApiError::new(
        Reason::Timeout,
        format!("Timeout: couldn't update PodDisruptionBudget {budget:?} due to conflicts"),
    );
    e = e.with_retry_after(10);
    Err(e)
}

fn check_and_spend(b: &mut Object, pod: &str, now: jiff::Timestamp) -> ApiResult<()> {
    let name = b.name().to_string();
    if status_int(b, "observedGeneration") < b.generation() {
        return Err(try_later(&name));
    }
    let allowed = status_int(b, "disruptionsAllowed");
    let forbidden = |why: &str, cause: String| {
        let mut e = ApiError::forbidden("policy", "poddisruptionbudget", &name, why);
        if let Some(d) = &mut e.details {
            d.causes = budget_cause(cause);
        }
        e
    };
    if allowed < 0 {
        let why = "pdb disruptions allowed is negative";
        return Err(forbidden(
            why,
            format!("The disruption budget {name} does not allow evicting pods currently: {why}"),
        ));
    }
    let disrupted = b
        .at(&["status", "disruptedPods"])
        .and_then(Value::as_object)
        .map_or(0, |m| m.len());
    if disrupted > MAX_DISRUPTED {
        return Err(forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
            format!(
                "The disruption budget {name} does not allow evicting pods currently: too many pending evictions not confirmed by PDB controller"
            ),
        ));
    }
    if allowed == 0 {
        return Err(ApiError::new(Reason::TooManyRequests, VIOLATES).with_causes(budget_cause(why_not(b))));
    }
    b.set_at(&["status", "disruptionsAllowed"], allowed - 1);
    if allowed == 1 {
        refuse_from_now(b, now);
    }
    b.set_at(&["status", "disruptedPods", pod], timestamp(now));
    Ok(())
}

fn why_not(b: &Object) -> String {
    let name = b.name();
    let condition = b
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|c| c.get("type").and_then(Value::as_str) == Some("DisruptionAllowed"));
    let text = |key: &str| {
        condition
            .and_then(|c| c.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let refused = text("status") == "False" && !text("message").is_empty();
    let (desired, current) = (status_int(b, "desiredHealthy"), status_int(b, "currentHealthy"));
    if refused && text("reason") == "SyncFailed" {
        format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            text("message")
        )
    } else if current <= desired {
        format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
    } else if refused {
        format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            text("reason"),
            text("message")
        )
    } else {
        format!("The disruption budget {name} does not allow evicting pods currently")
    }
}

/// The condition follows the count at once; the controller confirms it later.
fn refuse_from_now(b: &mut Object, now: jiff::Timestamp) {
    let generation = b.generation();
    let condition = value!({
        "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
        "observedGeneration": generation, "lastTransitionTime": timestamp(now).as_str(),
    });
    let mut list = b
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    list.retain(|c| c.get("type").and_then(Value::as_str) != Some("DisruptionAllowed"));
    list.push(condition);
    b.set_at(&["status", "conditions"], list);
}

/// The pod as it is, with the condition that tells why it goes.
struct Disrupted<'a>(&'a DeleteOptions);

#[async_trait]
impl UpdateSource for Disrupted<'_> {
    async fn updated(&self, engine: &Engine, cx: &Cx, existing: Option<&Object>) -> ApiResult<Object> {
        let mut pod = existing.cloned().ok_or_else(|| cx.not_found(&cx.name))?;
        let conflict = |why: String| ApiError::conflict("", "Pod", &cx.name, why);
        if let Some(uid) = self.0.uid.as_deref().filter(|u| !u.is_empty() && *u != pod.uid()) {
            return Err(conflict(format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                pod.uid()
            )));
        }
        if let Some(rv) = self
            .0
            .resource_version
            .as_deref()
            .filter(|r| !r.is_empty() && *r != pod.resource_version())
        {
            return Err(conflict(format!(
                "the ResourceVersion in the precondition ({rv}) does not match the ResourceVersion in record ({}). The object might have been modified",
                pod.resource_version()
            )));
        }
        let condition = value!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        });
        set_condition(&mut pod, condition, engine.now());
        Ok(pod)
    }
}

async fn mark_and_delete(engine: &Engine, cx: &Cx, mut options: DeleteOptions) -> ApiResult<()> {
    if !options.is_dry_run() {
        let status_cx = cx
            .derive(cx.def.clone(), &cx.namespace, &cx.name)
            .with_subresource("status");
        let (marked, _) = engine
            .update(&status_cx, &AdmitAll, &Disrupted(&options), false)
            .await?;
        if options.resource_version.is_some() {
            options.resource_version = Some(marked.resource_version().into());
        }
    }
    engine.delete(cx, &AdmitAll, &options).await.map(drop)
}
