//! Who asks: users share the server fairly.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::fields::Fields;
use crate::cache::Salt;
use crate::sched::UserId;

/// Put into requests that came with an API key.
#[derive(Clone, Copy)]
struct KeyHolder(UserId);

/// Notes that the request came with this key, which is one of the server's.
pub fn hold_key(request: &mut Request, key: &[u8]) {
    request.extensions_mut().insert(KeyHolder(UserId::of(key)));
}

/// Who sent the request, if its key tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(Option<UserId>);

impl Caller {
    /// Of a server without keys.
    pub const UNKNOWN: Self = Self(None);

    /// What tells apart whom this salt does not, and holders of other keys.
    pub fn salted(self, salt: Salt) -> Salt {
        let Some(UserId(holder)) = self.0 else { return salt };
        let digest = Sha256::new().chain_update(holder.to_le_bytes()).chain_update(salt.0);
        Salt(digest.finalize().into())
    }

    /// A key is checked, a name is only said: with a key it does not count, or its holder could be as
    /// many users as they like.
    pub fn or_named(self, named: UserId) -> UserId {
        self.0.unwrap_or(named)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get().map(|KeyHolder(user)| *user)))
    }
}

/// Whom the field `user` names.
pub fn named(fields: &Fields) -> Result<UserId, ApiError> {
    let name = fields.str("user")?.filter(|name| !name.is_empty());
    Ok(name.map_or(UserId::ANONYMOUS, |name| UserId::of(name.as_bytes())))
}
