//! Devices of claims (dynamic resource allocation): what the scheduler allocated, drivers make ready on the node before a
//! pod's sandbox, and take back when its last container has ended. Drivers register as any plug-in ([`drivers`]), tell of
//! their devices' health ([`health`]), and say by which names containers get the devices: specifications that the runtime
//! reads (CDI).
//!
//! What is known of claims ([`info`]) is written down before a driver is asked, so that whatever was made ready is taken back
//! by a kubelet that knows nothing else. Drivers have to stand being asked for the same again.

mod drivers;
mod health;
mod info;

pub use drivers::{Registry, Wipe};
pub use info::{Device, Info};

use crate::host::{Host, Layout};
use crate::objects::Wake;
use crate::pods;
use drivers::Drivers;
use health::Health;
use info::Known;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use keelson_client::{Objects, Rest};
use parking_lot::Mutex;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// More than the claims of any node need.
const LONGEST: u64 = 64 << 20;
/// More than what a driver makes of one claim takes, which has 32 devices at most.
const LARGEST: usize = 256 << 10;

pub struct Claims {
    host: Arc<dyn Host>,
    rest: Rest,
    wake: Wake,
    stop: CancellationToken,
    file: PathBuf,
    node: String,
    known: Mutex<Known>,
    drivers: Drivers,
    health: Health,
}

impl Claims {
    pub fn new(
        host: Arc<dyn Host>,
        layout: &Layout,
        node: &str,
        rest: Rest,
        wake: Wake,
        stop: CancellationToken,
    ) -> io::Result<Arc<Self>> {
        let file = layout.root.join("claims.json");
        let claims = Claims {
            known: Mutex::new(restore(&*host, &file)?),
            drivers: Drivers::default(),
            health: Health::default(),
            node: node.to_owned(),
            host,
            rest,
            wake,
            stop,
            file,
        };
        Ok(Arc::new(claims))
    }

    /// Whether a pod has claims, as its object says.
    pub fn wants(pod: &Pod) -> bool {
        let extended = pods::status(pod).extended_resource_claim_status.is_some();
        extended || pods::spec(pod).resource_claims.iter().flatten().next().is_some()
    }

    /// Whether drivers were asked for a pod's claims.
    pub fn uses(&self, uid: &str) -> bool {
        self.known.lock().uses(uid)
    }

    fn save(&self, known: &Known) -> Result<(), String> {
        let text = serde_json::to_vec(&known.list()).map_err(io::Error::from);
        let written = text.and_then(|text| match text.len() as u64 {
            // It could not be read back.
            LONGEST.. => Err(io::Error::other(format!("it takes {LONGEST} bytes or more"))),
            _ => self.host.write(&self.file, &text, 0o600),
        });
        written.map_err(|e| format!("checkpoint ResourceClaim state: {e}"))
    }

    /// Has drivers make a pod's devices ready.
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        let done = self.try_prepare(pod).await;
        done.map_err(|e| format!("prepare dynamic resources: {e}"))
    }

    async fn try_prepare(&self, pod: &Pod) -> Result<(), String> {
        let uid = pods::uid(pod);
        let mut fresh = Vec::new();
        for named in info::claims_of(pod)? {
            let name = &named.claim;
            let claim = Objects::<ResourceClaim>::new(&self.rest)
                .get(pods::namespace(pod), name)
                .await;
            let claim = claim.map_err(|e| format!("fetch ResourceClaim {name}: {}", crate::error_text(&e)))?;
            let info = Info::of(pod, &claim, named.owned)?;
            if fresh.iter().any(|had: &Info| had.uid == info.uid) {
                // A pod may have two names for it; drivers are asked once.
                continue;
            }
            for driver in info.drivers.keys() {
                self.drivers.wanted(driver, uid)?;
            }
            fresh.push(info);
        }
        let mut batches: BTreeMap<String, Vec<Info>> = BTreeMap::new();
        let mut asked = Vec::new();
        {
            let mut known = self.known.lock();
            for info in fresh {
                let Some(info) = known.take(uid, info)? else { continue };
                for driver in info.drivers.keys() {
                    batches.entry(driver.clone()).or_default().push(info.clone());
                }
                asked.push(info);
            }
            // Before any driver is asked.
            self.save(&known)?;
        }
        for (driver, claims) in batches {
            self.ask(&driver, &claims, uid).await?;
        }
        let mut known = self.known.lock();
        for info in &asked {
            known.prepared(&info.namespace, &info.name)?;
        }
        self.save(&known)
    }

    /// Asks one driver for all of a pod's claims that have devices of it.
    async fn ask(&self, name: &str, claims: &[Info], uid: &str) -> Result<(), String> {
        let driver = self.drivers.wanted(name, uid)?;
        let answer = driver.prepare(claims.iter().map(Info::claim).collect()).await;
        let answer = answer.map_err(|e| format!("NodePrepareResources: {}", crate::rpc_text(&e)))?;
        for (claim, made) in &answer.claims {
            let Some(info) = claims.iter().find(|i| i.uid == *claim) else {
                return Err(format!(
                    "NodePrepareResources returned result for unknown claim UID {claim}"
                ));
            };
            if !made.error.is_empty() {
                return Err(format!(
                    "NodePrepareResources failed for ResourceClaim {}: {}",
                    info.name, made.error
                ));
            }
            if made.encoded_len() > LARGEST {
                return Err(format!(
                    "NodePrepareResources returned more than {LARGEST} bytes for ResourceClaim {}",
                    info.name
                ));
            }
            let devices = made.devices.iter().cloned().map(Device::new).collect();
            self.known.lock().made(&info.namespace, &info.name, name, devices)?;
        }
        match claims.len() - answer.claims.len() {
            0 => Ok(()),
            n => Err(format!("NodePrepareResources skipped {n} ResourceClaims")),
        }
    }

    /// Has drivers take back what a pod was the last to use. It may be another kubelet that had it made ready.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        let done = self.try_unprepare(uid).await;
        done.map_err(|e| format!("unprepare dynamic resources: {e}"))?;
        self.drivers.unwanted(uid);
        Ok(())
    }

    async fn try_unprepare(&self, uid: &str) -> Result<(), String> {
        let last = {
            let mut known = self.known.lock();
            if !known.uses(uid) {
                return Ok(());
            }
            let last = known.leave(uid);
            self.save(&known)?;
            last
        };
        let mut batches: BTreeMap<&str, Vec<&Info>> = BTreeMap::new();
        for info in &last {
            for driver in info.drivers.keys() {
                batches.entry(driver).or_default().push(info);
            }
        }
        for (name, claims) in batches {
            let driver = self.drivers.wanted(name, uid)?;
            let answer = driver.unprepare(claims.iter().map(|i| i.claim()).collect()).await;
            let answer = answer.map_err(|e| format!("NodeUnprepareResources: {}", crate::rpc_text(&e)))?;
            for (claim, done) in &answer.claims {
                let Some(info) = claims.iter().find(|i| i.uid == *claim) else {
                    return Err(format!(
                        "NodeUnprepareResources returned result for unknown claim UID {claim}"
                    ));
                };
                if !done.error.is_empty() {
                    return Err(format!(
                        "NodeUnprepareResources failed for ResourceClaim {}: {}",
                        info.name, done.error
                    ));
                }
            }
            if answer.claims.len() != claims.len() {
                let n = claims.len() - answer.claims.len();
                return Err(format!("NodeUnprepareResources skipped {n} ResourceClaims"));
            }
        }
        let mut known = self.known.lock();
        last.iter().for_each(|info| known.remove(info));
        self.save(&known)
    }

    /// The devices of a container, by their names in specifications.
    pub fn for_start(&self, pod: &Pod, c: &Container) -> Result<Vec<String>, String> {
        self.known.lock().cdi(pod, c)
    }

    /// The claims of a container as they are known here.
    pub fn of_container(&self, pod: &Pod, c: &Container) -> Vec<Info> {
        let names = info::of_container(pod, c).unwrap_or_default();
        let names: BTreeSet<String> = names.into_iter().map(|(claim, _, _)| claim).collect();
        let known = self.known.lock();
        let found = names.iter().filter_map(|claim| known.get(pods::namespace(pod), claim));
        found.cloned().collect()
    }

    /// Writes the health of claims' devices into a pod's status.
    pub fn tell(&self, pod: &Pod, status: &mut PodStatus) {
        let known = self.known.lock();
        for s in status.container_statuses.iter_mut().flatten() {
            let Some(c) = pods::containers(pod).iter().find(|c| c.name == s.name) else {
                continue;
            };
            for (claim, request, shown) in info::of_container(pod, c).unwrap_or_default() {
                let Some(info) = known.get(pods::namespace(pod), &claim) else {
                    continue;
                };
                let all = self.health.of(info, info::base(&request));
                if !all.is_empty() {
                    crate::devices::put_health(s, &shown, all);
                }
            }
        }
    }
}

/// What an earlier kubelet wrote down. What makes no sense is kept beside, and drivers are asked again for pods that run.
fn restore(host: &dyn Host, file: &Path) -> io::Result<Known> {
    let text = match host.read(file, LONGEST) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Known::default()),
        other => other?,
    };
    match serde_json::from_slice::<Vec<Info>>(&text) {
        Ok(list) => Ok(Known::from_list(list)),
        Err(e) => {
            tracing::error!("which claims have devices on this node can't be read; drivers are asked again: {e}");
            if let Err(e) = host.rename(file, &file.with_extension("damaged")) {
                tracing::error!("{} can't be put aside: {e}", file.display());
            }
            Ok(Known::default())
        }
    }
}
