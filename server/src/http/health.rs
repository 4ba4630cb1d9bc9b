//! Three probes: `/health` (the engine takes requests), `/live` (its thread moves), `/ready` (send
//! requests here).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use crate::engine::EngineError;

/// No step takes longer, unless it hangs.
const LONGEST_STEP: Duration = Duration::from_secs(120);

/// Whether the server is on its way out.
#[derive(Clone, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn began(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

use super::openapi::ErrorEnvelope;

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/health", get(health))
        .route("/live", get(live))
        .route("/ready", get(ready))
}

#[utoipa::path(get, path = "/health", responses((status = 200, description = "The answer", body = Object), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    match app.engine.is_alive() {
        true => Ok(ok()),
        false => Err(EngineError::Stopped.into()),
    }
}

#[utoipa::path(get, path = "/live", responses((status = 200, description = "The answer", body = Object), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn live(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    match app.engine.is_alive() && moves(app.engine.busy_since()) {
        true => Ok(ok()),
        false => Err(unavailable("the engine does not move", "engine_stuck")),
    }
}

#[utoipa::path(get, path = "/ready", responses((status = 200, description = "The answer", body = Object), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    match app.engine.is_alive() && !app.draining.began() {
        true => Ok(ok()),
        false => Err(unavailable("the server is shutting down", "shutting_down")),
    }
}

/// Whether an engine does that has been at its step for so long, or is at none.
fn moves(busy_since: Option<Duration>) -> bool {
    busy_since.is_none_or(|since| since < LONGEST_STEP)
}

fn ok() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

fn unavailable(message: &str, code: &'static str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code(code)
}

/// What answers while the model loads: alive, and not ready for anything.
pub fn loading() -> Router {
    let wait = || async { unavailable("the model is loading", "loading") };
    let live = || async { ok() };
    Router::new().route("/live", get(live)).fallback(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_stuck_that_takes_longer_than_any_step_does() {
        assert!(moves(None) && moves(Some(LONGEST_STEP - Duration::from_millis(1))));
        assert!(!moves(Some(LONGEST_STEP)));
    }
}
