//! What a server's answer means, and whether to ask again.

use reqwest::StatusCode;
use std::time::Duration;

/// How often something is tried in all.
pub const TRIES: u32 = 4;
const FIRST: Duration = Duration::from_millis(200);

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No answer, or none to its end.
    Broken(String),
    Answered {
        status: StatusCode,
        code: String,
    },
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Done,
    /// There is no such object. A bucket that isn't there is an error.
    Missing,
    Again(Duration),
    Unreachable(String),
    Denied(String),
    Failed(String),
}

/// `tried`: how often it has been tried, this time too.
pub fn judge(outcome: &Outcome, tried: u32) -> Next {
    let again = |end: Next| match tried < TRIES {
        true => Next::Again(FIRST * 3u32.pow(tried.saturating_sub(1))),
        false => end,
    };
    let (status, code) = match outcome {
        Outcome::Broken(why) => return again(Next::Unreachable(format!("{why} ({tried} tries)"))),
        Outcome::Answered { status, code } => (*status, code.as_str()),
    };
    let told = || match code {
        "" => status.to_string(),
        code => format!("{status}, {code}"),
    };
    match status.as_u16() {
        200..=299 => Next::Done,
        404 if code != "NoSuchBucket" => Next::Missing,
        401 | 403 => Next::Denied(told()),
        // What S3 asks clients to do more slowly, or anew.
        400 if code == "RequestTimeout" => again(Next::Failed(told())),
        429 | 500..=599 => again(Next::Failed(format!("{} ({tried} tries)", told()))),
        _ => Next::Failed(told()),
    }
}

/// The code in an error's document.
pub fn code(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4096)]);
    let code = text
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map(|(code, _)| code.trim()).unwrap_or_default();
    code.chars().filter(char::is_ascii_alphanumeric).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_s3_says() {
        let answered = |status: u16, code: &str| Outcome::Answered {
            status: StatusCode::from_u16(status).unwrap(),
            code: code.into(),
        };
        let denied = |next| matches!(next, Next::Denied(_));
        let failed = |next| matches!(next, Next::Failed(_));
        assert_eq!(judge(&answered(204, ""), 1), Next::Done);
        assert_eq!(judge(&answered(404, "NoSuchKey"), 1), Next::Missing);
        assert_eq!(judge(&answered(404, ""), 1), Next::Missing, "HEAD has no body");
        assert!(failed(judge(&answered(404, "NoSuchBucket"), 1)));
        assert!(denied(judge(&answered(403, "SignatureDoesNotMatch"), 1)));
        assert!(failed(judge(&answered(301, "PermanentRedirect"), 1)), "another region");
        assert!(failed(judge(&answered(400, "EntityTooLarge"), 1)));
        for busy in [
            answered(503, "SlowDown"),
            answered(500, "InternalError"),
            answered(400, "RequestTimeout"),
        ] {
            assert_eq!(judge(&busy, 1), Next::Again(Duration::from_millis(200)));
            assert_eq!(judge(&busy, 3), Next::Again(Duration::from_millis(1800)));
            assert!(failed(judge(&busy, TRIES)), "it ends");
        }
        let broken = Outcome::Broken("connection refused".into());
        assert!(matches!(judge(&broken, 2), Next::Again(_)));
        assert!(matches!(judge(&broken, TRIES), Next::Unreachable(_)));
    }

    #[test]
    fn codes_are_found_and_nothing_else() {
        assert_eq!(
            code(b"<?xml?><Error><Code>NoSuchKey</Code><Message>x</Message>"),
            "NoSuchKey"
        );
        assert_eq!(code(b"<Code>a\x1b[31m<b></Code>"), "a31mb");
        assert_eq!(code(b"busy"), "");
    }
}
