//! How drivers become known: each leaves a socket in `plugins_registry`, is asked there who it is, and is told whether it
//! was taken. A socket that goes, or is made anew, ends what it stood for.
//!
//! One task a socket: a plug-in that doesn't answer delays no other. A failed one is tried again with growing delay.

use super::node_info::Facts;
use super::{Csi, limits};
use crate::host::{FileKind, Host};
use keelson_csi::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use keelson_csi::{CSI_PLUGIN, Driver};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(122);
/// How long a plug-in may take to say who it is, and to be told: upstream's are 1 s and 5 s.
const TALK: Duration = Duration::from_secs(5);
/// How deep sockets are looked for.
const DEEPEST: usize = 8;

/// Follows the directory until the kubelet stops.
pub async fn follow(csi: Arc<Csi>, stop: CancellationToken) {
    let dir = csi.tools.layout.root.join("plugins_registry");
    let host = csi.tools.host.clone();
    let mut changes = match host.make_dir(&dir, 0o755).and_then(|()| host.follow(&dir)) {
        Ok(changes) => changes,
        Err(e) => {
            tracing::error!("plug-ins can't register: {} can't be followed: {e}", dir.display());
            return;
        }
    };
    let mut known: BTreeMap<PathBuf, Plug> = BTreeMap::new();
    loop {
        let mut now = BTreeMap::new();
        sockets(&*host, &dir, 0, &mut now);
        let mut leaving: BTreeMap<PathBuf, JoinHandle<()>> = BTreeMap::new();
        for (path, plug) in std::mem::take(&mut known) {
            if now.get(&path) == Some(&plug.id) {
                known.insert(path, plug);
            } else {
                plug.gone.cancel();
                leaving.insert(path, plug.task);
            }
        }
        for (path, id) in now {
            if known.contains_key(&path) {
                continue;
            }
            let gone = stop.child_token();
            // What the socket stood for before ends first.
            let task = tokio::spawn(plug(csi.clone(), path.clone(), gone.clone(), leaving.remove(&path)));
            known.insert(path, Plug { id, gone, task });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.changed() => if change.is_err() { return },
        }
    }
}

/// The sockets in a directory and below it, each with what tells it from another of its name.
fn sockets(host: &dyn Host, dir: &Path, depth: usize, found: &mut BTreeMap<PathBuf, (u64, u64)>) {
    for name in host.list_dir(dir).unwrap_or_default() {
        let path = dir.join(&name);
        if name.starts_with('.') {
            continue;
        }
        match host.kind(&path) {
            Ok(Some(FileKind::Socket)) => {
                // One that has gone meanwhile is nothing.
                if let Ok(id) = host.identity(&path) {
                    found.insert(path, id);
                }
            }
            Ok(Some(FileKind::Directory)) if depth < DEEPEST => sockets(host, &path, depth + 1, found),
            _ => {}
        }
    }
}

/// A socket, what tells it from another of its name, and its task.
struct Plug {
    id: (u64, u64),
    gone: CancellationToken,
    task: JoinHandle<()>,
}

/// One socket's life.
async fn plug(csi: Arc<Csi>, socket: PathBuf, gone: CancellationToken, before: Option<JoinHandle<()>>) {
    if let Some(Err(e)) = futures::future::OptionFuture::from(before).await {
        tracing::error!(socket = %socket.display(), "the end of a plug-in failed: {e}");
    }
    let mut delay = FIRST_DELAY;
    let (name, endpoint) = loop {
        let tried = tokio::select! {
            () = gone.cancelled() => return,
            tried = register(&csi, &socket) => tried,
        };
        match tried {
            Ok(taken) => break taken,
            Err(e) => tracing::warn!(socket = %socket.display(), "a plug-in can't be registered: {e}"),
        }
        tokio::select! {
            () = gone.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(MAX_DELAY);
    };
    tracing::info!(driver = name, "a CSI driver has registered");
    limits::keep(&csi, &name, &gone).await;
    if csi.stop.is_cancelled() {
        // The kubelet goes, not the driver.
        return;
    }
    tracing::info!(driver = name, "a CSI driver has gone");
    forget(&csi, &name, &endpoint).await;
}

/// Makes a driver unknown, unless another has taken its place.
async fn forget(csi: &Csi, name: &str, endpoint: &Path) {
    if csi.drivers.remove(name, endpoint)
        && let Err(e) = csi.nodes.uninstall(name).await
    {
        tracing::warn!(
            driver = name,
            "a driver that has gone can't be taken from the node's objects: {e}"
        );
    }
}

/// Asks the plug-in who it is and tells it what became of it. Returns the driver's name and where it is
/// called, once it is known everywhere.
async fn register(csi: &Csi, socket: &Path) -> Result<(String, PathBuf), String> {
    let at = socket.display();
    let mut client = Driver::registrar(socket, TALK);
    let info = tokio::time::timeout(TALK, client.get_info(InfoRequest {}))
        .await
        .map_err(|_| "no answer".to_owned())
        .and_then(|r| r.map_err(|e| crate::rpc_text(&e)))
        .map_err(|e| {
            format!("RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {at}, err: {e}")
        })?
        .into_inner();
    let endpoint = endpoint(&info, socket);
    let taken = take(csi, socket, &info, &endpoint).await;
    let status = RegistrationStatus {
        plugin_registered: taken.is_ok(),
        error: taken.as_ref().err().cloned().unwrap_or_default(),
    };
    let told = tokio::time::timeout(TALK, client.notify_registration_status(status)).await;
    let told = told
        .map_err(|_| "no answer".to_owned())
        .and_then(|r| r.map_err(|e| crate::rpc_text(&e)));
    match (taken, told) {
        (Ok(()), Ok(_)) => {
            csi.drivers.announce(&info.name);
            if let Err(e) = csi.sweep(&info.name).await {
                tracing::warn!("volumes that nobody uses can't be unstaged and stay in use: {e}");
            }
            Ok((info.name, endpoint))
        }
        (Ok(()), Err(e)) => {
            forget(csi, &info.name, &endpoint).await;
            Err(format!(
                "RegisterPlugin error -- failed to send registration status at socket {at}, err: {e}"
            ))
        }
        (Err(e), _) => Err(e),
    }
}

async fn take(csi: &Csi, socket: &Path, info: &PluginInfo, endpoint: &Path) -> Result<(), String> {
    let at = socket.display();
    if info.r#type != CSI_PLUGIN {
        return Err(format!(
            "RegisterPlugin error -- no handler registered for plugin type: {} at socket {at}",
            info.r#type
        ));
    }
    let name = info.name.as_str();
    let known = csi.drivers.get(name).map(|r| r.version);
    let version = version(name, &info.supported_versions, known).map_err(|e| {
        let endpoint = endpoint.display();
        format!(
            "RegisterPlugin error -- plugin validation failed with err: validation failed for CSI Driver {name} at endpoint \
             {endpoint}: {e}"
        )
    })?;
    let driver = csi.drivers.add(name, endpoint, version);
    let installed = async {
        let facts = Facts::ask(&driver).await?;
        csi.nodes.install(name, &facts).await
    };
    installed.await.map_err(|e| {
        csi.drivers.remove(name, endpoint);
        format!("RegisterPlugin error -- plugin registration failed with err: {e}")
    })
}

fn endpoint(info: &PluginInfo, socket: &Path) -> PathBuf {
    match info.endpoint.strip_prefix("unix://").unwrap_or(&info.endpoint) {
        "" => socket.to_owned(),
        named => named.into(),
    }
}

/// The highest version that both sides speak: 1 and, as upstream has it, whatever was before.
fn version(name: &str, offered: &[String], known: Option<(u64, u64, u64)>) -> Result<(u64, u64, u64), String> {
    const SAYS: &str = "kubernetes.io/csi: ValidatePlugin for CSI driver";
    if offered.is_empty() {
        return Err(format!(
            "{SAYS} \"{name}\" failed. Plugin returned an empty list for supported versions"
        ));
    }
    let parsed = offered.iter().filter_map(|text| parse(text)).filter(|v| v.0 <= 1);
    let Some(highest) = parsed.max() else {
        let all: Vec<String> = offered.iter().map(|v| format!("{v:?}")).collect();
        return Err(format!(
            "{SAYS} \"{name}\" failed. None of the versions specified [{}] are supported. err=could not find a highest \
             supported version from versions ([{}]) reported: <nil>",
            all.join(" "),
            offered.join(" ")
        ));
    };
    match known {
        Some(known) if known >= highest => {
            let (a, b, c) = known;
            Err(format!(
                "{SAYS} \"{name}\" failed. Another driver with the same name is already registered with a higher supported \
                 version: \"{a}.{b}.{c}\""
            ))
        }
        _ => Ok(highest),
    }
}

/// `1.2.3`, `v1.2` or `1`.
fn parse(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
    let mut next = || parts.next().map_or(Some(0), |p| p.parse().ok());
    let found = (next()?, next()?, next()?);
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let offer = |v: &[&str], known| version("d", &v.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), known);
        assert_eq!(offer(&["1.0.0", "v1.5.0", "2.0.0"], None), Ok((1, 5, 0)));
        assert_eq!(offer(&["1.5.0"], Some((1, 0, 0))), Ok((1, 5, 0)));
        assert!(
            offer(&["1.0.0"], Some((1, 0, 0)))
                .unwrap_err()
                .contains("already registered")
        );
        assert!(offer(&[], None).unwrap_err().contains("empty list"));
        assert!(
            offer(&["2.0.0", "x"], None)
                .unwrap_err()
                .contains("None of the versions")
        );
    }
}
