//! `/v1/models`

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, json_response};

pub async fn list(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &json!({"object": "list", "data": models(&app)}))
}

pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let model = models(&app).into_iter().find(|model| model["id"] == id.as_str());
    match model {
        Some(model) => Ok(json_response(StatusCode::OK, &model)),
        None => Err(app.served.check_name(&id).err().map_or_else(
            || ApiError::of(StatusCode::NOT_FOUND, "model: this server has no such model"),
            ApiError::from,
        )),
    }
}

/// The model, then its adapters: asked for by their names as if they were models.
fn models(app: &App) -> Vec<Value> {
    let card = &app.served.model.card;
    let engine = &app.served.model.engine;
    let model = |id: &str, parent: Option<&str>| {
        json!({
            "id": id,
            "object": "model",
            "created": app.started_unix_s,
            "owned_by": "lingqu",
            "root": card.name,
            "parent": parent,
            "max_model_len": engine.limits().context_tokens_max,
            "fingerprint": card.fingerprint,
        })
    };
    let adapters = engine.adapters().iter().map(|adapter| model(adapter, Some(&card.name)));
    std::iter::once(model(&card.name, None)).chain(adapters).collect()
}
