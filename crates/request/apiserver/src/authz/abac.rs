//! ABAC: a file of policies, one JSON object a line, read at the start. The first that allows a request does; what none
//! allows is for the next authoriser to say.
//!
//! Upstream's format, both versions of it. A policy allows a user or a group (both, if it names both) to read, or to do
//! everything, with resources or with paths. An old line allows what it leaves out, so one that says something else than it
//! can (a misspelt field, or `spec` without a version) is refused here, where upstream would let everybody do everything. So is
//! one of the new version: without its `readonly` or its `group` it would allow more than was meant.

use super::{Attributes, Authorizer, Decision, Rules};
use crate::config::file;
use crate::request::UserInfo;
use crate::request::user::AUTHENTICATED;
use anyhow::{Result, anyhow};
use keelson_api::{Map, Value, value};
use std::path::Path;
use std::sync::Arc;

const GROUP: &str = "abac.authorization.kubernetes.io";
/// All that a policy of the old version has.
const OLD_FIELDS: [&str; 7] = [
    "apiVersion",
    "kind",
    "user",
    "group",
    "readonly",
    "resource",
    "namespace",
];
/// All that one of the new version has, and all that it says in `spec`.
const FIELDS: [&str; 3] = ["apiVersion", "kind", "spec"];
const SPEC_FIELDS: [&str; 7] = [
    "user",
    "group",
    "readonly",
    "apiGroup",
    "resource",
    "namespace",
    "nonResourcePath",
];
/// As upstream reads lines.
const LONGEST_LINE: usize = 64 * 1024;

#[derive(Debug, Default)]
pub struct Policies(Vec<Policy>);

#[derive(Clone, Debug, Default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    non_resource_path: String,
}

impl Policies {
    pub fn open(path: &Path) -> Result<Arc<Policies>> {
        Policies::parse(&file::read(path)?, &path.display().to_string()).map(Arc::new)
    }

    fn parse(text: &str, path: &str) -> Result<Policies> {
        let (mut policies, mut unversioned) = (Vec::new(), 0);
        for (i, line) in text.lines().enumerate() {
            if line.len() >= LONGEST_LINE {
                return Err(anyhow!(
                    "error reading policy file {path}: a line is too long: token too long"
                ));
            }
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let policy = serde_json::from_str::<Map>(line)
                .map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))
                .and_then(|line| Policy::read(&line, &mut unversioned));
            let policy = policy.map_err(|why| {
                let n = i + 1;
                anyhow!("error reading policy file {path}, line {n}: {line}: {why}")
            })?;
            policies.push(policy);
        }
        if unversioned > 0 {
            tracing::warn!("Policy file {path} contained unversioned rules: each allows all API groups");
        }
        Ok(Policies(policies))
    }
}

fn text(of: &Map, key: &str) -> Result<String, String> {
    match of.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.to_string()),
        Some(_) => Err(format!("json: cannot unmarshal the field {key} into a string")),
    }
}

/// That nothing else is said than there are fields for.
fn only(of: &Map, fields: &[&str], otherwise: &str) -> Result<(), String> {
    match of.keys().map(|key| key.as_str()).find(|key| !fields.contains(key)) {
        Some(key) => Err(format!("unknown field {key:?}: {otherwise}")),
        None => Ok(()),
    }
}

impl Policy {
    /// A line's; those without a version are counted.
    fn read(line: &Map, unversioned: &mut usize) -> Result<Policy, String> {
        let (api_version, kind) = (text(line, "apiVersion")?, text(line, "kind")?);
        let version = match api_version.as_str() {
            "" => Some("v0"),
            given => given.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/')),
        };
        match (version, kind.as_str()) {
            (Some("v1beta1"), "Policy") => {
                let otherwise = "a policy could allow more without it";
                only(line, &FIELDS, otherwise)?;
                match line.get("spec") {
                    None | Some(Value::Null) => Ok(Policy::default()),
                    Some(Value::Object(spec)) => {
                        only(spec, &SPEC_FIELDS, otherwise)?;
                        Ok(Policy::fields(spec)?.of_everybody())
                    }
                    Some(_) => Err("json: cannot unmarshal the field spec into an object".into()),
                }
            }
            (Some("v1beta1"), "") => Err(format!("a policy of version {api_version:?} has to say its kind")),
            (Some("v0"), "Policy" | "") => {
                *unversioned += usize::from(api_version.is_empty() || kind.is_empty());
                let otherwise = "a policy of the old version would allow all that it leaves out";
                only(line, &OLD_FIELDS, otherwise)?;
                Ok(Policy::fields(line)?.of_old())
            }
            _ => Err(format!("no kind {kind:?} is registered for version {api_version:?}")),
        }
    }

    fn fields(of: &Map) -> Result<Policy, String> {
        let readonly = match of.get("readonly") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(readonly)) => *readonly,
            Some(_) => return Err("json: cannot unmarshal the field readonly into a bool".into()),
        };
        Ok(Policy {
            user: text(of, "user")?,
            group: text(of, "group")?,
            readonly,
            api_group: text(of, "apiGroup")?,
            resource: text(of, "resource")?,
            namespace: text(of, "namespace")?,
            non_resource_path: text(of, "nonResourcePath")?,
        })
    }

    /// Everybody is whoever is known.
    fn of_everybody(mut self) -> Policy {
        if self.user == "*" || self.group == "*" {
            self.user = String::new();
            self.group = AUTHENTICATED.into();
        }
        self
    }

    /// What was left out meant everything once, and nobody thought of groups of APIs.
    fn of_old(self) -> Policy {
        let or_any = |text: &str| {
            if text.is_empty() {
                "*".to_string()
            } else {
                text.to_string()
            }
        };
        let everything = self.namespace.is_empty() && self.resource.is_empty();
        let everybody = self.user.is_empty() && self.group.is_empty();
        let old = Policy {
            namespace: or_any(&self.namespace),
            resource: or_any(&self.resource),
            api_group: "*".into(),
            non_resource_path: if everything { "*".into() } else { String::new() },
            group: if everybody { "*".into() } else { self.group },
            ..self
        };
        old.of_everybody()
    }

    fn is_for(&self, user: &UserInfo) -> bool {
        let named = !self.user.is_empty() || !self.group.is_empty();
        named
            && (self.user.is_empty() || self.user == *user.name)
            && (self.group.is_empty() || user.in_group(&self.group))
    }

    fn covers(&self, a: &Attributes) -> bool {
        let fits = |own: &str, asked: &str| own == "*" || own == asked;
        if a.is_resource_request {
            return fits(&self.namespace, &a.namespace)
                && fits(&self.resource, &a.resource)
                && fits(&self.api_group, &a.api_group);
        }
        let path = self.non_resource_path.as_str();
        fits(path, &a.path) || path.ends_with('*') && a.path.starts_with(path.trim_end_matches('*'))
    }

    fn allows(&self, a: &Attributes) -> bool {
        let reads = matches!(a.verb.as_str(), "get" | "list" | "watch");
        self.is_for(&a.user) && (reads || !self.readonly) && self.covers(a)
    }
}

impl Authorizer for Policies {
    fn authorize(&self, a: &Attributes) -> Decision {
        match self.0.iter().any(|policy| policy.allows(a)) {
            true => Decision::Allow(String::new()),
            false => Decision::NoOpinion("No policy matched.".into()),
        }
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut rules = Rules::default();
        let here = |p: &&Policy| p.is_for(user) && (p.namespace == "*" || p.namespace == namespace);
        for policy in self.0.iter().filter(here) {
            let verbs: Value = match policy.readonly {
                true => value!(["get", "list", "watch"]),
                false => value!(["*"]),
            };
            let (group, resource) = (policy.api_group.as_str(), policy.resource.as_str());
            if !resource.is_empty() {
                let rule = value!({"verbs": verbs.clone(), "apiGroups": [group], "resources": [resource]});
                rules.resource_rules.push(rule);
            }
            let path = policy.non_resource_path.as_str();
            if !path.is_empty() {
                let rule = value!({"verbs": verbs, "nonResourceURLs": [path]});
                rules.non_resource_rules.push(rule);
            }
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &str) -> String {
        let read = Policies::parse(lines, "f");
        read.map_or_else(|e| e.to_string(), |_| String::new())
    }

    fn policies(specs: &[&str]) -> Policies {
        let line = |spec: &&str| format!("{{\"apiVersion\":\"{GROUP}/v1beta1\",\"kind\":\"Policy\",\"spec\":{spec}}}");
        Policies::parse(&specs.iter().map(line).collect::<Vec<_>>().join("\n"), "f").unwrap()
    }

    fn asks(name: &str, group: &str, verb: &str, what: &str) -> Attributes {
        let mut a = Attributes {
            user: UserInfo::new(name, &[group]),
            verb: verb.into(),
            ..Attributes::default()
        };
        match what.starts_with('/') {
            true => a.path = what.into(),
            false => {
                let parts: Vec<&str> = what.split(':').collect();
                a.is_resource_request = true;
                (a.api_group, a.namespace, a.resource) = (parts[0].into(), parts[1].into(), parts[2].into());
            }
        }
        a
    }

    #[test]
    fn a_file_is_read_line_by_line() {
        let good = r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"a"}}"#;
        assert_eq!(
            said(&format!("# a comment\n\n  # another\n{good}\n{{\"user\":\"b\"}}\n")),
            ""
        );
        let wrong = said(&format!("{good}\nnot json\n"));
        assert!(
            wrong.starts_with("error reading policy file f, line 2: not json: couldn't get version/kind; json"),
            "{wrong}"
        );
        let odd = r#"{"apiVersion":"v9","kind":"Policy","spec":{"user":"bob"}}"#;
        assert_eq!(
            said(odd),
            format!("error reading policy file f, line 1: {odd}: no kind \"Policy\" is registered for version \"v9\"")
        );
        for wrong in [r#"{"user":3}"#, "[]", r#"{"readonly":"yes"}"#, "3", "null"] {
            assert!(said(wrong).contains("line 1"), "{wrong}");
        }
        assert!(said(&format!("#{}", "x".repeat(LONGEST_LINE))).contains("token too long"));
    }

    /// These would write, be for more than the group, or write again.
    #[test]
    fn what_a_policy_has_no_field_for_is_refused() {
        let head = format!("{{\"apiVersion\":\"{GROUP}/v1beta1\",\"kind\":\"Policy\"");
        for rest in [
            r#""spec":{"user":"bob","resource":"*","namespace":"*","readOnly":true}"#,
            r#""spec":{"user":"bob","gruop":"staff","resource":"*","namespace":"*"}"#,
            r#""spec":{"user":"bob","resource":"*","namespace":"*"},"readonly":true"#,
        ] {
            let said = said(&format!("{head},{rest}}}"));
            assert!(said.contains("unknown field"), "{rest}: {said}");
        }
    }

    /// As an old one each of these would allow everybody everything.
    #[test]
    fn what_is_no_old_policy_is_not_read_as_one() {
        for (line, why) in [
            (
                r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","spec":{"user":"bob"}}"#,
                "has to say its kind",
            ),
            (r#"{"apiVersion":"v1","user":"bob"}"#, "no kind \"\" is registered"),
            (r#"{"kind":"Other","user":"bob"}"#, "no kind \"Other\" is registered"),
            (r#"{"kind":"Policy","spec":{"user":"bob"}}"#, "unknown field \"spec\""),
            (r#"{"spec":{"user":"bob"}}"#, "unknown field \"spec\""),
            (r#"{"usr":"bob"}"#, "unknown field \"usr\""),
        ] {
            let said = said(line);
            assert!(said.contains(why), "{line}: {said}");
        }
        let old =
            r#"{"apiVersion":"abac.authorization.kubernetes.io/v0","kind":"Policy","user":"bob","readonly":true}"#;
        assert_eq!(said(old), "");
        assert_eq!(said(r#"{"kind":"Policy","user":"bob"}"#), "");
    }

    #[test]
    fn a_policy_allows_what_it_names() {
        let list = policies(&[
            r#"{"user":"admin","namespace":"*","resource":"*","apiGroup":"*"}"#,
            r#"{"user":"admin","nonResourcePath":"*"}"#,
            r#"{"group":"viewers","namespace":"a","resource":"pods","readonly":true}"#,
            r#"{"user":"bob","group":"staff","namespace":"b","resource":"*"}"#,
            r#"{"user":"*","nonResourcePath":"/open/*","readonly":true}"#,
            r#"{"namespace":"*","resource":"*","apiGroup":"*"}"#,
        ]);
        for (name, group, verb, what, wanted) in [
            ("admin", "g", "delete", "apps:x:deployments", true),
            ("admin", "g", "post", "/anything", true),
            ("ana", "viewers", "list", ":a:pods", true),
            ("ana", "viewers", "create", ":a:pods", false),
            ("ana", "viewers", "list", ":b:pods", false),
            ("ana", "viewers", "list", "other:a:pods", false),
            ("bob", "staff", "create", ":b:secrets", true),
            ("bob", "guests", "create", ":b:secrets", false),
            ("eve", "system:authenticated", "get", "/open/door", true),
            ("eve", "system:unauthenticated", "get", "/open/door", false),
            ("eve", "system:authenticated", "post", "/open/door", false),
            // Who names nobody means nobody.
            ("eve", "system:authenticated", "get", ":a:pods", false),
        ] {
            let decided = list.authorize(&asks(name, group, verb, what));
            assert_eq!(decided.is_allowed(), wanted, "{name} {group} {verb} {what}");
            assert_eq!(decided.reason(), if wanted { "" } else { "No policy matched." });
        }
        let rules = list.rules(&UserInfo::new("ana", &["viewers"]), "a");
        let pods = value!({"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["pods"]});
        assert_eq!(rules.resource_rules, [pods]);
        assert!(!rules.incomplete && rules.non_resource_rules.is_empty());
    }

    #[test]
    fn old_policies_mean_everything_by_what_they_leave_out() {
        let list = Policies::parse("{\"user\":\"admin\"}\n{\"readonly\":true,\"resource\":\"pods\"}", "f").unwrap();
        assert!(
            list.authorize(&asks("admin", "g", "create", "apps:x:deployments"))
                .is_allowed()
        );
        assert!(list.authorize(&asks("admin", "g", "get", "/anything")).is_allowed());
        let known = "system:authenticated";
        assert!(list.authorize(&asks("eve", known, "get", "x:y:pods")).is_allowed());
        assert!(!list.authorize(&asks("eve", known, "get", "/anything")).is_allowed());
        assert!(!list.authorize(&asks("eve", "other", "get", ":y:pods")).is_allowed());
    }
}
