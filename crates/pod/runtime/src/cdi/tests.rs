use super::*;
use serde_json::json;

const SPEC: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.test/gpu
containerEdits:
  env: [COMMON=1]
  mounts:
  - {hostPath: /etc, containerPath: /vendor, options: [ro, nosuid]}
devices:
- name: zero
  containerEdits:
    env: ["WHICH=zero"]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/zero, permissions: rw}]
    hooks: [{hookName: createContainer, path: /bin/true, args: ["true", "x"]}]
    additionalGIDs: [0, 44]
- name: void
  containerEdits:
    env: ["WHICH=void"]
    deviceNodes: [{path: /dev/gpu1, type: c, major: 1, minor: 3, fileMode: 432, uid: 5}, {path: /dev/gpu2, type: b, major: 9}]
"#;

fn with(files: &[(&str, &str)], devices: &[&str]) -> Result<Edits, String> {
    let dir = tempfile::tempdir().unwrap();
    let dirs = ["a", "b"].map(|d| dir.path().join(d));
    dirs.iter().for_each(|d| std::fs::create_dir(d).unwrap());
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let devices: Vec<String> = devices.iter().map(|d| (*d).to_owned()).collect();
    edits(&[&dirs[0], &dirs[1], &dir.path().join("none")], &devices)
}

#[test]
fn what_a_device_needs_gets_into_the_container() {
    let edits = with(&[("a/v.yaml", SPEC)], &["vendor.test/gpu=zero", "vendor.test/gpu=void"]).unwrap();
    let mut spec = json!({
        "process": {"env": ["WHICH=x", "PATH=/", "HOME=/"], "user": {"additionalGids": [7]}},
        "mounts": [{"destination": "/vendor"}, {"destination": "/proc"}]});
    edits.inject(&mut spec);
    assert_eq!(
        spec,
        json!({
            "process": {"env": ["WHICH=void", "PATH=/", "COMMON=1", "HOME=/"], "user": {"additionalGids": [7, 44]}},
            "mounts": [{"destination": "/proc"},
                {"destination": "/vendor", "type": "bind", "source": "/etc", "options": ["ro", "nosuid", "rbind"]}],
            "hooks": {"createContainer": [{"path": "/bin/true", "args": ["true", "x"], "env": [], "timeout": 60}]}})
    );
    let nodes: Vec<_> = edits.with_devices(Vec::new());
    let told = |d: &crate::containers::devices::Device| {
        format!("{} {}:{} {} {}", d.path.display(), d.major, d.minor, d.access, d.uid)
    };
    assert_eq!(
        nodes.iter().map(told).collect::<Vec<_>>(),
        ["/dev/gpu0 1:5 rw 0", "/dev/gpu1 1:3 rwm 5", "/dev/gpu2 9:0 rwm 0"]
    );
    assert_eq!((nodes[1].mode, nodes[2].mode), (0o660, 0o666));
    // Of two of the same path the one of the specification counts.
    assert_eq!(edits.with_devices(nodes).len(), 3);
}

#[test]
fn the_later_directory_is_meant() {
    let second = SPEC.replace("WHICH=zero", "WHICH=second");
    let files = [("a/v.yaml", SPEC), ("b/v.yaml", second.as_str())];
    let mut spec = json!({});
    with(&files, &["vendor.test/gpu=zero"]).unwrap().inject(&mut spec);
    assert_eq!(spec["process"]["env"], json!(["COMMON=1", "WHICH=second"]));
}

/// What a driver may write, and what is said of it.
#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let one = |edits: &str| {
        format!(r#"{{"cdiVersion": "1.0.0", "kind": "v/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#)
    };
    for (edits, why) in [
        (
            r#"{"hooks": [{"hookName": "poststop", "path": "/x"}]}"#,
            "poststop hooks are not supported",
        ),
        (
            r#"{"hooks": [{"hookName": "startContainer", "path": "/x"}]}"#,
            "startContainer hooks are not supported",
        ),
        (
            r#"{"hooks": [{"hookName": "other", "path": "/x"}]}"#,
            "invalid hook name",
        ),
        (
            r#"{"hooks": [{"hookName": "prestart", "path": "x"}]}"#,
            "is no absolute path",
        ),
        (
            r#"{"netDevices": [{"hostInterfaceName": "eth1"}]}"#,
            "netDevices are not supported",
        ),
        (r#"{"intelRdt": {"closID": "x"}}"#, "intelRdt is not supported"),
        (
            r#"{"mounts": [{"containerPath": "/x", "hostPath": "y"}]}"#,
            "is no absolute path",
        ),
        (
            r#"{"mounts": [{"containerPath": "/x", "type": "nfs"}]}"#,
            "type \"nfs\" is not supported",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/x", "type": "p"}]}"#,
            "type \"p\" is not supported",
        ),
        (r#"{"deviceNodes": [{"path": "/etc/passwd"}]}"#, "is no device"),
        (
            r#"{"deviceNodes": [{"path": "/dev/null", "permissions": "rx"}]}"#,
            "invalid permissions",
        ),
        (r#"{"env": ["=x"]}"#, "invalid environment variable"),
        (r#"{"surprise": 1}"#, "unknown field `surprise`"),
    ] {
        let error = with(&[("a/v.json", &one(edits))], &["v/c=d"]).unwrap_err();
        assert!(
            error.starts_with("CDI device injection failed: ") && error.contains(why),
            "{error}"
        );
    }
    assert!(with(&[("a/v.json", &one("{}"))], &["v/c=d"]).is_ok());
}

#[test]
fn devices_have_to_be_there_once() {
    let error = |files: &[(&str, &str)], device: &str| with(files, &[device]).unwrap_err();
    let none = error(&[], "vendor.test/gpu=zero");
    assert_eq!(
        none,
        "CDI device injection failed: unresolvable CDI devices vendor.test/gpu=zero"
    );
    let twice = [("a/v.yaml", SPEC), ("a/w.yaml", SPEC)];
    assert!(error(&twice, "vendor.test/gpu=zero").contains("conflicting device"));
    assert!(error(&[("a/v.yaml", SPEC)], "gpu").contains("unqualified device"));
    // A broken one is of concern only to who may mean it.
    let broken = [("a/v.yaml", SPEC), ("a/w.json", "{")];
    assert!(with(&broken, &["vendor.test/gpu=zero"]).is_ok());
    assert!(error(&broken, "vendor.test/gpu=nine").contains("w.json"));
    let newer = SPEC.replace("0.6.0", "2.0.0");
    assert!(
        error(&[("a/v.yaml", newer.as_str())], "vendor.test/gpu=zero").contains("\"2.0.0\" of the format is not known")
    );
}

#[test]
fn a_pipe_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("v.yaml"), SPEC).unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let of = |device: &str| edits(&[dir.path()], &[device.to_owned()]);
    assert!(of("vendor.test/gpu=zero").is_ok());
    assert!(of("vendor.test/gpu=nine").unwrap_err().contains("it is no file"));
}

#[test]
fn annotations_ask_too() {
    let annotations = [("cdi.k8s.io/x", "a/b=c, a/b=d"), ("other", "a/b=e")];
    assert_eq!(
        asked(["a/b=d"].into_iter(), annotations.into_iter()),
        ["a/b=d", "a/b=c"]
    );
}
