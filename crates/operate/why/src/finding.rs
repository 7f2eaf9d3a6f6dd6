//! What is found: a cause, what shows it, what mends it.

use crate::object::line;
use serde::Serialize;

/// How sure a finding is. `Certain` only where an object says so; whoever concludes from what is absent, or from what is
/// usual, is `Likely`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Confidence {
    Certain,
    Likely,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// A stable identifier, such as `image-not-found`.
    pub cause: String,
    pub confidence: Confidence,
    /// Whose trouble it is: `pod/web-0`.
    pub object: String,
    /// The cause in a sentence.
    pub says: String,
    pub evidence: Vec<String>,
    /// What mends it.
    pub fix: String,
}

impl Finding {
    pub fn certain(cause: impl Into<String>, object: impl Into<String>, says: impl AsRef<str>) -> Finding {
        Finding {
            cause: cause.into(),
            confidence: Confidence::Certain,
            object: object.into(),
            says: line(says.as_ref()),
            evidence: Vec::new(),
            fix: String::new(),
        }
    }
    pub fn likely(cause: impl Into<String>, object: impl Into<String>, says: impl AsRef<str>) -> Finding {
        Finding {
            confidence: Confidence::Likely,
            ..Finding::certain(cause, object, says)
        }
    }
    pub fn shown_by(mut self, evidence: impl AsRef<str>) -> Finding {
        let evidence = line(evidence.as_ref());
        if !evidence.is_empty() && !self.evidence.contains(&evidence) {
            self.evidence.push(evidence);
        }
        self
    }
    pub fn shown_by_all<T: AsRef<str>>(self, evidence: impl IntoIterator<Item = T>) -> Finding {
        evidence.into_iter().fold(self, Finding::shown_by)
    }
    pub fn mended_by(mut self, fix: impl AsRef<str>) -> Finding {
        self.fix = line(fix.as_ref());
        self
    }
}

/// The answer to a question.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub about: String,
    /// The first is what to mend first.
    pub findings: Vec<Finding>,
    /// What could not be read, and so is not judged.
    pub unread: Vec<String>,
    /// What is so, and is nobody's fault.
    pub notes: Vec<String>,
}

impl Report {
    /// One finding for each cause and object; what is certain before what is likely.
    pub fn add(&mut self, finding: Finding) {
        let is_same = |f: &Finding| f.cause == finding.cause && f.object == finding.object;
        if !self.findings.iter().any(is_same) {
            self.findings.push(finding);
        }
    }

    pub fn add_all(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|f| self.add(f));
    }

    pub fn settle(&mut self) {
        self.findings.sort_by_key(|f| f.confidence);
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let sure = match finding.confidence {
                Confidence::Certain => "",
                Confidence::Likely => "probably: ",
            };
            out += &format!("{}: {sure}{} ({})\n", finding.object, finding.says, finding.cause);
            for evidence in &finding.evidence {
                out += &format!("  because  {evidence}\n");
            }
            if !finding.fix.is_empty() {
                out += &format!("  fix      {}\n", finding.fix);
            }
        }
        if self.findings.is_empty() {
            out += &format!("{}: nothing is wrong that its objects would tell.\n", self.about);
        }
        for note in &self.notes {
            out += &format!("  note     {note}\n");
        }
        for unread in &self.unread {
            out += &format!("  unread   {unread}\n");
        }
        out
    }
}
