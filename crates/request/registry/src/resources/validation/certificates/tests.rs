//! Requests and certificates of every form, against the verdicts of upstream's own code (`tools/x509` wrote them down).

use super::super::tests::{create, read, request, shown};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{Value, value};

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Requested {
    name: String,
    #[serde(rename = "PEM")]
    pem: String,
    created: String,
}

/// Certificate requests of every form, with why upstream's validation refuses them.
fn requests() -> Vec<Requested> {
    serde_json::from_str(include_str!("../../../../../../base/pki/testdata/requests.json")).unwrap()
}

fn der_of(name: &str) -> Vec<u8> {
    let pem = requests().into_iter().find(|r| r.name == name).unwrap().pem;
    keelson_pki::x509::pem::next(pem.as_bytes()).unwrap().0.bytes
}

#[test]
fn certificate_requests_are_taken_as_upstream_takes_them() {
    for case in requests() {
        let request = STANDARD.encode(&case.pem);
        let csr = value!({"metadata": {"name": "r"}, "spec": {"signerName": "a.io/b", "usages": ["client auth"], "request": (request.clone())}});
        let errors = create("certificates.k8s.io", "CertificateSigningRequest", csr);
        let wanted = match case.created.as_str() {
            "" => vec![],
            why => vec![format!("spec.request: Invalid value: {request:?}: {why}")],
        };
        match case.created.starts_with("asn1: ") {
            true => assert_eq!(errors.len(), 1, "{}", case.name),
            false => assert_eq!(errors, wanted, "{}", case.name),
        }
    }
}

#[test]
fn kubelets_show_a_key_of_a_good_kind() {
    for (name, why) in [
        ("P-256", ""),
        ("P-384", ""),
        ("P-521", ""),
        ("Ed25519", ""),
        ("RSA 4096", ""),
        ("RSA 2048", "RSA keys must have modulus size 3072 or 4096"),
        ("P-224", "elliptic public keys must use curve P256, P384, or P521"),
        (
            "a key of RSA-PSS",
            "unknown public key type; supported types are Ed25519, ECDSA, and RSA",
        ),
        ("somebody else's key", "invalid signature"),
        ("no request", "must be a valid PKCS#10 CSR"),
    ] {
        let asked = value!({"metadata": {"name": "r", "namespace": "ns"}, "spec": {"signerName": "a.io/b", "podName": "p", "podUID": "u",
            "serviceAccountName": "s", "serviceAccountUID": "u", "nodeName": "n", "nodeUID": "u", "maxExpirationSeconds": 3600,
            "stubPKCS10Request": (STANDARD.encode(der_of(name)))}});
        let wanted = match why {
            "" => vec![],
            why => vec![format!("spec.stubPKCS10Request: Invalid value: {why}")],
        };
        assert_eq!(
            create("certificates.k8s.io", "PodCertificateRequest", asked),
            wanted,
            "{name}"
        );
    }
}

/// What a signer writes is certificates, and nothing else beside them.
#[test]
fn what_is_issued_is_certificates() {
    let authority = keelson_pki::Authority::generate("kubernetes").unwrap();
    let good = authority.cert_pem();
    let set = |text: &str| {
        let csr = value!({"metadata": {"name": "r"}, "spec": {"signerName": "a.io/b", "usages": ["client auth"],
            "request": (STANDARD.encode(&requests()[0].pem))}});
        let mut cx = request("certificates.k8s.io", "CertificateSigningRequest");
        cx.subresource = "status".into();
        let mut old = read(&cx, csr);
        cx.def.strategy.prepare_create(&cx, &mut old);
        let mut new = old.clone();
        new.set_at(&["status", "certificate"], Value::from(STANDARD.encode(text)));
        cx.def.strategy.prepare_update(&cx, &mut new, &old);
        shown(cx.def.strategy.validate_update(&cx, &new, &old))
    };
    assert_eq!(set(good), Vec::<String>::new());
    assert_eq!(set(&format!("{good}\n{good}")), Vec::<String>::new());
    let refused = |why: &str| {
        vec![format!(
            "status.certificate: Invalid value: \"<certificate data>\": {why}"
        )]
    };
    for (text, why) in [
        (
            "nonsense".to_string(),
            "must contain at least one CERTIFICATE PEM block",
        ),
        (
            format!("{good}{}", authority.key_pem()),
            "only CERTIFICATE PEM blocks are allowed, found \"PRIVATE KEY\"",
        ),
        (
            good.replacen("-----\n", "-----\nA: b\n\n", 1),
            "no PEM block headers are permitted",
        ),
        (good.replacen("\nM", "\nN", 1), "x509: malformed certificate"),
    ] {
        assert_eq!(set(&text), refused(why), "{why}");
    }
}

#[test]
fn approval_comes_by_its_own_door() {
    let csr = value!({"metadata": {"name": "My_request"}, "spec": {"signerName": "a.io/b", "usages": ["client auth"],
        "request": (STANDARD.encode(&requests()[0].pem))}});
    let through = |sub: &str| {
        let mut cx = request("certificates.k8s.io", "CertificateSigningRequest");
        cx.subresource = sub.into();
        let mut old = read(&cx, csr.clone());
        cx.def.strategy.prepare_create(&cx, &mut old);
        assert_eq!(cx.def.strategy.validate(&cx, &old).len(), 0);
        let mut new = old.clone();
        let approved = value!([{"type": "Approved", "status": "True", "reason": "r"}]);
        new.set_at(&["status", "conditions"], approved);
        cx.def.strategy.prepare_update(&cx, &mut new, &old);
        shown(cx.def.strategy.validate_update(&cx, &new, &old))
    };
    assert_eq!(through("approval").len(), 0);
    assert_eq!(
        through("status"),
        ["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""]
    );
}

#[test]
fn requests_for_pods_name_whom_they_are_for() {
    let group = "certificates.k8s.io";
    assert_eq!(create(group, "PodCertificateRequest", pod_request()).len(), 0);
    let mut bad = pod_request();
    bad.set_at(&["spec", "podUID"], "");
    bad.set_at(&["spec", "maxExpirationSeconds"], 60);
    bad.set_at(&["spec", "stubPKCS10Request"], "");
    assert_eq!(
        create(group, "PodCertificateRequest", bad),
        [
            "spec.podUID: Invalid value: \"\": must not be empty",
            "spec.maxExpirationSeconds: Invalid value: 60: must be in the range [3600, 7862400]",
            "spec: Invalid value: exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set",
        ]
    );
}

fn pod_request() -> Value {
    value!({"metadata": {"name": "r"}, "spec": {"signerName": "a.io/b", "podName": "p", "podUID": "1",
        "serviceAccountName": "s", "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", 
        "stubPKCS10Request": (STANDARD.encode(der_of("P-256")))}})
}

#[test]
fn trust_bundles_hold_authorities_only() {
    let (ca, other) = (
        keelson_pki::Authority::generate("a").unwrap(),
        keelson_pki::Authority::generate("b").unwrap(),
    );
    let spec = keelson_pki::CertSpec::client("leaf", None);
    let leaf = ca.issue(&spec).unwrap();
    let bundle = |text: String| {
        let bundle = value!({"metadata": {"name": "b"}, "spec": {"trustBundle": text}});
        create("certificates.k8s.io", "ClusterTrustBundle", bundle)
    };
    let (a, b) = (ca.cert_pem(), other.cert_pem());
    assert_eq!(bundle(format!("about\n{a}{b}")), Vec::<String>::new());
    for (text, why) in [
        ("nothing".to_string(), "at least one trust anchor must be provided"),
        (format!("{a}{b}{a}"), "duplicate trust anchor (indices [0 2])"),
        (format!("{a}{}", leaf.cert_pem), "entry 1 does not have the CA bit set"),
        (
            format!("{}{a}", leaf.key_pem),
            "entry 0 has bad block type: PRIVATE KEY",
        ),
        (
            a.replacen("-----\n", "-----\nA: b\n\n", 1),
            "entry 0 has PEM block headers",
        ),
        (a.replacen("\nM", "\nN", 1), "entry 0 does not parse as X.509"),
    ] {
        let wanted = format!("spec.trustBundle: Invalid value: \"<value omitted>\": {why}");
        assert_eq!(bundle(text), [wanted]);
    }
}

/// What a signer answers a kubelet is a certificate for the key that was shown, of now, and for as long as was asked.
#[test]
fn pods_get_certificates_for_their_keys() {
    let ca = keelson_pki::Authority::generate("a").unwrap();
    // The certificate begins five minutes before this, which must not be five minutes ago.
    let now = jiff::Timestamp::from_second(keelson_clock::now().as_second() + 120).unwrap();
    let sign = |name: &str, hours: u64| {
        let policy = keelson_pki::authority::Policy {
            key_usage: 1,
            ext_key_usage: vec![],
            lifetime: std::time::Duration::from_secs(hours * 3600),
            now,
        };
        let asked = keelson_pki::x509::Request::from_der(&der_of(name)).unwrap();
        ca.sign_request(&asked, &policy).unwrap()
    };
    let answer = |chain: &str, changes: &[(&str, &str)]| {
        let mut cx = request("certificates.k8s.io", "PodCertificateRequest");
        cx.subresource = "status".into();
        let mut old = read(&cx, pod_request());
        old.set_at(&["spec", "maxExpirationSeconds"], 7200);
        cx.def.strategy.prepare_create(&cx, &mut old);
        let mut new = old.clone();
        let at = |seconds: i64| {
            jiff::Timestamp::from_second(now.as_second() + seconds)
                .unwrap()
                .to_string()
        };
        new.set_at(
            &["status"],
            value!({"certificateChain": chain, "notBefore": at(-300), "notAfter": at(3600), "beginRefreshAt": at(1800),
                "conditions": [{"type": "Issued", "status": "True", "reason": "r", "message": "m", "lastTransitionTime": at(0)}]}),
        );
        for (key, seconds) in changes {
            new.set_at(&["status", key], Value::from(at(seconds.parse().unwrap())));
        }
        cx.def.strategy.prepare_update(&cx, &mut new, &old);
        shown(cx.def.strategy.validate_update(&cx, &new, &old))
    };
    let good = sign("P-256", 1);
    assert_eq!(answer(&good, &[]), Vec::<String>::new());
    assert_eq!(answer(&format!("{good}{}", ca.cert_pem()), &[]), Vec::<String>::new());
    let long = sign("P-256", 3);
    let own = sign("P-384", 1);
    for (chain, changes, why) in [
        ("nothing", &[][..], "must contain at least one certificate"),
        (
            ca.key_pem().as_str(),
            &[],
            "must consist entirely of CERTIFICATE PEM blocks",
        ),
        (
            own.as_str(),
            &[],
            "leaf certificate was not issued to the requested public key",
        ),
        (
            &good,
            &[("notBefore", "-299")],
            "must be set to the NotBefore time encoded in the leaf certificate",
        ),
        (
            &good,
            &[("notAfter", "3601")],
            "must be set to the NotAfter time encoded in the leaf certificate",
        ),
        (
            &good,
            &[("beginRefreshAt", "299")],
            "must be at least 10 minutes after status.notBefore",
        ),
        (
            &good,
            &[("beginRefreshAt", "3001")],
            "must be at least 10 minutes before status.notAfter",
        ),
        (
            &long,
            &[("notAfter", "10800")],
            "leaf certificate lifetime must be <= spec.maxExpirationSeconds (7200)",
        ),
    ] {
        let errors = answer(chain, changes);
        assert!(errors.len() == 1 && errors[0].ends_with(why), "{why}: {errors:?}");
    }
}
