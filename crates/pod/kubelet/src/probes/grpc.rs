//! The gRPC health protocol (`grpc.health.v1.Health/Check`).

use super::check::Outcome;
use std::time::Duration;
use tonic::codegen::http::uri::PathAndQuery;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const NAMES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: i32 = 1;

pub async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let shown = crate::go_duration(timeout);
    match tokio::time::timeout(timeout, call(&address, service)).await {
        Err(_) => Outcome::Failure(format!(
            "timeout: failed to connect service \"{address}\" within {shown}: context deadline exceeded"
        )),
        Ok(Err(Failed::Connect(e))) => {
            Outcome::Failure(format!("error: failed to connect service at \"{address}\": {e}"))
        }
        Ok(Err(Failed::Call(s))) if s.code() == tonic::Code::Unimplemented => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            s.message()
        )),
        Ok(Err(Failed::Call(s))) => {
            Outcome::Failure(format!("error: health rpc probe failed: {}", crate::rpc_text(&s)))
        }
        Ok(Ok(SERVING)) => Outcome::Success,
        Ok(Ok(status)) => {
            let name = NAMES.get(status as usize).copied().unwrap_or("UNKNOWN");
            Outcome::Failure(format!("service unhealthy (responded with \"{name}\")"))
        }
    }
}

enum Failed {
    Connect(String),
    Call(tonic::Status),
}

async fn call(address: &str, service: &str) -> Result<i32, Failed> {
    let connect = |e: tonic::transport::Error| Failed::Connect(e.to_string());
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .and_then(|e| e.user_agent("kube-probe/1.37"))
        .map_err(connect)?;
    let channel = endpoint.connect().await.map_err(connect)?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(connect)?;
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = tonic::Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let answer = client.unary(request, path, codec).await.map_err(Failed::Call)?;
    Ok(answer.into_inner().status)
}
