//! Servers that speak S3, as the options of servers and commands tell of them.

use crate::config::{absolute, fill};
use clap::Args;
use keelson_backup::place::s3::Settings;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct S3 {
    /// Server that speaks S3, for s3://BUCKET/PREFIX: https://HOST[:PORT] [default: Amazon's of the region]
    #[arg(long, env = "KEELSON_S3_ENDPOINT", value_name = "URL", global = true)]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket [default: AWS_REGION, or us-east-1]
    #[arg(long, env = "KEELSON_S3_REGION", value_name = "NAME", global = true)]
    pub s3_region: Option<String>,
    /// Whether the bucket stands in the path and not in the host's name [default: true with --s3-endpoint]
    #[arg(long, env = "KEELSON_S3_PATH_STYLE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", global = true)]
    pub s3_path_style: Option<bool>,
    /// File with credentials, as AWS's tools have it, readable by its owner only [default: AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY in the environment]
    #[arg(long, env = "KEELSON_S3_CREDENTIALS_FILE", value_name = "FILE", global = true)]
    pub s3_credentials_file: Option<PathBuf>,
    /// Authorities of that server's certificate, in PEM, beside the machine's own
    #[arg(long, env = "KEELSON_S3_CA_FILE", value_name = "FILE", global = true)]
    pub s3_ca_file: Option<PathBuf>,
}

impl S3 {
    /// Takes over from another list what this one leaves open.
    pub fn fill(&mut self, other: S3) {
        fill!(self from other: s3_endpoint, s3_region, s3_path_style, s3_credentials_file, s3_ca_file);
    }

    pub fn settings(&self) -> anyhow::Result<Settings> {
        let file = |path: &Option<PathBuf>| path.clone().map(absolute).transpose();
        Ok(Settings {
            endpoint: self.s3_endpoint.clone(),
            region: self.s3_region.clone(),
            path_style: self.s3_path_style,
            credentials_file: file(&self.s3_credentials_file)?,
            ca_file: file(&self.s3_ca_file)?,
        })
    }
}
