//! Version 2: one hierarchy; values of version 1 (which the CRI speaks) converted as runc does.

use std::io;
use std::path::Path;

use super::{Resources, write};

pub(super) fn create(root: &Path, group: &str) -> io::Result<()> {
    let mut current = root.to_path_buf();
    for part in group.split('/').filter(|p| !p.is_empty()) {
        enable_controllers(&current)?;
        current.push(part);
        match std::fs::create_dir(&current) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io::Error::new(e.kind(), format!("creating {}: {e}", current.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Hands the group's controllers on to its children; those already handed on stay.
fn enable_controllers(dir: &Path) -> io::Result<()> {
    let available = std::fs::read_to_string(dir.join("cgroup.controllers"))?;
    let enabled = std::fs::read_to_string(dir.join("cgroup.subtree_control"))?;
    for controller in available
        .split_whitespace()
        .filter(|c| !enabled.split_whitespace().any(|e| e == *c))
    {
        // One by one: a controller that cannot be handed on must not take the others with it. Limits that need it
        // fail later, by name.
        if let Err(error) = write(dir, "cgroup.subtree_control", &format!("+{controller}")) {
            tracing::debug!(%error, controller, "control group controller not handed on");
        }
    }
    Ok(())
}

pub(super) fn apply(dir: &Path, r: &Resources) -> io::Result<()> {
    if let Some(weight) = r.cpu_shares.filter(|v| *v > 0).map(cpu_weight) {
        write(dir, "cpu.weight", &weight.to_string())?;
    }
    if let Some(value) = cpu_max(dir, r)? {
        write(dir, "cpu.max", &value)?;
    }
    if let Some(cpus) = r.cpuset_cpus.as_ref().filter(|v| !v.is_empty()) {
        write(dir, "cpuset.cpus", cpus)?;
    }
    if let Some(mems) = r.cpuset_mems.as_ref().filter(|v| !v.is_empty()) {
        write(dir, "cpuset.mems", mems)?;
    }
    if let Some(swap) = r.memory_swap.filter(|v| *v != 0) {
        let value = match r.memory_limit {
            _ if swap < 0 => "max".to_owned(),
            Some(limit) if limit > 0 && swap >= limit => (swap - limit).to_string(),
            _ => swap.to_string(),
        };
        if dir.join("memory.swap.max").exists() {
            write(dir, "memory.swap.max", &value)?;
        }
    }
    if let Some(limit) = r.memory_limit.filter(|v| *v != 0) {
        write(
            dir,
            "memory.max",
            &if limit < 0 { "max".to_owned() } else { limit.to_string() },
        )?;
    }
    if let Some(pids) = r.pids_limit.filter(|v| *v != 0) {
        write(
            dir,
            "pids.max",
            &if pids > 0 { pids.to_string() } else { "max".to_owned() },
        )?;
    }
    for (size, limit) in &r.hugepages {
        if dir.join(format!("hugetlb.{size}.max")).exists() {
            write(dir, &format!("hugetlb.{size}.max"), &limit.to_string())?;
        }
    }
    for (file, value) in &r.unified {
        if file.contains('/') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{file:?} is no control group file"),
            ));
        }
        write(dir, file, value)?;
    }
    Ok(())
}

fn cpu_max(dir: &Path, r: &Resources) -> io::Result<Option<String>> {
    let (quota, period) = (r.cpu_quota.filter(|v| *v != 0), r.cpu_period.filter(|v| *v != 0));
    if quota.is_none() && period.is_none() {
        return Ok(None);
    }
    let now = std::fs::read_to_string(dir.join("cpu.max"))?;
    let mut fields = now.split_whitespace();
    let (old_quota, old_period) = (fields.next().unwrap_or("max"), fields.next().unwrap_or("100000"));
    let quota = quota.map_or(old_quota.to_owned(), |q| {
        if q > 0 { q.to_string() } else { "max".to_owned() }
    });
    let period = period.map_or(old_period.to_owned(), |p| p.to_string());
    Ok(Some(format!("{quota} {period}")))
}

/// Maps 2…262144 to 1…10000 so that both defaults, 1024 and 100, meet.
fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::cpu_weight;

    #[test]
    fn weights_meet_runcs() {
        let pairs = [(2, 1), (1024, 100), (262_144, 10_000), (512, 59), (100, 17)];
        assert_eq!(
            pairs.map(|(shares, _)| cpu_weight(shares)),
            pairs.map(|(_, weight)| weight)
        );
    }
}
