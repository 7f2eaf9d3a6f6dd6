//! `/metrics/cadvisor`: what the kernel counts of the machine, the classes of pods, pods and their containers, under the
//! names and labels that cAdvisor gave it. Read from the cgroups when somebody asks.

use super::text::Text;
use crate::host::FsStats;
use crate::kubelet::Kubelet;
use crate::pods;
use crate::resources::{cgroup, qos::Qos};
use crate::server::stats;
use crate::worker::Stage;
use keelson_cri::series::{self, Disk, Family, Group};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A group, and the labels that tell it. A label that means nothing for it is empty.
#[derive(Default)]
struct Place {
    id: String,
    container: String,
    image: String,
    name: String,
    namespace: String,
    pod: String,
    group: Group,
}

/// What of a container the kernel doesn't know.
struct Container {
    id: String,
    name: String,
    image: String,
    started: Option<SystemTime>,
    written: Option<u64>,
}

/// A pod that runs.
struct Running {
    namespace: String,
    name: String,
    cgroup: String,
    host_network: bool,
    containers: Vec<Container>,
}

pub async fn text(kl: &Arc<Kubelet>) -> Result<String, String> {
    let running = running(kl).await?;
    let measuring = kl.clone();
    // Reads hundreds of small files, which no other task should wait for.
    let (places, failed) = tokio::task::spawn_blocking(move || measure(&measuring, running))
        .await
        .map_err(|e| e.to_string())?;
    let mut out = Text::default();
    let at = kl.host.now().as_millisecond();
    machine(kl, &mut out);
    for (families, at) in [(series::SPEC, None), (series::USED, Some(at))] {
        families.iter().for_each(|f| family(&mut out, f, &places, at));
    }
    out.gauge(
        "container_scrape_error",
        "1 if there was an error while getting container metrics, 0 otherwise",
        &[],
        f64::from(failed),
    );
    Ok(out.into_string())
}

async fn running(kl: &Kubelet) -> Result<Vec<Running>, String> {
    let mut stats = stats::containers(kl).await?;
    let mut all = Vec::new();
    for handle in kl.workers.all() {
        if !matches!(handle.stage(), Stage::Syncing | Stage::Terminating) {
            continue;
        }
        let pod = handle.pod();
        let status = kl.status.get(&handle.uid).unwrap_or_default();
        let containers = stats.remove(&handle.uid).unwrap_or_default().into_iter().map(|s| {
            let name = stats::container_name(&s);
            let told = pods::any_status(&status, &name);
            let started = told.and_then(|t| t.state.as_ref()?.running.as_ref()?.started_at.as_ref());
            let layer = s.writable_layer.unwrap_or_default();
            Container {
                id: s.attributes.map(|a| a.id).unwrap_or_default(),
                image: told.map(|t| t.image.clone()).unwrap_or_default(),
                started: started.map(|t| SystemTime::UNIX_EPOCH + Duration::from_secs(t.0.as_second().max(0) as u64)),
                written: layer.used_bytes.map(|v| v.value),
                name,
            }
        });
        all.push(Running {
            containers: containers.collect(),
            namespace: pods::namespace(&pod).to_owned(),
            name: pods::name(&pod).to_owned(),
            cgroup: kl.cgroup_of(&pod),
            host_network: pods::is_host_network(&pod),
        });
    }
    Ok(all)
}

/// Every group there is, and whether one couldn't be read; one that ended meanwhile is left out.
fn measure(kl: &Kubelet, running: Vec<Running>) -> (Vec<Place>, bool) {
    let mut places = Vec::new();
    let root = &kl.layout.root;
    let fs = kl.host.fs_stats(root).and_then(|fs| Ok((fs, kl.host.device_of(root)?)));
    let fs = kl.unmeasured.measured(&root.display().to_string(), fs, &mut false);
    let mut failed = false;
    let mut read = |path: &str| kl.unmeasured.measured(path, kl.host.group(path), &mut failed);
    let disk = |used: Option<u64>| {
        let (fs, device) = fs.as_ref()?;
        Some(Disk {
            device: device.clone(),
            used: used?,
            limit: fs.capacity,
            inodes: fs.inodes,
            inodes_free: fs.inodes_free,
        })
    };
    if let Some(mut group) = read("/") {
        let interfaces = kl.host.carried(None).unwrap_or_default();
        group.interfaces = interfaces.into_iter().filter(|i| !is_of_a_pod(&i.name)).collect();
        group.disk = disk(fs.as_ref().map(|(fs, _)| used(fs)));
        places.push(Place {
            id: "/".into(),
            group,
            ..Place::default()
        });
    }
    for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        let id = cgroup::qos_path(&kl.cfg.cgroup_root, class);
        if let Some(group) = read(&id) {
            places.push(Place {
                id,
                group,
                ..Place::default()
            });
        }
    }
    for pod in running {
        let Some(mut group) = read(&pod.cgroup) else {
            continue;
        };
        if let Some(pid) = group.account.processes.first().filter(|_| !pod.host_network) {
            group.interfaces = kl.host.carried(Some(*pid)).unwrap_or_default();
        }
        let mut containers = Vec::new();
        for c in pod.containers {
            let id = format!("{}/{}", pod.cgroup, c.id);
            let Some(mut group) = read(&id) else { continue };
            group.open = Some(kl.host.open_files(&group.account.processes));
            group.started = c.started;
            group.disk = disk(c.written);
            containers.push(Place {
                id,
                container: c.name,
                image: c.image,
                name: c.id,
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                group,
            });
        }
        group.open = Some(containers.iter().filter_map(|c| c.group.open).sum());
        places.push(Place {
            id: pod.cgroup,
            namespace: pod.namespace,
            pod: pod.name,
            group,
            ..Place::default()
        });
        places.append(&mut containers);
    }
    (places, failed)
}

fn used(fs: &FsStats) -> u64 {
    fs.capacity.saturating_sub(fs.free)
}

/// The host's ends of pods' interfaces are counted at the pods.
fn is_of_a_pod(interface: &str) -> bool {
    ["veth", "docker", "nerdctl"].iter().any(|p| interface.starts_with(p))
}

fn family(out: &mut Text, family: &Family, places: &[Place], at: Option<i64>) {
    let mut begun = false;
    for p in places {
        for (values, number) in family.values(&p.group) {
            if !begun {
                out.family(family.name, family.help, family.counter);
                begun = true;
            }
            let mut labels = vec![
                ("container", p.container.as_str()),
                ("id", &p.id),
                ("image", &p.image),
                ("name", &p.name),
                ("namespace", &p.namespace),
                ("pod", &p.pod),
            ];
            labels.extend(family.labels.iter().copied().zip(values.iter().map(String::as_str)));
            labels.sort_unstable_by_key(|(key, _)| *key);
            out.sample(family.name, &labels, number, at);
        }
    }
}

fn machine(kl: &Kubelet, out: &mut Text) {
    let m = &kl.machine;
    let version = [
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", m.kernel.as_str()),
        ("osVersion", &m.os_image),
    ];
    let help = "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & \
                cadvisor revision.";
    out.gauge("cadvisor_version_info", help, &version, 1.0);
    let labels = [
        ("boot_id", m.boot_id.as_str()),
        ("machine_id", &m.machine_id),
        ("system_uuid", &m.system_uuid),
    ];
    let known = [
        ("machine_cpu_cores", "Number of logical CPU cores.", m.cpus as u64),
        (
            "machine_cpu_physical_cores",
            "Number of physical CPU cores.",
            m.cores as u64,
        ),
        ("machine_cpu_sockets", "Number of CPU sockets.", m.sockets as u64),
        (
            "machine_memory_bytes",
            "Amount of memory installed on the machine.",
            m.memory,
        ),
        (
            "machine_swap_bytes",
            "Amount of swap memory available on the machine.",
            m.swap,
        ),
    ];
    // A machine without swap has none; without CPUs and memory it only doesn't say what it has.
    let known = known
        .into_iter()
        .filter(|(name, _, n)| *n > 0 || *name == "machine_swap_bytes");
    for (name, help, value) in known {
        out.gauge(name, help, &labels, value as f64);
    }
    out.gauge(
        "machine_scrape_error",
        "1 if there was an error while getting machine metrics, 0 otherwise.",
        &[],
        0.0,
    );
}
