//! The series that monitoring expects of containers, under the names, labels and meanings that cAdvisor gave them. One table,
//! for the runtime (which tells them by CRI) and the kubelet (which serves them to Prometheus).

use std::time::SystemTime;

use keelson_sys::cgroup::{Account, device_name};
use keelson_sys::net::{Carried, Traffic};
use keelson_sys::open::OpenFiles;

/// What is known of one group: a container, a pod, a class of pods, or the machine.
#[derive(Clone, Debug, Default)]
pub struct Group {
    pub account: Account,
    /// Where that was counted.
    pub open: Option<OpenFiles>,
    pub interfaces: Vec<Carried>,
    /// What is written on a file system: where that is known.
    pub disk: Option<Disk>,
    /// When its processes started; else when the group was made counts.
    pub started: Option<SystemTime>,
    /// When it was looked at.
    pub seen: Option<SystemTime>,
}

/// A file system, and how much of it a group has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub device: String,
    pub used: u64,
    pub limit: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// Values of labels beyond those that tell the group, and the number.
type Labelled = (Vec<String>, f64);

#[derive(Clone, Copy)]
enum Of {
    One(fn(&Group) -> Option<f64>),
    Each(fn(&Group) -> Vec<Labelled>),
}

/// A family of series.
#[derive(Clone, Copy)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    /// It only grows; otherwise it goes up and down.
    pub counter: bool,
    /// Labels beyond those that tell the group.
    pub labels: &'static [&'static str],
    of: Of,
}

impl Family {
    pub fn values(&self, group: &Group) -> Vec<Labelled> {
        match self.of {
            Of::One(of) => of(group).map(|n| (Vec::new(), n)).into_iter().collect(),
            Of::Each(of) => of(group),
        }
    }
}

const fn counter(name: &'static str, help: &'static str, of: fn(&Group) -> Option<f64>) -> Family {
    let (counter, labels, of) = (true, &[] as &[&str], Of::One(of));
    Family {
        name,
        help,
        counter,
        labels,
        of,
    }
}

const fn gauge(name: &'static str, help: &'static str, of: fn(&Group) -> Option<f64>) -> Family {
    Family {
        counter: false,
        ..counter(name, help, of)
    }
}

const fn each(family: Family, labels: &'static [&'static str], of: fn(&Group) -> Vec<Labelled>) -> Family {
    let of = Of::Each(of);
    Family { labels, of, ..family }
}

const fn counters(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    of: fn(&Group) -> Vec<Labelled>,
) -> Family {
    each(counter(name, help, |_| None), labels, of)
}

const fn gauges(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    of: fn(&Group) -> Vec<Labelled>,
) -> Family {
    each(gauge(name, help, |_| None), labels, of)
}

fn seconds(nanos: Option<u64>) -> Option<f64> {
    Some(nanos? as f64 / 1e9)
}

fn number(n: impl Into<Option<u64>>) -> Option<f64> {
    Some(n.into()? as f64)
}

/// A limit, where the kernel knows of such limits: no limit is zero.
fn limit(g: &Group, of: Option<u64>) -> Option<f64> {
    g.account.memory.usage.and(number(of.unwrap_or(0)))
}

fn unix(at: Option<SystemTime>) -> Option<f64> {
    let since = at?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs() as f64)
}

/// Only groups whose CPU is limited are throttled.
fn limited(g: &Group, value: Option<f64>) -> Option<f64> {
    g.account.cpu.quota.and(value)
}

fn disks(g: &Group, of: fn(&keelson_sys::cgroup::DiskAccount) -> u64) -> Vec<Labelled> {
    let disks = g.account.disks.iter();
    let named = disks.map(|d| (vec![device_name(d.major, d.minor).unwrap_or_default()], of(d) as f64));
    named.collect()
}

fn disk(g: &Group, of: fn(&Disk) -> u64) -> Vec<Labelled> {
    let disk = g.disk.iter();
    disk.map(|d| (vec![d.device.clone()], of(d) as f64)).collect()
}

fn carried(g: &Group, of: fn(&Carried) -> Traffic, what: fn(Traffic) -> u64) -> Vec<Labelled> {
    let interfaces = g.interfaces.iter();
    interfaces.map(|i| (vec![i.name.clone()], what(of(i)) as f64)).collect()
}

fn received(g: &Group, what: fn(Traffic) -> u64) -> Vec<Labelled> {
    carried(g, |i| i.received, what)
}

fn sent(g: &Group, what: fn(Traffic) -> u64) -> Vec<Labelled> {
    carried(g, |i| i.sent, what)
}

/// Lost time in seconds, of CPU, memory and I/O in this order.
fn lost(g: &Group, resource: usize, full: bool) -> Option<f64> {
    let pressure = g.account.pressure?.get(resource).copied()?;
    let micros = if full { pressure.full } else { pressure.some };
    Some(micros as f64 / 1e6)
}

fn failures(g: &Group) -> Vec<Labelled> {
    let m = &g.account.memory;
    let mut all = Vec::new();
    for scope in ["container", "hierarchy"] {
        for (kind, n) in [("pgfault", m.page_faults), ("pgmajfault", m.major_page_faults)] {
            all.extend(number(n).map(|n| (vec![kind.to_owned(), scope.to_owned()], n)));
        }
    }
    all
}

fn device_usage(g: &Group) -> Vec<Labelled> {
    let mut all = Vec::new();
    for d in &g.account.disks {
        let device = device_name(d.major, d.minor).unwrap_or_default();
        for (operation, n) in [("Read", d.bytes_read), ("Write", d.bytes_written)] {
            let labels = vec![
                device.clone(),
                d.major.to_string(),
                d.minor.to_string(),
                operation.to_owned(),
            ];
            all.push((labels, n as f64));
        }
    }
    all
}

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];

/// What a group is: read once, without a time.
pub const SPEC: &[Family] = &[
    gauge(
        "container_creation_time_seconds",
        "Container creation time since unix epoch in seconds.",
        |g| unix(g.account.made),
    ),
    gauge(
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds.",
        |g| unix(g.started.or(g.account.made)),
    ),
    gauge("container_spec_cpu_period", "CPU period of the container.", |g| {
        number(g.account.cpu.period)
    }),
    gauge("container_spec_cpu_quota", "CPU quota of the container.", |g| {
        g.account.cpu.quota.map(|q| q as f64)
    }),
    gauge("container_spec_cpu_shares", "CPU share of the container.", |g| {
        number(g.account.cpu.shares)
    }),
    gauge(
        "container_spec_memory_limit_bytes",
        "Memory limit for the container.",
        |g| limit(g, g.account.memory.limit),
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Memory swap limit for the container.",
        |g| limit(g, g.account.memory.swap_limit),
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory reservation limit for the container.",
        |g| limit(g, g.account.memory.reservation),
    ),
];

/// What a group uses, as of a time.
pub const USED: &[Family] = &[
    gauge(
        "container_last_seen",
        "Last time a container was seen by the exporter",
        |g| unix(g.seen),
    ),
    counter(
        "container_cpu_user_seconds_total",
        "Cumulative user cpu time consumed in seconds.",
        |g| seconds(g.account.cpu.user),
    ),
    counter(
        "container_cpu_system_seconds_total",
        "Cumulative system cpu time consumed in seconds.",
        |g| seconds(g.account.cpu.system),
    ),
    counters(
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed in seconds.",
        &["cpu"],
        |g| {
            let total = seconds(g.account.cpu.total);
            total.map(|n| (vec!["total".to_owned()], n)).into_iter().collect()
        },
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Number of elapsed enforcement period intervals.",
        |g| limited(g, number(g.account.cpu.periods)),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Number of throttled period intervals.",
        |g| limited(g, number(g.account.cpu.throttled_periods)),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        |g| limited(g, seconds(g.account.cpu.throttled)),
    ),
    counter(
        "container_cpu_cfs_burst_periods_total",
        "Number of periods when burst occurs.",
        |g| limited(g, number(g.account.cpu.burst_periods)),
    ),
    counter(
        "container_cpu_cfs_burst_seconds_total",
        "Total time duration the container has been bursted.",
        |g| limited(g, seconds(g.account.cpu.burst)),
    ),
    gauge("container_memory_cache", "Number of bytes of page cache memory.", |g| {
        number(g.account.memory.cache)
    }),
    gauge("container_memory_rss", "Size of RSS in bytes.", |g| {
        number(g.account.memory.rss)
    }),
    gauge(
        "container_memory_kernel_usage",
        "Size of kernel memory allocated in bytes.",
        |g| number(g.account.memory.kernel),
    ),
    gauge(
        "container_memory_mapped_file",
        "Size of memory mapped files in bytes.",
        |g| number(g.account.memory.mapped_file),
    ),
    gauge("container_memory_swap", "Container swap usage in bytes.", |g| {
        number(g.account.memory.swap)
    }),
    counter("container_memory_failcnt", "Number of memory usage hits limits", |g| {
        number(g.account.memory.failures)
    }),
    gauge(
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |g| number(g.account.memory.usage),
    ),
    gauge(
        "container_memory_max_usage_bytes",
        "Maximum memory usage recorded in bytes",
        |g| number(g.account.memory.max_usage),
    ),
    gauge(
        "container_memory_working_set_bytes",
        "Current working set in bytes.",
        |g| number(g.account.memory.working_set),
    ),
    gauge(
        "container_memory_total_active_file_bytes",
        "Current total active file in bytes.",
        |g| number(g.account.memory.active_file),
    ),
    gauge(
        "container_memory_total_inactive_file_bytes",
        "Current total inactive file in bytes.",
        |g| number(g.account.memory.inactive_file),
    ),
    counters(
        "container_memory_failures_total",
        "Cumulative count of memory allocation failures.",
        &["failure_type", "scope"],
        failures,
    ),
    counter(
        "container_memory_events_high_total",
        "Cumulative count of memory.high throttle events for the container",
        |g| number(g.account.memory.high_events),
    ),
    counter(
        "container_memory_events_max_total",
        "Cumulative count of memory.max limit hit events for the container",
        |g| number(g.account.memory.max_events),
    ),
    gauge(
        "container_memory_file_dirty_bytes",
        "Number of bytes of file cache that has been modified but not yet written back to disk.",
        |g| number(g.account.memory.file_dirty),
    ),
    gauge(
        "container_memory_file_writeback_bytes",
        "Number of bytes of file cache that is currently being written back to disk.",
        |g| number(g.account.memory.file_writeback),
    ),
    counter(
        "container_memory_pgscan_total",
        "Cumulative number of pages scanned by the page reclaim algorithm.",
        |g| number(g.account.memory.scanned),
    ),
    counter(
        "container_memory_pgsteal_total",
        "Cumulative number of pages reclaimed by the page reclaim algorithm.",
        |g| number(g.account.memory.stolen),
    ),
    counter(
        "container_memory_workingset_refault_file_total",
        "Cumulative number of refaults of previously evicted file pages.",
        |g| number(g.account.memory.refaulted_file),
    ),
    counter(
        "container_memory_workingset_refault_anon_total",
        "Cumulative number of refaults of previously evicted anonymous pages.",
        |g| number(g.account.memory.refaulted_anon),
    ),
    gauges("container_fs_inodes_free", "Number of available Inodes", DEVICE, |g| {
        disk(g, |d| d.inodes_free)
    }),
    gauges("container_fs_inodes_total", "Number of Inodes", DEVICE, |g| {
        disk(g, |d| d.inodes)
    }),
    gauges(
        "container_fs_limit_bytes",
        "Number of bytes that can be consumed by the container on this filesystem.",
        DEVICE,
        |g| disk(g, |d| d.limit),
    ),
    gauges(
        "container_fs_usage_bytes",
        "Number of bytes that are consumed by the container on this filesystem.",
        DEVICE,
        |g| disk(g, |d| d.used),
    ),
    counters(
        "container_fs_reads_bytes_total",
        "Cumulative count of bytes read",
        DEVICE,
        |g| disks(g, |d| d.bytes_read),
    ),
    counters(
        "container_fs_reads_total",
        "Cumulative count of reads completed",
        DEVICE,
        |g| disks(g, |d| d.reads),
    ),
    counters(
        "container_fs_writes_bytes_total",
        "Cumulative count of bytes written",
        DEVICE,
        |g| disks(g, |d| d.bytes_written),
    ),
    counters(
        "container_fs_writes_total",
        "Cumulative count of writes completed",
        DEVICE,
        |g| disks(g, |d| d.writes),
    ),
    counters(
        "container_blkio_device_usage_total",
        "Blkio Device bytes usage",
        &["device", "major", "minor", "operation"],
        device_usage,
    ),
    counters(
        "container_network_receive_bytes_total",
        "Cumulative count of bytes received",
        INTERFACE,
        |g| received(g, |t| t.bytes),
    ),
    counters(
        "container_network_receive_packets_total",
        "Cumulative count of packets received",
        INTERFACE,
        |g| received(g, |t| t.packets),
    ),
    counters(
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving",
        INTERFACE,
        |g| received(g, |t| t.dropped),
    ),
    counters(
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        INTERFACE,
        |g| received(g, |t| t.errors),
    ),
    counters(
        "container_network_transmit_bytes_total",
        "Cumulative count of bytes transmitted",
        INTERFACE,
        |g| sent(g, |t| t.bytes),
    ),
    counters(
        "container_network_transmit_packets_total",
        "Cumulative count of packets transmitted",
        INTERFACE,
        |g| sent(g, |t| t.packets),
    ),
    counters(
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
        INTERFACE,
        |g| sent(g, |t| t.dropped),
    ),
    counters(
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        INTERFACE,
        |g| sent(g, |t| t.errors),
    ),
    gauge(
        "container_processes",
        "Number of processes running inside the container.",
        |g| number(g.account.processes.len() as u64),
    ),
    gauge(
        "container_file_descriptors",
        "Number of open file descriptors for the container.",
        |g| number(g.open?.files),
    ),
    gauge("container_sockets", "Number of open sockets for the container.", |g| {
        number(g.open?.sockets)
    }),
    gauge(
        "container_threads_max",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        |g| number(g.account.threads_max),
    ),
    gauge(
        "container_threads",
        "Number of threads running inside the container",
        |g| number(g.account.threads),
    ),
    gauges(
        "container_ulimits_soft",
        "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
        &["ulimit"],
        |g| {
            let open = g.open.filter(|_| !g.account.processes.is_empty());
            let bound = open.map(|o| o.bound.map_or(-1.0, |b| b as f64));
            bound
                .map(|b| (vec!["max_open_files".to_owned()], b))
                .into_iter()
                .collect()
        },
    ),
    counter(
        "container_oom_events_total",
        "Count of out of memory events observed for the container",
        |g| number(g.account.oom_kills),
    ),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        |g| lost(g, 0, true),
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        |g| lost(g, 0, false),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        |g| lost(g, 1, true),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to memory congestion.",
        |g| lost(g, 1, false),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        |g| lost(g, 2, true),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to IO congestion.",
        |g| lost(g, 2, false),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, group: &Group) -> Vec<Labelled> {
        let found = SPEC.iter().chain(USED).find(|f| f.name == name);
        found.unwrap().values(group)
    }

    #[test]
    fn names_are_unique_and_every_value_has_its_labels() {
        let mut names: Vec<&str> = SPEC.iter().chain(USED).map(|f| f.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        let mut group = Group {
            interfaces: vec![Carried::default()],
            disk: Some(Disk::default()),
            ..Group::default()
        };
        group.account.processes = vec![1];
        group.account.disks = vec![Default::default()];
        for f in SPEC.iter().chain(USED) {
            assert!(
                f.values(&group)
                    .iter()
                    .all(|(labels, _)| labels.len() == f.labels.len()),
                "{}",
                f.name
            );
        }
    }

    #[test]
    fn throttling_is_told_of_those_that_are_limited() {
        let mut group = Group::default();
        assert!(one("container_cpu_cfs_periods_total", &group).is_empty());
        assert!(one("container_pressure_cpu_waiting_seconds_total", &group).is_empty());
        group.account.cpu.quota = Some(50_000);
        group.account.cpu.throttled = Some(1_500_000_000);
        assert_eq!(
            one("container_cpu_cfs_throttled_seconds_total", &group),
            [(Vec::new(), 1.5)]
        );
        assert_eq!(one("container_spec_cpu_quota", &group), [(Vec::new(), 50_000.0)]);
    }
}
