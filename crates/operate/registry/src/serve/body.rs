//! Bodies as they come: piece by piece, no piece later than [`SILENCE`], and in all no slower than [`SLOWEST`].

use crate::error::{Code, Result, refuse, refused};
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::time::Duration;
use tokio::time::Instant;

/// For how long nothing may come.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Bytes a second, in the mean, once [`SILENCE`] has passed.
pub const SLOWEST: u64 = 1024;

pub struct Coming {
    body: Incoming,
    began: Instant,
    pub came: u64,
}

impl Coming {
    pub fn new(body: Incoming) -> Coming {
        Coming {
            body,
            began: Instant::now(),
            came: 0,
        }
    }

    /// The next piece; None: that was all.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
            let frame = frame.map_err(|_| refused(Code::TooSlow, "nothing came for a minute"))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| refused(Code::BlobUploadInvalid, "the body ended before its end"))?;
            let Ok(piece) = frame.into_data() else { continue };
            self.came += piece.len() as u64;
            if is_too_slow(self.came, self.began.elapsed()) {
                return refuse(
                    Code::TooSlow,
                    format!("the body comes slower than {SLOWEST} bytes a second"),
                );
            }
            return Ok(Some(piece));
        }
    }

    /// All of a short body, within [`SILENCE`] in all: it has a place that others wait for.
    pub async fn short(self, most: usize, what: &str) -> Result<Vec<u8>> {
        let all = tokio::time::timeout(SILENCE, self.gathered(most, what)).await;
        all.map_err(|_| refused(Code::TooSlow, format!("{what} has to come within a minute")))?
    }

    async fn gathered(mut self, most: usize, what: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.next().await? {
            if bytes.len() + piece.len() > most {
                return refuse(Code::TooLarge, format!("{what} may have {most} bytes"));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

fn is_too_slow(came: u64, after: Duration) -> bool {
    let counted = after.saturating_sub(SILENCE).as_secs();
    came < counted.saturating_mul(SLOWEST)
}

/// How long a body says that it is.
pub fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_a_byte_a_minute_is_sent_away() {
        let after = Duration::from_secs;
        assert!(!is_too_slow(1, after(60)));
        assert!(is_too_slow(2, after(120)));
        assert!(!is_too_slow(61 * SLOWEST, after(120)));
        assert!(!is_too_slow(1 << 30, after(3600)));
    }
}
