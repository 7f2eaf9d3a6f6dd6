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
    if tracer.is_on() {
        let last = tracer.clone();
        running.spawn("traces", move |stop| {
            let last = last.clone();
            async move {
                stop.cancelled().await;
                last.end().await;
                Ok(())
            }
        });
    }
    Ok(tracer)
}

/// A tracer that who stops the component has to end.
pub fn of(settings: Option<&Settings>, service: &'static str, instance: &str) -> anyhow::Result<Tracer> {
    settings.map_or(Ok(Tracer::none()), |settings| Tracer::new(settings, service, instance))
}
