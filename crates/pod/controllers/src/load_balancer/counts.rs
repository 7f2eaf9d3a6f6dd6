//! What pools say of themselves: how many of their addresses are in use, and which of their ranges don't count.

use super::pooled::Pooled;
use super::{TELLER, tell_status, wish};
use crate::context::{Context, now};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use keelson_balancing::{LoadBalancerIpPool, Pool, PoolStatus};
use keelson_client::{ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

const VALID: &str = "Valid";

pub fn start(context: &Context, services: &Informer<Service>, pooled: &Arc<Pooled>) {
    let Some((pools, _)) = pooled.sources() else { return };
    // All at once: one key, for however many services changed.
    let controller = Controller::new("load-balancer-pools")
        .input(services)
        .input(pools)
        .output(LoadBalancerIpPool::RESOURCE)
        .workers(1);
    let queue = controller.queue();
    services.on_change(move |change| {
        let old = change.old().map(|s| wish::has(s)).unwrap_or_default();
        if change.is_deleted() || wish::has(change.object()) != old {
            queue.add(ObjectKey::default());
        }
    });
    let queue = controller.queue();
    pools.on_change(move |_| queue.add(ObjectKey::default()));
    let teller = Teller {
        services: services.clone(),
        pools: pools.clone(),
        pooled: pooled.clone(),
        objects: Objects::new(&context.rest(TELLER)),
    };
    context.run(controller, teller);
}

struct Teller {
    services: Informer<Service>,
    pools: Informer<LoadBalancerIpPool>,
    pooled: Arc<Pooled>,
    objects: Objects<LoadBalancerIpPool>,
}

#[async_trait]
impl Reconcile for Teller {
    async fn reconcile(&self, _: &ObjectKey) -> anyhow::Result<Outcome> {
        let used: BTreeSet<IpAddr> = self.services.store().list().iter().flat_map(|s| wish::has(s)).collect();
        let read = self.pooled.pools();
        for pool in self.pools.store().list() {
            let Some(wanted) = read
                .get(pool.name())
                .map(|read| status(&pool, read, &used, Time(now())))
            else {
                continue;
            };
            if pool.status.as_ref() != Some(&wanted) {
                tell_status(&self.objects, &*pool, &wanted).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// As it should be; a condition that says the same keeps its date.
fn status(pool: &LoadBalancerIpPool, read: &Pool, used: &BTreeSet<IpAddr>, at: Time) -> PoolStatus {
    let (status, reason, message) = match read.refused.is_empty() {
        true => ("True", "Valid", String::new()),
        false => ("False", "InvalidAddresses", read.refused.join("; ")),
    };
    let there = pool
        .status
        .iter()
        .flat_map(|s| &s.conditions)
        .find(|c| c.type_ == VALID);
    let condition = Condition {
        type_: VALID.into(),
        status: status.into(),
        reason: reason.into(),
        last_transition_time: match there.filter(|c| c.status == status) {
            Some(before) => before.last_transition_time.clone(),
            None => at,
        },
        observed_generation: pool.metadata.generation,
        message,
    };
    let assigned = |v6: bool| used.iter().filter(|ip| ip.is_ipv6() == v6 && read.has(**ip)).count();
    let available = |v6: bool| {
        // One that is in use although it would be given away no more is none of those that are left.
        let given = used
            .iter()
            .filter(|ip| ip.is_ipv6() == v6 && read.has(**ip) && !read.avoids(**ip));
        i64::try_from(read.size(v6).saturating_sub(given.count() as u128)).unwrap_or(i64::MAX)
    };
    PoolStatus {
        conditions: vec![condition],
        assigned_v4: assigned(false) as i64,
        assigned_v6: assigned(true) as i64,
        available_v4: available(false),
        available_v6: available(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_balancing::Pools;
    use serde_json::json;

    #[test]
    fn addresses_are_counted_once_and_what_does_not_count_is_said() {
        let pool: LoadBalancerIpPool = serde_json::from_value(json!({"metadata": {"name": "a", "generation": 2},
            "spec": {"addresses": ["192.0.2.0/29", "2001:db8::/60", "192.0.2.4/30"], "avoidBuggyIPs": true}}))
        .unwrap();
        let pools = Pools::read(&[Arc::new(pool.clone())], &[]);
        let used = ["192.0.2.0", "192.0.2.1", "198.51.100.1", "2001:db8::1"];
        let used: BTreeSet<IpAddr> = used.map(|ip| ip.parse::<IpAddr>().unwrap()).into();
        let said = status(&pool, pools.get("a").unwrap(), &used, Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!((said.assigned_v4, said.available_v4), (2, 6));
        assert_eq!((said.assigned_v6, said.available_v6), (1, i64::MAX));
        let condition = &said.conditions[0];
        assert_eq!(
            (condition.status.as_str(), condition.observed_generation),
            ("False", Some(2))
        );
        assert_eq!(
            condition.message,
            "192.0.2.4/30 overlaps with 192.0.2.0-192.0.2.7 of pool a"
        );
        let mut written = pool;
        written.status = Some(said.clone());
        let later = Time(jiff::Timestamp::MAX);
        assert_eq!(status(&written, pools.get("a").unwrap(), &used, later), said);
    }
}
