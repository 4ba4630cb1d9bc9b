//! `GET /metrics`: what the process recorded, in Prometheus' text format.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::App;
use super::openapi::ErrorEnvelope;

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/metrics", get(render))
}

#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Every series, in Prometheus' text format", body = String, content_type = "text/plain"), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn render(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], app.render_metrics())
}
