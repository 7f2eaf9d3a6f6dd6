//! What a driver publishes: a [`Slice`] of a pool, with its devices, read from the API's object once.

use super::capacity::Capacity;
use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{self as api, DeviceAttribute, DeviceTaint, ResourceSlice};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use keelson_api::Quantity;
use keelson_machinery::cel::device::Attribute;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A driver's pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId {
    pub driver: Arc<str>,
    pub pool: Arc<str>,
}

/// A device, as claims name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    pub driver: Arc<str>,
    pub pool: Arc<str>,
    pub device: Arc<str>,
}

impl DeviceId {
    pub fn new(driver: &str, pool: &str, device: &str) -> DeviceId {
        DeviceId {
            driver: driver.into(),
            pool: pool.into(),
            device: device.into(),
        }
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.driver, self.pool)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}

/// From which nodes a slice or a device can be reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    Node(String),
    All,
    Selected(NodeSelector),
    /// By none: nothing is said, or nothing that is known.
    Nowhere,
}

impl Scope {
    fn of(node: Option<&String>, all: Option<bool>, selector: Option<&NodeSelector>) -> Scope {
        match (node.filter(|name| !name.is_empty()), selector) {
            (Some(name), _) => Scope::Node(name.clone()),
            (None, _) if all == Some(true) => Scope::All,
            (None, Some(selector)) => Scope::Selected(selector.clone()),
            (None, None) => Scope::Nowhere,
        }
    }
}

/// Amounts by name.
pub type Amounts = BTreeMap<String, Quantity>;

#[derive(Clone, Debug)]
pub struct Slice {
    pub name: String,
    pub pool: PoolId,
    pub generation: i64,
    /// How many slices the pool has in this generation.
    pub slices: i64,
    /// `None`: each device says it.
    pub scope: Option<Scope>,
    pub devices: Vec<Device>,
    /// What several devices share, by the set's name.
    pub counters: Vec<(String, Amounts)>,
    /// Devices of compatibility groups can't be judged here.
    pub is_unknown: bool,
}

#[derive(Clone, Debug)]
pub struct Device {
    pub id: DeviceId,
    /// If the slice leaves it to the device.
    pub scope: Scope,
    pub attributes: BTreeMap<String, Attribute>,
    pub capacity: BTreeMap<String, Capacity>,
    /// The values of `capacity` alone.
    pub amounts: Amounts,
    /// From which set how much.
    pub consumes: Vec<(String, Amounts)>,
    pub taints: Vec<DeviceTaint>,
    /// It can be allocated to several claims, each of which gets a part of its capacity.
    pub is_shared: bool,
    /// The allocation is for the node that it was made for.
    pub binds_to_node: bool,
    pub conditions: Option<Vec<String>>,
    pub failure_conditions: Option<Vec<String>>,
    /// Why its attributes can't be read by selectors.
    pub fault: Option<String>,
}

impl Slice {
    pub fn of(slice: &ResourceSlice) -> Slice {
        let spec = &slice.spec;
        let pool = PoolId {
            driver: spec.driver.as_str().into(),
            pool: spec.pool.name.as_str().into(),
        };
        let is_per_device = spec.per_device_node_selection == Some(true);
        let scope = Scope::of(spec.node_name.as_ref(), spec.all_nodes, spec.node_selector.as_ref());
        let devices = spec.devices.as_deref().unwrap_or_default();
        let counters = spec.shared_counters.iter().flatten();
        Slice {
            name: slice.metadata.name.clone().unwrap_or_default(),
            generation: spec.pool.generation,
            slices: spec.pool.resource_slice_count,
            scope: (!is_per_device || scope != Scope::Nowhere).then_some(scope),
            devices: devices.iter().map(|device| Device::of(&pool, device)).collect(),
            counters: counters.map(|set| (set.name.clone(), counted(&set.counters))).collect(),
            is_unknown: devices.iter().any(is_grouped),
            pool,
        }
    }

    pub fn has_binding_conditions(&self) -> bool {
        self.devices.iter().any(|device| device.conditions.is_some())
    }
}

fn is_grouped(device: &api::Device) -> bool {
    let mut consumed = device.consumes_counters.iter().flatten();
    consumed.any(|c| c.compatibility_groups.as_ref().is_some_and(|groups| !groups.is_empty()))
}

impl Device {
    fn of(pool: &PoolId, device: &api::Device) -> Device {
        let mut fault = None;
        let attributes = device.attributes.iter().flatten().filter_map(|(name, value)| {
            let read = attribute(value);
            if read.is_none() && !is_list(value) {
                fault = Some(format!("attribute {name}: unsupported attribute value"));
            }
            Some((name.clone(), read?))
        });
        let attributes = attributes.collect();
        let capacity: BTreeMap<String, Capacity> = device
            .capacity
            .iter()
            .flatten()
            .map(|(name, capacity)| (name.clone(), Capacity::of(capacity)))
            .collect();
        let consumes = device.consumes_counters.iter().flatten();
        Device {
            id: DeviceId {
                driver: pool.driver.clone(),
                pool: pool.pool.clone(),
                device: device.name.as_str().into(),
            },
            scope: Scope::of(
                device.node_name.as_ref(),
                device.all_nodes,
                device.node_selector.as_ref(),
            ),
            attributes,
            amounts: capacity.iter().map(|(name, c)| (name.clone(), c.value)).collect(),
            capacity,
            consumes: consumes
                .map(|c| (c.counter_set.clone(), counted(&c.counters)))
                .collect(),
            taints: device.taints.clone().unwrap_or_default(),
            is_shared: device.allow_multiple_allocations == Some(true),
            binds_to_node: device.binds_to_node == Some(true),
            conditions: device.binding_conditions.clone(),
            failure_conditions: device.binding_failure_conditions.clone(),
            fault,
        }
    }

    /// An attribute by its full name: as it stands, or by its last part if its domain is the driver's.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.get(name).or_else(|| {
            let (domain, id) = name.split_once('/')?;
            (domain == &*self.id.driver).then(|| self.attributes.get(id))?
        })
    }
}

fn attribute(value: &DeviceAttribute) -> Option<Attribute> {
    let value = value.clone();
    (value.int.map(Attribute::Int))
        .or(value.bool.map(Attribute::Bool))
        .or(value.string.map(Attribute::Text))
        .or(value.version.map(Attribute::Version))
}

/// Attributes that are lists are known, but off: they say nothing.
fn is_list(value: &DeviceAttribute) -> bool {
    value.ints.is_some() || value.bools.is_some() || value.strings.is_some() || value.versions.is_some()
}

fn counted(counters: &BTreeMap<String, api::Counter>) -> Amounts {
    let counters = counters.iter();
    counters
        .map(|(name, counter)| (name.clone(), quantity(&counter.value)))
        .collect()
}

/// Validation keeps out what can't be read; it counts as nothing.
pub fn quantity(text: &Text) -> Quantity {
    Quantity::parse(&text.0).unwrap_or(Quantity::ZERO)
}
