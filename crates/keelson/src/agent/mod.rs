//! `keelson agent`: this machine as a node of a cluster whose servers are elsewhere.
//!
//! [`join`] turns a token into a certificate, once. [`servers`] is the way to the API: all servers, whichever answers.
//! [`keys`] keeps the node's certificates good. What then runs is what runs on a server's own node (`crate::node`).
//!
//! **Whose rights.** The node's certificate is the only credential on the machine. The kubelet acts as the node. Network,
//! policy, proxy, DNS and ingress act each under the name that they have on a server, by impersonation, which nodes may for these
//! five names only, and who makes volumes of the disk under a name with the node's in it: so each has its own few rights, and the
//! audit log tells them apart. A stolen node certificate can do what the node can and these six can: read nodes, services, endpoints,
//! namespaces, network policies, Ingresses, Gateways and routes, the certificates that they show, claims, volumes and all pods, write events, and write the volumes of that node's own disk and the claims
//! that wait for one.

pub(crate) mod join;
pub(crate) mod keys;
mod options;
pub(crate) mod servers;
pub(crate) mod told;
pub(crate) mod trust;

pub use options::Options;

use crate::cluster::Cluster;
use crate::config::{Component, Config};
use crate::follow::{self, Standing};
use crate::install::Role;
use crate::issue::Refused;
use crate::node::{self, Access};
use crate::supervise::Supervisor;
use crate::{doctor, families, process, upgrade};
use anyhow::{Context, bail};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::rest::Rest;
use keelson_client::{ClientFactory, Informer, InformerOptions, Telling};
use keelson_measure::Measures;
use keelson_network::underlay;
use keelson_pki::{JoinToken, San};
use keys::{Purpose, Wanted};
use servers::{Link, Servers};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use told::Told;
use trust::Trusted;

/// Between two attempts to join or to read the cluster's settings, while no server can be reached.
const RETRY: Duration = Duration::from_secs(1);

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let options = options.read_file()?;
    let alone = options.resolve(None)?;
    if alone.data_dir.join("pki/ca.key").exists() {
        bail!(
            "{} is the data directory of a server, whose machine is a node already: give another --data-dir",
            alone.data_dir.display()
        );
    }
    process::run(&alone.log, Some(&alone.data_dir), async |stopping| {
        let changed = async |(cluster, began): (Cluster, Option<Standing>)| {
            follow::changed(began, || options.resolve(Some(&cluster))).await;
        };
        process::until_stopped(stopping, start(&options, &alone), changed).await
    })
}

async fn start(options: &Options, alone: &Config) -> anyhow::Result<(Supervisor, (Cluster, Option<Standing>))> {
    tracing::info!(
        version = crate::version::VERSION,
        node = alone.node_name,
        address = %alone.node_ip(),
        data = %alone.data_dir.display(),
        "starting"
    );
    doctor::preflight(alone)?;
    let token: Option<JoinToken> = options
        .token
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(anyhow::Error::msg)?;
    let pki = alone.data_dir.join("pki");
    let servers = Servers::open(&alone.data_dir.join("servers.json"), options.server.as_deref())?;
    let (client, serving) = keys::slots(&pki);
    let wanted = until_done(|| joined(&servers, token.as_ref(), alone, &client)).await?;
    let own = format!("system:node:{}", alone.node_name);
    let link = Link::new(
        servers.clone(),
        join::trusting(wanted.trusted.roots(), Some(client.clone()))?,
        &own,
    )?;
    let node = Rest::new(link.client(&own), "keelson-agent");
    let file = alone.data_dir.join("cluster.json");
    let cluster = until_done(|| Cluster::fetch(&node, &file)).await?;
    let config = options.resolve(Some(&cluster))?;
    families::apart(&config.cluster_cidrs, &config.service_cidrs, &config.node_ips)?;
    underlay::supported(config.network)?;
    let began = Standing::of(&config).await;

    let mut components = Supervisor::default();
    let clients: Arc<dyn ClientFactory> = Arc::new(link.clone());
    let proof = Arc::new(join::trusting(wanted.trusted.roots(), Some(client.clone()))?);
    let telling = Telling::new(&Measures::default(), servers::NAME);
    let told = |purpose, slot| Arc::new(Told::new(&telling.measures, purpose, slot));
    let told = [(Purpose::Client, &client), (Purpose::Serving, &serving)].map(|(purpose, slot)| told(purpose, slot));
    let [told_of_client, told_of_serving] = told;
    let access = Access {
        telling: telling.clone(),
        clients: clients.clone(),
        serving: serving.clone(),
        clients_known: wanted.trusted.roots(),
        proof: Arc::new(move || Ok(proof.clone())),
    };
    node::start(&mut components, &config, access, &Telling::default()).await?;
    let pool = crate::storage::pool(&config)?;
    crate::storage::start(&mut components, &config, clients.as_ref(), pool)?;
    node::network(&mut components, &config, clients.as_ref());
    if config.runs(Component::Proxy) {
        node::proxy(&mut components, &config, clients.as_ref(), &Telling::default());
    }
    if config.runs(Component::Dns) {
        node::dns(&mut components, &config, clients.as_ref(), &Telling::default());
    }
    let (rest, asked) = (node.clone(), wanted.clone());
    let (follower, trusted, node_name) = (node.clone(), wanted.trusted.clone(), config.node_name.clone());
    // On its kubelet's page, the only one that it has.
    node::ingress(&mut components, &config, clients.as_ref(), &telling);
    node::announce(&mut components, &config, clients.as_ref());
    let programs = upgrade::all::Programs::new(&config.data_dir);
    upgrade::all::follow(&mut components, &config, clients.as_ref(), Role::Agent, programs);
    components.spawn("client-certificate", move |stop| {
        let (slot, link, rest, wanted) = (client.clone(), link.clone(), rest.clone(), asked.clone());
        let told = told_of_client.clone();
        async move {
            slot.keep(&rest, Purpose::Client, &wanted, &told, || link.renew(), stop)
                .await
        }
    });
    let wanted = Wanted {
        sans: [San::Dns(config.node_name.clone())]
            .into_iter()
            .chain(config.node_ips.iter().copied().map(San::Ip))
            .collect(),
        ..wanted
    };
    components.spawn("serving-certificate", move |stop| {
        let (slot, rest, wanted) = (serving.clone(), node.clone(), wanted.clone());
        let told = told_of_serving.clone();
        async move { slot.keep(&rest, Purpose::Serving, &wanted, &told, || (), stop).await }
    });
    components.spawn("trust", move |stop| {
        trusted.clone().follow(follower.clone(), node_name.clone(), stop)
    });
    let learner = clients.client(crate::addons::NETWORK_IDENTITY);
    components.spawn("servers", move |stop| learn(learner.clone(), servers.clone(), stop));
    Ok((components, (cluster, began)))
}

/// The API by the certificate that this machine has as a node, for commands on it.
pub(crate) fn own_client(config: &Config) -> anyhow::Result<Rest> {
    let pki = config.data_dir.join("pki");
    let servers = Servers::open(&config.data_dir.join("servers.json"), None)?;
    let file = pki.join("ca.crt");
    let ca = keelson_pki::files::read(&file)?.context("this machine has not joined a cluster yet")?;
    let wanted = Wanted {
        node: config.node_name.clone(),
        sans: Vec::new(),
        trusted: Trusted::new(&file, ca)?,
    };
    let (client, _) = keys::slots(&pki);
    if client.load(&wanted)?.is_none() {
        bail!(
            "this machine has no valid certificate for the node {}",
            config.node_name
        );
    }
    let own = format!("system:node:{}", config.node_name);
    let link = Link::new(servers, join::trusting(wanted.trusted.roots(), Some(client))?, &own)?;
    Ok(Rest::new(link.client(&own), "keelson-upgrade"))
}

/// The authority and a client certificate: from disk, or by the token.
async fn joined(
    servers: &Arc<Servers>,
    token: Option<&JoinToken>,
    config: &Config,
    slot: &keys::Slot,
) -> anyhow::Result<Wanted> {
    let (file, hash) = (config.data_dir.join("pki/ca.crt"), token.map(|t| t.ca_hash.as_str()));
    let trusted = Trusted::new(&file, join::authority(&file, servers, hash).await?)?;
    trusted.catch_up(servers).await;
    let checked = join::check(&file, &trusted.pem(), hash);
    let wanted = Wanted {
        node: config.node_name.clone(),
        sans: Vec::new(),
        trusted,
    };
    if slot.load(&wanted)?.is_some() {
        // It needs no token any more: the one that it was installed with may name an authority that is gone.
        if let Err(error) = checked {
            tracing::warn!(
                error = format!("{error:#}"),
                "the token isn't looked at: this machine has joined"
            );
        }
        return Ok(wanted);
    }
    checked?;
    let Some(token) = token else {
        bail!(
            "this machine has no valid certificate for the node {} any more: give a new --token (keelson token create)",
            config.node_name
        );
    };
    let made = join::certificate(servers, &token.token, slot, &wanted).await;
    made.map_err(|error| match status(&error) {
        Some(401) => error.context("the token is not valid: it has expired, was deleted, or is another cluster's"),
        _ => error,
    })?;
    tracing::info!(node = config.node_name, "joined the cluster");
    Ok(wanted)
}

/// Again as long as the reason may pass: no server can be reached, or it isn't ready.
pub(crate) async fn until_done<T, F: Future<Output = anyhow::Result<T>>>(
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T> {
    loop {
        match attempt().await {
            Err(error) if passes(&error) => {
                tracing::warn!(error = format!("{error:#}"), "trying again");
                tokio::time::sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

pub(crate) fn status(error: &anyhow::Error) -> Option<u16> {
    error
        .chain()
        .find_map(|e| match e.downcast_ref::<keelson_client::Error>() {
            Some(keelson_client::Error::Api(status)) => Some(status.code),
            _ => None,
        })
}

pub(crate) fn passes(error: &anyhow::Error) -> bool {
    if error.chain().any(|e| e.is::<Refused>() || e.is::<join::WrongCluster>()) {
        return false;
    }
    match status(error) {
        Some(code) => code == 429 || code >= 500,
        None => error.chain().any(|e| e.is::<keelson_client::Error>()),
    }
}

/// Follows the endpoints of the service `kubernetes`.
async fn learn(client: kube::Client, servers: Arc<Servers>, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-agent");
    let options = InformerOptions {
        namespace: "default".into(),
        labels: "kubernetes.io/service-name=kubernetes".into(),
        ..InformerOptions::default()
    };
    let slices: Informer<EndpointSlice> = Informer::start(&rest, options, &stop);
    let changed = Arc::new(Notify::new());
    let note = changed.clone();
    slices.on_change(move |_| note.notify_one());
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = changed.notified() => {}
        }
        let found = addresses(&slices.store().list());
        servers.learn(found).context("remembering the servers")?;
    }
}

pub(crate) fn addresses(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let mut all: Vec<String> = slices
        .iter()
        .flat_map(|slice| {
            let port = slice.ports.iter().flatten().find_map(|p| p.port).unwrap_or(6443);
            let ready = slice
                .endpoints
                .iter()
                .flatten()
                .filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
            ready.flat_map(move |e| e.addresses.iter().map(move |a| joined_port(a, port)))
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

fn joined_port(address: &str, port: i32) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}
