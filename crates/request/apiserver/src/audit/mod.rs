//! The audit log: who did what, when and how it ended, as `audit.k8s.io/v1` events in JSON lines.
//!
//! A policy says which requests are logged; without a policy file, and without a log, nothing is. Events are logged with
//! metadata (no bodies). A full queue makes requests wait: no event is dropped while the disk keeps up.

mod policy;

pub use policy::{Level, Policy};

use crate::request::{RequestContext, UserInfo};
use anyhow::{Context, Result};
use keelson_api::{Value, value};
use std::path::Path;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

const QUEUE: usize = 1024;

/// Where events go.
pub struct Audit {
    policy: Policy,
    sink: Option<mpsc::Sender<Vec<u8>>>,
}

impl Audit {
    pub fn off() -> Self {
        Audit {
            policy: Policy::default(),
            sink: None,
        }
    }
    /// Appends to a file. Has to be called within a runtime.
    pub fn to_file(policy: Policy, path: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("opening the audit log {}", path.display()))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write(tokio::fs::File::from_std(file), receiver));
        Ok(Audit {
            policy,
            sink: Some(sender),
        })
    }

    /// Logs a stage of a request, where the policy wants it.
    pub async fn log(&self, context: &RequestContext, stage: &str, impersonated: Option<&UserInfo>, code: Option<u16>) {
        let Some(sink) = &self.sink else { return };
        let level = self.policy.level(&context.user, &context.info);
        if level == Level::None || self.policy.omits(stage) {
            return;
        }
        let mut line = serde_json::to_vec(&event(context, stage, impersonated, code)).unwrap_or_default();
        line.push(b'\n');
        if sink.send(line).await.is_err() {
            tracing::error!("the audit log has ended: an event is lost");
        }
    }
}

async fn write(mut file: tokio::fs::File, mut receiver: mpsc::Receiver<Vec<u8>>) {
    let mut batch = Vec::with_capacity(QUEUE);
    while receiver.recv_many(&mut batch, QUEUE).await > 0 {
        let bytes = batch.concat();
        batch.clear();
        let written = async {
            file.write_all(&bytes).await?;
            file.flush().await
        };
        if let Err(e) = written.await {
            tracing::error!("writing the audit log failed: {e}");
        }
    }
}

fn event(context: &RequestContext, stage: &str, impersonated: Option<&UserInfo>, code: Option<u16>) -> Value {
    let info = &context.info;
    let stamp = |t: jiff::Timestamp| t.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let mut event = value!({
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": context.audit_id.as_str(),
        "stage": stage,
        "requestURI": context.uri.as_str(),
        "verb": info.verb.as_str(),
        "userAgent": context.user_agent.as_str(),
        "requestReceivedTimestamp": stamp(context.received),
        "stageTimestamp": stamp(jiff::Timestamp::now()),
    });
    event.set_at(&["user"], context.user.to_value());
    if let Some(user) = impersonated {
        event.set_at(&["impersonatedUser"], user.to_value());
    }
    if let Some(remote) = context.remote {
        event.set_at(&["sourceIPs"], vec![Value::from(remote.ip().to_string())]);
    }
    if info.is_resource_request {
        for (key, text) in [
            ("resource", &info.resource),
            ("namespace", &info.namespace),
            ("name", &info.name),
            ("apiGroup", &info.api_group),
            ("apiVersion", &info.api_version),
            ("subresource", &info.subresource),
        ] {
            if !text.is_empty() {
                event.set_at(&["objectRef", key], text.clone());
            }
        }
    }
    if let Some(code) = code {
        event.set_at(&["responseStatus", "code"], i64::from(code));
    }
    for (key, text) in context.audit.snapshot() {
        event.set_at(&["annotations", &key], text);
    }
    event
}
