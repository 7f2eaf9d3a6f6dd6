//! Label selectors, read once: they are compared and hashed (who asks the same is told the same), and match often.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::labels::Labels;

/// All of its rules. Equal ones have the same rules in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Rule {
    Is(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    /// An operator that nobody knows.
    Never,
}

impl Selector {
    pub fn of(selector: &LabelSelector) -> Selector {
        let mut chosen = Selector::default();
        for (key, value) in selector.match_labels.iter().flatten() {
            chosen.0.push(Rule::Is(key.clone(), value.clone()));
        }
        for rule in selector.match_expressions.iter().flatten() {
            let mut values = rule.values.clone().unwrap_or_default();
            values.sort();
            values.dedup();
            let key = rule.key.clone();
            chosen.0.push(match (rule.operator.as_str(), values.len()) {
                ("In", 1) => Rule::Is(key, values.remove(0)),
                ("In", _) => Rule::In(key, values),
                ("NotIn", _) => Rule::NotIn(key, values),
                ("Exists", _) => Rule::Exists(key),
                ("DoesNotExist", _) => Rule::Absent(key),
                _ => Rule::Never,
            });
        }
        chosen.tidied()
    }

    /// What every pair of `labels` says.
    pub fn equal(labels: &Labels) -> Selector {
        let rules = labels.iter().map(|(key, value)| Rule::Is(key.clone(), value.clone()));
        Selector(rules.collect()).tidied()
    }

    /// What both select.
    pub fn and(mut self, other: Selector) -> Selector {
        self.0.extend(other.0);
        self.tidied()
    }

    fn tidied(mut self) -> Selector {
        self.0.sort();
        self.0.dedup();
        self
    }

    pub fn nothing() -> Selector {
        Selector(vec![Rule::Never])
    }

    /// It selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|rule| match rule {
            Rule::Is(key, value) => labels.get(key) == Some(value),
            Rule::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Rule::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Rule::Exists(key) => labels.contains_key(key),
            Rule::Absent(key) => !labels.contains_key(key),
            Rule::Never => false,
        })
    }

    /// A label that whatever it selects has: where to look for it.
    pub fn anchor(&self) -> Option<(&str, &str)> {
        self.0.iter().find_map(|rule| match rule {
            Rule::Is(key, value) => Some((key.as_str(), value.as_str())),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selector(value: serde_json::Value) -> Selector {
        Selector::of(&serde_json::from_value(value).unwrap())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn it_matches_as_the_text_does() {
        let rule = |operator: &str, values: &[&str]| {
            selector(json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}))
        };
        let (one, other, none) = (labels(&[("a", "1")]), labels(&[("a", "2")]), labels(&[]));
        for (selector, expected) in [
            (rule("In", &["1"]), [true, false, false]),
            (rule("In", &["1", "2"]), [true, true, false]),
            (rule("NotIn", &["1"]), [false, true, true]),
            (rule("Exists", &[]), [true, true, false]),
            (rule("DoesNotExist", &[]), [false, false, true]),
            (rule("Near", &["1"]), [false, false, false]),
            (selector(json!({})), [true, true, true]),
            (selector(json!({"matchLabels": {"a": "1"}})), [true, false, false]),
        ] {
            let found = [&one, &other, &none].map(|labels| selector.matches(labels));
            assert_eq!(found, expected, "{selector:?}");
        }
    }

    #[test]
    fn what_means_the_same_is_equal() {
        let one = selector(json!({"matchLabels": {"b": "1", "a": "2"}}));
        let expressions = json!({"matchExpressions": [
            {"key": "b", "operator": "In", "values": ["1"]}, {"key": "a", "operator": "In", "values": ["2", "2"]}]});
        assert_eq!(one, selector(expressions));
        assert_eq!(one.anchor(), Some(("a", "2")));
        assert_eq!(
            one,
            Selector::equal(&labels(&[("a", "2")])).and(Selector::equal(&labels(&[("b", "1")])))
        );
    }
}
