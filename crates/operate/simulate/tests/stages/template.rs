//! Templates.

use keelson_simulate::stages::template::{Functions, Template};
use serde_json::json;

struct World;

impl Functions for World {
    fn now(&self) -> String {
        "2030-01-01T00:00:00Z".into()
    }
    fn start_time(&self) -> String {
        "2029-12-31T00:00:00Z".into()
    }
    fn node_name(&self) -> String {
        "n".into()
    }
    fn node_ips(&self, node: &str) -> Vec<String> {
        vec![format!("ip-of-{node}")]
    }
    fn pod_ips(&self, node: &str, uid: &str) -> Vec<String> {
        vec![format!("{node}-{uid}")]
    }
}

fn render(text: &str) -> Result<String, String> {
    let object = json!({
        "metadata": {"name": "web", "annotations": {"a/b": "c"}},
        "spec": {"nodeName": "n", "list": [{"x": 1}, {"x": 2}], "none": []}
    });
    Template::parse(text)?.render(&object, &World)
}

#[test]
fn actions_give_what_go_gives() {
    for (text, wanted) in [
        ("a {{ .metadata.name }} b", "a web b"),
        ("{{ .metadata.other }}", "<no value>"),
        ("{{ $n := .metadata.name }}{{ $n | Quote }}", "\"web\""),
        ("{{ Quote 3 }}", "\"3\""),
        ("{{ if .spec.none }}a{{ else if .spec.list }}b{{ else }}c{{ end }}", "b"),
        ("{{ range .spec.list }}{{ .x }},{{ end }}", "1,2,"),
        (
            "{{ range $i, $v := .spec.list }}{{ $i }}:{{ $v.x }} {{ end }}",
            "0:1 1:2 ",
        ),
        ("{{ range .spec.none }}a{{ else }}b{{ end }}", "b"),
        ("{{ with .spec.none }}a{{ else }}b{{ end }}", "b"),
        ("{{ with .metadata }}{{ .name }}{{ $.spec.nodeName }}{{ end }}", "webn"),
        (
            "{{ $a := false }}{{ range .spec.list }}{{ if eq .x 2 }}{{ $a = true }}{{ end }}{{ end }}{{ $a }}",
            "true",
        ),
        ("{{ or (not .spec.list) (eq 1 2) `x` }}", "x"),
        ("{{ and .spec.list .spec.none }}", "[]"),
        ("{{ index .metadata.annotations \"a/b\" }}", "c"),
        ("{{ index .spec.list 1 }}", "map[x:2]"),
        ("{{ (index .spec.list 1).x }}", "2"),
        ("{{ printf \"%s-%d%%\" .metadata.name 5 }}", "web-5%"),
        ("a  {{- .metadata.name -}}  b{{/* said */}}", "awebb"),
        ("{{ `}}` }}", "}}"),
        ("{{ Now }}", "2030-01-01T00:00:00Z"),
        ("{{ NodeIPWith .spec.nodeName }} {{ NodeIP }}", "ip-of-n ip-of-n"),
        (
            "{{ index (PodIPsWith .spec.nodeName (or .spec.hostNetwork false) \"u\" \"\" \"\") 0 }}",
            "n-u",
        ),
        ("{{ PodIPWith .spec.nodeName true \"u\" \"\" \"\" }}", "ip-of-n"),
        ("{{ len .spec.list }} {{ default 3 .spec.none }}", "2 3"),
    ] {
        assert_eq!(render(text).as_deref(), Ok(wanted), "{text}");
    }
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (text, why) in [
        ("{{ upper .metadata.name }}", "upper"),
        ("{{ template \"x\" }}", "template"),
        ("{{ if .a }}", "{{end}} is missing"),
        ("{{ end }}", "without a beginning"),
        ("{{ .a ", "}} is missing"),
        ("{{ .a .b }}", "only functions"),
        ("{{ (.a }}", "isn't closed"),
        ("{{ ~ }}", "'~'"),
        ("{{ printf \"%x\" 1 }}", "%x"),
        ("{{ $x }}", "undefined variable $x"),
        ("{{ index .spec.list 7 }}", "no item 7"),
        ("{{ eq 1 }}", "eq"),
    ] {
        let error = render(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    let deep = "{{ if 1 }}".repeat(100) + &"{{ end }}".repeat(100);
    assert!(render(&deep).unwrap_err().contains("deeper"));
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(100), ")".repeat(100));
    assert!(render(&nested).unwrap_err().contains("deeper"));
}

#[test]
fn a_template_comes_to_an_end() {
    let loops = format!("{}x{}", "{{ range $.spec.list }}".repeat(20), "{{ end }}".repeat(20));
    let doubled = format!("{{{{ $x := `x` }}}}{}", "{{ $x = printf `%s%s` $x $x }}".repeat(40));
    for (text, why) in [(loops, "steps"), (doubled, "bytes")] {
        let error = render(&text).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn what_is_given_is_read_as_yaml() {
    let text = "conditions:\n{{ range NodeConditions }}\n- type: {{ .type | Quote }}\n  status: {{ .status | Quote }}\n{{ end }}\nspec:\n{{ YAML .spec.list 1 }}\n";
    let value = Template::parse(text)
        .unwrap()
        .value(&json!({"spec": {"list": [{"x": 1}]}}), &World)
        .unwrap();
    assert_eq!(value["conditions"][0], json!({"type": "Ready", "status": "True"}));
    assert_eq!(value["conditions"].as_array().map(Vec::len), Some(5));
    assert_eq!(value["spec"], json!([{"x": 1}]));
}
