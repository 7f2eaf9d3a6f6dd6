//! Facts about the machine, read from the kernel and from the files that describe the system. Nothing is invented:
//! what can't be read is empty.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Logical CPUs, physical cores, and the chips they are on.
    pub cpus: i64,
    pub cores: i64,
    pub sockets: i64,
    pub memory: u64,
    pub swap: u64,
    /// Page size in the kernel's spelling (`2MB`) and bytes reserved.
    pub hugepages: Vec<(String, u64)>,
    pub hostname: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    pub architecture: String,
    pub max_pids: i64,
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}

impl Machine {
    pub fn read() -> io::Result<Machine> {
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let kib = |key: &str| {
            meminfo
                .lines()
                .find_map(|l| {
                    l.strip_prefix(key)?
                        .trim_start_matches(':')
                        .split_whitespace()
                        .next()?
                        .parse::<u64>()
                        .ok()
                })
                .unwrap_or(0)
        };
        let (cores, sockets) = topology(Path::new("/sys/devices/system/cpu"));
        Ok(Machine {
            cores,
            sockets,
            cpus: std::thread::available_parallelism()?.get() as i64,
            memory: kib("MemTotal") * 1024,
            swap: kib("SwapTotal") * 1024,
            hugepages: hugepages(),
            hostname: text("/proc/sys/kernel/hostname"),
            machine_id: text("/etc/machine-id"),
            system_uuid: Some(text("/sys/class/dmi/id/product_uuid"))
                .filter(|s| !s.is_empty())
                .unwrap_or_else(|| text("/etc/machine-id")),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&text("/etc/os-release")),
            architecture: architecture().to_owned(),
            max_pids: text("/proc/sys/kernel/pid_max").parse().unwrap_or(0),
        })
    }

    pub fn hugepage_sizes(&self) -> Vec<String> {
        self.hugepages.iter().map(|(s, _)| s.clone()).collect()
    }
}

/// What the machine uses, by the kernel's own books (the root cgroup of version 2 keeps none).
pub(super) fn usage() -> io::Result<super::Usage> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let loadavg = std::fs::read_to_string("/proc/loadavg")?;
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    // user, nice, system, irq, softirq and steal; idle and iowait are no use.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| ticks.get(*i)).sum();
    let bytes = |key: &str| amount(&meminfo, key);
    Ok(super::Usage {
        cpu_nanos: busy * 10_000_000,
        memory: bytes("MemTotal").saturating_sub(bytes("MemFree")),
        working_set: working_set(&meminfo),
        rss: bytes("AnonPages"),
        swap: Some(bytes("SwapTotal").saturating_sub(bytes("SwapFree"))),
        pids: loadavg
            .split_whitespace()
            .nth(3)
            .and_then(|f| f.split_once('/')?.1.parse().ok())
            .unwrap_or(0),
        ..super::Usage::default()
    })
}

/// A line of `/proc/meminfo`, in bytes.
fn amount(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// What can't be had any more. What is set aside for huge pages is among it: the kernel has none of that available.
fn working_set(meminfo: &str) -> u64 {
    amount(meminfo, "MemTotal").saturating_sub(amount(meminfo, "MemAvailable"))
}

/// Physical cores and chips; zero where the kernel doesn't say.
fn topology(cpus: &Path) -> (i64, i64) {
    let number = |cpu: &Path, file: &str| -> Option<i64> {
        let text = std::fs::read_to_string(cpu.join("topology").join(file)).ok()?;
        text.trim().parse().ok()
    };
    let (mut cores, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for cpu in std::fs::read_dir(cpus).into_iter().flatten().flatten() {
        let path = cpu.path();
        let (Some(socket), Some(core)) = (number(&path, "physical_package_id"), number(&path, "core_id")) else {
            continue;
        };
        sockets.insert(socket);
        cores.insert((socket, core));
    }
    (cores.len() as i64, sockets.len() as i64)
}

fn os_image(release: &str) -> String {
    let value = |key: &str| {
        release
            .lines()
            .find_map(|l| l.strip_prefix(key))
            .map(|v| v.trim_matches('"').to_owned())
    };
    value("PRETTY_NAME=").or_else(|| value("NAME=")).unwrap_or_default()
}

/// The architecture in the API's spelling.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn hugepages() -> Vec<(String, u64)> {
    let dir = Path::new("/sys/kernel/mm/hugepages");
    let mut sizes: Vec<(u64, u64)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count: u64 = std::fs::read_to_string(e.path().join("nr_hugepages"))
                .ok()?
                .trim()
                .parse()
                .ok()?;
            Some((kib, count * kib * 1024))
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(|(kib, bytes)| (page_size(kib), bytes)).collect()
}

/// A size of pages as the kernel spells it: `2MB`.
pub fn page_size(kib: u64) -> String {
    match kib {
        k if k >= 1 << 20 => format!("{}GB", k >> 20),
        k if k >= 1 << 10 => format!("{}MB", k >> 10),
        k => format!("{k}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let m = Machine::read().unwrap();
        assert!(m.sockets <= m.cores, "{m:?}");
        assert!(m.cpus > 0 && m.memory > 0 && !m.kernel.is_empty());
        assert_eq!(os_image("NAME=\"A\"\nPRETTY_NAME=\"B 1\"\n"), "B 1");
    }

    /// Half of the machine is set aside for huge pages, which stay out of what is free: whoever subtracts them has done it twice.
    #[test]
    fn huge_pages_are_counted_once() {
        let meminfo =
            "MemTotal:       65536 kB\nMemFree:        30000 kB\nMemAvailable:   31000 kB\nHugetlb:        32768 kB\n";
        assert_eq!(working_set(meminfo), (65536 - 31000) * 1024);
        assert_eq!(amount(meminfo, "Mem"), 0);
    }
}
