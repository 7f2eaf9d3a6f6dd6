//! What the kernel tells and lets others do. Most of it is the machine's administrator's to decide: so it warns.

use super::{Point, Seen, doubtful, wrong};

/// Where, what it should be at least, title, and what to do.
const SYSCTLS: [(&str, &str, i64, &str, &str); 6] = [
    (
        "N1",
        "kernel/dmesg_restrict",
        1,
        "The kernel's log is root's",
        "sysctl -w kernel.dmesg_restrict=1",
    ),
    (
        "N2",
        "kernel/kptr_restrict",
        1,
        "The kernel's addresses are hidden",
        "sysctl -w kernel.kptr_restrict=1",
    ),
    (
        "N3",
        "kernel/unprivileged_bpf_disabled",
        1,
        "BPF is root's",
        "sysctl -w kernel.unprivileged_bpf_disabled=1",
    ),
    (
        "N4",
        "fs/protected_symlinks",
        1,
        "Links in shared directories are not followed",
        "sysctl -w fs.protected_symlinks=1",
    ),
    (
        "N5",
        "fs/protected_hardlinks",
        1,
        "Links to others' files can't be made",
        "sysctl -w fs.protected_hardlinks=1",
    ),
    (
        "N6",
        "kernel/randomize_va_space",
        2,
        "Addresses are drawn at random",
        "sysctl -w kernel.randomize_va_space=2",
    ),
];

fn number(name: &str) -> Result<i64, Seen> {
    let path = format!("/proc/sys/{name}");
    let text = std::fs::read_to_string(&path).map_err(|e| doubtful(format!("{path}: {e}")))?;
    text.trim()
        .parse()
        .map_err(|_| doubtful(format!("{path} is {}", text.trim())))
}

pub fn points() -> Vec<Point> {
    let least = |(id, name, least, title, fix): (&'static str, &str, i64, &'static str, &'static str)| {
        let seen = number(name).and_then(|n| match n >= least {
            true => Ok(format!("{} = {n}", name.replace('/', "."))),
            false => Err(doubtful(format!("{} = {n}", name.replace('/', ".")))),
        });
        Point::of(id, title, seen, fix)
    };
    let mut points: Vec<Point> = SYSCTLS.into_iter().map(least).collect();
    points.push(Point::of(
        "N7",
        "Dumps of privileged programs aren't written for others",
        number("fs/suid_dumpable").and_then(|n| match n {
            1 => Err(doubtful("fs.suid_dumpable = 1")),
            n => Ok(format!("fs.suid_dumpable = {n}")),
        }),
        "sysctl -w fs.suid_dumpable=0",
    ));
    points.push(Point::of(
        "N8",
        "Loopback addresses aren't reached from the network",
        number("net/ipv4/conf/all/route_localnet").and_then(|n| match n {
            0 => Ok("net.ipv4.conf.all.route_localnet = 0".into()),
            n => Err(wrong(format!("net.ipv4.conf.all.route_localnet = {n}"))),
        }),
        "sysctl -w net.ipv4.conf.all.route_localnet=0 (CVE-2020-8558)",
    ));
    let seccomp = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    points.push(Point::of(
        "N9",
        "The kernel filters system calls",
        match seccomp.contains("errno") {
            true => Ok(seccomp.trim().to_string()),
            false => Err(doubtful("no seccomp")),
        },
        "Use a kernel with CONFIG_SECCOMP_FILTER: profiles of pods need it",
    ));
    points
}
