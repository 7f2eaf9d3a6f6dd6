//! An autoscaler that doesn't scale.

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Need, Picture};
use serde_json::Value;

pub fn diagnose(scaler: &Value, picture: &Picture, report: &mut Report) {
    let target = format!(
        "{}/{}",
        scaler.text("/spec/scaleTargetRef/kind").to_lowercase(),
        scaler.text("/spec/scaleTargetRef/name")
    );
    if let Some(condition) = scaler.condition_is("AbleToScale", "False") {
        report.add_all(unable(scaler, condition, &target));
    }
    if let Some(condition) = scaler.condition_is("ScalingActive", "False") {
        report.add(inactive(scaler, condition, &target, picture));
    }
    if let Some(condition) = scaler.condition_is("ScalingLimited", "True")
        && condition.text("/reason") == "TooManyReplicas"
        && report.findings.is_empty()
    {
        report.add(
            Finding::certain(
                "autoscaler-at-maximum",
                scaler.shown(),
                format!(
                    "it wants more replicas than its maximum of {}",
                    scaler.number("/spec/maxReplicas").unwrap_or(0)
                ),
            )
            .shown_by(condition.text("/message"))
            .mended_by("Raise spec.maxReplicas, or find what loads the pods."),
        );
    }
    if scaler.list("/status/conditions").is_empty() {
        let age = picture.since(scaler.text("/metadata/creationTimestamp"));
        if age.is_some_and(|a| a.as_secs() > 60) {
            report.add(
                Finding::likely(
                    "controller-silent",
                    scaler.shown(),
                    "no controller has looked at it since it was made",
                )
                .mended_by("See that the controllers run."),
            );
        }
    }
}

fn unable(scaler: &Value, condition: &Value, target: &str) -> Option<Finding> {
    let found = match condition.text("/reason") {
        "FailedGetScale" => Finding::certain(
            "autoscaler-target",
            scaler.shown(),
            format!("its target {target} doesn't exist, or can't be scaled"),
        )
        .mended_by("Correct spec.scaleTargetRef: apiVersion, kind and name, in the autoscaler's namespace."),
        "FailedUpdateScale" => Finding::certain(
            "autoscaler-update",
            scaler.shown(),
            format!("its target {target} can't be changed"),
        )
        .mended_by("The API server's words are above."),
        "BackoffBoth" | "BackoffUpscale" | "BackoffDownscale" => return None,
        other => Finding::certain(
            "autoscaler-unable",
            scaler.shown(),
            format!("it can't scale {target}: {other}"),
        )
        .mended_by("The message is above."),
    };
    Some(found.shown_by(condition.text("/message")))
}

fn inactive(scaler: &Value, condition: &Value, target: &str, picture: &Picture) -> Finding {
    let message = condition.text("/message");
    let shown = scaler.shown();
    let found = match condition.text("/reason") {
        "ScalingDisabled" => Finding::certain(
            "autoscaler-disabled",
            shown,
            format!("{target} is scaled to 0, which switches it off"),
        )
        .mended_by(format!("kubectl scale {target} --replicas=1")),
        "AmbiguousSelector" => Finding::certain(
            "autoscaler-ambiguous",
            shown,
            format!("another autoscaler is for the pods of {target} too"),
        )
        .mended_by("Remove one of the two, or make their targets' selectors differ."),
        "InvalidSelector" => Finding::certain(
            "autoscaler-selector",
            shown,
            format!("{target} has no selector that could be read"),
        )
        .mended_by("Its scale has to name one (labelSelectorPath of a custom resource)."),
        "InvalidMetricSourceType" => Finding::certain(
            "autoscaler-metric",
            shown,
            "it names a metric of a type that isn't known",
        )
        .mended_by("Types are Resource, ContainerResource, Pods, Object and External."),
        "FailedGetResourceMetric" | "FailedGetContainerResourceMetric" if message.contains("missing request for") => {
            let rest = message.split_once("missing request for ").map_or("", |(_, r)| r);
            let resource = rest.split([' ', ',']).next().unwrap_or("cpu");
            Finding::certain("autoscaler-no-requests", shown, format!("pods of {target} don't request {resource}, of which it is to keep a share"))
                .mended_by(format!("Set resources.requests.{resource} on every container (sidecars too), or use an averageValue in place of a share."))
        }
        "FailedGetResourceMetric" | "FailedGetContainerResourceMetric"
            if message.contains("could not find the requested resource")
                || message.contains("the server is currently unable") =>
        {
            let api = picture.find("APIService", "", "v1beta1.metrics.k8s.io").found();
            Finding::certain("no-metrics-server", shown, "nobody serves metrics.k8s.io, so it doesn't know what pods use")
                .shown_by(api.and_then(|a| a.condition("Available")).map_or("", |c| c.text("/message")))
                .mended_by("Switch Keelson's own on (it is by default), or install metrics-server; see keelson why apiservice/v1beta1.metrics.k8s.io.")
        }
        "FailedGetResourceMetric" | "FailedGetContainerResourceMetric"
            if message.contains("no metrics returned")
                || message.contains("no pods returned")
                || message.contains("did not receive metrics") =>
        {
            Finding::certain(
                "autoscaler-no-metrics",
                shown,
                format!("nothing is known yet of what the pods of {target} use"),
            )
            .mended_by(format!(
                "They may just have started, or not run: see keelson why {target}."
            ))
        }
        "FailedGetPodsMetric" | "FailedGetObjectMetric" => Finding::certain(
            "no-custom-metrics",
            shown,
            "nobody serves custom.metrics.k8s.io with this metric",
        )
        .mended_by("Install an adapter (prometheus-adapter, KEDA), and check the metric's name."),
        "FailedGetExternalMetric" => Finding::certain(
            "no-external-metrics",
            shown,
            "nobody serves external.metrics.k8s.io with this metric",
        )
        .mended_by("Install an adapter (KEDA, a cloud's), and check the metric's name."),
        other => Finding::certain(
            "autoscaler-inactive",
            shown,
            format!("it can't count what {target} needs: {other}"),
        )
        .mended_by("The message is above."),
    };
    found.shown_by(message)
}

pub fn needs(scaler: &Value) -> Vec<Need> {
    vec![
        Need::All("Event", scaler.namespace().into()),
        Need::One("APIService", String::new(), "v1beta1.metrics.k8s.io".into()),
    ]
}
