//! What is asked: requests that belong together, and what they try.

use serde::{Deserialize, Serialize};

/// Where dry-run requests are sent.
pub const NAMESPACE: &str = "differential";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub method: String,
    /// With its query. `{continue}` and `{uid}` are taken from the answer to the request before.
    pub path: String,
    /// `{rv}` is the revision that the object at the path has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub content_type: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub accept: String,
    /// Empty: the administrator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
}

impl Request {
    pub fn new(method: &str, path: impl Into<String>) -> Self {
        Request {
            method: method.into(),
            path: path.into(),
            ..Request::default()
        }
    }
    pub fn body(mut self, content_type: &str, body: impl ToString) -> Self {
        self.content_type = content_type.into();
        self.body = body.to_string();
        self
    }
    pub fn json(self, body: impl ToString) -> Self {
        self.body("application/json", body)
    }
    pub fn accept(mut self, accept: &str) -> Self {
        self.accept = accept.into();
        self
    }
    pub fn by(mut self, user: &str) -> Self {
        self.user = user.into();
        self
    }
}

/// Requests in order, by nobody else disturbed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// `apps/v1 Deployment`
    pub kind: String,
    /// What is done to which field, for people.
    pub what: String,
    pub steps: Vec<Request>,
}

/// Which state of the world a case finds: cases of one phase don't disturb each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Only what the set-up made; nothing is changed.
    Create,
    /// The sound objects exist; nothing is changed.
    Change,
    /// Each case makes, changes and removes objects of its own.
    Live,
}
