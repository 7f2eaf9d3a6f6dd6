//! The publisher, one a cluster: fronts and their endpoints, copies of certificates, statuses.
//!
//! It alone reads secrets and writes, so that nodes need no such right. Until somebody makes an Ingress of the class or the Gateway API is
//! defined, it follows Ingresses, their classes and the names of definitions, nothing else.

mod copies;
mod features;
mod statuses;

use crate::NAMESPACE;
use crate::definitions::NAMES;
use crate::fronts::{self, MANAGED_BY, US};
use crate::plan::{Front, Owner, Plan, World, ingress_is_ours, plan};
use crate::world::{Followed, follow};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use keelson_client::leader::{Election, acquire};
use keelson_client::{
    ApiObject, Informer, InformerOptions, ObjectKey, Objects, PartialObject, Recorder, ResourceId, Rest,
    delete_options, is_not_found,
};
use statuses::Teller;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const TOGETHER: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Who this one is among those of other servers; `None`: there are no others.
    pub leader_election: Option<String>,
}

/// Publishes until `stop` fires, while no other does.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-ingress");
    let Some(identity) = &config.leader_election else {
        return lead(&rest, &stop).await;
    };
    while !stop.is_cancelled() {
        let election = Election {
            namespace: NAMESPACE.into(),
            ..Election::new("keelson-ingress", identity)
        };
        let Some(leading) = acquire(&rest, election, &stop).await else {
            break;
        };
        let done = lead(&rest, leading.token()).await;
        leading.finish().await;
        done?;
    }
    Ok(())
}

/// What tells whether there is anything to do.
struct Waiting {
    ingresses: Informer<Ingress>,
    classes: Informer<IngressClass>,
    definitions: Informer<PartialObject>,
}

impl Waiting {
    fn ingress(&self) -> bool {
        let classes = self.classes.store().list();
        !self
            .ingresses
            .store()
            .filter(|i| ingress_is_ours(i, &classes))
            .is_empty()
    }
    fn gateways(&self) -> bool {
        NAMES
            .iter()
            .all(|name| self.definitions.store().get("", name).is_some())
    }
}

async fn lead(rest: &Rest, stop: &CancellationToken) -> anyhow::Result<()> {
    let changed = Arc::new(Notify::new());
    let waiting = Waiting {
        ingresses: follow(rest, InformerOptions::default(), &changed, stop),
        classes: follow(rest, InformerOptions::default(), &changed, stop),
        definitions: Informer::metadata(
            rest,
            ResourceId::DEFINITIONS,
            keelson_client::informer::strip_managed_fields,
            stop,
        ),
    };
    let note = changed.clone();
    waiting.definitions.on_change(move |_| note.notify_one());
    let all = async {
        waiting.ingresses.synced().await;
        waiting.classes.synced().await;
        waiting.definitions.synced().await;
    };
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = all => {}
    }
    // What an earlier publisher left may be wanted no more.
    let left = Objects::<Service>::new(rest)
        .list(NAMESPACE, &format!("{MANAGED_BY}={US}"), "")
        .await?;
    let mut left = !left.is_empty();
    loop {
        if left || waiting.ingress() || waiting.gateways() {
            publish(rest, &waiting, &changed, stop).await?;
            left = false;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = changed.notified() => {}
        }
    }
}

/// Until nothing is asked for any more, and nothing is left of what was.
async fn publish(rest: &Rest, waiting: &Waiting, asked: &Arc<Notify>, stop: &CancellationToken) -> anyhow::Result<()> {
    let ends = stop.child_token();
    let _ended = ends.clone().drop_guard();
    let mut followed = Followed::start(rest, false, &ends);
    let changed = followed.changed();
    let nodes: Informer<Node> = follow(rest, InformerOptions::default(), &changed, &ends);
    let recorder = Recorder::start(rest, "keelson-ingress", "", &ends);
    let mut teller = Teller::new(rest, recorder);
    let mut publisher = Publisher::new(rest);
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { followed.synced().await; nodes.synced().await } => {}
    }
    loop {
        let gateways = waiting.gateways();
        followed.gateways(gateways);
        // What isn't read yet isn't wanted away, and what may never be read (another version of the definitions) keeps Ingresses from nothing.
        let before = !gateways || followed.gateways_synced();
        let (world, _) = followed.world();
        // A Gateway that came in between may name what isn't followed yet.
        let known = before && (!gateways || followed.gateways_synced());
        let plan = plan(&world);
        let written = async {
            publisher.fronts(&world, &plan, known, &nodes.store().list()).await?;
            copies::write(rest, &plan, known, &followed.secrets).await?;
            let api = followed.gateway_api.as_ref().filter(|_| known);
            match api.and_then(|api| api.authorities.get()).filter(|c| c.is_synced()) {
                Some(configs) => copies::authorities(rest, &plan, configs).await,
                None => Ok(()),
            }
        }
        .await;
        let failed = match written.and(teller.tell(&world, &plan).await) {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(%error, "what requests come by can't be published yet");
                true
            }
        };
        if !failed && known && !gateways && plan.fronts.is_empty() && !waiting.ingress() {
            return Ok(copies::clear(rest).await?);
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = changed.notified() => {}
            () = asked.notified() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

/// Writes fronts. What it wrote it doesn't read again: others leave these objects alone.
struct Publisher {
    services: Objects<Service>,
    slices: Objects<EndpointSlice>,
    written: BTreeMap<ObjectKey, EndpointSlice>,
    /// Fronts that may be there although nobody has told of them yet.
    made: BTreeSet<Owner>,
}

impl Publisher {
    fn new(rest: &Rest) -> Publisher {
        Publisher {
            services: Objects::new(rest),
            slices: Objects::new(rest),
            written: BTreeMap::new(),
            made: BTreeSet::new(),
        }
    }

    async fn fronts(
        &mut self,
        world: &World,
        plan: &Plan,
        gateways_known: bool,
        nodes: &[Arc<Node>],
    ) -> keelson_client::Result<()> {
        let assigned = match gateways_known {
            true => fronts::assign(&plan.fronts, &world.fronts),
            false => fronts::assign(
                &fronts::with_unknown_gateways(&plan.fronts, &world.fronts),
                &world.fronts,
            ),
        };
        for (owner, ports) in &assigned {
            let front = world.fronts.get(owner);
            // What a Gateway that isn't known wishes stays what it was.
            let wished = match plan.fronts.contains_key(owner) {
                true => plan.wished.get(owner),
                false => front.map(|f| &f.wished),
            };
            let wished = wished.map(Vec::as_slice).unwrap_or_default();
            let without = match plan.fronts.contains_key(owner) {
                true => plan.without.get(owner),
                false => front.map(|f| &f.without),
            };
            let without = without.cloned().unwrap_or_default();
            let written = match plan.fronts.contains_key(owner) {
                true => plan.written.get(owner),
                false => front.map(|f| &f.written),
            };
            let written = written.cloned().unwrap_or_default();
            let same =
                |f: &Front| f.ports == *ports && f.wished == wished && f.without == without && f.written == written;
            if !front.is_some_and(same) {
                self.made.insert(owner.clone());
                let service = fronts::service(owner, ports, wished, &without, &written);
                self.service(service).await?;
            }
            let slices = fronts::slices(owner, ports, nodes, &written);
            self.slices(owner, slices).await?;
        }
        let known = world
            .fronts
            .keys()
            .chain(&self.made)
            .filter(|o| !assigned.contains_key(o) && (gateways_known || **o == Owner::Ingress));
        let gone: BTreeSet<Owner> = known.cloned().collect();
        for owner in &gone {
            self.slices(owner, Vec::new()).await?;
            let deleted = self
                .services
                .delete(NAMESPACE, &fronts::name(owner), &delete_options(None, None, None))
                .await;
            absent(deleted)?;
            self.made.remove(owner);
        }
        Ok(())
    }

    async fn service(&self, wanted: Service) -> keelson_client::Result<()> {
        let of = |s: &Service| s.spec.as_ref().and_then(|s| s.ports.clone()).unwrap_or_default();
        let written = self.services.create_or_update(&wanted, |live| {
            let same = plans_same(live, &wanted);
            if let Some(spec) = &mut live.spec {
                spec.ports = Some(of(&wanted));
            }
            fronts::wipe(live);
            let labels = live.metadata.labels.get_or_insert_default();
            labels.extend(wanted.metadata.labels.clone().unwrap_or_default());
            let annotations = live.metadata.annotations.get_or_insert_default();
            annotations.remove(fronts::WISHED);
            annotations.remove(fronts::WITHOUT);
            annotations.extend(wanted.metadata.annotations.clone().unwrap_or_default());
            !same
        });
        written.await.map(drop)
    }

    async fn slices(&mut self, owner: &Owner, wanted: Vec<EndpointSlice>) -> keelson_client::Result<()> {
        let same = |a: &EndpointSlice, b: &EndpointSlice| {
            let (of_a, of_b) = (&a.metadata, &b.metadata);
            let written = of_a.labels == of_b.labels && of_a.annotations == of_b.annotations;
            written && a.endpoints == b.endpoints && a.ports == b.ports
        };
        let names: BTreeSet<ObjectKey> = wanted.iter().map(ApiObject::key).collect();
        for slice in wanted {
            if self.written.get(&slice.key()).is_some_and(|known| same(known, &slice)) {
                continue;
            }
            let merge = |live: &mut EndpointSlice| {
                let differs = !same(live, &slice);
                live.endpoints = slice.endpoints.clone();
                live.ports = slice.ports.clone();
                live.metadata.labels = slice.metadata.labels.clone();
                live.metadata.annotations = slice.metadata.annotations.clone();
                differs
            };
            self.slices.create_or_update(&slice, merge).await?;
            self.written.insert(slice.key(), slice);
        }
        for family in ["ipv4", "ipv6"] {
            let key = ObjectKey::new(NAMESPACE, format!("{}-{family}", fronts::name(owner)));
            if !names.contains(&key) && (names.is_empty() || self.written.contains_key(&key)) {
                absent(
                    self.slices
                        .delete(NAMESPACE, &key.name, &delete_options(None, None, None))
                        .await,
                )?;
                self.written.remove(&key);
            }
        }
        Ok(())
    }
}

/// Whether a service has the ports and asks for the addresses that it has to.
fn plans_same(live: &Service, wanted: &Service) -> bool {
    let front = |s: &Service| {
        fronts::read(s)
            .map(|(owner, front): (Owner, Front)| (owner, front.ports, front.wished, front.without, front.written))
    };
    front(live) == front(wanted)
}

fn absent(deleted: keelson_client::Result<()>) -> keelson_client::Result<()> {
    match deleted {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}
