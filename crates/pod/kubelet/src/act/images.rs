//! Makes sure that an image is there: by the pull policy, with the pod's credentials, with back-off after failures.

use super::credentials::{self, Tracked};
use super::image_name::{self, ImageName};
use super::pulled::{Place, Pulled, Verdict};
use crate::backoff::Backoff;
use crate::kubelet::Kubelet;
use crate::pods;
use k8s_openapi::api::core::v1::{Pod, Secret};
use keelson_client::{EventType, Pace};
use keelson_cri::v1 as cri;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Pulls at the same time; more wait their turn.
pub const PARALLEL: usize = 5;

/// Why a container can't start: the reason that stands in its status, and the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

impl Failure {
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Failure {
            reason: reason.into(),
            message: message.into(),
        }
    }
}

pub struct Images {
    backoff: Mutex<Backoff>,
    last_error: Mutex<HashMap<String, String>>,
    pulls: Semaphore,
    pace: Option<Arc<Pace>>,
    pub pulled: Pulled,
}

impl Images {
    /// `parallel`: images pulled at the same time; `pace`: how often a pull may begin.
    pub fn new(parallel: usize, pace: Option<Arc<Pace>>) -> Self {
        Images {
            backoff: Mutex::new(Backoff::new(Duration::from_secs(10), Duration::from_secs(300))),
            last_error: Mutex::default(),
            pulls: Semaphore::new(parallel),
            pace,
            pulled: Pulled::default(),
        }
    }
}

/// Whom the image is for.
pub struct Wanted<'a> {
    pub pod: &'a Pod,
    pub container: &'a str,
    pub image: &'a str,
    pub policy: Option<&'a str>,
    pub secrets: &'a [Arc<Secret>],
    pub sandbox: &'a cri::PodSandboxConfig,
    pub handler: &'a str,
}

impl Images {
    /// Returns the image's reference for the runtime.
    pub async fn ensure(&self, kl: &Kubelet, w: &Wanted<'_>) -> Result<String, Failure> {
        let warn = |reason: &str, message: &str| {
            kl.event(w.pod, Some(w.container), EventType::Warning, reason, message.to_owned())
        };
        let name = image_name::parse(w.image).map_err(|e| {
            let message = format!("Failed to apply default image tag \"{}\": {e}", w.image);
            warn("InspectFailed", &message);
            Failure::new("InvalidImageName", message)
        })?;
        // An image that a pod may not use looks like one that is not there.
        let never = || {
            let message = format!(
                "Container image \"{}\" is not present with pull policy of Never",
                w.image
            );
            warn("ErrImageNeverPull", &message);
            Err(Failure::new("ErrImageNeverPull", message))
        };
        // Asked for when somebody wants to know, and once.
        let mut credentials = None;
        let policy = w
            .policy
            .unwrap_or(if name.is_latest { "Always" } else { "IfNotPresent" });
        if policy != "Always" {
            let found = inspect(kl, &name, w.handler).await.map_err(|e| {
                let message = format!("Failed to inspect image \"{}\": {}", w.image, crate::rpc_text(&e));
                warn("InspectFailed", &message);
                Failure::new("ImageInspectError", message)
            })?;
            if let Some(reference) = found
                && !self.must_pull(kl, w, &name, &reference, &mut credentials).await
            {
                let message = format!(
                    "Container image \"{}\" already present on machine and can be accessed by the pod",
                    w.image
                );
                kl.event(w.pod, Some(w.container), EventType::Normal, "Pulled", message);
                return Ok(reference);
            }
            if policy == "Never" {
                return never();
            }
        }
        if let Some(failure) = self.must_wait(kl, w) {
            return Err(failure);
        }
        // Before the pull is noted: plug-ins take their time, and whoever gives up meanwhile has begun nothing.
        let credentials = match credentials {
            Some(known) => known,
            None => gather(kl, w, &name).await,
        };
        let place = place(kl);
        self.pulled.begin(place, w.image).map_err(|e| {
            let message = format!(
                "Failed to record image pull intent for container image \"{}\": {e}",
                w.image
            );
            Failure::new("ErrImagePull", message)
        })?;
        match self.pull(kl, w, &name, &credentials).await {
            Ok((reference, used)) => {
                let source = used.as_ref().map(|t| &t.source);
                self.pulled.succeeded(place, w.image, &reference, source);
                Ok(reference)
            }
            Err(failure) => {
                self.pulled.failed(place, w.image);
                Err(failure)
            }
        }
    }

    async fn must_pull(
        &self,
        kl: &Kubelet,
        w: &Wanted<'_>,
        name: &ImageName,
        reference: &str,
        credentials: &mut Option<Vec<Tracked>>,
    ) -> bool {
        let policy = &kl.cfg.image_pull_verification;
        let noted = match self.pulled.judge(place(kl), policy, w.image, reference) {
            Verdict::Use => return false,
            Verdict::Pull => return true,
            Verdict::Show(noted) => noted,
        };
        let known = credentials.insert(gather(kl, w, name).await);
        let sources: Vec<_> = known.iter().map(|t| t.source.clone()).collect();
        self.pulled.must_pull(place(kl), w.image, reference, &noted, &sources)
    }

    /// That the last pull failed a moment ago: then nobody is asked for anything.
    fn must_wait(&self, kl: &Kubelet, w: &Wanted<'_>) -> Option<Failure> {
        self.retry_at(w.pod, w.image)?;
        let mut message = format!("Back-off pulling image \"{}\"", w.image);
        kl.event(w.pod, Some(w.container), EventType::Normal, "BackOff", message.clone());
        if let Some(last) = self.last_error.lock().get(&key(w.pod, w.image)) {
            message = format!("{message}: {last}");
        }
        Some(Failure::new("ImagePullBackOff", message))
    }

    /// The image's reference, and the credentials that it came with.
    async fn pull(
        &self,
        kl: &Kubelet,
        w: &Wanted<'_>,
        name: &ImageName,
        credentials: &[Tracked],
    ) -> Result<(String, Option<Tracked>), Failure> {
        let key = key(w.pod, w.image);
        let normal =
            |reason: &str, message: String| kl.event(w.pod, Some(w.container), EventType::Normal, reason, message);
        normal("Pulling", format!("Pulling image \"{}\"", w.image));
        let asked = Instant::now();
        let _turn = self
            .pulls
            .acquire()
            .await
            .map_err(|_| Failure::new("ErrImagePull", "the kubelet is stopping"))?;
        if let Some(pace) = &self.pace {
            pace.turn().await;
        }
        let began = Instant::now();
        match try_all(kl, w, name, credentials).await {
            Ok((reference, used)) => {
                let size = size_of(kl, &reference).await;
                kl.metrics.pulled(size, began.elapsed());
                normal(
                    "Pulled",
                    format!(
                        "Successfully pulled image \"{}\" in {} ({} including waiting). Image size: {size} bytes.",
                        w.image,
                        crate::go_duration(began.elapsed()),
                        crate::go_duration(asked.elapsed())
                    ),
                );
                self.backoff.lock().reset(&key);
                self.last_error.lock().remove(&key);
                Ok((reference, used))
            }
            Err(status) => {
                let text = crate::rpc_text(&status);
                kl.event(
                    w.pod,
                    Some(w.container),
                    EventType::Warning,
                    "Failed",
                    format!("Failed to pull image \"{}\": {text}", w.image),
                );
                let now = Instant::now();
                self.backoff.lock().next(&key, now, now);
                let failure = classify(w.image, &status);
                self.last_error
                    .lock()
                    .insert(key, format!("{}: {}", failure.reason, failure.message));
                Err(failure)
            }
        }
    }

    /// When the next pull of this image may be tried, if it has to wait.
    pub fn retry_at(&self, pod: &Pod, image: &str) -> Option<Instant> {
        let now = Instant::now();
        self.backoff
            .lock()
            .remaining(&key(pod, image), None, now)
            .map(|d| now + d)
    }

    pub fn forget(&self, uid: &str) {
        self.backoff.lock().retain(|k| !k.starts_with(uid));
        self.last_error.lock().retain(|k, _| !k.starts_with(uid));
    }
}

fn key(pod: &Pod, image: &str) -> String {
    format!("{}_{image}", pods::uid(pod))
}

/// What there is for an image: the pod's secrets first, then what plug-ins say.
async fn gather(kl: &Kubelet, w: &Wanted<'_>, name: &ImageName) -> Vec<Tracked> {
    let mut all = credentials::matching(w.secrets, &name.repository);
    all.extend(kl.providers.credentials(w.pod, &name.repository).await);
    all
}

fn spec(name: &ImageName, w_handler: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: name.full.clone(),
        runtime_handler: w_handler.to_owned(),
        ..Default::default()
    }
}

async fn inspect(kl: &Kubelet, name: &ImageName, handler: &str) -> Result<Option<String>, tonic::Status> {
    let request = cri::ImageStatusRequest {
        image: Some(spec(name, handler)),
        verbose: false,
    };
    let answer = kl.cri.image.clone().image_status(request).await?.into_inner();
    Ok(answer.image.map(|i| i.id).filter(|id| !id.is_empty()))
}

async fn size_of(kl: &Kubelet, reference: &str) -> u64 {
    let image = cri::ImageSpec {
        image: reference.to_owned(),
        ..Default::default()
    };
    let request = cri::ImageStatusRequest {
        image: Some(image),
        verbose: false,
    };
    match kl.cri.image.clone().image_status(request).await {
        Ok(answer) => answer.into_inner().image.map_or(0, |i| i.size),
        Err(_) => 0,
    }
}

pub fn place(kl: &Kubelet) -> Place<'_> {
    Place {
        host: &*kl.host,
        layout: &kl.layout,
    }
}

/// Tries each credential that fits, or none at all where there is none.
async fn try_all(
    kl: &Kubelet,
    w: &Wanted<'_>,
    name: &ImageName,
    credentials: &[Tracked],
) -> Result<(String, Option<Tracked>), tonic::Status> {
    let tries: Vec<Option<&Tracked>> = if credentials.is_empty() {
        vec![None]
    } else {
        credentials.iter().map(Some).collect()
    };
    let mut last = tonic::Status::unknown("no pull was tried");
    for used in tries {
        let mut image = spec(name, w.handler);
        image.user_specified_image = w.image.to_owned();
        image.annotations = w
            .pod
            .metadata
            .annotations
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        let request = cri::PullImageRequest {
            image: Some(image),
            auth: used.map(|t| t.auth.clone()),
            sandbox_config: Some(w.sandbox.clone()),
        };
        match kl.cri.image.clone().pull_image(request).await {
            Ok(answer) => return Ok((answer.into_inner().image_ref, used.cloned())),
            Err(status) => last = status,
        }
    }
    Err(last)
}

fn classify(image: &str, status: &tonic::Status) -> Failure {
    let text = status.message();
    for (name, why) in [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ] {
        if let Some(rest) = text.strip_prefix(name) {
            return Failure::new(name, format!("image pull failed for {image} because {why}{rest}"));
        }
    }
    Failure::new("ErrImagePull", crate::rpc_text(status))
}

/// What the image says of its user; the image is there.
pub async fn user(kl: &Kubelet, reference: &str) -> Result<super::security::ImageUser, String> {
    let image = cri::ImageSpec {
        image: reference.to_owned(),
        ..Default::default()
    };
    let request = cri::ImageStatusRequest {
        image: Some(image),
        verbose: false,
    };
    let answer = kl
        .cri
        .image
        .clone()
        .image_status(request)
        .await
        .map_err(|e| crate::rpc_text(&e))?
        .into_inner();
    let Some(image) = answer.image else {
        return Err(format!("image \"{reference}\" not found"));
    };
    Ok(match (image.uid, image.username) {
        (Some(uid), _) => super::security::ImageUser {
            uid: Some(uid.value),
            name: String::new(),
        },
        (None, name) if !name.is_empty() => super::security::ImageUser { uid: None, name },
        _ => super::security::ImageUser {
            uid: Some(0),
            name: String::new(),
        },
    })
}
