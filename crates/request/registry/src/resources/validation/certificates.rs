//! The certificates group: requests, trust bundles, and the requests that kubelets make for pods.
//!
//! A request must be one, signed by its own key. What it asks for is the signers' to judge.

use super::Rules;
use super::check::{Errs, IMMUTABLE, count, s};
use crate::context::Cx;
use crate::strategy::same;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;
use keelson_pki::x509::{Certificate, Request, pem};
use std::collections::{BTreeMap, HashSet};

mod pods;
#[cfg(test)]
mod tests;

const CSR: Rules = Rules {
    name: crate::meta::path_segment_errors,
    // The spec never changes, so it is checked once.
    create: |_, o, e| csr(o, e),
    update: csr_update,
    status: csr_update,
    ..Rules::NONE
};
const TRUST_BUNDLE: Rules = Rules {
    name_of: |o, name| {
        let signer = o.str_at(&["spec", "signerName"]).unwrap_or_default();
        bundle_name_errors(name, signer)
    },
    object: |_, o, e| bundle_signer(o, e),
    create: |_, o, e| anchors(o, e),
    update: |_, new, old, e| {
        let kept = |key: &str| same(new.at(&["spec", key]), old.at(&["spec", key]));
        if !kept("trustBundle") {
            anchors(new, e);
        }
        if !kept("signerName") {
            let signer = new.str_at(&["spec", "signerName"]).unwrap_or_default();
            e.invalid("spec.signerName", signer, IMMUTABLE);
            bundle_name(e, "metadata.name", new.name(), signer, "");
        }
    },
    ..Rules::NONE
};
const POD_REQUEST: Rules = Rules {
    create: |_, o, e| e.child(o, "spec", pods::pod_request),
    update: |_, new, old, e| e.immutable(new.get("spec"), old.get("spec"), "spec"),
    status: |_, new, old, e| pods::pod_request_status(new, old, e),
    ..Rules::SUBDOMAIN
};

pub fn of(kind: &str) -> Rules {
    match kind {
        "CertificateSigningRequest" => CSR,
        "ClusterTrustBundle" => TRUST_BUNDLE,
        "PodCertificateRequest" => POD_REQUEST,
        _ => Rules::SUBDOMAIN,
    }
}

const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;
const ANNOTATIONS_LIMIT: usize = 256 << 10;
const BUNDLE_LIMIT: usize = 1 << 20;

/// How long a pod's certificate may be asked to live, in seconds: the project's own signers are held to a day.
pub fn lifetimes(signer: &str) -> (i64, i64) {
    let domain = signer.split('/').next().unwrap_or_default();
    let projects = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    (HOUR, if projects { DAY } else { 91 * DAY })
}

/// `example.com/signer-name`
pub fn signer_name(e: &mut Errs, key: &str, name: &str) {
    if name.is_empty() {
        return e.required(key, "");
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, path] = parts[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return e.invalid(key, name, why);
    };
    if domain.len() > 253 {
        e.too_long(key, 253);
    }
    labels(e, key, domain, names::dns1123_label);
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        e.invalid(key, domain, why);
    }
    labels(e, key, path, names::dns1123_subdomain);
    // Room for a label and a subdomain in the path.
    let most = 253 + 1 + 253 + 63 + 1;
    if name.len() > most {
        e.too_long(key, most);
    }
}

/// The first of the parts between dots that is none; to say more would only repeat it.
fn labels(e: &mut Errs, key: &str, text: &str, check: fn(&str) -> Vec<String>) {
    let bad = text
        .split('.')
        .map(|l| (l, check(l)))
        .find(|(_, errs)| !errs.is_empty());
    let Some((label, errs)) = bad else { return };
    for why in errs {
        e.invalid(key, text, &format!("validating label {label:?}: {why}"));
    }
}

/// Annotations that a pod passes on to its signer: each under a domain.
pub fn user_annotations(e: &mut Errs, m: &Map, key: &str) {
    let mut size = 0;
    for (k, v) in m.obj(key).into_iter().flatten() {
        size += k.len() + v.as_str().map_or(0, str::len);
        let k = k.to_ascii_lowercase();
        if k.is_empty() {
            e.required(key, "");
            continue;
        }
        let errs = names::label_key(&k);
        match errs.is_empty() {
            true if !k.contains('/') => {
                e.invalid(key, k, "must be a domain-prefixed key (such as \"acme.io/foo\")");
            }
            _ => errs.iter().for_each(|why| e.invalid(key, k.as_str(), why)),
        }
    }
    if size > ANNOTATIONS_LIMIT {
        e.too_long(key, ANNOTATIONS_LIMIT);
    }
}

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn csr(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let spec = o.obj("spec").unwrap_or(&empty);
    e.within("spec", |e| {
        let pem = STANDARD.decode(s(spec, "request")).unwrap_or_default();
        if let Err(why) = Request::from_pem(&pem).and_then(|r| r.check_signature()) {
            e.invalid("request", s(spec, "request"), &why.to_string());
        }
        if count(spec, "usages") == 0 {
            e.required("usages", "");
        }
        let mut seen = HashSet::new();
        e.each_str(spec, "usages", |e, _, usage| {
            if !USAGES.contains(&usage) {
                e.not_supported("", usage, USAGES);
            }
            if !seen.insert(usage.to_owned()) {
                e.duplicate("", usage);
            }
        });
        match s(spec, "signerName") {
            legacy @ "kubernetes.io/legacy-unknown" => {
                let why = "the legacy signerName is not allowed via this API version";
                e.invalid("signerName", legacy, why);
            }
            signer => signer_name(e, "signerName", signer),
        }
        if let Some(n) = spec.int("expirationSeconds").filter(|n| *n < 600) {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            e.invalid("expirationSeconds", n, why);
        }
    });
}

fn conditions(o: &Object) -> impl Iterator<Item = &Map> {
    let list = o.at(&["status", "conditions"]).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

fn of_type(o: &Object, kind: &str) -> usize {
    conditions(o).filter(|c| s(c, "type") == kind).count()
}

/// Conditions of approval come by `/approval` only, and stay; a certificate once issued stays too.
fn csr_update(cx: &Cx, new: &Object, old: &Object, e: &mut Errs) {
    csr_conditions(new, old, e);
    issued_certificate(new, old, e);
    for kind in ["Approved", "Denied", "Failed"] {
        let (now, before) = (of_type(new, kind), of_type(old, kind));
        if now < before {
            let why = format!("updates may not remove a condition of type {kind:?}");
            e.forbidden("status.conditions", &why);
        }
        if now > before && kind != "Failed" && cx.subresource != "approval" {
            let why = format!("updates may not add a condition of type {kind:?}");
            e.forbidden("status.conditions", &why);
        }
    }
    let certificate = |o: &Object| o.str_at(&["status", "certificate"]).unwrap_or_default().to_string();
    if !certificate(old).is_empty() && certificate(new) != certificate(old) {
        let why = "updates may not modify existing certificate content";
        e.forbidden("status.certificate", why);
    }
}

/// What a signer writes must be certificates and nothing else.
fn issued_certificate(new: &Object, old: &Object, e: &mut Errs) {
    let text = |o: &Object| STANDARD.decode(o.str_at(&["status", "certificate"]).unwrap_or_default());
    let (new, old) = (text(new).unwrap_or_default(), text(old).unwrap_or_default());
    let refused = |text: &[u8]| if text.is_empty() { None } else { no_certificates(text) };
    if refused(&old).is_some() {
        return;
    }
    if let Some(why) = refused(&new) {
        e.invalid("status.certificate", "<certificate data>", &why);
    }
}

/// Why a PEM text is not one or more certificates.
fn no_certificates(text: &[u8]) -> Option<String> {
    let mut blocks = 0;
    for block in pem::blocks(text) {
        if block.label != pem::CERTIFICATE {
            return Some(format!(
                "only CERTIFICATE PEM blocks are allowed, found {:?}",
                block.label
            ));
        }
        if block.has_headers {
            return Some("no PEM block headers are permitted".into());
        }
        if block.bytes.is_empty() {
            return Some("found CERTIFICATE PEM block containing 0 certificates".into());
        }
        if let Err(why) = Certificate::from_der(&block.bytes) {
            return Some(why.to_string());
        }
        blocks += 1;
    }
    (blocks == 0).then(|| "must contain at least one CERTIFICATE PEM block".into())
}

/// What stands already is left alone, however it came there.
fn csr_conditions(new: &Object, old: &Object, e: &mut Errs) {
    let both = |o: &Object| of_type(o, "Approved") > 0 && of_type(o, "Denied") > 0;
    let tolerate_both = both(old);
    let tolerate_empty = of_type(old, "") > 0;
    let tolerate_twice = conditions(old).any(|c| of_type(old, s(c, "type")) > 1);
    let mut seen: Vec<&str> = Vec::new();
    for (i, c) in conditions(new).enumerate() {
        let kind = s(c, "type");
        e.within(&format!("status.conditions[{i}]"), |e| {
            if kind.is_empty() && !tolerate_empty {
                e.required("type", "");
            }
            let statuses: &[&str] = match kind {
                "Approved" | "Denied" | "Failed" => &["True"],
                _ => &["False", "True", "Unknown"],
            };
            e.one_of(c, "status", statuses);
        });
        let other = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !other.is_empty() && seen.contains(&other) && !tolerate_both {
            let why = "Approved and Denied conditions are mutually exclusive";
            e.invalid("status.conditions", kind, why);
        }
        if seen.contains(&kind) && !tolerate_twice {
            e.duplicate(&format!("status.conditions[{i}].type"), kind);
        }
        seen.push(kind);
    }
}

fn bundle_signer(o: &Object, e: &mut Errs) {
    let signer = o.str_at(&["spec", "signerName"]).unwrap_or_default();
    if !signer.is_empty() {
        signer_name(e, "spec.signerName", signer);
    }
}

fn anchors(o: &Object, e: &mut Errs) {
    let bundle = o.str_at(&["spec", "trustBundle"]).unwrap_or_default();
    if bundle.len() > BUNDLE_LIMIT {
        e.too_long("spec.trustBundle", BUNDLE_LIMIT);
        return;
    }
    let before = e.list.len();
    let mut places: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
    for (at, block) in pem::blocks(bundle.as_bytes()).enumerate() {
        match no_anchor(&block) {
            Some(why) => e.invalid("spec.trustBundle", OMITTED, &format!("entry {at} {why}")),
            None => places.entry(block.bytes).or_default().push(at.to_string()),
        }
    }
    if e.list.len() > before {
        return;
    }
    if places.is_empty() {
        e.invalid(
            "spec.trustBundle",
            OMITTED,
            "at least one trust anchor must be provided",
        );
    }
    for twice in places.values().filter(|places| places.len() > 1) {
        let why = format!("duplicate trust anchor (indices [{}])", twice.join(" "));
        e.invalid("spec.trustBundle", OMITTED, &why);
    }
}

/// Shown in place of a bundle, which may be large.
const OMITTED: &str = "<value omitted>";

/// Why a block is no certificate of an authority.
fn no_anchor(block: &pem::Block) -> Option<String> {
    if block.label != pem::CERTIFICATE {
        return Some(format!("has bad block type: {}", block.label));
    }
    if block.has_headers {
        return Some("has PEM block headers".into());
    }
    match Certificate::from_der(&block.bytes) {
        Err(_) => Some("does not parse as X.509".into()),
        Ok(cert) if !cert.says.is_ca() => Some("does not have the CA bit set".into()),
        Ok(_) => None,
    }
}

/// Bundles are named after their signer, so that its right to attest covers their names.
pub fn bundle_name(e: &mut Errs, key: &str, name: &str, signer: &str, about: &str) {
    bundle_name_errors(name, signer)
        .iter()
        .for_each(|why| e.invalid(key, name, &format!("{about}{why}")));
}

fn bundle_name_errors(name: &str, signer: &str) -> Vec<String> {
    let prefix = format!("{}:", signer.replace('/', ":"));
    match (signer.is_empty(), name.strip_prefix(&prefix)) {
        (true, _) if name.contains(':') => {
            vec!["ClusterTrustBundle without signer name must not have \":\" in its name".into()]
        }
        (true, _) => names::dns1123_subdomain(name),
        (false, Some(rest)) => names::dns1123_subdomain(rest),
        (false, None) => vec![format!(
            "ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"
        )],
    }
}
