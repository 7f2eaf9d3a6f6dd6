//! What the server under measurement has in it: made before the row that needs it, once.
//!
//! Everything is in namespaces of this run's own. Other components need not be there: what controllers would make, a namespace's
//! service account, is made here.

use crate::drive::{Bounds, Pace, drive};
use crate::measure::Sizes;
use crate::objects::{self, GROUP, NODES};
use crate::plan::Plan;
use crate::target::{Head, Target};
use crate::webhook::{self, Hook};
use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const JSON: &str = "application/json";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub const APPLY: &str = "application/apply-patch+yaml";
/// What is made at once.
const AT_ONCE: usize = 16;
const FILLED_WITHIN: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Need {
    /// Some ConfigMaps in `maps`.
    Maps,
    /// Some pods with status in `pods`.
    Pods,
    /// As many pods as are listed, with status and nodes, in `many`.
    Many,
    /// A custom resource.
    Gadgets,
    /// A webhook that is asked of what is made in `hooked`.
    Hook,
}

pub struct World {
    pub target: Target,
    /// Objects that rows patch, replace and read in turn.
    pub some: usize,
    listed: usize,
    run: String,
    made: HashSet<Need>,
    namespaces: HashSet<&'static str>,
    hook: Option<Hook>,
    numbered: usize,
}

impl World {
    pub fn new(target: Target, sizes: &Sizes) -> World {
        let run = format!("{:x}", jiff::Timestamp::now().as_millisecond());
        World {
            target,
            some: sizes.some,
            listed: sizes.listed,
            run,
            made: HashSet::new(),
            namespaces: HashSet::new(),
            hook: None,
            numbered: 0,
        }
    }

    /// A prefix of names that no other row has.
    pub fn prefix(&mut self) -> String {
        self.numbered += 1;
        format!("r{}", self.numbered)
    }

    pub fn path(&self, namespace: &str, resource: &str) -> String {
        format!("/api/v1/namespaces/load-{}-{namespace}/{resource}", self.run)
    }

    pub fn gadgets(&self) -> String {
        format!("/apis/{GROUP}/v1/namespaces/load-{}-made/gadgets", self.run)
    }

    /// How often the webhook has been asked.
    pub fn hooked(&self) -> usize {
        self.hook.as_ref().map_or(0, Hook::asked)
    }

    pub async fn need(&mut self, need: Need) -> Result<()> {
        if !self.made.insert(need) {
            return Ok(());
        }
        self.make(need).await.with_context(|| format!("making {need:?}"))
    }

    async fn make(&mut self, need: Need) -> Result<()> {
        match need {
            Need::Maps => {
                self.namespace("maps").await?;
                let path = self.path("maps", "configmaps");
                self.fill(create(&path, &objects::config_map("c-{n}")), self.some).await
            }
            Need::Pods => {
                self.namespace("pods").await?;
                self.pods("pods", "", self.some).await
            }
            Need::Many => {
                self.namespace("many").await?;
                self.pods("many", r#""nodeName":"node-{i}","#, self.listed).await
            }
            Need::Gadgets => {
                self.namespace("made").await?;
                let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
                // It may be there from another run.
                self.once(create(definitions, &objects::definition()).or(409)).await?;
                self.until_there(&self.gadgets()).await?;
                // Its rules are served a moment later than it is.
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(())
            }
            Need::Hook => {
                self.namespace("hooked").await?;
                let hook = Hook::start().await?;
                let configuration = webhook::configuration(&hook, &self.run);
                self.hook = Some(hook);
                let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
                self.once(create(path, &configuration)).await?;
                self.until_hooked().await
            }
        }
    }

    /// A namespace of this run, in which pods can be made.
    pub async fn namespace(&mut self, name: &'static str) -> Result<()> {
        if !self.namespaces.insert(name) {
            return Ok(());
        }
        let full = format!("load-{}-{name}", self.run);
        let namespace = format!(
            r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{full}","labels":{{"load":"{full}"}}}}}}"#
        );
        self.once(create("/api/v1/namespaces", &namespace)).await?;
        let account = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
        self.once(create(&self.path(name, "serviceaccounts"), account)).await
    }

    /// Makes many, as fast as the server takes them.
    pub async fn fill(&self, plan: Plan, count: usize) -> Result<()> {
        let mut connections = self.target.connections(AT_ONCE.min(count.max(1))).await?;
        let bounds = Bounds {
            first: 0,
            count,
            limit: FILLED_WITHIN,
        };
        let taken = drive(&mut connections, &Arc::new(plan), Pace::Closed, bounds).await?;
        anyhow::ensure!(
            taken.answered == count,
            "{} of {count} were made within {FILLED_WITHIN:?}",
            taken.answered
        );
        Ok(())
    }

    async fn pods(&self, namespace: &str, spec: &str, count: usize) -> Result<()> {
        let path = self.path(namespace, "pods");
        let pod = create(&path, &objects::pod("p-{n}", spec)).objects(NODES);
        self.fill(pod, count).await?;
        let head = Head::write(Method::PATCH, "application/merge-patch+json");
        let status = Plan::new(head, &format!("{path}/p-{{n}}/status")).body(&objects::status(""));
        self.fill(status, count).await
    }

    async fn once(&self, plan: Plan) -> Result<()> {
        self.fill(plan, 1).await
    }

    async fn until_there(&self, path: &str) -> Result<()> {
        self.until_there_for(&self.target, path).await
    }

    pub async fn until_there_for(&self, target: &Target, path: &str) -> Result<()> {
        let mut connection = target.connect().await?;
        let (began, head) = (Instant::now(), Head::get(JSON));
        loop {
            let answer = connection.ask(&head, path, Bytes::new()).await?;
            if answer.code == 200 {
                return Ok(());
            }
            anyhow::ensure!(began.elapsed() < FILLED_WITHIN, "{path} isn't there: {}", answer.text());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Servers hear of a webhook a moment later.
    async fn until_hooked(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.hooked() == 0 {
            anyhow::ensure!(began.elapsed() < Duration::from_secs(30), "the webhook isn't asked");
            let prefix = self.prefix();
            let path = self.path("hooked", "configmaps");
            self.once(create(&path, &objects::config_map(&prefix))).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Lets go of what would be in others' way on a server that lives on. What is left are namespaces, which their controller empties.
    pub async fn leave(&mut self) -> Result<()> {
        let mut connection = self.target.connect().await?;
        let head = Head::write(Method::DELETE, JSON);
        let configuration = self.hook.take().map(|_| {
            format!(
                "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/load-{}",
                self.run
            )
        });
        let definition = self
            .made
            .contains(&Need::Gadgets)
            .then(|| format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gadgets.{GROUP}"));
        let namespaces = self.namespaces.drain();
        let namespaces = namespaces.map(|name| format!("/api/v1/namespaces/load-{}-{name}", self.run));
        for path in configuration.into_iter().chain(definition).chain(namespaces) {
            let answer = connection.ask(&head, &path, Bytes::new()).await?;
            anyhow::ensure!(answer.code < 300, "DELETE {path}: {} {}", answer.code, answer.text());
        }
        Ok(())
    }
}

pub fn create(path: &str, body: &str) -> Plan {
    let head = Head::write(Method::POST, JSON);
    Plan::new(head, path).body(body).code(201)
}
