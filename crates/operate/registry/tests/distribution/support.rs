//! A registry that runs, and a client that says exactly what it is told to.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use keelson_distribution::{Access, Bounds, Collect, Registry, Settings, Upstream};
use keelson_measure::Measures;
use keelson_oci::digest;
use keelson_oci::registries::Registries;
use keelson_pki::verify::Live;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub struct Running {
    pub address: SocketAddr,
    pub measures: Measures,
    pub directory: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Running {
    pub async fn new(access: Access, bounds: Bounds, upstreams: Vec<Upstream>) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            directory: directory.path().to_owned(),
            bounds,
            collect: Collect {
                grace: Duration::from_secs(3600),
                untagged: None,
            },
            collect_every: Duration::from_secs(3600),
            upstreams,
            registries: Registries::default(),
            upstream_keep: Duration::from_secs(3600),
        };
        let measures = Measures::default();
        let registry = Registry::open(settings, access, Live::default(), &measures).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (socket.local_addr().unwrap(), CancellationToken::new());
        let stopped = stop.clone();
        tokio::spawn(async move { registry.run(socket, None, stopped).await });
        Running {
            address,
            measures,
            directory,
            stop,
        }
    }

    pub async fn open() -> Running {
        Running::new(Access::Open, Bounds::default(), Vec::new()).await
    }

    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "registry");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = sender
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap();
        let (parts, body) = answer.into_parts();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    pub async fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest::of(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let answer = self.ask("POST", &path, &[], bytes.to_vec()).await;
        assert_eq!(answer.status, 201, "{:?}", answer.body);
        digest
    }

    /// An image of one layer under a tag; the manifest's digest.
    pub async fn push_image(&self, repository: &str, tag: &str, layer: &[u8]) -> String {
        let (config, blob) = (
            self.push_blob(repository, b"{}").await,
            self.push_blob(repository, layer).await,
        );
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_IMAGE,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob, "size": layer.len()}],
        })
        .to_string();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = self
            .ask("PUT", &path, &[("content-type", OCI_IMAGE)], manifest.clone())
            .await;
        assert_eq!(answer.status, 201, "{:?}", answer.body);
        digest::of(manifest.as_bytes())
    }

    /// Waits until the page of metrics says so.
    pub async fn becomes(&self, family: &str, wanted: u64) {
        for _ in 0..50 {
            if self.counted(family) == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(self.counted(family), wanted, "{family}");
    }

    /// As if nobody had asked for this tag for an hour.
    pub fn grow_old(&self, repository: &str, tag: &str) {
        let place = format!("repositories/{}/tags/{tag}", repository.replace('/', "+"));
        let file = std::fs::File::options()
            .write(true)
            .open(self.directory.path().join(place));
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        file.unwrap().set_modified(old).unwrap();
    }

    /// What a line of the page of metrics says that begins so; 0 where there is none.
    pub fn counted(&self, family: &str) -> u64 {
        let page = self.measures.page();
        let line = page.lines().find_map(|line| line.strip_prefix(family));
        line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
    }
}

pub const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
