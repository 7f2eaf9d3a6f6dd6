//! The servers' token, replaced while all servers run ([`plan`] says how). A server does what is next for it whenever something that
//! servers share has changed, and at its start: so it doesn't matter where one ended.

mod plan;
pub mod turn;

use super::Steps;
use super::shared;
use anyhow::{Context, bail, ensure};
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_apiserver::joining::{Borne, Turns};
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_pki::ServerToken;
use keelson_pki::sharing::Item;
use keelson_store::{Expect, KeyValue, Outcome, Revision};
use parking_lot::Mutex;
use plan::{Facts, Step};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use turn::Turn;

/// How long the record stands at least: a server that was starting when it was written has taken it by then.
const STANDS: SignedDuration = SignedDuration::from_secs(30);
/// While something is to come of others.
const SOON: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(60);

/// Tells the addresses of the servers that serve.
pub type Serving = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<BTreeSet<String>>> + Send + Sync>;

pub struct Turning {
    steps: Steps,
    pki: PathBuf,
    items: Vec<&'static Item>,
    /// By which the service `kubernetes` leads to this server.
    address: String,
    /// By which who shows the token is known.
    borne: Borne,
    serving: OnceLock<Serving>,
    look: Notify,
    /// That it was said.
    lost: Mutex<bool>,
}

/// What of it is in the datastore.
struct Found {
    turn: Option<(Turn, Revision)>,
    /// Those that serve and haven't said that they took it.
    others: Vec<String>,
    said: bool,
    /// Items that aren't sealed by the token that counts here.
    unsealed: Vec<(&'static Item, KeyValue)>,
}

impl Found {
    /// Whether all that serve have the next one, and all is sealed by it.
    fn is_taken(&self) -> bool {
        self.said && self.others.is_empty() && self.unsealed.is_empty()
    }
}

impl Turning {
    pub fn new(steps: Steps, pki: PathBuf, items: Vec<&'static Item>, address: String, borne: Borne) -> Arc<Turning> {
        Arc::new(Turning {
            steps,
            pki,
            items,
            address,
            borne,
            serving: OnceLock::new(),
            look: Notify::new(),
            lost: Mutex::default(),
        })
    }

    /// By whom it is known who else serves.
    pub fn attach(&self, serving: Serving) {
        // There is one API in a program's life.
        let _ = self.serving.set(serving);
    }

    fn key(&self, name: &str) -> String {
        shared::key(self.steps.root(), name)
    }

    /// This one among them.
    async fn servers(&self) -> anyhow::Result<BTreeSet<String>> {
        let serving = self.serving.get().context("this server's API isn't there yet")?;
        let mut all = serving().await?;
        all.insert(self.address.clone());
        Ok(all)
    }

    async fn found(&self) -> anyhow::Result<Found> {
        // Of one moment: what was sealed anew while this is read is nothing that this server has missed.
        let mut shared = shared::listed(self.steps.store(), self.steps.root()).await?;
        let turn = |kv: &KeyValue| anyhow::Ok((Turn::parse(&kv.value)?, kv.mod_revision));
        let turn = shared.get(turn::NAME).map(turn).transpose()?;
        let (mut others, mut said) = (Vec::new(), false);
        if let Some((turn, _)) = &turn {
            for address in self.servers().await? {
                let word = shared.get(&turn::said(&address));
                let has = word.is_some_and(|kv| kv.value == turn.id.as_bytes());
                match address == self.address {
                    true => said = has,
                    false if !has => others.push(address),
                    false => {}
                }
            }
        }
        let items = self.items.iter().copied();
        let items: Vec<(&'static Item, KeyValue)> = items
            .filter_map(|item| Some((item, shared.remove(item.name)?)))
            .collect();
        let unsealed = self.steps.with_held(move |held| {
            let mut unsealed = Vec::new();
            for (item, found) in items {
                // What can't be read otherwise is no word of another token.
                let opened = turn::maybe(held.open(item.name, &found.value))?;
                if opened.is_none_or(|(by, _)| by != 0) {
                    unsealed.push((item, found));
                }
            }
            Ok(unsealed)
        });
        Ok(Found {
            turn,
            others,
            said,
            unsealed: unsealed.await?,
        })
    }

    /// Everything that is to be done now; answers with when to look again.
    pub async fn look(&self, now: Timestamp) -> anyhow::Result<Duration> {
        loop {
            if let Some(again) = self.step(now).await? {
                return Ok(again);
            }
        }
    }

    /// What is next; `None` if it is looked again at once.
    async fn step(&self, now: Timestamp) -> anyhow::Result<Option<Duration>> {
        let found = self.found().await?;
        let turn = found.turn.as_ref().map(|(turn, _)| turn.clone());
        let seen = self.steps.with_held(move |held| {
            let seen = turn.map(|turn| turn.seen(held)).transpose()?;
            Ok((seen, held.has_former()))
        });
        let (record, keeps_former) = seen.await?;
        // By a clock that is far ahead it began in a time to come: waiting for that would keep the former token for as long.
        let ripe = |turn: &Turn| now.duration_since(turn.began).abs() >= STANDS;
        let ripe = found.turn.as_ref().is_some_and(|(turn, _)| ripe(turn));
        let step = plan::next(Facts {
            record,
            keeps_former,
            said: found.said,
            others: !found.others.is_empty(),
            unsealed: !found.unsealed.is_empty(),
            ripe,
        });
        match (step, found.turn) {
            (Step::Rest, _) => return Ok(Some(AGAIN)),
            (Step::Wait, _) => return Ok(Some(SOON)),
            (Step::Lost, _) => {
                // Whoever still has the former one is told nothing here either.
                self.borne.lose();
                if !std::mem::replace(&mut *self.lost.lock(), true) {
                    tracing::error!(
                        "the servers' token was replaced, and this server doesn't have the new one: before it is started again give it \
                             --token, pki/server-token in the data directory of another server"
                    );
                }
                return Ok(Some(AGAIN));
            }
            (Step::Forget, _) => self.forget().await?,
            (Step::Take, Some((turn, _))) => self.take(turn).await?,
            (Step::Say, Some((turn, _))) => self.say(&turn).await?,
            (Step::Seal, _) => self.seal(found.unsealed).await?,
            (Step::End, Some((_, revision))) => {
                let (key, expected) = (self.key(turn::NAME), Expect::ModRevision(revision));
                self.steps.store().delete(key.into(), expected).await?;
                tracing::info!("the servers' former token counts nowhere any more");
            }
            (Step::Take | Step::Say | Step::End, None) => bail!("there is no next token"),
        }
        Ok(None)
    }

    async fn take(&self, turn: Turn) -> anyhow::Result<()> {
        let pki = self.pki.clone();
        let token = self
            .steps
            .with_held(move |held| {
                let next = turn.next(held)?.context("the next token can't be opened")?;
                let next = shared::keep_next(&pki, held.token()?, next)?;
                held.put_first(next.clone());
                Ok(next)
            })
            .await?;
        self.borne.set(token);
        tracing::info!("the servers have another token: taken");
        Ok(())
    }

    async fn say(&self, turn: &Turn) -> anyhow::Result<()> {
        let key = self.key(&turn::said(&self.address));
        let value = turn.id.clone().into_bytes();
        let put = self
            .steps
            .store()
            .put(key.into(), value.into(), Expect::Any, None)
            .await;
        put.context("saying which token this server has")?;
        Ok(())
    }

    /// One of them.
    async fn seal(&self, items: Vec<(&'static Item, KeyValue)>) -> anyhow::Result<()> {
        let Some((item, found)) = items.into_iter().next() else {
            return Ok(());
        };
        let (key, expected) = (found.key.clone(), Expect::ModRevision(found.mod_revision));
        let sealed = self.steps.with_held(move |held| {
            let (_, content) = held.open(item.name, &found.value)?;
            held.seal(0, item.name, &content)
        });
        // Another may have been faster, or an authority has made a step: it is looked at again.
        let put = self.steps.store().put(key, sealed.await?.into(), expected, None).await;
        put.with_context(|| format!("sealing the servers' {} anew", item.name))?;
        Ok(())
    }

    async fn forget(&self) -> anyhow::Result<()> {
        // First: while the former is there, this is begun anew.
        let key = self.key(&turn::said(&self.address));
        self.steps.store().delete(key.into(), Expect::Any).await?;
        shared::forget_former(&self.pki)?;
        self.steps
            .with_held(|held| {
                held.forget_former();
                Ok(())
            })
            .await
    }

    /// Has another token take the place of the present one, unless one does already.
    pub async fn begin(&self, now: Timestamp) -> anyhow::Result<()> {
        let found = self.found().await?;
        // Who asks now means the token that all have by now: it would stay, and he would hear that it was replaced.
        if found.turn.is_some() && found.is_taken() {
            bail!(
                "the servers' token was replaced just now: all servers have another. For one more ask again in half a minute"
            );
        }
        if found.turn.is_none() {
            ensure!(found.unsealed.is_empty(), "this server doesn't have the present token");
            let turn = self
                .steps
                .with_held(move |held| Turn::new(held, &ServerToken::generate(), now));
            let value = serde_json::to_vec(&turn.await?)?;
            let key = self.key(turn::NAME);
            let put = self
                .steps
                .store()
                .put(key.into(), value.into(), Expect::Absent, None)
                .await;
            if let Outcome::Done { .. } = put.context("writing down the next token")? {
                tracing::info!("the servers' token is being replaced");
            }
        }
        self.look.notify_one();
        Ok(())
    }

    async fn told(&self) -> anyhow::Result<serde_json::Value> {
        let found = self.found().await?;
        let mut others = found.others;
        if found.turn.is_some() && !found.said {
            others.push(self.address.clone());
        }
        Ok(json!({
            "underWay": found.turn.is_some(),
            "waitsFor": others,
            "sealed": found.unsealed.is_empty(),
        }))
    }

    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let looking = async {
            loop {
                let again = self.look(keelson_clock::now()).await.unwrap_or_else(|error| {
                    tracing::warn!(error = format!("{error:#}"), "the servers' token; looking again");
                    SOON * 10
                });
                tokio::select! {
                    () = tokio::time::sleep(again) => {}
                    () = self.look.notified() => {}
                }
            }
        };
        tokio::select! {
            () = self.steps.follow(|| self.look.notify_one(), stop.clone()) => {}
            () = looking => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    }
}

/// The addresses of the servers that serve, by the endpoints of the service `kubernetes`.
pub async fn ready(rest: &Rest) -> anyhow::Result<BTreeSet<String>> {
    let slices: Vec<EndpointSlice> = Objects::new(rest)
        .list("default", "kubernetes.io/service-name=kubernetes", "")
        .await
        .context("which servers there are")?;
    let endpoints = slices
        .into_iter()
        .flat_map(|slice| slice.endpoints.into_iter().flatten());
    let serves = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    Ok(serves.flat_map(|endpoint| endpoint.addresses).collect())
}

pub fn serving(rest: Rest) -> Serving {
    Arc::new(move || {
        let rest = rest.clone();
        async move { ready(&rest).await }.boxed()
    })
}

/// As the API server asks it.
pub struct Front(pub Arc<Turning>);

impl Turns for Front {
    fn begin(&self) -> BoxFuture<'static, anyhow::Result<serde_json::Value>> {
        let this = self.0.clone();
        async move {
            this.begin(keelson_clock::now()).await?;
            this.told().await
        }
        .boxed()
    }
    fn told(&self) -> BoxFuture<'static, anyhow::Result<serde_json::Value>> {
        let this = self.0.clone();
        async move { this.told().await }.boxed()
    }
}

#[cfg(test)]
mod tests;
