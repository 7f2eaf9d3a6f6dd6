//! Admission that the cluster's own objects configure: webhooks and policies.
//!
//! None of it answers before its objects have been read: a request waits for that, and is refused when it takes long.

use super::matching::is_configuration;
use super::policy::{MutatingPolicies, Mutations, Policies, ValidatingPolicies, Validations};
use super::webhook::{Hooks, MutatingWebhooks, ValidatingWebhooks};
use super::{Extensions, Phase, Plugin, Review};
use crate::crd;
use crate::live::Sink;
use crate::sync::{Following, PATIENCE};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

macro_rules! path {
    ($resource:literal) => {
        concat!("/apis/admissionregistration.k8s.io/v1/", $resource)
    };
}
const MUTATING_WEBHOOKS: &str = path!("mutatingwebhookconfigurations");
const VALIDATING_WEBHOOKS: &str = path!("validatingwebhookconfigurations");
const MUTATING_POLICIES: &str = path!("mutatingadmissionpolicies");
const MUTATING_BINDINGS: &str = path!("mutatingadmissionpolicybindings");
const VALIDATING_POLICIES: &str = path!("validatingadmissionpolicies");
const VALIDATING_BINDINGS: &str = path!("validatingadmissionpolicybindings");

/// What is configured now; kept up to date by what is fed into [`sinks`](Self::sinks).
pub struct Configured {
    sync: Arc<Following>,
    mutating_hooks: Arc<Hooks>,
    validating_hooks: Arc<Hooks>,
    mutating: Arc<Policies<Mutations>>,
    validating: Arc<Policies<Validations>>,
}

impl Configured {
    /// What is followed for it.
    pub const PATHS: [&str; 6] = [
        MUTATING_WEBHOOKS,
        VALIDATING_WEBHOOKS,
        MUTATING_POLICIES,
        MUTATING_BINDINGS,
        VALIDATING_POLICIES,
        VALIDATING_BINDINGS,
    ];

    pub fn new(sync: Arc<Following>) -> Arc<Configured> {
        Arc::new(Configured {
            sync,
            mutating_hooks: Arc::default(),
            validating_hooks: Arc::default(),
            mutating: Policies::new(),
            validating: Policies::new(),
        })
    }

    /// In upstream's order.
    pub fn plugins(&self) -> Extensions {
        vec![
            // Parameters of policies may be custom resources.
            self.once_read(
                MutatingPolicies(self.mutating.clone()),
                &[MUTATING_POLICIES, MUTATING_BINDINGS, crd::PATH],
            ),
            self.once_read(MutatingWebhooks(self.mutating_hooks.clone()), &[MUTATING_WEBHOOKS]),
            self.once_read(
                ValidatingPolicies(self.validating.clone()),
                &[VALIDATING_POLICIES, VALIDATING_BINDINGS, crd::PATH],
            ),
            self.once_read(
                ValidatingWebhooks(self.validating_hooks.clone()),
                &[VALIDATING_WEBHOOKS],
            ),
        ]
    }

    fn once_read(&self, plugin: impl Plugin + 'static, paths: &'static [&'static str]) -> Arc<dyn Plugin> {
        Arc::new(OnceRead {
            plugin,
            sync: self.sync.clone(),
            paths,
            read: AtomicBool::new(false),
        })
    }

    /// What to follow, and where to.
    pub fn sinks(&self) -> [(&'static str, Arc<dyn Sink>); 6] {
        [
            (MUTATING_WEBHOOKS, self.mutating_hooks.clone()),
            (VALIDATING_WEBHOOKS, self.validating_hooks.clone()),
            (MUTATING_POLICIES, self.mutating.policy_sink()),
            (MUTATING_BINDINGS, self.mutating.binding_sink()),
            (VALIDATING_POLICIES, self.validating.policy_sink()),
            (VALIDATING_BINDINGS, self.validating.binding_sink()),
        ]
    }
}

/// A plug-in that has nothing to say before what configures it has been read.
struct OnceRead<P> {
    plugin: P,
    sync: Arc<Following>,
    paths: &'static [&'static str],
    /// It stays so: a follower that loses track keeps what it had until it has it all again.
    read: AtomicBool,
}

impl<P: Plugin> OnceRead<P> {
    async fn wait(&self, review: &Review<'_>, object: Option<&Object>) -> ApiResult<()> {
        // Configuration is never judged by configuration, or a wrong one could not be mended.
        if self.read.load(Ordering::Relaxed) || is_configuration(&review.cx.def) {
            return Ok(());
        }
        if !self.sync.wait(self.paths, PATIENCE).await {
            return Err(review.forbidden(object, "not yet ready to handle request"));
        }
        self.read.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait]
impl<P: Plugin> Plugin for OnceRead<P> {
    fn name(&self) -> &'static str {
        self.plugin.name()
    }
    fn phases(&self) -> &'static [Phase] {
        self.plugin.phases()
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        self.wait(review, new.as_deref()).await?;
        self.plugin.mutate(review, new, old).await
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        self.wait(review, new).await?;
        self.plugin.validate(review, new, old).await
    }
}
