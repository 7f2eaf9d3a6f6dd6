//! Who may come in, as `keelson server` is told: kube-apiserver's options, under kube-apiserver's names.
//!
//! They stand in the same places as all options; their list is its own, for it is long and means one thing.

use crate::config::fill;
use crate::store::duration;
use clap::{Args, CommandFactory, Parser};
use keelson_apiserver::{admission, authn, authz};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Access {
    /// YAML file with an AuthenticationConfiguration: issuers of tokens (OpenID Connect), and what is open to anonymous
    /// requests; followed while the server runs
    #[arg(long, env = "KEELSON_AUTHENTICATION_CONFIG", value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// Whether requests without any credentials are let in, as system:anonymous [default: true]
    #[arg(long, env = "KEELSON_ANONYMOUS_AUTH", num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    /// URL of an OpenID Connect issuer whose tokens are taken
    #[arg(long, env = "KEELSON_OIDC_ISSUER_URL", value_name = "URL")]
    pub oidc_issuer_url: Option<String>,
    /// The audience that such tokens have to be for
    #[arg(long, env = "KEELSON_OIDC_CLIENT_ID", value_name = "ID")]
    pub oidc_client_id: Option<String>,
    /// Authorities that vouch for the issuer, in PEM [default: the machine's]
    #[arg(long, env = "KEELSON_OIDC_CA_FILE", value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that names the user [default: sub]
    #[arg(long, env = "KEELSON_OIDC_USERNAME_CLAIM", value_name = "CLAIM")]
    pub oidc_username_claim: Option<String>,
    /// What is put before the user's name; "-": nothing [default: the issuer's URL and #, nothing for the claim email]
    #[arg(
        long,
        env = "KEELSON_OIDC_USERNAME_PREFIX",
        value_name = "PREFIX",
        allow_hyphen_values = true
    )]
    pub oidc_username_prefix: Option<String>,
    /// The claim that names the user's groups
    #[arg(long, env = "KEELSON_OIDC_GROUPS_CLAIM", value_name = "CLAIM")]
    pub oidc_groups_claim: Option<String>,
    /// What is put before the groups' names
    #[arg(long, env = "KEELSON_OIDC_GROUPS_PREFIX", value_name = "PREFIX")]
    pub oidc_groups_prefix: Option<String>,
    /// What such tokens may be signed with [default: RS256]
    #[arg(long, env = "KEELSON_OIDC_SIGNING_ALGS", value_name = "LIST", value_delimiter = ',')]
    pub oidc_signing_algs: Option<Vec<String>>,
    /// A claim that such tokens have to have, with its value; may be given several times
    #[arg(long, env = "KEELSON_OIDC_REQUIRED_CLAIM", value_name = "CLAIM=VALUE")]
    pub oidc_required_claim: Option<Vec<String>>,
    /// Audiences of this API [default: the issuer of its service accounts]
    #[arg(long, env = "KEELSON_API_AUDIENCES", value_name = "LIST", value_delimiter = ',')]
    pub api_audiences: Option<Vec<String>>,
    /// CSV file of tokens that never end: token, user's name, his uid, his groups; read at the start
    #[arg(long, env = "KEELSON_TOKEN_AUTH_FILE", value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// kubeconfig of a webhook that knows tokens
    #[arg(long, env = "KEELSON_AUTHENTICATION_TOKEN_WEBHOOK_CONFIG_FILE", value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReviews that it is sent: v1 or v1beta1 [default: v1beta1]
    #[arg(long, env = "KEELSON_AUTHENTICATION_TOKEN_WEBHOOK_VERSION", value_name = "VERSION")]
    pub authentication_token_webhook_version: Option<String>,
    /// How long its answers are remembered [default: 2m]
    #[arg(
        long,
        env = "KEELSON_AUTHENTICATION_TOKEN_WEBHOOK_CACHE_TTL",
        value_name = "DURATION"
    )]
    pub authentication_token_webhook_cache_ttl: Option<String>,
    /// YAML file with an AuthorizationConfiguration: who decides what users may do; followed while the server runs
    #[arg(long, env = "KEELSON_AUTHORIZATION_CONFIG", value_name = "FILE")]
    pub authorization_config: Option<PathBuf>,
    /// Who decides what users may do, in this order: Node, RBAC, ABAC, Webhook, AlwaysAllow, AlwaysDeny [default: Node,RBAC]
    #[arg(long, env = "KEELSON_AUTHORIZATION_MODE", value_name = "LIST", value_delimiter = ',')]
    pub authorization_mode: Option<Vec<String>>,
    /// File of ABAC's policies, a JSON object a line; read at the start
    #[arg(long, env = "KEELSON_AUTHORIZATION_POLICY_FILE", value_name = "FILE")]
    pub authorization_policy_file: Option<PathBuf>,
    /// kubeconfig of a webhook that decides
    #[arg(long, env = "KEELSON_AUTHORIZATION_WEBHOOK_CONFIG_FILE", value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReviews that it is sent: v1 or v1beta1 [default: v1beta1]
    #[arg(long, env = "KEELSON_AUTHORIZATION_WEBHOOK_VERSION", value_name = "VERSION")]
    pub authorization_webhook_version: Option<String>,
    /// How long it is remembered what it allows [default: 5m]
    #[arg(
        long,
        env = "KEELSON_AUTHORIZATION_WEBHOOK_CACHE_AUTHORIZED_TTL",
        value_name = "DURATION"
    )]
    pub authorization_webhook_cache_authorized_ttl: Option<String>,
    /// How long it is remembered what it doesn't allow [default: 30s]
    #[arg(
        long,
        env = "KEELSON_AUTHORIZATION_WEBHOOK_CACHE_UNAUTHORIZED_TTL",
        value_name = "DURATION"
    )]
    pub authorization_webhook_cache_unauthorized_ttl: Option<String>,
    /// YAML file with an AdmissionConfiguration: of PodSecurity, EventRateLimit, PodNodeSelector, PodTolerationRestriction, ImagePolicyWebhook
    #[arg(long, env = "KEELSON_ADMISSION_CONTROL_CONFIG_FILE", value_name = "FILE")]
    pub admission_control_config_file: Option<PathBuf>,
    /// Plug-ins of admission that run besides the usual ones
    #[arg(
        long,
        env = "KEELSON_ENABLE_ADMISSION_PLUGINS",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub enable_admission_plugins: Option<Vec<String>>,
    /// Plug-ins of admission that don't run
    #[arg(
        long,
        env = "KEELSON_DISABLE_ADMISSION_PLUGINS",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub disable_admission_plugins: Option<Vec<String>>,
}

/// What follows from it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub authentication: authn::Settings,
    pub authorization: authz::Settings,
    pub admission: admission::Settings,
    /// Empty: the issuer of this server's service accounts.
    pub api_audiences: Vec<String>,
}

#[derive(Parser)]
struct Names {
    #[command(flatten)]
    _access: Access,
}

impl Access {
    /// The names of these options.
    pub fn names() -> Vec<String> {
        let command = Names::command();
        let names = command.get_arguments().filter_map(|a| a.get_long());
        names.filter(|n| *n != "help").map(str::to_string).collect()
    }

    /// Takes over from another list what this one leaves open.
    pub fn fill(&mut self, other: Access) {
        fill!(self from other: authentication_config, anonymous_auth, oidc_issuer_url, oidc_client_id, oidc_ca_file,
            oidc_username_claim, oidc_username_prefix, oidc_groups_claim, oidc_groups_prefix, oidc_signing_algs,
            oidc_required_claim, api_audiences, token_auth_file, authentication_token_webhook_config_file,
            authentication_token_webhook_version, authentication_token_webhook_cache_ttl, authorization_config,
            authorization_mode, authorization_policy_file, authorization_webhook_config_file, authorization_webhook_version,
            authorization_webhook_cache_authorized_ttl, authorization_webhook_cache_unauthorized_ttl,
            admission_control_config_file, enable_admission_plugins, disable_admission_plugins);
    }

    /// Decides everything. `issuer`: of this server's service accounts.
    pub fn resolve(self, issuer: &str) -> anyhow::Result<Settings> {
        let own = [issuer.to_string()];
        let authentication = authn::Options {
            config: self.authentication_config,
            anonymous: self.anonymous_auth,
            oidc: authn::options::Oidc {
                issuer_url: self.oidc_issuer_url,
                client_id: self.oidc_client_id,
                ca_file: self.oidc_ca_file,
                username_claim: self.oidc_username_claim,
                username_prefix: self.oidc_username_prefix,
                groups_claim: self.oidc_groups_claim,
                groups_prefix: self.oidc_groups_prefix,
                signing_algs: self.oidc_signing_algs,
                required_claims: self.oidc_required_claim,
            },
            token_file: self.token_auth_file,
            webhook: authn::webhook::Options {
                config_file: self.authentication_token_webhook_config_file,
                version: self.authentication_token_webhook_version,
                cache_ttl: duration(
                    "--authentication-token-webhook-cache-ttl",
                    self.authentication_token_webhook_cache_ttl.as_deref(),
                )?,
            },
        };
        let authorization = authz::Options {
            config: self.authorization_config,
            modes: self.authorization_mode,
            policy_file: self.authorization_policy_file,
            webhook_config_file: self.authorization_webhook_config_file,
            webhook_version: self.authorization_webhook_version,
            authorized_ttl: duration(
                "--authorization-webhook-cache-authorized-ttl",
                self.authorization_webhook_cache_authorized_ttl.as_deref(),
            )?,
            unauthorized_ttl: duration(
                "--authorization-webhook-cache-unauthorized-ttl",
                self.authorization_webhook_cache_unauthorized_ttl.as_deref(),
            )?,
        };
        let authorization = authorization.resolve()?;
        let mut authentication = authentication.resolve(&own)?;
        let in_file = authentication.file.as_ref().is_some_and(|f| f.anonymous.is_some());
        if authorization.allows_all && !in_file {
            // Upstream's rule: who may do everything has to be somebody.
            authentication.anonymous.enabled = false;
        }
        let admission = admission::Options {
            config: self.admission_control_config_file,
            enable: self.enable_admission_plugins.unwrap_or_default(),
            disable: self.disable_admission_plugins.unwrap_or_default(),
        };
        Ok(Settings {
            authentication,
            authorization,
            admission: admission.resolve()?,
            api_audiences: self.api_audiences.unwrap_or_default(),
        })
    }
}
