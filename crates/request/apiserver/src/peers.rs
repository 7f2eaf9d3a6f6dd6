//! The rest of the control plane, for `componentstatuses`: who runs in this process is known to be well or not, who runs beside
//! it is asked at its port of this machine, as upstream asks it.

use crate::connect::{ClientTls, Target, Trust};
use crate::request::Body;
use anyhow::Result;
use http::{StatusCode, header};
use http_body_util::{BodyExt, Limited};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(20);
/// The most of an answer that is told.
const MAX_BYTES: usize = 10 << 10;

/// Where a component is.
#[derive(Clone)]
pub enum Place {
    /// In this process, which knows whether it is well.
    Here(Arc<dyn Fn() -> bool + Send + Sync>),
    /// Behind TLS; nobody vouches for its certificate, and nothing is told there.
    At(SocketAddr),
}

/// A component by upstream's name.
#[derive(Clone)]
pub struct Peer {
    pub name: &'static str,
    pub place: Place,
}

impl Peer {
    /// Both of them, where upstream's listen.
    pub fn beside() -> Vec<Peer> {
        let at = |name, port| Peer {
            name,
            place: Place::At(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        };
        vec![at("controller-manager", 10257), at("scheduler", 10259)]
    }

    /// What it says when it is well, or why it isn't.
    pub async fn ask(&self) -> Result<String, String> {
        match &self.place {
            Place::Here(well) if well() => Ok("ok".into()),
            Place::Here(_) => Err(format!("{} has failed, and will be started again", self.name)),
            Place::At(address) => {
                let url = format!("https://{address}/healthz");
                let failed = |why: String| format!("Get \"{url}\": {why}");
                match tokio::time::timeout(WITHIN, healthz(*address)).await {
                    Ok(Ok((code, said))) if code.is_success() => Ok(said),
                    Ok(Ok((code, _))) => Err(format!("HTTP probe failed with statuscode: {}", code.as_u16())),
                    Ok(Err(e)) => Err(failed(why(&e, *address))),
                    Err(_) => Err(failed("context deadline exceeded".into())),
                }
            }
        }
    }
}

fn why(error: &anyhow::Error, address: SocketAddr) -> String {
    let mut causes = error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>());
    match causes.any(|e| e.kind() == ErrorKind::ConnectionRefused) {
        true => format!("dial tcp {address}: connect: connection refused"),
        false => format!("{error:#}"),
    }
}

async fn healthz(address: SocketAddr) -> Result<(StatusCode, String)> {
    let tls = ClientTls::to(ClientTls::config(Trust::Anyone, None)?, &address.ip().to_string())?;
    let target = Target {
        address: address.to_string(),
        host: address.to_string(),
        tls: Some(tls),
    };
    let request = http::Request::get("/healthz")
        .header(header::USER_AGENT, concat!("keelson/", env!("CARGO_PKG_VERSION")))
        .body(Body::from(Vec::new()))?;
    let (head, body) = target.send(request).await?.into_parts();
    let body = Limited::new(body, MAX_BYTES).collect().await;
    let body = body.map_err(|e| anyhow::anyhow!(e))?.to_bytes();
    Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
}
