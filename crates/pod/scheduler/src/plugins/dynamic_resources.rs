//! Claims of devices: one that is allocated is good for some nodes; one that isn't gets devices that the node can reach.
//!
//! [`decide`] says which devices a pod's claims get on a node; binding carries that out. A claim that keeps its pod off all nodes, and
//! that nobody else uses, is to be freed ([`to_free`]), so that it can be allocated elsewhere.

use super::check;
use crate::devices::extended::{self, Classes};
use crate::devices::{Allocator, Failure};
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject, Scorer, normalize_by_max};
use crate::ledger::{Ledger, View};
use crate::node::NodeInfo;
use crate::plan::Refused;
use crate::pod::PodInfo;
use crate::select::matches_any;
use crate::snapshot::Snapshot;
use crate::world::World;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerExtendedResourceRequest, Node, Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequest, DeviceRequestAllocationResult, ResourceClaim};
use keelson_client::ApiObject;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const NAME: &str = "DynamicResources";
/// Allocation may take so long, on all nodes together that are looked at.
pub const FILTER_WITHIN: Duration = Duration::from_secs(10);
/// What has to be done about devices before a pod starts may take so long.
pub const BINDING_WITHIN: Duration = Duration::from_secs(600);
/// Claims that one pod may name. The API has no bound of its own; whoever names more gets no node, and is told so.
const MOST_CLAIMS: usize = 256;
/// Alternatives of one request at most.
const MOST_WAYS: i64 = 8;
const NOT_HERE: &str = "resourceclaim not available on the node";

#[derive(Clone, Copy, Debug)]
pub struct DynamicResources {
    /// `None`: as long as it takes.
    pub filter_within: Option<Duration>,
    pub binding_within: Duration,
}

impl Default for DynamicResources {
    fn default() -> Self {
        DynamicResources {
            filter_within: Some(FILTER_WITHIN),
            binding_within: BINDING_WITHIN,
        }
    }
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        NAME
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let ledger = cycle.snapshot.world.devices();
        if !is_asking(cycle.pod, &ledger) {
            return Prepared::Skip;
        }
        match Claims::of(cycle.pod, &ledger, self) {
            Err(reject) => Prepared::Reject(reject),
            Ok(claims) if claims.all.is_empty() && claims.extended.is_empty() => Prepared::Skip,
            Ok(claims) => check(move |node| claims.on(node).map(drop)),
        }
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, feasible: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        if asked(&cycle.pod.pod).is_empty() {
            return None;
        }
        let claims = Claims::of(cycle.pod, &cycle.snapshot.world.devices(), self).ok()?;
        let has_ways = |claim: &Arc<ResourceClaim>| requests(claim).any(|r| r.first_available.is_some());
        if !claims.all.iter().any(has_ways) {
            return None;
        }
        let score = |node: &Arc<NodeInfo>| Some((node.index, claims.score(&claims.on(node).ok()?.0)));
        Some(Box::new(Preferred(
            feasible.iter().filter_map(|node| score(node)).collect(),
        )))
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        // Whether a class stands for an extended resource isn't known here.
        let asks = |pod: &PodInfo| !asked(&pod.pod).is_empty() || extended_names(pod).next().is_some();
        !asks(a) && !asks(b)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::Node(_) | ClusterEvent::Devices | ClusterEvent::Claim { .. }
        )
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, world: &dyn World) -> bool {
        match event {
            ClusterEvent::Node(_) | ClusterEvent::Devices => true,
            ClusterEvent::Claim { effect, .. } if effect.is_freed => true,
            ClusterEvent::Claim {
                namespace,
                name,
                effect,
            } if effect.matters && *namespace == pod.key.namespace => {
                let uses = |claim: &ResourceClaim| claim.namespace() == namespace && claim.name() == name;
                let claims = claims(&pod.pod, &world.devices());
                // One that was made for its extended resources has gone.
                extended::is_name_for(name, &pod.key.name)
                    || claims.is_ok_and(|claims| claims.iter().any(|claim| uses(claim)))
            }
            _ => false,
        }
    }
}

/// What claims get on the node that was chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// `None`: it is allocated already.
    pub claims: Vec<(Arc<ResourceClaim>, Option<AllocationResult>)>,
    pub extended: Option<Extended>,
}

impl Decision {
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.extended.is_none()
    }
}

/// What a pod gets for its extended resources. The claim isn't made yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Extended {
    pub claim: Arc<ResourceClaim>,
    pub mappings: Vec<ContainerExtendedResourceRequest>,
    pub allocation: AllocationResult,
}

/// Of a profile that has the plug-in.
pub fn decide(
    plugin: &DynamicResources,
    pod: &PodInfo,
    snapshot: &Snapshot,
    node: &NodeInfo,
) -> Result<Decision, Reject> {
    let ledger = snapshot.world.devices();
    if !is_asking(pod, &ledger) {
        return Ok(Decision::default());
    }
    let claims = Claims::of(pod, &ledger, plugin)?;
    let (allocations, extended) = claims.on(node)?;
    Ok(Decision {
        claims: claims.all.into_iter().zip(allocations).collect(),
        extended,
    })
}

/// The first of the pod's claims that is allocated where the pod can't be, and that nobody else uses.
pub fn to_free(
    plugin: &DynamicResources,
    pod: &PodInfo,
    snapshot: &Snapshot,
    refused: &[Refused],
) -> Option<Arc<ResourceClaim>> {
    let ledger = snapshot.world.devices();
    if !is_asking(pod, &ledger) {
        return None;
    }
    if !classes(pod, &ledger).is_empty()
        && let Some(stale) = ledger.extended_of(&pod.key, pod.uid())
    {
        return Some(stale);
    }
    let mut refused = refused
        .iter()
        .filter(|r| r.plugin == NAME && r.reject.reasons().any(|text| text == NOT_HERE))
        .peekable();
    refused.peek()?;
    let claims = claims(&pod.pod, &ledger).ok()?;
    let nodes: Vec<&Node> = refused.filter_map(|r| snapshot.at(r.node)).map(|n| n.node()).collect();
    let is_ours = |claim: &ResourceClaim| {
        let users = claim
            .status
            .as_ref()
            .and_then(|s| s.reserved_for.as_deref())
            .unwrap_or_default();
        users.iter().all(|user| user.uid == pod.uid()) && users.len() < 2
    };
    let is_in_the_way = |claim: &ResourceClaim| {
        let is_here = |a, node: &&Node| is_good_for(claim, a, node, plugin.binding_within);
        allocation(claim).is_some_and(|a| nodes.iter().any(|node| !is_here(a, node)))
    };
    claims.into_iter().find(|claim| is_in_the_way(claim) && is_ours(claim))
}

/// What the pod asks for in its specification.
pub fn asked(pod: &Pod) -> &[PodResourceClaim] {
    let claims = pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref());
    claims.unwrap_or_default()
}

/// Extended resources that the pod asks for.
fn extended_names(pod: &PodInfo) -> impl Iterator<Item = &String> {
    let other = pod
        .requests
        .other
        .iter()
        .filter(|(name, amount)| **amount > 0 && name.contains('/'));
    other.map(|(name, _)| name)
}

/// Those of them for which a class of devices stands, and the class.
pub fn classes(pod: &PodInfo, ledger: &Ledger) -> Classes {
    let class = |name: &String| Some((name.clone(), ledger.class_for(name)?.name().to_owned()));
    extended_names(pod).filter_map(class).collect()
}

fn is_asking(pod: &PodInfo, ledger: &Ledger) -> bool {
    !asked(&pod.pod).is_empty() || !classes(pod, ledger).is_empty()
}

/// Whether a pod isn't tried before its claims have changed. One that names too many is, so that it is told.
pub fn waits(pod: &Pod, ledger: &Ledger) -> bool {
    let asked = asked(pod).len();
    (1..=MOST_CLAIMS).contains(&asked) && claims(pod, ledger).is_err()
}

/// The pod's claims, each once; the error says which isn't there yet, or can't be used.
pub fn claims(pod: &Pod, ledger: &Ledger) -> Result<Vec<Arc<ResourceClaim>>, String> {
    if asked(pod).len() > MOST_CLAIMS {
        return Err(format!(
            "pod {:?} names more than {MOST_CLAIMS} resource claims",
            pod.key().to_string()
        ));
    }
    let (mut found, mut uids) = (Vec::new(), HashSet::new());
    for claim in asked(pod) {
        let (name, is_made) = match (&claim.resource_claim_name, &claim.resource_claim_template_name) {
            (Some(name), _) => (name, false),
            (None, Some(_)) => {
                let mut statuses = pod
                    .status
                    .iter()
                    .flat_map(|s| s.resource_claim_statuses.iter().flatten());
                let Some(status) = statuses.find(|s| s.name == claim.name) else {
                    return Err(format!("pod \"{}\": ResourceClaim not created yet", pod.key()));
                };
                let Some(name) = &status.resource_claim_name else {
                    continue;
                };
                (name, true)
            }
            (None, None) => {
                return Err(format!(
                    "pod \"{}\", spec.resourceClaim {:?}: none of the supported fields are set",
                    pod.key(),
                    claim.name
                ));
            }
        };
        let Some(known) = ledger.claim(pod.namespace(), name) else {
            return Err(format!("resourceclaim.resource.k8s.io {name:?} not found"));
        };
        if known.is_deleting() {
            return Err(format!("resourceclaim {name:?} is being deleted"));
        }
        let mut owners = known.metadata.owner_references.iter().flatten();
        if is_made && !owners.any(|o| o.controller == Some(true) && o.uid == pod.uid()) {
            return Err(format!(
                "ResourceClaim {} was not created for Pod {} (Pod is not owner)",
                known.key(),
                pod.key()
            ));
        }
        // Two names of one claim get its devices once.
        if uids.insert(known.uid().to_owned()) {
            found.push(known);
        }
    }
    Ok(found)
}

pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

pub fn results(allocation: &AllocationResult) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    allocation.devices.iter().flat_map(|d| d.results.iter().flatten())
}

fn requests(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequest> {
    let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
    devices.into_iter().flat_map(|d| d.requests.iter().flatten())
}

/// Whether an allocated claim can be used on the node.
fn is_good_for(claim: &ResourceClaim, allocation: &AllocationResult, node: &Node, within: Duration) -> bool {
    if allocation.node_selector.as_ref().is_some_and(|s| !matches_any(s, node)) {
        return false;
    }
    // What this node doesn't say that it can do without.
    let skips = results(allocation).any(|r| r.skip_node_operations.as_ref().is_some_and(|s| !s.is_empty()));
    let declared = node.status.as_ref().and_then(|s| s.declared_features.as_ref());
    if skips && !declared.into_iter().flatten().any(|f| f == "DRAOptionalNodeOperations") {
        return false;
    }
    match readiness(claim) {
        Ok(is_ready) => is_ready || !is_overdue(allocation, within, keelson_clock::now()),
        Err(_) => false,
    }
}

/// Whether all is done that the devices need before a pod starts; an error: it has failed.
pub fn readiness(claim: &ResourceClaim) -> Result<bool, String> {
    let Some(allocation) = allocation(claim) else {
        return Ok(false);
    };
    let devices = claim
        .status
        .as_ref()
        .and_then(|s| s.devices.as_deref())
        .unwrap_or_default();
    for result in results(allocation) {
        let Some(needed) = result.binding_conditions.as_ref().filter(|c| !c.is_empty()) else {
            continue;
        };
        let is_it = |d: &&k8s_openapi::api::resource::v1::AllocatedDeviceStatus| {
            d.driver == result.driver && d.pool == result.pool && d.device == result.device
        };
        let Some(device) = devices.iter().find(is_it) else {
            return Ok(false);
        };
        let find = |kind: &String| {
            device
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == *kind && c.status == "True")
        };
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(find) {
            return Err(format!(
                "device binding failed: claim={}, reason={}, message={:?}",
                claim.name(),
                failed.reason,
                failed.message
            ));
        }
        if !needed.iter().all(|kind| find(kind).is_some()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// It was allocated so long ago that its devices should be ready.
pub fn is_overdue(allocation: &AllocationResult, within: Duration, now: Timestamp) -> bool {
    let waits = results(allocation).any(|r| r.binding_conditions.is_some());
    let within = SignedDuration::try_from(within).unwrap_or(SignedDuration::MAX);
    let since = allocation.allocation_timestamp.as_ref();
    waits && since.is_some_and(|since| now.duration_since(since.0) > within)
}

/// A pod's claims, for one decision.
struct Claims {
    all: Vec<Arc<ResourceClaim>>,
    pod: Arc<Pod>,
    /// Resources for which there are classes.
    extended: Classes,
    ledger: Arc<Ledger>,
    view: View,
    /// For all nodes that are looked at.
    until: Option<Instant>,
    binding_within: Duration,
}

impl Claims {
    fn of(pod: &PodInfo, ledger: &Arc<Ledger>, plugin: &DynamicResources) -> Result<Claims, Reject> {
        let all = claims(&pod.pod, ledger).map_err(Reject::for_good)?;
        let extended = classes(pod, ledger);
        if !extended.is_empty() && ledger.extended_of(&pod.key, pod.uid()).is_some() {
            // Of an earlier try: it goes ([`to_free`]), and then there is another.
            return Err(Reject::for_good("cannot schedule extended resource claim"));
        }
        for claim in all.iter().filter(|claim| allocation(claim).is_none()) {
            if ledger.is_promised(claim.uid()) {
                let text = format!("resource claim {} is in the process of being allocated", claim.key());
                return Err(Reject::for_good(text));
            }
            for request in requests(claim) {
                has_classes(request, claim, ledger).map_err(Reject::for_good)?;
            }
        }
        Ok(Claims {
            all,
            pod: pod.pod.clone(),
            extended,
            ledger: ledger.clone(),
            view: ledger.view(),
            until: plugin
                .filter_within
                .and_then(|within| Instant::now().checked_add(within)),
            binding_within: plugin.binding_within,
        })
    }

    /// What each claim gets on the node, and what extended resources get that it hasn't by itself.
    fn on(&self, info: &NodeInfo) -> Result<(Vec<Option<AllocationResult>>, Option<Extended>), Reject> {
        let node = info.node();
        let is_good = |claim: &Arc<ResourceClaim>| {
            allocation(claim).is_none_or(|a| is_good_for(claim, a, node, self.binding_within))
        };
        if !self.all.iter().all(is_good) {
            return Err(Reject::for_good(NOT_HERE));
        }
        let mut open: Vec<_> = self.all.iter().filter(|c| allocation(c).is_none()).cloned().collect();
        let lacks = |name: &str| info.allocatable.get(name) == 0;
        let lacking = self.extended.iter().filter(|(name, _)| lacks(name));
        let lacking: Classes = lacking.map(|(name, class)| (name.clone(), class.clone())).collect();
        let made = (!lacking.is_empty()).then(|| extended::claim(&self.pod, &lacking, new_id()));
        let made = made.map(|(claim, mappings)| (Arc::new(claim), mappings));
        open.extend(made.iter().map(|(claim, _)| claim.clone()));
        if open.is_empty() {
            return Ok((vec![None; self.all.len()], None));
        }
        let allocator = Allocator {
            reach: &self.view.reach,
            classes: &|name| self.ledger.class(name),
            state: &self.view.state,
            selectors: &self.ledger.selectors,
        };
        let found = allocator.allocate(node, &open, self.until, &mut new_id);
        let found = found.map_err(|failure| match failure {
            Failure::Here(text) => Reject::for_good(text),
            Failure::Fatal(text) => Reject::error(text),
            Failure::Late => Reject::error(format!("node {}: timed out trying to allocate devices", node.name())),
        })?;
        let Some(mut found) = found else {
            return Err(Reject::for_good("cannot allocate all claims"));
        };
        let extended = made.and_then(|(claim, mappings)| {
            let allocation = found.pop()?;
            Some(Extended {
                claim,
                mappings,
                allocation,
            })
        });
        let mut found = found.into_iter();
        let each = self
            .all
            .iter()
            .map(|claim| allocation(claim).is_none().then(|| found.next()).flatten());
        Ok((each.collect(), extended))
    }

    /// The more a request's first ways were taken, the better.
    fn score(&self, allocations: &[Option<AllocationResult>]) -> i64 {
        let each = self.all.iter().zip(allocations).map(|(claim, new)| {
            let Some(allocation) = new.as_ref().or(allocation(claim)) else {
                return 0;
            };
            let ways = requests(claim).flat_map(|request| {
                let ways = request.first_available.iter().flatten().zip(0i64..);
                ways.map(|(way, i)| (format!("{}/{}", request.name, way.name), i))
            });
            let taken = ways.filter(|(name, _)| results(allocation).any(|r| r.request == *name));
            taken.map(|(_, i)| MOST_WAYS - i).sum()
        });
        each.sum()
    }
}

fn has_classes(request: &DeviceRequest, claim: &ResourceClaim, ledger: &Ledger) -> Result<(), String> {
    let ways = request.first_available.iter().flatten();
    let mut classes: Vec<(String, &str)> = ways
        .map(|way| (format!("{}/{}", request.name, way.name), way.device_class_name.as_str()))
        .collect();
    if let Some(exactly) = &request.exactly {
        classes = vec![(request.name.clone(), &exactly.device_class_name)];
    }
    if classes.is_empty() {
        let (claim, name) = (claim.key(), &request.name);
        return Err(format!("resource claim {claim}, request {name}: unknown request type"));
    }
    for (request, class) in classes {
        if class.is_empty() {
            return Err(format!("request {request}: unsupported request type"));
        }
        if ledger.class(class).is_none() {
            return Err(format!("request {request}: device class {class} does not exist"));
        }
    }
    Ok(())
}

/// A random id, as uids are written.
fn new_id() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

struct Preferred(HashMap<u32, i64>);

impl Scorer for Preferred {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.get(&node.index).copied().unwrap_or(0)
    }
    fn normalize(&self, _: &[&Arc<NodeInfo>], scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }
}
