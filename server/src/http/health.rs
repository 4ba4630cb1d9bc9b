//! `GET /health`: whether the engine takes requests.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use crate::engine::EngineError;

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/health", get(health))
}

async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    match app.engine.is_alive() {
        true => Ok(Json(json!({"status": "ok"}))),
        false => Err(EngineError::Stopped.into()),
    }
}
