//! What the suite of the specification doesn't try: what strangers send.

use crate::support::{OCI_IMAGE, Running};
use keelson_oci::digest;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_was() {
    let registry = Running::open().await;
    let begun = registry.ask("POST", "/v2/a/blobs/uploads/", &[], "").await;
    assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
    let place = begun.header("location").to_owned();
    // A client says that it sends ten bytes, sends four, and is gone.
    let mut stream = TcpStream::connect(registry.address).unwrap();
    write!(
        stream,
        "PATCH {place} HTTP/1.1\r\nHost: r\r\nContent-Length: 10\r\nContent-Range: 0-9\r\n\r\n0123"
    )
    .unwrap();
    stream.flush().unwrap();
    registry.becomes("keelson_registry_received_bytes_total", 4).await;
    drop(stream);
    let mut told = registry.get(&place).await;
    for _ in 0..50 {
        if told.status == 204 && told.header("range") == "0-3" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        told = registry.get(&place).await;
    }
    assert_eq!((told.status, told.header("range")), (204, "0-3"));
    let wrong = registry
        .ask("PATCH", &place, &[("content-range", "0-5")], "012345")
        .await;
    assert_eq!((wrong.status, wrong.code().as_str()), (416, "BLOB_UPLOAD_INVALID"));
    let lies = registry
        .ask("PATCH", &place, &[("content-range", "4-5")], "456789")
        .await;
    assert_eq!((lies.status, lies.code().as_str()), (400, "SIZE_INVALID"));
    let digest = digest::of(b"0123456789");
    let end = format!("{place}?digest={digest}");
    let done = registry.ask("PUT", &end, &[("content-range", "4-9")], "456789").await;
    assert_eq!(done.status, 201, "{:?}", done.body);
    let blob = registry.get(&format!("/v2/a/blobs/{digest}")).await;
    assert_eq!((blob.status, &blob.body[..]), (200, &b"0123456789"[..]));
    assert_eq!(registry.get(&place).await.code(), "BLOB_UPLOAD_UNKNOWN");
}

/// Whoever sends a blob in one request isn't told of an upload: nobody could go on with what is left of it.
#[tokio::test]
async fn a_blob_in_one_request_that_broke_off_leaves_nothing() {
    let registry = Running::open().await;
    let digest = digest::of(b"0123456789");
    let mut stream = TcpStream::connect(registry.address).unwrap();
    write!(
        stream,
        "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: r\r\nContent-Length: 10\r\n\r\n0123"
    )
    .unwrap();
    registry.becomes("keelson_registry_uploads", 1).await;
    drop(stream);
    registry.becomes("keelson_registry_uploads", 0).await;
}

#[tokio::test]
async fn what_strangers_send_is_refused_by_its_name_and_leaves_nothing() {
    let registry = Running::open().await;
    let digest = registry.push_blob("a", b"{}").await;
    let other = digest::of(b"other");
    let huge = vec![b' '; (4 << 20) + 1];
    for (method, path, body, status, code) in [
        ("GET", "/v2/../../etc/passwd".to_owned(), &b""[..], 404, "UNSUPPORTED"),
        ("GET", "/v2/A/tags/list".to_owned(), b"", 400, "NAME_INVALID"),
        (
            "GET",
            "/v2/a/blobs/sha256:..%2f..%2fx".to_owned(),
            b"",
            400,
            "DIGEST_INVALID",
        ),
        ("GET", format!("/v2/b/blobs/{digest}"), b"", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/a/manifests/none".to_owned(), b"", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/none/tags/list".to_owned(), b"", 404, "NAME_UNKNOWN"),
        (
            "GET",
            "/v2/a/tags/list?n=many".to_owned(),
            b"",
            400,
            "PAGINATION_NUMBER_INVALID",
        ),
        (
            "POST",
            format!("/v2/a/blobs/uploads/?digest={other}"),
            b"not that",
            400,
            "DIGEST_INVALID",
        ),
        ("PUT", "/v2/a/manifests/x".to_owned(), &huge, 413, "SIZE_INVALID"),
        ("PUT", "/v2/a/manifests/x".to_owned(), b"{}", 400, "MANIFEST_INVALID"),
        (
            "PUT",
            format!("/v2/a/manifests/{other}"),
            br#"{"schemaVersion":2}"#,
            400,
            "MANIFEST_INVALID",
        ),
        ("DELETE", "/v2/a/tags/list".to_owned(), b"", 405, "UNSUPPORTED"),
        (
            "PATCH",
            "/v2/a/blobs/uploads/../../x".to_owned(),
            b"",
            404,
            "UNSUPPORTED",
        ),
        (
            "PATCH",
            "/v2/a/blobs/uploads/x".to_owned(),
            b"",
            404,
            "BLOB_UPLOAD_UNKNOWN",
        ),
    ] {
        let answer = registry
            .ask(method, &path, &[("content-type", OCI_IMAGE)], body.to_vec())
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{method} {path}"
        );
    }
    assert_eq!(registry.counted("keelson_registry_uploads"), 0);
    assert_eq!(registry.counted("keelson_registry_kept_bytes"), 2);
    let left = std::fs::read_dir(registry.directory.path().join("incoming"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn parts_of_a_blob_and_heads_of_both_are_told() {
    let registry = Running::open().await;
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let digest = registry.push_blob("a/b", &bytes).await;
    let path = format!("/v2/a/b/blobs/{digest}");
    let part = registry.ask("GET", &path, &[("range", "bytes=299998-")], "").await;
    assert_eq!((part.status, &part.body[..]), (206, &bytes[299_998..]));
    assert_eq!(part.header("content-range"), "bytes 299998-299999/300000");
    assert_eq!(
        registry
            .ask("GET", &path, &[("range", "bytes=300000-")], "")
            .await
            .status,
        416
    );
    let head = registry.ask("HEAD", &path, &[], "").await;
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, "300000", 0)
    );
    let manifest = registry.push_image("a/b", "v1", &bytes).await;
    let head = registry.ask("HEAD", "/v2/a/b/manifests/v1", &[], "").await;
    assert_eq!(
        (head.status, head.header("docker-content-digest")),
        (200, manifest.as_str())
    );
    assert_eq!(registry.ask("HEAD", "/v2/a/b/manifests/v2", &[], "").await.status, 404);
}
