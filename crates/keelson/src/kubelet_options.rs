//! What the node's kubelet is told: upstream's flags under their own names, upstream's `KubeletConfiguration` from a file and
//! a directory of drop-ins, and any other flag of upstream's kubelet by `--kubelet-arg`. All of it meets in one document
//! ([`keelson_kubelet::configuration`]): files in order, then what is said here.

use anyhow::{Context, bail};
use clap::Args;
use keelson_kubelet::configuration::Document;
use keelson_machinery::names;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

/// A flag's text. In a file lists and maps may be written as such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said(String);

impl FromStr for Said {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Said, Self::Err> {
        Ok(Said(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Said, D::Error> {
        let plain = |v: &Value| match v {
            Value::String(s) => s.clone(),
            other => other.to_string(),
        };
        Ok(Said(match Value::deserialize(from)? {
            Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
            Value::Object(map) => {
                let pairs = map.iter().map(|(k, v)| format!("{k}={}", plain(v)));
                pairs.collect::<Vec<_>>().join(",")
            }
            value => plain(&value),
        }))
    }
}

macro_rules! flags {
    ($($(#[doc = $doc:literal])* $field:ident, $env:literal, $value:literal, $flag:literal;)*) => {
        #[derive(Args, Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct KubeletOptions {
            /// YAML file with a KubeletConfiguration, kubelet.config.k8s.io/v1beta1
            #[arg(long, env = "KEELSON_KUBELET_CONFIG", value_name = "FILE")]
            pub kubelet_config: Option<PathBuf>,
            /// Directory of further ones: those that end in .conf are merged over it, in the order of their names
            #[arg(long, env = "KEELSON_KUBELET_CONFIG_DIR", value_name = "DIR")]
            pub kubelet_config_dir: Option<PathBuf>,
            /// Any flag of upstream's kubelet, as NAME=VALUE; may be given several times
            #[arg(long, env = "KEELSON_KUBELET_ARG", value_name = "NAME=VALUE")]
            pub kubelet_arg: Option<Vec<String>>,
            /// Labels that the node gets when it registers, as KEY=VALUE,…
            #[arg(long, env = "KEELSON_NODE_LABELS", value_name = "LIST")]
            pub node_labels: Option<Said>,
            $($(#[doc = $doc])* #[arg(long, env = $env, value_name = $value)] pub $field: Option<Said>,)*
        }

        impl KubeletOptions {
            /// Names in a file.
            pub fn names() -> Vec<String> {
                let own = ["kubelet_config", "kubelet_config_dir", "kubelet_arg", "node_labels"];
                own.into_iter().chain([$(stringify!($field)),*]).map(|n| n.replace('_', "-")).collect()
            }

            /// Takes over from another list what this one leaves open.
            pub fn fill(&mut self, other: KubeletOptions) {
                crate::config::fill!(self from other: kubelet_config, kubelet_config_dir, kubelet_arg, node_labels, $($field),*);
            }

            fn said(&self) -> Vec<(&'static str, &Said)> {
                [$(($flag, &self.$field)),*].into_iter().filter_map(|(flag, said)| Some((flag, said.as_ref()?))).collect()
            }
        }
    };
}

flags! {
    /// Most pods on this node [default: 110]
    max_pods, "KEELSON_MAX_PODS", "N", "max-pods";
    /// Processes that a pod may have; -1: any number [default: -1]
    pod_max_pids, "KEELSON_POD_MAX_PIDS", "N", "pod-max-pids";
    /// When pods are ended at once to keep the node alive; what isn't named isn't looked at
    /// [default: memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%,pid.available<5%]
    eviction_hard, "KEELSON_EVICTION_HARD", "LIST", "eviction-hard";
    /// When pods are ended after some time, with --eviction-soft-grace-period
    eviction_soft, "KEELSON_EVICTION_SOFT", "LIST", "eviction-soft";
    /// After how long, by signal, as memory.available=1m30s,…
    eviction_soft_grace_period, "KEELSON_EVICTION_SOFT_GRACE_PERIOD", "LIST", "eviction-soft-grace-period";
    /// The most seconds that a pod gets to end then [default: 0]
    eviction_max_pod_grace_period, "KEELSON_EVICTION_MAX_POD_GRACE_PERIOD", "N", "eviction-max-pod-grace-period";
    /// How much more has to be free until it is enough, by signal, as memory.available=500Mi,…
    eviction_minimum_reclaim, "KEELSON_EVICTION_MINIMUM_RECLAIM", "LIST", "eviction-minimum-reclaim";
    /// How long a pressure is told after it has gone [default: 5m]
    eviction_pressure_transition_period, "KEELSON_EVICTION_PRESSURE_TRANSITION_PERIOD", "DURATION", "eviction-pressure-transition-period";
    /// What is kept from pods for the machine, as cpu=500m,memory=1Gi,ephemeral-storage=5Gi,pid=1000
    system_reserved, "KEELSON_SYSTEM_RESERVED", "LIST", "system-reserved";
    /// What is kept from pods for Keelson, in the same form
    kube_reserved, "KEELSON_KUBE_RESERVED", "LIST", "kube-reserved";
    /// CPUs that are kept from pods, as 0-1,4, in place of those two amounts of CPU
    reserved_cpus, "KEELSON_RESERVED_CPUS", "LIST", "reserved-cpus";
    /// Who is held to what there is for him: pods, system-reserved, kube-reserved, or none [default: pods]
    enforce_node_allocatable, "KEELSON_ENFORCE_NODE_ALLOCATABLE", "LIST", "enforce-node-allocatable";
    /// Unused images are removed from so full a disk on, in percent [default: 85]
    image_gc_high_threshold, "KEELSON_IMAGE_GC_HIGH_THRESHOLD", "N", "image-gc-high-threshold";
    /// Until the disk is only so full [default: 80]
    image_gc_low_threshold, "KEELSON_IMAGE_GC_LOW_THRESHOLD", "N", "image-gc-low-threshold";
    /// Size from which on a container's log is put aside [default: 10Mi]
    container_log_max_size, "KEELSON_CONTAINER_LOG_MAX_SIZE", "SIZE", "container-log-max-size";
    /// Files that are kept of a container's log [default: 5]
    container_log_max_files, "KEELSON_CONTAINER_LOG_MAX_FILES", "N", "container-log-max-files";
    /// Taints that the node gets when it registers, as KEY=VALUE:EFFECT,…
    register_with_taints, "KEELSON_REGISTER_WITH_TAINTS", "LIST", "register-with-taints";
    /// Containers that say nothing get the seccomp profile RuntimeDefault [default: false]
    seccomp_default, "KEELSON_SECCOMP_DEFAULT", "BOOL", "seccomp-default";
    /// Sysctls that pods may set beyond the safe ones; a * at the end stands for any
    allowed_unsafe_sysctls, "KEELSON_ALLOWED_UNSAFE_SYSCTLS", "LIST", "allowed-unsafe-sysctls";
    /// How CPUs, memory and devices are brought near each other: none, best-effort, restricted or single-numa-node [default: none]
    topology_manager_policy, "KEELSON_TOPOLOGY_MANAGER_POLICY", "POLICY", "topology-manager-policy";
    /// How CPUs are given: none, or static, for containers that may have whole ones alone [default: none]
    cpu_manager_policy, "KEELSON_CPU_MANAGER_POLICY", "POLICY", "cpu-manager-policy";
    /// How memory is given: None, or Static, for containers of guaranteed pods from certain nodes of memory [default: None]
    memory_manager_policy, "KEELSON_MEMORY_MANAGER_POLICY", "POLICY", "memory-manager-policy";
    /// What is kept from pods on each node of memory, as 0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=1Gi: in sum what the node keeps
    reserved_memory, "KEELSON_RESERVED_MEMORY", "LIST", "reserved-memory";
    /// File, or directory of files, with a CredentialProviderConfig: programs that have credentials for images
    image_credential_provider_config, "KEELSON_IMAGE_CREDENTIAL_PROVIDER_CONFIG", "PATH", "image-credential-provider-config";
    /// Directory of those programs
    image_credential_provider_bin_dir, "KEELSON_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR", "DIR", "image-credential-provider-bin-dir";
}

impl KubeletOptions {
    /// Reads the files and adds what is said here, and last the program's own options (`own`, as flags of the kubelet). Whatever
    /// can't be honoured is an error, before anything starts.
    pub fn resolve(&self, own: &[(&str, String)]) -> anyhow::Result<Document> {
        let mut document = Document::read(self.kubelet_config.as_deref(), self.kubelet_config_dir.as_deref())?;
        for arg in self.kubelet_arg.iter().flatten() {
            let arg = arg.trim_start_matches('-');
            let (name, text) = arg.split_once('=').unwrap_or((arg, "true"));
            if name == "node-labels" {
                bail!("--kubelet-arg {arg}: --node-labels says it");
            }
            let said = document.flag(name, text).map_err(anyhow::Error::msg);
            said.with_context(|| format!("--kubelet-arg {arg}"))?;
        }
        for (flag, Said(text)) in self.said() {
            document.say(flag, text).map_err(anyhow::Error::msg)?;
        }
        for (flag, text) in own {
            document.say(flag, text).map_err(anyhow::Error::msg)?;
        }
        let judged = document.apply(&mut keelson_kubelet::Config::default());
        judged.map_err(anyhow::Error::msg)?;
        Ok(document)
    }

    /// Labels of the node.
    pub fn labels(&self) -> anyhow::Result<BTreeMap<String, String>> {
        labels(self.node_labels.iter().flat_map(|Said(text)| text.split(',')))
    }
}

/// Labels of a node, each as `KEY=VALUE`. Of Kubernetes' own only those that upstream's kubelets may set.
pub fn labels<'a>(said: impl Iterator<Item = &'a str>) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for pair in said.map(str::trim).filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        all.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    let unknown: Vec<&str> = all.keys().map(String::as_str).filter(|k| !may_label(k)).collect();
    if !unknown.is_empty() {
        bail!(
            "unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: {unknown:?}\n--node-labels in the \
             'kubernetes.io' namespace must begin with an allowed prefix ({}) or be in the specifically allowed set ({})",
            PREFIXES.join(", "),
            LABELS.join(", ")
        );
    }
    for (key, value) in &all {
        let wrong = [(key, names::label_key(key)), (value, names::label_value(value))];
        if let Some((text, why)) = wrong.into_iter().find(|(_, why)| !why.is_empty()) {
            bail!("invalid node labels: '{text}' - {}", why.join(", "));
        }
    }
    Ok(all)
}

const PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

fn may_label(key: &str) -> bool {
    let Some((namespace, _)) = key.split_once('/') else {
        return true;
    };
    let is = |domain: &str| namespace == domain || namespace.ends_with(&format!(".{domain}"));
    !(is("kubernetes.io") || is("k8s.io")) || LABELS.contains(&key) || PREFIXES.iter().any(|p| is(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Option<Said> {
        Some(Said(text.into()))
    }

    #[test]
    fn files_then_options_make_one_document() {
        let dir = std::env::temp_dir().join(format!("keelson-kubelet-config-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("more")).unwrap();
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), format!("{head}{text}")).unwrap();
        write(
            "base.yaml",
            "maxPods: 10\npodsPerCore: 3\nregisterWithTaints: [{key: a, effect: NoSchedule}]\n",
        );
        write("more/20.conf", "maxPods: 30\n");
        write("more/10.conf", "maxPods: 20\npodPidsLimit: 99\n");
        write("more/ignored.yaml", "maxPods: 1\n");
        let options = KubeletOptions {
            kubelet_config: Some(dir.join("base.yaml")),
            kubelet_config_dir: Some(dir.join("more")),
            kubelet_arg: Some(vec![
                "--image-gc-high-threshold=70".into(),
                "image-gc-low-threshold=60".into(),
            ]),
            system_reserved: said("cpu=100m"),
            ..KubeletOptions::default()
        };
        let mut config = keelson_kubelet::Config::default();
        options.resolve(&[]).unwrap().apply(&mut config).unwrap();
        assert_eq!(
            (config.max_pods, config.pods_per_core, config.pod_pids_limit),
            (30, 3, Some(99))
        );
        assert_eq!((config.image_gc_high_percent, config.image_gc_low_percent), (70, 60));
        assert_eq!(config.system_reserved["cpu"], "100m");
        let own = [("port", "11250".to_owned())];
        options.resolve(&own).unwrap().apply(&mut config).unwrap();
        assert_eq!(config.port, 11250);
        let wrong = options.resolve(&[("port", "0".to_owned())]).unwrap_err().to_string();
        assert!(wrong.contains("port (--port) 0 must be between 1 and 65535"), "{wrong}");
        write("more/30.conf", "maxPod: 30\n");
        let error = format!("{:#}", options.resolve(&[]).unwrap_err());
        assert!(
            error.contains("30.conf") && error.contains("unknown field \"maxPod\""),
            "{error}"
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_can_not_be_honoured_is_told_before_the_start() {
        let refuse = |options: KubeletOptions| format!("{:#}", options.resolve(&[]).unwrap_err());
        let topology = KubeletOptions {
            topology_manager_policy: said("nearest"),
            ..KubeletOptions::default()
        };
        assert!(
            refuse(topology).contains("topologyManagerPolicy (--topology-manager-policy): \"nearest\" must be one of")
        );
        let arg = KubeletOptions {
            kubelet_arg: Some(vec!["cgroup-driver=systemd".into()]),
            ..KubeletOptions::default()
        };
        assert!(refuse(arg).contains("cgroupDriver (--cgroup-driver): systemd can't be had here"));
    }

    #[test]
    fn labels_of_kubernetes_own_are_the_allowed_ones() {
        let labels = |text| {
            let node_labels = said(text);
            KubeletOptions {
                node_labels,
                ..KubeletOptions::default()
            }
            .labels()
        };
        let good = labels("a=b,node.kubernetes.io/x=y,topology.kubernetes.io/zone=z,example.com/flag").unwrap();
        assert_eq!(good.len(), 4);
        let error = labels("node-role.kubernetes.io/worker=,a=b").unwrap_err().to_string();
        assert!(error.contains("[\"node-role.kubernetes.io/worker\"]"), "{error}");
        let error = labels("a=b c").unwrap_err().to_string();
        assert!(error.starts_with("invalid node labels: 'b c' - "), "{error}");
    }

    #[test]
    fn lists_and_maps_may_be_written_as_such_in_a_file() {
        let text = "system-reserved: {cpu: 1, memory: 1Gi}\nregister-with-taints: [a=b:NoSchedule]\nmax-pods: 7\n";
        let options: KubeletOptions = serde_saphyr::from_str(text).unwrap();
        assert_eq!(options.system_reserved, said("cpu=1,memory=1Gi"));
        assert_eq!(options.register_with_taints, said("a=b:NoSchedule"));
        assert_eq!(options.max_pods, said("7"));
        assert!(serde_saphyr::from_str::<KubeletOptions>("max-pod: 7\n").is_err());
        assert!(KubeletOptions::names().contains(&"eviction-soft-grace-period".to_owned()));
    }
}
