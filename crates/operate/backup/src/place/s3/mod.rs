//! A bucket. Requests are signed by `rusty-s3`, sent by reqwest, judged by [`answer`]; each is tried a few times, and has a time by which it
//! ends. Large files go up in parts, which are given up together when one can't be sent.
//!
//! A signed address is as good as a password for as long as it counts: no error and no log has one.

mod answer;
mod settings;
mod upload;

pub use settings::Settings;

use super::{Object, Place, Result, Trouble, directory, named};
use answer::{Next, Outcome, judge};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::{Certificate, Client, Method, Response, StatusCode, Url};
use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

pub const SCHEME: &str = "s3://";
const CONNECT: Duration = Duration::from_secs(10);
/// After so long without a byte an answer counts as broken.
const SILENCE: Duration = Duration::from_secs(30);
/// The slowest line that is waited for, in bytes a second, after [`SILENCE`].
const SLOWEST: u64 = 64 << 10;
/// How long a signed address counts: an answer has to begin before.
const COUNTS: Duration = Duration::from_secs(600);
/// A page of a list has 1000 names.
const PAGE: u64 = 8 << 20;
/// What is listed at most: repositories are bounded by it.
const LISTED: usize = 4_000_000;
/// A page that has no names counts as so many: who sends nothing else isn't listened to for ever.
const EMPTY: usize = 1000;
/// An error's document.
const SAID: u64 = 16 << 10;

pub struct S3 {
    client: Client,
    bucket: Bucket,
    credentials: Credentials,
    /// With a slash at its end, or empty.
    prefix: String,
    told: String,
}

/// The body of an answer that was taken for good.
enum Answer {
    Whole(Bytes),
    Missing,
}

/// `s3://BUCKET/PREFIX`
fn parse(text: &str) -> Result<(&str, String)> {
    let wrong = |why: &str| Trouble::Wrong(format!("{text}: {why}; buckets are written s3://BUCKET/PREFIX"));
    let rest = text.strip_prefix(SCHEME).unwrap_or_default().trim_end_matches('/');
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(plain) || bucket.contains("..") {
        return Err(wrong("that is no name of a bucket"));
    }
    match prefix {
        "" => Ok((bucket, String::new())),
        prefix if super::is_name(prefix) => Ok((bucket, format!("{prefix}/"))),
        _ => Err(wrong("a prefix is made of letters, digits, - _ . and single slashes")),
    }
}

impl S3 {
    pub fn open(text: &str, settings: &Settings) -> Result<S3> {
        let (name, prefix) = parse(text)?;
        let endpoint = settings.endpoint();
        let wrong = |why: String| Trouble::Wrong(format!("--s3-endpoint {endpoint}: {why}"));
        let url = Url::parse(&endpoint).map_err(|e| wrong(e.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(wrong(
                "an endpoint is https://HOST[:PORT]; credentials stand elsewhere".into(),
            ));
        }
        let style = match settings.is_path_style() {
            true => UrlStyle::Path,
            false => UrlStyle::VirtualHost,
        };
        let bucket = Bucket::new(url, style, name.to_string(), settings.region()).map_err(|e| wrong(e.to_string()))?;
        // The HTTP client takes the process's provider; a program that has chosen one keeps it.
        let _already_chosen = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder()
            .user_agent(concat!("keelson/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            // A signature counts for one host.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = settings.authorities()? {
            let given = Certificate::from_pem_bundle(&pem).map_err(|e| Trouble::Wrong(format!("--s3-ca-file: {e}")))?;
            client = client.tls_certs_merge(given);
        }
        Ok(S3 {
            client: client.build().map_err(|e| wrong(why(&e)))?,
            bucket,
            credentials: settings.credentials()?,
            told: format!("{SCHEME}{name}/{}", prefix.trim_end_matches('/')),
            prefix,
        })
    }

    fn key(&self, name: &str) -> Result<String> {
        named(name)?;
        Ok(format!("{}{name}", self.prefix))
    }

    fn failed(&self, what: &str, why: &str) -> Trouble {
        Trouble::Failed {
            place: self.told.clone(),
            why: format!("{what}: {why}"),
        }
    }

    /// `sign` is asked for an address at each try; `most`: of the answer's body.
    async fn ask(
        &self,
        what: &str,
        method: Method,
        sign: impl Fn() -> Url + Send,
        body: Option<Bytes>,
        most: u64,
    ) -> Result<Answer> {
        let mut tried = 0;
        loop {
            tried += 1;
            let sent = body.clone().unwrap_or_default();
            let within = SILENCE + Duration::from_secs(sent.len().max(most as usize) as u64 / SLOWEST);
            let mut request = self.client.request(method.clone(), sign()).timeout(within);
            if body.is_some() {
                request = request.body(sent);
            }
            let (outcome, got) = match request.send().await {
                Err(error) => (Outcome::Broken(why(&error)), Bytes::new()),
                Ok(response) => self.read(what, response, most).await?,
            };
            // Some errors are sent with 200, as when parts are put together. What was kept is no answer, whatever it looks like.
            let outcome = match outcome {
                Outcome::Answered { status, code }
                    if method == Method::POST && status.is_success() && is_error(&got) =>
                {
                    let status = StatusCode::INTERNAL_SERVER_ERROR;
                    Outcome::Answered { status, code }
                }
                other => other,
            };
            match self.next(what, &outcome, tried).await? {
                Next::Done => return Ok(Answer::Whole(got)),
                Next::Missing => return Ok(Answer::Missing),
                _ => {}
            }
        }
    }

    /// An answer with all of its body; an error's document says its code.
    async fn read(&self, what: &str, response: Response, most: u64) -> Result<(Outcome, Bytes)> {
        let status = response.status();
        let most = if status.is_success() { most } else { SAID };
        let said = whole(response, most).await;
        let body = match said {
            Ok(Some(body)) => body,
            Ok(None) if status.is_success() => return Err(self.failed(what, &format!("more than {most} bytes"))),
            Ok(None) => Bytes::new(),
            Err(why) => return Ok((Outcome::Broken(why), Bytes::new())),
        };
        let code = answer::code(&body);
        Ok((Outcome::Answered { status, code }, body))
    }

    /// Waits, if it is to be tried again.
    async fn next(&self, what: &str, outcome: &Outcome, tried: u32) -> Result<Next> {
        let place = self.told.clone();
        match judge(outcome, tried) {
            Next::Again(wait) => {
                tracing::debug!(place, what, tried, ?outcome, "trying again");
                tokio::time::sleep(wait).await;
                Ok(Next::Again(wait))
            }
            Next::Unreachable(why) => Err(Trouble::Unreachable { place, why }),
            Next::Denied(why) => Err(Trouble::Denied { place, why }),
            Next::Failed(why) => Err(self.failed(what, &why)),
            next => Ok(next),
        }
    }

    /// A whole answer or an error: there is no case in which what was asked for may be missing.
    async fn done(
        &self,
        what: &str,
        method: Method,
        sign: impl Fn() -> Url + Send,
        body: Option<Bytes>,
    ) -> Result<Bytes> {
        match self.ask(what, method, sign, body, PAGE).await? {
            Answer::Whole(body) => Ok(body),
            Answer::Missing => Err(self.failed(what, "it isn't there")),
        }
    }

    fn signed(&self) -> Option<&Credentials> {
        Some(&self.credentials)
    }

    /// Into a file that is new at each try.
    async fn download(&self, name: &str, key: &str, to: &Path, most: u64) -> Result<bool> {
        let mut tried = 0;
        loop {
            tried += 1;
            let url = self.bucket.get_object(self.signed(), key).sign(COUNTS);
            let outcome = match self.client.get(url).send().await {
                Err(error) => Outcome::Broken(why(&error)),
                Ok(response) if response.status().is_success() => match self.save(name, response, to, most).await? {
                    None => return Ok(true),
                    Some(why) => Outcome::Broken(why),
                },
                Ok(response) => self.read(name, response, SAID).await?.0,
            };
            if self.next(name, &outcome, tried).await? == Next::Missing {
                return Ok(false);
            }
        }
    }

    /// Says why the answer broke, if it did; nothing is left then.
    async fn save(&self, name: &str, mut response: Response, to: &Path, most: u64) -> Result<Option<String>> {
        let failed = |e: std::io::Error| self.failed(name, &format!("{}: {e}", to.display()));
        let mut file = tokio::fs::File::from_std(directory::fresh(to).map_err(failed)?);
        let saved = async {
            let mut left = most;
            loop {
                match response.chunk().await {
                    Ok(None) => break,
                    Ok(Some(piece)) => {
                        left = directory::take(left, piece.len() as u64, most)?;
                        file.write_all(&piece).await?;
                    }
                    Err(error) => return Ok(Some(why(&error))),
                }
            }
            // Only this tells whether the last piece was written.
            file.flush().await?;
            file.sync_all().await?;
            Ok::<_, std::io::Error>(None)
        };
        let saved = saved.await;
        if !matches!(saved, Ok(None)) {
            tokio::fs::remove_file(to).await.map_err(failed)?;
        }
        saved.map_err(failed)
    }
}

#[async_trait]
impl Place for S3 {
    fn told(&self) -> &str {
        &self.told
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        let key = self.key(name)?;
        let sign = || self.bucket.put_object(self.signed(), &key).sign(COUNTS);
        self.done(name, Method::PUT, sign, Some(bytes)).await.map(drop)
    }

    async fn put_file(&self, name: &str, from: &Path) -> Result<()> {
        upload::file(self, name, from).await
    }

    async fn get(&self, name: &str, most: u64) -> Result<Option<Bytes>> {
        let key = self.key(name)?;
        let sign = || self.bucket.get_object(self.signed(), &key).sign(COUNTS);
        Ok(match self.ask(name, Method::GET, sign, None, most).await? {
            Answer::Whole(bytes) => Some(bytes),
            Answer::Missing => None,
        })
    }

    async fn get_file(&self, name: &str, to: &Path, most: u64) -> Result<bool> {
        let key = self.key(name)?;
        self.download(name, &key, to, most).await
    }

    async fn list(&self, below: &str) -> Result<Vec<Object>> {
        let prefix = format!("{}{below}", self.prefix);
        let (mut found, mut told) = (Vec::new(), 0usize);
        let mut token: Option<String> = None;
        loop {
            let sign = || {
                let mut page = self.bucket.list_objects_v2(self.signed());
                page.with_prefix(prefix.as_str());
                if let Some(token) = &token {
                    page.with_continuation_token(token.as_str());
                }
                page.sign(COUNTS)
            };
            let body = self.done("listing", Method::GET, sign, None).await?;
            let page = ListObjectsV2::parse_response(&body).map_err(|e| self.failed("listing", &e.to_string()))?;
            told += match page.contents.len() {
                0 => EMPTY,
                many => many,
            };
            for object in page.contents {
                // Names of ours have nothing that is written otherwise; others aren't ours.
                let key = object.key.replace("%2F", "/");
                if let Some(name) = key.strip_prefix(&self.prefix).filter(|name| super::is_name(name)) {
                    let (name, bytes) = (name.to_string(), object.size);
                    found.push(Object { name, bytes });
                }
            }
            if told > LISTED {
                return Err(self.failed("listing", &format!("more than {LISTED} objects")));
            }
            match page.next_continuation_token.filter(|next| token.as_ref() != Some(next)) {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let key = self.key(name)?;
        let sign = || self.bucket.delete_object(self.signed(), &key).sign(COUNTS);
        self.ask(name, Method::DELETE, sign, None, SAID).await.map(drop)
    }

    /// Uploads that were cut short have no name: they are for a rule of the bucket.
    async fn tidy(&self, _below: &str) -> Result<()> {
        Ok(())
    }
}

fn is_error(body: &[u8]) -> bool {
    const ERROR: &[u8] = b"<Error>";
    body.len() < SAID as usize && body.windows(ERROR.len()).any(|window| window == ERROR)
}

/// `None`: there is more.
async fn whole(mut response: Response, most: u64) -> Result<Option<Bytes>, String> {
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(|e| why(&e))? {
        if (body.len() + piece.len()) as u64 > most {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body.freeze()))
}

/// An error without the address that was asked, down to its cause.
fn why(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match std::ptr::addr_eq(cause, error) {
        // Only its own text has the address.
        true if error.is_timeout() => "it took too long".into(),
        true => "the request failed".into(),
        false => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_prefixes() {
        let parsed = |text| parse(text).ok().map(|(bucket, prefix)| format!("{bucket} {prefix}"));
        assert_eq!(parsed("s3://bucket").as_deref(), Some("bucket "));
        assert_eq!(parsed("s3://a.b-1/one/two/").as_deref(), Some("a.b-1 one/two/"));
        for wrong in [
            "s3://",
            "s3://ab",
            "s3://Bucket",
            "s3://a..b",
            "s3://bucket//a",
            "s3://bucket/../a",
            "s3://bucket/a b",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn endpoints_are_addresses_without_credentials() {
        let open = |endpoint: &str| {
            let settings = Settings {
                endpoint: Some(endpoint.into()),
                credentials_file: Some("/nowhere".into()),
                ..Settings::default()
            };
            S3::open("s3://bucket/a", &settings)
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default()
        };
        for wrong in ["nowhere", "ftp://a", "https://user:secret@a", "https://a/?b"] {
            let refused = open(wrong);
            assert!(refused.contains("--s3-endpoint"), "{wrong}: {refused}");
        }
        assert!(open("http://127.0.0.1:9000").contains("--s3-credentials-file"));
    }
}
