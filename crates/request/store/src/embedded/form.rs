//! Which form a store is kept in, noted beside the engine's files: whoever puts another program in the place of the one that has the
//! store open can ask.

use super::fault;
use super::tables::FORMAT;
use crate::Result;
use std::io::{ErrorKind, Write};
use std::path::Path;

const NAME: &str = "format";
const PART: &str = "format.part";

/// The form that the store in this directory has, or is about to get. A store without a note has the first.
///
/// # Errors
///
/// The note is there and can't be read.
pub fn kept_as(store: &Path) -> Result<String> {
    match std::fs::read_to_string(store.join(NAME)) {
        Ok(text) => Ok(text.trim().into()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(FORMAT.into()),
        Err(e) => Err(fault::io(store, &e)),
    }
}

/// On disk when this returns; a store gets another form only then.
pub(super) fn note(store: &Path, format: &str) -> Result<()> {
    let (part, to) = (store.join(PART), store.join(NAME));
    let write = || {
        let mut file = crate::snapshot::begin(&part)?;
        writeln!(file, "{format}")?;
        file.sync_all()?;
        crate::snapshot::name(&part, &to)
    };
    write().map_err(|e| fault::io(store, &e))
}
