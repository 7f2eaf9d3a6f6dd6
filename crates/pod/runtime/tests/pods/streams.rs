//! Exec, attach and port-forward as clients use them, over WebSocket; and exec over SPDY, by the side that commands on a node have.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{SinkExt, StreamExt};
use keelson_cri::v1::*;
use keelson_runtime::datagrams;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::support::{Machine, command, runs, script};
use crate::tests;

tests![
    exec_streams_and_tells_the_exit_code,
    exec_with_a_terminal,
    exec_over_spdy,
    a_command_ends_with_its_own_status_whatever_it_leaves_behind,
    a_timeout_ends_what_the_command_started,
    attach_joins_a_container,
    who_attached_to_write_leaves_when_he_has,
    ports_are_forwarded,
    datagrams_are_forwarded_by_sender,
    a_connection_that_is_reset_is_no_failure,
    tokens_work_once,
];

type Client = WebSocketStream<TcpStream>;

async fn connect(url: &str, protocol: &str) -> Result<Client> {
    let mut request = url.replace("http://", "ws://").into_client_request()?;
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocol.parse()?);
    let host = request.uri().authority().context("no host")?.to_string();
    let (client, response) = client_async(request, TcpStream::connect(host).await?).await?;
    ensure!(
        response
            .headers()
            .get("sec-websocket-protocol")
            .is_some_and(|p| p == protocol),
        "{response:?}"
    );
    Ok(client)
}

/// Everything until the end, by channel.
async fn collect(client: &mut Client) -> Result<Vec<String>> {
    let mut channels = vec![String::new(); 5];
    while let Some(message) = client.next().await {
        match message? {
            Message::Binary(bytes) => {
                let (channel, data) = bytes.split_first().context("an empty message")?;
                channels[usize::from(*channel)] += &String::from_utf8_lossy(data);
            }
            Message::Close(frame) => {
                // kubectl takes any other end for a failure.
                ensure!(frame.is_some_and(|f| u16::from(f.code) == 1000), "closed otherwise");
                return Ok(channels);
            }
            _ => {}
        }
    }
    anyhow::bail!("the connection ended without a word: {channels:?}")
}

fn on(channel: u8, data: &[u8]) -> Message {
    Message::Binary([&[channel], data].concat().into())
}

async fn sleeping(machine: &Machine) -> Result<(String, String)> {
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let id = machine.run(&sandbox, &pod, command("c", &["sleep", "1000"])).await?;
    Ok((sandbox, id))
}

async fn exec_streams_and_tells_the_exit_code() -> Result<()> {
    let machine = Machine::new().await?;
    let (sandbox, id) = sleeping(&machine).await?;
    let exec = |text: &str, stdin: bool| ExecRequest {
        container_id: id.clone(),
        cmd: ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
        stdin,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let url = machine
        .cri
        .runtime
        .clone()
        .exec(exec("echo out; echo err >&2; exit 3", false))
        .await?
        .into_inner()
        .url;
    let got = collect(&mut connect(&url, "v4.channel.k8s.io").await?).await?;
    ensure!(got[1] == "out\n" && got[2] == "err\n", "{got:?}");
    let status: serde_json::Value = serde_json::from_str(&got[3])?;
    ensure!(
        status["reason"] == "NonZeroExitCode" && status["details"]["causes"][0]["message"] == "3",
        "{status}"
    );

    // The end of standard input can be said in version 5.
    let url = machine
        .cri
        .runtime
        .clone()
        .exec(exec("cat; echo end", true))
        .await?
        .into_inner()
        .url;
    let mut client = connect(&url, "v5.channel.k8s.io").await?;
    client.send(on(0, b"hello\n")).await?;
    client.send(Message::Binary(vec![255, 0].into())).await?;
    let got = collect(&mut client).await?;
    ensure!(
        got[1] == "hello\nend\n" && got[3] == r#"{"metadata":{},"status":"Success"}"#,
        "{got:?}"
    );

    // Much output arrives whole.
    let url = machine
        .cri
        .runtime
        .clone()
        .exec(exec("seq 200000", false))
        .await?
        .into_inner()
        .url;
    let got = collect(&mut connect(&url, "v5.channel.k8s.io").await?).await?;
    ensure!(
        got[1].lines().count() == 200_000 && got[1].ends_with("200000\n"),
        "{} bytes",
        got[1].len()
    );

    let request = ExecRequest {
        cmd: vec!["no-such".into()],
        ..exec("", false)
    };
    let url = machine.cri.runtime.clone().exec(request).await?.into_inner().url;
    let got = collect(&mut connect(&url, "v5.channel.k8s.io").await?).await?;
    ensure!(
        got[3].contains("InternalError") && got[3].contains("executable file not found in $PATH"),
        "{got:?}"
    );
    machine.remove(&sandbox).await
}

async fn exec_with_a_terminal() -> Result<()> {
    let machine = Machine::new().await?;
    let (sandbox, id) = sleeping(&machine).await?;
    let request = ExecRequest {
        container_id: id,
        cmd: vec!["/bin/sh".into()],
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let url = machine.cri.runtime.clone().exec(request).await?.into_inner().url;
    let mut client = connect(&url, "v5.channel.k8s.io").await?;
    client.send(on(4, br#"{"Width":123,"Height":45}"#)).await?;
    // The two channels are not ordered among themselves.
    let shown =
        b"tty; for i in $(seq 100); do [ \"$(stty size)\" = '45 123' ] && break; sleep 0.05; done; stty size; exit 5\n";
    client.send(on(0, shown)).await?;
    let got = collect(&mut client).await?;
    ensure!(
        got[1].contains("/dev/pts/0\r\n") && got[1].contains("45 123\r\n"),
        "{got:?}"
    );
    ensure!(got[3].contains(r#""message":"5""#), "{got:?}");
    machine.remove(&sandbox).await
}

async fn exec_over_spdy() -> Result<()> {
    use keelson_runtime::streams;
    async fn all(stream: Option<streams::Incoming>) -> Result<String> {
        let (mut stream, mut text) = (stream.context("not there")?, String::new());
        while let Some(bytes) = stream.recv().await {
            text += &String::from_utf8_lossy(&bytes);
        }
        Ok(text)
    }
    let machine = Machine::new().await?;
    let (sandbox, id) = sleeping(&machine).await?;
    let open = async |cmd: &[&str], stdin: bool, tty: bool| {
        let request = ExecRequest {
            container_id: id.clone(),
            cmd: cmd.iter().map(|word| word.to_string()).collect(),
            stdin,
            stdout: true,
            stderr: !tty,
            tty,
        };
        let answer = machine.cri.runtime.clone().exec(request).await?;
        streams::open(&answer.into_inner().url, stdin, tty).await
    };

    let mut command = open(&["/bin/sh", "-c", "cat; echo err >&2; exit 3"], true, false).await?;
    let stdin = command.stdin.take().context("no stdin")?;
    ensure!(stdin.send("hello\n").await.is_ok(), "the runtime is gone");
    stdin.end().await;
    let (out, err) = (command.stdout.take(), command.stderr.take());
    let (out, err) = tokio::try_join!(all(out), all(err))?;
    ensure!(out == "hello\n" && err == "err\n", "{out:?} {err:?}");
    ensure!(command.ended().await? == 3, "the exit code");

    let mut command = open(&["seq", "200000"], false, false).await?;
    let out = all(command.stdout.take()).await?;
    ensure!(out.ends_with("\n200000\n"), "{} bytes", out.len());
    ensure!(command.ended().await? == 0, "the exit code");

    let mut command = open(&["/bin/sh"], true, true).await?;
    let resize = command.resize.take().context("no way to resize")?;
    ensure!(resize.send(streams::size(123, 45)).await.is_ok(), "the runtime is gone");
    let stdin = command.stdin.take().context("no stdin")?;
    let shown =
        "for i in $(seq 100); do [ \"$(stty size)\" = '45 123' ] && break; sleep 0.05; done; stty size; exit 5\n";
    ensure!(stdin.send(shown).await.is_ok(), "the runtime is gone");
    let out = all(command.stdout.take()).await?;
    ensure!(out.contains("45 123\r\n"), "{out:?}");
    ensure!(command.ended().await? == 5, "the exit code");

    // A client may well look at the output first.
    let mut command = open(&["no-such"], false, false).await?;
    let (out, err) = (command.stdout.take(), command.stderr.take());
    let (out, err) = tokio::try_join!(all(out), all(err))?;
    ensure!(out.is_empty() && err.is_empty(), "{out:?} {err:?}");
    let why = command.ended().await.err().context("it ran")?.to_string();
    ensure!(why.contains("executable file not found in $PATH"), "{why}");
    machine.remove(&sandbox).await
}

async fn attach_joins_a_container() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    for tty in [false, true] {
        let name = format!("tty-{tty}");
        let mut container = script(
            &name,
            "while read line; do echo got $line; [ $line = end ] && exit 4; done; exit 1",
        );
        (container.stdin, container.stdin_once, container.tty) = (true, true, tty);
        let id = machine.run(&sandbox, &pod, container).await?;
        let request = AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            stderr: !tty,
            tty,
        };
        let url = machine.cri.runtime.clone().attach(request).await?.into_inner().url;
        let mut client = connect(&url, "v5.channel.k8s.io").await?;
        // Attached is who has been told so.
        client.next().await.context("closed")??;
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.send(on(0, b"one\nend\n")).await?;
        let got = collect(&mut client).await?;
        ensure!(got[1].contains("got one") && got[1].contains("got end"), "{got:?}");
        let status = machine.ended(&id).await?;
        ensure!(status.exit_code == 4, "{status:?}");
        ensure!(machine.log(&status)?.contains("got end"), "{}", machine.log(&status)?);
    }
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn exec_sync(machine: &Machine, id: &str, text: &str, timeout: i64) -> Result<ExecSyncResponse, tonic::Status> {
    let request = ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: ["/bin/sh", "-c", text].map(str::to_owned).into(),
        timeout,
    };
    Ok(machine.cri.runtime.clone().exec_sync(request).await?.into_inner())
}

async fn a_command_ends_with_its_own_status_whatever_it_leaves_behind() -> Result<()> {
    let machine = Machine::new().await?;
    let (sandbox, id) = sleeping(&machine).await?;
    for timeout in [0, 3] {
        let started = Instant::now();
        let answer = exec_sync(&machine, &id, "echo out; echo err >&2; sleep 300 & exit 3", timeout).await?;
        ensure!(
            answer.exit_code == 3 && answer.stdout == "out\n" && answer.stderr == "err\n",
            "{answer:?}"
        );
        ensure!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    }
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn a_timeout_ends_what_the_command_started() -> Result<()> {
    let machine = Machine::new().await?;
    let (sandbox, id) = sleeping(&machine).await?;
    for text in ["sleep 4748; true", "sleep 4748 & sleep 4748 & wait"] {
        let started = Instant::now();
        let error = exec_sync(&machine, &id, text, 1).await.err().context("it ended")?;
        ensure!(error.code() == tonic::Code::DeadlineExceeded, "{error}");
        ensure!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    }
    // The last one is killed before the answer, and may take a moment to be gone.
    for _ in 0..3000 {
        if !runs("4748")? {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensure!(!runs("4748")?, "left behind");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn who_attached_to_write_leaves_when_he_has() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let mut container = script("c", "cat && echo input closed; sleep 1000");
    (container.stdin, container.stdin_once) = (true, false);
    let id = machine.run(&sandbox, &pod, container).await?;
    for _ in 0..2 {
        let request = AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = machine.cri.runtime.clone().attach(request).await?.into_inner().url;
        let mut client = connect(&url, "v5.channel.k8s.io").await?;
        client.next().await.context("closed")??;
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.send(on(0, b"abcd\n")).await?;
        client.send(on(255, &[0])).await?;
        let got = tokio::time::timeout(Duration::from_secs(10), collect(&mut client)).await??;
        ensure!(got[1] == "abcd\n", "{got:?}");
    }
    let status = machine.status(&id).await?;
    ensure!(status.state() == ContainerState::ContainerRunning, "{status:?}");
    ensure!(machine.log(&status)? == "abcd\nabcd\n", "{}", machine.log(&status)?);
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn a_connection_that_is_reset_is_no_failure() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    // Ends with what it was sent unread: the kernel resets the connection.
    let id = machine
        .run(
            &sandbox,
            &pod,
            command("c", &["nc", "-l", "-p", "8080", "-e", "/bin/sleep", "1"]),
        )
        .await?;
    listens(&machine, &id).await?;
    let request = PortForwardRequest {
        pod_sandbox_id: sandbox.clone(),
        port: vec![8080],
    };
    let url = machine
        .cri
        .runtime
        .clone()
        .port_forward(request)
        .await?
        .into_inner()
        .url;
    let mut client = connect(&url, "v4.channel.k8s.io").await?;
    client.send(on(0, b"ping")).await?;
    let mut error = Vec::new();
    while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(20), client.next()).await {
        match message {
            Message::Binary(bytes) if bytes[0] == 1 => error.extend_from_slice(&bytes[1..]),
            Message::Close(_) => break,
            _ => {}
        }
    }
    // The port's number comes first.
    ensure!(error == 8080u16.to_le_bytes(), "{}", String::from_utf8_lossy(&error));
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn listens(machine: &Machine, id: &str) -> Result<()> {
    let text =
        "for i in $(seq 200); do grep -q ':1F90 .* 0A ' /proc/net/tcp /proc/net/tcp6 && exit; sleep 0.05; done; exit 1";
    let waited = machine.exec(id, &["/bin/sh", "-c", text]).await?;
    ensure!(waited.exit_code == 0, "nobody listens: {waited:?}");
    Ok(())
}

async fn ports_are_forwarded() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let container = script("c", "while true; do nc -l -p 8080 -e /bin/cat; done");
    let id = machine.run(&sandbox, &pod, container).await?;
    listens(&machine, &id).await?;
    let request = PortForwardRequest {
        pod_sandbox_id: sandbox.clone(),
        port: vec![8080, 9],
    };
    let url = machine
        .cri
        .runtime
        .clone()
        .port_forward(request)
        .await?
        .into_inner()
        .url;
    let mut client = connect(&url, "v4.channel.k8s.io").await?;
    client.send(on(0, b"ping")).await?;
    let (mut echoed, mut refused) = (String::new(), String::new());
    while !(echoed.ends_with("ping") && refused.contains("refused")) {
        let message = client.next().await.context("closed")??;
        if let Message::Binary(bytes) = message {
            let text = String::from_utf8_lossy(&bytes[1..]).into_owned();
            match bytes[0] {
                0 => echoed += &text,
                3 => refused += &text,
                _ => {}
            }
        }
    }
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

/// Answers whoever sends with his port and what he sent, on this port of the network of the process with this command line.
fn echo(port: u16, of: &str) -> Result<()> {
    let has = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .eq(of.split(' ').map(str::as_bytes).chain([&b""[..]]))
    };
    let all = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let pid = all.into_iter().find(has).context("no such process")?;
    let network = keelson_sys::process::open_namespace(Path::new(&format!("/proc/{pid}/ns/net")))?;
    let bind = || std::net::UdpSocket::bind(("127.0.0.1", port));
    let socket = keelson_sys::process::in_network_namespace(&network, bind)??;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let answer = [format!("{} ", from.port()).as_bytes(), &buffer[..length]].concat();
            // Who isn't answered waits in vain.
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(())
}

async fn datagrams_are_forwarded_by_sender() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    machine
        .run(&sandbox, &pod, command("c", &["sleep", "87654321"]))
        .await?;
    echo(5353, "sleep 87654321")?;
    let request = PortForwardRequest {
        pod_sandbox_id: sandbox.clone(),
        port: vec![5353, 9],
    };
    let url = machine
        .cri
        .runtime
        .clone()
        .port_forward(request)
        .await?
        .into_inner()
        .url;
    let mut client = connect(&url, datagrams::PROTOCOL).await?;
    let large = "x".repeat(60_000);
    for (channel, sender, text) in [
        (0, 1, "ping"),
        (0, 2, "ping"),
        (2, 1, "ping"),
        (0, 1, large.as_str()),
        (0, 2, ""),
    ] {
        client
            .send(on(channel, &datagrams::joined(sender, text.as_bytes())))
            .await?;
    }
    let mut answers: HashMap<u32, Vec<String>> = HashMap::new();
    let mut told = String::new();
    while told.is_empty() || answers.values().map(Vec::len).sum::<usize>() < 4 {
        let message = tokio::time::timeout(Duration::from_secs(20), client.next()).await?;
        let Message::Binary(message) = message.context("closed")?? else {
            continue;
        };
        let text = message.slice(1..);
        match message[0] {
            // The port's number comes first on each channel.
            _ if text == 5353u16.to_le_bytes()[..] || text == 9u16.to_le_bytes()[..] => {}
            0 => {
                let (sender, datagram) = datagrams::parted(text).context("no sender")?;
                answers
                    .entry(sender)
                    .or_default()
                    .push(String::from_utf8(datagram.into())?);
            }
            3 => told += &String::from_utf8_lossy(&text),
            other => anyhow::bail!("channel {other} says {text:?}"),
        }
    }
    let (first, second) = (&answers[&1], &answers[&2]);
    let port = |answer: &str| answer.split(' ').next().map(str::to_owned);
    ensure!(
        port(&first[0]) == port(&first[1]) && port(&second[0]) == port(&second[1]),
        "a sender's address changes"
    );
    ensure!(port(&first[0]) != port(&second[0]), "two senders have one address");
    ensure!(
        first[0].ends_with(" ping") && first[1].ends_with(&large) && second[1].ends_with(' '),
        "what was sent"
    );
    ensure!(told.contains("9/udp") && told.contains("refused"), "{told:?}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn tokens_work_once() -> Result<()> {
    let machine = Machine::new().await?;
    let (sandbox, id) = sleeping(&machine).await?;
    let request = ExecRequest {
        container_id: id,
        cmd: vec!["true".into()],
        stdout: true,
        ..ExecRequest::default()
    };
    let url = machine
        .cri
        .runtime
        .clone()
        .exec(request.clone())
        .await?
        .into_inner()
        .url;
    collect(&mut connect(&url, "v5.channel.k8s.io").await?).await?;
    ensure!(connect(&url, "v5.channel.k8s.io").await.is_err(), "it worked twice");
    // Without an upgrade there is nothing to stream over.
    let url = machine.cri.runtime.clone().exec(request).await?.into_inner().url;
    let (host, path) = url.trim_start_matches("http://").split_once('/').context("a path")?;
    let mut plain = TcpStream::connect(host).await?;
    plain
        .write_all(format!("GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    machine.remove(&sandbox).await
}
