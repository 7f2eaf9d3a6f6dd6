//! One node: the real kubelet over a runtime and a machine in memory.

use keelson_kubelet::fake::{FakeRuntime, Manner};
use keelson_kubelet::host::Machine;
use keelson_kubelet::host::fake::FakeHost;
use keelson_kubelet::{Company, Config, Eviction, build, run_built};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a node has for pods.
#[derive(Clone, Debug)]
pub struct Size {
    pub cpus: i64,
    pub memory: u64,
    pub pods: u32,
}

impl Default for Size {
    fn default() -> Self {
        Size {
            cpus: 4,
            memory: 8 << 30,
            pods: 110,
        }
    }
}

/// What a node is like.
pub struct Setup {
    pub name: String,
    /// Its own address.
    pub address: String,
    /// From where its pods have theirs, as `10.1.2.0/24`.
    pub ranges: String,
    pub size: Size,
    pub labels: BTreeMap<String, String>,
    /// As `key=value:effect`.
    pub taints: Vec<String>,
    pub manner: Manner,
    /// How long its silence goes unnoticed; it is heard four times as often.
    pub lease: Duration,
    /// The others in this process, with whom it shares what can be shared.
    pub company: Option<Arc<Company>>,
}

pub struct Node {
    /// Its containers: they can be crashed, and commands in them can be told how to end.
    pub runtime: FakeRuntime,
    host: Arc<FakeHost>,
    config: Config,
}

/// Nothing changes on such a machine by itself.
const RARELY: Duration = Duration::from_secs(24 * 3600);

impl Node {
    pub fn new(setup: Setup) -> Node {
        let Setup { name, size, .. } = setup;
        let machine = Machine {
            cpus: size.cpus,
            memory: size.memory,
            hostname: name.clone(),
            machine_id: format!("machine-{name}"),
            system_uuid: format!("system-{name}"),
            boot_id: format!("boot-{name}"),
            kernel: "6.1.0".into(),
            os_image: "Simulated".into(),
            architecture: "amd64".into(),
            max_pids: 32768,
            ..Machine::default()
        };
        let now = keelson_clock::now();
        let mut config = Config {
            node_name: name,
            node_ips: vec![setup.address],
            cluster_dns: vec!["10.96.0.10".into()],
            max_pods: size.pods,
            node_labels: setup.labels,
            register_taints: setup.taints,
            lease_duration: setup.lease,
            listen: None,
            ..Config::default()
        };
        if setup.company.is_some() {
            config.company = setup.company;
            config.eviction = Eviction {
                hard: Vec::new(),
                ..Eviction::default()
            };
            config.log_monitor = RARELY;
            // What does change, a change of the Node object or of the runtime tells.
            config.status_update = Duration::from_secs(100);
        }
        Node {
            runtime: FakeRuntime::with(now, &setup.ranges, setup.manner),
            host: Arc::new(FakeHost::new(machine, now)),
            config,
        }
    }

    pub fn name(&self) -> &str {
        &self.config.node_name
    }

    /// A kubelet of this node, until it is told to stop; containers go on then, as they do when a kubelet is updated.
    pub fn kubelet(
        &self,
        client: kube::Client,
        stop: CancellationToken,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + use<> {
        let (host, runtime, config) = (self.host.clone(), self.runtime.clients(), self.config.clone());
        async move {
            // What starting takes isn't kept for as long as it runs.
            let kubelet = Box::pin(build(host, client, runtime, config, stop)).await?;
            Box::pin(run_built(kubelet)).await
        }
    }
}
