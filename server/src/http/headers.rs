//! A bound of a request's headers.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::error::ApiError;

/// Refuses what is beyond the bound. The connection's own, which keeps headers from filling the
/// memory, counts in whole reads and lets some more pass.
pub async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (most, num_bytes) = (app.limits.max_header_bytes, len(&request));
    if num_bytes <= most {
        return next.run(request).await;
    }
    let message = format!("the request line and headers have {num_bytes} bytes, {most} at most");
    let error = ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message);
    error.code("headers_too_large").into_response()
}

/// Bytes of the request line and the headers, as they came.
fn len(request: &Request) -> usize {
    const AROUND_LINE: usize = "  HTTP/1.1\r\n".len();
    const AROUND_HEADER: usize = ": \r\n".len();
    let uri = request.uri();
    let absolute = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len())
        + uri.authority().map_or(0, |authority| authority.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let line = request.method().as_str().len() + absolute + path + AROUND_LINE;
    let header = |(name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
        name.as_str().len() + value.len() + AROUND_HEADER
    };
    line + request.headers().iter().map(header).sum::<usize>()
}
