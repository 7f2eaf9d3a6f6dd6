//! Revocations as the API server has them: the list is followed like its rules ([`PATH`]), and each request that shows something is
//! judged by it. What isn't known yet lets nobody in.

use super::x509::PeerCertificate;
use crate::live::Sink;
use crate::request::{RequestInfo, UserInfo};
use http::{HeaderMap, header};
use keelson_api::{Object, Str};
use keelson_client::revocations::{self, Shows};
use keelson_pki::revocation::{Credential, NAME, Table};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub use keelson_client::revocations::{Held, Revocations};

pub const PATH: &str = "/api/v1/namespaces/kube-system/configmaps";

/// What proved who sends a request.
#[derive(Clone, Debug)]
pub enum Proof {
    Certificate(Arc<PeerCertificate>),
    Token(Shown),
}

/// What is known of a token that was accepted.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub name: Str,
    /// `jti`, where it has one.
    pub id: Str,
    /// Unix seconds, where it says so.
    pub issued: Option<i64>,
    /// Of its text; only of what stays, or while some token is taken back by its text.
    pub bearer: Option<[u8; 32]>,
}

impl Shows for Shown {
    fn credential(&self) -> Credential<'_> {
        Credential {
            name: &self.name,
            issued: self.issued,
            token: Some(&*self.id).filter(|id| !id.is_empty()),
            bearer: self.bearer.as_ref(),
            ..Credential::default()
        }
    }
}

/// Of the ConfigMaps beside it only one counts.
struct List(Arc<Revocations>);

pub fn sink(all: &Arc<Revocations>) -> Arc<dyn Sink> {
    Arc::new(List(all.clone()))
}

fn table(map: &Object) -> Table {
    let data = map.obj("data").into_iter().flat_map(|data| data.iter());
    revocations::read(data.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))))
}

impl Sink for List {
    fn replace(&self, objects: Vec<Object>) {
        let list = objects.iter().find(|map| map.name() == NAME);
        self.0.set(list.map(table).unwrap_or_default());
    }
    fn set(&self, object: Object) {
        if object.name() == NAME {
            self.0.set(table(&object));
        }
    }
    fn delete(&self, object: Object) {
        if object.name() == NAME {
            self.0.set(Table::default());
        }
    }
}

/// A request that is cut when what it came by is taken back: for who takes its connection over.
#[derive(Clone)]
pub struct Cut(pub Arc<Held>);

impl Cut {
    /// Work that lasts until its end, or until it is cut.
    pub async fn or(cut: Option<Cut>, work: impl Future<Output = ()>) {
        match cut {
            Some(Cut(held)) => tokio::select! {
                biased;
                () = held.cut().cancelled() => {}
                () = work => {}
            },
            None => work.await,
        }
    }
}

/// Whether a request may stay open for long: a stream, or whatever an extension server upgrades to.
pub fn may_stay(info: &RequestInfo, headers: &HeaderMap) -> bool {
    info.is_long_running() || headers.contains_key(header::UPGRADE)
}

/// Holds a request that stays. One that nobody proved anything for, or that comes from within the process, isn't held.
pub fn stays(all: &Arc<Revocations>, proof: Option<Proof>) -> Option<Cut> {
    let by: Arc<dyn Shows> = match proof? {
        Proof::Certificate(peer) => peer,
        Proof::Token(shown) => Arc::new(shown),
    };
    Some(Cut(Arc::new(all.hold(by, CancellationToken::new()))))
}

/// Who a request is from, and by what that was proved.
pub struct Known {
    pub user: Arc<UserInfo>,
    pub proof: Option<Proof>,
}

impl Known {
    pub fn unproved(user: Arc<UserInfo>) -> Known {
        Known { user, proof: None }
    }
}

/// Why nobody is let in.
pub enum Unknown {
    Refused,
    /// What was shown has been taken back.
    Revoked(String),
    /// The list isn't there yet.
    TooEarly,
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;
    use keelson_pki::revocation::Record;

    #[test]
    fn of_the_maps_that_are_followed_one_counts() {
        let all = Arc::new(Revocations::default());
        let sink = sink(&all);
        let record = Record::of_name("ana", jiff::Timestamp::UNIX_EPOCH);
        let map = |name: &str| {
            let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}});
            let mut map = Object::try_from(map).unwrap();
            map.set_meta("name", name);
            map.set_at(&["data", &record.key()], record.to_json().unwrap().as_str());
            map
        };
        let ana = Shown {
            name: "ana".into(),
            ..Shown::default()
        };
        let is_out = || all.judge(&ana.credential()).is_some();
        sink.replace(vec![map("other")]);
        assert!(!is_out());
        sink.set(map(NAME));
        sink.set(map("other"));
        sink.delete(map("other"));
        assert!(is_out());
        sink.delete(map(NAME));
        assert!(!is_out());
        sink.replace(vec![map("other"), map(NAME)]);
        assert!(is_out());
    }
}
