//! What this process uses, as the kernel counts it.

use std::io;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Own {
    /// CPU used so far, in seconds.
    pub cpu: f64,
    /// When it started, in seconds since 1970.
    pub started: f64,
    /// Bytes in memory, and bytes of address space.
    pub resident: u64,
    pub virtual_: u64,
    pub open_files: u64,
    pub max_files: u64,
}

impl Own {
    /// Name, help, whether it only grows, and value, as every Prometheus client library tells them.
    pub fn series(&self) -> [(&'static str, &'static str, bool, f64); 6] {
        [
            (
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                true,
                self.cpu,
            ),
            (
                "process_max_fds",
                "Maximum number of open file descriptors.",
                false,
                self.max_files as f64,
            ),
            (
                "process_open_fds",
                "Number of open file descriptors.",
                false,
                self.open_files as f64,
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                false,
                self.resident as f64,
            ),
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                false,
                self.started,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
                false,
                self.virtual_ as f64,
            ),
        ]
    }
}

/// Looks. Fails where there is no `/proc`.
pub fn own() -> io::Result<Own> {
    use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
    use nix::sys::time::TimeValLike;
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = used.user_time().num_microseconds() + used.system_time().num_microseconds();
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let mut pages = statm.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(0) as u64;
    let (virtual_, resident) = (pages.next().unwrap_or(0) * page, pages.next().unwrap_or(0) * page);
    Ok(Own {
        cpu: micros as f64 / 1e6,
        started: started()?,
        resident,
        virtual_,
        // One of them is the directory that is being read.
        open_files: (std::fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1),
        max_files: getrlimit(Resource::RLIMIT_NOFILE)?.0,
    })
}

/// When this process started, in seconds since 1970.
pub fn started() -> io::Result<f64> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name, which may have anything in it, ends with the last bracket; the start is the 22nd field.
    let (_, rest) = stat.rsplit_once(')').ok_or_else(bad)?;
    let ticks: u64 = rest
        .split_whitespace()
        .nth(19)
        .and_then(|t| t.parse().ok())
        .ok_or_else(bad)?;
    let machine = std::fs::read_to_string("/proc/stat")?;
    let boot = machine.lines().find_map(|l| l.strip_prefix("btime "));
    let boot: u64 = boot.and_then(|b| b.trim().parse().ok()).ok_or_else(bad)?;
    Ok(boot as f64 + ticks as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_known() {
        let own = super::own().unwrap();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age = now.as_secs_f64() - own.started;
        assert!((-2.0..86_400.0).contains(&age), "{own:?}");
        assert!(
            own.resident > 0 && own.virtual_ >= own.resident && own.open_files <= own.max_files,
            "{own:?}"
        );
    }
}
