//! Who may do what: bindings that give everything, or something to everybody.

use super::{Point, Seen, World, doubtful, some, wrong};
use serde_json::Value;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
/// What everybody has by upstream's default roles.
const FOR_ALL: [&str; 4] = [
    "system:basic-user",
    "system:discovery",
    "system:public-info-viewer",
    "system:service-account-issuer-discovery",
];
/// Rights that lead to all others.
const LEADS: [(&str, &str); 8] = [
    ("nodes/proxy", "*"),
    ("pods/exec", "*"),
    ("serviceaccounts/token", "create"),
    ("secrets", "list"),
    ("users", "impersonate"),
    ("groups", "impersonate"),
    ("clusterroles", "escalate"),
    ("clusterroles", "bind"),
];

struct Rights {
    roles: Vec<Value>,
    /// With the namespace's ones.
    bindings: Vec<Value>,
}

pub async fn points(world: &World) -> Vec<Point> {
    let read = async {
        let mut bindings = world.list(&format!("{RBAC}/clusterrolebindings")).await?;
        bindings.extend(world.list(&format!("{RBAC}/rolebindings")).await?);
        let roles = world.list(&format!("{RBAC}/clusterroles")).await?;
        Ok::<_, anyhow::Error>(Rights { roles, bindings })
    };
    let rights = read.await.map_err(|e| format!("{e:#}"));
    let judge = |judge: fn(&Rights) -> Result<String, Seen>| match &rights {
        Ok(rights) => judge(rights),
        Err(why) => Err(anyhow::anyhow!("{why}").into()),
    };
    vec![
        Point::of(
            "R1",
            "Who is cluster-admin",
            judge(admins),
            "Give those named a role of what they need",
        ),
        Point::of(
            "R2",
            "Nobody without identity has rights",
            judge(anonymous),
            "Delete the bindings named",
        ),
        Point::of(
            "R3",
            "Default service accounts have no rights",
            judge(default_accounts),
            "Bind an account of the workload's own",
        ),
        Point::of(
            "R4",
            "Whoever is known has no further rights",
            judge(authenticated),
            "Bind groups of your own",
        ),
        Point::of(
            "R5",
            "Roles that allow everything",
            judge(wild),
            "Name the resources and verbs that are needed",
        ),
        Point::of(
            "R6",
            "Service accounts whose rights lead to all others",
            judge(leading),
            "Take these rights from roles of workloads, or name objects by resourceNames",
        ),
        Point::of(
            "R7",
            "Tokens that never end",
            endless(world).await,
            "Delete the Secrets named: pods get tokens that are renewed, people ask by kubectl create token",
        ),
        Point::of(
            "R8",
            "Pods that share the node",
            privileged(world).await,
            "Label namespaces by pod-security.kubernetes.io/enforce: baseline",
        ),
    ]
}

fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    path.iter().fold(value, |v, key| &v[*key]).as_str().unwrap_or_default()
}

fn subjects(binding: &Value) -> impl Iterator<Item = &Value> {
    binding["subjects"].as_array().into_iter().flatten()
}

/// As people write them.
fn shown(subject: &Value) -> String {
    match text(subject, &["kind"]) {
        "ServiceAccount" => format!(
            "ServiceAccount {}/{}",
            text(subject, &["namespace"]),
            text(subject, &["name"])
        ),
        kind => format!("{kind} {}", text(subject, &["name"])),
    }
}

fn given(binding: &Value, subject: &Value) -> String {
    format!(
        "{} has {} by {}",
        shown(subject),
        text(binding, &["roleRef", "name"]),
        text(binding, &["metadata", "name"])
    )
}

/// Those that bindings give something, as far as they are chosen.
fn chosen(rights: &Rights, choose: impl Fn(&Value, &Value) -> bool) -> Vec<String> {
    let all = rights.bindings.iter().flat_map(|b| subjects(b).map(move |s| (b, s)));
    all.filter(|(b, s)| choose(b, s)).map(|(b, s)| given(b, s)).collect()
}

fn admins(rights: &Rights) -> Result<String, Seen> {
    let others = chosen(rights, |binding, subject| {
        text(binding, &["roleRef", "name"]) == "cluster-admin" && shown(subject) != "Group system:masters"
    });
    match others.is_empty() {
        true => Ok("the group system:masters only".into()),
        false => Err(doubtful(some(&others))),
    }
}

fn anonymous(rights: &Rights) -> Result<String, Seen> {
    let found = chosen(rights, |binding, subject| {
        // What machines that join read before they know anybody.
        let joining = text(binding, &["metadata", "namespace"]) == "kube-public";
        ["system:anonymous", "system:unauthenticated"].contains(&text(subject, &["name"]))
            && text(binding, &["roleRef", "name"]) != "system:public-info-viewer"
            && !joining
    });
    match found.is_empty() {
        true => Ok("but for health, version and what joining machines read".into()),
        false => Err(wrong(some(&found))),
    }
}

fn default_accounts(rights: &Rights) -> Result<String, Seen> {
    let found = chosen(rights, |binding, subject| {
        let default = text(subject, &["kind"]) == "ServiceAccount" && text(subject, &["name"]) == "default";
        let all = text(subject, &["name"]).starts_with("system:serviceaccounts");
        (default || all) && !FOR_ALL.contains(&text(binding, &["roleRef", "name"]))
    });
    match found.is_empty() {
        true => Ok("no binding names them, nor all accounts together".into()),
        false => Err(doubtful(some(&found))),
    }
}

fn authenticated(rights: &Rights) -> Result<String, Seen> {
    let found = chosen(rights, |binding, subject| {
        text(subject, &["name"]) == "system:authenticated" && !FOR_ALL.contains(&text(binding, &["roleRef", "name"]))
    });
    match found.is_empty() {
        true => Ok("but for upstream's default roles".into()),
        false => Err(doubtful(some(&found))),
    }
}

fn has(rule: &Value, key: &str, wanted: &str) -> bool {
    rule[key]
        .as_array()
        .into_iter()
        .flatten()
        .any(|v| v == wanted || v == "*")
}

fn rules(role: &Value) -> impl Iterator<Item = &Value> {
    role["rules"].as_array().into_iter().flatten()
}

fn wild(rights: &Rights) -> Result<String, Seen> {
    let everything = |rule: &Value| {
        ["apiGroups", "resources", "verbs"]
            .iter()
            .all(|key| has(rule, key, "*"))
    };
    let roles = rights.roles.iter().filter(|role| rules(role).any(everything));
    let names = roles.map(|r| text(r, &["metadata", "name"]).to_string());
    let found: Vec<String> = names
        .filter(|n| n != "cluster-admin" && !n.starts_with("system:"))
        .collect();
    match found.is_empty() {
        true => Ok("cluster-admin, and the system's own".into()),
        false => Err(doubtful(some(&found))),
    }
}

fn leading(rights: &Rights) -> Result<String, Seen> {
    let leads = |role: &str| {
        let role = rights.roles.iter().find(|r| text(r, &["metadata", "name"]) == role);
        role.is_some_and(|role| {
            rules(role).any(|rule| {
                let named = rule["resourceNames"].as_array().is_some_and(|n| !n.is_empty());
                let right = |(resource, verb): &(&str, &str)| {
                    has(rule, "resources", resource) && (*verb == "*" || has(rule, "verbs", verb))
                };
                !named && LEADS.iter().any(right)
            })
        })
    };
    let found = chosen(rights, |binding, subject| {
        let role = text(binding, &["roleRef", "name"]);
        // Upstream's controllers have what they need.
        let own = role.starts_with("system:");
        text(subject, &["kind"]) == "ServiceAccount"
            && text(binding, &["kind"]) != "RoleBinding"
            && text(binding, &["metadata", "namespace"]).is_empty()
            && !own
            && leads(role)
    });
    match found.is_empty() {
        true => Ok("none but the system's own".into()),
        false => Err(doubtful(some(&found))),
    }
}

async fn endless(world: &World) -> Result<String, Seen> {
    let path = "/api/v1/secrets?fieldSelector=type%3Dkubernetes.io%2Fservice-account-token";
    let name = |s: &Value| {
        format!(
            "{}/{}",
            text(s, &["metadata", "namespace"]),
            text(s, &["metadata", "name"])
        )
    };
    let found: Vec<String> = world.list(path).await?.iter().map(name).collect();
    match found.is_empty() {
        true => Ok("no Secret holds one".into()),
        false => Err(doubtful(some(&found))),
    }
}

async fn privileged(world: &World) -> Result<String, Seen> {
    let mut found = Vec::new();
    for pod in world.list("/api/v1/pods").await? {
        let spec = &pod["spec"];
        let host = ["hostNetwork", "hostPID", "hostIPC"]
            .iter()
            .any(|key| spec[*key] == true);
        let mut containers = ["initContainers", "containers"]
            .into_iter()
            .flat_map(|k| spec[k].as_array().into_iter().flatten());
        let privileged = containers.any(|c| c["securityContext"]["privileged"] == true);
        let mut volumes = spec["volumes"].as_array().into_iter().flatten();
        if host || privileged || volumes.any(|v| v["hostPath"].is_object()) {
            found.push(format!(
                "{}/{}",
                text(&pod, &["metadata", "namespace"]),
                text(&pod, &["metadata", "name"])
            ));
        }
    }
    match found.is_empty() {
        true => Ok("no pod is privileged, has the host's namespaces or its files".into()),
        false => Err(doubtful(some(&found))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use serde_json::json;

    fn binding(role: &str, kind: &str, name: &str) -> Value {
        json!({"metadata": {"name": "b"}, "roleRef": {"name": role}, "subjects": [{"kind": kind, "name": name, "namespace": "ns"}]})
    }

    #[test]
    fn bindings_that_give_too_much_are_named() {
        let rights = |bindings: Vec<Value>| Rights {
            roles: vec![
                json!({"metadata": {"name": "agent"}, "rules": [{"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]}]}),
                json!({"metadata": {"name": "all"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}),
            ],
            bindings,
        };
        let verdict = |judge: fn(&Rights) -> Result<String, Seen>, bindings: Vec<Value>| match judge(&rights(bindings))
        {
            Ok(_) => Verdict::Pass,
            Err(Seen(verdict, _)) => verdict,
        };
        let group = |role: &str, name: &str| vec![binding(role, "Group", name)];
        let account = |role: &str, name: &str| vec![binding(role, "ServiceAccount", name)];
        assert_eq!(verdict(admins, group("cluster-admin", "system:masters")), Verdict::Pass);
        assert_eq!(verdict(admins, account("cluster-admin", "ci")), Verdict::Warn);
        assert_eq!(
            verdict(anonymous, group("view", "system:unauthenticated")),
            Verdict::Fail
        );
        assert_eq!(
            verdict(anonymous, group("system:public-info-viewer", "system:unauthenticated")),
            Verdict::Pass
        );
        assert_eq!(verdict(default_accounts, account("view", "default")), Verdict::Warn);
        assert_eq!(verdict(default_accounts, account("view", "own")), Verdict::Pass);
        assert_eq!(
            verdict(authenticated, group("edit", "system:authenticated")),
            Verdict::Warn
        );
        assert_eq!(verdict(leading, account("agent", "metrics")), Verdict::Warn);
        assert_eq!(verdict(leading, account("view", "metrics")), Verdict::Pass);
        assert_eq!(verdict(wild, Vec::new()), Verdict::Warn);
    }
}
