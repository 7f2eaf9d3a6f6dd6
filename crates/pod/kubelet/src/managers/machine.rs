//! Nodes of memory with their CPUs, as the kernel tells of them below `/sys`.

use super::cpus::{Layout, Place, Places};
use super::set::Set;
use super::topology;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

/// One node: a part of the memory, and the CPUs that are near it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub id: u32,
    pub cpus: Places,
    /// Bytes.
    pub memory: u64,
    /// By size in KiB, how many pages there are.
    pub hugepages: BTreeMap<u64, u64>,
    /// How far it is from each, by the order of the nodes.
    pub distances: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(pub Vec<Node>);

impl Nodes {
    /// A machine of one node, each of whose CPUs is a core.
    pub fn plain(cpus: u32, memory: u64) -> Nodes {
        let place = |core| {
            (
                core,
                Place {
                    core,
                    ..Place::default()
                },
            )
        };
        Nodes(vec![Node {
            cpus: Places((0..cpus).map(place).collect()),
            memory,
            distances: vec![10],
            ..Node::default()
        }])
    }

    pub fn layout(&self) -> Layout {
        let all = self.0.iter().flat_map(|n| n.cpus.0.iter());
        Layout::of(Places(all.map(|(cpu, place)| (*cpu, *place)).collect()))
    }

    pub fn of_memory(&self) -> topology::Nodes {
        topology::Nodes {
            ids: self.0.iter().map(|n| n.id).collect(),
            distances: self.0.iter().map(|n| (n.id, n.distances.clone())).collect(),
        }
    }

    /// Reads what is below `/sys`. A kernel that knows no nodes has one.
    pub fn read(sys: &Path) -> io::Result<Nodes> {
        let cpus = sys.join("devices/system/cpu");
        let online = list(&text(&cpus.join("online"))?)?;
        let dir = sys.join("devices/system/node");
        let ids = match text(&dir.join("online")) {
            Ok(ids) => list(&ids)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Set::new(),
            Err(e) => return Err(e),
        };
        if ids.is_empty() {
            let node = Node {
                cpus: places(&cpus, &online, 0)?,
                distances: vec![10],
                ..Node::default()
            };
            return Ok(Nodes(vec![node]));
        }
        let node = |id: u32| {
            let dir = dir.join(format!("node{id}"));
            let near = list(&text(&dir.join("cpulist"))?)?.both(&online);
            Ok(Node {
                id,
                cpus: places(&cpus, &near, id)?,
                memory: memory(&text(&dir.join("meminfo"))?),
                hugepages: hugepages(&dir.join("hugepages"))?,
                distances: numbers(&text(&dir.join("distance"))?),
            })
        };
        ids.iter().map(node).collect::<io::Result<_>>().map(Nodes)
    }
}

fn text(path: &Path) -> io::Result<String> {
    let read = std::fs::read_to_string(path).map(|t| t.trim().to_owned());
    read.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn list(text: &str) -> io::Result<Set> {
    Set::parse(text).ok_or_else(|| io::Error::other(format!("{text:?} is no list of CPUs or nodes")))
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|n| n.parse().ok()).collect()
}

/// `Node 0 MemTotal: 123 kB`.
fn memory(text: &str) -> u64 {
    let line = text.lines().find(|l| l.contains("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().rev().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn hugepages(dir: &Path) -> io::Result<BTreeMap<u64, u64>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other?,
    };
    let mut all = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name
            .strip_prefix("hugepages-")
            .and_then(|s| s.strip_suffix("kB")?.parse().ok());
        if let Some(size) = size {
            let count = text(&entry.path().join("nr_hugepages"))?;
            all.insert(size, count.parse().unwrap_or(0));
        }
    }
    Ok(all)
}

/// Where these CPUs of a node are. What the kernel doesn't say of a CPU is its own.
fn places(cpus: &Path, near: &Set, numa: u32) -> io::Result<Places> {
    let mut all = BTreeMap::new();
    let mut cores = BTreeSet::new();
    for cpu in near.iter() {
        let dir = cpus.join(format!("cpu{cpu}"));
        let threads = text(&dir.join("topology/thread_siblings_list")).ok();
        let threads = threads.and_then(|t| Set::parse(&t)).map(|t| t.both(near));
        let core = threads.and_then(|t| t.iter().next()).unwrap_or(cpu);
        // A virtual machine may say -1.
        let socket = text(&dir.join("topology/physical_package_id")).ok();
        let socket = socket.and_then(|t| t.parse().ok()).unwrap_or(0);
        cores.insert(core);
        all.insert(
            cpu,
            Place {
                core,
                socket,
                numa,
                uncore: socket,
            },
        );
    }
    let threads = |core: u32| all.values().filter(|p| p.core == core).count();
    let whole: BTreeMap<u32, usize> = cores.iter().map(|c| (*c, cores.len() * threads(*c))).collect();
    for (cpu, place) in &mut all {
        let dir = cpus.join(format!("cpu{cpu}/cache"));
        if let Some(id) = uncore(&dir, whole[&place.core])? {
            place.uncore = id;
        }
    }
    Ok(Places(all))
}

/// The cache of the third level or above that isn't all of the node's.
fn uncore(dir: &Path, whole: usize) -> io::Result<Option<u32>> {
    for index in 0..16 {
        let dir = dir.join(format!("index{index}"));
        let level = match text(&dir.join("level")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let sharers = text(&dir.join("shared_cpu_list")).ok().and_then(|t| Set::parse(&t));
        let part = sharers.is_some_and(|s| s.len() != whole);
        if level.parse::<u32>().is_ok_and(|level| level > 2) && part {
            return Ok(text(&dir.join("id")).ok().and_then(|t| t.parse().ok()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Sys(std::path::PathBuf);

    impl Sys {
        fn new(name: &str) -> Sys {
            let dir = std::env::temp_dir().join(format!("keelson-sys-{name}-{}", std::process::id()));
            Sys(dir)
        }
        fn put(&self, path: &str, text: &str) {
            let path = self.0.join("devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
    }

    impl Drop for Sys {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// Two sockets of a node each, two cores of two threads on each, a cache for each core, and one CPU that is off.
    #[test]
    fn a_machine_is_read_as_the_kernel_tells_it() {
        let sys = Sys::new("two");
        sys.put("cpu/online", "0-6");
        sys.put("node/online", "0-1");
        for node in 0..2 {
            let first = node * 2;
            sys.put(
                &format!("node/node{node}/cpulist"),
                &format!("{first}-{},{}-{}", first + 1, first + 4, first + 5),
            );
            sys.put(
                &format!("node/node{node}/meminfo"),
                &format!("Node {node} MemTotal:       2048 kB\nNode {node} MemFree: 1 kB"),
            );
            sys.put(
                &format!("node/node{node}/distance"),
                if node == 0 { "10 21" } else { "21 10" },
            );
            sys.put(&format!("node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"), "3");
        }
        for cpu in 0..7 {
            let core = cpu % 4;
            sys.put(
                &format!("cpu/cpu{cpu}/topology/thread_siblings_list"),
                &format!("{core},{}", core + 4),
            );
            sys.put(
                &format!("cpu/cpu{cpu}/topology/physical_package_id"),
                &(core / 2).to_string(),
            );
            sys.put(&format!("cpu/cpu{cpu}/cache/index0/level"), "1");
            sys.put(&format!("cpu/cpu{cpu}/cache/index1/level"), "3");
            let sharers = match core {
                3 => "3".to_owned(),
                _ => format!("{core},{}", core + 4),
            };
            sys.put(&format!("cpu/cpu{cpu}/cache/index1/shared_cpu_list"), &sharers);
            sys.put(&format!("cpu/cpu{cpu}/cache/index1/id"), &(core + 7).to_string());
        }
        let nodes = Nodes::read(&sys.0).unwrap();
        let layout = nodes.layout();
        assert_eq!(
            (layout.cpus, layout.cores, layout.sockets, layout.numa, layout.uncores),
            (7, 4, 2, 2, 4)
        );
        let place = layout.places.0[&5];
        assert_eq!((place.core, place.socket, place.numa, place.uncore), (1, 0, 0, 8));
        assert_eq!(layout.places.0[&6].numa, 1);
        assert_eq!((nodes.0[1].memory, nodes.0[1].hugepages[&2048]), (2 << 20, 3));
        assert_eq!(nodes.of_memory().distances[&0], [10, 21]);
    }

    #[test]
    fn a_kernel_without_nodes_has_one() {
        let sys = Sys::new("one");
        sys.put("cpu/online", "0-1");
        let nodes = Nodes::read(&sys.0).unwrap();
        assert_eq!(nodes.layout(), Nodes::plain(2, 0).layout());
        assert!(Nodes::read(Path::new("/nonexistent")).is_err());
    }
}
