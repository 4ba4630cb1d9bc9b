//! `GET /debug/kv`: what the cache kept of a request, token by token. Only with `--debug-kv`: the
//! answers hold the text of prompts. With API keys each sees its own.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::App;
use super::body::off_worker;
use super::error::ApiError;
use super::openapi::{ErrorEnvelope, KeptCache, KeptRequests};
use super::user::Caller;
use crate::dashboard::attribution::Page;
use crate::dashboard::views::{Viewed, Views};
use crate::engine::{EngineError, Event, GenerateRequest, KvCacheParams, KvView, SamplingParams};
use crate::sched::UserId;

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/debug/kv", get(list)).route("/debug/kv/{id}", get(show))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Over all layers without.
    layer: Option<usize>,
    /// The request is computed anew with this budget, its answer as part of the prompt.
    #[param(exclusive_minimum = 0.0, maximum = 1.0)]
    budget: Option<f32>,
}

#[utoipa::path(get, path = "/debug/kv", responses((status = 200, description = "The answer; 404 unless the server was started with --debug-kv", body = KeptRequests), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Value>, ApiError> {
    let viewed = views(&app)?.all(caller);
    let requests = viewed.iter().map(|viewed| {
        let view = &viewed.view;
        json!({"id": viewed.request.id, "tokens": view.tokens.len(), "budget": view.budget})
    });
    Ok(Json(json!({"requests": requests.collect::<Vec<_>>()})))
}

#[utoipa::path(get, path = "/debug/kv/{id}", params(("id" = String, Path), Wanted), responses((status = 200, description = "The answer; 404 unless the server was started with --debug-kv and still has the request", body = KeptCache), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Page>, ApiError> {
    let no_text = |_| ApiError::invalid("id", "the id in the path is no text");
    let Path(id) = id.map_err(no_text)?;
    let Query(wanted) = wanted.map_err(|error| ApiError::invalid("query", error.body_text()))?;
    let viewed = views(&app)?.find(&id, caller);
    let not_kept = || ApiError::not_found(format!("no request {id} is kept"));
    let viewed = viewed.ok_or_else(|| not_kept().code("request_not_kept"))?;
    let view = match wanted.budget {
        None => viewed.view.clone(),
        Some(budget) => replay(&app, &viewed, budget).await?,
    };
    off_worker(move || {
        let text = |id| app.text.token_bytes(id);
        let page = Page::new(&id, &view, wanted.layer, text);
        let message = || format!("the model has {} layers", view.num_layers);
        page.ok_or_else(|| ApiError::invalid("layer", message()))
    })
    .await
    .map(Json)
}

fn views(app: &App) -> Result<&Views, ApiError> {
    let message = "this server does not keep what requests leave: start it with --debug-kv";
    app.views.as_deref().ok_or_else(|| ApiError::not_found(message).code("debug_kv_off"))
}

/// The same tokens at another budget. One token more is drawn and not looked at.
async fn replay(app: &App, viewed: &Viewed, budget: f32) -> Result<Arc<KvView>, ApiError> {
    if !(budget > 0.0 && budget <= 1.0) {
        return Err(ApiError::invalid("budget", "a budget is above 0 and at most 1"));
    }
    if let Some(view) = viewed.replay(budget) {
        return Ok(view);
    }
    let mut prompt = viewed.view.tokens.clone();
    prompt.truncate(app.model.max_model_len.saturating_sub(1));
    let kv_cache = KvCacheParams { budget, min_budget: budget, policy: viewed.request.policy };
    let (mut generation, view) = app.engine.replay(GenerateRequest {
        prompt,
        max_tokens: 1,
        may_shorten: true,
        stop_token_ids: vec![],
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        kv_cache,
        priority: 0,
        user: UserId::ANONYMOUS,
        constraint: None,
        marked: viewed.request.marked.clone(),
        pooling: None,
        cache_salt: None,
    })?;
    // Dropping the generation early would cancel it.
    while let Some(event) = generation.next().await {
        if let Event::Failed(error) = event {
            return Err(error.into());
        }
    }
    let ended = |_| EngineError::Internal("it ended without a view".into());
    let mut view = view.await.map_err(ended)?;
    view.prompt_len = viewed.view.prompt_len;
    let view = Arc::new(view);
    viewed.keep_replay(budget, view.clone());
    Ok(view)
}
