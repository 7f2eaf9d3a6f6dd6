//! Puts the kubelet together and runs it until it is told to stop.

use crate::backoff::Backoff;
use crate::config::Config;
use crate::host::real::RealHost;
use crate::host::{Host, Layout};
use crate::kubelet::Kubelet;
use crate::metrics::Metrics;
use crate::node::{self, NodeState};
use crate::sources;
use crate::status::manager::StatusManager;
use crate::volumes::{Csi, Tools, Volumes};
use crate::worker::Workers;
use crate::{eviction, gc, pleg, server};
use anyhow::Context;
use keelson_client::{Informer, InformerOptions, Recorder, Rest};
use keelson_cri::{CriClients, v1 as cri};
use parking_lot::Mutex;
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
    kl.userns.restore(&kl);
    let mirrors = Arc::new(sources::Mirrors::default());
    server::start(&kl).await?;
    // Static pods and their containers' events don't wait for the API server: it may be one of them.
    sources::file::start(&kl, &mirrors).context("reading the static pods")?;
    tokio::spawn(pleg::run(kl.clone()));
    node::start(&kl).await?;
    kl.services.synced().await;
    kl.classes.synced().await;
    let _pods = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        informer = sources::api::start(&kl, &mirrors) => informer,
    };
    tokio::spawn(pleg::end_orphans(kl.clone()));
    match gc::images::list(&kl).await {
        Ok(images) => kl.images.pulled.take_up(crate::act::images::place(&kl), &images),
        Err(error) => tracing::error!(error, "images can't be listed: pulls that were cut off stay unfinished"),
    }
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
    let metrics = Arc::new(Metrics::default());
    let counting = metrics.clone();
    let cri = cri.observed(Arc::new(move |name, took, good| counting.operation(name, took, good)));
    let version = ask_version(&cri, &stop).await?;
    let fs = host
        .fs_stats(&layout.root)
        .with_context(|| format!("measuring {}", layout.root.display()))?;
    let capacity = node::status::capacity(&machine, &fs, cfg.max_pods);
    let allocatable = node::status::allocatable(&capacity, &cfg);
    make_root_cgroups(&*host, &cfg, &allocatable);
    let rest = Rest::new(client, "kubelet");
    let workers: Arc<Workers> = Arc::default();
    let wake: Arc<dyn Fn(&str) + Send + Sync> = {
        let workers = workers.clone();
        Arc::new(move |uid: &str| workers.wake(uid))
    };
    let recorder = Recorder::start(&rest, "kubelet", &cfg.node_name, &stop);
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
    Ok(Arc::new(Kubelet {
        volumes: Volumes::new(tools, csi, stop.clone()),
        recorder,
        status: StatusManager::new(rest.clone(), metrics.status_sync.clone(), stop.clone()),
        services: Informer::start(&rest, InformerOptions::default(), &stop),
        classes: Informer::start(&rest, InformerOptions::default(), &stop),
        node,
        crash: Mutex::new(Backoff::new(Duration::from_secs(10), cfg.crash_backoff_max)),
        images: Default::default(),
        image_gc: Default::default(),
        probes: Default::default(),
        userns: Default::default(),
        admission: Default::default(),
        runtime_events: Default::default(),
        metrics,
        rates: Default::default(),
        started: host.now(),
        runtime_name: version.runtime_name,
        runtime_version: version.runtime_version,
        host,
        machine,
        layout,
        cri,
        rest,
        workers,
        cfg,
        stop,
    }))
}

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

/// The cgroups above those of pods: all pods together get what the node gives to pods.
fn make_root_cgroups(host: &dyn Host, cfg: &Config, allocatable: &crate::resources::quantity::ResourceList) {
    use crate::resources::cgroup::{self, CgroupLimits};
    use crate::resources::{qos::Qos, quantity};
    let all = CgroupLimits {
        cpu_shares: Some(cgroup::shares(quantity::milli_of(Some(allocatable), "cpu"))),
        ..CgroupLimits::default()
    };
    let least = CgroupLimits {
        cpu_shares: Some(2),
        ..CgroupLimits::default()
    };
    for (class, limits) in [
        (Qos::Guaranteed, &all),
        (Qos::Burstable, &least),
        (Qos::BestEffort, &least),
    ] {
        let path = cgroup::qos_path(&cfg.cgroup_root, class);
        if let Err(e) = host.create_cgroup(&path, limits) {
            tracing::warn!("the cgroup {path} can't be made, so pods may run without limits: {e}");
        }
    }
}
