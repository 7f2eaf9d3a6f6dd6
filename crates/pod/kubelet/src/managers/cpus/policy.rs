//! The static policy: containers that may have whole CPUs for themselves get them, all others share what is left. Upstream's
//! rules and words. Pure: what has been given is passed in and out.

use super::distribute::{Wish, across_numa};
use super::layout::Layout;
use super::options::Options;
use super::take::{Order, packed};
use crate::managers::set::Set;
use crate::managers::topology::{Hint, Mask};
use std::collections::BTreeMap;

/// Who has what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// What all others share.
    pub shared: Set,
    /// By pod and container.
    pub exclusive: BTreeMap<String, BTreeMap<String, Set>>,
}

impl Given {
    pub fn of(&self, pod: &str, container: &str) -> Option<&Set> {
        self.exclusive.get(pod)?.get(container)
    }

    /// All that containers have for themselves.
    pub fn taken(&self) -> Set {
        let all = self.exclusive.values().flat_map(BTreeMap::values);
        all.fold(Set::new(), |all, of| all.union(of))
    }
}

/// One container, as the policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub pod: &'a str,
    pub container: &'a str,
    /// It ends before the pod's others start: what it had is theirs then.
    pub passes_on: bool,
    /// How many CPUs it may have for itself; zero: it shares.
    pub count: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Whole cores are wanted, and this isn't one, or there are too few.
    Alignment(String),
    Other(String),
}

#[derive(Clone, Debug)]
pub struct Static {
    pub layout: Layout,
    pub options: Options,
    pub reserved: Set,
    /// The cores that anything is reserved of.
    reserved_cores: Set,
}

impl Static {
    /// So many CPUs are reserved, or exactly these.
    pub fn new(layout: Layout, options: Options, count: usize, reserved: Option<Set>) -> Result<Static, String> {
        let mut policy = Static {
            layout,
            options,
            reserved: Set::new(),
            reserved_cores: Set::new(),
        };
        let reserved = match reserved.filter(|r| !r.is_empty()) {
            Some(these) => these,
            None => policy.take(&policy.layout.places.cpus(), count).unwrap_or_default(),
        };
        if reserved.len() != count {
            return Err(format!(
                "[cpumanager] unable to reserve the required amount of CPUs (size of {reserved} did not equal {count})"
            ));
        }
        for cpu in reserved.iter() {
            let place = policy.layout.places.0.get(&cpu).ok_or_else(|| {
                format!(
                    "[cpumanager] unable to build the reserved physical CPUs from the reserved set: unknown CPU ID: {cpu}"
                )
            })?;
            let core = policy.layout.places.in_core(place.core);
            policy.reserved_cores = policy.reserved_cores.union(&core);
        }
        policy.reserved = reserved;
        Ok(policy)
    }

    /// What was given before has to be of this machine and these settings; nothing given is begun with.
    pub fn check(&self, given: &mut Given) -> Result<(), String> {
        let mut all = self.layout.places.cpus();
        if self.options.strict {
            all = all.minus(&self.reserved);
        }
        match (given.shared.is_empty(), given.exclusive.is_empty()) {
            (true, true) => {
                given.shared = all;
                return Ok(());
            }
            // Where what is reserved isn't shared all that is shared can be given: upstream's kubelet doesn't start again then.
            (true, false) if !self.options.strict => return Err("default cpuset cannot be empty".into()),
            _ => {}
        }
        let (reserved, shared) = (&self.reserved, &given.shared);
        let both = reserved.both(shared);
        if self.options.strict && !both.is_empty() {
            return Err(format!(
                "some of strictly reserved cpus: \"{both}\" are present in defaultCpuSet: \"{shared}\""
            ));
        }
        if !self.options.strict && both != *reserved {
            return Err(format!(
                "not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{shared}\""
            ));
        }
        for (pod, containers) in &given.exclusive {
            for (container, cpus) in containers {
                if !shared.both(cpus).is_empty() {
                    return Err(format!(
                        "pod: {pod}, container: {container} cpuset: \"{cpus}\" overlaps with default cpuset \"{shared}\""
                    ));
                }
            }
        }
        let known = shared.union(&given.taken());
        match known == all {
            true => Ok(()),
            false => Err(format!(
                "current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""
            )),
        }
    }

    /// What may be given at all.
    pub fn allocatable(&self) -> Set {
        self.layout.places.cpus().minus(&self.reserved)
    }

    /// What may be given now.
    pub fn available(&self, given: &Given) -> Set {
        given.shared.minus(&self.reserved)
    }

    /// Gives a container what it may have; true when that is news. `reuse` is what its pod's init containers had.
    pub fn give(&self, given: &mut Given, reuse: &mut Set, asked: Asked, near: Option<Mask>) -> Result<bool, Refusal> {
        if asked.count == 0 {
            return Ok(false);
        }
        let had = given.of(asked.pod, asked.container).cloned();
        let is_new = had.is_none();
        let cpus = match had {
            Some(had) => had,
            None => {
                self.aligned(given, asked.count)?;
                self.choose(given, reuse, asked.count, near).map_err(Refusal::Other)?
            }
        };
        *reuse = match asked.passes_on {
            true => reuse.union(&cpus),
            false => reuse.minus(&cpus),
        };
        if is_new {
            given.shared = given.shared.minus(&cpus);
            let of_pod = given.exclusive.entry(asked.pod.to_owned()).or_default();
            of_pod.insert(asked.container.to_owned(), cpus);
        }
        Ok(is_new)
    }

    fn aligned(&self, given: &Given, count: usize) -> Result<(), Refusal> {
        if !self.options.full_cores {
            return Ok(());
        }
        let per_core = self.layout.per_core();
        if !count.is_multiple_of(per_core.max(1)) {
            return Err(Refusal::Alignment(format!(
                "SMT Alignment Error: requested {count} cpus not multiple cpus per core = {per_core}"
            )));
        }
        let free = given.shared.minus(&self.reserved_cores).len();
        match count > free {
            false => Ok(()),
            true => Err(Refusal::Alignment(format!(
                "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {free}, requested CPUs = \
                 {count}, CPUs per core = {per_core}"
            ))),
        }
    }

    /// Near these nodes of memory first, then any.
    pub fn choose(&self, given: &Given, reuse: &Set, count: usize, near: Option<Mask>) -> Result<Set, String> {
        let free = self.available(given).union(reuse);
        let mut chosen = Set::new();
        if let Some(near) = near {
            let close = free.both(&self.near(near));
            chosen = self.take(&close, count.min(close.len()))?;
        }
        let rest = self.take(&free.minus(&chosen), count - chosen.len())?;
        Ok(chosen.union(&rest))
    }

    fn near(&self, nodes: Mask) -> Set {
        let places = &self.layout.places;
        match self.options.by_socket {
            true => {
                let nodes: Vec<u32> = nodes.nodes().collect();
                let sockets = places.sockets_of(&nodes);
                places.cpus_where(|p| sockets.contains(p.socket))
            }
            false => places.cpus_where(|p| nodes.has(p.numa)),
        }
    }

    fn take(&self, free: &Set, count: usize) -> Result<Set, String> {
        let order = match self.options.across_cores {
            true => Order::Spread,
            false => Order::Packed,
        };
        if !self.options.across_numa {
            return packed(&self.layout, free, count, order, self.options.by_cache);
        }
        let group = if self.options.full_cores {
            self.layout.per_core()
        } else {
            1
        };
        let wish = Wish {
            count,
            group,
            order,
            by_socket: self.options.by_socket,
        };
        across_numa(&self.layout, free, wish)
    }

    /// Takes back what a container had; what others of its pod have too stays theirs.
    pub fn release(&self, given: &mut Given, pod: &str, container: &str) -> bool {
        let Some(of_pod) = given.exclusive.get_mut(pod) else {
            return false;
        };
        let Some(cpus) = of_pod.remove(container) else {
            return false;
        };
        let others = of_pod.values().fold(Set::new(), |all, of| all.union(of));
        if of_pod.is_empty() {
            given.exclusive.remove(pod);
        }
        given.shared = given.shared.union(&cpus.minus(&others));
        true
    }

    /// From which nodes so many CPUs could be had; those of `must` are among them.
    pub fn hints(&self, free: &Set, must: &Set, count: usize) -> Vec<Hint> {
        let places = &self.layout.places;
        let numa = |cpus: &Set| -> Vec<u32> {
            let of = cpus.iter().filter_map(|cpu| places.0.get(&cpu));
            of.map(|p| p.numa).collect()
        };
        let nodes: Vec<u32> = places.numa().iter().collect();
        let (all, free, must) = (numa(&places.cpus()), numa(free), numa(must));
        let mut fewest = nodes.len();
        let mut hints = Vec::new();
        Mask::each(&nodes, &mut |mask| {
            let of = |list: &[u32]| list.iter().filter(|n| mask.has(**n)).count();
            if of(&all) >= count {
                fewest = fewest.min(mask.count());
            }
            if of(&must) == must.len() && must.len() + of(&free) >= count {
                hints.push(mask);
            }
        });
        let preferred =
            |mask: Mask| mask.count() == fewest || self.options.by_socket && self.is_of_few_sockets(mask, fewest);
        let hint = |mask: Mask| Hint {
            mask: Some(mask),
            preferred: preferred(mask),
        };
        hints.into_iter().map(hint).collect()
    }

    /// Whether nodes are of no more sockets than they have to be.
    fn is_of_few_sockets(&self, mask: Mask, fewest: usize) -> bool {
        let per_socket = self.layout.numa.checked_div(self.layout.sockets).unwrap_or(0);
        let nodes: Vec<u32> = mask.nodes().collect();
        per_socket > 0 && self.layout.places.sockets_of(&nodes).len() == fewest.div_ceil(per_socket)
    }
}
