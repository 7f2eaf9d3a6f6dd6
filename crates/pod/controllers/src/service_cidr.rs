//! Tells of each service range that it is in use, and keeps one that still holds addresses from going.

use crate::context::{Context, now};
use async_trait::async_trait;
use ipnet::IpNet;
use jiff::SignedDuration;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, is_not_found,
};
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";
const MANAGER: &str = "service-cidr-controller";

pub fn start(context: &Context) {
    let ranges = context.informer::<ServiceCIDR>();
    let addresses = context.informer::<IPAddress>();
    let controller = Controller::new("service-cidr")
        .input(&ranges)
        .input(&addresses)
        .output(ServiceCIDR::RESOURCE);
    let queue = controller.queue();
    {
        // Whether a range may go depends on the others.
        let (queue, known) = (queue.clone(), ranges.clone());
        ranges.on_change(move |change| {
            queue.add(change.object().key());
            if change.old().is_none() {
                known
                    .store()
                    .filter(|r| r.is_deleting())
                    .iter()
                    .for_each(|r| queue.add(r.key()));
            }
        });
    }
    let known = ranges.clone();
    addresses.on_change(move |change| {
        if change.is_deleted() {
            known
                .store()
                .filter(|r| r.is_deleting())
                .iter()
                .for_each(|r| queue.add(r.key()));
        }
    });
    let objects = Objects::new(&context.rest("service-cidrs-controller"));
    context.run(
        controller,
        Ranges {
            ranges,
            addresses,
            objects,
            written: Expectations::default(),
        },
    );
}

/// After so long every API server has heard that a range ends, and gives no more of its addresses away.
const HEARD: SignedDuration = SignedDuration::from_secs(10);

struct Ranges {
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    objects: Objects<ServiceCIDR>,
    written: Expectations,
}

fn nets(range: &ServiceCIDR) -> Vec<IpNet> {
    range
        .spec
        .iter()
        .flat_map(|s| s.cidrs.iter().flatten())
        .filter_map(|c| c.parse().ok())
        .collect()
}

/// Whether an address would be without a range if this one went.
fn is_needed(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let own = nets(range);
    let others: Vec<IpNet> = all
        .iter()
        .filter(|r| r.name() != range.name() && !r.is_deleting())
        .flat_map(|r| nets(r))
        .collect();
    let within = |nets: &[IpNet], ip: &IpAddr| nets.iter().any(|n| n.contains(ip));
    let mut ips = addresses.iter().filter_map(|a| a.name().parse::<IpAddr>().ok());
    ips.any(|ip| within(&own, &ip) && !within(&others, &ip))
}

#[async_trait]
impl Reconcile for Ranges {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.written.settle(key, self.ranges.store()).await?;
        let Some(range) = self.ranges.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let mut changed = (*range).clone();
        let has = changed.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
        if range.is_deleting() {
            if !has {
                return Ok(Outcome::Done);
            }
            if is_needed(&range, &self.ranges.store().list(), &self.addresses.store().list()) {
                let text = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
                return self.tell(key, &range, "False", "Terminating", text).await;
            }
            let told = range.metadata.deletion_timestamp.as_ref().map(|t| t.0 + HEARD);
            if let Some(at) = told.filter(|at| *at > now()) {
                return Ok(Outcome::At(at));
            }
            changed
                .metadata
                .finalizers
                .get_or_insert_default()
                .retain(|f| f != FINALIZER);
            return self.write(key, self.objects.update(&changed).await);
        }
        if !has {
            changed
                .metadata
                .finalizers
                .get_or_insert_default()
                .push(FINALIZER.into());
            return self.write(key, self.objects.update(&changed).await);
        }
        self.tell(key, &range, "True", "", "Kubernetes Service CIDR is ready")
            .await
    }
}

impl Ranges {
    async fn tell(
        &self,
        key: &ObjectKey,
        range: &ServiceCIDR,
        word: &str,
        reason: &str,
        message: &str,
    ) -> anyhow::Result<Outcome> {
        let mut conditions = range.status.iter().flat_map(|s| s.conditions.iter().flatten());
        if conditions.any(|c| c.type_ == READY && c.status == word && c.reason == reason) {
            return Ok(Outcome::Done);
        }
        // Applied, so that conditions of others stay.
        let body = json!({
            "apiVersion": ServiceCIDR::RESOURCE.api_version(),
            "kind": ServiceCIDR::RESOURCE.kind,
            "metadata": {"name": range.name()},
            "status": {"conditions": [{
                "type": READY,
                "status": word,
                "reason": reason,
                "message": message,
                "lastTransitionTime": now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]},
        });
        let patch = Patch::Apply {
            body: &body,
            manager: MANAGER,
            force: true,
        };
        self.write(key, self.objects.patch_status("", range.name(), patch).await)
    }

    fn write(&self, key: &ObjectKey, result: keelson_client::Result<ServiceCIDR>) -> anyhow::Result<Outcome> {
        match result {
            Ok(written) => self.written.wrote(key, written.meta()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_with_addresses_of_its_own_stays() {
        let range = |name: &str, cidr: &str| {
            Arc::new(
                ServiceCIDR::decode(
                    format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"cidrs":["{cidr}"]}}}}"#).as_bytes(),
                )
                .expect("valid"),
            )
        };
        let address = |ip: &str| {
            Arc::new(IPAddress::decode(format!(r#"{{"metadata":{{"name":"{ip}"}}}}"#).as_bytes()).expect("valid"))
        };
        let all = [range("a", "10.0.0.0/24"), range("b", "10.0.0.0/16")];
        assert!(!is_needed(&all[0], &all, &[address("10.0.0.5")]), "b covers it too");
        assert!(is_needed(&all[1], &all, &[address("10.0.7.5")]));
        assert!(!is_needed(&all[1], &all, &[address("10.9.7.5")]));
    }
}
