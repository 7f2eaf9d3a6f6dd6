//! Who acts as whom: the decisions and messages are those of kube-apiserver 1.37.2 for the same roles.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Answer, Api};
use keelson_api::{Value, value};
use keelson_apiserver::Body;
use keelson_apiserver::request::UserInfo;
use keelson_store::Memory;
use tower::ServiceExt;

const PODS: &str = "/api/v1/pods";

struct World(Api);

impl World {
    /// Alice has constrained rights: to be `bob` with group `g1`, service accounts and the node `n1`, each to list pods. Bob and service accounts
    /// may list pods themselves.
    async fn new() -> World {
        let api = Api::new().await;
        let auth = "authentication.k8s.io";
        let rights = value!([
            {"apiGroups": [auth], "resources": ["users"], "verbs": ["impersonate:user-info"], "resourceNames": ["bob"]},
            {"apiGroups": [auth], "resources": ["groups"], "verbs": ["impersonate:user-info"], "resourceNames": ["g1"]},
            {"apiGroups": [auth], "resources": ["serviceaccounts"], "verbs": ["impersonate:serviceaccount"]},
            {"apiGroups": [auth], "resources": ["nodes"], "verbs": ["impersonate:arbitrary-node"], "resourceNames": ["n1"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:user-info:list", "impersonate-on:serviceaccount:list",
                "impersonate-on:arbitrary-node:list"]},
            {"nonResourceURLs": ["/metrics"], "verbs": ["impersonate-on:user-info:get"]}
        ]);
        let own = value!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
        let agent = value!([
            {"apiGroups": [auth], "resources": ["nodes"], "verbs": ["impersonate:associated-node"], "resourceNames": ["*"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:associated-node:list"]}
        ]);
        let everything = value!([
            {"apiGroups": [auth], "resources": ["users", "groups"], "verbs": ["impersonate:user-info"]},
            {"apiGroups": [auth], "resources": ["userextras/*"], "verbs": ["impersonate:user-info"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:user-info:list"]}
        ]);
        bind(&api, "imp", rights, &[("User", "alice")]).await;
        bind(
            &api,
            "own",
            own,
            &[("User", "bob"), ("Group", "system:serviceaccounts")],
        )
        .await;
        bind(
            &api,
            "agent",
            agent,
            &[("User", "system:serviceaccount:kube-system:agent")],
        )
        .await;
        bind(&api, "wide", everything, &[("User", "wide")]).await;
        World(api)
    }

    async fn ask(&self, who: &UserInfo, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = http::Request::get(path).header("accept", "application/json");
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        let service = self.0.server.service(who.clone());
        let response = service.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            bytes: body.collect(1 << 20).await.unwrap(),
        }
    }

    async fn said(&self, who: &UserInfo, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let answer = self.ask(who, path, headers).await;
        (answer.code, answer.str(&["message"]))
    }
}

async fn bind(api: &Api, name: &str, rules: Value, subjects: &[(&str, &str)]) {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
    let subjects: Vec<Value> = subjects
        .iter()
        .map(|(kind, name)| value!({"kind": *kind, "name": *name, "apiGroup": "rbac.authorization.k8s.io"}))
        .collect();
    let binding = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}, "subjects": subjects});
    api.post(&format!("{rbac}/clusterroles"), role).await.expect(201);
    api.post(&format!("{rbac}/clusterrolebindings"), binding)
        .await
        .expect(201);
    // What is followed is a moment behind.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

fn user(name: &str) -> UserInfo {
    UserInfo::new(name, &["system:authenticated"])
}

#[tokio::test]
async fn constrained_rights_are_for_one_sort_of_user_and_one_request() {
    let world = World::new().await;
    let alice = user("alice");
    let bob = ("impersonate-user", "bob");
    let allowed: [&[(&str, &str)]; 3] = [
        &[bob],
        &[bob, ("impersonate-group", "g1")],
        &[("impersonate-user", "system:serviceaccount:default:default")],
    ];
    for headers in allowed {
        let (code, said) = world.said(&alice, PODS, headers).await;
        assert_eq!(code, 200, "{headers:?}: {said}");
    }
    // Each by somebody who has done nothing yet: what was tried last comes first.
    let api_group = "in API group \"authentication.k8s.io\" at the cluster scope";
    let extra = format!(
        "userextras.authentication.k8s.io is forbidden: User \"alice\" cannot impersonate:user-info resource \"userextras\" {api_group}: \
         impersonating an invalid key in extra is not allowed: extra.key: Invalid value: \"foo\": must be a domain-prefixed path (such as \"acme.io/foo\")"
    );
    let refused: [(&str, &[(&str, &str)], String); 9] = [
        (
            PODS,
            &[bob, ("impersonate-group", "g2")],
            format!("groups.authentication.k8s.io \"g2\" is forbidden: User \"alice\" cannot impersonate:user-info resource \"groups\" {api_group}"),
        ),
        (
            PODS,
            &[("impersonate-user", "carol")],
            format!("users.authentication.k8s.io \"carol\" is forbidden: User \"alice\" cannot impersonate:user-info resource \"users\" {api_group}"),
        ),
        (
            "/api/v1/secrets",
            &[bob],
            "secrets is forbidden: User \"alice\" cannot impersonate-on:user-info:list resource \"secrets\" in API group \"\" at the cluster scope".into(),
        ),
        (
            PODS,
            &[bob, ("impersonate-group", "system:masters")],
            format!(
                "groups.authentication.k8s.io \"system:masters\" is forbidden: User \"alice\" cannot impersonate:user-info resource \"groups\" {api_group}: \
                 impersonating the system:masters group is not allowed"
            ),
        ),
        (PODS, &[bob, ("impersonate-extra-foo", "bar")], extra),
        (
            PODS,
            &[bob, ("impersonate-extra-foo.com%2fx", "bar")],
            format!(
                "userextras.authentication.k8s.io \"bar\" is forbidden: User \"alice\" cannot impersonate:user-info resource \"userextras/foo.com/x\" {api_group}"
            ),
        ),
        (
            PODS,
            &[bob, ("impersonate-uid", "77")],
            format!("uids.authentication.k8s.io \"77\" is forbidden: User \"alice\" cannot impersonate:user-info resource \"uids\" {api_group}"),
        ),
        (
            PODS,
            &[("impersonate-user", "system:serviceaccount:default:default"), ("impersonate-group", "g1")],
            "serviceaccounts \"default\" is forbidden: User \"alice\" cannot impersonate resource \"serviceaccounts\" in API group \"\" \
             in the namespace \"default\""
                .into(),
        ),
        (
            PODS,
            &[("impersonate-user", "system:node:n2")],
            format!("nodes.authentication.k8s.io \"n2\" is forbidden: User \"alice\" cannot impersonate:arbitrary-node resource \"nodes\" {api_group}"),
        ),
    ];
    for (path, headers, wanted) in refused {
        assert_eq!(world.said(&alice, path, headers).await, (403, wanted), "{headers:?}");
    }
    // Acting as the other, whose own rights count then.
    assert_eq!(
        world.said(&alice, "/metrics", &[bob]).await,
        (403, "forbidden: User \"bob\" cannot get path \"/metrics\"".into())
    );
    let (code, said) = world
        .said(&alice, PODS, &[("impersonate-user", "system:node:n1")])
        .await;
    assert!(
        code == 403 && said.starts_with("pods is forbidden: User \"system:node:n1\" cannot list"),
        "{said}"
    );
}

#[tokio::test]
async fn who_may_nothing_is_told_what_the_narrowest_mode_lacks() {
    let world = World::new().await;
    let cases: [(&str, &[(&str, &str)], &str); 5] = [
        (
            PODS,
            &[("impersonate-user", "bob")],
            "pods is forbidden: User \"eve\" cannot impersonate-on:user-info:list resource \"pods\" in API group \"\" at the cluster scope",
        ),
        (
            PODS,
            &[("impersonate-user", "system:node:n2")],
            "pods is forbidden: User \"eve\" cannot impersonate-on:arbitrary-node:list resource \"pods\" in API group \"\" at the cluster scope",
        ),
        (
            PODS,
            &[("impersonate-user", "system:node:n2"), ("impersonate-group", "x")],
            "users \"system:node:n2\" is forbidden: User \"eve\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        ),
        (
            PODS,
            &[("impersonate-user", "system:serviceaccount:a:b")],
            "pods is forbidden: User \"eve\" cannot impersonate-on:serviceaccount:list resource \"pods\" in API group \"\" at the cluster scope",
        ),
        (
            "/healthz",
            &[("impersonate-user", "bob")],
            "forbidden: User \"eve\" cannot impersonate-on:user-info:get path \"/healthz\"",
        ),
    ];
    for (path, headers, wanted) in cases {
        assert_eq!(
            world.said(&user("eve"), path, headers).await,
            (403, wanted.into()),
            "{headers:?}"
        );
    }
    let (code, said) = world.said(&user("eve"), PODS, &[("impersonate-group", "g")]).await;
    assert!(
        code == 400 && said.ends_with(" without impersonating a user name"),
        "{said}"
    );
}

#[tokio::test]
async fn a_pods_account_acts_as_its_own_node_only() {
    let world = World::new().await;
    let mut agent = UserInfo::service_account("kube-system", "agent", "u");
    agent
        .extra
        .insert("authentication.kubernetes.io/node-name".into(), vec!["n1".into()]);
    // It is the node then, with the nodes' group: the node's own rule answers.
    let (code, said) = world
        .said(&agent, PODS, &[("impersonate-user", "system:node:n1")])
        .await;
    assert!(
        code == 403 && said.contains("User \"system:node:n1\" cannot list resource \"pods\""),
        "{said}"
    );
    let own = format!("{PODS}?fieldSelector=spec.nodeName%3Dn1");
    let (code, said) = world
        .said(&agent, &own, &[("impersonate-user", "system:node:n1")])
        .await;
    assert_eq!(code, 200, "{said}");
    let (code, said) = world
        .said(&agent, &own, &[("impersonate-user", "system:node:n2")])
        .await;
    assert!(
        code == 403 && said.contains("cannot impersonate-on:arbitrary-node:list"),
        "{said}"
    );
}

#[tokio::test]
async fn many_groups_are_allowed_by_the_right_to_all_and_masters_by_no_constrained_right() {
    let world = World::new().await;
    let wide = user("wide");
    let mut headers = vec![("impersonate-user", "bob")];
    headers.extend(["a", "b", "c", "d"].map(|group| ("impersonate-group", group)));
    assert_eq!(world.said(&wide, PODS, &headers).await.0, 200);
    headers.push(("impersonate-group", ""));
    let (code, said) = world.said(&wide, PODS, &headers).await;
    assert!(
        code == 403 && said.ends_with(": impersonating the empty string group is not allowed"),
        "{said}"
    );
    let masters = [("impersonate-user", "bob"), ("impersonate-group", "system:masters")];
    let (code, said) = world.said(&wide, "/api/v1/pods", &masters).await;
    assert!(
        code == 403 && said.ends_with(": impersonating the system:masters group is not allowed"),
        "{said}"
    );
    // Who may everything may that too, as of old.
    let admin = UserInfo::new("admin", &["system:masters"]);
    assert_eq!(world.said(&admin, "/api/v1/secrets", &masters).await.0, 200);
}

#[tokio::test]
async fn the_right_of_old_still_allows_everything_and_is_told_apart() {
    let log = std::env::temp_dir().join(format!("keelson-impersonation-{}.log", std::process::id()));
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- {level: Metadata, users: [alice, old]}\n";
    let policy = keelson_apiserver::audit::Policy::parse(policy).unwrap();
    let settings = keelson_apiserver::audit::Settings::at(log.clone());
    let api = Api::starting_with(Memory::new(), |config| config.audit = Some((policy, settings)));
    api.server.ready().await;
    let users = value!([{"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}]);
    bind(&api, "old", users, &[("User", "old")]).await;
    let narrow = value!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "verbs": ["impersonate:user-info"]},
        {"nonResourceURLs": ["/version"], "verbs": ["impersonate-on:user-info:get"]}
    ]);
    bind(&api, "narrow", narrow, &[("User", "alice")]).await;
    let world = World(api);
    let ada = [("impersonate-user", "ada")];
    for name in ["old", "alice"] {
        world.ask(&user(name), "/version", &ada).await.expect(200);
    }
    let page = world.0.get("/metrics").await;
    let page = String::from_utf8(page.bytes.to_vec()).unwrap();
    for line in [
        "apiserver_impersonation_attempts_total{decision=\"allowed\",mode=\"legacy\"} 1\n",
        "apiserver_impersonation_attempts_total{decision=\"allowed\",mode=\"user-info\"} 1\n",
        "apiserver_impersonation_authorization_attempts_total{decision=\"denied\",mode=\"user-info\"} 1\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    let mut text = String::new();
    for _ in 0..3000 {
        text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.lines().count() >= 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    std::fs::remove_file(&log).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let constraint = |event: &Value| {
        event
            .at(&["authenticationMetadata", "impersonationConstraint"])
            .cloned()
    };
    assert_eq!(
        events.iter().map(constraint).collect::<Vec<_>>(),
        [None, Some("impersonate:user-info".into())],
        "{text}"
    );
    assert!(
        events
            .iter()
            .all(|e| e.at(&["impersonatedUser", "username"]) == Some(&"ada".into()))
    );
}
