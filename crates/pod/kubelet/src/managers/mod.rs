//! The managers of what is given to containers alone: CPUs ([`cpus`]), memory of certain nodes ([`memory`]), and devices of plug-ins
//! ([`crate::devices`]), which [`topology`] brings together, so that they are near each other. They are asked when a pod is admitted, and upstream's rules,
//! words and files are theirs. What decides is pure; the kernel's own account of the machine is read by [`machine`].

pub mod cpus;
pub mod machine;
pub mod memory;
mod reconcile;
pub mod set;
pub(crate) mod sum;
pub mod topology;

use crate::config::Config;
use crate::devices::{Devices, Giving};
use crate::host::Host;
use crate::metrics::Metrics;
use crate::node;
use crate::pods;
use crate::resources::admit::{Rejection, refused, unexpected};
use cpus::Cpus;
use cpus::policy::Refusal;
use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::v1 as cri;
use memory::Memory;
use std::sync::Arc;
use std::time::Instant;
use topology::{Hint, Hints, Mask, Options, Policy, Scope, merge};

pub use reconcile::start;

pub struct Managers {
    pub cpus: Cpus,
    pub memory: Memory,
    metrics: Arc<Metrics>,
    nodes: topology::Nodes,
    policy: Policy,
    scope: Scope,
    options: Options,
    /// What is found for one pod must not be given to another before.
    one: tokio::sync::Mutex<()>,
}

impl Managers {
    pub fn new(host: &Arc<dyn Host>, metrics: &Arc<Metrics>, cfg: &Config) -> Result<Managers, String> {
        let needed = cfg.static_cpus || cfg.static_memory || cfg.topology != Policy::None;
        let nodes = match needed {
            true => host
                .memory_nodes()
                .map_err(|e| format!("where this machine's CPUs and memory are can't be read: {e}"))?,
            // What nobody needs to know keeps no kubelet from starting.
            false => machine::Nodes::default(),
        };
        let options = Options::parse(&cfg.topology_options)?;
        if cfg.topology != Policy::None && nodes.0.len() > options.most {
            return Err(format!(
                "unsupported on machines with more than {} NUMA Nodes",
                options.most
            ));
        }
        if cfg.topology != Policy::None {
            for scope in ["container", "pod"] {
                metrics.managers.aligned.with_label_values(&[scope, "numa_node"]);
                metrics.managers.unaligned.with_label_values(&[scope, "numa_node"]);
            }
        }
        let reserved = node::status::reserved(cfg, "cpu");
        Ok(Managers {
            cpus: Cpus::new(host.clone(), metrics.clone(), &nodes, cfg, reserved)?,
            memory: Memory::new(host.clone(), metrics.clone(), &nodes, cfg)
                .map_err(|e| format!("start memory manager error: {e}"))?,
            metrics: metrics.clone(),
            nodes: nodes.of_memory(),
            policy: cfg.topology,
            scope: cfg.topology_scope,
            options,
            one: tokio::sync::Mutex::default(),
        })
    }

    /// Gives a pod what its containers are to have alone.
    pub async fn admit(&self, devices: &Devices, pod: &Pod) -> Result<(), Rejection> {
        let m = &self.metrics.managers;
        m.topology_requests.inc();
        let began = Instant::now();
        let busy = self.cpus.is_static() || self.memory.is_static() || self.policy != Policy::None;
        let _one = match busy {
            true => Some(self.one.lock().await),
            false => None,
        };
        let mut giving = devices.giving(pod);
        let admitted = self.give(&mut giving, pod).await;
        let done = admitted.and_then(|()| giving.done().map_err(allocation));
        if done.is_err() && self.policy != Policy::None {
            m.topology_errors.inc();
        }
        m.topology_duration.observe(began.elapsed().as_secs_f64() * 1000.0);
        done
    }

    async fn give(&self, giving: &mut Giving<'_>, pod: &Pod) -> Result<(), Rejection> {
        let of_pod = match (self.policy, self.scope) {
            (Policy::None, _) | (_, Scope::Container) => None,
            (_, Scope::Pod) => {
                let hints = [
                    giving.pod_hints(&self.nodes.ids),
                    self.cpus.pod_hints(pod),
                    self.memory.pod_hints(pod),
                ];
                Some(self.agree(&hints, "pod")?)
            }
        };
        for c in pods::init_containers(pod).iter().chain(pods::containers(pod)) {
            let near = match (self.policy, of_pod) {
                (Policy::None, _) => Hint::UNSAID,
                (_, Some(hint)) => hint,
                (_, None) => {
                    let hints = [
                        giving.hints(c, &self.nodes.ids),
                        self.cpus.hints(pod, c),
                        self.memory.hints(pod, c),
                    ];
                    self.agree(&hints, "container")?
                }
            };
            giving.container(c, near.mask).await.map_err(allocation)?;
            self.cpus.give(pod, c, near.mask).map_err(|e| match e {
                Refusal::Alignment(text) => refused("SMTAlignmentError", text),
                Refusal::Other(text) => allocation(text),
            })?;
            self.memory.give(pod, c, near).map_err(allocation)?;
            if of_pod.is_none() {
                self.count_aligned("container");
            }
        }
        if of_pod.is_some() {
            self.count_aligned("pod");
        }
        Ok(())
    }

    /// From which nodes everything can be had together.
    fn agree(&self, hints: &[Hints], scope: &str) -> Result<Hint, Rejection> {
        let best = merge(self.policy, &self.nodes, self.options, hints);
        tracing::debug!(?hints, ?best, "nodes of memory are chosen");
        if self.policy.admits(best) {
            return Ok(best);
        }
        if self.policy == Policy::SingleNode {
            let m = &self.metrics.managers;
            m.unaligned.with_label_values(&[scope, "numa_node"]).inc();
        }
        Err(refused(
            "TopologyAffinityError",
            "Resources cannot be allocated with Topology locality",
        ))
    }

    fn count_aligned(&self, scope: &str) {
        if self.policy == Policy::SingleNode {
            let m = &self.metrics.managers;
            m.aligned.with_label_values(&[scope, "numa_node"]).inc();
        }
    }

    /// A pod that ran before, whose CPUs and memory may not be noted. What has ended for good needs none any more.
    pub fn take_up(&self, pod: &Pod) {
        let over = |c: &&Container| !pods::is_sidecar(c) && pods::has_ended(pod, &c.name);
        let init = pods::init_containers(pod).iter().filter(|c| !over(c));
        for c in init.chain(pods::containers(pod)) {
            let told = |what: &str, e: String| {
                tracing::error!(
                    pod = %pods::describe(pod),
                    container = c.name,
                    "a container that ran before can't be given {what} of its own, and shares: {e}"
                );
            };
            if let Err(e) = self.cpus.give(pod, c, None) {
                told("CPUs", format!("{e:?}"));
            }
            if let Err(e) = self.memory.give(pod, c, Hint::UNSAID) {
                told("memory", e);
            }
        }
    }

    /// A container has started: what those had that end before it is anybody's. Nothing has to have ended before one that looks at
    /// others.
    pub fn started(&self, pod: &Pod, container: &str) {
        let waits = !pods::ephemeral_containers(pod).iter().any(|c| c.name == container);
        let before = pods::init_containers(pod)
            .iter()
            .take_while(|c| waits && c.name != container);
        let over: Vec<&str> = before
            .filter(|c| !pods::is_sidecar(c))
            .map(|c| c.name.as_str())
            .collect();
        if !over.is_empty() {
            self.cpus.release(pods::uid(pod), &over);
            self.memory.release(pods::uid(pod), &over);
        }
        // Those of others may have changed while it was made.
        self.cpus.changed.notify_one();
    }

    /// What a pod had is free.
    pub fn release(&self, uid: &str) {
        self.keep_only(|other| other != uid);
    }

    /// What pods had that aren't here any more is free.
    pub fn keep_only(&self, is_here: impl Fn(&str) -> bool) {
        self.cpus.keep_only(&is_here);
        self.memory.keep_only(&is_here);
    }

    /// What of this a container that is being made has to be told.
    pub fn shape(&self, uid: &str, c: &Container, config: &mut cri::ContainerConfig) {
        let Some(resources) = config.linux.as_mut().and_then(|l| l.resources.as_mut()) else {
            return;
        };
        if let Some(nodes) = self.memory.nodes_of(uid, &c.name) {
            resources.cpuset_mems = nodes.to_string();
        }
        let Some(cpus) = self.cpus.of(uid, &c.name) else {
            return;
        };
        resources.cpuset_cpus = cpus.to_string();
        if self.cpus.exclusive(uid, &c.name).is_some() {
            // Its CPUs are its limit.
            resources.cpu_quota = -1;
        }
    }
}

fn allocation(error: String) -> Rejection {
    unexpected(&format!("Allocate failed due to {error}"))
}

/// By which nodes of memory something is, as managers of devices ask.
pub fn any(mask: Mask, nodes: &[i64]) -> bool {
    nodes.iter().any(|n| u32::try_from(*n).is_ok_and(|n| mask.has(n)))
}
