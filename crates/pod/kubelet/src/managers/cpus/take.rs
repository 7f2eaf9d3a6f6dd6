//! Which CPUs are taken for a container, so that they lie as close together as can be. Upstream's order; pure.

use super::layout::{Layout, Places};
use crate::managers::set::Set;

/// How what is left over is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Core after core.
    Packed,
    /// By numbers, so that they are on as many cores as can be.
    Spread,
}

pub fn not_enough(wanted: usize, there: usize) -> String {
    format!("not enough cpus available to satisfy request: requested={wanted}, available={there}")
}

/// Takes so many of the free CPUs: whole nodes and sockets first, then caches where that is wanted, then cores, then any.
pub fn packed(layout: &Layout, free: &Set, count: usize, order: Order, by_cache: bool) -> Result<Set, String> {
    let mut t = Taking::new(layout, free, count, order);
    if t.is_done() {
        return Ok(t.taken);
    }
    if count > t.free.0.len() {
        return Err(not_enough(count, free.len()));
    }
    t.take_whole_nodes_and_sockets();
    if by_cache && !t.is_done() {
        t.take_by_cache();
    }
    if order == Order::Packed && !t.is_done() {
        t.take_whole_cores();
    }
    if !t.is_done() {
        t.take_any();
    }
    match t.is_done() {
        true => Ok(t.taken),
        false => Err("failed to allocate cpus".into()),
    }
}

/// What is free, what has been taken, and how much is missing.
pub struct Taking<'a> {
    layout: &'a Layout,
    pub free: Places,
    order: Order,
    pub missing: usize,
    pub taken: Set,
}

impl<'a> Taking<'a> {
    pub fn new(layout: &'a Layout, free: &Set, count: usize, order: Order) -> Taking<'a> {
        Taking {
            layout,
            free: layout.places.keep(free),
            order,
            missing: count,
            taken: Set::new(),
        }
    }

    pub fn is_done(&self) -> bool {
        self.missing == 0
    }

    pub fn take(&mut self, cpus: &Set) {
        self.taken = self.taken.union(cpus);
        self.free.0.retain(|cpu, _| !cpus.contains(*cpu));
        self.missing = self.missing.saturating_sub(cpus.len());
    }

    /// Those with the fewest free CPUs first.
    fn sorted(&self, ids: Set, free: impl Fn(&Places, u32) -> Set) -> Vec<u32> {
        let mut ids: Vec<(usize, u32)> = ids.iter().map(|id| (free(&self.free, id).len(), id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether sockets are parts of nodes of memory, rather than nodes of sockets.
    fn numa_first(&self) -> bool {
        self.layout.sockets >= self.layout.numa
    }

    pub fn numa(&self) -> Vec<u32> {
        if self.numa_first() {
            return self.sorted(self.free.numa(), Places::in_numa);
        }
        let of = |socket| self.free.each_where(|p| p.socket == socket, |p| p.numa);
        let each = self.sockets().into_iter();
        each.flat_map(|s| self.sorted(of(s), Places::in_numa)).collect()
    }

    fn sockets(&self) -> Vec<u32> {
        if !self.numa_first() {
            return self.sorted(self.free.sockets(), Places::in_socket);
        }
        let of = |numa| self.free.each_where(|p| p.numa == numa, |p| p.socket);
        let each = self.numa().into_iter();
        each.flat_map(|n| self.sorted(of(n), Places::in_socket)).collect()
    }

    fn cores(&self) -> Vec<u32> {
        let sorted = |of: Set| self.sorted(of, Places::in_core);
        match self.numa_first() {
            true => {
                let of = |socket| self.free.each_where(|p| p.socket == socket, |p| p.core);
                self.sockets().into_iter().flat_map(|s| sorted(of(s))).collect()
            }
            false => {
                let of = |numa| self.free.each_where(|p| p.numa == numa, |p| p.core);
                self.numa().into_iter().flat_map(|n| sorted(of(n))).collect()
            }
        }
    }

    fn uncores(&self) -> Vec<u32> {
        let of = |numa| self.free.each_where(|p| p.numa == numa, |p| p.uncore);
        let each = self.numa().into_iter();
        each.flat_map(|n| self.sorted(of(n), Places::in_uncore)).collect()
    }

    fn any(&self) -> Vec<u32> {
        match self.order {
            Order::Packed => {
                let each = self.cores().into_iter();
                each.flat_map(|c| self.free.in_core(c).iter().collect::<Vec<_>>())
                    .collect()
            }
            Order::Spread => {
                let each = self.sockets().into_iter();
                each.flat_map(|s| self.free.in_socket(s).iter().collect::<Vec<_>>())
                    .collect()
            }
        }
    }

    /// Takes what is free as a whole, as long as it isn't too much.
    fn take_whole(&mut self, ids: Vec<u32>, all: impl Fn(&Places, u32) -> Set, size: Option<usize>) {
        let whole = |t: &Self, id: &u32| {
            let full = size.unwrap_or_else(|| all(&t.layout.places, *id).len());
            all(&t.free, *id).len() == full
        };
        let free: Vec<u32> = ids.into_iter().filter(|id| whole(self, id)).collect();
        for id in free {
            let cpus = all(&self.layout.places, id);
            if self.missing >= cpus.len() {
                self.take(&cpus);
            }
        }
    }

    fn take_whole_numa(&mut self) {
        self.take_whole(self.numa(), Places::in_numa, None);
    }

    fn take_whole_sockets(&mut self) {
        self.take_whole(self.sockets(), Places::in_socket, Some(self.layout.per_socket()));
    }

    fn take_whole_nodes_and_sockets(&mut self) {
        match self.numa_first() {
            true => self.take_whole_numa(),
            false => self.take_whole_sockets(),
        }
        if self.is_done() {
            return;
        }
        match self.numa_first() {
            true => self.take_whole_sockets(),
            false => self.take_whole_numa(),
        }
    }

    fn take_whole_cores(&mut self) {
        self.take_whole(self.cores(), Places::in_core, Some(self.layout.per_core()));
    }

    fn take_by_cache(&mut self) {
        for uncore in self.uncores() {
            if self.missing >= self.layout.per_uncore() {
                self.take_whole(self.uncores(), Places::in_uncore, None);
            }
            if self.is_done() {
                return;
            }
            self.take_within(uncore);
            if self.is_done() {
                return;
            }
        }
    }

    /// Takes all that is missing from one cache, or nothing.
    fn take_within(&mut self, uncore: u32) {
        let per_core = self.layout.per_core().max(1);
        let count = self.missing.div_ceil(per_core);
        let cores = self.free.each_where(|p| p.uncore == uncore, |p| p.core);
        let cores: Set = cores.iter().take(count).collect();
        let mut cpus = self.free.cpus_where(|p| cores.contains(p.core));
        if !self.missing.is_multiple_of(2) && per_core > 1 && cpus.len() > self.missing {
            cpus = cpus.iter().take(cpus.len() - 1).collect();
        }
        if cpus.len() == self.missing {
            self.take(&cpus);
        }
    }

    fn take_any(&mut self) {
        for cpu in self.any() {
            self.take(&Set::from_iter([cpu]));
            if self.is_done() {
                return;
            }
        }
    }
}
