//! Version 1: one hierarchy a controller.

use std::io;
use std::path::{Path, PathBuf};

use super::{Cgroups, Resources, below, write};

pub(super) fn create(hierarchies: &[(String, PathBuf)], group: &str) -> io::Result<()> {
    for (name, root) in hierarchies {
        let dir = below(root, group);
        if dir.is_dir() {
            continue;
        }
        std::fs::create_dir_all(&dir)
            .map_err(|e| io::Error::new(e.kind(), format!("creating {}: {e}", dir.display())))?;
        if name.split(',').any(|c| c == "cpuset") {
            inherit_cpuset(root, &dir)?;
        }
    }
    Ok(())
}

/// A new cpuset is empty and takes no processes until it has the values of its parent.
fn inherit_cpuset(root: &Path, dir: &Path) -> io::Result<()> {
    let mut current = root.to_path_buf();
    for part in dir.strip_prefix(root).unwrap_or(dir).components() {
        let parent = current.clone();
        current.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if std::fs::read_to_string(current.join(file))?.trim().is_empty() {
                write(&current, file, std::fs::read_to_string(parent.join(file))?.trim())?;
            }
        }
    }
    Ok(())
}

pub(super) fn apply(cgroups: &Cgroups, group: &str, r: &Resources) -> io::Result<()> {
    let set = |controller: &str, file: &str, value: String| match cgroups.dir(controller, group) {
        Some(dir) => write(&dir, file, &value),
        None => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("{file} was asked for, but this machine has no {controller} control group"),
        )),
    };
    if let Some(shares) = r.cpu_shares.filter(|v| *v > 0) {
        set("cpu", "cpu.shares", shares.to_string())?;
    }
    // The period first, unless the old quota does not allow it; then the other way round.
    if let Some(period) = r.cpu_period.filter(|v| *v > 0)
        && let Err(first) = set("cpu", "cpu.cfs_period_us", period.to_string())
    {
        let Some(quota) = r.cpu_quota.filter(|v| *v != 0) else {
            return Err(first);
        };
        set("cpu", "cpu.cfs_quota_us", quota.to_string())?;
        set("cpu", "cpu.cfs_period_us", period.to_string())?;
    }
    if let Some(quota) = r.cpu_quota.filter(|v| *v != 0) {
        set("cpu", "cpu.cfs_quota_us", quota.to_string())?;
    }
    if let Some(cpus) = r.cpuset_cpus.as_ref().filter(|v| !v.is_empty()) {
        set("cpuset", "cpuset.cpus", cpus.clone())?;
    }
    if let Some(mems) = r.cpuset_mems.as_ref().filter(|v| !v.is_empty()) {
        set("cpuset", "cpuset.mems", mems.clone())?;
    }
    apply_memory(cgroups, group, r)?;
    if let Some(pids) = r.pids_limit.filter(|v| *v != 0) {
        set(
            "pids",
            "pids.max",
            if pids > 0 { pids.to_string() } else { "max".into() },
        )?;
    }
    for (size, limit) in &r.hugepages {
        if cgroups.has_controller("hugetlb") {
            set("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), limit.to_string())?;
        }
    }
    Ok(())
}

fn apply_memory(cgroups: &Cgroups, group: &str, r: &Resources) -> io::Result<()> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    let Some(dir) = cgroups.dir("memory", group) else {
        return match r.memory_limit.filter(|v| *v != 0) {
            None => Ok(()),
            Some(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no memory control group on this machine",
            )),
        };
    };
    let limit = r.memory_limit.filter(|v| *v != 0);
    // Without swap accounting the file does not exist and the limit alone is the whole limit.
    let swap = r.memory_swap.filter(|v| *v != 0).filter(|_| dir.join(SWAP).exists());
    match (limit, swap) {
        (Some(limit), Some(swap)) => {
            // memory ≤ memory+swap must hold at every step, so the order depends on the direction.
            let now: u64 = std::fs::read_to_string(dir.join(SWAP))?
                .trim()
                .parse()
                .unwrap_or(u64::MAX);
            if swap == -1 || swap as u64 >= now {
                write(&dir, SWAP, &swap.to_string())?;
                write(&dir, LIMIT, &limit.to_string())
            } else {
                write(&dir, LIMIT, &limit.to_string())?;
                write(&dir, SWAP, &swap.to_string())
            }
        }
        (Some(limit), None) => write(&dir, LIMIT, &limit.to_string()),
        (None, Some(swap)) => write(&dir, SWAP, &swap.to_string()),
        (None, None) => Ok(()),
    }
}
