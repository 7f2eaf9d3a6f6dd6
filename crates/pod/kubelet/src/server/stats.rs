//! `/stats/summary`: what the node, its pods and their containers use, from the runtime and the kernel.

use crate::host::{FsStats, Usage};
use crate::kubelet::Kubelet;
use crate::metrics::rates::Rates;
use crate::observe;
use crate::pods;
use crate::volumes::{Mounted, Stats};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume};
use keelson_cri::v1 as cri;
use keelson_sys::net::Carried;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn time(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn nanos(t: i64, now: jiff::Timestamp) -> String {
    time(
        jiff::Timestamp::from_nanosecond(i128::from(t))
            .ok()
            .filter(|_| t > 0)
            .unwrap_or(now),
    )
}

fn value(v: Option<&cri::UInt64Value>) -> Value {
    v.map_or(Value::Null, |v| v.value.into())
}

/// Of a container, which has this id. What isn't known is left out, as upstream does.
fn cpu(rates: &Rates, id: &str, c: Option<&cri::CpuUsage>, now: jiff::Timestamp) -> Value {
    let Some(used) = c.and_then(|c| Some((c.timestamp, c.usage_core_nano_seconds.as_ref()?.value))) else {
        return json!({"time": time(now)});
    };
    spent(rates, id, nanos(used.0, now), used)
}

/// What was used at a time in nanoseconds, and how fast.
fn spent(rates: &Rates, what: &str, told: String, (at, used): (i64, u64)) -> Value {
    let mut out = json!({"time": told, "usageCoreNanoSeconds": used});
    if let Some(rate) = rates.read(what, at, used) {
        out["usageNanoCores"] = rate.into();
    }
    out
}

fn memory(m: Option<&cri::MemoryUsage>, now: jiff::Timestamp) -> Value {
    let Some(m) = m else { return json!({"time": time(now)}) };
    json!({"time": nanos(m.timestamp, now), "usageBytes": value(m.usage_bytes.as_ref()),
        "workingSetBytes": value(m.working_set_bytes.as_ref()), "availableBytes": value(m.available_bytes.as_ref()),
        "rssBytes": value(m.rss_bytes.as_ref()), "pageFaults": value(m.page_faults.as_ref()),
        "majorPageFaults": value(m.major_page_faults.as_ref())})
}

fn own(rates: &Rates, what: &str, u: &Usage, capacity: Option<u64>, now: jiff::Timestamp) -> (Value, Value) {
    let at = now.as_nanosecond() as i64;
    let cpu = spent(rates, what, time(now), (at, u.cpu_nanos));
    let mut memory = json!({"time": time(now), "usageBytes": u.memory, "workingSetBytes": u.working_set,
        "rssBytes": u.rss, "pageFaults": u.page_faults, "majorPageFaults": u.major_page_faults});
    if let Some(c) = capacity {
        memory["availableBytes"] = c.saturating_sub(u.working_set).into();
    }
    (cpu, memory)
}

fn fs(s: &FsStats, used: Option<u64>, inodes: Option<u64>, now: jiff::Timestamp) -> Value {
    json!({"time": time(now), "availableBytes": s.available, "capacityBytes": s.capacity,
        "usedBytes": used.unwrap_or(s.capacity.saturating_sub(s.available)), "inodesFree": s.inodes_free,
        "inodes": s.inodes, "inodesUsed": inodes.unwrap_or(s.inodes.saturating_sub(s.inodes_free))})
}

/// Statistics of all containers, by pod uid.
pub async fn containers(kl: &Kubelet) -> Result<BTreeMap<String, Vec<cri::ContainerStats>>, String> {
    let request = cri::ListContainerStatsRequest { filter: None };
    let answer = kl
        .cri
        .runtime
        .clone()
        .list_container_stats(request)
        .await
        .map_err(|e| crate::rpc_text(&e))?;
    let mut all: BTreeMap<String, Vec<cri::ContainerStats>> = BTreeMap::new();
    for s in answer.into_inner().stats {
        let uid = s
            .attributes
            .as_ref()
            .and_then(|a| a.labels.get(observe::LABEL_POD_UID))
            .cloned()
            .unwrap_or_default();
        all.entry(uid).or_default().push(s);
    }
    Ok(all)
}

/// The name of the container that statistics are of.
pub fn container_name(s: &cri::ContainerStats) -> String {
    s.attributes
        .as_ref()
        .and_then(|a| a.labels.get(observe::LABEL_CONTAINER_NAME))
        .cloned()
        .unwrap_or_default()
}

pub async fn summary(kl: &Arc<Kubelet>) -> Result<Value, String> {
    let now = kl.host.now();
    let stats = containers(kl).await?;
    let sandboxes = kl
        .cri
        .runtime
        .clone()
        .list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter: None })
        .await
        .map(|a| a.into_inner().stats)
        .unwrap_or_default();
    let node_fs = kl
        .host
        .fs_stats(&kl.layout.root)
        .map_err(|e| format!("reading the node's file system: {e}"))?;
    let disks = kl.disks().await;
    // What can't be measured at the moment is told as the node's own disk is.
    let measure = |disk| disks.measure(&*kl.host, &kl.layout.root, disk).unwrap_or(node_fs);
    let (images_fs, layers_fs) = (measure(disks.images), measure(disks.layers));
    let held = futures::future::join_all(kl.workers.all().into_iter().map(|h| async move {
        let volumes = kl.volumes.stats(&h.uid).await;
        (h.uid.clone(), volumes)
    }));
    let mut held: BTreeMap<String, BTreeMap<String, (Mounted, Stats)>> = held.await.into_iter().collect();
    // Measuring logs walks trees on the disk, which no other task should wait for.
    let measured = kl.clone();
    let list = tokio::task::spawn_blocking(move || {
        let mut list = Vec::new();
        for handle in measured.workers.all() {
            let Some(own_stats) = stats.get(&handle.uid) else {
                continue;
            };
            let sandbox = sandboxes.iter().find(|s| {
                s.attributes
                    .as_ref()
                    .and_then(|a| a.metadata.as_ref())
                    .is_some_and(|m| m.uid == handle.uid)
            });
            let volumes = held.remove(&handle.uid).unwrap_or_default();
            list.push(pod(
                &measured,
                &handle.pod(),
                own_stats,
                sandbox,
                volumes,
                [&node_fs, &layers_fs],
                now,
            ));
        }
        list
    })
    .await
    .map_err(|e| e.to_string())?;
    let mut out = Map::new();
    out.insert("node".into(), node(kl, [&node_fs, &images_fs, &layers_fs], now).await);
    out.insert("pods".into(), list.into());
    Ok(out.into())
}

async fn node(kl: &Kubelet, [node_fs, images_fs, layers_fs]: [&FsStats; 3], now: jiff::Timestamp) -> Value {
    let usage = kl.host.node_usage().unwrap_or_default();
    let (cpu, memory) = own(&kl.rates, "/", &usage, Some(kl.machine.memory), now);
    let used = |all: &[cri::FilesystemUsage]| all.first().and_then(|f| f.used_bytes.as_ref().map(|u| u.value));
    let (images_used, layers_used) = match kl.cri.image.clone().image_fs_info(cri::ImageFsInfoRequest {}).await {
        Ok(told) => {
            let told = told.into_inner();
            let images = used(&told.image_filesystems);
            (images, used(&told.container_filesystems).or(images))
        }
        Err(_) => (None, None),
    };
    let pods_usage = kl
        .host
        .cgroup_usage(&crate::resources::cgroup::qos_path(
            &kl.cfg.cgroup_root,
            crate::resources::qos::Qos::Guaranteed,
        ))
        .unwrap_or_default();
    let (pods_cpu, pods_memory) = own(&kl.rates, "pods", &pods_usage, None, now);
    json!({
        "nodeName": kl.cfg.node_name, "startTime": time(kl.started), "cpu": cpu, "memory": memory,
        "network": network(kl.host.carried(None).unwrap_or_default().iter().map(host_interface), now),
        "fs": fs(node_fs, None, None, now),
        "runtime": {"imageFs": fs(images_fs, images_used, None, now), "containerFs": fs(layers_fs, layers_used, None, now)},
        "rlimit": {"time": time(now), "maxpid": kl.machine.max_pids, "curproc": usage.pids},
        "systemContainers": [{"name": "pods", "startTime": time(kl.started), "cpu": pods_cpu, "memory": pods_memory}],
    })
}

fn host_interface(i: &Carried) -> Value {
    json!({"name": i.name, "rxBytes": i.received.bytes, "rxErrors": i.received.errors,
        "txBytes": i.sent.bytes, "txErrors": i.sent.errors})
}

fn pod_interface(i: &cri::NetworkInterfaceUsage) -> Value {
    let counter = |v: Option<&cri::UInt64Value>| v.map_or(0, |v| v.value);
    json!({"name": i.name, "rxBytes": counter(i.rx_bytes.as_ref()), "rxErrors": counter(i.rx_errors.as_ref()),
        "txBytes": counter(i.tx_bytes.as_ref()), "txErrors": counter(i.tx_errors.as_ref())})
}

fn network(interfaces: impl Iterator<Item = Value>, now: jiff::Timestamp) -> Value {
    let all: Vec<Value> = interfaces.collect();
    let mut out = json!({"time": time(now), "interfaces": all});
    if let (Some(first), Some(map)) = (all.first().and_then(Value::as_object), out.as_object_mut()) {
        map.extend(first.clone());
    }
    out
}

fn pod(
    kl: &Kubelet,
    pod: &k8s_openapi::api::core::v1::Pod,
    stats: &[cri::ContainerStats],
    sandbox: Option<&cri::PodSandboxStats>,
    volumes: BTreeMap<String, (Mounted, Stats)>,
    [node_fs, layers_fs]: [&FsStats; 2],
    now: jiff::Timestamp,
) -> Value {
    let uid = pods::uid(pod);
    let status = kl.status.get(uid).unwrap_or_default();
    let started = |name: &str| {
        let at = pods::any_status(&status, name).and_then(|s| s.state.as_ref()?.running.as_ref()?.started_at.clone());
        at.map_or(Value::Null, |t| time(t.0).into())
    };
    let logs = kl.layout.pod_logs(pods::namespace(pod), pods::name(pod), uid);
    let mut ephemeral = 0;
    let containers: Vec<Value> = stats
        .iter()
        .map(|s| {
            let name = container_name(s);
            let id = s.attributes.as_ref().map_or("", |a| a.id.as_str());
            let (log_bytes, log_inodes) = kl.host.disk_usage(&logs.join(&name)).unwrap_or_default();
            let layer = s.writable_layer.as_ref();
            let used = layer.and_then(|l| l.used_bytes.as_ref()).map_or(0, |u| u.value);
            let inodes = layer.and_then(|l| l.inodes_used.as_ref()).map_or(0, |u| u.value);
            ephemeral += log_bytes + used;
            json!({"name": name, "startTime": started(&name), "cpu": cpu(&kl.rates, id, s.cpu.as_ref(), now),
                "memory": memory(s.memory.as_ref(), now), "rootfs": fs(layers_fs, Some(used), Some(inodes), now),
                "logs": fs(node_fs, Some(log_bytes), Some(log_inodes), now)})
        })
        .collect();
    let namespace = pods::namespace(pod);
    let volumes: Vec<Value> = volumes
        .into_iter()
        .map(|(name, (mounted, stats))| {
            if pods::spec(pod)
                .volumes
                .iter()
                .flatten()
                .any(|v| v.name == name && is_local_ephemeral(v))
            {
                ephemeral += stats.used;
            }
            volume(&name, namespace, &mounted, &stats, now)
        })
        .collect();
    let usage = kl.host.cgroup_usage(&kl.cgroup_of(pod)).unwrap_or_default();
    let (pod_cpu, pod_memory) = own(&kl.rates, uid, &usage, None, now);
    let start = status.start_time.as_ref().map_or(Value::Null, |t| time(t.0).into());
    let net = sandbox.and_then(|s| s.linux.as_ref()?.network.as_ref()?.default_interface.as_ref());
    json!({
        "podRef": {"name": pods::name(pod), "namespace": pods::namespace(pod), "uid": uid},
        "startTime": start, "containers": containers, "cpu": pod_cpu, "memory": pod_memory,
        "network": net.map(|n| network([pod_interface(n)].into_iter(), now)),
        "volume": volumes, "ephemeral-storage": fs(node_fs, Some(ephemeral), None, now),
        "process_stats": {"process_count": usage.pids},
    })
}

fn volume(name: &str, namespace: &str, mounted: &Mounted, stats: &Stats, now: jiff::Timestamp) -> Value {
    let mut v = fs(&stats.fs, Some(stats.used), Some(stats.inodes_used), now);
    v["name"] = name.into();
    if let Some(claim) = &mounted.claim {
        v["pvcRef"] = json!({"name": claim, "namespace": namespace});
    }
    v
}

/// What the pod writes there is on the node's own disk, and counts as the pod's.
fn is_local_ephemeral(v: &Volume) -> bool {
    let on_disk = |e: &EmptyDirVolumeSource| e.medium.as_deref().unwrap_or_default().is_empty();
    v.empty_dir.as_ref().is_some_and(on_disk) || v.config_map.is_some()
}
