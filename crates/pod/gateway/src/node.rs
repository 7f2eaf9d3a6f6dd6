//! A node's half: while there is a front, the objects are followed, and its ports are open on the node's addresses.

use crate::NAMESPACE;
use crate::fronts::{self, MANAGED_BY, US};
use crate::plan::{Owner, plan};
use crate::serve::{Serving, datagrams, door};
use crate::table::{Speaks, Table};
use crate::world::{Followed, follow};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Service;
use keelson_client::{Informer, InformerOptions, Rest};
use keelson_measure::Measures;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Changes are taken in together for so long.
const TOGETHER: Duration = Duration::from_millis(100);
/// A port that can't be opened is tried again after so long.
const AGAIN: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Config {
    /// Where requests are taken in: one address a family.
    pub addresses: Vec<IpAddr>,
    /// Where requests are counted.
    pub measures: Measures,
}

/// Serves until `stop` fires. What no front leads to costs a watch of a few services and nothing else.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-ingress");
    let changed = Arc::new(Notify::new());
    let options = InformerOptions {
        namespace: NAMESPACE.into(),
        labels: format!("{MANAGED_BY}={US}"),
        ..InformerOptions::default()
    };
    let services: Informer<Service> = follow(&rest, options, &changed, &stop);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = changed.notified() => {}
        }
        if !owners(&services).is_empty() {
            serve(&rest, &config, &services, &changed, &stop).await?;
        }
    }
}

fn owners(services: &Informer<Service>) -> BTreeSet<Owner> {
    let all = services.store().list();
    all.iter()
        .filter_map(|s| fronts::read(s))
        .map(|(owner, _)| owner)
        .collect()
}

/// Until there is no front any more.
async fn serve(
    rest: &Rest,
    config: &Config,
    services: &Informer<Service>,
    fronts_changed: &Arc<Notify>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let ends = stop.child_token();
    let _ended = ends.clone().drop_guard();
    let mut followed = Followed::start(rest, true, &ends);
    let changed = followed.changed();
    let mut doors = Doors::new(config);
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = followed.synced() => {}
    }
    loop {
        let owners = owners(services);
        if owners.is_empty() {
            break;
        }
        followed.gateways(owners.iter().any(|o| matches!(o, Owner::Gateway(_))));
        let (world, certificates) = followed.world();
        let table = plan(&world).table;
        // Listening begins once it is known what for.
        let wanted = Doors::of(&table);
        followed.leads_to(table.services());
        doors.serving.set(table, certificates);
        let refused = doors.open(&wanted).await;
        tokio::select! {
            () = stop.cancelled() => break,
            () = changed.notified() => {}
            () = fronts_changed.notified() => {}
            () = tokio::time::sleep(AGAIN), if refused => {}
        }
        tokio::time::sleep(TOGETHER).await;
    }
    doors.close().await;
    Ok(())
}

/// The ports that are open, by address; each with what comes to it.
struct Doors {
    addresses: Vec<IpAddr>,
    serving: Arc<Serving>,
    open: BTreeMap<(SocketAddr, Speaks), CancellationToken>,
    told: BTreeSet<SocketAddr>,
    tasks: TaskTracker,
}

impl Doors {
    fn new(config: &Config) -> Doors {
        Doors {
            addresses: config.addresses.clone(),
            serving: Arc::new(Serving::new(&config.measures)),
            open: BTreeMap::new(),
            told: BTreeSet::new(),
            tasks: TaskTracker::new(),
        }
    }

    fn of(table: &Table) -> BTreeSet<(u16, Speaks)> {
        table.ports.iter().map(|(at, port)| (*at, port.speaks)).collect()
    }

    /// Opens and closes what has to be; true if something couldn't be opened.
    async fn open(&mut self, wanted: &BTreeSet<(u16, Speaks)>) -> bool {
        let addresses = self.addresses.iter();
        let wanted = addresses.flat_map(|ip| wanted.iter().map(|(at, speaks)| (SocketAddr::new(*ip, *at), *speaks)));
        let wanted: BTreeSet<(SocketAddr, Speaks)> = wanted.collect();
        self.open.retain(|door, stop| {
            let stays = wanted.contains(door) && !stop.is_cancelled();
            if !stays {
                stop.cancel();
            }
            stays
        });
        let mut refused = false;
        for (at, speaks) in wanted {
            if self.open.contains_key(&(at, speaks)) {
                continue;
            }
            let (stop, serving) = (CancellationToken::new(), self.serving.clone());
            let opened = match speaks {
                Speaks::Udp => UdpSocket::bind(at)
                    .await
                    .map(|socket| datagrams(socket, at.port(), serving, stop.clone()).boxed()),
                _ => TcpListener::bind(at)
                    .await
                    .map(|socket| door(socket, at.port(), speaks, serving, stop.clone()).boxed()),
            };
            match opened {
                Ok(serves) => {
                    self.open.insert((at, speaks), stop.clone());
                    self.told.remove(&at);
                    self.tasks.spawn(async move {
                        if let Err(error) = serves.await {
                            tracing::error!(%at, error = format!("{error:#}"), "requests aren't taken in any more");
                        }
                        stop.cancel();
                    });
                }
                Err(error) => {
                    refused = true;
                    if self.told.insert(at) {
                        tracing::warn!(%at, %error, "requests can't be taken in here: is the port taken?");
                    }
                }
            }
        }
        refused
    }

    async fn close(mut self) {
        self.open(&BTreeSet::new()).await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}
