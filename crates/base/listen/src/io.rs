//! A connection's bytes, as far as its bounds concern: it tells when something arrives, ends when it has to, and holds its
//! place for as long as it is there, upgraded or not.

use crate::ended::Ended;
use crate::peers::Place;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What HTTP/2 begins with. The library, told of HTTP/1.1 alone, answers it all the same where connections may be upgraded.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub struct Watched<T> {
    inner: T,
    place: Place,
    /// How much of HTTP/2's beginning has arrived where that isn't spoken; `None`: nobody looks for it, or not any more.
    preface: Option<usize>,
    ended: Ended,
}

impl<T> Watched<T> {
    /// Without HTTP/2 a connection ends that begins as if it were spoken, whatever the handshake said.
    pub fn new(inner: T, place: Place, without_http2: bool) -> Self {
        let ended = Ended::of(place.conn().ended().clone());
        Watched {
            inner,
            place,
            preface: without_http2.then_some(0),
            ended,
        }
    }

    fn look_for_preface(&mut self, arrived: &[u8]) -> Result<()> {
        let Some(known) = self.preface else { return Ok(()) };
        let rest = &PREFACE[known..];
        let common = arrived.len().min(rest.len());
        self.preface = (arrived[..common] == rest[..common]).then_some(known + common);
        match self.preface {
            Some(all) if all == PREFACE.len() => Err(Error::new(ErrorKind::InvalidData, "HTTP/2 isn't spoken here")),
            _ => Ok(()),
        }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> Result<()> {
        match self.ended.poll(cx) {
            Poll::Ready(()) => Err(Error::new(ErrorKind::ConnectionAborted, "the connection was ended")),
            Poll::Pending => Ok(()),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let arrived = &buf.filled()[before..];
        if !arrived.is_empty() {
            self.place.conn().arrived();
            self.look_for_preface(arrived)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
