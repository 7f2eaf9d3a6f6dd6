//! PodTolerationRestriction gives a namespace's pods tolerations and keeps them to those that the namespace allows;
//! ExtendedResourceToleration lets a pod onto the nodes that are set apart for the devices it asks for.

use super::super::tolerations::{Toleration, allows, merge};
use super::super::{Phase, Plugin, Review};
use crate::config::file::aggregate;
use anyhow::{Result, ensure};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Map, Object, Reason, Value, value};
use keelson_machinery::names;
use keelson_registry::Operation;
use keelson_registry::resources::{is_extended_resource, qos_class};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::Arc;

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

/// For namespaces that say nothing.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    default: Vec<Value>,
    allowed: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    api_version: String,
    kind: String,
    #[serde(default)]
    default: Option<Vec<Map>>,
    #[serde(default)]
    whitelist: Option<Vec<Map>>,
}

impl Settings {
    pub fn parse(text: &str) -> Result<Settings> {
        let written: Written = serde_saphyr::from_str(text)?;
        ensure!(
            written.api_version == "podtolerationrestriction.admission.k8s.io/v1alpha1"
                && written.kind == "Configuration",
            "no kind \"{}\" is registered for version \"{}\"",
            written.kind,
            written.api_version
        );
        let mut wrong = Vec::new();
        let mut list = |name: &str, given: Option<Vec<Map>>| {
            let given = given.unwrap_or_default();
            let mut made = Vec::with_capacity(given.len());
            for (i, written) in given.iter().enumerate() {
                let at = format!("podtolerationrestriction.{name}[{i}]");
                for key in written
                    .keys()
                    .filter(|key| !TEXTS.contains(&key.as_str()) && key.as_str() != SECONDS)
                {
                    wrong.push(Cause::invalid(&at, &key.as_str().into(), "unknown field"));
                }
                match typed(written) {
                    Ok(toleration) => {
                        check(&at, &toleration, &mut wrong);
                        made.push(toleration);
                    }
                    Err(why) => wrong.push(Cause::invalid(&at, &written.clone().into(), &why)),
                }
            }
            made
        };
        let settings = Settings {
            default: list("default", written.default),
            allowed: list("whitelist", written.whitelist),
        };
        ensure!(wrong.is_empty(), "invalid config: {}", aggregate(&wrong));
        Ok(settings)
    }
}

const TEXTS: [&str; 4] = ["key", "operator", "value", "effect"];
const SECONDS: &str = "tolerationSeconds";

/// A toleration as a pod may have it, of what was written outside the API: the fields that there are, each of its type.
fn typed(written: &Map) -> Result<Value, String> {
    let mut made = value!({});
    for field in TEXTS {
        match written.get(field) {
            None | Some(Value::Null) => {}
            Some(given) => match given.as_str() {
                Some("") => {}
                Some(text) => made.set_at(&[field], text),
                None => return Err(format!("json: cannot unmarshal the field {field} into a string")),
            },
        }
    }
    match written.get(SECONDS) {
        None | Some(Value::Null) => {}
        Some(Value::Int(seconds)) => made.set_at(&[SECONDS], *seconds),
        Some(_) => return Err(format!("json: cannot unmarshal the field {SECONDS} into a number")),
    }
    Ok(made)
}

/// As a pod's are checked.
fn check(at: &str, toleration: &Value, wrong: &mut Vec<Cause>) {
    let t = Toleration::of(toleration);
    let mut invalid = |field: &str, value: &str, why: &str| {
        wrong.push(Cause::invalid(format!("{at}.{field}"), &value.into(), why));
    };
    if !t.key.is_empty() {
        names::label_key(t.key)
            .iter()
            .for_each(|why| invalid("key", t.key, why));
    } else if t.operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        invalid("operator", t.operator, why);
    }
    if t.seconds.is_some() && t.effect != "NoExecute" {
        invalid(
            "effect",
            t.effect,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    match t.operator {
        "Equal" | "" => {
            let why = names::label_value(t.value).join(";");
            if !why.is_empty() {
                invalid("operator", t.value, &why);
            }
        }
        "Exists" if !t.value.is_empty() => {
            invalid("operator", t.value, "value must be empty when `operator` is 'Exists'");
        }
        "Exists" => {}
        other => {
            let cause = Cause::not_supported(format!("{at}.operator"), &other.into(), &["Equal", "Exists"]);
            return wrong.push(cause);
        }
    }
    if !matches!(t.effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        wrong.push(Cause::not_supported(format!("{at}.effect"), &t.effect.into(), &effects));
    }
}

fn tolerations(pod: &Object) -> &[Value] {
    let list = pod.at(&["spec", "tolerations"]).and_then(Value::as_array);
    list.map_or(&[], |list| list.as_slice())
}

/// What an annotation lists.
fn listed(text: &str) -> Result<Vec<Value>, String> {
    let list = serde_json::from_str::<Option<Vec<Map>>>(text).map_err(|e| e.to_string())?;
    list.unwrap_or_default().iter().map(typed).collect()
}

pub struct PodTolerationRestriction(pub Arc<Settings>);

impl PodTolerationRestriction {
    /// What the namespace says in an annotation. `None`: nothing.
    async fn said(&self, review: &Review<'_>, annotation: &str) -> ApiResult<Option<Vec<Value>>> {
        let name = review.cx.namespace.as_str();
        let found = review.lookup.cached("", "namespaces", "", name).await;
        let found = found.map_err(|e| ApiError::internal(e.message))?;
        let namespace = found.ok_or_else(|| ApiError::not_found("", "namespaces", name))?;
        match namespace
            .at(&["metadata", "annotations", annotation])
            .and_then(Value::as_str)
        {
            None => Ok(None),
            Some("") => Ok(Some(Vec::new())),
            Some(text) => listed(text).map(Some).map_err(|e| {
                let why = format!("the annotation {annotation} of namespace {name:?} is no list of tolerations: {e}");
                ApiError::new(Reason::Unknown, why)
            }),
        }
    }

    async fn check(&self, review: &Review<'_>, pod: &Object) -> ApiResult<()> {
        if tolerations(pod).is_empty() {
            return Ok(());
        }
        let (allowed, whose) = match self.said(review, ALLOWED).await? {
            Some(said) => (said, "namespace"),
            None => (self.0.allowed.clone(), "cluster"),
        };
        if allowed.is_empty() || allows(&allowed, tolerations(pod)) {
            return Ok(());
        }
        // Upstream's is no refusal but an error of the server's.
        let why = format!(
            "pod tolerations (possibly merged with namespace default tolerations) conflict with its {whose} whitelist"
        );
        Err(ApiError::new(Reason::Unknown, why))
    }
}

#[async_trait]
impl Plugin for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    fn concerns(&self, review: &Review<'_>) -> bool {
        matches!(review.op, Operation::Create | Operation::Update) && review.is("", "pods")
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new else { return Ok(()) };
        let mut more = match review.op {
            Operation::Create => self
                .said(review, DEFAULTS)
                .await?
                .unwrap_or_else(|| self.0.default.clone()),
            _ => Vec::new(),
        };
        if qos_class(pod) != "BestEffort" {
            let pressure = "node.kubernetes.io/memory-pressure";
            more.push(value!({"key": pressure, "operator": "Exists", "effect": "NoSchedule"}));
        }
        if !more.is_empty() {
            let merged = merge(tolerations(pod), &more);
            pod.set_at(&["spec", "tolerations"], merged);
        }
        self.check(review, pod).await
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        match new {
            Some(pod) => self.check(review, pod).await,
            None => Ok(()),
        }
    }
}

/// The tolerations with one for each of the resources, in the place of one that is the same but for how long.
fn tolerating(list: &[Value], resources: &BTreeSet<String>) -> Vec<Value> {
    let of = |resource: &str| value!({"key": resource, "operator": "Exists", "effect": "NoSchedule"});
    let (mut merged, mut there) = (Vec::with_capacity(list.len()), BTreeSet::new());
    for toleration in list {
        let t = Toleration::of(toleration);
        let same = (t.operator, t.value, t.effect) == ("Exists", "", "NoSchedule");
        if same && resources.contains(t.key) {
            merged.push(of(t.key));
            there.insert(t.key);
        } else {
            merged.push(toleration.clone());
        }
    }
    let missing = resources
        .iter()
        .map(String::as_str)
        .filter(|name| !there.contains(name));
    merged.extend(missing.map(of));
    merged
}

pub struct ExtendedResourceToleration;

/// The vendors' resources that containers ask for, in order.
fn extended(pod: &Object) -> BTreeSet<String> {
    let lists = ["containers", "initContainers"].into_iter();
    let containers = lists.filter_map(|list| pod.at(&["spec", list])?.as_array()).flatten();
    let requests = containers.filter_map(|c| c.at(&["resources", "requests"])?.as_object());
    let names = requests.flat_map(Map::iter).map(|(name, _)| name.to_string());
    names.filter(|name| is_extended_resource(name)).collect()
}

#[async_trait]
impl Plugin for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let writes = matches!(review.op, Operation::Create | Operation::Update);
        let Some(pod) = new.filter(|_| writes && review.is("", "pods")) else {
            return Ok(());
        };
        let resources = extended(pod);
        if resources.is_empty() {
            return Ok(());
        }
        let merged = tolerating(tolerations(pod), &resources);
        pod.set_at(&["spec", "tolerations"], merged);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in an annotation becomes part of a pod.
    #[test]
    fn what_a_namespace_lists_is_of_a_pods_types() {
        let read = listed(r#"[{"key":"a","operator":"Exists","effect":"","more":{"x":1},"tolerationSeconds":null}]"#);
        assert_eq!(read.unwrap(), [value!({"key": "a", "operator": "Exists"})]);
        let read = listed(r#"[{"key":"a","effect":"NoExecute","tolerationSeconds":3}]"#);
        assert_eq!(
            read.unwrap(),
            [value!({"key": "a", "effect": "NoExecute", "tolerationSeconds": 3})]
        );
        assert!(listed("null").unwrap().is_empty());
        for wrong in [
            r#"[{"key":3,"operator":"Exists"}]"#,
            r#"[{"value":["a"]}]"#,
            r#"[{"tolerationSeconds":"3"}]"#,
            r#"[{"tolerationSeconds":1.5}]"#,
            "[3]",
            "{}",
        ] {
            assert!(listed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn vendors_resources_are_tolerated_once_however_many_there_are() {
        let names = |n: usize| (0..n).map(|i| format!("a.com/{i:05}")).collect::<BTreeSet<_>>();
        let own = [
            value!({"key": "a.com/00001", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 3}),
            value!({"key": "a.com/00000", "operator": "Exists"}),
        ];
        let of = |name: &str| value!({"key": name, "operator": "Exists", "effect": "NoSchedule"});
        assert_eq!(
            tolerating(&own, &names(2)),
            [of("a.com/00001"), own[1].clone(), of("a.com/00000")]
        );
        let began = std::time::Instant::now();
        let many = tolerating(&[], &names(40_000));
        assert_eq!(tolerating(&many, &names(40_000)), many);
        assert!(
            began.elapsed() < std::time::Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn a_configuration_is_judged_like_a_pods_tolerations() {
        let head = "apiVersion: podtolerationrestriction.admission.k8s.io/v1alpha1\nkind: Configuration\n";
        let said =
            |rest: &str| Settings::parse(&format!("{head}{rest}")).map_or_else(|e| format!("{e:#}"), |_| String::new());
        assert_eq!(
            said("default: [{key: a, operator: Exists}]\nwhitelist: [{operator: Exists}]"),
            ""
        );
        assert_eq!(
            said("default: [{key: '', operator: Equal, value: x}]"),
            "invalid config: podtolerationrestriction.default[0].operator: Invalid value: \"Equal\": operator must be \
             Exists when `key` is empty, which means \"match all values and all keys\""
        );
        assert!(
            said("whitelist: [{key: a, tolerationSeconds: 3}]").contains("whitelist[0].effect: Invalid value: \"\"")
        );
        assert!(said("whitelist: [{key: a, effect: Nowhere}]").contains("Unsupported value: \"Nowhere\""));
        assert!(said("whitelist: [{kee: a, operator: Exists}]").contains("unknown field"));
        assert!(said("default: [{key: 3, operator: Exists}]").contains("the field key into a string"));
        assert!(said("default: [3]").contains("object"));
        assert!(Settings::parse("apiVersion: v1\nkind: Configuration").is_err());
    }
}
