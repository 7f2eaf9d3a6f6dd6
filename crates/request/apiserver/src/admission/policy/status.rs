//! The status of validating policies: what checking their types found, once for each generation.

use super::typecheck;
use crate::live::Sink;
use crate::serve::Loopback;
use keelson_api::{ApiError, Object, Reason, Str, Value, value};
use keelson_registry::ResourceTable;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const RETRY: Duration = Duration::from_secs(2);

/// Watches policies and writes their status.
pub struct PolicyStatus {
    table: Arc<ResourceTable>,
    loopback: Loopback,
    /// Policies whose status is behind.
    waiting: Mutex<BTreeMap<Str, Object>>,
    wake: Notify,
}

impl PolicyStatus {
    pub const PATH: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";

    pub fn new(table: Arc<ResourceTable>, loopback: Loopback) -> Arc<PolicyStatus> {
        Arc::new(PolicyStatus {
            table,
            loopback,
            waiting: Mutex::default(),
            wake: Notify::new(),
        })
    }

    pub fn sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(StatusSink(self.clone()))
    }

    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                () = stop.cancelled() => return,
            }
            while let Some((name, policy)) = { self.waiting.lock().pop_first() } {
                if let Err(e) = self.write(&policy).await {
                    tracing::warn!(%name, "writing a policy's status failed, trying again: {e}");
                    self.waiting.lock().entry(name).or_insert(policy);
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    fn see(&self, object: Object) {
        let observed = object
            .at(&["status", "observedGeneration"])
            .and_then(Value::as_i64)
            .unwrap_or(0);
        if generation(&object) > observed {
            self.waiting.lock().insert(object.name().into(), object);
            self.wake.notify_one();
        }
    }

    /// Writes the status; that the policy has changed or is gone is no failure, since either is seen.
    async fn write(&self, policy: &Object) -> Result<(), ApiError> {
        let mut checking = value!({});
        let warnings = typecheck::warnings(policy, &self.table);
        if let (false, Some(m)) = (warnings.is_empty(), checking.as_object_mut()) {
            m.insert("expressionWarnings", warnings);
        }
        let mut new = policy.clone();
        let mut status = match new.remove("status") {
            Some(Value::Object(m)) => m,
            _ => keelson_api::Map::new(),
        };
        status.insert("observedGeneration", generation(policy));
        status.insert("typeChecking", checking);
        new.insert("status", status);
        let path = format!("{}/{}/status", Self::PATH, policy.name());
        match self
            .loopback
            .send(http::Method::PUT, &path, Some(&Value::Object(new.0)))
            .await
        {
            Ok(_) => Ok(()),
            Err(e) if e.is(Reason::Conflict) || e.is(Reason::NotFound) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn generation(policy: &Object) -> i64 {
    policy
        .at(&["metadata", "generation"])
        .and_then(Value::as_i64)
        .unwrap_or(0)
}

/// The part of [`PolicyStatus`] that the watch feeds.
struct StatusSink(Arc<PolicyStatus>);

impl Sink for StatusSink {
    fn replace(&self, objects: Vec<Object>) {
        objects.into_iter().for_each(|o| self.0.see(o));
    }
    fn set(&self, object: Object) {
        self.0.see(object);
    }
    fn delete(&self, object: Object) {
        self.0.waiting.lock().remove(object.name());
    }
}
