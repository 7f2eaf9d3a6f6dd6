//! What sealing costs a request: creating and reading Secrets and ConfigMaps, with and without, over a store in memory.
//! `cargo run --release -p keelson-apiserver --example sealed`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use keelson_apiserver::request::{Body, UserInfo};
use keelson_apiserver::{ApiServer, Config, encryption};
use keelson_seal::{Sealing, Source};
use keelson_store::{Memory, Store};
use std::sync::Arc;
use std::time::Instant;
use tower::ServiceExt;

const OBJECTS: usize = 2000;

async fn call(server: &ApiServer, method: &str, path: &str, body: String) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Body::from(body.into_bytes()))
        .unwrap();
    let user = UserInfo::new("tester", &["system:masters"]);
    let answer = server.service(user).oneshot(request).await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    answer.into_body().collect(1 << 20).await.unwrap();
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let keys = tempfile::tempdir().unwrap();
    for sealed in [false, true, false, true] {
        let mut config = Config::new(keelson_pki::ServiceAccountKeys::generate().unwrap());
        config.publish_kubernetes_service = false;
        let mut store: Arc<dyn Store> = Memory::new();
        if sealed {
            let directory = tempfile::tempdir_in(keys.path()).unwrap().keep();
            let sealing = Sealing::open(store, Source::Own, encryption::place(directory, encryption::ROOT))
                .await
                .unwrap();
            store = sealing.store();
            config.sealing = Some(sealing);
        }
        let server = ApiServer::new(config, store).unwrap();
        server.ready().await;
        for (resource, kind) in [("secrets", "Secret"), ("configmaps", "ConfigMap")] {
            let path = format!("/api/v1/namespaces/default/{resource}");
            let data = "YWJj".repeat(256);
            let began = Instant::now();
            for i in 0..OBJECTS {
                let body = format!(
                    "{{\"apiVersion\":\"v1\",\"kind\":\"{kind}\",\"metadata\":{{\"name\":\"o{i}\"}},\"data\":{{\"key\":\"{data}\"}}}}"
                );
                call(&server, "POST", &path, body).await;
            }
            let created = began.elapsed() / OBJECTS as u32;
            let began = Instant::now();
            for i in 0..OBJECTS {
                call(&server, "GET", &format!("{path}/o{i}"), String::new()).await;
            }
            let read = began.elapsed() / OBJECTS as u32;
            println!("sealed: {sealed:<5} {kind:<9} created in {created:?}, read in {read:?}");
        }
    }
}
