//! A component that runs in a cluster and can be killed: the scheduler, the controllers.

use crate::link::Link;
use crate::server::Server;
use keelson_apiserver::UserInfo;
use keelson_client::ClientFactory;
use keelson_client::leader::Election;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// From which namespace things are shared, where it is asked for.
const SHARING: &str = "infra";

pub struct Part {
    /// Its way to the API.
    pub link: Link,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Gives clients whose requests go over one link.
struct Linked {
    server: Server,
    link: Link,
}

impl ClientFactory for Linked {
    fn client(&self, identity: &str) -> kube::Client {
        self.link.client(&self.server, UserInfo::from_identity(identity))
    }
}

impl Part {
    /// The controllers. With an identity they run for leadership against others.
    pub(crate) fn controllers(server: &Server, names: &[String], identity: Option<&str>) -> Part {
        let config = keelson_controllers::Config {
            root_ca_pem: "the cluster's authority".into(),
            signing_cert_pem: server.authority.cert_pem().into(),
            signing_key_pem: server.authority.key_pem(),
            account_keys: Some(std::sync::Arc::new(server.keys.clone())),
            controllers: names.to_vec(),
            leader_election: identity.map(|own| Election::new("kube-controller-manager", own)),
            // Only where it is asked for: the definitions are the test's to bring.
            snapshots: names.iter().any(|n| n == "volumesnapshot"),
            pools: names.iter().any(|n| n == "service-lb"),
            reload: names.iter().any(|n| n == "reload"),
            share_from: names
                .iter()
                .filter(|n| *n == "sharing")
                .map(|_| SHARING.into())
                .collect(),
            cluster_policies: names.iter().any(|n| n == "cluster-network-policy"),
            ..keelson_controllers::Config::default()
        };
        Part::start(server, |clients, stop| keelson_controllers::run(clients, config, stop))
    }

    pub(crate) fn scheduler(server: &Server, profiles: &keelson_scheduler::Config, seed: u64) -> Part {
        let config = keelson_scheduler::Config {
            seed: Some(seed),
            ..profiles.clone()
        };
        Part::start(server, |clients, stop| {
            keelson_scheduler::run(clients.client("system:kube-scheduler"), config, stop)
        })
    }

    /// Who applies add-ons and runs charts, of a server of this name. With an identity it runs for leadership.
    pub(crate) fn addons(server: &Server, name: &str, directories: Vec<PathBuf>, identity: Option<&str>) -> Part {
        let config = keelson_addons::Config {
            server: name.into(),
            directories,
            leader_election: identity.map(str::to_owned),
            helm: Some(keelson_addons::helm::Config {
                always: false,
                settings: keelson_addons::helm::job::Settings {
                    image: keelson_addons::helm::IMAGE.into(),
                    api_port: 6443,
                    proxies: Vec::new(),
                },
            }),
        };
        Part::start(server, |clients, stop| {
            keelson_addons::run(clients.client("system:apiserver"), config, stop)
        })
    }

    fn start<F>(server: &Server, run: impl FnOnce(Arc<dyn ClientFactory>, CancellationToken) -> F) -> Part
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (link, stop) = (Link::default(), CancellationToken::new());
        let clients = Linked {
            server: server.clone(),
            link: link.clone(),
        };
        let task = tokio::spawn(run(Arc::new(clients), stop.clone()));
        Part { link, stop, task }
    }

    /// Ends it as a machine's death does: what it would still say, nobody hears.
    pub fn kill(&self) {
        self.link.cut();
        self.stop.cancel();
    }

    /// Waits until it ends by itself, and tells how.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        (&mut self.task).await.expect("a component doesn't panic")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
