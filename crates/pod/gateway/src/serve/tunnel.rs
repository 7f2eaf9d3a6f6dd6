//! What becomes of a connection that changes to another protocol (WebSocket): bytes, both ways, until one side ends it.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout};

/// A tunnel without a byte in either direction for so long is closed.
pub const IDLE: Duration = Duration::from_secs(3600);
/// How long both sides may take to change.
const CHANGE: Duration = Duration::from_secs(10);
const BUFFER: usize = 16 << 10;

pub fn start(client: OnUpgrade, backend: OnUpgrade, place: OwnedSemaphorePermit) {
    tokio::spawn(async move {
        let changed = timeout(CHANGE, async { tokio::try_join!(client, backend) }).await;
        if let Ok(Ok((client, backend))) = changed {
            run(TokioIo::new(client), TokioIo::new(backend), IDLE).await;
        }
        drop(place);
    });
}

pub async fn run<A, B>(a: A, b: B, idle: Duration)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let last = Mutex::new(Instant::now());
    let ((a_read, a_write), (b_read, b_write)) = (split(a), split(b));
    let silence = async {
        loop {
            let end = *last.lock() + idle;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    };
    tokio::select! {
        _ = async { tokio::try_join!(one_way(a_read, b_write, &last), one_way(b_read, a_write, &last)) } => {}
        () = silence => {}
    }
}

async fn one_way<R, W>(mut from: R, mut to: W, last: &Mutex<Instant>) -> std::io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        *last.lock() = Instant::now();
        to.write_all(&buffer[..n]).await?;
        *last.lock() = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_tunnel_ends_and_one_in_use_does_not() {
        let ((mut client, a), (mut backend, b)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let tunnel = tokio::spawn(run(a, b, Duration::from_secs(10)));
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(8)).await;
            client.write_all(b"x").await.unwrap();
            assert_eq!(backend.read_u8().await.unwrap(), b'x');
        }
        assert!(!tunnel.is_finished());
        let before = Instant::now();
        tunnel.await.unwrap();
        assert!(before.elapsed() >= Duration::from_secs(9));
    }
}
