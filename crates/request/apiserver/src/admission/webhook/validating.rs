//! Validating webhooks: all that match are asked at once; the first refusal in their order counts.

use super::{Hooks, is_exempt};
use crate::admission::matching::Subject;
use crate::admission::{Plugin, Review};
use async_trait::async_trait;
use futures::future::join_all;
use keelson_api::{ApiResult, Object};
use std::sync::Arc;

pub struct ValidatingWebhooks(pub Arc<Hooks>);

#[async_trait]
impl Plugin for ValidatingWebhooks {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
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
            let Err(failure) = invocation.ask(review, new.as_deref(), old.as_deref(), false).await else {
                return Ok(());
            };
            match failure.into_error(invocation.hook) {
                Some(e) => Err(e),
                None => {
                    let key = format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
                    review.cx.annotate(&key, invocation.hook.name.as_str());
                    Ok(())
                }
            }
        });
        join_all(asked).await.into_iter().collect()
    }
}
