//! The four forms of a completion's prompt: text, token ids, and a list of either.

use serde_json::Value;

use super::App;
use super::context;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::params::token_ids;

const MAX_PROMPTS: usize = 256;
const EXPECTED: &str = "a string, an array of strings, of token ids, or of arrays of token ids";

pub struct Prompt {
    pub ids: Vec<u32>,
    /// Absent when the prompt came as ids.
    pub text: Option<String>,
    /// Where it stands in the request: `prompt`, `prompt[2]`.
    pub param: String,
}

/// At least one prompt.
pub fn read(fields: &Fields, app: &App) -> Result<Vec<Prompt>, ApiError> {
    let prompts = match fields.required("prompt")? {
        Value::String(text) => vec![from_text(text, "prompt".into(), app)?],
        Value::Array(items) => match items.first() {
            None => return Err(ApiError::invalid("prompt", "`prompt` must not be empty")),
            Some(Value::Number(_)) => vec![from_ids(items, "prompt".into(), app)?],
            Some(_) => from_list(items, app)?,
        },
        _ => return Err(wrong_type("prompt", EXPECTED)),
    };
    Ok(prompts)
}

fn from_list(items: &[Value], app: &App) -> Result<Vec<Prompt>, ApiError> {
    if items.len() > MAX_PROMPTS {
        let message = format!("`prompt` has {} prompts, {MAX_PROMPTS} at most", items.len());
        return Err(ApiError::invalid("prompt", message));
    }
    let prompt = |(i, item): (usize, &Value)| {
        let param = format!("prompt[{i}]");
        match item {
            Value::String(text) => from_text(text, param, app),
            Value::Array(ids) => from_ids(ids, param, app),
            _ => Err(wrong_type(&param, "a string or an array of token ids")),
        }
    };
    items.iter().enumerate().map(prompt).collect()
}

fn from_text(text: &str, param: String, app: &App) -> Result<Prompt, ApiError> {
    let refused = |error| ApiError::invalid(&param, format!("{error:#}"));
    context::check_text(text, app, &param)?;
    let ids = app.text.encode(text, true).map_err(refused)?;
    Ok(Prompt { ids, text: Some(text.to_owned()), param })
}

fn from_ids(ids: &[Value], param: String, app: &App) -> Result<Prompt, ApiError> {
    Ok(Prompt { ids: token_ids(ids, &param, app)?, text: None, param })
}
