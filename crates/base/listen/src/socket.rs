//! A connection's socket, which is waited for by those that serve it: threads of another lane would have to be told by these of every byte that comes.

use crate::lanes::comes_behind;
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

pub(crate) struct Socket {
    /// There but while it moves, and when that failed.
    stream: Option<TcpStream>,
    behind: bool,
    /// Who waits. A move forgets them: they are told to ask again.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Socket {
    pub fn new(stream: TcpStream) -> Socket {
        Socket {
            stream: Some(stream),
            behind: comes_behind(),
            reader: None,
            writer: None,
        }
    }

    /// The stream, waited for by the lane of the calling thread.
    fn here(&mut self) -> Result<Pin<&mut TcpStream>> {
        let behind = comes_behind();
        if self.behind != behind {
            let moved = self.stream.take().map(|stream| TcpStream::from_std(stream.into_std()?));
            self.stream = moved.transpose()?;
            self.behind = behind;
            [self.reader.take(), self.writer.take()]
                .into_iter()
                .flatten()
                .for_each(Waker::wake);
        }
        match &mut self.stream {
            Some(stream) => Ok(Pin::new(stream)),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        }
    }
}

fn waits<T>(polled: Poll<T>, waker: &mut Option<Waker>, cx: &Context<'_>) -> Poll<T> {
    if polled.is_pending() && !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
    polled
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let polled = self.here()?.poll_read(cx, buf);
        waits(polled, &mut self.reader, cx)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let polled = self.here()?.poll_write(cx, buf);
        waits(polled, &mut self.writer, cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let polled = self.here()?.poll_write_vectored(cx, bufs);
        waits(polled, &mut self.writer, cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.here()?.poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.here()?.poll_shutdown(cx)
    }
}
