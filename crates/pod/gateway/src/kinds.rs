//! The kinds of `gateway.networking.k8s.io/v1`, as far as they are honoured here. They are custom resources: objects are changed by
//! patches of their statuses and never written as a whole.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

pub const GROUP: &str = "gateway.networking.k8s.io";

macro_rules! fields {
    ($(#[$about:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $(#[serde(skip_serializing_if = "nothing")] pub $field: $ty,)*
        }
    };
}

/// Whether a field says nothing, and so isn't written.
fn nothing<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

macro_rules! custom {
    ($($ty:ident, $spec:ty, $status:ty, $plural:literal, $namespaced:literal;)*) => {$(
        fields!($ty { metadata: ObjectMeta, spec: $spec, status: $status, });
        keelson_client::custom_kinds! { $ty, GROUP, "v1", stringify!($ty), $plural, $namespaced; }
    )*};
}

custom! {
    GatewayClass, ClassSpec, ClassStatus, "gatewayclasses", false;
    Gateway, GatewaySpec, GatewayStatus, "gateways", true;
    HTTPRoute, RouteSpec, RouteStatus, "httproutes", true;
    GRPCRoute, RouteSpec, RouteStatus, "grpcroutes", true;
    TLSRoute, RouteSpec, RouteStatus, "tlsroutes", true;
    TCPRoute, RouteSpec, RouteStatus, "tcproutes", true;
    UDPRoute, RouteSpec, RouteStatus, "udproutes", true;
    ListenerSet, SetSpec, SetStatus, "listenersets", true;
    BackendTLSPolicy, PolicySpec, PolicyStatus, "backendtlspolicies", true;
    ReferenceGrant, GrantSpec, (), "referencegrants", true;
}

/// What all kinds of routes have.
pub trait Route: keelson_client::Kind {
    fn spec(&self) -> &RouteSpec;
    fn status(&self) -> &RouteStatus;
}

macro_rules! routes {
    ($($ty:ident),*) => {$(
        impl Route for $ty {
            fn spec(&self) -> &RouteSpec {
                &self.spec
            }
            fn status(&self) -> &RouteStatus {
                &self.status
            }
        }
    )*};
}

routes!(HTTPRoute, GRPCRoute, TLSRoute, TCPRoute, UDPRoute);

fields!(ClassSpec {
    controller_name: String,
    parameters_ref: Option<serde_json::Value>,
});
fields!(ClassStatus {
    conditions: Vec<Condition>,
    supported_features: Vec<Feature>,
});
fields!(Feature { name: String });

fields!(GatewaySpec {
    gateway_class_name: String,
    listeners: Vec<Listener>,
    addresses: Vec<Address>,
    infrastructure: Option<Infrastructure>,
    allowed_listeners: Option<AllowedListeners>,
    tls: Option<GatewayTls>,
});
fields!(
    /// For what is made on behalf of a Gateway.
    Infrastructure {
        labels: std::collections::BTreeMap<String, String>,
        annotations: std::collections::BTreeMap<String, String>,
        parameters_ref: Option<serde_json::Value>,
    }
);
fields!(GatewayTls {
    backend: Option<BackendTls>,
    frontend: Option<FrontendTls>,
});
fields!(BackendTls {
    client_certificate_ref: Option<Reference>,
});
fields!(FrontendTls {
    default: PortTls,
    per_port: Vec<TlsOfPort>,
});
fields!(TlsOfPort {
    port: i32,
    tls: PortTls,
});
fields!(PortTls {
    validation: Option<ClientValidation>,
});
fields!(
    /// Of clients' certificates.
    ClientValidation {
        ca_certificate_refs: Vec<Reference>,
        mode: Option<String>,
    }
);
fields!(AllowedListeners {
    namespaces: Option<FromNamespaces>,
});
fields!(
    /// Listeners that somebody else adds to a Gateway.
    SetSpec {
        parent_ref: ParentRef,
        listeners: Vec<Listener>,
    }
);
fields!(SetStatus {
    conditions: Vec<Condition>,
    listeners: Vec<ListenerStatus>,
});
fields!(Address {
    r#type: Option<String>,
    value: Option<String>,
});
fields!(Listener {
    name: String,
    hostname: Option<String>,
    port: i32,
    protocol: String,
    tls: Option<ListenerTls>,
    allowed_routes: Option<AllowedRoutes>,
});
fields!(ListenerTls {
    mode: Option<String>,
    certificate_refs: Vec<Reference>,
    options: std::collections::BTreeMap<String, String>,
});
fields!(AllowedRoutes {
    namespaces: Option<FromNamespaces>,
    kinds: Vec<RouteKind>,
});
fields!(FromNamespaces {
    from: Option<String>,
    selector: Option<LabelSelector>,
});
fields!(RouteKind {
    group: Option<String>,
    kind: String,
});
fields!(
    /// To an object of another kind.
    Reference {
        group: Option<String>,
        kind: Option<String>,
        namespace: Option<String>,
        name: String,
        port: Option<i32>,
        weight: Option<i32>,
        filters: Vec<Filter>,
    }
);
fields!(GatewayStatus {
    addresses: Vec<Address>,
    conditions: Vec<Condition>,
    listeners: Vec<ListenerStatus>,
    attached_listener_sets: Option<i32>,
});
fields!(ListenerStatus {
    name: String,
    supported_kinds: Vec<RouteKind>,
    attached_routes: i32,
    conditions: Vec<Condition>,
});

fields!(
    /// Of all kinds of routes: what several have is meant alike.
    RouteSpec {
        parent_refs: Vec<ParentRef>,
        hostnames: Vec<String>,
        rules: Option<Vec<Rule>>,
    }
);
fields!(ParentRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<i32>,
});
fields!(Rule {
    name: Option<String>,
    matches: Vec<Match>,
    filters: Vec<Filter>,
    backend_refs: Vec<Reference>,
    timeouts: Option<Timeouts>,
    retry: Option<serde_json::Value>,
    session_persistence: Option<serde_json::Value>,
});
fields!(Match {
    path: Option<ValueMatch>,
    headers: Vec<ValueMatch>,
    query_params: Vec<ValueMatch>,
    method: Option<MethodMatch>,
});
fields!(ValueMatch {
    r#type: Option<String>,
    name: String,
    value: String,
});

/// An HTTP method, or a method of a gRPC service.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum MethodMatch {
    Http(String),
    Grpc {
        #[serde(default)]
        r#type: Option<String>,
        #[serde(default)]
        service: Option<String>,
        #[serde(default)]
        method: Option<String>,
    },
}

fields!(Filter {
    r#type: String,
    request_header_modifier: Option<HeaderModifier>,
    response_header_modifier: Option<HeaderModifier>,
    request_mirror: Option<Mirror>,
    request_redirect: Option<Redirect>,
    url_rewrite: Option<Rewrite>,
    cors: Option<Cors>,
});
fields!(Cors {
    allow_origins: Vec<String>,
    allow_credentials: Option<bool>,
    allow_methods: Vec<String>,
    allow_headers: Vec<String>,
    expose_headers: Vec<String>,
    max_age: Option<i32>,
});
fields!(HeaderModifier {
    set: Vec<ValueMatch>,
    add: Vec<ValueMatch>,
    remove: Vec<String>,
});
fields!(Mirror {
    backend_ref: Reference,
    percent: Option<i32>,
    fraction: Option<Fraction>,
});
fields!(Fraction {
    numerator: i32,
    denominator: Option<i32>,
});
fields!(Redirect {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<PathModifier>,
    port: Option<i32>,
    status_code: Option<u16>,
});
fields!(Rewrite {
    hostname: Option<String>,
    path: Option<PathModifier>,
});
fields!(PathModifier {
    r#type: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
});
fields!(Timeouts {
    request: Option<String>,
    backend_request: Option<String>,
});
fields!(RouteStatus { parents: Vec<ParentStatus>, });
fields!(ParentStatus {
    parent_ref: ParentRef,
    controller_name: String,
    conditions: Vec<Condition>,
});
fields!(PolicySpec {
    target_refs: Vec<TargetRef>,
    validation: Validation,
    options: std::collections::BTreeMap<String, String>,
});
fields!(TargetRef {
    group: String,
    kind: String,
    name: String,
    section_name: Option<String>,
});
/// Of a backend's certificate.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Validation {
    #[serde(rename = "caCertificateRefs")]
    pub ca_certificate_refs: Vec<Reference>,
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<String>,
    pub hostname: String,
    pub subject_alt_names: Vec<AltName>,
}
fields!(AltName {
    r#type: String,
    hostname: String,
    uri: String,
});
fields!(PolicyStatus {
    ancestors: Vec<AncestorStatus>,
});
fields!(AncestorStatus {
    ancestor_ref: ParentRef,
    controller_name: String,
    conditions: Vec<Condition>,
});
fields!(GrantSpec {
    from: Vec<GrantFrom>,
    to: Vec<GrantTo>,
});
fields!(GrantFrom {
    group: String,
    kind: String,
    namespace: String,
});
fields!(GrantTo {
    group: String,
    kind: String,
    name: Option<String>,
});
