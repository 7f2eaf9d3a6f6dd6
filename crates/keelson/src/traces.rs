//! Traces: where they go, by `--tracing-config-file`, and who tells them.

use crate::supervise::Supervisor;
use keelson_trace::{Settings, Tracer};
use std::path::Path;

/// What the file says, where one is named.
pub fn settings(file: Option<&Path>) -> anyhow::Result<Option<Settings>> {
    file.map(Settings::read).transpose()
}

/// A component's tracer. To be made before what it traces is started: the last spans are sent when that has stopped.
pub fn tracer(
    running: &mut Supervisor,
    settings: Option<&Settings>,
    service: &'static str,
    instance: &str,
) -> anyhow::Result<Tracer> {
    let tracer = of(settings, service, instance)?;
    flushed(running, &tracer);
    Ok(tracer)
}

/// A component's tracer alone, for who has no components yet.
pub fn of(settings: Option<&Settings>, service: &'static str, instance: &str) -> anyhow::Result<Tracer> {
    settings.map_or(Ok(Tracer::none()), |settings| Tracer::new(settings, service, instance))
}

pub fn flushed(running: &mut Supervisor, tracer: &Tracer) {
    if !tracer.is_on() {
        return;
    }
    let tracer = tracer.clone();
    running.spawn("traces", move |stop| {
        let tracer = tracer.clone();
        async move {
            stop.cancelled().await;
            tracer.end().await;
            Ok(())
        }
    });
}
