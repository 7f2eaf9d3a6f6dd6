//! How an object differs from what it was, path by path. What is secret is told to differ, and not how.

use serde_json::Value;

/// How many lines an object's are at most.
const TOLD: usize = 20;
const LONGEST: usize = 60;
/// What is told of a secret. Its annotations may have all of it, as `kubectl apply` writes them.
const OPEN: [&str; 4] = ["type", "immutable", "metadata.labels", "metadata.finalizers"];

/// From `now` to `then`. Neither has what a cluster gives.
pub fn differences(secret: bool, now: &Value, then: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(secret, String::new(), Some(now), Some(then), &mut found);
    if found.len() > TOLD {
        let more = found.len() - TOLD;
        found.truncate(TOLD);
        found.push(format!("and {more} more"));
    }
    found
}

fn walk(secret: bool, path: String, now: Option<&Value>, then: Option<&Value>, found: &mut Vec<String>) {
    match (now, then) {
        (now, then) if now == then => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut names: Vec<_> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                walk(secret, format!("{path}.{name}"), a.get(name), b.get(name), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            for (n, (now, then)) in a.iter().zip(b).enumerate() {
                walk(secret, format!("{path}[{n}]"), Some(now), Some(then), found);
            }
        }
        (now, then) => {
            let path = path.trim_start_matches('.');
            let hidden = secret && !OPEN.iter().any(|open| path.starts_with(open));
            found.push(match hidden {
                true => format!("{path}: (another value)"),
                false => format!("{path}: {} -> {}", short(now), short(then)),
            });
        }
    }
}

fn short(value: Option<&Value>) -> String {
    let Some(value) = value else { return "(none)".into() };
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_told_by_path() {
        let now = json!({"spec": {"replicas": 3, "ports": [{"port": 80}], "same": 1}, "data": {"a": "x"}});
        let then = json!({"spec": {"replicas": 5, "ports": [{"port": 81}], "same": 1}, "data": {"a": "y", "b": "z"}});
        assert_eq!(
            differences(false, &now, &then),
            [
                "data.a: \"x\" -> \"y\"",
                "data.b: (none) -> \"z\"",
                "spec.ports[0].port: 80 -> 81",
                "spec.replicas: 3 -> 5"
            ]
        );
        let secret = differences(true, &now, &then);
        assert_eq!(secret[..2], ["data.a: (another value)", "data.b: (another value)"]);
        assert!(differences(false, &now, &now).is_empty());
        let applied = |data: &str| {
            let text = format!(r#"{{"data":{{"a":"{data}"}}}}"#);
            json!({"type": data, "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": text}}})
        };
        let bare = json!({"type": "x", "metadata": {}});
        for now in [applied("x"), bare] {
            let told = differences(true, &now, &applied("y"));
            assert!(told.len() == 2 && told[0].ends_with("(another value)"), "{told:?}");
            assert_eq!(told[1], "type: \"x\" -> \"y\"");
        }
        let many = json!(
            (0..50)
                .map(|n| (n.to_string(), n))
                .collect::<std::collections::BTreeMap<_, _>>()
        );
        assert_eq!(differences(false, &json!({}), &many).len(), 21);
        assert!(differences(false, &json!({}), &json!({"a": "ä".repeat(200)}))[0].len() < 200);
    }
}
