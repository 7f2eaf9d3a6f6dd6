//! Which certificates a cluster has and where they stand: `<data-dir>/pki`, named as kubeadm names them.
//!
//! A certificate is issued when it is missing, nears its end, is from the future (the clock was set back), says something else than wanted, or is of another
//! authority. Whoever uses one asks again at [`CertFiles::renew_at`].

use crate::authority::{self, Authority, CertSpec, San};
use crate::files;
use crate::jwt::ServiceAccountKeys;
use crate::kubeconfig::Kubeconfig;
use crate::sharing;
use anyhow::{Context, Result};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

pub const ADMIN_GROUP: &str = "system:masters";
/// The API server, as kubelets know it.
pub const AT_KUBELETS: &str = "kube-apiserver-kubelet-client";
pub const NODES_GROUP: &str = "system:nodes";

/// The certificates of a cluster.
pub struct Pki {
    pub dir: PathBuf,
    /// Signs servers' and clients' certificates.
    pub ca: Authority,
    /// Signs the certificate by which the API server proves itself to extension servers.
    pub front_proxy_ca: Authority,
    pub service_account: ServiceAccountKeys,
}

/// Where a certificate stands, and its content.
#[derive(Clone, Debug)]
pub struct CertFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub cert_pem: String,
    pub key_pem: String,
    /// Unix seconds.
    pub renew_at: i64,
}

impl CertFiles {
    /// As peers are to see it.
    fn shown_by(mut self, ca: &Authority) -> CertFiles {
        self.cert_pem = ca.chain(&self.cert_pem);
        self
    }
}

/// How often a certificate is asked for at most, whatever the clock does.
const SHORTEST_SLEEP: Duration = Duration::from_secs(1);

/// Waits until a certificate is to be asked for again whose [`CertFiles::renew_at`] is given: until then, or until somebody
/// sets the clock.
pub async fn due(renew_at: i64) {
    let date = jiff::Timestamp::from_second(renew_at).unwrap_or(jiff::Timestamp::MAX);
    tokio::join!(tokio::time::sleep(SHORTEST_SLEEP), keelson_clock::sleep_until(date));
}

/// The cluster's certificates as they are now: authorities are replaced while all runs.
#[derive(Clone)]
pub struct Current(Arc<watch::Sender<Arc<Pki>>>);

impl Current {
    pub fn new(pki: Pki) -> Current {
        Current(Arc::new(watch::Sender::new(Arc::new(pki))))
    }
    pub fn get(&self) -> Arc<Pki> {
        self.0.borrow().clone()
    }
    /// What stands in the directory now is in force from now on.
    pub fn reload(&self) -> Result<()> {
        let dir = self.get().dir.clone();
        let again = Pki::open(dir.parent().unwrap_or(&dir))?;
        self.0.send_replace(Arc::new(again));
        Ok(())
    }
    /// Told of each change from now on.
    pub fn changes(&self) -> watch::Receiver<Arc<Pki>> {
        self.0.subscribe()
    }
}

impl Pki {
    /// Opens `<data-dir>/pki`; what is missing is made.
    pub fn open(data_dir: &Path) -> Result<Pki> {
        let dir = data_dir.join("pki");
        // A step that is written meanwhile is seen whole or not at all.
        let _alone = sharing::alone();
        for item in sharing::ITEMS {
            item.end(&dir)?;
        }
        Ok(Pki {
            ca: Authority::open(&dir, "ca", "kubernetes")?,
            front_proxy_ca: Authority::open(&dir, "front-proxy-ca", "front-proxy-ca")?,
            service_account: ServiceAccountKeys::open(&dir)?,
            dir,
        })
    }

    /// By which whoever knows the cluster's authority before only comes to know this one, or the next.
    pub fn introductions(&self) -> Result<String> {
        Ok(files::read(&self.dir.join("ca-cross.crt"))?.unwrap_or_default())
    }

    pub fn ca_path(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The certificate in `<pki>/<name>.crt`, signed by the cluster's authority.
    pub fn ensure(&self, name: &str, spec: &CertSpec) -> Result<CertFiles> {
        ensure(&self.dir, name, &self.ca, spec)
    }

    /// The API server's serving certificate: its own names, the service's address, and what is given.
    pub fn apiserver(&self, service_ip: IpAddr, cluster_domain: &str, also: &[San]) -> Result<CertFiles> {
        let mut sans: Vec<San> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ]
        .iter()
        .map(|n| San::Dns((*n).to_string()))
        .collect();
        sans.push(San::Dns(format!("kubernetes.default.svc.{cluster_domain}")));
        sans.extend([
            San::Ip([127, 0, 0, 1].into()),
            San::Ip(std::net::Ipv6Addr::LOCALHOST.into()),
            San::Ip(service_ip),
        ]);
        sans.extend(also.iter().cloned());
        sans.sort();
        sans.dedup();
        let found = self.ensure("apiserver", &CertSpec::server("kube-apiserver", sans))?;
        Ok(found.shown_by(&self.ca))
    }

    /// By which the API server is known to kubelets. In no group: what it may there is a role's, for a Node can say that its kubelet is
    /// an API server, and whoever has something passed on to that Node would be answered as whom this certificate names.
    pub fn apiserver_kubelet_client(&self) -> Result<CertFiles> {
        let spec = CertSpec::client(AT_KUBELETS, None);
        Ok(self.ensure("apiserver-kubelet-client", &spec)?.shown_by(&self.ca))
    }

    /// By which the API server is known to extension API servers.
    pub fn front_proxy_client(&self) -> Result<CertFiles> {
        let spec = CertSpec::client("front-proxy-client", None);
        let found = ensure(&self.dir, "front-proxy-client", &self.front_proxy_ca, &spec)?;
        Ok(found.shown_by(&self.front_proxy_ca))
    }

    /// A kubelet's serving certificate.
    pub fn kubelet_server(&self, node: &str, ips: &[IpAddr]) -> Result<CertFiles> {
        let mut sans = vec![San::Dns(node.to_string())];
        sans.extend(ips.iter().copied().map(San::Ip));
        let found = self.ensure(
            &format!("kubelet-{node}"),
            &CertSpec::server(&format!("system:node:{node}"), sans),
        )?;
        Ok(found.shown_by(&self.ca))
    }

    /// A kubelet's client certificate.
    pub fn kubelet_client(&self, node: &str) -> Result<CertFiles> {
        self.ensure(
            &format!("kubelet-client-{node}"),
            &CertSpec::client(&format!("system:node:{node}"), Some(NODES_GROUP)),
        )
    }

    /// A client certificate with its kubeconfig, written to `path`.
    pub fn kubeconfig(&self, path: &Path, server: &str, user: &str, group: Option<&str>) -> Result<Kubeconfig> {
        let name = user.replace(':', "-");
        let files = self.ensure(&format!("client-{name}"), &CertSpec::client(user, group))?;
        let config =
            Kubeconfig::with_certificate(server, &self.ca.bundle_pem(), &name, &files.cert_pem, &files.key_pem);
        config.write(path)?;
        Ok(config)
    }

    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self, path: &Path, server: &str) -> Result<Kubeconfig> {
        self.kubeconfig(path, server, "kubernetes-admin", Some(ADMIN_GROUP))
    }
}

/// Held while a certificate is looked at and issued: of two tasks that need the same one, the second finds what the first has made. Its
/// key could else be the one's, and the certificate the other's.
static ISSUING: Mutex<()> = Mutex::new(());

/// The certificate in `<dir>/<name>.crt` of this authority; issued when there is none, or another is wanted.
pub fn ensure(dir: &Path, name: &str, ca: &Authority, spec: &CertSpec) -> Result<CertFiles> {
    let _issuing = ISSUING.lock().unwrap_or_else(PoisonError::into_inner);
    let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if let (Some(cert_pem), Some(key_pem)) = (files::read(&cert)?, files::read(&key)?)
        && let Ok(facts) = authority::read_certificate(&cert_pem)
        && facts.is_fresh()
        && authority::says(&facts, spec)
        && authority::pairs(&cert_pem, &key_pem)
        && authority::signed_by(&cert_pem, ca.cert_pem())
    {
        return Ok(CertFiles {
            renew_at: facts.renew_at(),
            cert,
            key,
            cert_pem,
            key_pem,
        });
    }
    let issued = ca.issue(spec).with_context(|| format!("issuing {}", cert.display()))?;
    files::write_secret(&key, issued.key_pem.as_bytes())?;
    files::write_public(&cert, issued.cert_pem.as_bytes())?;
    let renew_at = authority::read_certificate(&issued.cert_pem)?.renew_at();
    Ok(CertFiles {
        cert,
        key,
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
        renew_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("keelson-pki-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_that_were_wrong_leave_nothing_behind() {
        let at = |date: &str| keelson_clock::simulate(date.parse().unwrap());
        let valid = |pki: &Pki| {
            let own = pki.apiserver_kubelet_client().unwrap();
            let (leaf, ca) = (
                authority::read_certificate(&own.cert_pem).unwrap(),
                authority::read_certificate(pki.ca.cert_pem()).unwrap(),
            );
            let now = keelson_clock::now().as_second();
            assert!(leaf.not_before <= now && now < leaf.not_after, "{leaf:?}");
            assert!(ca.not_before <= now && now < ca.not_after, "{ca:?}");
            assert!(authority::signed_by(&own.cert_pem, pki.ca.cert_pem()));
            own.cert_pem
        };
        // Ahead at the first start, far behind at the first start, a year switched off; then the right time.
        for wrong in ["2027-03-04T00:00:00Z", "1970-01-01T00:00:10Z", "2025-10-01T00:00:00Z"] {
            let dir = scratch(&format!("clock-{}", &wrong[..4]));
            let clock = at(wrong);
            let pki = Pki::open(&dir).unwrap();
            let first = valid(&pki);
            drop(clock);
            let _clock = at("2026-11-28T00:00:00Z");
            let again = Pki::open(&dir).unwrap();
            assert_eq!(pki.ca.cert_pem(), again.ca.cert_pem(), "authorities outlive clocks");
            assert_ne!(first, valid(&again), "{wrong}");
            // The running server's timer finds the same without a restart.
            assert_eq!(valid(&pki), valid(&again));
            std::fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn of_two_that_need_the_same_certificate_one_issues_it() {
        let dir = scratch("at-once");
        let pki = Pki::open(&dir).unwrap();
        let made: Vec<CertFiles> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| pki.apiserver_kubelet_client().unwrap()))
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(made.iter().all(|files| files.cert_pem == made[0].cert_pem));
        assert!(authority::pairs(&made[0].cert_pem, &made[0].key_pem));
        // It opens nothing by a group: what holds it may is written in roles.
        let facts = authority::read_certificate(&made[0].cert_pem).unwrap();
        assert_eq!(
            (facts.common_name.as_str(), facts.organizations.len()),
            (AT_KUBELETS, 0)
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_exists_is_kept_and_what_changed_is_issued_anew() {
        let dir = scratch("layout");
        let first = Pki::open(&dir).unwrap();
        let a = first.apiserver([10, 96, 0, 1].into(), "cluster.local", &[]).unwrap();
        let again = Pki::open(&dir).unwrap();
        assert_eq!(first.ca.cert_pem(), again.ca.cert_pem());
        assert_eq!(
            a.cert_pem,
            again
                .apiserver([10, 96, 0, 1].into(), "cluster.local", &[])
                .unwrap()
                .cert_pem
        );
        let b = again
            .apiserver([10, 96, 0, 1].into(), "cluster.local", &[San::parse("192.0.2.7")])
            .unwrap();
        assert_ne!(a.cert_pem, b.cert_pem);
        assert_eq!(std::fs::metadata(&b.key).unwrap().permissions().mode() & 0o777, 0o600);
        // A key of another certificate, as a crash between the two writes leaves it.
        let other = again.kubelet_client("n1").unwrap();
        std::fs::copy(&other.key, &b.key).unwrap();
        let c = again
            .apiserver([10, 96, 0, 1].into(), "cluster.local", &[San::parse("192.0.2.7")])
            .unwrap();
        assert_ne!(b.cert_pem, c.cert_pem);
        // A public half without its key is refused with what to do.
        for key in ["ca.key", "sa.key"] {
            let (path, aside) = (dir.join("pki").join(key), dir.join(key));
            std::fs::rename(&path, &aside).unwrap();
            assert!(
                Pki::open(&dir).err().unwrap().to_string().contains("restore the key"),
                "{key}"
            );
            std::fs::rename(&aside, &path).unwrap();
        }
        Pki::open(&dir).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
