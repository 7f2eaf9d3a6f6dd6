//! A collector for tests: listens on loopback and prints each span as a line of JSON.
//!
//! `cargo run -p keelson-trace --example collector -- 127.0.0.1:4317`

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use serde_json::{Map, json};
use std::net::SocketAddr;

struct Printer;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn attributes(all: &[KeyValue]) -> Map<String, serde_json::Value> {
    let read = |a: &KeyValue| match a.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => json!(text),
        Some(Value::IntValue(n)) => json!(n),
        Some(Value::BoolValue(b)) => json!(b),
        _ => json!(null),
    };
    all.iter().map(|a| (a.key.clone(), read(a))).collect()
}

#[tonic::async_trait]
impl TraceService for Printer {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for of in request.into_inner().resource_spans {
            let resource = attributes(&of.resource.unwrap_or_default().attributes);
            for span in of.scope_spans.into_iter().flat_map(|s| s.spans) {
                let line = json!({
                    "service": resource.get("service.name"),
                    "instance": resource.get("service.instance.id"),
                    "name": span.name,
                    "trace": hex(&span.trace_id),
                    "span": hex(&span.span_id),
                    "parent": hex(&span.parent_span_id),
                    "ms": span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) as f64 / 1e6,
                    "links": span.links.iter().map(|l| hex(&l.trace_id)).collect::<Vec<_>>(),
                    "attributes": attributes(&span.attributes),
                });
                println!("{line}");
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let at: SocketAddr = std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:4317").parse()?;
    let served = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Printer));
    Ok(served.serve(at).await?)
}
