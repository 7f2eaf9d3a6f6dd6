//! The requests that kubelets make for pods, and what signers answer: the certificate must be one for the key that was
//! shown, of now, and for no longer than was asked.

use super::super::check::{Errs, s};
use super::{conditions, lifetimes, signer_name, user_annotations};
use crate::strategy::same;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use keelson_api::{Cause, Map, Object, Value};
use keelson_machinery::names;
use keelson_pki::x509::{Certificate, PublicKey, Request, key, pem};

const REQUEST_LIMIT: usize = 10 << 10;
const CHAIN_LIMIT: usize = 10 << 10;
const UID_LIMIT: usize = 128;

pub(super) fn pod_request(e: &mut Errs, spec: &Map) {
    let signer = s(spec, "signerName");
    signer_name(e, "signerName", signer);
    user_annotations(e, spec, "unverifiedUserAnnotations");
    for (name, uid) in [
        ("podName", "podUID"),
        ("serviceAccountName", "serviceAccountUID"),
        ("nodeName", "nodeUID"),
    ] {
        e.format(name, s(spec, name), names::dns1123_subdomain);
        match s(spec, uid).len() {
            0 => e.invalid(uid, "", "must not be empty"),
            n if n > UID_LIMIT => e.too_long(uid, UID_LIMIT),
            _ => {}
        }
    }
    let (least, most) = lifetimes(signer);
    match spec.int("maxExpirationSeconds") {
        None => return e.required("maxExpirationSeconds", "must be set"),
        Some(n) if !(least..=most).contains(&n) => {
            let why = format!("must be in the range [{least}, {most}]");
            e.invalid("maxExpirationSeconds", n, &why);
        }
        Some(_) => {}
    }
    let request = STANDARD.decode(s(spec, "stubPKCS10Request")).unwrap_or_default();
    if request.is_empty() {
        omitted(
            e,
            "",
            "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set",
        );
    } else if request.len() > REQUEST_LIMIT {
        e.too_long("stubPKCS10Request", REQUEST_LIMIT);
    } else if let Err(why) = stub(&request) {
        omitted(e, "stubPKCS10Request", why);
    }
}

/// The request of a kubelet shows that it holds a key of a good kind; what it says beside that nobody reads.
fn stub(request: &[u8]) -> Result<(), &'static str> {
    let request = Request::from_der(request).map_err(|_| "must be a valid PKCS#10 CSR")?;
    match &request.key {
        Some(PublicKey::Ed25519(_)) => {}
        Some(PublicKey::Ecdsa(key::Curve::P224, _)) => {
            return Err("elliptic public keys must use curve P256, P384, or P521");
        }
        Some(PublicKey::Ecdsa(..)) => {}
        Some(PublicKey::Rsa { modulus, .. }) if matches!(modulus.len() * 8, 3072 | 4096) => {}
        Some(PublicKey::Rsa { .. }) => return Err("RSA keys must have modulus size 3072 or 4096"),
        _ => return Err("unknown public key type; supported types are Ed25519, ECDSA, and RSA"),
    }
    request.check_signature().map_err(|_| "invalid signature")
}

/// A complaint that doesn't repeat the value.
fn omitted(e: &mut Errs, key: &str, detail: &str) {
    let cause = Cause::new("FieldValueInvalid", e.at(key), format!("Invalid value: {detail}"));
    e.push(cause);
}

const OUTCOMES: &[&str] = &["Issued", "Denied", "Failed"];

fn outcome(o: &Object) -> Option<&str> {
    let done = |c: &&Map| OUTCOMES.contains(&s(c, "type")) && s(c, "status") == "True";
    conditions(o).find(done).map(|c| s(c, "type"))
}

/// A request comes to one outcome, once.
pub(super) fn pod_request_status(new: &Object, old: &Object, e: &mut Errs) {
    let before = e.list.len();
    let mut outcomes = 0;
    for (i, c) in conditions(new).enumerate() {
        // Upstream's path of these has a dot before the index.
        e.within(&format!("status.conditions.[{i}]"), |e| {
            let kind = s(c, "type");
            if !OUTCOMES.contains(&kind) {
                return e.not_supported("type", kind, OUTCOMES);
            }
            outcomes += 1;
            if outcomes > 1 {
                let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
                e.invalid("type", kind, why);
            }
            if s(c, "status") != "True" {
                e.not_supported("status", s(c, "status"), &["True"]);
            }
        });
    }
    if e.list.len() > before {
        return;
    }
    let same_status = same(new.get("status"), old.get("status"));
    if outcome(old).is_some() {
        if !same_status {
            let why = "immutable after PodCertificateRequest is issued, denied, or failed";
            omitted(e, "status", why);
        }
        return;
    }
    match outcome(new) {
        Some("Issued") => issued(new, old, e),
        Some(_) => {
            let status = new.obj("status").into_iter().flatten();
            if status
                .filter(|(k, _)| *k != "conditions")
                .any(|(_, v)| !same(Some(v), None))
            {
                let why = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
                omitted(e, "status", why);
            }
        }
        None if !same_status => {
            let why = "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
            omitted(e, "status", why);
        }
        None => {}
    }
}

fn issued(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let status = new.obj("status").unwrap_or(&empty);
    let chain = s(status, "certificateChain");
    if chain.len() > CHAIN_LIMIT {
        return e.too_long("status.certificateChain", CHAIN_LIMIT);
    }
    let leaf = match leaf_of(chain) {
        Ok(leaf) => leaf,
        Err(why) => return e.invalid("status.certificateChain", chain, why),
    };
    for name in leaf.says.names.iter().flat_map(|n| &n.dns) {
        let why = if name.is_empty() {
            "leaf certificate should not contain empty DNSName"
        } else if name.contains("..") {
            "leaf certificate's DNSName should not contain '..'"
        } else if name.starts_with('.') || name.ends_with('.') {
            "leaf certificate's DNSName should not start or end with '.'"
        } else {
            continue;
        };
        e.invalid("status.certificateChain", name.as_str(), why);
    }
    let stub = STANDARD.decode(old.str_at(&["spec", "stubPKCS10Request"]).unwrap_or_default());
    match Request::from_der(&stub.unwrap_or_default()) {
        Err(_) => return omitted(e, "spec.stubPKCS10Request", "must be a valid PKCS#10 CSR"),
        Ok(asked) if asked.key != leaf.key => {
            let why = "leaf certificate was not issued to the requested public key";
            return e.invalid("status.certificateChain", chain, why);
        }
        Ok(_) => {}
    }
    let before = e.list.len();
    e.within("status", |e| {
        for key in ["notBefore", "notAfter"] {
            if !status.contains_key(key) {
                e.required(key, "must be present and consistent with the issued certificate");
            }
        }
        if !status.contains_key("beginRefreshAt") {
            let why = "must be present and in the range [notbefore+10min, notafter-10min]";
            e.required("beginRefreshAt", why);
        }
    });
    if e.list.len() == before {
        times(new, status, &leaf, e);
    }
}

/// The first certificate of a chain; the others must be some, too.
fn leaf_of(chain: &str) -> Result<Certificate, &'static str> {
    let mut blocks = pem::blocks(chain.as_bytes());
    let first = blocks
        .next()
        .ok_or("issued certificate chain must contain at least one certificate")?;
    if first.label != pem::CERTIFICATE {
        return Err("issued certificate chain must consist entirely of CERTIFICATE PEM blocks");
    }
    let leaf = Certificate::from_der(&first.bytes).map_err(|_| "leaf certificate does not parse as valid X.509")?;
    for block in blocks {
        if block.label != pem::CERTIFICATE {
            return Err("issued certificate chain must consist entirely of CERTFICATE PEM blocks");
        }
        Certificate::from_der(&block.bytes).map_err(|_| "intermediate certificate does not parse as valid X.509")?;
    }
    Ok(leaf)
}

/// What the status says of times is what the certificate says, and it is a certificate of now, for as long as was asked.
fn times(o: &Object, status: &Map, leaf: &Certificate, e: &mut Errs) {
    let at = |key: &str| s(status, key).parse::<Timestamp>().unwrap_or_default();
    let (begins, ends, refresh) = (at("notBefore"), at("notAfter"), at("beginRefreshAt"));
    let lifetime = leaf.not_after.duration_since(leaf.not_before);
    let most = o
        .at(&["spec", "maxExpirationSeconds"])
        .and_then(Value::as_i64)
        .unwrap_or_default();
    let near = begins.duration_since(keelson_clock::now()).abs() <= SignedDuration::from_mins(5);
    let margin = SignedDuration::from_mins(10);
    let wrong = if begins != leaf.not_before {
        (
            "notBefore",
            "must be set to the NotBefore time encoded in the leaf certificate".to_string(),
        )
    } else if !near {
        (
            "notBefore",
            "must be set to within 5 minutes of kube-apiserver's current time".into(),
        )
    } else if ends != leaf.not_after {
        (
            "notAfter",
            "must be set to the NotAfter time encoded in the leaf certificate".into(),
        )
    } else if lifetime < SignedDuration::from_hours(1) {
        ("certificateChain", "leaf certificate lifetime must be >= 1 hour".into())
    } else if lifetime > SignedDuration::from_secs(most) {
        let why = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        ("certificateChain", why)
    } else if refresh < begins + margin {
        (
            "beginRefreshAt",
            "must be at least 10 minutes after status.notBefore".into(),
        )
    } else if refresh > ends - margin {
        (
            "beginRefreshAt",
            "must be at least 10 minutes before status.notAfter".into(),
        )
    } else {
        return;
    };
    let (key, why) = wrong;
    let shown = match key {
        "certificateChain" => Value::from(lifetime.as_nanos() as i64),
        key => Value::from(s(status, key)),
    };
    e.invalid(&format!("status.{key}"), shown, &why);
}
