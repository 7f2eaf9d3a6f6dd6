//! A connection that is only looked at: it tells when whoever is at a socket has gone.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Uri};

use crate::client::{endpoint, reach};

/// Somebody who answered at a socket.
pub struct Presence {
    /// Open for as long as this is there.
    _channel: Channel,
    ended: mpsc::Receiver<()>,
}

impl Presence {
    /// Connects to whoever answers at `path` now.
    pub async fn of(path: &Path) -> Result<Presence, tonic::transport::Error> {
        let path = path.to_path_buf();
        let (open, ended) = mpsc::channel(1);
        let mut open = Some(open);
        let connector = tower::service_fn(move |_: Uri| {
            let (path, open) = (path.clone(), open.take());
            async move {
                // It is this connection that is looked at, not one after it.
                let open = open.ok_or_else(|| io::Error::other("it has gone"))?;
                let stream = reach(&path).await?;
                Ok::<_, io::Error>(TokioIo::new(Watched { stream, _open: open }))
            }
        });
        let channel = endpoint().connect_with_connector(connector).await?;
        Ok(Presence {
            _channel: channel,
            ended,
        })
    }

    /// Returns when the other side has closed the connection.
    pub async fn gone(mut self) {
        // Nothing is ever sent: it ends with the stream that holds the other end.
        let _ended = self.ended.recv().await;
    }
}

/// A stream that is noticed when it is dropped.
struct Watched {
    stream: UnixStream,
    _open: mpsc::Sender<()>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
