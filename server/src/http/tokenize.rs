//! `POST /tokenize` and `POST /detokenize`, as vLLM has them.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Map, Value};

use super::App;
use super::body::{JsonObject, off_worker};
use super::context;
use super::error::ApiError;
use super::fields::Fields;
use super::params::token_ids;
use super::{chat, fields};

use super::openapi::{
    DetokenizeAnswer, DetokenizeRequest, ErrorEnvelope, TokenizeAnswer, TokenizeRequest,
};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/tokenize", post(tokenize)).route("/detokenize", post(detokenize))
}

#[derive(Serialize)]
pub(super) struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
pub(super) struct Detokenized {
    prompt: String,
}

#[utoipa::path(post, path = "/tokenize", request_body = TokenizeRequest, responses((status = 200, description = "The answer", body = TokenizeAnswer), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonObject(body): JsonObject,
) -> Result<Json<Tokens>, ApiError> {
    off_worker(move || tokens(&app, &body)).await.map(Json)
}

fn tokens(app: &App, body: &Map<String, Value>) -> Result<Tokens, ApiError> {
    let fields = Fields::root(body);
    app.check_model(fields.str("model")?)?;
    let with_strings = fields.bool("return_token_strs")?.unwrap_or(false);
    let tokens = prompt_tokens(app, &fields)?;
    let string = |&id: &u32| String::from_utf8_lossy(&app.text.token_bytes(id)).into_owned();
    Ok(Tokens {
        count: tokens.len(),
        max_model_len: app.model.max_model_len,
        token_strs: with_strings.then(|| tokens.iter().map(string).collect()),
        tokens,
    })
}

/// Of a text in `prompt`, or of a chat in `messages`.
fn prompt_tokens(app: &App, fields: &Fields) -> Result<Vec<u32>, ApiError> {
    if fields.get("messages").is_some() {
        return chat::prompt(fields, app);
    }
    fields.required("prompt")?;
    let text = fields.str("prompt")?.unwrap_or_default();
    let add_special = fields.bool("add_special_tokens")?.unwrap_or(true);
    context::check_text(text, app, "prompt")?;
    let refused = |error| ApiError::invalid("prompt", format!("{error:#}"));
    app.text.encode(text, add_special).map_err(refused)
}

#[utoipa::path(post, path = "/detokenize", request_body = DetokenizeRequest, responses((status = 200, description = "The answer", body = DetokenizeAnswer), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    JsonObject(body): JsonObject,
) -> Result<Json<Detokenized>, ApiError> {
    off_worker(move || text(&app, &body)).await.map(Json)
}

fn text(app: &App, body: &Map<String, Value>) -> Result<Detokenized, ApiError> {
    let fields = Fields::root(body);
    app.check_model(fields.str("model")?)?;
    let tokens = fields.array("tokens")?.ok_or_else(|| fields::missing("tokens"))?;
    let ids = token_ids(tokens, "tokens", app)?;
    let refused = |error| ApiError::invalid("tokens", format!("{error:#}"));
    Ok(Detokenized { prompt: app.text.decode(&ids).map_err(refused)? })
}
