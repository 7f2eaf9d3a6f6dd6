//! BackendTLSPolicies: which services are reached by TLS, and what their pods have to show.
//!
//! One for a port goes before one for a whole service; of several for the same the oldest counts, and the rest are told so. Where the one that
//! counts can't be honoured, nothing is sent: not without TLS either.

use super::services::Passing;
use super::status::Told;
use super::{Plan, World, created};
use crate::kinds::{BackendTLSPolicy, Validation};
use crate::table::{AltName, Authorities, Trust};
use keelson_client::{ApiObject, ObjectKey};
use rustls_pki_types::ServerName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A service, or a port of it by name.
type Target = (ObjectKey, Option<String>);

pub struct Policies {
    meant: BTreeMap<ObjectKey, Meant>,
    /// The one that counts first.
    targets: BTreeMap<Target, Vec<ObjectKey>>,
}

/// A policy as it is meant, whoever it is for.
struct Meant {
    trust: Option<Arc<Trust>>,
    authorities: BTreeSet<ObjectKey>,
    accepted: Told,
    resolved: Told,
}

/// What is for a service's port.
pub struct Found<'a> {
    /// `None`: what is asked for can't be honoured.
    pub trust: Option<&'a Arc<Trust>>,
    pub touched: &'a [ObjectKey],
}

impl Policies {
    pub fn read(world: &World) -> Policies {
        let mut all: Vec<&Arc<BackendTLSPolicy>> = world.policies.iter().filter(|p| !p.is_deleting()).collect();
        all.sort_by_key(|p| (created(p.as_ref()), p.key()));
        let mut targets: BTreeMap<Target, Vec<ObjectKey>> = BTreeMap::new();
        let mut meant = BTreeMap::new();
        for policy in all {
            let mut read = read(world, policy);
            for target in policy
                .spec
                .target_refs
                .iter()
                .filter(|t| t.group.is_empty() && t.kind == "Service")
            {
                let service = ObjectKey::new(policy.namespace(), &target.name);
                let section = target.section_name.clone().filter(|s| !s.is_empty());
                let before = targets.entry((service, section)).or_default();
                if let Some(first) = before.first() {
                    let why = format!("Policy {first} is for the same, and older");
                    read.accepted = Told::new("Accepted", false, "Conflicted", why);
                }
                before.push(policy.key());
            }
            meant.insert(policy.key(), read);
        }
        Policies { meant, targets }
    }

    pub fn of(&self, world: &World, service: &ObjectKey, port: i32, passing: Passing) -> Option<Found<'_>> {
        let ports = world.services.get(service)?.spec.as_ref()?.ports.as_deref();
        // The same number may be another port for UDP.
        let mut ports = ports.unwrap_or_default().iter();
        let port = ports.find(|p| p.port == port && p.protocol.as_deref().unwrap_or("TCP") == passing.transport());
        let name = port.and_then(|p| p.name.clone());
        let own = name.and_then(|name| self.targets.get(&(service.clone(), Some(name))));
        let touched = own.or_else(|| self.targets.get(&(service.clone(), None)))?;
        let trust = self.meant.get(touched.first()?).and_then(|meant| meant.trust.as_ref());
        Some(Found { trust, touched })
    }

    /// Of those that matter to somebody: what of them is to be told, and by which authorities backends are known.
    pub fn tell(&self, plan: &mut Plan) {
        for (key, told) in &mut plan.statuses.policies {
            if let Some(meant) = self.meant.get(key) {
                told.conditions = vec![meant.accepted.clone(), meant.resolved.clone()];
                plan.authorities.extend(meant.authorities.iter().cloned());
            }
        }
    }
}

fn read(world: &World, policy: &BackendTLSPolicy) -> Meant {
    let wanted = &policy.spec.validation;
    let mut authorities = BTreeSet::new();
    let mut certificates = Vec::new();
    let mut resolved = Told::new("ResolvedRefs", true, "ResolvedRefs", "All references are resolved");
    for reference in &wanted.ca_certificate_refs {
        let key = ObjectKey::new(policy.namespace(), &reference.name);
        let kind = reference.kind.as_deref().unwrap_or_default();
        let group = reference.group.as_deref().unwrap_or_default();
        let found = match (group, kind, world.authorities.get(&key)) {
            ("", "ConfigMap", Some(Ok(found))) => Ok(found),
            ("", "ConfigMap", Some(Err(why))) => Err(("InvalidCACertificateRef", format!("ConfigMap {key}: {why}"))),
            ("", "ConfigMap", None) => Err(("InvalidCACertificateRef", format!("There is no ConfigMap {key}"))),
            _ => {
                let why = format!("Certificates of authorities can't be in a {kind} of group {group:?}");
                Err(("InvalidKind", why))
            }
        };
        match found {
            Ok(found) => {
                certificates.extend(found.iter().cloned());
                authorities.insert(key);
            }
            Err((reason, why)) => resolved = Told::new("ResolvedRefs", false, reason, why),
        }
    }
    let refused = |reason, why: String| Told::new("Accepted", false, reason, why);
    let fine = Told::new("Accepted", true, "Accepted", "The policy is accepted");
    let known: Option<Authorities> = match by_system(wanted) {
        true => world.system.clone(),
        false => (!certificates.is_empty()).then(|| certificates.into()),
    };
    let (trust, accepted) = match (trust(policy, wanted), known) {
        (Err(why), _) => (None, refused("Invalid", why)),
        (Ok(_), None) => {
            let why = "No certificate of an authority can be had".to_string();
            (None, refused("NoValidCACertificate", why))
        }
        (Ok(names), Some(known)) => (Some(Arc::new(Trust::new(&wanted.hostname, names, known))), fine),
    };
    Meant {
        trust,
        authorities,
        accepted,
        resolved,
    }
}

/// Whether backends are known by the authorities that the system knows.
pub fn by_system(wanted: &Validation) -> bool {
    wanted.well_known_ca_certificates.as_deref() == Some("System")
}

/// The names that a certificate has to have one of; or what can't be honoured.
fn trust(policy: &BackendTLSPolicy, wanted: &Validation) -> Result<Vec<AltName>, String> {
    let set = wanted.well_known_ca_certificates.as_ref().filter(|s| !s.is_empty());
    if let Some(set) = set.filter(|_| !by_system(wanted)) {
        return Err(format!("The well-known certificates {set:?} are not supported"));
    }
    if let Some(option) = policy.spec.options.keys().next() {
        return Err(format!("The option {option:?} is not supported"));
    }
    if ServerName::try_from(wanted.hostname.as_str()).is_err() {
        return Err(format!("{:?} is no name of a host", wanted.hostname));
    }
    let one = |name: &crate::kinds::AltName| match name.r#type.as_str() {
        "Hostname" => Ok(AltName::Host(name.hostname.to_ascii_lowercase())),
        "URI" => Ok(AltName::Uri(name.uri.clone())),
        other => Err(format!("Names of type {other} are not supported")),
    };
    wanted.subject_alt_names.iter().map(one).collect()
}
