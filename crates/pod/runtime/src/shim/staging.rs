//! What a container of a pod with users of its own is made from, laid out where the pod's users can reach it.
//!
//! `libcontainer` enters the user namespace first and mounts afterwards: by then it can't open what lies in directories of
//! the host's root, can't show files to the pod's users (`detached::map_ids`), can't make devices, and can't follow
//! `/proc/<shim>`. So all of this is done before, with privileges, in a mount namespace that ends with the container's
//! making: sources are cloned while paths mean what they mean on the host, mapped where the specification says so, and
//! attached in an empty file system; descriptors of namespaces take the place of paths to them. What is left to
//! `libcontainer` are binds from one directory that leads nowhere else. See [`super::create`].

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keelson_sys::detached;
use keelson_sys::mount::{Propagation, set_propagation};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mknod};
use serde_json::{Value, json};

/// Directories of any system that the stage may cover in its own mount namespace: the first that is one, and that the
/// container's making doesn't need.
const PLACES: [&str; 8] = ["/mnt", "/media", "/srv", "/opt", "/home", "/boot", "/root", "/tmp"];
/// What `libcontainer` itself binds from the host's /dev.
const USUAL_DEVICES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/urandom",
    "/dev/random",
];

/// Whether the container's users are not the host's.
pub fn is_for(spec: &Value) -> bool {
    namespaces(spec).any(|n| n["type"] == "user")
}

fn namespaces(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["linux"]["namespaces"].as_array().into_iter().flatten()
}

/// Something of the host's that becomes a mount of the stage.
struct Piece {
    name: String,
    tree: OwnedFd,
    is_dir: bool,
}

/// The namespaces' descriptors, which have to stay open until they are entered.
pub struct Held(#[expect(dead_code, reason = "open is what they are for")] Vec<OwnedFd>);

/// Enters a mount namespace with the stage, and turns the specification into one that is made from it. `needed` are
/// directories that stay in sight.
pub fn set(spec: &mut Value, needed: &[&Path]) -> Result<Held, String> {
    let held = hold_namespaces(spec)?;
    let users = namespaces(spec)
        .find(|n| n["type"] == "user")
        .and_then(|n| n["path"].as_str());
    let users = File::open(users.ok_or("no user namespace to join")?)
        .map_err(|e| format!("cannot open the pod's user namespace: {e}"))?;
    let stage = place(needed)?;
    let mut pieces = Vec::new();
    let root = spec["root"]["path"]
        .as_str()
        .ok_or("no root file system in the specification")?;
    pieces.push(piece("root".to_owned(), Path::new(root), None)?);
    spec["root"]["path"] = json!(stage.join("root"));
    for (i, mount) in spec["mounts"].as_array_mut().into_iter().flatten().enumerate() {
        if mount["type"] != "bind" {
            continue;
        }
        let mapped = mount.get("uidMappings").is_some();
        let source = Path::new(mount["source"].as_str().ok_or("a mount without a source")?);
        // Volumes have no links any more; what a device's driver names may be one, and means what it leads to.
        let source = match mapped {
            true => source.to_path_buf(),
            false => fs::canonicalize(source).map_err(|e| format!("cannot mount {}: {e}", source.display()))?,
        };
        let name = format!("mount-{i}");
        pieces.push(piece(name.clone(), &source, mapped.then_some(&users))?);
        mount["source"] = json!(stage.join(name));
        if let Some(mount) = mount.as_object_mut() {
            mount.remove("uidMappings");
            mount.remove("gidMappings");
        }
    }
    enter(&stage, &pieces).map_err(|e| format!("cannot lay out the container's files: {e}"))?;
    devices(spec, &stage).map_err(|e| format!("cannot lay out the container's devices: {e}"))?;
    Ok(held)
}

/// Descriptors in the place of paths that only the host's root can follow.
fn hold_namespaces(spec: &mut Value) -> Result<Held, String> {
    let mut held = Vec::new();
    for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        let Some(path) = namespace["path"].as_str() else {
            continue;
        };
        let open: OwnedFd = File::open(path)
            .map_err(|e| format!("cannot open the pod's {} namespace: {e}", namespace["type"]))?
            .into();
        namespace["path"] = json!(format!("/proc/self/fd/{}", open.as_raw_fd()));
        held.push(open);
    }
    Ok(Held(held))
}

fn place(needed: &[&Path]) -> Result<PathBuf, String> {
    let free = |place: &Path| {
        // A link would be followed to somewhere else.
        fs::symlink_metadata(place).is_ok_and(|m| m.is_dir()) && !needed.iter().any(|n| n.starts_with(place))
    };
    PLACES
        .iter()
        .map(Path::new)
        .find(|p| free(p))
        .map(Path::to_path_buf)
        .ok_or_else(|| {
            format!(
                "no directory to lay out a container in: it takes one of {}",
                PLACES.join(", ")
            )
        })
}

fn piece(name: String, source: &Path, users: Option<&File>) -> Result<Piece, String> {
    let shown = source.display();
    let tree = detached::tree_of(source).map_err(|e| format!("cannot mount {shown}: {e}"))?;
    let kind = fstat(&tree).map_err(|e| format!("cannot mount {shown}: {e}"))?.st_mode;
    if let Some(users) = users {
        detached::map_ids(tree.as_fd(), users.as_fd()).map_err(|e| unmapped(source, &e))?;
    }
    Ok(Piece {
        name,
        tree,
        is_dir: SFlag::from_bits_truncate(kind) & SFlag::S_IFMT == SFlag::S_IFDIR,
    })
}

/// In runc's words, for which people look.
fn unmapped(source: &Path, error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EINVAL) => " (maybe the filesystem used doesn't support idmap mounts on this kernel?)",
        _ => "",
    };
    format!("failed to set MOUNT_ATTR_IDMAP on {}: {error}{hint}", source.display())
}

fn enter(stage: &Path, pieces: &[Piece]) -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    // Mounts of the host still arrive in volumes; none of these leave.
    set_propagation(Path::new("/"), Propagation::Slave)?;
    detached::attach(detached::tmpfs()?.as_fd(), stage)?;
    set_propagation(stage, Propagation::Private)?;
    for piece in pieces {
        let at = stage.join(&piece.name);
        match piece.is_dir {
            true => fs::create_dir(&at)?,
            false => File::create_new(&at).map(drop)?,
        }
        detached::attach(piece.tree.as_fd(), &at)?;
    }
    Ok(())
}

/// Devices are nodes of the stage, with the host's owners: the pod's root is none of them, whatever it may do otherwise.
fn devices(spec: &mut Value, stage: &Path) -> io::Result<()> {
    let Some(devices) = spec["linux"]["devices"].as_array_mut().map(std::mem::take) else {
        return Ok(());
    };
    let mut binds = Vec::new();
    for (i, device) in devices.iter().enumerate() {
        let path = device["path"].as_str().unwrap_or_default();
        if USUAL_DEVICES.contains(&path) {
            continue;
        }
        let at = stage.join(format!("device-{i}"));
        make_device(device, &at)?;
        binds.push(json!({
            "destination": path, "type": "bind", "source": at, "options": ["bind", "nosuid", "noexec"],
        }));
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.append(&mut binds);
    }
    Ok(())
}

fn make_device(device: &Value, at: &Path) -> io::Result<()> {
    let number = |key: &str| {
        device[key]
            .as_u64()
            .ok_or_else(|| io::Error::other(format!("a device without {key}")))
    };
    let kind = match device["type"].as_str() {
        Some("b") => SFlag::S_IFBLK,
        Some("c" | "u") => SFlag::S_IFCHR,
        other => return Err(io::Error::other(format!("no device is of type {other:?}"))),
    };
    let id = |key: &str| device[key].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    let mode = Mode::from_bits_truncate(device["fileMode"].as_u64().unwrap_or(0o666) as libc::mode_t);
    mknod(at, kind, mode, makedev(number("major")?, number("minor")?))?;
    nix::unistd::chown(at, Some(id("uid").into()), Some(id("gid").into()))?;
    // What the umask took.
    fs::set_permissions(at, fs::Permissions::from_mode(mode.bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_covers_nothing_that_is_needed() {
        let first = place(&[]).unwrap();
        assert!(PLACES.iter().any(|p| Path::new(p) == first));
        let next = place(&[&first.join("state/sandbox")]).unwrap();
        assert_ne!(next, first);
        let all: Vec<&Path> = PLACES.iter().map(Path::new).collect();
        assert!(place(&all).is_err());
    }

    #[test]
    fn only_users_of_a_pods_own_need_a_stage() {
        let spec = |kind: &str| json!({"linux": {"namespaces": [{"type": "mount"}, {"type": kind, "path": "/x"}]}});
        assert!(is_for(&spec("user")));
        assert!(!is_for(&spec("network")));
        assert!(!is_for(&json!({})));
    }
}
