//! Node ports: one bitmap for all services, where upstream keeps it, changed by compare-and-set.
//!
//! The bitmap is compared with the services there are, at its first use and now and then: ports in use are marked at once; a
//! port that a crash left marked is free again when no service had it in several looks, for another server may be about to
//! write the service that it took the port for.

use super::Reserved;
use super::fields::{
    allocates_node_ports, health_port, needs_health_port, needs_node_ports, node_ports, number, ports,
};
use crate::context::Cx;
use crate::engine::Engine;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_api::codec::proto;
use keelson_api::{ApiError, ApiResult, Cause, Map, Object, Reason, Value, builtin};
use keelson_store::{Expect, KeyValue, Outcome};
use parking_lot::Mutex;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    async fn take(&self, engine: &Engine, asked: &[i64], dry_run: bool) -> Result<Vec<u16>, Refusal> {
        self.mark(engine).await.map_err(Refusal::Failed)?;
        let mut refusal = None;
        let result = Self::change(engine, |map| {
            refusal = None;
            let untouched = map.clone();
            let mut taken = Vec::with_capacity(asked.len());
            for (i, asked) in asked.iter().enumerate() {
                let known = u16::try_from(*asked).ok().filter(|p| map.at(*p).is_some());
                let why = match (*asked, known) {
                    (0, _) => match map.free() {
                        Some(p) => {
                            map.set(p, true);
                            taken.push(p);
                            continue;
                        }
                        None => return Err(ApiError::internal("failed to allocate a nodePort: range is full")),
                    },
                    (_, None) => {
                        format!(
                            "provided port is not in the valid range. The range of valid ports is {}",
                            range_text(&map.range)
                        )
                    }
                    (_, Some(p)) if map.has(p) => "provided port is already allocated".to_string(),
                    (_, Some(p)) => {
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
        take_ports(engine, cx, new, old.map(|_| before.as_slice()), reserved).await?;
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
        let asked = new.at(&["spec", "healthCheckNodePort"]).and_then(Value::as_i64);
        let asked = asked.unwrap_or(0);
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

/// What a port of a service gets for a node port.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gets {
    Nothing,
    /// What the service has already.
    Has(i64),
    /// This one, or any (0).
    Asks(i64),
    /// The same as that port.
    Shares(usize),
}

/// Of a new service the same port number over two protocols shares one.
fn planned(ports: &[Value], allocates: bool) -> Vec<Gets> {
    let mut chosen: HashMap<i64, i64> = HashMap::new();
    for port in ports.iter().filter(|p| number(p, "nodePort") != 0) {
        chosen.entry(number(port, "port")).or_insert(number(port, "nodePort"));
    }
    let mut first: HashMap<i64, usize> = HashMap::new();
    let gets = |(i, port): (usize, &Value)| {
        let (port, node) = (number(port, "port"), number(port, "nodePort"));
        let wanted = chosen.get(&port).copied().unwrap_or(0);
        match first.get(&port).copied() {
            _ if node == 0 && !allocates => Gets::Nothing,
            None => {
                first.insert(port, i);
                Gets::Asks(wanted)
            }
            Some(at) if node == 0 || node == wanted => Gets::Shares(at),
            Some(_) => Gets::Asks(node),
        }
    };
    ports.iter().enumerate().map(gets).collect()
}

/// Of one that changes each port gets its own.
fn planned_change(ports: &[Value], before: &[u16], allocates: bool) -> ApiResult<Vec<Gets>> {
    let before: BTreeSet<i64> = before.iter().map(|p| i64::from(*p)).collect();
    let (mut asked, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let gets = |port: &Value| {
        let node = number(port, "nodePort");
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or_default();
        if node != 0 && !seen.insert((protocol.to_owned(), node)) {
            // Upstream gives this no reason.
            let why = format!("duplicate nodePort: {{{protocol} {node}}}");
            return Err(ApiError::new(Reason::Unknown, why));
        }
        Ok(match node {
            0 if !allocates => Gets::Nothing,
            0 => Gets::Asks(0),
            node if before.contains(&node) || !asked.insert(node) => Gets::Has(node),
            node => Gets::Asks(node),
        })
    };
    ports.iter().map(gets).collect()
}

/// `before`: the node ports that the service had, if there was one.
async fn take_ports(
    engine: &Engine,
    cx: &Cx,
    svc: &mut Object,
    before: Option<&[u16]>,
    reserved: &mut Reserved,
) -> ApiResult<()> {
    let allocates = allocates_node_ports(svc);
    let plan = match before {
        None => planned(ports(svc), allocates),
        Some(before) => planned_change(ports(svc), before, allocates)?,
    };
    let asks = |(i, gets): (usize, &Gets)| match gets {
        Gets::Asks(port) => Some((i, *port)),
        _ => None,
    };
    let asked: Vec<(usize, i64)> = plan.iter().enumerate().filter_map(asks).collect();
    let wanted: Vec<i64> = asked.iter().map(|(_, p)| *p).collect();
    let taken = engine
        .node_ports()
        .take(engine, &wanted, cx.dry_run)
        .await
        .map_err(|r| match r {
            Refusal::Failed(e) => e,
            Refusal::Port(at, why) => {
                let (i, port) = asked[at];
                let cause = Cause::invalid(format!("spec.ports[{i}].nodePort"), &port.into(), &why);
                ApiError::invalid("", "Service", svc.name(), vec![cause])
            }
        })?;
    let mut given = taken.iter().map(|p| i64::from(*p));
    let mut of_port: Vec<i64> = Vec::with_capacity(plan.len());
    for gets in plan {
        of_port.push(match gets {
            Gets::Nothing => 0,
            Gets::Has(port) => port,
            Gets::Asks(port) => given.next().unwrap_or(port),
            Gets::Shares(first) => of_port[first],
        });
    }
    if let Some(Value::Array(list)) = svc.at_mut(&["spec", "ports"]) {
        for (port, node) in list.iter_mut().zip(of_port).filter(|(_, node)| *node != 0) {
            port.set_at(&["nodePort"], node);
        }
    }
    note(cx, reserved, taken);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn of(ports: &[(i64, &str, i64)]) -> Vec<Value> {
        let port = |(port, protocol, node): &(i64, &str, i64)| value!({"port": (*port), "protocol": (*protocol), "nodePort": (*node)});
        ports.iter().map(port).collect()
    }

    #[test]
    fn ports_of_a_new_service_share_by_their_number() {
        let shared = of(&[(53, "TCP", 0), (53, "UDP", 30001), (80, "TCP", 0)]);
        assert_eq!(
            planned(&shared, true),
            [Gets::Asks(30001), Gets::Shares(0), Gets::Asks(0)]
        );
        assert_eq!(
            planned(&shared, false),
            [Gets::Nothing, Gets::Asks(30001), Gets::Nothing]
        );
        // Two numbers can't have the same, and a port may be any number until it is asked for.
        let wrong = of(&[(80, "TCP", 30001), (81, "TCP", 30001), (82, "TCP", 70_000)]);
        let asked = [Gets::Asks(30001), Gets::Asks(30001), Gets::Asks(70_000)];
        assert_eq!(planned(&wrong, true), asked);
    }

    #[test]
    fn ports_that_change_have_one_each() {
        let change = |ports: &[(i64, &str, i64)]| planned_change(&of(ports), &[30001], true);
        let kept = change(&[
            (53, "TCP", 30001),
            (53, "UDP", 30001),
            (80, "TCP", 30002),
            (80, "UDP", 0),
        ]);
        let each = [Gets::Has(30001), Gets::Has(30001), Gets::Asks(30002), Gets::Asks(0)];
        assert_eq!(kept.unwrap(), each);
        let twice = change(&[(80, "TCP", 30001), (81, "TCP", 30001)]).unwrap_err();
        assert_eq!(
            (twice.code, twice.message.as_str()),
            (500, "duplicate nodePort: {TCP 30001}")
        );
    }

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
