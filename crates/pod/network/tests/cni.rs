//! CNI plug-ins that are shell scripts, in a namespace of the test: what they are told, in which order, and what becomes of what
//! they say. Needs root. With `KEELSON_CNI_PLUGINS=DIRECTORY` containernetworking's own are tried too: bridge, host-local, portmap,
//! bandwidth, loopback.

#![allow(clippy::unwrap_used)]

use keelson_network::cni::{Directories, Plugins};
use keelson_network::{Config, PodNetwork, PodNetworkRequest, PortMapping, Protocol};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use support::{Namespace, block_on};

#[allow(dead_code)] // Each test needs a part of it.
mod support;

/// Writes down what it is told, and answers what stands in files beside it.
const SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$0"); kind=$(basename "$0")
{ printf '%s %s %s|%s|%s|' "$kind" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_IFNAME" "${CNI_NETNS:+namespace}"; cat; echo; } >> "$here/told"
[ -z "$KEELSON_TOKEN" ] || echo "the environment is this program's" >> "$here/told"
if [ -f "$here/$kind.$CNI_COMMAND.fails" ]; then cat "$here/$kind.$CNI_COMMAND.fails"; exit 1; fi
[ ! -f "$here/$kind.$CNI_COMMAND" ] || cat "$here/$kind.$CNI_COMMAND"
"#;

struct Place {
    dir: PathBuf,
    host: Namespace,
}

impl Place {
    fn new(name: &str) -> Place {
        let dir = std::env::temp_dir().join(format!("keelson-cni-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for part in ["bin", "net.d"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        Place {
            dir,
            host: Namespace::new(),
        }
    }

    fn script(&self, kind: &str) {
        let path = self.dir.join("bin").join(kind);
        fs::write(&path, SCRIPT).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn says(&self, name: &str, text: &str) {
        fs::write(self.dir.join("bin").join(name), text).unwrap();
    }

    fn configured(&self, file: &str, text: &str) {
        fs::write(self.dir.join("net.d").join(file), text).unwrap();
    }

    /// What plug-ins were told since the last time, a line each.
    fn told(&self) -> Vec<String> {
        let path = self.dir.join("bin/told");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(&path);
        text.lines().map(String::from).collect()
    }

    fn run<T: Send + 'static>(&self, programs: &Path, work: impl AsyncFnOnce(&Plugins) -> T + Send + 'static) -> T {
        let directories = Directories {
            configurations: self.dir.join("net.d"),
            programs: programs.to_path_buf(),
        };
        let config = Config {
            state_dir: self.dir.join("state"),
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
            mtu: 0,
        };
        self.host.run(move || {
            let network = Plugins::new(config, directories).unwrap();
            block_on(work(&network))
        })
    }

    fn with<T: Send + 'static>(&self, work: impl AsyncFnOnce(&Plugins) -> T + Send + 'static) -> T {
        self.run(&self.dir.join("bin"), work)
    }
}

fn request(pod: &Namespace, id: &str) -> PodNetworkRequest {
    PodNetworkRequest {
        sandbox_id: id.into(),
        netns: pod.path.clone(),
        namespace: "default".into(),
        name: "web".into(),
        ..PodNetworkRequest::default()
    }
}

const RESULT: &str = r#"{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/ns"}], "ips": [{"interface": 0, "address": "fd00::5/64"}, {"interface": 0, "address": "10.1.0.5/24"}]}"#;

fn list(version: &str) -> String {
    format!(
        r#"{{"cniVersion": "{version}", "name": "net", "plugins": [{{"type": "first"}}, {{"type": "second", "capabilities": {{"ipRanges": true}}}}]}}"#
    )
}

#[test]
fn plugins_are_asked_in_order_and_what_was_made_is_taken_back_by_what_made_it() {
    let (place, pod) = (Place::new("order"), Namespace::new());
    let ready = |place: &Place| place.with(async |n| n.ready().await);
    assert_eq!(
        ready(&place).unwrap_err(),
        "Network plugin returns error: cni plugin not initialized"
    );
    let wanted = request(&pod, "s1");
    let early = place.with(async move |n| format!("{:#}", n.setup(&wanted).await.unwrap_err()));
    assert_eq!(early, "cni plugin not initialized");
    ["first", "second"].iter().for_each(|kind| place.script(kind));
    place.configured("10-net.conflist", &list("1.1.0"));
    assert_eq!(ready(&place), Ok(()), "a configuration that comes is seen");
    assert!(place.told()[0].starts_with("first STATUS |||"));
    place.says("second.STATUS.fails", r#"{"code": 50, "msg": "no addresses left"}"#);
    assert_eq!(
        ready(&place).unwrap_err(),
        "Network plugin returns error: plugin type=\"second\" failed (status): no addresses left"
    );
    place.told();
    ["first.ADD", "second.ADD"]
        .iter()
        .for_each(|answer| place.says(answer, RESULT));
    let wanted = request(&pod, "s1");
    let ips = place.with(async move |n| {
        let once = n.setup(&wanted).await.unwrap();
        assert_eq!(n.setup(&wanted).await.unwrap(), once, "a repeated setup asks nobody");
        once.ips
    });
    assert_eq!(
        ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.0.5", "fd00::5"],
        "the primary family first"
    );
    let told = place.told();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("first ADD s1|eth0|namespace|{") && !told[0].contains("prevResult"));
    assert!(told[1].starts_with("second ADD s1|") && told[1].contains("prevResult"));
    assert!(
        told[1].contains(r#""runtimeConfig":{"ipRanges":[[{"subnet":"10.244.3.0/24"}]]}"#),
        "{}",
        told[1]
    );
    // The directory has another network by now.
    place.configured("00-other.conflist", &list("1.1.0").replace("\"net\"", "\"other\""));
    place.with(async |n| n.gc(&["s1".to_string()]).await.unwrap());
    let told = place.told();
    assert!(told[0].starts_with("first CHECK s1|") && told[0].contains(r#""name":"net""#));
    assert!(
        told[2].starts_with("first GC |||")
            && told[2].contains(r#""cni.dev/valid-attachments":[{"containerID":"s1","ifname":"eth0"}]"#)
    );
    place.with(async |n| n.teardown("s1").await.unwrap());
    let told = place.told();
    assert!(
        told[0].starts_with("second DEL s1|eth0|namespace|") && told[1].starts_with("first DEL s1|"),
        "{told:?}"
    );
    assert!(told[0].contains("prevResult") && told[0].contains(r#""name":"net""#));
    place.with(async |n| n.teardown("s1").await.unwrap());
    assert!(place.told().is_empty(), "there is nothing left");
    fs::remove_dir_all(&place.dir).unwrap();
}

#[test]
fn what_failed_half_way_is_taken_back_and_a_namespace_that_has_gone_is_nobody_elses() {
    let (place, pod) = (Place::new("half"), Namespace::new());
    ["first", "second"].iter().for_each(|kind| place.script(kind));
    place.configured("10-net.conflist", &list("0.3.1"));
    place.says("first.ADD", RESULT);
    place.says("second.ADD.fails", r#"{"code": 7, "msg": "bad", "details": "range"}"#);
    let wanted = request(&pod, "s1");
    let why = place.with(async move |n| format!("{:#}", n.setup(&wanted).await.unwrap_err()));
    assert_eq!(why, "plugin type=\"second\" failed (add): bad; range");
    place.told();
    // The same sandbox again: first back, then anew. What is older than 0.4.0 isn't told what it made.
    fs::remove_file(place.dir.join("bin/second.ADD.fails")).unwrap();
    place.says("second.ADD", r#"{"ips": []}"#);
    let wanted = request(&pod, "s1");
    let why = place.with(async move |n| format!("{:#}", n.setup(&wanted).await.unwrap_err()));
    assert_eq!(why, "the plug-ins gave the pod no address");
    let told = place.told();
    let verbs: Vec<&str> = told.iter().filter_map(|t| t.split(' ').nth(1)).collect();
    assert_eq!(verbs, ["DEL", "DEL", "ADD", "ADD"]);
    assert!(!told[0].contains("prevResult"));
    // Its namespace is the server's own by then, or none at all: no plug-in is led there.
    let record = place.dir.join("state/cni/s1");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(
        &record,
        text.replace(&pod.path.display().to_string(), &place.host.path.display().to_string()),
    )
    .unwrap();
    place.says("second.DEL.fails", "");
    let why = place.with(async |n| format!("{:#}", n.gc(&[]).await.unwrap_err()));
    assert_eq!(
        why,
        "plugin type=\"second\" failed (del): netplugin failed with no error message"
    );
    assert!(place.told()[0].starts_with("second DEL s1|eth0||"));
    assert!(record.exists(), "it is tried again");
    fs::remove_file(place.dir.join("bin/second")).unwrap();
    let why = place.with(async |n| format!("{:#}", n.teardown("s1").await.unwrap_err()));
    assert!(why.contains("failed to find plugin \"second\" in path ["), "{why}");
    fs::remove_dir_all(&place.dir).unwrap();
}

#[test]
fn a_record_that_cannot_be_read_keeps_no_other_from_being_taken_back() {
    let (place, pod) = (Place::new("torn"), Namespace::new());
    ["first", "second"].iter().for_each(|kind| place.script(kind));
    place.configured("10-net.conflist", &list("1.1.0"));
    ["first.ADD", "second.ADD"]
        .iter()
        .for_each(|answer| place.says(answer, RESULT));
    let wanted = request(&pod, "gone");
    place.with(async move |n| drop(n.setup(&wanted).await.unwrap()));
    place.told();
    let records = place.dir.join("state/cni");
    fs::write(records.join("lives"), "{").unwrap();
    place.with(async |n| n.gc(&["lives".to_string()]).await.unwrap());
    let told = place.told();
    let verbs: Vec<&str> = told.iter().filter_map(|t| t.split(' ').nth(1)).collect();
    assert_eq!(verbs, ["DEL", "DEL", "GC", "GC"]);
    assert!(records.join("lives").exists() && !records.join("gone").exists());
    // Nor is it taken for one of which there is nothing to take back.
    let why = place.with(async |n| format!("{:#}", n.teardown("lives").await.unwrap_err()));
    assert!(why.starts_with("the network's record of lives"), "{why}");
    assert!(records.join("lives").exists());
    fs::remove_dir_all(&place.dir).unwrap();
}

/// The real ones: addresses, host ports, and nothing left.
#[test]
fn containernetworkings_plugins_connect_pods() {
    let Some(programs) = std::env::var_os("KEELSON_CNI_PLUGINS").map(PathBuf::from) else {
        eprintln!("not tried: KEELSON_CNI_PLUGINS names no directory of plug-ins");
        return;
    };
    let (place, a, b) = (Place::new("real"), Namespace::new(), Namespace::new());
    let data = place.dir.join("leases");
    place.configured(
        "10-net.conflist",
        &format!(
            r#"{{"cniVersion": "1.0.0", "name": "net", "plugins": [
            {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
              "ipam": {{"type": "host-local", "dataDir": "{}", "capabilities": {{}}, "routes": [{{"dst": "0.0.0.0/0"}}]}},
              "capabilities": {{"ipRanges": true}}}},
            {{"type": "portmap", "snat": true, "capabilities": {{"portMappings": true}}}},
            {{"type": "bandwidth", "capabilities": {{"bandwidth": true}}}},
            {{"type": "loopback"}}]}}"#,
            data.display()
        ),
    );
    place.host.run(|| {
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
    });
    let port = PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    };
    let mut first = request(&a, "sandbox-a");
    first.port_mappings.push(port);
    first.egress_bandwidth = 100_000_000;
    let second = request(&b, "sandbox-b");
    let (ip_a, ip_b) = place.run(&programs, async move |n| {
        n.ready().await.unwrap();
        (
            n.setup(&first).await.unwrap().ips[0],
            n.setup(&second).await.unwrap().ips[0],
        )
    });
    assert!(ip_a.to_string().starts_with("10.244.3."), "of the node's range: {ip_a}");
    a.serve(80);
    assert_eq!(b.ask((ip_a, 80).into()), Ok(ip_b.to_string()));
    assert!(place.host.ask((ip_a, 80).into()).is_ok(), "host to pod");
    let gateway: std::net::IpAddr = "10.244.3.1".parse().unwrap();
    assert!(b.ask((gateway, 8080).into()).is_ok(), "a host port");
    place.run(&programs, async |n| {
        n.gc(&["sandbox-a".to_string()]).await.unwrap();
        n.teardown("sandbox-a").await.unwrap();
    });
    assert!(b.ask((gateway, 8080).into()).is_err());
    let links = place
        .host
        .run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    assert!(!links.contains("veth"), "{links}");
    let leases: Vec<_> = fs::read_dir(data.join("net"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(
        leases.iter().all(|n| !n.to_string_lossy().starts_with("10.")),
        "{leases:?}"
    );
    assert_eq!(fs::read_dir(place.dir.join("state/cni")).unwrap().count(), 0);
    fs::remove_dir_all(&place.dir).unwrap();
}
