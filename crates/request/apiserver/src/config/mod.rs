//! What an API server is told at its start.

pub mod file;
mod serving;

use crate::audit::{self, Policy};
use crate::authorities::Succession;
use crate::joining::Joining;
use crate::peers::Peer;
use crate::serve::tls::Offer;
use crate::snapshots::Take;
use crate::upgrades::Upgrades;
use crate::{admission, authn, authz};
use keelson_measure::Measures;
use keelson_past::History;
use keelson_pki::ServiceAccountKeys;
use keelson_seal::Sealing;
use keelson_zpages::Flags;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

pub use serving::Serving;

/// The configuration of an [`crate::ApiServer`].
pub struct Config {
    /// The address clients and pods reach the server at; stands in the Endpoints of the service `kubernetes`.
    pub advertise_address: IpAddr,
    pub advertise_port: u16,
    /// The ranges of services, one a family, the primary one first, whose first address is that of the service `kubernetes`.
    pub service_cidrs: Vec<ipnet::IpNet>,
    /// `ServiceCIDR`'s and the service's further ranges come from the API.
    pub cluster_domain: String,
    /// Issuer and audience of service-account tokens.
    pub issuer: String,
    /// Whose tokens are taken besides, with the same keys.
    pub former_issuers: Vec<String>,
    pub api_audiences: Vec<String>,
    pub jwks_uri: String,
    pub service_account_keys: Arc<ServiceAccountKeys>,
    /// Authority of client certificates, in PEM.
    pub client_ca_pem: String,
    /// Authority of front proxies, and the certificate by which this server is one.
    pub front_proxy_ca_pem: Option<String>,
    pub front_proxy_client: Option<(String, String)>,
    pub front_proxy_names: Vec<String>,
    /// By which who knows only a former authority comes to know the present one, or the next.
    pub introductions: String,
    /// Who makes the steps of authorities; `None`: nobody.
    pub authorities: Option<Arc<dyn Succession>>,
    /// The certificate by which kubelets know this server, and the authority of theirs (`None`: any is taken).
    pub kubelet_client: Option<(String, String)>,
    pub kubelet_ca_pem: Option<String>,
    /// Who else is believed, and who may come unknown.
    pub authentication: authn::Settings,
    /// Who decides what users may do.
    pub authorization: authz::Settings,
    /// Which plug-ins of admission run, and how.
    pub admission: admission::Settings,
    /// Requests served at once (upstream: 400 reading and 200 writing).
    pub max_requests_in_flight: usize,
    pub serving: Serving,
    /// What of TLS is offered to clients.
    pub tls: Offer,
    /// What the audit log takes in, and where it is; `None`: there is none.
    pub audit: Option<(Policy, audit::Settings)>,
    /// What seals the values of the server's store, which is [`Sealing::store`] then.
    pub sealing: Option<Arc<Sealing>>,
    /// Knows what the objects of the server's store were; `None`: nobody does.
    pub history: Option<Arc<History>>,
    /// How other machines become servers of the cluster; `None`: they don't.
    pub joining: Option<Joining>,
    /// Takes a snapshot of the store; `None`: none are taken.
    pub snapshots: Option<Take>,
    /// Takes a picture for a backup; `None`: none are taken.
    pub pictures: Option<Take>,
    /// Keeps what machines are asked in an upgrade of all, and the programs; `None`: nobody does.
    pub upgrades: Option<Arc<dyn Upgrades>>,
    /// The rest of the control plane.
    pub peers: Vec<Peer>,
    /// The machine's name, by which the server has a Lease of its own; `None`: it has none.
    pub host: Option<String>,
    /// Whether this server's address goes into the Endpoints of the service `kubernetes`.
    pub publish_kubernetes_service: bool,
    /// Nobody else is asked by it: no nodes, pods, webhooks or extension servers. For a copy of a cluster, whose objects lead to what the cluster itself has.
    pub alone: bool,
    /// What the program was told, for `/flagz`; `None`: that isn't served.
    pub flags: Option<Arc<Flags>>,
    /// Tells what is done for requests, step by step.
    pub tracer: keelson_trace::Tracer,
    /// What is measured, here and by whatever else is told on this server's page.
    pub measures: Measures,
}

impl Config {
    /// A configuration for the given cluster: keys and certificates from its `pki` directory.
    pub fn from_pki(pki: keelson_pki::Pki) -> anyhow::Result<Self> {
        let kubelet = pki.apiserver_kubelet_client()?;
        let proxy = pki.front_proxy_client()?;
        Ok(Config {
            client_ca_pem: pki.ca.bundle_pem(),
            introductions: pki.introductions()?,
            front_proxy_ca_pem: Some(pki.front_proxy_ca.bundle_pem()),
            front_proxy_client: Some((proxy.cert_pem, proxy.key_pem)),
            kubelet_client: Some((kubelet.cert_pem, kubelet.key_pem)),
            ..Self::new(pki.service_account)
        })
    }

    /// Defaults, with the given keys and no authorities.
    pub fn new(service_account_keys: ServiceAccountKeys) -> Self {
        let issuer = "https://kubernetes.default.svc.cluster.local";
        Config {
            advertise_address: Ipv4Addr::LOCALHOST.into(),
            advertise_port: 6443,
            service_cidrs: vec![ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16).into()],
            cluster_domain: "cluster.local".into(),
            issuer: issuer.into(),
            former_issuers: Vec::new(),
            api_audiences: vec![issuer.into()],
            jwks_uri: format!("{issuer}/openid/v1/jwks"),
            service_account_keys: Arc::new(service_account_keys),
            client_ca_pem: String::new(),
            front_proxy_ca_pem: None,
            front_proxy_client: None,
            introductions: String::new(),
            authorities: None,
            front_proxy_names: vec!["front-proxy-client".into()],
            kubelet_client: None,
            kubelet_ca_pem: None,
            authentication: authn::Settings::default(),
            authorization: authz::Settings::default(),
            admission: admission::Settings::default(),
            max_requests_in_flight: 600,
            serving: Serving::default(),
            tls: Offer::default(),
            audit: None,
            sealing: None,
            history: None,
            joining: None,
            snapshots: None,
            pictures: None,
            upgrades: None,
            peers: Peer::beside(),
            host: None,
            publish_kubernetes_service: true,
            alone: false,
            flags: None,
            tracer: keelson_trace::Tracer::none(),
            measures: Measures::default(),
        }
    }

    /// By what metrics tell servers apart.
    pub fn id(&self) -> String {
        format!("apiserver-{}:{}", self.advertise_address, self.advertise_port)
    }

    /// Whose tokens of service accounts are taken; the first issues them. No other issuer may claim to be one of them.
    pub fn issuers(&self) -> Vec<String> {
        [std::slice::from_ref(&self.issuer), &self.former_issuers].concat()
    }

    /// Where clients are told that the server is, if somebody said so.
    pub fn external_address(&self) -> Option<String> {
        let host = self.serving.external_host.as_ref()?;
        Some(crate::connect::join(host, self.advertise_port))
    }

    /// The address of the service `kubernetes`.
    pub fn kubernetes_service_ip(&self) -> IpAddr {
        // The first address of an IPv6 range is no host's either, though it could be.
        let first = |range: &ipnet::IpNet| range.hosts().find(|ip| *ip != range.network());
        self.service_cidrs
            .first()
            .and_then(first)
            .unwrap_or(self.advertise_address)
    }
}
