//! `/statusz` and `/flagz` of a component: text for people, and the kinds `Statusz` and `Flagz` of `config.k8s.io` for who asks for them by
//! name. Who may see them is the listener's matter, and the text promises no form: what is between a name and its value differs from one
//! answer to the next (of flags from one process to the next), so that nobody reads it by a program.
//!
//! A listener gives what was asked, and sends the answer with what it sends with every one.

mod forms;
mod told;

pub use told::Flags;

use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use keelson_api::accept;
use std::sync::{Arc, OnceLock};

pub const STATUSZ: &str = "/statusz";
pub const FLAGZ: &str = "/flagz";

/// What a component tells of itself.
#[derive(Clone, Debug)]
pub struct Pages {
    component: &'static str,
    /// `1.37.2`.
    version: &'static str,
    flags: Option<Arc<Flags>>,
    /// What else the listener has, the first part of each path.
    paths: Vec<String>,
    flags_text: Arc<OnceLock<String>>,
}

/// What of a request counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    pub path: &'a str,
    pub accept: Option<&'a str>,
    pub agent: &'a str,
    /// The parameter `pretty`.
    pub pretty: Option<&'a str>,
}

impl<'a> Asked<'a> {
    pub fn of(uri: &'a Uri, headers: &'a HeaderMap) -> Asked<'a> {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let mut pairs = uri.query().unwrap_or_default().split('&');
        Asked {
            path: uri.path(),
            accept: header(header::ACCEPT),
            agent: header(header::USER_AGENT).unwrap_or_default(),
            pretty: pairs.find_map(|pair| pair.strip_prefix("pretty=")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub warning: Option<String>,
    pub body: String,
}

impl From<Answer> for Response<String> {
    fn from(answer: Answer) -> Response<String> {
        let mut response = Response::new(answer.body);
        *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let told = [
            (header::CONTENT_TYPE, Some(answer.content_type)),
            (header::WARNING, answer.warning),
        ];
        for (name, text) in told {
            // Of words of this crate only, so that each is a header.
            if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

impl Pages {
    /// Pages of a component that listens on these paths and was told these flags; without them there is no `/flagz`.
    pub fn new<'a>(
        component: &'static str,
        version: &'static str,
        paths: impl IntoIterator<Item = &'a str>,
        flags: Option<Arc<Flags>>,
    ) -> Pages {
        let more = flags.is_some().then_some(FLAGZ);
        Pages {
            component,
            version: version.trim_start_matches('v'),
            flags,
            paths: told::folders(paths.into_iter().chain(more)),
            flags_text: Arc::default(),
        }
    }

    /// The paths at which this answers.
    pub fn own_paths(&self) -> impl Iterator<Item = &'static str> {
        [self.flags.is_some().then_some(FLAGZ), Some(STATUSZ)]
            .into_iter()
            .flatten()
    }

    /// `None` for other paths.
    pub fn answer(&self, asked: &Asked<'_>) -> Option<Answer> {
        let page = match asked.path {
            STATUSZ => forms::Page::Statusz,
            FLAGZ if self.flags.is_some() => forms::Page::Flagz,
            _ => return None,
        };
        let form = match asked.accept.map(str::trim).filter(|accept| !accept.is_empty()) {
            None => Ok(forms::Form::Text),
            Some(header) => forms::choose(page, header),
        };
        let pretty = |said: bool| said || accept::is_pretty(asked.pretty, asked.agent);
        Some(match form {
            Ok(forms::Form::Text) => Answer {
                status: 200,
                content_type: "text/plain; charset=utf-8".into(),
                warning: None,
                body: self.text(page),
            },
            Ok(forms::Form::Kind(kind)) => {
                let body = match page {
                    forms::Page::Statusz => kind.write(&self.statusz(kind.version), pretty(kind.pretty)),
                    forms::Page::Flagz => kind.write(&self.flagz(kind.version), pretty(kind.pretty)),
                };
                Answer {
                    status: 200,
                    content_type: kind.content_type(page),
                    warning: kind.warning(page),
                    body,
                }
            }
            Err(refused) => refused.answer(pretty(refused.pretty)),
        })
    }

    fn text(&self, page: forms::Page) -> String {
        match page {
            forms::Page::Statusz => told::statusz_text(&self.statusz(""), told::delimiter()),
            forms::Page::Flagz => self
                .flags_text
                .get_or_init(|| told::flagz_text(self.component, self.flags.as_deref(), told::delimiter()))
                .clone(),
        }
    }

    fn statusz(&self, version: &'static str) -> told::Statusz<'_> {
        let mut paths = self.paths.clone();
        paths.extend(self.paths.iter().all(|p| p != STATUSZ).then(|| STATUSZ.to_string()));
        paths.sort();
        told::Statusz::new(self.component, version, self.version, paths)
    }

    fn flagz(&self, version: &'static str) -> told::Flagz<'_> {
        told::Flagz::new(self.component, version, self.flags.as_deref())
    }
}

#[cfg(test)]
mod tests;
