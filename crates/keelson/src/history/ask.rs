//! What commands ask the server for.

use super::Target;
use crate::backup::selection::{Kinds, name_of, object_of};
use crate::client::kubeconfig;
use anyhow::{Context, ensure};
use keelson_apiserver::request::PAST;
use keelson_backup::objects::Object;
use keelson_client::kind::ResourceId;
use keelson_client::rest::{Error, JSON, Rest, with_query};
use keelson_history::History;
use serde_json::Value;

/// So many changes of an object are asked for; the server gives no more at a time.
const CHANGES: &str = "500";

pub struct Asking {
    pub rest: Rest,
    pub kinds: Kinds,
    pub namespace: String,
}

/// An object that is meant.
pub struct Named {
    pub id: ResourceId,
    /// Empty: it is in none.
    pub namespace: String,
    pub name: String,
}

impl Asking {
    pub async fn of(target: &Target, agent: &str) -> anyhow::Result<Asking> {
        let path = kubeconfig(target.kubeconfig.clone());
        let client = keelson_client::from_kubeconfig(&path, target.context.as_deref()).await?;
        let namespace = target.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_string());
        let rest = Rest::new(client, agent);
        let kinds = Kinds::of(&rest).await?;
        Ok(Asking { rest, kinds, namespace })
    }

    pub fn kind(&self, word: &str) -> anyhow::Result<ResourceId> {
        let known = self.kinds.meant(word).cloned();
        known.with_context(|| {
            format!("no kind {word:?} is known (of a definition that is deleted: undelete crd/NAME first)")
        })
    }

    /// KIND/NAME
    pub fn named(&self, word: &str) -> anyhow::Result<Named> {
        let (kind, name) = word.split_once('/').unwrap_or((word, ""));
        ensure!(
            !name.is_empty() && !name.contains('/'),
            "{word}: an object is KIND/NAME"
        );
        let id = self.kind(kind)?;
        let namespace = match id.namespaced {
            true => self.namespace.clone(),
            false => String::new(),
        };
        let name = name.to_string();
        Ok(Named { id, namespace, name })
    }

    pub async fn history(&self, named: &Named, limit: Option<usize>) -> anyhow::Result<History> {
        let limit = limit.map_or_else(|| CHANGES.to_string(), |limit| limit.to_string());
        let uri = with_query(&named.past(), &[("limit", &limit)]);
        match self.rest.get(&uri, JSON).await {
            Ok(json) => serde_json::from_slice(&json).context("the server's answer"),
            Err(error) => Err(told(error)).with_context(|| format!("the history of {named}")),
        }
    }

    /// What it was, in the form that `accept` says; `None`: it wasn't there. `at` of `None`: what it is.
    pub async fn object(&self, named: &Named, at: Option<&str>, accept: &str) -> anyhow::Result<Option<Value>> {
        let uri = match at {
            Some(at) => with_query(&named.past(), &[("at", at)]),
            None => named.path(),
        };
        match self.rest.get(&uri, accept).await {
            Ok(json) => Ok(Some(serde_json::from_slice(&json).context("the server's answer")?)),
            // That there is no such path, or no history, is another matter: it names no object.
            Err(Error::Api(status))
                if status.code == 404 && status.details.as_ref().is_some_and(|d| d.name == named.name) =>
            {
                Ok(None)
            }
            Err(error) => Err(told(error)).with_context(|| named.to_string()),
        }
    }

    /// A list as it was, page by page, in the form that `accept` says. What of it can't be read is told.
    ///
    /// `at` becomes the revision that the first answer says: `10m` would be another moment for every page.
    pub async fn pages(
        &self,
        id: &ResourceId,
        namespace: &str,
        at: &mut String,
        accept: &str,
    ) -> Result<Vec<Value>, Error> {
        let (mut pages, mut next) = (Vec::new(), String::new());
        loop {
            let path = format!("{PAST}{}", id.path(namespace));
            let uri = with_query(&path, &[("at", at.as_str()), ("continue", next.as_str())]);
            let json = self.rest.get(&uri, accept).await.map_err(told)?;
            let page: Value = serde_json::from_slice(&json).map_err(Error::SerdeError)?;
            next = page["metadata"]["continue"].as_str().unwrap_or_default().to_string();
            if let Some(revision) = page["metadata"]["resourceVersion"].as_str() {
                *at = revision.to_string();
            }
            for why in unreadable(&page) {
                eprintln!("not read  {}/{why}", name_of(id));
            }
            pages.push(page);
            if next.is_empty() {
                return Ok(pages);
            }
        }
    }

    /// All of a kind that was in a namespace, and how many of them can't be read. `at` as with pages.
    pub async fn objects(
        &self,
        id: &ResourceId,
        namespace: &str,
        at: &mut String,
    ) -> Result<(Vec<Object>, usize), Error> {
        let (mut found, mut missed) = (Vec::new(), 0);
        for page in self.pages(id, namespace, at, JSON).await? {
            missed += unreadable(&page).count();
            for item in page["items"].as_array().into_iter().flatten() {
                let json = serde_json::to_vec(item).map_err(Error::SerdeError)?;
                found.push(object_of(id, &json).map_err(Error::SerdeError)?);
            }
        }
        Ok((found, missed))
    }
}

/// Names, and why.
fn unreadable(page: &Value) -> impl Iterator<Item = &str> {
    let named = page["unreadable"].as_array().into_iter().flatten();
    named.filter_map(Value::as_str)
}

/// Also of a path below the history of a server that is ours: of what an extension server has, nobody here keeps the past.
pub const NO_HISTORY: &str = "this server has no history: it isn't Keelson's, or an older one";

/// A server that isn't ours knows no such path.
fn told(error: Error) -> Error {
    match error {
        Error::Api(mut status) if status.code == 404 && status.message.starts_with("404 page not found") => {
            status.message = NO_HISTORY.into();
            Error::Api(status)
        }
        error => error,
    }
}

impl Named {
    pub fn path(&self) -> String {
        format!("{}/{}", self.id.path(&self.namespace), self.name)
    }
    fn past(&self) -> String {
        format!("{PAST}{}", self.path())
    }
    pub fn is_secret(&self) -> bool {
        self.id.group.is_empty() && self.id.plural == "secrets"
    }
    pub fn is_namespace(&self) -> bool {
        self.id.group.is_empty() && self.id.plural == "namespaces"
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.id.plural, self.name)?;
        match self.namespace.is_empty() {
            true => Ok(()),
            false => write!(f, " in {}", self.namespace),
        }
    }
}
