//! Looks at charts, their jobs and releases, and does what comes next ([`plan`]).

mod make;
mod tell;

use super::chart::{CHART_LABEL, CONFIG_HASH, FINALIZER, HelmChart, HelmChartConfig, MANAGED_BY, UNMANAGED};
use super::job::{self, Act, Built, Settings};
use super::plan::{self, Facts, Next, Phase, Seen};
use super::release::{self, Release};
use super::trouble::Heard;
use async_trait::async_trait;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use keelson_client::{
    ApiObject, Controller, EventType, Informer, InformerOptions, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile,
    Recorder, Rest, WorkQueue, delete_options, is_not_found,
};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// As charts have it.
const US: &str = "keelson";
/// k3s' number: a job is tried for about four days.
const TRIES: i32 = 1000;
/// Who wants to go back doesn't want to wait that long.
const TRIES_BEFORE_ROLLBACK: i32 = 3;
/// After what failed for good is tried again, where nothing would change by itself.
const AGAIN: Duration = Duration::from_secs(300);

struct Charts {
    rest: Rest,
    settings: Settings,
    charts: Objects<HelmChart>,
    configs: Informer<HelmChartConfig>,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    heard: Arc<Heard>,
    recorder: Recorder,
    queue: Arc<WorkQueue<ObjectKey>>,
    stop: CancellationToken,
    /// Secrets with values, by namespace and name, and who uses them.
    secrets: Mutex<BTreeMap<ObjectKey, Followed>>,
    /// How often jobs of one configuration were made.
    tries: Mutex<BTreeMap<ObjectKey, (String, u32)>>,
}

/// One secret is followed once, however many charts use it: who is told of it may change meanwhile.
struct Followed {
    by: Arc<Mutex<BTreeSet<ObjectKey>>>,
    _informer: Informer<Secret>,
}

impl Followed {
    /// Whether anybody uses it still.
    fn without(&self, chart: &ObjectKey) -> bool {
        let mut by = self.by.lock();
        by.remove(chart);
        !by.is_empty()
    }
}

pub async fn run(rest: &Rest, settings: Settings, stop: &CancellationToken) {
    let charts: Informer<HelmChart> = Informer::start(rest, InformerOptions::default(), stop);
    let configs: Informer<HelmChartConfig> = Informer::start(rest, InformerOptions::default(), stop);
    let jobs: Informer<Job> = Informer::start(rest, labelled(), stop);
    let pods: Informer<Pod> = Informer::start(rest, labelled(), stop);
    let controller = Controller::new("helm-charts")
        .input(&charts)
        .input(&configs)
        .input(&jobs)
        .input(&pods)
        .output(HelmChart::RESOURCE)
        .longest_delay(AGAIN);
    let queue = controller.queue();
    let (of_charts, of_configs, of_jobs, of_pods) = (queue.clone(), queue.clone(), queue.clone(), queue.clone());
    charts.on_change(move |change| of_charts.add(change.object().key()));
    configs.on_change(move |change| of_configs.add(change.object().key()));
    jobs.on_change(move |change| of_jobs.add(whose(change.object().as_ref())));
    let heard = Arc::new(Heard::default());
    let hearing = heard.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        hearing.hear(whose(pod.as_ref()), pod);
        of_pods.add(whose(pod.as_ref()));
    });
    let reconcile = Charts {
        rest: rest.clone(),
        settings,
        charts: Objects::new(rest),
        configs,
        jobs,
        pods,
        heard,
        recorder: Recorder::start(rest, "helm-controller", "", stop),
        queue,
        stop: stop.clone(),
        secrets: Mutex::default(),
        tries: Mutex::default(),
    };
    controller.run(Arc::new(reconcile), stop.clone()).await;
    drop(charts);
}

fn labelled<K: ApiObject>() -> InformerOptions<K> {
    InformerOptions {
        labels: CHART_LABEL.into(),
        ..InformerOptions::default()
    }
}

fn whose(object: &impl ApiObject) -> ObjectKey {
    let name = object.meta().labels.as_ref().and_then(|l| l.get(CHART_LABEL)).cloned();
    ObjectKey::new(object.namespace(), name.unwrap_or_default())
}

/// A chart with what belongs to it.
struct Wanted {
    built: Built,
    hash: String,
    policy: String,
    backoff_limit: i32,
}

#[async_trait]
impl Reconcile for Charts {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(chart) = self.charts.find(&key.namespace, &key.name).await? else {
            self.forget(key);
            self.unbind(key).await?;
            return Ok(Outcome::Done);
        };
        if chart.spec.chart.is_empty() && chart.spec.chart_content.is_empty() && !chart.is_deleting() {
            return Ok(Outcome::Done);
        }
        if chart.annotation(MANAGED_BY).is_some_and(|who| who != US) {
            return Ok(Outcome::Done);
        }
        let holds = chart.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
        match (chart.is_deleting(), holds) {
            (true, false) => return Ok(Outcome::Done),
            (false, _) if chart.annotation(UNMANAGED).is_some() => return Ok(Outcome::Done),
            (false, false) => return self.claim(&chart).await,
            _ if chart.annotation(MANAGED_BY).is_none() && !chart.is_deleting() => return self.claim(&chart).await,
            _ => {}
        }
        if !matches!(chart.spec.helm_version.as_str(), "" | "v3") && !chart.is_deleting() {
            let message = format!("Helm {} isn't supported: only v3 is", chart.spec.helm_version);
            self.tell(&chart, None, Some(("Unsupported version", &message))).await?;
            return Ok(Outcome::Done);
        }
        self.follow_secrets(key, &chart);
        let act = if chart.is_deleting() { Act::Delete } else { Act::Install };
        let wanted = match self.wanted(&chart, act).await? {
            Ok(wanted) => wanted,
            Err(why) => {
                self.tell(&chart, None, Some(("Job create failed", &why))).await?;
                return Ok(Outcome::Done);
            }
        };
        let release = release::of(&self.rest, &chart).await?;
        let next = plan::next(&self.facts(key, &chart, &wanted, &release));
        self.take(key, &chart, wanted, &release, next).await
    }
}

impl Charts {
    async fn claim(&self, chart: &HelmChart) -> anyhow::Result<Outcome> {
        let mut all = chart.metadata.finalizers.clone().unwrap_or_default();
        if !all.iter().any(|f| f == FINALIZER) {
            all.push(FINALIZER.into());
        }
        let body = json!({"metadata": {"resourceVersion": chart.metadata.resource_version, "finalizers": all,
            "annotations": {MANAGED_BY: US}}});
        self.charts
            .patch(chart.namespace(), chart.name(), Patch::Merge(&body))
            .await?;
        // Its own change brings it here again.
        Ok(Outcome::Done)
    }

    fn forget(&self, key: &ObjectKey) {
        self.tries.lock().remove(key);
        self.heard.forget(key);
        self.secrets.lock().retain(|_, followed| followed.without(key));
    }

    /// Of secrets with values each that is used is followed, and no other.
    fn follow_secrets(&self, key: &ObjectKey, chart: &HelmChart) {
        let config = self.configs.store().get_key(key);
        let of_config = config.iter().flat_map(|c| &c.spec.values_secrets);
        let named = chart
            .spec
            .values_secrets
            .iter()
            .chain(of_config)
            .filter(|s| !s.ignore_updates);
        let wanted: Vec<ObjectKey> = named.map(|s| ObjectKey::new(&key.namespace, &s.name)).collect();
        let mut all = self.secrets.lock();
        all.retain(|secret, followed| wanted.contains(secret) || followed.without(key));
        for secret in wanted {
            if let Some(followed) = all.get(&secret) {
                followed.by.lock().insert(key.clone());
                continue;
            }
            let by = Arc::new(Mutex::new(BTreeSet::from([key.clone()])));
            let options = InformerOptions {
                namespace: secret.namespace.clone(),
                fields: format!("metadata.name={}", secret.name),
                ..InformerOptions::default()
            };
            let informer: Informer<Secret> = Informer::start(&self.rest, options, &self.stop);
            let (queue, told) = (self.queue.clone(), by.clone());
            informer.on_change(move |_| told.lock().iter().for_each(|key| queue.add(key.clone())));
            all.insert(
                secret,
                Followed {
                    by,
                    _informer: informer,
                },
            );
        }
    }

    /// `Err`: it says what can't be.
    async fn wanted(&self, chart: &HelmChart, act: Act) -> anyhow::Result<Result<Wanted, String>> {
        let config = self
            .configs
            .store()
            .get_key(&chart.key())
            .filter(|_| act == Act::Install);
        let mut built = match job::build(chart, config.as_deref(), act, &self.settings) {
            Ok(built) => built,
            Err(why) => return Ok(Err(why)),
        };
        let mut data = vec![built.content.clone(), job::encoded(&built.values)];
        let of_config = config.iter().flat_map(|c| &c.spec.values_secrets);
        let own = job::values_name(chart.name());
        for secret in chart.spec.values_secrets.iter().chain(of_config) {
            if act == Act::Install && !secret.ignore_updates && secret.name != own {
                let found = Objects::<Secret>::new(&self.rest)
                    .find(chart.namespace(), &secret.name)
                    .await?;
                data.extend(found.and_then(|s| s.data).map(|d| job::encoded(&d)));
            }
        }
        let said = |of_config: Option<&str>, own: &str, usual: &str| match (of_config, own) {
            (Some(of_config), _) if !of_config.is_empty() => of_config.to_string(),
            (_, "") => usual.to_string(),
            (_, own) => own.to_string(),
        };
        let spec = config.as_ref().map(|c| &c.spec);
        let policy = said(
            spec.map(|s| s.failure_policy.as_str()),
            &chart.spec.failure_policy,
            "reinstall",
        );
        let server_side = said(spec.map(|s| s.server_side.as_str()), &chart.spec.server_side, "auto");
        let forced = spec
            .and_then(|s| s.force_conflicts)
            .unwrap_or(chart.spec.force_conflicts);
        job::set_policies(&mut built.template, &policy, &server_side, forced);
        let usual = if policy == "rollback" {
            TRIES_BEFORE_ROLLBACK
        } else {
            TRIES
        };
        let backoff_limit = chart.spec.backoff_limit.unwrap_or(usual);
        let hash = job::hash(&built.template, Some(backoff_limit), &data);
        Ok(Ok(Wanted {
            built,
            hash,
            policy,
            backoff_limit,
        }))
    }

    fn facts<'a>(&self, key: &ObjectKey, chart: &HelmChart, wanted: &'a Wanted, release: &Release) -> Facts<'a> {
        let tries = self
            .tries
            .lock()
            .get(key)
            .filter(|(hash, _)| *hash == wanted.hash)
            .map_or(0, |(_, n)| *n);
        Facts {
            deleting: chart.is_deleting(),
            abandoned: chart.annotation(UNMANAGED).is_some(),
            hash: &wanted.hash,
            policy: &wanted.policy,
            install: self.seen(chart, Act::Install),
            delete: self.seen(chart, Act::Delete),
            rollback: self.seen(chart, Act::Rollback),
            release: release.clone(),
            tries,
        }
    }

    fn job(&self, chart: &HelmChart, act: Act) -> Option<Arc<Job>> {
        let job = self.jobs.store().get(chart.namespace(), &act.job_name(chart.name()))?;
        // Another chart's, of a longer name that reads the same, or nobody's.
        (whose(job.as_ref()).name == chart.name()).then_some(job)
    }

    fn seen(&self, chart: &HelmChart, act: Act) -> Option<Seen> {
        let job = self.job(chart, act)?;
        let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ended = conditions
            .filter(|c| c.status == "True")
            .find_map(|c| match c.type_.as_str() {
                "Complete" => Some(Phase::Complete),
                "Failed" => Some(Phase::Failed),
                _ => None,
            });
        let phase = match job.is_deleting() {
            true => Phase::Ending,
            false => ended.unwrap_or(Phase::Running),
        };
        let notes = job
            .spec
            .as_ref()
            .and_then(|s| s.template.metadata.as_ref()?.annotations.as_ref());
        let hash = notes.and_then(|a| a.get(CONFIG_HASH)).cloned().unwrap_or_default();
        Some(Seen { hash, phase })
    }

    async fn take(
        &self,
        key: &ObjectKey,
        chart: &HelmChart,
        wanted: Wanted,
        release: &Release,
        next: Next,
    ) -> anyhow::Result<Outcome> {
        let where_ = |act: Act| format!("{}/{}", chart.namespace(), act.job_name(chart.name()));
        match next {
            Next::Make(act) => return self.make(key, chart, wanted, release, act).await,
            Next::Remove(act) => {
                if let Some(job) = self.job(chart, act) {
                    self.remove(&job).await?;
                }
            }
            Next::Wait(act) => {
                let message = format!("Waiting for the end of Job {}, which is deleted", where_(act));
                let message = match self.trouble(chart, act) {
                    None => message,
                    Some(why) => format!("{message}; {why}"),
                };
                self.tell(chart, Some((act, &message)), None).await?;
            }
            Next::Running(act) => {
                let message = match self.trouble(chart, act) {
                    None => format!("Applying HelmChart using Job {}", where_(act)),
                    Some(why) => format!("Applying HelmChart using Job {}; {why}", where_(act)),
                };
                self.tell(chart, Some((act, &message)), None).await?;
            }
            Next::Installed => {
                let message = format!("Applying HelmChart using Job {}", where_(Act::Install));
                self.tell(chart, Some((Act::Install, &message)), None).await?;
            }
            Next::Failed(why) => {
                if self.failed(chart, why).await? == Act::Delete {
                    return self.uninstall_again(chart).await;
                }
            }
            Next::LetGo { left } => return self.let_go(key, chart, left).await,
        }
        Ok(Outcome::Done)
    }

    /// In the foreground: it is gone when its pods are.
    async fn remove(&self, job: &Job) -> anyhow::Result<()> {
        let options = delete_options(Some("Foreground"), Some(job.uid()), None);
        match Objects::<Job>::new(&self.rest)
            .delete(job.namespace(), job.name(), &options)
            .await
        {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// When it is time, the job that failed makes place for another.
    async fn uninstall_again(&self, chart: &HelmChart) -> anyhow::Result<Outcome> {
        let job = self.job(chart, Act::Delete);
        let ended = job.as_ref().and_then(|j| {
            let conditions = j.status.as_ref()?.conditions.as_ref()?;
            conditions
                .iter()
                .find(|c| c.type_ == "Failed")
                .and_then(|c| c.last_transition_time.clone())
        });
        let waited = ended.map_or(0, |at| keelson_clock::now().as_second() - at.0.as_second());
        let left = AGAIN.saturating_sub(Duration::from_secs(u64::try_from(waited).unwrap_or(0)));
        match job {
            Some(job) if left.is_zero() => {
                self.remove(&job).await?;
                Ok(Outcome::Done)
            }
            _ => Ok(Outcome::After(left)),
        }
    }

    async fn let_go(&self, key: &ObjectKey, chart: &HelmChart, left: bool) -> anyhow::Result<Outcome> {
        if left {
            let message = format!(
                "The chart goes, and its release in {} is still noted there: what is left of it is to be removed by hand",
                chart.target()
            );
            tracing::warn!(chart = %key, "{message}");
            self.recorder.event(chart, EventType::Warning, "ReleaseLeft", message);
        }
        // Before it is gone: nothing would tell of the binding then.
        self.unbind(key).await?;
        let others = chart
            .metadata
            .finalizers
            .clone()
            .unwrap_or_default()
            .into_iter()
            .filter(|f| f != FINALIZER);
        let body = json!({"metadata": {"resourceVersion": chart.metadata.resource_version, "finalizers": others.collect::<Vec<_>>()}});
        match self
            .charts
            .patch(chart.namespace(), chart.name(), Patch::Merge(&body))
            .await
        {
            Err(error) if !is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
        self.forget(key);
        Ok(Outcome::Done)
    }
}
