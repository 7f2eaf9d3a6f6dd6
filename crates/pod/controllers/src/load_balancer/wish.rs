//! What a service wants of a pool: its object as plain facts.

use super::plan;
use super::ports::Port;
use k8s_openapi::api::core::v1::Service;
use keelson_balancing::{POOL_CLASS, ingress, is_local};
use keelson_client::ApiObject;
use keelson_client::labels::Labels;
use std::net::IpAddr;

/// Asks for addresses, with commas between them.
pub const ADDRESSES: &str = "keelson.dev/load-balancer-ips";
/// Asks for a pool by name.
pub const POOL: &str = "keelson.dev/load-balancer-pool";
/// Services with the same value may have one address, if their ports and traffic policies let them.
pub const SHARING: &str = "keelson.dev/allow-shared-ip";

/// Of which families a service needs addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub v6_first: bool,
    /// Of both.
    pub both: bool,
    /// One will do.
    pub either: bool,
}

impl Families {
    fn of(service: &Service) -> Families {
        let spec = service.spec.as_ref();
        let families = spec.and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
        Families {
            v6_first: families.first().is_some_and(|f| f == "IPv6"),
            both: families.len() > 1,
            either: spec.and_then(|s| s.ip_family_policy.as_deref()) == Some("PreferDualStack"),
        }
    }

    /// Whether these addresses are what is wanted.
    pub fn fit(&self, addresses: &[IpAddr]) -> bool {
        match addresses {
            [_] if self.both => self.either,
            [one] => one.is_ipv6() == self.v6_first,
            [one, other] => self.both && one.is_ipv6() != other.is_ipv6(),
            _ => false,
        }
    }
}

/// Who uses an address, and whom beside them they bear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `namespace/name`
    pub key: String,
    pub ports: Vec<Port>,
    /// What its status says that it has, while it may want others already.
    pub held: Vec<Port>,
    /// Empty: nobody.
    pub sharing: String,
    /// Traffic that stays local has to go to the same pods, as the address is on one node: those of this namespace and selector.
    pub backend: Option<String>,
}

impl User {
    pub fn of(service: &Service) -> User {
        let spec = service.spec.as_ref();
        let selector = spec.and_then(|s| s.selector.as_ref()).into_iter().flatten();
        let backend = || {
            let selected: Vec<String> = selector.map(|(key, value)| format!("{key}={value}")).collect();
            format!("{}/{}", service.namespace(), selected.join(","))
        };
        let held = ingress(service).flat_map(|i| i.ports.iter().flatten());
        User {
            key: service.key().to_string(),
            ports: plan::ports(service),
            held: held.map(|p| Port::new(&p.protocol, p.port)).collect(),
            sharing: annotation(service, SHARING).unwrap_or_default().to_string(),
            backend: is_local(service).then(backend),
        }
    }
}

/// What a service wants of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    pub user: User,
    pub families: Families,
    /// Addresses that are asked for; none: any.
    pub addresses: Vec<IpAddr>,
    pub pool: Option<String>,
    pub labels: Option<Labels>,
    pub namespace: Option<Labels>,
    /// What it has, from wherever.
    pub has: Vec<IpAddr>,
}

impl Wish {
    /// `Err`: nobody could honour it.
    pub fn of(service: &Service, namespace: Option<&Labels>) -> Result<Wish, String> {
        let families = Families::of(service);
        let addresses = asked(service)?;
        if !addresses.is_empty() && !families.fit(&addresses) {
            return Err(format!(
                "requested loadBalancer IP(s) {addresses:?} does not match the ipFamily of the service"
            ));
        }
        Ok(Wish {
            user: User::of(service),
            families,
            addresses,
            pool: annotation(service, POOL).map(str::to_string),
            labels: service.metadata.labels.clone(),
            namespace: namespace.cloned(),
            has: has(service),
        })
    }
}

/// The addresses in its status.
pub fn has(service: &Service) -> Vec<IpAddr> {
    ingress(service).filter_map(|i| i.ip.as_deref()?.parse().ok()).collect()
}

/// Whether only a pool would do.
pub fn names_a_pool(service: &Service) -> bool {
    let class = service.spec.as_ref().and_then(|s| s.load_balancer_class.as_deref());
    class == Some(POOL_CLASS) || annotation(service, POOL).is_some() || annotation(service, ADDRESSES).is_some()
}

fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    let value = service.metadata.annotations.as_ref()?.get(name)?;
    Some(value.as_str()).filter(|value| !value.is_empty())
}

fn asked(service: &Service) -> Result<Vec<IpAddr>, String> {
    let field = service
        .spec
        .as_ref()
        .and_then(|s| s.load_balancer_ip.as_deref())
        .unwrap_or_default();
    let said = match annotation(service, ADDRESSES) {
        Some(_) if !field.is_empty() => {
            return Err(format!(
                "service can not have both {ADDRESSES} and svc.Spec.LoadBalancerIP"
            ));
        }
        Some(said) => said,
        None if field.is_empty() => return Ok(Vec::new()),
        None => field,
    };
    let read = |text: &str| {
        text.trim()
            .parse::<IpAddr>()
            .map_err(|_| format!("invalid requested loadbalancer IPs: {said:?}"))
    };
    said.split(',').map(read).collect()
}
