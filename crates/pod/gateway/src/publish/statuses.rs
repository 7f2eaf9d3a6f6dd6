//! What is written into the statuses of objects: only what differs from what stands there, over no one else's word.

use super::features::FEATURES;
use crate::GATEWAY_CONTROLLER;
use crate::kinds::{
    AncestorStatus, BackendTLSPolicy, Feature, GROUP, Gateway, GatewayClass, ListenerSet, ListenerStatus, ParentRef,
    ParentStatus, Route, RouteStatus,
};
use crate::plan::status::{OfGateway, OfParent, OfPolicy, OfSet, Told, listeners, merge};
use crate::plan::{Owner, Plan, World, rules};
use k8s_openapi::api::core::v1::LoadBalancerIngress;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::EventType::Warning;
use keelson_client::{ApiObject, Kind, ObjectKey, Objects, Patch, Recorder, Rest, is_conflict, is_not_found};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

pub struct Teller {
    rest: Rest,
    recorder: Recorder,
    /// Problems of which there has been an event.
    told: BTreeSet<(ObjectKey, String)>,
}

impl Teller {
    pub fn new(rest: &Rest, recorder: Recorder) -> Teller {
        Teller {
            rest: rest.clone(),
            recorder,
            told: BTreeSet::new(),
        }
    }

    /// One object whose status can't be written keeps no other from being told: the first error is returned when all have been tried.
    pub async fn tell(&mut self, world: &World, plan: &Plan) -> keelson_client::Result<()> {
        let now = Time(keelson_clock::now());
        let front = world.fronts.get(&Owner::Ingress);
        let addresses = front.map(|f| f.addresses.as_slice()).unwrap_or_default();
        let mut done = Ok(());
        for ingress in &world.ingresses {
            if plan.statuses.ingresses.contains(&ingress.key()) {
                done = done.and(self.write(ingress.as_ref(), of_ingress(ingress, addresses)).await);
            }
        }
        self.problems(world, plan);
        for class in &world.classes {
            if let Some(told) = plan.statuses.classes.get(class.name()) {
                done = done.and(self.write(class.as_ref(), of_class(class, told, &now)).await);
            }
        }
        for gateway in &world.gateways {
            if let Some(told) = plan.statuses.gateways.get(&gateway.key()) {
                done = done.and(self.write(gateway.as_ref(), of_gateway(gateway, told, &now)).await);
            }
        }
        done = done.and(self.routes(rules::HTTP, &world.http_routes, plan, &now).await);
        done = done.and(self.routes(rules::GRPC, &world.grpc_routes, plan, &now).await);
        done = done.and(self.routes(rules::TLS, &world.tls_routes, plan, &now).await);
        done = done.and(self.routes(rules::TCP, &world.tcp_routes, plan, &now).await);
        done = done.and(self.routes(rules::UDP, &world.udp_routes, plan, &now).await);
        for set in &world.listener_sets {
            if let Some(told) = plan.statuses.listener_sets.get(&set.key()) {
                done = done.and(self.write(set.as_ref(), of_set(set, told, &now)).await);
            }
        }
        for policy in &world.policies {
            let told = plan.statuses.policies.get(&policy.key());
            done = done.and(self.write(policy.as_ref(), of_policy(policy, told, &now)).await);
        }
        done
    }

    async fn routes<R: Route>(
        &self,
        kind: rules::Kind,
        routes: &[Arc<R>],
        plan: &Plan,
        now: &Time,
    ) -> keelson_client::Result<()> {
        let mut done = Ok(());
        for route in routes {
            let told = plan.statuses.routes.get(&(kind.0, route.key()));
            let status = of_route(route.status(), told, route.meta().generation, now);
            done = done.and(self.write(route.as_ref(), status).await);
        }
        done
    }

    fn problems(&mut self, world: &World, plan: &Plan) {
        for (key, why) in plan.problems.difference(&self.told) {
            if let Some(ingress) = world.ingresses.iter().find(|i| i.key() == *key) {
                self.recorder.event(ingress.as_ref(), Warning, "NotServed", why);
            }
        }
        self.told.clone_from(&plan.problems);
    }

    /// Whoever wrote in between is heard of, and the next turn has it.
    async fn write<K: Kind>(&self, object: &K, status: Option<Value>) -> keelson_client::Result<()> {
        let Some(status) = status else { return Ok(()) };
        let body = json!({"metadata": {"resourceVersion": object.meta().resource_version}, "status": status});
        let objects = Objects::<K>::new(&self.rest);
        match objects
            .patch_status(object.namespace(), object.name(), Patch::Merge(&body))
            .await
        {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

fn of_ingress(ingress: &Ingress, addresses: &[LoadBalancerIngress]) -> Option<Value> {
    let now = ingress
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref());
    let one = |a: &LoadBalancerIngress| {
        let mut entry = json!({});
        for (field, value) in [("ip", &a.ip), ("hostname", &a.hostname)] {
            if let Some(value) = value {
                entry[field] = value.as_str().into();
            }
        }
        let ports = a
            .ports
            .iter()
            .flatten()
            .map(|p| json!({"port": p.port, "protocol": p.protocol}));
        entry["ports"] = ports.collect();
        entry
    };
    let wanted: Vec<Value> = addresses.iter().map(one).collect();
    let now = serde_json::to_value(now.unwrap_or_default()).unwrap_or_default();
    (now != Value::from(wanted.clone())).then(|| json!({"loadBalancer": {"ingress": wanted}}))
}

fn of_class(class: &GatewayClass, told: &[Told], now: &Time) -> Option<Value> {
    let conditions = merge(&class.status.conditions, told, class.metadata.generation, now.clone());
    let features: Vec<Feature> = FEATURES.iter().map(|name| Feature { name: name.to_string() }).collect();
    let same = class.status.conditions == conditions && class.status.supported_features == features;
    (!same).then(|| json!({"conditions": conditions, "supportedFeatures": features}))
}

fn of_gateway(gateway: &Gateway, told: &OfGateway, now: &Time) -> Option<Value> {
    let generation = gateway.metadata.generation;
    let conditions = merge(&gateway.status.conditions, &told.conditions, generation, now.clone());
    let listeners = listeners(&gateway.status.listeners, &told.listeners, generation, now);
    let status = &gateway.status;
    // Definitions that are older than sets have no field for their number.
    let sets = (told.sets > 0).then_some(told.sets);
    let same = status.conditions == conditions
        && status.listeners == listeners
        && status.addresses == told.addresses
        && status.attached_listener_sets == sets;
    (!same).then(|| {
        let all = entries(&listeners);
        json!({"addresses": told.addresses, "conditions": conditions, "listeners": all, "attachedListenerSets": sets})
    })
}

fn of_set(set: &ListenerSet, told: &OfSet, now: &Time) -> Option<Value> {
    let generation = set.metadata.generation;
    let conditions = merge(&set.status.conditions, &told.conditions, generation, now.clone());
    let listeners = listeners(&set.status.listeners, &told.listeners, generation, now);
    let same = set.status.conditions == conditions && set.status.listeners == listeners;
    (!same).then(|| json!({"conditions": conditions, "listeners": entries(&listeners)}))
}

/// With all fields that the API asks for, also those that say nothing.
fn entries(all: &[ListenerStatus]) -> Vec<Value> {
    let one = |l: &ListenerStatus| json!({"name": l.name, "attachedRoutes": l.attached_routes, "supportedKinds": l.supported_kinds, "conditions": l.conditions});
    all.iter().map(one).collect()
}

/// Other controllers' entries stay; one of ours for a parent that isn't ours any more goes.
fn of_route(status: &RouteStatus, told: Option<&Vec<OfParent>>, generation: Option<i64>, now: &Time) -> Option<Value> {
    let (ours, others): (Vec<&ParentStatus>, Vec<&ParentStatus>) = status
        .parents
        .iter()
        .partition(|p| p.controller_name == GATEWAY_CONTROLLER);
    let one = |told: &OfParent| {
        let before = ours.iter().find(|p| p.parent_ref == told.parent);
        let before = before.map(|p| p.conditions.as_slice()).unwrap_or_default();
        ParentStatus {
            parent_ref: told.parent.clone(),
            controller_name: GATEWAY_CONTROLLER.into(),
            conditions: merge(before, &told.conditions, generation, now.clone()),
        }
    };
    let told: Vec<ParentStatus> = told.into_iter().flatten().map(one).collect();
    let same = ours.iter().copied().eq(told.iter());
    let parents: Vec<ParentStatus> = others.into_iter().cloned().chain(told).collect();
    (!same).then(|| json!({"parents": parents}))
}

/// So many Gateways the API has room for.
const ANCESTORS: usize = 16;

fn of_policy(policy: &BackendTLSPolicy, told: Option<&OfPolicy>, now: &Time) -> Option<Value> {
    let all = policy.status.ancestors.iter();
    let (ours, others): (Vec<&AncestorStatus>, Vec<&AncestorStatus>) =
        all.partition(|a| a.controller_name == GATEWAY_CONTROLLER);
    let one = |(gateway, told): (&ObjectKey, &OfPolicy)| {
        let ancestor_ref = ParentRef {
            group: Some(GROUP.into()),
            kind: Some("Gateway".into()),
            namespace: Some(gateway.namespace.clone()),
            name: gateway.name.clone(),
            ..ParentRef::default()
        };
        let before = ours.iter().find(|a| a.ancestor_ref == ancestor_ref);
        let before = before.map(|a| a.conditions.as_slice()).unwrap_or_default();
        AncestorStatus {
            conditions: merge(before, &told.conditions, policy.metadata.generation, now.clone()),
            ancestor_ref,
            controller_name: GATEWAY_CONTROLLER.into(),
        }
    };
    let gateways = told
        .into_iter()
        .flat_map(|told| told.gateways.iter().map(move |g| (g, told)));
    let room = ANCESTORS.saturating_sub(others.len());
    let told: Vec<AncestorStatus> = gateways.take(room).map(one).collect();
    let same = ours.iter().copied().eq(told.iter());
    let ancestors: Vec<AncestorStatus> = others.into_iter().cloned().chain(told).collect();
    (!same).then(|| json!({"ancestors": ancestors}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(name: &str) -> ParentRef {
        ParentRef {
            name: name.into(),
            ..ParentRef::default()
        }
    }

    #[test]
    fn what_others_say_of_a_route_stays_and_times_do_until_something_turns() {
        let at = |second: i64| Time(jiff::Timestamp::from_second(second).unwrap());
        let other = ParentStatus {
            parent_ref: parent("theirs"),
            controller_name: "x/y".into(),
            conditions: Vec::new(),
        };
        let mut status = RouteStatus {
            parents: vec![other.clone()],
        };
        let told = |holds| {
            vec![OfParent {
                parent: parent("ours"),
                conditions: vec![Told::new("Accepted", holds, "R", "m")],
            }]
        };
        let mut write = |holds, second| {
            let value = of_route(&status, Some(&told(holds)), Some(1), &at(second));
            if let Some(value) = &value {
                status = serde_json::from_value(value.clone()).unwrap();
            }
            (value.is_some(), status.clone())
        };
        let (first, after) = write(true, 1);
        assert!(first && after.parents[0] == other && after.parents.len() == 2);
        assert!(!write(true, 2).0, "nothing has changed");
        let (_, after) = write(false, 3);
        assert_eq!(after.parents[1].conditions[0].last_transition_time, at(3));
        let gone = of_route(&after, None, Some(1), &at(4)).unwrap();
        assert_eq!(gone["parents"].as_array().unwrap().len(), 1);
    }
}
