//! Logs of pods that are gone, for a while: so that what was written last can be read when somebody asks why.
//!
//! A pod's directory of logs is renamed into the attic when the pod goes, with the moment and its size before its name; nothing is copied, and
//! one list tells what is there. The oldest go when they are too old or all are too much, and everything goes when the node runs out of disk. Who may
//! read them the API server decides.

use crate::host::Host;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attic {
    /// On the file system that logs are on.
    pub directory: PathBuf,
    pub age: Duration,
    pub bytes: u64,
}

/// So many pods' logs at most, however small they are.
const MOST: usize = 4096;

impl Attic {
    /// Takes a directory of logs in.
    pub fn take(&self, host: &dyn Host, logs: &Path) -> io::Result<()> {
        let Some(name) = logs.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        match host.list_dir(logs) {
            Ok(containers) if !containers.is_empty() => {}
            Ok(_) => return host.remove_tree(logs),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
        let (now, bytes) = (host.now().as_millisecond(), host.disk_usage(logs)?.0);
        if bytes > self.bytes {
            // It would go at once, and with it all that is older.
            return host.remove_tree(logs);
        }
        host.make_dir(&self.directory, 0o700)?;
        host.rename(logs, &self.directory.join(format!("{now:013}_{bytes}_{name}")))?;
        self.tidy(host)
    }

    /// Lets go what is too old or too much.
    pub fn tidy(&self, host: &dyn Host) -> io::Result<()> {
        let oldest = host.now().as_millisecond() - i64::try_from(self.age.as_millis()).unwrap_or(i64::MAX);
        let mut left = self.bytes;
        for (nth, name) in self.newest_first(host)?.into_iter().enumerate() {
            let stays = Kept::of(&name).filter(|kept| kept.bytes <= left && kept.moment >= oldest && nth < MOST);
            // What is older than one that goes, goes too: nobody expects a gap.
            left = stays.as_ref().map_or(0, |kept| left - kept.bytes);
            if stays.is_none() {
                host.remove_tree(&self.directory.join(&name))?;
            }
        }
        Ok(())
    }

    pub fn clear(&self, host: &dyn Host) -> io::Result<()> {
        host.remove_tree(&self.directory)
    }

    /// The log of a container's last instance, or of the one before. `None`: it isn't here (any more).
    pub fn find(&self, host: &dyn Host, pod: &Gone, container: &str, previous: bool) -> io::Result<Option<PathBuf>> {
        let wanted = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        let is_it = |name: &String| Kept::of(name).is_some_and(|kept| kept.pod == wanted);
        let Some(name) = self.newest_first(host)?.into_iter().find(is_it) else {
            return Ok(None);
        };
        let directory = self.directory.join(name);
        // What is asked for is compared with what is there, and never made a path of.
        if !host.list_dir(&directory)?.iter().any(|there| there == container) {
            return Ok(None);
        }
        let directory = directory.join(container);
        let files = host.list_dir(&directory)?;
        let instance = |name: &String| name.strip_suffix(".log")?.parse::<u32>().ok();
        let mut instances: Vec<u32> = files.iter().filter_map(instance).collect();
        instances.sort_unstable();
        let found = instances.iter().rev().nth(usize::from(previous));
        Ok(found.map(|instance| directory.join(format!("{instance}.log"))))
    }

    fn newest_first(&self, host: &dyn Host) -> io::Result<Vec<String>> {
        let mut names = match host.list_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }
}

/// Where no logs are kept any more: those that were kept go, and nothing else that may be there. `pod_logs` are those of pods that are.
pub fn abandon(host: &dyn Host, pod_logs: &Path) -> io::Result<()> {
    let directory = pod_logs.with_file_name("deleted");
    let names = match host.list_dir(&directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    let is_ours = |name: &&String| name.find('_') == Some(13) && Kept::of(name).is_some();
    let ours: Vec<&String> = names.iter().filter(is_ours).collect();
    for name in &ours {
        host.remove_tree(&directory.join(name))?;
    }
    match !ours.is_empty() && ours.len() == names.len() {
        true => host.remove_dir(&directory),
        false => Ok(()),
    }
}

/// A pod that is gone.
pub struct Gone<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
}

/// What a name in the attic says.
struct Kept<'a> {
    moment: i64,
    bytes: u64,
    pod: &'a str,
}

impl Kept<'_> {
    fn of(name: &str) -> Option<Kept<'_>> {
        let mut parts = name.splitn(3, '_');
        Some(Kept {
            moment: parts.next()?.parse().ok()?,
            bytes: parts.next()?.parse().ok()?,
            pod: parts.next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Machine;
    use crate::host::fake::FakeHost;
    use jiff::Timestamp;

    const POD: Gone = Gone {
        namespace: "shop",
        name: "web",
        uid: "u",
    };

    fn attic(hours: u64, bytes: u64) -> Attic {
        Attic {
            directory: "/logs/deleted".into(),
            age: Duration::from_secs(hours * 3600),
            bytes,
        }
    }

    fn host() -> FakeHost {
        FakeHost::new(Machine::default(), Timestamp::from_second(1_700_000_000).unwrap())
    }

    fn pod(host: &FakeHost, name: &str, log: &[u8]) -> PathBuf {
        let logs = PathBuf::from(format!("/logs/pods/shop_{name}_u"));
        for file in ["c/0.log", "c/1.log", "c/10.log", "c/10.log.20260101-000000"] {
            let path = logs.join(file);
            host.make_dir(path.parent().unwrap(), 0o755).unwrap();
            host.write(&path, log, 0o600).unwrap();
        }
        logs
    }

    #[tokio::test]
    async fn the_last_log_of_a_pod_that_is_gone_is_found_and_nothing_else() {
        let (host, attic) = (host(), attic(24, 1 << 20));
        let logs = pod(&host, "web", b"last words");
        attic.take(&host, &logs).unwrap();
        assert!(host.list_dir(&logs).is_err());
        let find = |pod: &Gone, container, previous| attic.find(&host, pod, container, previous).unwrap();
        let found = find(&POD, "c", false).unwrap();
        assert!(found.ends_with("c/10.log"), "{found:?}");
        assert_eq!(host.read(&found, 100).unwrap(), b"last words");
        assert!(find(&POD, "c", true).unwrap().ends_with("c/1.log"));
        for container in ["d", "..", ".", "c/0.log", ""] {
            assert_eq!(find(&POD, container, false), None, "{container}");
        }
        for other in [
            Gone { uid: "other", ..POD },
            Gone { name: "we", ..POD },
            Gone { namespace: "..", ..POD },
        ] {
            assert_eq!(find(&other, "c", false), None);
        }
        attic.clear(&host).unwrap();
        assert_eq!(find(&POD, "c", false), None);
        attic.take(&host, Path::new("/logs/pods/never")).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_go_by_size_and_by_age() {
        let host = host();
        let attic = attic(24, 1000);
        for name in ["a", "b", "c"] {
            attic.take(&host, &pod(&host, name, &[b'x'; 100])).unwrap();
            tokio::time::advance(Duration::from_secs(3600)).await;
        }
        let left = host.list_dir(&attic.directory).unwrap();
        let names: Vec<_> = left.iter().map(|name| Kept::of(name).unwrap().pod).collect();
        assert_eq!(names, ["shop_b_u", "shop_c_u"]);
        tokio::time::advance(Duration::from_secs(22 * 3600 + 60)).await;
        attic.tidy(&host).unwrap();
        assert_eq!(host.list_dir(&attic.directory).unwrap().len(), 1);
        let large = pod(&host, "large", &[b'x'; 500]);
        attic.take(&host, &large).unwrap();
        assert!(host.list_dir(&large).is_err(), "more than all may have");
        assert_eq!(host.list_dir(&attic.directory).unwrap().len(), 1, "the others stay");
        let foreign = attic.directory.join("1_2_other");
        host.make_dir(&foreign, 0o755).unwrap();
        abandon(&host, Path::new("/logs/pods")).unwrap();
        assert_eq!(host.list_dir(&attic.directory).unwrap(), ["1_2_other"]);
        host.remove_tree(&foreign).unwrap();
        attic.take(&host, &pod(&host, "d", b"x")).unwrap();
        abandon(&host, Path::new("/logs/pods")).unwrap();
        assert!(host.list_dir(&attic.directory).is_err());
        abandon(&host, Path::new("/logs/pods")).unwrap();
    }
}
