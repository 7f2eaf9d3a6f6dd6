//! What kube-apiserver's flags say of requests, tokens and defaults; without flags it is as here.

use http::HeaderValue;
use keelson_registry::engine::EVENT_TTL;
use keelson_registry::resources::ServiceRanges;
use std::ops::RangeInclusive;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Serving {
    /// How long a request may take that is not long-running.
    pub request_timeout: Duration,
    /// Watches without `timeoutSeconds` last this long, and up to twice so.
    pub min_request_timeout: Duration,
    /// How long events are kept; `None`: for ever.
    pub event_ttl: Option<Duration>,
    /// Node ports of services.
    pub node_ports: RangeInclusive<u16>,
    /// By which of its addresses a node's kubelet is reached: the first type that it has.
    pub kubelet_address_types: Vec<String>,
    /// Tokens of service accounts last no longer; seconds.
    pub max_token_expiration: Option<i64>,
    /// A pod's token outlives a client that doesn't read it anew.
    pub extends_tokens: bool,
    /// By which host clients reach the server; `None`: by what they asked.
    pub external_host: Option<String>,
    /// `Strict-Transport-Security` of all answers.
    pub transport_security: Option<HeaderValue>,
}

impl Default for Serving {
    fn default() -> Self {
        // As kubeadm sets it; a name may not resolve where the server runs.
        let types = ["InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS"];
        Serving {
            request_timeout: Duration::from_secs(60),
            min_request_timeout: Duration::from_secs(1800),
            event_ttl: Some(EVENT_TTL),
            node_ports: ServiceRanges::default().node_ports,
            kubelet_address_types: types.map(Into::into).to_vec(),
            max_token_expiration: None,
            extends_tokens: true,
            external_host: None,
            transport_security: None,
        }
    }
}
