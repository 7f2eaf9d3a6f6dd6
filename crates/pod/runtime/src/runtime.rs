//! The runtime: everything it knows, and how it comes back after its own death.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use keelson_cri::CriClients;
use keelson_network::PodNetwork;
use keelson_sys::cgroup::Cgroups;
use keelson_sys::mount;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, broadcast, watch};

use crate::config::{Config, Handler};
use crate::containers::Container;
use crate::images::Images;
use crate::images::registries::Registries;
use crate::records::{self, ContainerRecord, SandboxRecord};
use crate::sandbox::Sandbox;
use crate::selinux::Selinux;
use crate::shim::Shim;
use crate::streaming::Streaming;
use keelson_cri::v1::ContainerEventResponse;

/// Events that a slow listener may fall behind; beyond, its stream ends and it lists again.
const EVENTS: usize = 1024;

/// A CRI server. Cheap to clone; all clones are the same runtime.
#[derive(Clone)]
pub struct Runtime(pub(crate) Arc<Inner>);

pub struct Inner {
    pub config: Config,
    pub network: Arc<dyn PodNetwork>,
    pub cgroups: Cgroups,
    pub images: Arc<Images>,
    pub streaming: Streaming,
    pub sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    pub containers: Mutex<BTreeMap<String, Arc<Container>>>,
    pub events: broadcast::Sender<ContainerEventResponse>,
    /// Becomes true when the archives of `config.images` are imported.
    imported: watch::Receiver<bool>,
    /// Capabilities that containers can be given.
    pub grantable: u64,
    pub recursive_read_only: bool,
    /// `None`: labels that pods ask for are ignored.
    pub selinux: Option<Selinux>,
    /// Whether pods can have users of their own, once somebody has asked.
    user_namespaces: OnceCell<Result<(), String>>,
    /// What shims run from: containers can reach it, so nobody can write to it.
    sealed: OwnedFd,
}

impl Runtime {
    /// Opens the stores, finds the pods that are still running, undoes what was left half done, and starts importing
    /// images. Pods that run are not touched.
    pub async fn new(config: Config, network: Arc<dyn PodNetwork>) -> anyhow::Result<Runtime> {
        let selinux = config.selinux.clone().map(Selinux::on).transpose()?;
        for dir in [&config.root, &config.state] {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
            private(dir).with_context(|| format!("cannot protect {}", dir.display()))?;
        }
        let registries = config
            .registries
            .as_deref()
            .map_or_else(|| Ok(Registries::default()), Registries::load)?
            .mirrors_only(config.mirrors_only);
        let images = Images::open(&config.root, registries, config.pinned_images.clone(), &config.program)
            .with_context(|| format!("cannot open the image store in {}", config.root.display()))?;
        let images = images
            .sharing(config.keep_archives, config.peers.clone())
            .context("cannot open what is kept of images for other nodes")?;
        let images = Arc::new(images);
        let streaming = Streaming::bind(config.streaming).await.with_context(|| {
            format!(
                "cannot listen on {} for exec, attach and port-forward",
                config.streaming
            )
        })?;
        let empty = config.state.join("empty");
        std::fs::create_dir_all(&empty)?;
        let sealed = keelson_sys::detached::sealed_program(&config.program, &empty)
            .with_context(|| format!("cannot protect {} from the pods it serves", config.program.display()))?;
        let imported = import(&images, config.images.clone());
        let runtime = Runtime(Arc::new(Inner {
            cgroups: Cgroups::detect().context("this machine has no usable control groups")?,
            images,
            streaming,
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            events: broadcast::channel(EVENTS).0,
            imported,
            grantable: keelson_sys::process::own_bounding_set(),
            recursive_read_only: kernel_at_least(5, 12),
            selinux,
            user_namespaces: OnceCell::new(),
            sealed,
            network,
            config,
        }));
        runtime.0.restore().await?;
        runtime.0.streaming.serve(Arc::downgrade(&runtime.0));
        Ok(runtime)
    }

    /// Clients of this runtime within this process.
    pub fn clients(&self) -> CriClients {
        CriClients::in_process(self.clone(), self.clone()).traced(&self.0.config.tracer)
    }

    /// The image store, for commands that work on it directly.
    pub fn images(&self) -> &Arc<Images> {
        &self.0.images
    }
}

impl Inner {
    pub fn sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        find(&self.sandboxes.lock(), id)
    }

    pub fn container(&self, id: &str) -> Option<Arc<Container>> {
        find(&self.containers.lock(), id)
    }

    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers
            .lock()
            .values()
            .filter(|c| c.sandbox == sandbox)
            .cloned()
            .collect()
    }

    pub fn layers_in_use(&self) -> HashSet<String> {
        self.containers
            .lock()
            .values()
            .flat_map(|c| c.record.lock().chains.clone())
            .collect()
    }

    /// Waits until the archives given at start are imported, so that an image is not pulled that is about to be there.
    pub async fn images_ready(&self) {
        let mut imported = self.imported.clone();
        // The importing task is gone: then it has said what it had to say.
        let _done = imported.wait_for(|done| *done).await;
    }

    /// Whether pods of a runtime handler can have users of their own, or why not.
    pub async fn user_namespaces(&self, handler: &str) -> Result<(), String> {
        if let Some(Handler::External(program)) = self.config.handler(handler) {
            return Err(format!(
                "handler {handler:?} runs {}, which isn't given any",
                program.display()
            ));
        }
        let found = self.user_namespaces.get_or_try_init(|| async {
            let found = Shim::user_namespaces(&self.program(), &self.config.root.join("users")).await?;
            if let Err(why) = &found {
                tracing::info!("pods can't have user namespaces here: {why}");
            }
            Ok::<_, std::io::Error>(found)
        });
        match found.await {
            Ok(found) => found.clone(),
            // Not having found out is no answer: who asks next has it tried again.
            Err(error) => {
                tracing::warn!(%error, "it isn't known whether pods can have user namespaces");
                Err(format!("it isn't known whether they can be: {error}"))
            }
        }
    }

    /// The program that shims are started from.
    pub fn program(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.sealed.as_raw_fd()))
    }

    /// The sandbox's directory for what a reboot may take.
    pub fn state_dir(&self, sandbox: &str) -> PathBuf {
        self.config.state.join("sandboxes").join(sandbox)
    }

    pub fn state_directories(&self) -> anyhow::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.config.state.join("sandboxes")) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    pub fn clear_sandbox_directories(&self, id: &str) -> anyhow::Result<()> {
        for dir in [
            records::directory::<SandboxRecord>(&self.config.root, id),
            self.state_dir(id),
        ] {
            remove_with_mounts(&dir)?;
        }
        Ok(())
    }

    pub fn clear_container_directory(&self, id: &str) -> anyhow::Result<()> {
        remove_with_mounts(&records::directory::<ContainerRecord>(&self.config.root, id))
    }
}

/// By the whole ID, or by the beginning of it if that is unique.
fn find<T: Clone>(map: &BTreeMap<String, T>, id: &str) -> Option<T> {
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    let mut matching = map
        .range(id.to_owned()..)
        .take_while(|(key, _)| key.starts_with(id))
        .filter(|_| !id.is_empty());
    match (matching.next(), matching.next()) {
        (Some((_, one)), None) => Some(one.clone()),
        _ => None,
    }
}

/// Removes a directory of ours with what is mounted in it.
pub fn remove_with_mounts(dir: &std::path::Path) -> anyhow::Result<()> {
    for mounted in mount::below(dir)? {
        mount::unmount(&mounted).with_context(|| format!("cannot unmount {}", mounted.display()))?;
    }
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn import(images: &Arc<Images>, dir: Option<PathBuf>) -> watch::Receiver<bool> {
    let (done, imported) = watch::channel(dir.is_none());
    if let Some(dir) = dir {
        let images = images.clone();
        tokio::task::spawn_blocking(move || {
            let started = std::time::Instant::now();
            match images.import_directory(&dir) {
                Ok(found) => tracing::info!(
                    images = found.len(),
                    dir = %dir.display(),
                    milliseconds = started.elapsed().as_millis() as u64,
                    "images imported"
                ),
                Err(error) => {
                    tracing::error!(dir = %dir.display(), error = format!("{error:#}"), "images not imported")
                }
            }
            // Nobody may be waiting.
            let _ = done.send(true);
        });
    }
    imported
}

fn private(dir: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // Containers' users have to pass through the root to reach their files; nobody may list it.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let Ok(uname) = nix::sys::utsname::uname() else {
        return false;
    };
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Nanoseconds since 1970, as CRI counts.
pub fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// A new ID for a sandbox or a container.
pub fn new_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}
