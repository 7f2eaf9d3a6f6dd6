//! What is allocated to a claim, who may use it, and what drivers say of it.

use super::super::addresses;
use super::super::check::{Errs, count, s};
use super::super::scheduling::node_selector;
use super::names::declared_pool_name;
use super::{MOST_CONFIGS, at_most, configuration, pool_name, raw_object, request_name, request_names};
use super::{Requests, requests, toleration, unique};
use crate::resources::validation::storage::{declared_driver_name, driver_name};
use crate::strategy::same;
use keelson_api::{Cause, Map, Object, Value};
use keelson_machinery::names::dns1123_label;
use std::collections::BTreeSet;

const MOST_CONSUMERS: usize = 256;
const MOST_RESULTS: usize = 32;
const MOST_CONDITIONS: usize = 8;
const MOST_ADDRESSES: usize = 16;
const LONGEST_INTERFACE: usize = 256;
const LONGEST_HARDWARE_ADDRESS: usize = 128;

pub fn claim(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let known = requests(new.obj("spec").unwrap_or(&empty));
    let before = old.obj("status").unwrap_or(&empty);
    e.child(new, "status", |e, status| {
        if at_most(e, status, "reservedFor", MOST_CONSUMERS) {
            e.each(status, "reservedFor", |e, _, user| {
                for key in ["resource", "name", "uid"] {
                    if s(user, key).is_empty() {
                        e.required(key, "");
                    }
                }
            });
            unique(e, status, "reservedFor", |user| {
                user.get("uid").cloned().unwrap_or_default()
            });
        }
        devices(e, status);
        reservations(e, status, before, new.deletion_timestamp().is_some());
        match (status.obj("allocation"), before.obj("allocation")) {
            (Some(_), Some(_)) => {
                let (now, then) = (status.get("allocation"), before.get("allocation"));
                if !same(now, then) {
                    e.invalid(
                        "allocation",
                        Value::Null,
                        crate::resources::validation::check::IMMUTABLE,
                    );
                }
            }
            (Some(allocation), None) => e.within("allocation", |e| allocated(e, allocation, &known)),
            _ => {}
        }
    });
}

fn reservations(e: &mut Errs, status: &Map, before: &Map, deleted: bool) {
    if count(status, "reservedFor") == 0 {
        return;
    }
    if !status.contains_key("allocation") {
        return e.forbidden("reservedFor", "may not be specified when `allocated` is not set");
    }
    let had = before.arr("reservedFor").map(Vec::as_slice).unwrap_or_default();
    let more = status
        .arr("reservedFor")
        .into_iter()
        .flatten()
        .any(|u| !had.contains(u));
    if deleted && more {
        let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        e.forbidden("reservedFor", why);
    }
}

fn share_id(e: &mut Errs, m: &Map) {
    let Some(id) = m.str("shareID") else { return };
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let is_at_its_place = |(i, b): (usize, u8)| {
        if matches!(i, 8 | 13 | 18 | 23) {
            b == b'-'
        } else {
            is_hex(b)
        }
    };
    if id.len() != 36 || !id.bytes().enumerate().all(is_at_its_place) {
        e.invalid("shareID", id, "must be a lowercase UUID in 8-4-4-4-12 format");
    }
}

/// An address with the length of its network's prefix, as it is usually written.
fn interface_address(text: &str) -> Vec<String> {
    let Some(written) = addresses::cidr(text) else {
        return vec!["must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)".into()];
    };
    let canonical = format!("{}/{}", written.ip, written.network.prefix_len());
    let differs = canonical != text;
    differs
        .then(|| format!("must be in canonical form ({canonical:?})"))
        .into_iter()
        .collect()
}

/// What a device is known by in a claim.
pub type DeviceId<'a> = [&'a str; 4];

pub fn device_id(device: &Value) -> DeviceId<'_> {
    ["driver", "pool", "device", "shareID"].map(|key| device.get(key).and_then(Value::as_str).unwrap_or_default())
}

/// The devices that a claim has.
pub fn allocated_devices(status: &Map) -> BTreeSet<DeviceId<'_>> {
    let results = status
        .obj("allocation")
        .and_then(|a| a.obj("devices"))
        .and_then(|d| d.arr("results"));
    results.into_iter().flatten().map(device_id).collect()
}

fn devices(e: &mut Errs, status: &Map) {
    let allocated = allocated_devices(status);
    let none = Map::new();
    for (i, device) in status.arr("devices").into_iter().flatten().enumerate() {
        let m = device.as_object().unwrap_or(&none);
        e.within(&format!("devices[{i}]"), |e| {
            driver_name(e, "driver", s(m, "driver"));
            pool_name(e, "pool", s(m, "pool"));
            e.format("device", s(m, "device"), dns1123_label);
            share_id(e, m);
            if !allocated.contains(&device_id(device)) {
                let names = ["Driver", "Pool", "Device", "ShareID"].iter().zip(device_id(device));
                let shown: Vec<String> = names.map(|(name, value)| format!("{name:?}:{value:?}")).collect();
                let why = "must be an allocated device in the claim";
                e.push(Cause::invalid_shown(e.at(""), &format!("{{{}}}", shown.join(",")), why));
            }
            at_most(e, m, "conditions", MOST_CONDITIONS);
            if m.get("data").is_some_and(|d| !d.is_null()) {
                raw_object(e, m, "data");
            }
            e.child(m, "networkData", |e, network| {
                for (key, longest) in [
                    ("interfaceName", LONGEST_INTERFACE),
                    ("hardwareAddress", LONGEST_HARDWARE_ADDRESS),
                ] {
                    if s(network, key).len() > longest {
                        e.too_long(key, longest);
                    }
                }
                if at_most(e, network, "ips", MOST_ADDRESSES) {
                    e.each_str(network, "ips", |e, _, address| e.format("", address, interface_address));
                    unique(e, network, "ips", Value::clone);
                }
            });
        });
    }
    unique(e, status, "devices", |device| {
        Value::Array(device_id(device).into_iter().map(Value::from).collect())
    });
}

fn allocated(e: &mut Errs, allocation: &Map, known: &Requests) {
    e.child(allocation, "devices", |e, devices| {
        if at_most(e, devices, "results", MOST_RESULTS) {
            e.each(devices, "results", |e, _, r| result(e, r, known));
        }
        // Of the class and of the claim.
        if at_most(e, devices, "config", 2 * MOST_CONFIGS) {
            e.each(devices, "config", |e, _, config| {
                e.one_of(config, "source", &["FromClaim", "FromClass"]);
                request_names(e, config, known);
                configuration(e, config);
            });
        }
    });
    e.child(allocation, "nodeSelector", |e, selector| {
        node_selector(e, selector, false)
    });
}

fn result(e: &mut Errs, r: &Map, known: &Requests) {
    request_name(e, "request", s(r, "request"), known);
    declared_driver_name(e, "driver", s(r, "driver"));
    declared_pool_name(e, "pool", s(r, "pool"));
    e.format("device", s(r, "device"), dns1123_label);
    share_id(e, r);
    super::slices::binding(e, r);
    e.each(r, "tolerations", |e, _, t| toleration(e, t));
}
