//! Metrics in Prometheus' text format: the kubelet's own, with what is read when somebody asks. Pages of their own have what
//! containers use ([`resource`], [`cadvisor`]), probes, and service levels.

pub mod cadvisor;
mod measured;
pub mod resource;
mod text;

use crate::kubelet::Kubelet;
use crate::pods;
use crate::volumes::Stats;
use crate::worker::Stage;
use keelson_cri::v1 as cri;
use std::collections::BTreeMap;
use text::Text;

pub use measured::Unmeasured;

/// What claims' volumes hold, in upstream's order: name, help and where it stands.
type Held = (&'static str, &'static str, fn(&Stats) -> u64);
const HELD: [Held; 6] = [
    ("available_bytes", "Number of available bytes in the volume", |s| {
        s.fs.available
    }),
    ("capacity_bytes", "Capacity in bytes of the volume", |s| s.fs.capacity),
    ("inodes", "Maximum number of inodes in the volume", |s| s.fs.inodes),
    ("inodes_free", "Number of free inodes in the volume", |s| {
        s.fs.inodes_free
    }),
    ("inodes_used", "Number of used inodes in the volume", |s| s.inodes_used),
    ("used_bytes", "Number of used bytes in the volume", |s| s.used),
];

async fn volumes(kl: &Kubelet, out: &mut Text) {
    let mut claims: BTreeMap<(String, String), Stats> = BTreeMap::new();
    let measured = futures::future::join_all(kl.workers.all().into_iter().map(|h| async move {
        let pod = h.pod();
        (pods::namespace(&pod).to_owned(), kl.volumes.stats(&h.uid).await)
    }));
    for (namespace, held) in measured.await {
        for (mounted, stats) in held.into_values() {
            if let Some(claim) = mounted.claim {
                claims.insert((namespace.clone(), claim), stats);
            }
        }
    }
    count(kl, out);
    for (name, help, value) in HELD.iter().filter(|_| !claims.is_empty()) {
        let name = format!("kubelet_volume_stats_{name}");
        out.family(&name, help, false);
        for ((namespace, claim), stats) in &claims {
            let labels = [("namespace", namespace.as_str()), ("persistentvolumeclaim", claim)];
            out.sample(&name, &labels, value(stats) as f64, None);
        }
    }
}

/// Volumes that pods want here, and those that are there.
fn count(kl: &Kubelet, out: &mut Text) {
    let all: Vec<_> = kl.workers.all().iter().map(|h| h.desired()).collect();
    let (actual, desired) = kl.volumes.counts(all.iter().map(|d| (&*d.pod, !d.removed)));
    let name = "volume_manager_total_volumes";
    out.family(name, "Number of volumes in Volume Manager", false);
    for (state, counts) in [("actual_state_of_world", actual), ("desired_state_of_world", desired)] {
        for (plugin, count) in counts {
            out.sample(name, &[("plugin_name", &plugin), ("state", state)], count as f64, None);
        }
    }
}

/// The kubelet's own.
pub async fn kubelet(kl: &Kubelet) -> String {
    let mut out = Text::default();
    out.append(&kl.metrics.text());
    if let Some(telling) = &kl.cfg.telling {
        out.append(&telling.measures.page());
    }
    node(kl, &mut out);
    pods_of(kl, &mut out);
    if let Err(e) = runtime(kl, &mut out).await {
        tracing::warn!("what the runtime runs can't be counted: {}", crate::rpc_text(&e));
    }
    volumes(kl, &mut out).await;
    process(&mut out, |_| true);
    out.into_string()
}

fn node(kl: &Kubelet, out: &mut Text) {
    let (name, version) = (kl.cfg.node_name.as_str(), crate::node::status::VERSION);
    let help = "The node's name. The count is always 1.";
    out.gauge("kubelet_node_name", help, &[("node", name)], 1.0);
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or(""), numbers.next().unwrap_or(""));
    let platform = format!("linux/{}", crate::host::machine::architecture());
    let labels = [
        ("build_date", ""),
        ("compiler", ""),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("git_version", version),
        ("go_version", ""),
        ("major", major),
        ("minor", minor),
        ("platform", &platform),
    ];
    let help = "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build \
                date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";
    out.gauge("kubernetes_build_info", help, &labels, 1.0);
    let cgroups = if kl.host.unified_cgroups() { 2.0 } else { 1.0 };
    out.gauge("kubelet_cgroup_version", "cgroup version on the hosts.", &[], cgroups);
    let help = "Metrics provider used by kubelet to collect container stats. Values can be 'cadvisor' and 'cri'";
    out.gauge("kubelet_metrics_provider", help, &[("provider", "cadvisor")], 1.0);
}

/// Pods by where they come from and how far they are, as upstream counts them.
fn pods_of(kl: &Kubelet, out: &mut Text) {
    let all = kl.workers.all();
    let (mut desired, mut active) = ([0.0; 2], [0.0; 2]);
    let (mut ephemeral, mut working) = (0, BTreeMap::new());
    for h in &all {
        let d = h.desired();
        let fixed = usize::from(pods::is_static(&d.pod));
        desired[fixed] += f64::from(!d.removed);
        active[fixed] += f64::from(matches!(h.stage(), Stage::Syncing | Stage::Terminating));
        ephemeral += pods::ephemeral_containers(&d.pod).len();
        let lifecycle = match h.stage() {
            Stage::Syncing => "sync",
            Stage::Terminating => "terminating",
            Stage::Terminated | Stage::Finished => "terminated",
        };
        let config = if d.removed { "orphan" } else { "desired" };
        *working.entry((config, lifecycle, fixed)).or_insert(0.0) += 1.0;
    }
    const STATIC: [&str; 2] = ["", "true"];
    for (name, help, counts) in [
        (
            "kubelet_desired_pods",
            "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.",
            desired,
        ),
        (
            "kubelet_active_pods",
            "The number of pods the kubelet considers active and which are being considered when admitting new pods. static \
             is true if the pod is not from the apiserver.",
            active,
        ),
    ] {
        out.family(name, help, false);
        for (fixed, count) in STATIC.iter().zip(counts) {
            out.sample(name, &[("static", fixed)], count, None);
        }
    }
    let help = "Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is desired, \
                orphaned, or runtime only (also orphaned), and whether the pod is static. An orphaned pod has been removed from \
                local configuration or force deleted in the API and consumes resources that are not otherwise visible.";
    out.family("kubelet_working_pods", help, false);
    for ((config, lifecycle, fixed), count) in working {
        let labels = [("config", config), ("lifecycle", lifecycle), ("static", STATIC[fixed])];
        out.sample("kubelet_working_pods", &labels, count, None);
    }
    let help = "The number of mirror pods the kubelet will try to create (one per admitted static pod)";
    out.gauge("kubelet_mirror_pods", help, &[], active[1]);
    let help = "Current number of ephemeral containers in pods managed by this kubelet.";
    out.gauge("kubelet_managed_ephemeral_containers", help, &[], ephemeral as f64);
}

async fn runtime(kl: &Kubelet, out: &mut Text) -> Result<(), tonic::Status> {
    let mut client = kl.cri.runtime.clone();
    let sandboxes = client
        .list_pod_sandbox(cri::ListPodSandboxRequest { filter: None })
        .await?;
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let ready = sandboxes.get_ref().items.iter().filter(|s| s.state == ready).count();
    let containers = client
        .list_containers(cri::ListContainersRequest { filter: None })
        .await?;
    let mut states: BTreeMap<&str, f64> = BTreeMap::new();
    for c in &containers.get_ref().containers {
        let state = match cri::ContainerState::try_from(c.state) {
            Ok(cri::ContainerState::ContainerCreated) => "created",
            Ok(cri::ContainerState::ContainerRunning) => "running",
            Ok(cri::ContainerState::ContainerExited) => "exited",
            _ => "unknown",
        };
        *states.entry(state).or_default() += 1.0;
    }
    let help = "Number of pods that have a running pod sandbox";
    out.gauge("kubelet_running_pods", help, &[], ready as f64);
    out.family(
        "kubelet_running_containers",
        "Number of containers currently running",
        false,
    );
    for (state, count) in states {
        out.sample("kubelet_running_containers", &[("container_state", state)], count, None);
    }
    Ok(())
}

/// Of the program that this kubelet is a part of.
fn process(out: &mut Text, wanted: fn(&str) -> bool) {
    let own = match keelson_sys::own::own() {
        Ok(own) => own,
        Err(e) => return tracing::warn!("what this program uses can't be read: {e}"),
    };
    for (name, help, counter, value) in own.series().into_iter().filter(|(name, ..)| wanted(name)) {
        out.family(name, help, counter);
        out.sample(name, &[], value, None);
    }
}

/// What is counted of probes.
pub fn probes(kl: &Kubelet) -> String {
    let mut out = Text::default();
    out.append(&kl.metrics.probes_text());
    process(&mut out, |name| name == "process_start_time_seconds");
    out.into_string()
}

/// Service levels: the health checks that `/healthz` has.
pub fn slis() -> String {
    let mut out = Text::default();
    let name = "kubernetes_healthcheck";
    out.family(
        name,
        "[STABLE] This metric records the result of a single healthcheck.",
        false,
    );
    out.sample(name, &[("name", "ping"), ("type", "healthz")], 1.0, None);
    out.into_string()
}
