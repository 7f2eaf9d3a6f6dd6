//! `/console/why/KIND/NAMESPACE/NAME` (`-` for no namespace): what `keelson why` says, as JSON, by the same rights.

use crate::answer::{self, Body};
use http::{Response, StatusCode};
use keelson_client::{Error, Rest};
use keelson_why::{Question, fetch};
use std::time::Duration;
use tokio::time::timeout;

/// For all that is read to find a cause.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn answer(rest: &Rest, asked: &str) -> Response<Body> {
    let parts: Vec<&str> = asked.split('/').collect();
    let [kind, namespace, name] = parts[..] else {
        return answer::failure(StatusCode::BAD_REQUEST, "BadRequest", "why/KIND/NAMESPACE/NAME");
    };
    let namespace = if namespace == "-" { "default" } else { namespace };
    let question = match Question::object(&[kind.into(), name.into()], namespace) {
        Ok(question) => question,
        Err(wrong) => return answer::failure(StatusCode::NOT_FOUND, "NoRules", &wrong.to_string()),
    };
    match timeout(PATIENCE, fetch::answer(rest, &question, keelson_clock::now())).await {
        Ok(Ok(report)) => match serde_json::to_value(&report) {
            Ok(report) => answer::json(StatusCode::OK, &report),
            Err(error) => answer::failure(StatusCode::INTERNAL_SERVER_ERROR, "Unknown", &error.to_string()),
        },
        Ok(Err(Error::Api(status))) => {
            let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::BAD_GATEWAY);
            answer::failure(code, &status.reason, &status.message)
        }
        Ok(Err(error)) => answer::unreachable(&error),
        Err(_) => answer::failure(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            "it could not be looked at within 30 s",
        ),
    }
}
