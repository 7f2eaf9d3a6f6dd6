//! The pages: plain modules, styles and one document, as they stand in `assets/`. What the program serves is what a reader reads.

use crate::answer::{self, Body};
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use sha2::{Digest, Sha256};
use std::path::PathBuf;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../assets/", $name)))),*]
    };
}

/// All of them: nothing else is served.
const FILES: &[(&str, &[u8])] = files![
    "app.js",
    "css/base.css",
    "css/layout.css",
    "css/object.css",
    "css/table.css",
    "css/tools.css",
    "icon.svg",
    "index.html",
    "lib/api.js",
    "lib/diff.js",
    "lib/discovery.js",
    "lib/dom.js",
    "lib/format.js",
    "lib/keys.js",
    "lib/metrics.js",
    "lib/plot.js",
    "lib/reflector.js",
    "lib/router.js",
    "lib/stream.js",
    "lib/terminal.js",
    "lib/yaml.js",
    "parts/dialog.js",
    "parts/grid.js",
    "parts/help.js",
    "parts/jump.js",
    "parts/shell.js",
    "views/edit.js",
    "views/events.js",
    "views/exec.js",
    "views/kind.js",
    "views/logs.js",
    "views/object.js",
    "views/overview.js",
    "views/rollout.js",
    "views/summary.js",
    "views/topology.js",
    "views/usage.js",
    "views/why.js",
];

pub struct Assets {
    /// Read these instead, by the same names.
    directory: Option<PathBuf>,
    tags: Vec<String>,
}

impl Assets {
    pub fn new(directory: Option<PathBuf>) -> Assets {
        let tag = |bytes: &[u8]| format!("\"{}\"", hex::encode(&Sha256::digest(bytes)[..16]));
        let tags = FILES.iter().map(|(_, bytes)| tag(bytes)).collect();
        Assets { directory, tags }
    }

    pub async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        let name = match path {
            "/" => "index.html",
            // Asked for beside the page that sets the cookie.
            "/favicon.ico" => "icon.svg",
            path => path.trim_start_matches('/'),
        };
        let Some(at) = FILES.iter().position(|(file, _)| *file == name) else {
            return answer::failure(StatusCode::NOT_FOUND, "NotFound", "the console has no such page");
        };
        if *method != Method::GET {
            return answer::failure(StatusCode::METHOD_NOT_ALLOWED, "Refused", "a page can only be read");
        }
        if let Some(directory) = &self.directory {
            return match tokio::fs::read(directory.join(name)).await {
                Ok(bytes) => answer::with_type(StatusCode::OK, kind(name), bytes),
                Err(error) => answer::failure(StatusCode::NOT_FOUND, "NotFound", &error.to_string()),
            };
        }
        let tag = &self.tags[at];
        let known = headers.get(IF_NONE_MATCH).is_some_and(|given| given == tag.as_str());
        let mut answer = match known {
            true => answer::with_type(StatusCode::NOT_MODIFIED, kind(name), ""),
            false => answer::with_type(StatusCode::OK, kind(name), FILES[at].1),
        };
        let headers = answer.headers_mut();
        // Another version of the program has other pages at the same address.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Ok(tag) = HeaderValue::from_str(tag) {
            headers.insert(ETAG, tag);
        }
        answer
    }
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn below(directory: &Path, root: &Path, into: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => below(&path, root, into),
                false => {
                    into.insert(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
    }

    #[test]
    fn every_file_is_served_and_small() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
        let mut there = BTreeSet::new();
        below(&root, &root, &mut there);
        let served: BTreeSet<String> = FILES.iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(there, served);
        for (name, bytes) in FILES {
            let lines = bytes.iter().filter(|b| **b == b'\n').count();
            assert!(lines <= 400, "{name} has {lines} lines: split it by purpose");
        }
        let all: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(all < 400 << 10, "{all} bytes of pages");
    }

    /// Whatever an object says is text. These are the ways by which text would become a page or a program.
    #[test]
    fn nothing_comes_from_elsewhere_and_no_text_becomes_a_page() {
        let forbidden = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
            "createContextualFragment",
            "srcdoc",
            "javascript:",
            "setHTMLUnsafe",
            "localStorage.setItem('token",
            "https://",
            "//cdn",
        ];
        for (name, bytes) in FILES {
            let text = std::str::from_utf8(bytes).unwrap();
            for word in forbidden {
                assert!(!text.contains(word), "{name} has {word}");
            }
            let links = text.matches("http://").count();
            let names = text.matches("http://www.w3.org/").count();
            assert_eq!(links, names, "{name}: only XML's names");
            if name.ends_with(".html") {
                assert!(
                    !text.contains(" style=") && !text.contains(" on"),
                    "{name}: nothing within the page"
                );
                assert!(!text.contains("<script>") && !text.contains("<style"), "{name}");
            }
        }
    }

    /// Modules import what there is.
    #[test]
    fn imports_lead_somewhere() {
        for (name, bytes) in FILES.iter().filter(|(name, _)| name.ends_with(".js")) {
            let text = std::str::from_utf8(bytes).unwrap();
            for line in text
                .lines()
                .filter(|l| l.starts_with("import ") || l.contains("} from '"))
            {
                let from = line.split('\'').nth(1).unwrap_or_default();
                let mut path: Vec<&str> = name.split('/').collect();
                path.pop();
                for part in from.split('/') {
                    match part {
                        "." => {}
                        ".." => drop(path.pop()),
                        part => path.push(part),
                    }
                }
                let path = path.join("/");
                assert!(FILES.iter().any(|(n, _)| *n == path), "{name} imports {from}");
            }
        }
    }

    #[tokio::test]
    async fn a_page_that_is_known_is_not_sent_again() {
        let assets = Assets::new(None);
        let got = assets.answer(&Method::GET, "/", &HeaderMap::new()).await;
        assert_eq!(got.status(), StatusCode::OK);
        let mut known = HeaderMap::new();
        known.insert(IF_NONE_MATCH, got.headers()[ETAG].clone());
        let again = assets.answer(&Method::GET, "/", &known).await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        for path in ["/../Cargo.toml", "/index.html/", "//index.html/..", "/x.js"] {
            let got = assets.answer(&Method::GET, path, &HeaderMap::new()).await;
            assert_eq!(got.status(), StatusCode::NOT_FOUND, "{path}");
        }
        let got = assets.answer(&Method::POST, "/", &HeaderMap::new()).await;
        assert_eq!(got.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
