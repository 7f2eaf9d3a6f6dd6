//! Services: cluster addresses and node ports are reserved before a write and kept, or given back, after it.

mod families;
mod fields;
mod ips;
mod ports;
mod repair;

use crate::admission::Operation;
use crate::context::Cx;
use crate::engine::Engine;
use crate::strategy::{Behaviour, Finish, Hooks};
use async_trait::async_trait;
use ipnet::IpNet;
use keelson_api::{ApiResult, Object};
use std::net::IpAddr;
use std::ops::RangeInclusive;

pub use ports::NodePorts;

pub const SERVICE: Behaviour = Behaviour {
    status: true,
    create_on_update: true,
    returns_deleted: true,
    default: fields::default,
    prepare_update: fields::drop_unneeded,
    hooks: Some(&ServiceHooks),
    ..Behaviour::DEFAULT
};

/// Where services get addresses and ports from, before the API's own ServiceCIDRs say more.
#[derive(Clone, Debug)]
pub struct ServiceRanges {
    pub cidrs: Vec<IpNet>,
    pub node_ports: RangeInclusive<u16>,
}

impl Default for ServiceRanges {
    fn default() -> Self {
        let cidr = IpNet::new_assert(IpAddr::from([10, 96, 0, 0]), 16);
        ServiceRanges {
            cidrs: vec![cidr],
            node_ports: 30000..=32767,
        }
    }
}

struct ServiceHooks;

/// What a write reserved, and what it makes free.
#[derive(Default)]
struct Reserved {
    taken_ips: Vec<String>,
    freed_ips: Vec<String>,
    taken_ports: Vec<u16>,
    freed_ports: Vec<u16>,
}

#[async_trait]
impl Finish for Reserved {
    async fn finish(self: Box<Self>, engine: &Engine, success: bool) {
        let (ips, ports) = if success {
            (self.freed_ips, self.freed_ports)
        } else {
            (self.taken_ips, self.taken_ports)
        };
        for ip in ips {
            ips::release(engine, &ip).await;
        }
        engine.node_ports().release(engine, &ports).await;
    }
}

#[async_trait]
impl Hooks for ServiceHooks {
    async fn begin(
        &self,
        engine: &Engine,
        cx: &Cx,
        _op: Operation,
        new: &mut Object,
        old: Option<&Object>,
    ) -> ApiResult<Option<Box<dyn Finish>>> {
        if !cx.subresource.is_empty() {
            return Ok(None);
        }
        if let Some(old) = old {
            fields::patch_allocated(new, old);
        }
        fields::normalize_ips(new, old);
        let mut reserved = Box::new(Reserved::default());
        let result = reserve(engine, cx, new, old, &mut reserved).await;
        if let Err(e) = result {
            reserved.finish(engine, false).await;
            return Err(e);
        }
        Ok(Some(reserved))
    }
    async fn after_delete(&self, engine: &Engine, _cx: &Cx, svc: &Object) {
        for ip in fields::cluster_ips(svc) {
            ips::release(engine, &ip).await;
        }
        let mut ports = fields::node_ports(svc);
        ports.extend(fields::health_port(svc));
        engine.node_ports().release(engine, &ports).await;
    }
}

async fn reserve(
    engine: &Engine,
    cx: &Cx,
    new: &mut Object,
    old: Option<&Object>,
    reserved: &mut Reserved,
) -> ApiResult<()> {
    let ranges = ips::ranges(engine).await?;
    families::init(new, old, &ranges)?;
    ips::update(engine, cx, new, old, &ranges, reserved).await?;
    ports::update(engine, cx, new, old, reserved).await
}
