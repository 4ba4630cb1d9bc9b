//! `GET /openapi.json`: what there is to ask, for people and programs.

mod schemas;

use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as Document, SecurityRequirement};
use utoipa::{Modify, OpenApi};

use super::{
    App, chat, completions, embeddings, health, load, models, responses, tokenize, version,
};

pub use schemas::{
    ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, ErrorEnvelope,
    ResponseRequest, TokenizeRequest,
};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/openapi.json", get(document))
}

async fn document() -> Json<Document> {
    Json(Api::openapi())
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
