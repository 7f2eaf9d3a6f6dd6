//! The watch cache: snapshot, event ring, indexes, fan-out, bookmarks.
