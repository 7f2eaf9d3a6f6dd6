//! Name resolution of a pod: the resolver's configuration and the pod's own names. Pure.

use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use keelson_cri::v1::DnsConfig;

/// What a resolv.conf says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// At most as many name servers as resolvers look at.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

pub fn parse_resolv_conf(text: &str) -> Resolver {
    let mut r = Resolver::default();
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => r.servers.extend(words.next().map(str::to_owned)),
            // The last line wins.
            Some("search") => {
                r.searches = words
                    .map(|s| s.strip_suffix('.').unwrap_or(s).to_owned())
                    .filter(|s| !s.is_empty())
                    .collect()
            }
            Some("options") => {
                r.options.retain(|o| o.is_empty());
                r.options.extend(words.map(str::to_owned));
            }
            _ => {}
        }
    }
    r
}

pub struct ClusterDns<'a> {
    pub servers: &'a [String],
    pub domain: &'a str,
    pub host: &'a Resolver,
}

pub fn config(pod: &Pod, cluster: &ClusterDns) -> DnsConfig {
    let spec = pods::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pods::is_host_network(pod),
        _ => false,
    };
    let mut r = if policy == "None" {
        Resolver::default()
    } else if cluster_first && !cluster.servers.is_empty() {
        let ns = pods::namespace(pod);
        let domain = cluster.domain;
        let mut searches = match domain {
            "" => Vec::new(),
            _ => vec![format!("{ns}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()],
        };
        searches.extend(cluster.host.searches.iter().cloned());
        Resolver {
            servers: cluster.servers.to_vec(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        cluster.host.clone()
    };
    if let Some(own) = &spec.dns_config {
        r.servers.extend(own.nameservers.iter().flatten().cloned());
        r.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            r.options.retain(|o| o.split(':').next() != Some(&name));
            r.options.push(match &option.value {
                Some(v) if !v.is_empty() => format!("{name}:{v}"),
                _ => name,
            });
        }
    }
    let unique = |list: Vec<String>, max: usize| {
        let mut seen = std::collections::HashSet::new();
        list.into_iter().filter(|s| seen.insert(s.clone())).take(max).collect()
    };
    DnsConfig {
        servers: unique(r.servers, MAX_SERVERS),
        searches: unique(r.searches, MAX_SEARCHES),
        options: r.options,
    }
}

/// The pod's host name and the domain it is in (empty when none).
pub fn names(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pods::spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let mut host = spec
        .hostname
        .clone()
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| pods::name(pod).to_owned());
    if host.len() > 63 {
        host.truncate(63);
        host.truncate(host.trim_end_matches(['-', '.']).len());
    }
    let domain = spec
        .subdomain
        .as_deref()
        .filter(|s| !s.is_empty())
        .map(|s| format!("{s}.{}.svc.{cluster_domain}", pods::namespace(pod)))
        .unwrap_or_default();
    (host, domain)
}

/// What the kernel's host name is set to.
pub fn kernel_name(pod: &Pod, host: &str, domain: &str) -> Result<String, String> {
    if pods::spec(pod).set_hostname_as_fqdn != Some(true) || domain.is_empty() {
        return Ok(host.to_owned());
    }
    let full = format!("{host}.{domain}");
    if full.len() > 64 {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

/// `/etc/hosts` of a pod with a network of its own.
pub fn hosts_file(ips: &[String], host: &str, domain: &str, pod: &Pod) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{host}\n"));
        } else {
            text.push_str(&format!("{ip}\t{host}.{domain}\t{host}\n"));
        }
    }
    text.push_str(&aliases(pod));
    text
}

/// `/etc/hosts` of a pod in the node's network: the node's own, and the pod's aliases.
pub fn node_hosts_file(node: &str, pod: &Pod) -> String {
    format!(
        "# Kubernetes-managed hosts file (host network).\n{node}{}",
        aliases(pod)
    )
}

fn aliases(pod: &Pod) -> String {
    let list = pods::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if list.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in list {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.as_deref().unwrap_or_default().join("\t")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap()
    }

    fn dns(spec: serde_json::Value) -> DnsConfig {
        let host = parse_resolv_conf("nameserver 9.9.9.9\nsearch corp.example.\noptions edns0\n");
        let servers = ["10.96.0.10".to_owned()];
        config(
            &pod(spec),
            &ClusterDns {
                servers: &servers,
                domain: "cluster.local",
                host: &host,
            },
        )
    }

    #[test]
    fn the_four_policies() {
        let d = dns(json!({}));
        assert_eq!(d.servers, ["10.96.0.10"]);
        assert_eq!(
            d.searches,
            [
                "n.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "corp.example"
            ]
        );
        assert_eq!(d.options, ["ndots:5"]);
        assert_eq!(dns(json!({"hostNetwork": true})).servers, ["9.9.9.9"]);
        assert_eq!(
            dns(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})).servers,
            ["10.96.0.10"]
        );
        assert_eq!(dns(json!({"dnsPolicy": "Default"})).options, ["edns0"]);
        let d = dns(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["x"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "trust-ad"}]}}),
        );
        assert_eq!(
            (d.servers.len(), d.searches.len(), d.options.join(",")),
            (1, 1, "ndots:2,trust-ad".into())
        );
        let d = dns(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}));
        assert_eq!(d.options, ["ndots:1"]);
    }

    #[test]
    fn own_names() {
        let p = pod(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}));
        let (h, d) = names(&p, "cluster.local");
        assert_eq!((h.as_str(), d.as_str()), ("h", "s.n.svc.cluster.local"));
        assert_eq!(kernel_name(&p, &h, &d).unwrap(), "h.s.n.svc.cluster.local");
        let p = pod(json!({"hostnameOverride": "x.y", "subdomain": "s"}));
        assert_eq!(names(&p, "cluster.local"), ("x.y".into(), String::new()));
    }
}
