//! `GET /version`.

use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::App;

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/version", get(version))
}

async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
