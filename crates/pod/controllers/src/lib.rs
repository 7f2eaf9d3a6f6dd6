//! The controllers: declared inputs and outputs, a pure plan, a thin reconcile each.
