//! What is damaged: a few sound documents of each kind.

use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{Format, Strictness, decode_text, proto};
use keelson_pki::jwt::LegacyClaims;
use keelson_pki::x509::pem;
use keelson_pki::{Authority, CertSpec, Claims, Kubeconfig, San, ServiceAccountKeys};
use std::sync::LazyLock;

pub const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p\u00e9","labels":{"a":"b"},"creationTimestamp":"2026-11-28T00:00:00Z"},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1.5","memory":"1Gi"}}}],"terminationGracePeriodSeconds":30}}"#;

fn all(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|t| t.as_bytes().to_vec()).collect()
}

pub fn json() -> Vec<Vec<u8>> {
    all(&[
        POD,
        r#"[1, -2.5e10, "\ud83d\ude00", null, true, {"a": {"b": [[]]}}, 9223372036854775807, 1e400]"#,
    ])
}

pub fn yaml() -> Vec<Vec<u8>> {
    all(&[
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: &l {a: \"b\", c: 'd'}, annotations: *l}\nspec:\n  containers:\n  - name: c\n    command: [sh, -c, \"exit 0\"]\n    args:\n    - |\n      text\n    - >-\n      folded\n  # a remark\n  dnsPolicy: ~\n",
        "? [complex, key]\n: !!str 0o17\n---\n<<: {a: 1}\nb: !!binary aGk=\n...\n",
    ])
}

pub fn protobuf() -> Vec<Vec<u8>> {
    let schema = builtin_kind_at("v1", "Pod").unwrap();
    let pod = decode_text(POD.as_bytes(), Format::Json, Some(&schema), Strictness::Lenient).unwrap();
    let map = pod.value.as_object().unwrap();
    let message = proto::encode_message(map, &schema).unwrap();
    let whole = proto::encode(map, &schema).unwrap();
    vec![message, proto::watch_frame("ADDED", &whole), whole]
}

pub fn patches() -> Vec<Vec<u8>> {
    all(&[
        r#"[{"op":"add","path":"/spec/containers/-","value":{"name":"d"}},{"op":"test","path":"/metadata/name","value":"p"},{"op":"move","from":"/metadata/labels","path":"/metadata/annotations"},{"op":"copy","from":"/spec","path":"/x"},{"op":"remove","path":"/spec/containers/0"}]"#,
        r#"{"metadata":{"labels":{"a":null,"c":"d"}},"spec":{"containers":[{"name":"c","$patch":"delete"}],"$setElementOrder/containers":[{"name":"c"}],"$retainKeys":["containers"]}}"#,
        r#"{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}},"v:\"x\"":{},"i:3":{}}}"#,
    ])
}

pub fn expressions() -> Vec<Vec<u8>> {
    all(&[
        "[1, 2, 3].map(x, x * 2).exists(y, y > 3) && 'abc'.matches('^a.c$') ? size({'a': 1}) : 2u + 3u",
        "'%s has %d (%.2f)'.format(['a', 3, 1.5]) + b'\\xff' == timestamp('2026-01-01T00:00:00Z').getFullYear()",
        "quantity('1.5Gi').isGreaterThan(quantity('1')) || ip('10.0.0.1').family() == 4 || cidr('10.0.0.0/8').containsIP('10.1.1.1') || optional.of(1).orValue(2) in [1]",
        "device.driver == 'd.example.com' && device.attributes['d.example.com'].name.matches('^a') && device.allowMultipleAllocations",
        "cel.bind(x, device.attributes['x.example.com'], x.?v.orValue(semver('1.0.0')).isGreaterThan(semver('1.2.0')))",
        "device.capacity['d.example.com'].memory.compareTo(quantity('1Gi')) >= 0 || device.attributes.all(d, size(d) > 1)",
    ])
}

pub fn selectors() -> Vec<Vec<u8>> {
    all(&[
        "app in (a, b),!gone,tier notin (x),env=prod,n>3,example.org/k!=v",
        "metadata.name=a\\,b,spec.nodeName!=n1,status.phase==Running",
        "{.items[?(@.a==\"b\")].c[0:2]}{range .x[*]}{.y}{end}",
    ])
}

pub fn small_texts() -> Vec<Vec<u8>> {
    all(&[
        "1.5Gi",
        "-100m",
        "1e-3",
        "*/5 0-23/2 1,15 * MON-FRI",
        "@every 1h30m",
        "TZ=Europe/Berlin 0 0 31 2 *",
        "abcdef.0123456789abcdef",
    ])
}

pub fn certificates() -> Vec<Vec<u8>> {
    let ca = Authority::generate("kubernetes").unwrap();
    let issued = ca
        .issue(&CertSpec::server(
            "host",
            vec![San::parse("10.0.0.1"), San::parse("a.example.org")],
        ))
        .unwrap();
    let mut found: Vec<Vec<u8>> = [ca.cert_pem(), &issued.cert_pem]
        .iter()
        .flat_map(|p| pem::certificates(p.as_bytes()))
        .collect();
    found.push(issued.cert_pem.into_bytes());
    found
}

/// One pair for all rounds: making one takes long.
pub fn keys() -> &'static ServiceAccountKeys {
    static KEYS: LazyLock<ServiceAccountKeys> = LazyLock::new(|| ServiceAccountKeys::generate().unwrap());
    &KEYS
}

pub fn tokens() -> &'static [String] {
    static TOKENS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let claims = Claims {
            iss: "https://kubernetes.default.svc".into(),
            sub: "system:serviceaccount:default:default".into(),
            exp: Some(5000),
            ..Claims::default()
        };
        let legacy = LegacyClaims::new("default", "robot", "uid", "robot-token");
        vec![keys().sign(&claims).unwrap(), keys().sign_legacy(&legacy).unwrap()]
    });
    &TOKENS
}

pub fn jwt() -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = tokens().iter().map(|t| t.as_bytes().to_vec()).collect();
    found.push(keys().jwks().to_string().into_bytes());
    found
}

pub fn kubeconfigs() -> Vec<Vec<u8>> {
    vec![
        Kubeconfig::with_token("https://10.0.0.1:6443", "the CA", "admin", "a token")
            .to_yaml()
            .into_bytes(),
    ]
}
