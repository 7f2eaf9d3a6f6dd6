//! Authorities and keys, shared by way of the datastore: `<prefix>/keelson/shared/<item>`, each sealed by the servers' token and
//! written once, by whoever comes first. What is there is never overwritten, nor is what a machine had before it came, unless the one
//! came of the other by a replacement in steps ([`Item::follows`]): where the two differ otherwise, the server doesn't start and says so.

use super::held::Held;
use super::token::turn::{self, Turn};
use anyhow::{Context, bail, ensure};
use keelson_pki::sharing::{Item, TOKEN_FILE};
use keelson_pki::{Pki, ServerToken, authority, files};
use keelson_store::{Expect, KeyRange, KeyValue, ListRequest, Outcome, Store};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;

/// Below the store's root, where no resource can be.
const PLACE: &str = "/keelson/shared/";
/// Beside the servers' token: the one of before, while another takes its place.
const FORMER_FILE: &str = "server-token-former";

/// One at a time writes the token's files.
static AT_TOKEN: Mutex<()> = Mutex::new(());

pub(super) fn key(root: &str, item: &str) -> String {
    format!("{root}{PLACE}{item}")
}

/// All that servers share, by name, as it is at one moment.
pub(super) async fn listed(store: &dyn Store, root: &str) -> anyhow::Result<BTreeMap<String, KeyValue>> {
    let place = key(root, "");
    let listed = store.list(ListRequest::new(KeyRange::prefix(place.clone()))).await;
    let listed = listed.context("what the cluster's servers share")?;
    let named = |kv: KeyValue| {
        let name = kv.key.strip_prefix(place.as_bytes())?.to_vec();
        Some((String::from_utf8(name).ok()?, kv))
    };
    Ok(listed.kvs.into_iter().filter_map(named).collect())
}

/// Makes `<data-dir>/pki` what the other servers have, or what they will have. Returns their token.
pub async fn settle(
    store: &dyn Store,
    root: &str,
    data_dir: &Path,
    items: &[&Item],
    given: Option<ServerToken>,
) -> anyhow::Result<Held> {
    let pki = data_dir.join("pki");
    let stored = listed(store, root).await?;
    let shared = items.iter().any(|item| stored.contains_key(item.name));
    let (mut held, is_new) = tokens(&pki, given.clone(), shared)?;
    // Another is taking the present one's place.
    let turn = stored.get(turn::NAME).map(|kv| Turn::parse(&kv.value)).transpose()?;
    let next = turn.map(|turn| turn.next(&mut held)).transpose()?.flatten();
    next.iter().for_each(|next| held.add(next.clone()));
    let before: Vec<Option<Vec<u8>>> = items
        .iter()
        .map(|item| item.read(&pki))
        .collect::<anyhow::Result<_>>()?;
    let (mut theirs, mut by) = (BTreeMap::new(), 0);
    for item in items {
        if let Some(found) = stored.get(item.name) {
            let (opener, opened) = held.open(item.name, &found.value)?;
            theirs.insert(item.name, opened);
            by = opener;
        }
    }
    let counts = held.at(by).cloned().context("there is no servers' token")?;
    // What follows on an authority that was known here is the same cluster's.
    let known = authority::fingerprints(&files::read(&pki.join("ca.crt"))?.unwrap_or_default());
    // Before anything is made or written, here or there.
    check_cluster(&counts, theirs.get("ca").map(Vec::as_slice), &known)?;
    for (item, own) in items.iter().zip(&before) {
        if let Some(theirs) = theirs.get(item.name) {
            adopt(item, &pki, own.as_deref(), theirs)?;
        }
    }
    // Makes what nobody has yet.
    Pki::open(data_dir).context("the cluster's certificates")?;
    let token = match next {
        Some(next) if next.secret() != counts.secret() => {
            keep_former(&pki, &counts)?;
            next
        }
        _ => counts,
    };
    if given.is_some_and(|given| given.secret() != token.secret()) {
        tracing::warn!("the token that this server was given isn't the servers' any more: it isn't looked at");
    }
    // Before anything is sealed by it: what nobody can open again would shut everybody out.
    keep(&pki, token.clone(), &known)?;
    for (item, before) in items.iter().zip(&before) {
        let own = item
            .read(&pki)?
            .with_context(|| format!("{} is not there", item.name))?;
        let expected = match (stored.get(item.name), theirs.get(item.name)) {
            (Some(found), Some(theirs)) if item.follows(&own, theirs)? => Expect::ModRevision(found.mod_revision),
            (Some(_), _) => continue,
            (None, _) => Expect::Absent,
        };
        let value = held.seal(by, item.name, &own)?;
        let put = store.put(key(root, item.name).into(), value.into(), expected, None);
        match put
            .await
            .with_context(|| format!("sharing {} with other servers", item.name))?
        {
            Outcome::Done { .. } => tracing::info!(item = item.name, "shared with the cluster's servers"),
            // Another server came first. What this one has just made for itself nothing depends on.
            Outcome::Conflict { current, .. } => {
                let theirs = current.with_context(|| format!("{} came and went", item.name))?;
                let opened = held.open(item.name, &theirs.value);
                if opened.is_err() && is_new {
                    // Theirs is the cluster, and its token another one.
                    std::fs::remove_file(pki.join(TOKEN_FILE)).context("giving up the token made here")?;
                }
                adopt(item, &pki, before.as_deref(), &opened?.1)?;
            }
        }
    }
    held.put_first(keep(&pki, token, &known)?);
    Ok(held)
}

/// What this machine has becomes what the others have, unless it had something else before.
fn adopt(item: &Item, pki: &Path, own: Option<&[u8]>, theirs: &[u8]) -> anyhow::Result<()> {
    match own {
        Some(own) if own == theirs || item.follows(own, theirs)? => Ok(()),
        Some(own) if item.follows(theirs, own)? => {
            item.write(pki, theirs)?;
            tracing::info!(
                item = item.name,
                "the cluster's servers have replaced it: taken from them"
            );
            Ok(())
        }
        Some(_) => {
            let files: Vec<String> = item.paths(pki).iter().map(|p| p.display().to_string()).collect();
            bail!(
                "{} are not what the other servers of the cluster have: this data directory was made for another cluster, or somebody \
                 replaced them, here or there. To take what the others have, move them away and start again",
                files.join(" and ")
            )
        }
        None => {
            item.write(pki, theirs)?;
            tracing::info!(item = item.name, "taken from the cluster's servers");
            Ok(())
        }
    }
}

/// Whether a token that names its cluster's authority names one of this one's: of the servers', while one follows another, or one that
/// this machine has known.
fn check_cluster(token: &ServerToken, theirs: Option<&[u8]>, known: &[String]) -> anyhow::Result<()> {
    let Some(wanted) = token.ca_hash() else { return Ok(()) };
    let theirs = match theirs {
        Some(item) => {
            let files: BTreeMap<String, String> = serde_json::from_slice(item).context("the servers' ca")?;
            authority::fingerprints(files.get("ca.crt").map_or("", String::as_str))
        }
        None => Vec::new(),
    };
    ensure!(
        !theirs.is_empty() || !known.is_empty(),
        "the cluster of --token is not in this datastore: --etcd-servers or --etcd-prefix lead elsewhere; a first server takes a secret \
         alone, without a hash",
    );
    is_one_of(wanted, &theirs, known)
}

fn is_one_of(wanted: &str, present: &[String], known: &[String]) -> anyhow::Result<()> {
    let hash = present.first().or(known.first()).map_or("", String::as_str);
    ensure!(
        present.iter().chain(known).any(|one| one == wanted),
        "--token is another cluster's, or of before its authority was replaced: its last part is not the hash of this one's authority, {hash}"
    );
    Ok(())
}

fn read_token(file: &Path) -> anyhow::Result<Option<ServerToken>> {
    let text = files::read(file)?;
    let parsed = text.map(|text| {
        text.parse()
            .map_err(|why: String| anyhow::anyhow!("{}: {why}", file.display()))
    });
    parsed.transpose()
}

/// The token that was given, or that this server has, or a new one; and whether it is new. Behind it others that may prove right: what
/// was given once may be of before another took its place.
fn tokens(pki: &Path, given: Option<ServerToken>, shared: bool) -> anyhow::Result<(Held, bool)> {
    let own = read_token(&pki.join(TOKEN_FILE))?;
    let former = read_token(&pki.join(FORMER_FILE))?;
    let (first, is_new) = match (given, &own) {
        // Its hash may be of before the authority was replaced, where the one that this server keeps is not.
        (Some(given), Some(own)) if given.secret() == own.secret() => (own.clone(), false),
        (Some(given), _) => (given, false),
        (None, Some(own)) => (own.clone(), false),
        (None, None) => {
            ensure!(
                !shared,
                "this datastore has a cluster with servers already. To be one of them, this one needs their --token: pki/server-token in the \
                 data directory of any of them"
            );
            (ServerToken::generate(), true)
        }
    };
    let mut held = Held::new(first);
    own.into_iter().chain(former).for_each(|token| held.add(token));
    Ok((held, is_new))
}

/// Notes the token of before, which is needed as long as something may be sealed by it.
fn keep_former(pki: &Path, token: &ServerToken) -> anyhow::Result<()> {
    files::write_secret(&pki.join(FORMER_FILE), format!("{}\n", token.reveal()).as_bytes())
}

/// From now on it is this one; the former first, so that neither is missing whenever this ends.
pub(super) fn keep_next(pki: &Path, former: &ServerToken, next: ServerToken) -> anyhow::Result<ServerToken> {
    let _alone = AT_TOKEN.lock();
    keep_former(pki, former)?;
    keep(pki, next, &[])
}

pub(super) fn forget_former(pki: &Path) -> anyhow::Result<()> {
    files::remove(&pki.join(FORMER_FILE))
}

/// Remembers the token, with the authority's hash, once it has proved right.
fn keep(pki: &Path, token: ServerToken, known: &[String]) -> anyhow::Result<ServerToken> {
    let ca = files::read(&pki.join("ca.crt"))?.context("the cluster's authority")?;
    if let Some(wanted) = token.ca_hash() {
        is_one_of(wanted, &authority::fingerprints(&ca), known)?;
    }
    let (file, whole) = (pki.join(TOKEN_FILE), token.with_ca_hash(authority::fingerprint(&ca)?));
    if files::read(&file)?.as_deref().map(str::trim) != Some(&whole.reveal()) {
        files::write_secret(&file, format!("{}\n", whole.reveal()).as_bytes())?;
        tracing::info!(file = %file.display(), "the token by which other machines become servers");
    }
    Ok(whole)
}

/// The token that this server keeps, if it has others, has the present authority's hash from now on.
pub fn renew_token(pki: &Path) -> anyhow::Result<()> {
    let _alone = AT_TOKEN.lock();
    let Some(token) = read_token(&pki.join(TOKEN_FILE))? else {
        return Ok(());
    };
    // It has proved right before.
    let known: Vec<String> = token.ca_hash().map(str::to_string).into_iter().collect();
    keep(pki, token, &known).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::sharing::ITEMS;
    use keelson_store::Memory;
    use std::path::PathBuf;

    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str) -> Machine {
            let dir = std::env::temp_dir().join(format!("keelson-shared-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            Machine(dir)
        }
        async fn settle(&self, store: &dyn Store, token: Option<&str>) -> anyhow::Result<ServerToken> {
            let items: Vec<&Item> = ITEMS.iter().collect();
            let held = settle(store, "/registry", &self.0, &items, token.map(|t| t.parse().unwrap())).await;
            Ok(held?.token()?.clone())
        }
        fn has(&self) -> Vec<Option<Vec<u8>>> {
            ITEMS
                .iter()
                .map(|item| item.read(&self.0.join("pki")).unwrap())
                .collect()
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn the_next_server_has_what_the_first_one_made() {
        let store = Memory::new();
        let [first, second, third] = ["first", "second", "third"].map(Machine::new);
        let token = first.settle(&*store, None).await.unwrap();
        let stored = store.list(ListRequest::new(KeyRange::all())).await.unwrap();
        assert_eq!(stored.kvs.len(), ITEMS.len());
        assert!(
            stored
                .kvs
                .iter()
                .all(|kv| !String::from_utf8_lossy(&kv.value).contains("PRIVATE"))
        );

        // Without the token nothing is made and nothing is taken.
        let refused = second.settle(&*store, None).await.unwrap_err();
        assert!(format!("{refused:#}").contains("needs their --token"), "{refused:#}");
        let refused = second.settle(&*store, Some("another-servers-token")).await.unwrap_err();
        assert!(
            format!("{refused:#}").contains("not the one of the servers"),
            "{refused:#}"
        );
        let other_cluster = format!("server.{}.{}", token.secret(), "ab".repeat(32));
        let refused = third.settle(&*store, Some(&other_cluster)).await.unwrap_err();
        assert!(format!("{refused:#}").contains("another cluster's"), "{refused:#}");
        assert!(second.has().iter().all(Option::is_none) && third.has().iter().all(Option::is_none));

        // The right token, and a place where its cluster isn't: nothing is made there.
        let elsewhere = Memory::new();
        let refused = third.settle(&*elsewhere, Some(&token.reveal())).await.unwrap_err();
        assert!(format!("{refused:#}").contains("not in this datastore"), "{refused:#}");
        assert!(third.has().iter().all(Option::is_none));
        let there = elsewhere.list(ListRequest::new(KeyRange::all())).await.unwrap();
        assert!(there.kvs.is_empty());

        second.settle(&*store, Some(&token.reveal())).await.unwrap();
        assert_eq!(first.has(), second.has());
        // The token that it was installed with, of before the authority was replaced: the one that it keeps has another hash.
        assert!(second.settle(&*store, Some(&other_cluster)).await.unwrap() == token);
        let revision = store.current_revision().await.unwrap();
        // Each knows the token from now on, and nothing is written again.
        for machine in [&first, &second] {
            assert!(machine.settle(&*store, None).await.unwrap() == token);
        }
        assert_eq!(store.current_revision().await.unwrap(), revision);

        // Whose files are others is told which, and they are left as they are.
        let own = second.0.join("pki/sa.key");
        let foreign = Machine::new("foreign");
        Pki::open(&foreign.0).unwrap();
        std::fs::copy(foreign.0.join("pki/sa.key"), &own).unwrap();
        let before = second.has();
        let refused = second.settle(&*store, None).await.unwrap_err();
        assert!(format!("{refused:#}").contains("sa.key"), "{refused:#}");
        assert_eq!(second.has(), before);
    }

    /// One replaces the key of tokens, the others follow when they start; whoever was away for several steps, too.
    #[tokio::test]
    async fn a_key_is_replaced_in_steps_that_the_others_take() {
        use keelson_pki::jwt::turn::{self, Step};
        let store = Memory::new();
        let [first, second, late] = ["turn-1", "turn-2", "turn-3"].map(Machine::new);
        let token = first.settle(&*store, None).await.unwrap().reveal();
        for machine in [&second, &late] {
            machine.settle(&*store, Some(&token)).await.unwrap();
        }
        for (n, step) in [Step::Announce, Step::Sign, Step::Retire].into_iter().enumerate() {
            let (one, other) = if n % 2 == 0 {
                (&first, &second)
            } else {
                (&second, &first)
            };
            let before = other.has();
            turn::step(&one.0.join("pki"), step).unwrap();
            one.settle(&*store, None).await.unwrap();
            assert_ne!(one.has(), before);
            other.settle(&*store, None).await.unwrap();
            assert_eq!(other.has(), one.has(), "{step:?}");
        }
        let revision = store.current_revision().await.unwrap();
        late.settle(&*store, None).await.unwrap();
        assert_eq!(late.has(), first.has());
        assert_eq!(
            store.current_revision().await.unwrap(),
            revision,
            "who comes late writes nothing"
        );
        let stored = store.list(ListRequest::new(KeyRange::all())).await.unwrap();
        let plain = |kv: &keelson_store::KeyValue| String::from_utf8_lossy(&kv.value).contains("PRIVATE");
        assert!(!stored.kvs.iter().any(plain));
    }

    /// What was sealed can be opened after the server died at the first of its writes.
    #[tokio::test]
    async fn a_first_start_that_breaks_off_shuts_nobody_out() {
        let store = Memory::new();
        let first = Machine::new("broken-off");
        let token = first.settle(&*store, None).await.unwrap();
        for item in &ITEMS[1..] {
            store
                .delete(key("/registry", item.name).into(), Expect::Any)
                .await
                .unwrap();
        }
        let kept = std::fs::read_to_string(first.0.join("pki").join(TOKEN_FILE)).unwrap();
        assert_eq!(kept.trim(), token.reveal());
        assert!(first.settle(&*store, None).await.unwrap() == token);

        // A disk that can't keep the token: nothing is sealed by it.
        let (empty, second) = (Memory::new(), Machine::new("no-place"));
        std::fs::create_dir_all(second.0.join("pki").join(TOKEN_FILE).join("in-the-way")).unwrap();
        second.settle(&*empty, None).await.unwrap_err();
        let there = empty.list(ListRequest::new(KeyRange::all())).await.unwrap();
        assert!(there.kvs.is_empty());
    }

    #[tokio::test]
    async fn of_two_that_come_at_once_one_makes_each_thing() {
        let store = Memory::new();
        let machines: Vec<Machine> = (0..4).map(|n| Machine::new(&format!("race{n}"))).collect();
        let all = machines
            .iter()
            .map(|m| m.settle(&*store, Some("the-servers-token-of-all")));
        for done in futures::future::join_all(all).await {
            done.unwrap();
        }
        assert!(machines.iter().all(|m| m.has() == machines[0].has()));
        assert_eq!(
            store.list(ListRequest::new(KeyRange::all())).await.unwrap().kvs.len(),
            ITEMS.len()
        );
    }

    #[tokio::test]
    async fn a_cluster_that_was_there_before_is_shared_as_it_is() {
        let store = Memory::new();
        let [first, second] = ["before", "after"].map(Machine::new);
        Pki::open(&first.0).unwrap();
        let before = first.has();
        let token = first.settle(&*store, None).await.unwrap();
        assert_eq!(first.has(), before);
        second.settle(&*store, Some(&token.reveal())).await.unwrap();
        assert_eq!(second.has(), before);
    }
}
