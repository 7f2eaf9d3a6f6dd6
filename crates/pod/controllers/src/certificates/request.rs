//! Whether a signer of the project's may grant a request, and what the certificate may then be used for. Pure.
//!
//! Looks only at the request as it was read; the same value is then signed.

use anyhow::{bail, ensure};
use keelson_pki::x509::Request;
use keelson_pki::x509::template::{ExtKeyUsage, key_usage};
use std::collections::BTreeSet;

pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

fn is_of_nodes(asked: &Request) -> anyhow::Result<()> {
    ensure!(
        asked.subject.organization == ["system:nodes"],
        "subject organization is not system:nodes"
    );
    Ok(())
}

fn names_node(asked: &Request) -> anyhow::Result<()> {
    ensure!(
        asked.subject.common_name.starts_with("system:node:"),
        "subject common name does not begin with system:node:"
    );
    Ok(())
}

/// Exactly these, with or without the usage that only RSA keys have.
fn exactly(usages: &[String], kind: &str) -> anyhow::Result<()> {
    let asked: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let least = BTreeSet::from([kind, "digital signature"]);
    let mut all = least.clone();
    all.insert("key encipherment");
    let shown: Vec<&str> = all.iter().copied().collect();
    ensure!(
        asked == least || asked == all,
        "usages did not match [{}]",
        shown.join(" ")
    );
    Ok(())
}

pub fn is_kubelet_client(asked: &Request, usages: &[String]) -> anyhow::Result<()> {
    is_of_nodes(asked)?;
    let names = &asked.names;
    ensure!(names.dns.is_empty(), "DNS subjectAltNames are not allowed");
    ensure!(names.emails.is_empty(), "Email subjectAltNames are not allowed");
    ensure!(names.ips.is_empty(), "IP subjectAltNames are not allowed");
    ensure!(names.uris.is_empty(), "URI subjectAltNames are not allowed");
    names_node(asked)?;
    exactly(usages, "client auth")
}

fn is_kubelet_serving(asked: &Request, usages: &[String]) -> anyhow::Result<()> {
    is_of_nodes(asked)?;
    let names = &asked.names;
    ensure!(
        !names.dns.is_empty() || !names.ips.is_empty(),
        "DNS or IP subjectAltName is required"
    );
    ensure!(names.emails.is_empty(), "Email subjectAltNames are not allowed");
    ensure!(names.uris.is_empty(), "URI subjectAltNames are not allowed");
    exactly(usages, "server auth")?;
    names_node(asked)
}

fn is_api_client(usages: &[String]) -> anyhow::Result<()> {
    let allowed = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|u| !allowed.contains(&u.as_str())) {
        bail!("invalid usage for client certificate: {other}");
    }
    ensure!(
        usages.iter().any(|u| u == "client auth"),
        "missing required usage for client certificate: client auth"
    );
    Ok(())
}

/// Whether a signer is one of ours, and if so, why it refuses a request.
pub fn check(signer: &str, asked: &Request, usages: &[String]) -> Option<anyhow::Result<()>> {
    Some(match signer {
        KUBELET_CLIENT => is_kubelet_client(asked, usages),
        KUBELET_SERVING => is_kubelet_serving(asked, usages),
        API_CLIENT => is_api_client(usages),
        LEGACY => Ok(()),
        _ => return None,
    })
}

/// The usages of a certificate: of its key, and its own in the order of their numbers.
pub fn usages(asked: &[String]) -> anyhow::Result<(u16, Vec<ExtKeyUsage>)> {
    let mut key = 0;
    let mut extended = BTreeSet::new();
    for usage in asked {
        match (of_key(usage), of_certificate(usage)) {
            (Some(bit), _) => key |= bit,
            (None, Some(usage)) => _ = extended.insert(usage),
            (None, None) => bail!("unrecognized usage values: [{usage:?}]"),
        }
    }
    Ok((key, extended.into_iter().collect()))
}

fn of_key(usage: &str) -> Option<u16> {
    Some(match usage {
        "signing" | "digital signature" => key_usage::DIGITAL_SIGNATURE,
        "content commitment" => key_usage::CONTENT_COMMITMENT,
        "key encipherment" => key_usage::KEY_ENCIPHERMENT,
        "key agreement" => key_usage::KEY_AGREEMENT,
        "data encipherment" => key_usage::DATA_ENCIPHERMENT,
        "cert sign" => key_usage::CERT_SIGN,
        "crl sign" => key_usage::CRL_SIGN,
        "encipher only" => key_usage::ENCIPHER_ONLY,
        "decipher only" => key_usage::DECIPHER_ONLY,
        _ => return None,
    })
}

fn of_certificate(usage: &str) -> Option<ExtKeyUsage> {
    Some(match usage {
        "any" => ExtKeyUsage::Any,
        "server auth" => ExtKeyUsage::ServerAuth,
        "client auth" => ExtKeyUsage::ClientAuth,
        "code signing" => ExtKeyUsage::CodeSigning,
        "email protection" | "s/mime" => ExtKeyUsage::EmailProtection,
        "ipsec end system" => ExtKeyUsage::IpsecEndSystem,
        "ipsec tunnel" => ExtKeyUsage::IpsecTunnel,
        "ipsec user" => ExtKeyUsage::IpsecUser,
        "timestamping" => ExtKeyUsage::TimeStamping,
        "ocsp signing" => ExtKeyUsage::OcspSigning,
        "microsoft sgc" => ExtKeyUsage::MicrosoftSgc,
        "netscape sgc" => ExtKeyUsage::NetscapeSgc,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn list(usages: &[&str]) -> Vec<String> {
        usages.iter().map(|u| (*u).to_string()).collect()
    }
    fn verdict(signer: &str, asked: &Request, usages: &[&str]) -> String {
        let verdict = check(signer, asked, &list(usages)).expect("a signer of ours");
        verdict.err().map(|e| e.to_string()).unwrap_or_default()
    }

    /// Requests of every form, with the verdicts of upstream's own code (`tools/x509`).
    #[test]
    fn kubelets_get_certificates_as_upstream_gives_them() {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../../../base/pki/testdata/requests.json")).expect("the table");
        let mut granted = [0, 0];
        for case in &cases {
            let text = |key: &str| case[key].as_str().unwrap_or_default();
            let Ok(asked) = Request::from_pem(text("PEM").as_bytes()) else {
                continue;
            };
            let client = verdict(KUBELET_CLIENT, &asked, &["client auth", "digital signature"]);
            let serving = verdict(KUBELET_SERVING, &asked, &["server auth", "digital signature"]);
            assert_eq!(client, text("KubeletClient"), "{}", text("Name"));
            assert_eq!(serving, text("KubeletServing"), "{}", text("Name"));
            granted[0] += usize::from(client.is_empty());
            granted[1] += usize::from(serving.is_empty());
        }
        assert!(granted[0] >= 8 && granted[1] >= 1, "{granted:?}");
    }

    #[test]
    fn signers_grant_their_usages_only() {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../../../base/pki/testdata/requests.json")).expect("the table");
        let of = |name: &str| {
            let case = cases.iter().find(|c| c["Name"] == name).expect("a case of the table");
            Request::from_pem(case["PEM"].as_str().unwrap_or_default().as_bytes()).expect("a request")
        };
        let (node, serving, user) = (of("node"), of("a kubelet's serving certificate"), of("masters"));
        let all = "usages did not match [client auth digital signature key encipherment]";
        for (signer, asked, usages, why) in [
            (
                KUBELET_CLIENT,
                &node,
                &["client auth", "digital signature", "key encipherment"][..],
                "",
            ),
            (KUBELET_CLIENT, &node, &["client auth"], all),
            (
                KUBELET_CLIENT,
                &node,
                &["client auth", "digital signature", "server auth"],
                all,
            ),
            (KUBELET_CLIENT, &node, &["client auth", "signing"], all),
            (
                KUBELET_SERVING,
                &serving,
                &["client auth", "digital signature"],
                "usages did not match [digital signature key encipherment server auth]",
            ),
            (API_CLIENT, &user, &["client auth"], ""),
            (
                API_CLIENT,
                &user,
                &["client auth", "key encipherment", "digital signature"],
                "",
            ),
            (
                API_CLIENT,
                &user,
                &["client auth", "server auth"],
                "invalid usage for client certificate: server auth",
            ),
            (
                API_CLIENT,
                &user,
                &["any", "client auth"],
                "invalid usage for client certificate: any",
            ),
            (
                API_CLIENT,
                &user,
                &["digital signature"],
                "missing required usage for client certificate: client auth",
            ),
            (LEGACY, &user, &["any"], ""),
        ] {
            assert_eq!(verdict(signer, asked, usages), why, "{signer} {usages:?}");
        }
        assert!(check("kubernetes.io/new", &user, &[]).is_none() && check("example.com/a", &user, &[]).is_none());
    }

    #[test]
    fn usages_are_what_they_are_called() {
        let (key, extended) = usages(&list(&[
            "s/mime",
            "client auth",
            "signing",
            "crl sign",
            "any",
            "email protection",
        ]))
        .expect("all are known");
        assert_eq!(key, key_usage::DIGITAL_SIGNATURE | key_usage::CRL_SIGN);
        assert_eq!(
            extended,
            [ExtKeyUsage::Any, ExtKeyUsage::ClientAuth, ExtKeyUsage::EmailProtection]
        );
        let why = usages(&list(&["x"])).expect_err("unknown").to_string();
        assert_eq!(why, "unrecognized usage values: [\"x\"]");
    }
}
