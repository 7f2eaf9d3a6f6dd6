//! Whether who asks may: paths as subresources of the node, decided by the API server.

use crate::config::Config;
use http::{Method, Request};
use keelson_client::Rest;
use keelson_client::reviews::Reviews;
pub use keelson_client::reviews::{Shown, User};
use serde_json::json;

pub struct Auth {
    reviews: Reviews,
    node: String,
}

impl Auth {
    pub fn new(rest: Rest, cfg: &Config) -> Self {
        Auth {
            reviews: Reviews::remembering(rest, cfg.anonymous, cfg.reviews).heeding(cfg.revocations.clone()),
            node: cfg.node_name.clone(),
        }
    }

    /// The user behind a request; `None` when there is none.
    pub async fn authenticate<B>(&self, peer: Option<&Shown>, request: &Request<B>) -> Result<Option<User>, String> {
        self.reviews.authenticate(peer, request.headers()).await
    }

    /// Whether the user may do this; any of the subresources that cover the path is enough.
    pub async fn allowed(&self, user: &User, method: &Method, path: &str) -> Result<bool, Unable> {
        for sub in subresources(path) {
            let attributes = json!({"resourceAttributes": {
                "verb": verb(method), "version": "v1", "resource": "nodes", "subresource": sub, "name": self.node}});
            match self.reviews.allowed(user, &attributes).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(why) => return Err(Unable { sub, why }),
            }
        }
        Ok(false)
    }
}

/// It isn't known whether the user may.
pub struct Unable {
    pub sub: &'static str,
    pub why: String,
}

pub(super) fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::GET => "get",
        _ => "",
    }
}

pub(super) fn subresources(path: &str) -> Vec<&'static str> {
    let below = |base: &str| path == base || path.strip_prefix(base).is_some_and(|r| r.starts_with('/'));
    for (base, sub) in [
        ("/stats", "stats"),
        ("/metrics", "metrics"),
        ("/logs", "log"),
        ("/checkpoint", "checkpoint"),
        ("/statusz", "statusz"),
    ] {
        if below(base) {
            return vec![sub];
        }
    }
    if below("/flagz") {
        return vec!["configz"];
    }
    for (base, sub) in [
        ("/pods", "pods"),
        ("/healthz", "healthz"),
        ("/configz", "configz"),
        ("/runningpods", "pods"),
    ] {
        if below(base) {
            return vec![sub, "proxy"];
        }
    }
    vec!["proxy"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_subresources() {
        assert_eq!(subresources("/stats/summary"), ["stats"]);
        assert_eq!(subresources("/metrics/resource"), ["metrics"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        assert_eq!(subresources("/podsx"), ["proxy"]);
        assert_eq!(subresources("/exec/a/b/c"), ["proxy"]);
    }
}
