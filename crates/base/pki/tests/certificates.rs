//! Chains of certificates of every form, against the verdicts of Go's `crypto/x509` (`tools/x509` wrote them down): the same
//! are taken, and the others are refused in the same words.

use jiff::Timestamp;
use keelson_pki::verify::{Purpose, Roots, tls};
use keelson_pki::x509::pem;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Case {
    name: String,
    chain: String,
    roots: String,
    #[serde(default)]
    host: String,
    now: i64,
    verdict: String,
}

#[test]
fn certificates_are_judged_as_go_judges_them() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../testdata/certificates.json")).expect("the table");
    assert!(cases.len() >= 160, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let chain: Vec<CertificateDer> = pem::certificates(case.chain.as_bytes())
            .map(CertificateDer::from)
            .collect();
        let roots = Roots::from_pem(case.roots.as_bytes()).unwrap_or_default();
        let purpose = match case.host.as_str() {
            "" => Purpose::Client,
            host => Purpose::Server(host),
        };
        let now = Timestamp::from_second(case.now).expect("a date");
        let verdict = tls::check(&chain, &roots, purpose, now).err().map(|e| e.to_string());
        let verdict = verdict.unwrap_or_default();
        if verdict != case.verdict {
            wrong.push(format!("{}:\n  {:?}\n  {:?}", case.name, verdict, case.verdict));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ (ours, Go's):\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(cases.iter().filter(|c| c.verdict.is_empty()).count() >= 80);
}

/// Every certificate of a chain may be one whose key checks another, before anybody has proved to be anyone.
#[test]
fn keys_that_take_long_to_check_are_refused_wherever_they_stand_in_a_chain() {
    let large = pem::certificates(include_bytes!("../testdata/large-rsa.pem"));
    let large: Vec<CertificateDer> = large.map(CertificateDer::from).collect();
    let cases: Vec<Case> = serde_json::from_str(include_str!("../testdata/certificates.json")).expect("the table");
    let good = cases.iter().find(|c| c.verdict.is_empty() && c.host.is_empty());
    let good = good.expect("a client that is taken");
    let mut chain: Vec<CertificateDer> = pem::certificates(good.chain.as_bytes())
        .map(CertificateDer::from)
        .collect();
    let roots = Roots::from_pem(good.roots.as_bytes()).unwrap_or_default();
    let now = Timestamp::from_second(good.now).expect("a date");
    assert!(tls::check(&chain, &roots, Purpose::Client, now).is_ok());
    chain.extend(large.iter().cloned());
    for chain in [&chain, &large] {
        let said = tls::check(chain, &roots, Purpose::Client, now)
            .err()
            .map(|e| e.to_string());
        let wanted = "tls: client sent certificate containing RSA key larger than 8192 bits";
        assert_eq!(said.as_deref(), Some(wanted));
    }
}
