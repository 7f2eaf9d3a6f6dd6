//! Credentials for images from programs of the machine (KEP-2133, KEP-4412): the plug-ins of a `CredentialProviderConfig`, each
//! asked for the images that it is for, by `credentialprovider.kubelet.k8s.io`.
//!
//! A plug-in runs as root, so it and its settings have to be nobody else's to write ([`trusted`]); it is asked once for all who want
//! the same, and what it answers is kept for as long as it says ([`kept`]). One that fails gives nothing: the pull goes on with
//! what there is, and the log says why. No secret is written anywhere.

mod exec;
mod kept;
pub(crate) mod pattern;
mod settings;
mod trusted;
mod wire;

pub use settings::Settings;

use crate::act::credentials::{self, Source, Tracked};
use crate::act::pulled;
use crate::metrics::Metrics;
use crate::pods;
use crate::volumes::Tools;
use exec::Program;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use keelson_client::Objects;
use keelson_cri::v1::AuthConfig;
use kept::{Account, Kept};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use wire::{Login, Logins, Response};

/// Calls of one plug-in at the same time, each a process and a thread that waits for it; more wait their turn.
const AT_ONCE: usize = 16;

pub struct Providers {
    all: Vec<Arc<Provider>>,
    tools: Arc<Tools>,
}

struct Provider {
    settings: settings::Provider,
    program: Program,
    metrics: Arc<Metrics>,
    kept: Mutex<Kept>,
    /// Calls that are under way, by what they are asked.
    calls: Mutex<HashMap<Vec<u8>, Call>>,
    places: Semaphore,
}

type Call = Shared<BoxFuture<'static, Result<Arc<Response>, String>>>;

/// Whom a plug-in is asked for.
#[derive(Default)]
struct Who {
    account: Option<Account>,
    token: String,
}

impl Providers {
    pub fn new(settings: Option<&Settings>, tools: Arc<Tools>, metrics: &Arc<Metrics>) -> Providers {
        let mut all = Vec::new();
        if let Some(settings) = settings {
            metrics.providers.in_force(&settings.hash);
            all.extend(settings.providers.iter().map(|provider| {
                Arc::new(Provider {
                    program: Program {
                        path: settings.bin_dir.join(&provider.name),
                        args: provider.args.clone(),
                        env: provider.env.clone(),
                    },
                    settings: provider.clone(),
                    metrics: metrics.clone(),
                    kept: Mutex::default(),
                    calls: Mutex::default(),
                    places: Semaphore::new(AT_ONCE),
                })
            }));
        }
        Providers { all, tools }
    }

    /// What all plug-ins have for a pod's image, the most specific first, and of one pattern the first provider's.
    pub async fn credentials(&self, pod: &Pod, repository: &str) -> Vec<Tracked> {
        let answers = join_all(self.all.iter().map(|p| p.answer(&self.tools, pod, repository))).await;
        let mut found = Vec::new();
        for (provider, answer) in self.all.iter().zip(answers) {
            let (logins, account) = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => continue,
                Err(error) => {
                    let (name, pod) = (&provider.settings.name, pods::describe(pod));
                    tracing::error!(provider = name, image = repository, %pod, error, "a credential provider gives nothing");
                    continue;
                }
            };
            let source = account.map_or(Source::Node, |a| {
                Source::Account(pulled::Account {
                    uid: a.uid,
                    namespace: a.namespace,
                    name: a.name,
                })
            });
            for (pattern, login) in logins.iter() {
                let prefix = credentials::normalize(pattern);
                if pattern::fits(&prefix, repository) {
                    found.push((prefix, tracked(login, source.clone())));
                }
            }
        }
        credentials::ranked(found)
    }
}

fn tracked(login: &Login, source: Source) -> Tracked {
    let auth = AuthConfig {
        username: login.username.clone(),
        password: login.password.clone(),
        ..Default::default()
    };
    Tracked { auth, source }
}

impl Provider {
    /// `None`: it isn't asked for such an image or pod.
    async fn answer(
        self: &Arc<Self>,
        tools: &Tools,
        pod: &Pod,
        image: &str,
    ) -> Result<Option<(Arc<Logins>, Option<Account>)>, String> {
        if !self.settings.match_images.iter().any(|p| pattern::fits(p, image)) {
            return Ok(None);
        }
        let Some(Who { account, token }) = self.who(tools, pod).await? else {
            return Ok(None);
        };
        let known = self.kept.lock().find(image, account.as_ref(), Instant::now());
        if let Some(logins) = known {
            return Ok(Some((logins, account)));
        }
        let annotations = account.as_ref().map(|a| a.annotations.clone()).unwrap_or_default();
        let response = self.ask(image, &token, &annotations).await?;
        let echoes = !token.is_empty() && response.logins.values().any(|login| login.password == token);
        if echoes && self.settings.account.as_ref().is_some_and(|a| !a.by_token) {
            return Err(
                "it gave the service account's token back as a password, which goes with the cacheType Token only"
                    .into(),
            );
        }
        let logins = Arc::new(response.logins.clone());
        let (now, keep) = (Instant::now(), response.keep.unwrap_or(self.settings.keep));
        if let Some(until) = now.checked_add(keep).filter(|_| !keep.is_zero()) {
            let mut kept = self.kept.lock();
            kept.keep(response.reach, image, account.as_ref(), logins.clone(), now, until);
        }
        Ok(Some((logins, account)))
    }

    /// Whom it is told; `None`: it isn't to be asked for this pod.
    async fn who(&self, tools: &Tools, pod: &Pod) -> Result<Option<Who>, String> {
        let Some(wanted) = &self.settings.account else {
            return Ok(Some(Who::default()));
        };
        let (namespace, name) = (pods::namespace(pod), pods::spec(pod).service_account_name.as_deref());
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok((!wanted.is_required).then(Who::default));
        };
        let account = Objects::<ServiceAccount>::new(&tools.rest).get(namespace, name).await;
        let account = account.map_err(|e| format!("failed to get service account: {}", crate::error_text(&e)))?;
        let there = account.metadata.annotations.unwrap_or_default();
        if wanted.required.iter().any(|key| !there.contains_key(key)) {
            return Ok(None);
        }
        let keys = wanted.required.iter().chain(&wanted.optional);
        let annotations: BTreeMap<String, String> = keys
            .filter_map(|key| Some((key.clone(), there.get(key)?.clone())))
            .collect();
        let uid = account.metadata.uid.unwrap_or_default();
        let token = tools
            .tokens
            .of_account(pod, &wanted.audience, &uid, tools.host.now())
            .await?;
        let hash = wanted.by_token.then(|| Sha256::digest(token.as_bytes()).into());
        let account = Account {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid,
            annotations,
            token: hash,
        };
        Ok(Some(Who {
            account: Some(account),
            token,
        }))
    }

    /// Calls the plug-in, or waits for the call that asks the same.
    async fn ask(
        self: &Arc<Self>,
        image: &str,
        token: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Arc<Response>, String> {
        let request = wire::request(self.settings.version, image, token, annotations);
        let key = Sha256::digest(&request).to_vec();
        let call = {
            let mut calls = self.calls.lock();
            let call = calls
                .entry(key.clone())
                .or_insert_with(|| self.begin(key, request, token.to_owned()));
            call.clone()
        };
        call.await
    }

    /// Goes on although whoever asked first may be gone.
    fn begin(self: &Arc<Self>, key: Vec<u8>, request: Vec<u8>, secret: String) -> Call {
        let provider = self.clone();
        let task = tokio::spawn(async move {
            // Nobody closes it.
            let place = provider.places.acquire().await;
            let (name, began) = (provider.settings.name.as_str(), Instant::now());
            let program = provider.program.clone();
            let called = tokio::task::spawn_blocking(move || program.call(&request, &secret, exec::PATIENCE)).await;
            drop(place);
            let called = called.map_err(|e| e.to_string()).and_then(|answer| answer);
            provider.metrics.providers.called(name, began.elapsed(), called.is_ok());
            provider.calls.lock().remove(&key);
            let answer = called.map_err(|e| format!("calling the plug-in failed: {e}"))?;
            wire::response(provider.settings.version, &answer).map(Arc::new)
        });
        async move { task.await.unwrap_or_else(|e| Err(e.to_string())) }
            .boxed()
            .shared()
    }
}
