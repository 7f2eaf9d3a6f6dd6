//! How many volumes of a driver the node can have changes while it runs, where the cluster says so
//! (`nodeAllocatableUpdatePeriodSeconds`): then the driver is asked again and again, and the scheduler told.

use super::Csi;
use super::node_info::Facts;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Keeps the limit of a registered driver true until it goes.
pub async fn keep(csi: &Csi, driver: &str, gone: &CancellationToken) {
    let (mut period, mut due) = (None, None);
    let mut changes = csi.drivers.changes();
    loop {
        // Without an answer nothing is known to have changed.
        if let Ok(object) = csi.drivers.object(driver).await {
            let seconds = object.and_then(|d| d.spec.node_allocatable_update_period_seconds);
            let now = seconds.filter(|s| *s > 0).map(|s| Duration::from_secs(s as u64));
            if now != period {
                period = now;
                due = period.map(|p| Instant::now() + p);
            }
        }
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = gone.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = timer => {
                due = period.map(|p| Instant::now() + p);
                if let Err(e) = update(csi, driver).await {
                    tracing::warn!(driver, "how many volumes the node can have can't be brought up to date: {e}");
                }
            }
        }
    }
}

async fn update(csi: &Csi, driver: &str) -> Result<(), String> {
    let Some(registered) = csi.drivers.get(driver) else {
        return Ok(());
    };
    let facts = Facts::ask(&registered.driver).await?;
    csi.nodes.update(driver, &facts).await
}
