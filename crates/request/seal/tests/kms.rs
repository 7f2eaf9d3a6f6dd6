//! A plug-in of key management, played by a server of the test's own on a unix socket; and what upstream's own code made with
//! such a one (`tools/seal-golden`).
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{by_file, config, get, put, secretbox};
use keelson_seal::kms::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use keelson_seal::kms::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use keelson_store::{Error, Memory, Store, unopened};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

/// "Seals" by turning bits over, and names its key.
#[derive(Default)]
struct Plugin {
    key: AtomicUsize,
    ill: AtomicUsize,
    decrypted: AtomicUsize,
    encrypted: AtomicUsize,
}

impl Plugin {
    fn key_id(&self) -> String {
        format!("key-{}", self.key.load(Ordering::SeqCst))
    }
}

fn turned(bytes: &[u8]) -> Bytes {
    bytes.iter().map(|b| !b).collect()
}

struct Served(Arc<Plugin>);

#[tonic::async_trait]
impl KeyManagementService for Served {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let healthz = if self.0.ill.load(Ordering::SeqCst) == 0 {
            "ok"
        } else {
            "no"
        };
        Ok(Response::new(StatusResponse {
            version: "v2".into(),
            healthz: healthz.into(),
            key_id: self.0.key_id(),
        }))
    }
    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        self.0.encrypted.fetch_add(1, Ordering::SeqCst);
        let annotations = HashMap::from([("version.encryption.example".to_string(), Bytes::from_static(b"1"))]);
        Ok(Response::new(EncryptResponse {
            ciphertext: turned(&request.get_ref().plaintext),
            key_id: self.0.key_id(),
            annotations,
        }))
    }
    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        self.0.decrypted.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        if request.key_id == "key-9" {
            return Err(Status::invalid_argument("unknown key"));
        }
        assert_eq!(request.annotations["version.encryption.example"], "1");
        let plaintext = turned(&request.ciphertext);
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}

fn serve(plugin: &Arc<Plugin>, socket: &Path) -> DropGuard {
    let listener = UnixListener::bind(socket).unwrap();
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let served = KeyManagementServiceServer::new(Served(plugin.clone()));
    tokio::spawn(async move {
        let incoming = UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(served);
        tokio::select! {
            _ = server.serve_with_incoming(incoming) => {}
            () = stopped => {}
        }
    });
    stop.drop_guard()
}

fn kms(socket: &Path) -> String {
    let endpoint = format!("unix://{}", socket.display());
    format!("{{kms: {{apiVersion: v2, name: vault, endpoint: '{endpoint}', timeout: 500ms}}}}")
}

#[tokio::test]
async fn values_are_sealed_by_seeds_that_the_plug_in_seals() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (directory.path().join("kms.sock"), directory.path().join("config.yaml"));
    let plugin = Arc::new(Plugin::default());
    let _serving = serve(&plugin, &socket);
    std::fs::write(&file, config(&format!("[{}, {}]", kms(&socket), secretbox("old", 1)))).unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    let sealing = by_file(&beneath, &file, false).await.unwrap();
    let store = sealing.store();
    assert!(sealing.has_check() && sealing.check().await.is_ok());
    for key in ["/a", "/b"] {
        put(&*store, key, "value").await;
        let stored = get(&*beneath, key).await;
        assert!(stored.starts_with(b"k8s:enc:kms:v2:vault:"));
        assert!(!stored.windows(5).any(|w| w == b"value"));
        assert_eq!(get(&*store, key).await, "value");
    }
    let count = |n: &AtomicUsize| n.load(Ordering::SeqCst);
    assert_eq!(
        (count(&plugin.encrypted), count(&plugin.decrypted)),
        (1, 0),
        "one seed, and it is known"
    );
    // For upstream's code to open: `tools/seal-golden`.
    let here = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kms-sealed-here.bin");
    std::fs::write(here, get(&*beneath, "/a").await).unwrap();
    // Its place is part of it.
    let moved = get(&*beneath, "/a").await;
    beneath
        .put("/c".into(), moved, keelson_store::Expect::Any, None)
        .await
        .unwrap();
    assert!(unopened::reason(&get(&*store, "/c").await).is_some());
    beneath.delete("/c".into(), keelson_store::Expect::Any).await.unwrap();

    // Another server asks once a seed.
    let other = by_file(&beneath, &file, false).await.unwrap();
    for key in ["/a", "/b"] {
        assert_eq!(get(&*other.store(), key).await, "value");
    }
    assert_eq!(count(&plugin.decrypted), 1);

    // The plug-in has a new key: a server that starts then writes by it, and knows what is stale.
    plugin.key.store(1, Ordering::SeqCst);
    let after = by_file(&beneath, &file, false).await.unwrap();
    assert_eq!(after.report().await.unwrap().stored.stale, 2);
    after.settle().await.unwrap();
    assert_eq!(after.report().await.unwrap().stored.stale, 0);
    assert_eq!(get(&*after.store(), "/a").await, "value");

    // What the plug-in refuses for good is that value's error only.
    plugin.key.store(9, Ordering::SeqCst);
    let ninth = by_file(&beneath, &file, false).await.unwrap();
    put(&*ninth.store(), "/ninth", "value").await;
    let reader = by_file(&beneath, &file, false).await.unwrap();
    let reason = get(&*reader.store(), "/ninth").await;
    let reason = unopened::reason(&reason).unwrap().to_owned();
    assert_eq!(
        reason,
        "failed to decrypt DEK, error: rpc error: code = InvalidArgument desc = unknown key"
    );
    assert_eq!(get(&*reader.store(), "/a").await, "value");
    let mut page = String::new();
    reader.metrics().write(&mut page);
    assert!(page.contains("apiserver_envelope_encryption_kms_operations_latency_seconds_count{grpc_status_code=\"InvalidArgument\",method_name=\"/v2.KeyManagementService/Decrypt\",provider_name=\"vault\"} 1"), "{page}");
}

#[tokio::test]
async fn what_upstream_sealed_by_a_plug_in_is_opened() {
    use base64::Engine;
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (directory.path().join("kms.sock"), directory.path().join("config.yaml"));
    let plugin = Arc::new(Plugin::default());
    let _serving = serve(&plugin, &socket);
    std::fs::write(&file, config(&format!("[{}]", kms(&socket)))).unwrap();
    // By a derived key, and by a key itself, as before 1.29: that one is to be written anew.
    for (at, line) in include_str!("../golden/kms.txt").lines().enumerate() {
        let beneath: Arc<dyn Store> = Memory::new();
        let sealed = base64::engine::general_purpose::STANDARD.decode(line).unwrap();
        let any = keelson_store::Expect::Any;
        beneath.put("/a".into(), sealed.into(), any, None).await.unwrap();
        let sealing = by_file(&beneath, &file, false).await.unwrap();
        assert_eq!(get(&*sealing.store(), "/a").await, "value");
        assert_eq!(sealing.report().await.unwrap().stored.stale, at as u64);
    }
}

#[tokio::test]
async fn a_plug_in_that_is_away_delays_what_needs_it_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (directory.path().join("kms.sock"), directory.path().join("config.yaml"));
    std::fs::write(&file, config(&format!("[{}]", kms(&socket)))).unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    let plugin = Arc::new(Plugin::default());
    let serving = serve(&plugin, &socket);
    put(&*by_file(&beneath, &file, false).await.unwrap().store(), "/a", "value").await;
    drop(serving);
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::fs::remove_file(&socket).unwrap();

    // A server that starts without it: not an error of the value, but of the moment.
    let sealing = by_file(&beneath, &file, false).await.unwrap();
    let store = sealing.store();
    assert!(
        sealing
            .check()
            .await
            .unwrap_err()
            .starts_with("kms-provider-0: failed to perform status section")
    );
    let error = store.get(b"/a", None).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    let put_error = store
        .put("/b".into(), "x".into(), keelson_store::Expect::Any, None)
        .await;
    assert!(put_error.is_err());
    assert!(beneath.get(b"/b", None).await.unwrap().kv.is_none());

    let _serving = serve(&plugin, &socket);
    tokio::time::sleep(Duration::from_secs(4)).await;
    sealing.check().await.unwrap();
    assert_eq!(get(&*store, "/a").await, "value");
    plugin.ill.store(1, Ordering::SeqCst);
}

#[tokio::test]
async fn the_first_version_of_the_protocol_is_refused_as_upstream_does() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, config("[{kms: {name: vault, endpoint: 'unix:///x'}}]")).unwrap();
    let beneath: Arc<dyn Store> = Memory::new();
    let refused = format!("{:#}", by_file(&beneath, &file, false).await.err().unwrap());
    assert_eq!(
        refused,
        "error while building transformers: KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature."
    );
}
