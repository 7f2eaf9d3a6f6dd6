//! The way to kubelets for a component that asks them itself: their own port, and a certificate that says who asks.
//!
//! The certificate is made here and stays in memory. A kubelet judges by it what may be asked, like anybody's: by the API.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt, Limited};
use keelson_apiserver::Body;
use keelson_apiserver::connect::{ClientTls, Target, Trust};
use keelson_metrics::{Address, Kubelets, MOST_BYTES};
use keelson_pki::{CertSpec, Current};
use parking_lot::Mutex;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;

/// Of a certificate. Half of it later another one is made.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

pub struct AsSomebody {
    pki: Current,
    name: String,
    group: Option<&'static str>,
    /// Unix seconds until which it is used, and by which authorities it was made.
    tls: Mutex<Option<(Arc<ClientConfig>, i64, String)>>,
}

impl AsSomebody {
    pub fn new(pki: Current, name: &str) -> AsSomebody {
        AsSomebody {
            pki,
            name: name.to_owned(),
            group: None,
            tls: Mutex::default(),
        }
    }

    /// As a node of this cluster.
    pub fn node(pki: Current, node: &str) -> AsSomebody {
        AsSomebody {
            group: Some(keelson_pki::layout::NODES_GROUP),
            ..AsSomebody::new(pki, &format!("system:node:{node}"))
        }
    }

    pub fn tls(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let (mut kept, pki) = (self.tls.lock(), self.pki.get());
        let trusted = pki.ca.bundle_pem();
        let (now, half) = (keelson_clock::now().as_second(), LIFETIME.as_secs() as i64 / 2);
        // A clock that was set back leaves none that is from the future.
        if let Some((tls, until, by)) = &*kept
            && *by == trusted
            && (now..now + half).contains(&(until - 1))
        {
            return Ok(tls.clone());
        }
        let issued = pki.ca.issue(&CertSpec {
            lifetime: LIFETIME,
            ..CertSpec::client(&self.name, self.group)
        })?;
        let (trust, shown) = (Trust::of_kubelets(Some(&trusted)), pki.ca.chain(&issued.cert_pem));
        let tls = ClientTls::config(trust, Some((&shown, &issued.key_pem)))?;
        *kept = Some((tls.clone(), now + half, trusted));
        Ok(tls)
    }

    async fn ask(&self, kubelet: Address, path: &'static str) -> anyhow::Result<Bytes> {
        let Address { host, port } = kubelet;
        let tls = ClientTls::to(self.tls()?, &host)?;
        let address = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let target = Target {
            host: address.clone(),
            address,
            tls: Some(tls),
        };
        let answer = target.send(Request::get(path).body(Body::empty())?).await?;
        anyhow::ensure!(answer.status().is_success(), "the kubelet answers {}", answer.status());
        let whole = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        Ok(whole.map_err(|e| anyhow::anyhow!(e))?.to_bytes())
    }
}

impl Kubelets for AsSomebody {
    fn get(&self, kubelet: Address, path: &'static str) -> BoxFuture<'_, Result<Bytes, String>> {
        async move { self.ask(kubelet, path).await.map_err(|e| format!("{e:#}")) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_apiserver::serve::tls::{self, ServingCert};
    use keelson_pki::Pki;
    use keelson_pki::x509::Certificate;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// One that answers each connection with so many bytes, and tells who asked.
    async fn kubelet(pki: &Pki, bytes: usize) -> (Address, tokio::sync::mpsc::Receiver<String>) {
        let own = pki.kubelet_server("n", &[Ipv4Addr::LOCALHOST.into()]).unwrap();
        let cert = ServingCert::new(&own.cert_pem, &own.key_pem).unwrap();
        let config = tls::server_config(cert, &tls::roots(pki.ca.cert_pem()).unwrap()).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = Address {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
        };
        let (tell, told) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
                let name = Certificate::from_der(&shown).unwrap().subject.common_name;
                let _ = tell.send(name).await;
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&vec![b'\n'; bytes]).await;
                let _ = stream.shutdown().await;
            }
        });
        (address, told)
    }

    #[tokio::test]
    async fn a_kubelet_is_told_who_asks_and_may_say_so_much() {
        let directory = |name: &str| std::env::temp_dir().join(format!("keelson-{name}-{}", std::process::id()));
        let (own, other) = (directory("kubelets"), directory("strangers"));
        let pki = Pki::open(&own).unwrap();
        let way = AsSomebody::new(
            Current::new(Pki::open(&own).unwrap()),
            "system:serviceaccount:kube-system:keelson-metrics",
        );
        let (address, mut told) = kubelet(&pki, MOST_BYTES).await;
        let said = way.get(address, "/metrics/resource").await.unwrap();
        assert_eq!(said.len(), MOST_BYTES);
        assert_eq!(
            told.recv().await.as_deref(),
            Some("system:serviceaccount:kube-system:keelson-metrics")
        );
        let (address, _told) = kubelet(&pki, MOST_BYTES + 1).await;
        let flooded = way.get(address, "/metrics/resource").await.unwrap_err();
        assert!(flooded.contains("limit"), "{flooded}");

        // Whoever has an address of a node's but not its certificate learns nothing.
        let strangers = Pki::open(&other).unwrap();
        let (address, mut told) = kubelet(&strangers, 1).await;
        let refused = way.get(address, "/metrics/resource").await.unwrap_err();
        assert!(refused.contains("certificate"), "{refused}");
        assert!(told.try_recv().is_err());
        for directory in [own, other] {
            std::fs::remove_dir_all(directory).unwrap();
        }
    }
}
