//! Files of servers' directories as objects: in what order, what goes with them, and what stays.

use k8s_openapi::api::rbac::v1::ClusterRole;
use keelson_addons::addon::{APPLIED, CONFLICT, READY};
use keelson_addons::inventory::Entry;
use keelson_addons::source::{Content, MARK, NAMESPACE, Source, hash};
use keelson_addons::{Addon, LABEL};
use keelson_client::{Patch, ResourceId, delete_options, is_not_found};
use keelson_testkit::objects::{ApiObject, ConfigMap, Deployment, Job, Namespace, Secret};
use keelson_testkit::{Cluster, secs};
use serde_json::json;
use std::fs;

const TABS: ResourceId = ResourceId::fixed("example.com", "v1", "Tab", "tabs", true);

fn source(server: &str, path: &str, content: Content) -> Source {
    let text = content.text().unwrap_or_else(String::into_bytes);
    Source {
        server: server.into(),
        file: format!("/addons/{path}"),
        path: path.into(),
        directory: "/addons".into(),
        place: "1:1".into(),
        hash: hash(&text),
        content,
    }
}

/// A server says that its file is so.
async fn tell(cluster: &Cluster, server: &str, path: &str, text: &str) {
    put(cluster, &source(server, path, Content::of(text.as_bytes()))).await;
}

async fn put(cluster: &Cluster, source: &Source) {
    let wanted = source.to_secret();
    let merge = |live: &mut Secret| {
        live.data = wanted.data.clone();
        live.metadata.annotations = wanted.metadata.annotations.clone();
        true
    };
    cluster
        .objects::<Secret>()
        .create_or_update(&wanted, merge)
        .await
        .expect("a source");
}

async fn withdraw(cluster: &Cluster, server: &str, path: &str) {
    let name = source(server, path, Content::default()).secret_name();
    cluster.delete::<Secret>(NAMESPACE, &name, None).await;
}

fn map(name: &str, value: &str) -> String {
    format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{v: \"{value}\"}}\n")
}

fn value(map: &ConfigMap) -> &str {
    map.data.as_ref().and_then(|d| d.get("v")).map_or("", String::as_str)
}

fn reason(addon: &Addon, kind: &str) -> String {
    addon.condition(kind).map_or_else(String::new, |c| c.reason.clone())
}

async fn applied(cluster: &Cluster, name: &str) -> Addon {
    cluster
        .until::<Addon>("", name, secs(60), "is applied", |a| a.is(APPLIED))
        .await
}

async fn bare() -> Cluster {
    Cluster::builder()
        .controllers(&["namespace", "garbage-collector"])
        .without_scheduler()
        .start()
        .await
}

#[tokio::test(start_paused = true)]
async fn what_a_file_says_is_there_and_what_it_says_no_more_goes() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    tell(&cluster, "s1", "web.yaml", &(map("a", "1") + &map("b", "1"))).await;
    let addon = applied(&cluster, "web").await;
    assert_eq!((addon.objects().len(), addon.is_ready()), (2, true));
    let a = cluster.get::<ConfigMap>("default", "a").await;
    assert_eq!(
        a.metadata
            .labels
            .as_ref()
            .and_then(|l| l.get(LABEL))
            .map(String::as_str),
        Some("web")
    );

    tell(&cluster, "s1", "web.yaml", &(map("a", "2") + &map("c", "1"))).await;
    cluster.gone::<ConfigMap>("default", "b", secs(60)).await;
    assert_eq!(value(&cluster.get::<ConfigMap>("default", "a").await), "2");
    cluster.get::<ConfigMap>("default", "c").await;

    // A broken file takes nothing away, and an empty one is a wish.
    tell(&cluster, "s1", "web.yaml", "apiVersion: [").await;
    let broken = |a: &Addon| reason(a, APPLIED) == "Invalid";
    cluster.until::<Addon>("", "web", secs(60), "is invalid", broken).await;
    put(
        &cluster,
        &source("s1", "web.yaml", Content::Error("it can't be read: EIO".into())),
    )
    .await;
    let unreadable = |a: &Addon| reason(a, APPLIED) == "Unreadable";
    cluster
        .until::<Addon>("", "web", secs(60), "is unreadable", unreadable)
        .await;
    cluster.sleep(secs(600)).await;
    cluster.get::<ConfigMap>("default", "a").await;
    cluster.sleep(secs(1)).await;
    let told = cluster.events("default").await;
    assert!(
        told.iter().any(|e| e.reason.as_deref() == Some("Invalid")),
        "a broken file is an event"
    );
    tell(&cluster, "s1", "web.yaml", "# nothing\n").await;
    cluster.gone::<ConfigMap>("default", "c", secs(60)).await;
    cluster.gone::<ConfigMap>("default", "a", secs(60)).await;
    assert_eq!(applied(&cluster, "web").await.objects().len(), 0);

    tell(&cluster, "s1", "web.yaml", &map("a", "3")).await;
    cluster
        .until::<ConfigMap>("default", "a", secs(60), "is there", |_| true)
        .await;
    withdraw(&cluster, "s1", "web.yaml").await;
    cluster.gone::<Addon>("", "web", secs(60)).await;
    cluster.gone::<ConfigMap>("default", "a", secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_somebody_elses_or_is_to_stay_stays() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    let kept = map("kept", "1").replace("name: kept", "name: kept, annotations: {keelson.dev/prune: 'false'}");
    tell(
        &cluster,
        "s1",
        "web.yaml",
        &(kept + &map("remade", "1") + &map("moved", "1") + &map("gone", "1")),
    )
    .await;
    applied(&cluster, "web").await;
    // Another object of the name, made by somebody while nobody looks.
    tell(&cluster, "s1", "web.yaml", "apiVersion: [").await;
    cluster
        .until::<Addon>("", "web", secs(60), "is invalid", |a| reason(a, APPLIED) == "Invalid")
        .await;
    cluster.delete::<ConfigMap>("default", "remade", None).await;
    cluster.apply(&map("remade", "theirs")).await;
    let before = cluster.get::<ConfigMap>("default", "moved").await;
    tell(&cluster, "s1", "other.yaml", &map("moved", "1")).await;
    tell(&cluster, "s1", "web.yaml", "").await;
    cluster.gone::<ConfigMap>("default", "gone", secs(60)).await;
    applied(&cluster, "other").await;
    cluster.sleep(secs(60)).await;
    cluster.get::<ConfigMap>("default", "kept").await;
    assert_eq!(value(&cluster.get::<ConfigMap>("default", "remade").await), "theirs");
    let now = cluster.get::<ConfigMap>("default", "moved").await;
    assert_eq!(
        now.uid(),
        before.uid(),
        "an object that goes from file to file is never deleted"
    );
    assert_eq!(
        now.metadata.labels.and_then(|l| l.get(LABEL).cloned()).as_deref(),
        Some("other")
    );
}

#[tokio::test(start_paused = true)]
async fn only_fields_that_a_file_says_go_back() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    tell(&cluster, "s1", "web.yaml", &map("a", "1")).await;
    applied(&cluster, "web").await;
    let maps = cluster.history::<ConfigMap>("default").await;
    cluster
        .patch::<ConfigMap>("default", "a", json!({"data": {"v": "by hand", "own": "x"}}))
        .await;
    let is_back = |m: &ConfigMap| value(m) == "1";
    let now = cluster
        .until::<ConfigMap>("default", "a", secs(10), "is back", is_back)
        .await;
    assert_eq!(
        now.data.as_ref().and_then(|d| d.get("own")).map(String::as_str),
        Some("x")
    );
    cluster.delete::<ConfigMap>("default", "a", None).await;
    cluster
        .until::<ConfigMap>("default", "a", secs(10), "is there again", is_back)
        .await;
    // Who changes it again and again is answered less and less often.
    let start = cluster.elapsed();
    for round in 0..6 {
        cluster
            .patch::<ConfigMap>("default", "a", json!({"data": {"v": format!("contested {round}")}}))
            .await;
        cluster
            .until::<ConfigMap>("default", "a", secs(400), "is back", is_back)
            .await;
    }
    let took = (cluster.elapsed() - start).as_secs();
    assert!((15..600).contains(&took), "{took} s for six rounds");
    cluster.sleep(secs(60)).await;
    let writes = maps.record().await;
    cluster.sleep(secs(600)).await;
    assert_eq!(
        maps.record().await.moments.len(),
        writes.moments.len(),
        "nothing is written when nothing changes"
    );
}

#[tokio::test(start_paused = true)]
async fn kinds_come_before_their_objects_whichever_file_they_are_in() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "tabs.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    });
    let tab = |name: &str, namespace: &str| {
        format!("---\napiVersion: example.com/v1\nkind: Tab\nmetadata: {{name: {name}, namespace: {namespace}}}\n")
    };
    // Its kind is another file's, which comes later; its namespace stands after it.
    let early =
        tab("early", "shop") + &map("plain", "1") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    tell(&cluster, "s1", "a-early.yaml", &early).await;
    let waits = |a: &Addon| reason(a, APPLIED) == "Waiting";
    let waiting = cluster
        .until::<Addon>("", "a-early", secs(60), "waits for a kind", waits)
        .await;
    assert!(
        waiting
            .condition(APPLIED)
            .unwrap()
            .message
            .contains("Tab in example.com/v1")
    );
    cluster.get::<Namespace>("", "shop").await;
    cluster.get::<ConfigMap>("default", "plain").await;
    cluster.sleep(secs(3000)).await;
    let asked = cluster.elapsed();
    tell(
        &cluster,
        "s1",
        "b-kinds.yaml",
        &(tab("late", "default") + "---\n" + &definition.to_string()),
    )
    .await;
    applied(&cluster, "b-kinds").await;
    applied(&cluster, "a-early").await;
    assert!(cluster.elapsed() - asked < secs(10), "told, not found by asking again");
    let rest = cluster.objects::<ConfigMap>().rest().clone();
    rest.get_raw(&TABS, "shop", "early", "", "application/json")
        .await
        .expect("a tab");

    // A kind stays, and it is told, while there is an object of somebody else's, which would go with it.
    withdraw(&cluster, "s1", "b-kinds.yaml").await;
    cluster.gone::<Addon>("", "b-kinds", secs(60)).await;
    cluster.sleep(secs(1)).await;
    let told = cluster.events("default").await;
    assert!(told.iter().any(|e| e.reason.as_deref() == Some("Kept")));
    rest.get_raw(&ResourceId::DEFINITIONS, "", "tabs.example.com", "", "application/json")
        .await
        .expect("the kind stays");
    rest.get_raw(&TABS, "shop", "early", "", "application/json")
        .await
        .expect("a tab");
    let late = rest.get_raw(&TABS, "default", "late", "", "application/json").await;
    assert!(late.is_err_and(|e| is_not_found(&e)));
}

#[tokio::test(start_paused = true)]
async fn files_wait_for_those_they_depend_on_and_no_other_file_waits() {
    let cluster = Cluster::builder().nodes(1).start().await;
    let _addons = cluster.addons("s1", None);
    let after = |name: &str, needed: &str| {
        map(name, "1").replace(
            &format!("name: {name}"),
            &format!("name: {name}, annotations: {{keelson.dev/depends-on: {needed}}}"),
        )
    };
    tell(&cluster, "s1", "app.yaml", &after("app", "db")).await;
    tell(&cluster, "s1", "egg.yaml", &after("egg", "hen")).await;
    tell(&cluster, "s1", "hen.yaml", &after("hen", "egg")).await;
    tell(&cluster, "s1", "broken.yaml", "kind: ConfigMap\n").await;
    tell(&cluster, "s1", "alone.yaml", &map("alone", "1")).await;
    applied(&cluster, "alone").await;
    let waits = |a: &Addon| reason(a, APPLIED) == "Dependency";
    cluster.until::<Addon>("", "app", secs(60), "waits", waits).await;
    for name in ["egg", "hen"] {
        let circle = |a: &Addon| reason(a, APPLIED) == "DependencyCircle";
        cluster
            .until::<Addon>("", name, secs(60), "is in a circle", circle)
            .await;
    }
    let db = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  template:
    metadata:
      labels: {app: db}
      annotations: {simulate.keelson.dev/ready-seconds: "100"}
    spec: {containers: [{name: c, image: i, readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 5}}]}
"#;
    tell(&cluster, "s1", "db.yaml", db).await;
    let progressing = |a: &Addon| a.is(APPLIED) && reason(a, READY) == "InProgress";
    cluster
        .until::<Addon>("", "db", secs(30), "is applied and not ready", progressing)
        .await;
    assert!(
        cluster
            .objects::<ConfigMap>()
            .find("default", "app")
            .await
            .unwrap()
            .is_none()
    );
    cluster
        .until::<Addon>("", "db", secs(300), "is ready", Addon::is_ready)
        .await;
    cluster
        .until::<ConfigMap>("default", "app", secs(5), "is there", |_| true)
        .await;
    let ready = |d: &Deployment| d.status.as_ref().and_then(|s| s.ready_replicas) == Some(1);
    assert!(ready(&cluster.get("default", "db").await));
}

#[tokio::test(start_paused = true)]
async fn another_server_goes_on_where_one_was_lost_and_different_files_do_not_fight() {
    let mut cluster = bare().await;
    let first = cluster.addons("s1", Some("s1_a"));
    tell(&cluster, "s1", "web.yaml", &map("a", "1")).await;
    tell(&cluster, "s1", "mine.yaml", &map("mine", "1")).await;
    tell(&cluster, "s2", "web.yaml", &map("a", "2")).await;
    let conflicts = |a: &Addon| a.is(CONFLICT) && a.is(APPLIED);
    let addon = cluster
        .until::<Addon>("", "web", secs(60), "tells of the other file", conflicts)
        .await;
    assert_eq!(
        addon.status.as_ref().and_then(|s| s.source.as_deref()),
        Some("s1:/addons/web.yaml")
    );
    applied(&cluster, "mine").await;
    let maps = cluster.history::<ConfigMap>("default").await;
    let second = cluster.addons("s2", Some("s2_b"));
    cluster.sleep(secs(60)).await;
    first.kill();
    // What only the lost server had stays, and what is new is applied by the other.
    tell(&cluster, "s2", "new.yaml", &map("new", "1")).await;
    applied(&cluster, "new").await;
    cluster.sleep(secs(600)).await;
    assert_eq!(value(&cluster.get::<ConfigMap>("default", "a").await), "1");
    cluster.get::<ConfigMap>("default", "mine").await;
    let changes = maps.record().await;
    assert!(changes.deleted().is_empty(), "nothing was taken away");
    let mut states = std::collections::BTreeSet::new();
    changes.replay(|_, all| states.extend(all.values().filter(|m| m.name() == "a").map(|m| value(m).to_string())));
    assert_eq!(states.len(), 1, "nothing went to and fro");
    // What the lost server applied is pruned by the other, which knows of it from the inventory.
    withdraw(&cluster, "s1", "mine.yaml").await;
    cluster.gone::<ConfigMap>("default", "mine", secs(60)).await;
    withdraw(&cluster, "s1", "web.yaml").await;
    cluster
        .until::<ConfigMap>("default", "a", secs(60), "is the other's", |m| value(m) == "2")
        .await;
    let settled = |a: &Addon| !a.is(CONFLICT) && a.is(APPLIED);
    cluster
        .until::<Addon>("", "web", secs(60), "is one file's", settled)
        .await;
    drop(second);
    cluster.kill_controllers();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_between_two_steps_leaves_nothing_that_nobody_knows_of() {
    let cluster = bare().await;
    let addons = cluster.addons("s1", None);
    let many: String = (0..40).map(|n| map(&format!("m{n}"), "1")).collect();
    tell(&cluster, "s1", "many.yaml", &many).await;
    cluster
        .until::<ConfigMap>("default", "m5", secs(60), "is there", |_| true)
        .await;
    addons.kill();
    // While it is dead the file says less.
    tell(&cluster, "s1", "many.yaml", &map("m39", "1")).await;
    let _again = cluster.addons("s1", None);
    cluster
        .until_all("default", secs(120), "only one is left", |maps: &[ConfigMap]| {
            let ours: Vec<&str> = maps.iter().map(|m| m.name()).filter(|n| n.starts_with('m')).collect();
            (ours == ["m39"]).then_some(())
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn two_files_do_not_share_an_object_and_a_deleted_addon_begins_anew() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    tell(&cluster, "s1", "a.yaml", &map("one", "a")).await;
    applied(&cluster, "a").await;
    tell(&cluster, "s1", "b.yaml", &(map("one", "b") + &map("two", "b"))).await;
    let refused = |a: &Addon| reason(a, APPLIED) == "Refused";
    let addon = cluster.until::<Addon>("", "b", secs(60), "is refused", refused).await;
    assert!(
        addon.condition(APPLIED).unwrap().message.contains("is a's"),
        "{addon:?}"
    );
    assert_eq!(value(&cluster.get::<ConfigMap>("default", "one").await), "a");
    assert_eq!(value(&cluster.get::<ConfigMap>("default", "two").await), "b");
    // It goes over when the first lets go of it.
    tell(&cluster, "s1", "a.yaml", &map("three", "a")).await;
    cluster
        .until::<ConfigMap>("default", "one", secs(400), "is the other's", |m| value(m) == "b")
        .await;
    let before = cluster.get::<Addon>("", "a").await;
    cluster.delete::<Addon>("", "a", None).await;
    let anew = |a: &Addon| a.uid() != before.uid() && a.is(APPLIED);
    cluster.until::<Addon>("", "a", secs(60), "is there anew", anew).await;
    cluster.get::<ConfigMap>("default", "three").await;
}

#[tokio::test(start_paused = true)]
async fn objects_end_before_the_kinds_and_namespaces_that_they_need() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    let held = map("held", "1").replace(
        "name: held",
        "name: held, namespace: shop, finalizers: [example.com/hold]",
    );
    tell(
        &cluster,
        "s1",
        "shop.yaml",
        &("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n".to_string() + &held),
    )
    .await;
    applied(&cluster, "shop").await;
    withdraw(&cluster, "s1", "shop.yaml").await;
    let pruning = |a: &Addon| {
        a.is_deleting()
            && a.condition(APPLIED)
                .is_some_and(|c| c.message.contains("example.com/hold"))
    };
    cluster
        .until::<Addon>("", "shop", secs(60), "says what holds it up", pruning)
        .await;
    cluster.sleep(secs(600)).await;
    assert!(
        !cluster.get::<Namespace>("", "shop").await.is_deleting(),
        "the namespace isn't first"
    );
    cluster
        .patch::<ConfigMap>("shop", "held", json!({"metadata": {"finalizers": null}}))
        .await;
    cluster.gone::<Namespace>("", "shop", secs(60)).await;
    cluster.gone::<Addon>("", "shop", secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_api_does_not_change_is_made_anew_where_that_is_said() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    let job = |image: &str, note: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: once, annotations: {{{note}}}}}\nspec: {{template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: {image}}}]}}}}}}\n"
        )
    };
    let image = |j: &Job| {
        let spec = j.spec.as_ref().and_then(|s| s.template.spec.as_ref());
        spec.and_then(|s| s.containers[0].image.clone()).unwrap_or_default()
    };
    tell(&cluster, "s1", "job.yaml", &job("one", "")).await;
    applied(&cluster, "job").await;
    tell(&cluster, "s1", "job.yaml", &job("two", "")).await;
    let refused = |a: &Addon| reason(a, APPLIED) == "Refused";
    cluster.until::<Addon>("", "job", secs(60), "is refused", refused).await;
    tell(&cluster, "s1", "job.yaml", &job("two", "keelson.dev/replace: 'true'")).await;
    cluster
        .until("default", "once", secs(60), "is another", |j: &Job| image(j) == "two")
        .await;
    applied(&cluster, "job").await;
}

#[tokio::test(start_paused = true)]
async fn an_inventory_that_somebody_wrote_takes_nothing_of_others_away() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    tell(&cluster, "s1", "web.yaml", &map("a", "1")).await;
    let addon = applied(&cluster, "web").await;
    cluster.apply(&map("theirs", "1")).await;
    let theirs = cluster.get::<ConfigMap>("default", "theirs").await;
    let mut objects = addon.objects().to_vec();
    objects.push(Entry {
        version: "v1".into(),
        kind: "ConfigMap".into(),
        namespace: "default".into(),
        name: "theirs".into(),
        uid: theirs.uid().into(),
        ..Entry::default()
    });
    let written = json!({"status": {"objects": objects}});
    let patched = cluster
        .objects::<Addon>()
        .patch_status("", "web", Patch::Merge(&written))
        .await;
    patched.expect("a status");
    tell(&cluster, "s1", "web.yaml", &map("a", "2")).await;
    cluster
        .until::<ConfigMap>("default", "a", secs(60), "is new", |m| value(m) == "2")
        .await;
    let is_clean = |a: &Addon| a.objects().len() == 1;
    cluster
        .until::<Addon>("", "web", secs(60), "knows of its own only", is_clean)
        .await;
    assert_eq!(
        cluster.get::<ConfigMap>("default", "theirs").await.uid(),
        theirs.uid(),
        "nobody applied it here"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_told_of_a_refused_secret_has_no_value_of_it() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {pin: 271828}\n";
    tell(&cluster, "s1", "pin.yaml", secret).await;
    let refused = |a: &Addon| reason(a, APPLIED) == "Refused";
    let addon = cluster.until::<Addon>("", "pin", secs(60), "is refused", refused).await;
    assert!(!json!(addon).to_string().contains("271828"), "{addon:?}");
    cluster.sleep(secs(600)).await;
    for event in cluster.events("default").await {
        let message = event.message.unwrap_or_default();
        assert!(!message.contains("271828"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_written_on_what_has_none_makes_no_other_object_of_it() {
    let cluster = bare().await;
    let _addons = cluster.addons("s1", None);
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: r, namespace: shop}\nrules: []\n";
    tell(&cluster, "s1", "a.yaml", role).await;
    applied(&cluster, "a").await;
    let before = cluster.get::<ClusterRole>("", "r").await;
    tell(&cluster, "s1", "b.yaml", role).await;
    tell(&cluster, "s1", "a.yaml", "# nothing\n").await;
    applied(&cluster, "b").await;
    cluster.sleep(secs(60)).await;
    assert_eq!(cluster.get::<ClusterRole>("", "r").await.uid(), before.uid());
}

/// The whole way: real files, notices of the kernel. In real time, for files change in no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn files_of_a_directory_are_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = keelson_testkit::Server::alone().await;
    let rest = server.administrator();
    let part = server.addons("s1", &[dir.path()]);
    let maps = keelson_client::Objects::<ConfigMap>::new(&rest);
    let until = async |name: &str, is: Option<&str>| {
        for _ in 0..300 {
            let found = maps.find("default", name).await.expect("an answer");
            if found.as_ref().map(value) == is {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("{name} doesn't become {is:?}");
    };
    fs::write(dir.path().join("web.yaml"), map("web", "1")).unwrap();
    fs::create_dir(dir.path().join("more")).unwrap();
    fs::write(
        dir.path().join("more/b.json"),
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"v":"1"}}"#,
    )
    .unwrap();
    until("web", Some("1")).await;
    until("b", Some("1")).await;
    // As editors do it.
    fs::write(dir.path().join("web.tmp"), map("web", "2")).unwrap();
    fs::rename(dir.path().join("web.tmp"), dir.path().join("web.yaml")).unwrap();
    until("web", Some("2")).await;
    // What this server told is taken away by somebody; its files are there still.
    let secrets = keelson_client::Objects::<Secret>::new(&rest);
    let before = maps.get("default", "web").await.expect("a map");
    for told in secrets.list(NAMESPACE, MARK, "").await.expect("sources") {
        let deleted = secrets
            .delete(NAMESPACE, told.name(), &delete_options(None, None, None))
            .await;
        deleted.expect("deleted");
    }
    // Nothing happens: for longer than the applier waits for a file that nobody says any more.
    tokio::time::sleep(secs(9)).await;
    assert_eq!(maps.get("default", "web").await.expect("a map").uid(), before.uid());
    assert_eq!(secrets.list(NAMESPACE, MARK, "").await.expect("sources").len(), 2);
    fs::remove_file(dir.path().join("web.yaml")).unwrap();
    until("web", None).await;
    // A directory that is another than before, and empty, isn't taken for a wish.
    let beside = dir.path().with_extension("beside");
    fs::rename(dir.path(), &beside).unwrap();
    fs::create_dir(dir.path()).unwrap();
    // Nor here: for longer than it takes to notice, to be quiet, and to apply.
    tokio::time::sleep(secs(4)).await;
    until("b", Some("1")).await;
    fs::write(dir.path().join("web.yaml"), map("web", "3")).unwrap();
    until("web", Some("3")).await;
    until("b", None).await;
    fs::remove_dir_all(&beside).unwrap();
    drop(part);
}
