//! The objects that every cluster has: made at the start through the API like anyone's objects, and brought up to date
//! when a newer version knows more of them.
//!
//! Policy, priority levels and priority classes are data (`objects.jsonl`, generated from the published modules); what
//! depends on the configuration is made in [`cluster`]. What users changed stays, except that missing rules and subjects
//! of roles that update themselves are added again.

mod cluster;
mod identity;
mod kept;
mod merge;
mod servers;
mod tracking;

use crate::config::Config;
use crate::health::{Hook, Hooks};
use crate::serve::Loopback;
pub use cluster::{INTRODUCTIONS, Trust};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use http::Method;
pub use identity::Identity;
use keelson_api::{ApiResult, Object, Reason, Value};
pub use kept::KeptNamespaces;
pub use servers::Servers;
use std::time::Duration;
pub use tracking::TokenTracking;

/// How many objects are made at once: the store commits what has queued in one go.
const AT_ONCE: usize = 32;
const RETRY: Duration = Duration::from_millis(250);
/// A full disk, say, lasts.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// What is to be made.
pub struct Spec {
    /// In steps, each with the hooks that are done by it: each is done before the next begins.
    steps: Vec<(Vec<Object>, &'static [Hook])>,
}

impl Spec {
    pub fn of(config: &Config) -> Self {
        Spec {
            steps: vec![
                (cluster::namespaces(), &[Hook::SystemNamespaces]),
                (objects(), &[Hook::PriorityClasses, Hook::FlowProducer]),
                (cluster::objects(config), &[Hook::AuthenticationInfo, Hook::Bootstrap]),
            ],
        }
    }
}

/// The objects that don't depend on the configuration.
pub fn objects() -> Vec<Object> {
    let lines = include_str!("objects.jsonl").lines();
    // The text is ours and tested: a line that isn't read is a fault of the build.
    lines
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .filter_map(|v| Object::try_from(v).ok())
        .collect()
}

/// Makes everything; goes on until all is there.
pub async fn run(spec: &Spec, loopback: &Loopback, hooks: &Hooks) {
    for (step, done) in &spec.steps {
        let mut wait = RETRY;
        while let Err(e) = reconcile_all(step, loopback).await {
            tracing::warn!("making the objects every cluster has failed, trying again: {e}");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_RETRY);
        }
        hooks.done(done);
    }
}

async fn reconcile_all(objects: &[Object], loopback: &Loopback) -> ApiResult<()> {
    let work: Vec<BoxFuture<ApiResult<()>>> = objects.iter().map(|o| reconcile(o, loopback).boxed()).collect();
    let mut results = stream::iter(work).buffer_unordered(AT_ONCE);
    while let Some(result) = results.next().await {
        match result {
            // Trying again would change nothing; the rest of the cluster must not wait for it.
            Err(e) if e.is(Reason::Invalid) => tracing::error!("an object every cluster has is refused: {e}"),
            other => other?,
        }
    }
    Ok(())
}

async fn reconcile(wanted: &Object, loopback: &Loopback) -> ApiResult<()> {
    let collection = collection(wanted);
    let path = format!("{collection}/{}", wanted.name());
    match loopback.object(&path).await? {
        None => match loopback
            .send(
                Method::POST,
                &as_manager(wanted, &collection),
                Some(&wanted.clone().into()),
            )
            .await
        {
            Ok(made) => cluster::finish(&made, loopback).await,
            Err(e) if e.is(Reason::AlreadyExists) => Ok(()),
            Err(e) => Err(e),
        },
        Some(mut found) => {
            if merge::update(&mut found, wanted) {
                match loopback
                    .send(Method::PUT, &as_manager(wanted, &path), Some(&found.into()))
                    .await
                {
                    Err(e) if !e.is(Reason::Conflict) => return Err(e),
                    _ => {}
                }
            }
            Ok(())
        }
    }
}

/// The path of a write by who keeps such objects upstream.
fn as_manager(wanted: &Object, path: &str) -> String {
    match wanted.api_version().starts_with("flowcontrol.apiserver.k8s.io/") {
        true => format!("{path}?fieldManager=api-priority-and-fairness-config-producer-v1"),
        false => path.to_string(),
    }
}

/// How often an object is tried to be written that somebody else writes, too.
const TRIES: u32 = 10;

/// Tells the cluster whom it trusts from now on.
pub async fn publish(config: &Config, trust: &Trust, loopback: &Loopback) -> ApiResult<()> {
    for wanted in cluster::trust(config, trust) {
        let path = format!("{}/{}", collection(&wanted), wanted.name());
        for _ in 0..TRIES {
            reconcile(&wanted, loopback).await?;
            let written = loopback.object(&path).await?;
            // A write that met another one has not happened.
            if written.is_some_and(|mut found| !merge::update(&mut found, &wanted)) {
                break;
            }
        }
    }
    Ok(())
}

/// The path of the collection that an object belongs in.
fn collection(object: &Object) -> String {
    let plural = match object.kind() {
        "Endpoints" => "endpoints".to_string(),
        kind if kind.ends_with("Class") => format!("{}es", kind.to_ascii_lowercase()),
        kind => format!("{}s", kind.to_ascii_lowercase()),
    };
    let root = if object.api_version().contains('/') {
        "/apis"
    } else {
        "/api"
    };
    let namespace = match object.namespace() {
        "" => String::new(),
        namespace => format!("/namespaces/{namespace}"),
    };
    format!("{root}/{}{namespace}/{plural}", object.api_version())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_an_object_with_a_collection() {
        let all = objects();
        assert_eq!(all.len(), include_str!("objects.jsonl").lines().count());
        let table = keelson_registry::ResourceTable::new(keelson_registry::resources::rows());
        let config = Config::new(keelson_pki::ServiceAccountKeys::generate().unwrap());
        for o in all
            .iter()
            .chain(&cluster::namespaces())
            .chain(&cluster::objects(&config))
        {
            let path = format!("{}/{}", collection(o), o.name()).replace(':', "%3A");
            let info = crate::request::RequestInfo::parse(&Method::GET, &path.parse().unwrap()).unwrap();
            let def = table.get(&info.api_group, &info.api_version, &info.resource);
            assert!(def.is_some_and(|d| d.kind == o.kind()), "{path}");
        }
    }
}
