//! What is followed while requests are taken in, brought together for the plan.

use crate::fronts::{self, MANAGED_BY, US};
use crate::kinds::{
    BackendTLSPolicy, GRPCRoute, Gateway, GatewayClass, HTTPRoute, ListenerSet, ReferenceGrant, TCPRoute, TLSRoute,
    UDPRoute,
};
use crate::plan::{World, authorities_of_clients, by_system};
use crate::serve::Certificates;
use crate::system::System;
use crate::{NAMESPACE, serve};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use keelson_client::{ApiObject, Informer, InformerOptions, Kind, ObjectKey, Rest};
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// On copies of secrets: whose they are, `namespace/name`.
pub const COPY_OF: &str = "keelson.dev/copy-of";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Where a ConfigMap has the certificates of authorities.
pub const AUTHORITY: &str = "ca.crt";
pub const CERTIFICATES: &str = "type=kubernetes.io/tls";

/// Informers of one follower; they end when this is dropped.
pub struct Followed {
    rest: Rest,
    stop: CancellationToken,
    changed: Arc<Notify>,
    pub ingresses: Informer<Ingress>,
    pub ingress_classes: Informer<IngressClass>,
    pub services: Informer<Service>,
    pub secrets: Informer<Secret>,
    namespaces: Informer<Namespace>,
    /// Of nodes only: the publisher doesn't look at endpoints.
    slices: Option<Informer<EndpointSlice>>,
    pub gateway_api: Option<GatewayApi>,
    known: Mutex<BTreeMap<ObjectKey, Known>>,
    system: System,
    leads_to: Arc<Mutex<LeadsTo>>,
}

/// The services whose endpoints matter; of all while it isn't known of which.
type LeadsTo = Option<BTreeSet<ObjectKey>>;

/// A certificate as it was last read, with its secret's revision.
type Known = (Option<String>, Result<Arc<CertifiedKey>, String>);

pub struct GatewayApi {
    pub classes: Informer<GatewayClass>,
    pub gateways: Informer<Gateway>,
    pub http_routes: Informer<HTTPRoute>,
    pub grpc_routes: Informer<GRPCRoute>,
    grants: Informer<ReferenceGrant>,
    /// Kinds that older definitions don't have.
    tls_routes: Informer<TLSRoute>,
    tcp_routes: Informer<TCPRoute>,
    udp_routes: Informer<UDPRoute>,
    policies: Informer<BackendTLSPolicy>,
    listener_sets: Informer<ListenerSet>,
    /// ConfigMaps: at the publisher followed once there is a policy that may name one.
    pub authorities: OnceLock<Informer<ConfigMap>>,
    /// Those of them that policies name: what becomes of others wakes nobody.
    named: Arc<Mutex<BTreeSet<ObjectKey>>>,
    /// Until then they are waited for.
    patience: Instant,
}

impl GatewayApi {
    /// Whether somebody may name a ConfigMap.
    fn asks_for_authorities(&self) -> bool {
        let by_clients = |g: &Arc<Gateway>| authorities_of_clients(g).next().is_some();
        !self.policies.store().is_empty() || self.gateways.store().list().iter().any(by_clients)
    }

    /// The publisher begins to follow them late; until it has them it takes nothing away and tells nothing.
    fn has_authorities(&self) -> bool {
        match self.authorities.get() {
            Some(configs) => configs.is_synced(),
            None => !self
                .gateways
                .store()
                .list()
                .iter()
                .any(|g| authorities_of_clients(g).next().is_some()),
        }
    }

    fn has_youngest(&self) -> bool {
        self.tls_routes.is_synced()
            && self.tcp_routes.is_synced()
            && self.udp_routes.is_synced()
            && self.policies.is_synced()
            && self.listener_sets.is_synced()
            && self.authorities.get().is_none_or(Informer::is_synced)
    }
}

/// Definitions that others installed may be without the youngest kinds. They are not there if they haven't been read after so long.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn follow<K: Kind>(
    rest: &Rest,
    options: InformerOptions<K>,
    changed: &Arc<Notify>,
    stop: &CancellationToken,
) -> Informer<K> {
    let informer = Informer::start(rest, options, stop);
    let note = changed.clone();
    informer.on_change(move |_| note.notify_one());
    informer
}

/// Which secrets are followed: the copies, or all there are copies of.
pub fn secrets(copies: bool) -> InformerOptions<Secret> {
    InformerOptions {
        namespace: if copies { NAMESPACE.into() } else { String::new() },
        labels: if copies {
            format!("{MANAGED_BY}={US}")
        } else {
            String::new()
        },
        fields: CERTIFICATES.into(),
        ..InformerOptions::default()
    }
}

/// The same of ConfigMaps.
fn configs(copies: bool) -> InformerOptions<ConfigMap> {
    let of = secrets(copies);
    InformerOptions {
        namespace: of.namespace,
        labels: of.labels,
        ..InformerOptions::default()
    }
}

fn slices(
    rest: &Rest,
    changed: &Arc<Notify>,
    leads_to: &Arc<Mutex<LeadsTo>>,
    stop: &CancellationToken,
) -> Informer<EndpointSlice> {
    let informer = Informer::start(rest, InformerOptions::default(), stop);
    let (note, leads_to) = (changed.clone(), leads_to.clone());
    informer.on_change(move |change| {
        let of = change.old().into_iter().chain([change.object()]);
        let mut of = of.filter_map(|slice| service_of(slice));
        let matters = |all: &BTreeSet<ObjectKey>| of.any(|s| all.contains(&s));
        if leads_to.lock().as_ref().is_none_or(matters) {
            note.notify_one();
        }
    });
    informer
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.namespace(), name))
}

impl Followed {
    pub fn start(rest: &Rest, node: bool, stop: &CancellationToken) -> Followed {
        let changed = Arc::new(Notify::new());
        let leads_to: Arc<Mutex<LeadsTo>> = Arc::default();
        Followed {
            ingresses: follow(rest, InformerOptions::default(), &changed, stop),
            ingress_classes: follow(rest, InformerOptions::default(), &changed, stop),
            services: follow(rest, InformerOptions::default(), &changed, stop),
            namespaces: follow(rest, InformerOptions::default(), &changed, stop),
            secrets: follow(rest, secrets(node), &changed, stop),
            slices: node.then(|| slices(rest, &changed, &leads_to, stop)),
            gateway_api: None,
            known: Mutex::default(),
            system: System::default(),
            leads_to,
            rest: rest.clone(),
            stop: stop.clone(),
            changed,
        }
    }

    /// Gateways and routes are followed from now on, or no longer.
    pub fn gateways(&mut self, wanted: bool) {
        if wanted != self.gateway_api.is_some() {
            self.gateway_api = wanted.then(|| self.follow_gateways());
            self.changed.notify_one();
        }
        // Copies are few, and requests wait for what backends have to show: nodes follow them from the beginning.
        if let Some(api) = &self.gateway_api
            && (self.slices.is_some() || api.asks_for_authorities())
        {
            api.authorities.get_or_init(|| self.follow_authorities(&api.named));
        }
    }

    fn follow_gateways(&self) -> GatewayApi {
        let (rest, changed, stop) = (&self.rest, &self.changed, &self.stop);
        let (note, ends) = (changed.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(PATIENCE) => note.notify_one(),
                () = ends.cancelled() => {}
            }
        });
        GatewayApi {
            classes: follow(rest, InformerOptions::default(), changed, stop),
            gateways: follow(rest, InformerOptions::default(), changed, stop),
            http_routes: follow(rest, InformerOptions::default(), changed, stop),
            grpc_routes: follow(rest, InformerOptions::default(), changed, stop),
            grants: follow(rest, InformerOptions::default(), changed, stop),
            tls_routes: follow(rest, InformerOptions::default(), changed, stop),
            tcp_routes: follow(rest, InformerOptions::default(), changed, stop),
            udp_routes: follow(rest, InformerOptions::default(), changed, stop),
            policies: follow(rest, InformerOptions::default(), changed, stop),
            listener_sets: follow(rest, InformerOptions::default(), changed, stop),
            authorities: OnceLock::new(),
            named: Arc::default(),
            patience: Instant::now() + PATIENCE,
        }
    }

    fn follow_authorities(&self, named: &Arc<Mutex<BTreeSet<ObjectKey>>>) -> Informer<ConfigMap> {
        let informer = Informer::start(&self.rest, configs(self.slices.is_some()), &self.stop);
        let (note, named) = (self.changed.clone(), named.clone());
        informer.on_change(move |change| {
            let key = change.object().key();
            if key.namespace == NAMESPACE || named.lock().contains(&key) {
                note.notify_one();
            }
        });
        // That all have been read matters also where none of them does.
        let (note, read, ends) = (self.changed.clone(), informer.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = read.synced() => note.notify_one(),
                () = ends.cancelled() => {}
            }
        });
        informer
    }

    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Whether everything has been read once. Kinds that aren't served keep nothing else from being so: gateways are left out until they are.
    pub async fn synced(&self) {
        self.ingresses.synced().await;
        self.ingress_classes.synced().await;
        self.services.synced().await;
        self.namespaces.synced().await;
        self.secrets.synced().await;
        if let Some(slices) = &self.slices {
            slices.synced().await;
        }
    }

    pub fn gateways_synced(&self) -> bool {
        self.gateway_api.as_ref().is_some_and(|g| {
            g.classes.is_synced()
                && g.gateways.is_synced()
                && g.http_routes.is_synced()
                && g.grpc_routes.is_synced()
                && g.grants.is_synced()
                && (g.has_youngest() || Instant::now() >= g.patience)
                && (self.slices.is_some() || g.has_authorities())
        })
    }

    /// Endpoints of other services than those that requests go to wake nobody, from what [`Followed::world`] told last on.
    pub fn leads_to(&self, services: BTreeSet<ObjectKey>) {
        *self.leads_to.lock() = Some(services);
    }

    pub fn world(&self) -> (World, Certificates) {
        // What changes from here on may matter: it is planned with what is found below or not.
        *self.leads_to.lock() = None;
        let mut world = World {
            ingresses: self.ingresses.store().list(),
            ingress_classes: self.ingress_classes.store().list(),
            ..World::default()
        };
        for namespace in self.namespaces.store().list() {
            let labels = namespace.metadata.labels.clone().unwrap_or_default();
            world.namespaces.insert(namespace.name().into(), labels);
        }
        for service in self.services.store().list() {
            if service.namespace() == NAMESPACE {
                world.fronts.extend(fronts::read(&service));
            }
            world.services.insert(service.key(), service);
        }
        for slice in self.slices.iter().flat_map(|s| s.store().list()) {
            if let Some(key) = service_of(&slice) {
                world.slices.entry(key).or_default().push(slice);
            }
        }
        if let Some(api) = self.gateway_api.as_ref().filter(|_| self.gateways_synced()) {
            world.classes = api.classes.store().list();
            world.gateways = api.gateways.store().list();
            world.http_routes = api.http_routes.store().list();
            world.grpc_routes = api.grpc_routes.store().list();
            world.grants = api.grants.store().list();
            world.tls_routes = api.tls_routes.store().list();
            world.tcp_routes = api.tcp_routes.store().list();
            world.udp_routes = api.udp_routes.store().list();
            world.listener_sets = api.listener_sets.store().list();
            // The first policy may have come just now: it counts from the next turn on, when there is what it names.
            if let Some(configs) = api.authorities.get() {
                world.policies = api.policies.store().list();
                self.authorities(api, configs, &mut world);
            }
        }
        let mut certificates = Certificates::new();
        for (key, found) in self.certificates() {
            world
                .certificates
                .insert(key.clone(), found.as_ref().map(drop).map_err(Clone::clone));
            certificates.extend(found.ok().map(|found| (key, found)));
        }
        (world, certificates)
    }

    fn authorities(&self, api: &GatewayApi, configs: &Informer<ConfigMap>, world: &mut World) {
        let policies = world.policies.iter();
        let named = policies.flat_map(|p| {
            let refs = p.spec.validation.ca_certificate_refs.iter();
            refs.map(|r| ObjectKey::new(p.namespace(), &r.name))
        });
        let of_clients = world.gateways.iter().flat_map(|g| authorities_of_clients(g));
        let named: BTreeSet<ObjectKey> = named.chain(of_clients).collect();
        if world.policies.iter().any(|p| by_system(&p.spec.validation)) {
            world.system = self.system.authorities();
        }
        // What becomes of them from here on is heard of.
        api.named.lock().clone_from(&named);
        let store = configs.store();
        let found: Vec<(ObjectKey, Arc<ConfigMap>)> = match self.slices.is_some() {
            true => {
                let copies = store.list().into_iter();
                copies.filter_map(|c| Some((whose(c.as_ref(), true)?, c))).collect()
            }
            false => named
                .iter()
                .filter_map(|k| Some((k.clone(), store.get_key(k)?)))
                .collect(),
        };
        for (key, config) in found.into_iter().filter(|(key, _)| named.contains(key)) {
            let text = config.data.as_ref().and_then(|d| d.get(AUTHORITY));
            let read = text.ok_or_else(|| format!("it has no {AUTHORITY}"));
            let read = read.and_then(|text| serve::authorities(text));
            world.authorities.insert(key, read);
        }
    }

    /// Under the names of the secrets that users wrote; each is read once a revision.
    fn certificates(&self) -> BTreeMap<ObjectKey, Result<Arc<CertifiedKey>, String>> {
        let copies = self.slices.is_some();
        let mut known = self.known.lock();
        let mut fresh = BTreeMap::new();
        for secret in self.secrets.store().list() {
            let Some(key) = whose(secret.as_ref(), copies) else {
                continue;
            };
            let revision = secret.metadata.resource_version.clone();
            let read = match known.remove(&key) {
                Some((at, read)) if at == revision => read,
                _ => certified(&secret),
            };
            fresh.insert(key, (revision, read));
        }
        *known = fresh;
        known
            .iter()
            .map(|(key, (_, read))| (key.clone(), read.clone()))
            .collect()
    }
}

/// The object that a certificate is known by. At the publisher copies are nobody's source.
fn whose<K: ApiObject>(object: &K, copies: bool) -> Option<ObjectKey> {
    match (copies, object.namespace() == NAMESPACE) {
        (true, true) => {
            let of = object.meta().annotations.as_ref()?.get(COPY_OF)?;
            let (namespace, name) = of.split_once('/')?;
            Some(ObjectKey::new(namespace, name))
        }
        (false, false) => Some(object.key()),
        _ => None,
    }
}

fn certified(secret: &Secret) -> Result<Arc<CertifiedKey>, String> {
    let part = |name: &str| {
        let data = secret.data.as_ref().and_then(|d| d.get(name));
        data.map(|d| d.0.as_slice()).ok_or_else(|| format!("it has no {name}"))
    };
    serve::certified(part("tls.crt")?, part("tls.key")?)
}
