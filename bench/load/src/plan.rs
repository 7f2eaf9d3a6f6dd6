//! A request of a row, prepared: what changes from one to the next is put into it by its number.

use crate::target::{Connection, Head};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;

/// A text with places for a request's number (`{n}`), and for the number of the object that it is about (`{i}`).
#[derive(Clone, Debug)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Number,
    Object,
}

impl Template {
    pub fn new(text: &str) -> Template {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = [rest.find("{n}"), rest.find("{i}")].into_iter().flatten().min() {
            pieces.push(Piece::Text(rest[..at].to_owned()));
            pieces.push(if rest[at..].starts_with("{n}") {
                Piece::Number
            } else {
                Piece::Object
            });
            rest = &rest[at + 3..];
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Template(pieces)
    }

    fn fill(&self, n: usize, object: usize) -> String {
        if let [Piece::Text(text)] = self.0.as_slice() {
            return text.clone();
        }
        let (n, object) = (n.to_string(), object.to_string());
        let texts = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Number => &n,
            Piece::Object => &object,
        });
        texts.collect()
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    head: Head,
    path: Template,
    body: Template,
    /// Requests go about so many objects in turn.
    objects: usize,
    code: u16,
    /// Also taken, as when what is made is there already.
    other_code: u16,
    /// A list that comes in pages: all of them are one request.
    paged: bool,
}

impl Plan {
    pub fn new(head: Head, path: &str) -> Plan {
        Plan {
            head,
            path: Template::new(path),
            body: Template::new(""),
            objects: usize::MAX,
            code: 200,
            other_code: 200,
            paged: false,
        }
    }
    pub fn body(mut self, text: &str) -> Plan {
        self.body = Template::new(text);
        self
    }
    pub fn objects(mut self, count: usize) -> Plan {
        self.objects = count.max(1);
        self
    }
    pub fn code(mut self, code: u16) -> Plan {
        (self.code, self.other_code) = (code, code);
        self
    }
    pub fn or(mut self, code: u16) -> Plan {
        self.other_code = code;
        self
    }
    pub fn paged(mut self) -> Plan {
        self.paged = true;
        self
    }

    /// How many bytes the answer has.
    pub async fn ask(&self, connection: &mut Connection, n: usize) -> Result<u64> {
        let object = n % self.objects;
        let path = self.path.fill(n, object);
        let mut whole = 0;
        let mut page = path.clone();
        loop {
            let body = Bytes::from(self.body.fill(n, object));
            let answer = connection.ask(&self.head, &page, body).await;
            let answer = answer.with_context(|| format!("{} {page}", self.head.method))?;
            ensure!(
                answer.code == self.code || answer.code == self.other_code,
                "{} {page}: answered {}: {}",
                self.head.method,
                answer.code,
                answer.text()
            );
            whole += answer.bytes;
            match answer.value("continue") {
                Some(token) if self.paged && !token.is_empty() => page = format!("{path}&continue={token}"),
                _ => return Ok(whole),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_where_they_belong() {
        let template = Template::new(r#"{"name":"p-{i}","rounds":{n},"last":{"i":"{i}"}}"#);
        assert_eq!(
            template.fill(1007, 7),
            r#"{"name":"p-7","rounds":1007,"last":{"i":"7"}}"#
        );
        assert_eq!(Template::new("plain").fill(1, 2), "plain");
        assert_eq!(Template::new("{n}").fill(3, 0), "3");
    }
}
