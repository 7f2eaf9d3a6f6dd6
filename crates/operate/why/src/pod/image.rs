//! An image that isn't there, by what the registry or the runtime answered.

use super::Container;
use crate::finding::Finding;
use crate::object::Fields;
use crate::picture::{Lookup, Picture};
use serde_json::Value;

/// Words of an answer, the cause they stand for, its sentence, and what mends it. The first that fits counts: what is more
/// special stands before what is more general.
type Row = (&'static [&'static str], &'static str, &'static str, &'static str);

const ANSWERS: &[Row] = &[
    (
        &["toomanyrequests", "429", "rate limit"],
        "image-rate-limited",
        "the registry refuses further pulls for now: its rate limit is reached",
        "Pull as a user of the registry (an image pull secret), or by a mirror; it is tried again by itself.",
    ),
    (
        &["server gave http response to https client"],
        "registry-plain-http",
        "the registry speaks plain HTTP, and HTTPS is asked for",
        "Give the registry a certificate, or name its endpoint with http:// in the registries file of the node.",
    ),
    (
        &[
            "x509:",
            "certificate signed by unknown",
            "invalid peer certificate",
            "certificate verify failed",
            "unknownissuer",
        ],
        "registry-untrusted",
        "the registry's certificate isn't trusted by the node",
        "Add the registry's authority to the registries file of the node (or the machine's own certificates).",
    ),
    (
        &[
            "no match for platform",
            "no matching manifest for",
            "exec format error",
            "no image for this platform",
        ],
        "image-wrong-platform",
        "the image isn't made for the node's processor",
        "Use an image that is built for it, or bind the pod to nodes of the image's architecture (kubernetes.io/arch).",
    ),
    (
        &["no space left on device", "not enough space", "disk quota exceeded"],
        "image-disk-full",
        "the node's disk has no room for the image",
        "Free or enlarge the disk of the node; images that nobody uses are removed when it is 85 % full.",
    ),
    (
        &[
            "unauthorized",
            "authentication required",
            "pull access denied",
            "403 forbidden",
            "401",
            "access denied",
            "insufficient_scope",
            "no basic auth",
        ],
        "image-unauthorized",
        "the registry doesn't hand the image out without (other) credentials, or it doesn't exist there",
        "Check the name; for a private image make a secret (kubectl create secret docker-registry) and name it in imagePullSecrets of the pod or its service account.",
    ),
    (
        &[
            "not found",
            "manifest unknown",
            "name unknown",
            "manifest_unknown",
            "name_unknown",
            "does not exist",
            "404",
        ],
        "image-not-found",
        "the registry has no such image",
        "Check the name and the tag for typing errors, and that the image has been pushed.",
    ),
    (
        &[
            "no such host",
            "server misbehaving",
            "failed to lookup address",
            "dns error",
            "name resolution",
        ],
        "registry-unresolved",
        "the node can't resolve the registry's name",
        "Check the registry's name, and the name servers in /etc/resolv.conf of the node.",
    ),
    (
        &[
            "connection refused",
            "i/o timeout",
            "deadline exceeded",
            "no route to host",
            "network is unreachable",
            "tls handshake timeout",
            "connection reset",
            "timed out",
            "eof",
        ],
        "registry-unreachable",
        "the node can't reach the registry",
        "Check the node's way to the registry (firewall, proxy), or name a mirror in the registries file.",
    ),
];

pub fn classify(message: &str) -> Option<&'static Row> {
    let message = message.to_lowercase();
    ANSWERS
        .iter()
        .find(|row| row.0.iter().any(|word| message.contains(word)))
}

/// For a container that waits for its image. A back-off says less than the answer before it, which stands in an event.
pub fn diagnose(container: &Container, picture: &Picture) -> Option<Finding> {
    let reason = container.status.text("/state/waiting/reason");
    let message = container.status.text("/state/waiting/message");
    let image = container.image();
    let events = picture.events(container.pod);
    let of_image =
        |e: &&&Value| e.text("/message").contains(image) || e.text("/message").contains("Error: ErrImagePull");
    let mut told = events
        .iter()
        .filter(|e| matches!(e.text("/reason"), "Failed" | "FailedToRetrieveImagePullSecret"))
        .filter(of_image)
        .map(|e| e.text("/message"));
    let found = match reason {
        "InvalidImageName" => Finding::certain(
            "image-name-invalid",
            container.shown(),
            format!("{image:?} is no name of an image"),
        )
        .shown_by(message)
        .mended_by("Write it as [registry/]name[:tag], in small letters and without a scheme such as https://."),
        "ErrImageNeverPull" => Finding::certain(
            "image-never-pulled",
            container.shown(),
            format!("the image {image} isn't on the node, and imagePullPolicy Never forbids to pull it"),
        )
        .shown_by(message)
        .mended_by("Import it on the node (keelson image import), or set imagePullPolicy to IfNotPresent."),
        "SignatureValidationFailed" => Finding::certain(
            "image-signature",
            container.shown(),
            format!("the signature of {image} doesn't pass the node's policy"),
        )
        .shown_by(message)
        .mended_by("Sign the image by a key that the policy names, or change the policy."),
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => {
            let row = classify(&message.replace(image, "")).or_else(|| {
                let mut rows = told.clone().filter_map(|m| classify(&m.replace(image, "")));
                rows.next()
            });
            let evidence = told.next().unwrap_or(message);
            match row {
                Some((_, cause, says, fix)) => Finding::certain(*cause, container.shown(), format!("{image}: {says}"))
                    .shown_by(evidence)
                    .mended_by(fix),
                None => Finding::certain(
                    "image-pull-failed",
                    container.shown(),
                    format!("the image {image} can't be pulled"),
                )
                .shown_by(evidence)
                .mended_by("Read the registry's answer above; `keelson image pull` on the node tries it by hand."),
            }
        }
        _ => return None,
    };
    Some(with_secrets(found, container, picture))
}

/// Secrets that are named for the pull and aren't there.
fn with_secrets(found: Finding, container: &Container, picture: &Picture) -> Finding {
    let pod = container.pod;
    let names = pod.list("/spec/imagePullSecrets").iter().map(|s| s.text("/name"));
    let missing = names.filter(|n| picture.find("Secret", pod.namespace(), n) == Lookup::Missing);
    match missing.map(str::to_string).collect::<Vec<_>>() {
        names if names.is_empty() || found.cause != "image-unauthorized" => found,
        names => Finding {
            cause: "pull-secret-missing".into(),
            says: format!(
                "{}; the secret {} named for it doesn't exist",
                found.says,
                names.join(", ")
            ),
            fix: format!(
                "Create the secret {} in namespace {} (kubectl create secret docker-registry), or correct imagePullSecrets.",
                names.join(", "),
                pod.namespace()
            ),
            ..found
        },
    }
}
