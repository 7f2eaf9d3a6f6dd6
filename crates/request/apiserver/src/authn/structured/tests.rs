//! Upstream's own table of configurations, with what its validation says of each.

use super::*;

#[test]
fn configurations_are_taken_and_refused_as_upstream_does() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("upstream.jsonl").lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = case["name"].as_str().unwrap();
        let written = Written::parse(&case["in"].to_string()).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let own: Vec<String> = serde_json::from_value(case["disallowed"].clone()).unwrap_or_default();
        let (trusted, causes) = validate::all(&written, &own);
        let said = match causes.is_empty() {
            true => String::new(),
            false => aggregate(&causes),
        };
        let wanted = case["want"].as_str().unwrap();
        if said != wanted {
            wrong.push(format!("{name}\n  wanted {wanted}\n  said   {said}"));
        }
        if wanted.is_empty() {
            assert_eq!(
                trusted.len(),
                written.jwt.as_deref().unwrap_or_default().len(),
                "{name}"
            );
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 100);
}

#[test]
fn only_this_kind_of_file_is_read_and_every_word_in_it_is_known() {
    let read = |text: &str| Written::parse(text).map_err(|e| format!("{e:#}"));
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/{version}\nkind: AuthenticationConfiguration\nanonymous: {{enabled: true, conditions: [{{path: /livez}}]}}\n"
        );
        let written = read(&text).unwrap();
        let anonymous = written.anonymous.unwrap();
        assert!(anonymous.takes("/livez") && !anonymous.takes("/livez/") && !anonymous.takes("/api"));
    }
    assert_eq!(read("").unwrap_err(), "empty config data");
    let other = read("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n").unwrap_err();
    assert!(other.contains("no kind \"AuthorizationConfiguration\""), "{other}");
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
    for (rest, word) in [
        ("jwts: []\n", "jwts"),
        ("jwt: [{issuer: {uri: x}}]\n", "uri"),
        ("jwt: [{claimMappings: {user: {}}}]\n", "user"),
        ("jwt: {}\n", ""),
    ] {
        let said = read(&format!("{head}{rest}")).unwrap_err();
        assert!(said.contains(word), "{said}");
    }
}
