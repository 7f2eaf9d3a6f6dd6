//! The resource metrics API: its server within the process, and the objects by which the API leads to it.
//!
//! Whoever installs another server for it, metrics-server say, changes the APIService, and has its place: an APIService that
//! leads elsewhere is never touched.

use crate::kubelets::AsSomebody;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::ACCEPT;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use keelson_apiserver::request::{Body, Request, Response};
use keelson_apiserver::serve::Handle;
use keelson_apiserver::{ApiServer, UserInfo};
use keelson_client::objects::{Objects, delete_options};
use keelson_client::rest::Rest;
use keelson_client::{is_already_exists, is_not_found};
use keelson_metrics::MetricsServer;
use keelson_pki::Current;
use serde_json::json;
use std::sync::Arc;

/// Who the server is.
pub const IDENTITY: &str = "system:serviceaccount:kube-system:keelson-metrics";
const NAMESPACE: &str = "kube-system";
/// Not a Service of the cluster: the API server finds what has this name within the process.
const SERVICE: &str = "keelson-metrics";
const API_SERVICE: &str = "v1beta1.metrics.k8s.io";

struct Front(MetricsServer);

impl Handle for Front {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        async move {
            let accept = request.headers().get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
            let accept = accept.collect::<Vec<_>>().join(",");
            let answer = self.0.answer(request.method(), request.uri(), &accept).await;
            answer.map(Body::from)
        }
        .boxed()
    }
}

/// Brings the server into the API, or takes what is left of it out.
pub async fn apply(api: &ApiServer, pki: &Current, wanted: bool) -> anyhow::Result<()> {
    let rest = Rest::new(api.client(UserInfo::from_identity("system:apiserver")), "keelson");
    let services = Objects::<APIService>::new(&rest);
    let ours = |s: &APIService| {
        let service = s.spec.as_ref().and_then(|s| s.service.as_ref());
        service.is_some_and(|s| s.name.as_deref() == Some(SERVICE))
    };
    let found = services.find("", API_SERVICE).await?;
    if !wanted {
        if found.as_ref().is_some_and(ours) {
            match services
                .delete("", API_SERVICE, &delete_options(None, None, None))
                .await
            {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        return Ok(());
    }
    let kubelets = Arc::new(AsSomebody::new(pki.clone(), IDENTITY));
    let server = MetricsServer::new(api.client(UserInfo::from_identity(IDENTITY)), kubelets);
    api.run_here(NAMESPACE, SERVICE, Arc::new(Front(server)));
    readers(&rest).await?;
    if found.is_some() {
        return Ok(());
    }
    let service: APIService = serde_json::from_value(json!({
        "metadata": {"name": API_SERVICE, "labels": {"app.kubernetes.io/managed-by": "keelson"}},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1",
            "service": {"namespace": NAMESPACE, "name": SERVICE},
            "groupPriorityMinimum": 100, "versionPriority": 100,
            // Within the process there is no certificate.
            "insecureSkipTLSVerify": true,
        },
    }))?;
    match services.create(&service).await {
        Err(error) if !is_already_exists(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whoever may view a namespace sees what its pods use, as where metrics-server brings this role.
async fn readers(rest: &Rest) -> anyhow::Result<()> {
    let aggregated =
        ["admin", "edit", "view"].map(|to| (format!("rbac.authorization.k8s.io/aggregate-to-{to}"), "true"));
    let wanted: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": "system:aggregated-metrics-reader", "labels": std::collections::BTreeMap::from(aggregated)},
        "rules": [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
    }))?;
    Objects::<ClusterRole>::new(rest)
        .create_or_update(&wanted, |live| {
            let same = live.rules == wanted.rules;
            live.rules = wanted.rules.clone();
            !same
        })
        .await?;
    Ok(())
}
