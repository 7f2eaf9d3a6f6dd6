//! Admission that the cluster's own objects configure: webhooks and policies.

use super::Extensions;
use super::policy::{MutatingPolicies, Mutations, Policies, ValidatingPolicies, Validations};
use super::webhook::{Hooks, MutatingWebhooks, ValidatingWebhooks};
use crate::live::Sink;
use std::sync::Arc;

/// What is configured now; kept up to date by what is fed into [`sinks`](Self::sinks).
pub struct Configured {
    mutating_hooks: Arc<Hooks>,
    validating_hooks: Arc<Hooks>,
    mutating: Arc<Policies<Mutations>>,
    validating: Arc<Policies<Validations>>,
}

impl Configured {
    pub fn new() -> Arc<Configured> {
        Arc::new(Configured {
            mutating_hooks: Arc::default(),
            validating_hooks: Arc::default(),
            mutating: Policies::new(),
            validating: Policies::new(),
        })
    }

    /// In upstream's order.
    pub fn plugins(&self) -> Extensions {
        vec![
            Arc::new(MutatingPolicies(self.mutating.clone())),
            Arc::new(MutatingWebhooks(self.mutating_hooks.clone())),
            Arc::new(ValidatingPolicies(self.validating.clone())),
            Arc::new(ValidatingWebhooks(self.validating_hooks.clone())),
        ]
    }

    /// What to follow, and where to.
    pub fn sinks(&self) -> [(&'static str, Arc<dyn Sink>); 6] {
        macro_rules! path {
            ($resource:literal) => {
                concat!("/apis/admissionregistration.k8s.io/v1/", $resource)
            };
        }
        [
            (path!("mutatingwebhookconfigurations"), self.mutating_hooks.clone()),
            (path!("validatingwebhookconfigurations"), self.validating_hooks.clone()),
            (path!("mutatingadmissionpolicies"), self.mutating.policy_sink()),
            (path!("mutatingadmissionpolicybindings"), self.mutating.binding_sink()),
            (path!("validatingadmissionpolicies"), self.validating.policy_sink()),
            (
                path!("validatingadmissionpolicybindings"),
                self.validating.binding_sink(),
            ),
        ]
    }
}
