//! Memory and huge pages that containers have from certain nodes of memory: the policy ([`policy`], pure) over what has been
//! given, which is on disk before a container starts ([`record`]).

pub mod policy;
mod record;
pub mod reserved;
#[cfg(test)]
mod tests;

use super::machine::Nodes;
use super::set::Set;
use super::topology::{Hint, Hints};
use crate::config::Config;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::pods;
use crate::resources::qos::Qos;
use crate::resources::{pod as amounts, qos, quantity};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use policy::{Amounts, Asked, Block, Given, HUGE, MEMORY, Reuse, Static};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The most that a state file may take.
const LONGEST: u64 = 16 << 20;

#[derive(Default)]
struct State {
    given: Given,
    /// What init containers of a pod had, while it is admitted.
    reuse: (String, Reuse),
}

pub struct Memory {
    host: Arc<dyn Host>,
    metrics: Arc<Metrics>,
    path: PathBuf,
    policy: Option<Static>,
    state: Mutex<State>,
}

impl Memory {
    /// Takes up what an earlier kubelet, or upstream's, has given.
    pub fn new(host: Arc<dyn Host>, metrics: Arc<Metrics>, nodes: &Nodes, cfg: &Config) -> Result<Memory, String> {
        let policy = match cfg.static_memory {
            false => None,
            true => Some(Static::new(nodes, &reserved::of(nodes, cfg)?)?),
        };
        let path = cfg.root_dir.join(record::FILE);
        let remove = |e: String| {
            let file = path.display();
            format!(
                "{e}, please drain this node and delete the memory manager checkpoint file \"{file}\" before restarting \
                 Kubelet"
            )
        };
        let before = match host.read(&path, LONGEST) {
            Ok(text) => {
                let read = record::read(name(policy.is_some()), &text);
                Some(read.map_err(|e| remove(format!("could not restore state from checkpoint: {e}")))?)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let mut given = before.clone().unwrap_or_default();
        if let Some(policy) = &policy {
            policy.check(&mut given).map_err(remove)?;
        }
        let memory = Memory {
            host,
            metrics,
            path,
            policy,
            state: Mutex::default(),
        };
        if before.as_ref() != Some(&given) {
            memory.save(&given)?;
        }
        memory.state.lock().given = given;
        Ok(memory)
    }

    pub fn is_static(&self) -> bool {
        self.policy.is_some()
    }

    /// What a container has from certain nodes.
    fn wanted(&self, pod: &Pod, c: &Container) -> Amounts {
        if self.policy.is_none() || amounts::pod_level(pod).is_some() || qos::class(pod) != Qos::Guaranteed {
            return Amounts::new();
        }
        let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        let of_memory = |name: &str| name == MEMORY || name.starts_with(HUGE);
        let found = requests.into_iter().flatten().filter(|(name, _)| of_memory(name));
        found
            .map(|(name, q)| (name.clone(), u64::try_from(quantity::value(q)).unwrap_or(0)))
            .collect()
    }

    /// What a pod has: what runs together, or more before that.
    fn wanted_by_pod(&self, pod: &Pod) -> Amounts {
        let (mut sidecars, mut most, mut main) = (Amounts::new(), Amounts::new(), Amounts::new());
        let add = |into: &mut Amounts, more: Amounts| {
            for (name, bytes) in more {
                let sum = into.entry(name).or_default();
                *sum = sum.saturating_add(bytes);
            }
        };
        for c in pods::init_containers(pod) {
            let more = self.wanted(pod, c);
            if pods::is_sidecar(c) {
                add(&mut sidecars, more);
                continue;
            }
            for (name, bytes) in more {
                let together = sidecars.get(&name).copied().unwrap_or(0).saturating_add(bytes);
                let most = most.entry(name).or_default();
                *most = together.max(*most);
            }
        }
        pods::containers(pod)
            .iter()
            .for_each(|c| add(&mut main, self.wanted(pod, c)));
        for (name, bytes) in &mut main {
            let long = bytes.saturating_add(sidecars.get(name).copied().unwrap_or(0));
            *bytes = long.max(most.get(name).copied().unwrap_or(0));
        }
        main
    }

    /// From which nodes of memory a container could get what it asks for.
    pub fn hints(&self, pod: &Pod, c: &Container) -> Hints {
        let state = self.state.lock();
        let had = state.given.of(pods::uid(pod), &c.name);
        self.hints_of(&state, pods::uid(pod), self.wanted(pod, c), had)
    }

    /// From which a pod could get all of its.
    pub fn pod_hints(&self, pod: &Pod) -> Hints {
        let state = self.state.lock();
        let uid = pods::uid(pod);
        let all = pods::init_containers(pod).iter().chain(pods::containers(pod));
        let had = all.filter_map(|c| state.given.of(uid, &c.name)).next();
        self.hints_of(&state, uid, self.wanted_by_pod(pod), had)
    }

    fn hints_of(&self, state: &State, uid: &str, wanted: Amounts, had: Option<&[Block]>) -> Hints {
        let Some(policy) = self.policy.as_ref().filter(|_| !wanted.is_empty()) else {
            return Hints::new();
        };
        if let Some(had) = had {
            let again = Static::hints_again(had, &wanted).unwrap_or_default();
            return again.into_iter().map(|(kind, list)| (kind, Some(list))).collect();
        }
        let found = policy.hints(&state.given, &state.reuse_of(uid), &wanted);
        // Where no node has so much nothing is said, and giving it fails.
        found.map_or_else(Hints::new, |list| {
            wanted.into_keys().map(|kind| (kind, Some(list.clone()))).collect()
        })
    }

    /// Gives a container what it asks for, from these nodes where that can be, and remembers it.
    pub fn give(&self, pod: &Pod, c: &Container, near: Hint) -> Result<(), String> {
        let amounts = self.wanted(pod, c);
        let Some(policy) = self.policy.as_ref().filter(|_| !amounts.is_empty()) else {
            return Ok(());
        };
        self.metrics.managers.memory_requests.inc();
        let mut state = self.state.lock();
        let uid = pods::uid(pod);
        let ends = |c: &&Container| !pods::is_sidecar(c);
        let init = pods::init_containers(pod);
        let asked = Asked {
            pod: uid,
            container: &c.name,
            passes_on: init.iter().filter(ends).any(|i| i.name == c.name),
            earlier: init
                .iter()
                .take_while(|i| i.name != c.name)
                .filter(ends)
                .map(|i| i.name.as_str())
                .collect(),
            amounts,
        };
        let (mut given, mut reuse) = (state.given.clone(), state.reuse_of(uid));
        let result = policy.give(&mut given, &mut reuse, &asked, near).and_then(|is_new| {
            // On disk first: whoever comes after knows what runs.
            if is_new { self.save(&given) } else { Ok(()) }
        });
        match &result {
            Ok(()) => {
                state.given = given;
                state.reuse = (uid.to_owned(), reuse);
            }
            Err(_) => self.metrics.managers.memory_errors.inc(),
        }
        result
    }

    /// These containers of a pod are over, and what they had is anybody's.
    pub fn release(&self, uid: &str, containers: &[&str]) {
        self.change(|policy, given| {
            containers.iter().for_each(|c| {
                policy.release(given, uid, c);
            });
        });
    }

    /// What pods had that aren't here any more is anybody's.
    pub fn keep_only(&self, is_here: impl Fn(&str) -> bool) {
        self.change(|policy, given| {
            let gone: Vec<(String, Vec<String>)> = given
                .blocks
                .iter()
                .filter(|(uid, _)| !is_here(uid))
                .map(|(uid, of)| (uid.clone(), of.keys().cloned().collect()))
                .collect();
            for (uid, container) in gone.iter().flat_map(|(uid, of)| of.iter().map(move |c| (uid, c))) {
                policy.release(given, uid, container);
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
            tracing::error!("which memory is given can't be written: {e}");
        }
        state.given = given;
    }

    fn save(&self, given: &Given) -> Result<(), String> {
        let text = record::write(name(self.policy.is_some()), given)?;
        let written = self.host.write_through(&self.path, text.as_bytes(), 0o600);
        written.map_err(|e| format!("{}: {e}", self.path.display()))
    }

    /// The nodes that a container has its memory from; `None`: from any.
    pub fn nodes_of(&self, uid: &str, container: &str) -> Option<Set> {
        let state = self.state.lock();
        let blocks = state.given.of(uid, container)?;
        Some(blocks.iter().flat_map(|b| b.numa_affinity.iter().copied()).collect()).filter(|set: &Set| !set.is_empty())
    }

    /// What a container has.
    pub fn blocks(&self, uid: &str, container: &str) -> Vec<Block> {
        self.state.lock().given.of(uid, container).unwrap_or_default().to_vec()
    }

    /// What containers may have at all.
    pub fn allocatable(&self) -> Vec<Block> {
        self.policy.as_ref().map(Static::allocatable).unwrap_or_default()
    }
}

impl State {
    fn reuse_of(&self, uid: &str) -> Reuse {
        match self.reuse.0 == uid {
            true => self.reuse.1.clone(),
            false => Reuse::new(),
        }
    }
}

fn name(is_static: bool) -> &'static str {
    if is_static { "Static" } else { "None" }
}
