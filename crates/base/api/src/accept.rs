//! What an `Accept` header says, clause by clause, and whether who asks is a person.

/// One clause of an `Accept` header.
pub struct Clause<'a> {
    pub kind: &'a str,
    pub sub: &'a str,
    q: f32,
    pub params: Vec<(&'a str, &'a str)>,
}

impl Clause<'_> {
    /// Whether a media type is meant, by name or by an asterisk.
    pub fn covers(&self, kind: &str, sub: &str) -> bool {
        (self.kind == kind && (self.sub == sub || self.sub == "*")) || self.is_anything()
    }

    pub fn is_anything(&self) -> bool {
        self.kind == "*" && self.sub == "*"
    }
}

/// The clauses, the most wanted first.
pub fn parse(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause> = header
        .split(',')
        .filter_map(|part| {
            let mut pieces = part.split(';').map(str::trim);
            let media = pieces.next()?;
            let (kind, sub) = match media.split_once('/') {
                Some(pair) => pair,
                None if media == "*" => ("*", "*"),
                None => return None,
            };
            let mut clause = Clause {
                kind: kind.trim(),
                sub: sub.trim(),
                q: 1.0,
                params: Vec::new(),
            };
            for (k, v) in pieces.filter_map(|p| p.split_once('=')) {
                let (k, v) = (k.trim(), v.trim().trim_matches('"'));
                if k == "q" {
                    clause.q = v.parse().unwrap_or(1.0);
                } else {
                    clause.params.push((k, v));
                }
            }
            Some(clause)
        })
        .collect();
    let rank = |c: &Clause| (u8::from(c.kind == "*"), u8::from(c.sub == "*"));
    clauses.sort_by(|a, b| b.q.total_cmp(&a.q).then_with(|| rank(a).cmp(&rank(b))));
    clauses
}

/// Whether JSON is to be written for reading: as the query says, or else for programs that people look at.
pub fn is_pretty(asked: Option<&str>, agent: &str) -> bool {
    match asked.filter(|pretty| !pretty.is_empty()) {
        Some(pretty) => matches!(pretty, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => ["curl", "Wget", "Mozilla/5.0"]
            .iter()
            .any(|human| agent.starts_with(human)),
    }
}
