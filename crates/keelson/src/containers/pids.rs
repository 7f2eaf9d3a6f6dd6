//! How many processes a container has: CRI tells that of pods only, the kernel of any group.

use keelson_sys::cgroup::Cgroups;

/// Of the group that the container's first process is in. `None`: it isn't there any more, or the kernel counts none.
pub fn of(cgroups: &Cgroups, first: i64) -> Option<u64> {
    let groups = std::fs::read_to_string(format!("/proc/{first}/cgroup")).ok()?;
    let directory = cgroups.dir("pids", group(&groups)?)?;
    let count = std::fs::read_to_string(directory.join("pids.current")).ok()?;
    count.trim().parse().ok()
}

/// A line is a number, controllers and the group. With version 1 the one that has `pids` counts, with version 2 there is one without any.
fn group(lines: &str) -> Option<&str> {
    let mut only = None;
    for line in lines.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        if controllers.split(',').any(|name| name == "pids") {
            return Some(group);
        }
        if controllers.is_empty() {
            only = Some(group);
        }
    }
    only
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_that_of_the_pids_controller_or_the_only_one() {
        assert_eq!(group("0::/kubepods/pod1/abc\n"), Some("/kubepods/pod1/abc"));
        let version_1 = "12:cpu,cpuacct:/other\n5:pids:/kubepods/pod1/a:b\n1:name=systemd:/x\n0::/y\n";
        assert_eq!(group(version_1), Some("/kubepods/pod1/a:b"));
        assert_eq!(group("12:cpu:/a\n"), None);
        assert_eq!(group("nonsense"), None);
    }

    #[test]
    fn this_process_is_counted_where_the_kernel_counts() {
        let Ok(cgroups) = Cgroups::detect() else { return };
        if let Some(count) = of(&cgroups, std::process::id().into()) {
            assert!(count >= 1, "{count}");
        }
        assert_eq!(of(&cgroups, i64::MAX), None);
    }
}
