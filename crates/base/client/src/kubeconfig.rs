//! What a kubeconfig says, and clients by it.
//!
//! Files that it names (the authority of the server's certificate, the client's own certificate and key) are followed: what stands in them is
//! looked at again with the first request after five minutes, as client-go does it, and a client is made anew when it has changed. Files that are
//! missing or don't go together are told of, and change nothing. Who sends no request looks at nothing.

use anyhow::Context;
use http::Request;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Upstream's.
const LOOKED_AT: Duration = Duration::from_secs(5 * 60);

type Change = Arc<dyn Fn(&mut kube::Config) + Send + Sync>;

struct Followed {
    kubeconfig: PathBuf,
    context: Option<String>,
    change: Change,
    files: Vec<PathBuf>,
    state: Mutex<State>,
}

struct State {
    client: kube::Client,
    contents: Vec<Vec<u8>>,
    looked: Instant,
}

/// The server and the credentials that a kubeconfig names.
pub(crate) async fn load(path: &Path, context: Option<&str>) -> anyhow::Result<kube::Config> {
    let file = Kubeconfig::read_from(path).with_context(|| {
        format!(
            "reading the kubeconfig {} (it names the server and the credentials)",
            path.display()
        )
    })?;
    let options = KubeConfigOptions {
        context: context.map(Into::into),
        ..Default::default()
    };
    let mut config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .with_context(|| format!("the kubeconfig {} can't be used", path.display()))?;
    // Watches stay silent for minutes; a dead peer is found by the watch's own time limit.
    config.read_timeout = None;
    Ok(config)
}

/// A client by a kubeconfig, changed as `change` does it, that follows the files. Must be called within a tokio runtime.
pub(crate) fn client(
    config: kube::Config,
    kubeconfig: &Path,
    context: Option<&str>,
    change: impl Fn(&mut kube::Config) + Send + Sync + 'static,
) -> anyhow::Result<kube::Client> {
    let namespace = config.default_namespace.clone();
    let files = files(kubeconfig, context)?;
    let client = made(config, &change, kubeconfig)?;
    if files.is_empty() {
        return Ok(client);
    }
    let contents = read(&files)?;
    let followed = Arc::new(Followed {
        kubeconfig: kubeconfig.into(),
        context: context.map(Into::into),
        change: Arc::new(change),
        files,
        state: Mutex::new(State {
            client,
            contents,
            looked: Instant::now(),
        }),
    });
    let service = tower::service_fn(move |request: Request<Body>| {
        let followed = followed.clone();
        async move { followed.now().await.send(request).await }
    });
    Ok(kube::Client::new(service, namespace))
}

fn made(
    mut config: kube::Config,
    change: &dyn Fn(&mut kube::Config),
    kubeconfig: &Path,
) -> anyhow::Result<kube::Client> {
    change(&mut config);
    kube::Client::try_from(config).with_context(|| format!("building a client from {}", kubeconfig.display()))
}

impl Followed {
    /// The client of the files as they are, or were when they could last be used. One request looks, others go on meanwhile.
    async fn now(&self) -> kube::Client {
        let before = {
            let mut state = self.state.lock();
            if state.looked.elapsed() < LOOKED_AT {
                return state.client.clone();
            }
            state.looked = Instant::now();
            state.contents.clone()
        };
        match self.anew(&before).await {
            Ok(Some((client, contents))) => {
                tracing::info!(kubeconfig = %self.kubeconfig.display(), "the files that it names have changed, and are in use");
                let mut state = self.state.lock();
                (state.client, state.contents) = (client.clone(), contents);
                client
            }
            Ok(None) => self.state.lock().client.clone(),
            Err(error) => {
                tracing::warn!("changed files can't be used, those from before still are: {error:#}");
                self.state.lock().client.clone()
            }
        }
    }

    async fn anew(&self, before: &[Vec<u8>]) -> anyhow::Result<Option<(kube::Client, Vec<Vec<u8>>)>> {
        let contents = read(&self.files)?;
        if contents == before {
            return Ok(None);
        }
        // Half written, a file may read well and say nothing: whom to trust, say.
        let has_pem = |text: &[u8]| text.windows(BEGIN.len()).any(|part| part == BEGIN);
        if let Some((file, _)) = self.files.iter().zip(&contents).find(|(_, text)| !has_pem(text)) {
            anyhow::bail!("{} has neither a certificate nor a key", file.display());
        }
        let config = load(&self.kubeconfig, self.context.as_deref()).await?;
        let client = made(config, &*self.change, &self.kubeconfig)?;
        Ok(Some((client, contents)))
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";

fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    let one = |file: &PathBuf| std::fs::read(file).with_context(|| format!("reading {}", file.display()));
    files.iter().map(one).collect()
}

/// The files that the kubeconfig's current cluster and user name, where nothing stands in the kubeconfig itself.
fn files(kubeconfig: &Path, context: Option<&str>) -> anyhow::Result<Vec<PathBuf>> {
    // Paths in it are relative to where it is, and absolute once it has been read.
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let current = context.or(file.current_context.as_deref()).unwrap_or_default();
    let context = file.contexts.iter().find(|c| c.name == current);
    let Some(context) = context.and_then(|c| c.context.as_ref()) else {
        return Ok(Vec::new());
    };
    let cluster = file.clusters.iter().find(|c| c.name == context.cluster);
    let cluster = cluster.and_then(|c| c.cluster.as_ref());
    let user = file
        .auth_infos
        .iter()
        .find(|u| Some(&u.name) == context.user.as_ref())
        .and_then(|u| u.auth_info.as_ref());
    let named = [
        cluster.and_then(|c| {
            c.certificate_authority
                .clone()
                .filter(|_| c.certificate_authority_data.is_none())
        }),
        user.and_then(|u| {
            u.client_certificate
                .clone()
                .filter(|_| u.client_certificate_data.is_none())
        }),
        user.and_then(|u| u.client_key.clone().filter(|_| u.client_key_data.is_none())),
    ];
    Ok(named.into_iter().flatten().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::authority::{Authority, CertSpec};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Files {
            let dir = std::env::temp_dir().join(format!("keelson-rotation-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Files(dir)
        }
        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Answers on loopback by whichever certificate is current.
    async fn serve(current: Arc<Mutex<Arc<rustls::ServerConfig>>>) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let config = current.lock().clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else {
                        return;
                    };
                    let _ = stream.read(&mut [0; 4096]).await;
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                    let _ = stream.write_all(answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        address
    }

    fn certificate(authority: &Authority) -> Arc<rustls::ServerConfig> {
        use rustls::pki_types::pem::PemObject;
        let issued = authority
            .issue(&CertSpec::server("s", vec![keelson_pki::San::parse("127.0.0.1")]))
            .unwrap();
        let chain = rustls::pki_types::CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes());
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.collect::<Result<_, _>>().unwrap(), key);
        Arc::new(config.unwrap())
    }

    async fn asks(client: &kube::Client) -> bool {
        let request = Request::get("/version").body(Body::empty()).unwrap();
        client.send(request).await.is_ok()
    }

    #[tokio::test]
    async fn another_authority_in_the_file_is_trusted_and_a_broken_file_changes_nothing() {
        let (old, new) = (Authority::generate("old").unwrap(), Authority::generate("new").unwrap());
        let files = Files::new("authority");
        files.write("ca.crt", old.cert_pem());
        let served = Arc::new(Mutex::new(certificate(&old)));
        let address = serve(served.clone()).await;
        let kubeconfig = files.write(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                 clusters: [{{name: c, cluster: {{server: \"https://{address}\", certificate-authority: ca.crt}}}}]\n\
                 users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
            ),
        );
        let changed = Arc::new(AtomicUsize::new(0));
        let counted = changed.clone();
        let config = load(&kubeconfig, None).await.unwrap();
        let count = move |_: &mut kube::Config| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let client = client(config, &kubeconfig, None, count).unwrap();
        assert!(asks(&client).await);
        *served.lock() = certificate(&new);
        files.write("ca.crt", new.cert_pem());
        assert!(!asks(&client).await, "it isn't looked at yet");
        later().await;
        assert!(asks(&client).await);
        assert_eq!(changed.load(Ordering::Relaxed), 2);
        for broken in ["", "no certificate"] {
            files.write("ca.crt", broken);
            later().await;
            assert!(asks(&client).await, "{broken:?}");
        }
        std::fs::remove_file(files.0.join("ca.crt")).unwrap();
        later().await;
        assert!(asks(&client).await);
        assert_eq!(changed.load(Ordering::Relaxed), 2);
    }

    async fn later() {
        tokio::time::pause();
        tokio::time::advance(LOOKED_AT).await;
        tokio::time::resume();
    }

    #[test]
    fn what_stands_in_the_kubeconfig_itself_is_not_followed() {
        let files_of = Files::new("data");
        let kubeconfig = files_of.write(
            "kubeconfig",
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{name: c, cluster: {server: \"https://h\", certificate-authority-data: eA==}}]\n\
             users: [{name: u, user: {client-certificate: own.crt, client-key: own.key}}]\n\
             contexts: [{name: c, context: {cluster: c, user: u}}]\n",
        );
        let found = files(&kubeconfig, None).unwrap();
        assert_eq!(found, [files_of.0.join("own.crt"), files_of.0.join("own.key")]);
        assert!(files(&kubeconfig, Some("other")).unwrap().is_empty());
    }
}
