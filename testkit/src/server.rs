//! The API server of a cluster, which can be killed and started anew over the same store.

use crate::link::Link;
use crate::part::Part;
use keelson_apiserver::{ApiServer, ApiService, Config, UserInfo};
use keelson_client::Rest;
use keelson_pki::{Authority, ServiceAccountKeys};
use keelson_store::Memory;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone)]
pub struct Server {
    pub(crate) store: Arc<Memory>,
    pub(crate) keys: ServiceAccountKeys,
    /// Signs certificate requests.
    pub(crate) authority: Arc<Authority>,
    running: Arc<watch::Sender<Option<Arc<ApiServer>>>>,
}

impl Server {
    pub(crate) async fn start() -> Server {
        let keys = ServiceAccountKeys::generate().expect("keys for tokens");
        let authority = Authority::generate("kubernetes").expect("an authority");
        Server::over(Memory::new(), keys, Arc::new(authority)).await
    }

    /// A server without a cluster around it, in whatever time there is.
    pub async fn alone() -> Server {
        Server::start().await
    }

    /// Requests of an administrator.
    pub fn administrator(&self) -> Rest {
        let user = UserInfo::new("tester", &["system:masters"]);
        Rest::new(Link::default().client(self, user), "testkit")
    }

    /// Who tells and applies what these directories say.
    pub fn addons(&self, name: &str, directories: &[&Path]) -> Part {
        Part::addons(self, name, directories.iter().map(|d| d.to_path_buf()).collect(), None)
    }

    async fn over(store: Arc<Memory>, keys: ServiceAccountKeys, authority: Arc<Authority>) -> Server {
        let server = Server {
            store,
            keys,
            authority,
            running: Arc::default(),
        };
        server.resume().await;
        server
    }

    /// Another server over the same store, as with several control planes. It lives on when this one dies.
    pub async fn twin(&self) -> Server {
        Server::over(self.store.clone(), self.keys.clone(), self.authority.clone()).await
    }

    /// Ends it as the process's death does: answers that were still to come never come, and what streams breaks off.
    pub fn kill(&self) {
        if let Some(api) = self.running.send_replace(None) {
            api.shutdown();
        }
    }

    /// Starts it over what the store holds, and waits until it is ready.
    pub async fn resume(&self) {
        let api = ApiServer::new(Config::new(self.keys.clone()), self.store.clone());
        let api = Arc::new(api.expect("an API server"));
        api.ready().await;
        self.running.send_replace(Some(api));
    }

    /// The one that runs now, with this identity.
    pub(crate) fn service(&self, user: &UserInfo) -> Option<ApiService> {
        self.running.borrow().as_ref().map(|api| api.service(user.clone()))
    }

    /// Resolves when the one that runs now runs no more.
    pub(crate) fn death(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut running = self.running.subscribe();
        running.mark_unchanged();
        async move {
            // The sender's end is an end, too.
            let _ = running.changed().await;
        }
    }
}
