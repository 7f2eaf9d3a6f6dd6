//! What a container's end says.

use super::Container;
use crate::finding::Finding;
use crate::object::{Fields, line};
use crate::picture::Picture;
use serde_json::Value;

/// For a container's end; `end` is a `terminated` state. `None` for success.
pub fn diagnose(container: &Container, end: &Value, picture: &Picture) -> Option<Finding> {
    let code = end.number("/exitCode")?;
    let shown = container.shown();
    let message = end.text("/message");
    let how = format!("exit code {code}, reason {}", end.text("/reason"));
    let limit = container.spec.text("/resources/limits/memory");
    let found = match (end.text("/reason"), code) {
        ("OOMKilled", _) => Finding::certain("out-of-memory", &shown, match limit {
            "" => "it was killed because memory had run out (of its pod or node: it has no limit of its own)".to_string(),
            limit => format!("it was killed because it needed more memory than its limit of {limit}"),
        })
        .shown_by(&how)
        .mended_by(match limit {
            "" => "Give it a memory request that it needs, or find what else takes the node's memory (kubectl top pods).",
            _ => "Raise resources.limits.memory, or make the program use less (kubectl top pod --containers shows its use).",
        }),
        ("ContainerCannotRun" | "StartError", _) => start(container, message).unwrap_or_else(|| {
            Finding::certain("container-start", &shown, "its process could not be started")
                .mended_by("Read the runtime's words above; command, args, workingDir and mounts are what it starts from.")
        }),
        // Written by the kubelet when a container is gone that it had started: after a restart of the machine.
        ("ContainerStatusUnknown", _) => return None,
        ("Unknown", 255) => return None,
        (_, 0) => return None,
        (_, 126) => Finding::certain("command-not-executable", &shown, "its command may not be executed (exit code 126)")
            .mended_by("Check that the command is a program with the execute permission (chmod +x), for the container's user."),
        (_, 127) => Finding::certain("command-not-found", &shown, "a command in it was not found (exit code 127)")
            .mended_by("Check command and args against what the image has, and PATH."),
        (_, 134) => Finding::certain("crash-abort", &shown, "it aborted itself (SIGABRT, exit code 134)")
            .mended_by("The reason is in its log."),
        (_, 139) => Finding::certain("crash-segfault", &shown, "it crashed by a memory fault (SIGSEGV, exit code 139)")
            .mended_by("The program or a library of it is at fault, or is built for another processor."),
        (_, 137) => Finding::certain("killed", &shown, "it was killed (SIGKILL, exit code 137)")
            .mended_by("It did not end within its grace period, or somebody killed it: see the pod's events."),
        (_, 143) => Finding::certain("terminated", &shown, "it was told to end (SIGTERM, exit code 143)")
            .mended_by("See the pod's events for who ended it: a probe, an eviction, a deletion."),
        (_, code) => Finding::certain("crashes", &shown, format!("its program ends with exit code {code}"))
            .mended_by(format!(
                "The reason is the program's own: kubectl logs {} -n {} -c {} --previous",
                container.pod.name(),
                container.pod.namespace(),
                container.name()
            )),
    };
    let mut found = found.shown_by(&how).shown_by(message);
    let log = picture.log(container.pod.namespace(), container.pod.name(), container.name());
    for text in log.into_iter().flat_map(last_lines) {
        found = found.shown_by(format!("log: {text}"));
    }
    Some(found)
}

fn last_lines(log: &str) -> Vec<String> {
    const SHOWN: usize = 5;
    let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(SHOWN)..]
        .iter()
        .map(|l| line(l))
        .collect()
}

/// Why a runtime could not start or create a container, by its words.
pub fn start(container: &Container, message: &str) -> Option<Finding> {
    let words = message.to_lowercase();
    let has = |any: &[&str]| any.iter().any(|w| words.contains(w));
    let shown = container.shown();
    let found = if has(&["exec format error"]) {
        Finding::certain(
            "image-wrong-platform",
            shown,
            "its program isn't made for the node's processor",
        )
        .mended_by("Use an image for this architecture. A script needs #! and its interpreter as its first line.")
    } else if has(&["executable file not found", "executable not found"])
        || (has(&["exec"]) && has(&["no such file or directory"]))
    {
        Finding::certain("command-not-found", shown, "its command isn't in the image")
            .mended_by("Check command and args against what the image has. Images without a shell have no /bin/sh.")
    } else if has(&["exec"]) && has(&["permission denied"]) {
        Finding::certain("command-not-executable", shown, "its command may not be executed").mended_by(
            "Check that the command is a program with the execute permission (chmod +x), for the container's user.",
        )
    } else if has(&["not a directory", "are you trying to mount a directory onto a file"]) {
        Finding::certain(
            "mount-onto-file",
            shown,
            "a directory is to be mounted where the image has a file, or the other way round",
        )
        .mended_by("Set subPath to the file in the volume, or mount the volume at a directory.")
    } else if has(&[
        "unable to find user",
        "no matching entries in passwd",
        "unable to find group",
    ]) {
        Finding::certain("user-unknown", shown, "the user it is to run as isn't in the image")
            .mended_by("Set runAsUser to a number, or name a user that the image has.")
    } else if has(&["read-only file system"]) {
        Finding::certain(
            "read-only-root",
            shown,
            "something has to be made in its root file system, which is read-only",
        )
        .mended_by("Mount a volume (emptyDir) there, or make the directory in the image.")
    } else if has(&["apparmor"]) {
        Finding::certain("apparmor-profile", shown, "its AppArmor profile isn't on the node")
            .mended_by("Load the profile on the nodes, or change appArmorProfile.")
    } else if has(&["seccomp"]) {
        Finding::certain("seccomp-profile", shown, "its seccomp profile isn't on the node")
            .mended_by("Put the profile below the kubelet's seccomp directory of each node, or change seccompProfile.")
    } else {
        return None;
    };
    Some(found.shown_by(message))
}
