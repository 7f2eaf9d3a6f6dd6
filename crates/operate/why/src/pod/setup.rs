//! What has to be there before a pod's first container: its volumes, its network, its sandbox.

use super::{Container, claim_of, container, image};
use crate::finding::Finding;
use crate::object::{Fields, between};
use crate::picture::Picture;
use crate::storage::claim;
use k8s_openapi::jiff::SignedDuration;
use serde_json::Value;

/// What takes no longer is no trouble yet.
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

/// Whether the pod still is where set-up would show: no container has begun.
fn is_in_setup(pod: &Value) -> bool {
    let mut waiting = Container::all(pod).map(|c| c.status.text("/state/waiting/reason"));
    pod.text("/status/phase") == "Pending" && waiting.all(|r| matches!(r, "" | "ContainerCreating" | "PodInitializing"))
}

/// What events say of a set-up that fails.
pub fn failing(pod: &Value, picture: &Picture) -> Option<Finding> {
    if !is_in_setup(pod) {
        return None;
    }
    let reasons = [
        "FailedMount",
        "FailedAttachVolume",
        "FailedMapVolume",
        "FailedCreatePodSandBox",
        "FailedCreatePodContainer",
        "FailedPodSandBoxStatus",
        "NetworkNotReady",
    ];
    let event = picture.event(pod, &reasons)?;
    let message = event.text("/message");
    let found = match event.text("/reason") {
        "FailedAttachVolume" => attaching(pod, message),
        "FailedMount" | "FailedMapVolume" => mounting(pod, message, picture),
        "NetworkNotReady" => Finding::certain("node-network", pod.shown(), "the network of its node isn't ready")
            .mended_by("Look at the node (keelson why node/…): its network plug-in has to come up first."),
        _ => sandbox(pod, message),
    };
    Some(found.shown_by(message))
}

fn attaching(pod: &Value, message: &str) -> Finding {
    let shown = pod.shown();
    if message.contains("Multi-Attach error") {
        return Finding::certain(
            "volume-in-use-elsewhere",
            shown,
            "a volume of it is still attached to another node, and can be on one only (ReadWriteOnce)",
        )
        .mended_by("End the pods that use it there (message above). If their node is dead, taint it node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, so that the volume is let go.");
    }
    Finding::certain(
        "volume-attach-failed",
        shown,
        "a volume of it can't be attached to its node",
    )
    .mended_by("The storage driver's words are above; its controller's log tells more.")
}

fn mounting(pod: &Value, message: &str, picture: &Picture) -> Finding {
    let shown = pod.shown();
    let words = message.to_lowercase();
    let has = |any: &[&str]| any.iter().any(|w| words.contains(w));
    let volume = between(message, "volume \"", "\"").unwrap_or_default();
    let whole = |found: Finding| match volume {
        "" => found,
        name => found.shown_by(format!("volume {name}")),
    };
    for kind in ["configmap", "secret"] {
        if let (Some(name), Some(any)) = (
            between(message, &format!("{kind} \""), "\" not found"),
            Container::all(pod).next(),
        ) {
            let found = container::missing(&any, kind, name);
            return whole(Finding { object: shown, ..found });
        }
    }
    if has(&[
        "references non-existent config key",
        "references non-existent secret key",
    ]) {
        let key = message.rsplit_once("key: ").map_or("", |(_, k)| k);
        return whole(
            Finding::certain(
                "config-key-missing",
                shown,
                format!("a volume of it names a key that isn't there: {key}"),
            )
            .mended_by("Add the key, correct its name in the volume's items, or mark the volume optional."),
        );
    }
    if has(&["hostpath type check failed"]) {
        return whole(
            Finding::certain(
                "host-path-missing",
                shown,
                "a path of its node that it mounts isn't there, or isn't of the type it names",
            )
            .mended_by("Make the path on the node, or set the hostPath's type to DirectoryOrCreate."),
        );
    }
    if has(&["not found in the list of registered csi drivers"]) {
        let driver = between(message, "driver name ", " not found").unwrap_or("of its volume");
        return whole(
            Finding::certain("csi-driver-missing", shown, format!("the storage driver {driver} isn't running on its node"))
                .mended_by("Install the driver, and see that its pod on this node is ready (its DaemonSet may not tolerate the node's taints)."),
        );
    }
    if has(&["persistentvolumeclaim", "pvc"]) && has(&["not found", "being deleted"]) {
        return whole(
            Finding::certain("claim-missing", shown, "a claim that it mounts isn't there (any more)")
                .mended_by("Create the PersistentVolumeClaim, or correct claimName."),
        );
    }
    if has(&["object", "not registered"]) && !has(&["mount failed"]) {
        return whole(
            Finding::likely(
                "kubelet-behind",
                shown,
                "the kubelet hasn't read what the volume is made of yet",
            )
            .mended_by("It mends itself; if it stays, the objects that the volume names can't be read by the node."),
        );
    }
    if has(&["wrong fs type", "bad superblock", "structure needs cleaning"]) {
        return whole(
            Finding::certain(
                "file-system-broken",
                shown,
                "a volume's file system can't be mounted: it is of another type or damaged",
            )
            .mended_by("Check fsType of the volume; a damaged file system needs fsck where it isn't mounted."),
        );
    }
    if has(&["permission denied", "access denied by server"]) {
        return whole(
            Finding::certain("mount-refused", shown, "a volume's server refuses the mount")
                .mended_by("Allow the node's address in the server's exports, and check the volume's credentials."),
        );
    }
    if has(&[
        "connection refused",
        "no route to host",
        "connection timed out",
        "no such host",
        "network is unreachable",
    ]) {
        return whole(
            Finding::certain(
                "volume-server-unreachable",
                shown,
                "the server of a volume can't be reached from its node",
            )
            .mended_by("Check the server's address in the volume, and the node's way to it."),
        );
    }
    if has(&[
        "timed out waiting for the condition",
        "context deadline exceeded",
        "unattached volumes=",
    ]) && let Some(found) = claims(pod, picture)
    {
        return found;
    }
    whole(
        Finding::certain("mount-failed", shown, "a volume of it can't be mounted")
            .mended_by("The words above are the mount's own; the storage driver's log on this node tells more."),
    )
}

/// Claims of the pod that aren't as they should be.
pub fn claims(pod: &Value, picture: &Picture) -> Option<Finding> {
    let names = pod.list("/spec/volumes").iter().map(|v| claim_of(pod, v));
    names.filter(|c| !c.is_empty()).find_map(|name| {
        let lookup = picture.find("PersistentVolumeClaim", pod.namespace(), &name);
        if lookup.is_missing() {
            return Some(missing_claim(pod, &name));
        }
        claim::unbound(lookup.found()?, picture)
    })
}

pub fn missing_claim(pod: &Value, name: &str) -> Finding {
    let namespace = pod.namespace();
    Finding::certain(
        "claim-missing",
        pod.shown(),
        format!("it mounts the claim {name}, which doesn't exist in namespace {namespace}"),
    )
    .mended_by(format!(
        "Create the PersistentVolumeClaim {name} in namespace {namespace}, or correct claimName."
    ))
}

fn sandbox(pod: &Value, message: &str) -> Finding {
    let shown = pod.shown();
    let words = message.to_lowercase();
    let has = |any: &[&str]| any.iter().any(|w| words.contains(w));
    if has(&["no runtime for", "runtime handler", "handler is not", "unknown runtime"]) {
        let class = pod.text("/spec/runtimeClassName");
        return Finding::certain(
            "runtime-handler-missing",
            shown,
            format!("its node's runtime doesn't have the handler of RuntimeClass {class}"),
        )
        .mended_by("Set the runtime up on the node, bind the class to nodes that have it (scheduling.nodeSelector), or leave runtimeClassName out.");
    }
    if has(&[
        "no ip addresses available",
        "no free address",
        "no addresses left",
        "failed to allocate for range",
        "address range is full",
    ]) {
        return Finding::certain("no-pod-addresses", shown, "its node has no address left for pods")
            .mended_by("Fewer pods a node, or a larger pod range (--cluster-cidr with node-cidr-mask-size).");
    }
    if has(&["cni", "network", "plugin type="]) {
        return Finding::certain("pod-network-failed", shown, "its network can't be set up on its node")
            .mended_by("The network plug-in's words are above; see that its pod on this node is ready.");
    }
    if has(&["no space left"]) {
        return Finding::certain("node-disk-full", shown, "its node's disk is full")
            .mended_by("Free or enlarge the node's disk.");
    }
    if has(&["cgroup"]) {
        return Finding::certain(
            "cgroup-failed",
            shown,
            "its node's kernel refuses the pod's control group",
        )
        .mended_by("See the words above, and `keelson doctor` on the node.");
    }
    if has(&["failed to pull image", "pulling image", "failed to get sandbox image"])
        && let Some((_, cause, says, fix)) = image::classify(message)
    {
        return Finding::certain(*cause, shown, format!("the pause image of its node: {says}")).mended_by(fix);
    }
    Finding::certain("sandbox-failed", shown, "its sandbox can't be made on its node")
        .mended_by("The runtime's words are above; its log on the node tells more.")
}

/// Set-up that simply doesn't get on, with nothing said why.
pub fn slow(pod: &Value, picture: &Picture) -> Vec<Finding> {
    if !is_in_setup(pod) {
        return Vec::new();
    }
    if let Some(found) = claims(pod, picture) {
        return vec![found];
    }
    let scheduled = pod
        .condition_is("PodScheduled", "True")
        .map_or("", |c| c.text("/lastTransitionTime"));
    let age = picture.since(scheduled).filter(|age| *age > PATIENCE);
    let Some(age) = age else { return Vec::new() };
    let node = pod.text("/spec/nodeName");
    if let Some(pulling) = picture.event(pod, &["Pulling"])
        && picture.event(pod, &["Pulled", "Failed"]).is_none()
    {
        return vec![
            Finding::likely(
                "image-slow",
                pod.shown(),
                format!("its image is still being pulled, after {} minutes", age.as_mins()),
            )
            .shown_by(pulling.text("/message"))
            .mended_by("Large images take their time: a mirror nearby or a smaller image helps."),
        ];
    }
    vec![
        Finding::likely(
            "kubelet-silent",
            pod.shown(),
            format!(
                "it was given to node {node} {} minutes ago, and the kubelet there has said nothing since",
                age.as_mins()
            ),
        )
        .mended_by(format!(
            "Look at the node (keelson why node/{node}) and at its kubelet's log."
        )),
    ]
}
