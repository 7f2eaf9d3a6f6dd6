//! Which thresholds are met, and which pod goes first. Pure.

use crate::config::Eviction;
use crate::host::FsStats;

/// In the order in which they are relieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    Disk,
    Inodes,
    Pids,
}

impl Signal {
    pub fn condition(self) -> &'static str {
        match self {
            Signal::Memory => "MemoryPressure",
            Signal::Disk | Signal::Inodes => "DiskPressure",
            Signal::Pids => "PIDPressure",
        }
    }

    /// Upstream's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Memory => "memory.available",
            Signal::Disk => "nodefs.available",
            Signal::Inodes => "nodefs.inodesFree",
            Signal::Pids => "pid.available",
        }
    }

    pub fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::Disk => "ephemeral-storage",
            Signal::Inodes => "inodes",
            Signal::Pids => "pids",
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub memory_available: u64,
    pub fs: FsStats,
    pub pids: u64,
    pub max_pids: u64,
}

pub fn met(s: &Sample, t: &Eviction) -> Vec<Signal> {
    let below = |available: u64, capacity: u64, percent: u64| {
        capacity > 0 && (available as u128) * 100 < capacity as u128 * percent as u128
    };
    let mut list = Vec::new();
    if s.memory_available < t.memory_available {
        list.push(Signal::Memory);
    }
    if below(s.fs.available, s.fs.capacity, t.nodefs_available_percent) {
        list.push(Signal::Disk);
    }
    if below(s.fs.inodes_free, s.fs.inodes, t.nodefs_inodes_percent) {
        list.push(Signal::Inodes);
    }
    if below(s.max_pids.saturating_sub(s.pids), s.max_pids, t.pid_available_percent) {
        list.push(Signal::Pids);
    }
    list
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    pub used: u64,
    pub requested: u64,
    pub priority: i32,
    pub ending: bool,
}

/// First those that use more than they asked for, then the lower priority, then the greatest excess.
pub fn choose(mut candidates: Vec<Candidate>) -> Option<Candidate> {
    let excess = |c: &Candidate| i128::from(c.used) - i128::from(c.requested);
    candidates.sort_by(|a, b| {
        (excess(b) > 0)
            .cmp(&(excess(a) > 0))
            .then(a.priority.cmp(&b.priority))
            .then(excess(b).cmp(&excess(a)))
            .then(a.uid.cmp(&b.uid))
    });
    candidates.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(uid: &str, used: u64, requested: u64, priority: i32) -> Candidate {
        Candidate {
            uid: uid.into(),
            used,
            requested,
            priority,
            ending: false,
        }
    }

    #[test]
    fn the_greediest_of_least_priority_goes() {
        let list = vec![
            c("modest", 10, 20, -5),
            c("greedy", 50, 10, 0),
            c("important", 90, 10, 100),
            c("greedier", 60, 10, 0),
        ];
        assert_eq!(choose(list).unwrap().uid, "greedier");
        assert_eq!(choose(vec![]), None);
    }

    #[test]
    fn thresholds() {
        let t = Eviction::default();
        let good = Sample {
            memory_available: 1 << 30,
            fs: FsStats {
                free: 0,
                capacity: 100,
                available: 50,
                inodes: 100,
                inodes_free: 50,
            },
            pids: 10,
            max_pids: 1000,
        };
        assert!(met(&good, &t).is_empty());
        let bad = Sample {
            memory_available: 1 << 20,
            pids: 990,
            ..good
        };
        assert_eq!(met(&bad, &t), [Signal::Memory, Signal::Pids]);
    }
}
