//! All that the kernel keeps account of for a group, as monitoring wants it: more than [`super::Usage`], which is what
//! decisions are made of. What a kernel doesn't count is `None`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::read::{UNLIMITED_V1, keyed, number};
use super::{Cgroups, MOUNT, Version, collect_processes};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// When the group was made.
    pub made: Option<SystemTime>,
    pub cpu: CpuAccount,
    pub memory: MemoryAccount,
    pub disks: Vec<DiskAccount>,
    /// Processes in the group and the groups in it.
    pub processes: Vec<i32>,
    pub threads: Option<u64>,
    /// Zero: no limit.
    pub threads_max: Option<u64>,
    pub oom_kills: u64,
    /// Of CPU, memory and I/O; `None` where the kernel doesn't measure it.
    pub pressure: Option<[Pressure; 3]>,
}

/// Times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuAccount {
    pub total: Option<u64>,
    pub user: Option<u64>,
    pub system: Option<u64>,
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    pub throttled: Option<u64>,
    pub burst_periods: Option<u64>,
    pub burst: Option<u64>,
    /// As version 1 counts: 1024 by default.
    pub shares: Option<u64>,
    /// Microseconds a period; `None` is "no limit" here.
    pub quota: Option<u64>,
    /// Microseconds.
    pub period: Option<u64>,
}

/// Bytes and counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryAccount {
    pub usage: Option<u64>,
    pub max_usage: Option<u64>,
    pub working_set: Option<u64>,
    pub cache: Option<u64>,
    pub rss: Option<u64>,
    pub mapped_file: Option<u64>,
    pub kernel: Option<u64>,
    pub swap: Option<u64>,
    pub active_file: Option<u64>,
    pub inactive_file: Option<u64>,
    pub failures: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub high_events: Option<u64>,
    pub max_events: Option<u64>,
    pub file_dirty: Option<u64>,
    pub file_writeback: Option<u64>,
    pub scanned: Option<u64>,
    pub stolen: Option<u64>,
    pub refaulted_file: Option<u64>,
    pub refaulted_anon: Option<u64>,
    /// Of these three `None` is "no limit".
    pub limit: Option<u64>,
    pub swap_limit: Option<u64>,
    pub reservation: Option<u64>,
}

/// What was read from and written to one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskAccount {
    pub major: u32,
    pub minor: u32,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub reads: u64,
    pub writes: u64,
}

/// How long work stood still for want of a resource, in microseconds: of some tasks, and of all at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub some: u64,
    pub full: u64,
}

/// The account of a group. Fails when there is no such group.
pub(super) fn account(cgroups: &Cgroups, group: &str) -> io::Result<Account> {
    let mut dirs = cgroups.directories(group).into_iter().map(|(_, dir)| dir);
    let first = dirs.find(|d| d.is_dir()).ok_or(io::ErrorKind::NotFound)?;
    let mut processes = Vec::new();
    collect_processes(&first, &mut processes)?;
    let dir = |controller: &str| cgroups.dir(controller, group);
    let pids = dir("pids");
    let of_pids = |file: &str| pids.as_deref().and_then(|d| number(d, file).ok());
    let threads = of_pids("pids.current");
    let (cpu, memory, disks, pressure) = match cgroups.version() {
        Version::V1 => (cpu_v1(&dir), memory_v1(dir("memory")), disks_v1(dir("blkio")), None),
        Version::V2 => (
            cpu_v2(&first),
            memory_v2(&first, group),
            disks_v2(&text(&first, "io.stat")),
            pressures(&first),
        ),
    };
    Ok(Account {
        made: made(&first),
        cpu,
        memory,
        disks,
        processes,
        threads,
        threads_max: threads.map(|_| of_pids("pids.max").unwrap_or(0)),
        oom_kills: cgroups.oom_kills(group),
        pressure,
    })
}

/// The directory changes with the groups in it; its files don't.
fn made(dir: &Path) -> Option<SystemTime> {
    let times = ["", "cgroup.clone_children", "cgroup.events"].map(|f| dir.join(f).metadata()?.modified());
    times.into_iter().filter_map(Result::ok).min()
}

fn text(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap_or_default()
}

fn cpu_v1(dir: &dyn Fn(&str) -> Option<PathBuf>) -> CpuAccount {
    let (account, cpu) = (dir("cpuacct").unwrap_or_default(), dir("cpu").unwrap_or_default());
    let stat = text(&account, "cpuacct.stat");
    // The kernel counts these two in ticks, a hundred a second to everybody outside of it.
    let ticks = |key| keyed(&stat, key).map(|n| n * 10_000_000);
    let throttling = text(&cpu, "cpu.stat");
    let of = |key| keyed(&throttling, key);
    let value = |file| number(&cpu, file).ok();
    CpuAccount {
        total: number(&account, "cpuacct.usage").ok(),
        user: ticks("user"),
        system: ticks("system"),
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled: of("throttled_time"),
        burst_periods: of("nr_bursts"),
        burst: of("burst_time"),
        shares: value("cpu.shares"),
        quota: number(&cpu, "cpu.cfs_quota_us").ok(),
        period: value("cpu.cfs_period_us"),
    }
}

fn cpu_v2(dir: &Path) -> CpuAccount {
    let stat = text(dir, "cpu.stat");
    let of = |key| keyed(&stat, key);
    let nanos = |key| of(key).map(|micros| micros * 1000);
    let max = text(dir, "cpu.max");
    let mut max = max.split_whitespace();
    CpuAccount {
        total: nanos("usage_usec"),
        user: nanos("user_usec"),
        system: nanos("system_usec"),
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled: nanos("throttled_usec"),
        burst_periods: of("nr_bursts"),
        burst: nanos("burst_usec"),
        shares: number(dir, "cpu.weight").ok().map(shares_of),
        quota: max.next().and_then(|q| q.parse().ok()),
        period: max.next().and_then(|p| p.parse().ok()),
    }
}

/// Shares that stand for a weight, as cAdvisor turns the two.
fn shares_of(weight: u64) -> u64 {
    2 + (weight.max(1) - 1) * 262_142 / 9_999
}

fn memory_v1(dir: Option<PathBuf>) -> MemoryAccount {
    let Some(dir) = dir else {
        return MemoryAccount::default();
    };
    let stat = text(&dir, "memory.stat");
    let of = |key| keyed(&stat, key);
    let value = |file| number(&dir, file).ok();
    let limit = |file| number(&dir, file).ok().filter(|l| *l < UNLIMITED_V1);
    let usage = value("memory.usage_in_bytes");
    MemoryAccount {
        usage,
        max_usage: value("memory.max_usage_in_bytes"),
        working_set: worked(usage, of("total_inactive_file")),
        cache: of("total_cache"),
        rss: of("total_rss"),
        mapped_file: of("total_mapped_file"),
        kernel: value("memory.kmem.usage_in_bytes"),
        swap: of("total_swap"),
        active_file: of("total_active_file"),
        inactive_file: of("total_inactive_file"),
        failures: value("memory.failcnt"),
        page_faults: of("pgfault"),
        major_page_faults: of("pgmajfault"),
        limit: limit("memory.limit_in_bytes"),
        swap_limit: limit("memory.memsw.limit_in_bytes"),
        reservation: limit("memory.soft_limit_in_bytes"),
        ..MemoryAccount::default()
    }
}

/// What would be missed: files that nobody has used for long can be read again.
fn worked(usage: Option<u64>, inactive_file: Option<u64>) -> Option<u64> {
    Some(usage?.saturating_sub(inactive_file?))
}

fn memory_v2(dir: &Path, group: &str) -> MemoryAccount {
    let stat = text(dir, "memory.stat");
    let of = |key| keyed(&stat, key);
    let value = |file| number(dir, file).ok();
    let events = text(dir, "memory.events");
    // The root group has no books of its own: the machine's are its.
    let (usage, swap) = match group.trim_matches('/').is_empty() {
        true => machine(),
        false => (value("memory.current"), value("memory.swap.current")),
    };
    MemoryAccount {
        usage,
        max_usage: value("memory.peak"),
        working_set: worked(usage, of("inactive_file")),
        cache: of("file"),
        rss: of("anon"),
        mapped_file: of("file_mapped"),
        kernel: of("kernel"),
        swap,
        active_file: of("active_file"),
        inactive_file: of("inactive_file"),
        failures: keyed(&events, "max"),
        page_faults: of("pgfault"),
        major_page_faults: of("pgmajfault"),
        high_events: keyed(&events, "high"),
        max_events: keyed(&events, "max"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        scanned: of("pgscan"),
        stolen: of("pgsteal"),
        refaulted_file: of("workingset_refault_file"),
        refaulted_anon: of("workingset_refault_anon"),
        limit: number(dir, "memory.max").ok(),
        swap_limit: number(dir, "memory.swap.max").ok(),
        reservation: number(dir, "memory.low").ok().filter(|l| *l > 0),
    }
}

/// Memory and swap in use on the whole machine.
fn machine() -> (Option<u64>, Option<u64>) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| {
        let line = info.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|n| n * 1024)
    };
    let used = |total, free| Some(bytes(total)?.saturating_sub(bytes(free)?));
    (used("MemTotal", "MemFree"), used("SwapTotal", "SwapFree"))
}

/// Lines of "8:0 Read 4096".
fn disks_v1(dir: Option<PathBuf>) -> Vec<DiskAccount> {
    let Some(dir) = dir else { return Vec::new() };
    let file = |what: &str| {
        let kinds = ["bfq", "throttle"].map(|by| text(&dir, &format!("blkio.{by}.{what}_recursive")));
        kinds.into_iter().find(|t| t.contains("Read")).unwrap_or_default()
    };
    let mut disks = Vec::new();
    for (lines, bytes) in [(file("io_service_bytes"), true), (file("io_serviced"), false)] {
        for line in lines.lines() {
            let mut words = line.split_whitespace();
            let (Some(device), Some(what), Some(amount)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let (Some(disk), Ok(amount)) = (disk(&mut disks, device), amount.parse()) else {
                continue;
            };
            match (what, bytes) {
                ("Read", true) => disk.bytes_read = amount,
                ("Write", true) => disk.bytes_written = amount,
                ("Read", false) => disk.reads = amount,
                ("Write", false) => disk.writes = amount,
                _ => {}
            }
        }
    }
    disks
}

/// Lines of "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
fn disks_v2(stat: &str) -> Vec<DiskAccount> {
    let mut disks = Vec::new();
    for line in stat.lines() {
        let mut words = line.split_whitespace();
        let Some(disk) = words.next().and_then(|device| disk(&mut disks, device)) else {
            continue;
        };
        for (key, amount) in words.filter_map(|w| w.split_once('=')) {
            let amount = amount.parse().unwrap_or(0);
            match key {
                "rbytes" => disk.bytes_read = amount,
                "wbytes" => disk.bytes_written = amount,
                "rios" => disk.reads = amount,
                "wios" => disk.writes = amount,
                _ => {}
            }
        }
    }
    disks
}

fn disk<'a>(disks: &'a mut Vec<DiskAccount>, device: &str) -> Option<&'a mut DiskAccount> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let at = disks.iter().position(|d| (d.major, d.minor) == (major, minor));
    let at = at.unwrap_or_else(|| {
        disks.push(DiskAccount {
            major,
            minor,
            ..DiskAccount::default()
        });
        disks.len() - 1
    });
    disks.get_mut(at)
}

fn pressures(dir: &Path) -> Option<[Pressure; 3]> {
    let root = dir == Path::new(MOUNT);
    let read = |what: &str| {
        let path = match root {
            true => Path::new("/proc/pressure").join(what),
            false => dir.join(format!("{what}.pressure")),
        };
        std::fs::read_to_string(path).ok().map(|t| pressure(&t))
    };
    Some([read("cpu")?, read("memory")?, read("io")?])
}

/// Lines of "some avg10=0.00 avg60=0.00 avg300=0.00 total=0".
fn pressure(text: &str) -> Pressure {
    let total = |kind: &str| {
        let line = text.lines().find(|l| l.split_whitespace().next() == Some(kind));
        let total = line.and_then(|l| l.split_whitespace().find_map(|w| w.strip_prefix("total=")));
        total.and_then(|t| t.parse().ok()).unwrap_or(0)
    };
    Pressure {
        some: total("some"),
        full: total("full"),
    }
}

/// The name of a block device below /dev, as its driver gave it.
pub fn device_name(major: u32, minor: u32) -> Option<String> {
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let name = uevent.lines().find_map(|l| l.strip_prefix("DEVNAME="))?;
    Some(format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_this_process_has_an_account() {
        let cgroups = Cgroups::detect().unwrap();
        let account = account(&cgroups, "/").unwrap();
        assert!(!account.processes.is_empty());
        assert!(account.made.is_some() && account.cpu.total > Some(0) && account.memory.working_set > Some(0));
        assert!(super::account(&cgroups, "/there/is/none").is_err());
    }

    #[test]
    fn disks_are_read_in_either_form() {
        let dir = tempfile("disks");
        let write = |file: &str, text: &str| std::fs::write(dir.join(file), text).unwrap();
        write(
            "blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 4096\n8:0 Write 512\n8:0 Total 4608\nTotal 4608\n",
        );
        write("blkio.throttle.io_serviced_recursive", "8:0 Read 2\n8:0 Write 1\n");
        let want = DiskAccount {
            major: 8,
            minor: 0,
            bytes_read: 4096,
            bytes_written: 512,
            reads: 2,
            writes: 1,
        };
        assert_eq!(disks_v1(Some(dir.clone())), [want]);
        assert_eq!(
            disks_v2("8:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n"),
            [want]
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_kernel_does_not_count_is_not_told() {
        let dir = tempfile("memory");
        std::fs::write(dir.join("memory.stat"), "total_cache 4096\ntotal_inactive_file 1000\n").unwrap();
        std::fs::write(dir.join("memory.usage_in_bytes"), "5000\n").unwrap();
        let told = memory_v1(Some(dir.clone()));
        let known = (told.usage, told.working_set, told.cache);
        assert_eq!(known, (Some(5000), Some(4000), Some(4096)));
        assert_eq!((told.kernel, told.max_usage, told.high_events), (None, None, None));
        assert_eq!(memory_v1(None), MemoryAccount::default());
        std::fs::remove_dir_all(dir).unwrap();
    }

    fn tempfile(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("keelson-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn pressure_is_what_was_lost_in_all() {
        let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        assert_eq!(pressure(text), Pressure { some: 77, full: 5 });
    }

    #[test]
    fn weights_become_shares_as_cadvisor_turns_them() {
        assert_eq!([1, 100, 10_000].map(shares_of), [2, 2597, 262_144]);
    }
}
