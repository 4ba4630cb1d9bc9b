//! Prompt and answer share the model's context.

use axum::http::StatusCode;

use super::App;
use super::error::ApiError;
use super::fields::Fields;

/// Tokenizing megabytes takes seconds: a text that cannot fit, however it is cut into tokens, is
/// refused before that.
///
/// # Errors
/// The text fills the context even with the longest tokens there are.
pub fn check_text(text: &str, app: &App, param: &str) -> Result<(), ApiError> {
    let max_model_len = app.model.max_model_len.min(app.limits.max_prompt_tokens);
    let least = text.len().div_ceil(app.text.longest_token().max(1));
    if least <= max_model_len {
        return Ok(());
    }
    let message = format!("the prompt has at least {least} tokens, {max_model_len} are the most");
    let error = ApiError::new(StatusCode::BAD_REQUEST, message);
    Err(error.at(param).code("context_length_exceeded"))
}

/// # Errors
/// The prompt is longer than the operator allows.
fn check_len(prompt_len: usize, app: &App, param: &str) -> Result<(), ApiError> {
    let most = app.limits.max_prompt_tokens;
    if prompt_len <= most {
        return Ok(());
    }
    let message = format!("the prompt has {prompt_len} tokens, this server takes {most} at most");
    Err(ApiError::invalid(param, message).code("prompt_too_long"))
}

/// For a prompt with which nothing is to be generated: it may fill the context.
///
/// # Errors
/// The prompt is too long, or has no tokens.
pub fn whole(app: &App, prompt_len: usize, param: &str) -> Result<TokenLimit, ApiError> {
    check_len(prompt_len, app, param)?;
    let max_model_len = app.model.max_model_len;
    match prompt_len {
        0 => Err(ApiError::invalid(param, "the prompt has no tokens")),
        len if len > max_model_len => {
            let message =
                format!("the model's context is {max_model_len} tokens, the prompt has {len}");
            let error = ApiError::new(StatusCode::BAD_REQUEST, message);
            Err(error.at(param).code("context_length_exceeded"))
        }
        _ => Ok(TokenLimit { max_tokens: 0, may_shorten: true }),
    }
}

/// How many tokens a prompt's choices may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLimit {
    pub max_tokens: usize,
    /// The request named no limit: fewer are fine too.
    pub may_shorten: bool,
}

/// A request's bound of generated tokens.
#[derive(Clone, Copy, Debug)]
pub enum MaxTokens {
    /// Asked for in this field: all of them must fit.
    Asked(&'static str, usize),
    /// As many as fit, this many at most.
    Default(usize),
}

impl MaxTokens {
    /// From the first of `names` that the request has, `least` or more.
    pub fn read(
        fields: &Fields,
        names: &[&'static str],
        least: i64,
        default: usize,
    ) -> Result<Self, ApiError> {
        for name in names {
            if let Some(asked) = fields.integer(name, least..=i64::from(u32::MAX))? {
                return Ok(Self::Asked(name, asked));
            }
        }
        Ok(Self::Default(default))
    }

    /// The bound for a prompt that came in the field `param`.
    ///
    /// # Errors
    /// No room for the prompt and one token, or for the tokens asked for; a prompt without tokens.
    pub fn within(self, app: &App, prompt_len: usize, param: &str) -> Result<TokenLimit, ApiError> {
        if prompt_len == 0 {
            return Err(ApiError::invalid(param, "the prompt has no tokens"));
        }
        check_len(prompt_len, app, param)?;
        let max_model_len = app.model.max_model_len;
        let rest = max_model_len.saturating_sub(prompt_len);
        let (field, wanted, max_tokens, may_shorten) = match self {
            // Who asks for none gets the prompt's own log-probabilities: that takes a token, too.
            Self::Asked(name, asked) => (name, asked.max(1), asked, false),
            Self::Default(default) => (param, 1, default.min(rest), true),
        };
        if wanted <= rest {
            return Ok(TokenLimit { max_tokens, may_shorten });
        }
        let at = if rest == 0 { param } else { field };
        let message = format!(
            "the model's context is {max_model_len} tokens, but the prompt has {prompt_len} and \
             {wanted} are to be generated"
        );
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        Err(error.at(at).code("context_length_exceeded"))
    }
}
