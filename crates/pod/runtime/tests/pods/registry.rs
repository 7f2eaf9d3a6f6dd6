//! Images from a registry: small ones on loopback, themselves and as mirrors, with passwords and tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;
use keelson_runtime::images::digest;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Machine, command};
use crate::tests;

tests![
    images_are_pulled_from_mirrors,
    mirrors_are_asked_as_their_file_says,
    credentials_stay_where_they_belong,
    tokens_are_asked_for,
    endless_answers_are_refused,
    wrong_content_is_refused,
    real_images_run
];

const NAME: &str = "docker.io/library/pulled:1";

/// Paths and what is behind them; shared, so that a test can spoil it.
pub type Content = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;
/// Requests as they came: path with query, and what they showed.
pub type Asked = Arc<Mutex<Vec<String>>>;

/// What a registry wants to see.
#[derive(Clone, Copy, PartialEq)]
pub enum Wants {
    Nothing,
    /// "u:p"
    Password,
    /// The token of its own service, which wants the password or an identity token "i".
    Token,
}

pub async fn serve(content: &Content, asked: &Asked, wants: Wants) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let (content, asked, own) = (content.clone(), asked.clone(), address.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (content, asked, own) = (content.clone(), asked.clone(), own.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while let Some((request, shown, body)) = read(&mut stream).await {
                    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                    asked.lock().push(format!("{path} {shown}").trim_end().to_owned());
                    let (plain, _) = path.split_once('?').unwrap_or((&path, ""));
                    let found = content.lock().get(plain).cloned();
                    let password = shown == "Basic dTpw";
                    let challenge = match wants {
                        Wants::Nothing => None,
                        Wants::Password => (!password).then(|| "Basic realm=\"r\"".to_owned()),
                        Wants::Token => (shown != "Bearer T").then(|| {
                            format!("Bearer realm=\"http://{own}/token\",service=\"s\",scope=\"repository:x:pull\"")
                        }),
                    };
                    let (head, body) = match (plain, challenge, found) {
                        ("/token", _, _) if password || body.contains("refresh_token=i&") => {
                            ("200 OK".to_owned(), br#"{"token":"T"}"#.to_vec())
                        }
                        ("/token", _, _) => ("401 Unauthorized".to_owned(), Vec::new()),
                        (_, Some(challenge), _) => {
                            (format!("401 Unauthorized\r\nWWW-Authenticate: {challenge}"), Vec::new())
                        }
                        (_, None, Some(found)) => {
                            let kind = "application/vnd.oci.image.manifest.v1+json";
                            (format!("200 OK\r\nContent-Type: {kind}"), found)
                        }
                        (_, None, None) => ("404 Not Found".to_owned(), Vec::new()),
                    };
                    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
                    if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&body).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// The next request: its first line, the credentials it shows, its body.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<(String, String, String)> {
    let (mut first, mut shown, mut length) = (String::new(), String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim();
        match line.split_once(": ") {
            _ if line.is_empty() => break,
            _ if first.is_empty() => first = line.to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => shown = value.to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((first, shown, String::from_utf8(body).ok()? + "&"))
}

/// An image of one compressed layer that holds a busybox, as the repository at a path.
pub fn image(at: &str) -> Result<BTreeMap<String, Vec<u8>>> {
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
        content.insert(format!("{at}/blobs/{}", digest::of(&blob)), blob);
    }
    content.insert(format!("{at}/manifests/{}", digest::of(&manifest)), manifest.clone());
    content.insert(format!("{at}/manifests/1"), manifest);
    Ok(content)
}

async fn machine(registries: &str, mirrors_only: bool) -> Result<Machine> {
    Machine::with(|config| {
        let file = config.root.with_file_name("registries.yaml");
        std::fs::write(&file, registries).expect("a place for the registries' file");
        config.registries = Some(file);
        config.mirrors_only = mirrors_only;
    })
    .await
}

/// A machine whose mirror of Docker's hub wants a password.
async fn mirrored(content: &Content, asked: &Asked, password: &str) -> Result<Machine> {
    let address = serve(content, asked, Wants::Password).await?;
    let text = format!(
        "mirrors: {{docker.io: {{endpoint: [\"http://{address}\"]}}}}\n\
         configs: {{\"{address}\": {{auth: {{username: u, password: {password}}}}}}}"
    );
    machine(&text, true).await
}

pub fn pull(name: &str, auth: AuthConfig) -> PullImageRequest {
    PullImageRequest {
        image: Some(ImageSpec {
            image: name.into(),
            ..ImageSpec::default()
        }),
        auth: Some(auth),
        sandbox_config: None,
    }
}

pub fn anonymous(name: &str) -> PullImageRequest {
    pull(name, AuthConfig::default())
}

pub fn secret() -> AuthConfig {
    AuthConfig {
        username: "u".into(),
        password: "p".into(),
        ..AuthConfig::default()
    }
}

async fn mirrors_are_asked_as_their_file_says() -> Result<()> {
    let (content, asked, down) = (Content::default(), Asked::default(), "127.0.0.1:1");
    for at in ["/v2/hub/mirror/a", "/v2/x/b"] {
        content.lock().extend(image(at)?);
    }
    let address = serve(&content, &asked, Wants::Nothing).await?;
    let text = format!(
        r#"
mirrors:
  docker.io: {{endpoint: ["http://{down}", "http://{address}/v2/hub"], rewrite: {{"^library/(.*)": "mirror/$1"}}}}
  "*": {{endpoint: ["http://{address}"]}}
configs:
  "{address}": {{auth: {{username: u, password: p}}, tls: {{insecure_skip_verify: true}}}}
"#
    );
    let machine = machine(&text, true).await?;
    let mut client = machine.cri.image.clone();
    let id = client.pull_image(anonymous("a:1")).await?.into_inner().image_ref;
    let first = asked.lock()[0].clone();
    ensure!(first == "/v2/hub/mirror/a/manifests/1?ns=docker.io", "{first}");
    ensure!(
        asked.lock().iter().all(|path| path.contains("?ns=docker.io")),
        "{asked:?}"
    );
    asked.lock().clear();
    ensure!(
        client
            .pull_image(anonymous("quay.io/x/b:1"))
            .await?
            .into_inner()
            .image_ref
            == id
    );
    ensure!(asked.lock()[0] == "/v2/x/b/manifests/1?ns=quay.io", "{asked:?}");
    // The image goes by its own name.
    let images = client
        .list_images(ListImagesRequest::default())
        .await?
        .into_inner()
        .images;
    let tags = images.iter().find(|i| i.id == id).map(|i| i.repo_tags.clone());
    ensure!(
        tags.as_deref() == Some(&["docker.io/library/a:1".to_owned(), "quay.io/x/b:1".to_owned()][..]),
        "{tags:?}"
    );
    let none = client
        .pull_image(anonymous("quay.io/x/none:1"))
        .await
        .err()
        .context("it is not there")?;
    ensure!(
        none.code() == tonic::Code::NotFound && none.message().contains("404"),
        "{none}"
    );
    let none = client
        .pull_image(anonymous("none:1"))
        .await
        .err()
        .context("it is not there")?;
    ensure!(
        none.message().contains(&format!("{down}: ")) && none.message().contains(&format!("{address}: ")),
        "{none}"
    );
    Ok(())
}

async fn credentials_stay_where_they_belong() -> Result<()> {
    let (content, by_mirror, by_itself) = (Content::default(), Asked::default(), Asked::default());
    let mirror = serve(&Content::default(), &by_mirror, Wants::Password).await?;
    let itself = serve(&content, &by_itself, Wants::Password).await?;
    content.lock().extend(image("/v2/library/a")?);
    // The rewriting and the mirror's password are nothing of the registry itself.
    let text = format!(
        r#"
mirrors: {{"{itself}": {{endpoint: ["http://{mirror}"], rewrite: {{"^library": "elsewhere"}}}}}}
configs: {{"{mirror}": {{auth: {{username: m, password: m}}}}}}
"#
    );
    let machine = machine(&text, false).await?;
    let mut client = machine.cri.image.clone();
    let name = format!("{itself}/library/a:1");
    let error = client
        .pull_image(anonymous(&name))
        .await
        .err()
        .context("without a password")?;
    ensure!(error.code() == tonic::Code::PermissionDenied, "{error}");
    ensure!(by_itself.lock().iter().all(|r| !r.contains("Basic")), "{by_itself:?}");
    client.pull_image(pull(&name, secret())).await?;
    ensure!(
        by_itself.lock().iter().any(|r| r.ends_with("Basic dTpw")),
        "{by_itself:?}"
    );
    ensure!(
        by_itself
            .lock()
            .iter()
            .all(|r| r.contains("/library/a/") && !r.contains("ns=")),
        "{by_itself:?}"
    );
    // "m:m", and never the secret of the pull.
    let seen = by_mirror.lock().clone();
    ensure!(seen.iter().any(|r| r.ends_with("Basic bTpt")), "{seen:?}");
    ensure!(seen.iter().all(|r| !r.ends_with("Basic dTpw")), "{seen:?}");
    // A pull's error quotes no secret.
    let wrong = AuthConfig {
        password: "hidden-secret".into(),
        ..secret()
    };
    let error = client
        .pull_image(pull(&format!("{itself}/library/b:1"), wrong))
        .await
        .err()
        .context("wrong")?;
    ensure!(!error.message().contains("hidden-secret"), "{error}");
    Ok(())
}

async fn tokens_are_asked_for() -> Result<()> {
    let (content, asked) = (Content::default(), Asked::default());
    *content.lock() = image("/v2/a")?;
    let address = serve(&content, &asked, Wants::Token).await?;
    let machine = machine("", false).await?;
    let mut client = machine.cri.image.clone();
    let name = format!("{address}/a:1");
    let error = client
        .pull_image(anonymous(&name))
        .await
        .err()
        .context("without a password")?;
    ensure!(
        error.code() == tonic::Code::PermissionDenied && error.message().contains("failed to authorize"),
        "{error}"
    );
    client.pull_image(pull(&name, secret())).await?;
    let seen = asked.lock().clone();
    ensure!(
        seen.contains(&"/token?service=s&scope=repository%3Ax%3Apull Basic dTpw".to_owned()),
        "{seen:?}"
    );
    ensure!(
        seen.iter()
            .filter(|r| r.starts_with("/v2"))
            .all(|r| !r.contains("Basic")),
        "{seen:?}"
    );
    let id = client.pull_image(anonymous(&name)).await;
    ensure!(id.is_err(), "one pull's token was another's");
    for (auth, what) in [
        (
            AuthConfig {
                identity_token: "i".into(),
                ..AuthConfig::default()
            },
            "an identity token",
        ),
        (
            AuthConfig {
                registry_token: "T".into(),
                ..AuthConfig::default()
            },
            "a registry's token",
        ),
        (
            AuthConfig {
                auth: "dTpw".into(),
                ..AuthConfig::default()
            },
            "an encoded pair",
        ),
    ] {
        client
            .pull_image(pull(&name, auth))
            .await
            .with_context(|| what.to_owned())?;
    }
    Ok(())
}

async fn endless_answers_are_refused() -> Result<()> {
    let (content, asked) = (Content::default(), Asked::default());
    *content.lock() = image("/v2/a")?;
    let address = serve(&content, &asked, Wants::Nothing).await?;
    let machine = machine("", false).await?;
    let mut client = machine.cri.image.clone();
    content
        .lock()
        .insert("/v2/big/manifests/1".to_owned(), vec![b' '; (4 << 20) + 1]);
    let error = client
        .pull_image(anonymous(&format!("{address}/big:1")))
        .await
        .err()
        .context("5 MiB")?;
    ensure!(error.message().contains("longer than 4194304 bytes"), "{error}");
    // A configuration that is longer than anybody's, and one whose digest it is not.
    for (path, bytes) in content.lock().iter_mut() {
        if path.contains("/blobs/") && bytes.starts_with(b"{") {
            bytes.resize((8 << 20) + 1, b' ');
        }
    }
    let error = client
        .pull_image(anonymous(&format!("{address}/a:1")))
        .await
        .err()
        .context("9 MiB")?;
    ensure!(error.message().contains("longer than 8388608 bytes"), "{error}");
    Ok(())
}

async fn images_are_pulled_from_mirrors() -> Result<()> {
    let (content, asked) = (Content::default(), Asked::default());
    *content.lock() = image("/v2/library/pulled")?;
    let machine = mirrored(&content, &asked, "p").await?;
    let mut client = machine.cri.image.clone();
    let id = client.pull_image(anonymous("pulled:1")).await?.into_inner().image_ref;
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
    client.pull_image(anonymous("pulled:1")).await?;
    client.pull_image(anonymous(&image.repo_digests[0])).await?;
    // A manifest and a configuration each, and one refusal.
    ensure!(asked.lock().len() <= 6, "{asked:?}");

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
    let (content, asked) = (Content::default(), Asked::default());
    *content.lock() = image("/v2/library/pulled")?;
    let denied = mirrored(&content, &asked, "wrong").await?;
    let denied = denied.cri.image.clone().pull_image(anonymous("pulled:1")).await;
    let denied = denied.err().context("it came with a wrong password")?;
    ensure!(denied.code() == tonic::Code::PermissionDenied, "{denied}");
    let machine = mirrored(&content, &asked, "p").await?;
    let mut client = machine.cri.image.clone();
    for value in content.lock().values_mut().filter(|v| v.starts_with(&[0x1f, 0x8b])) {
        let last = value.len() - 1;
        value[last] ^= 1;
    }
    let spoiled = client
        .pull_image(anonymous("pulled:1"))
        .await
        .err()
        .context("a spoiled layer came in")?;
    ensure!(spoiled.message().contains(NAME), "{spoiled}");
    let left = std::fs::read_dir(machine.dir.join("root/ingest"))?.count();
    ensure!(left == 0, "{left} files left of it");
    let invalid = client
        .pull_image(anonymous("Not/AName"))
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
