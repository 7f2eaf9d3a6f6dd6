//! One node: the real kubelet over a fake runtime and a fake machine.

use crate::link::Link;
use crate::server::Server;
use keelson_apiserver::UserInfo;
use keelson_kubelet::fake::FakeRuntime;
use keelson_kubelet::host::Machine;
use keelson_kubelet::host::fake::FakeHost;
use keelson_kubelet::{Config, run_on};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::JoinHandle;
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

pub struct Node {
    pub name: String,
    /// Its containers: they can be crashed, and commands in them can be told how to end.
    pub runtime: FakeRuntime,
    host: Arc<FakeHost>,
    link: Link,
    config: Config,
    stop: CancellationToken,
    kubelet: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Node {
    /// The `index`-th node: its addresses follow from that.
    pub(crate) fn start(
        server: &Server,
        name: &str,
        index: usize,
        size: &Size,
        labels: BTreeMap<String, String>,
    ) -> Node {
        let machine = Machine {
            cpus: size.cpus,
            memory: size.memory,
            hostname: name.to_owned(),
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
        let config = Config {
            node_name: name.to_owned(),
            node_ips: vec![format!("192.168.0.{}", index + 1)],
            cluster_dns: vec!["10.96.0.10".into()],
            max_pods: size.pods,
            node_labels: labels,
            listen: None,
            ..Config::default()
        };
        let mut node = Node {
            name: name.to_owned(),
            runtime: FakeRuntime::new(now, &format!("10.244.{index}")),
            host: Arc::new(FakeHost::new(machine, now)),
            link: Link::default(),
            config,
            stop: CancellationToken::new(),
            kubelet: None,
        };
        node.resume(server);
        node
    }

    /// Ends the kubelet and nothing else: containers go on, as they do when a kubelet is updated.
    pub async fn halt(&mut self) {
        self.stop.cancel();
        if let Some(kubelet) = self.kubelet.take() {
            let ended = kubelet.await.expect("the kubelet doesn't panic");
            ended.expect("the kubelet ends well");
        }
    }

    pub(crate) fn resume(&mut self, server: &Server) {
        let identity = UserInfo::from_identity(&format!("system:node:{}", self.name));
        let client = self.link.client(server, identity);
        self.stop = CancellationToken::new();
        let (host, runtime) = (self.host.clone(), self.runtime.clients());
        let run = run_on(host, client, runtime, self.config.clone(), self.stop.clone());
        self.kubelet = Some(tokio::spawn(run));
    }

    /// Cuts the node off the API. Its pods go on; nobody hears of them.
    pub fn cut(&self) {
        self.link.cut();
    }

    pub fn mend(&self) {
        self.link.mend();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
