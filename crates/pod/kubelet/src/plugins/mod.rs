//! How plug-ins of all types become known (drivers of volumes, of devices, of dynamic resource allocation): each leaves a
//! socket in `plugins_registry`, is asked there who it is, and is told whether it was taken. A socket that goes, or is made
//! anew, ends what it stood for.
//!
//! One task a socket: a plug-in that doesn't answer delays no other. A failed one is tried again with growing delay. What a
//! plug-in is for only its [`Kind`] knows.

use crate::host::{FileKind, Host};
use keelson_csi::Driver;
use keelson_csi::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(122);
/// How long a plug-in may take to say who it is, and to be told: upstream's are 1 s and 5 s.
const TALK: Duration = Duration::from_secs(5);
/// How deep sockets are looked for, and among how many files: beyond them nothing is known.
const DEEPEST: usize = 8;
const MOST: usize = 4096;

/// A plug-in, as it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plug {
    pub name: String,
    /// Where it is called.
    pub endpoint: PathBuf,
    pub versions: Vec<String>,
}

/// A type of plug-ins.
#[tonic::async_trait]
pub trait Kind: Send + Sync {
    /// As plug-ins say it when they register.
    fn name(&self) -> &'static str;

    /// Makes a plug-in known, or says why it isn't taken.
    async fn take(&self, plug: &Plug) -> Result<(), Refusal>;

    /// Sees to a plug-in that was taken and told so, until it goes.
    async fn keep(&self, plug: &Plug, gone: &CancellationToken);

    /// Makes a plug-in unknown, unless another has taken its place.
    async fn forget(&self, plug: &Plug);
}

/// Why a plug-in isn't taken: what it says of itself is wrong, or it could not be made known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Invalid(String),
    Failed(String),
}

impl Refusal {
    /// As upstream tells a plug-in.
    fn text(&self) -> String {
        match self {
            Refusal::Invalid(e) => format!("RegisterPlugin error -- plugin validation failed with err: {e}"),
            Refusal::Failed(e) => format!("RegisterPlugin error -- plugin registration failed with err: {e}"),
        }
    }
}

/// Follows the directory until the kubelet stops.
pub async fn follow(host: Arc<dyn Host>, dir: PathBuf, kinds: Arc<[Arc<dyn Kind>]>, stop: CancellationToken) {
    let mut changes = match host.make_dir(&dir, 0o755).and_then(|()| host.follow(&dir)) {
        Ok(changes) => changes,
        Err(e) => {
            tracing::error!("plug-ins can't register: {} can't be followed: {e}", dir.display());
            return;
        }
    };
    let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
    let mut delay = FIRST_DELAY;
    loop {
        let now = Look::at(&*host, &dir);
        let mut leaving: BTreeMap<PathBuf, JoinHandle<()>> = BTreeMap::new();
        for (path, plug) in std::mem::take(&mut known) {
            let stays = match now.found.get(&path) {
                Some(id) => *id == plug.id,
                None => now.hides(&path),
            };
            if stays {
                known.insert(path, plug);
            } else {
                plug.gone.cancel();
                leaving.insert(path, plug.task);
            }
        }
        let again = now.unseen.first().map(|(at, e)| {
            tracing::warn!(
                "{} can't be looked at, and plug-ins that were there stay: {e}",
                at.display()
            );
            delay
        });
        delay = again.map_or(FIRST_DELAY, |d| (d * 2).min(MAX_DELAY));
        for (path, id) in now.found {
            if known.contains_key(&path) {
                continue;
            }
            let gone = stop.child_token();
            let life = Life {
                kinds: kinds.clone(),
                socket: path.clone(),
                gone: gone.clone(),
                stop: stop.clone(),
            };
            // What the socket stood for before ends first.
            let task = tokio::spawn(life.run(leaving.remove(&path)));
            known.insert(path, Known { id, gone, task });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.changed() => if change.is_err() { return },
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}

/// What is in a directory and below it.
struct Look<'a> {
    host: &'a dyn Host,
    /// How many files more are looked at.
    left: usize,
    /// Sockets, each with what tells it from another of its name.
    found: BTreeMap<PathBuf, (u64, u64)>,
    /// What can't be looked at, and why. Nothing has gone because it can't be seen.
    unseen: Vec<(PathBuf, io::Error)>,
}

impl<'a> Look<'a> {
    fn at(host: &'a dyn Host, dir: &Path) -> Self {
        let mut look = Look {
            host,
            left: MOST,
            found: BTreeMap::new(),
            unseen: Vec::new(),
        };
        look.inside(dir, 0);
        look
    }

    fn inside(&mut self, dir: &Path, depth: usize) {
        let names = match self.host.list_dir(dir) {
            Ok(names) => names,
            Err(e) => return self.failed(dir, e),
        };
        for name in names.iter().filter(|n| !n.starts_with('.')) {
            if self.left == 0 {
                return self.failed(dir, io::Error::other(format!("there are more than {MOST} files")));
            }
            self.left -= 1;
            self.one(&dir.join(name), depth);
        }
    }

    fn one(&mut self, path: &Path, depth: usize) {
        match self.host.kind(path) {
            Ok(Some(FileKind::Socket)) => match self.host.identity(path) {
                Ok(id) => {
                    self.found.insert(path.to_owned(), id);
                }
                Err(e) => self.failed(path, e),
            },
            Ok(Some(FileKind::Directory)) if depth < DEEPEST => self.inside(path, depth + 1),
            Ok(_) => {}
            Err(e) => self.failed(path, e),
        }
    }

    fn failed(&mut self, path: &Path, e: io::Error) {
        // What has gone meanwhile is nothing.
        if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            self.unseen.push((path.to_owned(), e));
        }
    }

    fn hides(&self, path: &Path) -> bool {
        self.unseen.iter().any(|(at, _)| path.starts_with(at))
    }
}

/// A socket: what tells it from another of its name, and its task.
struct Known {
    id: (u64, u64),
    gone: CancellationToken,
    task: JoinHandle<()>,
}

/// One socket's life.
struct Life {
    kinds: Arc<[Arc<dyn Kind>]>,
    socket: PathBuf,
    gone: CancellationToken,
    stop: CancellationToken,
}

impl Life {
    async fn run(self, before: Option<JoinHandle<()>>) {
        let at = self.socket.display();
        if let Some(Err(e)) = futures::future::OptionFuture::from(before).await {
            tracing::error!(socket = %at, "the end of a plug-in failed: {e}");
        }
        let mut delay = FIRST_DELAY;
        let (kind, plug) = loop {
            // Not left half-way: who was made known has to be made unknown.
            match self.register().await {
                Ok(taken) => break taken,
                Err(_) if self.gone.is_cancelled() => return,
                Err(e) => tracing::warn!(socket = %at, "a plug-in can't be registered: {e}"),
            }
            tokio::select! {
                () = self.gone.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            delay = (delay * 2).min(MAX_DELAY);
        };
        tracing::info!(kind = kind.name(), name = plug.name, "a plug-in has registered");
        kind.keep(&plug, &self.gone).await;
        self.gone.cancelled().await;
        if self.stop.is_cancelled() {
            // The kubelet goes, not the plug-in.
            return;
        }
        tracing::info!(kind = kind.name(), name = plug.name, "a plug-in has gone");
        kind.forget(&plug).await;
    }

    /// Asks the plug-in who it is and tells it what became of it. Returns it once it is known everywhere.
    async fn register(&self) -> Result<(Arc<dyn Kind>, Plug), String> {
        let at = self.socket.display();
        let mut client = Driver::registrar(&self.socket, TALK);
        let info = self.talk(client.get_info(InfoRequest {})).await.map_err(|e| {
            format!("RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {at}, err: {e}")
        })?;
        let (of_type, plug) = self.read(info);
        let kind = self.kinds.iter().find(|k| k.name() == of_type).cloned();
        let kind = kind.ok_or_else(|| {
            format!("RegisterPlugin error -- no handler registered for plugin type: {of_type} at socket {at}")
        });
        let taken = match &kind {
            Ok(kind) => kind.take(&plug).await.map_err(|e| e.text()),
            Err(e) => Err(e.clone()),
        };
        let status = RegistrationStatus {
            plugin_registered: taken.is_ok(),
            error: taken.as_ref().err().cloned().unwrap_or_default(),
        };
        let told = self.talk(client.notify_registration_status(status)).await;
        taken?;
        let kind = kind?;
        if let Err(e) = told {
            if !self.stop.is_cancelled() {
                kind.forget(&plug).await;
            }
            return Err(format!(
                "RegisterPlugin error -- failed to send registration status at socket {at}, err: {e}"
            ));
        }
        Ok((kind, plug))
    }

    /// What a plug-in answers in time, unless it goes before.
    async fn talk<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, String> {
        match self.gone.run_until_cancelled(tokio::time::timeout(TALK, call)).await {
            Some(Ok(answer)) => answer.map(tonic::Response::into_inner).map_err(|e| crate::rpc_text(&e)),
            Some(Err(_)) => Err("no answer".into()),
            None => Err("it has gone".into()),
        }
    }

    /// The plug-in's type, and itself.
    fn read(&self, info: PluginInfo) -> (String, Plug) {
        let endpoint = match info.endpoint.strip_prefix("unix://").unwrap_or(&info.endpoint) {
            "" => self.socket.clone(),
            named => named.into(),
        };
        let plug = Plug {
            name: info.name,
            endpoint,
            versions: info.supported_versions,
        };
        (info.r#type, plug)
    }
}
