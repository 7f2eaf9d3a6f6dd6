//! Giving a pod its devices, container by container: what one can have depends on those before.

use super::choose::Ids;
use super::{Devices, near};
use crate::managers::topology::{Hints, Mask};
use crate::pods;
use crate::resources::{pod as amounts, quantity};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;

pub struct Giving<'a> {
    pub(super) devices: &'a Devices,
    pub(super) pod: &'a Pod,
    /// What init containers had and don't need any more.
    pub(super) reuse: BTreeMap<String, Ids>,
    pub(super) any: bool,
}

impl Giving<'_> {
    /// From which nodes of memory a container could get its devices.
    pub fn hints(&self, c: &Container, machine: &[u32]) -> Hints {
        let uid = pods::uid(self.pod);
        let wanted = self.devices.wanted(self.pod, c);
        let ledger = self.devices.ledger.lock();
        let none = Ids::new();
        let of = |(resource, count): (String, usize)| {
            let had = ledger.grant(uid, &c.name, &resource).map(|g| g.ids.clone());
            let reuse = self.reuse.get(&resource).unwrap_or(&none);
            let list = self.of_resource(&ledger, machine, &resource, count, had, reuse);
            (resource, list)
        };
        wanted.into_iter().map(of).collect()
    }

    /// From which the whole pod could get its.
    pub fn pod_hints(&self, machine: &[u32]) -> Hints {
        let uid = pods::uid(self.pod);
        let ledger = self.devices.ledger.lock();
        let wanted = amounts::pod_limits(self.pod).into_iter().filter_map(|(name, q)| {
            let count = usize::try_from(quantity::value(&q)).ok().filter(|n| *n > 0)?;
            ledger.manages(&name).then_some((name, count))
        });
        let of = |(resource, count): (String, usize)| {
            let of_pod = ledger.of_pod(uid).into_iter().flat_map(BTreeMap::values);
            let had: Ids = of_pod
                .filter_map(|c| c.get(&resource))
                .flat_map(|g| g.ids.iter().cloned())
                .collect();
            let had = Some(had).filter(|had| !had.is_empty());
            let list = self.of_resource(&ledger, machine, &resource, count, had, &Ids::new());
            (resource, list)
        };
        wanted.map(of).collect()
    }

    fn of_resource(
        &self,
        ledger: &super::Ledger,
        machine: &[u32],
        resource: &str,
        count: usize,
        had: Option<Ids>,
        reuse: &Ids,
    ) -> Option<Vec<crate::managers::topology::Hint>> {
        let none = Ids::new();
        let devices = ledger.devices(resource)?;
        match had {
            Some(had) if had.len() != count => Some(Vec::new()),
            Some(had) => near::hints(devices, machine, &had, &none, count),
            None => {
                let healthy = ledger.healthy(resource).unwrap_or(&none);
                let free: Ids = healthy.difference(&ledger.taken(resource)).cloned().collect();
                match near::hints(devices, machine, &free, reuse, count) {
                    Some(_) if free.union(reuse).count() < count => Some(Vec::new()),
                    hints => hints,
                }
            }
        }
    }

    /// Gives the next container what it asks for, near these nodes where that can be.
    pub async fn container(&mut self, c: &Container, near: Option<Mask>) -> Result<(), String> {
        self.any |= self.devices.allocate(self.pod, c, &self.reuse, near).await?;
        let ends = pods::init_containers(self.pod)
            .iter()
            .any(|i| i.name == c.name && !pods::is_sidecar(i));
        self.devices.pass_on(self.pod, c, &mut self.reuse, ends);
        Ok(())
    }

    /// All have what they ask for, which is remembered.
    pub fn done(self) -> Result<(), String> {
        match self.any {
            true => self.devices.save(pods::uid(self.pod)),
            false => Ok(()),
        }
    }
}
