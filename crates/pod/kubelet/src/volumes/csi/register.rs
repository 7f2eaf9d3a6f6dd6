//! How CSI drivers become known: what they say of the node is written to the cluster first.

use super::node_info::Facts;
use super::{Csi, limits};
use crate::plugins::{Kind, Plug, Refusal};
use keelson_csi::CSI_PLUGIN;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The type of plug-ins.
pub struct Drivers(pub Arc<Csi>);

#[tonic::async_trait]
impl Kind for Drivers {
    fn name(&self) -> &'static str {
        CSI_PLUGIN
    }

    async fn take(&self, plug: &Plug) -> Result<(), Refusal> {
        let csi = &self.0;
        let (name, endpoint) = (plug.name.as_str(), &plug.endpoint);
        let known = csi.drivers.get(name).map(|r| r.version);
        let version = version(name, &plug.versions, known).map_err(|e| {
            let endpoint = endpoint.display();
            Refusal::Invalid(format!(
                "validation failed for CSI Driver {name} at endpoint {endpoint}: {e}"
            ))
        })?;
        let driver = csi.drivers.add(name, endpoint, version);
        let installed = async {
            let facts = Facts::ask(&driver).await?;
            csi.nodes.install(name, &facts).await
        };
        installed.await.map_err(|e| {
            csi.drivers.remove(name, endpoint);
            Refusal::Failed(e)
        })
    }

    async fn keep(&self, plug: &Plug, gone: &CancellationToken) {
        let csi = &self.0;
        csi.drivers.announce(&plug.name);
        if let Some(Err(e)) = gone.run_until_cancelled(csi.sweep(&plug.name)).await {
            tracing::warn!("volumes that nobody uses can't be unstaged and stay in use: {e}");
        }
        limits::keep(csi, &plug.name, gone).await;
    }

    async fn forget(&self, plug: &Plug) {
        let (csi, name) = (&self.0, plug.name.as_str());
        if csi.drivers.remove(name, &plug.endpoint)
            && let Err(e) = csi.nodes.uninstall(name).await
        {
            tracing::warn!(
                driver = name,
                "a driver that has gone can't be taken from the node's objects: {e}"
            );
        }
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
