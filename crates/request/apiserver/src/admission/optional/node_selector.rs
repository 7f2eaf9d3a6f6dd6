//! PodNodeSelector: a namespace's pods run on the nodes that the namespace names, or that the configuration names for all,
//! and ask for no others than the configuration lets it ask for.

use super::super::{Phase, Plugin, Review};
use anyhow::Result;
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Map, Object, Reason, Value};
use keelson_machinery::names;
use keelson_registry::Operation;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";
/// In the configuration: for namespaces that say nothing.
const DEFAULT: &str = "clusterDefaultNodeSelector";

type Labels = BTreeMap<String, String>;

/// By namespace, what its pods may ask for; and the default.
#[derive(Clone, Debug, Default)]
pub struct Settings(BTreeMap<String, Labels>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "podNodeSelectorPluginConfig", default)]
    selectors: Option<BTreeMap<String, String>>,
}

impl Settings {
    pub fn parse(text: &str) -> Result<Settings> {
        let written: Written = serde_saphyr::from_str(text)?;
        let read = |(name, selector): (String, String)| -> Result<(String, Labels)> {
            let labels =
                parse(&selector).map_err(|why| anyhow::anyhow!("podNodeSelectorPluginConfig.{name}: {why}"))?;
            Ok((name, labels))
        };
        let all = written.selectors.unwrap_or_default().into_iter().map(read);
        Ok(Settings(all.collect::<Result<_>>()?))
    }
}

/// `a=b,c=d`
fn parse(selector: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    for pair in selector.split(',').filter(|_| !selector.is_empty()) {
        let sides: Vec<&str> = pair.split('=').collect();
        let [key, value] = sides[..] else {
            return Err(format!("invalid selector: [{}]", sides.join(" ")));
        };
        let (key, value) = (key.trim(), value.trim());
        for (shown, wrong) in [(key, names::label_key(key)), (value, names::label_value(value))] {
            if !wrong.is_empty() {
                return Err(format!("Invalid value: {shown:?}: {}", wrong.join("; ")));
            }
        }
        labels.insert(key.into(), value.into());
    }
    Ok(labels)
}

fn of_pod(pod: &Object) -> Labels {
    let all = pod.at(&["spec", "nodeSelector"]).and_then(Value::as_object);
    let all = all.into_iter().flat_map(Map::iter);
    all.filter_map(|(key, value)| Some((key.to_string(), value.as_str()?.to_string())))
        .collect()
}

pub struct PodNodeSelector(pub Arc<Settings>);

impl PodNodeSelector {
    async fn of_namespace(&self, review: &Review<'_>) -> ApiResult<Labels> {
        let name = review.cx.namespace.as_str();
        let found = review.lookup.cached("", "namespaces", "", name).await;
        let found = found.map_err(|e| ApiError::internal(e.message))?;
        let namespace = found.ok_or_else(|| ApiError::internal(format!("namespace {name} does not exist")))?;
        match namespace
            .at(&["metadata", "annotations", ANNOTATION])
            .and_then(Value::as_str)
        {
            Some(selector) => parse(selector).map_err(|why| ApiError::new(Reason::Unknown, why)),
            None => Ok(self.0.0.get(DEFAULT).cloned().unwrap_or_default()),
        }
    }

    fn check(&self, review: &Review<'_>, pod: &Object, wanted: &Labels) -> ApiResult<Labels> {
        let own = of_pod(pod);
        let refused = |why: &str| Err(ApiError::forbidden("", "pods", pod.name(), why));
        if own
            .iter()
            .any(|(key, value)| wanted.get(key).is_some_and(|other| other != value))
        {
            return refused("pod node label selector conflicts with its namespace node label selector");
        }
        let merged: Labels = wanted.clone().into_iter().chain(own).collect();
        let may = self.0.0.get(review.cx.namespace.as_str()).filter(|may| !may.is_empty());
        if may.is_some_and(|may| merged.iter().any(|(key, value)| may.get(key) != Some(value))) {
            return refused("pod node label selector labels conflict with its namespace whitelist");
        }
        Ok(merged)
    }
}

#[async_trait]
impl Plugin for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.op == Operation::Create && review.is("", "pods")
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new else { return Ok(()) };
        let wanted = self.of_namespace(review).await?;
        let merged = self.check(review, pod, &wanted)?;
        if !merged.is_empty() {
            pod.set_at(&["spec", "nodeSelector"], merged.into_iter().collect::<Map>());
        }
        Ok(())
    }
    /// What came after may have changed it: the pod as it is has to fit, and nothing is added any more.
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new else { return Ok(()) };
        let wanted = self.of_namespace(review).await?;
        let own = of_pod(pod);
        let asked = wanted.into_iter().filter(|(key, _)| own.contains_key(key)).collect();
        self.check(review, pod, &asked).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_pairs() {
        let labels = parse("env=test, zone = a").unwrap();
        assert_eq!(labels.get("zone").unwrap(), "a");
        assert!(parse("").unwrap().is_empty());
        assert_eq!(parse("env").unwrap_err(), "invalid selector: [env]");
        assert_eq!(parse("a=b=c").unwrap_err(), "invalid selector: [a b c]");
        assert!(parse("-=b").unwrap_err().starts_with("Invalid value: \"-\""));
        let settings = Settings::parse("podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: a=b, ns: 'c=d'}");
        assert_eq!(settings.unwrap().0.len(), 2);
        assert!(Settings::parse("podNodeSelectorPluginConfig: {ns: x}").is_err());
    }
}
