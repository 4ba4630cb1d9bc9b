//! The OpenAI API over HTTP, as vLLM's clients, routers and dashboards know it.
//!
//! An endpoint is one file and one `.merge`. Generation runs through [`answer`]: an endpoint reads
//! its fields into a job and says in a [`answer::Shape`] how its answers look.

mod answer;
mod auth;
mod body;
mod chat;
mod choice;
mod completions;
mod context;
mod dashboard;
mod debug_kv;
mod echo;
mod embeddings;
mod envelope;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod fields;
mod headers;
mod health;
mod limits;
mod load;
mod logprobs;
mod messages;
mod metrics;
mod models;
mod openapi;
mod orca;
mod params;
mod prompts;
mod protect;
mod responses;
mod sse;
mod stop;
mod structured;
#[cfg(test)]
mod tests;
mod text;
mod tokenize;
mod tools;
mod trace;
mod usage;
mod user;
mod version;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::PrometheusHandle;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tower_http::timeout::RequestBodyTimeoutLayer;

pub use self::auth::ApiKeys;
pub use self::health::{Draining, loading};
pub use self::limits::Limits;
pub use self::load::Load;
pub use self::params::KvDefaults;
pub use self::responses::StoredResponses;
pub use self::text::{Chat, Detokenizer, Text, grammars};
pub use self::tools::{TOOL_FORMATS, ToolFormat, ToolStyle};
pub use self::user::Caller;

use self::error::ApiError;
use crate::dashboard::views::Views;
use crate::engine::EngineHandle;
use crate::grammar::Grammars;
use crate::metrics::memory::MemoryMeter;

/// What the endpoints share.
pub struct App {
    pub engine: EngineHandle,
    pub text: Arc<dyn Text>,
    pub grammars: Grammars,
    pub model: ServedModel,
    pub kv_cache: KvDefaults,
    pub metrics: PrometheusHandle,
    pub memory: MemoryMeter,
    /// What requests leave behind, if it is kept to be looked at.
    pub views: Option<Arc<Views>>,
    pub limits: Limits,
    pub api_keys: ApiKeys,
    /// Web pages that may read answers.
    pub cors_origins: Vec<HeaderValue>,
    pub load: Load,
    pub responses: StoredResponses,
    pub draining: Draining,
}

/// The model as clients see it.
pub struct ServedModel {
    pub name: String,
    /// Tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Tokens that end a generation unless the request ignores them.
    pub eos_token_ids: Vec<u32>,
    /// Length of an embedding.
    pub hidden_size: usize,
    /// Unix seconds.
    pub created: u64,
}

impl ServedModel {
    /// Serves a model as of now.
    pub fn new(
        name: String,
        max_model_len: usize,
        eos_token_ids: Vec<u32>,
        hidden_size: usize,
    ) -> Self {
        let created = envelope::unix_seconds();
        Self { name, max_model_len, eos_token_ids, hidden_size, created }
    }
}

impl App {
    /// Everything that was recorded, in Prometheus' text format.
    fn render_metrics(&self) -> String {
        self.memory.publish(&self.engine.snapshot().pages);
        self.metrics.render()
    }

    /// A request may leave the model out; there is only one.
    fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if name != self.model.name => {
                let message =
                    format!("no model `{name}`: this server serves `{}`", self.model.name);
                let error = ApiError::new(StatusCode::NOT_FOUND, message);
                Err(error.at("model").code("model_not_found"))
            }
            _ => Ok(()),
        }
    }
}

/// Every endpoint, and the error envelope around all of them.
pub fn router(app: App) -> Router {
    let app = Arc::new(app);
    let work = Router::new()
        .merge(chat::routes())
        .merge(completions::routes())
        .merge(embeddings::routes())
        .merge(responses::routes())
        .merge(tokenize::routes())
        .layer(RequestBodyTimeoutLayer::new(app.limits.body_timeout))
        .layer(middleware::from_fn_with_state(app.clone(), load::admit))
        .layer(middleware::from_fn_with_state(app.clone(), orca::tell))
        .layer(DefaultBodyLimit::max(app.limits.max_body_bytes));
    let router = Router::new()
        .merge(work)
        .merge(load::routes())
        .merge(models::routes())
        .merge(openapi::routes())
        .merge(health::routes())
        .merge(metrics::routes())
        .merge(version::routes())
        .merge(dashboard::routes())
        .merge(debug_kv::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::map_response_with_state(app.clone(), load::overload_status))
        .layer(middleware::from_fn_with_state(app.clone(), auth::check))
        .layer(middleware::from_fn_with_state(app.clone(), headers::check))
        .layer(CatchPanicLayer::custom(|_| body::panicked().into_response()))
        .layer(middleware::from_fn(trace::log));
    match cors(&app.cors_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    }
    .with_state(app)
}

/// Off unless origins are named; never with credentials.
fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        [any] if any == "*" => AllowOrigin::any(),
        named => AllowOrigin::list(named.iter().cloned()),
    };
    Some(allowing().allow_origin(allowed))
}

fn allowing() -> CorsLayer {
    CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // SDKs add headers of their own.
        .allow_headers(AllowHeaders::mirror_request())
}

async fn not_found(uri: Uri) -> Response {
    let message = format!("no such path: {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, message).code("not_found").into_response()
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{method} is not allowed on {}", uri.path());
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message);
    error.code("method_not_allowed").into_response()
}
