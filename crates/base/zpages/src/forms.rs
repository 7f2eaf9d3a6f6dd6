//! Which form of a page an `Accept` header gets: what JSON and YAML are of has to be named by kind, group and version, the text not.

use crate::Answer;
use keelson_api::accept::{self, Clause};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Statusz,
    Flagz,
}

impl Page {
    fn kind(self) -> &'static str {
        match self {
            Page::Statusz => "Statusz",
            Page::Flagz => "Flagz",
        }
    }
}

const GROUP: &str = "config.k8s.io";
/// The version that is on its way out, and the one to use.
const VERSIONS: [&str; 2] = ["v1alpha1", "v1beta1"];
/// In the order in which a clause with an asterisk looks at them.
const MEDIA: [Media; 3] = [Media::Json, Media::Yaml, Media::Text];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Media {
    Json,
    Yaml,
    Text,
}

impl Media {
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Media::Json => ("application", "json"),
            Media::Yaml => ("application", "yaml"),
            Media::Text => ("text", "plain"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Kind(Structured),
}

/// A page as an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structured {
    pub version: &'static str,
    /// The clause itself asks for a form that people read.
    pub pretty: bool,
    yaml: bool,
}

impl Structured {
    pub fn content_type(self, page: Page) -> String {
        let media = if self.yaml { "yaml" } else { "json" };
        format!("application/{media};g={GROUP};v={};as={}", self.version, page.kind())
    }

    pub fn warning(self, page: Page) -> Option<String> {
        let name = page.kind().to_lowercase();
        (self.version == VERSIONS[0]).then(|| {
            format!("299 - \"This version of the {name} endpoint is deprecated. Please use a newer version.\"")
        })
    }

    pub fn write(self, object: &impl Serialize, pretty: bool) -> String {
        write(object, self.yaml, pretty)
    }
}

/// Nothing of what is accepted is there. `yaml`: it is said in YAML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub pretty: bool,
    yaml: bool,
    /// The media type is served, for statuses: otherwise JSON is written for people.
    known: bool,
}

#[derive(Serialize)]
struct Status {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    metadata: Nothing,
    status: &'static str,
    message: &'static str,
    reason: &'static str,
    code: u16,
}

#[derive(Serialize)]
struct Nothing {}

const MESSAGE: &str = "only the following media types are accepted: application/json, application/yaml, text/plain";
/// The same with lines folded as Go's YAML folds them.
const YAML: &str = "apiVersion: v1\ncode: 406\nkind: Status\nmessage: 'only the following media types are accepted: application/json, \
                    application/yaml,\n  text/plain'\nmetadata: {}\nreason: NotAcceptable\nstatus: Failure\n";

impl Refused {
    pub fn answer(self, pretty: bool) -> Answer {
        if self.yaml {
            return Answer {
                status: 406,
                content_type: "application/yaml".into(),
                warning: None,
                body: YAML.into(),
            };
        }
        let status = Status {
            kind: "Status",
            api_version: "v1",
            metadata: Nothing {},
            status: "Failure",
            message: MESSAGE,
            reason: "NotAcceptable",
            code: 406,
        };
        Answer {
            status: 406,
            content_type: "application/json".into(),
            warning: None,
            body: write(&status, false, pretty || !self.known),
        }
    }
}

fn write(object: &impl Serialize, yaml: bool, pretty: bool) -> String {
    let written = match (yaml, pretty) {
        // By way of a value, whose keys are sorted.
        (true, _) => serde_json::to_value(object)
            .map_err(|e| e.to_string())
            .and_then(|value| serde_saphyr::to_string(&value).map_err(|e| e.to_string())),
        (false, true) => serde_json::to_string_pretty(object).map_err(|e| e.to_string()),
        (false, false) => serde_json::to_string(object)
            .map(|line| line + "\n")
            .map_err(|e| e.to_string()),
    };
    // Plain data written to memory: there is nothing to fail.
    written.unwrap_or_default()
}

/// The form that the most wanted clause that can be had asks for.
pub fn choose(page: Page, header: &str) -> Result<Form, Refused> {
    let clauses = accept::parse(header);
    let offered = |clause: &Clause| {
        let mut media = MEDIA.into_iter().filter(|m| covers(clause, *m));
        media.find_map(|media| form(page, clause, media))
    };
    clauses.iter().find_map(offered).ok_or_else(|| refusal(&clauses))
}

fn covers(clause: &Clause, media: Media) -> bool {
    let (kind, sub) = media.name();
    clause.covers(kind, sub)
}

/// What parameters make of a clause; `None`: nothing that is served.
fn form(page: Page, clause: &Clause, media: Media) -> Option<Form> {
    let asked = Params::of(clause).filter(|asked| asked.stream.is_empty())?;
    match media {
        Media::Text => (!asked.converts).then_some(Form::Text),
        Media::Json | Media::Yaml => {
            let version = VERSIONS.into_iter().find(|v| *v == asked.version)?;
            (asked.kind == page.kind() && asked.group == GROUP).then_some(Form::Kind(Structured {
                version,
                pretty: asked.pretty,
                yaml: media == Media::Yaml,
            }))
        }
    }
}

#[derive(Default)]
struct Params<'a> {
    kind: &'a str,
    group: &'a str,
    version: &'a str,
    stream: &'a str,
    converts: bool,
    pretty: bool,
}

impl<'a> Params<'a> {
    /// `None` where something is asked for that no page has: a version of the server's.
    fn of(clause: &Clause<'a>) -> Option<Params<'a>> {
        let mut found = Params::default();
        for (key, value) in clause.params.iter().copied() {
            match key {
                "as" => found.kind = value,
                "g" => found.group = value,
                "v" => found.version = value,
                "pretty" => found.pretty = value == "1",
                "stream" => found.stream = value,
                "sv" if !value.is_empty() => return None,
                _ => {}
            }
            found.converts |= matches!(key, "as" | "g" | "v");
        }
        Some(found)
    }
}

/// The refusal is an object that is asked for by no name: what names one doesn't get it either, nor does text.
fn refusal(clauses: &[Clause]) -> Refused {
    let plain = |clause: &Clause| {
        // As where it is made upstream, a stream of events would do.
        let is_plain = |asked: &Params| !asked.converts && matches!(asked.stream, "" | "watch");
        let asked = Params::of(clause).filter(is_plain)?;
        let media = [Media::Json, Media::Yaml].into_iter().find(|m| covers(clause, *m))?;
        Some((media == Media::Yaml, asked.pretty))
    };
    let found = clauses.iter().find_map(plain);
    let (yaml, pretty) = found.unwrap_or_default();
    Refused {
        pretty,
        yaml,
        known: found.is_some(),
    }
}
