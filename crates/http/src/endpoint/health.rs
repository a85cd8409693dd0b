//! `/health`: 200 while the server takes requests.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use crate::app::App;
use crate::error::json_response;

pub async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, word) = match () {
        () if app.served.model.engine.ended().is_some() => (StatusCode::SERVICE_UNAVAILABLE, "the engine has ended"),
        () if app.is_draining() => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        () => (StatusCode::OK, "serving"),
    };
    json_response(status, &json!({"status": word}))
}
