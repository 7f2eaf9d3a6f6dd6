use super::*;

#[test]
fn the_command_line_wins_over_the_file() {
    let file = std::env::temp_dir().join(format!("keelson-config-{}.yaml", std::process::id()));
    std::fs::write(
        &file,
        "node-name: from-file\napi-port: 7443\ndisable: [dns, proxy]\nservice-cidr: 10.50.0.0/16\nanonymous-auth: false\napi-audiences: [a, b]\n",
    )
    .unwrap();
    let options = Options {
        config: Some(file.clone()),
        node_name: Some("from-flag".into()),
        node_ip: Some(vec!["127.0.0.1".into()]),
        ..Options::default()
    };
    let config = options.resolve().unwrap();
    assert_eq!(config.node_name, "from-flag");
    assert_eq!(config.api_port, 7443);
    assert!(!config.access.authentication.anonymous.enabled);
    assert_eq!(config.access.api_audiences, ["a", "b"]);
    assert!(!config.runs(Component::Dns) && config.runs(Component::Agent));
    assert_eq!(config.cluster_dns, ["10.50.0.10".parse::<IpAddr>().unwrap()]);
    let on = |name: &str, ip: Option<&str>| {
        let options = Options {
            network_interface: Some(name.into()),
            node_ip: ip.map(|ip| vec![ip.into()]),
            ..Options::default()
        };
        options.resolve().map(|c| (c.node_ip(), c.network))
    };
    assert_eq!(on("lo", None).unwrap(), (Ipv4Addr::LOCALHOST.into(), Mode::Vxlan));
    let of_no_use = Options {
        gateway_api: Some(true),
        disable: Some(vec!["ingress".into()]),
        node_ip: Some(vec!["127.0.0.1".into()]),
        ..Options::default()
    };
    assert!(of_no_use.resolve().is_err());
    assert!(on("lo", Some("192.0.2.1")).is_err() && on("none", None).is_err());
    // Without ranges the families are those of the node's addresses; with them each family needs an address.
    let families = |node: &str, pods: Option<&str>, services: Option<&str>| {
        let list = |text: &str| text.split(',').map(String::from).collect::<Vec<_>>();
        let options = Options {
            node_ip: Some(list(node)),
            cluster_cidr: pods.map(list),
            service_cidr: services.map(list),
            ..Options::default()
        };
        let shown = |c: Config| {
            let pods: Vec<String> = c.cluster_cidrs.iter().map(IpNet::to_string).collect();
            format!("{} {:?} {}", pods.join(","), c.node_ips, c.bind_address)
        };
        options.resolve().map(shown)
    };
    assert_eq!(
        families("2001:db8::1", None, None).unwrap(),
        "fd00:244::/48 [2001:db8::1] ::"
    );
    assert_eq!(
        families("2001:db8::1,192.0.2.1", None, None).unwrap(),
        "10.244.0.0/16 [192.0.2.1] 0.0.0.0"
    );
    let both = (Some("fd00:244::/48,10.244.0.0/16"), Some("fd00:96::/112,10.96.0.0/16"));
    assert_eq!(
        families("192.0.2.1,2001:db8::1", both.0, both.1).unwrap(),
        "fd00:244::/48,10.244.0.0/16 [2001:db8::1, 192.0.2.1] ::"
    );
    let missing = families("2001:db8::1", both.0, both.1).unwrap_err().to_string();
    assert!(missing.contains("--node-ip has no IPv4 address"), "{missing}");
    std::fs::write(&file, "nodename: typo\n").unwrap();
    let wrong = Options {
        config: Some(file.clone()),
        ..Options::default()
    }
    .resolve()
    .unwrap_err();
    assert!(format!("{wrong:#}").contains("nodename"), "{wrong:#}");
    std::fs::remove_file(&file).unwrap();
}
