//! What a certificate request asks for, and whether a signer may grant it. Pure.

use anyhow::{Context, bail, ensure};
use x509_parser::prelude::*;

pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns: usize,
    pub ips: usize,
    /// Mail addresses and URIs.
    pub others: usize,
}

pub fn read(pem: &[u8]) -> anyhow::Result<Asked> {
    let (_, block) = parse_x509_pem(pem).context("the request is no PEM")?;
    ensure!(
        block.label == "CERTIFICATE REQUEST",
        "PEM block type must be CERTIFICATE REQUEST"
    );
    let (_, request) =
        X509CertificationRequest::from_der(&block.contents).context("the request is no certificate request")?;
    let subject = &request.certification_request_info.subject;
    let mut asked = Asked {
        common_name: subject
            .iter_common_name()
            .next()
            .and_then(|n| n.as_str().ok())
            .unwrap_or_default()
            .to_string(),
        organizations: subject
            .iter_organization()
            .filter_map(|n| n.as_str().ok())
            .map(str::to_string)
            .collect(),
        ..Default::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension {
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(_) => asked.dns += 1,
                    GeneralName::IPAddress(_) => asked.ips += 1,
                    _ => asked.others += 1,
                }
            }
        }
    }
    Ok(asked)
}

fn only(usages: &[String], allowed: &[&str], required: &[&str]) -> anyhow::Result<()> {
    if let Some(other) = usages.iter().find(|u| !allowed.contains(&u.as_str())) {
        bail!("invalid usage for certificate: {other}");
    }
    for usage in required {
        ensure!(
            usages.iter().any(|u| u == usage),
            "missing required usage for certificate: {usage}"
        );
    }
    Ok(())
}

fn names_node(asked: &Asked) -> anyhow::Result<()> {
    ensure!(
        asked.organizations == ["system:nodes"],
        "subject organization is not system:nodes"
    );
    ensure!(
        asked.common_name.starts_with("system:node:"),
        "subject common name does not begin with system:node:"
    );
    Ok(())
}

pub fn is_kubelet_client(asked: &Asked, usages: &[String]) -> anyhow::Result<()> {
    names_node(asked)?;
    ensure!(
        asked.dns + asked.ips + asked.others == 0,
        "a node's client certificate has no alternative names"
    );
    only(
        usages,
        &["digital signature", "key encipherment", "client auth"],
        &["digital signature", "client auth"],
    )
}

fn is_kubelet_serving(asked: &Asked, usages: &[String]) -> anyhow::Result<()> {
    names_node(asked)?;
    ensure!(
        asked.dns + asked.ips > 0,
        "a serving certificate needs a DNS name or an address"
    );
    ensure!(asked.others == 0, "mail addresses and URIs are not allowed");
    only(
        usages,
        &["digital signature", "key encipherment", "server auth"],
        &["digital signature", "server auth"],
    )
}

/// Why a signer refuses a request; none if it signs, or isn't one of ours.
pub fn check(signer: &str, asked: &Asked, usages: &[String]) -> anyhow::Result<()> {
    match signer {
        KUBELET_CLIENT => is_kubelet_client(asked, usages),
        KUBELET_SERVING => is_kubelet_serving(asked, usages),
        API_CLIENT => only(
            usages,
            &["digital signature", "key encipherment", "client auth"],
            &["client auth"],
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signers_grant_what_is_theirs() {
        let usages = |list: &[&str]| list.iter().map(|u| u.to_string()).collect::<Vec<_>>();
        let client = usages(&["digital signature", "client auth"]);
        let node = Asked {
            common_name: "system:node:n1".into(),
            organizations: vec!["system:nodes".into()],
            ..Default::default()
        };
        assert!(check(KUBELET_CLIENT, &node, &client).is_ok());
        assert!(
            check(
                KUBELET_CLIENT,
                &node,
                &usages(&["digital signature", "client auth", "server auth"])
            )
            .is_err()
        );
        assert!(check(KUBELET_CLIENT, &node, &usages(&["client auth"])).is_err());
        assert!(
            check(KUBELET_SERVING, &node, &usages(&["digital signature", "server auth"])).is_err(),
            "no name to serve under"
        );
        let serving = Asked {
            dns: 1,
            ..Asked {
                common_name: "system:node:n1".into(),
                organizations: vec!["system:nodes".into()],
                ..Default::default()
            }
        };
        assert!(
            check(
                KUBELET_SERVING,
                &serving,
                &usages(&["digital signature", "server auth"])
            )
            .is_ok()
        );
        let other = Asked {
            organizations: vec!["system:masters".into()],
            ..node
        };
        assert!(check(KUBELET_CLIENT, &other, &client).is_err());
        assert!(read(b"nonsense").is_err());
    }
}
