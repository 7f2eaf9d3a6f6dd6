//! What is compared after some of it may change: what is left of nothing is nothing.

use super::pod_update;
use super::tests::{pod, read, request, shown, update};
use keelson_api::{Value, value};

#[test]
fn containers_are_resized_in_what_they_did_not_say_before() {
    let cx = request("", "Pod");
    let with = |all: Value| {
        let mut pod = pod();
        pod.set_at(&["spec", "containers"], all);
        read(&cx, pod)
    };
    let of = |resources: &[Value]| {
        let all = resources.iter().enumerate();
        let all = all.map(|(i, r)| value!({"name": format!("c{i}"), "image": "a", "resources": r.clone()}));
        with(all.collect::<Vec<_>>().into())
    };
    let resized = |old: &[Value], new: &[Value]| {
        let mut e = super::check::Errs::default();
        pod_update::resize(&of(new), &of(old), &mut e);
        shown(e.list.into())
    };
    let cpu = value!({"requests": {"cpu": "1"}});
    let more = [
        value!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}),
        value!({"requests": {"cpu": "2", "memory": "1Gi"}}),
        value!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}),
    ];
    for new in more {
        assert_eq!(
            resized(std::slice::from_ref(&cpu), std::slice::from_ref(&new)),
            [""; 0],
            "{new:?}"
        );
        // One that asked for nothing, beside one that did.
        assert_eq!(
            resized(&[cpu.clone(), value!({})], &[cpu.clone(), new.clone()]),
            [""; 0],
            "{new:?}"
        );
    }
    let disk = value!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}});
    let only = "spec: Forbidden: only cpu and memory resources are mutable";
    assert_eq!(resized(&[cpu], &[disk]), [only]);
}

#[test]
fn what_a_suspended_job_says_of_nodes_may_come_and_go() {
    let job = |affinity: Option<Value>| {
        let mut job = value!({"metadata": {"name": "a"}, "spec": {"suspend": true, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}}}});
        if let Some(affinity) = affinity {
            job.set_at(&["spec", "template", "spec", "affinity"], affinity);
        }
        job
    };
    let on = |zone: &str| {
        let term = value!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]});
        value!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}})
    };
    let forms = [None, Some(value!({})), Some(on("a")), Some(on("b"))];
    for old in &forms {
        for new in &forms {
            let found = update("batch", "Job", job(old.clone()), |job| {
                let pod = job.0.object_mut("spec").object_mut("template").object_mut("spec");
                match new {
                    Some(affinity) => drop(pod.insert("affinity", affinity.clone())),
                    None => drop(pod.remove("affinity")),
                }
            });
            assert_eq!(found, [""; 0], "{old:?} → {new:?}");
        }
    }
}
