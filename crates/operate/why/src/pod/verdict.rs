//! The scheduler's words, and what they stand for. The words are upstream's: clients and people match them.

/// What a node lacks, from a reason; the order is the order of worth: what is likelier to be the pod's own fault first.
pub struct Row {
    pub words: &'static str,
    pub cause: &'static str,
    pub says: &'static str,
    pub fix: &'static str,
}

const fn row(words: &'static str, cause: &'static str, says: &'static str, fix: &'static str) -> Row {
    Row {
        words,
        cause,
        says,
        fix,
    }
}

pub const ROWS: &[Row] = &[
    row(
        "node affinity/selector",
        "node-selector",
        "no node has the labels that its nodeSelector or node affinity asks for",
        "Label a node (kubectl label node NAME key=value), or change the pod's nodeSelector or affinity.",
    ),
    row(
        "volume node affinity conflict",
        "volume-elsewhere",
        "a volume of it is bound to other nodes than those it could run on",
        "Let it run where its volume is, or move the data: a local or zonal volume can't follow.",
    ),
    row(
        "available persistent volumes to bind",
        "no-volume-fits",
        "no volume fits its claim on a node it could run on",
        "Make a PersistentVolume of that class, size and mode, or use a class with a provisioner.",
    ),
    row(
        "enough free storage",
        "storage-full",
        "no node has room for the volume it claims",
        "Free storage, add a node or disk, or claim less.",
    ),
    row(
        "max volume count",
        "too-many-volumes",
        "no node can take another volume of that driver",
        "Use fewer volumes a node, or add a node.",
    ),
    row(
        "anti-affinity rules",
        "pod-anti-affinity",
        "pods that it must not be beside (or that must not be beside it) are on every node that would do",
        "Add a node, run fewer replicas, or make the anti-affinity preferred in place of required.",
    ),
    row(
        "pod affinity rules",
        "pod-affinity",
        "no node has the pods that it must be beside",
        "Run the pods that its affinity selects, or correct the selector, its namespaces and topologyKey.",
    ),
    row(
        "topology spread constraints (missing required label)",
        "spread-label-missing",
        "nodes lack the label by which it is to be spread",
        "Label the nodes with the constraint's topologyKey.",
    ),
    row(
        "topology spread constraints",
        "topology-spread",
        "its spread constraint allows no further pod where there is room",
        "Add nodes in the emptier domains, raise maxSkew, or set whenUnsatisfiable to ScheduleAnyway.",
    ),
    row(
        "free ports for the requested pod ports",
        "host-port-taken",
        "the host port it asks for is taken on every node that would do",
        "Leave hostPort out (use a Service), or run no more of them than there are nodes.",
    ),
    row(
        "Insufficient cpu",
        "insufficient-cpu",
        "no node has enough CPU left for its request",
        "Lower its CPU request, remove other pods, or add a node. Requests count, not use.",
    ),
    row(
        "Insufficient memory",
        "insufficient-memory",
        "no node has enough memory left for its request",
        "Lower its memory request, remove other pods, or add a node. Requests count, not use.",
    ),
    row(
        "Insufficient ephemeral-storage",
        "insufficient-disk",
        "no node has enough disk left for its ephemeral-storage request",
        "Lower the request, or add a node.",
    ),
    row(
        "Insufficient ",
        "insufficient-device",
        "no node has enough left of a resource it asks for",
        "See that the device plug-in of that resource runs on the nodes (kubectl describe node shows allocatable), or ask for less.",
    ),
    row(
        "Too many pods",
        "too-many-pods",
        "every node has as many pods as it takes",
        "Remove pods, add a node, or raise max-pods.",
    ),
    row(
        "cannot allocate all claims",
        "devices-taken",
        "no node has the devices that its resource claims ask for",
        "Free devices, or see that their driver publishes them (kubectl get resourceslices).",
    ),
    row(
        "didn't match the requested node name",
        "node-missing",
        "no node has the name it asks for",
        "Correct spec.nodeName.",
    ),
    row(
        "were unschedulable",
        "nodes-cordoned",
        "nodes that would do are cordoned",
        "kubectl uncordon NODE",
    ),
    row(
        "node.kubernetes.io/unschedulable",
        "nodes-cordoned",
        "nodes that would do are cordoned",
        "kubectl uncordon NODE",
    ),
    row(
        "node.kubernetes.io/not-ready",
        "nodes-not-ready",
        "nodes that would do aren't ready",
        "See keelson why node/NAME.",
    ),
    row(
        "node.kubernetes.io/unreachable",
        "nodes-not-ready",
        "nodes that would do don't answer",
        "See keelson why node/NAME.",
    ),
    row(
        "node.kubernetes.io/disk-pressure",
        "nodes-disk-pressure",
        "nodes that would do are short of disk",
        "Free or enlarge their disks.",
    ),
    row(
        "node.kubernetes.io/memory-pressure",
        "nodes-memory-pressure",
        "nodes that would do are short of memory",
        "Find what uses it (kubectl top pods -A).",
    ),
    row(
        "untolerated taint",
        "untolerated-taint",
        "nodes that would do have a taint that it doesn't tolerate",
        "Add a toleration to the pod, or remove the taint (kubectl taint node NAME key-).",
    ),
];

/// The row that a reason stands for; how far behind it is.
pub fn row_of(reason: &str) -> Option<(usize, &'static Row)> {
    ROWS.iter().enumerate().find(|(_, row)| reason.contains(row.words))
}

/// The nodes and reasons of a verdict: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had …. preemption: …`.
pub fn reasons(message: &str) -> Vec<(usize, &str)> {
    let Some((_, rest)) = message.split_once("nodes are available: ") else {
        return Vec::new();
    };
    let verdict = rest.split(" preemption:").next().unwrap_or(rest);
    let verdict = verdict.trim().trim_end_matches(',').trim_end_matches('.');
    let mut parts: Vec<&str> = Vec::new();
    // A taint's text may have commas of its own; a new reason begins with a number.
    let mut start = 0;
    for (at, _) in verdict.match_indices(", ") {
        if verdict[at + 2..].starts_with(|c: char| c.is_ascii_digit()) {
            parts.push(&verdict[start..at]);
            start = at + 2;
        }
    }
    parts.push(&verdict[start..]);
    parts.into_iter().filter_map(counted).collect()
}

/// `2 node(s) had …`
fn counted(part: &str) -> Option<(usize, &str)> {
    let (count, reason) = part.split_once(' ')?;
    Some((count.parse().ok()?, reason.trim_end_matches('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read() {
        let text = "0/6 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {a: b, 3c}, 3 node(s) didn't \
                    match Pod's node affinity/selector. preemption: 0/6 nodes are available: 6 Preemption is not helpful.";
        let read = reasons(text);
        assert_eq!(read.len(), 3, "{read:?}");
        assert_eq!(read[0], (1, "Insufficient cpu"));
        assert_eq!(read[2].0, 3);
        assert_eq!(row_of(read[2].1).unwrap().1.cause, "node-selector");
        assert!(reasons("no nodes available to schedule pods").is_empty());
    }
}
