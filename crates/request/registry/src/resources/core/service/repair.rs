//! Addresses and ports compared with the services there are: what was left between two writes is mended.
//!
//! An address that a service has and nobody holds is held for it; one that is held for no service, or for one that has it
//! not, is free again when it is older than a write takes. One that is held for somebody else is told of: which of the
//! two services keeps it, only people can say.

use super::fields::{cluster_ips, is_external_name, is_headless};
use super::ips;
use crate::context::Cx;
use crate::engine::Engine;
use crate::options::ListOptions;
use keelson_api::{ApiError, ApiResult, Object, Reason};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Upstream's: a service may be written so long after its address.
const GRACE: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    pub held: usize,
    pub freed: usize,
    pub disputed: usize,
}

impl Engine {
    /// Compares services with the addresses and ports that are reserved.
    pub async fn repair_services(&self) -> ApiResult<Repaired> {
        self.node_ports().repair(self).await?;
        let services = services(self).await?;
        let mut used: HashMap<String, &Object> = HashMap::new();
        for svc in services.iter().filter(|s| !is_external_name(s) && !is_headless(s)) {
            used.extend(cluster_ips(svc).into_iter().map(|ip| (ip, svc)));
        }
        let mut done = Repaired::default();
        for (ip, svc) in &used {
            match ips::hold_for(self, svc, ip).await {
                Ok(()) => {
                    tracing::warn!(ip, service = svc.name(), "a service's address was held by nobody");
                    done.held += 1;
                }
                Err(e) if !e.is(Reason::AlreadyExists) => return Err(e),
                Err(_) if ips::is_held_for(self, svc, ip).await? => {}
                Err(_) => {
                    let namespace = svc.namespace();
                    tracing::error!(
                        ip,
                        namespace,
                        service = svc.name(),
                        "a service's address is held for another"
                    );
                    done.disputed += 1;
                }
            }
        }
        for held in ips::held(self).await? {
            if used.contains_key(held.name()) || self.is_younger(&held, GRACE) {
                continue;
            }
            tracing::warn!(ip = held.name(), "an address was held for no service");
            ips::release(self, held.name()).await;
            done.freed += 1;
        }
        Ok(done)
    }

    fn is_younger(&self, object: &Object, than: Duration) -> bool {
        let made = object.creation_timestamp().parse::<jiff::Timestamp>();
        let age = made.ok().map(|made| self.now().duration_since(made));
        age.is_none_or(|age| age < jiff::SignedDuration::try_from(than).unwrap_or_default())
    }
}

async fn services(engine: &Engine) -> ApiResult<Vec<Object>> {
    let def = engine
        .table
        .get("", "v1", "services")
        .ok_or_else(|| ApiError::internal("services are not served"))?;
    let cx = Cx::new(def, Arc::new(crate::UserInfo::api_server()), "", "");
    engine.list_objects(&cx, &ListOptions::default()).await
}
