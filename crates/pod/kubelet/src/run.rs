//! Puts the kubelet together and runs it until it is told to stop.

use crate::act::images::{self, Images};
use crate::backoff::Backoff;
use crate::claims::Claims;
use crate::config::{Config, Swap};
use crate::devices::Devices;
use crate::host::real::RealHost;
use crate::host::{Host, Layout, Machine};
use crate::kubelet::Kubelet;
use crate::managers::{self, Managers};
use crate::metrics::Metrics;
use crate::node::{self, NodeState};
use crate::providers::Providers;
use crate::resources::cgroup::{self, CgroupLimits};
use crate::resources::memory_qos;
use crate::resources::qos::Qos;
use crate::resources::quantity::{self, ResourceList};
use crate::sources;
use crate::status::manager::StatusManager;
use crate::userns::UserNamespaces;
use crate::volumes::{Csi, CsiDrivers, Tools, Volumes};
use crate::worker::Workers;
use crate::{claims, devices, eviction, gc, pleg, plugins, server, shutdown};
use anyhow::Context;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_client::{Informer, InformerOptions, Recorder, Rest};
use keelson_cri::{CriClients, v1 as cri};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Runs the kubelet of this machine. Returns when `stop` fires; pods are left running.
pub async fn run(client: kube::Client, cri: CriClients, cfg: Config, stop: CancellationToken) -> anyhow::Result<()> {
    run_on(Arc::new(RealHost::new()), client, cri, cfg, stop).await
}

/// Runs a kubelet over any machine, real or fake.
pub async fn run_on(
    host: Arc<dyn Host>,
    client: kube::Client,
    cri: CriClients,
    cfg: Config,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    run_built(build(host, client, cri, cfg, stop).await?).await
}

/// Runs what was put together, until it is told to stop.
pub async fn run_built(kl: Arc<Kubelet>) -> anyhow::Result<()> {
    let stop = kl.stop.clone();
    let mirrors = Arc::new(sources::Mirrors::default());
    // What a start takes isn't kept for as long as the kubelet runs.
    Box::pin(server::start(&kl)).await?;
    server::pod_resources::start(&kl);
    let pods_api = server::pods_api::start(&kl);
    devices::start(&kl.devices);
    // Static pods and their containers' events don't wait for the API server: it may be one of them.
    sources::file::start(&kl, &mirrors).context("reading the static pods")?;
    tokio::spawn(pleg::run(kl.clone()));
    Box::pin(node::start(&kl)).await?;
    let synced = async {
        kl.services.synced().await;
        kl.classes.synced().await;
    };
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = synced => {}
    }
    let _pods = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        informer = sources::api::start(&kl, &mirrors) => informer,
    };
    pods_api.set();
    Workers::reset_classes(&kl);
    managers::start(&kl);
    tokio::spawn(pleg::end_orphans(kl.clone()));
    match Box::pin(gc::images::list(&kl)).await {
        Ok(images) => kl.images.pulled.take_up(crate::act::images::place(&kl), &images),
        Err(error) => tracing::error!(error, "images can't be listed: pulls that were cut off stay unfinished"),
    }
    shutdown::start(&kl);
    gc::start(&kl);
    eviction::start(&kl);
    tracing::info!(node = kl.cfg.node_name, "the kubelet runs");
    stop.cancelled().await;
    Ok(())
}

/// Puts a kubelet together: waits until its runtime answers.
pub async fn build(
    host: Arc<dyn Host>,
    client: kube::Client,
    cri: CriClients,
    cfg: Config,
    stop: CancellationToken,
) -> anyhow::Result<Arc<Kubelet>> {
    let machine = host.machine().context("reading the facts of this machine")?;
    let layout = Layout {
        root: cfg.root_dir.clone(),
        logs: cfg.pod_logs_dir.clone(),
    };
    for dir in [&layout.root, &layout.pods(), &layout.logs] {
        host.make_dir(dir, 0o755)
            .with_context(|| format!("making the directory {}", dir.display()))?;
    }
    let metrics = cfg
        .company
        .as_ref()
        .map_or_else(|| Arc::new(Metrics::default()), |c| c.metrics.clone());
    let counting = metrics.clone();
    let cri = cri
        .bounded(cfg.runtime_request_timeout)
        .observed(Arc::new(move |name, took, good| counting.operation(name, took, good)));
    let version = ask_version(&cri, &stop).await?;
    let fs = host
        .fs_stats(&layout.root)
        .with_context(|| format!("measuring {}", layout.root.display()))?;
    let capacity = node::status::capacity(&machine, &fs, &cfg);
    if let Some(why) = node::status::too_much_reserved(&machine, &capacity, &cfg) {
        anyhow::bail!(why);
    }
    let allocatable = node::status::allocatable(&capacity, &cfg);
    judge(&*host, &machine, &cfg)?;
    if !cfg.eviction.guards_memory() && cfg.company.is_none() {
        tracing::warn!(
            "the thresholds of evictionHard name no memory.available: no pod is evicted when memory runs out, and the kernel ends \
             processes instead"
        );
    }
    let roots = root_cgroups(&machine, &cfg, &capacity, &allocatable);
    make_root_cgroups(&host, roots, &stop);
    let limited = cgroup::Limited::ask(&*host, &cfg.cgroup_root);
    judge_kernel(limited, &cfg)?;
    enforce_reserved(&*host, &cfg)?;
    let managers = Managers::new(&host, &metrics, &cfg).map_err(anyhow::Error::msg)?;
    let userns = UserNamespaces::new(&*host, &layout, &cfg).map_err(anyhow::Error::msg)?;
    let unpaced = Rest::new(client, "kubelet");
    let unpaced = match &cfg.telling {
        Some(telling) => unpaced.telling(telling),
        None => unpaced,
    };
    let unpaced = match &cfg.company {
        Some(company) => unpaced.together(company.together.clone()),
        None => unpaced,
    };
    // Events have a rate of their own; the node's lease and status, and reviews of who comes, have none.
    let rest = unpaced.clone().paced(cfg.api_rate.pace(API_RATE));
    let workers: Arc<Workers> = Arc::default();
    let wake: Arc<dyn Fn(&str) + Send + Sync> = {
        let workers = workers.clone();
        Arc::new(move |uid: &str| workers.wake(uid))
    };
    let recorder = Recorder::start(
        &unpaced.clone().paced(cfg.event_rate.pace(EVENT_RATE)),
        "kubelet",
        &cfg.node_name,
        &stop,
    );
    let node = NodeState::new(capacity, allocatable);
    let tools = Arc::new(Tools::new(
        host.clone(),
        layout.clone(),
        rest.clone(),
        recorder.clone(),
        wake,
        stop.clone(),
    ));
    let changed = node.changed.clone();
    let csi = Csi::new(
        tools.clone(),
        cfg.node_name.clone(),
        cfg.known_as.clone(),
        Box::new(move || changed.notify_one()),
        stop.clone(),
    );
    let devices = Devices::new(
        host.clone(),
        layout.clone(),
        tools.wake.clone(),
        node.changed.clone(),
        stop.clone(),
    )
    .map_err(anyhow::Error::msg)?;
    let claims = Claims::new(
        host.clone(),
        &layout,
        &cfg.node_name,
        rest.clone(),
        tools.wake.clone(),
        stop.clone(),
    )
    .context("reading which claims have devices here")?;
    let types: [Arc<dyn plugins::Kind>; 3] = [
        Arc::new(CsiDrivers(csi.clone())),
        Arc::new(devices::Registry(devices.clone())),
        Arc::new(claims::Registry(claims.clone())),
    ];
    Ok(Arc::new(Kubelet {
        pages: crate::server::routes::pages(cfg.flags.clone()),
        providers: Providers::new(cfg.credential_providers.as_ref(), tools.clone(), &metrics),
        volumes: Volumes::new(tools, csi, stop.clone(), metrics.storage.clone()),
        devices,
        managers,
        claims,
        plugins: Arc::new(types),
        recorder,
        status: StatusManager::new(rest.clone(), metrics.status_sync.clone(), stop.clone()),
        services: Informer::start(&rest, InformerOptions::default(), &stop),
        classes: Informer::start(&rest, InformerOptions::default(), &stop),
        node,
        shutdown: Default::default(),
        crash: Mutex::new(Backoff::new(Duration::from_secs(10), cfg.crash_backoff_max)),
        images: Images::new(parallel_pulls(&cfg), cfg.pull_rate.pace(PULL_RATE)),
        image_gc: Default::default(),
        probes: Default::default(),
        userns,
        admission: Default::default(),
        runtime_events: Default::default(),
        metrics,
        rates: Default::default(),
        unmeasured: Default::default(),
        limited,
        known_disks: Default::default(),
        started: host.now(),
        runtime_name: version.runtime_name,
        runtime_version: version.runtime_version,
        host,
        machine,
        layout,
        cri,
        rest,
        unpaced,
        workers,
        cfg,
        stop,
    }))
}

/// Upstream's rates, a second and at once, beside a part that is said.
const API_RATE: (u32, u32) = (50, 100);
const EVENT_RATE: (u32, u32) = (50, 100);
const PULL_RATE: (u32, u32) = (5, 10);

/// The runtime may be starting at the same time.
async fn ask_version(cri: &CriClients, stop: &CancellationToken) -> anyhow::Result<cri::VersionResponse> {
    let mut delay = Duration::from_millis(100);
    for attempt in 1.. {
        match cri
            .runtime
            .clone()
            .version(cri::VersionRequest {
                version: "0.1.0".into(),
            })
            .await
        {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(e) if attempt >= 20 => {
                anyhow::bail!(
                    "the container runtime does not answer: {}. Is it running, and is its endpoint right?",
                    e.message()
                );
            }
            Err(e) => tracing::info!("waiting for the container runtime: {}", e.message()),
        }
        tokio::select! {
            () = stop.cancelled() => anyhow::bail!("stopped before the container runtime answered"),
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(Duration::from_secs(5));
    }
    unreachable!("the loop only ends by returning")
}

/// How many images are pulled at the same time.
fn parallel_pulls(cfg: &Config) -> usize {
    match (cfg.serialize_pulls, cfg.parallel_pulls) {
        (Some(true), _) => 1,
        (_, Some(n)) => n,
        (Some(false), None) => tokio::sync::Semaphore::MAX_PERMITS,
        (None, None) => images::PARALLEL,
    }
}

/// What `memoryThrottlingFactor` was where nobody set it.
const ONCE_USUAL: f64 = 0.9;

/// Whether memory is to be kept or throttled. Settings that were written down when upstream had a default have it in them, and
/// mean nothing by it.
fn wants_memory_qos(cfg: &Config) -> bool {
    let is_wish = |factor: f64| (factor - ONCE_USUAL).abs() > f64::EPSILON;
    cfg.memory_tiers || cfg.memory_throttling.is_some_and(is_wish)
}

/// A machine that isn't as the settings want it is refused.
fn judge(host: &dyn Host, machine: &Machine, cfg: &Config) -> anyhow::Result<()> {
    if cfg.fail_swap_on && machine.swap > 0 {
        anyhow::bail!("running with swap on is not supported, please disable swap or set --fail-swap-on flag to false");
    }
    if cfg.fail_cgroup_v1 && !host.unified_cgroups() {
        anyhow::bail!(
            "kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is unsupported and will be removed in a \
             future release"
        );
    }
    if cfg.swap == Swap::Limited && !host.unified_cgroups() {
        anyhow::bail!("swap feature is enabled and LimitedSwap but it is only supported with cgroupv2");
    }
    if wants_memory_qos(cfg) && !host.unified_cgroups() {
        anyhow::bail!(
            "invalid configuration: memoryThrottlingFactor and memoryReservationPolicy must not be set when using cgroup v1, which has \
             no memory.high, memory.low and memory.min"
        );
    }
    if cfg.single_process_oom_kill == Some(false) && !host.unified_cgroups() {
        anyhow::bail!(
            "invalid configuration: singleProcessOOMKill must not be explicitly set to false when using cgroup v1"
        );
    }
    Ok(())
}

/// So is a kernel that can't do what they want.
fn judge_kernel(limited: cgroup::Limited, cfg: &Config) -> anyhow::Result<()> {
    if cfg.swap == Swap::Limited && !limited.swap {
        anyhow::bail!(
            "memorySwap.swapBehavior is LimitedSwap, but the kernel doesn't limit swap: the cgroup of pods has no memory.swap.max"
        );
    }
    if wants_memory_qos(cfg) && !limited.memory_qos {
        anyhow::bail!(
            "memoryThrottlingFactor or memoryReservationPolicy is set, but the kernel keeps no memory: the cgroup of pods has no \
             memory.min, memory.low and memory.high"
        );
    }
    Ok(())
}

/// Holds the machine's own services and the node's to what is reserved for them, where that is wanted. Their cgroups are
/// made by whoever starts them.
fn enforce_reserved(host: &dyn Host, cfg: &Config) -> anyhow::Result<()> {
    for (kind, what, group, list) in [
        (
            "system-reserved",
            "System",
            &cfg.system_reserved_cgroup,
            &cfg.system_reserved,
        ),
        ("kube-reserved", "Kube", &cfg.kube_reserved_cgroup, &cfg.kube_reserved),
    ] {
        let whole = cfg.enforce.contains(kind);
        if !whole && !cfg.enforce.contains(&format!("{kind}-compressible")) {
            continue;
        }
        let amount = |name: &str| list.get(name).map(|t| Quantity(t.clone()));
        let bytes = amount("memory").map(|q| quantity::value(&q));
        let limits = CgroupLimits {
            cpu_shares: amount("cpu").map(|q| cgroup::shares(quantity::milli(&q))),
            memory: bytes.filter(|_| whole),
            pids: amount("pid").map(|q| quantity::value(&q)).filter(|_| whole),
            // What is reserved is kept, too, where the kernel can.
            unified: bytes
                .filter(|_| whole && host.cgroup_has(group, memory_qos::MIN))
                .map(|b| (memory_qos::MIN.to_owned(), b.to_string()))
                .into_iter()
                .collect(),
            ..CgroupLimits::default()
        };
        let set = host.group(group).and_then(|_| host.update_cgroup(group, &limits));
        set.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => anyhow::anyhow!("{group:?} cgroup does not exist"),
            _ => e.into(),
        })
        .with_context(|| format!("Failed to enforce {what} Reserved Cgroup Limits on {group:?}"))?;
    }
    Ok(())
}

/// The cgroups above those of pods: all pods together get what the node gives to pods.
fn root_cgroups(
    machine: &Machine,
    cfg: &Config,
    capacity: &ResourceList,
    allocatable: &ResourceList,
) -> Vec<(String, CgroupLimits)> {
    // Without a reserve that is all there is: a limit from before is lifted.
    let all = CgroupLimits {
        cpu_shares: Some(cgroup::shares(quantity::milli_of(Some(allocatable), "cpu"))),
        memory: left_to_pods(cfg, "memory", quantity::value_of(Some(capacity), "memory")),
        pids: left_to_pods(cfg, "pid", machine.max_pids),
        ..CgroupLimits::default()
    };
    let least = CgroupLimits {
        cpu_shares: Some(2),
        ..CgroupLimits::default()
    };
    let all = [
        (Qos::Guaranteed, all),
        (Qos::Burstable, least.clone()),
        (Qos::BestEffort, least),
    ];
    all.map(|(class, limits)| (cgroup::qos_path(&cfg.cgroup_root, class), limits))
        .into()
}

/// What all pods together may have; `None` where what there is isn't known. The margin of evictions is theirs to use:
/// otherwise the kernel would end them before the kubelet does.
pub(crate) fn left_to_pods(cfg: &Config, name: &str, there_is: i64) -> Option<i64> {
    let reserved = match cfg.enforce.contains("pods") {
        true => (node::status::reserved(cfg, name) + 999) / 1000,
        false => 0,
    };
    (there_is > 0).then(|| (there_is - reserved).max(1))
}

/// How long until it is tried again: pods may use more than is left to them at the moment.
const AGAIN: Duration = Duration::from_secs(60);

fn make_root_cgroups(host: &Arc<dyn Host>, wanted: Vec<(String, CgroupLimits)>, stop: &CancellationToken) {
    let mut said = Said::new();
    let mut failed = unmade(&**host, wanted, &mut said);
    if failed.is_empty() {
        return;
    }
    let (host, stop) = (host.clone(), stop.clone());
    tokio::spawn(async move {
        while !failed.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => failed = unmade(&*host, failed, &mut said),
            }
        }
    });
}

/// What was told last of cgroups that can't be made.
type Said = BTreeMap<String, String>;

/// Whether it isn't what was told last.
fn is_new(said: &mut Said, path: &str, why: String) -> bool {
    said.get(path) != Some(&why) && {
        said.insert(path.to_owned(), why);
        true
    }
}

/// Makes cgroups; tells which ones could be made later.
fn unmade(host: &dyn Host, mut wanted: Vec<(String, CgroupLimits)>, said: &mut Said) -> Vec<(String, CgroupLimits)> {
    wanted.retain(|(path, limits)| match host.create_cgroup(path, limits) {
        Ok(()) => {
            if said.remove(path).is_some() {
                tracing::info!("the cgroup {path} is as it should be now");
            }
            false
        }
        Err(e) => {
            if is_new(said, path, e.to_string()) {
                tracing::warn!("the cgroup {path} can't be made as it should be, so pods may run without limits: {e}");
            }
            e.kind() != std::io::ErrorKind::Unsupported
        }
    });
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;
    use std::path::Path;

    fn roots(host: &FakeHost, cfg: &Config) -> Vec<(String, CgroupLimits)> {
        let machine = host.machine().unwrap();
        let capacity = node::status::capacity(&machine, &FakeHost::disk_with(50), cfg);
        root_cgroups(&machine, cfg, &capacity, &node::status::allocatable(&capacity, cfg))
    }

    #[test]
    fn what_fails_is_told_when_it_changes() {
        let mut said = Said::new();
        let mut told = |path, why: &str| is_new(&mut said, path, why.to_owned());
        assert!(told("/a", "busy") && told("/b", "busy"));
        assert!(!told("/a", "busy"));
        assert!(told("/a", "denied") && told("/a", "busy"));
    }

    #[test]
    fn what_the_kernel_can_not_do_is_refused() {
        let host = FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH);
        host.create_cgroup("/kubepods", &CgroupLimits::default()).unwrap();
        let judged = |throttling: f64, tiers: bool| {
            let cfg = Config {
                memory_throttling: Some(throttling),
                memory_tiers: tiers,
                ..Config::default()
            };
            judge_kernel(cgroup::Limited::ask(&host, "/"), &cfg)
        };
        assert!(judged(0.8, true).is_ok());
        host.spoil(Path::new("/kubepods/memory.high"), true);
        for (throttling, tiers) in [(0.8, false), (0.9, true)] {
            let why = judged(throttling, tiers).unwrap_err().to_string();
            assert!(why.contains("memory.high"), "{why}");
        }
        assert!(judged(0.9, false).is_ok(), "what was the default is no wish");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_reserved_is_kept_from_all_pods_sooner_or_later() {
        let host = Arc::new(FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH));
        let cfg = Config {
            kube_reserved: [("memory", "2Gi"), ("pid", "768")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            ..Config::default()
        };
        host.spoil(Path::new("/kubepods"), true);
        let (stop, shared) = (CancellationToken::new(), host.clone() as Arc<dyn Host>);
        make_root_cgroups(&shared, roots(&host, &cfg), &stop);
        assert!(host.cgroup("/kubepods").is_none() && host.cgroup("/kubepods/burstable").is_some());
        host.spoil(Path::new("/kubepods"), false);
        tokio::time::sleep(AGAIN + Duration::from_secs(1)).await;
        let limits = host.cgroup("/kubepods").unwrap();
        assert_eq!((limits.memory, limits.pids), (Some(6 << 30), Some(32_000)));
        stop.cancel();
    }
}
