//! What clients show of themselves ([`ClientTrust`]), and for which names their connections are.
//!
//! A name is asked for twice: in the hello, by which certificates are shown and asked for, and in each request. A request that another listener
//! than the hello's is for is sent back (421), so nobody comes by one listener's connection to what another one keeps for those it knows.

use super::Serving;
use super::certificates::{config, config_for, provider};
use crate::matching;
use crate::table::{ClientTrust, Port, TrustId};
use base64::prelude::{BASE64_STANDARD, Engine};
use http::HeaderValue;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ServerConnection, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Who is at the other end of a connection.
pub struct Client {
    pub remote: SocketAddr,
    /// As its hello had it.
    name: String,
    /// What it has shown, good or not, its own certificate first.
    chain: Vec<CertificateDer<'static>>,
    /// What was found of it last.
    found: Mutex<Option<Found>>,
}

#[derive(Clone)]
struct Found {
    by: TrustId,
    /// What backends are told of it (RFC 9440), if it is good.
    good: Option<HeaderValue>,
}

/// What comes of a request that is in the wrong place.
#[derive(Debug, PartialEq)]
pub enum Misdirected {
    /// Another connection may be the right one.
    Here,
    /// What is asked of clients has changed since this one was opened.
    Since,
}

impl Client {
    pub fn plain(remote: SocketAddr) -> Client {
        Client {
            remote,
            name: String::new(),
            chain: Vec::new(),
            found: Mutex::default(),
        }
    }

    pub fn secured(remote: SocketAddr, session: &ServerConnection) -> Client {
        let chain = session.peer_certificates().unwrap_or_default();
        Client {
            name: name(session.server_name()),
            chain: chain.iter().map(|one| one.clone().into_owned()).collect(),
            ..Client::plain(remote)
        }
    }
}

/// How sessions of a port are made.
pub struct Vetting {
    at: u16,
    serving: Arc<Serving>,
    /// Where nothing is asked for.
    open: Arc<ServerConfig>,
    known: Mutex<BTreeMap<TrustId, Vetted>>,
}

/// Each has sessions of its own: none is taken up again where something else is asked for.
#[derive(Clone)]
struct Vetted {
    config: Arc<ServerConfig>,
    good: Arc<dyn ClientCertVerifier>,
}

impl Vetting {
    pub fn new(serving: Arc<Serving>, at: u16) -> anyhow::Result<Vetting> {
        Ok(Vetting {
            at,
            open: config(serving.clone(), at, ALPN)?,
            serving,
            known: Mutex::default(),
        })
    }

    /// Where what is asked for can't be had, nothing is asked for, and no request let through by [`Vetting::admit`].
    pub fn config(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let port = self.serving.port(self.at);
        let asked = port.and_then(|port| {
            let trust = matching::listener(&port, &name(hello.server_name()))?.clients.clone()?;
            self.vetted(&port, &trust)
        });
        asked.map_or_else(|| self.open.clone(), |vetted| vetted.config)
    }

    /// Whether a request may come by this connection, and what backends are told of who sends it.
    pub fn admit(&self, client: &Client, port: &Port, host: &str) -> Result<Option<HeaderValue>, Misdirected> {
        let Some(asked) = matching::listener(port, host) else {
            return Ok(None);
        };
        if !matching::listener(port, &client.name).is_some_and(|own| std::ptr::eq(own, asked)) {
            return Err(Misdirected::Here);
        }
        let Some(trust) = &asked.clients else { return Ok(None) };
        match self.good(client, port, trust) {
            None if !trust.anybody => Err(Misdirected::Since),
            good => Ok(good),
        }
    }

    /// Held against what is asked for now, which may be another thing than when it shook hands: once for each.
    fn good(&self, client: &Client, port: &Port, trust: &ClientTrust) -> Option<HeaderValue> {
        let mut found = client.found.lock();
        if let Some(known) = found.as_ref().filter(|f| f.by == trust.id) {
            return known.good.clone();
        }
        let (own, rest) = client.chain.split_first()?;
        let vetted = self.vetted(port, trust)?;
        let is_good = vetted.good.verify_client_cert(own, rest, UnixTime::now()).is_ok();
        let header = || HeaderValue::try_from(format!(":{}:", BASE64_STANDARD.encode(own))).ok();
        let good = is_good.then(header).flatten();
        *found = Some(Found {
            by: trust.id,
            good: good.clone(),
        });
        good
    }

    fn vetted(&self, port: &Port, trust: &ClientTrust) -> Option<Vetted> {
        let mut known = self.known.lock();
        if let Some(vetted) = known.get(&trust.id) {
            return Some(vetted.clone());
        }
        known.retain(|id, _| {
            let mut all = port.listeners.iter().filter_map(|l| l.clients.as_ref());
            all.any(|c| c.id == *id)
        });
        let made = vetted(&self.serving, self.at, trust);
        let made = made.inspect_err(|e| {
            tracing::error!(
                error = format!("{e:#}"),
                "clients can't be held against their authorities"
            );
        });
        let made = made.ok()?;
        known.insert(trust.id, made.clone());
        Some(made)
    }
}

fn name(said: Option<&str>) -> String {
    said.unwrap_or_default().to_ascii_lowercase()
}

fn vetted(serving: &Arc<Serving>, at: u16, trust: &ClientTrust) -> anyhow::Result<Vetted> {
    let mut roots = RootCertStore::empty();
    for authority in trust.authorities.certificates.iter() {
        roots.add(authority.clone())?;
    }
    let good = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let shakes: Arc<dyn ClientCertVerifier> = match trust.anybody {
        true => Arc::new(Anybody(good.clone())),
        false => good.clone(),
    };
    Ok(Vetted {
        config: config_for(serving.clone(), at, ALPN, shakes)?,
        good,
    })
}

/// Asks for a certificate and takes whatever comes: whether it is good is seen later.
#[derive(Debug)]
struct Anybody(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client that has none of these is to show what it has.
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, shown, signed)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, shown, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
