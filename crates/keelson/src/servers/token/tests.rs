//! Servers over one datastore, which end at any moment.

use super::super::held::Held;
use super::super::shared::settle;
use super::*;
use keelson_pki::sharing::{ITEMS, TOKEN_FILE};
use keelson_store::{KeyRange, ListRequest, Memory, Store};

struct Server {
    dir: PathBuf,
    address: String,
    store: Arc<Memory>,
    borne: Borne,
    turning: Arc<Turning>,
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

async fn settled(store: &Memory, dir: &std::path::Path, given: Option<&str>) -> anyhow::Result<Held> {
    let items: Vec<&Item> = ITEMS.iter().collect();
    settle(
        store,
        "/registry",
        dir,
        &items,
        given.map(|token| token.parse().unwrap()),
    )
    .await
}

impl Server {
    async fn start(store: &Arc<Memory>, dir: PathBuf, address: &str, given: Option<&str>) -> anyhow::Result<Server> {
        let held = settled(store, &dir, given).await?;
        let borne = Borne::new(held.token()?.clone());
        let steps = Steps::new(store.clone() as Arc<dyn Store>, "/registry", held.shared());
        let items = ITEMS.iter().collect();
        let turning = Turning::new(steps, dir.join("pki"), items, address.into(), borne.clone());
        turning.attach(Arc::new(|| {
            async { Ok(BTreeSet::from(["10.0.0.1".to_owned(), "10.0.0.2".to_owned()])) }.boxed()
        }));
        Ok(Server {
            dir,
            address: address.into(),
            store: store.clone(),
            borne,
            turning,
        })
    }
    /// It ends, and is started by what it was started with.
    async fn again(self, given: Option<&str>) -> Server {
        Server::start(&self.store, self.dir.clone(), &self.address, given)
            .await
            .unwrap()
    }
    fn token(&self) -> String {
        std::fs::read_to_string(self.dir.join("pki").join(TOKEN_FILE))
            .unwrap()
            .trim()
            .into()
    }
}

/// The first server of a datastore, and the token that it made.
async fn begun() -> (Arc<Memory>, tempfile::TempDir, Server, String) {
    let store = Memory::new();
    let scratch = tempfile::tempdir().unwrap();
    let one = Server::start(&store, scratch.path().join("1"), "10.0.0.1", None)
        .await
        .unwrap();
    let token = one.token();
    (store, scratch, one, token)
}

#[tokio::test]
async fn all_take_another_token_whoever_ends_when_and_the_former_opens_nothing() {
    for (round, given) in [(0, false), (1, true)] {
        let store = Memory::new();
        let scratch = tempfile::tempdir().unwrap();
        let dir = |name: &str| scratch.path().join(name);
        let one = Server::start(&store, dir("one"), "10.0.0.1", None).await.unwrap();
        let old = one.token();
        let other = Server::start(&store, dir("other"), "10.0.0.2", Some(&old))
            .await
            .unwrap();
        settled(&store, &dir("away"), Some(&old)).await.unwrap();
        assert_eq!(one.turning.look(at(0)).await.unwrap(), AGAIN, "nothing is to be done");
        one.turning.begin(at(0)).await.unwrap();
        other.turning.begin(at(1)).await.unwrap();
        // What an installed service is started with stays what it was.
        let given = given.then_some(old.as_str());
        let (mut servers, mut steps) = (vec![one, other], 0);
        let mut resting = 0;
        // Each of them twice.
        while resting < 4 {
            steps += 1;
            assert!(steps < 100, "it doesn't come to rest");
            let server = servers.remove((steps + round) % 2);
            let done = server.turning.step(at(steps as i64 * 10)).await.unwrap();
            resting = if done == Some(AGAIN) { resting + 1 } else { 0 };
            // After each step it ends, or not.
            let server = match (steps + round) % 3 {
                0 => server.again(given).await,
                _ => server,
            };
            servers.push(server);
        }
        let new = servers[0].token();
        assert!(new != old && servers.iter().all(|server| server.token() == new));
        let bearer = |token: &str| token.parse::<ServerToken>().unwrap().bearer();
        for server in &servers {
            assert!(!server.dir.join("pki/server-token-former").exists());
            assert!(server.borne.is(&bearer(&new)) && !server.borne.is(&bearer(&old)));
        }
        // Nobody gets in by the old one, and who was away needs the new one.
        let stranger = settled(&store, &dir("stranger"), Some(&old))
            .await
            .map(drop)
            .unwrap_err();
        assert!(
            format!("{stranger:#}").contains("not the one of the servers"),
            "{stranger:#}"
        );
        settled(&store, &dir("away"), None).await.map(drop).unwrap_err();
        settled(&store, &dir("away"), Some(&new)).await.unwrap();
        settled(&store, &dir("next"), Some(&new)).await.unwrap();
        for kv in store.list(ListRequest::new(KeyRange::all())).await.unwrap().kvs {
            let text = String::from_utf8_lossy(&kv.value).into_owned();
            assert!(
                !text.contains(new.split('.').nth(1).unwrap()),
                "a token stands in clear"
            );
        }
        // And once more.
        let one = servers.remove(0);
        one.turning.begin(at(5000)).await.unwrap();
        one.turning.look(at(5000)).await.unwrap();
        assert_ne!(one.token(), new);
        // The other one was ending just then.
        let other = servers.remove(0).again(given.map(|_| new.as_str())).await;
        assert_eq!(other.token(), one.token(), "it is taken at the start");
    }
}

#[tokio::test]
async fn nothing_is_sealed_anew_before_all_have_it_and_the_record_stands_for_a_while() {
    let (store, scratch, one, old) = begun().await;
    one.turning.begin(at(0)).await.unwrap();
    assert_eq!(one.turning.look(at(100)).await.unwrap(), SOON);
    let told = one.turning.told().await.unwrap();
    assert_eq!(
        told,
        json!({"underWay": true, "waitsFor": ["10.0.0.2"], "sealed": false})
    );
    // A program of before, which knows nothing of it, opens all.
    let mut before = Held::new(old.parse().unwrap());
    let shared = shared::listed(&*store, "/registry").await.unwrap();
    for item in ITEMS {
        before.open(item.name, &shared[item.name].value).unwrap();
    }
    // One that begins with the old token meanwhile has the next one at once.
    let other = Server::start(&store, scratch.path().join("2"), "10.0.0.2", Some(&old))
        .await
        .unwrap();
    assert_eq!(other.token(), one.token());
    assert_eq!(other.turning.look(at(20)).await.unwrap(), SOON, "it stands for a while");
    let told = other.turning.told().await.unwrap();
    assert_eq!(told, json!({"underWay": true, "waitsFor": [], "sealed": true}));
    // All have it: who asks once more would hear of the one before.
    let again = one.turning.begin(at(25)).await.unwrap_err().to_string();
    assert!(again.contains("replaced just now"), "{again}");
    assert_eq!(other.turning.look(at(31)).await.unwrap(), AGAIN);
    assert_eq!(one.turning.look(at(31)).await.unwrap(), AGAIN);
    assert!(one.turning.found().await.unwrap().turn.is_none());
}

/// Between the two files of a token that is taken.
#[tokio::test]
async fn a_token_that_was_taken_by_half_is_taken_at_the_next_start() {
    let (_, _scratch, one, old) = begun().await;
    one.turning.begin(at(0)).await.unwrap();
    std::fs::write(one.dir.join("pki/server-token-former"), &old).unwrap();
    let one = one.again(None).await;
    assert_ne!(one.token(), old);
    assert_eq!(one.turning.look(at(1)).await.unwrap(), SOON);
}

/// Cut off from the datastore for as long as it took, and it runs on.
#[tokio::test]
async fn a_server_that_has_missed_it_lets_nobody_in_by_the_former() {
    let (store, scratch, one, old) = begun().await;
    let dir = |name: &str| scratch.path().join(name);
    let other = Server::start(&store, dir("2"), "10.0.0.2", Some(&old)).await.unwrap();
    let away = Server::start(&store, dir("3"), "10.0.0.3", Some(&old)).await.unwrap();
    let bearer = old.parse::<ServerToken>().unwrap().bearer();
    one.turning.begin(at(0)).await.unwrap();
    assert_eq!(one.turning.look(at(1)).await.unwrap(), SOON);
    assert_eq!(other.turning.look(at(40)).await.unwrap(), AGAIN);
    assert!(away.borne.is(&bearer));
    assert_eq!(away.turning.look(at(41)).await.unwrap(), AGAIN);
    assert!(!away.borne.is(&bearer));
    assert_eq!(away.token(), old, "nothing was taken");
}

/// By a later version, or a fault.
#[tokio::test]
async fn what_can_not_be_read_is_no_token_that_was_missed() {
    let (store, _scratch, one, token) = begun().await;
    let key = shared::key("/registry", ITEMS[0].name);
    store.put(key.into(), "{}".into(), Expect::Any, None).await.unwrap();
    one.turning.look(at(0)).await.unwrap_err();
    one.turning.begin(at(0)).await.unwrap_err();
    assert!(one.borne.is(&token.parse::<ServerToken>().unwrap().bearer()));
}

#[tokio::test]
async fn a_clock_that_is_ahead_keeps_the_former_for_no_longer() {
    let (store, scratch, one, old) = begun().await;
    one.turning.begin(at(1_000_000)).await.unwrap();
    assert_eq!(one.turning.look(at(0)).await.unwrap(), SOON);
    let other = Server::start(&store, scratch.path().join("2"), "10.0.0.2", Some(&old))
        .await
        .unwrap();
    assert_eq!(other.turning.look(at(1)).await.unwrap(), AGAIN);
    assert_eq!(one.turning.look(at(1)).await.unwrap(), AGAIN);
    assert!(one.turning.found().await.unwrap().turn.is_none());
}

/// A snapshot of before is sealed by the token of then.
#[tokio::test]
async fn a_store_of_before_wants_the_token_of_then_or_nothing_shared_in_it() {
    let (store, scratch, one, old) = begun().await;
    let dir = |name: &str| scratch.path().join(name);
    let before = store.list(ListRequest::new(KeyRange::all())).await.unwrap();
    let other = Server::start(&store, dir("2"), "10.0.0.2", Some(&old)).await.unwrap();
    one.turning.begin(at(0)).await.unwrap();
    assert_eq!(one.turning.look(at(1)).await.unwrap(), SOON);
    assert_eq!(other.turning.look(at(40)).await.unwrap(), AGAIN);
    assert_eq!(one.turning.look(at(41)).await.unwrap(), AGAIN);
    let new = one.token();
    let restored = Memory::new();
    for kv in before.kvs {
        let put = restored.put(kv.key, kv.value, Expect::Absent, None).await;
        assert!(matches!(put.unwrap(), Outcome::Done { .. }));
    }
    let refused = settled(&restored, &one.dir, None).await.map(drop).unwrap_err();
    assert!(
        format!("{refused:#}").contains("not the one of the servers"),
        "{refused:#}"
    );
    assert_eq!(one.token(), new);
    // It tells the others anew what it has.
    settled(&Memory::new(), &one.dir, None).await.unwrap();
    assert_eq!(one.token(), new);
    settled(&restored, &one.dir, Some(&old)).await.unwrap();
    assert_eq!(one.token(), old);
}
