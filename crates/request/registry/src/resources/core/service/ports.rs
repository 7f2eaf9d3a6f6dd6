//! Node ports: one bitmap for all services, where upstream keeps it, changed by compare-and-set.
//!
//! The bitmap is compared with the services there are, at its first use and now and then: ports in use are marked at once; a
//! port that a crash left marked is free again when no service had it in several looks, for another server may be about to
//! write the service that it took the port for.

use super::Reserved;
use super::fields::{
    allocates_node_ports, health_port, needs_health_port, needs_node_ports, node_ports, port_number, ports,
};
use crate::context::Cx;
use crate::engine::Engine;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_api::codec::proto;
use keelson_api::{ApiError, ApiResult, Cause, Map, Object, Value, builtin};
use keelson_store::{Expect, KeyValue, Outcome};
use parking_lot::Mutex;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use tokio::sync::OnceCell;

const KEY: &[u8] = b"/registry/ranges/servicenodeports";
const ATTEMPTS: usize = 50;
/// Upstream's: so many looks a port stays taken for a service that isn't there.
const LOOKS: u32 = 3;

/// Which ports of the range are taken.
#[derive(Clone, Debug, PartialEq)]
struct Bitmap {
    range: RangeInclusive<u16>,
    /// The lowest port is the lowest bit of the first byte.
    bits: Vec<u8>,
}

impl Bitmap {
    fn new(range: &RangeInclusive<u16>) -> Self {
        let len = usize::from(range.end() - range.start()) / 8 + 1;
        Bitmap {
            range: range.clone(),
            bits: vec![0; len],
        }
    }
    fn at(&self, port: u16) -> Option<(usize, u8)> {
        let n = usize::from(port.checked_sub(*self.range.start())?);
        self.range.contains(&port).then_some((n / 8, 1 << (n % 8)))
    }
    fn has(&self, port: u16) -> bool {
        self.at(port).is_some_and(|(byte, bit)| self.bits[byte] & bit != 0)
    }
    fn set(&mut self, port: u16, taken: bool) {
        if let Some((byte, bit)) = self.at(port) {
            if taken {
                self.bits[byte] |= bit;
            } else {
                self.bits[byte] &= !bit;
            }
        }
    }
    /// A free port: from the upper part at random, then from the lower one.
    fn free(&self) -> Option<u16> {
        let (first, size) = (
            *self.range.start(),
            u32::from(self.range.end() - self.range.start()) + 1,
        );
        let low = if size <= 16 { 0 } else { (size / 32).clamp(16, 128) };
        for (from, count) in [(low, size - low), (0, low)] {
            if count == 0 {
                continue;
            }
            let start = rand::rng().random_range(0..count);
            for i in 0..count {
                let port = first + u16::try_from(from + (start + i) % count).ok()?;
                if !self.has(port) {
                    return Some(port);
                }
            }
        }
        None
    }
    /// The stored form has the highest byte first, as a number is written.
    fn read(range: &RangeInclusive<u16>, kv: &KeyValue) -> ApiResult<Bitmap> {
        let schema = schema()?;
        let object = proto::open(&kv.value)
            .and_then(|e| e.decode(&schema))
            .map_err(ApiError::internal)?;
        let mut map = Bitmap::new(range);
        if object.str("range") == Some(&range_text(range)) {
            let data = STANDARD
                .decode(object.str("data").unwrap_or_default())
                .map_err(ApiError::internal)?;
            for (byte, value) in data.into_iter().rev().enumerate().take(map.bits.len()) {
                map.bits[byte] = value;
            }
        }
        Ok(map)
    }
    fn write(&self) -> ApiResult<Vec<u8>> {
        let mut data: Vec<u8> = self.bits.iter().rev().copied().skip_while(|b| *b == 0).collect();
        if data.is_empty() {
            data.push(0);
        }
        let mut m = Map::new();
        m.insert("apiVersion", "v1");
        m.insert("kind", "RangeAllocation");
        m.insert("metadata", Map::new());
        m.insert("range", range_text(&self.range));
        m.insert("data", STANDARD.encode(data));
        proto::encode(&m, &schema()?).map_err(ApiError::internal)
    }
}

fn range_text(range: &RangeInclusive<u16>) -> String {
    format!("{}-{}", range.start(), range.end())
}

fn schema() -> ApiResult<keelson_api::SchemaRef> {
    builtin::builtin_kind_at("v1", "RangeAllocation").ok_or_else(|| ApiError::internal("no schema of RangeAllocation"))
}

/// The node ports of the cluster.
#[derive(Debug, Default)]
pub struct NodePorts {
    marked: OnceCell<()>,
    /// Ports that are marked and that no service has, and how many looks in a row found them so.
    unused: Mutex<BTreeMap<u16, u32>>,
}

impl NodePorts {
    async fn load(engine: &Engine) -> ApiResult<(Bitmap, Expect)> {
        let range = &engine.service_ranges().node_ports;
        let got = engine.store().get(KEY, None).await.map_err(ApiError::internal)?;
        match got.kv {
            Some(kv) => Ok((Bitmap::read(range, &kv)?, Expect::ModRevision(kv.mod_revision))),
            None => Ok((Bitmap::new(range), Expect::Absent)),
        }
    }
    /// Changes the bitmap; `change` is asked anew when another server was faster.
    async fn change<T>(engine: &Engine, mut change: impl FnMut(&mut Bitmap) -> ApiResult<T>) -> ApiResult<T> {
        for _ in 0..ATTEMPTS {
            let (before, expect) = Self::load(engine).await?;
            let mut map = before.clone();
            let result = change(&mut map)?;
            if map == before && expect != Expect::Absent {
                return Ok(result);
            }
            let put = engine
                .store()
                .put(KEY.into(), map.write()?.into(), expect, None)
                .await
                .map_err(ApiError::internal)?;
            if let Outcome::Done { .. } = put {
                return Ok(result);
            }
        }
        Err(ApiError::internal("the node ports are changing too fast"))
    }
    /// Marks the ports of the services there are, once.
    async fn mark(&self, engine: &Engine) -> ApiResult<()> {
        let marked = self.marked.get_or_try_init(|| async {
            let used = used(engine).await?;
            Self::change(engine, |map| {
                used.iter().for_each(|p| map.set(*p, true));
                Ok(())
            })
            .await
        });
        marked.await.map(drop)
    }
    /// Compares the bitmap with the services there are: one look.
    pub(super) async fn repair(&self, engine: &Engine) -> ApiResult<()> {
        let used = used(engine).await?;
        let before = self.unused.lock().clone();
        let unused = Self::change(engine, |map| {
            used.iter().for_each(|p| map.set(*p, true));
            let mut unused = BTreeMap::new();
            for port in map.range.clone().filter(|p| !used.contains(p)) {
                let looks = before.get(&port).copied().unwrap_or_default();
                if map.has(port) && looks >= LOOKS {
                    tracing::warn!(port, "a node port was taken for no service");
                    map.set(port, false);
                } else if map.has(port) {
                    unused.insert(port, looks + 1);
                }
            }
            Ok(unused)
        })
        .await?;
        *self.unused.lock() = unused;
        Ok(())
    }
    /// Takes the ports that are asked for (0: any), all or none.
    async fn take(&self, engine: &Engine, asked: &[u16], dry_run: bool) -> Result<Vec<u16>, Refusal> {
        self.mark(engine).await.map_err(Refusal::Failed)?;
        let mut refusal = None;
        let result = Self::change(engine, |map| {
            refusal = None;
            let untouched = map.clone();
            let mut taken = Vec::with_capacity(asked.len());
            for (i, port) in asked.iter().enumerate() {
                let why = match *port {
                    0 => match map.free() {
                        Some(p) => {
                            map.set(p, true);
                            taken.push(p);
                            continue;
                        }
                        None => return Err(ApiError::internal("failed to allocate a nodePort: range is full")),
                    },
                    p if map.at(p).is_none() => {
                        format!(
                            "provided port is not in the valid range. The range of valid ports is {}",
                            range_text(&map.range)
                        )
                    }
                    p if map.has(p) => "provided port is already allocated".to_string(),
                    p => {
                        map.set(p, true);
                        taken.push(p);
                        continue;
                    }
                };
                refusal = Some(Refusal::Port(i, why));
                *map = untouched;
                return Ok(Vec::new());
            }
            if dry_run {
                *map = untouched;
            }
            Ok(taken)
        })
        .await;
        match (result, refusal) {
            (Err(e), _) => Err(Refusal::Failed(e)),
            (_, Some(r)) => Err(r),
            (Ok(taken), None) => Ok(taken),
        }
    }
    pub async fn release(&self, engine: &Engine, ports: &[u16]) {
        if ports.is_empty() {
            return;
        }
        let done = Self::change(engine, |map| {
            ports.iter().for_each(|p| map.set(*p, false));
            Ok(())
        })
        .await;
        if let Err(e) = done {
            tracing::warn!(?ports, error = %e, "node ports could not be given back");
        }
    }
}

enum Refusal {
    /// Which of the ports, and why.
    Port(usize, String),
    Failed(ApiError),
}

/// The ports of all services.
async fn used(engine: &Engine) -> ApiResult<BTreeSet<u16>> {
    let def = engine
        .table
        .get("", "v1", "services")
        .ok_or_else(|| ApiError::internal("services are not served"))?;
    let cx = Cx::new(def, std::sync::Arc::new(crate::UserInfo::api_server()), "", "");
    let services = engine
        .list_objects(&cx, &crate::options::ListOptions::default())
        .await?;
    Ok(services
        .iter()
        .flat_map(|s| node_ports(s).into_iter().chain(health_port(s)))
        .collect())
}

/// Reserves what the service needs now, notes what it needs no more.
pub async fn update(
    engine: &Engine,
    cx: &Cx,
    new: &mut Object,
    old: Option<&Object>,
    reserved: &mut Reserved,
) -> ApiResult<()> {
    let before = old.map(node_ports).unwrap_or_default();
    if needs_node_ports(new) {
        take_ports(engine, cx, new, &before, reserved).await?;
    }
    let after = if needs_node_ports(new) {
        node_ports(new)
    } else {
        Vec::new()
    };
    reserved
        .freed_ports
        .extend(before.iter().filter(|p| !after.contains(p)));
    let (needed, needs) = (old.is_some_and(needs_health_port), needs_health_port(new));
    if needs && !needed {
        let asked = health_port(new).unwrap_or(0);
        let taken = engine
            .node_ports()
            .take(engine, &[asked], cx.dry_run)
            .await
            .map_err(|r| match r {
                Refusal::Port(_, why) => ApiError::internal(format!(
                    "failed to allocate requested HealthCheck NodePort {asked}: {why}"
                )),
                Refusal::Failed(e) => e,
            })?;
        if let Some(port) = taken.first() {
            new.set_at(&["spec", "healthCheckNodePort"], i64::from(*port));
        }
        note(cx, reserved, taken);
    } else if needed && !needs {
        reserved.freed_ports.extend(old.and_then(health_port));
    }
    Ok(())
}

fn note(cx: &Cx, reserved: &mut Reserved, taken: Vec<u16>) {
    if !cx.dry_run {
        reserved.taken_ports.extend(taken);
    }
}

/// One node port a port; the same port number over two protocols shares one.
async fn take_ports(
    engine: &Engine,
    cx: &Cx,
    svc: &mut Object,
    before: &[u16],
    reserved: &mut Reserved,
) -> ApiResult<()> {
    let allocates = allocates_node_ports(svc);
    let numbers: Vec<(u16, u16)> = ports(svc)
        .iter()
        .map(|p| (port_number(p, "port"), port_number(p, "nodePort")))
        .collect();
    // What each port gets: its own choice, else that of a port with the same number, else any (0).
    let mut plan: Vec<(usize, u16)> = Vec::new();
    let mut shared: Vec<(usize, usize)> = Vec::new();
    for (i, (number, node)) in numbers.iter().enumerate() {
        let earlier = numbers[..i].iter().position(|(n, _)| n == number);
        match (*node, earlier) {
            (0, _) if !allocates => {}
            (0, Some(first)) => shared.push((i, first)),
            (0, None) => {
                let chosen = numbers
                    .iter()
                    .find(|(n, node)| n == number && *node != 0)
                    .map_or(0, |(_, node)| *node);
                plan.push((i, chosen));
            }
            (node, _) => plan.push((i, node)),
        }
    }
    let mut asked: Vec<(usize, u16)> = Vec::new();
    for (i, port) in &plan {
        let known = *port != 0 && (before.contains(port) || asked.iter().any(|(_, p)| p == port));
        if !known {
            asked.push((*i, *port));
        }
    }
    let wanted: Vec<u16> = asked.iter().map(|(_, p)| *p).collect();
    let taken = engine
        .node_ports()
        .take(engine, &wanted, cx.dry_run)
        .await
        .map_err(|r| match r {
            Refusal::Failed(e) => e,
            Refusal::Port(at, why) => {
                let (i, port) = asked[at];
                let cause = Cause::invalid(format!("spec.ports[{i}].nodePort"), &i64::from(port).into(), &why);
                ApiError::invalid("", "Service", svc.name(), vec![cause])
            }
        })?;
    let mut of_port: Vec<u16> = numbers.iter().map(|(_, node)| *node).collect();
    for (i, port) in plan {
        of_port[i] = match asked.iter().position(|(at, _)| *at == i) {
            Some(n) => taken.get(n).copied().unwrap_or(port),
            None => port,
        };
    }
    for (i, first) in shared {
        of_port[i] = of_port[first];
    }
    if let Some(Value::Array(list)) = svc.at_mut(&["spec", "ports"]) {
        for (port, node) in list.iter_mut().zip(of_port).filter(|(_, node)| *node != 0) {
            port.set_at(&["nodePort"], i64::from(node));
        }
    }
    note(cx, reserved, taken);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bitmap_is_stored_as_upstream_stores_it() {
        let range = 30000..=32767;
        let mut map = Bitmap::new(&range);
        map.set(30000, true);
        map.set(30009, true);
        let kv = KeyValue {
            key: KEY.into(),
            value: map.write().unwrap().into(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 0,
        };
        assert_eq!(Bitmap::read(&range, &kv).unwrap(), map);
        let object = proto::open(&kv.value).unwrap().decode(&schema().unwrap()).unwrap();
        assert_eq!(STANDARD.decode(object.str("data").unwrap()).unwrap(), [0b10, 0b1]);
        assert_eq!(object.str("range"), Some("30000-32767"));
        assert!(map.free().is_some_and(|p| p >= 30086));
        assert!(!map.has(1));
    }
}
