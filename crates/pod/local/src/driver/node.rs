//! Volumes where pods find them. Whether something is mounted or attached is asked of the kernel each time: nothing is remembered.

use super::{LocalDriver, capability, needed, signed};
use crate::pool::data::{self, BLOCK};
use crate::pool::{Fault, Pool};
use keelson_csi::v1 as csi;
use keelson_csi::v1::node_server::Node;
use keelson_csi::v1::node_service_capability::{Rpc, Type as Capability, rpc::Type as Can};
use keelson_csi::v1::volume_capability::AccessType;
use keelson_csi::v1::volume_capability::access_mode::Mode;
use keelson_csi::v1::volume_usage::Unit;
use keelson_sys::{block, mount};
use std::io;
use std::path::{Path, PathBuf};
use tonic::{Request, Response, Status};

const CAN: [Can; 4] = [
    Can::StageUnstageVolume,
    Can::GetVolumeStats,
    Can::ExpandVolume,
    Can::SingleNodeMultiWriter,
];

fn failed(what: &'static str) -> impl Fn(io::Error) -> Fault {
    move |e| Fault::Io(what, e)
}

fn is_mounted(place: &Path) -> Result<bool, Fault> {
    mount::is_mounted(place).map_err(failed("looking for a mount"))
}

fn attached(pool: &Pool, id: &str) -> Result<Option<block::Loop>, Fault> {
    block::attached(&pool.file(id)).map_err(failed("looking for a volume's device"))
}

fn path(text: &str, what: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(needed(text, what)?);
    if !path.is_absolute() {
        return Err(Status::invalid_argument(format!("{what} is not absolute")));
    }
    Ok(path)
}

/// The device over a volume's file, attached if it isn't. A file system's goes with its last mount.
fn device(pool: &Pool, id: &str, goes: bool) -> Result<block::Loop, Fault> {
    if let Some(found) = attached(pool, id)? {
        block::follow_size(&found).map_err(failed("the size of a volume's device"))?;
        return Ok(found);
    }
    block::attach(&pool.file(id), goes).map_err(failed("attaching a volume's device"))
}

/// Makes the mounted file system as large as the volume, if it isn't.
fn grow(pool: &Pool, id: &str, device: &block::Loop, dir: &Path) -> Result<(), Fault> {
    let blocks = pool.volume(id)?.bytes / BLOCK;
    if data::blocks(&device.path).map_err(failed("reading a volume's file system"))? >= blocks {
        return Ok(());
    }
    match block::grow_ext4(dir, blocks) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EPERM) => Err(Fault::InUse(format!(
            "volume {id} can't be enlarged while it is mounted, for want of CAP_SYS_RESOURCE: it"
        ))),
        other => other.map_err(failed("enlarging a file system")),
    }
}

/// The volume is of the form that is asked for.
fn of_form(pool: &Pool, id: &str, is_block: bool) -> Result<(), Fault> {
    match pool.volume(id)?.block == is_block {
        true => Ok(()),
        false => Err(Fault::Invalid(
            "a device can't be used as a file system, nor the other way round".into(),
        )),
    }
}

fn stage(pool: &Pool, id: &str, dir: &Path, wanted: &csi::VolumeCapability, is_block: bool) -> Result<(), Fault> {
    of_form(pool, id, is_block)?;
    if is_block {
        return device(pool, id, false).map(drop);
    }
    if is_mounted(dir)? {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(failed("making the staging directory"))?;
    let device = device(pool, id, true)?;
    let options = match &wanted.access_type {
        Some(AccessType::Mount(m)) => m.mount_flags.join(","),
        _ => String::new(),
    };
    let mount = || block::mount(&device.path, dir, "ext4", &options).map_err(failed("mounting a volume"));
    mount()?;
    // A copy may be larger than what it is of, and a volume may have grown while nobody used it.
    if options.split(',').any(|o| o == "ro") {
        return Ok(());
    }
    let grown = grow(pool, id, &device, dir);
    if grown.is_err() {
        mount::unmount(dir).map_err(failed("unmounting a volume"))?;
    }
    match grown {
        Err(Fault::InUse(_)) => {
            data::grow_unmounted(&device.path).map_err(failed("enlarging a file system"))?;
            mount()
        }
        other => other,
    }
}

fn unstage(pool: &Pool, id: &str, dir: &Path) -> Result<(), Fault> {
    if is_mounted(dir)? {
        mount::unmount(dir).map_err(failed("unmounting a volume"))?;
    }
    match pool.volume(id) {
        Ok(volume) if volume.block => attached(pool, id)?
            .map_or(Ok(()), block::detach)
            .map_err(failed("detaching a volume's device")),
        Ok(_) | Err(Fault::NotFound(_)) => Ok(()),
        Err(other) => Err(other),
    }
}

/// Where and how a pod is to have a volume.
struct Place {
    staged: PathBuf,
    target: PathBuf,
    is_block: bool,
    read_only: bool,
    /// Nobody else has it.
    alone: bool,
}

fn publish(pool: &Pool, id: &str, place: &Place) -> Result<(), Fault> {
    let Place {
        staged,
        target,
        is_block,
        read_only,
        alone,
    } = place;
    of_form(pool, id, *is_block)?;
    if *alone && pool.mounts(id)?.iter().any(|m| m != staged && m != target) {
        return Err(Fault::InUse(format!("volume {id}")));
    }
    if is_mounted(target)? {
        return Ok(());
    }
    let (_device, source) = if *is_block {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(failed("making the target's directory"))?;
        }
        let made = std::fs::File::options().create(true).append(true).open(target);
        made.map_err(failed("making the target"))?;
        let device = device(pool, id, false)?;
        let path = device.path.clone();
        (Some(device), path)
    } else {
        if !is_mounted(staged)? {
            return Err(Fault::InUse(format!(
                "volume {id} is not staged at {}: the place",
                staged.display()
            )));
        }
        std::fs::create_dir_all(target).map_err(failed("making the target"))?;
        (None, staged.clone())
    };
    match *read_only {
        true => mount::bind_read_only(&source, target),
        false => mount::bind(&source, target),
    }
    .map_err(failed("mounting a volume for a pod"))
}

fn unpublish(target: &Path) -> Result<(), Fault> {
    if is_mounted(target)? {
        mount::unmount(target).map_err(failed("unmounting a volume from a pod"))?;
    }
    // Only what is empty: what else lies there is nobody's to remove.
    let gone = match std::fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(target),
        Ok(_) => std::fs::remove_file(target),
        Err(e) => Err(e),
    };
    match gone {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Fault::Io("removing a pod's mount point", e)),
        _ => Ok(()),
    }
}

fn usage(pool: &Pool, id: &str, place: &Path) -> Result<Vec<csi::VolumeUsage>, Fault> {
    let volume = pool.volume(id)?;
    if !is_mounted(place)? {
        return Err(Fault::NotFound(format!("volume {id} at {}", place.display())));
    }
    if volume.block {
        return Ok(vec![csi::VolumeUsage {
            total: signed(volume.bytes),
            unit: Unit::Bytes.into(),
            ..Default::default()
        }]);
    }
    let found = nix::sys::statvfs::statvfs(place).map_err(|e| Fault::Io("asking for a volume's use", e.into()))?;
    let bytes = |blocks: u64| signed(blocks.saturating_mul(found.fragment_size()));
    Ok(vec![
        csi::VolumeUsage {
            available: bytes(found.blocks_available()),
            total: bytes(found.blocks()),
            used: bytes(found.blocks().saturating_sub(found.blocks_free())),
            unit: Unit::Bytes.into(),
        },
        csi::VolumeUsage {
            available: signed(found.files_available()),
            total: signed(found.files()),
            used: signed(found.files().saturating_sub(found.files_free())),
            unit: Unit::Inodes.into(),
        },
    ])
}

fn expand(pool: &Pool, id: &str, place: &Path) -> Result<u64, Fault> {
    let volume = pool.volume(id)?;
    if !is_mounted(place)? {
        return Err(Fault::NotFound(format!("volume {id} at {}", place.display())));
    }
    let device = device(pool, id, !volume.block)?;
    if !volume.block {
        grow(pool, id, &device, place)?;
    }
    Ok(volume.bytes)
}

fn wanted(capability: Option<csi::VolumeCapability>) -> Result<csi::VolumeCapability, Status> {
    capability.ok_or_else(|| Status::invalid_argument("the volume capability is missing"))
}

#[tonic::async_trait]
impl Node for LocalDriver {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = needed(&request.volume_id, "the volume's id")?.to_string();
        let dir = path(&request.staging_target_path, "the staging path")?;
        let wanted = wanted(request.volume_capability)?;
        let is_block = capability(&wanted)?;
        self.work(move |pool| stage(pool, &id, &dir, &wanted, is_block)).await?;
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = needed(&request.volume_id, "the volume's id")?.to_string();
        let dir = path(&request.staging_target_path, "the staging path")?;
        self.work(move |pool| unstage(pool, &id, &dir)).await?;
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = needed(&request.volume_id, "the volume's id")?.to_string();
        let target = path(&request.target_path, "the target path")?;
        let wanted = wanted(request.volume_capability)?;
        let mode = wanted.access_mode.as_ref().map(|m| m.mode());
        let place = Place {
            staged: path(&request.staging_target_path, "the staging path")?,
            target,
            is_block: capability(&wanted)?,
            read_only: request.readonly,
            alone: mode == Some(Mode::SingleNodeSingleWriter),
        };
        self.work(move |pool| publish(pool, &id, &place)).await?;
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        needed(&request.volume_id, "the volume's id")?;
        let target = path(&request.target_path, "the target path")?;
        self.work(move |_| unpublish(&target)).await?;
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let id = needed(&request.volume_id, "the volume's id")?.to_string();
        let place = PathBuf::from(needed(&request.volume_path, "the volume's path")?);
        let usage = self.work(move |pool| usage(pool, &id, &place)).await?;
        Ok(Response::new(csi::NodeGetVolumeStatsResponse { usage }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = needed(&request.volume_id, "the volume's id")?.to_string();
        let place = PathBuf::from(needed(&request.volume_path, "the volume's path")?);
        let bytes = self.work(move |pool| expand(pool, &id, &place)).await?;
        Ok(Response::new(csi::NodeExpandVolumeResponse {
            capacity_bytes: signed(bytes),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let capability = |can: &Can| csi::NodeServiceCapability {
            r#type: Some(Capability::Rpc(Rpc { r#type: (*can).into() })),
        };
        Ok(Response::new(csi::NodeGetCapabilitiesResponse {
            capabilities: CAN.iter().map(capability).collect(),
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.node.to_string(),
            // As many as there are loop devices: the kernel makes them as they are asked for.
            max_volumes_per_node: 0,
            accessible_topology: Some(self.topology()),
        }))
    }

    async fn node_get_volume_health(
        &self,
        _: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented("this driver doesn't tell of health"))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("this driver doesn't tell of health"))
    }
}
