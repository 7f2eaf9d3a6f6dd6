//! What extends the API: API services, definitions of resources, webhooks.

use crate::finding::{Finding, Report};
use crate::network::service;
use crate::object::Fields;
use crate::picture::{Lookup, Need, Picture};
use serde_json::Value;

pub fn api_service(api: &Value, picture: &Picture, report: &mut Report) {
    let Some(condition) = api.condition_is("Available", "False") else {
        return;
    };
    let name = format!(
        "{}/{}",
        api.text("/spec/service/namespace"),
        api.text("/spec/service/name")
    );
    let sure = |cause: &str, says: String, fix: &str| {
        Finding::certain(cause, api.shown(), says)
            .shown_by(condition.text("/message"))
            .mended_by(fix)
    };
    report.add(match condition.text("/reason") {
        "ServiceNotFound" => sure(
            "backend-missing",
            format!("its service {name} doesn't exist"),
            "Install again what served it, or delete the APIService: it breaks discovery and the deletion of namespaces.",
        ),
        "ServicePortError" => sure("backend-port-missing", format!("its service {name} has no such port"), "Correct spec.service.port."),
        "MissingEndpoints" | "EndpointsNotFound" => sure(
            "no-ready-pods",
            format!("its service {name} has no ready pod"),
            "Mend the pods behind it (causes follow if they can be seen).",
        ),
        "FailedDiscoveryCheck" => sure(
            "api-service-fails",
            format!("its service {name} can't be asked, or answers with an error"),
            "See its pods' log; a certificate that caBundle doesn't vouch for and a network policy are usual reasons.",
        ),
        other => sure("api-service-fails", format!("it isn't available: {other}"), "The message is above."),
    });
    let backend = picture.find(
        "Service",
        api.text("/spec/service/namespace"),
        api.text("/spec/service/name"),
    );
    if let Lookup::Found(found) = backend {
        service::diagnose(found, picture, report);
    }
}

pub fn definition(definition: &Value, report: &mut Report) {
    let told = |kind: &str, status: &str| definition.condition_is(kind, status);
    if let Some(condition) = told("NamesAccepted", "False") {
        report.add(
            Finding::certain(
                "names-taken",
                definition.shown(),
                "another definition has one of its names",
            )
            .shown_by(condition.text("/message"))
            .mended_by("Remove the other definition, or change the names that are named above."),
        );
    }
    if let Some(condition) = told("NonStructuralSchema", "True") {
        report.add(
            Finding::certain(
                "schema-not-structural",
                definition.shown(),
                "its schema isn't structural",
            )
            .shown_by(condition.text("/message"))
            .mended_by("Give every field a type at the places that are named above."),
        );
    }
    if let Some(condition) = told("KubernetesAPIApprovalPolicyConformant", "False") {
        report.add(
            Finding::certain(
                "group-protected",
                definition.shown(),
                "its group ends with k8s.io, which needs an approval",
            )
            .shown_by(condition.text("/message"))
            .mended_by("Use a group of your own, or set the annotation api-approved.kubernetes.io."),
        );
    }
    if let Some(condition) = told("Established", "False")
        && report.findings.is_empty()
    {
        report.add(
            Finding::certain("not-established", definition.shown(), "it isn't served yet")
                .shown_by(condition.text("/message"))
                .mended_by("It takes a moment after its making."),
        );
    }
}

pub fn webhooks(configuration: &Value, picture: &Picture, report: &mut Report) {
    for webhook in configuration.list("/webhooks") {
        let (namespace, name) = (
            webhook.text("/clientConfig/service/namespace"),
            webhook.text("/clientConfig/service/name"),
        );
        let strict = match webhook.text("/failurePolicy") {
            "Ignore" => "requests go on without it (failurePolicy Ignore)",
            _ => "requests that it is for fail (failurePolicy Fail)",
        };
        match picture.find("Service", namespace, name) {
            Lookup::Missing if !name.is_empty() => report.add(
                Finding::certain(
                    "backend-missing",
                    configuration.shown(),
                    format!(
                        "the service {namespace}/{name} of its webhook {} doesn't exist: {strict}",
                        webhook.name_of()
                    ),
                )
                .mended_by("Install again what served it, or delete this configuration."),
            ),
            Lookup::Found(found) => service::diagnose(found, picture, report),
            _ => {}
        }
    }
}

trait NameOf {
    fn name_of(&self) -> &str;
}
impl NameOf for Value {
    fn name_of(&self) -> &str {
        self.text("/name")
    }
}

pub fn needs(object: &Value) -> Vec<Need> {
    let of = |namespace: &str, name: &str| {
        let mut needs = vec![Need::One("Service", namespace.into(), name.into())];
        needs.extend(["Pod", "EndpointSlice", "Event"].map(|kind| Need::All(kind, namespace.into())));
        needs
    };
    let hooks = object
        .list("/webhooks")
        .iter()
        .filter_map(|w| w.pointer("/clientConfig/service"));
    let services = hooks.chain(object.pointer("/spec/service"));
    services
        .flat_map(|s| of(s.text("/namespace"), s.text("/name")))
        .collect()
}
