use super::*;
use crate::structural::Structural;
use crate::testing::pod_like;
use keelson_api::{Value, value};

fn run(source: &str) -> Result<Value, String> {
    let p = compile(source, &Env::default())?;
    let none: BTreeMap<&str, Val> = BTreeMap::new();
    p.eval(&none, PER_CALL_LIMIT)
        .0
        .and_then(|v| v.to_json())
        .map_err(|e| e.message)
}

#[test]
fn operators_and_functions() {
    for (source, want) in [
        ("1 + 2 * 3 - 4 / 2 % 3", value!(5)),
        ("'a' + 'b' == 'ab' && !(1 > 2)", value!(true)),
        ("[1, 2, 3].map(x, x * 2)", value!([2, 4, 6])),
        ("[1, 2, 3].filter(x, x > 1)", value!([2, 3])),
        (
            "[1, 2, 3].exists(x, x == 2) && [1, 2].all(x, x > 0) && [1, 2].exists_one(x, x == 1)",
            value!(true),
        ),
        ("{'a': 1, 'b': 2}.map(k, k)", value!(["a", "b"])),
        ("has({'a': 1}.a) && !has({'a': 1}.b)", value!(true)),
        ("1 in [1, 2] && 'a' in {'a': 1}", value!(true)),
        ("true || 1 / 0 == 1", value!(true)),
        ("[0, 1].exists(x, 1 / x == 1)", value!(true)),
        ("size('héllo') + size([1]) + {'a': 1}.size()", value!(7)),
        ("'abc'.substring(1) + 'abc'.substring(0, 1)", value!("bca")),
        ("'a,b,c'.split(',')", value!(["a", "b", "c"])),
        ("['a', 'b'].join('-')", value!("a-b")),
        ("'abc'.indexOf('c') + 'abcabc'.lastIndexOf('b')", value!(6)),
        (
            "'Hello'.lowerAscii() + 'x'.upperAscii() + ' y '.trim()",
            value!("helloXy"),
        ),
        ("'a1b22'.findAll('[0-9]+')", value!(["1", "22"])),
        ("'abc'.matches('^a.c$')", value!(true)),
        (
            "'%s has %d (%.2f) %x'.format(['a', 3, 1.5, 255])",
            value!("a has 3 (1.50) ff"),
        ),
        ("[3, 1, 2].sum() + [3, 1].min() + [3, 1].max()", value!(10)),
        ("[1, 2, 2].isSorted() && ![2, 1].isSorted()", value!(true)),
        ("[3, 1, 2].sort()", value!([1, 2, 3])),
        ("['bb', 'a'].sortBy(x, size(x))", value!(["a", "bb"])),
        ("[[1], [2, 3]].flatten()", value!([1, 2, 3])),
        ("[1, 2, 1].distinct()", value!([1, 2])),
        ("[1, 2, 3].transformList(i, v, i * v)", value!([0, 2, 6])),
        ("{'a': 1}.transformMap(k, v, v + 1)", value!({"a": 2})),
        ("[1, 2].all(i, v, v == i + 1)", value!(true)),
        (
            "sets.contains([1, 2], [2]) && sets.intersects([1], [1, 3]) && sets.equivalent([1, 1], [1])",
            value!(true),
        ),
        (
            "string(1) + string(1.5) + string(true) + string(2u)",
            value!("11.5true2"),
        ),
        ("int('7') + int(3.9) + int(2u)", value!(12)),
        ("duration('1h30m').getMinutes()", value!(90)),
        ("timestamp('2030-01-02T03:04:05Z').getFullYear()", value!(2030)),
        ("timestamp('2030-01-02T03:04:05Z').getHours('+02:00')", value!(5)),
        (
            "timestamp('2030-01-01T00:00:10Z') - timestamp('2030-01-01T00:00:00Z') == duration('10s')",
            value!(true),
        ),
        (
            "type(1) == int && type('a') == string && type([]) == list",
            value!(true),
        ),
        (
            "quantity('1Gi').isGreaterThan(quantity('500M')) && isQuantity('1') && !isQuantity('x')",
            value!(true),
        ),
        (
            "quantity('50k').add(20).compareTo(quantity('50020')) == 0",
            value!(true),
        ),
        (
            "url('https://a.b:80/c?d=e&d=f').getHostname() + url('https://a.b:80/c').getPort()",
            value!("a.b80"),
        ),
        ("url('https://a/?d=e&d=f').getQuery()['d'].size()", value!(2)),
        (
            "ip('10.0.0.1').family() == 4 && ip('::1').isLoopback() && isIP('1.2.3.4') && !isIP('x')",
            value!(true),
        ),
        (
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
            value!(true),
        ),
        (
            "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('1.0.0') && !isSemver('1.0')",
            value!(true),
        ),
        ("format.dns1123Label().validate('a-b').hasValue()", value!(false)),
        (
            "format.named('dns1123Label').value().validate('A').hasValue()",
            value!(true),
        ),
        ("optional.of(1).orValue(2) + optional.none().orValue(3)", value!(4)),
        (
            "{'a': {'b': 1}}.?a.?b.orValue(0) + {'a': 1}[?'x'].orValue(5)",
            value!(6),
        ),
        ("optional.of(2).optMap(x, x * 2).value()", value!(4)),
        ("[?optional.of(1), ?optional.none()].size()", value!(1)),
        ("1 < 1.5 && 2u > 1", value!(true)),
        ("dyn(1) == 1.0", value!(true)),
        ("b'abc' == bytes('abc')", value!(true)),
        ("r'\\d' + \"\\u00e9\"", value!("\\dé")),
        ("[1, 2, 3][1] + {'a': 5}['a']", value!(7)),
        (
            "Object{spec: Object.spec{replicas: 3, ?none: optional.none()}}",
            value!({"spec": {"replicas": 3}}),
        ),
        (
            "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: {'x': 1}}]",
            value!([{"op": "add", "path": "/metadata/labels/a~1b", "value": {"x": 1}}]),
        ),
    ] {
        assert_eq!(run(source), Ok(want), "{source}");
    }
}

#[test]
fn evaluation_errors() {
    for (source, want) in [
        ("1 / 0", "division by zero"),
        ("[1][2]", "index out of bounds: 2"),
        ("{'a': 1}['b']", "no such key: b"),
        ("dyn('a') + dyn(1)", "no such overload"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("[].max()", "max called on empty list"),
        ("int('x')", "strconv.ParseInt: parsing \"x\": invalid syntax"),
    ] {
        assert_eq!(run(source), Err(want.to_string()), "{source}");
    }
}

#[test]
fn checking_names_the_place() {
    let schema = pod_like();
    let env = Env::default().with("object", Ty::of_schema(&schema));
    for (source, want) in [
        ("object.spec.replicas > 1", None),
        ("object.spec.containers.all(c, c.image.startsWith('x'))", None),
        (
            "object.metadata.labels['a'] == 'b' && object.metadata.?labels.hasValue()",
            None,
        ),
        (
            "object.spec.replicas > '1'",
            Some("found no matching overload for '_>_' applied to '(int, string)'"),
        ),
        (
            "'got ' + object.spec.replicas",
            Some("found no matching overload for '_+_' applied to '(string, int)'"),
        ),
        ("object.spec.maxRetries < 10", Some("undefined field 'maxRetries'")),
        (
            "object.spec.replicas.foo()",
            Some("undeclared reference to 'foo' (in container '')"),
        ),
        ("nope == 1", Some("undeclared reference to 'nope' (in container '')")),
        (
            "object.spec.replicas.size()",
            Some("found no matching overload for 'size' applied to 'int.()'"),
        ),
        (
            "1 == 'a'",
            Some("found no matching overload for '_==_' applied to '(int, string)'"),
        ),
        ("[1, 'a']", Some("expected type 'int' but found 'string'")),
        (
            "object.spec.replicas.x",
            Some("type 'int' does not support field selection"),
        ),
    ] {
        match (compile(source, &env), want) {
            (Ok(_), None) => {}
            (Err(e), Some(want)) => assert!(e.contains(want), "{source}: {e}"),
            (got, _) => panic!("{source}: {got:?}"),
        }
    }
    assert_eq!(
        compile("object.spec.z == 1", &env).unwrap_err(),
        "ERROR: <input>:1:12: undefined field 'z'\n | object.spec.z == 1\n | ...........^"
    );
    let e = compile("self = 42", &env).unwrap_err();
    assert!(e.starts_with("ERROR: <input>:1:6: Syntax error:"), "{e}");
}

#[test]
fn values_are_read_in_place() {
    let object = value!({"spec": {"replicas": 3, "containers": [{"name": "a"}]}});
    let env = Env::default().with("object", Ty::Dyn);
    let p = compile(
        "object.spec.replicas == 3 && object.spec.containers.map(c, c.name) == ['a']",
        &env,
    )
    .unwrap();
    assert!(p.uses("object") && !p.uses("oldObject"));
    let vars = BTreeMap::from([("object", Val::of_json(&object, None))]);
    let (out, cost) = p.eval(&vars, PER_CALL_LIMIT);
    assert!(out.unwrap().as_bool().unwrap());
    assert!(cost > 5 && cost < 60, "{cost}");
    let (out, _) = p.eval(&vars, 3);
    assert!(out.unwrap_err().fatal);
}

fn crd() -> Structural {
    Structural::parse(&value!({"type": "object", "properties": {
        "spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.x + self.y > 0"},
                {"rule": "self.firstArray.isSorted() && self.firstArray.sum() % 2 == 0"},
                {"rule": "self.largeArray.all(x, self.largeArray.all(y, y == x))"}],
            "properties": {
                "x": {"type": "integer"}, "y": {"type": "integer"},
                "firstArray": {"type": "array", "maxItems": 1000, "items": {"type": "integer"}},
                "largeArray": {"type": "array", "maxItems": 725, "items": {"type": "integer"}},
                "num": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > oldSelf", "message": "must grow"}]}}}}}))
}

fn texts(causes: Vec<keelson_api::Cause>) -> Vec<String> {
    causes
        .into_iter()
        .map(|c| format!("{}: {}", c.field, c.message))
        .collect()
}

#[test]
fn rules_of_custom_resources() {
    let s = crd();
    assert_eq!(texts(rules::check(&s, "schema")), Vec::<String>::new());
    let r = rules::Rules::new(&s, true).unwrap();
    let good = value!({"spec": {"x": 1, "y": 2, "firstArray": [1, 3], "largeArray": [1], "num": 10}});
    assert!(r.validate(&good, None, &s).is_empty());
    let bad = value!({"spec": {"x": 0, "y": 0, "firstArray": [3, 1], "largeArray": [1]}});
    assert_eq!(
        texts(r.validate(&bad, None, &s)),
        [
            "spec: Invalid value: failed rule: self.x + self.y > 0",
            "spec: Invalid value: failed rule: self.firstArray.isSorted() && self.firstArray.sum() % 2 == 0",
        ]
    );
    let shrunk = value!({"spec": {"x": 1, "y": 2, "firstArray": [1, 3], "largeArray": [1], "num": 9}});
    assert_eq!(
        texts(r.validate(&shrunk, Some(&good), &s)),
        ["spec.num: Invalid value: 9: must grow"]
    );
    let missing = value!({"spec": {"x": 1, "y": 2, "largeArray": [1]}});
    assert_eq!(
        texts(r.validate(&missing, None, &s)),
        [
            "spec: Invalid value: \"object\": no such key: firstArray evaluating rule: self.firstArray.isSorted() && self.firstArray.sum() % 2 == 0"
        ]
    );
    let many: Vec<i64> = vec![20; 725];
    let heavy = value!({"spec": {"x": 1, "y": 2, "firstArray": [], "largeArray": many}});
    let got = texts(r.validate(&heavy, None, &s));
    assert!(got[0].contains("call cost exceeds limit"), "{got:?}");
}

#[test]
fn the_length_of_a_maps_keys_costs_nothing() {
    // As the Gateway API's definitions have it.
    let of = |rule: &str| {
        let schema = value!({"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 4096},
            "x-kubernetes-validations": [{"rule": rule}]});
        texts(rules::check(&Structural::parse(&schema), "schema"))
    };
    let named = r#"self.all(key, key.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$'))"#;
    assert_eq!(of(named), [""; 0]);
    assert_eq!(of("self.all(key, key.split('/')[0].size() < 253)"), [""; 0]);
}

#[test]
fn broken_and_costly_rules_are_refused() {
    let refused = |schema: Value| texts(rules::check(&Structural::parse(&schema), "schema")).join("\n");
    let with = |rule: &str| value!({"type": "object", "properties": {"x": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": rule}]});
    assert!(refused(with("self.z == 100")).contains("undefined field 'z'"));
    assert!(refused(with("self = 42")).contains("Syntax error"));
    assert!(refused(with("self.x")).contains("cel expression must evaluate to a bool"));
    let nested = value!({"type": "object", "properties": {"x": {"type": "array", "items": {"type": "array", "items": {"type": "string"},
        "x-kubernetes-validations": [{"rule": "self.all(s, s == 'string constant')"}]}}}});
    let got = refused(nested);
    assert!(
        got.contains("estimated rule cost exceeds budget by factor of more than 100x"),
        "{got}"
    );
    let loose = value!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 3, "items": {"type": "integer",
        "x-kubernetes-validations": [{"rule": "self > oldSelf"}]}}}});
    assert!(refused(loose).contains("oldSelf cannot be used on the uncorrelatable portion"));
}

#[test]
fn constants_are_checked_when_compiling() {
    for (source, why) in [
        ("'x'.matches(')')", "<input>:1:13: invalid matches argument"),
        ("'x'.matches('x++')", "<input>:1:13: invalid matches argument"),
        (
            "duration('1d') == duration('1s')",
            "<input>:1:10: invalid duration argument",
        ),
        (
            "timestamp('1000-00-00T00:00:00Z')",
            "<input>:1:11: invalid timestamp argument",
        ),
        (
            "{'a': 'x', 'b': 1, 'c': false}",
            "expected type 'string' but found 'bool'",
        ),
    ] {
        let said = run(source).unwrap_err();
        assert!(said.contains(why), "{source}: {said}");
    }
    for fine in ["'x'.matches('x+?')", "'(a'.matches('[(]a')", "'a'.matches('(?i)A')"] {
        assert_eq!(run(fine), Ok(value!(true)), "{fine}");
    }
}

#[test]
fn addresses_are_read_as_the_server_reads_them() {
    for (source, want) in [
        ("isURL('https://a:b:c/')", value!(false)),
        ("isURL('kubernetes.io')", value!(false)),
        ("url('https:://kubernetes.io/').getHostname()", value!("")),
        (
            "url('https://example.com/with space/').getEscapedPath()",
            value!("/with%20space/"),
        ),
        ("url('https://[::1]:80/a%20b').getEscapedPath()", value!("/a%20b")),
        (
            "type(ip('10.0.0.1')) == net.IP && type(url('/a')) == kubernetes.URL",
            value!(true),
        ),
        ("'%e'.format([3.14])", value!("3.140000×10⁰⁰")),
        ("duration('1h2m3s4ms').getMilliseconds()", value!(3723004)),
    ] {
        assert_eq!(run(source), Ok(want), "{source}");
    }
}

#[test]
fn united_lists_stay_what_they_are_and_null_is_absent() {
    let s = Structural::parse(&value!({"type": "object",
    "x-kubernetes-validations": [
        {"rule": "self.l + [self.l[0]] == self.l && !has(self.gone) && has(self.e.metadata.namespace)"},
        {"rule": "self.d.sum() == duration('0')"}
    ],
    "properties": {
        "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
        "d": {"type": "array", "items": {"type": "string", "format": "duration"}},
        "gone": {"type": "string", "nullable": true},
        "e": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {
                "name": {"type": "string"}, "generateName": {"type": "string"}, "namespace": {"type": "string"}}}}}
    }}));
    let v =
        value!({"l": [{"k": "b"}, {"k": "a"}], "d": [], "gone": Value::Null, "e": {"metadata": {"namespace": "n"}}});
    let rules = rules::Rules::new(&s, false).unwrap();
    assert_eq!(texts(rules.validate(&v, None, &s)), Vec::<String>::new());
}

#[test]
fn what_did_not_change_may_stay_wrong() {
    let odd = value!([{"rule": "self % 2 == 1", "message": "odd"}]);
    let s = Structural::parse(&value!({"type": "object", "properties": {
        "apiVersion": {"type": "string", "x-kubernetes-validations": [{"rule": "self == 'v1'"}]},
        "n": {"type": "integer", "x-kubernetes-validations": odd.clone()},
        "plain": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": odd.clone()}},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
            "type": "object", "properties": {"k": {"type": "string"}, "n": {"type": "integer", "x-kubernetes-validations": odd}}}}
    }}));
    let rules = rules::Rules::new(&s, true).unwrap();
    let said = |new: &Value, old: &Value| texts(rules.validate(new, Some(old), &s));
    let old = value!({"apiVersion": "v2", "n": 2, "plain": [2, 4], "keyed": [{"k": "a", "n": 2}]});
    assert_eq!(
        said(&old, &old),
        ["apiVersion: Invalid value: \"v2\": failed rule: self == 'v1'"]
    );
    let new = value!({"n": 4, "plain": [2, 4], "keyed": [{"k": "b", "n": 4}, {"k": "a", "n": 2}]});
    assert_eq!(
        said(&new, &old),
        ["keyed[0].n: Invalid value: 4: odd", "n: Invalid value: 4: odd"]
    );
    // Elements without keys are as new as their list.
    let new = value!({"n": 2, "plain": [2], "keyed": []});
    assert_eq!(said(&new, &old), ["plain[0]: Invalid value: 2: odd"]);
}

#[test]
fn rules_within_all_of_are_about_the_same_value() {
    let s = Structural::parse(
        &value!({"type": "object", "properties": {"a": {"type": "string"}, "l": {"type": "array", "items": {"type": "string"}}},
        "allOf": [
            {"x-kubernetes-validations": [{"rule": "self.a == 'x'", "message": "must be x"}]},
            {"properties": {"l": {"items": {"x-kubernetes-validations": [{"rule": "self != ''", "message": "must not be empty"}]}}}}
        ]}),
    );
    let rules = rules::Rules::new(&s, false).unwrap();
    assert_eq!(
        texts(rules.validate(&value!({"a": "y", "l": ["b", ""]}), None, &s)),
        [
            "<nil>: Invalid value: must be x",
            "l[1]: Invalid value: \"\": must not be empty"
        ]
    );
}

#[test]
fn deep_expressions_are_refused_and_not_run_into() {
    for source in [
        vec!["1"; 3000].join("+"),
        format!("{{}}{}", ".a".repeat(3000)),
        format!("{{}}{}", "['a']".repeat(3000)),
        format!("''{}", ".trim()".repeat(3000)),
        format!("{}1{}", "(".repeat(3000), ")".repeat(3000)),
        format!("{}1{}", "[".repeat(40_000), "]".repeat(40_000)),
    ] {
        assert!(compile(&source, &Env::default()).is_err());
    }
    let sum = vec!["1"; 90].join("+");
    assert_eq!(run(&format!("{sum} == 90")), Ok(value!(true)));
    assert_eq!(run(&vec!["true"; 3000].join(" && ")), Ok(value!(true)));
}

#[test]
fn types_that_nothing_has_bound_are_those_of_their_first_use() {
    let env = Env::default().with("claims", Ty::map(Ty::String, Ty::Dyn));
    for (source, ty) in [
        ("claims[?'a']['b'].orValue(true)", "bool"),
        ("optional.none().orValue(1)", "int"),
        ("claims.?a.orValue(true)", "dyn"),
        ("claims.a.b", "dyn"),
        ("claims.?a.?b.orValue('x')", "dyn"),
        ("true ? claims.a : true", "dyn"),
    ] {
        assert_eq!(compile(source, &env).unwrap().ty.to_string(), ty, "{source}");
    }
}
