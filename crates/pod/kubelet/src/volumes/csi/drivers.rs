//! The drivers that have registered, what they can, and what the cluster says of them.
//!
//! Every call ends within [`DEADLINE`], upstream's. A driver that isn't there is an error of the volume that wants it, and
//! whoever wanted it is woken when it comes.

use super::source::{self, Capabilities};
use crate::objects::Wake;
use k8s_openapi::api::storage::v1::CSIDriver;
use keelson_client::{Informer, InformerOptions, Rest};
use keelson_csi::Driver;
use keelson_csi::v1 as csi;
use keelson_csi::v1::node_service_capability::Type;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

pub const DEADLINE: Duration = Duration::from_secs(120);

/// How long the cluster's drivers may take to be read before a volume is tried again later.
const FIRST_READ: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Registered {
    pub driver: Driver,
    /// The highest version that the driver and the kubelet both speak.
    pub version: (u64, u64, u64),
    pub endpoint: PathBuf,
}

pub struct Drivers {
    rest: Rest,
    stop: CancellationToken,
    wake: Wake,
    registered: Mutex<BTreeMap<String, Registered>>,
    /// Pods that wait for a driver, by its name.
    waiting: Mutex<BTreeMap<String, BTreeSet<String>>>,
    objects: Mutex<Option<Informer<CSIDriver>>>,
}

/// The answer to a call, or why there is none; in time whatever the driver does.
pub async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    keelson_grpc::in_time(DEADLINE, call).await
}

impl Drivers {
    pub fn new(rest: Rest, stop: CancellationToken, wake: Wake) -> Self {
        Drivers {
            rest,
            stop,
            wake,
            registered: Mutex::default(),
            waiting: Mutex::default(),
            objects: Mutex::default(),
        }
    }

    pub fn get(&self, name: &str) -> Option<Registered> {
        self.registered.lock().get(name).cloned()
    }

    /// The driver, for a pod that is woken when it comes if it isn't there.
    pub fn wanted(&self, name: &str, uid: &str) -> Result<Driver, String> {
        let registered = self.registered.lock();
        if let Some(found) = registered.get(name) {
            return Ok(found.driver.clone());
        }
        self.waiting
            .lock()
            .entry(name.to_owned())
            .or_default()
            .insert(uid.to_owned());
        Err(format!(
            "driver name {name} not found in the list of registered CSI drivers"
        ))
    }

    /// Makes a driver known under its name.
    pub fn add(&self, name: &str, endpoint: &Path, version: (u64, u64, u64)) -> Driver {
        // A little longer than calls are waited for, so that it is always the same side that gives up.
        let driver = Driver::at(endpoint, DEADLINE + Duration::from_secs(5));
        let registered = Registered {
            driver: driver.clone(),
            version,
            endpoint: endpoint.to_owned(),
        };
        self.registered.lock().insert(name.to_owned(), registered);
        driver
    }

    /// Whoever waited for the driver goes on.
    pub fn announce(&self, name: &str) {
        let waiting = self.waiting.lock().remove(name).unwrap_or_default();
        waiting.iter().for_each(|uid| (self.wake)(uid));
    }

    /// Makes a driver unknown, if it is the one at this endpoint. True if it was.
    pub fn remove(&self, name: &str, endpoint: &Path) -> bool {
        let mut registered = self.registered.lock();
        let is_it = registered.get(name).is_some_and(|r| r.endpoint == endpoint);
        if is_it {
            registered.remove(name);
        }
        is_it
    }

    fn informer(&self) -> Informer<CSIDriver> {
        let mut objects = self.objects.lock();
        let start = || Informer::start(&self.rest, InformerOptions::default(), &self.stop);
        objects.get_or_insert_with(start).clone()
    }

    /// What the cluster says of a driver: its object, if it has one.
    pub async fn object(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, String> {
        let informer = self.informer();
        tokio::time::timeout(FIRST_READ, informer.synced())
            .await
            .map_err(|_| "timed out waiting for the CSIDriver lister to sync".to_owned())?;
        Ok(informer.store().get("", name))
    }

    /// Tells of changes of what the cluster says of drivers.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.informer().store().changes()
    }

    /// Whether a driver's volumes are to be attached, as far as is known now.
    pub fn needs_attach(&self, name: &str) -> bool {
        let informer = self.informer();
        let object = informer.store().get("", name);
        source::needs_attach(object.as_ref().map(|d| &d.spec))
    }
}

/// What the node's side of a driver can.
pub async fn capabilities(driver: &Driver) -> Result<Capabilities, Status> {
    let mut node = driver.node();
    let answer = in_time(node.node_get_capabilities(csi::NodeGetCapabilitiesRequest {})).await?;
    let types = answer.capabilities.into_iter().filter_map(|c| c.r#type);
    Ok(types.map(|Type::Rpc(rpc)| rpc.r#type).collect())
}
