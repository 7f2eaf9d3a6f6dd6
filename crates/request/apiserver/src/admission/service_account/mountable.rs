//! Accounts annotated with `kubernetes.io/enforce-mountable-secrets`: their pods may refer only to the Secrets on the account's lists.

use keelson_api::{Map, Object, Value};

/// Which containers are judged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All that a new pod has.
    Pod,
    /// Those that come to it later.
    Ephemeral,
}

fn list<'a>(of: &'a Map, key: &str) -> impl Iterator<Item = &'a Map> {
    of.arr(key).into_iter().flatten().filter_map(Value::as_object)
}

fn names<'a>(account: &'a Object, key: &str) -> Vec<&'a str> {
    list(account, key).filter_map(|s| s.str("name")).collect()
}

/// Whether the account asks for it: as Go reads a boolean.
fn enforces(account: &Object) -> bool {
    let value = account.annotation("kubernetes.io/enforce-mountable-secrets");
    matches!(value, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// `Err`: what is referred to but not listed, in upstream's words.
pub fn check(account: &Object, pod: &Object, part: Part) -> Result<(), String> {
    let Some(spec) = pod.obj("spec").filter(|_| enforces(account)) else {
        return Ok(());
    };
    let (mountable, name) = (names(account, "secrets"), account.name());
    let refuse = |what: String, secret: &str| match mountable.contains(&secret) {
        true => Ok(()),
        false => Err(format!(
            "{what} secret.secretName=\"{secret}\" is not allowed because service account {name} does not reference that secret"
        )),
    };
    let kinds: &[(&str, &str)] = match part {
        Part::Pod => &[("initContainers", "init container"), ("containers", "container")],
        Part::Ephemeral => &[("ephemeralContainers", "ephemeral container")],
    };
    if part == Part::Pod {
        for volume in list(spec, "volumes").filter_map(|v| v.obj("secret")) {
            refuse("volume with".into(), volume.str("secretName").unwrap_or_default())?;
        }
    }
    for (key, kind) in kinds {
        for container in list(spec, key) {
            let own = container.str("name").unwrap_or_default();
            for env in list(container, "env") {
                let from = env.obj("valueFrom").and_then(|from| from.obj("secretKeyRef"));
                if let Some(from) = from {
                    let variable = env.str("name").unwrap_or_default();
                    let what = format!("{kind} {own} with envVar {variable} referencing");
                    refuse(what, from.str("name").unwrap_or_default())?;
                }
            }
            for from in list(container, "envFrom").filter_map(|f| f.obj("secretRef")) {
                let what = format!("{kind} {own} with envFrom referencing");
                refuse(what, from.str("name").unwrap_or_default())?;
            }
        }
    }
    if part == Part::Ephemeral {
        return Ok(());
    }
    let pulls = names(account, "imagePullSecrets");
    for (i, pull) in list(spec, "imagePullSecrets").enumerate() {
        let pull = pull.str("name").unwrap_or_default();
        if !pulls.contains(&pull) {
            return Err(format!(
                "imagePullSecrets[{i}].name=\"{pull}\" is not allowed because service account {name} does not reference that imagePullSecret"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn pods_refer_to_what_their_account_lists() {
        let account = |enforce: &str| {
            let account = value!({"kind": "ServiceAccount", "secrets": [{"name": "listed"}], "imagePullSecrets": [{"name": "pull"}],
                "metadata": {"name": "robot", "annotations": {"kubernetes.io/enforce-mountable-secrets": enforce}}});
            Object::try_from(account).unwrap()
        };
        let judge = |enforce: &str, spec: Value, part: Part| {
            check(
                &account(enforce),
                &Object::try_from(value!({"kind": "Pod", "spec": spec})).unwrap(),
                part,
            )
        };
        let by = |secret: &str| value!([{"name": "c", "envFrom": [{"secretRef": {"name": secret}}]}]);
        let key = |secret: &str| value!([{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": secret}}}]}]);
        for (spec, why) in [
            (
                value!({"containers": by("listed"), "imagePullSecrets": [{"name": "pull"}]}),
                None,
            ),
            (
                value!({"containers": by("other")}),
                Some("container c with envFrom referencing secret.secretName=\"other\""),
            ),
            (
                value!({"initContainers": key("other")}),
                Some("init container c with envVar E referencing secret.secretName=\"other\""),
            ),
            (
                value!({"volumes": [{"name": "v", "secret": {"secretName": "other"}}]}),
                Some("volume with secret.secretName=\"other\""),
            ),
            (
                value!({"imagePullSecrets": [{"name": "listed"}]}),
                Some("imagePullSecrets[0].name=\"listed\""),
            ),
        ] {
            let found = judge("true", spec.clone(), Part::Pod);
            match why {
                None => assert_eq!(found, Ok(())),
                Some(why) => assert!(found.unwrap_err().starts_with(why), "{why}"),
            }
            assert_eq!(judge("yes", spec, Part::Pod), Ok(()), "that is no boolean");
        }
        let later = value!({"ephemeralContainers": key("other"), "containers": by("other")});
        let refused = judge("1", later, Part::Ephemeral).unwrap_err();
        assert!(refused.starts_with("ephemeral container c with envVar E"), "{refused}");
    }
}
