//! What a kubeconfig says, and clients by it.
//!
//! Files that it names (the authority of the server's certificate, the client's own certificate and key, its token) are followed: clients go by
//! what stands in them from their next request on. Files that are missing or don't go together are told of, and change nothing.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use keelson_follow::Contents;
use kube::client::Body;
use kube::config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use secrecy::SecretString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// No certificate, key or token is longer.
const MOST: u64 = 4 << 20;

/// The server and the credentials that a kubeconfig names, now and after changes.
pub(crate) struct Loaded {
    pub(crate) path: PathBuf,
    configs: watch::Receiver<kube::Config>,
}

/// What a file stands for in a kubeconfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Authority,
    Certificate,
    Key,
    Token,
}

/// A kubeconfig as it was read, with the files that its current cluster and user name where nothing stands in itself.
struct Source {
    path: PathBuf,
    context: Option<String>,
    kubeconfig: Kubeconfig,
    named: Vec<(Named, PathBuf)>,
}

/// Must be called within a tokio runtime.
pub(crate) async fn load(path: &Path, context: Option<&str>) -> anyhow::Result<Loaded> {
    let source = Source::read(path, context).await?;
    let mut contents = Contents::of(source.named.iter().map(|(_, file)| file.clone()), MOST);
    let first = source.config(contents.changed().await?).await?;
    let (configs, received) = watch::channel(first);
    if !source.named.is_empty() {
        tokio::spawn(source.follow(contents, configs));
    }
    Ok(Loaded {
        path: path.into(),
        configs: received,
    })
}

impl Loaded {
    pub(crate) fn now(&self) -> kube::Config {
        self.configs.borrow().clone()
    }

    /// A client by the kubeconfig, changed as `change` does it.
    pub(crate) fn client(
        &self,
        change: impl Fn(&mut kube::Config) + Send + Sync + 'static,
    ) -> anyhow::Result<kube::Client> {
        let path = self.path.clone();
        let made = move |mut config: kube::Config| {
            change(&mut config);
            kube::Client::try_from(config).with_context(|| format!("building a client from {}", path.display()))
        };
        let mut configs = self.configs.clone();
        let config = configs.borrow_and_update().clone();
        let namespace = config.default_namespace.clone();
        let client = made(config)?;
        // Nobody will tell of another.
        if configs.has_changed().is_err() {
            return Ok(client);
        }
        let state = Arc::new(Mutex::new((client, configs)));
        let now = move || {
            let (client, configs) = &mut *state.lock();
            if configs.has_changed().unwrap_or_default() {
                match made(configs.borrow_and_update().clone()) {
                    Ok(anew) => *client = anew,
                    Err(error) => tracing::warn!("the client from before goes on: {error:#}"),
                }
            }
            client.clone()
        };
        let service = tower::service_fn(move |request: Request<Body>| {
            let client = now();
            async move { client.send(request).await }
        });
        Ok(kube::Client::new(service, namespace))
    }
}

impl Source {
    async fn read(path: &Path, context: Option<&str>) -> anyhow::Result<Source> {
        let from = path.to_path_buf();
        // Paths in it are relative to where it is, and absolute once it has been read.
        let kubeconfig = tokio::task::spawn_blocking(move || Kubeconfig::read_from(from)).await?;
        let kubeconfig = kubeconfig.with_context(|| {
            format!(
                "reading the kubeconfig {} (it names the server and the credentials)",
                path.display()
            )
        })?;
        let mut source = Source {
            path: path.into(),
            context: context.map(Into::into),
            kubeconfig,
            named: Vec::new(),
        };
        if let Some((cluster, user)) = source.current() {
            source.named = named(cluster, user);
        }
        Ok(source)
    }

    /// The cluster and the user of the current context.
    fn current(&mut self) -> Option<(Option<&mut Cluster>, Option<&mut AuthInfo>)> {
        let Kubeconfig {
            clusters,
            auth_infos,
            contexts,
            current_context,
            ..
        } = &mut self.kubeconfig;
        let name = self.context.as_ref().or(current_context.as_ref())?;
        let context = contexts.iter().find(|c| c.name == *name)?.context.as_ref()?;
        let cluster = clusters.iter_mut().find(|c| c.name == context.cluster);
        let user = auth_infos.iter_mut().find(|u| Some(&u.name) == context.user.as_ref());
        Some((
            cluster.and_then(|c| c.cluster.as_mut()),
            user.and_then(|u| u.auth_info.as_mut()),
        ))
    }

    /// With what stands in the files: nothing of it is read a second time.
    async fn config(&self, contents: &[Vec<u8>]) -> anyhow::Result<kube::Config> {
        let mut whole = Source {
            path: PathBuf::new(),
            context: self.context.clone(),
            kubeconfig: self.kubeconfig.clone(),
            named: Vec::new(),
        };
        if let Some((cluster, user)) = whole.current() {
            fill(cluster, user, &self.named, contents)?;
        }
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..Default::default()
        };
        let mut config = kube::Config::from_custom_kubeconfig(whole.kubeconfig, &options)
            .await
            .with_context(|| format!("the kubeconfig {} can't be used", self.path.display()))?;
        // Watches stay silent for minutes; a dead peer is found by the watch's own time limit.
        config.read_timeout = None;
        Ok(config)
    }

    /// Until no client is left that would hear of it.
    async fn follow(self, mut contents: Contents, configs: watch::Sender<kube::Config>) {
        loop {
            let anew = async {
                let config = self.config(contents.changed().await?).await?;
                // They are made where requests are, which an error would be too late for.
                kube::Client::try_from(config.clone())?;
                anyhow::Ok(config)
            };
            let anew = tokio::select! {
                () = configs.closed() => return,
                anew = anew => anew,
            };
            match anew {
                Ok(config) => {
                    tracing::info!(kubeconfig = %self.path.display(), "the files that it names have changed, and are in use");
                    configs.send_replace(config);
                }
                Err(error) => tracing::warn!("changed files can't be used, those from before still are: {error:#}"),
            }
        }
    }
}

fn named(cluster: Option<&mut Cluster>, user: Option<&mut AuthInfo>) -> Vec<(Named, PathBuf)> {
    let one = |what: Named, file: &Option<String>, stands: bool| {
        let file = file.as_ref().filter(|file| !stands && !file.is_empty());
        file.map(|file| (what, PathBuf::from(file)))
    };
    let of_cluster = cluster.and_then(|c| {
        let stands = c.certificate_authority_data.is_some();
        one(Named::Authority, &c.certificate_authority, stands)
    });
    let of_user = user.map(|u| {
        [
            one(
                Named::Certificate,
                &u.client_certificate,
                u.client_certificate_data.is_some(),
            ),
            one(Named::Key, &u.client_key, u.client_key_data.is_some()),
            one(Named::Token, &u.token_file, u.token.is_some()),
        ]
    });
    let of_user = of_user.into_iter().flatten().flatten();
    of_cluster.into_iter().chain(of_user).collect()
}

/// Puts in place what stands in the files.
fn fill(
    mut cluster: Option<&mut Cluster>,
    mut user: Option<&mut AuthInfo>,
    named: &[(Named, PathBuf)],
    contents: &[Vec<u8>],
) -> anyhow::Result<()> {
    for ((what, file), content) in named.iter().zip(contents) {
        let is_whole = match what {
            Named::Token => !content.trim_ascii().is_empty(),
            // Half written, a file may read well and say nothing: whom to trust, say.
            _ => content.windows(BEGIN.len()).any(|part| part == BEGIN),
        };
        ensure!(is_whole, "{} has no {what:?} in it", file.display());
        let data = STANDARD.encode(content);
        match (what, &mut cluster, &mut user) {
            (Named::Authority, Some(cluster), _) => cluster.certificate_authority_data = Some(data),
            (Named::Certificate, _, Some(user)) => user.client_certificate_data = Some(data),
            (Named::Key, _, Some(user)) => user.client_key_data = Some(SecretString::from(data)),
            (Named::Token, _, Some(user)) => {
                let token = std::str::from_utf8(content).with_context(|| format!("{}", file.display()))?;
                user.token = Some(SecretString::from(token.trim()));
            }
            _ => {}
        }
    }
    Ok(())
}

const BEGIN: &[u8] = b"-----BEGIN ";

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

    /// By the server's answers: within the time that a file takes to be seen.
    async fn comes_to(client: &kube::Client, asked: bool) {
        let soon = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        while asks(client).await != asked {
            assert!(tokio::time::Instant::now() < soon, "it stays {}", !asked);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    #[tokio::test]
    async fn another_authority_in_the_file_is_trusted_at_once_and_a_broken_file_changes_nothing() {
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
        let count = move |_: &mut kube::Config| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let loaded = load(&kubeconfig, None).await.unwrap();
        // What is written before anybody has made a client counts, too.
        files.write("ca.crt", new.cert_pem());
        let client = loaded.client(count).unwrap();
        *served.lock() = certificate(&new);
        comes_to(&client, true).await;
        let made = changed.load(Ordering::Relaxed);
        for broken in ["", "no certificate"] {
            files.write("ca.crt", broken);
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
            assert!(asks(&client).await, "{broken:?}");
        }
        std::fs::remove_file(files.0.join("ca.crt")).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        assert!(asks(&client).await);
        assert_eq!(changed.load(Ordering::Relaxed), made);
        *served.lock() = certificate(&old);
        assert!(!asks(&client).await, "the file from before isn't known any more");
        files.write("ca.crt", old.cert_pem());
        comes_to(&client, true).await;
    }

    #[tokio::test]
    async fn a_token_is_read_from_its_file_and_what_stands_in_the_kubeconfig_itself_is_not_followed() {
        let files = Files::new("data");
        files.write("own.crt", "-----BEGIN CERTIFICATE-----\n");
        files.write("own.key", "-----BEGIN PRIVATE KEY-----\n");
        files.write("token", "secret\n");
        let kubeconfig = files.write(
            "kubeconfig",
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{name: c, cluster: {server: \"https://h\", certificate-authority-data: eA==}}]\n\
             users: [{name: u, user: {client-certificate: own.crt, client-key: own.key}}, {name: t, user: {tokenFile: token}}]\n\
             contexts: [{name: c, context: {cluster: c, user: u}}, {name: t, context: {cluster: c, user: t}}]\n",
        );
        let source = Source::read(&kubeconfig, None).await.unwrap();
        let found: Vec<PathBuf> = source.named.iter().map(|(_, file)| file.clone()).collect();
        assert_eq!(found, [files.0.join("own.crt"), files.0.join("own.key")]);
        let mut source = Source::read(&kubeconfig, Some("t")).await.unwrap();
        assert_eq!(source.named, [(Named::Token, files.0.join("token"))]);
        let named = source.named.clone();
        let (cluster, user) = source.current().unwrap();
        fill(cluster, user, &named, &[b"secret\n".to_vec()]).unwrap();
        let token = source.current().unwrap().1.unwrap().token.clone();
        assert_eq!(secrecy::ExposeSecret::expose_secret(&token.unwrap()), "secret");
        assert!(Source::read(&kubeconfig, Some("other")).await.unwrap().named.is_empty());
    }
}
