//! One node: the real kubelet over a fake runtime and a fake machine, as `simulate` makes them, with a cable to the API.

use crate::link::Link;
use crate::server::Server;
use keelson_apiserver::UserInfo;
use keelson_simulate::{FakeRuntime, Manner, Setup};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use keelson_simulate::Size;

pub struct Node {
    pub name: String,
    /// Its containers: they can be crashed, and commands in them can be told how to end.
    pub runtime: FakeRuntime,
    simulated: keelson_simulate::Node,
    link: Link,
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
        let simulated = keelson_simulate::Node::new(Setup {
            name: name.to_owned(),
            address: format!("192.168.0.{}", index + 1),
            ranges: format!("10.244.{index}.0/24"),
            size: size.clone(),
            labels,
            taints: Vec::new(),
            manner: Manner::default(),
            lease: Duration::from_secs(40),
            company: None,
        });
        let mut node = Node {
            name: name.to_owned(),
            runtime: simulated.runtime.clone(),
            simulated,
            link: Link::default(),
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
        self.kubelet = Some(tokio::spawn(self.simulated.kubelet(client, self.stop.clone())));
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
