//! What is asked of a webhook: the specification of a SubjectAccessReview, as it is sent and as conditions see it.

use crate::authz::Attributes;
use keelson_api::{Map, Str, Value, value};
use keelson_machinery::selector::{FieldSelector, LabelSelector, Operator};

fn texts(list: &[Str]) -> Value {
    Value::Array(list.iter().cloned().map(Value::String).collect())
}

/// `authorization.k8s.io/v1`: what is empty is left out.
pub fn spec(a: &Attributes) -> Value {
    let mut spec = Map::new();
    let put = |m: &mut Map, key: &str, value: &Str| {
        if !value.is_empty() {
            m.insert(key, Value::String(value.clone()));
        }
    };
    put(&mut spec, "user", &a.user.name);
    put(&mut spec, "uid", &a.user.uid);
    if !a.user.groups.is_empty() {
        spec.insert("groups", texts(&a.user.groups));
    }
    if !a.user.extra.is_empty() {
        spec.insert("extra", extra(a));
    }
    let mut attributes = Map::new();
    put(&mut attributes, "verb", &a.verb);
    if !a.is_resource_request {
        put(&mut attributes, "path", &a.path);
        spec.insert("nonResourceAttributes", attributes);
        return spec.into();
    }
    for (key, value) in resource(a) {
        put(&mut attributes, key, value);
    }
    selectors(a, &mut attributes);
    spec.insert("resourceAttributes", attributes);
    spec.into()
}

fn resource(a: &Attributes) -> [(&'static str, &Str); 6] {
    [
        ("namespace", &a.namespace),
        ("group", &a.api_group),
        ("version", &a.api_version),
        ("resource", &a.resource),
        ("subresource", &a.subresource),
        ("name", &a.name),
    ]
}

fn extra(a: &Attributes) -> Value {
    let extra: Map = a.user.extra.iter().map(|(k, v)| (k.clone(), texts(v))).collect();
    extra.into()
}

/// The older version has another name for groups.
pub fn of_v1beta1(mut spec: Value) -> Value {
    if let Value::Object(map) = &mut spec
        && let Some(groups) = map.remove("groups")
    {
        map.insert("group", groups);
    }
    spec
}

/// As conditions see it: texts are there also if they are empty.
pub fn for_conditions(a: &Attributes) -> Value {
    let mut request = value!({
        "user": a.user.name.clone(), "uid": a.user.uid.clone(), "groups": texts(&a.user.groups), "extra": extra(a),
    });
    if !a.is_resource_request {
        let attributes = value!({"verb": a.verb.clone(), "path": a.path.clone()});
        request.set_at(&["nonResourceAttributes"], attributes);
        return request;
    }
    let mut attributes = Map::new();
    attributes.insert("verb", Value::String(a.verb.clone()));
    for (key, value) in resource(a) {
        attributes.insert(key, Value::String(value.clone()));
    }
    selectors(a, &mut attributes);
    request.set_at(&["resourceAttributes"], Value::Object(attributes));
    request
}

/// Selectors narrow what is asked for; one that can't be read is left out, which asks for more.
fn selectors(a: &Attributes, attributes: &mut Map) {
    let mut put = |key: &str, requirements: Vec<Value>| {
        if !requirements.is_empty() {
            attributes.insert(key, value!({"requirements": requirements}));
        }
    };
    let fields = FieldSelector::parse(&a.field_selector).unwrap_or_default();
    let field = |r: &keelson_machinery::selector::FieldRequirement| {
        let operator = if r.negated { "NotIn" } else { "In" };
        value!({"key": r.field.clone(), "operator": operator, "values": [r.value.clone()]})
    };
    put("fieldSelector", fields.requirements.iter().map(field).collect());
    let labels = LabelSelector::parse(&a.label_selector).unwrap_or_default();
    let label = |r: &keelson_machinery::selector::Requirement| {
        let operator = match r.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => "In",
            Operator::NotIn | Operator::NotEquals => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        let mut out = value!({"key": r.key.clone(), "operator": operator});
        if !r.values.is_empty() {
            out.set_at(&["values"], texts(&r.values));
        }
        Some(out)
    };
    put(
        "labelSelector",
        labels.requirements().iter().filter_map(label).collect(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::UserInfo;

    #[test]
    fn reviews_are_upstreams() {
        let a = Attributes {
            user: UserInfo::new("ann", &["a"]),
            verb: "list".into(),
            is_resource_request: true,
            api_version: "v1".into(),
            resource: "pods".into(),
            field_selector: "spec.nodeName=n1,status.phase!=Failed".into(),
            label_selector: "app in (a,b),!gone".into(),
            ..Attributes::default()
        };
        let wanted = value!({
            "user": "ann", "groups": ["a"],
            "resourceAttributes": {
                "verb": "list", "version": "v1", "resource": "pods",
                "fieldSelector": {"requirements": [
                    {"key": "spec.nodeName", "operator": "In", "values": ["n1"]},
                    {"key": "status.phase", "operator": "NotIn", "values": ["Failed"]},
                ]},
                "labelSelector": {"requirements": [
                    {"key": "app", "operator": "In", "values": ["a", "b"]},
                    {"key": "gone", "operator": "DoesNotExist"},
                ]},
            },
        });
        assert_eq!(spec(&a), wanted);
        let older = of_v1beta1(spec(&a));
        assert_eq!(older.get("group"), Some(&value!(["a"])));
        assert_eq!(older.get("groups"), None);
        let seen = for_conditions(&a);
        assert_eq!(seen.at(&["resourceAttributes", "namespace"]), Some(&"".into()));
        let path = Attributes {
            verb: "get".into(),
            path: "/x".into(),
            ..Attributes::default()
        };
        assert_eq!(
            spec(&path),
            value!({"nonResourceAttributes": {"verb": "get", "path": "/x"}})
        );
    }
}
