//! What an `EncryptionConfiguration` may not say, in upstream's words. All that is wrong is told at once; secrets never are.

use super::{EncryptionConfiguration, Keys, KmsConfiguration, ProviderConfiguration};
use crate::rules::GroupResource;
use anyhow::bail;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The fields that are wrong, in the order of the file.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn required(&mut self, field: &str, why: &str) {
        self.0.push(format!("{field}: Required value: {why}"));
    }
    /// `shown`: as JSON.
    fn invalid(&mut self, field: &str, shown: &str, why: &str) {
        self.0.push(format!("{field}: Invalid value: {shown}: {why}"));
    }
    fn text(&mut self, field: &str, value: &str, why: &str) {
        self.invalid(field, &format!("{value:?}"), why);
    }
}

pub fn check(config: &EncryptionConfiguration) -> anyhow::Result<()> {
    let mut wrong = Wrong::default();
    if config.resources.is_empty() {
        wrong.required("resources", "at least one resources is required");
    }
    let mut plugins: Vec<&str> = Vec::new();
    for (i, part) in config.resources.iter().enumerate() {
        let (r, p) = (format!("resources[{i}].resources"), format!("resources[{i}].providers"));
        if part.resources.is_empty() {
            wrong.required(&r, &format!("at least one {r} is required"));
        }
        overlaps(&r, &part.resources, &mut wrong);
        for (j, resource) in part.resources.iter().enumerate() {
            if let Err(why) = name(resource) {
                wrong.text(&format!("{r}[{j}]"), resource, why);
            }
        }
        if part.providers.is_empty() {
            wrong.required(&p, &format!("at least one {p} is required"));
        }
        for (j, provider) in part.providers.iter().enumerate() {
            let field = format!("{p}[{j}]");
            self::provider(&field, provider, &plugins, &mut wrong);
            plugins.extend(provider.kms.as_ref().map(|kms| kms.name.as_str()));
        }
    }
    match wrong.0.as_slice() {
        [] => Ok(()),
        [one] => bail!("{one}"),
        all => bail!("[{}]", all.join(", ")),
    }
}

fn overlaps(field: &str, resources: &[String], wrong: &mut Wrong) {
    let parsed: Vec<GroupResource> = resources.iter().map(|r| GroupResource::parse(r)).collect();
    let pairs = || {
        let others = |i: usize| parsed.iter().skip(i + 1);
        parsed
            .iter()
            .enumerate()
            .flat_map(move |(i, one)| others(i).map(move |other| (one, other)))
    };
    let shown = format!("{resources:?}").replace(", ", ",");
    if pairs().any(|(one, other)| one == other) {
        wrong.invalid(field, &shown, "the same resource cannot be specified multiple times");
    }
    let masked = |(one, other): (&GroupResource, &GroupResource)| {
        let any = *one == GroupResource::any() || *other == GroupResource::any();
        let in_group = one.group == other.group && (one.resource == "*" || other.resource == "*");
        one != other && (any || in_group)
    };
    if pairs().any(masked) {
        wrong.invalid(
            field,
            &shown,
            "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked",
        );
    }
}

fn name(text: &str) -> Result<(), &'static str> {
    if text.to_lowercase() != text {
        return Err("resource name should not contain capital letters");
    }
    if text == "*" {
        return Err("use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources");
    }
    if ["apiserveripinfo", "serviceipallocations", "servicenodeportallocations"].contains(&text) {
        return Err("resources which do not have REST API/s cannot be encrypted");
    }
    let parsed = GroupResource::parse(text);
    match parsed.group.as_str() {
        "events.k8s.io" => Err(
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file",
        ),
        "extensions" => Err("'extensions' group has been removed and cannot be used for encryption"),
        "*" if parsed.resource != "*" => Err("encrypting the same resource across groups is not supported"),
        _ => Ok(()),
    }
}

fn provider(field: &str, provider: &ProviderConfiguration, plugins: &[&str], wrong: &mut Wrong) {
    let ProviderConfiguration {
        aesgcm,
        aescbc,
        secretbox,
        identity,
        kms,
    } = provider;
    let found = [
        aesgcm.is_some(),
        aescbc.is_some(),
        secretbox.is_some(),
        identity.is_some(),
        kms.is_some(),
    ];
    let why = match found.into_iter().filter(|f| *f).count() {
        0 => "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
        1 => "",
        _ => "more than one provider specified in a single element, should split into different list elements",
    };
    if !why.is_empty() {
        // Upstream shows all of it, secrets included.
        wrong.text(field, "REDACTED", why);
    }
    if let Some(kms) = kms {
        plugin(&format!("{field}.kms"), kms, plugins, wrong);
    } else if let Some(found) = aesgcm {
        keys(&format!("{field}.aesgcm.keys"), found, &[16, 24, 32], wrong);
    } else if let Some(found) = aescbc {
        keys(&format!("{field}.aescbc.keys"), found, &[16, 24, 32], wrong);
    } else if let Some(found) = secretbox {
        keys(&format!("{field}.secretbox.keys"), found, &[32], wrong);
    }
}

fn keys(field: &str, keys: &Keys, lengths: &[usize], wrong: &mut Wrong) {
    if keys.keys.is_empty() {
        wrong.required(field, "at least one keys is required");
    }
    for (i, key) in keys.keys.iter().enumerate() {
        let (name, secret) = (format!("{field}[{i}].name"), format!("{field}[{i}].secret"));
        if key.name.is_empty() {
            wrong.required(&name, "name is a mandatory field for a key");
        }
        if key.secret.is_empty() {
            wrong.required(&secret, "secret is a mandatory field for a key");
            continue;
        }
        match STANDARD.decode(&key.secret) {
            Err(_) => wrong.text(&secret, "REDACTED", "secrets must be base64 encoded"),
            Ok(bytes) if !lengths.contains(&bytes.len()) => {
                let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
                let (got, lengths) = (bytes.len(), lengths.join(" "));
                let why = format!("secret is not of the expected length, got {got}, expected one of [{lengths}]");
                wrong.text(&secret, "REDACTED", &why);
            }
            Ok(_) => {}
        }
    }
}

/// `plugins`: the names before this one.
fn plugin(field: &str, kms: &KmsConfiguration, plugins: &[&str], wrong: &mut Wrong) {
    let (name, first) = (&kms.name, kms.api_version == "v1");
    let at = format!("{field}.name");
    if name.is_empty() {
        wrong.required(&at, "name is a mandatory field for a provider");
    }
    if !first && name.contains(':') {
        let why = format!("invalid KMS provider name {name}, must not contain ':'");
        wrong.text(&at, name, &why);
    }
    if !first && plugins.contains(&name.as_str()) {
        let why = format!("duplicate KMS provider name {name}, names must be unique");
        wrong.text(&at, name, &why);
    }
    match kms.timeout() {
        Ok(nanoseconds) if nanoseconds > 0 => {}
        Ok(_) => wrong.text(
            &format!("{field}.timeout"),
            &kms.timeout,
            "timeout should be a positive value",
        ),
        Err(error) => wrong.text(&format!("{field}.timeout"), &kms.timeout, &error.to_string()),
    }
    let at = format!("{field}.endpoint");
    match kms.endpoint.split_once(':').map_or("", |(scheme, _)| scheme) {
        _ if kms.endpoint.is_empty() => wrong.text(&at, "", "endpoint is a mandatory field for a kms"),
        "unix" => {}
        scheme => {
            let why = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
            wrong.text(&at, &kms.endpoint, &why);
        }
    }
    let at = format!("{field}.cachesize");
    match kms.cachesize {
        Some(size) if !first => wrong.invalid(&at, &size.to_string(), "cachesize is not supported in v2"),
        Some(0) => wrong.invalid(&at, "0", "cachesize should be a positive value, or negative to disable"),
        _ => {}
    }
    if !matches!(kms.api_version.as_str(), "v1" | "v2") {
        let version = &kms.api_version;
        wrong.text(
            &format!("{field}.apiVersion"),
            version,
            "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(resources: &str, providers: &str) -> String {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: {resources}\n  providers: {providers}\n"
        );
        let config: EncryptionConfiguration = serde_saphyr::from_str(&text).unwrap();
        check(&config).map_or_else(|e| format!("{e:#}"), |()| String::new())
    }

    #[test]
    fn resources_that_upstream_refuses_are_refused() {
        let overlap = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked";
        for (resources, whole) in [
            (
                "[]",
                "resources[0].resources: Required value: at least one resources[0].resources is required".to_string(),
            ),
            (
                "[Secrets]",
                "resources[0].resources[0]: Invalid value: \"Secrets\": resource name should not contain capital letters"
                    .into(),
            ),
            (
                "['*']",
                "resources[0].resources[0]: Invalid value: \"*\": use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources".into(),
            ),
            (
                "[secrets, secrets]",
                "resources[0].resources: Invalid value: [\"secrets\",\"secrets\"]: the same resource cannot be specified multiple times".into(),
            ),
            (
                "[secrets, '*.']",
                format!("resources[0].resources: Invalid value: [\"secrets\",\"*.\"]: {overlap}"),
            ),
            (
                "[secrets, '*.*']",
                format!("resources[0].resources: Invalid value: [\"secrets\",\"*.*\"]: {overlap}"),
            ),
            (
                "[serviceipallocations]",
                "resources[0].resources[0]: Invalid value: \"serviceipallocations\": resources which do not have REST API/s cannot be encrypted".into(),
            ),
            (
                "[events.events.k8s.io]",
                "resources[0].resources[0]: Invalid value: \"events.events.k8s.io\": '*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file".into(),
            ),
            (
                "[ingresses.extensions]",
                "resources[0].resources[0]: Invalid value: \"ingresses.extensions\": 'extensions' group has been removed and cannot be used for encryption".into(),
            ),
            (
                "['pods.*']",
                "resources[0].resources[0]: Invalid value: \"pods.*\": encrypting the same resource across groups is not supported".into(),
            ),
        ] {
            assert_eq!(refusal(resources, "[{identity: {}}]"), whole, "{resources}");
        }
        let fine = refusal("[secrets, '*.apps', pandas.awesome.bears.example]", "[{identity: {}}]");
        assert_eq!(fine, "");
        assert!(
            refusal("[A, B]", "[]").starts_with("[resources[0].resources[0]: "),
            "all at once"
        );
    }

    #[test]
    fn providers_that_upstream_refuses_are_refused_and_no_secret_is_told() {
        let secret = "c2VjcmV0IGlzIHNlY3VyZQ==";
        for (providers, part) in [
            ("[]".to_owned(), "at least one resources[0].providers is required"),
            (
                "[{}]".to_owned(),
                "expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
            ),
            (
                format!("[{{identity: {{}}, aesgcm: {{keys: [{{name: a, secret: {secret}}}]}}}}]"),
                "more than one provider",
            ),
            (
                format!("[{{secretbox: {{keys: [{{name: a, secret: {secret}}}]}}}}]"),
                "resources[0].providers[0].secretbox.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 16, expected one of [32]",
            ),
            (
                format!(
                    "[{{secretbox: {{keys: [{{name: a, secret: {secret}}}]}}}}, {{aescbc: {{keys: [{{name: a, secret: aGk=}}]}}}}]"
                ),
                "expected length, got 2, expected one of [16 24 32]",
            ),
            (
                format!("[{{aesgcm: {{keys: [{{secret: {secret}}}]}}}}]"),
                "aesgcm.keys[0].name: Required value: name is a mandatory field for a key",
            ),
            (
                "[{aesgcm: {keys: [{name: a, secret: '%'}]}}]".to_owned(),
                "secrets must be base64 encoded",
            ),
            (
                "[{aescbc: {keys: []}}]".to_owned(),
                "aescbc.keys: Required value: at least one keys is required",
            ),
        ] {
            let told = refusal("[secrets]", &providers);
            assert!(told.contains(part), "{providers}: {told}");
            assert!(!told.contains(secret), "a secret is told");
        }
        let fine = refusal(
            "[secrets]",
            &format!("[{{aesgcm: {{keys: [{{name: a, secret: {secret}}}]}}}}]"),
        );
        assert_eq!(fine, "");
    }

    #[test]
    fn plug_ins_are_named_once_and_reached_by_a_socket() {
        let at = "resources[0].providers[0].kms";
        for (kms, whole) in [
            ("apiVersion: v2, name: a, endpoint: 'unix:///x'", String::new()),
            (
                "apiVersion: v2, endpoint: 'unix:///x'",
                format!("{at}.name: Required value: name is a mandatory field for a provider"),
            ),
            (
                "apiVersion: v2, name: 'a:b', endpoint: 'unix:///x'",
                format!("{at}.name: Invalid value: \"a:b\": invalid KMS provider name a:b, must not contain ':'"),
            ),
            (
                "apiVersion: v2, name: a",
                format!("{at}.endpoint: Invalid value: \"\": endpoint is a mandatory field for a kms"),
            ),
            (
                "apiVersion: v2, name: a, endpoint: 'tcp://x'",
                format!(
                    "{at}.endpoint: Invalid value: \"tcp://x\": unsupported scheme \"tcp\" for KMS provider, only unix is supported"
                ),
            ),
            (
                "apiVersion: v2, name: a, endpoint: 'unix:///x', timeout: 0s",
                format!("{at}.timeout: Invalid value: \"0s\": timeout should be a positive value"),
            ),
            (
                "apiVersion: v2, name: a, endpoint: 'unix:///x', cachesize: 5",
                format!("{at}.cachesize: Invalid value: 5: cachesize is not supported in v2"),
            ),
            (
                "apiVersion: v3, name: a, endpoint: 'unix:///x'",
                format!(
                    "{at}.apiVersion: Invalid value: \"v3\": unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported"
                ),
            ),
        ] {
            assert_eq!(refusal("[secrets]", &format!("[{{kms: {{{kms}}}}}]")), whole, "{kms}");
        }
        let twice = "[{kms: {apiVersion: v2, name: a, endpoint: 'unix:///x'}}, {kms: {apiVersion: v2, name: a, endpoint: 'unix:///y'}}]";
        assert!(refusal("[secrets]", twice).contains("duplicate KMS provider name a, names must be unique"));
    }
}
