//! Mutating webhooks: asked one after another, each about what those before it made of the object.

use super::{Failure, Hook, Hooks, Invocation, is_exempt};
use crate::admission::changed::{completed, text_of};
use crate::admission::matching::Subject;
use crate::admission::{Phase, Plugin, Review};
use crate::metrics::Called;
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Object, Value, value};
use keelson_machinery::patch::json_patch;
use std::sync::Arc;
use std::time::Instant;

pub struct MutatingWebhooks(pub Arc<Hooks>);

const NAME: &str = "MutatingAdmissionWebhook";

#[async_trait]
impl Plugin for MutatingWebhooks {
    fn name(&self) -> &'static str {
        NAME
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }

    async fn mutate(&self, review: &Review<'_>, mut new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        let hooks = self.0.current();
        if hooks.is_empty() || is_exempt(review) {
            return Ok(());
        }
        let subject = Subject::of(review, new.as_deref());
        if let Some(new) = &new {
            review.rounds.begin(NAME, new);
        }
        for (index, hook) in hooks.iter().enumerate() {
            let Some(invocation) = hook.wanted(review, &subject, new.as_deref(), old).await? else {
                continue;
            };
            if !review.rounds.runs(NAME, &hook.key) {
                continue;
            }
            let changed = run(review, &invocation, index, new.as_deref_mut(), old).await?;
            review.rounds.ran(NAME, &hook.key, changed, hook.again);
        }
        if let Some(new) = new {
            review.rounds.end(NAME, new);
        }
        Ok(())
    }
}

/// Asks one webhook and does what it says; whether that changed the object.
async fn run(
    review: &Review<'_>,
    invocation: &Invocation<'_>,
    index: usize,
    new: Option<&mut Object>,
    old: Option<&Object>,
) -> ApiResult<bool> {
    let hook = invocation.hook;
    let place = format!("round_{}_index_{index}", u8::from(review.rounds.is_second()));
    let began = Instant::now();
    let asked = ask(review, invocation, &place, new, old).await;
    let (took, called) = (
        began.elapsed(),
        asked.as_ref().err().map_or(Called::Allowed, |f| f.called(hook)),
    );
    review
        .told
        .webhook(&hook.name, Phase::Mutating, review.op, took, called);
    review.cx.waited(took);
    let changed = match asked {
        Ok(changed) => changed,
        Err(failure) => match failure.into_error(hook) {
            Some(e) => return Err(e),
            None => {
                review.cx.annotate(
                    &format!("failed-open.mutation.webhook.admission.k8s.io/{place}"),
                    hook.name.as_str(),
                );
                false
            }
        },
    };
    let said =
        value!({"configuration": hook.configuration.as_str(), "webhook": hook.name.as_str(), "mutated": changed});
    review
        .cx
        .annotate(&format!("mutation.webhook.admission.k8s.io/{place}"), text_of(&said));
    Ok(changed)
}

async fn ask(
    review: &Review<'_>,
    invocation: &Invocation<'_>,
    place: &str,
    new: Option<&mut Object>,
    old: Option<&Object>,
) -> Result<bool, Failure> {
    let hook = invocation.hook;
    let (shown, shown_old) = invocation
        .target
        .views(review, new.as_deref(), old)
        .await
        .map_err(Failure::Broken)?;
    let answer = invocation
        .ask(review, shown.as_deref(), shown_old.as_deref(), true)
        .await?;
    let Some(patch) = answer.patch else { return Ok(false) };
    let undecodable =
        |e: &dyn std::fmt::Display| Failure::Call(format!("received undecodable patch in webhook response: {e}"), 503);
    let patch: Value = serde_json::from_slice(&patch).map_err(|e| undecodable(&e))?;
    let Value::Array(operations) = &patch else {
        return Err(undecodable(&"a JSON patch is a list"));
    };
    if operations.is_empty() {
        return Ok(false);
    }
    let Some(shown) = shown.map(|s| s.into_owned()) else {
        return Err(unpatchable(hook));
    };
    let Some(new) = new else { return Err(unpatchable(hook)) };
    let mut patched = Value::Object(shown.0.clone());
    json_patch::apply_operations(&mut patched, operations).map_err(|e| Failure::Broken(ApiError::internal(e)))?;
    let patched = completed(review, &invocation.target, patched).map_err(Failure::Broken)?;
    let said = value!({
        "configuration": hook.configuration.as_str(),
        "webhook": hook.name.as_str(),
        "patch": patch.clone(),
        "patchType": "JSONPatch"
    });
    review
        .cx
        .annotate(&format!("patch.webhook.admission.k8s.io/{place}"), text_of(&said));
    if patched == shown {
        return Ok(false);
    }
    *new = invocation.target.back(review, patched).await.map_err(Failure::Broken)?;
    Ok(true)
}

fn unpatchable(hook: &Hook) -> Failure {
    Failure::Broken(ApiError::internal(format!(
        "admission webhook \"{}\" attempted to modify the object, which is not supported for this operation",
        hook.name
    )))
}
