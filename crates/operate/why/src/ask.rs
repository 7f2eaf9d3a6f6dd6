//! Questions as people type them.

use crate::denied::Asked;
use crate::kinds::kind;
use crate::network::reach::Way;
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Object {
        kind: &'static str,
        namespace: String,
        name: String,
    },
    Denied(Asked),
    Unreachable(Way),
}

/// What can't be understood of a question, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongQuestion(pub String);

impl fmt::Display for WrongQuestion {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for WrongQuestion {}

fn wrong<T>(text: impl Into<String>) -> Result<T, WrongQuestion> {
    Err(WrongQuestion(text.into()))
}

/// A name that may stand in a path.
fn name(text: &str) -> Result<String, WrongQuestion> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_');
    match !text.is_empty() && text.len() <= 253 && text.bytes().all(is_good) && text != "." && text != ".." {
        true => Ok(text.to_string()),
        false => wrong(format!("{text:?} is no name of an object")),
    }
}

impl Question {
    /// `pod/web-0` or `pod web-0`.
    pub fn object(words: &[String], namespace: &str) -> Result<Question, WrongQuestion> {
        let (kind_name, object) = match words {
            [one] => match one.split_once('/') {
                Some(parts) => parts,
                None => return wrong(format!("{one:?}: which object? KIND/NAME, such as pod/{one}")),
            },
            [kind, object] => (kind.as_str(), object.as_str()),
            _ => return wrong("KIND/NAME, such as pod/web-0; or `denied …`, or `unreachable FROM TO`"),
        };
        let Some(known) = kind(kind_name) else {
            return wrong(format!("there are no rules for the kind {kind_name:?}"));
        };
        Ok(Question::Object {
            kind: match &known.id.kind {
                std::borrow::Cow::Borrowed(kind) => kind,
                std::borrow::Cow::Owned(_) => return wrong("no such kind"),
            },
            namespace: if known.id.namespaced {
                name(namespace)?
            } else {
                String::new()
            },
            name: name(object)?,
        })
    }

    /// `delete pods/web-0`, `get deployments.apps`, `get pods/web-0/log` or `get pods/log` with `--name`.
    pub fn denied(
        user: &str,
        groups: &[String],
        verb: &str,
        what: &str,
        namespace: &str,
    ) -> Result<Question, WrongQuestion> {
        if user.is_empty() {
            return wrong("who is denied? --as USER");
        }
        let parts: Vec<&str> = what.split('/').collect();
        let (resource, object, subresource) = match parts[..] {
            [resource] => (resource, "", ""),
            [resource, object] => (resource, object, ""),
            [resource, object, sub] => (resource, object, sub),
            _ => {
                return wrong(format!(
                    "{what:?}: RESOURCE, RESOURCE/NAME or RESOURCE/NAME/SUBRESOURCE"
                ));
            }
        };
        let known = kind(resource);
        let (plural, group) = match (known, resource.split_once('.')) {
            (Some(known), _) => (known.id.plural.to_string(), known.id.group.to_string()),
            (None, Some((plural, group))) => (plural.to_lowercase(), group.to_lowercase()),
            (None, None) => (resource.to_lowercase(), String::new()),
        };
        let is_namespaced = known.is_none_or(|k| k.id.namespaced);
        let mut groups = groups.to_vec();
        groups.push("system:authenticated".into());
        if let Some((namespace, _)) = user
            .strip_prefix("system:serviceaccount:")
            .and_then(|a| a.split_once(':'))
        {
            groups.extend([
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
            ]);
        }
        Ok(Question::Denied(Asked {
            user: user.into(),
            groups,
            verb: verb.to_lowercase(),
            group,
            resource: plural,
            subresource: subresource.into(),
            namespace: if is_namespaced {
                namespace.to_string()
            } else {
                String::new()
            },
            name: object.into(),
        }))
    }

    /// `pod/a` to `svc/b:80`, each with a namespace before it if it is another: `data/pod/a`.
    pub fn unreachable(from: &str, to: &str, namespace: &str) -> Result<Question, WrongQuestion> {
        let (from_kind, from, from_port) = end(from, namespace)?;
        let (to_kind, to, port) = end(to, namespace)?;
        if from_kind != "Pod" || !from_port.is_empty() {
            return wrong("the first has to be a pod: unreachable pod/NAME service/NAME:PORT");
        }
        Ok(Question::Unreachable(Way {
            from,
            to_kind,
            to,
            port,
        }))
    }
}

type End = (&'static str, (String, String), String);

fn end(text: &str, namespace: &str) -> Result<End, WrongQuestion> {
    let (path, port) = text.split_once(':').unwrap_or((text, ""));
    let parts: Vec<&str> = path.split('/').collect();
    let (own, kind_name, object) = match parts[..] {
        [kind, object] => (namespace, kind, object),
        [own, kind, object] => (own, kind, object),
        [object] => (namespace, "pod", object),
        _ => return wrong(format!("{text:?}: [NAMESPACE/]KIND/NAME[:PORT]")),
    };
    let kind = match kind(kind_name).map(|k| k.id.kind.as_ref()) {
        Some("Pod") => "Pod",
        Some("Service") => "Service",
        _ => return wrong(format!("{kind_name:?}: a way leads to a pod or a service")),
    };
    Ok((kind, (name(own)?, name(object)?), port.to_string()))
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Question::Object { kind, name, .. } => write!(f, "{}/{name}", kind.to_lowercase()),
            Question::Denied(asked) => write!(f, "user/{}", asked.user),
            Question::Unreachable(way) => {
                write!(f, "pod/{} to {}/{}", way.from.1, way.to_kind.to_lowercase(), way.to.1)?;
                match way.port.as_str() {
                    "" => Ok(()),
                    port => write!(f, ":{port}"),
                }
            }
        }
    }
}
