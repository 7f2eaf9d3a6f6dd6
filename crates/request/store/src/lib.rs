//! Keys, revisions and events: the Store trait, its contract suite, and the embedded engine.
