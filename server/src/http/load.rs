//! How many requests are being answered, and a bound on them; `GET /load`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::openapi::{ErrorEnvelope, LoadAnswer};
use crate::metrics::rejections::{REQUESTS, turned_away};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/load", get(load))
}

/// vLLM's name for it.
#[utoipa::path(get, path = "/load", responses((status = 200, description = "The answer", body = LoadAnswer), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn load(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"server_load": app.load.num_requests()}))
}

/// Requests being answered.
#[derive(Clone, Default)]
pub struct Load(Arc<AtomicUsize>);

/// One of them; dropping it is its end.
struct Admitted(Load);

impl Load {
    pub fn num_requests(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, unless there are `max` already.
    fn admit(&self, max: usize) -> Option<Admitted> {
        let more = |num: usize| (num < max).then_some(num + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Admitted(self.clone()))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts the request until its answer is sent, and refuses it when there are too many.
pub async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let max = app.limits.max_requests;
    let Some(admitted) = app.load.admit(max) else {
        turned_away(REQUESTS);
        let message = format!("{max} requests are being answered already, try again later");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
        return error.code("too_many_requests").into_response();
    };
    hold(admitted, next.run(request).await)
}

/// Overload has the status that the operator chose.
pub async fn overload_status(State(app): State<Arc<App>>, mut response: Response) -> Response {
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        *response.status_mut() = app.limits.overload_status;
    }
    response
}

fn hold(admitted: Admitted, response: Response) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response; // Ready as a whole.
    }
    response.map(|body| {
        let held = move |piece| {
            let _held = &admitted;
            piece
        };
        Body::from_stream(body.into_data_stream().map(held))
    })
}
