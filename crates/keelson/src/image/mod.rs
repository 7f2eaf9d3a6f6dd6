//! `keelson image`: the images of this machine, by CRI over the running server's socket; and archives of images for machines without registries.

mod bundle;

use crate::client::block_on;
use crate::config;
use anyhow::Context;
use clap::{Args, Subcommand};
use keelson_cri::CriClients;
use keelson_cri::v1::{Image, ImageSpec, ListImagesRequest, PullImageRequest, RemoveImageRequest};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    /// Data directory of the running server
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DATA_DIR, global = true)]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the images that manifests name to an archive, for machines without a way to registries; no server is needed
    Bundle(bundle::Options),
    #[command(flatten)]
    Here(Here),
}

/// What is done with the images of a machine that runs.
#[derive(Subcommand)]
enum Here {
    /// List images
    Ls,
    /// Import the images of an archive (OCI layout or docker save)
    Import { archive: PathBuf },
    /// Pull an image from its registry or a mirror
    Pull { image: String },
    /// Remove an image
    Rm { image: String },
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let command = match options.command {
        Command::Here(command) => command,
        Command::Bundle(options) => {
            block_on(bundle::run(options))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let socket = config::absolute(options.data_dir)?.join("runtime/cri.sock");
    block_on(async {
        let mut cri = CriClients::connect(&format!("unix://{}", socket.display()))
            .await
            .with_context(|| {
                format!(
                    "no server answers at {}: is it running, with this --data-dir?",
                    socket.display()
                )
            })?
            .image;
        match command {
            Here::Ls => {
                let images = cri.list_images(ListImagesRequest::default()).await?.into_inner().images;
                show(images);
            }
            Here::Import { archive } => {
                let archive = config::absolute(archive)?;
                let answer = cri
                    .pull_image(keelson_runtime::import_request(&archive))
                    .await
                    .with_context(|| format!("cannot import {}", archive.display()))?;
                answer.into_inner().image_ref.split(',').for_each(|id| println!("{id}"));
            }
            Here::Pull { image } => {
                let request = PullImageRequest {
                    image: Some(spec(image)),
                    ..PullImageRequest::default()
                };
                println!("{}", cri.pull_image(request).await?.into_inner().image_ref);
            }
            Here::Rm { image } => {
                cri.remove_image(RemoveImageRequest {
                    image: Some(spec(image)),
                })
                .await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn spec(image: String) -> ImageSpec {
    ImageSpec {
        image,
        ..ImageSpec::default()
    }
}

fn show(images: Vec<Image>) {
    let mut lines: Vec<String> = images
        .into_iter()
        .flat_map(|i| {
            let id: String = i.id.trim_start_matches("sha256:").chars().take(12).collect();
            let names = if i.repo_tags.is_empty() {
                vec!["<none>".to_string()]
            } else {
                i.repo_tags
            };
            names
                .into_iter()
                .map(move |n| format!("{n:<70} {id} {:>7.1} MiB", i.size as f64 / 1_048_576.0))
        })
        .collect();
    lines.sort();
    lines.iter().for_each(|l| println!("{l}"));
}
