//! API keys.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::App;
use super::error::ApiError;
use super::user::hold_key;

/// What probes and scrapers read without a key, and the page that asks a person for one.
const OPEN: &[&str] = &["/health", "/live", "/ready", "/metrics", "/dashboard"];
/// The parts of that page: the same for everyone, whatever the server does.
const OPEN_PARTS: &str = "/dashboard/assets/";

/// The keys that clients may present; without any, nobody is asked for one.
#[derive(Clone, Default)]
pub struct ApiKeys {
    /// Hashes are of one length, so comparing them tells nothing of the keys.
    hashes: Vec<[u8; 32]>,
}

impl ApiKeys {
    pub fn new(keys: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        Self { hashes: keys.into_iter().map(|key| hash(key.as_ref())).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Takes the same time whatever `key` is.
    fn has(&self, key: &[u8]) -> bool {
        let presented = hash(key);
        let found = |found: Choice, known: &[u8; 32]| found | known.ct_eq(&presented);
        self.hashes.iter().fold(Choice::from(0), found).into()
    }

    /// Whether the request may pass; with a key of ours it is its holder's.
    fn allow(&self, request: &mut Request) -> bool {
        let path = request.uri().path();
        if self.is_empty() || OPEN.contains(&path) || path.starts_with(OPEN_PARTS) {
            return true;
        }
        let Some(key) = bearer(request.headers()).map(<[u8]>::to_vec) else { return false };
        let is_known = self.has(&key);
        if is_known {
            hold_key(request, &key);
        }
        is_known
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// The key of `Authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Refuses requests without a known key.
pub async fn check(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    if app.api_keys.allow(&mut request) {
        return next.run(request).await;
    }
    let message = match request.headers().contains_key(header::AUTHORIZATION) {
        true => "the API key is not known to this server",
        false => "this server needs an API key: send `Authorization: Bearer KEY`",
    };
    let error = ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key");
    let mut response = error.into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
