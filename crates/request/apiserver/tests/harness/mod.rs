//! A whole server over a store in memory, and a client that says what it expects.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod outside;
pub mod socket;

use bytes::Bytes;
use http_body_util::BodyExt;
use keelson_api::Value;
use keelson_apiserver::request::{Body, UserInfo};
use keelson_apiserver::{ApiServer, Config};
use keelson_store::{Memory, Store};
use std::sync::Arc;
use tower::ServiceExt;

pub struct Api {
    pub server: ApiServer,
    user: UserInfo,
}

pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }
    pub fn str(&self, path: &[&str]) -> String {
        self.json()
            .at(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string()
    }
    #[track_caller]
    pub fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }
}

impl Api {
    pub async fn new() -> Api {
        let api = Self::starting(Memory::new());
        api.server.ready().await;
        api
    }
    /// A server over a store, at the first moment of its start.
    pub fn starting(store: Arc<dyn Store>) -> Api {
        Self::starting_with(store, |_| {})
    }
    pub fn starting_with(store: Arc<dyn Store>, configure: impl FnOnce(&mut Config)) -> Api {
        let keys = keelson_pki::ServiceAccountKeys::generate().expect("keys");
        let mut config = Config::new(keys);
        config.publish_kubernetes_service = false;
        configure(&mut config);
        let server = ApiServer::new(config, store).expect("a server");
        let user = UserInfo::new("tester", &["system:masters"]);
        Api { server, user }
    }
    /// The same server, and another who calls.
    pub fn called_by(self, name: &str, groups: &[&str]) -> Api {
        let user = UserInfo::new(name, groups);
        Api { user, ..self }
    }
    pub fn by(self, user: UserInfo) -> Api {
        Api { user, ..self }
    }
    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        accept: &str,
        body: Vec<u8>,
    ) -> http::Response<Body> {
        let mut request = http::Request::builder().method(method).uri(path);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        if !accept.is_empty() {
            request = request.header("accept", accept);
        }
        let request = request
            .header("user-agent", "tester/1")
            .body(Body::from(body))
            .expect("a request");
        let service = self.server.service(self.user.clone());

        service.oneshot(request).await.expect("an answer")
    }
    pub async fn call(&self, method: &str, path: &str, content_type: &str, accept: &str, body: Vec<u8>) -> Answer {
        let response = self.raw(method, path, content_type, accept, body).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect(64 << 20).await.expect("a body");
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            bytes,
        }
    }
    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "", "application/json", Vec::new()).await
    }
    /// Asks until the answer satisfies: what follows an object is a moment behind the answer to its write.
    pub async fn until(&self, path: &str, ok: impl Fn(&Answer) -> bool) -> Answer {
        for _ in 0..3000 {
            let answer = self.get(path).await;
            if ok(&answer) {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let last = self.get(path).await;
        let shown = String::from_utf8_lossy(&last.bytes);
        panic!("{path} never came to it: {} {shown}", last.code);
    }
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(
            "POST",
            path,
            "application/json",
            "application/json",
            serde_json::to_vec(&body).expect("JSON"),
        )
        .await
    }
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(
            "PUT",
            path,
            "application/json",
            "application/json",
            serde_json::to_vec(&body).expect("JSON"),
        )
        .await
    }
    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        let content_type = format!("application/{kind}");
        self.call(
            "PATCH",
            path,
            &content_type,
            "application/json",
            serde_json::to_vec(&body).expect("JSON"),
        )
        .await
    }
    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, "", "application/json", Vec::new()).await
    }
    /// The first `n` lines of a watch.
    pub async fn watch(&self, path: &str, n: usize) -> Vec<Value> {
        let response = self.raw("GET", path, "", "application/json", Vec::new()).await;
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut text = Vec::new();
        let mut events = Vec::new();
        while events.len() < n {
            let frame = tokio::time::timeout(std::time::Duration::from_secs(10), body.frame())
                .await
                .expect("an event in time");
            let Some(frame) = frame else { break };
            text.extend_from_slice(&frame.expect("a frame").into_data().unwrap_or_default());
            while let Some(end) = text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                events.push(serde_json::from_slice(&line).expect("an event"));
            }
        }
        events
    }
}
