//! Volumes and snapshots of this node: made, enlarged, copied, removed.

use super::{LocalDriver, capabilities, needed, page, signed, source_of};
use crate::pool::record::{Origin, Snapshot, Volume};
use crate::pool::{SMALLEST, Wanted};
use keelson_csi::v1::controller_server::Controller;
use keelson_csi::v1::controller_service_capability::{Rpc, Type as Capability, rpc::Type as Can};
use keelson_csi::v1::volume_content_source::Type as SourceType;
use keelson_csi::v1::{self as csi, list_snapshots_response, list_volumes_response};
use std::collections::HashMap;
use tonic::{Request, Response, Status};

/// A class's parameter: `thin` takes room as it is written to, `thick` (the default) beforehand.
const ALLOCATION: &str = "allocation";
const CAN: [Can; 8] = [
    Can::CreateDeleteVolume,
    Can::ListVolumes,
    Can::GetCapacity,
    Can::CreateDeleteSnapshot,
    Can::ListSnapshots,
    Can::CloneVolume,
    Can::ExpandVolume,
    Can::SingleNodeMultiWriter,
];

impl LocalDriver {
    fn told(&self, volume: Volume) -> csi::Volume {
        csi::Volume {
            capacity_bytes: signed(volume.bytes),
            volume_id: volume.id,
            volume_context: HashMap::new(),
            content_source: volume.origin.as_ref().map(source_of),
            accessible_topology: vec![self.topology()],
        }
    }
}

fn snapshot(found: Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: signed(found.bytes),
        snapshot_id: found.id,
        source_volume_id: found.volume,
        creation_time: Some(prost_types::Timestamp {
            seconds: found.created.0,
            nanos: found.created.1,
        }),
        ready_to_use: true,
        group_snapshot_id: String::new(),
    }
}

fn range(range: Option<csi::CapacityRange>) -> Result<(u64, Option<u64>), Status> {
    let range = range.unwrap_or_default();
    let number = |n: i64| u64::try_from(n).map_err(|_| Status::invalid_argument("a capacity is negative"));
    let (least, most) = (number(range.required_bytes)?, number(range.limit_bytes)?);
    Ok((least, (most != 0).then_some(most)))
}

fn thin(parameters: &HashMap<String, String>) -> Result<bool, Status> {
    for (name, value) in parameters {
        match (name.as_str(), value.as_str()) {
            (ALLOCATION, "thin" | "thick") => {}
            // The names of the claim, which provisioners may add.
            (name, _) if name.starts_with("csi.storage.k8s.io/") => {}
            _ => {
                return Err(Status::invalid_argument(format!(
                    "parameter {name}={value}: known is {ALLOCATION} (thick or thin)"
                )));
            }
        }
    }
    Ok(parameters.get(ALLOCATION).is_some_and(|v| v == "thin"))
}

fn origin(source: Option<csi::VolumeContentSource>) -> Result<Option<Origin>, Status> {
    let Some(source) = source else { return Ok(None) };
    Ok(Some(match source.r#type {
        Some(SourceType::Snapshot(s)) => Origin::Snapshot(s.snapshot_id),
        Some(SourceType::Volume(v)) => Origin::Volume(v.volume_id),
        None => return Err(Status::invalid_argument("a content source names nothing")),
    }))
}

fn unsupported<T>() -> Result<T, Status> {
    Err(Status::unimplemented(
        "this driver doesn't have it, and says so by its capabilities",
    ))
}

#[tonic::async_trait]
impl Controller for LocalDriver {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        needed(&request.name, "the volume's name")?;
        let block = capabilities(&request.volume_capabilities)?;
        if !request.mutable_parameters.is_empty() {
            return Err(Status::invalid_argument(
                "volumes have no attributes that could be changed",
            ));
        }
        if let Some(wanted) = &request.accessibility_requirements
            && !wanted.requisite.is_empty()
            && !wanted.requisite.contains(&self.topology())
        {
            return Err(Status::resource_exhausted(
                "volumes of this node are reached from this node only",
            ));
        }
        let (bytes, limit) = range(request.capacity_range)?;
        let wanted = Wanted {
            name: request.name,
            bytes,
            limit,
            block,
            thin: thin(&request.parameters)?,
            origin: origin(request.volume_content_source)?,
        };
        let made = self.work(move |pool| pool.create(&wanted)).await?;
        Ok(Response::new(csi::CreateVolumeResponse {
            volume: Some(self.told(made)),
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let id = needed(&request.get_ref().volume_id, "the volume's id")?.to_string();
        self.work(move |pool| pool.delete(&id)).await?;
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let id = needed(&request.volume_id, "the volume's id")?.to_string();
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume capabilities are missing"));
        }
        let found = self.work(move |pool| pool.volume(&id)).await?;
        let confirmed = match capabilities(&request.volume_capabilities) {
            Ok(block) if block == found.block => Ok(csi::validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            Ok(_) => Err("a device can't be used as a file system, nor the other way round".to_string()),
            Err(status) => Err(status.message().to_string()),
        };
        Ok(Response::new(csi::ValidateVolumeCapabilitiesResponse {
            message: confirmed.as_ref().err().cloned().unwrap_or_default(),
            confirmed: confirmed.ok(),
        }))
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let all = self.work(|pool| pool.volumes()).await?;
        let (some, next_token) = page(all, &request.starting_token, request.max_entries)?;
        let entry = |v: Volume| list_volumes_response::Entry {
            volume: Some(self.told(v)),
            ..Default::default()
        };
        Ok(Response::new(csi::ListVolumesResponse {
            entries: some.into_iter().map(entry).collect(),
            next_token,
        }))
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let request = request.into_inner();
        let elsewhere = request.accessible_topology.is_some_and(|t| t != self.topology());
        let possible = request.volume_capabilities.is_empty() || capabilities(&request.volume_capabilities).is_ok();
        let free = match elsewhere || !possible {
            true => 0,
            false => self.work(|pool| pool.free()).await?,
        };
        Ok(Response::new(csi::GetCapacityResponse {
            available_capacity: signed(free),
            maximum_volume_size: Some(signed(free)),
            minimum_volume_size: Some(signed(SMALLEST)),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let capability = |can: &Can| csi::ControllerServiceCapability {
            r#type: Some(Capability::Rpc(Rpc { r#type: (*can).into() })),
        };
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse {
            capabilities: CAN.iter().map(capability).collect(),
        }))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        needed(&request.name, "the snapshot's name")?;
        needed(&request.source_volume_id, "the source volume's id")?;
        let now = keelson_clock::now();
        let now = (now.as_second(), now.subsec_nanosecond());
        let made = self
            .work(move |pool| pool.snap(&request.name, &request.source_volume_id, now))
            .await?;
        Ok(Response::new(csi::CreateSnapshotResponse {
            snapshot: Some(snapshot(made)),
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let id = needed(&request.get_ref().snapshot_id, "the snapshot's id")?.to_string();
        self.work(move |pool| pool.unsnap(&id)).await?;
        Ok(Response::new(csi::DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let mut all = self.work(|pool| pool.snapshots()).await?;
        all.retain(|s| {
            (request.snapshot_id.is_empty() || s.id == request.snapshot_id)
                && (request.source_volume_id.is_empty() || s.volume == request.source_volume_id)
        });
        let (some, next_token) = page(all, &request.starting_token, request.max_entries)?;
        let entry = |s: Snapshot| list_snapshots_response::Entry {
            snapshot: Some(snapshot(s)),
        };
        Ok(Response::new(csi::ListSnapshotsResponse {
            entries: some.into_iter().map(entry).collect(),
            next_token,
        }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = needed(&request.volume_id, "the volume's id")?.to_string();
        if request.capacity_range.is_none() {
            return Err(Status::invalid_argument("the capacity is missing"));
        }
        let (bytes, limit) = range(request.capacity_range)?;
        let now = self.work(move |pool| pool.expand(&id, bytes, limit)).await?;
        Ok(Response::new(csi::ControllerExpandVolumeResponse {
            capacity_bytes: signed(now.bytes),
            node_expansion_required: true,
        }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        unsupported()
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        unsupported()
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        unsupported()
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        unsupported()
    }

    async fn get_snapshot(
        &self,
        _: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        unsupported()
    }

    async fn controller_get_volume(
        &self,
        _: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        unsupported()
    }

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        unsupported()
    }
}
