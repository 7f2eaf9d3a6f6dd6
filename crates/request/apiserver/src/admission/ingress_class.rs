//! DefaultIngressClass: an ingress without a class gets the default one.

use super::storage::newest_default;
use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object};
use keelson_registry::Operation;

pub struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let create = review.op == Operation::Create && review.is("networking.k8s.io", "ingresses");
        let Some(ingress) = new.filter(|_| create) else {
            return Ok(());
        };
        if ingress.at(&["spec", "ingressClassName"]).is_some()
            || ingress.annotation("kubernetes.io/ingress.class").is_some()
        {
            return Ok(());
        }
        let classes = review.lookup.list("networking.k8s.io", "ingressclasses", "").await?;
        if let Some(class) = newest_default(classes, &["ingressclass.kubernetes.io/is-default-class"]) {
            ingress.set_at(&["spec", "ingressClassName"], class.name());
        }
        Ok(())
    }
}
