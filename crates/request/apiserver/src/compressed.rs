//! Long answers to `get` and `list` are compressed for who takes gzip, as upstream: from 128 KiB on, and quickly rather than well. So are watches
//! that begin with what is there, which is most of what they ever send: each piece by itself, so that nothing waits for what comes later.
//! Not so for programs of this machine, which would only pay for it: between them and the server there is no line to be spared.
//!
//! How long an answer is shows when so much of it is there; what is shorter goes as it is. The rest is compressed a piece at a
//! time, when the connection has room for it: nothing is held but what the compressor keeps.

use crate::request::{Body, BodyError, RequestContext, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use std::collections::VecDeque;
use std::io::Write;
use std::net::IpAddr;

const LEAST: usize = 128 << 10;
/// So much is compressed at a time.
const PIECE: usize = 64 << 10;

/// What of an answer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Nothing,
    /// All of it, if it is long.
    Whole,
    /// Each piece.
    Pieces,
}

/// What a client takes that is on another machine than this one's address. Logs and proxies are others' answers.
pub fn wanted(method: &Method, context: &RequestContext, headers: &HeaderMap, own: IpAddr) -> Wanted {
    let info = &context.info;
    let is_object = matches!(info.subresource.as_str(), "" | "status" | "scale");
    let is_far = !context.remote.is_some_and(|from| is_here(from.ip(), own));
    if method != Method::GET || !is_object || !is_far || !takes_gzip(headers) {
        return Wanted::Nothing;
    }
    let begins_with_what_is_there = info.query.flag("sendInitialEvents");
    match info.verb.as_str() {
        "get" | "list" => Wanted::Whole,
        // What goes by a WebSocket is messages.
        "watch" if begins_with_what_is_there && !headers.contains_key(header::SEC_WEBSOCKET_KEY) => Wanted::Pieces,
        _ => Wanted::Nothing,
    }
}

/// The answer, with as much compressed as is wanted.
pub async fn packed(given: Response, wanted: Wanted) -> Response {
    match wanted {
        Wanted::Nothing => given,
        Wanted::Whole => answer(given).await,
        Wanted::Pieces => pieces(given),
    }
}

/// A stream of which each piece is a whole gzip member: whoever reads one after the other has all that was sent so far.
fn pieces(answer: Response) -> Response {
    if !is_plain(&answer) {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    say(&mut head.headers);
    let begun = Pieces {
        begun: VecDeque::new(),
        body,
        is_over: false,
    };
    let body = Body::from_stream(stream::try_unfold(begun, |mut pieces| async move {
        let Some(piece) = pieces.next().await? else {
            return Ok(None);
        };
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(&piece).map_err(BodyError::of)?;
        // Flushed before its end: readers that look for the next member at the end of one, as Go's does, would keep the piece until then.
        packer.flush().map_err(BodyError::of)?;
        let packed = packer.finish().map_err(BodyError::of)?;
        Ok::<_, BodyError>(Some((Bytes::from(packed), pieces)))
    }));
    Response::from_parts(head, body)
}

fn is_plain(answer: &Response) -> bool {
    answer.status() == StatusCode::OK && !answer.headers().contains_key(header::CONTENT_ENCODING)
}

fn say(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn is_here(from: IpAddr, own: IpAddr) -> bool {
    let from = from.to_canonical();
    from.is_loopback() || from == own
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let all = headers.get_all(header::ACCEPT_ENCODING).iter();
    let mut offers = all.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    offers.any(|offer| {
        let mut parts = offer.split(';').map(str::trim);
        let is_gzip = parts.next() == Some("gzip");
        let is_refused = |part: &str| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        is_gzip && !parts.any(is_refused)
    })
}

/// The answer, compressed if it is long.
async fn answer(answer: Response) -> Response {
    let is_short = answer
        .body()
        .size_hint()
        .upper()
        .is_some_and(|most| most <= LEAST as u64);
    if !is_plain(&answer) || is_short {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let mut pieces = Pieces {
        begun: VecDeque::new(),
        body,
        is_over: false,
    };
    let is_long = pieces.begin().await;
    let body = match is_long {
        false => Body::from_stream(stream::try_unfold(pieces, |mut pieces| async move {
            Ok::<_, BodyError>(pieces.next().await?.map(|piece| (piece, pieces)))
        })),
        true => {
            say(&mut head.headers);
            Body::from_stream(stream::try_unfold(Some(Packed::new(pieces)), |packed| async move {
                match packed {
                    Some(packed) => packed.next().await.map(Some),
                    None => Ok(None),
                }
            }))
        }
    };
    Response::from_parts(head, body)
}

/// A body of which the first pieces have been taken.
struct Pieces {
    begun: VecDeque<Result<Bytes, BodyError>>,
    body: Body,
    is_over: bool,
}

impl Pieces {
    /// Takes as many as tell whether it is long.
    async fn begin(&mut self) -> bool {
        let mut length = 0;
        while length <= LEAST {
            match self.read().await {
                Some(Ok(piece)) => {
                    length += piece.len();
                    self.begun.push_back(Ok(piece));
                }
                Some(Err(broken)) => {
                    self.begun.push_back(Err(broken));
                    return false;
                }
                None => return false,
            }
        }
        true
    }

    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        match self.begun.pop_front() {
            Some(piece) => piece.map(Some),
            None => self.read().await.transpose(),
        }
    }

    async fn read(&mut self) -> Option<Result<Bytes, BodyError>> {
        while !self.is_over {
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_) => continue,
                },
                Some(Err(broken)) => {
                    self.is_over = true;
                    return Some(Err(broken));
                }
                None => self.is_over = true,
            }
        }
        None
    }
}

struct Packed {
    pieces: Pieces,
    /// What of the last piece is still to be compressed.
    rest: Bytes,
    packer: GzEncoder<Vec<u8>>,
}

type Next = (Bytes, Option<Packed>);

impl Packed {
    fn new(pieces: Pieces) -> Packed {
        Packed {
            pieces,
            rest: Bytes::new(),
            packer: GzEncoder::new(Vec::new(), Compression::fast()),
        }
    }

    /// The next bytes, and what is left then.
    async fn next(mut self) -> Result<Next, BodyError> {
        loop {
            if self.rest.is_empty() {
                match self.pieces.next().await? {
                    Some(piece) => self.rest = piece,
                    None => return Ok((self.packer.finish().map_err(BodyError::of)?.into(), None)),
                }
            }
            let piece = self.rest.split_to(self.rest.len().min(PIECE));
            self.packer.write_all(&piece).map_err(BodyError::of)?;
            if self.packer.get_ref().len() >= PIECE {
                let packed = std::mem::take(self.packer.get_mut());
                return Ok((packed.into(), Some(self)));
            }
            // A long answer to somebody else waits, too.
            tokio::task::consume_budget().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    async fn sent(pieces: &[usize]) -> (bool, Vec<u8>, usize) {
        let piece = |n: &usize| Ok::<_, BodyError>(Bytes::from(vec![b'a'; *n]));
        let body = Body::from_stream(stream::iter(pieces.iter().map(piece).collect::<Vec<_>>()));
        let answered = answer(Response::new(body)).await;
        let is_packed = answered.headers().contains_key(header::CONTENT_ENCODING);
        let sent = answered.into_body().collect(64 << 20).await.unwrap();
        let length = sent.len();
        let mut plain = sent.to_vec();
        if is_packed {
            plain.clear();
            GzDecoder::new(&sent[..]).read_to_end(&mut plain).unwrap();
        }
        (is_packed, plain, length)
    }

    #[tokio::test]
    async fn long_answers_are_compressed_and_short_ones_are_not() {
        assert_eq!(sent(&[100, LEAST - 100]).await, (false, vec![b'a'; LEAST], LEAST));
        for pieces in [&[LEAST + 1][..], &[LEAST, 1], &[70_000; 30]] {
            let all: usize = pieces.iter().sum();
            let (is_packed, plain, length) = sent(pieces).await;
            assert!(
                is_packed && plain == vec![b'a'; all] && length < all / 50,
                "{pieces:?}: {length}"
            );
        }
    }

    #[tokio::test]
    async fn each_piece_of_a_stream_can_be_read_when_it_has_come() {
        let events = ["{\"a\":1}\n", "{\"b\":2}\n"].map(|e| Ok::<_, BodyError>(Bytes::from_static(e.as_bytes())));
        let answered = pieces(Response::new(Body::from_stream(stream::iter(events))));
        assert_eq!(answered.headers()[header::CONTENT_ENCODING], "gzip");
        let (mut body, mut read) = (answered.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let mut text = String::new();
            let member = frame.unwrap().into_data().unwrap();
            GzDecoder::new(&member[..]).read_to_string(&mut text).unwrap();
            read.push(text);
            let flushed = member.windows(4).position(|four| four == [0, 0, 0xff, 0xff]);
            assert!(
                flushed.is_some_and(|at| at + 4 + 8 < member.len()),
                "before its end: {member:?}"
            );
        }
        assert_eq!(read, ["{\"a\":1}\n", "{\"b\":2}\n"]);
    }

    #[test]
    fn watches_are_compressed_that_begin_with_what_is_there() {
        let of = |path: &str, headers: &[(&'static str, &'static str)]| {
            let info = crate::request::RequestInfo::parse(&Method::GET, &path.parse().unwrap()).unwrap();
            let context = RequestContext::new(info, crate::request::UserInfo::default());
            let headers = headers.iter().map(|(k, v)| {
                let name = header::HeaderName::from_static(k);
                (name, HeaderValue::from_static(v))
            });
            wanted(&Method::GET, &context, &headers.collect(), "192.0.2.1".parse().unwrap())
        };
        let gzip = ("accept-encoding", "gzip");
        let list = "/api/v1/pods?watch=1&sendInitialEvents=true";
        assert_eq!(of(list, &[gzip]), Wanted::Pieces);
        assert_eq!(of(list, &[]), Wanted::Nothing);
        assert_eq!(of(list, &[gzip, ("sec-websocket-key", "x")]), Wanted::Nothing);
        assert_eq!(of("/api/v1/pods?watch=1", &[gzip]), Wanted::Nothing);
        assert_eq!(
            of("/api/v1/pods?watch=1&sendInitialEvents=false", &[gzip]),
            Wanted::Nothing
        );
        assert_eq!(of("/api/v1/pods", &[gzip]), Wanted::Whole);
        assert_eq!(of("/api/v1/namespaces/a/pods/p/log", &[gzip]), Wanted::Nothing);
    }

    #[test]
    fn programs_of_this_machine_get_it_plain() {
        let here = |from: &str| is_here(from.parse().unwrap(), "192.0.2.1".parse().unwrap());
        assert!(here("127.0.0.1") && here("::1") && here("192.0.2.1") && here("::ffff:192.0.2.1"));
        assert!(!here("192.0.2.2") && !here("10.42.0.7"));
    }

    #[test]
    fn only_who_takes_gzip_gets_it() {
        let takes = |text: &str| {
            takes_gzip(&HeaderMap::from_iter([(
                header::ACCEPT_ENCODING,
                text.parse().unwrap(),
            )]))
        };
        assert!(takes("gzip") && takes("deflate, gzip;q=0.5"));
        assert!(!takes("identity") && !takes("gzip;q=0") && !takes("x-gzip"));
    }
}
