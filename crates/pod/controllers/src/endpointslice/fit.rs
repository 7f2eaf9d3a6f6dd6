//! Fits endpoints into slices with as few writes as possible: pure.
//!
//! What is in a slice stays in it as long as it is wanted. New endpoints go where something is written anyway, then into
//! the slice that they fill best, and only then into slices of their own.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::ApiObject;
use keelson_client::labels::Labels;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What all slices of a service and family are like.
#[derive(Clone, Debug)]
pub struct Frame {
    pub meta: ObjectMeta,
    pub address_type: String,
    pub capacity: usize,
    /// Hints are given afterwards: what differs in them only is the same.
    pub hinted_later: bool,
}

/// Endpoints with the same ports.
pub type Group = (Vec<EndpointPort>, Vec<Endpoint>);

#[derive(Debug, Default)]
pub struct Changes {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
    /// Slices that stay as they are.
    pub unchanged: Vec<Arc<EndpointSlice>>,
}

/// Ports are equal whatever their order.
fn ports_key(ports: &[EndpointPort]) -> String {
    let mut parts: Vec<String> = ports
        .iter()
        .map(|p| format!("{:?} {:?} {:?} {:?}", p.name, p.protocol, p.port, p.app_protocol))
        .collect();
    parts.sort();
    parts.join("|")
}

/// The same endpoint, whatever its conditions.
fn identity(endpoint: &Endpoint) -> String {
    let mut addresses = endpoint.addresses.clone();
    addresses.sort();
    let target = endpoint
        .target_ref
        .as_ref()
        .map(|t| (&t.kind, &t.namespace, &t.name, &t.uid));
    format!("{addresses:?} {:?} {target:?}", endpoint.hostname)
}

fn owned_by(slice: &EndpointSlice, frame: &Frame) -> bool {
    let owner = frame.meta.owner_references.iter().flatten().next();
    owner.is_none_or(|owner| {
        slice
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.uid == owner.uid)
    })
}

/// `existing` are the slices there are of this service and family; `placeholder` keeps one, even without endpoints.
pub fn fit(frame: &Frame, groups: Vec<Group>, existing: &[Arc<EndpointSlice>], placeholder: bool) -> Changes {
    let mut changes = Changes::default();
    let mut by_ports: BTreeMap<String, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        if owned_by(slice, frame) {
            by_ports
                .entry(ports_key(slice.ports.as_deref().unwrap_or_default()))
                .or_default()
                .push(slice.clone());
        } else {
            changes.delete.push(slice.clone());
        }
    }
    for (ports, endpoints) in groups {
        let present = by_ports.remove(&ports_key(&ports)).unwrap_or_default();
        fit_group(frame, ports, endpoints, present, &mut changes);
    }
    changes.delete.extend(by_ports.into_values().flatten());
    if placeholder && changes.create.is_empty() && changes.delete.len() == existing.len() {
        let empty = new_slice(frame, Vec::new(), Vec::new());
        match changes.delete.iter().position(|slice| is_like(slice, &empty)) {
            Some(at) => {
                changes.delete.remove(at);
            }
            None => changes.create.push(empty),
        }
    }
    changes
}

fn is_like(slice: &EndpointSlice, empty: &EndpointSlice) -> bool {
    slice.endpoints.as_ref().is_none_or(Vec::is_empty)
        && slice.ports.as_ref().is_none_or(Vec::is_empty)
        && slice.metadata.labels == empty.metadata.labels
        && slice
            .metadata
            .owner_references
            .iter()
            .flatten()
            .map(|o| &o.uid)
            .eq(empty.metadata.owner_references.iter().flatten().map(|o| &o.uid))
}

fn new_slice(frame: &Frame, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: frame.meta.clone(),
        address_type: frame.address_type.clone(),
        ports: Some(ports),
        endpoints: Some(endpoints),
    }
}

fn fit_group(
    frame: &Frame,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    present: Vec<Arc<EndpointSlice>>,
    changes: &mut Changes,
) {
    let mut wanted: BTreeMap<String, Endpoint> = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut written: Vec<EndpointSlice> = Vec::new();
    let mut untouched: Vec<Arc<EndpointSlice>> = Vec::new();
    for slice in present {
        let mut kept = Vec::new();
        let mut changed = slice.metadata.labels != frame.meta.labels || !has_annotations(&slice, frame);
        for old in slice.endpoints.iter().flatten() {
            match wanted.remove(&identity(old)) {
                Some(new) => {
                    changed |= !same(old, &new, frame.hinted_later);
                    kept.push(new);
                }
                None => changed = true,
            }
        }
        if kept.is_empty() && !(wanted.is_empty() && slice.endpoints.as_ref().is_none_or(Vec::is_empty)) {
            changes.delete.push(slice);
        } else if kept.is_empty() {
            // Empty, and nothing is wanted: the caller decides whether it stays as the placeholder.
            changes.delete.push(slice);
        } else if changed {
            written.push(updated(&slice, frame, kept));
        } else {
            untouched.push(slice);
        }
    }
    let mut rest: Vec<Endpoint> = wanted.into_values().collect();
    written.sort_by_key(|s| std::cmp::Reverse(s.endpoints.as_ref().map_or(0, Vec::len)));
    for slice in &mut written {
        let list = slice.endpoints.get_or_insert_default();
        let room = frame.capacity.saturating_sub(list.len()).min(rest.len());
        list.extend(rest.drain(..room));
    }
    while !rest.is_empty() {
        let count = rest.len().min(frame.capacity);
        let part: Vec<Endpoint> = rest.drain(..count).collect();
        let best = (0..untouched.len())
            .filter(|&i| untouched[i].endpoints.as_ref().map_or(0, Vec::len) + count <= frame.capacity)
            .max_by_key(|&i| untouched[i].endpoints.as_ref().map_or(0, Vec::len));
        match best {
            Some(at) if count < frame.capacity => {
                let slice = untouched.remove(at);
                let all = slice.endpoints.iter().flatten().cloned().chain(part).collect();
                written.push(updated(&slice, frame, all));
            }
            _ => changes.create.push(new_slice(frame, ports.clone(), part)),
        }
    }
    // A slice about to go can take what a new one would hold: one write instead of two.
    while !changes.create.is_empty() {
        let key = ports_key(&ports);
        let Some(at) = changes
            .delete
            .iter()
            .position(|s| owned_by(s, frame) && ports_key(s.ports.as_deref().unwrap_or_default()) == key)
        else {
            break;
        };
        let Some(from) = changes
            .create
            .iter()
            .position(|s| ports_key(s.ports.as_deref().unwrap_or_default()) == key)
        else {
            break;
        };
        let slice = changes.delete.remove(at);
        let new = changes.create.remove(from);
        written.push(updated(&slice, frame, new.endpoints.unwrap_or_default()));
    }
    changes.update.extend(written);
    changes.unchanged.extend(untouched);
}

fn has_annotations(slice: &EndpointSlice, frame: &Frame) -> bool {
    let none = Labels::new();
    let have = slice.metadata.annotations.as_ref().unwrap_or(&none);
    frame
        .meta
        .annotations
        .iter()
        .flatten()
        .all(|(k, v)| have.get(k) == Some(v))
}

fn updated(slice: &EndpointSlice, frame: &Frame, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut slice = slice.clone();
    slice.endpoints = Some(endpoints);
    slice.meta_mut().labels = frame.meta.labels.clone();
    for (key, value) in frame.meta.annotations.iter().flatten() {
        slice
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(key.clone(), value.clone());
    }
    slice
}

/// Equal but for the target's revision, and for hints if they are given later.
fn same(old: &Endpoint, new: &Endpoint, hinted_later: bool) -> bool {
    let bare = |e: &Endpoint| {
        let mut e = e.clone();
        e.hints = e.hints.filter(|_| !hinted_later);
        if let Some(target) = &mut e.target_ref {
            target.resource_version = None;
        }
        e
    };
    bare(old) == bare(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame {
            meta: ObjectMeta {
                generate_name: Some("web-".into()),
                ..Default::default()
            },
            address_type: "IPv4".into(),
            capacity: 3,
            hinted_later: false,
        }
    }

    fn endpoint(n: usize) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.0.{n}")],
            ..Default::default()
        }
    }

    fn port() -> Vec<EndpointPort> {
        vec![EndpointPort {
            port: Some(80),
            ..Default::default()
        }]
    }

    fn slice(name: &str, endpoints: &[usize]) -> Arc<EndpointSlice> {
        let mut slice = new_slice(&frame(), port(), endpoints.iter().map(|n| endpoint(*n)).collect());
        slice.metadata.name = Some(name.into());
        Arc::new(slice)
    }

    fn show(changes: &Changes) -> Vec<String> {
        let list = |s: &EndpointSlice| {
            let mut a: Vec<String> = s
                .endpoints
                .iter()
                .flatten()
                .map(|e| e.addresses[0].trim_start_matches("10.0.0.").to_string())
                .collect();
            a.sort();
            a.join(" ")
        };
        let create = changes.create.iter().map(|s| format!("create [{}]", list(s)));
        let update = changes
            .update
            .iter()
            .map(|s| format!("update {} [{}]", s.name(), list(s)));
        let delete = changes.delete.iter().map(|s| format!("delete {}", s.name()));
        create.chain(update).chain(delete).collect()
    }

    fn run(wanted: &[usize], existing: &[Arc<EndpointSlice>]) -> Vec<String> {
        let groups = if wanted.is_empty() {
            Vec::new()
        } else {
            vec![(port(), wanted.iter().map(|n| endpoint(*n)).collect())]
        };
        show(&fit(&frame(), groups, existing, true))
    }

    #[test]
    fn fitting() {
        assert_eq!(run(&[], &[]), ["create []"], "a placeholder");
        assert_eq!(run(&[1, 2, 3, 4], &[]), ["create [1 2 3]", "create [4]"]);
        assert_eq!(run(&[1, 2], &[slice("a", &[1, 2])]), Vec::<String>::new());
        assert_eq!(run(&[1, 2, 3], &[slice("a", &[1, 2])]), ["update a [1 2 3]"]);
        assert_eq!(run(&[1], &[slice("a", &[1, 2])]), ["update a [1]"]);
        assert_eq!(
            run(&[1, 5], &[slice("a", &[1, 2]), slice("b", &[])]),
            ["update a [1 5]", "delete b"]
        );
        assert_eq!(
            run(&[1, 2, 3, 4, 6], &[slice("a", &[1, 2, 3]), slice("b", &[4])]),
            ["update b [4 6]"]
        );
        assert_eq!(run(&[7, 8], &[slice("a", &[1, 2])]), ["update a [7 8]"]);
        assert_eq!(run(&[], &[slice("a", &[1])]), ["create []", "delete a"]);
    }

    #[test]
    fn the_placeholder_stays() {
        let mut empty = new_slice(&frame(), Vec::new(), Vec::new());
        empty.metadata.name = Some("p".into());
        assert_eq!(run(&[], &[Arc::new(empty.clone())]), Vec::<String>::new());
        assert_eq!(run(&[1], &[Arc::new(empty)]), ["create [1]", "delete p"]);
    }
}
