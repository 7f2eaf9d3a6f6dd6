//! One request to an extender. It ends by its deadline, answer included, and isn't repeated; what is larger than the bound isn't read.

use super::{Settings, Tls};
use anyhow::{Context, bail, ensure};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Bytes of an answer, which may repeat all nodes.
const MOST_ANSWER: usize = 64 << 20;

pub struct Caller {
    client: kube::Client,
    url: String,
    /// What stands before each verb.
    path: String,
    within: Duration,
}

impl Caller {
    pub async fn new(settings: &Settings) -> anyhow::Result<Caller> {
        let uri: http::Uri = settings.url.parse().context("urlPrefix isn't a URL")?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            bail!("urlPrefix must be http://HOST[:PORT][/PATH] or https://…");
        };
        ensure!(
            matches!(scheme, "http" | "https"),
            "urlPrefix must begin with http:// or https://"
        );
        let named = |name: &str| name.to_owned();
        let options = KubeConfigOptions {
            context: Some(named("extender")),
            ..KubeConfigOptions::default()
        };
        let (cluster, user) = (cluster(scheme, authority.as_str(), &settings.tls), user(&settings.tls));
        let file = Kubeconfig {
            clusters: vec![NamedCluster {
                name: named("extender"),
                cluster: Some(cluster),
                ..NamedCluster::default()
            }],
            auth_infos: vec![NamedAuthInfo {
                name: named("extender"),
                auth_info: Some(user),
                ..NamedAuthInfo::default()
            }],
            contexts: vec![NamedContext {
                name: named("extender"),
                context: Some(kube::config::Context {
                    cluster: named("extender"),
                    user: Some(named("extender")),
                    ..Default::default()
                }),
                ..NamedContext::default()
            }],
            ..Kubeconfig::default()
        };
        let mut config = kube::Config::from_custom_kubeconfig(file, &options)
            .await
            .context("tlsConfig")?;
        // A request that was sent may have been done.
        config.default_retry = false;
        config.read_timeout = None;
        config.connect_timeout = Some(settings.timeout);
        Ok(Caller {
            client: kube::Client::try_from(config).context("tlsConfig")?,
            url: settings.url.trim_end_matches('/').to_owned(),
            path: uri.path().trim_end_matches('/').to_owned(),
            within: settings.timeout,
        })
    }

    pub async fn send<T: DeserializeOwned>(&self, verb: &str, args: &impl Serialize) -> anyhow::Result<T> {
        let (url, body) = (&self.url, serde_json::to_vec(args)?);
        let request = http::Request::post(format!("{}/{verb}", self.path))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))?;
        let asked = async {
            let answer = self.client.send(request).await?;
            let code = answer.status();
            ensure!(
                code == http::StatusCode::OK,
                "failed {verb} with extender at URL {url}/{verb}, code {}",
                code.as_u16()
            );
            let body = Limited::new(answer.into_body(), MOST_ANSWER).collect().await;
            let body = body.map_err(|e| anyhow::anyhow!("{e}")).context("reading the answer")?;
            Ok(serde_json::from_slice(&body.to_bytes())?)
        };
        match tokio::time::timeout(self.within, asked).await {
            Ok(answer) => answer.with_context(|| format!("the extender at {url}/{verb}")),
            Err(_) => bail!("the extender at {url}/{verb} didn't answer within {:?}", self.within),
        }
    }
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn cluster(scheme: &str, authority: &str, tls: &Tls) -> Cluster {
    Cluster {
        server: Some(format!("{scheme}://{authority}")),
        // Without TLS nobody's authorities are needed, not even the machine's own.
        insecure_skip_tls_verify: Some(tls.insecure || scheme == "http"),
        certificate_authority: given(&tls.ca_file).filter(|_| tls.ca_data.is_empty()),
        certificate_authority_data: given(&tls.ca_data),
        tls_server_name: given(&tls.server_name),
        ..Cluster::default()
    }
}

fn user(tls: &Tls) -> AuthInfo {
    AuthInfo {
        client_certificate: given(&tls.cert_file).filter(|_| tls.cert_data.is_empty()),
        client_certificate_data: given(&tls.cert_data),
        client_key: given(&tls.key_file).filter(|_| tls.key_data.0.is_empty()),
        client_key_data: given(&tls.key_data.0).map(Into::into),
        ..AuthInfo::default()
    }
}
