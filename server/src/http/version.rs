//! `GET /version`.

use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::App;

use super::openapi::{ErrorEnvelope, VersionAnswer};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/version", get(version))
}

#[utoipa::path(get, path = "/version", responses((status = 200, description = "The answer", body = VersionAnswer), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
