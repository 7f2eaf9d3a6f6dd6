//! The driver `local.keelson.dev`: a pool of the node's own disk, spoken to by CSI.
//!
//! What is done to disks is done on threads of its own and to its end, whether or not the caller waits for it.

mod controller;
mod node;

use crate::pool::record::Origin;
use crate::pool::{Fault, Pool};
use keelson_csi::v1::identity_server::Identity;
use keelson_csi::v1::volume_capability::AccessType;
use keelson_csi::v1::volume_capability::access_mode::Mode;
use keelson_csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use keelson_csi::v1::{self as csi, plugin_capability};
use std::collections::HashMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The driver's name.
pub const NAME: &str = "local.keelson.dev";
/// The key of the topology by which volumes belong to nodes.
pub const TOPOLOGY: &str = "topology.local.keelson.dev/node";

/// Cheap to clone: the services of one driver share its pool.
#[derive(Clone)]
pub struct LocalDriver {
    pool: Arc<Pool>,
    node: Arc<str>,
}

impl LocalDriver {
    pub fn new(pool: Arc<Pool>, node: &str) -> Self {
        LocalDriver {
            pool,
            node: node.into(),
        }
    }

    fn topology(&self) -> csi::Topology {
        csi::Topology {
            segments: HashMap::from([(TOPOLOGY.into(), self.node.to_string())]),
        }
    }

    /// Works on the pool to the end, on a thread that may block.
    async fn work<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Pool) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Status> {
        let pool = self.pool.clone();
        let done = tokio::task::spawn_blocking(move || job(&pool)).await;
        done.map_err(|e| Status::internal(format!("the work ended badly: {e}")))?
            .map_err(status)
    }
}

fn status(fault: Fault) -> Status {
    let text = fault.to_string();
    match fault {
        Fault::NotFound(_) => Status::not_found(text),
        Fault::Exists(_) => Status::already_exists(text),
        Fault::Smaller { .. } => Status::out_of_range(text),
        Fault::Invalid(_) => Status::invalid_argument(text),
        Fault::Full { .. } | Fault::DiskFull(_) => Status::resource_exhausted(text),
        Fault::InUse(_) => Status::failed_precondition(text),
        Fault::Busy(_) => Status::aborted(text),
        Fault::Io(..) => Status::internal(text),
    }
}

fn needed<'a>(value: &'a str, what: &str) -> Result<&'a str, Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{what} is missing")));
    }
    Ok(value)
}

/// A capability that this driver has, and whether it means a device.
fn capability(wanted: &csi::VolumeCapability) -> Result<bool, Status> {
    let mode = wanted.access_mode.as_ref().map(|m| m.mode());
    let one_node = matches!(
        mode,
        Some(
            Mode::SingleNodeWriter
                | Mode::SingleNodeReaderOnly
                | Mode::SingleNodeSingleWriter
                | Mode::SingleNodeMultiWriter
        )
    );
    if !one_node {
        return Err(Status::invalid_argument(
            "volumes belong to one node: no other access mode is possible",
        ));
    }
    match &wanted.access_type {
        Some(AccessType::Block(_)) => Ok(true),
        Some(AccessType::Mount(m)) if matches!(m.fs_type.as_str(), "" | "ext4") => Ok(false),
        Some(AccessType::Mount(m)) => Err(Status::invalid_argument(format!(
            "file system {}: volumes have ext4",
            m.fs_type
        ))),
        None => Err(Status::invalid_argument("a volume capability lacks its access type")),
    }
}

/// All capabilities that are asked for, and whether they mean a device.
fn capabilities(wanted: &[csi::VolumeCapability]) -> Result<bool, Status> {
    let kinds = wanted.iter().map(capability).collect::<Result<Vec<_>, _>>()?;
    match kinds.split_first() {
        None => Err(Status::invalid_argument("volume capabilities are missing")),
        Some((first, rest)) if rest.iter().any(|k| k != first) => Err(Status::invalid_argument(
            "a volume is a device or a file system, not both",
        )),
        Some((first, _)) => Ok(*first),
    }
}

fn source_of(origin: &Origin) -> csi::VolumeContentSource {
    csi::VolumeContentSource {
        r#type: Some(match origin.clone() {
            Origin::Snapshot(snapshot_id) => SourceType::Snapshot(SnapshotSource { snapshot_id }),
            Origin::Volume(volume_id) => SourceType::Volume(VolumeSource { volume_id }),
        }),
    }
}

/// One page of a list: a token is the number of what came before.
fn page<T>(all: Vec<T>, token: &str, most: i32) -> Result<(Vec<T>, String), Status> {
    let start = match token {
        "" => 0,
        token => token
            .parse()
            .map_err(|_| Status::aborted("no list was begun with this token"))?,
    };
    let most = usize::try_from(most).map_err(|_| Status::invalid_argument("max_entries is negative"))?;
    if start > all.len() {
        return Err(Status::aborted("the list has become shorter: begin anew"));
    }
    let end = if most == 0 {
        all.len()
    } else {
        all.len().min(start + most)
    };
    let next = if end < all.len() {
        end.to_string()
    } else {
        String::new()
    };
    Ok((all.into_iter().skip(start).take(end - start).collect(), next))
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl Identity for LocalDriver {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: NAME.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        use plugin_capability::service::Type as Service;
        use plugin_capability::volume_expansion::Type as Expansion;
        let service =
            |kind: Service| plugin_capability::Type::Service(plugin_capability::Service { r#type: kind.into() });
        let all = [
            service(Service::ControllerService),
            service(Service::VolumeAccessibilityConstraints),
            plugin_capability::Type::VolumeExpansion(plugin_capability::VolumeExpansion {
                r#type: Expansion::Online.into(),
            }),
        ];
        Ok(Response::new(csi::GetPluginCapabilitiesResponse {
            capabilities: all
                .into_iter()
                .map(|t| csi::PluginCapability { r#type: Some(t) })
                .collect(),
        }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        self.work(|pool| pool.free()).await?;
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}
