//! Errors as OpenAI's clients read them.

use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use lingqu_serving::RequestError;
use serde_json::{Value, json};

/// Seconds after which a client may try again what is refused for now.
const RETRY_AFTER_S: &str = "1";

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    message: String,
    /// The field at fault, as a path: `messages[1].role`.
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    pub fn of(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// The `type` of OpenAI's error object.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub fn json(&self) -> Value {
        let Self { message, param, code, .. } = self;
        json!({"error": {"message": message, "type": self.kind(), "param": param, "code": code}})
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let (status, code) = match &error {
            RequestError::Invalid { .. } => (StatusCode::BAD_REQUEST, None),
            RequestError::NotFound(_) => (StatusCode::NOT_FOUND, Some("model_not_found")),
            RequestError::Unsupported(_) => (StatusCode::BAD_REQUEST, Some("unsupported")),
            RequestError::Exhausted(_) => (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded")),
            RequestError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable")),
            RequestError::DeadlineExceeded(_) => (StatusCode::GATEWAY_TIMEOUT, Some("deadline_exceeded")),
            RequestError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, Some("internal_error")),
        };
        let param = match &error {
            RequestError::Invalid { field, .. } => Some(field.clone()),
            RequestError::NotFound(_) => Some("model".into()),
            _ => None,
        };
        Self { status, message: error.to_string(), param, code }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.json());
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A JSON object as a response.
pub fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_status_and_field() {
        let check = |error: RequestError, status: u16, kind: &str, param: Option<&str>| {
            let error = ApiError::from(error);
            let json = error.json();
            assert_eq!(error.status.as_u16(), status, "{json}");
            assert_eq!((&json["error"]["type"], &json["error"]["param"]), (&json!(kind), &json!(param)));
        };
        let text = || "x".to_owned();
        check(RequestError::invalid("stop[0]", "empty"), 400, "invalid_request_error", Some("stop[0]"));
        check(RequestError::NotFound(text()), 404, "invalid_request_error", Some("model"));
        check(RequestError::Unsupported(text()), 400, "invalid_request_error", None);
        check(RequestError::Exhausted(text()), 429, "rate_limit_error", None);
        check(RequestError::Unavailable(text()), 503, "server_error", None);
        check(RequestError::DeadlineExceeded(text()), 504, "timeout_error", None);
        check(RequestError::Internal(text()), 500, "server_error", None);
    }
}
