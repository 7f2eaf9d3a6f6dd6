//! Whether a plug-in is well, and which key it has: asked once a minute, every ten seconds when it is not, and by health checks.

use super::{Kms, hash, valid_key_id};
use std::sync::Weak;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(60);
const EVERY_WHEN_ILL: Duration = Duration::from_secs(10);
/// An answer is good for others who ask.
const GOOD_FOR: Duration = Duration::from_secs(20);
const GOOD_FOR_WHEN_ILL: Duration = Duration::from_secs(3);

#[derive(Default)]
pub struct Probe {
    last: Option<(Instant, Result<(), String>)>,
    /// The protocol's version; it must not change.
    version: Option<String>,
}

pub async fn run(kms: Weak<Kms>, mut well: bool, stop: CancellationToken) {
    loop {
        let pause = if well { EVERY } else { EVERY_WHEN_ILL };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let Some(kms) = kms.upgrade() else { return };
        well = kms.check().await.is_ok();
    }
}

impl Kms {
    /// One asks at a time; who comes meanwhile gets the same answer.
    pub async fn check(&self) -> Result<(), String> {
        let mut probe = self.probe.lock().await;
        if let Some((at, answer)) = &probe.last {
            let good = if answer.is_ok() { GOOD_FOR } else { GOOD_FOR_WHEN_ILL };
            if at.elapsed() < good {
                return answer.clone();
            }
        }
        let was_well = probe.last.as_ref().is_none_or(|(_, answer)| answer.is_ok());
        let answer = self.ask(&mut probe).await;
        match &answer {
            Err(error) if was_well => tracing::warn!(provider = self.name, error, "a KMS plug-in is not well"),
            Ok(()) if !was_well => tracing::info!(provider = self.name, "the KMS plug-in is well again"),
            _ => {}
        }
        probe.last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn ask(&self, probe: &mut Probe) -> Result<(), String> {
        let name = &self.name;
        let status = self.client.status().await.map_err(|e| {
            format!("failed to perform status section of the healthz check for KMS Provider {name}, error: {e}")
        })?;
        let mut errors = Vec::new();
        if status.healthz != "ok" {
            errors.push(format!("got unexpected healthz status: {}", status.healthz));
        }
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            errors.push(format!("expected KMSv2 API version v2, got {}", status.version));
        } else {
            let first = probe.version.get_or_insert_with(|| status.version.clone());
            if *first != status.version {
                errors.push(format!(
                    "KMSv2 API version should not change after the initial status response version {first}, got {}",
                    status.version
                ));
            }
        }
        match valid_key_id(&status.key_id) {
            Err((code, error)) => {
                self.metrics.invalid_key(name, code);
                let id = hash(&status.key_id);
                errors.push(format!("got invalid KMSv2 KeyID hash \"{id}\": {error}"));
            }
            Ok(()) => {
                self.metrics.key_told(name, &status.key_id);
                errors.extend(self.follow(&status.key_id).await.err());
            }
        }
        match errors.as_slice() {
            [] => Ok(()),
            [one] => Err(format!("kmsv2 Provider {name} is not healthy, error: {one}")),
            all => Err(format!(
                "kmsv2 Provider {name} is not healthy, error: [{}]",
                all.join(", ")
            )),
        }
    }
}
