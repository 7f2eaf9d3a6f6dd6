//! What components find in the API when they begin: their roles, the bundled classes and definitions, the metrics API. Somebody's
//! webhook, policy or quota may refuse to have it written, and what answers for that webhook may be a pod of this cluster, which
//! would wait for the components: what can't be written at once is written when it can be, and meanwhile they begin.

use crate::config::{Component, Config};
use crate::supervise::Supervisor;
use crate::{addons, metrics};
use keelson_apiserver::{ApiServer, UserInfo};
use keelson_pki::Current;
use std::sync::Arc;
use std::time::Duration;

/// For so long the components wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// `Err` if it can't ever be.
pub async fn furnish(
    running: &mut Supervisor,
    api: &Arc<ApiServer>,
    pki: &Current,
    config: &Config,
) -> anyhow::Result<()> {
    let why = match tokio::time::timeout(PATIENCE, all(api, pki, config)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) if is_refusal(&error) => format!("{error:#}"),
        Ok(Err(error)) => return Err(error),
        Err(_) => format!("it was not done after {PATIENCE:?}"),
    };
    tracing::warn!(
        why,
        "not all that components need could be written; they begin without it, and it is tried again"
    );
    let (api, pki, config) = (api.clone(), pki.clone(), config.clone());
    running.spawn("furnishing", move |stop| {
        let (api, pki, config) = (api.clone(), pki.clone(), config.clone());
        async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                done = all(&api, &pki, &config) => done,
            }
        }
    });
    Ok(())
}

async fn all(api: &Arc<ApiServer>, pki: &Current, config: &Config) -> anyhow::Result<()> {
    let client = api.client(UserInfo::from_identity("system:apiserver"));
    let roles = addons::apply(client, config).await;
    let metrics = metrics::apply(api, pki, config.runs(Component::Metrics)).await;
    roles.and(metrics)
}

/// Whether the API refused, and may not do so again.
fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<keelson_client::Error>())
}
