//! Images from a registry: a small one on loopback, reached as a mirror, with a password.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;
use keelson_runtime::images::digest;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::support::{Machine, command};
use crate::tests;

tests![
    images_are_pulled_from_mirrors,
    wrong_content_is_refused,
    real_images_run
];

const NAME: &str = "docker.io/library/pulled:1";

/// Paths and what is behind them; shared, so that a test can spoil it.
type Content = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Answers GET and HEAD; everything needs the password.
async fn serve(content: Content, asked: Arc<Mutex<Vec<String>>>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (content, asked) = (content.clone(), asked.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut head = Vec::new();
                    loop {
                        let mut line = String::new();
                        match stream.read_line(&mut line).await {
                            Ok(0) | Err(_) => return,
                            Ok(_) if line == "\r\n" => break,
                            Ok(_) => head.push(line.trim().to_owned()),
                        }
                    }
                    let request = head.first().cloned().unwrap_or_default();
                    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                    // "u:p"
                    let known = head.iter().any(|h| h.eq_ignore_ascii_case("authorization: Basic dTpw"));
                    asked.lock().push(path.clone());
                    let body = content.lock().get(&path).cloned();
                    let answer = match (known, body) {
                        (false, _) => "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"".to_owned(),
                        (true, _) if path == "/v2/" => "200 OK".to_owned(),
                        (true, Some(_)) => {
                            "200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json".to_owned()
                        }
                        (true, None) => "404 Not Found".to_owned(),
                    };
                    let body = if answer.starts_with("200") {
                        content.lock().get(&path).cloned()
                    } else {
                        None
                    };
                    let body = body.unwrap_or_default();
                    let head = format!("HTTP/1.1 {answer}\r\nContent-Length: {}\r\n\r\n", body.len());
                    if stream.write_all(head.as_bytes()).await.is_err()
                        || (!request.starts_with("HEAD") && stream.write_all(&body).await.is_err())
                    {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// An image of one compressed layer that holds a busybox.
fn image() -> Result<BTreeMap<String, Vec<u8>>> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let program = std::fs::read(crate::support::busybox())?;
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    layer.append_data(&mut header, "bin/sh", &program[..])?;
    let layer = layer.into_inner()?;
    let mut compressed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut &layer[..], &mut compressed)?;
    let compressed = compressed.finish()?;
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo pulled"]},
        "rootfs": {"type": "layers", "diff_ids": [digest::of(&layer)]},
    }))?;
    let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest::of(bytes), "size": bytes.len()});
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)],
    }))?;
    let mut content = BTreeMap::new();
    for blob in [config, compressed] {
        content.insert(format!("/v2/library/pulled/blobs/{}", digest::of(&blob)), blob);
    }
    content.insert(
        format!("/v2/library/pulled/manifests/{}", digest::of(&manifest)),
        manifest.clone(),
    );
    content.insert("/v2/library/pulled/manifests/1".to_owned(), manifest);
    Ok(content)
}

async fn machine(content: &Content, asked: &Arc<Mutex<Vec<String>>>) -> Result<Machine> {
    let address = serve(content.clone(), asked.clone()).await?;
    Machine::with(|config| {
        let file = config.root.with_file_name("registries.yaml");
        let text = format!("mirrors:\n  docker.io:\n    endpoint: [\"http://{address}\"]\n");
        std::fs::write(&file, text).expect("a place for the registries' file");
        config.registries = Some(file);
    })
    .await
}

fn pull(name: &str, password: &str) -> PullImageRequest {
    PullImageRequest {
        image: Some(ImageSpec {
            image: name.into(),
            ..ImageSpec::default()
        }),
        auth: Some(AuthConfig {
            username: "u".into(),
            password: password.into(),
            ..AuthConfig::default()
        }),
        sandbox_config: None,
    }
}

async fn images_are_pulled_from_mirrors() -> Result<()> {
    let (content, asked) = (Content::default(), Arc::default());
    *content.lock() = image()?;
    let machine = machine(&content, &asked).await?;
    let mut client = machine.cri.image.clone();
    let id = client.pull_image(pull("pulled:1", "p")).await?.into_inner().image_ref;
    let request = ImageStatusRequest {
        image: Some(ImageSpec {
            image: id,
            ..ImageSpec::default()
        }),
        verbose: false,
    };
    let image = client
        .image_status(request)
        .await?
        .into_inner()
        .image
        .context("no image")?;
    ensure!(
        image.repo_tags == [NAME] && image.repo_digests[0].starts_with("docker.io/library/pulled@"),
        "{image:?}"
    );
    // Again: what is there is not downloaded again.
    asked.lock().clear();
    client.pull_image(pull("pulled:1", "p")).await?;
    client.pull_image(pull(&image.repo_digests[0], "p")).await?;
    ensure!(
        !asked.lock().iter().any(|p| image.size > 0 && p.contains("tar")),
        "{asked:?}"
    );

    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let mut container = command("c", &[]);
    container.image = Some(ImageSpec {
        image: image.id.clone(),
        ..ImageSpec::default()
    });
    let id = machine.run(&sandbox, &pod, container).await?;
    let status = machine.ended(&id).await?;
    ensure!(
        machine.log(&status)? == "pulled\n" && status.image_ref == image.repo_digests[0],
        "{status:?}"
    );
    machine.remove(&sandbox).await
}

async fn wrong_content_is_refused() -> Result<()> {
    let (content, asked) = (Content::default(), Arc::default());
    *content.lock() = image()?;
    let machine = machine(&content, &asked).await?;
    let mut client = machine.cri.image.clone();
    let denied = client
        .pull_image(pull("pulled:1", "wrong"))
        .await
        .err()
        .context("it came with a wrong password")?;
    ensure!(denied.code() != tonic::Code::Ok, "{denied}");
    for value in content.lock().values_mut().filter(|v| v.starts_with(&[0x1f, 0x8b])) {
        let last = value.len() - 1;
        value[last] ^= 1;
    }
    let spoiled = client
        .pull_image(pull("pulled:1", "p"))
        .await
        .err()
        .context("a spoiled layer came in")?;
    ensure!(spoiled.message().contains(NAME), "{spoiled}");
    let left = std::fs::read_dir(machine.dir.join("root/ingest"))?.count();
    ensure!(left == 0, "{left} files left of it");
    let invalid = client
        .pull_image(pull("Not/AName", "p"))
        .await
        .err()
        .context("it has no name")?;
    ensure!(invalid.code() == tonic::Code::InvalidArgument, "{invalid}");
    Ok(())
}

/// With `IMAGES=dir`: the archives of the conformance suite, and how long they take.
async fn real_images_run() -> Result<()> {
    let Some(dir) = std::env::var_os("IMAGES") else {
        println!("not tested: no IMAGES=dir with archives of agnhost and nginx");
        return Ok(());
    };
    let started = std::time::Instant::now();
    let mut machine = Machine::with(|config| config.images = Some(dir.clone().into())).await?;
    let list = || ListImagesRequest::default();
    let agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
    let request = ImageStatusRequest {
        image: Some(ImageSpec {
            image: agnhost.into(),
            ..ImageSpec::default()
        }),
        verbose: false,
    };
    while machine
        .cri
        .image
        .clone()
        .image_status(request.clone())
        .await?
        .into_inner()
        .image
        .is_none()
    {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        ensure!(started.elapsed().as_secs() < 100, "not imported");
    }
    let images = machine.cri.image.clone().list_images(list()).await?.into_inner().images;
    println!("    {} images in {:?}", images.len(), started.elapsed());
    let again = std::time::Instant::now();
    machine.runtime = None;
    let config = keelson_runtime::Config {
        images: Some(dir.into()),
        ..machine.config()
    };
    let runtime = keelson_runtime::Runtime::new(config, Arc::new(keelson_network::HostOnly)).await?;
    machine.cri = runtime.clients();
    machine.cri.image.clone().image_status(request).await?;
    println!("    again: {:?}", again.elapsed());
    machine.runtime = Some(runtime);

    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let of = |name: &str, image: &str, args: &[&str]| {
        let mut container = command(name, &[]);
        container.args = args.iter().map(|a| a.to_string()).collect();
        container.image = Some(ImageSpec {
            image: image.into(),
            ..ImageSpec::default()
        });
        container
    };
    let server = machine
        .run(&sandbox, &pod, of("agnhost", agnhost, &["netexec", "--http-port=8080"]))
        .await?;
    let nginx = "registry.k8s.io/e2e-test-images/nginx:1.28.0-2";
    let web = machine.run(&sandbox, &pod, of("nginx", nginx, &[])).await?;
    for (port, expected) in [(8080, "NOW:"), (80, "Welcome to nginx")] {
        let url = format!("http://127.0.0.1:{port}/");
        let mut answer = ExecSyncResponse::default();
        for _ in 0..50 {
            answer = machine.exec(&server, &["curl", "-s", &url]).await?;
            if answer.exit_code == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        ensure!(String::from_utf8_lossy(&answer.stdout).contains(expected), "{answer:?}");
    }
    ensure!(machine.status(&web).await?.state() == ContainerState::ContainerRunning);
    let nnp = "registry.k8s.io/e2e-test-images/nonewprivs:1.4";
    for (allowed, expected) in [(true, "Effective uid: 0\n"), (false, "Effective uid: 1000\n")] {
        let mut container = of(&format!("nnp-{allowed}"), nnp, &[]);
        crate::support::security(&mut container).run_as_user = Some(Int64Value { value: 1000 });
        crate::support::security(&mut container).no_new_privs = !allowed;
        let id = machine.run(&sandbox, &pod, container).await?;
        let log = machine.log(&machine.ended(&id).await?)?;
        ensure!(log == expected, "{log}");
    }
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}
