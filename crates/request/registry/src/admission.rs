//! The seam to admission: what the engine asks before and after an object takes its final form.

use crate::context::Cx;
use async_trait::async_trait;
use keelson_api::{ApiResult, Object};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// Both phases of admission. Resource, subresource, namespace, name, user and options stand in the [`Cx`].
#[async_trait]
pub trait Admission: Send + Sync {
    /// May change `new`. For deletions `new` is `None`.
    async fn mutate(&self, cx: &Cx, op: Operation, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()>;
    async fn validate(&self, cx: &Cx, op: Operation, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()>;
    /// Whether the user may create the object of a request that updates or patches (create on update).
    async fn authorize_create(&self, cx: &Cx) -> ApiResult<()>;
}

/// Admits everything: for tests of the engine and for the server's own writes.
pub struct AdmitAll;

#[async_trait]
impl Admission for AdmitAll {
    async fn mutate(&self, _: &Cx, _: Operation, _: Option<&mut Object>, _: Option<&Object>) -> ApiResult<()> {
        Ok(())
    }
    async fn validate(&self, _: &Cx, _: Operation, _: Option<&Object>, _: Option<&Object>) -> ApiResult<()> {
        Ok(())
    }
    async fn authorize_create(&self, _: &Cx) -> ApiResult<()> {
        Ok(())
    }
}
