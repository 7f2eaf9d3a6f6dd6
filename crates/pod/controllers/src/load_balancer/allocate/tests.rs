use super::super::wish::{ADDRESSES, POOL, SHARING, has};
use super::*;
use k8s_openapi::api::core::v1::Service;
use keelson_balancing::LoadBalancerIpPool;
use keelson_client::ApiObject;
use keelson_client::labels::Labels;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn pools(all: Value) -> Pools {
    let pool = |(name, spec): (&String, &Value)| {
        let pool = json!({"metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec});
        Arc::new(serde_json::from_value(pool).unwrap())
    };
    let all: Vec<Arc<LoadBalancerIpPool>> = all.as_object().unwrap().iter().map(pool).collect();

    Pools::read(&all, &[])
}

/// A service, of which only what is said differs from a plain one of IPv4.
fn service(name: &str, change: Value) -> Service {
    let mut all = json!({"metadata": {"name": name, "namespace": "shop", "annotations": {}, "labels": {}},
        "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "selector": {"app": name},
            "ports": [{"port": 80, "protocol": "TCP"}]}});
    for (key, value) in change.as_object().unwrap() {
        match key.as_str() {
            "annotations" | "labels" => all["metadata"][key] = value.clone(),
            "has" => {
                let ingress: Vec<Value> = value.as_array().unwrap().iter().map(|ip| json!({"ip": ip})).collect();
                all["status"] = json!({"loadBalancer": {"ingress": ingress}});
            }
            _ => all["spec"][key] = value.clone(),
        }
    }
    Service::decode(all.to_string().as_bytes()).unwrap()
}

/// A cluster of services, each of which has what it was given.
#[derive(Default)]
struct Cluster {
    services: BTreeMap<String, Service>,
    nodes: BTreeSet<IpAddr>,
}

impl Cluster {
    fn users(&self, ip: IpAddr) -> Vec<User> {
        let holds = |s: &&Service| has(s).contains(&ip);
        self.services.values().filter(holds).map(User::of).collect()
    }

    fn ask(&self, service: &Service, pools: &Pools) -> Result<Given, String> {
        let shop: Labels = [("team".to_string(), "shop".to_string())].into();
        let wish = Wish::of(service, Some(&shop))?;
        let holders = Holders {
            users: &|ip| self.users(ip),
            nodes: &self.nodes,
        };
        allocate(&wish, pools, &holders)
    }

    /// Gives it what it gets: its pool and addresses, or why not.
    fn add(&mut self, mut service: Service, pools: &Pools) -> String {
        let given = self.ask(&service, pools);
        let status = service.status.get_or_insert_default();
        let of = |ip: &IpAddr| json!({"ip": ip});
        let ingress: Vec<Value> = given.iter().flat_map(|g| &g.addresses).map(of).collect();
        status.load_balancer = Some(serde_json::from_value(json!({"ingress": ingress})).unwrap());
        self.services.insert(service.name().to_string(), service);
        shown(&given)
    }
}

fn shown(given: &Result<Given, String>) -> String {
    match given {
        Ok(given) => {
            let all: Vec<String> = given.addresses.iter().map(IpAddr::to_string).collect();
            format!("{} {}", given.pool, all.join(" "))
        }
        Err(why) => why.clone(),
    }
}

#[test]
fn a_service_gets_the_lowest_address_that_is_free() {
    let pools = pools(json!({"a": {"addresses": ["192.0.2.8/31", "192.0.2.1-192.0.2.1"]}}));
    let mut cluster = Cluster::default();
    cluster.nodes.insert("192.0.2.9".parse().unwrap());
    let mut add = |name: &str| cluster.add(service(name, json!({})), &pools);
    assert_eq!(add("one"), "a 192.0.2.8");
    assert_eq!(add("two"), "a 192.0.2.1", "not a node's");
    assert_eq!(add("three"), "no available IPs");
    assert_eq!(add("one"), "a 192.0.2.8", "asked again it keeps what it has");
    cluster.services.remove("one");
    assert_eq!(cluster.add(service("three", json!({})), &pools), "a 192.0.2.8");
}

#[test]
fn pools_are_asked_in_order_and_by_whom_they_are_for() {
    let pools = pools(json!({
        "a": {"addresses": ["192.0.2.0/32"]},
        "b": {"addresses": ["192.0.2.1/32"]},
        "of-shop": {"addresses": ["192.0.2.2/32"], "namespaceSelector": {"matchLabels": {"team": "shop"}}},
        "of-web": {"addresses": ["192.0.2.3/32"], "serviceSelector": {"matchLabels": {"app": "web"}}},
        "on-demand": {"addresses": ["192.0.2.4/32"], "autoAssign": false},
        "others": {"addresses": ["192.0.2.5/32"], "namespaceSelector": {"matchLabels": {"team": "bar"}}},
    }));
    let ask = |change: Value| shown(&Cluster::default().ask(&service("s", change), &pools));
    assert_eq!(ask(json!({})), "of-shop 192.0.2.2");
    for (pool, got) in [
        ("a", "a 192.0.2.0"),
        ("on-demand", "on-demand 192.0.2.4"),
        ("of-web", "pool of-web not compatible for ip assignment"),
        ("none", "unknown pool \"none\""),
    ] {
        assert_eq!(ask(json!({"annotations": {POOL: pool}})), got);
    }
    assert_eq!(
        ask(json!({"annotations": {POOL: "of-web"}, "labels": {"app": "web"}})),
        "of-web 192.0.2.3"
    );
    assert_eq!(ask(json!({"loadBalancerIP": "192.0.2.4"})), "on-demand 192.0.2.4");
    assert_eq!(ask(json!({"annotations": {ADDRESSES: "192.0.2.1"}})), "b 192.0.2.1");
    assert_eq!(
        ask(json!({"annotations": {ADDRESSES: "192.0.2.5"}})),
        "pool others not compatible for ip assignment"
    );
    assert_eq!(
        ask(json!({"loadBalancerIP": "192.0.2.9"})),
        "[192.0.2.9] is not allowed in config"
    );
    assert_eq!(
        ask(json!({"loadBalancerIP": "192.0.2.0", "annotations": {POOL: "b"}})),
        "requested loadBalancer IP(s) [192.0.2.0] is not compatible with requested address pool b"
    );
    assert_eq!(
        ask(json!({"loadBalancerIP": "2001:db8::1"})),
        "requested loadBalancer IP(s) [2001:db8::1] does not match the ipFamily of the service"
    );
    assert_eq!(
        ask(json!({"annotations": {ADDRESSES: "192.0.2.1,x"}})),
        "invalid requested loadbalancer IPs: \"192.0.2.1,x\""
    );
    let mut cluster = Cluster::default();
    let got: Vec<String> = (0..4)
        .map(|n| cluster.add(service(&format!("s{n}"), json!({})), &pools))
        .collect();
    assert_eq!(
        got,
        ["of-shop 192.0.2.2", "a 192.0.2.0", "b 192.0.2.1", "no available IPs"]
    );
}

#[test]
fn what_a_service_has_it_keeps_while_that_is_allowed() {
    let before = json!({"a": {"addresses": ["192.0.2.0/30"]}, "b": {"addresses": ["198.51.100.0/30"]}});
    let has = |change: Value| {
        let mut all = json!({"has": ["192.0.2.3"]});
        all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        service("s", all)
    };
    for (why, now, change, got) in [
        ("nothing changed", before.clone(), json!({}), "a 192.0.2.3"),
        (
            "the pool has shrunk",
            json!({"a": {"addresses": ["192.0.2.0/31"]}}),
            json!({}),
            "a 192.0.2.0",
        ),
        (
            "it has gone",
            json!({"b": {"addresses": ["198.51.100.0/30"]}}),
            json!({}),
            "b 198.51.100.0",
        ),
        (
            "it has another name",
            json!({"z": {"addresses": ["192.0.2.0/30"]}}),
            json!({}),
            "z 192.0.2.3",
        ),
        (
            "it gives no more by itself",
            json!({"a": {"addresses": ["192.0.2.0/30"], "autoAssign": false}}),
            json!({}),
            "a 192.0.2.3",
        ),
        (
            "it is for others now",
            json!({"a": {"addresses": ["192.0.2.0/30"], "serviceSelector": {"matchLabels": {"x": "y"}}}}),
            json!({}),
            "no available IPs",
        ),
        (
            "another pool is asked for",
            before.clone(),
            json!({"annotations": {POOL: "b"}}),
            "b 198.51.100.0",
        ),
        (
            "another address is asked for",
            before.clone(),
            json!({"loadBalancerIP": "192.0.2.1"}),
            "a 192.0.2.1",
        ),
        (
            "its address is asked for",
            before.clone(),
            json!({"loadBalancerIP": "192.0.2.3"}),
            "a 192.0.2.3",
        ),
        (
            "its families changed",
            json!({"a": {"addresses": ["192.0.2.0/30", "2001:db8::/126"]}}),
            json!({"ipFamilies": ["IPv6"]}),
            "a 2001:db8::",
        ),
        (
            "it may have both families now",
            json!({"a": {"addresses": ["192.0.2.0/30", "2001:db8::/126"]}}),
            json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}),
            "a 2001:db8:: 192.0.2.3",
        ),
        (
            "it must have both",
            json!({"a": {"addresses": ["192.0.2.0/30", "2001:db8::/126"]}}),
            json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}),
            "a 192.0.2.0 2001:db8::",
        ),
    ] {
        assert_eq!(shown(&Cluster::default().ask(&has(change), &pools(now))), got, "{why}");
    }
}

#[test]
fn addresses_of_both_families_are_of_one_pool() {
    let all = pools(json!({
        "a": {"addresses": ["192.0.2.0/32"]},
        "b": {"addresses": ["2001:db8::/128"]},
        "c": {"addresses": ["2001:db8:1::/127", "198.51.100.0/32"]},
    }));
    let mut cluster = Cluster::default();
    let mut add = |name: &str, first: &str, second: &str, policy: &str| {
        cluster.add(
            service(name, json!({"ipFamilies": [first, second], "ipFamilyPolicy": policy})),
            &all,
        )
    };
    assert_eq!(
        add("one", "IPv6", "IPv4", "RequireDualStack"),
        "c 2001:db8:1:: 198.51.100.0"
    );
    assert_eq!(add("two", "IPv4", "IPv6", "RequireDualStack"), "no available IPs");
    assert_eq!(add("three", "IPv4", "IPv6", "PreferDualStack"), "a 192.0.2.0");
    assert_eq!(
        add("four", "IPv4", "IPv6", "PreferDualStack"),
        "b 2001:db8::",
        "the second family is better than none"
    );
    assert_eq!(
        shown(&cluster.ask(
            &service(
                "s",
                json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "annotations": {ADDRESSES: "192.0.2.0,2001:db8::"}})
            ),
            &all
        )),
        "[192.0.2.0, 2001:db8::] is not allowed in config"
    );
}

#[test]
fn one_address_for_several_services() {
    let all = pools(json!({"a": {"addresses": ["192.0.2.0/30"]}}));
    let mut cluster = Cluster::default();
    let mut add = |name: &str, key: &str, port: u16, policy: &str, app: &str| {
        let change = json!({"annotations": {SHARING: key}, "ports": [{"port": port}], "externalTrafficPolicy": policy,
            "selector": {"app": app}});
        cluster.add(service(name, change), &all)
    };
    assert_eq!(add("one", "k", 80, "Cluster", "x"), "a 192.0.2.0");
    assert_eq!(add("two", "k", 443, "Cluster", "y"), "a 192.0.2.0", "other port");
    assert_eq!(add("three", "k", 443, "Cluster", "y"), "a 192.0.2.1", "the same port");
    assert_eq!(add("four", "other", 1, "Cluster", "y"), "a 192.0.2.2", "another key");
    assert_eq!(add("five", "k", 2, "Local", "x"), "a 192.0.2.3", "another policy");
    assert_eq!(add("six", "k", 3, "Local", "x"), "a 192.0.2.3", "the same pods");
    assert_eq!(add("seven", "k", 4, "Local", "y"), "no available IPs", "other pods");
    assert_eq!(
        add("eight", "", 5, "Cluster", "x"),
        "no available IPs",
        "nobody beside it"
    );
    let asked = service(
        "nine",
        json!({"annotations": {SHARING: "k"}, "loadBalancerIP": "192.0.2.0"}),
    );
    assert_eq!(
        cluster.add(asked, &all),
        "port 80/TCP is already in use on 192.0.2.0 by shop/one"
    );
    let selfish = service(
        "one",
        json!({"ports": [{"port": 80}], "loadBalancerIP": "192.0.2.0", "has": ["192.0.2.0"]}),
    );
    let got = cluster.add(selfish, &all);
    assert!(got.ends_with("shop/two: new service does not allow sharing"), "{got}");
}

#[test]
fn who_has_a_port_does_not_lose_it_to_who_comes_to_want_it() {
    let all = pools(json!({"a": {"addresses": ["192.0.2.0/31"]}}));
    let holder = |name: &str, wants: u16, has: u16| {
        let ports = json!([{"port": wants, "protocol": "TCP"}]);
        let mut holder = service(name, json!({"annotations": {SHARING: "k"}, "ports": ports}));
        let held = json!([{"ip": "192.0.2.0", "ports": [{"port": has, "protocol": "TCP"}]}]);
        holder.status = Some(serde_json::from_value(json!({"loadBalancer": {"ingress": held}})).unwrap());
        holder
    };
    let (first, greedy) = (holder("first", 80, 80), holder("greedy", 80, 443));
    let mut cluster = Cluster::default();
    for one in [&first, &greedy] {
        cluster.services.insert(one.name().to_string(), one.clone());
    }
    assert_eq!(
        shown(&cluster.ask(&first, &all)),
        "a 192.0.2.0",
        "whichever is looked at first"
    );
    assert_eq!(shown(&cluster.ask(&greedy, &all)), "a 192.0.2.1");
}

#[test]
fn pods_of_another_namespace_are_others() {
    let all = pools(json!({"a": {"addresses": ["192.0.2.0/32"]}}));
    let change = json!({"annotations": {SHARING: "k"}, "externalTrafficPolicy": "Local", "selector": {"app": "x"}});
    let mut cluster = Cluster::default();
    assert_eq!(cluster.add(service("one", change.clone()), &all), "a 192.0.2.0");
    let mut other = change;
    other["ports"] = json!([{"port": 443}]);
    let mut other = service("other", other);
    assert!(cluster.ask(&other, &all).is_ok());
    other.metadata.namespace = Some("bar".into());
    assert_eq!(shown(&cluster.ask(&other, &all)), "no available IPs");
}

/// Whatever comes and goes: no address is given twice to those that don't share, nobody loses what may stay, what is free is given, and a
/// restart changes nothing.
#[test]
fn random_services_and_pools() {
    let mut seed = 7u64;
    let mut draw = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut cluster = Cluster::default();
    let mut spec =
        json!({"a": {"addresses": ["192.0.2.0/29", "2001:db8::/126"]}, "b": {"addresses": ["198.51.100.0/30"]}});
    for _ in 0..500 {
        let name = format!("s{}", draw(12));
        match draw(10) {
            0 => drop(cluster.services.remove(&name)),
            1 => {
                let range = ["192.0.2.0/29", "192.0.2.4/30", "192.0.2.0/31"][draw(3) as usize];
                spec["a"]["addresses"][0] = json!(range);
            }

            2 => spec["b"]["autoAssign"] = json!(draw(2) == 0),
            _ => {
                let families = [json!(["IPv4"]), json!(["IPv6"]), json!(["IPv4", "IPv6"])][draw(3) as usize].clone();
                let policy = match families.as_array().unwrap().len() {
                    1 => "SingleStack",
                    _ => ["PreferDualStack", "RequireDualStack"][draw(2) as usize],
                };
                let key = ["", "k", "l"][draw(3) as usize];
                let mut new = service(
                    &name,
                    json!({"ipFamilies": families, "ipFamilyPolicy": policy,
                    "annotations": {SHARING: key}, "ports": [{"port": 1 + draw(3)}]}),
                );
                new.status = cluster.services.get(&name).and_then(|s| s.status.clone());
                cluster.add(new, &pools(spec.clone()));
            }
        }
        // What the controller does after each change: everybody is looked at, and those that wait again when somebody gave something up.
        let now = pools(spec.clone());
        for round in 0.. {
            assert!(round < 12, "it comes to rest");
            let all = |c: &Cluster| c.services.values().map(has).collect::<Vec<_>>();
            let began = all(&cluster);
            for (name, service) in cluster.services.clone() {
                let before = has(&service);
                // In one pool, of the families that are wanted, and nobody else's.
                let pool = before.first().and_then(|ip| now.of(*ip));
                let alone = |ip: &IpAddr| cluster.users(*ip).len() == 1;
                let was_fine = pool.is_some_and(|pool| before.iter().all(|ip| pool.has(*ip) && alone(ip)))
                    && Wish::of(&service, None).unwrap().families.fit(&before);
                cluster.add(service, &now);

                let after = has(&cluster.services[&name]);
                let kept = before.iter().all(|ip| after.contains(ip));
                assert!(!was_fine || kept, "{name} {before:?} {after:?}");
            }
            if all(&cluster) == began {
                break;
            }
        }
        let all: Vec<&Service> = cluster.services.values().collect();
        for (i, one) in all.iter().enumerate() {
            for ip in has(one) {
                assert!(now.of(ip).is_some_and(|p| p.has(ip)));
                for other in all[i + 1..].iter().filter(|o| has(o).contains(&ip)) {
                    let (a, b) = (User::of(one), User::of(other));
                    let apart = a.ports.iter().all(|p: &Port| !b.ports.contains(p));
                    assert!(apart && !a.sharing.is_empty() && a.sharing == b.sharing && a.backend == b.backend);
                }
            }
            let waits = has(one).is_empty();
            let again = cluster.ask(one, &now);
            assert_eq!(
                again.is_err(),
                waits,
                "who waits, waits for want of addresses: {again:?}"
            );
            if let Ok(again) = again {
                assert_eq!(again.addresses, has(one), "asked again it is the same");
            }
        }
    }
}
