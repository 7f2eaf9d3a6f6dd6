//! Layers of images from node to node (`--image-peers`).
//!
//! Between runtime and kubelet, which know nothing of each other here: the runtime asks for what it wants and keeps what it had
//! ([`keelson_runtime::images::archives`]), the kubelet gives it to other nodes by its own port
//! ([`keelson_kubelet::Archives`]), and this finds those nodes by what Nodes say of their images. A node that doesn't answer at once, or
//! breaks off or crawls while it sends, is not asked again for a while; what none has comes from its registry.

mod choose;

use choose::{Neighbour, choose, only_what_counts};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use http::Request;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use k8s_openapi::api::core::v1::Node;
use keelson_apiserver::Body;
use keelson_apiserver::connect::{ClientTls, Target};
use keelson_client::{Informer, InformerOptions, Rest};
use keelson_runtime::images::Images;
use keelson_runtime::images::archives::{Peers, Wanted};
use parking_lot::Mutex;
use rustls::ClientConfig;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const PATH: &str = "/imageArchives";
/// Until the beginning of an answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two pieces.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes a second in the mean, after the first [`SILENCE`]: a registry is no slower.
const SLOWEST: u64 = 64 << 10;
/// For how long a node isn't asked that didn't answer.
const RESTED: Duration = Duration::from_secs(60);

/// By which this node proves itself to others, as it is now.
pub type Proof = Arc<dyn Fn() -> anyhow::Result<Arc<ClientConfig>> + Send + Sync>;

/// Nodes that aren't asked, and until when.
type Resting = Arc<Mutex<HashMap<String, Instant>>>;

pub struct Neighbours {
    own: String,
    nodes: Informer<Node>,
    proof: Proof,
    resting: Resting,
    _stop: tokio_util::sync::DropGuard,
}

impl fmt::Debug for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbours")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Neighbours {
    /// `client` reads nodes.
    pub fn new(client: kube::Client, own: &str, proof: Proof) -> Arc<Neighbours> {
        let stop = CancellationToken::new();
        let options = InformerOptions {
            transform: only_what_counts,
            ..InformerOptions::default()
        };
        Arc::new(Neighbours {
            own: own.to_owned(),
            nodes: Informer::start(&Rest::new(client, "keelson-image-peers"), options, &stop),
            proof,
            resting: Resting::default(),
            _stop: stop.drop_guard(),
        })
    }

    fn is_usable(&self, name: &str) -> bool {
        let mut resting = self.resting.lock();
        resting.retain(|_, until| *until > Instant::now());
        name != self.own && !resting.contains_key(name)
    }

    async fn ask(&self, node: &Neighbour, wanted: &Wanted<'_>) -> anyhow::Result<Option<Incoming>> {
        let address = match node.host.contains(':') {
            true => format!("[{}]:{}", node.host, node.port),
            false => format!("{}:{}", node.host, node.port),
        };
        let target = Target {
            host: address.clone(),
            address,
            tls: Some(ClientTls::to((self.proof)()?, &node.host)?),
        };
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("repository", wanted.repository)
            .append_pair("digest", wanted.digest)
            .finish();
        let request = Request::get(format!("{PATH}?{query}")).body(Body::empty())?;
        let answer = timeout(ANSWER, target.send(request)).await??;
        match answer.status().as_u16() {
            200 => Ok(Some(answer.into_body())),
            404 => Ok(None),
            other => anyhow::bail!("it answers {other}"),
        }
    }
}

impl Peers for Neighbours {
    fn get<'a>(&'a self, wanted: Wanted<'a>) -> BoxFuture<'a, Option<BoxStream<'static, io::Result<Bytes>>>> {
        async move {
            let nodes = self.nodes.store().list();
            for node in choose(&nodes, wanted.image, |name| self.is_usable(name)) {
                match self.ask(&node, &wanted).await {
                    Ok(Some(body)) => return Some(pieces(body, node.name, self.resting.clone())),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(
                            node = node.name,
                            error = format!("{error:#}"),
                            "a node isn't asked for images for a while"
                        );
                        self.resting.lock().insert(node.name, Instant::now() + RESTED);
                    }
                }
            }
            None
        }
        .boxed()
    }
}

/// What a node sends. Who breaks off isn't asked for the rest either.
fn pieces(body: Incoming, node: String, resting: Resting) -> BoxStream<'static, io::Result<Bytes>> {
    let state = (body, 0_u64, Instant::now());
    stream::try_unfold(state, |(mut body, mut came, began)| async move {
        loop {
            let frame = timeout(SILENCE, body.frame())
                .await
                .map_err(|_| io::Error::other("the node fell silent"))?;
            match frame.transpose().map_err(io::Error::other)? {
                None => return Ok(None),
                Some(frame) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    came += piece.len() as u64;
                    if is_too_slow(came, began.elapsed()) {
                        return Err(io::Error::other("the node sends too slowly"));
                    }
                    return Ok(Some((piece, (body, came, began))));
                }
            }
        }
    })
    .inspect_err(move |_| {
        resting.lock().insert(node.clone(), Instant::now() + RESTED);
    })
    .boxed()
}

fn is_too_slow(came: u64, after: Duration) -> bool {
    came < after.saturating_sub(SILENCE).as_secs().saturating_mul(SLOWEST)
}

/// What this node's runtime keeps, for its kubelet to give.
pub struct Kept(pub Arc<Images>);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl keelson_kubelet::Archives for Kept {
    fn open(&self, repository: &str, digest: &str) -> io::Result<Option<File>> {
        self.0.archive(repository, digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_crawls_is_left() {
        let after = Duration::from_secs;
        assert!(!is_too_slow(1, after(10)));
        assert!(is_too_slow(100, after(20)));
        assert!(!is_too_slow(10 * SLOWEST, after(20)));
    }
}
