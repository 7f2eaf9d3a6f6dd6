//! A pod as the scheduler sees it: read once, looked at often.

use crate::resources::{self, Resources};
use crate::spread::Spread;
use crate::term::Term;
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use keelson_client::labels::Labels;
use keelson_client::{ApiObject, ObjectKey};
use std::ops::Deref;
use std::sync::Arc;

/// A pod, and where it is. What doesn't depend on where stands in [`Facts`], so that to think of a pod on a node costs little.
#[derive(Clone, Debug)]
pub struct PodInfo {
    facts: Arc<Facts>,
    /// The node that was decided, before the API shows it.
    node: Option<Arc<str>>,
}

impl Deref for PodInfo {
    type Target = Facts;
    fn deref(&self) -> &Facts {
        &self.facts
    }
}

#[derive(Debug)]
pub struct Facts {
    pub pod: Arc<Pod>,
    pub key: ObjectKey,
    pub priority: i32,
    pub requests: Resources,
    /// Milli CPU and memory for scoring.
    pub assumed: (i64, i64),
    /// Most pods have none, and there are many pods.
    wishes: Option<Box<Wishes>>,
}

impl Deref for Facts {
    type Target = Wishes;
    fn deref(&self) -> &Wishes {
        self.wishes.as_deref().unwrap_or(&NO_WISHES)
    }
}

/// What few pods say.
#[derive(Debug)]
pub struct Wishes {
    pub ports: Vec<HostPort>,
    pub near: Terms,
    pub apart: Terms,
    /// How the pod says it is to be spread.
    pub spread: Spread,
    /// The claims the pod's volumes use, by name.
    pub claims: Vec<Claim>,
}

#[derive(Clone, Debug, Default)]
pub struct Terms {
    pub required: Vec<Arc<Term>>,
    /// With their weights.
    pub preferred: Vec<(Arc<Term>, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub name: String,
    /// Made for this pod, after it.
    pub is_ephemeral: bool,
}

static NO_LABELS: Labels = Labels::new();
static NO_WISHES: Wishes = Wishes {
    ports: Vec::new(),
    near: Terms::NONE,
    apart: Terms::NONE,
    spread: Spread::NONE,
    claims: Vec::new(),
};

impl Terms {
    const NONE: Terms = Terms {
        required: Vec::new(),
        preferred: Vec::new(),
    };
    fn is_empty(&self) -> bool {
        self.required.is_empty() && self.preferred.is_empty()
    }
}

impl Wishes {
    fn is_empty(&self) -> bool {
        let is_apart = self.near.is_empty() && self.apart.is_empty();
        is_apart && self.ports.is_empty() && self.claims.is_empty() && !self.spread.is_own
    }
}

impl PodInfo {
    pub fn of(pod: Arc<Pod>) -> PodInfo {
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let apart = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let terms = |required: Option<&Vec<PodAffinityTerm>>, preferred: Option<&Vec<WeightedPodAffinityTerm>>| {
            let term = |term: &PodAffinityTerm| Arc::new(Term::of(&pod, term));
            let preferred = preferred.into_iter().flatten();
            Terms {
                required: required.into_iter().flatten().map(term).collect(),
                preferred: preferred
                    .map(|w| (term(&w.pod_affinity_term), w.weight.into()))
                    .collect(),
            }
        };
        let wishes = Wishes {
            ports: host_ports(&pod),
            near: terms(
                near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
                near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            apart: terms(
                apart.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
                apart.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            spread: Spread::of(&pod),
            claims: claims(&pod),
        };
        let facts = Facts {
            key: pod.key(),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
            requests: resources::of_pod(&pod),
            assumed: resources::assumed(&pod),
            wishes: (!wishes.is_empty()).then(|| Box::new(wishes)),
            pod,
        };
        PodInfo {
            facts: Arc::new(facts),
            node: None,
        }
    }

    /// Where it runs, or is bound to run.
    pub fn node_name(&self) -> Option<&str> {
        let written = || self.pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty());
        self.node.as_deref().or_else(written)
    }
    /// The same pod on a node.
    pub fn on_node(&self, node: &str) -> PodInfo {
        PodInfo {
            facts: self.facts.clone(),
            node: Some(node.into()),
        }
    }
}

impl Facts {
    pub fn uid(&self) -> &str {
        self.pod.uid()
    }
    pub fn labels(&self) -> &Labels {
        self.pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS)
    }
    pub fn scheduler_name(&self) -> &str {
        let name = self.pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        name.filter(|n| !n.is_empty()).unwrap_or(crate::DEFAULT_NAME)
    }
    pub fn nominated_node(&self) -> Option<&str> {
        self.pod
            .status
            .as_ref()?
            .nominated_node_name
            .as_deref()
            .filter(|n| !n.is_empty())
    }
    pub fn is_deleting(&self) -> bool {
        self.pod.is_deleting()
    }
    pub fn gates(&self) -> impl Iterator<Item = &str> {
        let gates = self.pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref());
        gates.into_iter().flatten().map(|g| g.name.as_str())
    }
    pub fn has_terms(&self) -> bool {
        !self.near.is_empty() || !self.apart.is_empty()
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    let taken = ports.filter_map(|p| {
        let port = p.host_port.filter(|port| *port > 0)?;
        let ip = p
            .host_ip
            .clone()
            .filter(|ip| !ip.is_empty())
            .unwrap_or_else(|| "0.0.0.0".into());
        let protocol = p
            .protocol
            .clone()
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| "TCP".into());
        Some(HostPort { ip, protocol, port })
    });
    taken.collect()
}

fn claims(pod: &Pod) -> Vec<Claim> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let claims = volumes.into_iter().flatten().filter_map(|volume| {
        if let Some(source) = &volume.persistent_volume_claim {
            return Some(Claim {
                name: source.claim_name.clone(),
                is_ephemeral: false,
            });
        }
        let ephemeral = volume.ephemeral.is_some();
        ephemeral.then(|| Claim {
            name: format!("{}-{}", pod.name(), volume.name),
            is_ephemeral: true,
        })
    });
    claims.collect()
}
