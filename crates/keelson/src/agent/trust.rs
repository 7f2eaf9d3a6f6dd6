//! Whom a machine trusts that has joined: `pki/ca.crt`, which follows the cluster's authorities.
//!
//! Nothing is believed for its own sake. What the cluster tells (`cluster-info`) is taken as far as whoever is trusted already vouches for
//! it ([`believed`]), so a machine that was away while one authority followed another finds the way as long as the old one lasts. That
//! it has taken something the node tells by an annotation: so it is known for whom a step has to wait.

use super::join;
use super::servers::{Link, Servers};
use crate::authorities::known::TRUSTS;
use anyhow::{Context, ensure};
use http::HeaderMap;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use keelson_apiserver::bootstrap::INTRODUCTIONS;
use keelson_apiserver::serve::tls;
use keelson_client::objects::{Objects, Patch};
use keelson_client::rest::{JSON, Rest};
use keelson_client::{Informer, InformerOptions};
use keelson_pki::succession::believed;
use keelson_pki::verify::Live;
use keelson_pki::x509::pem;
use keelson_pki::{Kubeconfig, authority, files};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
/// What an unknown server may send at most.
const MOST: usize = 1 << 20;
/// How long a start waits to hear whom to trust, while no server may be there.
const PATIENCE: Duration = Duration::from_secs(5);
/// After this what couldn't be told is told again, and what couldn't be taken is tried again.
const AGAIN: Duration = Duration::from_secs(5);

pub struct Trusted {
    file: PathBuf,
    pem: watch::Sender<String>,
    roots: Live,
}

/// What a cluster tells of its authorities.
pub struct Told {
    pub authorities: String,
    pub introductions: String,
}

impl Told {
    fn of(map: &ConfigMap) -> anyhow::Result<Told> {
        let text = |key: &str| map.data.as_ref().and_then(|data| data.get(key));
        let kubeconfig = text("kubeconfig").context("the server's cluster-info names no authority")?;
        Ok(Told {
            authorities: Kubeconfig::authority_in(kubeconfig).context("the server's cluster-info")?,
            introductions: text(INTRODUCTIONS).cloned().unwrap_or_default(),
        })
    }

    /// As whoever answers tells it, by a connection that trusts as `config` says. Nothing secret is sent.
    pub async fn ask(servers: &Arc<Servers>, config: rustls::ClientConfig) -> anyhow::Result<Told> {
        let link = Link::new(servers.clone(), config, "")?.with(HeaderMap::new());
        let body = Rest::new(link, "keelson-agent")
            .stream(CLUSTER_INFO, JSON)
            .await
            .context("asking for the cluster's authority")?;
        let body = http_body_util::Limited::new(body, MOST).collect().await;
        let body = body
            .map_err(|e| anyhow::anyhow!("reading the cluster's authority: {e}"))?
            .to_bytes();
        let map: ConfigMap = serde_json::from_slice(&body).context("what the server sent is no cluster-info")?;
        Told::of(&map)
    }

    /// Of what is told that which the one authority with this hash vouches for; `None`: it isn't told of.
    pub fn pinned(&self, hash: &str) -> anyhow::Result<Option<String>> {
        let each = pem::certificates(self.authorities.as_bytes());
        for one in each.map(|der| pem::encode(pem::CERTIFICATE, &der)) {
            if authority::fingerprint(&one)? == hash {
                return Ok(self.believed_by(&one));
            }
        }
        Ok(None)
    }

    fn believed_by(&self, trusted: &str) -> Option<String> {
        believed(trusted, &self.authorities, &self.introductions, keelson_clock::now())
    }
}

impl Trusted {
    /// With what stands in the file.
    pub fn new(file: &Path, pem: String) -> anyhow::Result<Arc<Trusted>> {
        let roots = Live::default();
        roots.replace(tls::roots(&pem)?);
        Ok(Arc::new(Trusted {
            file: file.into(),
            pem: watch::Sender::new(pem),
            roots,
        }))
    }

    /// Those that are trusted, the one that signs first.
    pub fn pem(&self) -> String {
        self.pem.borrow().clone()
    }
    pub fn roots(&self) -> Live {
        self.roots.clone()
    }
    pub fn changes(&self) -> watch::Receiver<String> {
        self.pem.subscribe()
    }

    /// Whether one of them has signed a certificate.
    pub fn vouches_for(&self, certificate: &str) -> bool {
        let all = self.pem();
        let mut each = pem::certificates(all.as_bytes()).map(|der| pem::encode(pem::CERTIFICATE, &der));
        each.any(|one| authority::signed_by(certificate, &one))
    }

    /// Takes what is told as far as it is to be believed; whether anything has changed.
    pub fn learn(&self, told: &Told) -> anyhow::Result<bool> {
        let before = self.pem();
        let after = told.believed_by(&before);
        let after = after.context(
            "the cluster tells of authorities for which nobody vouches whom this machine trusts: it goes on with those that it knows",
        )?;
        if after == before {
            return Ok(false);
        }
        let roots = tls::roots(&after)?;
        files::write_public(&self.file, after.as_bytes())?;
        self.roots.replace(roots);
        tracing::info!(hashes = ?authority::fingerprints(&after), "the cluster's authorities");
        self.pem.send_replace(after);
        Ok(true)
    }

    /// Before anything else is asked: authorities may have followed one another while this machine was away.
    pub async fn catch_up(&self, servers: &Arc<Servers>) {
        let asked = async {
            let told = Told::ask(servers, join::trusting(self.roots(), None)?).await?;
            self.learn(&told)
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(_)) => {}
            // A node starts its pods while no server answers.
            Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "whom to trust isn't told yet"),
            Err(_) => tracing::warn!("whom to trust isn't told yet: no server answers"),
        }
    }

    /// Follows what the cluster tells, and tells by the node's annotation what was taken.
    pub async fn follow(self: Arc<Self>, rest: Rest, node: String, stop: CancellationToken) -> anyhow::Result<()> {
        let options = InformerOptions {
            namespace: NAMESPACE.into(),
            fields: format!("metadata.name={NAME}"),
            ..InformerOptions::default()
        };
        let maps: Informer<ConfigMap> = Informer::start(&rest, options, &stop);
        let mut changes = maps.store().changes();
        let nodes: Objects<Node> = Objects::new(&rest);
        let following = async {
            maps.synced().await;
            let (mut shown, mut said) = (None, None);
            loop {
                changes.mark_unchanged();
                let map = maps.store().get(NAMESPACE, NAME);
                let failed = map.and_then(|map| Told::of(&map).and_then(|told| self.learn(&told)).err());
                // It is tried again, and said once.
                let failed = failed.map(|error| format!("{error:#}"));
                if failed != said {
                    if let Some(error) = &failed {
                        tracing::warn!(error, "the cluster's authorities");
                    }
                    said = failed;
                }
                let own = authority::fingerprints(&self.pem()).join(",");
                let is_shown = match shown.as_ref() == Some(&own) {
                    true => true,
                    false => show(&nodes, &node, &own).await.is_ok(),
                };
                shown = is_shown.then_some(own);
                let done = is_shown && said.is_none();
                tokio::select! {
                    changed = changes.changed() => ensure!(changed.is_ok(), "the watch on the cluster's authorities ended"),
                    // The kubelet may not have made the node yet; the disk may have been full.
                    () = tokio::time::sleep(AGAIN), if !done => {}
                }
            }
        };
        tokio::select! {
            done = following => done,
            () = stop.cancelled() => Ok(()),
        }
    }
}

async fn show(nodes: &Objects<Node>, node: &str, hashes: &str) -> keelson_client::Result<()> {
    let patch = json!({"metadata": {"annotations": {TRUSTS: hashes}}});
    nodes.patch("", node, Patch::Merge(&patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::Authority;
    use keelson_pki::succession::{Files, Step, step};

    fn told(files: &Files) -> Told {
        Told {
            authorities: files["ca.crt"].clone(),
            introductions: files.get("ca-cross.crt").cloned().unwrap_or_default(),
        }
    }

    #[test]
    fn authorities_are_taken_by_the_word_of_one_that_is_known() {
        let made = Authority::generate("kubernetes").unwrap();
        let rest: Files = [("ca.crt", made.cert_pem().to_string()), ("ca.key", made.key_pem())]
            .map(|(name, text)| (name.to_string(), text))
            .into();
        let after = |files: &Files, next| step("ca", files, next, jiff::Timestamp::now()).unwrap();
        let announced = after(&rest, Step::Announce);
        let replaced = after(&announced, Step::Sign);
        let over = after(&replaced, Step::Withdraw);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        let trusted = Trusted::new(&file, rest["ca.crt"].clone()).unwrap();
        assert!(!trusted.learn(&told(&rest)).unwrap());
        for next in [&announced, &replaced, &over] {
            assert!(trusted.learn(&told(next)).unwrap());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), next["ca.crt"]);
            assert_eq!(
                trusted.roots().now().iter().count(),
                authority::fingerprints(&next["ca.crt"]).len()
            );
        }
        // Who was away for all of it; and somebody who has nothing to do with it.
        let away = Trusted::new(&file, rest["ca.crt"].clone()).unwrap();
        assert!(away.learn(&told(&over)).unwrap());
        let stranger = Authority::generate("kubernetes").unwrap();
        let strange = Told {
            authorities: stranger.cert_pem().into(),
            introductions: String::new(),
        };
        assert!(away.learn(&strange).is_err());
        assert_eq!(away.pem(), over["ca.crt"]);

        // A token names one: it counts as long as that one is told of, and only for what that one vouches for.
        let hash = |files: &Files| authority::fingerprint(&files["ca.crt"]).unwrap();
        let (old, new) = (hash(&rest), hash(&over));
        assert_eq!(
            told(&replaced).pinned(&old).unwrap().as_deref(),
            Some(&*replaced["ca.crt"])
        );
        assert_eq!(told(&replaced).pinned(&new).unwrap().as_deref(), Some(&*over["ca.crt"]));
        assert_eq!(told(&over).pinned(&old).unwrap(), None);
        let between = Told {
            authorities: format!("{}{}", stranger.cert_pem(), rest["ca.crt"]),
            introductions: String::new(),
        };
        assert_eq!(between.pinned(&old).unwrap().as_deref(), Some(&*rest["ca.crt"]));
    }
}
