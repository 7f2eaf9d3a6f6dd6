//! Volumes made of files that the kubelet writes: config maps, secrets, the downward API, and projections of all of them.
//! What the files are is decided in [`payload`](super::payload).

use super::certificates::{Asker, Bundle};
use super::kind::{Ask, Failure, Kind, Mounted, Stats};
use super::{Tools, payload};
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ClusterTrustBundleProjection, ConfigMap, Secret, Volume};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

pub struct Files {
    name: &'static str,
    /// Secrets never come to lie on a disk.
    in_memory: bool,
    source: fn(&Volume) -> bool,
    /// Hash of the files last written, by pod and volume.
    written: Mutex<HashMap<(String, String), u64>>,
}

impl Files {
    fn of(name: &'static str, in_memory: bool, source: fn(&Volume) -> bool) -> Box<dyn Kind> {
        Box::new(Files {
            name,
            in_memory,
            source,
            written: Mutex::default(),
        })
    }

    pub fn config_map() -> Box<dyn Kind> {
        Self::of("configmap", false, |v| v.config_map.is_some())
    }

    pub fn secret() -> Box<dyn Kind> {
        Self::of("secret", true, |v| v.secret.is_some())
    }

    pub fn downward_api() -> Box<dyn Kind> {
        Self::of("downward-api", true, |v| v.downward_api.is_some())
    }

    pub fn projected() -> Box<dyn Kind> {
        Self::of("projected", true, |v| v.projected.is_some())
    }
}

#[tonic::async_trait]
impl Kind for Files {
    fn name(&self) -> &'static str {
        self.name
    }

    fn serves(&self, ask: &Ask) -> bool {
        (self.source)(&ask.volume)
    }

    async fn prepare(&self, tools: &Tools, ask: &Ask) -> Result<Option<Timestamp>, Failure> {
        let now = tools.host.now();
        let mut first: Option<Timestamp> = None;
        let projected = || ask.volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        for token in projected().filter_map(|s| s.service_account_token.as_ref()) {
            let audience = token.audience.as_deref().unwrap_or_default();
            let seconds = token.expiration_seconds.unwrap_or(3600);
            let at = tools.tokens.ensure(&ask.pod, audience, seconds, now).await?;
            first = first.into_iter().chain([at]).min();
        }
        let asker = Asker {
            node: &ask.node.name,
            node_uid: ask.node.uid.clone(),
        };
        let renewal = tools.certificates.ensure(&ask.pod, &ask.volume, &asker, now).await?;
        if projected().any(|s| s.cluster_trust_bundle.is_some()) {
            tools.trust.need(ask.uid()).await?;
        }
        Ok(first.into_iter().chain(renewal).min())
    }

    async fn mount(&self, tools: &Tools, ask: &Ask) -> Result<Mounted, Failure> {
        let path = tools.layout.volume(ask.uid(), self.name, ask.name());
        if self.in_memory {
            tools.tmpfs(&path, None)?;
        } else {
            tools.host.make_dir(&path, 0o777)?;
        }
        Ok(Mounted {
            relabel: true,
            ..Mounted::at(self.name, ask, path).read_only()
        })
    }

    async fn refresh(&self, tools: &Tools, ask: &Ask, mounted: &Mounted) -> Result<(), Failure> {
        let sources = PodSources { tools, ask };
        let cx = payload::Context {
            pod: &ask.pod,
            facts: ask.node.facts(),
            sources: &sources,
        };
        let (Some(files), Some(path)) = (payload::build(&ask.volume, &cx)?, &mounted.path) else {
            return Ok(());
        };
        let mut hasher = DefaultHasher::new();
        for (name, f) in &files {
            (name, &f.data, f.mode, f.user).hash(&mut hasher);
        }
        let key = (ask.uid().to_owned(), ask.name().to_owned());
        let hash = hasher.finish();
        if self.written.lock().get(&key) == Some(&hash) {
            return Ok(());
        }
        tools.host.write_payload(path, &files, pods::fs_group(&ask.pod))?;
        self.written.lock().insert(key, hash);
        Ok(())
    }

    fn forget(&self, uid: &str) {
        self.written.lock().retain(|k, _| k.0 != uid);
    }

    async fn stats(&self, tools: &Tools, mounted: &Mounted) -> Result<Option<Stats>, String> {
        match &mounted.path {
            Some(path) => tools.counted(path).await,
            None => Ok(None),
        }
    }
}

struct PodSources<'a> {
    tools: &'a Tools,
    ask: &'a Ask,
}

impl payload::Sources for PodSources<'_> {
    fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, String> {
        self.tools.config_maps.get(pods::namespace(&self.ask.pod), name)
    }

    fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, String> {
        self.tools.secrets.get(pods::namespace(&self.ask.pod), name)
    }

    fn token(&self, audience: &str, seconds: i64) -> Result<String, String> {
        let known = self.tools.tokens.known(&self.ask.pod, audience, seconds);
        known.ok_or_else(|| "no token was fetched".into())
    }

    fn trust_bundle(&self, p: &ClusterTrustBundleProjection) -> Result<Option<String>, String> {
        self.tools.trust.project(p)
    }

    fn certificate(&self, volume: &str, index: usize) -> Result<Bundle, String> {
        let found = self.tools.certificates.bundle(&self.ask.pod, volume, index);
        found.ok_or_else(|| "credential bundle is not issued yet".into())
    }
}
