//! kube-rs as controllers of others use it, a part a call: `kube-rs PART`. What its crates' own tests try isn't tried again here.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, future};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{apps::v1::Deployment, authentication::v1::TokenRequest, batch::v1::Job, coordination::v1::Lease, core::v1::*, rbac::v1::RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{AttachParams, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions, TerminalSize};
use kube::core::{PartialObjectMeta, Status, crd::merge_crds, gvk::GroupVersionKind};
use kube::discovery::{Discovery, Scope, pinned_kind, verbs};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{finalizer, reflector, watcher};
use kube::{Api, Client, Config, CustomResource, CustomResourceExt, KubeSchema, Resource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

const NS: &str = "shop";

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::try_default().await?;
    let part = std::env::args().nth(1).context("which part?")?;
    let bound = Duration::from_secs(100);
    match part.as_str() {
        "watches" => timeout(bound, watches(client)).await?,
        "controller" => timeout(bound, controller(client)).await?,
        "errors" => timeout(bound, errors(client)).await?,
        "patches" => timeout(bound, patches(client)).await?,
        "waits" => timeout(bound, waits(client)).await?,
        "discovery" => timeout(bound, discovery(client)).await?,
        "leases" => timeout(bound, leases(client)).await?,
        "tokens" => timeout(bound, tokens(client)).await?,
        "exec" => timeout(bound, exec(client)).await?,
        "attach" => timeout(bound, attach(client)).await?,
        "forward" => timeout(bound, forward(client)).await?,
        _ => anyhow::bail!("no such part"),
    }
}

fn made<K: DeserializeOwned>(value: Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}

fn map(name: &str, of: &str) -> Result<ConfigMap> {
    made(json!({"metadata": {"name": name, "labels": {"of": of}}, "data": {"v": "0"}}))
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) -> Result<()> {
    for _ in 0..600 {
        if is().await {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("not within half a minute: {what}")
}

/// Lists by the watch, lists in pages, and metadata alone end in the same, each after one beginning.
async fn watches(client: Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NS);
    for i in 0..30 {
        maps.create(&PostParams::default(), &map(&format!("watched-{i:02}"), "watch")?).await?;
    }
    let which = watcher::Config::default().labels("of=watch");
    let (streamed, to_streamed) = reflector::store::<ConfigMap>();
    let (paged, to_paged) = reflector::store::<ConfigMap>();
    let bare: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client, NS);
    let (metadata, to_metadata) = reflector::store::<PartialObjectMeta<ConfigMap>>();
    let begun = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let tell = |begun: &Arc<std::sync::atomic::AtomicUsize>| {
        let begun = begun.clone();
        move |first: bool| _ = begun.fetch_add(usize::from(first), std::sync::atomic::Ordering::SeqCst)
    };
    let (a, b, c) = (tell(&begun), tell(&begun), tell(&begun));
    let one = watcher(maps.clone(), which.clone().streaming_lists()).inspect_ok(move |e| a(matches!(e, watcher::Event::InitDone)));
    let two = watcher(maps.clone(), which.clone().page_size(7)).inspect_ok(move |e| b(matches!(e, watcher::Event::InitDone)));
    let three = watcher(bare, which).inspect_ok(move |e| c(matches!(e, watcher::Event::InitDone)));
    tokio::spawn(reflector::reflector(to_streamed, one).for_each(|_| future::ready(())));
    tokio::spawn(reflector::reflector(to_paged, two).for_each(|_| future::ready(())));
    tokio::spawn(reflector::reflector(to_metadata, three).for_each(|_| future::ready(())));
    future::try_join3(streamed.wait_until_ready(), paged.wait_until_ready(), metadata.wait_until_ready()).await?;
    ensure!((streamed.len(), paged.len(), metadata.len()) == (30, 30, 30), "{} {} {}", streamed.len(), paged.len(), metadata.len());
    for i in 0..30 {
        maps.patch(&format!("watched-{i:02}"), &PatchParams::default(), &Patch::Merge(json!({"metadata": {"annotations": {"v": "1"}}, "data": {"v": "1"}}))).await?;
    }
    let new = |m: &ConfigMap| m.data.as_ref().is_some_and(|d| d["v"] == "1");
    until("every change came", async || {
        streamed.state().iter().all(|m| new(m)) && paged.state().iter().all(|m| new(m)) && metadata.state().iter().all(|m| m.annotations().contains_key("v"))
    })
    .await?;
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("of=watch")).await?;
    until("all went", async || streamed.is_empty() && paged.is_empty() && metadata.is_empty()).await?;
    ensure!(begun.load(std::sync::atomic::Ordering::SeqCst) == 3, "a watch began anew");
    Ok(())
}

#[derive(CustomResource, Deserialize, Serialize, Clone, Debug, KubeSchema)]
#[kube(group = "kube-rs.example", version = "v1", kind = "Shelf", namespaced, status = "ShelfStatus", shortname = "shf")]
#[kube(scale(spec_replicas_path = ".spec.books", status_replicas_path = ".status.books"), printcolumn(name = "Books", type_ = "integer", json_path = ".spec.books"))]
#[kube(validation = "self.metadata.name != 'none'")]
struct ShelfSpec {
    #[x_kube(validation = ("self <= 20", "too many for one shelf"))]
    books: i32,
    #[serde(default = "oak")]
    wood: String,
    #[x_kube(validation = "self == oldSelf")]
    room: Option<String>,
}

#[derive(Deserialize, Serialize, Clone, Debug, Default, JsonSchema)]
pub struct ShelfStatus {
    books: i32,
    seen: Option<i64>,
}

fn oak() -> String {
    "oak".into()
}

mod old {
    use super::*;
    #[derive(CustomResource, Deserialize, Serialize, Clone, Debug, JsonSchema)]
    #[kube(group = "kube-rs.example", version = "v1beta1", kind = "Shelf", namespaced, status = "ShelfStatus", shortname = "shf")]
    pub struct ShelfSpec {
        pub books: i32,
        pub wood: Option<String>,
        pub room: Option<String>,
    }
}

async fn defined(client: &Client) -> Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let both = merge_crds(vec![Shelf::crd(), old::Shelf::crd()], "v1")?;
    crds.patch(&both.name_any(), &PatchParams::apply("kube-rs").force(), &Patch::Apply(&both)).await?;
    await_condition(crds, &both.name_any(), conditions::is_crd_established()).await?;
    Ok(())
}

async fn reconcile(shelf: Arc<Shelf>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced((*client).clone(), NS);
    let child = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": shelf.name_any(), "labels": {"of": "shelf"}, "ownerReferences": [shelf.controller_owner_ref(&())]},
        "data": {"books": shelf.spec.books.to_string()},
    });
    maps.patch(&shelf.name_any(), &PatchParams::apply("shelves").force(), &Patch::Apply(child)).await?;
    let status = json!({"status": ShelfStatus { books: shelf.spec.books, seen: shelf.metadata.generation }});
    let shelves: Api<Shelf> = Api::namespaced((*client).clone(), NS);
    shelves.patch_status(&shelf.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(Action::await_change())
}

/// A controller of a definition of two versions: children applied and kept, a status, a finalizer; what is deleted takes its children along.
async fn controller(client: Client) -> Result<()> {
    defined(&client).await?;
    let shelves: Api<Shelf> = Api::namespaced(client.clone(), NS);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NS);
    let clean = Arc::new(tokio::sync::Mutex::new(BTreeSet::new()));
    let (api, cleaned) = (shelves.clone(), clean.clone());
    let work = Controller::new(shelves.clone(), watcher::Config::default()).owns(maps.clone(), watcher::Config::default().labels("of=shelf")).run(
        move |shelf, client| {
            let (api, cleaned) = (api.clone(), cleaned.clone());
            async move {
                finalizer::finalizer(&api, "kube-rs.example/clean", shelf, async |event| match event {
                    finalizer::Event::Apply(shelf) => reconcile(shelf, client).await,
                    finalizer::Event::Cleanup(shelf) => {
                        cleaned.lock().await.insert(shelf.name_any());
                        Ok(Action::await_change())
                    }
                })
                .await
            }
        },
        |_, _, _| Action::requeue(Duration::from_millis(300)),
        Arc::new(client.clone()),
    );
    tokio::spawn(work.for_each(|_| future::ready(())));
    for i in 0..10 {
        shelves.create(&PostParams::default(), &Shelf::new(&format!("shelf-{i}"), made(json!({"books": i}))?)).await?;
    }
    let books = async |name: &str| maps.get_opt(name).await.ok().flatten().and_then(|m| m.data?.get("books").cloned());
    until("each has its child and status", async || {
        let all = shelves.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default();
        let mut done = all.len() == 10;
        for s in &all {
            done &= s.status.as_ref().is_some_and(|t| t.books == s.spec.books && t.seen == s.metadata.generation) && books(&s.name_any()).await == Some(s.spec.books.to_string());
        }
        done
    })
    .await?;
    // By the other version, and by the scale; the child follows, and comes again.
    let betas: Api<old::Shelf> = Api::namespaced(client.clone(), NS);
    ensure!(betas.get("shelf-3").await?.spec.wood.as_deref() == Some("oak"), "no default in what is stored");
    betas.patch("shelf-3", &PatchParams::default(), &Patch::Merge(json!({"spec": {"books": 13}}))).await?;
    let scale = shelves.patch_scale("shelf-4", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 14}}))).await?;
    ensure!(scale.spec.and_then(|s| s.replicas) == Some(14), "its scale");
    maps.delete("shelf-5", &DeleteParams::default()).await?;
    until("children follow", async || books("shelf-3").await.as_deref() == Some("13") && books("shelf-4").await.as_deref() == Some("14") && books("shelf-5").await.as_deref() == Some("5")).await?;
    shelves.delete_collection(&DeleteParams::foreground(), &ListParams::default()).await?;
    until("all is cleaned", async || {
        clean.lock().await.len() == 10
            && shelves.list(&ListParams::default()).await.is_ok_and(|l| l.items.is_empty())
            && maps.list(&ListParams::default().labels("of=shelf")).await.is_ok_and(|l| l.items.is_empty())
    })
    .await
}

/// The status that a request is refused with.
fn refused<T>(answer: kube::Result<T>) -> Result<Status> {
    match answer {
        Err(kube::Error::Api(status)) => Ok(*status),
        Err(e) => Err(e.into()),
        Ok(_) => anyhow::bail!("accepted"),
    }
}

fn causes(status: &Status) -> Vec<(String, String)> {
    status.details.iter().flat_map(|d| &d.causes).map(|c| (c.reason.clone(), c.field.clone())).collect()
}

/// What is refused is told in members that programs decide by.
async fn errors(client: Client) -> Result<()> {
    defined(&client).await?;
    let (maps, shelves): (Api<ConfigMap>, Api<Shelf>) = (Api::namespaced(client.clone(), NS), Api::namespaced(client, NS));
    let (pp, dp) = (PostParams::default(), DeleteParams::default());
    let is = |s: Status, code: u16, reason: &str, why: &[(&str, &str)]| {
        let said: Vec<_> = causes(&s);
        ensure!(s.code == code && s.reason == reason && said.iter().map(|(r, f)| (r.as_str(), f.as_str())).eq(why.iter().copied()), "{code} {reason} {why:?}, but {s:?}");
        anyhow::Ok(())
    };
    is(refused(maps.get("absent").await)?, 404, "NotFound", &[])?;
    let first = maps.create(&pp, &map("refused", "errors")?).await?;
    is(refused(maps.create(&pp, &map("refused", "errors")?).await)?, 409, "AlreadyExists", &[])?;
    is(refused(maps.create(&pp, &map("Refused_", "errors")?).await)?, 422, "Invalid", &[("FieldValueInvalid", "metadata.name")])?;
    maps.patch("refused", &PatchParams::apply("one").force(), &Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"v": "1"}}))).await?;
    is(refused(maps.replace("refused", &pp, &first).await)?, 409, "Conflict", &[])?;
    let two = Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"v": "2"}}));
    is(refused(maps.patch("refused", &PatchParams::apply("two"), &two).await)?, 409, "Conflict", &[("FieldManagerConflict", ".data.v")])?;
    let odd = json!({"apiVersion": "v1", "kind": "ConfigMap", "date": {}});
    is(refused(maps.patch("refused", &PatchParams::default().validation_strict(), &Patch::Merge(&odd)).await)?, 422, "Invalid", &[("FieldValueInvalid", "patch")])?;
    let s = refused(maps.patch("refused", &PatchParams::apply("three"), &Patch::Apply(&odd)).await)?;
    ensure!(s.code == 500 && s.message.ends_with(".date: field not declared in schema"), "{s:?}");
    let other = dp.clone().preconditions(Preconditions { uid: Some("another".into()), resource_version: None });
    is(refused(maps.delete("refused", &other).await)?, 409, "Conflict", &[])?;
    is(refused(maps.list(&ListParams::default().labels("a b")).await)?, 400, "BadRequest", &[])?;
    is(refused(maps.list(&ListParams::default().continue_token("nonsense").limit(1)).await)?, 400, "BadRequest", &[])?;
    is(refused(shelves.create(&pp, &Shelf::new("none", made(json!({"books": 1}))?)).await)?, 422, "Invalid", &[("FieldValueInvalid", "<nil>")]).or_else(|e| if e.to_string().contains("failed rule") { Ok(()) } else { Err(e) })?;
    let s = refused(shelves.create(&pp, &Shelf::new("full", made(json!({"books": 21}))?)).await)?;
    ensure!(s.message.contains("too many for one shelf"), "{s:?}");
    is(s, 422, "Invalid", &[("FieldValueInvalid", "spec.books")])?;
    shelves.create(&pp, &Shelf::new("placed", made(json!({"books": 1, "room": "hall"}))?)).await?;
    is(refused(shelves.patch("placed", &PatchParams::default(), &Patch::Merge(json!({"spec": {"room": "attic"}}))).await)?, 422, "Invalid", &[("FieldValueInvalid", "spec.room")])?;
    shelves.delete("placed", &dp).await?;
    maps.delete("refused", &dp).await?;
    Ok(())
}

fn web(name: &str) -> Result<Deployment> {
    made(json!({"metadata": {"name": name}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": {
        "metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "web", "image": "example.local/web:1", "env": [{"name": "A", "value": "1"}]}]}}}}))
}

/// Each kind of patch, dry runs, the scale, and a restart.
async fn patches(client: Client) -> Result<()> {
    let all: Api<Deployment> = Api::namespaced(client, NS);
    let pp = PatchParams::default();
    all.create(&PostParams::default(), &web("patched")?).await?;
    let env = |d: &Deployment| -> Vec<String> {
        d.spec.template.spec.iter().flat_map(|s| s.containers.iter()).flat_map(|c| c.env.iter().flatten()).map(|e| e.name.clone()).collect()
    };
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "env": [{"name": "B", "value": "2"}]}]}}}});
    ensure!(env(&all.patch("patched", &pp.clone().dry_run(), &Patch::Strategic(&strategic)).await?) == ["B", "A"], "a strategic merge keeps the others");
    ensure!(env(&all.get("patched").await?) == ["A"], "a dry run leaves what is");
    all.patch("patched", &pp, &Patch::Strategic(&strategic)).await?;
    let gone = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "env": [{"name": "A", "$patch": "delete"}]}]}}}});
    ensure!(env(&all.patch("patched", &pp, &Patch::Strategic(&gone)).await?) == ["B"], "$patch: delete");
    let wrong: json_patch::Patch = made(json!([{"op": "test", "path": "/spec/replicas", "value": 9}, {"op": "replace", "path": "/spec/replicas", "value": 2}]))?;
    let s = refused(all.patch("patched", &pp, &Patch::Json::<()>(wrong)).await)?;
    ensure!(s.code == 422 && s.reason == "Invalid", "{s:?}");
    let right: json_patch::Patch = made(json!([{"op": "test", "path": "/spec/replicas", "value": 1}, {"op": "replace", "path": "/spec/replicas", "value": 2}, {"op": "add", "path": "/metadata/annotations", "value": {"a/b": "c"}}]))?;
    let d = all.patch("patched", &pp, &Patch::Json::<()>(right)).await?;
    ensure!(d.spec.replicas == Some(2) && d.annotations()["a/b"] == "c", "a JSON patch");
    let mut scale = all.get_scale("patched").await?;
    scale.spec.get_or_insert_default().replicas = Some(1);
    ensure!(all.replace_scale("patched", &PostParams::default(), &scale).await?.spec.and_then(|s| s.replicas) == Some(1), "its scale");
    let of = |d: &Deployment| d.metadata.generation;
    let before = of(&all.get("patched").await?);
    ensure!(of(&all.restart("patched").await?) > before, "a restart is a new generation");
    let applied = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"annotations": {"by": "me"}}});
    let d = all.patch("patched", &PatchParams::apply("me"), &Patch::Apply(applied)).await?;
    ensure!(d.managers().contains("me") && d.annotations()["by"] == "me", "an apply");
    let d = all.patch("patched", &PatchParams::apply("me"), &Patch::Apply(json!({"apiVersion": "apps/v1", "kind": "Deployment"}))).await?;
    ensure!(!d.annotations().contains_key("by"), "what is applied no more goes");
    all.delete("patched", &DeleteParams::foreground()).await?;
    await_condition(all.clone(), "patched", conditions::is_deleted(&d.uid().context("uid")?)).await?;
    Ok(())
}

trait Managers {
    fn managers(&self) -> BTreeSet<String>;
}

impl<K: Resource> Managers for K {
    fn managers(&self) -> BTreeSet<String> {
        self.meta().managed_fields.iter().flatten().filter_map(|m| m.manager.clone()).collect()
    }
}

/// What programs wait for by conditions comes: a rollout, a job, a resize, an end.
async fn waits(client: Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NS);
    let jobs: Api<Job> = Api::namespaced(client.clone(), NS);
    let pods: Api<Pod> = Api::namespaced(client, NS);
    let pp = PostParams::default();
    deployments.create(&pp, &web("waited")?).await?;
    await_condition(deployments.clone(), "waited", conditions::is_deployment_completed()).await?;
    let job = json!({"metadata": {"name": "waited"}, "spec": {"completions": 2, "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "example.local/web:1", "command": ["true"]}]}}}});
    jobs.create(&pp, &made(job)?).await?;
    await_condition(jobs.clone(), "waited", conditions::is_job_completed()).await?;
    let pod = json!({"metadata": {"name": "waited"}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "a", "image": "example.local/web:1", "command": ["sleep", "600"], "resources": {"requests": {"cpu": "10m"}}}]}});
    let one = pods.create(&pp, &made(pod)?).await?;
    await_condition(pods.clone(), "waited", conditions::is_pod_running()).await?;
    let larger = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "20m"}}}]}});
    pods.patch_resize("waited", &PatchParams::default(), &Patch::Strategic(larger)).await?;
    let resized = |p: Option<&Pod>| {
        let status = p.and_then(|p| p.status.as_ref()).and_then(|s| s.container_statuses.as_ref()).and_then(|s| s.first());
        status.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("cpu").cloned()).is_some_and(|q| q.0 == "20m")
    };
    await_condition(pods.clone(), "waited", resized).await?;
    pods.delete("waited", &DeleteParams::default()).await?;
    await_condition(pods.clone(), "waited", conditions::is_deleted(&one.uid().context("uid")?)).await?;
    jobs.delete("waited", &DeleteParams::background()).await?;
    deployments.delete("waited", &DeleteParams::background()).await?;
    Ok(())
}

/// Discovery a group at a time and in one answer say the same, and whatever can be listed is.
async fn discovery(client: Client) -> Result<()> {
    let single = Discovery::new(client.clone()).run().await?;
    let whole = Discovery::new(client.clone()).run_aggregated().await?;
    let told = |d: &Discovery| -> BTreeSet<String> {
        let group = |g: &kube::discovery::ApiGroup| g.versions().flat_map(|v| g.versioned_resources(v)).map(|(r, c)| format!("{}/{} {} {:?} {:?}", r.api_version, r.plural, r.kind, c.scope, c.operations)).collect::<Vec<_>>();
        d.groups().flat_map(group).collect()
    };
    let (a, b) = (told(&single), told(&whole));
    ensure!(a == b, "they differ: {:?}", a.symmetric_difference(&b).collect::<Vec<_>>());
    ensure!(a.len() > 60, "{} resources only", a.len());
    let mut listed = 0;
    for group in whole.groups() {
        for (resource, can) in group.recommended_resources() {
            if can.supports_operation(verbs::LIST) {
                let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                api.list(&ListParams::default().limit(2)).await.with_context(|| resource.plural.clone())?;
                listed += 1;
            }
        }
    }
    ensure!(listed > 40, "{listed} were listed");
    let (resource, can) = pinned_kind(&client, &GroupVersionKind::gvk("apps", "v1", "Deployment")).await?;
    ensure!(resource.plural == "deployments" && can.scope == Scope::Namespaced && can.subresources.iter().any(|(r, _)| r.plural.ends_with("scale")), "{can:?}");
    Ok(())
}

/// Of those who write a lease that they have read, one does.
async fn leases(client: Client) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client, NS);
    leases.create(&PostParams::default(), &made(json!({"metadata": {"name": "raced"}, "spec": {"leaseTransitions": 0}}))?).await?;
    for turn in 1..=10 {
        let read = leases.get("raced").await?;
        let tries = (0..8).map(|i| {
            let (leases, mut mine) = (leases.clone(), read.clone());
            async move {
                let spec = mine.spec.get_or_insert_default();
                (spec.holder_identity, spec.lease_transitions) = (Some(format!("holder-{i}")), Some(turn));
                leases.replace("raced", &PostParams::default(), &mine).await
            }
        });
        let answers = future::join_all(tries).await;
        let won: Vec<_> = answers.iter().filter_map(|a| a.as_ref().ok()).collect();
        ensure!(won.len() == 1, "{} won turn {turn}", won.len());
        ensure!(answers.iter().all(|a| a.is_ok() || matches!(a, Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "Conflict")), "{answers:?}");
        ensure!(leases.get("raced").await?.spec == won[0].spec, "another holds it than who was told so");
    }
    leases.delete("raced", &DeleteParams::default()).await?;
    Ok(())
}

/// Who comes with a token may what its account may, from when it may.
async fn tokens(client: Client) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NS);
    accounts.create(&PostParams::default(), &made(json!({"metadata": {"name": "reader"}}))?).await?;
    let token = accounts.create_token_request("reader", &PostParams::default(), &made::<TokenRequest>(json!({"spec": {"audiences": [], "expirationSeconds": 600}}))?).await?;
    let mut config = Config::infer().await?;
    config.auth_info = kube::config::AuthInfo { token: Some(token.status.and_then(|s| s.token).context("no token")?.into()), ..Default::default() };
    let theirs: Api<Pod> = Api::namespaced(Client::try_from(config.clone())?, NS);
    let s = refused(theirs.list(&ListParams::default()).await)?;
    ensure!(s.code == 403 && s.reason == "Forbidden" && s.message.starts_with("pods is forbidden: User \"system:serviceaccount:shop:reader\" cannot list"), "{s:?}");
    let bindings: Api<RoleBinding> = Api::namespaced(client, NS);
    let binding = json!({"metadata": {"name": "reader"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": NS}]});
    bindings.create(&PostParams::default(), &made(binding)?).await?;
    until("it may", async || theirs.list(&ListParams::default()).await.is_ok()).await?;
    ensure!(refused(theirs.delete("echo", &DeleteParams::default()).await)?.code == 403, "it may delete");
    accounts.delete("reader", &DeleteParams::default()).await?;
    until("it is nobody any more", async || matches!(theirs.list(&ListParams::default()).await, Err(kube::Error::Api(s)) if s.code == 401)).await
}

/// Commands: their three streams, an end told by closing, an exit code, a terminal and its size.
async fn exec(client: Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client, NS);
    let of_one = |params: AttachParams| params.container("a");
    let params = of_one(AttachParams::default().stdin(true).stderr(true));
    let mut run = pods.exec("echo", ["sh", "-c", "wc -c; echo wrong >&2; exit 7"], &params).await?;
    let (mut to, mut out, mut err, status) = (run.stdin().context("in")?, run.stdout().context("out")?, run.stderr().context("err")?, run.take_status().context("status")?);
    let write = async {
        to.write_all(&vec![b'x'; 1 << 20]).await?;
        to.shutdown().await
    };
    let (mut said, mut wrong) = (String::new(), String::new());
    let (a, b, c) = tokio::join!(write, out.read_to_string(&mut said), err.read_to_string(&mut wrong));
    (a?, b?, c?);
    let status = status.await.context("no status")?;
    ensure!(said.trim() == "1048576" && wrong == "wrong\n", "{said:?} {wrong:?}");
    ensure!(status.reason.as_deref() == Some("NonZeroExitCode") && status.details.iter().flat_map(|d| d.causes.iter().flatten()).any(|c| c.reason.as_deref() == Some("ExitCode") && c.message.as_deref() == Some("7")), "{status:?}");
    let s = pods.exec("absent", ["true"], &params).await;
    ensure!(s.is_err(), "a pod that isn't there runs it");
    let mut run = pods.exec("echo", ["sh", "-c", "read x; stty size; tty"], &of_one(AttachParams::interactive_tty())).await?;
    run.terminal_size().context("size")?.try_send(TerminalSize { width: 123, height: 45 })?;
    let (mut to, mut out) = (run.stdin().context("in")?, run.stdout().context("out")?);
    sleep(Duration::from_millis(500)).await;
    to.write_all(b"go\n").await?;
    let mut said = String::new();
    out.read_to_string(&mut said).await?;
    ensure!(said.contains("45 123") && said.contains("/dev/pts/"), "{said:?}");
    Ok(())
}

/// Of a container that runs: what is written to it comes out of it, by two at once.
async fn attach(client: Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client, NS);
    let pod = json!({"metadata": {"name": "cat"}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "a", "image": "example.local/web:1", "stdin": true, "command": ["cat"]}]}});
    pods.create(&PostParams::default(), &made(pod)?).await?;
    await_condition(pods.clone(), "cat", conditions::is_pod_running()).await?;
    let params = AttachParams::default().stdin(true).stdout(true).stderr(false);
    let (mut one, mut two) = (pods.attach("cat", &params).await?, pods.attach("cat", &AttachParams::default().stderr(false)).await?);
    let (mut to, mut out, mut also) = (one.stdin().context("in")?, one.stdout().context("out")?, two.stdout().context("out")?);
    sleep(Duration::from_millis(500)).await;
    to.write_all(b"meow\n").await?;
    let (mut a, mut b) = ([0; 5], [0; 5]);
    out.read_exact(&mut a).await?;
    also.read_exact(&mut b).await?;
    ensure!(&a == b"meow\n" && &b == b"meow\n", "{a:?} {b:?}");
    ensure!(pods.logs("cat", &Default::default()).await? == "meow\n", "its log");
    pods.delete("cat", &DeleteParams::default()).await?;
    Ok(())
}

/// Ports, two of a pod by one connection: HTTP of the one, bytes of the other, and one that nobody listens at.
async fn forward(client: Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client, NS);
    let mut ports = pods.portforward("echo", &[8080, 1234]).await?;
    let (http, mut bytes) = (ports.take_stream(8080).context("8080")?, ports.take_stream(1234).context("1234")?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(http)).await?;
    tokio::spawn(connection);
    let asked = hyper::Request::get("/").header("Host", "echo").body(Empty::<hyper::body::Bytes>::new())?;
    let answer = sender.send_request(asked).await?;
    let (code, body) = (answer.status(), answer.into_body().collect().await?.to_bytes());
    ensure!(code == 200 && body.starts_with(b"forwarded"), "{code} {body:?}");
    let all: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut back = vec![0; all.len()];
    let (mut from, mut to) = tokio::io::split(&mut bytes);
    let (a, b) = tokio::join!(to.write_all(&all), from.read_exact(&mut back));
    (a?, b?);
    ensure!(back == all, "other bytes came back");
    let mut none = pods.portforward("echo", &[9]).await?;
    let (mut stream, error) = (none.take_stream(9).context("9")?, none.take_error(9).context("9")?);
    let _ = stream.write_all(b"x").await;
    ensure!(error.await.is_some_and(|e| e.contains("refused")), "who listens there?");
    Ok(())
}
