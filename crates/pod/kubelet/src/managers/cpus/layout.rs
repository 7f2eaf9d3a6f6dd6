//! Where a machine's CPUs are: cores, caches, sockets, nodes of memory. Pure.

use crate::managers::set::Set;
use std::collections::BTreeMap;

/// Where one CPU is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub core: u32,
    pub socket: u32,
    pub numa: u32,
    /// The cache that it shares with other cores, but not with all of its node.
    pub uncore: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(pub BTreeMap<u32, Place>);

/// All CPUs, and how many there are of what they are parts of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub places: Places,
    pub cores: usize,
    pub sockets: usize,
    pub numa: usize,
    pub uncores: usize,
    /// How many CPUs there are.
    pub cpus: usize,
}

fn share(all: usize, of: usize) -> usize {
    all.checked_div(of).unwrap_or(0)
}

impl Layout {
    /// Counts what these CPUs are parts of.
    pub fn of(places: Places) -> Layout {
        Layout {
            cores: places.cores().len(),
            sockets: places.sockets().len(),
            numa: places.numa().len(),
            uncores: places.uncores().len(),
            cpus: places.0.len(),
            places,
        }
    }

    pub fn per_core(&self) -> usize {
        share(self.cpus, self.cores)
    }

    pub fn per_socket(&self) -> usize {
        share(self.cpus, self.sockets)
    }

    pub fn per_uncore(&self) -> usize {
        share(self.cpus, self.uncores)
    }

    /// Whether these CPUs share a cache.
    pub fn in_one_uncore(&self, cpus: &Set) -> bool {
        let places: Option<Vec<&Place>> = cpus.iter().map(|cpu| self.places.0.get(&cpu)).collect();
        cpus.len() <= 1 || places.is_some_and(|all| all.iter().all(|p| p.uncore == all[0].uncore))
    }
}

impl Places {
    pub fn keep(&self, cpus: &Set) -> Places {
        let kept = self.0.iter().filter(|(cpu, _)| cpus.contains(**cpu));
        Places(kept.map(|(cpu, place)| (*cpu, *place)).collect())
    }

    pub fn cpus(&self) -> Set {
        self.0.keys().copied().collect()
    }

    pub fn cores(&self) -> Set {
        self.0.values().map(|p| p.core).collect()
    }

    pub fn sockets(&self) -> Set {
        self.0.values().map(|p| p.socket).collect()
    }

    pub fn numa(&self) -> Set {
        self.0.values().map(|p| p.numa).collect()
    }

    pub fn uncores(&self) -> Set {
        self.0.values().map(|p| p.uncore).collect()
    }

    /// The CPUs whose place is such.
    pub fn cpus_where(&self, is: impl Fn(&Place) -> bool) -> Set {
        self.0.iter().filter(|(_, p)| is(p)).map(|(cpu, _)| *cpu).collect()
    }

    /// What the places are that are such.
    pub fn each_where(&self, is: impl Fn(&Place) -> bool, what: impl Fn(&Place) -> u32) -> Set {
        self.0.values().filter(|p| is(p)).map(what).collect()
    }

    pub fn in_numa(&self, id: u32) -> Set {
        self.cpus_where(|p| p.numa == id)
    }

    pub fn in_socket(&self, id: u32) -> Set {
        self.cpus_where(|p| p.socket == id)
    }

    pub fn in_core(&self, id: u32) -> Set {
        self.cpus_where(|p| p.core == id)
    }

    pub fn in_uncore(&self, id: u32) -> Set {
        self.cpus_where(|p| p.uncore == id)
    }

    pub fn sockets_of(&self, numa: &[u32]) -> Set {
        self.each_where(|p| numa.contains(&p.numa), |p| p.socket)
    }
}
