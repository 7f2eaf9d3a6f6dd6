//! Cluster addresses: each held by an IPAddress object, whose creation is the reservation.
//!
//! Addresses that nobody asked for by number come from the upper part of a range first; the lower part is for those who do.

use super::families::{V4, V6, family_of, keeps_preference};
use super::fields::{cluster_ips, is_external_name, is_headless, set_strings, strings};
use super::{Reserved, ServiceRanges};
use crate::admission::AdmitAll;
use crate::context::Cx;
use crate::engine::Engine;
use crate::options::{DeleteOptions, ListOptions};
use ipnet::IpNet;
use keelson_api::{ApiError, ApiResult, Cause, Object, Reason, Str, Value, value};
use rand::Rng;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

const GROUP: &str = "networking.k8s.io";

/// The ranges of the cluster, the first family being the default.
pub struct Ranges(Vec<IpNet>);

impl Ranges {
    pub fn has(&self, family: &str) -> bool {
        self.of(family).next().is_some()
    }
    fn of<'a>(&'a self, family: &'a str) -> impl Iterator<Item = &'a IpNet> {
        self.0
            .iter()
            .filter(move |c| matches!(c, IpNet::V4(_)) == (family == V4))
    }
    pub fn is_dual(&self) -> bool {
        self.has(V4) && self.has(V6)
    }
    pub fn default_family(&self) -> &'static str {
        match self.0.first() {
            Some(IpNet::V6(_)) => V6,
            _ => V4,
        }
    }
}

/// The server's own requests to addresses and ranges.
fn cx(engine: &Engine, resource: &str, name: &str) -> ApiResult<Cx> {
    let def = engine
        .table
        .get(GROUP, "v1", resource)
        .ok_or_else(|| ApiError::internal(format!("{resource} are not served")))?;
    let mut cx = Cx::new(def, Arc::new(crate::UserInfo::api_server()), "", name);
    cx.field_manager = "kube-apiserver".into();
    Ok(cx)
}

/// The configured ranges, and those that ServiceCIDRs add.
pub async fn ranges(engine: &Engine) -> ApiResult<Ranges> {
    let ServiceRanges { cidrs: mut all, .. } = engine.service_ranges().clone();
    let list = ListOptions {
        resource_version: "0".into(),
        ..ListOptions::default()
    };
    for object in engine.list_objects(&cx(engine, "servicecidrs", "")?, &list).await? {
        let going = object.deletion_timestamp().is_some();
        let cidrs = object
            .at(&["spec", "cidrs"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        for cidr in cidrs.filter_map(Value::as_str).filter_map(|c| c.parse::<IpNet>().ok()) {
            if !going && !all.contains(&cidr) {
                all.push(cidr);
            }
        }
    }
    Ok(Ranges(all))
}

/// Reserves what the service needs now, notes what it needs no more.
pub async fn update(
    engine: &Engine,
    cx: &Cx,
    new: &mut Object,
    old: Option<&Object>,
    ranges: &Ranges,
    reserved: &mut Reserved,
) -> ApiResult<()> {
    let Some(old) = old else {
        return allocate(engine, cx, new, 0, ranges, reserved).await;
    };
    if keeps_preference(new, Some(old)) {
        return Ok(());
    }
    match (is_external_name(old), is_external_name(new)) {
        (true, false) => return allocate(engine, cx, new, 0, ranges, reserved).await,
        (false, true) => {
            reserved.freed_ips = cluster_ips(old);
            return Ok(());
        }
        (true, true) => return Ok(()),
        (false, false) => {}
    }
    if is_headless(old) {
        return Ok(());
    }
    let (before, after) = (strings(old, "ipFamilies").len(), strings(new, "ipFamilies").len());
    if before == 1 && after == 2 {
        return allocate(engine, cx, new, 1, ranges, reserved).await;
    }
    if before == 2 && after == 1 {
        reserved.freed_ips = cluster_ips(old).into_iter().skip(1).collect();
        let mut ips = strings(new, "clusterIPs");
        ips.truncate(1);
        set_strings(new, "clusterIPs", &ips);
    }
    Ok(())
}

/// An address for each family from the `from`-th on.
async fn allocate(
    engine: &Engine,
    cx: &Cx,
    svc: &mut Object,
    from: usize,
    ranges: &Ranges,
    reserved: &mut Reserved,
) -> ApiResult<()> {
    // One that becomes headless while it gets a second family gets an address for that; validation refuses it.
    if is_external_name(svc) || (is_headless(svc) && from == 0) {
        return Ok(());
    }
    let families = strings(svc, "ipFamilies");
    let mut ips = strings(svc, "clusterIPs");
    ips.resize(ips.len().max(families.len()), Str::default());
    for (i, family) in families.iter().enumerate().skip(from) {
        let asked = ips[i].clone();
        let ip = if asked.is_empty() {
            any(engine, cx, svc, family, ranges).await?
        } else {
            this(engine, cx, svc, &asked, ranges).await?
        };
        if !cx.dry_run {
            reserved.taken_ips.push(ip.clone());
        }
        ips[i] = ip.into();
    }
    if let Some(first) = ips.first() {
        svc.set_at(&["spec", "clusterIP"], first.clone());
    }
    set_strings(svc, "clusterIPs", &ips);
    Ok(())
}

fn refused(svc: &Object, why: String) -> ApiError {
    let shown: Vec<Value> = strings(svc, "clusterIPs").into_iter().map(Value::String).collect();
    ApiError::invalid(
        "",
        "Service",
        svc.name(),
        vec![Cause::invalid("spec.clusterIPs", &shown.into(), &why)],
    )
}

/// The address that was asked for.
async fn this(engine: &Engine, cx: &Cx, svc: &Object, ip: &str, ranges: &Ranges) -> ApiResult<String> {
    let parsed: IpAddr = ip
        .parse()
        .map_err(|_| refused(svc, format!("failed to allocate IP {ip}: not a valid IP")))?;
    if !ranges.0.iter().any(|c| usable(c, parsed)) {
        let all: Vec<String> = ranges.of(family_of(ip)).map(ToString::to_string).collect();
        return Err(refused(
            svc,
            format!(
                "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                all.join(", ")
            ),
        ));
    }
    let name = parsed.to_string();
    // Who only tries isn't told whether it is taken.
    if cx.dry_run {
        return Ok(name);
    }
    match hold(engine, cx, svc, &name).await {
        Ok(()) => Ok(name),
        // What a crash left behind for this very service is its own.
        Err(e) if e.is(Reason::AlreadyExists) && is_held_for(engine, svc, &name).await? => Ok(name),
        Err(e) if e.is(Reason::AlreadyExists) => Err(refused(
            svc,
            format!("failed to allocate IP {ip}: provided IP is already allocated"),
        )),
        Err(e) => Err(e),
    }
}

pub(super) async fn is_held_for(engine: &Engine, svc: &Object, ip: &str) -> ApiResult<bool> {
    let address = engine.current(&cx(engine, "ipaddresses", ip)?).await?;
    Ok(address.is_some_and(|a| {
        let parent = |key: &str| {
            a.object
                .str_at(&["spec", "parentRef", key])
                .unwrap_or_default()
                .to_string()
        };
        parent("resource") == "services" && parent("namespace") == svc.namespace() && parent("name") == svc.name()
    }))
}

/// Neither the network's own address nor its broadcast address.
fn usable(cidr: &IpNet, ip: IpAddr) -> bool {
    cidr.contains(&ip) && ip != cidr.network() && !(matches!(cidr, IpNet::V4(_)) && ip == cidr.broadcast())
}

fn nth(cidr: &IpNet, n: u64) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(a) => Ipv4Addr::from(u32::from(a).wrapping_add(n as u32)).into(),
        IpAddr::V6(a) => Ipv6Addr::from(u128::from(a).wrapping_add(n.into())).into(),
    }
}

/// How many addresses can be given out (the first is number 1).
fn size(cidr: &IpNet) -> u64 {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    let all = if bits >= 64 { u64::MAX } else { 1u64 << bits };
    all.saturating_sub(if matches!(cidr, IpNet::V4(_)) { 2 } else { 1 })
}

/// The lower part that is kept for addresses asked for by number: a sixteenth, between 16 and 256.
fn reserved_part(size: u64) -> u64 {
    if size <= 16 { 0 } else { (size / 16).clamp(16, 256) }
}

/// Any free address of the family.
async fn any(engine: &Engine, cx: &Cx, svc: &Object, family: &str, ranges: &Ranges) -> ApiResult<String> {
    let taken = taken(engine).await?;
    for cidr in ranges.of(family) {
        let size = size(cidr);
        let low = reserved_part(size);
        for (first, count) in [(low, size - low), (0, low)] {
            if count == 0 {
                continue;
            }
            if cx.dry_run {
                return Ok(nth(cidr, first + 1).to_string());
            }
            let start = rand::rng().random_range(0..count);
            for i in 0..count.min(1 << 20) {
                let name = nth(cidr, first + 1 + (start + i) % count).to_string();
                if taken.contains(name.as_str()) {
                    continue;
                }
                match hold(engine, cx, svc, &name).await {
                    Ok(()) => return Ok(name),
                    // Another server was faster: the next one.
                    Err(e) if e.is(Reason::AlreadyExists) => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Err(ApiError::internal(format!(
        "failed to allocate a serviceIP for Service {:?}: range is full",
        svc.name()
    )))
}

async fn taken(engine: &Engine) -> ApiResult<HashSet<Str>> {
    let list = ListOptions {
        resource_version: "0".into(),
        ..ListOptions::default()
    };
    let page = engine
        .list(&cx(engine, "ipaddresses", "")?, &list)
        .await
        .map_err(|e| e.error)?;
    Ok(page.entries.iter().map(|e| Str::from(e.name())).collect())
}

/// Makes the IPAddress that holds an address for the service.
async fn hold(engine: &Engine, cx: &Cx, svc: &Object, ip: &str) -> ApiResult<()> {
    let mut own = self::cx(engine, "ipaddresses", "")?;
    own.dry_run = cx.dry_run;
    let mut address = Object::new();
    address.set_gvk("networking.k8s.io/v1", "IPAddress");
    address.set_meta("name", ip);
    address.set_at(
        &["metadata", "labels"],
        value!({"ipaddress.kubernetes.io/ip-family": family_of(ip), "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}),
    );
    let parent = value!({"group": "", "resource": "services", "namespace": svc.namespace(), "name": svc.name()});
    address.set_at(&["spec", "parentRef"], parent);
    engine.create(&own, &AdmitAll, address).await.map(drop)
}

/// Holds an address for a service that has it already.
pub(super) async fn hold_for(engine: &Engine, svc: &Object, ip: &str) -> ApiResult<()> {
    hold(engine, &cx(engine, "ipaddresses", "")?, svc, ip).await
}

/// The addresses that are held for services.
pub(super) async fn held(engine: &Engine) -> ApiResult<Vec<Object>> {
    let list = ListOptions {
        label_selector: "ipaddress.kubernetes.io/managed-by=ipallocator.k8s.io".into(),
        ..ListOptions::default()
    };
    engine.list_objects(&cx(engine, "ipaddresses", "")?, &list).await
}

/// Gives an address back. What fails here is found by whoever compares addresses with services.
pub async fn release(engine: &Engine, ip: &str) {
    let done = match cx(engine, "ipaddresses", ip) {
        Ok(cx) => engine.delete(&cx, &AdmitAll, &DeleteOptions::default()).await.map(drop),
        Err(e) => Err(e),
    };
    match done {
        Err(e) if !e.is(Reason::NotFound) => {
            tracing::warn!(ip, error = %e, "a service's address could not be given back")
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_part_is_kept_for_those_who_ask() {
        let cidr: IpNet = "10.96.0.0/16".parse().unwrap();
        assert_eq!((size(&cidr), reserved_part(size(&cidr))), (65534, 256));
        assert_eq!(nth(&cidr, 257).to_string(), "10.96.1.1");
        assert!(usable(&cidr, "10.96.0.1".parse().unwrap()) && !usable(&cidr, "10.96.255.255".parse().unwrap()));
        let small: IpNet = "10.0.0.0/28".parse().unwrap();
        assert_eq!(reserved_part(size(&small)), 0);
    }
}
