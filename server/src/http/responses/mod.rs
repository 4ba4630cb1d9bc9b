//! `POST /v1/responses`, and `GET` and `DELETE /v1/responses/{id}`.
//!
//! A request is brought into the form of a chat; the answer is a list of items, a message or calls.

mod object;
mod request;
mod store;
mod streaming;

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};

use super::App;
use super::answer::{Job, Updates, run};
use super::body::{JsonObject, off_worker};
use super::chat;
use super::choice::Update;
use super::error::ApiError;
use super::fields::Fields;
use super::sse;
use super::usage::Usage;
use super::user::Caller;
use crate::metrics::latency::Stopwatch;

use object::{Making, Status};
use store::Stored;

pub use store::StoredResponses;

use super::openapi::{
    ErrorEnvelope, ResponseAnswer, ResponseDeleted, ResponseRequest, StreamEvent,
};

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/responses", post(create))
        .route("/v1/responses/{id}", get(retrieve).delete(forget))
}

#[utoipa::path(post, path = "/v1/responses", request_body = ResponseRequest, responses((status = 200, description = "The answer", content((ResponseAnswer = "application/json"), (StreamEvent = "text/event-stream"))), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let stopwatch = Stopwatch::start();
    let preparing = app.clone();
    let (mut job, making) = off_worker(move || prepare(&preparing, body, caller)).await?;
    job.sent_by(caller);
    let stream = job.params.stream.is_some();
    let (updates, usage) = run(&app, job, making.id(), stopwatch)?;
    if stream {
        let mut updates = Box::pin(updates.peekable());
        sse::first_word(updates.as_mut()).await?;
        return Ok(sse::response(streaming::events(app, updates, making, usage)));
    }
    whole(&app, updates, making, usage).await
}

fn prepare(app: &App, body: Map<String, Value>, caller: Caller) -> Result<(Job, Making), ApiError> {
    let fields = Fields::root(&body);
    let request = request::read(&fields, app, caller)?;
    let as_input = |mut error: ApiError| {
        // The chat's field has another name here.
        error.param = error.param.map(|param| match param.starts_with("messages") {
            true => "input".to_owned(),
            false => param,
        });
        error
    };
    let job = chat::job(app, &Fields::root(&request.chat)).map_err(as_input)?;
    let messages = request.messages;
    let keeper = request.store.then_some(caller);
    Ok((job, Making::new(&app.model.name, body, messages, keeper)))
}

async fn whole(
    app: &App,
    mut updates: Updates,
    mut making: Making,
    mut usage: Usage,
) -> Result<Response, ApiError> {
    while let Some(update) = updates.next().await {
        match update {
            Update::Prompt(_) => {}
            Update::Delta(delta) => making.take(&delta),
            Update::Finished(finished) => {
                usage.add(&finished);
                making.finish(finished.reason);
            }
            Update::Failed(error) => return Err(error),
        }
    }
    let response = making.object(Some(&usage));
    keep(app, &making, &response);
    Ok(Json(response).into_response())
}

/// Keeps a response for those that go on from it.
fn keep(app: &App, making: &Making, response: &Value) {
    if let Some(holder) = making.keeper
        && making.status() != Status::InProgress
    {
        let (messages, response) = (making.conversation(), response.clone());
        app.responses.insert(making.id(), Stored { holder, messages, response });
    }
}

#[utoipa::path(get, path = "/v1/responses/{id}", params(("id" = String, Path)), responses((status = 200, description = "The answer", body = ResponseAnswer), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = path_id(id)?;
    let stored = app.responses.get(&id, caller).ok_or_else(|| unknown(&id).at("response_id"))?;
    Ok(Json(stored.response.clone()))
}

#[utoipa::path(delete, path = "/v1/responses/{id}", params(("id" = String, Path)), responses((status = 200, description = "The answer", body = ResponseDeleted), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn forget(
    State(app): State<Arc<App>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = path_id(id)?;
    match app.responses.remove(&id, caller) {
        true => Ok(Json(json!({"id": id, "object": "response", "deleted": true}))),
        false => Err(unknown(&id).at("response_id")),
    }
}

fn path_id(id: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let no_text = |_| ApiError::invalid("response_id", "the id in the path is no text");
    id.map(|Path(id)| id).map_err(no_text)
}

fn unknown(id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    let message = format!("no response `{id}`: it was not stored, or it is forgotten");
    ApiError::new(StatusCode::NOT_FOUND, message).code("response_not_found")
}
