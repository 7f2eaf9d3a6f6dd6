//! Whose file counts, where several servers have one of the same name.
//!
//! Servers are mostly given the same files, but not in the same moment. So the file that is in force stays so while its server has it:
//! what others say instead is told, and not applied. Nothing goes to and fro.

use crate::source::Source;

/// What is in force, and which others say something else.
pub struct Choice<'a> {
    pub chosen: &'a Source,
    pub other: Vec<&'a Source>,
}

/// `before`: [`Source::shown`] of what was in force last. `None`: no server has such a file any more.
pub fn choose<'a>(sources: &'a [Source], before: Option<&str>) -> Option<Choice<'a>> {
    let before = sources.iter().find(|s| Some(s.shown().as_str()) == before);
    let chosen = before.or_else(|| sources.iter().min_by_key(|s| s.shown()))?;
    let other = sources.iter().filter(|s| s.hash != chosen.hash).collect();
    Some(Choice { chosen, other })
}
