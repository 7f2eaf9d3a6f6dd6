//! The API server put together: parts, followers, bootstrap, readiness, end.

use crate::admission::{self, Configured, policy::PolicyStatus};
use crate::aggregation::{self, Services};
use crate::audit::Audit;
use crate::authn::impersonation::Impersonation;
use crate::authn::oidc::Issuers;
use crate::authn::revoked::{self, Revocations};
use crate::authn::tokens::{Issuer, ServiceAccountTokens};
use crate::authn::vouched::{Came, Vouched};
use crate::authn::x509::CertificateAuthenticator;
use crate::authn::{self, Authenticator};
use crate::authz::escalation::EscalationCheck;
use crate::authz::node::NodeAuthorizer;
use crate::authz::rbac::Rbac;
use crate::authz::rule::Rule;
use crate::authz::{self, Authorizers};
use crate::bootstrap::{self, Identity, Servers};
use crate::config::Config;
use crate::config::file::{self, Reloads};
use crate::connect::{ClientTls, KubeletClient, Trust};
use crate::consistency;
use crate::crd;
use crate::discovery::Discovery;
use crate::flow::{self, FlowControl};
use crate::health::{Health, Hook, Hooks};
use crate::live::{self, Sink};
use crate::metrics::Metrics;
use crate::nonresource;
use crate::openapi::OpenApi;
use crate::renew::{self, CertificateFiles};
use crate::request::{Intake, UserInfo};
use crate::serve::listener::{Limits, Listener};
use crate::serve::tls::{self, ServingCert};
use crate::serve::{ApiService, Handle, Loopback};
use crate::state::ServerState;
use crate::sync::Following;
use anyhow::{Context, Result};
use futures::future::OptionFuture;
use keelson_api::Str;
use keelson_pki::{CertFiles, Current, Pki};
use keelson_registry::{Engine, ResourceTable, resources};
use keelson_store::Store;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A client that has had a tenth of a processor lately comes after those who had less.
const SHARE: Duration = Duration::from_millis(100);
const FLOW_SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const PRIORITY_LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";

/// The API server. Its tasks end when it is dropped or [shut down](Self::shutdown).
pub struct ApiServer {
    state: Arc<ServerState>,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
    /// `None`: nobody but this machine reaches it.
    servers: Option<Arc<Servers>>,
    identity: Option<Arc<Identity>>,
}

impl ApiServer {
    /// Puts a server together over a store and starts what it follows. Has to be called within a tokio runtime.
    pub fn new(config: Config, store: Arc<dyn Store>) -> Result<ApiServer> {
        let stop = CancellationToken::new();
        let (ready_sender, ready) = watch::channel(false);
        let made = Made::new(&config)?;
        let issuers = made.issuers.clone();
        let store = match &config.history {
            Some(history) => history.noting(store),
            None => store,
        };
        let state = Arc::new_cyclic(|weak: &Weak<ServerState>| assemble(config, store, made, weak.clone()));
        let config = &state.config;
        // A server that only this machine reaches (a test) is of no use to others.
        let reachable = config.publish_kubernetes_service && !config.advertise_address.is_loopback();
        let (store, loopback) = (state.engine.store().clone(), state.loopback.clone());
        let identity = config.host.as_ref().map(|host| Identity::new(loopback.clone(), host));
        let servers = reachable.then(|| Servers::new(store, loopback, config.advertise_address, config.advertise_port));
        let server = ApiServer {
            state,
            ready,
            stop,
            servers,
            identity,
        };
        server.start(ready_sender);
        server.follow_files(issuers);
        Ok(server)
    }

    pub fn state(&self) -> &Arc<ServerState> {
        &self.state
    }
    /// The whole chain as a tower service, with one identity.
    pub fn service(&self, user: UserInfo) -> ApiService {
        ApiService::new(self.state.clone(), user)
    }
    /// A client within the process.
    pub fn client(&self, user: UserInfo) -> kube::Client {
        self.service(user).client()
    }
    /// Requests that APIServices send to this service go to a server within the process. They have been authorised.
    pub fn run_here(&self, namespace: &str, service: &str, server: Arc<dyn Handle>) {
        self.state.services.run_here(namespace, service, server);
    }
    /// The chain for a listener: without an identity.
    pub fn handle(&self) -> Arc<dyn Handle> {
        self.state.clone()
    }

    /// Resolves when all that is followed, roles and flow schemas too, is in memory, and the objects every cluster has are there or
    /// are long in coming.
    pub async fn ready(&self) {
        // The sender lives as long as the bootstrap task; if that was stopped, nobody needs the answer.
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// Serves HTTPS until `stop`.
    pub async fn serve(&self, socket: TcpListener, cert: Arc<ServingCert>, stop: CancellationToken) -> Result<()> {
        let config = &self.state.config;
        // Without one nobody could come by a certificate.
        tls::roots(&config.client_ca_pem).context("the client authority")?;
        let listener = Listener {
            socket,
            cert,
            vouched: self.state.vouched.clone(),
            revocations: self.state.revocations.clone(),
            offer: config.tls.clone(),
            limits: Limits {
                // A simulated clock is one thread's.
                share: (!keelson_clock::is_simulated()).then_some(SHARE),
                ..Limits::default()
            },
            failed: self.state.metrics.failed_handshakes.clone(),
        };
        let ending = &self.state.ending;
        let leave = async {
            stop.cancelled().await;
            ending.cancel();
        };
        let served = listener.run(self.handle(), stop.clone());
        tokio::pin!(served);
        tokio::select! {
            served = &mut served => served,
            () = leave => served.await,
        }
    }

    /// Renews the server's certificates before they end, and trusts whom `pki` trusts now, until the server's end. `serving` issues (or
    /// finds) the serving certificate.
    pub fn keep_certificates<F>(&self, pki: Current, serving: F, cert: Arc<ServingCert>)
    where
        F: Fn(&Pki) -> Result<CertFiles> + Send + 'static,
    {
        let (state, stop) = (Arc::downgrade(&self.state), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = renew::run(state, pki, serving, cert) => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// The same of what somebody else renews, in files.
    pub fn follow_certificates(&self, files: CertificateFiles) {
        let (state, stop) = (Arc::downgrade(&self.state), self.stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(renew::follow(state, files)).await });
    }

    /// Who came by certificates of a former authority.
    pub fn formers(&self) -> Vec<Came> {
        self.state.vouched.formers()
    }
    /// Told when these may have changed.
    pub fn formers_changes(&self) -> watch::Receiver<()> {
        self.state.vouched.changes()
    }

    /// Tells the cluster that this server is about to stop; new connections go to others from now on, if there are any.
    pub async fn leave(&self) {
        let servers = async {
            let Some(servers) = &self.servers else { return };
            match tokio::time::timeout(LEAVE_WITHIN, servers.leave()).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::warn!("taking this server out of the service kubernetes failed: {e}"),
                Err(_) => tracing::warn!("taking this server out of the service kubernetes took too long"),
            }
        };
        let identity = async {
            let Some(identity) = &self.identity else { return };
            match tokio::time::timeout(LEAVE_WITHIN, identity.leave()).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::warn!("removing this server's lease failed: {e}"),
                Err(_) => tracing::warn!("removing this server's lease took too long"),
            }
        };
        tokio::join!(servers, identity);
    }

    /// `/readyz` says from now on that the server ends; requests are taken as before.
    pub fn announce_end(&self) {
        self.state.ending.cancel();
    }

    /// Ends the server's tasks. Requests that are open go on.
    pub fn shutdown(&self) {
        self.state.ending.cancel();
        self.stop.cancel();
    }

    /// Configuration in files is followed while the server runs.
    fn follow_files(&self, issuers: Option<Arc<Issuers>>) {
        let (config, metrics) = (&self.state.config, &self.state.metrics);
        if let Some(issuers) = issuers.clone() {
            let server = config.id();
            metrics.add(move |page| issuers.write(page, &server));
        }
        if let (Some(issuers), Some(source)) = (issuers, &config.authentication.file) {
            let reloads = Reloads::new("authentication_config_controller", &config.id(), &source.text);
            let counted = reloads.clone();
            metrics.add(move |page| counted.write(page));
            let into = authn::reload::Reload {
                issuers,
                anonymous: source.anonymous.clone(),
                own: config.issuers(),
            };
            let (path, text) = (source.path.clone(), source.text.clone());
            tokio::spawn(file::follow(path, text, reloads, self.stop.clone(), into));
        }
        let authorizer = self.state.authorizer.clone();
        metrics.add(move |page| authorizer.write(page));
        if let Some((path, text)) = config.authorization.file.clone() {
            let reloads = Reloads::new("authorization_config_controller", &config.id(), &text);
            let counted = reloads.clone();
            metrics.add(move |page| counted.write(page));
            let into = authz::reload::Reload(self.state.authorizer.clone());
            tokio::spawn(file::follow(path, text, reloads, self.stop.clone(), into));
        }
    }

    fn start(&self, ready: watch::Sender<bool>) {
        let (state, stop) = (&self.state, &self.stop);
        let follow =
            |path: &'static str, sink: Arc<dyn Sink>| (path, live::follow(&state.loopback, path, sink, stop.clone()));
        let mut synced = vec![
            follow(revoked::PATH, revoked::sink(&state.revocations)),
            follow("/apis/rbac.authorization.k8s.io/v1/roles", state.rbac.role_sink()),
            follow(
                "/apis/rbac.authorization.k8s.io/v1/clusterroles",
                state.rbac.cluster_role_sink(),
            ),
            follow(
                "/apis/rbac.authorization.k8s.io/v1/rolebindings",
                state.rbac.binding_sink(),
            ),
            follow(
                "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                state.rbac.cluster_binding_sink(),
            ),
            follow(FLOW_SCHEMAS, state.flow.schema_sink()),
            follow(PRIORITY_LEVELS, state.flow.level_sink()),
            follow(aggregation::SERVICES_PATH, state.services.sink()),
        ];
        let (engine, is_alone) = (state.engine.clone(), state.config.alone);
        let custom = crd::CustomResources::new(engine, state.loopback.clone(), state.openapi.clone(), is_alone);
        synced.push(follow(crd::PATH, custom.sink()));
        tokio::spawn(custom.run(stop.clone()));
        state.hooks.done(&[Hook::ExtensionControllers]);
        synced.extend(
            state
                .configured
                .sinks()
                .into_iter()
                .map(|(path, sink)| follow(path, sink)),
        );
        let policies = PolicyStatus::new(state.table.clone(), state.loopback.clone());
        synced.push(follow(PolicyStatus::PATH, policies.sink()));
        tokio::spawn(policies.run(stop.clone()));
        let namespaces = bootstrap::KeptNamespaces::new(state.loopback.clone());
        synced.push(follow(bootstrap::KeptNamespaces::PATH, namespaces.sink()));
        tokio::spawn(namespaces.run(stop.clone()));
        let tracking = bootstrap::TokenTracking::new(state.loopback.clone());
        synced.push(follow(bootstrap::TokenTracking::PATH, tracking.sink()));
        tokio::spawn(tracking.run(stop.clone()));
        state
            .hooks
            .done(&[Hook::LegacyTokenTracking, Hook::IdentityLease, Hook::IdentityCollector]);
        synced.extend(
            state
                .node_authorizer
                .sinks()
                .into_iter()
                .map(|(path, sink)| follow(path, sink)),
        );
        state.sync.started(synced);
        state.hooks.done(&[Hook::GenericInformers, Hook::ExtensionInformers]);
        let (loopback, rbac, sync) = (state.loopback.clone(), state.rbac.clone(), state.sync.clone());
        let (hooks, engine) = (state.hooks.clone(), state.engine.clone());
        let spec = bootstrap::Spec::of(&state.config);
        let (table, stopped, servers) = (state.table.clone(), stop.clone(), self.servers.clone());
        let identity = self.identity.clone();
        tokio::spawn(async move {
            let work = async {
                let absent = async {
                    if let Some(servers) = &servers
                        && let Err(e) = servers.not_yet().await
                    {
                        tracing::warn!(
                            "an earlier run of this server could not be taken out of the service kubernetes: {e}"
                        );
                    }
                };
                let begun = async {
                    tokio::join!(
                        bootstrap::run(&spec, &loopback, &hooks),
                        follow_hooks(&sync, &hooks),
                        absent
                    );
                    rbac.wait_for_bootstrap(&bootstrap::objects()).await;
                    hooks.done(&[Hook::BootstrapRoles]);
                    until_filled(&engine).await;
                    hooks.done(&[Hook::StorageReadiness]);
                };
                let mut begun = std::pin::pin!(begun);
                let is_late = tokio::time::timeout(READY_WITHIN, &mut begun).await.is_err();
                if is_late {
                    // Somebody's webhook may refuse them, behind which is a pod that others have to run first, and that asks
                    // this server by the service kubernetes.
                    tracing::warn!(
                        "some of the objects every cluster has aren't there after {READY_WITHIN:?}: others begin without them"
                    );
                }
                let others = async {
                    // Nobody outside can keep this from being read, and what isn't read yet is not missing.
                    sync.wait_for_all().await;
                    ready.send_replace(true);
                    tokio::join!(
                        aggregation::register::run(table, loopback.clone(), stopped.clone(), &hooks),
                        repair_services(&engine, &hooks),
                        OptionFuture::from(servers.as_ref().map(|servers| servers.run())),
                        OptionFuture::from(identity.as_ref().map(|identity| identity.run())),
                    );
                };
                tokio::join!(OptionFuture::from(is_late.then_some(begun)), others);
            };
            tokio::select! {
                () = work => {}
                () = stopped.cancelled() => {}
            }
        });
        tokio::spawn(state.flow.clone().run(stop.clone()));
        state.hooks.done(&[Hook::FlowFilter]);
        let statuses = flow::status::run(state.flow.clone(), state.loopback.clone(), stop.clone());
        let (sync, stopped) = (state.sync.clone(), stop.clone());
        tokio::spawn(async move {
            // What isn't read yet is not missing.
            tokio::select! {
                () = sync.wait_for(&[FLOW_SCHEMAS, PRIORITY_LEVELS]) => statuses.await,
                () = stopped.cancelled() => {}
            }
        });
        if let Some(sealing) = state.config.sealing.clone() {
            let stop = stop.clone();
            tokio::spawn(async move { sealing.run(stop).await });
        }
        tokio::spawn(aggregation::watch_availability(Arc::downgrade(state), stop.clone()));
        let (engine, told) = (state.engine.clone(), state.metrics.store.clone());
        tokio::spawn(consistency::run(engine, told, stop.clone()));
    }
}

/// Tells the hooks of what the server follows when it has been read.
async fn follow_hooks(sync: &Following, hooks: &Hooks) {
    const CONFIGURED: &[Hook] = &[Hook::AdmissionInitializer];
    let configured = Configured::PATHS;
    let flow = [FLOW_SCHEMAS, PRIORITY_LEVELS];
    let services = [
        Hook::AggregatorInformers,
        Hook::ServiceRegistration,
        Hook::ServiceOpenApi,
        Hook::ServiceOpenApiV3,
    ];
    let read = async |paths: &[&str], done: &[Hook]| {
        sync.wait_for(paths).await;
        hooks.done(done);
    };
    tokio::join!(
        read(&configured, CONFIGURED),
        read(&flow, &[Hook::FlowConsumer]),
        read(&[crd::PATH], &[Hook::CrdsSynced]),
        read(&[aggregation::SERVICES_PATH], &services),
    );
    sync.wait_for_all().await;
}

/// Upstream's, of `--storage-initialization-timeout`.
const FILLED_WITHIN: Duration = Duration::from_secs(60);

/// Waits until the caches that a start has begun can be read, but not for ever: who needs one waits for it by himself.
async fn until_filled(engine: &Engine) {
    let filled = async {
        let mut pause = Duration::from_millis(5);
        while !engine.unready().is_empty() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    };
    if tokio::time::timeout(FILLED_WITHIN, filled).await.is_err() {
        let resources = engine.unready().join(", ");
        tracing::warn!(resources, "the API serves before these could be read from the store");
    }
}

/// So long those who use this server within the process wait for what every cluster has.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A store that doesn't answer must not keep a server from stopping; its announcement goes by itself.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// Upstream's interval.
const REPAIR_AGAIN: Duration = Duration::from_secs(180);

/// Mends what crashes left of services' addresses and ports, for as long as it is polled.
async fn repair_services(engine: &Engine, hooks: &Hooks) {
    loop {
        let again = match engine.repair_services().await {
            Ok(_) => {
                hooks.done(&[Hook::ServiceIpRepair]);
                REPAIR_AGAIN
            }
            Err(e) => {
                tracing::warn!("comparing services with their addresses failed, trying again: {e}");
                Duration::from_secs(1)
            }
        };
        tokio::time::sleep(again).await;
    }
}

/// What can fail to be made.
#[derive(Clone)]
struct Made {
    kubelet_tls: Arc<rustls::ClientConfig>,
    proxy_tls: Arc<rustls::ClientConfig>,
    vouched: Arc<Vouched>,
    audit: Audit,
    issuers: Option<Arc<Issuers>>,
    rbac: Arc<Rbac>,
    node_authorizer: Arc<NodeAuthorizer>,
    authorizer: Arc<Authorizers>,
}

impl Made {
    fn new(config: &Config) -> Result<Self> {
        let kubelet = config.kubelet_client.as_ref().map(|(c, k)| (c.as_str(), k.as_str()));
        let kubelet_tls = ClientTls::config(Trust::of_kubelets(config.kubelet_ca_pem.as_deref()), kubelet)
            .context("the kubelet client")?;
        let certificates = match config.client_ca_pem.is_empty() {
            true => CertificateAuthenticator::nobodys(),
            false => CertificateAuthenticator::new(&config.client_ca_pem, config.front_proxy_ca_pem.as_deref())?,
        };
        let audit = match &config.audit {
            Some((policy, settings)) => Audit::to_file(policy.clone(), settings.clone())?,
            None => Audit::off(),
        };
        let authentication = &config.authentication;
        let any = authentication.file.is_some() || !authentication.trusted.is_empty();
        let issuers = any.then(|| Issuers::new(&authentication.trusted, authentication.algorithms.clone()));
        let (rbac, node_authorizer) = (Rbac::new(), NodeAuthorizer::new(node_rules()));
        let members = &config.authorization.members;
        let authorizer = Authorizers::new(
            members,
            node_authorizer.clone(),
            rbac.clone(),
            config.authorization.policies.clone(),
        )
        .context("authorization")?;
        Ok(Made {
            rbac,
            node_authorizer,
            authorizer: Arc::new(authorizer),
            issuers: issuers.transpose()?.map(Arc::new),
            vouched: Vouched::new(certificates),
            kubelet_tls,
            proxy_tls: ClientTls::config(Trust::Anyone, None)?,
            audit,
        })
    }
}

fn assemble(config: Config, store: Arc<dyn Store>, made: Made, weak: Weak<ServerState>) -> ServerState {
    let keys = config.service_account_keys.clone();
    let loopback = Loopback::new(weak);
    let table = Arc::new(ResourceTable::new(resources::rows()));
    let ranges = resources::ServiceRanges {
        cidrs: config.service_cidrs.clone(),
        node_ports: config.serving.node_ports.clone(),
    };
    let metrics = Metrics::new(config.measures.clone());
    let engine = Engine::new(table.clone(), store.clone()).with_observer(metrics.store.clone());
    let engine = engine.with_event_ttl(config.serving.event_ttl);
    let engine = Arc::new(engine.with_service_ranges(ranges));
    let Made {
        rbac,
        node_authorizer,
        authorizer,
        ..
    } = made.clone();
    let tokens = Arc::new(ServiceAccountTokens {
        keys,
        issuers: config.issuers(),
        extends: config.serving.extends_tokens,
        audiences: config.api_audiences.iter().map(Str::from).collect(),
        uses: authn::tokens::Uses::default(),
    });
    let names = config.front_proxy_names.iter().map(Str::from).collect();
    let chain = authn::Tokens {
        service_accounts: tokens.clone(),
        reader: loopback.clone(),
        named: config.authentication.static_tokens.clone(),
        joining: config.joining.clone(),
        issuers: made.issuers.clone(),
        webhook: config.authentication.webhook.clone(),
    };
    let revocations = Arc::new(Revocations::default());
    let authenticator = Arc::new(Authenticator::new(
        chain,
        revocations.clone(),
        config.authentication.anonymous.clone(),
        names,
    ));
    let services = Arc::new(Services::default());
    let sync = Arc::new(Following::default());
    let (missing, hooks, ending) = (sync.clone(), Arc::new(Hooks::default()), CancellationToken::new());
    let configured = admission::Configured::new(sync.clone());
    let mut health = Health::of(&store, &hooks, move || missing.missing(), &ending);
    if let Some(sealing) = &config.sealing {
        let counted = sealing.metrics();
        metrics.add(move |page| counted.write(page));
        health.add_sealing(sealing);
    }
    let counted = tokens.clone();
    metrics.add(move |page| counted.uses.write(page));
    let audit = made.audit.clone();
    metrics.add(move |page| audit.metrics(page));
    let mut extensions = configured.plugins();
    extensions.push(Arc::new(EscalationCheck(rbac.clone())));
    ServerState {
        flow: FlowControl::new(config.max_requests_in_flight),
        intake: Intake::new(),
        admission: Arc::new(admission::Chain::new(
            engine.clone(),
            authorizer.clone(),
            extensions,
            &config.admission,
            loopback.clone(),
            metrics.admission.clone(),
        )),
        configured,
        token_authenticator: authenticator.clone(),
        token_issuer: Arc::new(Issuer(tokens.clone())),
        discovery: Discovery::new(table.clone(), services.clone()).at(config.external_address()),
        openapi: OpenApi::new(table.clone()),
        kubelet: KubeletClient::new(
            made.kubelet_tls,
            loopback.clone(),
            config.serving.kubelet_address_types.clone(),
        ),
        front_proxy_client: parking_lot::RwLock::new(config.front_proxy_client.clone()),
        proxy_tls: made.proxy_tls,
        pages: nonresource::pages(&config),
        impersonation: Impersonation::new(metrics.impersonations.clone()),
        health,
        hooks,
        ending,
        metrics,
        audit: made.audit,
        sync,
        engine,
        table,
        authorizer,
        loopback,
        authenticator,
        revocations,
        vouched: made.vouched,
        tokens,
        rbac,
        node_authorizer,
        services,
        config,
    }
}

/// What every node may do beyond its own objects: the rules of the role `system:node`.
fn node_rules() -> Vec<Rule> {
    let found = bootstrap::objects()
        .into_iter()
        .find(|o| o.kind() == "ClusterRole" && o.name() == "system:node");
    found.map(|role| Rule::list_of(&role)).unwrap_or_default()
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl keelson_client::ClientFactory for ApiServer {
    fn client(&self, identity: &str) -> kube::Client {
        self.service(UserInfo::from_identity(identity)).client()
    }
}
