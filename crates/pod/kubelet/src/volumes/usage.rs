//! What volumes hold, for whoever asks. Counting files or asking a driver may take long, so a question waits only a moment
//! and is then answered with what was measured last; the measuring goes on, once for each volume at a time.

use super::Tools;
use super::kind::{Kind, Mounted, Stats};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How old a measurement is before a question has it made anew: upstream's period.
const FRESH: Duration = Duration::from_secs(60);
/// How long a question waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a measurement may take before another one is begun.
const LONGEST: Duration = Duration::from_secs(300);

type Key = (String, String);

#[derive(Default)]
struct Entry {
    last: Option<(Instant, Option<Stats>)>,
    began: Option<Instant>,
}

#[derive(Default)]
pub struct Measured(Arc<Mutex<HashMap<Key, Entry>>>);

impl Measured {
    /// The stats of a pod's volume, as of a minute ago at most unless measuring takes longer.
    pub async fn of(
        &self,
        tools: &Arc<Tools>,
        kind: &Arc<dyn Kind>,
        uid: &str,
        volume: &str,
        mounted: &Mounted,
    ) -> Option<Stats> {
        let key = (uid.to_owned(), volume.to_owned());
        let now = Instant::now();
        let begin = {
            let mut all = self.0.lock();
            let entry = all.entry(key.clone()).or_default();
            let stale = entry.last.is_none_or(|(at, _)| now - at >= FRESH);
            let idle = entry.began.is_none_or(|at| now - at >= LONGEST);
            if stale && idle {
                entry.began = Some(now);
            }
            stale && idle
        };
        if begin {
            let (all, key, tools, kind) = (self.0.clone(), key.clone(), tools.clone(), kind.clone());
            let mounted = mounted.clone();
            let work = tokio::spawn(async move {
                let stats = kind.stats(&tools, &mounted).await.unwrap_or_else(|e| {
                    tracing::warn!(volume = mounted.name, "a volume can't be measured: {e}");
                    None
                });
                // Forgotten meanwhile: the volume has gone.
                if let Some(entry) = all.lock().get_mut(&key) {
                    entry.last = Some((Instant::now(), stats));
                    entry.began = None;
                }
            });
            // Whether it was in time is seen below.
            let _ = tokio::time::timeout(PATIENCE, work).await;
        }
        self.0
            .lock()
            .get(&key)
            .and_then(|e| e.last)
            .and_then(|(_, stats)| stats)
    }

    pub fn forget(&self, uid: &str) {
        self.0.lock().retain(|k, _| k.0 != uid);
    }
}
