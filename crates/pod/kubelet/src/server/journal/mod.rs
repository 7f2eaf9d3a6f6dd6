//! Logs of the machine (`/logs/`): files beside those of pods by their path, and, where settings allow it, what services have
//! logged, by their name (`?query=`): from the journal, or from files that are called as they are.
//!
//! Nothing outside such a directory is opened, whatever a link in it says: pods may write there. Few queries are answered at the same
//! time, each for half a minute and up to a bound of bytes; a file goes out as it is, piece by piece.

mod query;
mod read;

use super::routes::Query;
use super::{Body, Reply, text};
use crate::kubelet::Kubelet;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use query::Asked;
use read::{LONGEST, Logs, Out, PIECE};
use std::fs::{File, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::io::ReaderStream;

/// Where services of a machine log, if they don't tell the journal.
const MACHINE: &str = "/var/log";
/// Queries at the same time: each runs programs.
const PLACES: usize = 8;
static PLACE: Semaphore = Semaphore::const_new(PLACES);
const SAID: Duration = Duration::from_secs(1);
/// Chunks on their way to a slow client.
const QUEUE: usize = 8;

pub(super) async fn serve(kl: &Arc<Kubelet>, path: &[&str], query: &Query) -> Reply {
    let own = || kl.layout.logs.parent().unwrap_or(Path::new(MACHINE)).to_path_buf();
    let path = path.join("/");
    if !kl.cfg.system_log_query {
        return file(kl, own(), path).await;
    }
    let asked = match Asked::read(query) {
        Ok(Some(asked)) => asked,
        Ok(None) => return file(kl, own(), path).await,
        Err(faults) => return text(StatusCode::BAD_REQUEST, format!("{faults}\n")),
    };
    if !path.is_empty() {
        return text(StatusCode::NOT_ACCEPTABLE, "path not allowed in query mode\n");
    }
    if let Err(faults) = asked.judge() {
        return text(StatusCode::NOT_ACCEPTABLE, format!("{faults}\n"));
    }
    let base = PathBuf::from(MACHINE);
    match asked.files.first() {
        Some(name) => match open(kl, base, name.trim_matches('/').to_owned()).await {
            Err(e) => text(StatusCode::NOT_ACCEPTABLE, format!("{}\n", asked.no_file(&e))),
            opened => opened_as(opened),
        },
        None => services(kl, base, asked),
    }
}

fn services(kl: &Arc<Kubelet>, base: PathBuf, asked: Asked) -> Reply {
    let Ok(place) = PLACE.try_acquire() else {
        let why = format!("{PLACES} queries are being answered: come again in a while\n");
        return text(StatusCode::TOO_MANY_REQUESTS, why);
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (host, stop) = (kl.host.clone(), kl.stop.clone());
    tokio::spawn(async move {
        let _place = place;
        let mut out = Out::new(sender);
        let logs = Logs {
            program: host.journal(),
            base,
            host,
        };
        let late = "\ncontext error: context deadline exceeded\n";
        let mut copied = out.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            // Who has read nothing for so long may not hear it.
            () = tokio::time::sleep(LONGEST) => drop(tokio::time::timeout(SAID, out.say(late)).await),
            // A client that has gone needs no more.
            _ = logs.copy(&asked, &mut copied) => {}
        }
    });
    let pieces = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let frames = pieces.map(|bytes: Bytes| Ok::<_, std::io::Error>(Frame::data(bytes)));
    body(StreamBody::new(frames).boxed_unsync(), "text/plain;charset=UTF-8")
}

fn body(body: Body, kind: &'static str) -> Reply {
    let mut reply = Response::new(body);
    let kind = HeaderValue::from_static(kind);
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    reply
}

/// A file as it is now, or the names in a directory.
async fn file(kl: &Arc<Kubelet>, base: PathBuf, path: String) -> Reply {
    opened_as(open(kl, base, path).await)
}

/// A file with what is known of it, and the names in it if it is a directory.
type Opened = io::Result<(File, Metadata, Option<Vec<String>>)>;

async fn open(kl: &Arc<Kubelet>, base: PathBuf, path: String) -> Opened {
    if !Path::new(&path).components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    let host = kl.host.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let file = host.open_inside(&base, &path)?;
        let facts = file.metadata()?;
        let names = facts.is_dir().then(|| host.list_inside(&base, &path)).transpose()?;
        Ok((file, facts, names))
    });
    opened.await.map_err(io::Error::other).flatten()
}

fn opened_as(opened: Opened) -> Reply {
    match opened {
        Ok((_, _, Some(names))) => {
            let links: String = names
                .iter()
                .map(|n| format!("<a href=\"{0}\">{0}</a>\n", escaped(n)))
                .collect();
            let page = format!("<pre>\n{links}</pre>\n");
            super::reply(StatusCode::OK, "text/html; charset=utf-8", page.into())
        }
        Ok((file, facts, None)) if facts.is_file() => {
            let length = facts.len();
            // What is written meanwhile isn't part of it.
            let file = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), length);
            let pieces = ReaderStream::with_capacity(file, PIECE).map(|piece| piece.map(Frame::data));
            let mut reply = body(StreamBody::new(pieces).boxed_unsync(), "text/plain; charset=utf-8");
            reply.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            reply
        }
        Ok(_) => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        Err(e) => match e.kind() {
            io::ErrorKind::InvalidFilename => text(StatusCode::BAD_REQUEST, "invalid path"),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                text(StatusCode::NOT_FOUND, "404 page not found\n")
            }
            _ => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
        },
    }
}

/// A name of a file, which pods may have chosen, as text of a page.
fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
