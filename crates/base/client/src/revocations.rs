//! What has been taken back, and whom it concerns that is connected already.
//!
//! The list is one object of the cluster ([`keelson_pki::revocation`]). Whoever serves judges what it is shown by it, also where a
//! connection or a token has been good before, and lets nobody in who shows something before the list [has been read](Revocations::are_read).
//! Who stays longer (a connection with a certificate, a watch, a stream) is [held](Revocations::hold) and let go when a new record says
//! so. Judging allocates nothing.

use crate::objects::Objects;
use crate::rest::{Rest, is_forbidden};
use crate::{Informer, InformerOptions};
use k8s_openapi::api::core::v1::ConfigMap;
use keelson_pki::revocation::{Credential, NAME, NAMESPACE, Table};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// For how long servers have to refuse to tell the list until there is taken to be none.
const REFUSED: Duration = Duration::from_secs(60);

/// What somebody stays by.
pub trait Shows: Send + Sync {
    fn credential(&self) -> Credential<'_>;
}

/// A certificate that somebody known signed: all that is to be known of it here.
#[derive(Clone, Debug, Default)]
pub struct Certificate {
    pub name: String,
    pub serial: String,
    /// Unix seconds.
    pub issued: i64,
}

impl Certificate {
    pub fn of(certificate: &keelson_pki::x509::Certificate) -> Certificate {
        Certificate {
            name: certificate.subject.common_name.clone(),
            serial: keelson_pki::revocation::serial_of(certificate),
            issued: keelson_pki::revocation::issued(certificate.not_before.as_second()),
        }
    }
}

impl Shows for Certificate {
    fn credential(&self) -> Credential<'_> {
        Credential {
            name: &self.name,
            issued: Some(self.issued),
            serial: Some(&self.serial),
            ..Credential::default()
        }
    }
}

pub struct Revocations {
    read: watch::Sender<bool>,
    table: RwLock<Table>,
    next: AtomicU64,
    held: Mutex<HashMap<u64, Stays>>,
}

struct Stays {
    by: Arc<dyn Shows>,
    cut: CancellationToken,
}

impl Default for Revocations {
    fn default() -> Self {
        Revocations {
            read: watch::Sender::new(false),
            table: RwLock::default(),
            next: AtomicU64::new(0),
            held: Mutex::default(),
        }
    }
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Revocations({})", self.table.read().len())
    }
}

/// Somebody who stays; forgotten when dropped.
pub struct Held {
    id: u64,
    all: Arc<Revocations>,
    cut: CancellationToken,
}

impl Held {
    /// Cancelled when what it came by is taken back.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.held.lock().remove(&self.id);
    }
}

impl Revocations {
    fn is_read(&self) -> bool {
        *self.read.borrow()
    }

    /// Whether the list is there, now or within a time.
    pub async fn are_read(&self, patience: Duration) -> bool {
        if self.is_read() {
            return true;
        }
        let mut read = self.read.subscribe();
        let waited = tokio::time::timeout(patience, read.wait_for(|read| *read)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// Why what is shown doesn't count any more.
    pub fn judge(&self, shown: &Credential<'_>) -> Option<String> {
        self.table.read().judge(shown).map(|revoked| revoked.to_string())
    }
    /// Whether a token is taken back by its text.
    pub fn has_token(&self, token: &str) -> bool {
        self.table.read().has(token)
    }

    /// Notes somebody who stays; `cut` is cancelled when what he came by is taken back, at once if it has been already.
    pub fn hold(self: &Arc<Self>, by: Arc<dyn Shows>, cut: CancellationToken) -> Held {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let noted = Stays {
            by: by.clone(),
            cut: cut.clone(),
        };
        self.held.lock().insert(id, noted);
        // After it is noted: a change meanwhile is seen here or there.
        if self.table.read().judge(&by.credential()).is_some() {
            cut.cancel();
        }
        Held {
            id,
            all: self.clone(),
            cut,
        }
    }

    /// The same for a connection. One that comes with what has been taken back already isn't noted: it stays for as long as it takes to
    /// tell each of its requests that it is refused.
    pub fn attach(self: &Arc<Self>, by: Arc<dyn Shows>, ended: CancellationToken) -> Option<Held> {
        let is_known = self.table.read().judge(&by.credential()).is_some();
        (!is_known).then(|| self.hold(by, ended))
    }

    /// The list is this from now on.
    pub fn set(&self, table: Table) {
        *self.table.write() = table;
        self.read.send_if_modified(|read| !std::mem::replace(read, true));
        let cut: Vec<CancellationToken> = {
            let (table, held) = (self.table.read(), self.held.lock());
            let concerned = held
                .values()
                .filter(|stays| table.judge(&stays.by.credential()).is_some());
            concerned.map(|stays| stays.cut.clone()).collect()
        };
        // Not under the locks: whoever wakes may look in here.
        let live = cut.iter().filter(|cut| !cut.is_cancelled());
        let ended = live.inspect(|cut| cut.cancel()).count();
        if ended > 0 {
            tracing::info!(ended, "connections and streams end: what they came by has been revoked");
        }
    }

    /// Follows the list until `stop`, for who isn't the API server itself.
    pub async fn follow(self: Arc<Self>, rest: &Rest, stop: CancellationToken) {
        let options = InformerOptions {
            namespace: NAMESPACE.into(),
            fields: format!("metadata.name={NAME}"),
            ..InformerOptions::default()
        };
        let maps: Informer<ConfigMap> = Informer::start(rest, options, &stop);
        let mut changes = maps.store().changes();
        let synced = async {
            maps.synced().await;
            loop {
                let map = maps.store().get(NAMESPACE, NAME);
                self.set(map.and_then(|map| map.data.as_ref().map(table)).unwrap_or_default());
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = synced => {}
            () = self.goes_without(rest) => {}
            () = stop.cancelled() => {}
        }
    }

    /// A server of an older version has no list, and lets nobody ask for it; one that has just started may not know yet who may.
    async fn goes_without(&self, rest: &Rest) {
        tokio::time::sleep(REFUSED).await;
        if !self.is_read() {
            let asked = Objects::<ConfigMap>::new(rest).find(NAMESPACE, NAME).await;
            if let Err(error) = asked
                && is_forbidden(&error)
                && !self.is_read()
            {
                tracing::warn!("the servers don't tell what has been revoked: {error}");
                self.set(Table::default());
            }
        }
        std::future::pending().await
    }
}

fn table<'a>(data: impl IntoIterator<Item = (&'a String, &'a String)>) -> Table {
    read(data.into_iter().map(|(key, text)| (key.as_str(), text.as_str())))
}

/// What stands in the list. A record that can't be read is told of, with what it counts as.
pub fn read<'a>(data: impl IntoIterator<Item = (&'a str, &'a str)>) -> Table {
    Table::read(data, |key, error| {
        tracing::error!(key, "a record of {NAME} can't be read: {error:#}");
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::revocation::Record;

    fn certificate(name: &str) -> Arc<Certificate> {
        Arc::new(Certificate {
            name: name.into(),
            issued: 1,
            ..Certificate::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_stays_is_let_go_when_a_record_says_so_and_nobody_else_is() {
        let all = Arc::new(Revocations::default());
        assert!(!all.are_read(Duration::from_secs(10)).await);
        all.set(Table::default());
        assert!(all.are_read(Duration::ZERO).await);
        let [ana, bob] = ["ana", "bob"].map(|name| all.hold(certificate(name), CancellationToken::new()));
        let record = Record {
            at: Some(jiff::Timestamp::from_second(5).unwrap()),
            ..Record::of_name("ana", jiff::Timestamp::UNIX_EPOCH)
        };
        let (key, text) = (record.key(), record.to_json().unwrap());
        all.set(read([(key.as_str(), text.as_str())]));
        assert!(ana.cut().is_cancelled() && !bob.cut().is_cancelled());
        // Who was judged before the record came, and is noted after it.
        let late = all.hold(certificate("ana"), CancellationToken::new());
        assert!(late.cut().is_cancelled());
        assert!(
            all.attach(certificate("ana"), CancellationToken::new()).is_none(),
            "it is told why"
        );
        drop((ana, late));
        assert_eq!(all.held.lock().len(), 1);
        all.set(Table::default());
        assert!(
            !all.hold(certificate("ana"), CancellationToken::new())
                .cut()
                .is_cancelled()
        );
    }

    /// Servers that don't know yet who may what refuse everybody; those of an older version go on to.
    #[tokio::test(start_paused = true)]
    async fn a_list_that_nobody_may_ask_for_is_taken_for_none_only_when_that_stays_so() {
        let api = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "not yet", "reason": "Forbidden", "code": 403});
            let mut answer = http::Response::new(kube::client::Body::from(status.to_string().into_bytes()));
            *answer.status_mut() = http::StatusCode::FORBIDDEN;
            Ok::<_, std::convert::Infallible>(answer)
        });
        let rest = Rest::new(kube::Client::new(api, "default"), "test");
        let (all, stop) = (Arc::new(Revocations::default()), CancellationToken::new());
        let (follower, stopped) = (all.clone(), stop.clone());
        let following = tokio::spawn(async move { follower.follow(&rest, stopped).await });
        assert!(!all.are_read(REFUSED / 2).await);
        assert!(all.are_read(REFUSED).await);
        stop.cancel();
        following.await.unwrap();
    }
}
