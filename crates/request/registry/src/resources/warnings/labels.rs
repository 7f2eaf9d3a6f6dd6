//! Labels of nodes that are deprecated, wherever nodes are chosen by them.

use super::{Errs, s};
use keelson_api::Map;
use keelson_machinery::names;

const DEPRECATED: &[(&str, &str)] = &[
    (
        "beta.kubernetes.io/arch",
        r#"deprecated since v1.14; use "kubernetes.io/arch" instead"#,
    ),
    (
        "beta.kubernetes.io/os",
        r#"deprecated since v1.14; use "kubernetes.io/os" instead"#,
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        r#"deprecated since v1.17; use "topology.kubernetes.io/region" instead"#,
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        r#"deprecated since v1.17; use "topology.kubernetes.io/zone" instead"#,
    ),
    (
        "beta.kubernetes.io/instance-type",
        r#"deprecated since v1.17; use "node.kubernetes.io/instance-type" instead"#,
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    (
        "node-role.kubernetes.io/master",
        r#"use "node-role.kubernetes.io/control-plane" instead"#,
    ),
];

pub fn deprecated(label: &str) -> Option<&'static str> {
    DEPRECATED.iter().find(|(l, _)| *l == label).map(|(_, text)| *text)
}

/// The key of an expression, which is shown together with why.
fn key(e: &mut Errs, expression: &Map) {
    let label = s(expression, "key");
    if let Some(text) = deprecated(label) {
        e.warn("key", format!("{label} is {text}"));
    }
}

/// A `NodeSelectorTerm`; `values`: whether values that no label can have are told of, too.
pub fn term(e: &mut Errs, term: &Map, values: bool) {
    e.each(term, "matchExpressions", |e, _, expression| {
        key(e, expression);
        if values {
            e.each_str(expression, "values", |e, _, value| {
                for wrong in names::label_value(value) {
                    e.warn("", format!("{value} is invalid, {wrong}"));
                }
            });
        }
    });
}

/// A `LabelSelector` of nodes.
pub fn selector(e: &mut Errs, o: &Map, at: &str) {
    e.child(o, at, |e, selector| {
        e.each(selector, "matchExpressions", |e, _, expression| key(e, expression));
        for (label, _) in selector.obj("matchLabels").into_iter().flatten() {
            if let Some(text) = deprecated(label) {
                e.warn(&format!("matchLabels.{label}"), text);
            }
        }
    });
}

/// A map of labels that nodes have to have; `shown`: whether the label stands in the path.
pub fn map(e: &mut Errs, o: &Map, at: &str, shown: bool) {
    for (label, _) in o.obj(at).into_iter().flatten() {
        if let Some(text) = deprecated(label) {
            let place = if shown {
                format!("{at}[{label}]")
            } else {
                at.to_string()
            };
            e.warn(&place, text);
        }
    }
}
