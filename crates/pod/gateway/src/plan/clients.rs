//! What a Gateway asks of its clients' certificates (`spec.tls.frontend`): for all its HTTPS listeners, or those of one port.
//!
//! Whose authorities can't be had at all isn't served: without them everybody would come in, or nobody.

use super::World;
use super::attach::Listener;
use super::listeners::{GATEWAY, Problem};
use super::rules::permitted;
use crate::kinds::{ClientValidation, Gateway, Reference};
use crate::table::{ClientTrust, Speaks};
use keelson_client::{ApiObject, ObjectKey};
use rustls_pki_types::CertificateDer;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Also those come in who show nothing.
const ANYBODY: &str = "AllowInsecureFallback";
/// The reason of the condition that says so.
pub const CHANGED: &str = "ConfigurationChanged";

/// Says of listeners what their clients have to show; the ConfigMaps that have the authorities are returned.
pub fn ask(world: &World, gateway: &Gateway, listeners: &mut [Listener]) -> BTreeSet<ObjectKey> {
    let mut named = BTreeSet::new();
    for listener in listeners.iter_mut().filter(|l| l.speaks == Speaks::Https) {
        let Some(wanted) = wanted(gateway, listener.port) else {
            continue;
        };
        let (certificates, found, problem) = authorities(world, gateway, wanted);
        named.extend(found);
        if let Some(problem) = problem {
            if certificates.is_empty() {
                let none = (
                    "NoValidCACertificate",
                    "No certificate of an authority can be had".into(),
                );
                listener.refused.get_or_insert(none);
            }
            listener.unresolved.get_or_insert(problem);
        }
        let anybody = wanted.mode.as_deref() == Some(ANYBODY);
        listener.clients = Some(Arc::new(ClientTrust::new(certificates, anybody)));
    }
    named
}

/// Whether somebody may come in unknown.
pub fn is_insecure(gateway: &Gateway) -> bool {
    validations(gateway).any(|v| v.mode.as_deref() == Some(ANYBODY))
}

/// The ConfigMaps that it names, there or not.
pub fn named(gateway: &Gateway) -> impl Iterator<Item = ObjectKey> {
    let all = validations(gateway).flat_map(|v| &v.ca_certificate_refs);
    all.map(|reference| key(gateway, reference))
}

fn validations(gateway: &Gateway) -> impl Iterator<Item = &ClientValidation> {
    let frontend = gateway.spec.tls.iter().filter_map(|tls| tls.frontend.as_ref());
    frontend.flat_map(|f| {
        let of_ports = f.per_port.iter().map(|p| &p.tls);
        [&f.default]
            .into_iter()
            .chain(of_ports)
            .filter_map(|t| t.validation.as_ref())
    })
}

/// What is said of a port goes before what is said of all, also where it asks for nothing.
fn wanted(gateway: &Gateway, port: u16) -> Option<&ClientValidation> {
    let frontend = gateway.spec.tls.as_ref()?.frontend.as_ref()?;
    let own = frontend.per_port.iter().find(|p| p.port == i32::from(port));
    own.map_or(&frontend.default, |p| &p.tls).validation.as_ref()
}

fn key(gateway: &Gateway, reference: &Reference) -> ObjectKey {
    let namespace = reference.namespace.as_deref().unwrap_or(gateway.namespace());
    ObjectKey::new(namespace, &reference.name)
}

type Found = (Vec<CertificateDer<'static>>, Vec<ObjectKey>, Option<Problem>);

fn authorities(world: &World, gateway: &Gateway, wanted: &ClientValidation) -> Found {
    let (mut certificates, mut found, mut problem) = (Vec::new(), Vec::new(), None);
    for reference in &wanted.ca_certificate_refs {
        match one(world, gateway, reference) {
            Ok((key, of)) => {
                certificates.extend(of.iter().cloned());
                found.push(key);
            }
            Err(why) => drop(problem.get_or_insert(why)),
        }
    }
    if certificates.is_empty() && problem.is_none() {
        problem = Some((
            "InvalidCACertificateRef",
            "No certificate of an authority is named".into(),
        ));
    }
    (certificates, found, problem)
}

fn one<'a>(
    world: &'a World,
    gateway: &Gateway,
    reference: &Reference,
) -> Result<(ObjectKey, &'a [CertificateDer<'static>]), Problem> {
    let kind = reference.kind.as_deref().unwrap_or_default();
    let group = reference.group.as_deref().unwrap_or_default();
    if (group, kind) != ("", "ConfigMap") {
        let why = format!("Certificates of authorities can't be in a {kind} of group {group:?}");
        return Err(("InvalidCACertificateKind", why));
    }
    let key = key(gateway, reference);
    if !permitted(world, (GATEWAY, gateway.namespace()), ("", "ConfigMap", &key)) {
        let why = format!("No ReferenceGrant permits the reference to ConfigMap {key}");
        return Err(("RefNotPermitted", why));
    }
    match world.authorities.get(&key) {
        Some(Ok(found)) => Ok((key, found)),
        Some(Err(why)) => Err(("InvalidCACertificateRef", format!("ConfigMap {key}: {why}"))),
        None => Err(("InvalidCACertificateRef", format!("There is no ConfigMap {key}"))),
    }
}
