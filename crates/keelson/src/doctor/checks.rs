//! The checks. Each reads the machine and judges what it read.

use super::{Finding, Verdict};
use keelson_sys::nft::{Family, FoundChain, Hook, Op};
use std::fs;
use std::net::TcpListener;
use std::path::Path;

/// Bytes that a data directory should have free.
const ROOM_WARNING: u64 = 2 << 30;
const ROOM_FAILURE: u64 = 100 << 20;
const INOTIFY_INSTANCES: u64 = 512;
const OPEN_FILES: u64 = 10_000;

/// Every check, in the order in which one would mend them. `ports`: those that must be free.
pub fn all(data_dir: &Path, ports: &[u16]) -> Vec<Finding> {
    let mut findings = vec![
        Finding {
            name: "root",
            verdict: root(),
        },
        Finding {
            name: "kernel",
            verdict: kernel(),
        },
        Finding {
            name: "overlay file system",
            verdict: file_system("overlay"),
        },
        Finding {
            name: "cgroups",
            verdict: cgroups(),
        },
        Finding {
            name: "nftables",
            verdict: nftables(),
        },
        Finding {
            name: "wireguard",
            verdict: wireguard(),
        },
        Finding {
            name: "firewall",
            verdict: firewall(),
        },
        Finding {
            name: "seccomp",
            verdict: seccomp(),
        },
        Finding {
            name: "inotify instances",
            verdict: inotify(),
        },
        Finding {
            name: "open files",
            verdict: open_files(),
        },
        Finding {
            name: "room",
            verdict: room(data_dir),
        },
        Finding {
            name: "volumes",
            verdict: volumes(),
        },
    ];
    findings.extend(ports.iter().map(|p| Finding {
        name: "port",
        verdict: port(*p),
    }));
    findings
}

fn failure(found: impl Into<String>, fix: impl Into<String>) -> Verdict {
    Verdict::Failure {
        found: found.into(),
        fix: fix.into(),
    }
}

fn warning(found: impl Into<String>, fix: impl Into<String>) -> Verdict {
    Verdict::Warning {
        found: found.into(),
        fix: fix.into(),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn root() -> Verdict {
    if nix::unistd::geteuid().is_root() {
        Verdict::Fine("running as root".into())
    } else {
        failure("not running as root", "Run with sudo, or as a system service.")
    }
}

fn kernel() -> Verdict {
    judge_kernel(&read("/proc/sys/kernel/osrelease"))
}

fn judge_kernel(release: &str) -> Verdict {
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 10) {
        Verdict::Fine(format!("Linux {release}"))
    } else {
        failure(
            format!("Linux {release}"),
            "Keelson needs Linux 5.10 or newer (pidfd, openat2, nftables maps).",
        )
    }
}

fn file_system(name: &str) -> Verdict {
    let known = |text: String| text.lines().any(|l| l.split_whitespace().last() == Some(name));
    if known(read("/proc/filesystems")) || Path::new("/sys/module").join(name).exists() {
        Verdict::Fine("available".into())
    } else {
        failure(
            "the kernel does not offer it",
            format!("Load it: modprobe {name} (and add it to /etc/modules)."),
        )
    }
}

fn cgroups() -> Verdict {
    let v2 = read("/sys/fs/cgroup/cgroup.controllers");
    if !v2.is_empty() {
        return judge_controllers("v2", &v2.split_whitespace().collect::<Vec<_>>());
    }
    let table = read("/proc/cgroups");
    let enabled: Vec<&str> = table
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| {
            let mut columns = l.split_whitespace();
            let name = columns.next()?;
            (columns.nth(2) == Some("1")).then_some(name)
        })
        .collect();
    judge_controllers("v1", &enabled)
}

fn judge_controllers(version: &str, enabled: &[&str]) -> Verdict {
    let missing: Vec<&str> = ["cpu", "memory", "pids", "cpuset"]
        .into_iter()
        .filter(|c| !enabled.contains(c))
        .collect();
    if missing.is_empty() {
        Verdict::Fine(format!("{version} with {}", enabled.join(", ")))
    } else {
        failure(
            format!("{version} without {}", missing.join(", ")),
            "Enable them on the kernel's command line (cgroup_enable=memory, systemd.unified_cgroup_hierarchy=1) or in the delegating unit.",
        )
    }
}

/// Tries it in a network namespace of its own, so that nothing of the machine changes.
fn nftables() -> Verdict {
    let tried = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
        keelson_sys::nft::apply(Family::Ip, "keelson-doctor", &[Op::AddTable]).map_err(|e| e.to_string())
    })
    .join();
    match tried {
        Ok(Ok(())) => Verdict::Fine("tables can be made".into()),
        Ok(Err(error)) => failure(
            error,
            "Load it: modprobe nf_tables nft_chain_nat; services and host ports need it.",
        ),
        Err(_) => failure(
            "the check itself failed",
            "Run keelson doctor again with RUST_BACKTRACE=1.",
        ),
    }
}

/// A cluster that needs it refuses to start without ([`keelson_network::underlay::supported`]).
fn wireguard() -> Verdict {
    Verdict::Fine(match keelson_sys::wireguard::available() {
        Ok(()) => "available".into(),
        Err(error) => format!("the kernel has none ({error}); a cluster with --network wireguard needs it"),
    })
}

/// Other programs' chains that drop what pods send. Forwarded packets are accepted in iptables' own chain by the server.
fn firewall() -> Verdict {
    // Its rules are outside of nf_tables, so nothing here can read them.
    let legacy = read("/proc/net/ip_tables_names");
    if legacy.lines().any(|table| table == "filter") {
        return warning(
            "iptables-legacy filters packets",
            "If pods reach nothing: iptables-legacy -I FORWARD -i kls+ -j ACCEPT; iptables-legacy -I FORWARD -o kls+ -j ACCEPT; iptables-legacy -I INPUT -i kls+ -j ACCEPT",
        );
    }
    match keelson_sys::nft::chains() {
        Ok(chains) => judge_firewall(&chains),
        Err(error) => warning(
            format!("the machine's chains can't be read: {error}"),
            "Run keelson doctor as root.",
        ),
    }
}

fn judge_firewall(chains: &[FoundChain]) -> Verdict {
    let dropping = |hook| {
        chains.iter().find(move |c| {
            let ours = c.table.starts_with("keelson-");
            let mended = hook == Hook::Forward && c.family == Family::Ip && c.table == "filter" && c.name == "FORWARD";
            c.hook == hook && c.drops && c.family != Family::Ip6 && !ours && !mended
        })
    };
    let family = |c: &FoundChain| if c.family == Family::Inet { "inet" } else { "ip" };
    let accept = |c: &FoundChain, rule: &str| format!("nft insert rule {} {} {} {rule}", family(c), c.table, c.name);
    let (input, forward) = (dropping(Hook::Input), dropping(Hook::Forward));
    let mut fixes: Vec<String> = Vec::new();
    // Cluster DNS, the API and the kubelet are the node's own.
    fixes.extend(input.map(|c| accept(c, "iifname \"kls*\" accept")));
    fixes.extend(forward.map(|c| accept(c, "iifname \"kls*\" accept")));
    fixes.extend(forward.map(|c| accept(c, "oifname \"kls*\" accept")));
    match input.or(forward) {
        None => Verdict::Fine("no chain drops by default what pods send".into()),
        Some(c) => warning(
            format!("chain {} of table {} {} drops by default", c.name, family(c), c.table),
            format!(
                "Unless its rules accept pods already (links kls*): {}",
                fixes.join("; ")
            ),
        ),
    }
}

fn seccomp() -> Verdict {
    if read("/proc/sys/kernel/seccomp/actions_avail").contains("errno") {
        Verdict::Fine("filters are available".into())
    } else {
        warning(
            "the kernel offers no seccomp filters",
            "Pods that ask for a seccomp profile will not start.",
        )
    }
}

fn inotify() -> Verdict {
    let n: u64 = read("/proc/sys/fs/inotify/max_user_instances").parse().unwrap_or(0);
    if n >= INOTIFY_INSTANCES {
        Verdict::Fine(n.to_string())
    } else {
        warning(
            format!("only {n}"),
            format!("Many pods watch files: sysctl -w fs.inotify.max_user_instances={INOTIFY_INSTANCES}"),
        )
    }
}

fn open_files() -> Verdict {
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= OPEN_FILES => Verdict::Fine(format!("up to {hard}")),
        Ok((_, hard)) => warning(
            format!("at most {hard}"),
            "Raise the limit: LimitNOFILE=1048576 in the service's unit.",
        ),
        Err(error) => warning(error.to_string(), "The limit could not be read."),
    }
}

fn room(data_dir: &Path) -> Verdict {
    let existing = data_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(existing) {
        Ok(s) => judge_room(
            s.blocks_available() * s.fragment_size(),
            &existing.display().to_string(),
        ),
        Err(error) => failure(error.to_string(), format!("{} cannot be read.", existing.display())),
    }
}

/// What claims of the class `local` need. Their size is enforced by a file of that size with a file system in it.
fn volumes() -> Verdict {
    let tools = [keelson_local::pool::data::MKFS, "e2fsck", "resize2fs"];
    let missing: Vec<_> = tools.into_iter().filter(|t| !has_tool(t)).collect();
    if !missing.is_empty() {
        return warning(
            format!("{} not found", missing.join(", ")),
            "Claims of the storage class \"local\" get no volumes: install e2fsprogs, or start with --disable local-storage.",
        );
    }
    if !Path::new("/dev/loop-control").exists() {
        return warning(
            "no loop devices",
            "Claims of the storage class \"local\" get no volumes: modprobe loop, or start with --disable local-storage.",
        );
    }
    Verdict::Fine("sizes are enforced by files with ext4 in them".into())
}

fn has_tool(name: &str) -> bool {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    dirs.iter().any(|dir| Path::new(dir).join(name).exists())
}

fn judge_room(free: u64, place: &str) -> Verdict {
    let found = format!("{} MiB free at {place}", free >> 20);
    if free < ROOM_FAILURE {
        failure(
            found,
            "The store and images need room: free some, or give another --data-dir.",
        )
    } else if free < ROOM_WARNING {
        warning(found, "Images may not fit; pods are evicted when the disk runs full.")
    } else {
        Verdict::Fine(found)
    }
}

fn port(port: u16) -> Verdict {
    match TcpListener::bind(("0.0.0.0", port)) {
        Ok(_) => Verdict::Fine(format!("{port} is free")),
        Err(error) => failure(
            format!("{port}: {error}"),
            format!(
                "Another program has it (ss -ltnp 'sport = :{port}'), perhaps another cluster: stop it or give another port."
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firewalls_that_drop_are_named_with_the_rules_that_help() {
        let chain = |family, table: &str, name: &str, hook| FoundChain {
            family,
            table: table.into(),
            name: name.into(),
            hook,
            drops: true,
        };
        let docker = chain(Family::Ip, "filter", "FORWARD", Hook::Forward);
        assert!(
            matches!(judge_firewall(&[docker]), Verdict::Fine(_)),
            "the server sees to that one"
        );
        let Verdict::Warning { fix, .. } = judge_firewall(&[chain(Family::Inet, "hostfw", "input", Hook::Input)])
        else {
            panic!("nothing found");
        };
        assert!(
            fix.ends_with("nft insert rule inet hostfw input iifname \"kls*\" accept"),
            "{fix}"
        );
    }

    #[test]
    fn old_kernels_missing_controllers_and_full_disks_fail_with_a_fix() {
        assert!(matches!(judge_kernel("6.1.0-18-amd64"), Verdict::Fine(_)));
        assert!(matches!(judge_kernel("4.19.0"), Verdict::Failure { .. }));
        assert!(matches!(
            judge_controllers("v2", &["cpu", "memory", "pids", "cpuset", "io"]),
            Verdict::Fine(_)
        ));
        assert!(matches!(judge_controllers("v1", &["cpu"]), Verdict::Failure { .. }));
        assert!(matches!(judge_room(1 << 20, "/"), Verdict::Failure { .. }));
        assert!(matches!(judge_room(1 << 30, "/"), Verdict::Warning { .. }));
    }
}
