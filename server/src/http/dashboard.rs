//! `GET /dashboard`: a page to watch the server with, and the JSON it asks for.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::openapi::{DashboardState, ErrorEnvelope};
use crate::dashboard::assets::{ASSETS, PAGE};
use crate::dashboard::state::state;

/// Scripts and styles from this server only; and nobody else's page may frame this one.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      frame-ancestors 'none'";

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/dashboard", get(|| async { served("text/html; charset=utf-8", PAGE) }))
        .route("/dashboard/state", get(now))
        .route("/dashboard/assets/{name}", get(asset))
}

fn served(content_type: &'static str, body: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // The next version has the same paths.
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, body).into_response()
}

async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let asset = asset.ok_or_else(|| ApiError::not_found(format!("no such file: {name}")))?;
    Ok(served(asset.content_type, asset.body))
}

#[utoipa::path(get, path = "/dashboard/state", responses((status = 200, description = "The answer", body = DashboardState), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn now(State(app): State<Arc<App>>) -> Json<Value> {
    let mut state = state(&app.engine.snapshot(), &app.render_metrics());
    state["server"] = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": app.model.name,
        "max_model_len": app.model.max_model_len,
        "budget": app.kv_cache.budget,
        "debug_kv": app.views.is_some(),
    });
    Json(state)
}
