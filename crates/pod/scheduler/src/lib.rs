//! Queue, snapshot, filter and score plug-ins, bind, preemption.
