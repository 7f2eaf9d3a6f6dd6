//! Connections: each has a WebSocket of its own.

use super::channel::{self, CONNECTIONS, Told};
use super::target::Target;
use futures::SinkExt;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PIECE: usize = 32 << 10;
const PAUSE: Duration = Duration::from_millis(100);

pub async fn serve(listener: TcpListener, target: Rc<Target>) -> anyhow::Result<()> {
    loop {
        match listener.accept().await {
            Ok((connection, from)) => {
                let target = target.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = carry(connection, &target).await {
                        eprintln!("keelson: a connection from {from}: {error:#}");
                    }
                });
            }
            // Too many files are open, or the client has gone already.
            Err(error) => {
                eprintln!("keelson: a connection isn't taken: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn carry(connection: TcpStream, target: &Target) -> anyhow::Result<()> {
    let channel::Socket { mut sink, mut source } = target.open(CONNECTIONS).await?;
    let (mut read, mut write) = connection.into_split();
    let up = async {
        let mut buffer = vec![0; PIECE];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) => break,
                Ok(n) => sink.send(channel::data(&buffer[..n])).await?,
                Err(_) => return sink.close().await,
            }
        }
        sink.send(channel::end()).await?;
        // What is still to come comes by the other way.
        std::future::pending().await
    };
    let down = async {
        while let Some(told) = source.next().await {
            match told {
                Told::Data(data) => write.write_all(&data).await?,
                Told::Error(error) => eprintln!("keelson: {error}"),
            }
        }
        write.shutdown().await
    };
    tokio::select! {
        // Whoever has gone wants nothing more.
        _gone = up => Ok(()),
        done = down => Ok(done.or_else(of_the_client)?),
    }
}

/// That it has gone is no failure.
fn of_the_client(error: std::io::Error) -> std::io::Result<()> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    match error.kind() {
        BrokenPipe | ConnectionReset | NotConnected => Ok(()),
        _ => Err(error),
    }
}
