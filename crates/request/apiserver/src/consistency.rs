//! Caches are compared with the store from time to time, as often as upstream does it. What isn't as the store has it is told, counted, and read
//! anew; that costs whoever follows the resource a new beginning.

use crate::metrics::StoreMetrics;
use keelson_cache::Consistency;
use keelson_registry::Engine;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Upstream's, with up to half as much more, so that servers don't do it together.
const EVERY: Duration = Duration::from_secs(5 * 60);

pub async fn run(engine: Arc<Engine>, told: Arc<StoreMetrics>, stop: CancellationToken) {
    loop {
        let pause = EVERY.mul_f64(1.0 + rand::random::<f64>() / 2.0);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = check(&engine, &told) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One after the other: nobody waits for it.
pub async fn check(engine: &Engine, told: &StoreMetrics) {
    for (storage, cache) in engine.caches() {
        let resource = storage.resource.to_string();
        let status = match cache.compare().await {
            Ok(Consistency::Unchanged) => continue,
            Ok(Consistency::Same) => "success",
            Ok(Consistency::Different(difference)) => {
                tracing::error!(
                    resource,
                    "the cache isn't what the store has, and is read anew: {difference}"
                );
                engine.drop_cache(&storage.prefix);
                "failure"
            }
            Err(error) => {
                tracing::warn!(resource, "the cache could not be compared with the store: {error}");
                "error"
            }
        };
        told.compared(&storage.resource, status);
    }
}
