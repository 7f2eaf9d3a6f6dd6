//! What claims ask for, read and checked before the search.

use super::constraint::Constraint;
use super::pool::Pool;
use super::search::Place;
use super::slice::{Amounts, quantity};
use super::{Allocator, Failure, MOST_RESULTS, capacity, is_over, named};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceRequest, DeviceSelector, DeviceToleration, ResourceClaim,
};
use std::sync::Arc;
use std::time::Instant;

/// Of one claim: upstream's bound. The search is as deep as there are requests.
const MOST_REQUESTS: usize = 32;

/// One way in which a request can be satisfied.
#[derive(Debug)]
pub struct Way<'c> {
    pub name: &'c str,
    /// The request, if it has several ways.
    pub parent: Option<&'c str>,
    pub class: Arc<DeviceClass>,
    pub selectors: &'c [DeviceSelector],
    pub tolerations: Option<&'c Vec<DeviceToleration>>,
    pub capacity: Amounts,
    /// Only to look: devices that are in use will do.
    pub is_admin: bool,
    pub count: usize,
    /// Every one that fits is wanted: these.
    pub all: Option<Vec<Place>>,
}

impl Way<'_> {
    /// As allocations name it.
    pub fn whole_name(&self) -> String {
        match self.parent {
            Some(parent) => format!("{parent}/{}", self.name),
            None => self.name.to_owned(),
        }
    }
}

#[derive(Debug)]
pub struct Wanted<'c> {
    /// In the order of preference.
    pub ways: Vec<Way<'c>>,
    /// Which of them was taken.
    pub chosen: usize,
}

#[derive(Debug)]
pub struct Claim<'c> {
    pub requests: Vec<Wanted<'c>>,
    pub constraints: Vec<Constraint<'c>>,
}

/// All claims' requests. An error: one can't be satisfied on any node.
pub fn read<'c>(
    allocator: &Allocator<'_>,
    node: &Node,
    claims: &'c [Arc<ResourceClaim>],
    pools: &[Pool],
    until: Option<Instant>,
) -> Result<Vec<Claim<'c>>, Failure> {
    let reader = Reader {
        allocator,
        node,
        pools,
        until,
    };
    claims.iter().map(|claim| reader.claim(claim)).collect()
}

struct Reader<'a> {
    allocator: &'a Allocator<'a>,
    node: &'a Node,
    pools: &'a [Pool],
    until: Option<Instant>,
}

impl Reader<'_> {
    fn claim<'c>(&self, claim: &'c ResourceClaim) -> Result<Claim<'c>, Failure> {
        let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
        let (mut requests, mut fewest) = (Vec::new(), 0);
        for request in devices.iter().flat_map(|d| d.requests.iter().flatten()) {
            if requests.len() >= MOST_REQUESTS {
                return Err(Failure::Fatal(format!(
                    "claim {}: it has more than {MOST_REQUESTS} requests",
                    named(claim)
                )));
            }
            let ways = self.ways(claim, request)?;
            let least = ways.iter().map(|way| way.count).min().unwrap_or(0);
            if least > MOST_RESULTS - fewest {
                return Err(Failure::Fatal(format!(
                    "claim {}, request {}: adding {least} devices exceeds the claim limit of {MOST_RESULTS}, with {fewest} already accounted for",
                    named(claim),
                    request.name
                )));
            }
            fewest += least;
            requests.push(Wanted { ways, chosen: 0 });
        }
        let mut constraints = Vec::new();
        for (i, constraint) in devices.iter().flat_map(|d| d.constraints.iter().flatten()).enumerate() {
            let requests = constraint.requests.as_ref();
            constraints.push(match (&constraint.match_attribute, &constraint.distinct_attribute) {
                (Some(attribute), _) => Constraint::new(requests, attribute, false),
                (None, Some(attribute)) => Constraint::new(requests, attribute, true),
                (None, None) => {
                    let name = named(claim);
                    return Err(Failure::Fatal(format!(
                        "claim {name}, constraint #{i}: empty constraint (unsupported constraint type?)"
                    )));
                }
            });
        }
        Ok(Claim { requests, constraints })
    }

    fn ways<'c>(&self, claim: &ResourceClaim, request: &'c DeviceRequest) -> Result<Vec<Way<'c>>, Failure> {
        let alternatives = request.first_available.as_deref().unwrap_or_default();
        if !alternatives.is_empty() {
            let ways = alternatives.iter().map(|sub| {
                let (mode, count) = (sub.allocation_mode.as_deref(), sub.count);
                let way = Asked {
                    name: &sub.name,
                    parent: Some(&request.name),
                    class: &sub.device_class_name,
                    selectors: sub.selectors.as_deref(),
                    tolerations: sub.tolerations.as_ref(),
                    capacity: sub.capacity.as_ref(),
                    is_derived: sub.derived_attributes.as_ref().is_some_and(|d| !d.is_empty()),
                    is_admin: false,
                };
                self.way(claim, way, mode, count)
            });
            return ways.collect();
        }
        let exactly = request.exactly.as_ref();
        let Some(exactly) = exactly else {
            return Err(Failure::Fatal(format!(
                "claim {}, request {}: missing device class name (unsupported request type?)",
                named(claim),
                request.name
            )));
        };
        let asked = Asked {
            name: &request.name,
            parent: None,
            class: &exactly.device_class_name,
            selectors: exactly.selectors.as_deref(),
            tolerations: exactly.tolerations.as_ref(),
            capacity: exactly.capacity.as_ref(),
            is_derived: exactly.derived_attributes.as_ref().is_some_and(|d| !d.is_empty()),
            is_admin: exactly.admin_access == Some(true),
        };
        let way = self.way(claim, asked, exactly.allocation_mode.as_deref(), exactly.count)?;
        Ok(vec![way])
    }

    fn way<'c>(
        &self,
        claim: &ResourceClaim,
        asked: Asked<'c>,
        mode: Option<&str>,
        count: Option<i64>,
    ) -> Result<Way<'c>, Failure> {
        let here = || format!("claim {}, request {}", named(claim), asked.name);
        if asked.is_derived {
            return Err(Failure::Fatal(format!(
                "{}: cannot handle request with derived attributes, the feature is disabled",
                here()
            )));
        }
        let selectors = asked.selectors.unwrap_or_default();
        if let Some(i) = selectors.iter().position(|s| s.cel.is_none()) {
            return Err(Failure::Fatal(format!(
                "{}, selector #{i}: CEL expression empty (unsupported selector type?)",
                here()
            )));
        }
        if asked.class.is_empty() {
            return Err(Failure::Fatal(format!(
                "{}: missing device class name (unsupported request type?)",
                here()
            )));
        }
        let Some(class) = (self.allocator.classes)(asked.class) else {
            let class = asked.class;
            return Err(Failure::Fatal(format!(
                "{}: could not retrieve device class {class}: deviceclass.resource.k8s.io {class:?} not found",
                here()
            )));
        };
        let requests = asked.capacity.and_then(|c| c.requests.as_ref()).into_iter().flatten();
        let mut way = Way {
            name: asked.name,
            parent: asked.parent,
            class,
            selectors,
            tolerations: asked.tolerations,
            capacity: requests
                .map(|(name, amount)| (name.clone(), quantity(amount)))
                .collect(),
            is_admin: asked.is_admin,
            count: 0,
            all: None,
        };
        match mode {
            Some("ExactCount") => {
                let count = count.unwrap_or(0);
                way.count = usize::try_from(count).unwrap_or(0);
                // The search goes on from a request by its devices: one that has none is no request.
                if way.count == 0 {
                    return Err(Failure::Fatal(format!(
                        "{}: {count} devices can't be asked for",
                        here()
                    )));
                }
            }
            Some("All") => {
                let all = self.all(claim, &way).map_err(|error| match error {
                    Wrong::Pool(text) => Failure::Fatal(format!("{}: {text}", here())),
                    Wrong::Selector(text) => Failure::Fatal(text),
                    Wrong::Late => Failure::Late,
                })?;
                way.count = all.len();
                way.all = Some(all);
            }
            other => {
                return Err(Failure::Fatal(format!(
                    "{}: unsupported count mode {}",
                    here(),
                    other.unwrap_or_default()
                )));
            }
        }
        Ok(way)
    }

    /// Every device that fits, whether it is in use or not.
    fn all(&self, claim: &ResourceClaim, way: &Way<'_>) -> Result<Vec<Place>, Wrong> {
        let mut places = Vec::new();
        for (p, pool) in self.pools.iter().enumerate() {
            let text = match (pool.is_incomplete, &pool.fault) {
                (true, _) => "currently being updated",
                (false, Some(_)) => "currently invalid",
                (false, None) => "",
            };
            if !text.is_empty() {
                let id = &pool.id;
                return Err(Wrong::Pool(format!(
                    "asks for all devices, but resource pool {id} is {text}"
                )));
            }
            for (s, slice) in pool.slices.iter().enumerate() {
                for (d, device) in slice.devices.iter().enumerate() {
                    if is_over(self.until) {
                        return Err(Wrong::Late);
                    }
                    let is_it = selected(self.allocator, claim, way, device).map_err(Wrong::Selector)?;
                    if !is_it || !slice.offers(device, self.node) {
                        continue;
                    }
                    // What others have taken doesn't matter here: if it isn't left, all can't be had.
                    let fits = capacity::fits(&device.capacity, &way.capacity, &[]);
                    let checking = |e| Wrong::Pool(format!("checking capacity for device {}: {e}", device.id.device));
                    if fits.map_err(checking)? {
                        places.push(Place {
                            pool: p,
                            slice: s,
                            device: d,
                        });
                    }
                }
            }
        }
        Ok(places)
    }
}

enum Wrong {
    Pool(String),
    Selector(String),
    Late,
}

struct Asked<'c> {
    name: &'c str,
    parent: Option<&'c str>,
    class: &'c str,
    selectors: Option<&'c [DeviceSelector]>,
    tolerations: Option<&'c Vec<DeviceToleration>>,
    capacity: Option<&'c CapacityRequirements>,
    is_derived: bool,
    is_admin: bool,
}

/// Whether all selectors of class and request select the device.
pub fn selected(
    allocator: &Allocator<'_>,
    claim: &ResourceClaim,
    way: &Way<'_>,
    device: &super::slice::Device,
) -> Result<bool, String> {
    let class = way
        .class
        .spec
        .as_ref()
        .and_then(|s| s.selectors.as_deref())
        .unwrap_or_default();
    let class_name = way.class.metadata.name.as_deref().unwrap_or_default();
    let ofs = [
        ("class", class_name.to_owned(), class),
        ("claim", named(claim), way.selectors),
    ];
    for (kind, name, selectors) in ofs {
        for (i, selector) in selectors.iter().enumerate() {
            let Some(cel) = &selector.cel else { continue };
            match allocator.selectors.matches(&cel.expression, device) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(format!("{kind} {name}: selector #{i}{error}")),
            }
        }
    }
    Ok(true)
}
