//! `GET /openapi.json`: what there is to ask, for people and programs.

mod answers;
mod schemas;

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as Document, SecurityRequirement};
use utoipa::{Modify, OpenApi};

use super::{
    App, chat, completions, dashboard, debug_kv, embeddings, health, load, metrics, models,
    responses, tokenize, version,
};

use crate::compress::POLICIES;

pub use answers::{
    ChatAnswer, CompletionAnswer, DashboardState, DetokenizeAnswer, EmbeddingAnswer, KeptCache,
    KeptRequests, LoadAnswer, ModelCard, ModelList, ResponseAnswer, ResponseDeleted, StreamEvent,
    TokenizeAnswer, VersionAnswer,
};
pub use schemas::{
    ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, ErrorEnvelope,
    ResponseRequest, TokenizeRequest,
};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/openapi.json", get(document))
}

async fn document(State(app): State<Arc<App>>) -> Json<Value> {
    let mut document = serde_json::to_value(Api::openapi()).unwrap_or_default();
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        fill_in(schemas, &app);
    }
    Json(document)
}

/// What this server's model and flags allow.
fn fill_in(schemas: &mut Map<String, Value>, app: &App) {
    let limits = &app.limits;
    let policies: Vec<_> = POLICIES.iter().map(|policy| policy.name()).collect();
    for (name, bounds) in [
        ("ModelName", json!({"enum": [app.model.name]})),
        ("TokenId", json!({"minimum": 0, "maximum": app.text.vocab_size().saturating_sub(1)})),
        ("StopString", json!({"minLength": 1, "maxLength": 1024})),
        ("StopStrings", json!({"maxItems": limits.max_stop_strings})),
        ("NumChoices", json!({"minimum": 1, "maximum": limits.max_choices})),
        ("NumLogprobs", json!({"minimum": 0, "maximum": limits.max_logprobs})),
        ("FunctionName", json!({"pattern": "^[a-zA-Z0-9_.-]{1,64}$"})),
        ("PolicyName", json!({"enum": policies})),
        ("PromptText", json!({"minLength": 1})),
        ("PromptTexts", json!({"minItems": 1, "maxItems": 256})),
        ("TokenIds", json!({"minItems": 1, "maxItems": app.model.max_model_len - 1})),
        ("ManyTokenIds", json!({"minItems": 1, "maxItems": 256})),
    ] {
        let schema = schemas.get_mut(name).and_then(Value::as_object_mut);
        if let (Some(schema), Value::Object(bounds)) = (schema, bounds) {
            schema.extend(bounds);
        }
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Keepwell", description = "OpenAI's API, and what the KV cache may cost"),
    modifiers(&Bearer),
    paths(
        chat::create,
        completions::create,
        embeddings::create,
        responses::create,
        responses::retrieve,
        responses::forget,
        tokenize::tokenize,
        tokenize::detokenize,
        models::list,
        models::retrieve,
        health::health,
        health::live,
        health::ready,
        load::load,
        version::version,
        metrics::render,
        dashboard::now,
        debug_kv::list,
        debug_kv::show,
    )
)]
struct Api;

/// The key, where the server asks for one.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
        let none: [&str; 0] = [];
        document.security = Some(vec![SecurityRequirement::new("bearer", none)]);
    }
}
