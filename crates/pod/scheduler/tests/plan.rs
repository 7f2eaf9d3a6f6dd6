//! Decisions: which node, or why none, on clusters that are written down.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::ObjectKey;
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::plan::{Plan, Turn, Why, plan};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::Profile;
use keelson_scheduler::snapshot::Snapshot;
use keelson_scheduler::world::Fixed;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::sync::Arc;

fn node(name: &str, extra: Value) -> Node {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}},
    });
    merge(&mut node, extra);
    serde_json::from_value(node).unwrap()
}

fn pod(name: &str, extra: Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    merge(&mut pod, extra);
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Arc::new(PodInfo::of(Arc::new(pod)))
}

fn merge(into: &mut Value, extra: Value) {
    match (into, extra) {
        (Value::Object(into), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, extra) => *into = extra,
    }
}

fn asks(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
}

struct Lab {
    cluster: Cluster,
    world: Fixed,
}

fn lab(nodes: impl IntoIterator<Item = Node>) -> Lab {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.set_node(Arc::new(node));
    }
    Lab {
        cluster,
        world: Fixed::default(),
    }
}

impl Lab {
    fn put(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.cluster.assume(Arc::new(pod.on_node(node)));
    }
    fn snapshot(&self) -> Snapshot {
        self.cluster.snapshot(Arc::new(self.world.clone()))
    }
    fn plan(&self, pod: &PodInfo) -> Plan {
        let mut turn = Turn::new(StdRng::seed_from_u64(1));
        plan(&Profile::default(), pod, &self.snapshot(), &mut turn)
    }
    fn node(&self, pod: &PodInfo) -> String {
        match self.plan(pod) {
            Plan::Bind { node, .. } => node,
            Plan::Wait(why) => panic!("{}", why.message()),
        }
    }
    fn why(&self, pod: &PodInfo) -> Why {
        match self.plan(pod) {
            Plan::Bind { node, .. } => panic!("it goes to {node}"),
            Plan::Wait(why) => why,
        }
    }
}

#[test]
fn without_nodes() {
    assert_eq!(
        lab([]).why(&pod("p", json!({}))).message(),
        "no nodes available to schedule pods"
    );
}

#[test]
fn reasons_are_counted_and_preemption_says_that_it_cant_help() {
    let mut lab = lab([
        node("full", json!({})),
        node("small", json!({"status": {"allocatable": {"cpu": "1"}}})),
        node(
            "tainted",
            json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
        ),
        node("cordoned", json!({"spec": {"unschedulable": true}})),
    ]);
    lab.put("full", pod("other", asks("1900m")));
    let why = lab.why(&pod("p", asks("1500m")));
    assert_eq!(
        why.message(),
        "0/4 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 2 Insufficient cpu. \
         preemption: 0/4 nodes are available: 1 No preemption victims found for incoming pod, \
         3 Preemption is not helpful for scheduling."
    );
}

#[test]
fn selectors_affinity_and_ports() {
    let mut lab = lab([
        node("a", json!({"metadata": {"labels": {"disk": "ssd", "n": "5"}}})),
        node("b", json!({})),
    ]);
    let with = |spec: Value| pod("p", json!({"spec": spec}));
    assert_eq!(lab.node(&with(json!({"nodeSelector": {"disk": "ssd"}}))), "a");
    let term = |rule: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [rule]}]}}}})
    };
    assert_eq!(
        lab.node(&with(term(json!({"key": "n", "operator": "Gt", "values": ["4"]})))),
        "a"
    );
    assert_eq!(
        lab.node(&with(term(
            json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]})
        ))),
        "b"
    );
    let none = lab.why(&with(json!({"nodeSelector": {"disk": "tape"}}))).message();
    assert!(
        none.starts_with("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
        "{none}"
    );

    let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "hostIP": ip}]}]});
    lab.put("a", pod("x", json!({"spec": port("0.0.0.0")})));
    lab.put("b", pod("y", json!({"spec": port("127.0.0.1")})));
    assert_eq!(lab.node(&with(port("127.0.0.2"))), "b");
    let taken = lab.why(&with(port(""))).message();
    assert!(
        taken.contains("2 node(s) didn't have free ports for the requested pod ports."),
        "{taken}"
    );
}

#[test]
fn a_pod_for_one_named_node() {
    let lab = lab([
        node("a", json!({"status": {"allocatable": {"cpu": "1"}}})),
        node("b", json!({})),
        node("c", json!({})),
    ]);
    let mut spec = asks("1500m");
    merge(
        &mut spec,
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]}}}}}),
    );
    let message = lab.why(&pod("p", spec)).message();
    assert!(
        message.starts_with(
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
        ),
        "{message}"
    );
}

#[test]
fn the_emptier_node_and_the_tolerated_taint() {
    let mut lab = lab([node("a", json!({})), node("b", json!({}))]);
    lab.put("a", pod("x", asks("1")));
    assert_eq!(lab.node(&pod("p", asks("100m"))), "b");
    let soft = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    lab.cluster.set_node(Arc::new(node("b", soft)));
    assert_eq!(lab.node(&pod("p", asks("100m"))), "a");
}

#[test]
fn apart_and_near() {
    let mut lab = lab([node("a", json!({})), node("b", json!({})), node("c", json!({}))]);
    let web = json!({"metadata": {"labels": {"app": "web"}}});
    let rule = |kind: &str| {
        let mut spec = web.clone();
        merge(
            &mut spec,
            json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}}),
        );
        spec
    };
    // The first of a group goes anywhere, the others to it.
    let first = lab.node(&pod("1", rule("podAffinity")));
    lab.put(&first, pod("1", rule("podAffinity")));
    assert_eq!(lab.node(&pod("2", rule("podAffinity"))), first);
    // Apart from it, and from each other.
    let second = lab.node(&pod("3", rule("podAntiAffinity")));
    assert_ne!(second, first);
    lab.put(&second, pod("3", rule("podAntiAffinity")));
    let third = lab.node(&pod("4", rule("podAntiAffinity")));
    lab.put(&third, pod("4", rule("podAntiAffinity")));
    let why = lab.why(&pod("5", rule("podAntiAffinity"))).message();
    assert!(why.contains("3 node(s) didn't match pod anti-affinity rules."), "{why}");
    // Who doesn't mind is still kept off by those who do.
    assert_eq!(lab.node(&pod("6", web)), first);
}

#[test]
fn spread_over_zones() {
    let in_zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
    let mut lab = lab([
        in_zone("a1", "a"),
        in_zone("a2", "a"),
        in_zone("b1", "b"),
        node("nowhere", json!({})),
    ]);
    let spec = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [{
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let mut zones = Vec::new();
    for n in 0..6 {
        let name = lab.node(&pod(&n.to_string(), spec.clone()));
        zones.push(name[..1].to_owned());
        lab.put(&name, pod(&n.to_string(), spec.clone()));
    }
    assert_eq!(zones.iter().filter(|z| *z == "a").count(), 3, "{zones:?}");
    lab.cluster.set_node(Arc::new(node(
        "b1",
        json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"unschedulable": true}}),
    )));
    lab.put("a1", pod("7", spec.clone()));
    let why = lab.why(&pod("8", spec)).message();
    assert!(
        why.starts_with(
            "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
             1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints."
        ),
        "{why}"
    );
}

fn important(name: &str, priority: i32, cpu: &str) -> Arc<PodInfo> {
    let mut spec = asks(cpu);
    merge(
        &mut spec,
        json!({"metadata": {"labels": {"name": name}}, "spec": {"priority": priority}}),
    );
    pod(name, spec)
}

fn victims(why: &Why) -> (String, Vec<String>) {
    let (node, victims) = why.preemption.as_ref().unwrap().target.clone().unwrap();
    (node, victims.iter().map(|v| v.key.name.clone()).collect())
}

#[test]
fn the_least_important_have_to_go_and_no_more_than_needed() {
    let mut lab = lab([node("a", json!({})), node("b", json!({}))]);
    lab.put("a", important("a-low", 1, "1"));
    lab.put("a", important("a-mid", 5, "900m"));
    lab.put("b", important("b-mid", 5, "1900m"));
    let why = lab.why(&important("p", 10, "1"));
    assert_eq!(victims(&why), ("a".into(), vec!["a-low".into()]));
    assert!(
        why.preemption
            .unwrap()
            .message
            .starts_with("found a potential placement for pod on node a, preempting 1")
    );
    let equal = lab.why(&important("p", 1, "1"));
    assert!(equal.preemption.as_ref().unwrap().target.is_none());
    assert!(
        equal
            .message()
            .contains("2 No preemption victims found for incoming pod."),
        "{}",
        equal.message()
    );
}

#[test]
fn budgets_are_spared_if_there_is_another_way() {
    let mut lab = lab([node("a", json!({})), node("b", json!({}))]);
    lab.put("a", important("guarded", 1, "1900m"));
    lab.put("b", important("free", 5, "1900m"));
    let budget = json!({
        "metadata": {"name": "b", "namespace": "default", "uid": "b"},
        "spec": {"selector": {"matchLabels": {"name": "guarded"}}},
        "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
    });
    lab.world
        .budgets
        .push(Arc::new(serde_json::from_value(budget).unwrap()));
    assert_eq!(
        victims(&lab.why(&important("p", 10, "1"))),
        ("b".into(), vec!["free".into()])
    );
    lab.cluster.remove_node("b");
    assert_eq!(
        victims(&lab.why(&important("p", 10, "1"))),
        ("a".into(), vec!["guarded".into()])
    );
}

#[test]
fn room_that_was_made_for_somebody_stays_free_for_him() {
    let mut lab = lab([node("a", json!({}))]);
    lab.cluster.nominate(important("nominated", 10, "1500m"), "a");
    let why = lab.why(&important("p", 5, "1")).message();
    assert!(why.contains("1 Insufficient cpu"), "{why}");
    assert_eq!(lab.node(&important("q", 20, "1")), "a");
    assert_eq!(lab.node(&important("nominated", 10, "1500m")), "a");
}

#[test]
fn never_preempting() {
    let mut lab = lab([node("a", json!({}))]);
    lab.put("a", important("low", 1, "1900m"));
    let mut spec = asks("1");
    merge(
        &mut spec,
        json!({"spec": {"priority": 10, "preemptionPolicy": "Never"}}),
    );
    let message = lab.why(&pod("p", spec)).message();
    assert!(
        message.ends_with("preemption: not eligible due to preemptionPolicy=Never."),
        "{message}"
    );
}

fn claim(name: &str, class: &str, extra: Value) -> Value {
    let mut claim = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    merge(&mut claim, extra);
    claim
}

fn uses(name: &str) -> Arc<PodInfo> {
    pod(
        "p",
        json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]}}),
    )
}

#[test]
fn claims_and_volumes() {
    let mut lab = lab([node("a", json!({})), node("b", json!({}))]);
    let missing = lab.why(&uses("none")).message();
    assert!(
        missing.starts_with("0/2 nodes are available: persistentvolumeclaim \"none\" not found. not found"),
        "{missing}"
    );
    for (class, provisioner) in [("local", "kubernetes.io/no-provisioner"), ("made", "example.com/made")] {
        let class = json!({"metadata": {"name": class}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"});
        lab.world.classes.push(Arc::new(serde_json::from_value(class).unwrap()));
    }
    for (name, class) in [("now", ""), ("disk", "local"), ("new", "made")] {
        lab.world
            .claims
            .push(Arc::new(serde_json::from_value(claim(name, class, json!({}))).unwrap()));
    }
    let immediate = lab.why(&uses("now")).message();
    assert!(
        immediate.contains("pod has unbound immediate PersistentVolumeClaims."),
        "{immediate}"
    );
    let none = lab.why(&uses("disk")).message();
    assert!(
        none.contains("2 node(s) didn't find available persistent volumes to bind."),
        "{none}"
    );

    for (name, node, size) in [("large", "b", "9Gi"), ("small", "b", "2Gi"), ("tiny", "a", "1Mi")] {
        let volume = json!({
            "metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}},
        });
        lab.world
            .volumes
            .push(Arc::new(serde_json::from_value(volume).unwrap()));
    }
    let Plan::Bind { node, volumes, .. } = lab.plan(&uses("disk")) else {
        panic!()
    };
    assert_eq!(
        (node.as_str(), volumes.bind[0].0.metadata.name.as_deref()),
        ("b", Some("small"))
    );
    // Another pod with the claim, before the API shows what was decided for the first.
    lab.cluster.promise("large", ObjectKey::new("default", "disk"));
    let Plan::Bind { volumes, .. } = lab.plan(&uses("disk")) else {
        panic!()
    };
    assert_eq!(volumes.bind[0].0.metadata.name.as_deref(), Some("large"));
    let Plan::Bind { volumes, .. } = lab.plan(&uses("new")) else {
        panic!()
    };
    assert_eq!((volumes.provision.len(), volumes.bind.len()), (1, 0));

    let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "tiny"}});
    lab.world.claims.push(Arc::new(
        serde_json::from_value(claim("bound", "local", bound)).unwrap(),
    ));
    assert_eq!(lab.node(&uses("bound")), "a");
}

#[test]
fn volumes_are_made_where_there_is_room() {
    let mut lab = lab([
        node("a", json!({"metadata": {"labels": {"rack": "1"}}})),
        node("b", json!({"metadata": {"labels": {"rack": "2"}}})),
    ]);
    let made = json!({"metadata": {"name": "made"}, "provisioner": "disk.example.com", "volumeBindingMode": "WaitForFirstConsumer"});
    lab.world.classes.push(Arc::new(serde_json::from_value(made).unwrap()));
    let wanted = claim(
        "new",
        "made",
        json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}}),
    );
    lab.world.claims.push(Arc::new(serde_json::from_value(wanted).unwrap()));
    assert!(
        matches!(lab.plan(&uses("new")), Plan::Bind { .. }),
        "nobody tells how much room there is"
    );

    let driver = json!({"metadata": {"name": "disk.example.com"}, "spec": {"storageCapacity": true}});
    lab.world
        .csi_drivers
        .push(Arc::new(serde_json::from_value(driver).unwrap()));
    let none = lab.why(&uses("new")).message();
    assert!(none.contains("2 node(s) did not have enough free storage."), "{none}");

    let room = |name: &str, rack: &str, more: Value| {
        let mut capacity = json!({"metadata": {"name": name, "namespace": "kube-system"}, "storageClassName": "made",
            "nodeTopology": {"matchLabels": {"rack": rack}}});
        merge(&mut capacity, more);
        Arc::new(serde_json::from_value(capacity).unwrap())
    };
    lab.world
        .capacities
        .push(room("a", "1", json!({"capacity": "9Gi", "maximumVolumeSize": "4Gi"})));
    lab.world.capacities.push(room("b", "2", json!({"capacity": "6Gi"})));
    let Plan::Bind { node, volumes, .. } = lab.plan(&uses("new")) else {
        panic!()
    };
    assert_eq!((node.as_str(), volumes.provision.len()), ("b", 1));

    // The one that keeps the most is preferred, though b is as empty; and so is the one of volumes that exist.
    lab.world.capacities.push(room("c", "1", json!({"capacity": "100Gi"})));
    assert_eq!(lab.node(&uses("new")), "a");
    lab.world.capacities.push(room("d", "2", json!({"capacity": "1Ti"})));
    lab.world.capacities.retain(|c| c.metadata.name.as_deref() != Some("b"));
    assert_eq!(lab.node(&uses("new")), "b");
}

#[test]
fn a_node_takes_as_many_volumes_as_its_driver_says() {
    let mut lab = lab([node("a", json!({}))]);
    let csi_node = json!({"metadata": {"name": "a"}, "spec": {"drivers": [
        {"name": "disk.example.com", "nodeID": "a", "allocatable": {"count": 2}}]}});
    lab.world
        .csi_nodes
        .push(Arc::new(serde_json::from_value(csi_node).unwrap()));
    for name in ["one", "two", "three"] {
        let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": name}});
        lab.world
            .claims
            .push(Arc::new(serde_json::from_value(claim(name, "made", bound)).unwrap()));
        let volume = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"},
            "csi": {"driver": "disk.example.com", "volumeHandle": name}}});
        lab.world
            .volumes
            .push(Arc::new(serde_json::from_value(volume).unwrap()));
    }
    let with = |pod_name: &str, claim: &str| {
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
        pod(pod_name, json!({"spec": {"volumes": volumes}}))
    };
    lab.put("a", with("p1", "one"));
    assert_eq!(lab.node(&with("p2", "two")), "a");
    // One that nobody uses any more is still attached.
    let attachment = json!({"metadata": {"name": "x"}, "spec": {"attacher": "disk.example.com", "nodeName": "a",
        "source": {"persistentVolumeName": "three"}}});
    lab.world
        .attachments
        .push(Arc::new(serde_json::from_value(attachment).unwrap()));
    let full = lab.why(&with("p2", "two")).message();
    assert!(full.contains("1 node(s) exceed max volume count."), "{full}");
    assert_eq!(lab.node(&with("p3", "one")), "a", "it is there already");

    let insisting = json!({"metadata": {"name": "disk.example.com"}, "spec": {"preventPodSchedulingIfMissing": true}});
    lab.world
        .csi_drivers
        .push(Arc::new(serde_json::from_value(insisting).unwrap()));
    lab.world.csi_nodes.clear();
    let missing = lab.why(&with("p2", "two")).message();
    assert!(
        missing.contains("1 disk.example.com CSI driver is not installed on the node."),
        "{missing}"
    );
}

#[test]
fn features_are_declared_by_nodes() {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
    let picky = pod(
        "p",
        json!({"spec": {"containers": [{"name": "c", "restartPolicyRules": rule}]}}),
    );
    let declaring = |names: Value| json!({"status": {"declaredFeatures": names}});
    let older = node("older", declaring(json!(["InPlacePodVerticalScalingInitContainers"])));
    let newer = node("newer", declaring(json!(["RestartAllContainersOnContainerExits"])));
    let why = lab([older.clone()]).why(&picky).message();
    assert_eq!(
        why,
        "0/1 nodes are available: 1 node(s) didn't match Pod's required features. \
         preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
    assert_eq!(lab([older, newer]).node(&picky), "newer");
}
