//! What somebody wants of the machine's logs (`/logs/?query=…`): parameters, and what is wrong with them in upstream's words. Pure.

use crate::server::routes::Query;
use keelson_api::time::Time;
use serde_json::json;
use std::fmt::Display;

const MOST_LINES: i64 = 100_000;
const LONGEST_NAME: usize = 256;
const MOST_SERVICES: usize = 4;

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Asked {
    pub services: Vec<String>,
    pub files: Vec<String>,
    pub options: Options,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    since: Option<Moment>,
    until: Option<Moment>,
    tail: Option<i64>,
    /// Zero is the machine's last start, −1 the one before it.
    boot: Option<i64>,
    pattern: String,
}

/// A time as it was written, and what it means.
#[derive(Debug, PartialEq)]
struct Moment(String, Time);

/// What is wrong, one sentence a fault.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Faults(Vec<String>);

impl Faults {
    fn invalid(&mut self, field: &str, value: impl Display, why: impl Display) {
        self.add(format!("{field}: Invalid value: {value}: {why}"));
    }

    fn add(&mut self, fault: String) {
        if !self.0.contains(&fault) {
            self.0.push(fault);
        }
    }

    fn or<T>(self, value: T) -> Result<T, Faults> {
        match self.0.is_empty() {
            true => Ok(value),
            false => Err(self),
        }
    }
}

impl Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [one] => f.write_str(one),
            all => write!(f, "[{}]", all.join(", ")),
        }
    }
}

impl Asked {
    /// `None`: nothing is asked, so that a file or a directory is meant by its path.
    pub fn read(query: &Query) -> Result<Option<Asked>, Faults> {
        let mut faults = Faults::default();
        let mut asked = Asked::default();
        let all: Vec<&str> = query.iter().filter(|(k, _)| k == "query").map(|(_, v)| &**v).collect();
        for name in &all {
            // A slash says that a file is meant.
            if name.contains(['/', '\\']) {
                asked.files.push((*name).to_owned());
            } else if !name.trim().is_empty() {
                asked.services.push((*name).to_owned());
            }
        }
        if !all.is_empty() && asked == Asked::default() {
            faults.invalid("query", json!(all), "may not be empty");
        }
        let get = |name: &str| {
            let first = query.iter().find(|(k, _)| k == name).map(|(_, v)| &**v);
            first.filter(|v| !v.is_empty())
        };
        let mut moment = |name: &str| {
            let text = get(name)?;
            match Time::parse(text) {
                Ok(time) => Some(Moment(text.to_owned(), time)),
                Err(_) => {
                    faults.invalid(name, json!(text), "invalid time format");
                    None
                }
            }
        };
        asked.options.since = moment("sinceTime");
        asked.options.until = moment("untilTime");
        let mut number = |name: &str| {
            let text = get(name)?;
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                let why = format!("strconv.Atoi: parsing {text:?}: invalid syntax");
                faults.invalid(name, json!(text), why);
                return None;
            }
            let value = text.parse::<i64>();
            if value.is_err() {
                let why = format!("strconv.Atoi: parsing {text:?}: value out of range");
                faults.invalid(name, json!(text), why);
            }
            value.ok()
        };
        asked.options.boot = number("boot");
        asked.options.tail = number("tailLines");
        asked.options.pattern = get("pattern").unwrap_or_default().to_owned();
        let nothing = asked == Asked::default();
        faults.or((!nothing).then_some(asked))
    }

    /// Whether it can be answered.
    pub fn judge(&self) -> Result<(), Faults> {
        let mut faults = Faults::default();
        for name in &self.services {
            if name.len() > LONGEST_NAME {
                faults.invalid("query", json!(name), format!("length must be less than {LONGEST_NAME}"));
            } else if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@".contains(c)) {
                faults.invalid("query", json!(name), "input contains unsupported characters");
            }
        }
        if self.services.len() > MOST_SERVICES {
            let count = self.services.len();
            faults.add(format!(
                "query: Too many: {count}: must have at most {MOST_SERVICES} items"
            ));
        }
        let files = json!(self.files);
        match (self.files.len(), self.services.len()) {
            (0, 0) => faults.add("query: Required value: cannot be empty with options".into()),
            (0, _) => {}
            (_, 1..) => {
                let both = format!("[{}], [{}]", self.files.join(" "), self.services.join(" "));
                faults.invalid("query", json!(both), "cannot specify a file and service");
            }
            (2.., _) => faults.invalid("query", files, "cannot specify more than one file"),
            (1, 0) if self.options != Options::default() => {
                faults.invalid("query", files, "cannot specify file with options");
            }
            (1, 0) => {}
        }
        self.options.judge(&mut faults);
        faults.or(())
    }

    /// That the file which is meant can't be had.
    pub fn no_file(&self, why: &std::io::Error) -> Faults {
        let name = self.files.first().map_or("", |f| f.trim_start_matches('/'));
        let why = match why.kind() {
            std::io::ErrorKind::NotFound => format!("statat {name}: no such file or directory"),
            _ => format!("statat {name}: {why}"),
        };
        let mut faults = Faults::default();
        faults.invalid("query", json!(self.files), why);
        faults
    }
}

impl Options {
    fn judge(&self, faults: &mut Faults) {
        if let (Some(since), Some(until)) = (&self.since, &self.until)
            && since.1 > until.1
        {
            faults.invalid("untilTime", json!(until.0), "must be after `sinceTime`");
        }
        if let Some(boot) = self.boot.filter(|b| *b > 0) {
            faults.invalid("boot", boot, "must be less than 1");
        }
        if let Some(tail) = self.tail.filter(|t| !(0..=MOST_LINES).contains(t)) {
            let why = format!("must be between 0 and {MOST_LINES}, inclusive");
            faults.invalid("tailLines", tail, why);
        }
        if self.pattern.contains('\0') {
            faults.invalid("pattern", json!(self.pattern), "it has a byte of zero");
        } else if let Err(e) = regex::Regex::new(&self.pattern) {
            let why = e.to_string();
            let last = why.lines().last().unwrap_or_default();
            let last = last.trim_start_matches("error: ");
            faults.invalid("pattern", json!(self.pattern), format!("error parsing regexp: {last}"));
        }
    }

    /// What journalctl is asked for.
    pub fn arguments(&self, services: &[String]) -> Vec<String> {
        let mut all: Vec<String> = ["--utc", "--no-pager", "--output=short-precise"]
            .map(str::to_owned)
            .into();
        // The zone is named: the machine's may be another.
        let at = |m: &Moment| m.1.rfc3339().replace('T', " ").replace('Z', " UTC");
        all.extend(self.since.iter().map(|m| format!("--since={}", at(m))));
        all.extend(self.until.iter().map(|m| format!("--until={}", at(m))));
        if let Some(tail) = self.tail {
            all.extend(["--pager-end".to_owned(), format!("--lines={tail}")]);
        }
        all.extend(services.iter().map(|s| format!("--unit={s}")));
        if !self.pattern.is_empty() {
            all.push(format!("--grep={}", self.pattern));
        }
        if let Some(boot) = self.boot {
            all.extend(["--boot".to_owned(), boot.to_string()]);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Option<Asked>, Faults> {
        Asked::read(&crate::server::routes::query(
            &format!("/logs/?{text}").parse().unwrap(),
        ))
    }

    fn wrong(text: &str) -> String {
        match asked(text) {
            Err(faults) => format!("400 {faults}"),
            Ok(None) => "nothing is asked".into(),
            Ok(Some(asked)) => asked.judge().map_or_else(|e| format!("406 {e}"), |()| "fine".into()),
        }
    }

    #[test]
    fn faults_have_upstreams_words() {
        let long = format!("query={}", "a".repeat(257));
        let name = "a".repeat(257);
        let too_long = format!("406 query: Invalid value: \"{name}\": length must be less than 256");
        let table = [
            ("", "nothing is asked"),
            ("unknown=1", "nothing is asked"),
            ("query=kubelet", "fine"),
            (
                "query=getty@tty1&query=b&query=c&query=d&boot=-1&tailLines=100000&pattern=a.*b",
                "fine",
            ),
            ("query=/messages", "fine"),
            ("query=%20", "400 query: Invalid value: [\" \"]: may not be empty"),
            (
                "query=a&sinceTime=now",
                "400 sinceTime: Invalid value: \"now\": invalid time format",
            ),
            (
                "boot=x&tailLines=99999999999999999999&query=a",
                "400 [boot: Invalid value: \"x\": strconv.Atoi: parsing \"x\": invalid syntax, tailLines: Invalid value: \
                 \"99999999999999999999\": strconv.Atoi: parsing \"99999999999999999999\": value out of range]",
            ),
            ("boot=0", "406 query: Required value: cannot be empty with options"),
            (
                "query=/a&query=b",
                "406 query: Invalid value: \"[/a], [b]\": cannot specify a file and service",
            ),
            (
                "query=/a&query=/b",
                "406 query: Invalid value: [\"/a\",\"/b\"]: cannot specify more than one file",
            ),
            (
                "query=/a&tailLines=1",
                "406 query: Invalid value: [\"/a\"]: cannot specify file with options",
            ),
            (
                "query=a%3Bid",
                "406 query: Invalid value: \"a;id\": input contains unsupported characters",
            ),
            (
                "query=a&query=b&query=c&query=d&query=e",
                "406 query: Too many: 5: must have at most 4 items",
            ),
            (
                "query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z",
                "406 untilTime: Invalid value: \"2026-01-01T00:00:00Z\": must be after `sinceTime`",
            ),
            ("query=a&boot=1", "406 boot: Invalid value: 1: must be less than 1"),
            (
                "query=a&tailLines=-1",
                "406 tailLines: Invalid value: -1: must be between 0 and 100000, inclusive",
            ),
            (
                "query=a&pattern=%28",
                "406 pattern: Invalid value: \"(\": error parsing regexp: unclosed group",
            ),
            (
                "query=a&pattern=%00",
                "406 pattern: Invalid value: \"\\u0000\": it has a byte of zero",
            ),
            (long.as_str(), too_long.as_str()),
        ];
        for (query, want) in table {
            assert_eq!(wrong(query), want, "{query}");
        }
    }

    #[test]
    fn options_become_arguments_and_nothing_else() {
        let text = "query=a&query=-b&sinceTime=2026-01-01T02:00:00%2B01:00&untilTime=2026-01-02T00:00:00.5Z&tailLines=7&boot=-2&\
                    pattern=--output%3Dx";
        let asked = asked(text).unwrap().unwrap();
        asked.judge().unwrap();
        let want = "--utc --no-pager --output=short-precise --since=2026-01-01 01:00:00 UTC --until=2026-01-02 00:00:00 UTC --pager-end \
                    --lines=7 --unit=a --unit=-b --grep=--output=x --boot -2";
        assert_eq!(asked.options.arguments(&asked.services).join(" "), want);
    }
}
