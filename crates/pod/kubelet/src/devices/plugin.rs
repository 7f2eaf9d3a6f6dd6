//! A plug-in's life: it is asked what it wants to be asked, says which devices there are and how they are, again and again,
//! and ends with the connection by which it does.

use super::Devices;
use super::record;
use crate::plugins::{Kind, Plug, Refusal};
use keelson_devices::plugin::DevicePluginOptions;
use keelson_devices::{DEVICE_PLUGIN, Plugin, VERSION};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a plug-in may take to say what it wants.
const TALK: Duration = Duration::from_secs(10);
/// How many resources can have or have had plug-ins, and how many plug-ins one.
const MOST: usize = 256;

#[derive(Clone)]
pub struct Registered {
    pub client: Plugin,
    pub options: DevicePluginOptions,
    socket: PathBuf,
    /// Ends what follows it.
    gone: CancellationToken,
}

/// Whether plug-ins may register for a resource by this name: an extended resource, as upstream has it.
pub(super) fn check(resource: &str) -> Result<(), String> {
    let sound = resource.split_once('/').is_some_and(|(domain, name)| {
        let part = |text: &str, most: usize, also: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            text.len() <= most && text.chars().all(plain) && ends(text.chars().next()) && ends(text.chars().last())
        };
        let small = !domain.chars().any(|c| c.is_ascii_uppercase());
        small && part(domain, 253 - "requests.".len(), "-.") && part(name, 63, "-._")
    });
    let native = resource.contains("kubernetes.io/") || resource.starts_with("requests.");
    match sound && !native {
        true => Ok(()),
        false => Err(format!("the ResourceName {resource:?} is invalid")),
    }
}

impl Devices {
    /// The plug-in that is asked for a resource.
    pub(super) fn plugin(&self, resource: &str) -> Option<Registered> {
        self.plugins.lock().get(resource)?.last().cloned()
    }

    /// Makes a plug-in known, in place of one that had its socket.
    pub(super) async fn connect(self: &Arc<Self>, resource: &str, socket: &Path) -> Result<(), String> {
        let client = Plugin::at(socket);
        let asked = client.options(TALK).await;
        let options = asked.map_err(|e| format!("failed to get device plugin options: {}", crate::rpc_text(&e)))?;
        let registered = Registered {
            client,
            options,
            socket: socket.to_owned(),
            gone: self.stop.child_token(),
        };
        {
            let mut plugins = self.plugins.lock();
            let others = self.ledger.lock().others(resource);
            let of_resource = plugins.entry(resource.to_owned()).or_default();
            of_resource.retain(|r| {
                let stays = r.socket != socket;
                if !stays {
                    r.gone.cancel();
                }
                stays
            });
            if others >= MOST || of_resource.len() >= MOST {
                if of_resource.is_empty() {
                    plugins.remove(resource);
                }
                return Err(format!("no more than {MOST} device plug-ins can be known"));
            }
            of_resource.push(registered.clone());
            self.ledger.lock().connected(resource);
        }
        record::note(&*self.host, &self.layout, &self.ledger.lock().registered());
        tracing::info!(resource, socket = %socket.display(), "a device plug-in has registered");
        tokio::spawn(follow(self.clone(), resource.to_owned(), registered));
        Ok(())
    }

    /// Makes the plug-in at a socket unknown.
    pub(super) fn disconnect(&self, resource: &str, socket: &Path) {
        self.remove(&mut self.plugins.lock(), resource, socket);
    }

    /// A plug-in has nothing more to say. One that has taken its place meanwhile stays.
    fn ended(&self, resource: &str, registered: &Registered) {
        let mut plugins = self.plugins.lock();
        if !registered.gone.is_cancelled() {
            self.remove(&mut plugins, resource, &registered.socket);
        }
    }

    fn remove(&self, plugins: &mut BTreeMap<String, Vec<Registered>>, resource: &str, socket: &Path) {
        let Some(of_resource) = plugins.get_mut(resource) else {
            return;
        };
        let before = of_resource.len();
        of_resource.retain(|r| {
            let stays = r.socket != socket;
            if !stays {
                r.gone.cancel();
            }
            stays
        });
        if of_resource.len() == before {
            return;
        }
        tracing::info!(resource, socket = %socket.display(), "a device plug-in has gone");
        if of_resource.is_empty() {
            plugins.remove(resource);
            self.ledger.lock().disconnected(resource, Instant::now());
            self.changed.notify_one();
        }
    }
}

/// Follows what a plug-in says of its devices.
async fn follow(devices: Arc<Devices>, resource: String, registered: Registered) {
    let said = async {
        let mut stream = registered.client.watch().await?;
        while let Some(list) = stream.message().await? {
            if registered.gone.is_cancelled() {
                break;
            }
            let changed = devices.ledger.lock().told(&resource, list.devices);
            devices.changed.notify_one();
            changed.iter().for_each(|uid| (devices.wake)(uid));
        }
        Ok::<(), tonic::Status>(())
    };
    let ended = registered.gone.run_until_cancelled(said).await;
    // Replaced, made unknown already, or the kubelet goes.
    let Some(ended) = ended else { return };
    if let Err(e) = ended {
        tracing::warn!(
            resource,
            "a device plug-in's list of devices ended: {}",
            crate::rpc_text(&e)
        );
    }
    devices.ended(&resource, &registered);
}

/// Plug-ins that register as all others do, in place of at the kubelet's own socket.
pub struct Registry(pub Arc<Devices>);

#[tonic::async_trait]
impl Kind for Registry {
    fn name(&self) -> &'static str {
        DEVICE_PLUGIN
    }

    async fn take(&self, plug: &Plug) -> Result<(), Refusal> {
        if !plug.versions.iter().any(|v| v == VERSION) {
            let all = plug.versions.join(" ");
            return Err(Refusal::Invalid(format!(
                "manager version, {VERSION}, is not among plugin supported versions [{all}]"
            )));
        }
        check(&plug.name).map_err(|e| Refusal::Invalid(format!("invalid name of device plugin socket: {e}")))?;
        self.0
            .connect(&plug.name, &plug.endpoint)
            .await
            .map_err(Refusal::Failed)
    }

    async fn keep(&self, _: &Plug, _: &CancellationToken) {}

    async fn forget(&self, plug: &Plug) {
        self.0.disconnect(&plug.name, &plug.endpoint);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_resources() {
        for (name, good) in [
            ("vendor.example/gpu", true),
            ("a/b_c.D", true),
            ("gpu", false),
            ("kubernetes.io/gpu", false),
            ("x.kubernetes.io/gpu", false),
            ("requests.a/b", false),
            ("Vendor/gpu", false),
            ("a/", false),
            ("a/b/c", false),
        ] {
            assert_eq!(super::check(name).is_ok(), good, "{name}");
        }
    }
}
