//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use super::error::ApiError;
use super::{App, ServedModel};

use super::openapi::{ErrorEnvelope, ModelCard, ModelList};

pub fn routes() -> Router<Arc<App>> {
    // Names of the hub have a slash in them.
    Router::new().route("/v1/models", get(list)).route("/v1/models/{*id}", get(retrieve))
}

#[derive(Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Tokens of prompt and answer together; vLLM's field.
    max_model_len: usize,
}

#[utoipa::path(get, path = "/v1/models", responses((status = 200, description = "The answer", body = ModelList), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<List> {
    Json(List { object: "list", data: vec![model(&app.model)] })
}

#[utoipa::path(get, path = "/v1/models/{id}", params(("id" = String, Path)), responses((status = 200, description = "The answer", body = ModelCard), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let no_text = |_| ApiError::invalid("model", "the model's name in the path is no text");
    let Path(id) = id.map_err(no_text)?;
    app.check_model(Some(&id))?;
    Ok(Json(model(&app.model)))
}

fn model(served: &ServedModel) -> Model {
    Model {
        id: served.name.clone(),
        object: "model",
        created: served.created,
        owned_by: "keepwell",
        max_model_len: served.max_model_len,
    }
}
