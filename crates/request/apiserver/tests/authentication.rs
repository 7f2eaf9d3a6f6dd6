//! Who is believed by configuration: issuers of tokens and a webhook on this machine, asked over TLS.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use harness::outside::{Issuer, Key, Outside, json};
use keelson_api::{Value, value};
use keelson_apiserver::{Body, authn};
use keelson_pki::{Authority, Kubeconfig};
use keelson_store::Memory;
use std::path::PathBuf;
use std::time::Duration;

const OWN: &str = "https://kubernetes.default.svc.cluster.local";

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("keelson-authentication-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Indented as part of a YAML file.
fn block(pem: &str) -> String {
    pem.lines().map(|l| format!("      {l}\n")).collect()
}

fn configuration(ca: &Authority, url: &str, prefix: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n\
         anonymous: {{enabled: true, conditions: [{{path: /version}}]}}\n\
         jwt:\n- issuer:\n    url: {url}\n    audiences: [kubernetes, other]\n    audienceMatchPolicy: MatchAny\n    certificateAuthority: |\n{}\
         \x20 claimMappings:\n    username: {{expression: \"'{prefix}' + claims.sub\"}}\n    groups: {{expression: \"claims.?groups.orValue([])\"}}\n    uid: {{claim: sub}}\n\
         \x20   extra: [{{key: example.org/team, valueExpression: claims.example__dot__org__slash__team}}]\n\
         \x20 claimValidationRules: [{{expression: claims.level > 1.0, message: too low}}]\n\
         \x20 userValidationRules: [{{expression: \"!user.username.startsWith('system:')\", message: reserved}}]\n",
        block(ca.cert_pem())
    )
}

fn claims(url: &str) -> Value {
    let now = jiff::Timestamp::now().as_second();
    value!({
        "iss": url, "sub": "jane", "aud": "kubernetes", "exp": now + 600, "level": 2, "jti": "7",
        "groups": ["dev", "ops"], "example.org/team": "blue",
    })
}

async fn serving(options: authn::Options) -> Api {
    let settings = options.resolve(&[OWN.into()]).unwrap();
    let api = Api::starting_with(Memory::new(), |config| config.authentication = settings);
    api.server.ready().await;
    api
}

impl Api {
    /// A request from outside, with a token or without.
    async fn outside(&self, path: &str, token: Option<&str>) -> u16 {
        let mut request = http::Request::get(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Body::empty()).unwrap();
        self.server.handle().handle(request).await.status().as_u16()
    }
    async fn review(&self, token: &str, audiences: &[&str]) -> Value {
        let audiences: Vec<Value> = audiences.iter().map(|a| Value::from(*a)).collect();
        let review = value!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": audiences},
        });
        let answer = self.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
        answer.expect(201).json().get("status").cloned().unwrap()
    }
    async fn refusal(&self, token: &str) -> String {
        let status = self.review(token, &[]).await;
        assert_ne!(status.get("authenticated"), Some(&Value::Bool(true)));
        status.get("error").and_then(Value::as_str).unwrap().to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_trusted_issuer_are_users_and_the_file_is_followed() {
    let (ca, key, dir) = (
        Authority::generate("ca").unwrap(),
        Key::new("one"),
        Scratch::new("issuer"),
    );
    let issuer = Issuer::start(&ca, 0, &key).await;
    let url = issuer.url();
    let file = dir.write("authn.yaml", &configuration(&ca, &url, "oidc:"));
    let api = serving(authn::Options {
        config: Some(file.clone()),
        ..authn::Options::default()
    })
    .await;
    let good = key.sign(claims(&url));
    let mut status = Value::Null;
    for _ in 0..1000 {
        status = api.review(&good, &[]).await;
        if status.get("authenticated") == Some(&Value::Bool(true)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let wanted = value!({
        "username": "oidc:jane", "uid": "jane", "groups": ["dev", "ops", "system:authenticated"],
        "extra": {"authentication.kubernetes.io/credential-id": ["JTI=7"], "example.org/team": ["blue"]},
    });
    assert_eq!(status.get("user"), Some(&wanted), "{status:?}");
    assert_eq!(status.get("audiences"), Some(&value!([OWN])));
    assert_eq!(api.outside("/version", Some(&good)).await, 200);
    assert_eq!(api.outside("/api/v1/secrets", Some(&good)).await, 403);
    // Who shows nothing is let in where the file says so.
    assert_eq!(api.outside("/version", None).await, 200);
    assert_eq!(api.outside("/version/", None).await, 401);
    assert_eq!(api.outside("/livez", None).await, 401);

    let with = |field: &str, value: Value| {
        let mut claims = claims(&url);
        claims.set_at(&[field], value);
        key.sign(claims)
    };
    for (token, why) in [
        (
            with("exp", 1.into()),
            "oidc: token is expired (Token Expiry: 1970-01-01 00:00:01 +0000 UTC)",
        ),
        (
            with("aud", "x".into()),
            "oidc: expected audience in [\"kubernetes\" \"other\"] got [\"x\"]",
        ),
        (with("level", 1.into()), "failed: too low"),
        (
            with("groups", 1.into()),
            "expression must return a string or a list of strings",
        ),
        (with("iss", "https://else".into()), "invalid bearer token"),
        ("nonsense".into(), "invalid bearer token"),
    ] {
        let said = api.refusal(&token).await;
        assert!(said.contains(why), "{said}");
        assert_eq!(api.outside("/version", Some(&token)).await, 401);
    }
    let unaware = api.review(&good, &["elsewhere"]).await;
    assert_eq!(unaware.get("error"), Some(&"invalid bearer token".into()));

    // A flood of tokens that nobody signed asks the issuer at most once a second.
    let stranger = Key::new("stranger");
    let before = issuer.server.count();
    let began = tokio::time::Instant::now();
    let flood = (0..300).map(|i| {
        let mut claims = claims(&url);
        claims.set_at(&["sub"], i.to_string());
        let token = stranger.sign(claims);
        let api = &api;
        async move { assert_eq!(api.outside("/version", Some(&token)).await, 401) }
    });
    futures::future::join_all(flood).await;
    let fetches = (issuer.server.count() - before) / 2;
    let most = 2 + usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!(fetches <= most, "{fetches} fetches for 300 bad tokens");

    // When the keys were fetched, and which they were.
    let page = |answer: &harness::Answer| String::from_utf8_lossy(&answer.bytes).into_owned();
    let keys_of = |page: &str| {
        let told = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info{";
        page.lines().find(|line| line.starts_with(told)).map(str::to_owned)
    };
    let told = page(&api.get("/metrics").await);
    let first = keys_of(&told).unwrap();
    assert!(
        first.contains("hash=\"sha256:") && first.contains("jwt_issuer_hash=\"sha256:"),
        "{first}"
    );
    let fetched = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_timestamp_seconds{";
    assert!(
        told.lines()
            .any(|line| line.starts_with(fetched) && line.contains("result=\"success\"")),
        "{told}"
    );

    // A new key is found as soon as a token is signed with it.
    let second = Key::new("two");
    issuer.keys.lock().push(second.jwk());
    let token = second.sign(claims(&url));
    let mut code = 0;
    for _ in 0..100 {
        code = api.outside("/version", Some(&token)).await;
        if code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(code, 200);
    assert_ne!(keys_of(&page(&api.get("/metrics").await)), Some(first));

    // A file that is wrong changes nothing, and is counted.
    dir.write("authn.yaml", &configuration(&ca, "http://x", "no:"));
    let failed = "apiserver_authentication_config_controller_automatic_reloads_total{";
    let counted = |page: &str, status: &str| {
        let line = page.lines().find(|l| l.starts_with(failed) && l.contains(status));
        line.is_some_and(|l| !l.ends_with(" 0"))
    };
    let text = |answer: &harness::Answer| String::from_utf8_lossy(&answer.bytes).into_owned();
    api.until("/metrics", |page| counted(&text(page), "failure")).await;
    assert_eq!(api.outside("/version", Some(&token)).await, 200);
    dir.write("authn.yaml", &configuration(&ca, &url, "anew:"));
    api.until("/metrics", |page| counted(&text(page), "success")).await;
    let mut fresh = claims(&url);
    fresh.set_at(&["sub"], "joe");
    let status = api.review(&second.sign(fresh), &[]).await;
    assert_eq!(status.at(&["user", "username"]), Some(&"anew:joe".into()), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_away_keeps_nobody_waiting_and_is_found_when_it_comes() {
    let (ca, key, dir) = (
        Authority::generate("ca").unwrap(),
        Key::new("one"),
        Scratch::new("away"),
    );
    let port = {
        let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        probe.local_addr().unwrap().port()
    };
    let url = format!("https://127.0.0.1:{port}");
    let mut options = authn::Options::default();
    options.oidc.issuer_url = Some(url.clone());
    options.oidc.client_id = Some("kubernetes".into());
    options.oidc.ca_file = Some(dir.write("ca.pem", ca.cert_pem()));
    options.oidc.signing_algs = Some(vec!["ES256".into()]);
    let api = serving(options).await;
    let token = key.sign(claims(&url));
    assert_eq!(api.refusal(&token).await, "oidc: authenticator not initialized");
    assert_eq!(api.outside("/version", Some(&token)).await, 401);
    assert_eq!(api.outside("/version", None).await, 200, "others are served meanwhile");
    let _issuer = Issuer::start(&ca, port, &key).await;
    let mut code = 0;
    for _ in 0..300 {
        code = api.outside("/version", Some(&token)).await;
        if code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(code, 200);
    let status = api.review(&token, &[]).await;
    let name = format!("{url}#jane");
    assert_eq!(status.at(&["user", "username"]), Some(&name.as_str().into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_may_stand_elsewhere() {
    let (ca, key, dir) = (
        Authority::generate("ca").unwrap(),
        Key::new("one"),
        Scratch::new("distributed"),
    );
    let issuer = Issuer::start(&ca, 0, &key).await;
    let url = issuer.url();
    let mut elsewhere = claims(&url);
    elsewhere.set_at(&["groups"], value!(["far"]));
    let answer = key.sign(elsewhere);
    let groups = Outside::start(&ca, 0, move |_, headers, _| {
        match headers.get("authorization").and_then(|h| h.to_str().ok()) {
            Some("Bearer secret") => (200, Vec::new(), answer.clone().into_bytes()),
            _ => (401, Vec::new(), Vec::new()),
        }
    })
    .await;
    let mut options = authn::Options::default();
    options.oidc.issuer_url = Some(url.clone());
    options.oidc.client_id = Some("kubernetes".into());
    options.oidc.ca_file = Some(dir.write("ca.pem", ca.cert_pem()));
    options.oidc.signing_algs = Some(vec!["ES256".into()]);
    options.oidc.groups_claim = Some("groups".into());
    options.oidc.groups_prefix = Some("g:".into());
    let api = serving(options).await;
    let token = |secret: &str| {
        let now = jiff::Timestamp::now().as_second();
        let endpoint = format!("https://127.0.0.1:{}/groups", groups.port);
        key.sign(value!({
            "iss": url.as_str(), "sub": "jane", "aud": ["kubernetes"], "exp": now + 600,
            "_claim_names": {"groups": "far"},
            "_claim_sources": {"far": {"endpoint": endpoint, "access_token": secret}},
        }))
    };
    let good = token("secret");
    let mut status = Value::Null;
    for _ in 0..1000 {
        status = api.review(&good, &[]).await;
        if status.get("authenticated") == Some(&Value::Bool(true)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let wanted = value!(["g:far", "system:authenticated"]);
    assert_eq!(status.at(&["user", "groups"]), Some(&wanted), "{status:?}");
    let said = api.refusal(&token("wrong")).await;
    assert!(
        said.contains("while getting distributed claim \"groups\": error while getting distributed claim JWT: 401"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_knows_tokens_and_is_asked_once_about_each() {
    for version in ["v1", "v1beta1"] {
        let (ca, dir) = (Authority::generate("ca").unwrap(), Scratch::new(version));
        let hook = Outside::start(&ca, 0, move |path, headers, body| {
            assert_eq!(path, "/authenticate");
            assert_eq!(headers.get("authorization").unwrap(), "Bearer hook-secret");
            let review: Value = serde_json::from_slice(body).unwrap();
            let api_version = format!("authentication.k8s.io/{version}");
            assert_eq!(review.get("apiVersion"), Some(&api_version.as_str().into()));
            let token = review.at(&["spec", "token"]).and_then(Value::as_str).unwrap();
            let user = value!({"username": "ann", "uid": "1", "groups": ["a"], "extra": {"k": ["v"]}});
            let status = match token {
                "good" => value!({"authenticated": true, "user": user}),
                "aware" => value!({"authenticated": true, "user": user, "audiences": review.at(&["spec", "audiences"]).unwrap()}),
                "other" => value!({"authenticated": true, "user": user, "audiences": ["elsewhere"]}),
                "revoked" => value!({"authenticated": false, "error": "it was revoked"}),
                "broken" => return (503, Vec::new(), b"down".to_vec()),
                "older" => return json(value!({"apiVersion": "authentication.k8s.io/v0", "kind": "TokenReview"})),
                _ => value!({"authenticated": false}),
            };
            json(value!({"apiVersion": api_version, "kind": "TokenReview", "status": status}))
        })
        .await;
        let server = format!("https://127.0.0.1:{}/authenticate", hook.port);
        let kubeconfig = Kubeconfig::with_token(&server, ca.cert_pem(), "hook", "hook-secret");
        let api = serving(authn::Options {
            webhook: authn::webhook::Options {
                config_file: Some(dir.write("hook.kubeconfig", &kubeconfig.to_yaml())),
                version: Some(version.into()),
                cache_ttl: None,
            },
            ..authn::Options::default()
        })
        .await;
        assert_eq!(api.outside("/version", None).await, 200);
        assert_eq!(hook.count(), 0, "who shows no token is not asked about");
        let all = futures::future::join_all((0..20).map(|_| api.outside("/version", Some("good")))).await;
        assert!(all.iter().all(|code| *code == 200), "{all:?}");
        let once = hook.count();
        // Requests and reviews for the server's own audiences are two questions at most.
        let status = api.review("good", &[]).await;
        assert_eq!(status.at(&["user", "username"]), Some(&"ann".into()));
        assert_eq!(status.at(&["user", "extra", "k"]), Some(&value!(["v"])));
        assert_eq!(status.get("audiences"), Some(&value!([OWN])));
        assert!(once == 1 && hook.count() == 1, "{once}, then {}", hook.count());
        let aware = api.review("aware", &["x", "y"]).await;
        assert_eq!(aware.get("audiences"), Some(&value!(["x", "y"])));
        assert_eq!(api.refusal("other").await, "invalid bearer token");
        assert_eq!(api.refusal("revoked").await, "it was revoked");
        assert_eq!(api.outside("/version", Some("unknown")).await, 401);
        let before = hook.count();
        for _ in 0..50 {
            assert_eq!(api.outside("/version", Some("unknown")).await, 401);
        }
        assert_eq!(hook.count(), before, "a token that nobody knows is remembered");
        assert!(api.refusal("broken").await.contains("an error on the server (down)"));
        assert!(
            api.refusal("older")
                .await
                .contains("no kind \"TokenReview\" is registered")
        );
        let before = hook.count();
        api.refusal("broken").await;
        assert_eq!(hook.count(), before + 1, "a failure isn't remembered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_file_are_its_users() {
    let dir = Scratch::new("named");
    let file = dir.write(
        "tokens.csv",
        "first,ana,uid-1,\"staff,admins\"\nsecond,bob,uid-2\nfirst,carl,uid-3\n",
    );
    let api = serving(authn::Options {
        token_file: Some(file),
        ..authn::Options::default()
    })
    .await;
    let status = api.review("second", &[]).await;
    let wanted = value!({"username": "bob", "uid": "uid-2", "groups": ["system:authenticated"]});
    assert_eq!(status.get("user"), Some(&wanted));
    // Of two that are the same the last counts.
    let status = api.review("first", &[]).await;
    assert_eq!(status.at(&["user", "username"]), Some(&"carl".into()));
    // For this API, and no other.
    let elsewhere = api.review("second", &["https://elsewhere"]).await;
    assert_ne!(elsewhere.get("authenticated"), Some(&Value::Bool(true)));
    let unknown = api.review("third", &[]).await;
    assert_ne!(unknown.get("authenticated"), Some(&Value::Bool(true)));

    let refused = |text: &str| {
        let options = authn::Options {
            token_file: Some(dir.write("wrong.csv", text)),
            ..authn::Options::default()
        };
        options.resolve(&[]).unwrap_err().to_string()
    };
    assert!(refused("a,b\n").contains("must have at least 3 columns (token, user name, user uid), found 2"));
}
