//! The search: claim by claim, request by request, device by device, in a fixed order; the first solution counts.
//!
//! Within a request only combinations are tried, not their permutations: the next device is one behind the last. A way that
//! would give a claim more devices than it may have ends all that lead to it.

use super::counters::Counters;
use super::pool::Pool;
use super::request::{Claim, Way, selected};
use super::slice::{Amounts, Device, DeviceId, Slice};
use super::{Allocator, Failure, MOST_IN_ALL, MOST_RESULTS, capacity, is_over, named};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceToleration, ResourceClaim};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A device, by its place in the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub pool: usize,
    pub slice: usize,
    pub device: usize,
}

/// The device that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct At {
    claim: usize,
    request: usize,
    way: usize,
    device: usize,
}

/// A device that was chosen.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub place: Place,
    pub request: usize,
    pub way: usize,
    /// It is shared: what this share consumes.
    pub consumed: Option<Amounts>,
}

enum Stop {
    Failed(Failure),
    /// The claim would have too many devices.
    TooMany,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

type Found = Result<bool, Stop>;

pub struct Search<'a> {
    allocator: &'a Allocator<'a>,
    pub node: &'a Node,
    pub claims: &'a [Arc<ResourceClaim>],
    pub pools: &'a [Pool],
    pub wanted: Vec<Claim<'a>>,
    /// By claim.
    pub chosen: Vec<Vec<Chosen>>,
    until: Option<Instant>,
    /// Which claims have the device.
    allocating: HashMap<DeviceId, Vec<usize>>,
    /// What is taken of shared devices, and by how many.
    sharing: HashMap<DeviceId, (usize, Amounts)>,
    /// By pool; made when they are asked for.
    counters: HashMap<usize, Counters>,
    /// Answers of selectors.
    selected: HashMap<(Place, usize, usize, usize), bool>,
}

impl<'a> Search<'a> {
    pub fn new(
        allocator: &'a Allocator<'a>,
        node: &'a Node,
        claims: &'a [Arc<ResourceClaim>],
        pools: &'a [Pool],
        wanted: Vec<Claim<'a>>,
        until: Option<Instant>,
    ) -> Search<'a> {
        Search {
            allocator,
            node,
            claims,
            pools,
            chosen: vec![Vec::new(); wanted.len()],
            wanted,
            until,
            allocating: HashMap::new(),
            sharing: HashMap::new(),
            counters: HashMap::new(),
            selected: HashMap::new(),
        }
    }

    pub fn run(&mut self) -> Result<bool, Failure> {
        match self.request(0, 0) {
            Ok(found) => Ok(found),
            Err(Stop::TooMany) => Ok(false),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    pub fn device(&self, place: Place) -> (&'a Slice, &'a Device) {
        let slice = &self.pools[place.pool].slices[place.slice];
        (slice, &slice.devices[place.device])
    }

    fn is_late(&self) -> bool {
        is_over(self.until)
    }

    /// The request, and all that come after it.
    fn request(&mut self, claim: usize, request: usize) -> Found {
        if self.is_late() {
            return Err(Failure::Late.into());
        }
        let Some(wanted) = self.wanted.get(claim) else {
            return Ok(true);
        };
        let Some(of_claim) = wanted.requests.get(request) else {
            return match self.request(claim + 1, 0) {
                // With other devices before it, it may be different.
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        };
        let ways = of_claim.ways.len();
        let at = |way: usize| At {
            claim,
            request,
            way,
            device: 0,
        };
        if of_claim.ways.first().is_none_or(|way| way.parent.is_none()) {
            return self.next(at(0), Place::default());
        }
        let mut are_all_too_many = true;
        for way in 0..ways {
            match self.next(at(way), Place::default()) {
                Err(Stop::TooMany) => {}
                Ok(true) => {
                    self.wanted[claim].requests[request].chosen = way;
                    return Ok(true);
                }
                Ok(false) => are_all_too_many = false,
                failed => return failed,
            }
        }
        if are_all_too_many {
            Err(Stop::TooMany)
        } else {
            Ok(false)
        }
    }

    /// The next device of a request, from a place on.
    fn next(&mut self, at: At, start: Place) -> Found {
        if self.is_late() {
            return Err(Failure::Late.into());
        }
        let way = &self.wanted[at.claim].requests[at.request].ways[at.way];
        if way.all.as_ref().is_some_and(Vec::is_empty) {
            return Ok(false);
        }
        if at.device >= way.count {
            return self.request(at.claim, at.request + 1);
        }
        if way.count - at.device > MOST_RESULTS - self.chosen[at.claim].len() {
            return Err(Stop::TooMany);
        }
        if let Some(all) = &way.all {
            let place = all[at.device];
            return self.descend(at, place, true).map(|found| found.unwrap_or(false));
        }
        for p in start.pool..self.pools.len() {
            let pool = &self.pools[p];
            if !pool.is_usable() {
                continue;
            }
            let first_slice = if p == start.pool { start.slice } else { 0 };
            for s in first_slice..pool.slices.len() {
                let is_start = p == start.pool && s == start.slice;
                let first = if is_start { start.device } else { 0 };
                for device in first..pool.slices[s].devices.len() {
                    let place = Place {
                        pool: p,
                        slice: s,
                        device,
                    };
                    if self.may_take(at, place)? && self.descend(at, place, false)?.unwrap_or(false) {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Whether the device is free, selected, and large enough.
    fn may_take(&mut self, at: At, place: Place) -> Found {
        // A selector may cost much, and there are many devices.
        if self.is_late() {
            return Err(Failure::Late.into());
        }
        let (slice, device) = self.device(place);
        let is_admin = self.way(at).is_admin;
        if self.is_in_use(at.claim, device, is_admin) {
            return Ok(false);
        }
        let key = (place, at.claim, at.request, at.way);
        let is_selected = match self.selected.get(&key) {
            Some(known) => *known,
            None => {
                let is_it = selected(self.allocator, &self.claims[at.claim], self.way(at), device);
                let is_it = is_it.map_err(Failure::Fatal)? && slice.offers(device, self.node);
                self.selected.insert(key, is_it);
                is_it
            }
        };
        Ok(is_selected && self.is_large_enough(at, device)?)
    }

    fn way(&self, at: At) -> &Way<'a> {
        &self.wanted[at.claim].requests[at.request].ways[at.way]
    }

    fn is_in_use(&self, claim: usize, device: &Device, is_admin: bool) -> bool {
        let users = self.allocating.get(&device.id).map(Vec::as_slice).unwrap_or_default();
        match is_admin {
            true => users.contains(&claim),
            false => !users.is_empty() || self.allocator.state.is_taken(&device.id),
        }
    }

    fn is_large_enough(&self, at: At, device: &Device) -> Result<bool, Failure> {
        let taken = self.allocator.state.shared.get(&device.id).map(|shared| &shared.taken);
        let sharing = self.sharing.get(&device.id).map(|(_, amounts)| amounts);
        let way = self.way(at);
        capacity::fits(&device.capacity, &way.capacity, &[taken, sharing]).map_err(|error| {
            let claim = named(&self.claims[at.claim]);
            let text = format!(
                "claim {claim}, request {}: checking capacity for device {}: {error}",
                way.name, device.id
            );
            Failure::Fatal(text)
        })
    }

    /// Takes the device and goes on to the next one. `None`: it can't be taken.
    fn descend(&mut self, at: At, place: Place, must: bool) -> Result<Option<bool>, Stop> {
        if self.chosen.iter().map(Vec::len).sum::<usize>() >= MOST_IN_ALL {
            let text = format!("claims of a pod can't have more than {MOST_IN_ALL} devices in all");
            return Err(Failure::Fatal(text).into());
        }
        if !self.take(at, place, must)? {
            return Ok(None);
        }
        let next = At {
            device: at.device + 1,
            ..at
        };
        let behind = Place {
            device: place.device + 1,
            ..place
        };
        let found = self.next(next, behind);
        if !matches!(found, Ok(true)) {
            self.put_back(at);
        }
        found.map(Some)
    }

    fn take(&mut self, at: At, place: Place, must: bool) -> Found {
        let (_, device) = self.device(place);
        let way = self.way(at);
        let (is_admin, name, parent) = (way.is_admin, way.name, way.parent);
        let is_busy = self.is_in_use(at.claim, device, is_admin) && !(device.is_shared && is_admin);
        if is_busy || is_kept_off(device, way.tolerations) {
            return Ok(false);
        }
        let is_large_enough = self.is_large_enough(at, device)?;
        if !self.take_counters(place.pool, device) {
            return Ok(false);
        }
        let constraints = self.wanted[at.claim].constraints.len();
        let (request, whole) = names(name, parent);
        for i in 0..constraints {
            if self.wanted[at.claim].constraints[i].add(request, &whole, device) {
                continue;
            }
            self.release(at.claim, i, place, device, (request, &whole));
            if must {
                let (claim, id) = (named(&self.claims[at.claim]), &device.id);
                let text = format!(
                    "claim {claim}, request {name}: cannot add device {id} because a claim constraint would not be satisfied"
                );
                return Err(Failure::Fatal(text).into());
            }
            return Ok(false);
        }
        if !is_large_enough {
            self.release(at.claim, constraints, place, device, (request, &whole));
            return Ok(false);
        }
        let consumed = match device.is_shared {
            true => {
                let asked = &self.way(at).capacity;
                Some(capacity::consumed(&device.capacity, asked).map_err(Failure::Fatal)?)
            }
            false => None,
        };
        match &consumed {
            Some(amounts) => {
                let (shares, sum) = self.sharing.entry(device.id.clone()).or_default();
                *shares += 1;
                for (name, amount) in amounts {
                    sum.entry(name.clone()).or_default().add(*amount);
                }
            }
            None => self.allocating.entry(device.id.clone()).or_default().push(at.claim),
        }
        self.chosen[at.claim].push(Chosen {
            place,
            request: at.request,
            way: at.way,
            consumed,
        });
        Ok(true)
    }

    /// The counters of a shared device are taken with its first share.
    fn take_counters(&mut self, pool: usize, device: &Device) -> bool {
        if !self.counts(device) {
            return true;
        }
        let (pools, state) = (self.pools, self.allocator.state);
        let counters = self
            .counters
            .entry(pool)
            .or_insert_with(|| Counters::of(&pools[pool], state));
        counters.take(device)
    }

    fn counts(&self, device: &Device) -> bool {
        let is_shared_already = device.is_shared
            && (self.allocator.state.shared.contains_key(&device.id) || self.sharing.contains_key(&device.id));
        !device.consumes.is_empty() && !is_shared_already
    }

    /// Constraints (so many of them) and counters are as before.
    fn release(&mut self, claim: usize, constraints: usize, place: Place, device: &Device, names: (&str, &str)) {
        for constraint in &mut self.wanted[claim].constraints[..constraints] {
            constraint.remove(names.0, names.1);
        }
        if self.counts(device)
            && let Some(counters) = self.counters.get_mut(&place.pool)
        {
            counters.give_back(device);
        }
    }

    /// The claim's last device goes.
    fn put_back(&mut self, at: At) {
        let Some(last) = self.chosen[at.claim].pop() else {
            return;
        };
        let (_, device) = self.device(last.place);
        match &last.consumed {
            Some(amounts) => {
                if let Some((shares, sum)) = self.sharing.get_mut(&device.id) {
                    *shares -= 1;
                    for (name, amount) in amounts {
                        sum.entry(name.clone()).or_default().sub(*amount);
                    }
                    if *shares == 0 {
                        self.sharing.remove(&device.id);
                    }
                }
            }
            None => {
                if let Some(users) = self.allocating.get_mut(&device.id) {
                    users.retain(|claim| *claim != at.claim);
                }
            }
        }
        let way = self.way(at);
        let (request, whole) = names(way.name, way.parent);
        let constraints = self.wanted[at.claim].constraints.len();
        self.release(at.claim, constraints, last.place, device, (request, &whole));
    }
}

/// The request, and with it the way.
fn names<'n>(name: &'n str, parent: Option<&'n str>) -> (&'n str, String) {
    match parent {
        Some(parent) => (parent, format!("{parent}/{name}")),
        None => (name, name.to_owned()),
    }
}

/// Whether a taint keeps claims off that don't tolerate it. What effects aren't known have none.
fn is_kept_off(device: &Device, tolerations: Option<&Vec<DeviceToleration>>) -> bool {
    let mut taints = device
        .taints
        .iter()
        .filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
    taints.any(|taint| !tolerations.into_iter().flatten().any(|t| tolerates(t, taint)))
}

/// Key and effect may be left open; a value is compared unless the operator is `Exists`.
pub fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let (key, effect) = (toleration.key.as_deref(), toleration.effect.as_deref());
    if effect.is_some_and(|e| !e.is_empty() && e != taint.effect)
        || key.is_some_and(|k| !k.is_empty() && k != taint.key)
    {
        return false;
    }
    match toleration.operator.as_deref() {
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some("Exists") => true,
        Some(_) => false,
    }
}
