//! What has to be done at a start, by upstream's names.
//!
//! A hook is done when what it is named after has been done or read, and stays so: what may fail later has a check of its
//! own. Upstream's hooks for which there is nothing here (an object-count tracker, reloading of the proxy's certificate) have no check either.

use std::sync::atomic::{AtomicBool, Ordering};

macro_rules! hooks {
    ($($hook:ident $name:literal)*) => {
        /// One hook.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Hook { $($hook),* }
        /// The names of their checks, in upstream's order.
        pub const CHECKS: &[&str] = &[$($name),*];
    };
}

hooks! {
    AdmissionInitializer "poststarthook/start-apiserver-admission-initializer"
    GenericInformers "poststarthook/generic-apiserver-start-informers"
    FlowConsumer "poststarthook/priority-and-fairness-config-consumer"
    FlowFilter "poststarthook/priority-and-fairness-filter"
    StorageReadiness "poststarthook/storage-readiness"
    ExtensionInformers "poststarthook/start-apiextensions-informers"
    ExtensionControllers "poststarthook/start-apiextensions-controllers"
    CrdsSynced "poststarthook/crd-informer-synced"
    SystemNamespaces "poststarthook/start-system-namespaces-controller"
    AuthenticationInfo "poststarthook/start-cluster-authentication-info-controller"
    IdentityLease "poststarthook/start-kube-apiserver-identity-lease-controller"
    IdentityCollector "poststarthook/start-kube-apiserver-identity-lease-garbage-collector"
    LegacyTokenTracking "poststarthook/start-legacy-token-tracking-controller"
    ServiceIpRepair "poststarthook/start-service-ip-repair-controllers"
    BootstrapRoles "poststarthook/rbac/bootstrap-roles"
    PriorityClasses "poststarthook/scheduling/bootstrap-system-priority-classes"
    FlowProducer "poststarthook/priority-and-fairness-config-producer"
    Bootstrap "poststarthook/bootstrap-controller"
    AggregatorInformers "poststarthook/start-kube-aggregator-informers"
    LocalAvailability "poststarthook/apiservice-status-local-available-controller"
    RemoteAvailability "poststarthook/apiservice-status-remote-available-controller"
    ServiceRegistration "poststarthook/apiservice-registration-controller"
    ServiceDiscovery "poststarthook/apiservice-discovery-controller"
    Autoregistration "poststarthook/kube-apiserver-autoregistration"
    AutoregisterCompletion "autoregister-completion"
    ServiceOpenApi "poststarthook/apiservice-openapi-controller"
    ServiceOpenApiV3 "poststarthook/apiservice-openapiv3-controller"
}

/// Which hooks are done.
pub struct Hooks(Vec<AtomicBool>);

impl Default for Hooks {
    fn default() -> Self {
        Hooks(CHECKS.iter().map(|_| AtomicBool::new(false)).collect())
    }
}

impl Hooks {
    pub fn done(&self, hooks: &[Hook]) {
        for hook in hooks {
            self.0[*hook as usize].store(true, Ordering::Relaxed);
        }
    }
    pub(super) fn check(&self, index: usize) -> Result<(), String> {
        if self.0[index].load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("not finished".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_has_failed_until_it_is_done() {
        let hooks = Hooks::default();
        hooks.done(&[Hook::ServiceOpenApiV3, Hook::CrdsSynced]);
        let done: Vec<&str> = (0..CHECKS.len())
            .filter(|i| hooks.check(*i).is_ok())
            .map(|i| CHECKS[i])
            .collect();
        assert_eq!(
            done,
            [
                CHECKS[Hook::CrdsSynced as usize],
                "poststarthook/apiservice-openapiv3-controller"
            ]
        );
    }
}
