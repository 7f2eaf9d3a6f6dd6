//! What the kubelet tidies up: long logs, those of pods that are gone, and images nobody uses. Dead containers are pruned by their pod's task.

pub mod attic;
pub mod images;
pub mod logs;

use crate::kubelet::Kubelet;
use std::sync::Arc;
use std::time::Duration;

/// How often images are judged: upstream's own period.
const IMAGES: Duration = Duration::from_secs(300);

pub fn start(kl: &Arc<Kubelet>) {
    if kl.cfg.attic.is_none()
        && let Err(e) = attic::abandon(&*kl.host, &kl.cfg.pod_logs_dir)
    {
        tracing::warn!("removing logs of pods that are gone failed: {e}");
    }
    let log_keeper = kl.clone();
    tokio::spawn(async move {
        while pause(&log_keeper, log_keeper.cfg.log_monitor).await {
            Box::pin(logs::rotate_all(&log_keeper)).await;
        }
    });
    let image_keeper = kl.clone();
    tokio::spawn(async move {
        while pause(&image_keeper, IMAGES).await {
            if let Err(e) = Box::pin(images::collect(&image_keeper)).await {
                tracing::warn!("removing unused images failed: {e}");
            }
            if let Some(attic) = &image_keeper.cfg.attic
                && let Err(e) = attic.tidy(&*image_keeper.host)
            {
                tracing::warn!("removing old logs of pods that are gone failed: {e}");
            }
        }
    });
}

async fn pause(kl: &Kubelet, period: Duration) -> bool {
    tokio::select! {
        () = kl.stop.cancelled() => false,
        () = tokio::time::sleep(period) => true,
    }
}
