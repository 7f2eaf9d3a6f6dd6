//! What the process uses, under the names that every Prometheus client library gives it, read when it is asked for.

use std::fmt::Write;
use std::fs;

/// Parts of a second in `/proc/self/stat`: the kernel's interface to programs has 100 on every architecture.
const TICKS: f64 = 100.0;

/// Adds the lines of the metrics' page.
pub fn write(page: &mut String) {
    let mut put = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
    let open = fs::read_dir("/proc/self/fd").map(|entries| entries.count() as f64);
    put(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        cpu(&stat),
    );
    put(
        "process_max_fds",
        "gauge",
        "Maximum number of open file descriptors.",
        files(&limits),
    );
    put(
        "process_open_fds",
        "gauge",
        "Number of open file descriptors.",
        open.ok(),
    );
    put(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        kib(&status, "VmRSS:"),
    );
    put(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        start(&stat, &machine),
    );
    put(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        kib(&status, "VmSize:"),
    );
}

/// A field of `stat`, counted from 1 as its manual does. The second, a name, may have blanks and brackets in it.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu(stat: &str) -> Option<f64> {
    Some((field(stat, 14)? + field(stat, 15)?) / TICKS)
}

fn start(stat: &str, machine: &str) -> Option<f64> {
    let boot = machine.lines().find_map(|l| l.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + field(stat, 22)? / TICKS)
}

fn kib(status: &str, name: &str) -> Option<f64> {
    let value = status.lines().find_map(|l| l.strip_prefix(name))?;
    Some(value.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

fn files(limits: &str) -> Option<f64> {
    let soft = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    soft.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1000 0 0";
        assert_eq!(cpu(stat), Some(3.0));
        assert_eq!(start(stat, "cpu 1\nbtime 1700000000\n"), Some(1_700_000_010.0));
        assert_eq!(kib("Name:\tx\nVmRSS:\t    2048 kB\n", "VmRSS:"), Some(2_097_152.0));
        assert_eq!(
            files("Max open files            1024                 524288               files\n"),
            Some(1024.0)
        );
        let mut page = String::new();
        write(&mut page);
        assert_eq!(page.matches("# TYPE process_").count(), 6, "{page}");
    }
}
