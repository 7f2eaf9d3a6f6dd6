//! A server that is asked, ours or the peer.

use crate::answer::Answer;
use crate::case::{Case, Request};
use anyhow::{Context, Result};
use futures::StreamExt;
use http_body_util::BodyExt;
use keelson_apiserver::{ApiServer, Config, UserInfo};
use keelson_pki::ServiceAccountKeys;
use keelson_store::Memory;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;

/// Who asks: the administrator, somebody who may a little, and somebody who may nothing.
pub const USERS: &[(&str, &[&str])] = &[
    ("admin", &["system:masters"]),
    ("alice", &["readers"]),
    ("mallory", &[]),
];
/// What a request may take; a watch ends by itself before.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Side {
    clients: HashMap<String, kube::Client>,
    /// Revisions of objects that requests were sent for, by path.
    revisions: Mutex<HashMap<String, String>>,
    /// Ours, which lives as long as it is asked.
    _server: Option<ApiServer>,
}

impl Side {
    pub fn new(clients: HashMap<String, kube::Client>) -> Side {
        Side {
            clients,
            revisions: Mutex::default(),
            _server: None,
        }
    }

    /// Ours, in this process, over a store in memory.
    pub async fn ours() -> Result<Side> {
        let mut config = Config::new(ServiceAccountKeys::generate()?);
        config.publish_kubernetes_service = false;
        let server = ApiServer::new(config, Memory::new())?;
        server.ready().await;
        let client = |name: &str, groups: &[&str]| {
            let mut all = groups.to_vec();
            all.push("system:authenticated");
            let mut user = UserInfo::new(name, &all);
            // The peer knows each by a certificate.
            let certificate = format!("X509SHA256={:064x}", 0);
            user.extra = [(
                "authentication.kubernetes.io/credential-id".into(),
                vec![certificate.into()],
            )]
            .into();
            server.client(user)
        };
        let clients = USERS.iter().map(|(n, g)| ((*n).to_string(), client(n, g))).collect();
        Ok(Side {
            _server: Some(server),
            ..Side::new(clients)
        })
    }

    pub fn client(&self, user: &str) -> Result<kube::Client> {
        self.clients.get(user).cloned().context("an unknown user")
    }

    pub async fn is_ready(&self) -> bool {
        match self.ask(&Request::new("GET", "/readyz")).await {
            Ok(answer) => answer.code == 200,
            Err(_) => false,
        }
    }

    /// Asks all of a case's requests in turn.
    pub async fn case(&self, case: &Case) -> Result<Vec<Answer>> {
        let mut answers: Vec<Answer> = Vec::new();
        for step in &case.steps {
            let filled = filled(step, answers.last());
            let answer = self
                .step(filled.as_ref().unwrap_or(step), step)
                .await
                .with_context(|| format!("{} {} of {}", step.method, step.path, case.what))?;
            answers.push(answer);
        }
        Ok(answers)
    }

    async fn step(&self, request: &Request, shown: &Request) -> Result<Answer> {
        if !request.body.contains("{rv}") {
            return self.ask_shown(request, shown).await;
        }
        let ask = async |revision: &str| self.ask_shown(&with_revision(request, revision), shown).await;
        let place = object_path(&request.path);
        let known = self.revisions.lock().get(&place).cloned();
        let first = match known {
            Some(revision) => revision,
            None => self.revision(&place).await?,
        };
        let answer = ask(&first).await?;
        // Somebody else wrote, a status perhaps: what is wanted is the newest.
        if answer.code == 409 && answer.text().contains("object has been modified") {
            let newest = self.revision(&place).await?;
            return ask(&newest).await;
        }
        Ok(answer)
    }

    async fn revision(&self, place: &str) -> Result<String> {
        let answer = self.ask(&Request::new("GET", place)).await?;
        let found = answer.raw.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let found = found.unwrap_or("1").to_string();
        self.revisions.lock().insert(place.into(), found.clone());
        Ok(found)
    }

    /// Asks once.
    pub async fn ask(&self, request: &Request) -> Result<Answer> {
        self.ask_shown(request, request).await
    }

    /// Asks once; the answer is masked but for what stands in `shown`.
    async fn ask_shown(&self, request: &Request, shown: &Request) -> Result<Answer> {
        let user = if request.user.is_empty() {
            "admin"
        } else {
            &request.user
        };
        let client = self.clients.get(user).context("an unknown user")?;
        let mut built = http::Request::builder()
            .method(request.method.as_str())
            .uri(&request.path)
            .header("user-agent", "differential/1")
            .header(
                "accept",
                if request.accept.is_empty() {
                    "application/json"
                } else {
                    &request.accept
                },
            );
        if !request.content_type.is_empty() {
            built = built.header("content-type", &request.content_type);
        }
        let built = built.body(Body::from(request.body.clone().into_bytes()))?;
        let asked = async {
            let response = client.send(built).await?;
            let (parts, mut body) = response.into_parts();
            let mut bytes = Vec::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    bytes.extend_from_slice(&data);
                }
            }
            // By a line nothing comes after the head, which one within this process can't know.
            if request.method == "HEAD" {
                bytes.clear();
            }
            anyhow::Ok(Answer::new(shown, parts.status.as_u16(), &parts.headers, bytes))
        };
        // A handler that panics ends its connection, one that hangs says nothing: these are answers, too.
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        Ok(answer.ok().and_then(Result::ok).unwrap_or_else(Answer::none))
    }
}

/// Asks both sides all cases, `width` at a time, and hands each pair of answers on.
pub async fn both<'a>(
    ours: &'a Side,
    peer: &'a Side,
    cases: &'a [Case],
    width: usize,
    mut each: impl FnMut(&'a Case, Vec<Answer>, Vec<Answer>),
) -> Result<()> {
    let asked = cases.iter().map(|case| async move {
        let (a, b) = tokio::join!(ours.case(case), peer.case(case));
        anyhow::Ok((case, a?, b?))
    });
    let mut asked = futures::stream::iter(asked).buffered(width);
    while let Some(next) = asked.next().await {
        let (case, a, b) = next?;
        each(case, a, b);
    }
    Ok(())
}

/// The path of the object itself: without query and subresource.
fn object_path(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let head = if parts[0] == "api" { 2 } else { 3 };
    let namespaced = parts.get(head) == Some(&"namespaces") && parts.len() > head + 3;
    let end = head + if namespaced { 4 } else { 2 };
    format!("/{}", parts[..end.min(parts.len())].join("/"))
}

fn with_revision(request: &Request, revision: &str) -> Request {
    Request {
        body: request.body.replace("{rv}", revision),
        ..request.clone()
    }
}

/// The request with what it takes from the answer before; `None` if it takes nothing.
fn filled(request: &Request, before: Option<&Answer>) -> Option<Request> {
    let mut found = false;
    let mut request = request.clone();
    for (mark, at) in [("{continue}", "/metadata/continue"), ("{uid}", "/metadata/uid")] {
        if request.path.contains(mark) || request.body.contains(mark) {
            let value = before
                .and_then(|a| a.raw.pointer(at))
                .and_then(Value::as_str)
                .unwrap_or("none");
            found = true;
            request.path = request.path.replace(mark, value);
            request.body = request.body.replace(mark, value);
        }
    }
    found.then_some(request)
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_objects_path_has_no_subresource() {
        let of = super::object_path;
        assert_eq!(of("/api/v1/nodes/n1/status?dryRun=All"), "/api/v1/nodes/n1");
        assert_eq!(of("/api/v1/namespaces/a/status"), "/api/v1/namespaces/a");
        assert_eq!(
            of("/apis/apps/v1/namespaces/a/deployments/web/scale"),
            "/apis/apps/v1/namespaces/a/deployments/web"
        );
    }
}
