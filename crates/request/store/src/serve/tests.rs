//! The API in front of a store in memory, as a client over an in-process connection finds it.

use super::pb::kv_client::KvClient;
use super::pb::maintenance_client::MaintenanceClient;
use super::pb::{PutRequest, RangeRequest, SnapshotRequest};
use super::*;
use crate::{Embedded, Memory, embedded};
use tonic::Code;

type Service = tower::util::BoxCloneService<http::Request<Body>, http::Response<Body>, std::convert::Infallible>;

fn service(api: Api) -> Service {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let api = api.clone();
        async move { Ok(api.answer(request).await) }
    });
    tower::util::BoxCloneService::new(service)
}

fn client(options: Options) -> KvClient<Service> {
    KvClient::new(service(Api::new(Memory::new(), options)))
}

fn put(key: &'static str, size: usize) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: vec![7; size].into(),
        ..PutRequest::default()
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_as_etcd_does() {
    let mut client = client(Options::default());
    client.put(put("a", 1 << 20)).await.unwrap();
    let refused = client.put(put("a", 1600 << 10)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "etcdserver: request is too large")
    );
    let refused = client.put(put("a", 3 << 20)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "grpc: received message larger than max")
    );
}

#[tokio::test]
async fn a_header_tells_who_answered_and_when() {
    let mut client = client(Options::default());
    let put = client.put(put("a", 1)).await.unwrap().into_inner().header.unwrap();
    let range = RangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    let got = client.range(range).await.unwrap().into_inner().header.unwrap();
    assert_eq!(put, got);
    assert_eq!((put.revision, put.raft_term), (2, header::TERM));
    assert!(put.member_id != 0 && put.cluster_id != 0);
}

/// A thread of those that read the store, and a file as large as it, aren't anybody's to keep.
#[tokio::test]
async fn few_snapshots_wait_for_clients_that_do_not_read_them() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path().join("store"), embedded::Options::default());
    let service = service(Api::new(store.await.unwrap(), Options::default()));
    let mut kv = KvClient::new(service.clone());
    kv.put(put("a", 1 << 20)).await.unwrap();
    let mut client = MaintenanceClient::new(service);
    let mut unread = Vec::new();
    for _ in 0..SNAPSHOTS {
        unread.push(client.snapshot(SnapshotRequest {}).await.unwrap());
    }
    let refused = client.snapshot(SnapshotRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    drop(unread);
    let mut next = loop {
        match client.snapshot(SnapshotRequest {}).await {
            Ok(begun) => break begun.into_inner(),
            Err(refused) => assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}"),
        }
        tokio::task::yield_now().await;
    };
    let mut bytes = 0;
    while let Some(blob) = next.message().await.unwrap() {
        bytes += blob.blob.len();
    }
    assert!(bytes > 1 << 20, "{bytes}");
}

#[tokio::test]
async fn plain_requests() {
    let api = Api::new(Memory::new(), Options::default());
    let ask = async |method: &str, path: &str| {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let answer = api.answer(request).await;
        let status = answer.status().as_u16();
        let body = http_body_util::BodyExt::collect(answer.into_body())
            .await
            .unwrap()
            .to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(
        ask("GET", "/health").await,
        (200, r#"{"health":"true","reason":""}"#.into())
    );
    assert!(ask("GET", "/version").await.1.contains(VERSION));
    assert_eq!(ask("POST", "/health").await.0, 405);
}

#[tokio::test]
async fn what_a_page_in_a_browser_can_send_is_no_request() {
    let api = Api::new(Memory::new(), Options::default());
    let ask = async |version: http::Version, kind: &str| {
        let request = http::Request::builder()
            .method("POST")
            .uri("/etcdserverpb.KV/Put")
            .version(version)
            .header("content-type", kind)
            .body(Body::empty())
            .unwrap();
        api.answer(request).await.status().as_u16()
    };
    assert_eq!(ask(http::Version::HTTP_11, "application/grpc").await, 404);
    assert_eq!(ask(http::Version::HTTP_2, "text/plain").await, 404);
    assert_eq!(ask(http::Version::HTTP_2, "application/grpc+proto").await, 200);
}
