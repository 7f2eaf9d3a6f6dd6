//! A container that waits, has ended or isn't ready.

use super::{Container, exit, image, probe};
use crate::finding::Finding;
use crate::object::{Fields, between};
use crate::picture::Picture;
use k8s_openapi::jiff::SignedDuration;

/// How long after a restart it still counts.
const RECENT: SignedDuration = SignedDuration::from_hours(1);
/// How long an init container may run before it is worth a word.
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

pub fn diagnose(container: &Container, picture: &Picture) -> Vec<Finding> {
    let status = container.status;
    if let Some(found) = image::diagnose(container, picture) {
        return vec![found];
    }
    match status.text("/state/waiting/reason") {
        "CreateContainerConfigError" => return vec![configuration(container)],
        "CreateContainerError" | "RunContainerError" => return vec![creation(container)],
        "PostStartHookError" => return vec![hook(container, picture)],
        "CrashLoopBackOff" => return restarting(container, picture),
        "" | "ContainerCreating" | "PodInitializing" => {}
        _ => return Vec::new(),
    }
    if status.has("/state/terminated") {
        return ended(container, picture);
    }
    if container.is_init && !container.is_sidecar() {
        return initialising(container, picture);
    }
    running(container, picture)
}

/// What the kubelet could not make of the container's own text.
fn configuration(container: &Container) -> Finding {
    let message = container.status.text("/state/waiting/message");
    let namespace = container.pod.namespace();
    let absent = |kind: &str| between(message, &format!("{kind} \""), "\" not found");
    let found = if let Some(name) = absent("configmap") {
        missing(container, "configmap", name)
    } else if let Some(name) = absent("secret") {
        missing(container, "secret", name)
    } else if let Some(rest) = message.split_once("couldn't find key ").map(|(_, r)| r) {
        Finding::certain(
            "config-key-missing",
            container.shown(),
            format!("a key that its environment names is missing: {rest}"),
        )
        .mended_by("Add the key, correct its name in the container's env, or mark it optional.")
    } else if message.contains("runAsNonRoot and image will run as root") {
        Finding::certain(
            "runs-as-root",
            container.shown(),
            "runAsNonRoot forbids it to start: the image's user is root",
        )
        .mended_by("Set securityContext.runAsUser to another number than 0, or use an image with a user of its own.")
    } else if message.contains("image has non-numeric user") {
        Finding::certain(
            "user-not-numeric",
            container.shown(),
            "runAsNonRoot can't be checked: the image names its user by a word",
        )
        .mended_by("Set securityContext.runAsUser to the user's number.")
    } else {
        Finding::certain(
            "container-configuration",
            container.shown(),
            "its configuration can't be made into a container",
        )
        .mended_by(format!(
            "Correct what is named above in the pod's template (namespace {namespace})."
        ))
    };
    found.shown_by(message)
}

pub fn missing(container: &Container, kind: &str, name: &str) -> Finding {
    let namespace = container.pod.namespace();
    Finding::certain(
        format!("{kind}-missing"),
        container.shown(),
        format!("it needs the {kind} {name}, which doesn't exist in namespace {namespace}"),
    )
    .mended_by(format!(
        "Create the {kind} {name} in namespace {namespace}, or correct its name; the pod starts by itself then."
    ))
}

fn creation(container: &Container) -> Finding {
    let message = container.status.text("/state/waiting/message");
    exit::start(container, message).unwrap_or_else(|| {
        Finding::certain(
            "container-create",
            container.shown(),
            "the runtime can't make the container",
        )
        .shown_by(message)
        .mended_by("Read the runtime's words above: they name what of the container's settings it refuses.")
    })
}

fn hook(container: &Container, picture: &Picture) -> Finding {
    let told = picture.event(container.pod, &["FailedPostStartHook"]);
    Finding::certain(
        "post-start-failed",
        container.shown(),
        "its postStart hook fails, so it is ended and started anew",
    )
    .shown_by(container.status.text("/state/waiting/message"))
    .shown_by(told.map_or("", |e| e.text("/message")))
    .mended_by(
        "Correct lifecycle.postStart: its command or address runs beside the container's start, in no certain order.",
    )
}

/// A container that ends again and again.
fn restarting(container: &Container, picture: &Picture) -> Vec<Finding> {
    let end = &container.status["lastState"]["terminated"];
    if let Some(found) = probe::killed(container, end, picture) {
        return vec![found];
    }
    let restarts = container.status.number("/restartCount").unwrap_or_default();
    let told = format!("it has been restarted {restarts} times");
    match exit::diagnose(container, end, picture) {
        Some(found) => vec![found.shown_by(told)],
        None if end.number("/exitCode") == Some(0) => vec![
            Finding::certain(
                "ends-at-once",
                container.shown(),
                "its program ends with success, and is started again because the pod's restartPolicy is Always",
            )
            .shown_by(told)
            .mended_by(
                "Run something that stays, or make it a Job if it is to end. A shell without a terminal ends at once.",
            ),
        ],
        None => vec![
            Finding::certain("crashes", container.shown(), "it ends again and again")
                .shown_by(container.status.text("/state/waiting/message"))
                .shown_by(told)
                .mended_by(format!(
                    "See kubectl logs {} -c {} --previous",
                    container.pod.name(),
                    container.name()
                )),
        ],
    }
}

fn ended(container: &Container, picture: &Picture) -> Vec<Finding> {
    let end = &container.status["state"]["terminated"];
    exit::diagnose(container, end, picture).into_iter().collect()
}

fn initialising(container: &Container, picture: &Picture) -> Vec<Finding> {
    let started = container.status.text("/state/running/startedAt");
    let Some(age) = picture.since(started).filter(|age| *age > PATIENCE) else {
        return Vec::new();
    };
    let log = picture.log(container.pod.namespace(), container.pod.name(), container.name());
    let lines = log
        .unwrap_or_default()
        .lines()
        .rev()
        .take(3)
        .map(|l| format!("log: {l}"));
    vec![
        Finding::likely(
            "init-unfinished",
            container.shown(),
            format!(
                "it has been running for {} minutes, and nothing after it starts before it ends",
                age.as_mins()
            ),
        )
        .shown_by_all(lines)
        .mended_by(format!(
            "It probably waits for something: kubectl logs {} -n {} -c {}",
            container.pod.name(),
            container.pod.namespace(),
            container.name()
        )),
    ]
}

/// A container that runs: its probes, and how it last ended.
fn running(container: &Container, picture: &Picture) -> Vec<Finding> {
    let status = container.status;
    if !status.has("/state/running") {
        return Vec::new();
    }
    let mut found = Vec::new();
    if !status.flag("/ready") || (container.is_sidecar() && !status.flag("/started")) {
        found.extend(probe::failing(container, picture));
    }
    let end = &status["lastState"]["terminated"];
    let is_recent = picture.since(end.text("/finishedAt")).is_some_and(|age| age < RECENT);
    if is_recent && status.number("/restartCount").is_some_and(|n| n > 0) {
        let why = probe::killed(container, end, picture).or_else(|| exit::diagnose(container, end, picture));
        found.extend(why.map(|f| {
            f.shown_by(format!(
                "it was started anew at {}",
                status.text("/state/running/startedAt")
            ))
        }));
    }
    found
}
