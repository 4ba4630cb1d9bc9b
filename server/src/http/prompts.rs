//! The four forms of a completion's prompt: text, token ids, and a list of either.

use serde_json::Value;

use super::App;
use super::context::{self, MaxTokens, TokenLimit};
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::params::token_ids;

const MAX_PROMPTS: usize = 256;
/// OpenAI's, for texts that are only read.
const MAX_INPUTS: usize = 2048;
const EXPECTED: &str = "a string, an array of strings, of token ids, or of arrays of token ids";

pub struct Prompt {
    pub ids: Vec<u32>,
    /// Absent when the prompt came as ids.
    pub text: Option<String>,
    /// Where it stands in the request: `prompt`, `prompt[2]`.
    pub param: String,
    pub limit: TokenLimit,
}

/// What prompts are read for.
struct Reader<'a> {
    app: &'a App,
    /// The field they are in.
    name: &'static str,
    max_tokens: Option<MaxTokens>,
}

/// At least one prompt. Each is known to fit before the next is tokenized: a request has room for
/// many that are just short enough to be tried.
pub fn read(fields: &Fields, app: &App, max_tokens: MaxTokens) -> Result<Vec<Prompt>, ApiError> {
    Reader { app, name: "prompt", max_tokens: Some(max_tokens) }.read(fields)
}

/// The same in another field, with nothing to be generated.
pub fn read_only(fields: &Fields, app: &App, name: &'static str) -> Result<Vec<Prompt>, ApiError> {
    Reader { app, name, max_tokens: None }.read(fields)
}

impl Reader<'_> {
    fn read(&self, fields: &Fields) -> Result<Vec<Prompt>, ApiError> {
        let name = self.name;
        match fields.required(name)? {
            Value::String(text) => Ok(vec![self.text(text, name.into())?]),
            Value::Array(items) => match items.first() {
                None => Err(ApiError::invalid(name, format!("`{name}` must not be empty"))),
                Some(Value::Number(_)) => Ok(vec![self.ids(items, name.into())?]),
                Some(_) => self.list(items),
            },
            _ => Err(wrong_type(name, EXPECTED)),
        }
    }

    fn list(&self, items: &[Value]) -> Result<Vec<Prompt>, ApiError> {
        let max = if self.max_tokens.is_some() { MAX_PROMPTS } else { MAX_INPUTS };
        if items.len() > max {
            let name = self.name;
            let message = format!("`{name}` has {} prompts, {max} at most", items.len());
            return Err(ApiError::invalid(name, message));
        }
        let prompt = |(i, item): (usize, &Value)| {
            let param = format!("{}[{i}]", self.name);
            match item {
                Value::String(text) => self.text(text, param),
                Value::Array(ids) => self.ids(ids, param),
                _ => Err(wrong_type(&param, "a string or an array of token ids")),
            }
        };
        items.iter().enumerate().map(prompt).collect()
    }

    fn text(&self, text: &str, param: String) -> Result<Prompt, ApiError> {
        let refused = |error| ApiError::invalid(&param, format!("{error:#}"));
        context::check_text(text, self.app, &param)?;
        let ids = self.app.text.encode(text, true).map_err(refused)?;
        self.prompt(ids, Some(text.to_owned()), param)
    }

    fn ids(&self, ids: &[Value], param: String) -> Result<Prompt, ApiError> {
        self.prompt(token_ids(ids, &param, self.app)?, None, param)
    }

    fn prompt(
        &self,
        ids: Vec<u32>,
        text: Option<String>,
        param: String,
    ) -> Result<Prompt, ApiError> {
        let limit = match self.max_tokens {
            Some(max_tokens) => max_tokens.within(self.app, ids.len(), &param)?,
            None => context::whole(self.app, ids.len(), &param)?,
        };
        Ok(Prompt { ids, text, param, limit })
    }
}
