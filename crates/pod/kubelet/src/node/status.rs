//! The node's object and status, from facts. Pure.

use super::RuntimeView;
use crate::config::Config;
use crate::eviction::threshold::Signal;
use crate::host::{FsStats, Machine};
use crate::resources::hugepages;
use crate::resources::quantity::{self, ResourceList};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_client::declared_features as features;
use keelson_cri::v1 as cri;
use std::collections::BTreeMap;

/// The version whose behaviour this kubelet has.
pub const VERSION: &str = "v1.37.2";

/// What this kubelet can do that older ones can't; sorted. WebSockets of the newest protocol go through to the runtime, of which
/// only our own is known to speak it.
pub fn declared(runtime_name: &str) -> Vec<String> {
    let web_sockets = (runtime_name == OUR_RUNTIME).then_some(features::WEB_SOCKETS);
    let always = [
        features::RESIZES_OF_PODS,
        features::RESIZES_OF_INIT_CONTAINERS,
        features::RESTARTS_OF_ALL,
    ];
    web_sockets.into_iter().chain(always).map(str::to_owned).collect()
}

const OUR_RUNTIME: &str = "keelson";

const MAX_IMAGE_NAMES: usize = 5;

pub fn capacity(machine: &Machine, fs: &FsStats, cfg: &Config) -> ResourceList {
    let by_core = i64::from(cfg.pods_per_core) * machine.cpus;
    let pods = match by_core {
        0 => i64::from(cfg.max_pods),
        _ => by_core.min(i64::from(cfg.max_pods)),
    };
    let mut list = ResourceList::from([
        ("cpu".to_owned(), quantity::decimal_plain(machine.cpus)),
        ("memory".to_owned(), quantity::bytes(machine.memory as i64)),
        ("pods".to_owned(), quantity::decimal_plain(pods)),
        ("ephemeral-storage".to_owned(), quantity::bytes(fs.capacity as i64)),
    ]);
    for (size, bytes) in &machine.hugepages {
        list.insert(hugepages(size), quantity::bytes(*bytes as i64));
    }
    list
}

/// Capacity without what is kept for the system and for the margin at which pods are evicted.
pub fn allocatable(capacity: &ResourceList, cfg: &Config) -> ResourceList {
    let mut list = capacity.clone();
    for (name, q) in &mut list {
        let reserved = reserved(cfg, name);
        if name == "cpu" {
            if reserved != 0 {
                *q = quantity::from_milli((quantity::milli(q) - reserved).max(0));
            }
            continue;
        }
        let total = quantity::value(q);
        // Whole units, rounded up.
        let mut keep = (reserved + 999) / 1000;
        match name.as_str() {
            "memory" => {
                keep += cfg.eviction.hard_amount(Signal::Memory, total as u64) as i64;
                // Huge pages are set aside from the same memory.
                keep += capacity
                    .iter()
                    .filter(|(n, _)| n.starts_with("hugepages-"))
                    .map(|(_, v)| quantity::value(v))
                    .sum::<i64>();
            }
            "ephemeral-storage" => keep += cfg.eviction.hard_amount(Signal::Disk, total as u64) as i64,
            _ => {}
        }
        if keep != 0 {
            let left = (total - keep).max(0);
            *q = if name == "ephemeral-storage" {
                quantity::decimal_plain(left)
            } else {
                quantity::bytes(left)
            };
        }
    }
    list
}

/// Why a machine can't keep what is reserved, in upstream's words. Pods that are held to the rest need some of it.
pub fn too_much_reserved(machine: &Machine, capacity: &ResourceList, cfg: &Config) -> Option<String> {
    ["cpu", "memory", "ephemeral-storage", "pid"].into_iter().find_map(|name| {
        let has = match name {
            "pid" => Some(machine.max_pids).filter(|most| *most > 0)?.saturating_mul(1000),
            _ => quantity::milli(capacity.get(name)?),
        };
        let margin = |signal| cfg.eviction.hard_amount(signal, (has / 1000) as u64) as i64;
        let margin = match name {
            "memory" => margin(Signal::Memory),
            "ephemeral-storage" => margin(Signal::Disk),
            _ => 0,
        };
        let kept = reserved(cfg, name);
        let whole = kept.saturating_add(margin.saturating_mul(1000));
        let shown = |milli: i64| quantity::from_milli(milli).0;
        let told = |kept, sign| {
            format!(
                "invalid Node Allocatable configuration. resource {name:?} has a reservation of {} but capacity of {}. Expected capacity {sign} \
                 reservation",
                shown(kept),
                shown(has)
            )
        };
        let held = cfg.enforce.contains("pods") && ["memory", "pid"].contains(&name);
        match () {
            () if whole > has => Some(told(whole, ">=")),
            () if held && kept == has => Some(told(kept, ">")),
            () => None,
        }
    })
}

/// What is kept from pods of a resource, in thousandths.
pub fn reserved(cfg: &Config, name: &str) -> i64 {
    // CPUs that are named are reserved as they are, in place of amounts.
    if let Some((_, cpus)) = cfg.reserved_cpus.as_ref().filter(|_| name == "cpu") {
        return cpus * 1000;
    }
    let of = |list: &BTreeMap<String, String>| {
        let text = list.get(name).cloned();
        text.map_or(0, |t| quantity::milli(&api_quantity(t)))
    };
    of(&cfg.system_reserved) + of(&cfg.kube_reserved)
}

fn api_quantity(text: String) -> k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    k8s_openapi::apimachinery::pkg::api::resource::Quantity(text)
}

/// The labels that say what the node is.
pub fn labels(cfg: &Config, machine: &Machine) -> BTreeMap<String, String> {
    let hostname = hostname(cfg, machine);
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), hostname),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), machine.architecture.clone()),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("beta.kubernetes.io/arch".to_owned(), machine.architecture.clone()),
    ]);
    labels.extend(cfg.node_labels.clone());
    labels
}

pub fn hostname(cfg: &Config, machine: &Machine) -> String {
    if !cfg.hostname.is_empty() {
        cfg.hostname.clone()
    } else if !cfg.node_name.is_empty() {
        cfg.node_name.clone()
    } else {
        machine.hostname.to_lowercase()
    }
}

/// `key=value:effect`.
fn taint(text: &str) -> Option<api::Taint> {
    let (pair, effect) = text.rsplit_once(':')?;
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    Some(api::Taint {
        key: key.into(),
        value: (!value.is_empty()).then(|| value.into()),
        effect: effect.into(),
        time_added: None,
    })
}

/// The object that registers the node.
pub fn object(cfg: &Config, machine: &Machine, status: api::NodeStatus) -> api::Node {
    let taints: Vec<api::Taint> = cfg.register_taints.iter().filter_map(|t| taint(t)).collect();
    api::Node {
        metadata: ObjectMeta {
            name: Some(cfg.node_name.clone()),
            labels: Some(labels(cfg, machine)),
            annotations: Some(BTreeMap::from([(
                "volumes.kubernetes.io/controller-managed-attach-detach".into(),
                "true".into(),
            )])),
            ..Default::default()
        },
        spec: Some(api::NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            provider_id: Some(cfg.provider_id.clone()).filter(|id| !id.is_empty()),
            ..Default::default()
        }),
        status: Some(status),
    }
}

pub(crate) struct Facts<'a> {
    pub cfg: &'a Config,
    pub machine: &'a Machine,
    pub capacity: ResourceList,
    pub allocatable: ResourceList,
    /// Capacity and allocatable of device plug-ins' resources.
    pub devices: (ResourceList, ResourceList),
    pub runtime: &'a RuntimeView,
    /// `name://version`.
    pub runtime_version: String,
    pub declared_features: Vec<String>,
    pub pressures: &'a [&'static str],
    pub storage_problem: Option<String>,
    /// That the machine stops.
    pub shutdown_problem: Option<String>,
    /// What controllers may not take away, sorted.
    pub volumes_in_use: Vec<String>,
    pub images: Vec<api::ContainerImage>,
    pub now: jiff::Timestamp,
}

pub(crate) fn status(f: &Facts, old: &api::NodeStatus) -> api::NodeStatus {
    let addresses = f
        .cfg
        .node_ips
        .iter()
        .map(|ip| api::NodeAddress {
            address: ip.clone(),
            type_: "InternalIP".into(),
        })
        .chain([api::NodeAddress {
            address: hostname(f.cfg, f.machine),
            type_: "Hostname".into(),
        }])
        .collect();
    api::NodeStatus {
        addresses: Some(addresses),
        capacity: Some(with_extended(&f.capacity, &f.devices.0, old.capacity.as_ref())),
        allocatable: Some(with_extended(&f.allocatable, &f.devices.1, old.allocatable.as_ref())),
        conditions: Some(conditions(f, old)),
        daemon_endpoints: Some(api::NodeDaemonEndpoints {
            kubelet_endpoint: Some(api::DaemonEndpoint {
                port: i32::from(f.cfg.port),
            }),
        }),
        features: Some(api::NodeFeatures {
            supplemental_groups_policy: Some(f.runtime.supplemental_groups_policy),
        }),
        // None where there are none: so it comes back from the API.
        images: (!f.images.is_empty()).then(|| f.images.clone()),
        node_info: Some(node_info(f)),
        runtime_handlers: Some(
            f.runtime
                .handlers
                .iter()
                .map(|(name, (rro, userns))| api::NodeRuntimeHandler {
                    name: Some(name.clone()),
                    features: Some(api::NodeRuntimeHandlerFeatures {
                        recursive_read_only_mounts: Some(*rro),
                        user_namespaces: Some(*userns),
                    }),
                })
                .collect(),
        ),
        phase: old.phase.clone(),
        volumes_attached: old.volumes_attached.clone(),
        volumes_in_use: (!f.volumes_in_use.is_empty()).then(|| f.volumes_in_use.clone()),
        config: old.config.clone(),
        declared_features: Some(f.declared_features.clone()),
    }
}

/// Extended resources that others advertise stay.
fn with_extended(ours: &ResourceList, devices: &ResourceList, old: Option<&ResourceList>) -> ResourceList {
    let mut all = ours.clone();
    all.extend(devices.clone());
    for (name, q) in old.into_iter().flatten() {
        if name.contains('/') && !all.contains_key(name) {
            all.insert(name.clone(), q.clone());
        }
    }
    all
}

fn node_info(f: &Facts) -> api::NodeSystemInfo {
    let m = f.machine;
    api::NodeSystemInfo {
        architecture: m.architecture.clone(),
        boot_id: m.boot_id.clone(),
        container_runtime_version: f.runtime_version.clone(),
        kernel_version: m.kernel.clone(),
        kubelet_version: VERSION.into(),
        machine_id: m.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: m.os_image.clone(),
        system_uuid: m.system_uuid.clone(),
        swap: (m.swap > 0).then_some(api::NodeSwapStatus {
            capacity: Some(m.swap as i64),
        }),
        ..Default::default()
    }
}

fn conditions(f: &Facts, old: &api::NodeStatus) -> Vec<api::NodeCondition> {
    let pressed = |kind: &str| f.pressures.contains(&kind);
    let pick = |yes: bool, bad: (&'static str, &'static str), good: (&'static str, &'static str)| {
        let (reason, message) = if yes { bad } else { good };
        (yes, reason.to_owned(), message.to_owned())
    };
    let problems: Vec<String> = [
        f.runtime
            .runtime_problem
            .as_ref()
            .map(|p| format!("container runtime status check may not have completed yet or failed: {p}")),
        f.runtime
            .network_problem
            .as_ref()
            .map(|p| format!("container runtime network not ready: {p}")),
        f.storage_problem.clone(),
        f.shutdown_problem.clone(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let ready = match problems.as_slice() {
        [] => (
            true,
            "KubeletReady".to_owned(),
            "kubelet is posting ready status".to_owned(),
        ),
        [one] => (false, "KubeletNotReady".to_owned(), one.clone()),
        all => (false, "KubeletNotReady".to_owned(), format!("[{}]", all.join(", "))),
    };
    let list = [
        (
            "MemoryPressure",
            pick(
                pressed("MemoryPressure"),
                (
                    "KubeletHasInsufficientMemory",
                    "kubelet has insufficient memory available",
                ),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
        ),
        (
            "DiskPressure",
            pick(
                pressed("DiskPressure"),
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
        ),
        (
            "PIDPressure",
            pick(
                pressed("PIDPressure"),
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
        ),
        ("Ready", ready),
    ];
    let mut all: Vec<api::NodeCondition> = list
        .into_iter()
        .map(|(kind, (yes, reason, message))| {
            let status = if yes { "True" } else { "False" };
            let before = old.conditions.iter().flatten().find(|c| c.type_ == kind);
            api::NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason),
                message: Some(message),
                last_heartbeat_time: Some(Time(f.now)),
                last_transition_time: before
                    .filter(|b| b.status == status)
                    .and_then(|b| b.last_transition_time.clone())
                    .or(Some(Time(f.now))),
            }
        })
        .collect();
    let ours = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
    all.extend(
        old.conditions
            .iter()
            .flatten()
            .filter(|c| !ours.contains(&c.type_.as_str()))
            .cloned(),
    );
    all
}

/// The largest images, by their names.
pub fn images(list: &[cri::Image], most: Option<usize>) -> Vec<api::ContainerImage> {
    let mut all: Vec<api::ContainerImage> = list
        .iter()
        .map(|i| {
            let names: Vec<String> = i
                .repo_digests
                .iter()
                .chain(&i.repo_tags)
                .take(MAX_IMAGE_NAMES)
                .cloned()
                .collect();
            api::ContainerImage {
                names: Some(names),
                size_bytes: Some(i.size as i64),
            }
        })
        .collect();
    all.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    all.truncate(most.unwrap_or(usize::MAX));
    all
}

/// Whether two statuses say the same but for the time of the heartbeat.
pub fn same(a: &api::NodeStatus, b: &api::NodeStatus) -> bool {
    let still = |s: &api::NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
        }
        s
    };
    still(a) == still(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocatable_is_capacity_without_the_margins() {
        let machine = Machine {
            cpus: 2,
            memory: 8 << 30,
            ..Machine::default()
        };
        let fs = FsStats {
            capacity: 1000 << 20,
            ..FsStats::default()
        };
        let cfg = Config {
            system_reserved: BTreeMap::from([("cpu".into(), "60m".into()), ("memory".into(), "1Gi".into())]),
            kube_reserved: BTreeMap::from([("cpu".into(), "40m".into())]),
            ..Config::default()
        };
        let c = capacity(&machine, &fs, &cfg);
        assert_eq!(
            (c["cpu"].0.as_str(), c["memory"].0.as_str(), c["pods"].0.as_str()),
            ("2", "8Gi", "110")
        );
        let a = allocatable(&c, &cfg);
        assert_eq!((a["cpu"].0.as_str(), a["memory"].0.as_str()), ("1900m", "7068Mi"));
        assert_eq!(a["ephemeral-storage"].0, (900u64 << 20).to_string());
        assert_eq!(too_much_reserved(&machine, &c, &cfg), None);
        let few = Config {
            pods_per_core: 5,
            reserved_cpus: Some(("0".into(), 1)),
            ..cfg
        };
        let c = capacity(&machine, &fs, &few);
        assert_eq!(
            (c["pods"].0.as_str(), allocatable(&c, &few)["cpu"].0.as_str()),
            ("10", "1")
        );
    }

    #[test]
    fn no_more_is_reserved_than_there_is() {
        let machine = Machine {
            cpus: 2,
            memory: 8 << 30,
            max_pids: 1000,
            ..Machine::default()
        };
        let fs = FsStats {
            capacity: 1000 << 20,
            ..FsStats::default()
        };
        let why = |name: &str, amount: &str, plain: &Config| {
            let cfg = Config {
                kube_reserved: BTreeMap::from([(name.to_owned(), amount.to_owned())]),
                ..plain.clone()
            };
            too_much_reserved(&machine, &capacity(&machine, &fs, &cfg), &cfg).unwrap_or_default()
        };
        let usual = Config::default();
        // The margins of evictions are kept, too.
        for (name, fits, amount) in [
            ("cpu", "2", "2001m"),
            ("memory", "8092Mi", "8093Mi"),
            ("ephemeral-storage", "900Mi", "901Mi"),
            ("pid", "999", "1001"),
        ] {
            assert_eq!(why(name, fits, &usual), "");
            let why = why(name, amount, &usual);
            assert!(why.contains("Expected capacity >= reservation"), "{why}");
        }
        assert!(why("memory", "8093Mi", &usual).contains("a reservation of 8590983168 but capacity of 8589934592"));
        // Nothing at all is no bound that the kernel could hold pods to.
        let bare = |enforce: &[&str]| Config {
            eviction: crate::Eviction {
                hard: Vec::new(),
                ..Default::default()
            },
            enforce: enforce.iter().map(|e| (*e).to_owned()).collect(),
            ..Config::default()
        };
        for (name, all) in [("memory", "8Gi"), ("pid", "1k")] {
            let why_not = why(name, all, &bare(&["pods"]));
            assert!(why_not.contains("Expected capacity > reservation"), "{why_not}");
            assert_eq!(why(name, all, &bare(&[])), "");
        }
    }

    #[test]
    fn a_runtime_that_is_down_makes_the_node_not_ready() {
        let (cfg, machine) = (Config::default(), Machine::default());
        let down = RuntimeView {
            network_problem: Some("NetworkReady=false reason:x message:y".into()),
            ..RuntimeView::default()
        };
        let f = Facts {
            cfg: &cfg,
            machine: &machine,
            capacity: Default::default(),
            allocatable: Default::default(),
            devices: Default::default(),
            runtime: &down,
            runtime_version: "r://1".into(),
            declared_features: declared("r"),
            pressures: &["MemoryPressure"],
            storage_problem: None,
            shutdown_problem: None,
            volumes_in_use: vec![],
            images: vec![],
            now: jiff::Timestamp::UNIX_EPOCH,
        };
        let s = status(&f, &api::NodeStatus::default());
        let get = |k: &str| {
            s.conditions
                .as_ref()
                .unwrap()
                .iter()
                .find(|c| c.type_ == k)
                .unwrap()
                .clone()
        };
        assert_eq!(
            (get("Ready").status.as_str(), get("MemoryPressure").status.as_str()),
            ("False", "True")
        );
        assert_eq!(
            get("Ready").message.unwrap(),
            "container runtime network not ready: NetworkReady=false reason:x message:y"
        );
    }

    #[test]
    fn a_status_without_images_comes_back_the_same() {
        let (cfg, machine, runtime) = (Config::default(), Machine::default(), RuntimeView::default());
        let f = Facts {
            cfg: &cfg,
            machine: &machine,
            capacity: Default::default(),
            allocatable: Default::default(),
            devices: Default::default(),
            runtime: &runtime,
            runtime_version: "r://1".into(),
            declared_features: declared("r"),
            pressures: &[],
            storage_problem: None,
            shutdown_problem: None,
            volumes_in_use: vec![],
            images: vec![],
            now: jiff::Timestamp::UNIX_EPOCH,
        };
        let first = status(&f, &api::NodeStatus::default());
        // The API leaves empty lists out.
        assert_eq!(first.images, None);
        let told = first.declared_features.clone().unwrap();
        assert!(
            told.is_sorted() && !told.contains(&"ExtendWebSocketsToKubelet".to_owned()),
            "{told:?}"
        );
        assert_eq!(declared("keelson")[0], "ExtendWebSocketsToKubelet");
        assert!(same(&first, &status(&f, &first)));
    }
}
