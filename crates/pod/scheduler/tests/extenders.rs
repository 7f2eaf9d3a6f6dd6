//! Extenders on loopback: what they are asked, and what becomes of their answers, their errors and their silence.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Pod;
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::configuration;
use keelson_scheduler::extender::{self, Extender};
use keelson_scheduler::plan::{Plan, Turn};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::Profile;
use keelson_scheduler::snapshot::Snapshot;
use keelson_scheduler::world::Fixed;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Path and body of each request.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// Answers each path with what the table says; a path that isn't there is never answered.
async fn server(answers: Value) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let noted = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(one(stream, answers.clone(), noted.clone()));
        }
    });
    (address, asked)
}

async fn one(mut stream: TcpStream, answers: Value, asked: Asked) {
    let mut read = Vec::new();
    let (head, length) = loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await.unwrap();
        if n == 0 {
            return;
        }
        read.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&read);
        let Some(end) = text.find("\r\n\r\n") else { continue };
        let head = text[..end].to_ascii_lowercase();
        let length = head
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.lines().next()?.parse().ok());
        let length: usize = length.unwrap_or(0);
        if read.len() >= end + 4 + length {
            break (text[..end].to_owned(), (end + 4, length));
        }
    };
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let body = serde_json::from_slice(&read[length.0..length.0 + length.1]).unwrap();
    asked.lock().push((path.clone(), body));
    let Some(answer) = answers.get(&path) else {
        return std::future::pending().await;
    };
    let (code, body) = match answer.as_i64() {
        Some(code) => (code, String::new()),
        None => (200, answer.to_string()),
    };
    let answer = format!(
        "HTTP/1.1 {code} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
}

async fn made(address: SocketAddr, more: Value) -> Arc<[Extender]> {
    let mut extender =
        json!({"urlPrefix": format!("http://{address}/ext/"), "httpTimeout": "500ms", "nodeCacheCapable": true});
    for (key, value) in more.as_object().unwrap() {
        extender[key] = value.clone();
    }
    let file = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "extenders": [extender]});
    Extender::all(&configuration::read(file).unwrap().extenders)
        .await
        .unwrap()
}

fn pod(name: &str, cpu: &str, priority: i32) -> Arc<PodInfo> {
    let pod = json!({
        "metadata": {"name": name, "uid": name, "namespace": "default"},
        "spec": {"priority": priority, "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]},
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Arc::new(PodInfo::of(Arc::new(pod)))
}

/// Nodes a, b and c of four CPUs, with a pod of so many on each.
fn snapshot(used: &str) -> Snapshot {
    let mut cluster = Cluster::default();
    for name in ["a", "b", "c"] {
        let node =
            json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "10"}}});
        cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        cluster.set_pod(Arc::new(pod(&format!("on-{name}"), used, 0).on_node(name)));
    }
    cluster.snapshot(Arc::new(Fixed::default()))
}

async fn decide(extenders: &[Extender], pod: &PodInfo, snapshot: &Snapshot) -> Result<String, String> {
    let (profile, mut turn) = (Profile::default(), Turn::new(StdRng::seed_from_u64(1)));
    match extender::plan::plan(extenders, &profile, pod, snapshot, &mut turn).await {
        Ok(Plan::Bind { node, .. }) => Ok(node),
        Ok(Plan::Wait(why)) => {
            let target = why.preemption.as_ref().and_then(|p| p.target.clone());
            let target =
                target.map(|(node, victims)| (node, victims.iter().map(|v| v.key.name.clone()).collect::<Vec<_>>()));
            Ok(format!("{} {target:?} {:?}", why.message(), why.plugins))
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

#[tokio::test]
async fn what_an_extender_leaves_is_chosen_from() {
    let (address, asked) = server(json!({"/ext/filter": {"NodeNames": ["b"]}})).await;
    let extenders = made(address, json!({"filterVerb": "filter"})).await;
    let found = decide(&extenders, &pod("p", "1", 0), &snapshot("0")).await;
    assert_eq!(found.as_deref(), Ok("b"));
    let (path, body) = asked.lock().remove(0);
    assert_eq!(path, "/ext/filter");
    let mut names: Vec<String> = serde_json::from_value(body["NodeNames"].clone()).unwrap();
    names.sort();
    assert_eq!(
        (names, &body["Nodes"]),
        (["a", "b", "c"].map(str::to_owned).to_vec(), &Value::Null)
    );
    assert_eq!(body["Pod"]["metadata"]["name"], "p");
}

#[tokio::test]
async fn one_that_doesnt_know_the_nodes_gets_them_and_sends_them_back() {
    let (address, asked) = server(json!({"/ext/filter": {"Nodes": {"items": [{"metadata": {"name": "c"}}]}}})).await;
    let extenders = made(address, json!({"filterVerb": "filter", "nodeCacheCapable": false})).await;
    assert_eq!(
        decide(&extenders, &pod("p", "1", 0), &snapshot("0")).await.as_deref(),
        Ok("c")
    );
    let body = asked.lock().remove(0).1;
    assert_eq!(body["NodeNames"], Value::Null);
    assert_eq!(body["Nodes"]["items"].as_array().unwrap().len(), 3);
    assert_eq!(body["Nodes"]["items"][0]["status"]["allocatable"]["cpu"], "4");
}

#[tokio::test]
async fn who_it_refuses_is_told_and_for_good_is_for_good() {
    let failed = json!({"NodeNames": [], "FailedNodes": {"a": "no card", "b": "no card"}, "FailedAndUnresolvableNodes": {"b": "no slot", "c": "no slot"}});
    let (address, _) = server(json!({"/ext/filter": failed})).await;
    let extenders = made(address, json!({"filterVerb": "filter"})).await;
    let found = decide(&extenders, &pod("p", "1", 5), &snapshot("1")).await.unwrap();
    assert!(
        found.starts_with("0/3 nodes are available: 1 no card, 2 no slot."),
        "{found}"
    );
    // Only on a it could help that somebody goes.
    assert!(found.contains("2 Preemption is not helpful for scheduling"), "{found}");
    assert!(found.ends_with("{\"Extender\"}"), "{found}");
}

#[tokio::test]
async fn an_error_is_the_decisions_unless_it_may_fail() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let answers = json!({"/ext/says": {"Error": "no licence"}, "/ext/code": 503, "/ext/odd": "text",
        "/ext/strange": {"NodeNames": ["d"]}});
    let (address, _) = server(answers).await;
    let (pod, snapshot) = (pod("p", "1", 0), snapshot("0"));
    for (address, verb, error) in [
        (address, "says", "no licence".to_owned()),
        (
            address,
            "code",
            format!("failed code with extender at URL http://{address}/ext/code, code 503"),
        ),
        (address, "odd", "invalid type".into()),
        (
            address,
            "strange",
            format!(
                "extender \"http://{address}/ext/\" claims a filtered node \"d\" which is not found in the input node list"
            ),
        ),
        (
            address,
            "silent",
            format!("the extender at http://{address}/ext/silent didn't answer within 500ms"),
        ),
        (nobody, "filter", "onnect".into()),
    ] {
        let extenders = made(address, json!({"filterVerb": verb})).await;
        let said = decide(&extenders, &pod, &snapshot).await.unwrap_err();
        assert!(said.contains(&error), "{said}, not {error}");
        let extenders = made(address, json!({"filterVerb": verb, "ignorable": true})).await;
        assert!(decide(&extenders, &pod, &snapshot).await.is_ok(), "{verb}");
    }
}

#[tokio::test]
async fn what_it_prefers_is_weighed_and_silence_is_no_error() {
    for (name, score) in [("a", 10), ("b", 9), ("c", 8)] {
        let (address, asked) = server(json!({"/ext/prioritize": [{"Host": name, "Score": score}]})).await;
        let extenders = made(address, json!({"prioritizeVerb": "prioritize", "weight": 3})).await;
        assert_eq!(
            decide(&extenders, &pod("p", "1", 0), &snapshot("0")).await.as_deref(),
            Ok(name)
        );
        assert_eq!(asked.lock().len(), 1);
    }
    let (address, _) = server(json!({})).await;
    let extenders = made(address, json!({"prioritizeVerb": "silent", "weight": 1})).await;
    let began = std::time::Instant::now();
    assert!(decide(&extenders, &pod("p", "1", 0), &snapshot("0")).await.is_ok());
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn only_pods_that_use_what_it_manages_are_shown_to_it() {
    let (address, asked) = server(json!({"/ext/filter": {"NodeNames": ["b"]}})).await;
    let managed = json!([{"name": "example.com/card", "ignoredByScheduler": true}]);
    let extenders = made(address, json!({"filterVerb": "filter", "managedResources": managed})).await;
    decide(&extenders, &pod("p", "1", 0), &snapshot("0")).await.unwrap();
    assert!(asked.lock().is_empty());
    let file = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "extenders": [{"urlPrefix": "http://x", "managedResources": managed}]});
    let profile = configuration::read(file).unwrap().profiles.remove(0);
    let mut user = (*pod("user", "1", 0).pod).clone();
    let resources = user.spec.as_mut().unwrap().containers[0].resources.as_mut().unwrap();
    resources.limits = serde_json::from_value(json!({"example.com/card": "1"})).unwrap();
    resources.requests = serde_json::from_value(json!({"cpu": "1", "example.com/card": "1"})).unwrap();
    let user = PodInfo::of(Arc::new(user));
    let mut turn = Turn::new(StdRng::seed_from_u64(1));
    // No node has any, but that is the extender's business.
    let found = extender::plan::plan(&extenders, &profile, &user, &snapshot("0"), &mut turn)
        .await
        .unwrap();
    assert!(matches!(found, Plan::Bind { node, .. } if node == "b"));
    assert_eq!(asked.lock().len(), 1);
}

#[tokio::test]
async fn it_has_a_say_in_who_goes() {
    let important = pod("p", "3", 5);
    for (answer, expected) in [
        (
            json!({"NodeNameToMetaVictims": {"b": {"Pods": [{"UID": "on-b"}], "NumPDBViolations": 0}}}),
            "Some((\"b\", [\"on-b\"]))",
        ),
        (json!({"NodeNameToMetaVictims": {}}), "None"),
        (
            json!({"NodeNameToMetaVictims": {"b": {"Pods": []}}}),
            "expected at least one victim pod on node \"b\"",
        ),
        (
            json!({"NodeNameToMetaVictims": {"b": {"Pods": [{"UID": "on-a"}]}}}),
            "claims to preempt pod (UID: on-a) on node: b",
        ),
    ] {
        let (address, asked) = server(json!({"/ext/preempt": answer})).await;
        let extenders = made(address, json!({"preemptVerb": "preempt"})).await;
        let found = decide(&extenders, &important, &snapshot("2")).await.unwrap();
        assert!(found.contains(expected), "{found}, not {expected}");
        let body = asked.lock().remove(0).1;
        assert_eq!(body["NodeNameToMetaVictims"].as_object().unwrap().len(), 3, "{body}");
        assert_eq!(
            body["NodeNameToMetaVictims"]["a"],
            json!({"Pods": [{"UID": "on-a"}], "NumPDBViolations": 0})
        );
    }
}

#[tokio::test]
async fn it_binds_if_it_says_that_it_does() {
    let (address, asked) = server(json!({"/ext/bind": {"Error": ""}, "/ext/no": {"Error": "taken"}})).await;
    let extenders = made(address, json!({"bindVerb": "bind"})).await;
    assert!(extenders[0].binds());
    extenders[0].bind(&pod("p", "1", 0), "a").await.unwrap();
    let body = asked.lock().remove(0).1;
    assert_eq!(
        body,
        json!({"PodName": "p", "PodNamespace": "default", "PodUID": "p", "Node": "a"})
    );
    let extenders = made(address, json!({"bindVerb": "no"})).await;
    assert_eq!(
        extenders[0].bind(&pod("p", "1", 0), "a").await.unwrap_err().to_string(),
        "taken"
    );
}

#[tokio::test]
async fn where_room_was_made_is_asked_about_first_and_an_error_there_isnt_the_decisions() {
    let (address, asked) = server(json!({"/ext/filter": {"NodeNames": ["b", "b"]}})).await;
    let extenders = made(address, json!({"filterVerb": "filter"})).await;
    let mut pod = (*pod("p", "1", 0).pod).clone();
    pod.status = serde_json::from_value(json!({"nominatedNodeName": "a"})).unwrap();
    let pod = PodInfo::of(Arc::new(pod));
    // Of the one node that it is asked about it names another; of all it names one, twice.
    assert_eq!(decide(&extenders, &pod, &snapshot("0")).await.as_deref(), Ok("b"));
    let asked = asked.lock();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].1["NodeNames"], json!(["a"]));
    assert_eq!(asked[1].1["NodeNames"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn those_that_may_fail_are_asked_last() {
    let (address, asked) = server(json!({"/x/one": {"NodeNames": ["a", "b"]}, "/x/two": {"NodeNames": ["a"]}})).await;
    let one = |verb: &str, may_fail: bool| json!({"urlPrefix": format!("http://{address}/x"), "filterVerb": verb, "nodeCacheCapable": true, "ignorable": may_fail});
    let file = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "extenders": [one("two", true), one("one", false)]});
    let extenders = Extender::all(&configuration::read(file).unwrap().extenders)
        .await
        .unwrap();
    assert_eq!(
        decide(&extenders, &pod("p", "1", 0), &snapshot("0")).await.as_deref(),
        Ok("a")
    );
    let asked = asked.lock();
    let paths: Vec<&str> = asked.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/x/one", "/x/two"]);
    assert_eq!(asked[1].1["NodeNames"].as_array().unwrap().len(), 2);
}
