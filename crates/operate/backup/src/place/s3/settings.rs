//! What is told of a server that speaks S3: where it is, who we are, and whom to believe.

use super::super::{Result, Trouble};
use rusty_s3::Credentials;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// As AWS names its own endpoints.
const REGION: &str = "us-east-1";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `https://HOST[:PORT]`; `None`: Amazon's.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Whether the bucket stands in the path and not in the host's name. `None`: with an endpoint of one's own it does.
    pub path_style: Option<bool>,
    /// As AWS's tools have it; `None`: the environment's.
    pub credentials_file: Option<PathBuf>,
    /// Authorities of the endpoint's certificate, beside the machine's own.
    pub ca_file: Option<PathBuf>,
}

impl Settings {
    pub(super) fn region(&self) -> String {
        let environment = || std::env::var("AWS_REGION").ok().filter(|region| !region.is_empty());
        self.region
            .clone()
            .or_else(environment)
            .unwrap_or_else(|| REGION.into())
    }

    pub(super) fn endpoint(&self) -> String {
        let amazons = || format!("https://s3.{}.amazonaws.com", self.region());
        self.endpoint.clone().unwrap_or_else(amazons)
    }

    pub(super) fn is_path_style(&self) -> bool {
        self.path_style.unwrap_or(self.endpoint.is_some())
    }

    pub(super) fn credentials(&self) -> Result<Credentials> {
        match &self.credentials_file {
            Some(file) => parse(&read_secret(file)?).ok_or_else(|| {
                Trouble::Wrong(format!(
                    "--s3-credentials-file {}: it has no aws_access_key_id and aws_secret_access_key in [default]",
                    file.display()
                ))
            }),
            None => Credentials::from_env().ok_or_else(|| {
                Trouble::Wrong(
                    "S3 needs credentials: --s3-credentials-file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment".into(),
                )
            }),
        }
    }

    pub(super) fn authorities(&self) -> Result<Option<Vec<u8>>> {
        let read = |file: &PathBuf| {
            std::fs::read(file).map_err(|e| Trouble::Wrong(format!("--s3-ca-file {}: {e}", file.display())))
        };
        self.ca_file.as_ref().map(read).transpose()
    }
}

fn read_secret(file: &Path) -> Result<String> {
    let wrong = |why: String| Trouble::Wrong(format!("--s3-credentials-file {}: {why}", file.display()));
    let metadata = std::fs::metadata(file).map_err(|e| wrong(e.to_string()))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(wrong("it can be read by others than its owner; chmod 600 it".into()));
    }
    if metadata.len() > 1 << 20 {
        return Err(wrong("it is no file of credentials".into()));
    }
    std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))
}

/// The profile `default` of a file as AWS's tools write it.
fn parse(text: &str) -> Option<Credentials> {
    let (mut key, mut secret, mut token) = (None, None, None);
    let mut ours = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            ours = section.trim() == "default";
        } else if let Some((name, value)) = line.split_once('=').filter(|_| ours) {
            let value = Some(value.trim().to_string()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => key = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    let (key, secret) = (key?, secret?);
    Some(match token {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_the_default_profile() {
        let of = |text| parse(text).map(|c| (c.key().to_string(), c.token().map(str::to_string)));
        let both = "[other]\naws_access_key_id=no\naws_secret_access_key=no\n[default]\n# ours\naws_access_key_id = id\naws_secret_access_key = se=cret\n";
        assert_eq!(of(both), Some(("id".into(), None)));
        assert_eq!(parse(both).map(|c| c.secret().to_string()).as_deref(), Some("se=cret"));
        let token = format!("{both}aws_session_token=t\n");
        assert_eq!(of(&token), Some(("id".into(), Some("t".into()))));
        for none in [
            "",
            "[default]\naws_access_key_id=id",
            "aws_access_key_id=a\naws_secret_access_key=b",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn a_file_that_others_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        std::fs::write(&file, "[default]\naws_access_key_id=a\naws_secret_access_key=b\n").unwrap();
        let settings = Settings {
            credentials_file: Some(file.clone()),
            ..Settings::default()
        };
        for (mode, sound) in [(0o644, false), (0o600, true)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(settings.credentials().is_ok(), sound, "{mode:o}");
        }
    }

    #[test]
    fn a_bucket_stands_in_the_path_where_the_endpoint_is_ones_own() {
        let settings = |endpoint: Option<&str>, path_style| Settings {
            endpoint: endpoint.map(Into::into),
            path_style,
            region: Some("eu-west-1".into()),
            ..Settings::default()
        };
        assert!(!settings(None, None).is_path_style() && settings(None, Some(true)).is_path_style());
        assert!(settings(Some("http://a"), None).is_path_style());
        assert_eq!(settings(None, None).endpoint(), "https://s3.eu-west-1.amazonaws.com");
    }
}
