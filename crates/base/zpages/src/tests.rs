//! Forms are held to what kube-apiserver 1.37.2 answers.

use super::*;

const PATHS: [&str; 8] = [
    "/apis",
    "/.well-known/openid-configuration",
    "/healthz",
    "/healthz/ping",
    "/livez",
    "/metrics/slis",
    "/version",
    "/",
];

fn pages() -> Pages {
    let flags = [("a", "1"), ("b-list", "[x,y]")].map(|(k, v)| (k.to_string(), v.to_string()));
    Pages::new("apiserver", "v1.37.2", PATHS, Some(Arc::new(flags.into())))
}

fn ask(path: &str, accept: &str) -> Answer {
    let asked = Asked {
        path,
        accept: Some(accept),
        ..Asked::default()
    };
    pages().answer(&asked).unwrap()
}

#[test]
fn the_kinds_are_asked_for_by_name_and_version() {
    let beta = ask("/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Flagz");
    assert_eq!(
        (beta.status, beta.content_type.as_str(), beta.warning.as_deref()),
        (200, "application/json;g=config.k8s.io;v=v1beta1;as=Flagz", None)
    );
    assert_eq!(
        beta.body,
        "{\"kind\":\"Flagz\",\"apiVersion\":\"config.k8s.io/v1beta1\",\"metadata\":{\"name\":\"apiserver\"},\
         \"flags\":{\"a\":\"1\",\"b-list\":\"[x,y]\"}}\n"
    );
    let alpha = ask("/statusz", "application/json;as=Statusz;g=config.k8s.io;v=v1alpha1");
    assert_eq!(
        alpha.warning.as_deref(),
        Some("299 - \"This version of the statusz endpoint is deprecated. Please use a newer version.\"")
    );
    let told: serde_json::Value = serde_json::from_str(&alpha.body).unwrap();
    assert_eq!(told["apiVersion"], "config.k8s.io/v1alpha1");
    assert_eq!(told["binaryVersion"], "1.37.2");
    assert_eq!(told["emulationVersion"], "1.37");
    assert_eq!(
        told["paths"],
        serde_json::json!(["/flagz", "/healthz", "/livez", "/metrics", "/statusz", "/version"])
    );
    assert!(told["uptimeSeconds"].as_i64().unwrap() >= 0 && told["startTime"].as_str().unwrap().ends_with('Z'));
    let order: Vec<usize> = [
        "kind",
        "apiVersion",
        "metadata",
        "startTime",
        "uptimeSeconds",
        "goVersion",
        "paths",
    ]
    .iter()
    .map(|field| alpha.body.find(&format!("\"{field}\"")).unwrap())
    .collect();
    assert!(order.is_sorted(), "{}", alpha.body);
    let yaml = ask("/statusz", "application/yaml;v=v1beta1;g=config.k8s.io;as=Statusz").body;
    assert!(
        yaml.starts_with("apiVersion: config.k8s.io/v1beta1\nbinaryVersion: ") && yaml.contains("\nkind: Statusz\n"),
        "{yaml}"
    );
    assert!(
        yaml.contains("emulationVersion: \"1.37\"\n"),
        "a text, not a number: {yaml}"
    );
}

#[test]
fn people_get_text() {
    for accept in ["", "*/*", "text/plain", "text/*", "text/html, */*;q=0.8"] {
        let answer = ask("/statusz", accept);
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (200, "text/plain; charset=utf-8"),
            "{accept}"
        );
        assert!(
            answer
                .body
                .starts_with("\napiserver statusz\nWarning: This endpoint is not meant to be machine parseable, "),
            "{}",
            answer.body
        );
        assert!(answer.body.contains("/healthz /livez /metrics"), "{}", answer.body);
    }
    let pages = pages();
    let asked = Asked {
        path: "/flagz",
        ..Asked::default()
    };
    let text = |_| pages.answer(&asked).unwrap().body;
    let all: std::collections::BTreeSet<String> = (0..32).map(text).collect();
    assert_eq!(all.len(), 1, "flags are written once: {all:?}");
    let known = ["a:1\nb", "a: 1\nb", "a=1\nb", "a 1\nb"];
    assert!(known.iter().any(|form| all.first().unwrap().contains(form)), "{all:?}");
}

#[test]
fn what_isnt_served_is_refused_as_upstream_refuses_it() {
    let compact = "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"only the following \
                   media types are accepted: application/json, application/yaml, text/plain\",\"reason\":\"NotAcceptable\",\"code\":406}\n";
    assert_eq!(ask("/statusz", "application/json").body, compact);
    // Whose media type isn't there gets JSON as people read it.
    for accept in [
        "text/html",
        "text/plain;as=Statusz",
        "application/vnd.kubernetes.protobuf",
        "application/json;v=v1beta1;g=config.k8s.io;as=Flagz",
        "application/json;v=v1;g=config.k8s.io;as=Statusz",
    ] {
        let answer = ask("/statusz", accept);
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (406, "application/json"),
            "{accept}"
        );
        assert!(
            answer
                .body
                .starts_with("{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {},\n")
                && answer.body.ends_with("\"code\": 406\n}"),
            "{accept}: {}",
            answer.body
        );
    }
    let yaml = ask("/flagz", "application/yaml");
    assert_eq!((yaml.status, yaml.content_type.as_str()), (406, "application/yaml"));
    // One acceptable clause is enough, the most wanted first.
    let either = "application/json;v=v1beta1;g=config.k8s.io;as=Statusz;q=0.5, application/json;v=v1beta1;g=config.k8s.io;as=Flagz";
    assert_eq!(ask("/statusz", either).status, 200);
}

/// What upstream's own handler answers, for headers, `pretty` and agents: three bodies, and who gets which.
#[test]
fn refusals_are_upstreams_to_the_byte() {
    let golden = include_str!("refusals.tsv");
    let rows = || golden.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let bodies: Vec<Vec<&str>> = rows().filter(|row| row.len() == 2).collect();
    let body = |form: &str| -> String {
        let known = bodies.iter().find(|row| row[0] == form).unwrap();
        serde_json::from_str(known[1]).unwrap()
    };
    let mut tried = 0;
    for row in rows().filter(|row| row.len() == 4) {
        let asked = Asked {
            path: "/statusz",
            accept: Some(row[0]),
            agent: row[2],
            pretty: Some(row[1]).filter(|said| *said != "-"),
        };
        let answer = pages().answer(&asked).unwrap();
        assert_eq!((answer.status, answer.body), (406, body(row[3])), "{row:?}");
        let media = if row[3] == "yaml" {
            "application/yaml"
        } else {
            "application/json"
        };
        assert_eq!(answer.content_type, media, "{row:?}");
        tried += 1;
    }
    assert_eq!((bodies.len(), tried > 100), (3, true));
}

#[test]
fn json_is_indented_for_whoever_reads_it() {
    let asked = |agent, pretty| Asked {
        path: "/flagz",
        accept: Some("application/json;v=v1beta1;g=config.k8s.io;as=Flagz"),
        agent,
        pretty,
    };
    let lines = |asked: Asked<'_>| pages().answer(&asked).unwrap().body.lines().count();
    assert_eq!(lines(asked("client", None)), 1);
    assert_eq!(lines(asked("client", Some("true"))), 11);
    assert_eq!(lines(asked("curl/8", None)), 11);
    assert_eq!(lines(asked("curl/8", Some("0"))), 1);
}

#[test]
fn without_flags_there_is_no_page_of_them() {
    let pages = Pages::new("kubelet", "v1.37.2", PATHS, None);
    let asked = |path| Asked {
        path,
        ..Asked::default()
    };
    assert!(pages.answer(&asked("/flagz")).is_none());
    assert!(pages.answer(&asked("/statusz/")).is_none());
    assert!(pages.answer(&asked("/statusz")).is_some());
    assert_eq!(pages.own_paths().collect::<Vec<_>>(), ["/statusz"]);
}
