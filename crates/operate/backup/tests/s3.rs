//! Buckets, with a server of the tests' own: what is kept comes back, and what goes wrong is told and tried again within bounds.

#![allow(clippy::unwrap_used)]

mod bucket;

use bucket::{Bucket, Fault, KEY};
use bytes::Bytes;
use keelson_backup::place::s3::Settings;
use keelson_backup::place::{self, Place, Trouble};
use keelson_backup::repository::{Repository, Secret};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

fn open(endpoint: &str, key: &str, dir: &Path) -> Arc<dyn Place> {
    let file = dir.join(format!("credentials-{key}"));
    let text = format!("[default]\naws_access_key_id={key}\naws_secret_access_key=secret\n");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let settings = Settings {
        endpoint: Some(endpoint.into()),
        credentials_file: Some(file),
        ..Settings::default()
    };
    place::open("s3://bucket/some/where", &settings).unwrap()
}

async fn start() -> (Bucket, Arc<dyn Place>, tempfile::TempDir) {
    let (server, dir) = (Bucket::start().await, tempfile::tempdir().unwrap());
    let place = open(&format!("http://{}", server.address), KEY, dir.path());
    (server, place, dir)
}

async fn names(place: &dyn Place, below: &str) -> Vec<String> {
    place
        .list(below)
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.name)
        .collect()
}

#[tokio::test]
async fn what_is_put_is_there_until_it_is_removed() {
    let (server, place, dir) = start().await;
    assert_eq!(place.told(), "s3://bucket/some/where");
    assert!(names(place.as_ref(), "").await.is_empty());
    for n in 0..5 {
        place
            .put(&format!("a/{n}"), format!("content {n}").into())
            .await
            .unwrap();
    }
    place.put("b/0", Bytes::new()).await.unwrap();
    assert_eq!(
        names(place.as_ref(), "a/").await,
        ["a/0", "a/1", "a/2", "a/3", "a/4"],
        "over pages"
    );
    assert_eq!(names(place.as_ref(), "").await.len(), 6);
    assert!(server.state.lock().unwrap().objects.contains_key("some/where/a/0"));
    assert_eq!(place.get("a/3", 100).await.unwrap().unwrap(), "content 3");
    assert!(place.get("a/3", 5).await.is_err(), "more than is wanted");
    assert_eq!(place.get("none", 5).await.unwrap(), None);
    let looks = "<Error><Code>InternalError</Code></Error>";
    place.put("looks", looks.into()).await.unwrap();
    assert_eq!(
        place.get("looks", 100).await.unwrap().unwrap(),
        looks,
        "it is what was kept"
    );
    assert!(place.get("../a", 5).await.is_err());
    place.remove("a/3").await.unwrap();
    place.remove("a/3").await.unwrap();
    assert_eq!(place.get("a/3", 100).await.unwrap(), None);

    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for size in [0, 1000, (20 << 20) + 7] {
        let content: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        std::fs::write(&from, &content).unwrap();
        place.put_file("file", &from).await.unwrap();
        assert!(place.get_file("file", &to, content.len() as u64).await.unwrap());
        assert!(std::fs::read(&to).unwrap() == content, "{size}");
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&to).unwrap();
    }
    assert!(!place.get_file("none", &to, 5).await.unwrap() && !to.exists());
    let long = place.get_file("file", &to, 20 << 20).await.unwrap_err().to_string();
    assert!(long.contains("more than") && !to.exists(), "{long}");
}

#[tokio::test]
async fn pages_without_names_are_followed_to_an_end() {
    let (server, place, _dir) = start().await;
    server.state.lock().unwrap().endless = true;
    let refused = place.list("").await.unwrap_err().to_string();
    assert!(refused.contains("more than"), "{refused}");
}

#[tokio::test]
async fn a_server_that_fails_is_asked_again_and_not_for_ever() {
    let (server, place, dir) = start().await;
    place.put("a", Bytes::from_static(b"before")).await.unwrap();
    let busy = Some(Fault::Status(503, "SlowDown"));
    for faults in [
        [busy, Some(Fault::Hangs)],
        [Some(Fault::Half), Some(Fault::Status(500, "InternalError"))],
    ] {
        server.order(&faults);
        assert_eq!(place.get("a", 100).await.unwrap().unwrap(), "before", "{faults:?}");
        server.order(&faults);
        let to = dir.path().join("to");
        assert!(place.get_file("a", &to, 100).await.unwrap());
        assert_eq!(std::fs::read(&to).unwrap(), b"before", "{faults:?}");
        std::fs::remove_file(&to).unwrap();
    }
    server.order(&[busy; 20]);
    let before = server.state.lock().unwrap().requests;
    let failed = place.put("a", Bytes::from_static(b"after")).await.unwrap_err();
    assert!(
        matches!(&failed, Trouble::Failed { why, .. } if why.contains("SlowDown")),
        "{failed}"
    );
    assert_eq!(server.state.lock().unwrap().requests - before, 4);
    server.order(&[]);
    assert_eq!(place.get("a", 100).await.unwrap().unwrap(), "before", "nothing is lost");
}

#[tokio::test]
async fn who_isnt_let_in_or_finds_nobody_is_told_so() {
    let (server, _, dir) = start().await;
    let wrong = open(&format!("http://{}", server.address), "AKIDOTHER", dir.path());
    let refused = wrong.list("").await.unwrap_err();
    assert!(
        matches!(&refused, Trouble::Denied { why, .. } if why.contains("InvalidAccessKeyId")),
        "{refused}"
    );
    assert_eq!(
        server.state.lock().unwrap().requests,
        1,
        "what is refused isn't asked again"
    );
    // A port that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nobody = open(&format!("http://{free}"), KEY, dir.path());
    let unreachable = nobody.put("a", Bytes::new()).await.unwrap_err();
    assert!(matches!(unreachable, Trouble::Unreachable { .. }), "{unreachable}");
    let told = format!("{refused} {unreachable}");
    assert!(!told.contains("Signature") && !told.contains("AKID"), "{told}");
}

#[tokio::test]
async fn half_an_upload_is_no_object() {
    let (server, place, dir) = start().await;
    let from = dir.path().join("from");
    std::fs::write(&from, vec![1; 20 << 20]).unwrap();
    place.put("file", Bytes::from_static(b"before")).await.unwrap();
    // Begun, one part, and then the server is away.
    let gone = Some(Fault::Hangs);
    server.order(&[None, None, gone, gone, gone, gone]);
    assert!(place.put_file("file", &from).await.is_err());
    server.order(&[]);
    assert_eq!(place.get("file", 100).await.unwrap().unwrap(), "before");
    assert_eq!(
        server.state.lock().unwrap().unfinished(),
        0,
        "what was sent is given up"
    );
}

#[tokio::test]
async fn a_repository_in_a_bucket() {
    let (_server, place, _dir) = start().await;
    let secret = Secret::passphrase("correct horse battery").unwrap();
    let made = Repository::open_or_make(place.clone(), &secret).await.unwrap();
    assert!(made.is_sealed());
    assert!(Repository::open(place.clone(), &secret).await.is_ok());
    let other = Secret::passphrase("another passphrase").unwrap();
    let refused = Repository::open(place, &other).await.err().unwrap().to_string();
    assert!(refused.contains("isn't the repository's passphrase"), "{refused}");
}
