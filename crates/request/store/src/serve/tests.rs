//! The API in front of a store in memory, as a client over an in-process connection finds it.

use super::pb::kv_client::KvClient;
use super::pb::{PutRequest, RangeRequest};
use super::*;
use crate::Memory;
use tonic::Code;

fn client(
    options: Options,
) -> KvClient<tower::util::BoxCloneService<http::Request<Body>, http::Response<Body>, std::convert::Infallible>> {
    let api = Api::new(Memory::new(), options);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let api = api.clone();
        async move { Ok(api.answer(request).await) }
    });
    KvClient::new(tower::util::BoxCloneService::new(service))
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
