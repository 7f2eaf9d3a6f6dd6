//! The cluster's authorities as they follow one another while all runs: by the calendar, or because somebody asks.
//!
//! [`keelson_pki::succession`] says which steps there are and when each is due; [`journal`] writes them down, so that each is whole or
//! has not been; this makes them, and has everything of this server follow: [`Current`] is what components read, and are told by. What
//! a step would shut out is judged in [`depends`] by what is [`known`]. [`command`] is what administrators type.
//!
//! After a step, in this order: the directory has it; components have it ([`Current`]); the administrator's kubeconfig is made anew, and
//! the hash in the servers' token; the other servers are told. All of it is done again at each start and whenever it is looked at, so
//! that it doesn't matter where a program ended.

pub mod command;
pub mod depends;
pub mod journal;
pub mod known;
#[cfg(test)]
mod tests;

use crate::etcd::certificates::Certificates;
use crate::etcd::{Place, command as etcd, program};
use crate::servers::{self, Written};
use anyhow::{Context, ensure};
use depends::{Facts, Report, Told};
use futures::FutureExt;
use futures::future::BoxFuture;
use journal::Journal;
use keelson_apiserver::ApiServer;
use keelson_apiserver::authorities::{Asked, Refused, Succession};
use keelson_client::rest::Rest;
use keelson_pki::sharing::ETCD_CA;
use keelson_pki::succession::{Standing, Step};
use keelson_pki::verify::{Live, Roots};
use keelson_pki::{Current, Pki};
use keelson_store::etcd::Cluster;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// After this what failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// How often it is looked whether etcd has taken a step.
const SOON: Duration = Duration::from_secs(3);
/// Who comes by a former authority is told to the others so much later, at once with whoever else comes.
const GATHERED: Duration = Duration::from_secs(2);

/// Who this server is.
#[derive(Clone, Debug)]
pub struct Own {
    pub name: String,
    /// By which the service `kubernetes` leads to it.
    pub address: String,
    /// Of its API.
    pub url: String,
    /// Where the administrator's kubeconfig is kept.
    pub kubeconfig: PathBuf,
    /// The member of etcd that runs beside it.
    pub etcd: Option<Place>,
}

pub struct Authorities {
    own: Own,
    current: Current,
    journal: Journal,
    /// What components have, which the directory may be before: a step can be written down and fail after that.
    in_force: Mutex<BTreeMap<String, Standing>>,
    /// Of clients that a kubelet in this program knows.
    clients: Live,
    /// Once the API is there.
    api: OnceLock<(Weak<ApiServer>, Rest)>,
    look: Notify,
}

impl Authorities {
    pub fn new(own: Own, pki: Pki, shared: Option<servers::Steps>) -> anyhow::Result<Arc<Authorities>> {
        let journal = Journal::new(&pki.dir, shared, own.etcd.is_some());
        let in_force = Mutex::new(journal.standing()?);
        let clients = Live::default();
        clients.replace(roots(&pki)?);
        Ok(Arc::new(Authorities {
            own,
            current: Current::new(pki),
            journal,
            in_force,
            clients,
            api: OnceLock::new(),
            look: Notify::new(),
        }))
    }

    pub fn current(&self) -> &Current {
        &self.current
    }
    /// Whose clients are known, at any time.
    pub fn clients(&self) -> Live {
        self.clients.clone()
    }

    /// The API of this server: who came to it, and what others tell.
    pub fn attach(&self, api: &Arc<ApiServer>, rest: Rest) {
        // There is one in a program's life.
        let _ = self.api.set((Arc::downgrade(api), rest));
    }

    /// Brings what this server has of its own up to what its directory says; answers with when that has to be done again.
    pub fn keep(&self) -> anyhow::Result<i64> {
        let pki = self.current.get();
        let admin = pki
            .admin_kubeconfig(&self.own.kubeconfig, &self.own.url)
            .with_context(|| format!("cannot write the kubeconfig {}", self.own.kubeconfig.display()))?;
        servers::renew_token(self.journal.pki())?;
        let (certificate, _) = admin.certificate().context("the administrator has a certificate")?;
        let mut renew = keelson_pki::authority::read_certificate(certificate)?.renew_at();
        if let Some(place) = &self.own.etcd {
            renew = renew.min(Certificates::ensure(place)?.renew_at());
        }
        Ok(renew)
    }

    /// What the directory says is in force from now on.
    fn take(&self) -> anyhow::Result<()> {
        {
            // One at a time, so that none puts what it has read before another in the place of what that one has taken.
            let mut in_force = self.in_force.lock();
            // Before what components take: what is written in between is seen as not in force, and taken the next time.
            let standing = self.standing()?;
            self.current.reload()?;
            self.clients.replace(roots(&self.current.get())?);
            *in_force = standing;
        }
        self.keep().map(drop)
    }

    /// As the directory says.
    pub fn standing(&self) -> anyhow::Result<BTreeMap<String, Standing>> {
        self.journal.standing()
    }

    /// Whether an etcd beside this server has yet to be started with what was taken.
    fn etcd_is_behind(&self) -> anyhow::Result<bool> {
        match &self.own.etcd {
            Some(place) => Ok(!program::trusts(place)?),
            None => Ok(false),
        }
    }

    fn report(&self) -> anyhow::Result<Report> {
        let api = self.api.get().and_then(|(api, _)| api.upgrade());
        // A step that is written down and isn't in force is none to the others yet.
        let mut standing = self.in_force.lock().clone();
        if self.etcd_is_behind()? {
            // It has been taken when etcd has taken it.
            standing.remove(ETCD_CA.name);
        }
        Ok(Report {
            address: self.own.address.clone(),
            standing,
            came: api.map(|api| api.formers()).unwrap_or_default(),
        })
    }

    async fn facts(&self) -> anyhow::Result<Facts> {
        let own = self.report()?;
        let (_, rest) = self.api.get().context("this server's API isn't there yet")?;
        known::gather(rest, &self.own.name, own, self.members().await?).await
    }

    /// By their names, all members of an etcd that servers run, also those that are off: who comes back and trusts nobody that the others
    /// trust is shut out. `None`: there is no such etcd.
    async fn members(&self) -> anyhow::Result<Option<Vec<String>>> {
        let Some(place) = &self.own.etcd else { return Ok(None) };
        let cluster = Cluster::new(etcd::options(&place.data_dir, vec![place.client_url()])?)?;
        let members = cluster.members().await.context("who belongs to etcd")?;
        let names = members.into_iter().map(|member| match member.name.is_empty() {
            // It was never started.
            true => member.peer_urls.join(","),
            false => member.name,
        });
        Ok(Some(names.collect()))
    }

    /// Makes a step of one authority, and has this server follow it.
    async fn make(
        &self,
        item: &'static keelson_pki::sharing::Item,
        step: Step,
        before: &Standing,
    ) -> anyhow::Result<Written> {
        // Whoever goes by the old one here has another before anything is taken away.
        if step == Step::Withdraw {
            self.take()?;
        }
        let written = self.journal.step(item, step, before, keelson_clock::now()).await;
        // Also if it failed, here or below: what is written down is taken then.
        self.look.notify_one();
        let written = written?;
        self.take()?;
        if written == Written::Done {
            let now = self.standing()?;
            let (signs, stage) = now.get(item.name).map(|s| (s.signs.hash.clone(), s.stage)).unzip();
            tracing::info!(authority = item.name, ?stage, signs, "an authority has made a step");
        }
        Ok(written)
    }

    /// Makes the steps whose time has come; answers with when the next one is due.
    async fn by_calendar(&self) -> anyhow::Result<i64> {
        let mut next = i64::MAX;
        for (item, _) in self.journal.items() {
            // A server that was switched off for years has several to make.
            loop {
                let all = self.standing()?;
                let Some(standing) = all.get(item.name) else { break };
                let Some(step) = standing.due(keelson_clock::now().as_second()) else {
                    next = next.min(standing.due_at().unwrap_or(i64::MAX));
                    break;
                };
                if item.name == ETCD_CA.name && !self.etcd_is_ready(standing, step).await? {
                    next = next.min(keelson_clock::now().as_second() + AGAIN.as_secs() as i64);
                    break;
                }
                let written = self.make(item, step, standing).await?;
                let made = self
                    .standing()?
                    .get(item.name)
                    .is_some_and(|now| now.number > standing.number);
                ensure!(
                    made,
                    "{} didn't make the step {step:?}, which is due ({written:?})",
                    item.name
                );
            }
        }
        Ok(next)
    }

    /// Members that don't know each other would be none: that step is made when all have taken the one before, however late it is.
    async fn etcd_is_ready(&self, standing: &Standing, step: Step) -> anyhow::Result<bool> {
        let facts = self.facts().await?;
        let lines = facts.waits_for(ETCD_CA.name, standing, step, keelson_clock::now().as_second());
        if !lines.is_empty() {
            tracing::warn!(?lines, "a step of etcd's authority is due, and waits");
        }
        Ok(lines.is_empty())
    }

    /// Everything that is to be done now; answers with when to look again.
    pub async fn look(&self) -> anyhow::Result<i64> {
        let taken = self.journal.take().await;
        // Of several one may have been taken before another failed; and what was taken before may have failed to come in force.
        let behind = self.standing()? != *self.in_force.lock();
        if behind {
            self.take()?;
        }
        taken?;
        let renew = self.keep()?;
        let due = self.by_calendar().await?;
        if let Some((_, rest)) = self.api.get() {
            known::tell(rest, &self.own.name, &self.report()?).await?;
        }
        match self.etcd_is_behind()? {
            true => Ok(keelson_clock::now().as_second() + SOON.as_secs() as i64),
            false => Ok(due.min(renew)),
        }
    }

    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let following = async {
            match self.journal.shared() {
                Some(steps) => steps.follow(|| self.look.notify_one(), stop.clone()).await,
                None => stop.cancelled().await,
            }
        };
        let looking = async {
            let api = self.api.get().and_then(|(api, _)| api.upgrade());
            let mut came = api.map(|api| api.formers_changes());
            loop {
                let due = match self.look().await {
                    Ok(due) => due,
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the cluster's authorities; looking again");
                        keelson_clock::now().as_second() + AGAIN.as_secs() as i64
                    }
                };
                let others = async {
                    let told = match &mut came {
                        Some(came) => came.changed().await.is_ok(),
                        None => false,
                    };
                    if !told {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(GATHERED).await;
                };
                tokio::select! {
                    () = keelson_pki::due(due) => {}
                    () = self.look.notified() => {}
                    () = others => {}
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = looking => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    }

    async fn told(&self) -> anyhow::Result<serde_json::Value> {
        let (standing, facts) = (self.standing()?, self.facts().await?);
        let now = keelson_clock::now().as_second();
        let each = standing.into_iter().map(|(name, standing)| {
            let told = Told {
                depending: facts.depending(&name, &standing, now),
                waits_for: facts.waits_for(&name, &standing, standing.next(), now),
                standing,
            };
            (name, told)
        });
        Ok(serde_json::to_value(each.collect::<BTreeMap<String, Told>>())?)
    }

    async fn asked(&self, asked: Asked) -> Result<serde_json::Value, Refused> {
        let item = journal::item(&asked.authority).ok_or_else(|| Refused::Unknown(asked.authority.clone()))?;
        let all = self.standing()?;
        let standing = all
            .get(item.name)
            .ok_or_else(|| Refused::Unknown(asked.authority.clone()))?;
        if standing.next() != asked.step {
            let stage = standing.stage;
            return Err(Refused::Waits(vec![format!(
                "{} is {stage:?}: its next step is another",
                item.name
            )]));
        }
        // Members of etcd that don't know each other would be none, and nobody could ask for anything any more.
        if !asked.force || item.name == ETCD_CA.name {
            let facts = self.facts().await?;
            let lines = facts.waits_for(item.name, standing, asked.step, keelson_clock::now().as_second());
            if !lines.is_empty() {
                return Err(Refused::Waits(lines));
            }
        }
        match self.make(item, asked.step, standing).await? {
            Written::Done => {}
            Written::Met => return Err(Refused::Waits(vec!["another server has just made a step".into()])),
        }
        let now = self.standing()?;
        Ok(json!(now.get(item.name)))
    }
}

fn roots(pki: &Pki) -> anyhow::Result<Roots> {
    Roots::from_pem(pki.ca.bundle_pem().as_bytes()).context("the cluster's authority")
}

/// The engine as the API server asks it.
pub struct Front(pub Arc<Authorities>);

impl Succession for Front {
    fn told(&self) -> BoxFuture<'static, anyhow::Result<serde_json::Value>> {
        let this = self.0.clone();
        async move { this.told().await }.boxed()
    }
    fn step(&self, asked: Asked) -> BoxFuture<'static, Result<serde_json::Value, Refused>> {
        let this = self.0.clone();
        async move { this.asked(asked).await }.boxed()
    }
}
