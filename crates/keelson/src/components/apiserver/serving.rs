//! kube-apiserver's flags about requests, objects and tokens, as the API server takes them.

use crate::store::duration;
use anyhow::{Context, bail, ensure};
use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args};
use http::HeaderValue;
use keelson_api::resources;
use keelson_apiserver::admission::DefaultTolerationSeconds;
use keelson_apiserver::config::Serving;
use std::ops::RangeInclusive;
use std::time::Duration;

#[derive(Args, Clone, Debug)]
#[group(id = "serving")]
pub struct Options {
    /// Requests that are served at once and don't change anything; with the next flag's they are all that are
    #[arg(long, value_name = "N", default_value_t = 400)]
    max_requests_inflight: usize,
    /// Requests that are served at once and change something
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_mutating_requests_inflight: usize,
    /// How long a request may take, unless it is a watch or a stream [default: 1m]
    #[arg(long, value_name = "DURATION")]
    request_timeout: Option<String>,
    /// Seconds that a watch lasts whose client says nothing of it, and up to twice so [default: 1800]
    #[arg(long, value_name = "SECONDS")]
    min_request_timeout: Option<u64>,
    /// How long events are kept; 0: for ever [default: 1h]
    #[arg(long, value_name = "DURATION")]
    event_ttl: Option<String>,
    /// Ports that services of type NodePort get [default: 30000-32767]
    #[arg(long, value_name = "FROM-TO", value_parser = ports)]
    service_node_port_range: Option<RangeInclusive<u16>>,
    /// By which of its addresses a kubelet is reached: the first type that a node has [default:
    /// InternalIP,ExternalIP,Hostname,InternalDNS,ExternalDNS]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = PossibleValuesParser::new(
        ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"]))]
    kubelet_preferred_address_types: Vec<String>,
    /// Seconds that a pod stays on a node that isn't ready, unless it says so itself [default: 300]
    #[arg(long, value_name = "SECONDS")]
    default_not_ready_toleration_seconds: Option<i64>,
    /// The same of a node that isn't heard of [default: 300]
    #[arg(long, value_name = "SECONDS")]
    default_unreachable_toleration_seconds: Option<i64>,
    /// The longest life of a service account's token, at least an hour [default: as long as it is asked for]
    #[arg(long, value_name = "DURATION")]
    service_account_max_token_expiration: Option<String>,
    /// Tokens that kubelets ask for live for a year, so that pods outlive which don't read them anew
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    service_account_extend_token_expiration: bool,
    /// The host by which clients are told to reach this server, and to find the keys of service accounts
    #[arg(long, value_name = "HOST")]
    pub external_hostname: Option<String>,
    /// Who keeps the addresses of the service kubernetes: lease, or none, which is nobody
    #[arg(long, value_name = "NAME", default_value = "lease", value_parser = PossibleValuesParser::new(["lease", "none"]))]
    endpoint_reconciler_type: String,
    /// Strict-Transport-Security of all answers: max-age=SECONDS, includeSubDomains, preload
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = directive)]
    strict_transport_security_directives: Vec<String>,
    /// Which versions of the API are served (GROUP/VERSION=true|false): each is taken that says what is so
    #[arg(long = "runtime-config", value_name = "LIST", value_delimiter = ',', value_parser = served)]
    _runtime_config: Vec<String>,
    /// After a signal to end, requests are still taken for so long, while /readyz says that it ends [default: 0s]
    #[arg(long, value_name = "DURATION")]
    shutdown_delay_duration: Option<String>,
}

impl Options {
    /// What they say of the API server's own settings.
    pub fn apply(&self, config: &mut keelson_apiserver::Config) -> anyhow::Result<()> {
        let usual = Serving::default();
        let time = |flag, text: &Option<String>| duration(flag, text.as_deref());
        let all = self
            .max_requests_inflight
            .checked_add(self.max_mutating_requests_inflight);
        config.max_requests_in_flight = all.context("--max-requests-inflight is too large")?;
        ensure!(
            config.max_requests_in_flight > 0,
            "--max-requests-inflight and --max-mutating-requests-inflight must add up to something positive"
        );
        config.publish_kubernetes_service = self.endpoint_reconciler_type != "none";
        let seconds = [
            self.default_not_ready_toleration_seconds,
            self.default_unreachable_toleration_seconds,
        ];
        let DefaultTolerationSeconds(usually) = DefaultTolerationSeconds::default();
        let [not_ready, unreachable] = [0, 1].map(|i| seconds[i].unwrap_or(usually[i]));
        config.admission.toleration_seconds = DefaultTolerationSeconds([not_ready, unreachable]);
        let event_ttl = time("--event-ttl", &self.event_ttl)?;
        config.serving = Serving {
            request_timeout: time("--request-timeout", &self.request_timeout)?.unwrap_or(usual.request_timeout),
            min_request_timeout: self
                .min_request_timeout
                .map_or(usual.min_request_timeout, Duration::from_secs),
            event_ttl: event_ttl.map_or(usual.event_ttl, |ttl| (!ttl.is_zero()).then_some(ttl)),
            node_ports: self.service_node_port_range.clone().unwrap_or(usual.node_ports),
            kubelet_address_types: match self.kubelet_preferred_address_types.as_slice() {
                [] => usual.kubelet_address_types,
                given => given.to_vec(),
            },
            max_token_expiration: self.max_token_expiration()?,
            extends_tokens: self.service_account_extend_token_expiration,
            external_host: self.external_hostname.clone(),
            transport_security: match self.strict_transport_security_directives.join("; ") {
                none if none.is_empty() => None,
                all => Some(HeaderValue::from_str(&all).context("--strict-transport-security-directives")?),
            },
        };
        Ok(())
    }

    fn max_token_expiration(&self) -> anyhow::Result<Option<i64>> {
        let flag = "--service-account-max-token-expiration";
        let given = duration(flag, self.service_account_max_token_expiration.as_deref())?;
        let Some(seconds) = given.map(|most| most.as_secs()).filter(|most| *most > 0) else {
            return Ok(None);
        };
        let bounds = 3600..=1 << 32;
        ensure!(
            bounds.contains(&seconds),
            "{flag}: the service-account-max-token-expiration must be between 1 hour and 2^32 seconds"
        );
        Ok(Some(i64::try_from(seconds)?))
    }

    /// How long requests are taken after a signal to end.
    pub fn shutdown_delay(&self) -> anyhow::Result<Duration> {
        let given = duration("--shutdown-delay-duration", self.shutdown_delay_duration.as_deref())?;
        Ok(given.unwrap_or_default())
    }
}

/// A range of ports as upstream reads it: `FROM-TO`, `FROM+MORE`, or one.
fn ports(text: &str) -> anyhow::Result<RangeInclusive<u16>> {
    let number = |text: &str| {
        text.trim()
            .parse::<u16>()
            .with_context(|| format!("{text:?} is no port"))
    };
    let (from, to) = match (text.split_once('-'), text.split_once('+')) {
        (Some((from, to)), None) => (number(from)?, number(to)?),
        (None, Some((from, more))) => {
            let to = number(from)?.checked_add(number(more)?);
            (
                number(from)?,
                to.context("the port range cannot be greater than 65535")?,
            )
        }
        (None, None) => (number(text)?, number(text)?),
        _ => bail!("either '-' or '+' can be used, not both"),
    };
    ensure!(from > 0 && from <= to, "{text}: a range goes from 1 or more to no less");
    Ok(from..=to)
}

fn directive(text: &str) -> anyhow::Result<String> {
    let is_age = text.strip_prefix("max-age=").is_some_and(|age| !age.contains('='));
    ensure!(
        is_age || matches!(text, "includeSubDomains" | "preload"),
        "invalid, allowed values: max-age=expireTime, includeSubDomains, preload"
    );
    Ok(text.into())
}

/// What is served the program decides; a pair of `--runtime-config` has to say what is so.
fn served(pair: &str) -> anyhow::Result<String> {
    let (name, said) = pair.split_once('=').unwrap_or((pair, "true"));
    let wanted: bool = match said {
        "" => true,
        said => said.parse().with_context(|| format!("invalid value {pair}"))?,
    };
    let versions = || {
        resources::groups()
            .iter()
            .flat_map(|g| g.versions.iter().map(move |v| (g.name, v.name)))
    };
    let of_level = |level: &str| versions().any(|(_, version)| level_of(version) == level);
    let is_so = match name {
        "api/all" => wanted && of_level("ga"),
        "api/ga" => wanted,
        "api/beta" | "api/alpha" => wanted == of_level(&name[4..]) && !wanted,
        _ => {
            let path = name.strip_prefix("api/").map_or(name, |core| core);
            let (group, version) = path.split_once('/').unwrap_or(("", path));
            let known = resources::groups().iter().any(|g| g.name == group);
            ensure!(known, "unknown api groups {group}");
            // Of what isn't a version nothing would follow: a kind's name (apps/v1/deployments), or a group's alone.
            ensure!(
                is_version(version),
                "{name}={wanted} can't be had here: which kinds are served the program decides"
            );
            versions().any(|found| found == (group, version)) == wanted
        }
    };
    ensure!(
        is_so,
        "{name}={wanted} can't be had here: which versions are served the program decides"
    );
    Ok(pair.into())
}

fn is_version(name: &str) -> bool {
    let rest = name.strip_prefix('v').unwrap_or_default();
    rest.starts_with(|c: char| c.is_ascii_digit()) && rest.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn level_of(version: &str) -> &'static str {
    match version {
        v if v.contains("alpha") => "alpha",
        v if v.contains("beta") => "beta",
        _ => "ga",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::components::options_of;
    use keelson_pki::ServiceAccountKeys;

    fn applied(line: &str) -> anyhow::Result<keelson_apiserver::Config> {
        let mut config = keelson_apiserver::Config::new(ServiceAccountKeys::generate()?);
        options_of::<Options>(line)?.apply(&mut config)?;
        Ok(config)
    }

    #[test]
    fn flags_of_requests_objects_and_tokens_are_honoured() {
        let usual = applied("").unwrap();
        let without = keelson_apiserver::Config::new(ServiceAccountKeys::generate().unwrap());
        assert_eq!(format!("{:?}", usual.serving), format!("{:?}", without.serving));
        assert_eq!(usual.max_requests_in_flight, without.max_requests_in_flight);
        let all = applied(
            "--max-requests-inflight=1500 --max-mutating-requests-inflight 500 --request-timeout=2m --min-request-timeout=300 \
             --event-ttl=30m --service-node-port-range=20000-22767 --kubelet-preferred-address-types=Hostname,InternalIP \
             --default-not-ready-toleration-seconds=30 --service-account-max-token-expiration=2h \
             --service-account-extend-token-expiration=false --endpoint-reconciler-type none \
             --strict-transport-security-directives=max-age=31536000,includeSubDomains",
        )
        .unwrap();
        let told = &all.serving;
        assert_eq!(all.max_requests_in_flight, 2000);
        assert_eq!(told.request_timeout, Duration::from_secs(120));
        assert_eq!(told.min_request_timeout, Duration::from_secs(300));
        assert_eq!(told.event_ttl, Some(Duration::from_secs(1800)));
        assert_eq!(told.node_ports, 20000..=22767);
        assert_eq!(told.kubelet_address_types, ["Hostname", "InternalIP"]);
        assert_eq!((told.max_token_expiration, told.extends_tokens), (Some(7200), false));
        assert!(!all.publish_kubernetes_service);
        let DefaultTolerationSeconds(seconds) = all.admission.toleration_seconds;
        assert_eq!(seconds, [30, 300]);
        let header = told.transport_security.as_ref().unwrap();
        assert_eq!(header, "max-age=31536000; includeSubDomains");
        assert_eq!(applied("--event-ttl=0").unwrap().serving.event_ttl, None);
        for (wrong, named) in [
            ("--service-account-max-token-expiration=10m", "1 hour"),
            ("--service-node-port-range=9-3", "--service-node-port-range"),
            ("--service-node-port-range=1-2+3", "--service-node-port-range"),
            ("--service-node-port-range=60000+6000", "--service-node-port-range"),
            (
                "--max-requests-inflight=0 --max-mutating-requests-inflight=0",
                "positive",
            ),
            (
                "--kubelet-preferred-address-types=Home",
                "--kubelet-preferred-address-types",
            ),
            ("--endpoint-reconciler-type=master-count", "--endpoint-reconciler-type"),
            ("--strict-transport-security-directives=forever", "--strict-transport"),
        ] {
            let refused = applied(wrong).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(refused.contains(named), "{wrong}: {refused}");
        }
    }

    #[test]
    fn what_is_served_can_be_said_and_not_changed() {
        for so in [
            "api/all=true",
            "api/ga",
            "api/alpha=false",
            "apps/v1=true",
            "v1=true",
            "api/v1",
            "resource.k8s.io/v1=",
            "batch/v1beta1=false",
        ] {
            assert!(served(so).is_ok(), "{so}: {:?}", served(so).err());
        }
        for (otherwise, named) in [
            ("api/all=false", "api/all=false"),
            ("apps/v1=false", "apps/v1=false"),
            ("resource.k8s.io/v1alpha3=true", "resource.k8s.io/v1alpha3=true"),
            ("api/alpha=true", "api/alpha=true"),
            ("example.com/v1=true", "unknown api groups example.com"),
            ("apps/v1/deployments=false", "apps/v1/deployments=false"),
            ("apps/v1/deployments=true", "apps/v1/deployments=true"),
            ("apps=false", "apps=false"),
            ("apps/v1=perhaps", "invalid value"),
        ] {
            let refused = served(otherwise).unwrap_err().to_string();
            assert!(refused.contains(named), "{otherwise}: {refused}");
        }
    }
}
