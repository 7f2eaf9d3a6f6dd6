//! The cluster put together: which component gets what, in which order.
//!
//! Store, API server and its listener come first; everything else waits for the API to be ready and then starts at
//! once, since components wait for what they need by watching for it.

use crate::authorities::{self, Authorities};
use crate::backup;
use crate::components;
use crate::components::apiserver::{self, Api};
use crate::config::{Component, Config, Options};
use crate::etcd::upkeep::Upkeep;
use crate::families::{self, host};
use crate::history;
use crate::install::Role;
use crate::kubelets::AsSomebody;
use crate::node::{self, Access};
use crate::servers::{self, Beside, Steps, Turning};
use crate::store::snapshot::{self, Snapshots, Source};
use crate::store::{Choice, Opened};
use crate::supervise::{Health, Supervisor};
use crate::told::Told;
use crate::traces;
use crate::upgrade;
use anyhow::Context;
use keelson_apiserver::joining::Joining;
use keelson_apiserver::peers::{Peer, Place};
use keelson_apiserver::serve::tls::ServingCert;
use keelson_apiserver::{ApiServer, UserInfo};
use keelson_client::leader::Election;
use keelson_client::{ClientFactory, Rest, Telling};
use keelson_controllers::{Port, Reserved};
use keelson_measure::Measures;
use keelson_network::underlay;
use keelson_pki::{Current, Pki, San};
use keelson_store::Store;
use keelson_store::compactor::auto_compact;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A running cluster of one machine.
pub struct Cluster {
    /// As it was decided among all servers.
    pub config: Config,
    api: Api,
    store: Opened,
    beside: Option<Beside>,
    components: Supervisor,
}

impl Cluster {
    pub async fn start(options: Options, alone: &Config) -> anyhow::Result<Cluster> {
        let (config, store, joined, beside) = match servers::meet(options.clone(), alone).await? {
            Some(met) => (met.config, met.store, Some((met.joining, met.held)), met.beside),
            None => {
                let (config, store) = servers::alone(&options, alone).await?;
                (config, store, None, None)
            }
        };
        match Cluster::begin(&config, store, joined, beside.as_ref().map(Beside::upkeep)).await {
            Ok(cluster) => Ok(Cluster { beside, ..cluster }),
            Err(error) => {
                // Nobody would look after it.
                if let Some(beside) = beside {
                    beside.stop().await;
                }
                Err(error)
            }
        }
    }

    async fn begin(
        config: &Config,
        store: Opened,
        joined: Option<(Joining, servers::Shared)>,
        upkeep: Option<Arc<Upkeep>>,
    ) -> anyhow::Result<Cluster> {
        families::apart(&config.cluster_cidrs, &config.service_cidrs, &config.node_ips)?;
        underlay::supported(config.network)?;
        // The port first: little has to be undone then.
        let address = SocketAddr::new(config.bind_address, config.api_port);
        let socket = apiserver::bind(address, "--api-port").await?;
        let pki = Pki::open(&config.data_dir).context("the cluster's certificates")?;
        let by_itself = joined.is_none();
        let steps = joined
            .as_ref()
            .map(|(_, held)| Steps::new(store.store(), config.store.root(), held.clone()));
        let turning = joined.as_ref().zip(steps.clone()).map(|((joining, _), steps)| {
            let (items, address) = (servers::items(upkeep.is_some()), config.node_ip().to_string());
            Turning::new(
                steps,
                config.data_dir.join("pki"),
                items,
                address,
                joining.token.clone(),
            )
        });
        let joining = joined.zip(turning.clone()).map(|((joining, _), turning)| Joining {
            turns: Some(Arc::new(servers::Front(turning))),
            ..joining
        });
        let authorities = Authorities::new(own(config, upkeep.as_deref()), pki, steps)?;
        let pki = authorities.current();
        let measures = Measures::default();
        let snapshots = Snapshots::new(Source::of(&store), &config.snapshots, &measures);
        let pool = crate::storage::pool(config)?;
        let pictures =
            backup::picture::Pictures::new(Source::of(&store), pool.clone(), &config.data_dir, &config.node_name);
        let own = upkeep.is_some() || matches!(config.store, Choice::Embedded(_));
        let sealing = crate::secrets::open(config, store.store()).await?;
        let history = history::open(config, store.store()).await?;
        let programs = upgrade::all::Programs::new(&config.data_dir);
        let orders = upgrade::all::Offer::new(store.store(), config.store.root(), programs.clone());
        let mut running = Supervisor::default();
        let api_config = keelson_apiserver::Config {
            history: history.clone(),
            sealing: Some(sealing.clone()),
            joining,
            snapshots: Some(snapshots.taker()),
            pictures: matches!(config.store, Choice::Embedded(_)).then(|| pictures.taker()),
            measures: measures.clone(),
            authorities: Some(Arc::new(authorities::Front(authorities.clone()))),
            upgrades: Some(Arc::new(orders)),
            peers: peers(config, &running.health()),
            flags: Some(crate::flagz::of_this_process()),
            tracer: traces::of(config.tracing.as_ref(), "apiserver", &config.node_name)?,
            ..api_config(config)?
        };
        // One page tells what all that run here count.
        let host = SocketAddr::new(config.node_ip(), config.api_port).to_string();
        let telling = Telling::new(&api_config.measures, &host);
        let listening = serve(config, pki, api_config, config.store.seen(sealing.store()), socket)?;
        let api = listening.server.clone();
        authorities.keep()?;
        api.ready().await;
        tracing::info!(%address, "the API is ready");
        if by_itself {
            servers::remember(store.store().as_ref(), config).await?;
        }
        crate::furnish::furnish(&mut running, &api, pki, config).await?;
        authorities.attach(
            &api,
            Rest::new(api.client(identity("system:apiserver")), "keelson-authorities"),
        );
        let steps = authorities.clone();
        running.spawn("authorities", move |stop| steps.clone().run(stop));
        if let Some(turning) = turning {
            let rest = Rest::new(api.client(identity("system:apiserver")), "keelson-token");
            turning.attach(servers::serving(rest));
            running.spawn("servers-token", move |stop| turning.clone().run(stop));
        }
        if let Some(history) = history {
            running.spawn("history", move |stop| {
                let history = history.clone();
                async move {
                    history.run(stop).await;
                    Ok(())
                }
            });
        }
        if let Some(interval) = config.compaction {
            compaction(&mut running, store.store(), interval);
        }
        if let Some(plan) = config.snapshots.plan(own) {
            running.spawn("store-snapshots", move |stop| {
                snapshot::schedule::run(snapshots.clone(), plan.clone(), stop)
            });
        }
        backups(&mut running, config, pictures, &api, &measures);
        if let Some(upkeep) = upkeep {
            running.spawn("etcd-upkeep", move |stop| {
                let upkeep = upkeep.clone();
                async move { upkeep.run(stop).await }
            });
        }
        if let Some(address) = config.etcd_listen {
            components::etcd::beside::start(&mut running, config, &store, address, pki.changes()).await?;
        }
        controllers(&mut running, config, pki, &api, &telling);
        if config.runs(Component::Scheduler) {
            let client = api.client(identity("system:kube-scheduler"));
            let settings = keelson_scheduler::Config {
                leader_election: candidate(config).map(|own| Election::new("kube-scheduler", &own)),
                telling: telling.clone(),
                tracer: traces::tracer(&mut running, config.tracing.as_ref(), "scheduler", &config.node_name)?,
                ..config.scheduler.clone()
            };
            components::scheduler::spawn(&mut running, client, settings);
        }
        let clients: Arc<dyn ClientFactory> = api.clone();
        if config.runs(Component::Agent) {
            let to_nodes = AsSomebody::node(pki.clone(), &config.node_name);
            let access = Access {
                telling: Telling::new(&Measures::default(), &telling.host),
                clients: clients.clone(),
                serving: serving_certificate(&mut running, config, pki)?,
                clients_known: authorities.clients(),
                proof: Arc::new(move || to_nodes.tls()),
            };
            node::start(&mut running, config, access, &telling).await?;
            crate::storage::start(&mut running, config, clients.as_ref(), pool)?;
            node::ingress(&mut running, config, clients.as_ref(), &telling);
            node::announce(&mut running, config, clients.as_ref());
            upgrade::all::follow(&mut running, config, clients.as_ref(), Role::Server, programs);
        }
        // Also without a node here: the API server reaches webhooks and extension servers that are pods.
        node::network(&mut running, config, clients.as_ref());
        if config.runs(Component::Proxy) {
            node::proxy(&mut running, config, clients.as_ref(), &telling);
        }
        if config.runs(Component::Dns) {
            node::dns(&mut running, config, clients.as_ref(), &telling);
        }
        publish_dns(&mut running, config, &api);
        publish_ingress(&mut running, config, &api);
        crate::addons::serve::start(&mut running, config, &api, candidate(config));
        Ok(Cluster {
            config: config.clone(),
            api: listening,
            store,
            beside: None,
            components: running,
        })
    }

    /// Whether an etcd runs beside this server.
    pub fn is_member(&self) -> bool {
        self.beside.is_some()
    }

    /// Resolves when the cluster can't go on.
    pub async fn failed(&self) -> anyhow::Error {
        self.api.failed().await
    }

    /// Clients are sent elsewhere; components first, then the listener, then the store, then what runs it.
    pub async fn stop(self) {
        self.api.server.leave().await;
        self.components.stop().await;
        self.api.stop().await;
        self.store.close().await;
        if let Some(beside) = self.beside {
            beside.stop().await;
        }
    }
}

/// Who this server's controllers and scheduler are among those of other servers. Over a store of its own it has no others,
/// and would only wait for a lease that an earlier run of it held. No two runs are one candidate.
fn candidate(config: &Config) -> Option<String> {
    match config.store {
        Choice::Embedded(_) => None,
        Choice::Etcd(_) => Some(format!("{}_{}", config.node_name, uuid::Uuid::new_v4())),
    }
}

fn identity(name: &str) -> UserInfo {
    UserInfo::from_identity(name)
}

fn api_config(config: &Config) -> anyhow::Result<keelson_apiserver::Config> {
    let pki = Pki::open(&config.data_dir)?;
    let ca = pki.ca.bundle_pem();
    let issuer = crate::config::issuer(&config.cluster_domain);
    let api_audiences = match config.access.api_audiences.as_slice() {
        [] => vec![issuer.clone()],
        given => given.to_vec(),
    };
    Ok(keelson_apiserver::Config {
        advertise_address: config.node_ip(),
        advertise_port: config.api_port,
        service_cidrs: config.service_cidrs.clone(),
        cluster_domain: config.cluster_domain.clone(),
        jwks_uri: format!("https://{}:{}/openid/v1/jwks", host(config.node_ip()), config.api_port),
        api_audiences,
        authentication: config.access.authentication.clone(),
        authorization: config.access.authorization.clone(),
        admission: config.access.admission.clone(),
        issuer,
        kubelet_ca_pem: Some(ca),
        audit: config.audit.clone(),
        // Which is the machine's name, unless there are several on one machine.
        host: Some(config.node_name.clone()),
        ..keelson_apiserver::Config::from_pki(pki)?
    })
}

fn serve(
    config: &Config,
    pki: &Current,
    api_config: keelson_apiserver::Config,
    store: Arc<dyn Store>,
    socket: apiserver::Socket,
) -> anyhow::Result<Api> {
    let mut names: Vec<San> = config.tls_san.iter().map(|s| San::parse(s)).collect();
    names.extend(config.node_ips.iter().copied().map(San::Ip));
    names.extend(config.api_service_ips().into_iter().skip(1).map(San::Ip));
    names.push(San::Dns(config.node_name.clone()));
    let service_ip = config.api_service_ips().first().copied().unwrap_or(config.node_ip());
    let domain = config.cluster_domain.clone();
    let find = move |pki: &Pki| pki.apiserver(service_ip, &domain, &names);
    let files = find(&pki.get())?;
    let cert = ServingCert::new(&files.cert_pem, &files.key_pem)?;
    let api = Api::start(api_config, store, cert.clone(), socket)?;
    api.server.keep_certificates(pki.clone(), find, cert);
    Ok(api)
}

/// Who this server is to the steps of authorities.
fn own(config: &Config, upkeep: Option<&Upkeep>) -> authorities::Own {
    authorities::Own {
        name: config.node_name.clone(),
        address: config.node_ip().to_string(),
        url: format!("https://{}:{}", host(config.node_ip()), config.api_port),
        kubeconfig: config.kubeconfig.clone(),
        etcd: upkeep.map(|upkeep| upkeep.place.clone()),
    }
}

/// Old revisions are given up, so that the store doesn't grow for ever.
pub fn compaction(running: &mut Supervisor, store: Arc<dyn Store>, interval: Duration) {
    running.spawn("compaction", move |stop| {
        let store = store.clone();
        async move {
            auto_compact(store, interval, stop).await;
            Ok(())
        }
    });
}

/// By themselves, where a repository is given.
fn backups(
    running: &mut Supervisor,
    config: &Config,
    pictures: Arc<backup::picture::Pictures>,
    api: &Arc<ApiServer>,
    measures: &Measures,
) {
    let Some((target, plan)) = &config.backup else { return };
    let schedule = Arc::new(backup::schedule::Schedule {
        target: target.clone(),
        plan: plan.clone(),
        data_dir: config.data_dir.clone(),
        rest: Rest::new(api.client(identity("system:apiserver")), "keelson-backup"),
        pictures,
        told: Told::new(measures, "backup", "backup"),
    });
    running.spawn("backups", move |stop| schedule.clone().run(stop));
}

/// The rest of the control plane: what runs here, and what is asked where upstream's would be.
fn peers(config: &Config, health: &Health) -> Vec<Peer> {
    let here = |peer: Peer| {
        let (component, name) = match peer.name {
            "scheduler" => (Component::Scheduler, "scheduler"),
            _ => (Component::Controllers, "controllers"),
        };
        let health = health.clone();
        let well = Arc::new(move || !health.failing().contains(&name));
        match config.runs(component) {
            true => Peer {
                place: Place::Here(well),
                ..peer
            },
            false => peer,
        }
    };
    Peer::beside().into_iter().map(here).collect()
}

fn controllers(running: &mut Supervisor, config: &Config, pki: &Current, api: &Arc<ApiServer>, telling: &Telling) {
    if !config.runs(Component::Controllers) {
        return;
    }
    let settings = keelson_controllers::Config {
        account_keys: Some(Arc::new(pki.get().service_account.clone())),
        cluster_cidrs: config.cluster_cidrs.iter().map(ToString::to_string).collect(),
        allocate_node_cidrs: config.allocate_node_cidrs,
        node_mask_v4: families::NODE_MASKS.0,
        node_mask_v6: families::NODE_MASKS.1,
        leader_election: candidate(config).map(|own| Election::new("kube-controller-manager", &own)),
        telling: telling.clone(),
        snapshots: config.runs(Component::Snapshots),
        cluster_policies: config.runs(Component::Policy),
        reload: config.runs(Component::Reload),
        share_from: config.share_from.clone(),
        pools: config.runs(Component::LoadBalancer),
        load_balancer: config.runs(Component::LoadBalancer).then(|| node_ports(config)),
        ..keelson_controllers::Config::default()
    };
    components::controller_manager::following(running, api.clone(), settings, pki.clone());
}

/// What this program listens on at the nodes' addresses, so that no service of type LoadBalancer can have it there.
fn node_ports(config: &Config) -> Reserved {
    let mut ports = vec![(Port::new("TCP", config.api_port.into()), "the API server's")];
    if config.runs(Component::Dns) {
        ports.extend(["TCP", "UDP"].map(|p| (Port::new(p, config.dns_port.into()), "the cluster's DNS server's")));
    }
    if config.runs(Component::Ingress) {
        for transport in ["TCP", "UDP"] {
            ports.extend(keelson_gateway::PORTS.map(|p| (Port::new(transport, p.into()), "the gateway's")));
        }
    }
    ports.push((
        Port::new("UDP", keelson_announce::PORT.into()),
        "that by which nodes know of each other",
    ));
    if let Some(port) = config.network.port() {
        ports.push((Port::new("UDP", port.into()), "the pod network's"));
    }
    ports
}

/// Service `kube-dns` leads to the DNS servers of all nodes, this one's too if it is none.
fn publish_dns(running: &mut Supervisor, config: &Config, api: &Arc<ApiServer>) {
    let no_node = config.runs(Component::Dns) && !config.runs(Component::Agent);
    let settings = keelson_dns::publish::Config {
        cluster_ips: config.cluster_dns.clone(),
        also: match no_node {
            true => config
                .node_ips
                .iter()
                .map(|ip| SocketAddr::new(*ip, config.dns_port))
                .collect(),
            false => Vec::new(),
        },
    };
    let client = api.client(identity(crate::addons::DNS_PUBLISHER_IDENTITY));
    running.spawn("dns-endpoints", move |stop| {
        keelson_dns::publish::run(client.clone(), settings.clone(), stop)
    });
}

/// Services by which requests from outside come to the nodes, and what is told of Ingresses and Gateways.
fn publish_ingress(running: &mut Supervisor, config: &Config, api: &Arc<ApiServer>) {
    if !config.runs(Component::Ingress) {
        return;
    }
    let settings = keelson_gateway::publish::Config {
        leader_election: candidate(config),
    };
    let client = api.client(identity(crate::addons::INGRESS_PUBLISHER_IDENTITY));
    running.spawn("ingress-publisher", move |stop| {
        keelson_gateway::publish::run(client.clone(), settings.clone(), stop)
    });
}

/// The kubelet's serving certificate, renewed before it ends.
fn serving_certificate(running: &mut Supervisor, config: &Config, pki: &Current) -> anyhow::Result<Arc<ServingCert>> {
    let (pki, name, addresses) = (pki.clone(), config.node_name.clone(), config.node_ips.clone());
    let mut changes = pki.changes();
    let find = move || pki.get().kubelet_server(&name, &addresses);
    let first = find()?;
    let cert = ServingCert::new(&first.cert_pem, &first.key_pem)?;
    changes.mark_unchanged();
    let (kept, find) = (cert.clone(), Arc::new(find));
    running.spawn("kubelet-certificate", move |stop| {
        let (cert, find, mut due, mut changes) = (kept.clone(), find.clone(), first.renew_at, changes.clone());
        async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = keelson_pki::due(due) => {}
                    _ = changes.changed() => {}
                }
                let own = find()?;
                cert.replace(&own.cert_pem, &own.key_pem)?;
                due = own.renew_at;
            }
        }
    });
    Ok(cert)
}
