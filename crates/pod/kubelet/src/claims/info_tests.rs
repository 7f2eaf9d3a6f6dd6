use super::*;
use serde_json::json;

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {
            "containers": [
                {"name": "all", "resources": {"claims": [{"name": "shared"}]}},
                {"name": "one", "resources": {"claims": [{"name": "shared", "request": "big"}, {"name": "own"}]}},
                {"name": "none"}],
            "resourceClaims": [
                {"name": "shared", "resourceClaimName": "c"},
                {"name": "own", "resourceClaimTemplateName": "t"}]},
        "status": {"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x"}]}}))
    .unwrap()
}

fn claim(name: &str, uid: &str, reserved: &str) -> ResourceClaim {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": uid,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]},
        "spec": {},
        "status": {
            "allocation": {"devices": {"results": [
                {"request": "big", "driver": "d", "pool": "n", "device": "x"},
                {"request": "small", "driver": "d", "pool": "n", "device": "y"}]}},
            "reservedFor": [{"resource": "pods", "name": "p", "uid": reserved}]}}))
    .unwrap()
}

fn device(device: &str, requests: &[&str], cdi: &str) -> Device {
    Device {
        pool: "n".into(),
        device: device.into(),
        requests: requests.iter().map(|r| (*r).to_owned()).collect(),
        cdi: vec![cdi.into()],
        ..Device::default()
    }
}

#[test]
fn claims_are_found_by_name_or_by_what_was_made_of_a_template() {
    let named = |claim: &str, owned| Named {
        claim: claim.into(),
        owned,
    };
    let mut p = pod();
    assert_eq!(claims_of(&p).unwrap(), [named("c", false), named("p-own-x", true)]);
    p.status.as_mut().unwrap().resource_claim_statuses = None;
    assert_eq!(
        claims_of(&p).unwrap_err(),
        "pod \"ns/p\": ResourceClaim not created yet"
    );
}

#[test]
fn a_pod_uses_what_is_reserved_for_it_only() {
    let p = pod();
    let info = Info::of(&p, &claim("c", "1", "u"), true).unwrap();
    assert_eq!(info.drivers, BTreeMap::from([("d".to_owned(), Vec::new())]));
    assert_eq!(
        Info::of(&p, &claim("c", "1", "other"), false).unwrap_err(),
        "pod p (u) is not allowed to use ResourceClaim c (1)"
    );
    let mut others = claim("c", "1", "u");
    others.metadata.owner_references = None;
    assert!(Info::of(&p, &others, true).unwrap_err().contains("Pod is not owner"));
    assert!(Info::of(&p, &others, false).is_ok());
    others.status.as_mut().unwrap().allocation = None;
    assert_eq!(
        Info::of(&p, &others, false).unwrap_err(),
        "ResourceClaim c: not allocated"
    );
}

#[test]
fn a_claim_is_prepared_once_and_given_back_by_its_last_pod() {
    let mut known = Known::default();
    let fresh = Info::of(&pod(), &claim("c", "1", "u"), false).unwrap();
    assert!(known.take("u", fresh.clone()).unwrap().is_some());
    known.made("ns", "c", "d", vec![device("x", &[], "v/c=x")]).unwrap();
    known.prepared("ns", "c").unwrap();
    assert_eq!(known.take("w", fresh.clone()).unwrap(), None);
    let another = Info {
        uid: "2".into(),
        ..fresh.clone()
    };
    assert!(known.take("w", another).unwrap_err().contains("still exists"));
    assert!(known.leave("u").is_empty() && known.uses("w") && !known.uses("u"));
    let last = known.leave("w");
    assert_eq!(last.len(), 1);
    assert_eq!(
        known.take("v", fresh).unwrap_err(),
        "ResourceClaim c is being unprepared"
    );
    known.remove(&last[0]);
    assert!(known.list().is_empty());
}

#[test]
fn containers_get_the_devices_of_their_requests() {
    let mut known = Known::default();
    for (name, uid) in [("c", "1"), ("p-own-x", "2")] {
        known
            .take("u", Info::of(&pod(), &claim(name, uid, "u"), false).unwrap())
            .unwrap();
    }
    let devices = vec![device("x", &["big"], "v/c=x"), device("y", &["small"], "v/c=y")];
    known.made("ns", "c", "d", devices).unwrap();
    known
        .made("ns", "p-own-x", "d", vec![device("z", &[], "v/c=z")])
        .unwrap();
    let p = pod();
    let of = |i: usize| known.cdi(&p, &pods::containers(&p)[i]).unwrap();
    assert_eq!(
        (of(0), of(1), of(2)),
        (
            vec!["v/c=x".into(), "v/c=y".into()],
            vec!["v/c=x".into(), "v/c=z".into()],
            vec![]
        )
    );
    let of = BTreeSet::from([("n".to_owned(), "z".to_owned())]);
    assert_eq!(known.users("d", &of), BTreeSet::from(["u".to_owned()]));
    assert!(
        Known::default()
            .cdi(&p, &pods::containers(&p)[0])
            .unwrap_err()
            .contains("unable to get claim info")
    );
}
