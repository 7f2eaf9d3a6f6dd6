//! Before another registry: what is asked for is fetched once, verified, kept, and asked about again.

use crate::support::Running;
use futures::future::join_all;
use keelson_distribution::{Access, Bounds, Upstream};
use keelson_oci::digest;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn before(there: &Running) -> Running {
    let upstream = Upstream::parse(&format!("there={}", there.address)).unwrap();
    Running::new(Access::Open, Bounds::default(), vec![upstream]).await
}

fn blobs_given(registry: &Running) -> u64 {
    registry.counted("keelson_registry_requests_total{code=\"200\",kind=\"blob\",method=\"GET\"}")
}

#[tokio::test]
async fn a_blob_that_many_want_is_fetched_once() {
    let there = Running::open().await;
    let layer: Vec<u8> = (0..20_000_000_u32).map(|n| (n / 7) as u8).collect();
    let manifest = there.push_image("lib/x", "v1", &layer).await;
    let here = before(&there).await;
    let got = here.get("/v2/there/lib/x/manifests/v1").await;
    assert_eq!(
        (got.status, got.header("docker-content-digest")),
        (200, manifest.as_str())
    );
    // As a mirror is asked.
    let mirrored = here.get(&format!("/v2/lib/x/manifests/v1?ns={}", there.address)).await;
    assert_eq!(mirrored.body, got.body);
    let path = format!("/v2/there/lib/x/blobs/{}", digest::of(&layer));
    for answer in join_all((0..8).map(|_| here.get(&path))).await {
        assert!(answer.status == 200 && answer.body == layer);
    }
    assert_eq!(blobs_given(&there), 1);
    // From now on it is here, in parts too; in another repository it isn't.
    let part = here.ask("GET", &path, &[("range", "bytes=0-9")], "").await;
    assert_eq!((part.status, &part.body[..]), (206, &layer[..10]));
    assert_eq!(here.get(&path.replace("lib/x", "lib/y")).await.status, 404);
    assert_eq!(blobs_given(&there), 1);
    let push = here.ask("POST", "/v2/there/lib/x/blobs/uploads/", &[], "").await;
    assert_eq!((push.status, push.code().as_str()), (403, "DENIED"));
}

#[tokio::test]
async fn a_part_and_a_head_of_what_is_not_here_yet_are_told() {
    let there = Running::open().await;
    there.push_image("x", "v1", b"0123456789").await;
    let here = before(&there).await;
    let path = format!("/v2/there/x/blobs/{}", digest::of(b"0123456789"));
    let head = here.ask("HEAD", &path, &[], "").await;
    assert_eq!((head.status, head.header("content-length")), (200, "10"));
    let here = before(&there).await;
    let part = here.ask("GET", &path, &[("range", "bytes=3-4")], "").await;
    assert_eq!((part.status, &part.body[..]), (206, &b"34"[..]));
}

#[tokio::test]
async fn what_is_here_serves_while_the_registry_behind_is_away() {
    let there = Running::open().await;
    there.push_image("x", "v1", b"layer").await;
    let here = before(&there).await;
    let blob = format!("/v2/there/x/blobs/{}", digest::of(b"layer"));
    assert_eq!(here.get("/v2/there/x/manifests/v1").await.status, 200);
    assert_eq!(here.get(&blob).await.status, 200);
    assert_eq!(here.get("/v2/there/x/manifests/none").await.code(), "MANIFEST_UNKNOWN");
    // The tag is old, and nobody answers there any more.
    here.grow_old("there/x", "v1");
    drop(there);
    for _ in 0..50 {
        if here.get("/v2/there/x/manifests/v2").await.code() == "UNAVAILABLE" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(here.get("/v2/there/x/manifests/v1").await.status, 200);
    assert_eq!(here.get(&blob).await.status, 200);
    assert_eq!(here.get("/v2/there/x/manifests/v2").await.code(), "UNAVAILABLE");
}

#[tokio::test]
async fn a_tag_that_moved_is_followed_and_one_that_went_is_gone() {
    let there = Running::open().await;
    let first = there.push_image("x", "v1", b"one").await;
    let here = before(&there).await;
    let of = async || here.get("/v2/there/x/manifests/v1").await;
    assert_eq!(of().await.header("docker-content-digest"), first);
    let second = there.push_image("x", "v1", b"two").await;
    assert_eq!(
        of().await.header("docker-content-digest"),
        first,
        "it is believed for a minute"
    );
    here.grow_old("there/x", "v1");
    assert_eq!(of().await.header("docker-content-digest"), second);
    here.grow_old("there/x", "v1");
    assert_eq!(there.ask("DELETE", "/v2/x/manifests/v1", &[], "").await.status, 202);
    assert_eq!(of().await.code(), "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn content_that_is_not_what_it_is_called_is_never_given_whole() {
    let there = Running::open().await;
    there.push_image("x", "v1", b"good layer").await;
    let digest = digest::of(b"good layer");
    // Somebody spoils the file over there.
    let hex = digest.strip_prefix("sha256:").unwrap();
    let file = there.directory.path().join(format!("blobs/sha256/{}/{hex}", &hex[..2]));
    std::fs::write(&file, b"evil layer").unwrap();
    let here = before(&there).await;
    let stream = tokio::net::TcpStream::connect(here.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("/v2/there/x/blobs/{digest}")).header("host", "r");
    let request = request
        .body(http_body_util::Empty::<hyper::body::Bytes>::new())
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    if answer.status() == 200 {
        use http_body_util::BodyExt;
        assert!(
            answer.into_body().collect().await.is_err(),
            "it ended as if it were whole"
        );
    }
    assert!(
        !here
            .directory
            .path()
            .join(format!("repositories/there+x/blobs/sha256-{hex}"))
            .exists()
    );
}

/// One that doesn't say how much it sends, and sends without end.
#[tokio::test]
async fn a_registry_behind_does_not_fill_what_is_kept() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Upstream::parse(&format!("there={}", socket.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                let _request = stream.read(&mut [0; 4096]).await;
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let chunk = [&b"10000\r\n"[..], &[0; 1 << 16], b"\r\n"].concat();
                let mut sent = stream.write_all(head.as_bytes()).await;
                while sent.is_ok() {
                    sent = stream.write_all(&chunk).await;
                }
            });
        }
    });
    let bounds = Bounds {
        whole: Some(4 << 20),
        ..Bounds::default()
    };
    let here = Running::new(Access::Open, bounds, vec![upstream]).await;
    let path = format!("/v2/there/x/blobs/{}", digest::of(b"endless"));
    let asked = tokio::time::timeout(Duration::from_secs(30), here.get(&path)).await;
    assert_eq!(asked.expect("it ends").code(), "DENIED");
    here.becomes("keelson_registry_kept_bytes", 0).await;
    let left = std::fs::read_dir(here.directory.path().join("incoming"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}
