//! What the kubelet's page says of a node's certificates, under upstream's names.

use super::keys::{Purpose, Slot};
use keelson_measure::{Histogram, IntCounter, Measures};
use keelson_pki::authority::CertFacts;
use std::sync::Arc;

/// Upstream's bounds: from a minute to four years.
const AGES: [f64; 10] = [
    60.0,
    3600.0,
    14400.0,
    86400.0,
    604800.0,
    2592000.0,
    7776000.0,
    15552000.0,
    31104000.0,
    124416000.0,
];

pub struct Told {
    failures: IntCounter,
    /// How long certificates were in use that were replaced: of the serving one.
    ages: Option<Histogram>,
}

impl Told {
    pub fn new(measures: &Measures, purpose: Purpose, slot: &Arc<Slot>) -> Told {
        let help = "Renewals of the certificate that failed";
        let (failures, left) = match purpose {
            Purpose::Client => (
                "kubelet_certificate_manager_client_expiration_renew_errors",
                "kubelet_certificate_manager_client_ttl_seconds",
            ),
            Purpose::Serving => (
                "kubelet_server_expiration_renew_errors",
                "kubelet_certificate_manager_server_ttl_seconds",
            ),
        };
        let left = measures.reals(left, "Seconds until the certificate ends; +Inf without one", &[]);
        let slot = Arc::downgrade(slot);
        measures.before(move || {
            let Some(slot) = slot.upgrade() else { return false };
            let ends = slot
                .facts()
                .map(|facts| facts.not_after - keelson_clock::now().as_second());
            left.with_label_values::<&str>(&[])
                .set(ends.map_or(f64::INFINITY, |seconds| seconds as f64));
            true
        });
        let ages = (purpose == Purpose::Serving).then(|| {
            let help = "Seconds from a certificate's beginning to when another took its place";
            measures.histogram("kubelet_certificate_manager_server_rotation_seconds", help, &AGES)
        });
        Told {
            failures: measures.counter(failures, help),
            ages,
        }
    }

    pub fn failed(&self) {
        self.failures.inc();
    }

    pub fn replaced(&self, before: Option<CertFacts>) {
        if let (Some(ages), Some(before)) = (&self.ages, before) {
            ages.observe((keelson_clock::now().as_second() - before.not_before) as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::keys::Wanted;
    use crate::agent::trust::Trusted;
    use keelson_measure::golden;
    use keelson_pki::{Authority, CertSpec};

    #[test]
    fn certificates_are_told_of_as_upstreams_are() {
        let dir = std::env::temp_dir().join(format!("keelson-told-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let measures = Measures::default();
        let slot = |name: &str| Slot::new(dir.join(name));
        let (client, serving) = (slot("client.pem"), slot("server.pem"));
        let told = [
            Told::new(&measures, Purpose::Client, &client),
            Told::new(&measures, Purpose::Serving, &serving),
        ];
        let line = |text: &str| {
            let page = measures.page();
            assert!(page.lines().any(|l| l == text), "{text} is not in\n{page}");
        };
        line("kubelet_certificate_manager_client_ttl_seconds inf");
        line("kubelet_server_expiration_renew_errors 0");
        let ca = Authority::generate("ca").unwrap();
        let wanted = Wanted {
            node: "n".into(),
            sans: Vec::new(),
            trusted: Trusted::new(&dir.join("ca.crt"), ca.cert_pem().to_string()).unwrap(),
        };
        let issued = ca.issue(&CertSpec::client("system:node:n", None)).unwrap();
        std::fs::write(
            dir.join("client.pem"),
            format!("{}\n{}", issued.cert_pem, issued.key_pem),
        )
        .unwrap();
        client.load(&wanted).unwrap().unwrap();
        told[0].failed();
        told[1].replaced(client.facts());
        line("kubelet_certificate_manager_client_expiration_renew_errors 1");
        line("kubelet_certificate_manager_server_rotation_seconds_count 1");
        line("kubelet_certificate_manager_server_ttl_seconds inf");
        let page = measures.page();
        assert!(!page.contains("client_ttl_seconds inf"), "{page}");
        let wrong = golden::differences(&page, include_str!("told.txt"), &[]);
        assert!(wrong.is_empty(), "{}\n{page}", wrong.join("\n"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
