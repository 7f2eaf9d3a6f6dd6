//! Admission: what may be written, and what the server adds to it. Plug-ins run in upstream's order, all in the mutating
//! phase first, then all in the validating one.
//!
//! Where an extension fits in: a plug-in is a [`Plugin`]; [`Chain::new`] lists the built-in ones. Webhooks and policies go
//! into the slot before ResourceQuota (see [`Extensions`]): they see what the built-in plug-ins made of the object, and
//! quota counts what they made of it.
//!
//! Plug-ins read through the engine's cache, never the store, and know no HTTP.

mod authorizer;
mod certificates;
mod changed;
mod claim_status;
mod configured;
mod declared_features;
mod device_access;
mod expressions;
mod ingress_class;
mod limit_ranger;
mod local_storage;
mod lookup;
mod matching;
mod namespace;
mod node_restriction;
mod nodes;
mod optional;
pub mod options;
mod pod_resize;
pub mod pod_security;
pub mod policy;
mod priority;
mod quota;
mod references;
mod revocations;
mod rounds;
mod runtime_class;
mod service_account;
mod storage;
mod tolerations;
pub mod webhook;

pub use crate::metrics::Phase;
pub use configured::Configured;
pub use lookup::Lookup;
pub use options::{Options, Settings};
pub use tolerations::DefaultTolerationSeconds;

use crate::authz::{Attributes, Authorizers};
use crate::metrics::{AdmissionMetrics, Cells};
use crate::serve::Loopback;
use async_trait::async_trait;
use keelson_api::{ApiResult, Object, Str, go_quote};
use keelson_registry::meta::path_segment_errors;
use keelson_registry::{Admission, Cx, Engine, Operation};
use rounds::Rounds;
use std::sync::Arc;
use std::time::Instant;

/// Why upstream's client, by which plug-ins look things up, doesn't ask for an object of such a name.
fn unaskable(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("resource name may not be empty".into());
    }
    let wrong = path_segment_errors(name);
    (!wrong.is_empty()).then(|| format!("invalid resource name {}: [{}]", go_quote(name), wrong.join(" ")))
}

/// What a plug-in is asked about, and by what it finds out more.
pub struct Review<'a> {
    pub cx: &'a Cx,
    pub op: Operation,
    pub lookup: &'a Lookup,
    pub authorizer: &'a Authorizers,
    /// Of mutation: the second one lets those that ran before a change see it.
    pub rounds: &'a Rounds,
    pub(crate) told: &'a AdmissionMetrics,
}

impl Review<'_> {
    /// Whether the request is for the group's resource itself.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.cx.subresource.is_empty() && self.cx.def.is(group, resource)
    }
    pub fn is_sub(&self, group: &str, resource: &str, subresource: &str) -> bool {
        self.cx.subresource == subresource && self.cx.def.is(group, resource)
    }
    /// Upstream's refusal: 403, with the object's name.
    pub fn forbidden(&self, object: Option<&Object>, why: impl std::fmt::Display) -> keelson_api::ApiError {
        let name = match self.cx.name.as_str() {
            "" => object.map_or("Unknown", |o| match (o.name(), o.generate_name()) {
                ("", "") => "Unknown",
                ("", generate) => generate,
                (name, _) => name,
            }),
            name => name,
        };
        self.cx.forbidden(name, why)
    }
    /// Whether the user may do this; the reason if not.
    pub async fn allowed(&self, attributes: Attributes) -> Result<(), String> {
        match self.authorizer.authorize(&attributes).await {
            d if d.is_allowed() => Ok(()),
            d => Err(d.reason().to_string()),
        }
    }
}

/// One admission plug-in. `new` is `None` for deletions, `old` for creations.
#[async_trait]
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;
    /// Those that it has something to say in; the others' method isn't called.
    fn phases(&self) -> &'static [Phase];
    /// Whether it has to be asked at all.
    fn concerns(&self, _review: &Review<'_>) -> bool {
        true
    }
    async fn mutate(&self, _review: &Review<'_>, _new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        Ok(())
    }
    async fn validate(&self, _review: &Review<'_>, _new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        Ok(())
    }
}

/// Plug-ins from outside this folder: mutating policies, mutating webhooks, validating policies, validating webhooks,
/// in this order.
pub type Extensions = Vec<Arc<dyn Plugin>>;

/// All plug-ins in order.
pub struct Chain {
    plugins: Vec<(Arc<dyn Plugin>, [Cells; 2])>,
    lookup: Lookup,
    authorizer: Arc<Authorizers>,
    told: Arc<AdmissionMetrics>,
}

impl Chain {
    pub fn new(
        engine: Arc<Engine>,
        authorizer: Arc<Authorizers>,
        extensions: Extensions,
        settings: &Settings,
        loopback: Loopback,
        told: Arc<AdmissionMetrics>,
    ) -> Self {
        let mut plugins: Vec<Arc<dyn Plugin>> = vec![
            Arc::new(optional::AlwaysAdmit),
            Arc::new(optional::NamespaceAutoProvision(loopback)),
            Arc::new(namespace::NamespaceLifecycle),
            Arc::new(optional::NamespaceExists),
            Arc::new(optional::LimitPodHardAntiAffinityTopology),
            Arc::new(limit_ranger::LimitRanger),
            Arc::new(service_account::ServiceAccount),
            Arc::new(node_restriction::NodeRestriction),
            Arc::new(nodes::TaintNodesByCondition),
            Arc::new(optional::AlwaysPullImages),
        ];
        if let Some(policy) = &settings.image_policy {
            plugins.push(Arc::new(optional::ImagePolicyWebhook::new(policy.clone())));
        }
        let others: Vec<Arc<dyn Plugin>> = vec![
            Arc::new(pod_security::PodSecurity(settings.pod_security.clone())),
            Arc::new(optional::PodNodeSelector(settings.node_selectors.clone())),
            Arc::new(priority::Priority),
            Arc::new(settings.toleration_seconds),
            Arc::new(optional::PodTolerationRestriction(settings.tolerations.clone())),
            Arc::new(optional::EventRateLimit::new(&settings.event_rate)),
            Arc::new(optional::ExtendedResourceToleration),
            Arc::new(storage::DefaultStorageClass),
            Arc::new(storage::StorageObjectInUseProtection),
            Arc::new(optional::OwnerReferencesPermissionEnforcement),
            Arc::new(storage::PersistentVolumeClaimResize),
            Arc::new(runtime_class::RuntimeClass),
            Arc::new(certificates::CertificateApproval),
            Arc::new(certificates::CertificateSigning),
            Arc::new(certificates::ClusterTrustBundleAttest),
            Arc::new(certificates::CertificateSubjectRestriction),
            Arc::new(ingress_class::DefaultIngressClass),
            Arc::new(optional::DenyServiceExternalIPs),
            Arc::new(nodes::PodTopologyLabels),
            Arc::new(declared_features::NodeDeclaredFeatureValidator),
            Arc::new(pod_resize::PodResizeValidator),
        ];
        plugins.extend(others);
        plugins.extend(extensions);
        plugins.push(Arc::new(quota::ResourceQuota::default()));
        plugins.push(Arc::new(optional::AlwaysDeny));
        plugins.retain(|p| settings.runs(p.name()));
        // What upstream checks with the object's fields can't be switched off.
        plugins.insert(0, Arc::new(device_access::DeviceAccess));
        plugins.insert(1, Arc::new(claim_status::ClaimStatus));
        // Nor what keeps the list of what has been revoked.
        plugins.insert(2, Arc::new(revocations::Revocations));
        Chain {
            plugins: plugins.into_iter().map(|p| (p, Default::default())).collect(),
            lookup: Lookup::new(engine),
            authorizer,
            told,
        }
    }
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.plugins.iter().map(|(p, _)| p.name())
    }
    fn review<'a>(&'a self, cx: &'a Cx, op: Operation, rounds: &'a Rounds) -> Review<'a> {
        Review {
            cx,
            op,
            lookup: &self.lookup,
            authorizer: self.authorizer.as_ref(),
            rounds,
            told: &self.told,
        }
    }
    fn of(&self, phase: Phase, review: &Review<'_>) -> impl Iterator<Item = (&Arc<dyn Plugin>, &Cells)> {
        let asked = move |plugin: &dyn Plugin| plugin.phases().contains(&phase) && plugin.concerns(review);
        let of_phase = self.plugins.iter().filter(move |(p, _)| asked(p.as_ref()));
        of_phase.map(move |(plugin, cells)| (plugin, &cells[phase as usize]))
    }

    async fn mutated(&self, review: &Review<'_>, mut new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        loop {
            for (plugin, cells) in self.of(Phase::Mutating, review) {
                let began = Instant::now();
                let done = plugin.mutate(review, new.as_deref_mut(), old).await;
                let took = began.elapsed();
                self.told
                    .plugin(cells, plugin.name(), Phase::Mutating, review.op, took, done.is_ok());
                done?;
            }
            if !review.rounds.again() {
                return Ok(());
            }
        }
    }
    async fn validated(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        for (plugin, cells) in self.of(Phase::Validating, review) {
            let began = Instant::now();
            let done = plugin.validate(review, new, old).await;
            let took = began.elapsed();
            self.told
                .plugin(cells, plugin.name(), Phase::Validating, review.op, took, done.is_ok());
            done?;
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for Chain {
    async fn mutate(&self, cx: &Cx, op: Operation, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        let (rounds, began) = (Rounds::default(), Instant::now());
        let done = self.mutated(&self.review(cx, op, &rounds), new, old).await;
        self.told.step(Phase::Mutating, op, began.elapsed(), done.is_ok());
        done
    }
    async fn validate(&self, cx: &Cx, op: Operation, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let (rounds, began) = (Rounds::default(), Instant::now());
        let done = self.validated(&self.review(cx, op, &rounds), new, old).await;
        self.told.step(Phase::Validating, op, began.elapsed(), done.is_ok());
        done
    }
    async fn authorize_create(&self, cx: &Cx) -> ApiResult<()> {
        let attributes = Attributes {
            user: cx.user.as_ref().clone(),
            verb: Str::const_new("create"),
            is_resource_request: true,
            api_group: cx.def.gvr.group.clone(),
            api_version: cx.def.gvr.version.clone(),
            resource: cx.def.gvr.resource.clone(),
            subresource: cx.subresource.clone(),
            namespace: cx.namespace.clone(),
            name: cx.name.clone(),
            ..Attributes::default()
        };
        match self.authorizer.authorize(&attributes).await {
            d if d.is_allowed() => Ok(()),
            d => Err(attributes.forbidden(d.reason())),
        }
    }
}

#[cfg(test)]
mod tests {
    /// A half that a plug-in has and doesn't name would never be called.
    #[test]
    fn plugins_name_the_phases_that_they_have_a_method_for() {
        let mut places = vec!["src/admission".into(), "src/authz".into()];
        let mut plugins = 0;
        while let Some(place) = places.pop() {
            let place: std::path::PathBuf = place;
            if place.is_dir() {
                places.extend(std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = std::fs::read_to_string(&place).unwrap();
            for plugin in text.split("\nimpl Plugin for ").skip(1) {
                let body = &format!("{}\n", plugin.split("\n}\n").next().unwrap());
                if body.contains("self.plugin.phases()") {
                    continue;
                }
                let (phases, rest) = body.split_once("fn phases").unwrap().1.split_once("    }\n").unwrap();
                for (phase, method) in [("Phase::Mutating", "fn mutate("), ("Phase::Validating", "fn validate(")] {
                    let has = rest.contains(method) || body.split("fn phases").next().unwrap().contains(method);
                    assert_eq!(phases.contains(phase), has, "{}: {method} in {body}", place.display());
                }
                plugins += 1;
            }
        }
        assert!(plugins >= 25, "{plugins}");
    }
}
