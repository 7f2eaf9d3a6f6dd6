use super::*;
use crate::authn::structured::Source as From;

fn oidc(change: impl FnOnce(&mut Oidc)) -> Options {
    let mut options = Options::default();
    options.oidc.issuer_url = Some("https://issuer.example".into());
    options.oidc.client_id = Some("kubernetes".into());
    change(&mut options.oidc);
    options
}

fn refusal(options: &Options) -> String {
    format!("{:#}", options.resolve(&["https://own".into()]).unwrap_err())
}

#[test]
fn nothing_said_lets_anonymous_in_and_trusts_nobody_else() {
    let settings = Options::default().resolve(&[]).unwrap();
    assert!(settings.anonymous.takes("/api") && settings.trusted.is_empty() && settings.file.is_none());
    let closed = Options {
        anonymous: Some(false),
        ..Options::default()
    };
    assert!(!closed.resolve(&[]).unwrap().anonymous.takes("/livez"));
}

#[test]
fn the_flags_mean_what_a_file_would_say() {
    for (claim, prefix, wanted) in [
        (None, None, "https://issuer.example#"),
        (Some("email"), None, ""),
        (None, Some("-"), ""),
        (None, Some("oidc:"), "oidc:"),
    ] {
        let options = oidc(|o| {
            o.username_claim = claim.map(str::to_string);
            o.username_prefix = prefix.map(str::to_string);
        });
        let settings = options.resolve(&[]).unwrap();
        let From::Claim(m) = &settings.trusted[0].username else {
            panic!("no claim")
        };
        assert_eq!((m.claim.as_str(), m.prefix.as_str()), (claim.unwrap_or("sub"), wanted));
        assert_eq!(settings.algorithms, ["RS256"]);
    }
    let settings = oidc(|o| {
        o.groups_claim = Some("groups".into());
        o.required_claims = Some(vec!["hd=a=b".into(), "x=1".into(), "x=2".into()]);
        o.signing_algs = Some(vec!["ES256".into(), "RS512".into()]);
    })
    .resolve(&[])
    .unwrap();
    let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
    assert_eq!(settings.trusted[0].required, [pair("hd", "a=b"), pair("x", "2")]);
    assert_eq!(settings.algorithms, ["ES256", "RS512"]);
    assert_eq!(settings.trusted[0].groups_claim(), Some("groups"));
}

#[test]
fn what_excludes_each_other_is_refused() {
    let together = "oidc-issuer-url and oidc-client-id must be specified together";
    assert!(refusal(&oidc(|o| o.client_id = None)).contains(together));
    assert!(refusal(&oidc(|o| o.issuer_url = None)).contains(together));
    assert!(
        refusal(&oidc(|o| o.signing_algs = Some(vec!["HS256".into()]))).contains("unsupported signing alg: \"HS256\"")
    );
    assert!(refusal(&oidc(|o| o.required_claims = Some(vec!["x".into()]))).contains("malformed pair"));
    assert!(
        refusal(&oidc(|o| o.issuer_url = Some("https://own".into()))).contains("disallowed issuers: [https://own]")
    );
    assert!(refusal(&oidc(|o| o.issuer_url = Some("http://x".into()))).contains("URL scheme must be https"));
    let dir = std::env::temp_dir().join(format!("keelson-authn-options-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("authn.yaml");
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
    std::fs::write(
        &file,
        format!("{head}anonymous: {{enabled: true, conditions: [{{path: /livez}}]}}\n"),
    )
    .unwrap();
    let with = |options: Options| Options {
        config: Some(file.clone()),
        ..options
    };
    assert!(refusal(&with(oidc(|_| {}))).contains("are mutually exclusive"));
    let both = with(Options {
        anonymous: Some(true),
        ..Options::default()
    });
    assert!(refusal(&both).contains("--anonymous-auth flag cannot be set"));
    let settings = with(Options::default()).resolve(&[]).unwrap();
    assert!(settings.anonymous.takes("/livez") && !settings.anonymous.takes("/api"));
    assert_eq!(settings.algorithms, ALGORITHMS);
    std::fs::write(&file, format!("{head}jwt: []\n")).unwrap();
    let closed = with(Options {
        anonymous: Some(false),
        ..Options::default()
    });
    assert!(!closed.resolve(&[]).unwrap().anonymous.takes("/livez"));
    let lonely = Options {
        webhook: webhook::Options {
            version: Some("v1".into()),
            ..webhook::Options::default()
        },
        ..Options::default()
    };
    assert!(refusal(&lonely).contains("mean nothing without"));
    std::fs::remove_dir_all(&dir).unwrap();
}
