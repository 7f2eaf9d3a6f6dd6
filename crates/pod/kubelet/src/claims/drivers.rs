//! The drivers of claims that have registered. One that has gone, or can't be reached, for half a minute has its
//! ResourceSlices deleted: nothing is allocated on a node whose driver isn't there. So has every one when the kubelet starts,
//! for none has registered yet; those that are there publish theirs again.

use super::Claims;
use crate::plugins::{Kind, Plug, Refusal};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceSlice;
use keelson_client::{Kind as _, Objects, delete_options, is_not_found};
use keelson_devices::{DRA_PLUGIN, Driver, HealthService, Presence, Service};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a driver may take for what it is asked.
const CALL: Duration = Duration::from_secs(45);
/// How long a driver may be away before its slices go.
const AWAY: Duration = Duration::from_secs(30);
/// How soon a connection is made anew, and a deletion tried again.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(300);
const MAX_RECONNECT: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Registered {
    endpoint: PathBuf,
    driver: Driver,
    health: Option<HealthService>,
    connected: bool,
}

#[derive(Default)]
struct State {
    /// By name; the one that came last is at the end.
    drivers: BTreeMap<String, Vec<Registered>>,
    /// Pods that wait for a driver.
    waiting: BTreeMap<String, BTreeSet<String>>,
    /// Ends what waits to delete a driver's slices.
    wiping: BTreeMap<String, CancellationToken>,
}

#[derive(Default)]
pub struct Drivers(Mutex<State>);

impl Drivers {
    /// The driver, for a pod that is woken when it comes if it isn't there.
    pub fn wanted(&self, name: &str, uid: &str) -> Result<Driver, String> {
        let mut state = self.0.lock();
        let all = state.drivers.get(name).map(Vec::as_slice).unwrap_or_default();
        let best = all.iter().rev().find(|r| r.connected).or(all.last());
        if let Some(found) = best {
            return Ok(found.driver.clone());
        }
        state.waiting.entry(name.to_owned()).or_default().insert(uid.to_owned());
        Err(format!("DRA driver {name} is not registered"))
    }

    /// A pod that has ended waits for no driver.
    pub fn unwanted(&self, uid: &str) {
        self.0.lock().waiting.retain(|_, uids| {
            uids.remove(uid);
            !uids.is_empty()
        });
    }

    fn add(&self, plug: &Plug, service: Service) -> Result<(), String> {
        let (name, endpoint) = (&plug.name, &plug.endpoint);
        let mut state = self.0.lock();
        let all = state.drivers.entry(name.clone()).or_default();
        if all.iter().any(|r| r.endpoint == *endpoint) {
            let endpoint = endpoint.display();
            return Err(format!(
                "endpoint {endpoint} already registered for DRA driver plugin {name}"
            ));
        }
        let speaks = |h: &HealthService| plug.versions.iter().any(|v| v == h.name());
        all.push(Registered {
            endpoint: endpoint.clone(),
            driver: Driver::at(endpoint, service, CALL),
            health: HealthService::ALL.into_iter().find(speaks),
            connected: false,
        });
        Ok(())
    }

    fn find(&self, name: &str, endpoint: &Path) -> Option<Registered> {
        let state = self.0.lock();
        state
            .drivers
            .get(name)?
            .iter()
            .find(|r| r.endpoint == endpoint)
            .cloned()
    }

    fn remove(&self, name: &str, endpoint: &Path) {
        let mut state = self.0.lock();
        if let Some(all) = state.drivers.get_mut(name) {
            all.retain(|r| r.endpoint != endpoint);
            if all.is_empty() {
                state.drivers.remove(name);
            }
        }
    }

    /// Whether a driver can be reached.
    fn is_there(&self, name: &str) -> bool {
        let state = self.0.lock();
        state
            .drivers
            .get(name)
            .is_some_and(|all| all.iter().any(|r| r.connected))
    }

    fn set_connected(&self, name: &str, endpoint: &Path, connected: bool) {
        let mut state = self.0.lock();
        let all = state.drivers.get_mut(name).into_iter().flatten();
        for r in all.filter(|r| r.endpoint == endpoint) {
            r.connected = connected;
        }
    }
}

/// The newest service that both sides speak.
fn service(offered: &[String]) -> Result<Service, String> {
    if offered.is_empty() {
        return Err("empty list for supported gRPC services (aka supported versions)".into());
    }
    let found = Service::ALL.into_iter().find(|s| offered.iter().any(|o| o == s.name()));
    found.ok_or_else(|| {
        let quoted = |names: Vec<&str>| names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(" ");
        format!(
            "none of services supported by the plugin ([{}]) are supported by the kubelet ([{}])",
            quoted(offered.iter().map(String::as_str).collect()),
            quoted(Service::ALL.iter().map(|s| s.name()).collect())
        )
    })
}

/// The type of plug-ins.
pub struct Registry(pub Arc<Claims>);

#[tonic::async_trait]
impl Kind for Registry {
    fn name(&self) -> &'static str {
        DRA_PLUGIN
    }

    async fn take(&self, plug: &Plug) -> Result<(), Refusal> {
        let (name, endpoint) = (&plug.name, plug.endpoint.display());
        if name.is_empty() {
            return Err(Refusal::Invalid("DRA driver name is empty".into()));
        }
        let service = service(&plug.versions).map_err(|e| {
            Refusal::Invalid(format!(
                "invalid supported gRPC versions of DRA driver plugin {name} at endpoint {endpoint}: {e}"
            ))
        })?;
        self.0.drivers.add(plug, service).map_err(Refusal::Failed)
    }

    async fn keep(&self, plug: &Plug, gone: &CancellationToken) {
        let (claims, name) = (&self.0, plug.name.as_str());
        let Some(registered) = claims.drivers.find(name, &plug.endpoint) else {
            return;
        };
        let waiting = claims.drivers.0.lock().waiting.remove(name).unwrap_or_default();
        waiting.iter().for_each(|uid| (claims.wake)(uid));
        // Away until it is seen: its slices go if it never is.
        claims.settle(name);
        let health = async {
            match registered.health {
                Some(service) => claims.follow_health(name, &registered.driver, service).await,
                None => std::future::pending().await,
            }
        };
        let both = futures::future::join(claims.look(name, &plug.endpoint), health);
        gone.run_until_cancelled(both).await;
    }

    async fn forget(&self, plug: &Plug) {
        self.0.drivers.remove(&plug.name, &plug.endpoint);
        if !self.0.drivers.0.lock().drivers.contains_key(&plug.name) {
            self.0.forget_health(&plug.name);
        }
        self.0.settle(&plug.name);
    }
}

impl Claims {
    /// Looks whether a driver is there, for as long as it is registered.
    async fn look(self: &Arc<Self>, name: &str, endpoint: &Path) {
        let mut delay = FIRST_DELAY;
        loop {
            match Presence::of(endpoint).await {
                Ok(presence) => {
                    delay = FIRST_DELAY;
                    self.drivers.set_connected(name, endpoint, true);
                    self.settle(name);
                    presence.gone().await;
                    tracing::info!(driver = name, "the connection to a driver has ended");
                    self.drivers.set_connected(name, endpoint, false);
                    self.settle(name);
                }
                Err(e) => tracing::info!(
                    driver = name,
                    "a driver can't be reached at {}: {e}",
                    endpoint.display()
                ),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(MAX_RECONNECT);
        }
    }

    /// Begins to wait for a driver that is away, or stops if it is there.
    fn settle(self: &Arc<Self>, name: &str) {
        let there = self.drivers.is_there(name);
        let mut state = self.drivers.0.lock();
        if there {
            if let Some(wiping) = state.wiping.remove(name) {
                wiping.cancel();
            }
            return;
        }
        if state.wiping.contains_key(name) {
            return;
        }
        let back = self.stop.child_token();
        state.wiping.insert(name.to_owned(), back.clone());
        let (claims, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let wiped = async {
                tokio::time::sleep(AWAY).await;
                if !claims.drivers.is_there(&name) {
                    tracing::info!(
                        driver = name,
                        "a driver is away, and its slices of this node are deleted"
                    );
                    claims.wipe(Wipe::Driver(&name)).await;
                }
            };
            back.run_until_cancelled(wiped).await;
            let mut state = claims.drivers.0.lock();
            // Otherwise what stands there is another's.
            if !back.is_cancelled() {
                state.wiping.remove(&name);
            }
        });
    }

    /// Deletes slices of this node, until that has worked.
    pub async fn wipe(&self, what: Wipe<'_>) {
        let mut delay = FIRST_DELAY;
        loop {
            match self.try_wipe(what).await {
                Ok(()) => return,
                Err(e) => tracing::warn!("slices of this node can't be deleted: {}", crate::error_text(&e)),
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    async fn try_wipe(&self, what: Wipe<'_>) -> Result<(), keelson_client::Error> {
        Objects::<Node>::new(&self.rest).get("", &self.node).await?;
        let of_node = format!("spec.nodeName={}", self.node);
        let fields = match what {
            Wipe::All => of_node,
            Wipe::Driver(name) => format!("spec.driver={name},{of_node}"),
        };
        let (slices, options) = (ResourceSlice::RESOURCE, delete_options(None, None, None));
        let deleted = self.rest.delete_collection_raw(&slices, "", &options, "", &fields);
        match deleted.await {
            Err(e) if !is_not_found(&e) => Err(e),
            _ => Ok(()),
        }
    }
}

/// Whose slices go.
#[derive(Clone, Copy)]
pub enum Wipe<'a> {
    All,
    Driver(&'a str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_service_that_both_speak() {
        let of = |names: &[&str]| service(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            of(&["v1beta1.DRAPlugin", "v1.DRAPlugin", "v1.DRAResourceHealth"]),
            Ok(Service::V1)
        );
        assert_eq!(of(&["v1beta1.DRAPlugin"]), Ok(Service::V1Beta1));
        assert_eq!(
            of(&["v2.DRAPlugin"]).unwrap_err(),
            "none of services supported by the plugin ([\"v2.DRAPlugin\"]) are supported by the kubelet ([\"v1.DRAPlugin\" \
             \"v1beta1.DRAPlugin\"])"
        );
        assert!(of(&[]).unwrap_err().contains("empty list"));
    }
}
