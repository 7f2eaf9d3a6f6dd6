//! Label selectors: requirements, matching, printing, and the object form (`matchLabels`, `matchExpressions`).

use crate::names;
use keelson_api::{Map, Str, Value};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl Operator {
    fn upstream(self) -> &'static str {
        match self {
            Operator::In => "in",
            Operator::NotIn => "notin",
            Operator::Equals => "=",
            Operator::DoubleEquals => "==",
            Operator::NotEquals => "!=",
            Operator::Exists => "exists",
            Operator::DoesNotExist => "!",
            Operator::GreaterThan => "gt",
            Operator::LessThan => "lt",
        }
    }
}
impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.upstream())
    }
}

/// One condition of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: Str,
    pub operator: Operator,
    pub values: Vec<Str>,
}

/// A conjunction of requirements, or nothing at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// `[a b]` joined as upstream aggregates several errors.
pub(super) fn aggregate(mut errs: Vec<String>) -> Result<(), String> {
    match errs.len() {
        0 => Ok(()),
        1 => Err(errs.remove(0)),
        _ => Err(format!("[{}]", errs.join(", "))),
    }
}

impl Requirement {
    /// Checks key, operator and values as upstream's `NewRequirement`.
    pub fn new(key: impl Into<Str>, operator: Operator, values: Vec<Str>) -> Result<Requirement, String> {
        let key = key.into();
        let mut errs = Vec::new();
        let bad_key = names::label_key(&key);
        if !bad_key.is_empty() {
            errs.push(format!(
                "key: Invalid value: {}: {}",
                names::go_quote(&key),
                bad_key.join("; ")
            ));
        }
        let shown = || serde_json::to_string(&values.iter().map(Str::as_str).collect::<Vec<_>>()).unwrap_or_default();
        let mut invalid = |why: &str| errs.push(format!("values: Invalid value: {}: {why}", shown()));
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                invalid("for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                invalid("exact-match compatibility requires one single value");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                invalid("values set must be empty for exists and does not exist");
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    invalid("for 'Gt', 'Lt' operators, exactly one value is required");
                }
                for (i, v) in values.iter().enumerate() {
                    if v.parse::<i64>().is_err() {
                        errs.push(format!(
                            "values[{i}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                            names::go_quote(v)
                        ));
                    }
                }
            }
            _ => {}
        }
        for (i, v) in values.iter().enumerate() {
            let bad = names::label_value(v);
            if !bad.is_empty() {
                errs.push(format!(
                    "values[{i}][{key}]: Invalid value: {}: {}",
                    names::go_quote(v),
                    bad.join("; ")
                ));
            }
        }
        aggregate(errs)?;
        Ok(Requirement { key, operator, values })
    }

    /// Whether a label's value (or its absence) satisfies the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let has = |v: &str| self.values.iter().any(|x| x == v);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(has),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(has),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let Some(have) = value.and_then(|v| v.parse::<i64>().ok()) else {
                    return false;
                };
                let [want] = self.values.as_slice() else { return false };
                let Ok(want) = want.parse::<i64>() else { return false };
                if self.operator == Operator::GreaterThan {
                    have > want
                } else {
                    have < want
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.operator == Operator::DoesNotExist {
            f.write_str("!")?;
        }
        f.write_str(&self.key)?;
        let mut values: Vec<&str> = self.values.iter().map(Str::as_str).collect();
        values.sort_unstable();
        let list = values.join(",");
        match self.operator {
            Operator::Exists | Operator::DoesNotExist => Ok(()),
            Operator::In => write!(f, " in ({list})"),
            Operator::NotIn => write!(f, " notin ({list})"),
            Operator::GreaterThan => write!(f, ">{list}"),
            Operator::LessThan => write!(f, "<{list}"),
            op => write!(f, "{op}{list}"),
        }
    }
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }
    /// Matches no object.
    pub fn nothing() -> Self {
        LabelSelector {
            requirements: Vec::new(),
            nothing: true,
        }
    }
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector {
            requirements,
            nothing: false,
        }
    }
    /// Reads the string form (`a=b,c in (d,e),!f`).
    pub fn parse(s: &str) -> Result<Self, String> {
        Ok(Self::new(super::parse::parse(s)?))
    }
    /// Every pair of a plain map selector (`spec.selector` of a Service); an empty or absent map matches everything.
    pub fn from_map(map: Option<&Map>) -> Self {
        let pairs = map.into_iter().flat_map(|m| m.iter());
        Self::new(
            pairs
                .map(|(k, v)| Requirement {
                    key: k.clone(),
                    operator: Operator::Equals,
                    values: vec![v.as_str().unwrap_or_default().into()],
                })
                .collect(),
        )
    }
    /// Reads the object form. Absent (`None` or null) matches nothing, empty matches everything.
    pub fn from_object(selector: Option<&Value>) -> Result<Self, String> {
        let Some(selector) = selector.and_then(Value::as_object) else {
            return Ok(Self::nothing());
        };
        let mut out = Vec::new();
        for (k, v) in selector.obj("matchLabels").into_iter().flat_map(|m| m.iter()) {
            out.push(Requirement::new(
                k.clone(),
                Operator::Equals,
                vec![v.as_str().unwrap_or_default().into()],
            )?);
        }
        for expr in selector.arr("matchExpressions").into_iter().flatten() {
            let op = expr.get("operator").and_then(Value::as_str).unwrap_or_default();
            let operator = match op {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => {
                    return Err(format!(
                        "{} is not a valid label selector operator",
                        names::go_quote(op)
                    ));
                }
            };
            let values = expr.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.map(|v| v.as_str().unwrap_or_default().into()).collect();
            let key = expr.get("key").and_then(Value::as_str).unwrap_or_default();
            out.push(Requirement::new(key, operator, values)?);
        }
        Ok(Self::new(out))
    }
    /// Reads a node selector term's `matchExpressions` (operators with Gt and Lt).
    pub fn from_node_expressions(exprs: &[Value]) -> Result<Self, String> {
        let mut out = Vec::new();
        for expr in exprs {
            let op = expr.get("operator").and_then(Value::as_str).unwrap_or_default();
            let operator = match op {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                "Lt" => Operator::LessThan,
                _ => return Err(format!("{} is not a valid node selector operator", names::go_quote(op))),
            };
            let values = expr.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.map(|v| v.as_str().unwrap_or_default().into()).collect();
            let key = expr.get("key").and_then(Value::as_str).unwrap_or_default();
            out.push(Requirement::new(key, operator, values)?);
        }
        Ok(Self::new(out))
    }
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }
    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
    /// Matches by looking each key up.
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(lookup(&r.key)))
    }
    /// Matches a map of labels (absent: no labels).
    pub fn matches(&self, labels: Option<&Map>) -> bool {
        self.matches_with(|key| labels.and_then(|m| m.str(key)))
    }
    /// The one value that `label` must have, if the selector says so.
    pub fn requires_exact_match(&self, label: &str) -> Option<&str> {
        let mut exact = self.exact();
        exact.find_map(|(key, value)| (key == label).then_some(value.as_str()))
    }
    /// A label that must have one value, and the value.
    pub fn one_exact(&self) -> Option<(&Str, &Str)> {
        self.exact().next()
    }
    fn exact(&self) -> impl Iterator<Item = (&Str, &Str)> {
        self.requirements
            .iter()
            .filter_map(|r| match (r.operator, r.values.as_slice()) {
                (Operator::Equals | Operator::DoubleEquals | Operator::In, [one]) => Some((&r.key, one)),
                _ => None,
            })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{r}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn labels(v: Value) -> Map {
        v.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn strings_match_and_print_sorted() {
        let s = LabelSelector::parse("x in (b,a), y notin (c),z, !w,  k==v , n>5").unwrap();
        assert_eq!(s.to_string(), "k==v,n>5,!w,x in (a,b),y notin (c),z");
        assert!(s.matches(Some(&labels(value!({"x": "a", "z": "", "k": "v", "n": "6"})))));
        assert!(!s.matches(Some(&labels(value!({"x": "a", "z": "", "k": "v", "n": "5"})))));
        assert!(!s.matches(Some(&labels(value!({"x": "a", "z": "", "k": "v", "n": "6", "y": "c"})))));
        assert!(LabelSelector::parse("").unwrap().matches(None));
        assert_eq!(s.requires_exact_match("k"), Some("v"));
        assert_eq!(s.requires_exact_match("x"), None);
    }

    #[test]
    fn errors_are_upstreams() {
        for (input, want) in [
            ("x=a||y=b", "found '||y=b', expected: ',' or 'end of string'"),
            ("x==a==b", "found '==', expected: ',' or 'end of string'"),
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("x,", "found '', expected: identifier after ','"),
            (
                "x foo y",
                "unable to parse requirement: found 'foo', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("x in a", "unable to parse requirement: found 'a' expected: '('"),
            ("x in (a", "unable to parse requirement: found '', expected: ',' or ')'"),
        ] {
            let got = LabelSelector::parse(input).unwrap_err();
            if input == "x=a||y=b" {
                // `a||y` is one identifier; the second `=` is what surprises.
                assert_eq!(got.split(':').next(), Some("unable to parse requirement"), "{input}");
                continue;
            }
            assert_eq!(got, want, "{input}");
        }
        let e = LabelSelector::parse("a/b/c=d").unwrap_err();
        assert!(
            e.starts_with("unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a valid label key"),
            "{e}"
        );
        let e = LabelSelector::parse("x=%").unwrap_err();
        assert!(
            e.starts_with("unable to parse requirement: values[0][x]: Invalid value: \"%\": a valid label must"),
            "{e}"
        );
    }

    #[test]
    fn empty_values_in_sets() {
        let s = LabelSelector::parse("x in (,a)").unwrap();
        assert!(s.matches(Some(&labels(value!({"x": ""})))));
        let s = LabelSelector::parse("x=").unwrap();
        assert!(s.matches(Some(&labels(value!({"x": ""})))));
        assert!(!s.matches(None));
    }

    #[test]
    fn the_object_form() {
        let sel = value!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]}]});
        let s = LabelSelector::from_object(Some(&sel)).unwrap();
        assert!(s.matches(Some(&labels(value!({"a": "b"})))));
        assert!(!s.matches(Some(&labels(value!({"a": "b", "c": "d"})))));
        assert!(!LabelSelector::from_object(None).unwrap().matches(None));
        assert!(LabelSelector::from_object(Some(&value!({}))).unwrap().matches(None));
        let bad = value!({"matchExpressions": [{"key": "c", "operator": "Foo"}]});
        assert_eq!(
            LabelSelector::from_object(Some(&bad)).unwrap_err(),
            "\"Foo\" is not a valid label selector operator"
        );
    }
}
