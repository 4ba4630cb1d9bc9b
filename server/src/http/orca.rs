//! The server's load in an answer's head, for load balancers that ask for it: ORCA, as vLLM does it.
//!
//! A request with `endpoint-load-metrics-format: TEXT` or `JSON` gets `endpoint-load-metrics` back.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use super::App;
use crate::engine::Snapshot;

const ASKED: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
const TOLD: HeaderName = HeaderName::from_static("endpoint-load-metrics");

pub async fn tell(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let format = request.headers().get(ASKED).and_then(Format::read);
    let mut response = next.run(request).await;
    let told = format.map(|format| format.write(&app.engine.snapshot()));
    if let Some(told) = told.and_then(|text| HeaderValue::from_str(&text).ok()) {
        response.headers_mut().insert(TOLD, told);
    }
    response
}

#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
}

impl Format {
    /// `None` for a format that nobody knows: its answer has no report.
    fn read(value: &HeaderValue) -> Option<Self> {
        match value.as_bytes() {
            name if name.eq_ignore_ascii_case(b"text") => Some(Self::Text),
            name if name.eq_ignore_ascii_case(b"json") => Some(Self::Json),
            _ => None,
        }
    }

    fn write(self, snapshot: &Snapshot) -> String {
        let usage = snapshot.pages.usage();
        let waiting = snapshot.num_waiting_for_anything() as f64;
        match self {
            Self::Text => format!(
                "TEXT named_metrics.kv_cache_usage_perc={usage}, \
                 named_metrics.num_requests_waiting={waiting}"
            ),
            Self::Json => {
                let metrics =
                    json!({"kv_cache_usage_perc": usage, "num_requests_waiting": waiting});
                format!("JSON {}", json!({"named_metrics": metrics}))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::engine::snapshot::Pages;
    use crate::http::tests::{Server, completion_body, post, says};

    #[test]
    fn a_report_has_the_cache_s_share_and_the_queue() {
        let pages = Pages { num_pages: 8, num_live: 2, ..Pages::default() };
        let snapshot = Snapshot { pages, ..Snapshot::default() };
        assert_eq!(
            Format::Text.write(&snapshot),
            "TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=0"
        );
        assert_eq!(
            Format::Json.write(&snapshot),
            r#"JSON {"named_metrics":{"kv_cache_usage_perc":0.25,"num_requests_waiting":0.0}}"#
        );
    }

    #[tokio::test]
    async fn whoever_asks_for_the_load_is_told_and_nobody_else() {
        let server = Server::new(says("x"));
        let ask = async |format: Option<&str>| {
            let body = completion_body(json!({})).to_string();
            let mut request = post("/v1/completions", body);
            if let Some(format) = format {
                request.headers_mut().insert(ASKED, format.parse().unwrap());
            }
            let response: Response<Body> = server.send(request).await;
            assert_eq!(response.status(), 200);
            response.headers().get(TOLD).map(|told| told.to_str().unwrap().to_owned())
        };
        assert!(ask(Some("TEXT")).await.unwrap().starts_with("TEXT named_metrics."));
        assert!(ask(Some("json")).await.unwrap().starts_with("JSON {"));
        for nobody in [None, Some("BIN"), Some("")] {
            assert_eq!(ask(nobody).await, None, "{nobody:?}");
        }
    }
}
