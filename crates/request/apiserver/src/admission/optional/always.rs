//! AlwaysAdmit and AlwaysDeny: upstream's oldest, which only tests have a use for.

use super::super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object};

pub struct AlwaysAdmit;

#[async_trait]
impl Plugin for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }
    fn phases(&self) -> &'static [Phase] {
        &[]
    }
}

pub struct AlwaysDeny;

const WHY: &str = "admission control is denying all modifications";

#[async_trait]
impl Plugin for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        Err(review.forbidden(new.as_deref(), WHY))
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        Err(review.forbidden(new, WHY))
    }
}
