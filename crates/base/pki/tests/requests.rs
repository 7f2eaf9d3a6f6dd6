//! Certificate requests of every form, against what upstream's own code says of them (`tools/x509` wrote it down): whether
//! they are taken, what they mean, and what certificate is made of them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_pki::Authority;
use keelson_pki::authority::Policy;
use keelson_pki::x509::template::{ExtKeyUsage, key_usage};
use keelson_pki::x509::{Certificate, Name, Request, der, oid, pem};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Case {
    name: String,
    #[serde(rename = "PEM")]
    pem: String,
    created: String,
    subject: Option<Subject>,
    #[serde(rename = "DNS", default)]
    dns: Vec<String>,
    #[serde(default)]
    emails: Vec<String>,
    #[serde(rename = "IPs", default)]
    ips: Vec<String>,
    #[serde(rename = "URIs", default)]
    uris: Vec<String>,
    issued: Option<Issued>,
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct Subject {
    common_name: String,
    serial_number: String,
    country: Option<Vec<String>>,
    organization: Option<Vec<String>>,
    organizational_unit: Option<Vec<String>>,
    locality: Option<Vec<String>>,
    province: Option<Vec<String>>,
    street_address: Option<Vec<String>>,
    postal_code: Option<Vec<String>>,
}

impl Subject {
    fn of(name: Name) -> Subject {
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        Subject {
            common_name: name.common_name,
            serial_number: name.serial_number,
            country: some(name.country),
            organization: some(name.organization),
            organizational_unit: some(name.organizational_unit),
            locality: some(name.locality),
            province: some(name.province),
            street_address: some(name.street_address),
            postal_code: some(name.postal_code),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Issued {
    subject: String,
    key: String,
    extensions: Vec<Extension>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Extension {
    #[serde(rename = "ID")]
    id: String,
    critical: bool,
    value: String,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../testdata/requests.json")).expect("the table");
    assert!(cases.len() >= 70, "{}", cases.len());
    cases
}

fn policy(seconds: u64) -> Policy {
    Policy {
        key_usage: key_usage::DIGITAL_SIGNATURE | key_usage::KEY_ENCIPHERMENT | key_usage::DECIPHER_ONLY,
        ext_key_usage: vec![ExtKeyUsage::ServerAuth, ExtKeyUsage::ClientAuth],
        lifetime: Duration::from_secs(seconds),
        now: jiff::Timestamp::now(),
    }
}

#[test]
fn requests_mean_what_they_mean_upstream() {
    for case in cases() {
        let name = &case.name;
        let read = Request::from_pem(case.pem.as_bytes());
        let refused = match &read {
            Ok(request) => request.check_signature().err(),
            Err(why) => Some(why.clone()),
        };
        match (case.created.as_str(), refused) {
            ("", why) => assert_eq!(why, None, "{name}"),
            // Encodings are refused in words of our own.
            (wanted, Some(_)) if wanted.starts_with("asn1: ") => {}
            (wanted, why) => assert_eq!(why.map(|w| w.to_string()).as_deref(), Some(wanted), "{name}"),
        }
        assert_eq!(read.is_ok(), case.subject.is_some(), "{name}");
        let Ok(request) = read else { continue };
        assert_eq!(Some(Subject::of(request.subject)), case.subject, "{name}");
        let ips: Vec<String> = request
            .names
            .ips
            .iter()
            .map(|ip| ip.to_canonical().to_string())
            .collect();
        let names = (request.names.dns, request.names.emails, ips, request.names.uris);
        assert_eq!(names, (case.dns, case.emails, case.ips, case.uris), "{name}");
    }
}

#[test]
fn certificates_say_what_was_read_and_nothing_else() {
    let ca = Authority::generate("kubernetes").unwrap();
    let root = Certificate::from_der(&pem::certificates(ca.cert_pem().as_bytes()).next().unwrap()).unwrap();
    let mut numbers = BTreeSet::new();
    let mut issued = 0;
    for case in cases() {
        let name = &case.name;
        let Ok(request) = Request::from_pem(case.pem.as_bytes()) else {
            continue;
        };
        let made = ca.sign_request(&request, &policy(3600));
        assert_eq!(made.is_ok(), case.issued.is_some(), "{name}");
        let (Ok(made), Some(wanted)) = (made, case.issued) else {
            continue;
        };
        issued += 1;
        let bytes = pem::certificates(made.as_bytes()).next().unwrap();
        let cert = Certificate::from_der(&bytes).unwrap();
        cert.check_signature(root.key.as_ref()).unwrap();
        assert_eq!(STANDARD.encode(&cert.raw_subject), wanted.subject, "{name}");
        assert_eq!(
            STANDARD.encode(cert.key.as_ref().unwrap().to_der().unwrap()),
            wanted.key,
            "{name}"
        );
        assert_eq!(cert.extensions.len(), wanted.extensions.len(), "{name}");
        for (ours, theirs) in cert.extensions.iter().zip(&wanted.extensions) {
            assert_eq!(
                (oid::text(&ours.kind), ours.critical),
                (theirs.id.clone(), theirs.critical),
                "{name}"
            );
            // The identifier of the authority's key is each authority's own.
            if ours.kind != oid::AUTHORITY_KEY_ID {
                assert_eq!(STANDARD.encode(&ours.value), theirs.value, "{name}: {}", theirs.id);
            }
        }
        let mut body = der::Reader(&bytes)
            .enter(der::SEQUENCE)
            .unwrap()
            .enter(der::SEQUENCE)
            .unwrap();
        body.any().unwrap();
        assert!(
            numbers.insert(body.integer().unwrap().to_vec()),
            "{name}: a number was given twice"
        );
    }
    assert!(issued >= 45, "{issued}");
}

#[test]
fn certificates_end_with_their_authority() {
    let ca = Authority::generate("kubernetes").unwrap();
    let case = &cases()[0];
    let request = Request::from_pem(case.pem.as_bytes()).unwrap();
    let root = Certificate::from_der(&pem::certificates(ca.cert_pem().as_bytes()).next().unwrap()).unwrap();
    let sign = |policy: &Policy| {
        let made = ca.sign_request(&request, policy)?;
        anyhow::Ok(Certificate::from_der(&pem::certificates(made.as_bytes()).next().unwrap()).unwrap())
    };
    let lives = |seconds| {
        let policy = policy(seconds);
        let cert = sign(&policy).unwrap();
        let now = policy.now.as_second();
        (now - cert.not_before.as_second(), cert.not_after.as_second() - now)
    };
    assert_eq!(lives(3600), (300, 3600));
    assert_eq!(
        lives(8 * 3600),
        (300, 8 * 3600 - 300),
        "long ones are backdated at both ends"
    );
    let mut late = policy(100 * 365 * 24 * 3600);
    assert_eq!(sign(&late).unwrap().not_after, root.not_after);
    late.now = root.not_after;
    let why = sign(&late).unwrap_err().to_string();
    assert!(
        why.starts_with("refusing to sign a certificate that expired in the past: NotAfter="),
        "{why}"
    );
}
