//! Who may use an image that is there already (KEP-2535): one that some pod has pulled with credentials is for pods that
//! have them, or could pull it themselves.
//!
//! What was pulled, and with what, is kept in files in upstream's form and place, so that a restart of the kubelet (or
//! another kubelet) goes on with it. Before a pull there is a note that it was begun: an image that came while the
//! kubelet died is not taken for one that was on the machine before. Knows no registry; secrets stand in the files as
//! names and hashes only.

mod policy;
mod records;

pub use policy::Verification;

use super::credentials::Source;
use super::image_name;
use crate::host::{Host, Layout};
use keelson_cri::v1 as cri;
use parking_lot::Mutex;
use records::{Files, Record};
use std::collections::{HashMap, HashSet};

/// Secrets that are noted for one image while it is only looked at; upstream's bound.
const MOST_NOTED: usize = 100;

/// A secret that fits an image, by name and by the hash of what it says; a service account for which a plug-in has credentials.
pub use records::{Account, Credentials, Secret};

/// Whether an image that is there may be used.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Use,
    Pull,
    /// By who has the credentials of one of these.
    Show(Credentials),
}

#[derive(Default)]
pub struct Pulled {
    /// Pulls of each image that are under way. Held while files are read and written.
    under_way: Mutex<HashMap<String, usize>>,
}

/// Where the records are.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub host: &'a dyn Host,
    pub layout: &'a Layout,
}

impl Place<'_> {
    fn files(&self) -> Files<'_> {
        Files::new(self.host, &self.layout.root)
    }
}

impl Pulled {
    /// Notes that a pull begins.
    pub fn begin(&self, place: Place<'_>, image: &str) -> Result<(), String> {
        let mut under_way = self.under_way.lock();
        place
            .files()
            .write_intent(image)
            .map_err(|e| format!("failed to record image pull intent: {e}"))?;
        *under_way.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Notes that a pull has ended without an image.
    pub fn failed(&self, place: Place<'_>, image: &str) {
        let mut under_way = self.under_way.lock();
        match under_way.get_mut(image) {
            Some(pulls) if *pulls > 1 => *pulls -= 1,
            _ => {
                if let Err(error) = place.files().remove_intent(image) {
                    tracing::error!(image, %error, "the note of a pull can't be removed");
                    return;
                }
                under_way.remove(image);
            }
        }
    }

    /// Notes that an image was pulled, with credentials or without any. Where that can't be written, the note of the pull
    /// stays: then everybody has to show credentials.
    pub fn succeeded(&self, place: Place<'_>, image: &str, reference: &str, source: Option<&Source>) {
        let credentials = Credentials::of(source);
        let written = {
            let _turn = self.under_way.lock();
            note(place, image, reference, Some(&credentials))
        };
        match written {
            Ok(()) => self.failed(place, image),
            Err(error) => tracing::error!(image, error, "what was pulled can't be noted"),
        }
    }

    /// Whether an image that is there already may be used, or who may.
    pub fn judge(&self, place: Place<'_>, policy: &Verification, image: &str, reference: &str) -> Verdict {
        let under_way = self.under_way.lock();
        let files = place.files();
        let record = match files.record(reference) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(image, %error, "the record of an image can't be read, so that credentials have to be shown");
                return Verdict::Pull;
            }
        };
        let by_kubelet = record.is_some() || under_way.contains_key(image) || files.has_intent(image);
        if !policy.wants_credentials(image, by_kubelet) {
            return Verdict::Use;
        }
        let name = image_name::without_tag(image);
        match record.and_then(|mut r| r.credential_mapping.remove(name)) {
            Some(noted) if noted.node_pods_accessible => Verdict::Use,
            Some(noted) if noted != Credentials::default() => Verdict::Show(noted),
            _ => Verdict::Pull,
        }
    }

    /// Whether a pod with these credentials has to pull an image whose use wants some.
    pub fn must_pull(
        &self,
        place: Place<'_>,
        image: &str,
        reference: &str,
        noted: &Credentials,
        sources: &[Source],
    ) -> bool {
        let _turn = self.under_way.lock();
        for source in sources {
            let Source::Secret(secret) = source else { continue };
            for known in &noted.kubernetes_secrets {
                let same_content = !known.credential_hash.is_empty() && known.credential_hash == secret.credential_hash;
                let same_name = known.is_same_object(secret);
                if !same_content && !same_name {
                    continue;
                }
                // The same in another secret, or a secret that was changed: both count from now on.
                if !(same_content && same_name)
                    && noted.kubernetes_secrets.len() < MOST_NOTED
                    && let Err(error) = note(place, image, reference, Some(&Credentials::of(Some(source))))
                {
                    tracing::error!(image, error, "what was pulled can't be noted");
                }
                if same_content || noted.kubernetes_secrets.len() < MOST_NOTED {
                    return false;
                }
            }
        }
        // A pod has one, whatever plug-ins were asked.
        !sources.iter().any(|source| match source {
            Source::Account(account) => noted.kubernetes_service_accounts.contains(account),
            _ => false,
        })
    }

    /// Whether the kubelet has pulled an image; otherwise it was brought by somebody.
    pub fn knows(&self, place: Place<'_>, reference: &str) -> bool {
        let _turn = self.under_way.lock();
        // One that can't be read is one.
        !matches!(place.files().record(reference), Ok(None))
    }

    /// After a start: pulls that the last kubelet began and whose images are there have been pulled, with credentials
    /// that nobody knows.
    pub fn take_up(&self, place: Place<'_>, images: &[cri::Image]) {
        let _turn = self.under_way.lock();
        let files = place.files();
        let begun: HashSet<String> = files.intents().into_iter().collect();
        for image in images {
            for name in image
                .repo_digests
                .iter()
                .chain(&image.repo_tags)
                .filter(|n| begun.contains(*n))
            {
                let done = note(place, name, &image.id, None)
                    .and_then(|()| files.remove_intent(name).map_err(|e| e.to_string()));
                if let Err(error) = done {
                    tracing::error!(image = name, error, "a pull of the last kubelet can't be noted");
                }
            }
        }
    }

    /// Forgets images that are no longer there, but for what was noted since `until`.
    pub fn prune(&self, place: Place<'_>, present: &HashSet<String>, until: jiff::Timestamp) {
        let _turn = self.under_way.lock();
        let files = place.files();
        for record in files.records() {
            if record.last_updated_time < until
                && !present.contains(&record.image_ref)
                && let Err(error) = files.remove_record(&record.image_ref)
            {
                tracing::error!(image = record.image_ref, %error, "the record of an image that is gone can't be removed");
            }
        }
    }
}

/// Adds credentials to an image's record. `None`: only that the kubelet pulled it.
fn note(place: Place<'_>, image: &str, reference: &str, credentials: Option<&Credentials>) -> Result<(), String> {
    let files = place.files();
    let name = image_name::without_tag(image);
    let mut record = files.record(reference).unwrap_or_else(|error| {
        tracing::info!(image, %error, "the record of an image can't be read and begins anew");
        None
    });
    let is_new = record.is_none();
    let noted = record.get_or_insert_with(|| Record::new(reference));
    let changed = credentials.is_some_and(|c| noted.add(name, c));
    if !is_new && !changed {
        return Ok(());
    }
    noted.last_updated_time = place.host.now();
    files.write_record(noted).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    const EPOCH: &str = "2026-01-01T00:00:00Z";

    fn machine() -> (FakeHost, Layout) {
        let layout = Layout {
            root: "/var/lib/kubelet".into(),
            logs: "/var/log/pods".into(),
        };
        (FakeHost::small("n", EPOCH.parse().unwrap()), layout)
    }

    fn secret(name: &str, hash: &str) -> Source {
        Source::Secret(Secret {
            uid: format!("uid-{name}"),
            namespace: "ns".into(),
            name: name.into(),
            credential_hash: hash.into(),
        })
    }

    fn must_pull(
        pulled: &Pulled,
        place: Place<'_>,
        policy: &Verification,
        (image, reference): (&str, &str),
        sources: &[Source],
    ) -> bool {
        match pulled.judge(place, policy, image, reference) {
            Verdict::Use => false,
            Verdict::Pull => true,
            Verdict::Show(noted) => pulled.must_pull(place, image, reference, &noted, sources),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_has_the_credentials_gets_the_image() {
        let (host, layout) = machine();
        let place = Place {
            host: &host,
            layout: &layout,
        };
        let (pulled, policy) = (Pulled::default(), Verification::default());
        let must = |image: &str, secrets: &[Source]| must_pull(&pulled, place, &policy, (image, "sha256:1"), secrets);
        // On the machine before any kubelet: for everybody.
        assert!(!must("r.io/a:1", &[]));
        pulled.begin(place, "r.io/a:1").unwrap();
        assert!(must("r.io/a:1", &[]), "while it is pulled");
        let own = secret("own", "h1");
        pulled.succeeded(place, "r.io/a:1", "sha256:1", Some(&own));
        assert!(!must("r.io/a:1", std::slice::from_ref(&own)));
        assert!(
            !must("r.io/a@sha256:2", std::slice::from_ref(&own)),
            "the tag makes no difference"
        );
        assert!(must("r.io/b:1", std::slice::from_ref(&own)), "another repository does");
        assert!(must("r.io/a:1", &[]));
        assert!(must("r.io/a:1", &[secret("other", "h2")]));
        // Another secret that says the same, and the same one rotated.
        assert!(!must("r.io/a:1", &[secret("other", "h1")]));
        assert!(!must("r.io/a:1", &[secret("own", "h3")]));
        assert!(!must("r.io/a:1", &[secret("third", "h3")]), "the rotated one was noted");
        // Without a secret: for everybody, from then on.
        pulled.begin(place, "r.io/a:1").unwrap();
        pulled.succeeded(place, "r.io/a:1", "sha256:1", None);
        assert!(!must("r.io/a:1", &[]));
        let never = Verification::NeverVerify;
        assert!(!must_pull(&pulled, place, &never, ("r.io/b:1", "sha256:1"), &[]));
        let always = Verification::AlwaysVerify;
        assert!(must_pull(&pulled, place, &always, ("r.io/c:1", "sha256:3"), &[]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_plugin_gave_for_an_account_is_that_accounts() {
        let (host, layout) = machine();
        let place = Place {
            host: &host,
            layout: &layout,
        };
        let (pulled, policy) = (Pulled::default(), Verification::default());
        let account = |uid: &str| {
            Source::Account(Account {
                uid: uid.into(),
                namespace: "ns".into(),
                name: "robot".into(),
            })
        };
        let must = |sources: &[Source]| must_pull(&pulled, place, &policy, ("r.io/a:1", "sha256:1"), sources);
        pulled.begin(place, "r.io/a:1").unwrap();
        pulled.succeeded(place, "r.io/a:1", "sha256:1", Some(&account("1")));
        assert!(!must(&[Source::Node, account("1")]));
        assert!(must(&[account("2")]), "another one of the same name");
        assert!(must(&[]) && must(&[Source::Node]) && must(&[secret("own", "h1")]));
        // A second account and a secret beside it.
        for source in [account("2"), secret("own", "h1")] {
            pulled.begin(place, "r.io/a:1").unwrap();
            pulled.succeeded(place, "r.io/a:1", "sha256:1", Some(&source));
        }
        assert!(!must(&[account("1")]) && !must(&[account("2")]) && !must(&[secret("own", "h1")]));
        let text = host.read(&place.files().record_path("sha256:1"), 1 << 20).unwrap();
        let text = String::from_utf8(text).unwrap();
        let accounts = r#""kubernetesServiceAccounts":[{"uid":"1","namespace":"ns","name":"robot"},{"uid":"2""#;
        assert!(text.contains(accounts), "{text}");
        // By what is the node's own: for everybody.
        pulled.begin(place, "r.io/a:1").unwrap();
        pulled.succeeded(place, "r.io/a:1", "sha256:1", Some(&Source::Node));
        assert!(!must(&[]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_a_restart_cut_off_counts() {
        let (host, layout) = machine();
        let place = Place {
            host: &host,
            layout: &layout,
        };
        Pulled::default().begin(place, "r.io/a:1").unwrap();
        let (pulled, policy) = (Pulled::default(), Verification::default());
        assert!(must_pull(&pulled, place, &policy, ("r.io/a:1", "sha256:1"), &[]));
        let image = cri::Image {
            id: "sha256:1".into(),
            repo_tags: vec!["r.io/a:1".into()],
            ..Default::default()
        };
        pulled.take_up(place, &[image]);
        assert!(pulled.knows(place, "sha256:1") && !place.files().has_intent("r.io/a:1"));
        assert!(must_pull(&pulled, place, &policy, ("r.io/a:1", "sha256:1"), &[]));
        // Two at once: the note goes with the last.
        pulled.begin(place, "r.io/b:1").unwrap();
        pulled.begin(place, "r.io/b:1").unwrap();
        pulled.failed(place, "r.io/b:1");
        assert!(place.files().has_intent("r.io/b:1"));
        pulled.failed(place, "r.io/b:1");
        assert!(!place.files().has_intent("r.io/b:1"));
        let later = host.now() + jiff::SignedDuration::from_secs(1);
        pulled.prune(place, &HashSet::from(["sha256:1".to_owned()]), later);
        assert!(pulled.knows(place, "sha256:1"));
        pulled.prune(place, &HashSet::new(), host.now());
        assert!(pulled.knows(place, "sha256:1"), "noted since");
        pulled.prune(place, &HashSet::new(), later);
        assert!(!pulled.knows(place, "sha256:1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_cannot_be_read_opens_nothing() {
        let (host, layout) = machine();
        let place = Place {
            host: &host,
            layout: &layout,
        };
        let pulled = Pulled::default();
        pulled.begin(place, "r.io/a:1").unwrap();
        pulled.succeeded(place, "r.io/a:1", "sha256:1", None);
        let path = place.files().record_path("sha256:1");
        let text = String::from_utf8(host.read(&path, 1 << 20).unwrap()).unwrap();
        assert!(
            text.contains(r#""kind":"ImagePulledRecord""#) && text.contains("kubelet.config.k8s.io/v1beta1"),
            "{text}"
        );
        assert!(
            text.contains(r#""credentialMapping":{"r.io/a":{"nodePodsAccessible":true}}"#),
            "{text}"
        );
        host.write(&path, b"{", 0o600).unwrap();
        assert!(must_pull(
            &pulled,
            place,
            &Verification::default(),
            ("r.io/a:1", "sha256:1"),
            &[]
        ));
        assert!(pulled.knows(place, "sha256:1"));
    }
}
