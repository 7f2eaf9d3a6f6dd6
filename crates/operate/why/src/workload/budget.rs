//! A disruption budget that allows nothing, which is what stops a drain.

use crate::finding::{Finding, Report};
use crate::object::{Fields, port_text};
use crate::picture::{Picture, selector, selects};
use crate::pod;
use serde_json::Value;

pub fn diagnose(budget: &Value, picture: &Picture, report: &mut Report) {
    if let Some(condition) = budget.condition_is("DisruptionAllowed", "False")
        && condition.text("/reason") == "SyncFailed"
    {
        report.add(
            Finding::certain("budget-sync-failed", budget.shown(), "it can't be counted, so it allows no eviction")
                .shown_by(condition.text("/message"))
                .mended_by("maxUnavailable and percentages need pods that a controller with a scale owns; use minAvailable as a number for others."),
        );
        return;
    }
    let Some(wanted) = selector(budget, "/spec/selector") else {
        return;
    };
    let pods: Vec<&Value> = picture
        .all("Pod", budget.namespace())
        .filter(|p| selects(&wanted, p))
        .collect();
    if pods.is_empty() && picture.knows("Pod", budget.namespace()) {
        report.add(
            Finding::likely(
                "selector-matches-nothing",
                budget.shown(),
                "its selector selects no pod",
            )
            .mended_by("Correct spec.selector, unless its pods are only to come."),
        );
        return;
    }
    if budget.number("/status/disruptionsAllowed") != Some(0) {
        return;
    }
    let of = |field: &str| budget.number(&format!("/status/{field}")).unwrap_or(0);
    let told = format!(
        "{} of {} pods are healthy, {} have to be",
        of("currentHealthy"),
        of("expectedPods"),
        of("desiredHealthy")
    );
    if of("currentHealthy") < of("desiredHealthy") || pods.iter().any(|p| !pod::is_ready(p)) {
        super::of_pods(&pods, picture, report);
        report.add(
            Finding::certain(
                "budget-used-up",
                budget.shown(),
                "it allows no eviction, because pods of it aren't ready",
            )
            .shown_by(told)
            .mended_by(
                "Mend the pods first; or set unhealthyPodEvictionPolicy: AlwaysAllow, so that broken ones may go.",
            ),
        );
        return;
    }
    let rule = match budget.pointer("/spec/minAvailable") {
        Some(min) => format!("minAvailable {}", port_text(Some(min))),
        None => format!("maxUnavailable {}", port_text(budget.pointer("/spec/maxUnavailable"))),
    };
    report.add(
        Finding::certain(
            "budget-allows-nothing",
            budget.shown(),
            format!("it never allows an eviction: {rule} leaves none over"),
        )
        .shown_by(told)
        .mended_by("Run more replicas than minAvailable, or allow one to be unavailable; else a drain waits for ever."),
    );
}
