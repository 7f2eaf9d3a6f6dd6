//! CPUs that containers have for themselves: the policy ([`policy`], pure) over what has been given, which is on disk before a
//! container starts ([`record`]), and what everybody else runs on.

mod distribute;
mod layout;
mod options;
pub mod policy;
mod record;
#[cfg(test)]
mod tables;
mod take;

use super::machine::Nodes;
use super::set::Set;
use super::topology::{Hints, Mask};
use crate::config::Config;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::pods;
use crate::resources::qos::Qos;
use crate::resources::{pod as amounts, qos, quantity};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use policy::{Asked, Given, Refusal, Static};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Notify;

pub use layout::{Layout, Place, Places};
pub use options::Options;

/// The most that a state file may take.
const LONGEST: u64 = 16 << 20;
const RESOURCE: &str = "cpu";

#[derive(Default)]
struct State {
    given: Given,
    /// What init containers of a pod had, while it is admitted.
    reuse: (String, Set),
}

pub struct Cpus {
    host: Arc<dyn Host>,
    metrics: Arc<Metrics>,
    path: PathBuf,
    policy: Option<Static>,
    state: Mutex<State>,
    /// Somebody's CPUs are others than before.
    pub changed: Notify,
}

impl Cpus {
    /// Takes up what an earlier kubelet, or upstream's, has given. `reserved`: milli-CPUs that are kept from pods.
    pub fn new(
        host: Arc<dyn Host>,
        metrics: Arc<Metrics>,
        nodes: &Nodes,
        cfg: &Config,
        reserved: i64,
    ) -> Result<Cpus, String> {
        let policy = match cfg.static_cpus {
            false => None,
            true => Some(of_settings(nodes.layout(), cfg, reserved)?),
        };
        let path = cfg.root_dir.join(record::FILE);
        let (given, is_new) = match host.read(&path, LONGEST) {
            Ok(text) => {
                let read = record::read(name(policy.is_some()), &text);
                let wrong = |e| {
                    let file = path.display();
                    format!(
                        "could not restore state from checkpoint: {e}, please drain this node and delete the CPU manager checkpoint \
                         file \"{file}\" before restarting Kubelet"
                    )
                };
                (read.map_err(wrong)?, false)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => (Given::default(), true),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let mut given = given;
        let before = given.clone();
        if let Some(policy) = &policy {
            let file = path.display();
            policy.check(&mut given).map_err(|e| {
                format!("{e}; please drain this node and delete the CPU manager checkpoint file \"{file}\" before restarting Kubelet")
            })?;
        }
        let cpus = Cpus {
            host,
            metrics,
            path,
            policy,
            state: Mutex::default(),
            changed: Notify::new(),
        };
        if is_new || given != before {
            cpus.save(&given)?;
        }
        if cpus.policy.is_some() {
            let m = &cpus.metrics.managers;
            // They are there from the start, as upstream has it.
            m.aligned.with_label_values(&["container", "physical_cpu"]);
            m.aligned.with_label_values(&["container", "uncore_cache"]);
            m.unaligned.with_label_values(&["container", "physical_cpu"]);
        }
        cpus.count(&given);
        cpus.state.lock().given = given;
        Ok(cpus)
    }

    pub fn is_static(&self) -> bool {
        self.policy.is_some()
    }

    /// How many CPUs a container may have for itself.
    fn wanted(&self, pod: &Pod, c: &Container) -> usize {
        if self.policy.is_none() || amounts::pod_level(pod).is_some() || qos::class(pod) != Qos::Guaranteed {
            return 0;
        }
        let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        let milli = quantity::milli_of(requests, RESOURCE);
        match milli % 1000 {
            0 => usize::try_from(milli / 1000).unwrap_or(0),
            _ => 0,
        }
    }

    /// How many a pod may have: what runs together, or more before that.
    fn wanted_by_pod(&self, pod: &Pod) -> usize {
        let (mut sidecars, mut most) = (0, 0);
        for c in pods::init_containers(pod) {
            let count = self.wanted(pod, c);
            match pods::is_sidecar(c) {
                true => sidecars += count,
                false => most = most.max(sidecars + count),
            }
        }
        let main: usize = pods::containers(pod).iter().map(|c| self.wanted(pod, c)).sum();
        most.max(main + sidecars)
    }

    /// From which nodes of memory a container could get its CPUs.
    pub fn hints(&self, pod: &Pod, c: &Container) -> Hints {
        let (Some(policy), count) = (&self.policy, self.wanted(pod, c)) else {
            return Hints::new();
        };
        if count == 0 {
            return Hints::new();
        }
        let state = self.state.lock();
        let list = match state.given.of(pods::uid(pod), &c.name) {
            Some(had) if had.len() != count => Vec::new(),
            Some(had) => policy.hints(had, &Set::new(), count),
            None => policy.hints(&policy.available(&state.given), &state.reuse_of(pods::uid(pod)), count),
        };
        Hints::from([(RESOURCE.to_owned(), Some(list))])
    }

    /// From which a pod could get all of its.
    pub fn pod_hints(&self, pod: &Pod) -> Hints {
        let (Some(policy), count) = (&self.policy, self.wanted_by_pod(pod)) else {
            return Hints::new();
        };
        if count == 0 {
            return Hints::new();
        }
        let state = self.state.lock();
        let uid = pods::uid(pod);
        let (mut had, mut same) = (Set::new(), true);
        for c in pods::init_containers(pod).iter().chain(pods::containers(pod)) {
            if let Some(of) = state.given.of(uid, &c.name) {
                same &= of.len() == self.wanted(pod, c);
                had = had.union(of);
            }
        }
        let list = match (same, had.len() == count) {
            (false, _) => Vec::new(),
            (true, true) => policy.hints(&had, &Set::new(), count),
            (true, false) => {
                let must = state.reuse_of(uid).union(&had);
                policy.hints(&policy.available(&state.given), &must, count)
            }
        };
        Hints::from([(RESOURCE.to_owned(), Some(list))])
    }

    /// Gives a container the CPUs that it may have, near these nodes where that can be, and remembers them.
    pub fn give(&self, pod: &Pod, c: &Container, near: Option<Mask>) -> Result<(), Refusal> {
        let (Some(policy), count) = (&self.policy, self.wanted(pod, c)) else {
            return Ok(());
        };
        if count == 0 {
            return Ok(());
        }
        self.metrics.managers.cpu_requests.inc();
        let mut state = self.state.lock();
        let uid = pods::uid(pod);
        let asked = Asked {
            pod: uid,
            container: &c.name,
            passes_on: pods::init_containers(pod)
                .iter()
                .any(|i| i.name == c.name && !pods::is_sidecar(i)),
            count,
        };
        let (mut given, mut reuse) = (state.given.clone(), state.reuse_of(uid));
        let result = policy.give(&mut given, &mut reuse, asked, near).and_then(|is_new| {
            // On disk first: whoever comes after knows what runs.
            if is_new {
                self.save(&given).map_err(Refusal::Other)?;
                self.count_aligned(policy, given.of(uid, &c.name));
            }
            Ok(is_new)
        });
        let m = &self.metrics.managers;
        let by_core = ["container", "physical_cpu"];
        match result {
            Ok(is_new) => {
                if policy.options.full_cores {
                    m.aligned.with_label_values(&by_core).inc();
                }
                if is_new {
                    self.count(&given);
                    self.changed.notify_one();
                }
                state.given = given;
                state.reuse = (uid.to_owned(), reuse);
                Ok(())
            }
            Err(e) => {
                m.cpu_errors.inc();
                if policy.options.full_cores {
                    m.unaligned.with_label_values(&by_core).inc();
                }
                Err(e)
            }
        }
    }

    /// These containers of a pod are over: what they had, and no other of it has, is everybody's.
    pub fn release(&self, uid: &str, containers: &[&str]) {
        self.change(|policy, given| {
            for container in containers {
                policy.release(given, uid, container);
            }
        });
    }

    /// What pods had that aren't here any more, or of which nothing runs, is everybody's.
    pub fn keep_only(&self, is_here: impl Fn(&str) -> bool) {
        self.change(|policy, given| {
            let before = given.exclusive.clone();
            for (uid, containers) in before.iter().filter(|(uid, _)| !is_here(uid)) {
                for container in containers.keys() {
                    policy.release(given, uid, container);
                }
            }
        });
    }

    fn change(&self, change: impl FnOnce(&Static, &mut Given)) {
        let Some(policy) = &self.policy else { return };
        let mut state = self.state.lock();
        let mut given = state.given.clone();
        change(policy, &mut given);
        if given == state.given {
            return;
        }
        if let Err(e) = self.save(&given) {
            // Until the next start, which then finds too much given, and takes it back.
            tracing::error!("which CPUs are given can't be written: {e}");
        }
        self.count(&given);
        state.given = given;
        self.changed.notify_one();
    }

    fn save(&self, given: &Given) -> Result<(), String> {
        let text = record::write(name(self.policy.is_some()), given)?;
        let written = self.host.write_through(&self.path, text.as_bytes(), 0o600);
        written.map_err(|e| format!("{}: {e}", self.path.display()))
    }

    /// What a container has for itself.
    pub fn exclusive(&self, uid: &str, container: &str) -> Option<Set> {
        self.state.lock().given.of(uid, container).cloned()
    }

    pub fn has_exclusive(&self, uid: &str) -> bool {
        self.state.lock().given.exclusive.contains_key(uid)
    }

    /// What a container runs on; `None`: on any.
    pub fn of(&self, uid: &str, container: &str) -> Option<Set> {
        self.policy.as_ref()?;
        let state = self.state.lock();
        Some(state.given.of(uid, container).unwrap_or(&state.given.shared).clone())
    }

    /// What containers may have for themselves at all.
    pub fn allocatable(&self) -> Set {
        self.policy.as_ref().map(Static::allocatable).unwrap_or_default()
    }

    fn count(&self, given: &Given) {
        let Some(policy) = &self.policy else { return };
        let m = &self.metrics.managers;
        let taken = given.taken();
        m.cpu_shared.set((policy.available(given).len() * 1000) as f64);
        m.cpu_exclusive.set(taken.len() as f64);
        for numa in policy.layout.places.numa().iter() {
            let of_node = taken.both(&policy.layout.places.in_numa(numa)).len();
            m.cpu_by_node
                .with_label_values(&[&numa.to_string()])
                .set(of_node as f64);
        }
    }

    fn count_aligned(&self, policy: &Static, cpus: Option<&Set>) {
        if cpus.is_some_and(|cpus| policy.layout.in_one_uncore(cpus)) {
            let by_cache = ["container", "uncore_cache"];
            self.metrics.managers.aligned.with_label_values(&by_cache).inc();
        }
    }
}

impl State {
    fn reuse_of(&self, uid: &str) -> Set {
        match self.reuse.0 == uid {
            true => self.reuse.1.clone(),
            false => Set::new(),
        }
    }
}

fn name(is_static: bool) -> &'static str {
    if is_static { "static" } else { "none" }
}

fn of_settings(layout: Layout, cfg: &Config, reserved: i64) -> Result<Static, String> {
    if reserved <= 0 {
        return Err(
            "[cpumanager] the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero"
                .into(),
        );
    }
    let wrong = |e| format!("new static policy error: {e}");
    let options = Options::parse(&cfg.cpu_options, cfg.alpha_cpu_options).map_err(wrong)?;
    options.fit(&layout, cfg.topology).map_err(wrong)?;
    let these = cfg.reserved_cpus.as_ref().and_then(|(list, _)| Set::parse(list));
    let count = usize::try_from(reserved.saturating_add(999) / 1000).unwrap_or(usize::MAX);
    Static::new(layout, options, count, these).map_err(wrong)
}
