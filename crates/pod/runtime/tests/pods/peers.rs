//! Layers from other nodes: two machines, one registry on loopback, and what is between them played here.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use keelson_runtime::images::Images;
use keelson_runtime::images::archives::{Peers, Wanted};
use parking_lot::Mutex;

use crate::registry::{Asked, Content, Wants, anonymous, image, pull, secret, serve};
use crate::support::Machine;
use crate::tests;

tests![
    layers_come_from_other_nodes_of_what_the_registry_allows,
    what_another_node_gives_is_verified
];

/// Another machine's images, and whether what it gives is spoiled on the way.
#[derive(Default)]
struct Other {
    images: Mutex<Option<Arc<Images>>>,
    asked: AtomicUsize,
    spoiled: bool,
}

impl std::fmt::Debug for Other {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Other")
    }
}

impl Peers for Other {
    fn get<'a>(
        &'a self,
        wanted: Wanted<'a>,
    ) -> BoxFuture<'a, Option<BoxStream<'static, std::io::Result<bytes::Bytes>>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let found = self
            .images
            .lock()
            .as_ref()
            .and_then(|images| images.archive(wanted.repository, wanted.digest).ok()?);
        let spoiled = self.spoiled;
        Box::pin(async move {
            let mut bytes = Vec::new();
            found?.read_to_end(&mut bytes).ok()?;
            if let Some(last) = bytes.last_mut().filter(|_| spoiled) {
                *last ^= 1;
            }
            Some(futures::stream::iter([Ok(bytes::Bytes::from(bytes))]).boxed())
        })
    }
}

/// A machine that has an image, and one that may ask it.
async fn two(registry: &str, other: Other) -> Result<(Machine, Machine, Arc<Other>)> {
    let first = Machine::with(|config| config.keep_archives = Some(1 << 30)).await?;
    first
        .cri
        .image
        .clone()
        .pull_image(pull(&format!("{registry}/a:1"), secret()))
        .await?;
    let other = Arc::new(other);
    *other.images.lock() = first.runtime.as_ref().map(|runtime| runtime.images().clone());
    let peers: Arc<dyn Peers> = other.clone();
    let second = Machine::with(|config| config.peers = Some(peers)).await?;
    Ok((first, second, other))
}

fn cut(content: &Content) {
    content.lock().retain(|path, _| !path.contains("/blobs/"));
}

async fn layers_come_from_other_nodes_of_what_the_registry_allows() -> Result<()> {
    let (content, asked) = (Content::default(), Asked::default());
    *content.lock() = image("/v2/a")?;
    content.lock().extend(image("/v2/b")?);
    let registry = serve(&content, &asked, Wants::Password).await?;
    let (_first, second, other) = two(&registry, Other::default()).await?;
    cut(&content);
    let mut client = second.cri.image.clone();
    let name = format!("{registry}/a:1");
    let refused = client.pull_image(anonymous(&name)).await.err().context("nobody may")?;
    ensure!(refused.code() == tonic::Code::PermissionDenied, "{refused}");
    ensure!(
        other.asked.load(Ordering::Relaxed) == 0,
        "others are asked before the registry has said yes"
    );
    client.pull_image(pull(&name, secret())).await?;
    ensure!(other.asked.load(Ordering::Relaxed) == 2, "configuration and layer");
    // The same content by another repository's name, which nobody has pulled there.
    let elsewhere = client.pull_image(pull(&format!("{registry}/b:1"), secret())).await;
    ensure!(
        elsewhere.is_err(),
        "a digest alone opened what was pulled from another repository"
    );
    Ok(())
}

async fn what_another_node_gives_is_verified() -> Result<()> {
    let (content, asked) = (Content::default(), Asked::default());
    *content.lock() = image("/v2/a")?;
    let registry = serve(&content, &asked, Wants::Password).await?;
    let spoiled = Other {
        spoiled: true,
        ..Other::default()
    };
    let (_first, second, other) = two(&registry, spoiled).await?;
    // What is spoiled is had from the registry, and without that not at all.
    let name = format!("{registry}/a:1");
    let mut client = second.cri.image.clone();
    let kept = content.lock().clone();
    cut(&content);
    ensure!(
        client.pull_image(pull(&name, secret())).await.is_err(),
        "spoiled content was taken"
    );
    *content.lock() = kept;
    client.pull_image(pull(&name, secret())).await?;
    ensure!(other.asked.load(Ordering::Relaxed) >= 3, "{other:?}");
    Ok(())
}
