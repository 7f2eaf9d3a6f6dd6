//! The rows: what is asked, by how many clients, and what has to be there for it. In their order.

use crate::measure::BESIDE;
use crate::objects::{self, NODES};
use crate::plan::Plan;
use crate::target::Head;
use crate::world::{APPLY, JSON, Need, PROTOBUF, World, create};
use http::{HeaderValue, Method};

pub struct Row {
    pub name: &'static str,
    pub clients: &'static [usize],
    /// Requests of one client; several make more.
    pub count: usize,
    pub needs: &'static [Need],
    /// Where its own objects are.
    pub namespace: &'static str,
    pub what: What,
}

pub enum What {
    /// Requests; the prefix is of names that no other row has.
    Asks(fn(&World, &str) -> Plan),
    /// The same, when they are due: so many a second.
    Due(f64, fn(&World, &str) -> Plan),
    /// Requests about what is made before, unmeasured.
    Made(fn(&World, &str) -> Plan, fn(&World, &str) -> Plan),
    /// Watchers of what one client makes, so many a second or as fast as it can.
    Fanout(Option<f64>),
    /// Clients that list and watch, or watch from the beginning.
    Informers { streamed: bool },
    /// A polite client, alone and beside a greedy one.
    Greedy,
}

impl Row {
    /// Whether this is the name of one of its figures.
    pub fn tells(&self, figure: &str) -> bool {
        match self.what {
            What::Greedy => figure == BESIDE,
            _ => figure == self.name,
        }
    }

    /// How many requests so many clients make of it.
    pub fn requests(&self, clients: usize, share: f64) -> usize {
        let times = match clients {
            ..2 => 1,
            2..100 => 2,
            _ => 4,
        };
        (((self.count * times) as f64 * share) as usize).max(clients.max(4))
    }
}

const ONE: &[usize] = &[1];
const SEVERAL: &[usize] = &[1, 16];
const MANY: &[usize] = &[1, 16, 256];
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

fn row(name: &'static str, clients: &'static [usize], count: usize, needs: &'static [Need], what: What) -> Row {
    Row {
        name,
        clients,
        count,
        needs,
        namespace: "made",
        what,
    }
}

fn get_map(world: &World, _: &str) -> Plan {
    Plan::new(
        Head::get(JSON),
        &format!("{}/c-{{i}}", world.path("maps", "configmaps")),
    )
    .objects(world.some)
}

fn make_map(world: &World, prefix: &str) -> Plan {
    let name = format!("{prefix}-{{n}}");
    create(&world.path("made", "configmaps"), &objects::config_map(&name))
}

fn make_pod(world: &World, prefix: &str) -> Plan {
    let name = format!("{prefix}-{{n}}");
    create(&world.path("made", "pods"), &objects::pod(&name, "")).objects(NODES)
}

fn make_hooked(world: &World, prefix: &str) -> Plan {
    let name = format!("{prefix}-{{n}}");
    create(&world.path("hooked", "configmaps"), &objects::config_map(&name))
}

fn make_gadget(world: &World, prefix: &str) -> Plan {
    create(&world.gadgets(), &objects::gadget(&format!("{prefix}-{{n}}")))
}

fn replace_map(world: &World, _: &str) -> Plan {
    let path = format!("{}/c-{{i}}", world.path("maps", "configmaps"));
    let body = objects::config_map("c-{i}");
    Plan::new(Head::write(Method::PUT, JSON), &path)
        .body(&body)
        .objects(world.some)
}

fn get_pod(world: &World, accept: &'static str) -> Plan {
    Plan::new(Head::get(accept), &format!("{}/p-{{i}}", world.path("pods", "pods"))).objects(world.some)
}

/// `query` is that of an apply, whose body says what it is about.
fn patch(world: &World, media: &'static str, query: &str, head: &str) -> Plan {
    let path = format!("{}/p-{{i}}/status{query}", world.path("pods", "pods"));
    let head = objects::status(head);
    Plan::new(Head::write(Method::PATCH, media), &path)
        .body(&head)
        .objects(world.some)
}

fn delete(world: &World, resource: &str, prefix: &str) -> Plan {
    let path = format!("{}/{prefix}-{{n}}?gracePeriodSeconds=0", world.path("made", resource));
    Plan::new(Head::write(Method::DELETE, JSON), &path)
}

fn list(world: &World, accept: &'static str, query: &str) -> Plan {
    Plan::new(Head::get(accept), &format!("{}{query}", world.path("many", "pods")))
}

fn zipped(world: &World) -> Plan {
    let head = Head {
        gzip: true,
        accept: HeaderValue::from_static(JSON),
        ..Head::get(JSON)
    };
    Plan::new(head, &world.path("many", "pods"))
}

fn a_page(world: &World, accept: &'static str) -> Plan {
    list(world, accept, "?limit=500").paged()
}

pub fn all() -> Vec<Row> {
    use Need::{Gadgets, Hook, Many, Maps, Pods};
    use What::{Asks, Due, Fanout, Greedy, Informers, Made};
    vec![
        row("get a ConfigMap of 1 KiB", MANY, 2000, &[Maps], Asks(get_map)),
        row(
            "get a pod of 9 KB",
            SEVERAL,
            1000,
            &[Pods],
            Asks(|w, _| get_pod(w, JSON)),
        ),
        row(
            "get a pod, protobuf",
            SEVERAL,
            1000,
            &[Pods],
            Asks(|w, _| get_pod(w, PROTOBUF)),
        ),
        row("create a ConfigMap of 1 KiB", MANY, 800, &[], Asks(make_map)),
        row("create a pod", MANY, 500, &[], Asks(make_pod)),
        row("replace a ConfigMap of 1 KiB", SEVERAL, 800, &[Maps], Asks(replace_map)),
        row(
            "status of a pod, merge patch",
            SEVERAL,
            500,
            &[Pods],
            Asks(|w, _| patch(w, "application/merge-patch+json", "", "")),
        ),
        row(
            "status of a pod, strategic patch",
            MANY,
            500,
            &[Pods],
            Asks(|w, _| patch(w, "application/strategic-merge-patch+json", "", "")),
        ),
        row(
            "status of a pod, apply",
            SEVERAL,
            500,
            &[Pods],
            Asks(|w, _| {
                let what = r#""apiVersion":"v1","kind":"Pod","metadata":{"name":"p-{i}"},"#;
                patch(w, APPLY, "?fieldManager=applier&force=true", what)
            }),
        ),
        row(
            "delete a ConfigMap",
            SEVERAL,
            800,
            &[],
            Made(make_map, |w, p| delete(w, "configmaps", p)),
        ),
        row(
            "delete a pod",
            SEVERAL,
            500,
            &[],
            Made(make_pod, |w, p| delete(w, "pods", p)),
        ),
        row("list 5,000 pods, JSON", ONE, 8, &[Many], Asks(|w, _| list(w, JSON, ""))),
        row(
            "list, JSON, from what is at hand (RV=0)",
            SEVERAL,
            8,
            &[Many],
            Asks(|w, _| list(w, JSON, "?resourceVersion=0")),
        ),
        row("list, JSON, gzip", ONE, 4, &[Many], Asks(|w, _| zipped(w))),
        row("list, protobuf", ONE, 8, &[Many], Asks(|w, _| list(w, PROTOBUF, ""))),
        row("list, Table", ONE, 8, &[Many], Asks(|w, _| list(w, TABLE, ""))),
        row(
            "list, metadata only",
            ONE,
            8,
            &[Many],
            Asks(|w, _| list(w, METADATA, "")),
        ),
        row(
            "list, one of fifty by a label",
            SEVERAL,
            60,
            &[Many],
            Asks(|w, _| list(w, JSON, "?labelSelector=shard%3Ds7")),
        ),
        row(
            "list, one of fifty by its node",
            SEVERAL,
            60,
            &[Many],
            Asks(|w, _| list(w, JSON, "?fieldSelector=spec.nodeName%3Dnode-7")),
        ),
        row("list in pages of 500", ONE, 8, &[Many], Asks(|w, _| a_page(w, JSON))),
        row(
            "an event to each of 1,000 watchers, a write after the other",
            ONE,
            100,
            &[],
            Fanout(None),
        ),
        row(
            "an event to each of 1,000 watchers, 10 a second",
            ONE,
            50,
            &[],
            Fanout(Some(10.0)),
        ),
        row(
            "start of 500 informers, list and watch",
            ONE,
            1,
            &[Maps],
            Informers { streamed: false },
        ),
        row(
            "start of 500 informers, watch alone",
            ONE,
            1,
            &[Maps],
            Informers { streamed: true },
        ),
        row(
            "create a ConfigMap, a webhook asked",
            SEVERAL,
            300,
            &[Hook],
            Asks(make_hooked),
        ),
        row(
            "create a custom resource, rules in CEL",
            SEVERAL,
            500,
            &[Gadgets],
            Asks(make_gadget),
        ),
        row(
            "get a ConfigMap, 500 a second",
            &[16],
            1000,
            &[Maps],
            Due(500.0, get_map),
        ),
        row(
            "create a ConfigMap, 100 a second",
            &[16],
            250,
            &[],
            Due(100.0, make_map),
        ),
        row("a polite client beside a greedy one", ONE, 1, &[Many, Maps], Greedy),
    ]
}
