//! Certificates of the etcd that Keelson runs, in `<data-dir>/pki/etcd`, named as kubeadm names them: an authority, by which only
//! servers and members are known; what a member shows to clients and to its peers; what a server shows to members.

use super::Place;
use anyhow::{Context, Result};
use keelson_pki::authority::CA_LIFETIME;
use keelson_pki::sharing::ETCD_CA;
use keelson_pki::{Authority, CertFiles, CertSpec, San, Usage, layout};

/// What a member shows. etcd reads the files anew for each connection, so that what is renewed is in force at once.
pub struct Certificates {
    pub server: CertFiles,
    pub peer: CertFiles,
    pub client: CertFiles,
}

impl Certificates {
    /// Issues what is missing, nears its end or says something else; the authority too, if there is none.
    pub fn ensure(place: &Place) -> Result<Certificates> {
        let dir = place.pki();
        // A step of the authority that broke off.
        ETCD_CA.complete(&place.data_dir.join("pki"))?;
        let ca = Authority::open(&dir, "ca", "etcd-ca").context("etcd's authority")?;
        let mut names = vec![
            San::Dns("localhost".into()),
            San::Dns(place.name.clone()),
            San::Ip([127, 0, 0, 1].into()),
            San::Ip(place.ip),
        ];
        names.sort();
        names.dedup();
        // Members show theirs to each other from both sides.
        let both = |name: &str| CertSpec {
            usages: vec![Usage::Server, Usage::Client],
            ..CertSpec::server(name, names.clone())
        };
        let issue = |file: &str, spec: CertSpec| layout::ensure(&dir, file, &ca, &spec);
        Ok(Certificates {
            server: issue("server", both(&place.name))?,
            peer: issue("peer", both(&place.name))?,
            // Machines that join are told it, and keep it until they are members.
            client: issue(
                "client",
                CertSpec {
                    lifetime: CA_LIFETIME,
                    ..CertSpec::client("keelson-server", None)
                },
            )?,
        })
    }

    /// Unix seconds.
    pub fn renew_at(&self) -> i64 {
        let all = [&self.server, &self.peer, &self.client];
        all.iter().map(|files| files.renew_at).min().unwrap_or_default()
    }
}
