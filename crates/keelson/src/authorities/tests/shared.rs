//! Several servers over one datastore.

use super::world::{Calendar, own, scratch};
use crate::authorities::journal::{self, Journal};
use crate::authorities::{Authorities, depends::CLUSTER};
use crate::servers::{Held, Steps, Written, settle};
use jiff::SignedDuration;
use keelson_pki::sharing::{ITEMS, Item, TOKEN_FILE};
use keelson_pki::succession::{Stage, Step};
use keelson_pki::{Authority, Pki, ServerToken, authority};
use keelson_store::{Memory, Store};
use std::path::PathBuf;
use std::sync::Arc;

struct Server {
    dir: PathBuf,
    store: Arc<Memory>,
    token: ServerToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Server {
    async fn start(name: &str, store: &Arc<Memory>, token: Option<ServerToken>) -> Server {
        let dir = scratch(name);
        let items: Vec<&Item> = ITEMS.iter().collect();
        let held = settle(&**store, "/registry", &dir, &items, token).await.unwrap();
        let token = held.token().unwrap().clone();
        Server {
            dir,
            store: store.clone(),
            token,
        }
    }
    /// What a start takes from the others.
    async fn settle(&self) -> anyhow::Result<ServerToken> {
        let items: Vec<&Item> = ITEMS.iter().collect();
        let held = settle(&*self.store, "/registry", &self.dir, &items, None).await?;
        Ok(held.token()?.clone())
    }
    fn steps(&self) -> Steps {
        let held = Held::new(self.token.clone()).shared();
        Steps::new(self.store.clone() as Arc<dyn Store>, "/registry", held)
    }
    fn engine(&self) -> Arc<Authorities> {
        Authorities::new(own(&self.dir, 6443), Pki::open(&self.dir).unwrap(), Some(self.steps())).unwrap()
    }
    fn has(&self) -> Vec<Option<Vec<u8>>> {
        let pki = self.dir.join("pki");
        ITEMS.iter().map(|item| item.read(&pki).unwrap()).collect()
    }
    fn token_hash(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("pki").join(TOKEN_FILE)).unwrap();
        text.trim().rsplit('.').next().unwrap().to_string()
    }
}

async fn pair(name: &str) -> (Server, Server) {
    let store = Memory::new();
    let first = Server::start(&format!("{name}-1"), &store, None).await;
    let second = Server::start(&format!("{name}-2"), &store, Some(first.token.clone())).await;
    (first, second)
}

/// Both find the same step due at the same moment: it is made once, and both have it.
#[tokio::test]
async fn a_step_that_is_due_is_made_once_and_all_servers_have_it() {
    let mut calendar = Calendar::at("2027-01-01T00:00:00Z");
    let (first, second) = pair("due").await;
    let (one, other) = (first.engine(), second.engine());
    let before = one.standing().unwrap();
    for (days, stage, number) in [
        (8 * 365 + 10, Stage::Announced, 1),
        (1, Stage::Replaced, 2),
        (401, Stage::AtRest, 3),
    ] {
        calendar.pass(SignedDuration::from_hours(days * 24));
        let (a, b) = tokio::join!(one.look(), other.look());
        a.unwrap();
        b.unwrap();
        // Whoever looked first may have been told afterwards.
        for engine in [&one, &other] {
            engine.look().await.unwrap();
        }
        assert_eq!(first.has(), second.has(), "{stage:?}");
        let standing = one.standing().unwrap();
        assert!(
            standing.values().all(|s| (s.stage, s.number) == (stage, number)),
            "{standing:?}"
        );
        assert_eq!(
            one.current().get().ca.bundle_pem(),
            other.current().get().ca.bundle_pem()
        );
        assert_eq!(first.token_hash(), standing[CLUSTER].signs.hash);
        assert_eq!(second.token_hash(), standing[CLUSTER].signs.hash);
    }
    assert_ne!(one.standing().unwrap()[CLUSTER].signs, before[CLUSTER].signs);
}

/// It ends between what it writes for all and what it takes itself; another goes on meanwhile, and a third was away for all of it.
#[tokio::test]
async fn a_server_that_ends_after_it_has_told_the_others_takes_its_own_step_when_it_starts() {
    let (first, second) = pair("ended").await;
    let away = Server::start("ended-3", &first.store, Some(first.token.clone())).await;
    let ca = journal::item(CLUSTER).unwrap();
    let hash = |server: &Server| {
        authority::fingerprint(&std::fs::read_to_string(server.dir.join("pki/ca.crt")).unwrap()).unwrap()
    };
    let old = hash(&first);
    for (step, number) in [(Step::Announce, 0), (Step::Sign, 1), (Step::Withdraw, 2)] {
        let before = first.has();
        let written = first
            .steps()
            .write(ca, step, number, jiff::Timestamp::now())
            .await
            .unwrap();
        assert_eq!(written, Written::Done);
        assert_eq!(first.has(), before, "it ended here");
        // The same step again is another's now.
        let again = first
            .steps()
            .write(ca, step, number, jiff::Timestamp::now())
            .await
            .unwrap();
        assert_eq!(again, Written::Met);
        assert!(
            Journal::new(&second.dir.join("pki"), Some(second.steps()), false)
                .take()
                .await
                .unwrap()
        );
        first.settle().await.unwrap();
        assert_eq!(first.has(), second.has());
        assert_ne!(first.has(), before);
    }
    let token = away.settle().await.unwrap();
    assert_eq!(away.has(), first.has());
    assert_eq!(token.ca_hash(), Some(&*hash(&first)));
    // A machine that comes with the token of before hears what it lacks.
    let stale = first.token.clone().with_ca_hash(old);
    let dir = scratch("ended-4");
    let items: Vec<&Item> = ITEMS.iter().collect();
    let refused = settle(&*first.store, "/registry", &dir, &items, Some(stale))
        .await
        .unwrap_err();
    assert!(
        format!("{refused:#}").contains("before its authority was replaced"),
        "{refused:#}"
    );
    assert!(!dir.exists());
}

/// `--etcd-listen` has made it, before the store went to an etcd that somebody else runs.
#[tokio::test]
async fn an_authority_that_was_left_behind_is_nobodys() {
    let (first, _second) = pair("left").await;
    let pki = first.dir.join("pki");
    Authority::open(&pki.join("etcd"), "ca", "etcd-ca").unwrap();
    let journal = |etcd| Journal::new(&pki, Some(first.steps()), etcd);
    assert!(!journal(false).take().await.unwrap());
    assert!(!journal(false).standing().unwrap().contains_key("etcd-ca"));
    assert!(
        journal(true).take().await.is_err(),
        "of an etcd that servers run it is missing"
    );
}
