//! Allocations as the API has them: devices, the configuration of classes and claims, and the nodes they are good for.

use super::request::Way;
use super::search::{Chosen, Search};
use super::slice::Scope;
use super::{Failure, named};
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use std::collections::{BTreeMap, BTreeSet};

pub fn all(search: &Search<'_>, new_id: &mut dyn FnMut() -> String) -> Result<Vec<AllocationResult>, Failure> {
    (0..search.claims.len())
        .map(|claim| of_claim(search, claim, new_id))
        .collect()
}

fn of_claim(
    search: &Search<'_>,
    claim: usize,
    new_id: &mut dyn FnMut() -> String,
) -> Result<AllocationResult, Failure> {
    let chosen = &search.chosen[claim];
    let results = chosen.iter().map(|one| result(search, claim, one, new_id));
    let results: Vec<_> = results.collect();
    let config = configuration(search, claim);
    let selector = node_selector(search, chosen).map_err(|error| {
        let name = named(&search.claims[claim]);
        Failure::Fatal(format!("create NodeSelector for claim {name}: {error}"))
    })?;
    Ok(AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            config: (!config.is_empty()).then_some(config),
            results: (!results.is_empty()).then_some(results),
        }),
        node_selector: selector,
    })
}

fn result(
    search: &Search<'_>,
    claim: usize,
    chosen: &Chosen,
    new_id: &mut dyn FnMut() -> String,
) -> DeviceRequestAllocationResult {
    let way = &search.wanted[claim].requests[chosen.request].ways[chosen.way];
    let (_, device) = search.device(chosen.place);
    let consumed = chosen.consumed.as_ref().filter(|amounts| !amounts.is_empty());
    DeviceRequestAllocationResult {
        request: way.whole_name(),
        driver: device.id.driver.to_string(),
        pool: device.id.pool.to_string(),
        device: device.id.device.to_string(),
        admin_access: way.is_admin.then_some(true),
        tolerations: way.tolerations.cloned(),
        share_id: chosen.consumed.is_some().then(new_id),
        consumed_capacity: consumed.map(|amounts| {
            let texts = amounts.iter();
            texts
                .map(|(name, amount)| (name.clone(), Text(amount.to_string())))
                .collect()
        }),
        binding_conditions: device.conditions.clone(),
        binding_failure_conditions: device.failure_conditions.clone(),
        ..DeviceRequestAllocationResult::default()
    }
}

/// First that of classes, each once, with the requests it is for; then the claim's own, as far as it is for what was chosen.
fn configuration(search: &Search<'_>, claim: usize) -> Vec<DeviceAllocationConfiguration> {
    let requests = &search.wanted[claim].requests;
    let chosen: Vec<&Way<'_>> = requests
        .iter()
        .filter_map(|wanted| wanted.ways.get(wanted.chosen))
        .collect();
    let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut classes: BTreeMap<&str, std::ops::Range<usize>> = BTreeMap::new();
    for way in &chosen {
        let name = way.class.metadata.name.as_deref().unwrap_or_default();
        if let Some(known) = classes.get(name) {
            for entry in &mut config[known.clone()] {
                entry.requests.get_or_insert_default().push(way.whole_name());
            }
            continue;
        }
        let start = config.len();
        let of_class = way.class.spec.iter().flat_map(|s| s.config.iter().flatten());
        config.extend(of_class.map(|entry| DeviceAllocationConfiguration {
            opaque: entry.opaque.clone(),
            requests: Some(vec![way.whole_name()]),
            source: "FromClass".into(),
        }));
        classes.insert(name, start..config.len());
    }
    let is_meant = |names: &[String], way: &Way<'_>| {
        names
            .iter()
            .any(|name| name == way.parent.unwrap_or(way.name) || *name == way.whole_name())
    };
    let own = search.claims[claim].spec.as_ref().and_then(|s| s.devices.as_ref());
    for entry in own.into_iter().flat_map(|d| d.config.iter().flatten()) {
        let names = entry.requests.as_deref().unwrap_or_default();
        if names.is_empty() || chosen.iter().any(|way| is_meant(names, way)) {
            config.push(DeviceAllocationConfiguration {
                opaque: entry.opaque.clone(),
                requests: entry.requests.clone(),
                source: "FromClaim".into(),
            });
        }
    }
    for entry in &mut config {
        let names = entry.requests.as_deref().unwrap_or_default();
        if chosen.iter().all(|way| is_meant(names, way)) {
            entry.requests = None;
        }
    }
    config
}

/// `None`: every node.
fn node_selector(search: &Search<'_>, chosen: &[Chosen]) -> Result<Option<NodeSelector>, String> {
    let mut term = NodeSelectorTerm::default();
    for one in chosen {
        let (slice, device) = search.device(one.place);
        let scope = slice.scope.as_ref().unwrap_or(&device.scope);
        match scope {
            _ if device.binds_to_node => return Ok(Some(this_node(search))),
            Scope::Node(_) => return Ok(Some(this_node(search))),
            Scope::All | Scope::Nowhere => {}
            Scope::Selected(selector) => match selector.node_selector_terms.as_slice() {
                [] => {}
                [one] => {
                    add(one.match_fields.as_deref(), &mut term.match_fields);
                    add(one.match_expressions.as_deref(), &mut term.match_expressions);
                }
                terms => {
                    let count = terms.len();
                    return Err(format!("unsupported ResourceSlice.NodeSelector with {count} terms"));
                }
            },
        }
    }
    let says_something = term.match_fields.is_some() || term.match_expressions.is_some();
    Ok(says_something.then(|| NodeSelector {
        node_selector_terms: vec![term],
    }))
}

fn this_node(search: &Search<'_>) -> NodeSelector {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![search.node.metadata.name.clone().unwrap_or_default()]),
    };
    NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![requirement]),
            match_expressions: None,
        }],
    }
}

/// What isn't there yet, in whatever order its values are.
fn add(from: Option<&[NodeSelectorRequirement]>, to: &mut Option<Vec<NodeSelectorRequirement>>) {
    for requirement in from.unwrap_or_default() {
        let to = to.get_or_insert_default();
        let values = |r: &NodeSelectorRequirement| r.values.iter().flatten().cloned().collect::<BTreeSet<_>>();
        let is_same = |other: &NodeSelectorRequirement| {
            other.key == requirement.key
                && other.operator == requirement.operator
                && values(other) == values(requirement)
        };
        if !to.iter().any(is_same) {
            to.push(requirement.clone());
        }
    }
}
