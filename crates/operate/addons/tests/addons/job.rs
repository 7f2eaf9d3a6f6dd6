//! Jobs, held to the facts of k3s' helm-controller: its tests' hashes are of the whole pod, so an equal hash is an equal pod.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_addons::helm::chart::{ChartSpec, ConfigSpec, HelmChart, HelmChartConfig, Reference, SecretSpec};
use keelson_addons::helm::job::{
    Act, Settings, args, build, encoded, escaped, go_duration, hash, set_policies, set_release,
};
use serde_json::{Value, json};

fn settings() -> Settings {
    Settings {
        image: "rancher/klipper-helm:latest".into(),
        api_port: 6443,
        proxies: Vec::new(),
    }
}

fn traefik() -> HelmChart {
    let set = [
        ("rbac.enabled", "true"),
        ("ssl.enabled", "false"),
        ("acme.dnsProvider.name", "cloudflare"),
        ("global.clusterCIDR", "10.42.0.0/16,fd42::/48"),
        ("global.systemDefaultRegistry", ""),
    ];
    HelmChart {
        metadata: ObjectMeta {
            name: Some("traefik".into()),
            namespace: Some("kube-system".into()),
            ..ObjectMeta::default()
        },
        spec: ChartSpec {
            chart: "stable/traefik".into(),
            set: set.map(|(k, v)| (k.to_string(), IntOrString::String(v.into()))).into(),
            ..ChartSpec::default()
        },
        status: None,
    }
}

/// Upstream's test of hashes at helm-controller 21a911f: name, the chart's values and their content, the configuration's.
const HASHES: [(&str, &str, &str, &str, &str); 11] = [
    (
        "7B9FDCEF22985143DB8EBC3123CCF6949B9F7767C3331DF397DD9E3A50F527D3",
        "",
        "",
        "",
        "",
    ),
    (
        "67C418FF0E52EE28676386CB75915B66C0F07CB541F2DE2010B41660635B4A8D",
        "",
        "foo: bar\n",
        "",
        "",
    ),
    (
        "61629635D20D65D6F5CEC25BA06793937565E7CDF3DF96202F585DEFE5D50306",
        "",
        "foo:\n  a: true\n  b: 1\n  c: 'true'\n",
        "",
        "",
    ),
    (
        "EA59591A5463E5E22DA5C22DDA1A168C65EEB56194B94119CA4C399B88F9F3C5",
        "",
        "{}",
        "",
        "",
    ),
    (
        "957717A3D8724FF4EFF73A90A134537201EFD9FBB920C2516E1045B0B754A711",
        "foo: bar\n",
        "",
        "",
        "",
    ),
    (
        "15B3ABD9846881929F40C8EC24DE8EC4408BD4D3F0FB419E917AA66FD7E16911",
        "",
        "",
        "",
        "foo: baz\n",
    ),
    (
        "9D36C84621E5E36D8EFA427EEE5D88FC4FC09B58990AE17644ABEF6517ECB5E8",
        "",
        "",
        "",
        "foo:\n  a: false\n  b: 0\n  c: 'false'\n",
    ),
    (
        "D51FDD6AEEFAA1A1EE54D2636BF7A46A2128764911902F33AC2BF6DBE3F1CD8D",
        "",
        "",
        "",
        "{}",
    ),
    (
        "0F574C7C5756D0EFF5B89B550824C5ED99DF6AF809629DDD9204E4BBDFC397FD",
        "",
        "",
        "foo: bar\n",
        "foo: baz\n",
    ),
    (
        "B86FFB50BF565CA143439489CF8F503B6AF098E17A0C3D0F69080E8D41F8B4CC",
        "",
        "foo: bar\n",
        "",
        "foo: baz\n",
    ),
    (
        "586EEB058FB147690F546AEAE7C238A551759C08881E3BFCE7544A7FAFAC8187",
        "foo: bar\n",
        "",
        "foo: baz\n",
        "",
    ),
];

fn values(yaml: &str) -> Option<Value> {
    (!yaml.is_empty()).then(|| serde_saphyr::from_str(yaml).expect("YAML"))
}

#[test]
fn the_pod_is_the_one_that_helm_controller_makes() {
    for (wanted, own_values, own_content, values_of_config, content) in HASHES {
        let mut chart = traefik();
        chart.spec.values = values(own_values);
        chart.spec.values_content = own_content.into();
        let config = HelmChartConfig {
            spec: ConfigSpec {
                values: values(values_of_config),
                values_content: content.into(),
                ..ConfigSpec::default()
            },
            ..HelmChartConfig::default()
        };
        let built = build(&chart, Some(&config), Act::Install, &settings()).unwrap();
        let is = hash(&built.template, None, &[built.content.clone(), encoded(&built.values)]);
        assert_eq!(is, format!("SHA256={wanted}"), "{:#}", built.template);
    }
    let built = build(&traefik(), None, Act::Delete, &settings()).unwrap();
    let wanted = "0807D189F31BF3EB82FA02EFB047A110F132004D37C50B02C8238AD07CC281D1";
    assert_eq!(
        hash(&built.template, None, &[]),
        format!("SHA256={wanted}"),
        "{:#}",
        built.template
    );
}

#[test]
fn arguments_are_escaped_as_helm_reads_them() {
    assert_eq!(
        args(&traefik(), Act::Install).join(" "),
        "install --set-string acme.dnsProvider.name=cloudflare --set-string global.clusterCIDR=10.42.0.0/16\\,fd42::/48 \
         --set-string global.systemDefaultRegistry= --set rbac.enabled=true --set ssl.enabled=false"
    );
    assert_eq!(args(&traefik(), Act::Delete), ["delete"]);
    for (text, wanted) in [
        ("a,b", "a\\,b"),
        ("a\\,b", "a\\,b"),
        ("a\\\\,b", "a\\\\\\,b"),
        (",", "\\,"),
    ] {
        assert_eq!(escaped(text), wanted);
    }
    let mut chart = traefik();
    chart.spec.set = [("n".to_string(), IntOrString::Int(3))].into();
    chart.spec.target_namespace = "web".into();
    chart.spec.create_namespace = true;
    chart.spec.take_ownership = true;
    chart.spec.version = "1.2.3".into();
    assert_eq!(
        args(&chart, Act::Install).join(" "),
        "install --namespace web --create-namespace --take-ownership --version 1.2.3 --set n=3"
    );
}

#[test]
fn every_field_of_a_chart_is_in_its_pod() {
    let mut chart = traefik();
    let spec = &mut chart.spec;
    spec.repo = "https://charts.example.com".into();
    spec.chart = "traefik".into();
    spec.repo_ca = "PEM".into();
    spec.repo_ca_config_map = Some(Reference {
        name: "authorities".into(),
    });
    spec.auth_secret = Some(Reference { name: "basic".into() });
    spec.docker_registry_secret = Some(Reference { name: "docker".into() });
    spec.timeout = Some("90s".into());
    spec.bootstrap = true;
    spec.job_image = " mirror/klipper-helm:1 ".into();
    spec.driver = "configmap".into();
    spec.plain_http = true;
    spec.insecure_skip_tls_verify = true;
    spec.auth_pass_credentials = true;
    spec.chart_content = "QUJD".into();
    spec.pod_security_context = Some(json!({"runAsUser": 7}));
    spec.security_context = Some(json!({"privileged": false}));
    spec.values_secrets = vec![
        SecretSpec {
            name: "one".into(),
            keys: vec!["a".into(), "b".into()],
            ignore_updates: false,
        },
        SecretSpec {
            name: "chart-values-traefik".into(),
            keys: vec!["a".into()],
            ignore_updates: false,
        },
        SecretSpec {
            name: "two".into(),
            keys: vec!["c".into()],
            ignore_updates: true,
        },
        SecretSpec {
            name: "none".into(),
            keys: vec![],
            ignore_updates: true,
        },
    ];
    let settings = Settings {
        proxies: vec![("HTTPS_PROXY".into(), "http://proxy:3128".into())],
        ..settings()
    };
    let mut built = build(&chart, None, Act::Install, &settings).unwrap();
    set_policies(&mut built.template, "reinstall", "auto", true);
    let hash = hash(&built.template, Some(1000), &[]);
    set_release(&mut built.template, &hash, 4);
    let golden = include_str!("pod.json");
    let is = serde_json::to_string_pretty(&built.template).unwrap();
    assert_eq!(is.trim(), golden.trim(), "the pod in full:\n{is}");
    assert_eq!(
        built.content,
        [("traefik.tgz.base64".to_string(), "QUJD".to_string())].into()
    );
}

#[test]
fn durations_are_written_as_go_writes_them() {
    for (given, wanted) in [
        ("90s", "1m30s"),
        ("10m", "10m0s"),
        ("1h30m", "1h30m0s"),
        ("1.5s", "1.5s"),
        ("500ms", "500ms"),
        ("0", "0s"),
        ("2h", "2h0m0s"),
    ] {
        assert_eq!(go_duration(given).as_deref(), Some(wanted), "{given}");
    }
    for bad in ["", "10", "x", "1d", "m", "-5s", "1e9h"] {
        assert_eq!(go_duration(bad), None, "{bad}");
    }
}
