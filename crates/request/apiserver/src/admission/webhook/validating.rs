//! Validating webhooks: all that match are asked at once; the first refusal in their order counts.

use super::{Hooks, is_exempt};
use crate::admission::matching::Subject;
use crate::admission::{Phase, Plugin, Review};
use crate::metrics::Called;
use async_trait::async_trait;
use futures::future::join_all;
use keelson_api::{ApiResult, Object};
use std::sync::Arc;
use std::time::Instant;

pub struct ValidatingWebhooks(pub Arc<Hooks>);

#[async_trait]
impl Plugin for ValidatingWebhooks {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }

    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let hooks = self.0.current();
        if hooks.is_empty() || is_exempt(review) {
            return Ok(());
        }
        let subject = Subject::of(review, new);
        let mut wanted = Vec::new();
        for hook in hooks.iter() {
            if let Some(invocation) = hook.wanted(review, &subject, new, old).await? {
                wanted.push(invocation);
            }
        }
        let asked = wanted.iter().enumerate().map(|(index, invocation)| async move {
            let (new, old) = invocation.target.views(review, new, old).await?;
            let (hook, began) = (invocation.hook, Instant::now());
            let asked = invocation.ask(review, new.as_deref(), old.as_deref(), false).await;
            let called = asked.as_ref().err().map_or(Called::Allowed, |f| f.called(hook));
            let told = review.told;
            told.webhook(&hook.name, Phase::Validating, review.op, began.elapsed(), called);
            let Err(failure) = asked else {
                return Ok(());
            };
            match failure.into_error(hook) {
                Some(e) => Err(e),
                None => {
                    let key = format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
                    review.cx.annotate(&key, hook.name.as_str());
                    Ok(())
                }
            }
        });
        let began = Instant::now();
        let answers = join_all(asked).await;
        review.cx.waited(began.elapsed());
        answers.into_iter().collect()
    }
}
