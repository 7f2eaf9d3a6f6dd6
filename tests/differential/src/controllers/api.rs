//! A server's objects by their kinds, as JSON.

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use std::collections::HashMap;

/// Who drives, as the fields' owner.
pub const DRIVER: &str = "driver";

/// A kind of objects that can be listed and watched.
#[derive(Clone, Debug)]
pub struct Resource {
    /// `apps/v1`
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
}

impl Resource {
    pub fn list(&self) -> String {
        let head = if self.version.contains('/') { "apis" } else { "api" };
        format!("/{head}/{}/{}", self.version, self.plural)
    }
    pub fn collection(&self, namespace: &str) -> String {
        let head = if self.version.contains('/') { "apis" } else { "api" };
        match self.namespaced {
            true => format!("/{head}/{}/namespaces/{namespace}/{}", self.version, self.plural),
            false => self.list(),
        }
    }
    pub fn path(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(namespace))
    }
}

#[derive(Clone)]
pub struct Api {
    client: kube::Client,
    /// By `apps/v1 Deployment`.
    pub resources: HashMap<String, Resource>,
}

impl Api {
    /// Asks the server which kinds it has.
    pub async fn new(client: kube::Client) -> Result<Api> {
        let mut api = Api {
            client,
            resources: HashMap::new(),
        };
        let groups = api.get("/apis").await?;
        let mut versions = vec!["v1".to_string()];
        for group in groups["groups"].as_array().into_iter().flatten() {
            versions.extend(
                group
                    .pointer("/preferredVersion/groupVersion")
                    .and_then(Value::as_str)
                    .map(str::to_string),
            );
        }
        for version in versions {
            let head = if version.contains('/') { "apis" } else { "api" };
            let found = api.get(&format!("/{head}/{version}")).await?;
            for r in found["resources"].as_array().into_iter().flatten() {
                let text = |key: &str| r[key].as_str().unwrap_or_default().to_string();
                let verbs = r["verbs"].as_array().into_iter().flatten();
                let watched = verbs.filter(|v| matches!(v.as_str(), Some("list" | "watch"))).count() == 2;
                if !watched || text("name").contains('/') {
                    continue;
                }
                let resource = Resource {
                    version: version.clone(),
                    kind: text("kind"),
                    plural: text("name"),
                    namespaced: r["namespaced"].as_bool().unwrap_or_default(),
                };
                api.resources.insert(format!("{version} {}", resource.kind), resource);
            }
        }
        Ok(api)
    }

    pub fn resource(&self, version: &str, kind: &str) -> Result<&Resource> {
        let found = self.resources.get(&format!("{version} {kind}"));
        found.with_context(|| format!("the server has no kind {version} {kind}"))
    }

    /// `apps/v1 Deployment web` → its resource, namespace and name.
    pub fn named<'a>(&self, of: &'a str, namespace: &'a str) -> Result<(&Resource, &'a str, &'a str)> {
        let mut parts = of.split(' ');
        let (Some(version), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("{of:?} names no object");
        };
        let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
        Ok((self.resource(version, kind)?, namespace, name))
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        let (code, body) = self.ask("GET", path, "", None, DRIVER).await?;
        anyhow::ensure!(code < 400, "GET {path}: {body}");
        Ok(body)
    }

    /// The answer's code and body.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        form: &str,
        body: Option<&Value>,
        who: &str,
    ) -> Result<(u16, Value)> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("user-agent", who)
            .header("accept", "application/json");
        if body.is_some() {
            request = request.header("content-type", if form.is_empty() { "application/json" } else { form });
        }
        let bytes = body.map(Value::to_string).unwrap_or_default().into_bytes();
        let response = self.client.send(request.body(Body::from(bytes))?).await?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    /// Follows all objects of a kind: each as (`ADDED`, `MODIFIED`, `DELETED`, object), until `each` says that it is enough
    /// or the server ends it.
    pub async fn follow(&self, resource: &Resource, mut each: impl FnMut(&str, Value)) -> Result<()> {
        let listed = self.get(&resource.list()).await?;
        let revision = listed
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
            .unwrap_or("0")
            .to_string();
        for mut object in listed["items"].as_array().cloned().unwrap_or_default() {
            object["apiVersion"] = resource.version.clone().into();
            object["kind"] = resource.kind.clone().into();
            each("ADDED", object);
        }
        let path = format!(
            "{}?watch=1&timeoutSeconds=7200&resourceVersion={revision}",
            resource.list()
        );
        let request = http::Request::get(path)
            .header("user-agent", DRIVER)
            .header("accept", "application/json");
        let mut body = self.client.send(request.body(Body::empty())?).await?.into_body();
        let mut line = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            for byte in data {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let mut event: Value = serde_json::from_slice(&line)?;
                line.clear();
                let sort = event["type"].as_str().unwrap_or_default().to_string();
                anyhow::ensure!(sort != "ERROR", "watching {}: {event}", resource.plural);
                each(&sort, event["object"].take());
            }
        }
        bail!("the watch of {} has ended", resource.plural)
    }
}
