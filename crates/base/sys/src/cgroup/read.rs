//! What a group uses.

use std::io;
use std::path::Path;

use super::{Cgroups, Version};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuUsage {
    pub total_nanos: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    pub usage: u64,
    /// Usage without file pages that could be dropped at once.
    pub working_set: u64,
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// `None`: no limit.
    pub limit: Option<u64>,
    pub swap_usage: Option<u64>,
    /// Swap alone; `None`: no limit of its own.
    pub swap_limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu: CpuUsage,
    pub memory: MemoryUsage,
    pub pids: u64,
}

/// "No limit" of version 1 is the largest number of whole pages.
pub(super) const UNLIMITED_V1: u64 = 0x7fff_ffff_ffff_0000;

pub(super) fn usage(cgroups: &Cgroups, group: &str) -> io::Result<Usage> {
    let dir = |controller: &str| {
        cgroups
            .dir(controller, group)
            .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, format!("no {controller} control group")))
    };
    let pids = dir("pids").and_then(|d| number(&d, "pids.current")).unwrap_or(0);
    match cgroups.version() {
        Version::V1 => {
            let cpu = CpuUsage {
                total_nanos: number(&dir("cpuacct")?, "cpuacct.usage")?,
            };
            Ok(Usage {
                cpu,
                memory: memory_v1(&dir("memory")?)?,
                pids,
            })
        }
        Version::V2 => {
            let dir = dir("")?;
            let stat = std::fs::read_to_string(dir.join("cpu.stat"))?;
            let cpu = CpuUsage {
                total_nanos: keyed(&stat, "usage_usec").unwrap_or(0) * 1000,
            };
            Ok(Usage {
                cpu,
                memory: memory_v2(&dir)?,
                pids,
            })
        }
    }
}

fn memory_v1(dir: &Path) -> io::Result<MemoryUsage> {
    let stat = std::fs::read_to_string(dir.join("memory.stat"))?;
    let usage = number(dir, "memory.usage_in_bytes")?;
    let limit = number(dir, "memory.limit_in_bytes")?;
    Ok(MemoryUsage {
        usage,
        working_set: usage.saturating_sub(keyed(&stat, "total_inactive_file").unwrap_or(0)),
        rss: keyed(&stat, "total_rss").unwrap_or(0),
        page_faults: keyed(&stat, "total_pgfault").unwrap_or(0),
        major_page_faults: keyed(&stat, "total_pgmajfault").unwrap_or(0),
        limit: (limit < UNLIMITED_V1).then_some(limit),
        swap_usage: keyed(&stat, "total_swap"),
        swap_limit: None,
    })
}

fn memory_v2(dir: &Path) -> io::Result<MemoryUsage> {
    let stat = std::fs::read_to_string(dir.join("memory.stat"))?;
    let usage = number(dir, "memory.current")?;
    Ok(MemoryUsage {
        usage,
        working_set: usage.saturating_sub(keyed(&stat, "inactive_file").unwrap_or(0)),
        rss: keyed(&stat, "anon").unwrap_or(0),
        page_faults: keyed(&stat, "pgfault").unwrap_or(0),
        major_page_faults: keyed(&stat, "pgmajfault").unwrap_or(0),
        limit: number(dir, "memory.max").ok(),
        swap_usage: number(dir, "memory.swap.current").ok(),
        swap_limit: number(dir, "memory.swap.max").ok(),
    })
}

pub(super) fn number(dir: &Path, file: &str) -> io::Result<u64> {
    let path = dir.join(file);
    let text = std::fs::read_to_string(&path)?;
    text.trim().parse().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: {:?}", path.display(), text.trim()),
        )
    })
}

/// The number behind a key in lines of "key number".
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
