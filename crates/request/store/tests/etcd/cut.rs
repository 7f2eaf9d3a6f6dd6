//! Answers that get lost: a relay in front of etcd that lets requests through and then breaks the connection.

use crate::server::Server;
use keelson_store::etcd::Options;
use keelson_store::{Error, Etcd, Expect, Outcome, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// While `deaf`, what etcd says is thrown away, and the connection is broken at its first word.
struct Relay {
    url: String,
    deaf: Arc<AtomicBool>,
}

impl Relay {
    async fn to(server: &Server) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (deaf, to) = (Arc::new(AtomicBool::new(false)), server.address());
        let cut = deaf.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&to).await.unwrap();
                tokio::spawn(relay(client, server, cut.clone()));
            }
        });
        Relay { url, deaf }
    }
}

async fn relay(client: TcpStream, server: TcpStream, deaf: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async { tokio::io::copy(&mut from_client, &mut to_server).await };
    let back = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = from_server.read(&mut buffer).await?;
            // Acknowledgements of HTTP/2 are short; the answer to a request isn't.
            if n == 0 || (deaf.load(Ordering::SeqCst) && n > 30) {
                // Once only: the next connection is a good one.
                deaf.store(false, Ordering::SeqCst);
                return std::io::Result::Ok(());
            }
            to_client.write_all(&buffer[..n]).await?;
        }
    };
    tokio::select! { _ = there => {}, _ = back => {} }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_found_to_have_happened() {
    let server = Server::start(&[]).await;
    let relay = Relay::to(&server).await;
    let store = Etcd::open(Options::new(vec![relay.url.clone()])).await.unwrap();
    let lose = || relay.deaf.store(true, Ordering::SeqCst);

    lose();
    let created = store
        .put("/a".into(), "one".into(), Expect::Absent, None)
        .await
        .unwrap();
    assert_eq!(created.done(), Some(2), "{created:?}");
    assert!(!relay.deaf.load(Ordering::SeqCst), "the answer was not lost");

    lose();
    let changed = store
        .put("/a".into(), "two".into(), Expect::ModRevision(2), None)
        .await
        .unwrap();
    assert_eq!(changed.done(), Some(3), "{changed:?}");
    assert_eq!(store.current_revision().await.unwrap(), 3, "it was written once");

    // Compares that don't hold change nothing, and that is found out as well.
    lose();
    let late = store
        .put("/a".into(), "three".into(), Expect::ModRevision(2), None)
        .await
        .unwrap();
    assert!(
        matches!(&late, Outcome::Conflict { current: Some(kv), .. } if kv.value == "two"),
        "{late:?}"
    );

    // Of a deletion nobody can tell whose it was.
    lose();
    let deleted = store.delete("/a".into(), Expect::ModRevision(3)).await;
    assert!(matches!(deleted, Err(Error::Stalled { .. })), "{deleted:?}");
    assert_eq!(store.get(b"/a", None).await.unwrap().kv, None);

    // A read is just made again.
    lose();
    tokio::time::timeout(Duration::from_secs(5), store.get(b"/a", None))
        .await
        .unwrap()
        .unwrap();
}
