//! `response_format`, and vLLM's ways to say what an answer must follow.

use axum::http::StatusCode;
use serde_json::Value;

use super::App;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use crate::grammar::{Constraint, Grammar, GrammarError};

const MAX_CHOICES: usize = 10_000;

/// A grammar and the field it came in.
struct Asked {
    grammar: Grammar,
    path: String,
}

/// What the answer must follow, if anything. May block for seconds: call it off the async workers.
///
/// # Errors
/// More than one grammar, or one that is malformed, too large or too slow.
pub fn read(fields: &Fields, app: &App) -> Result<Option<Constraint>, ApiError> {
    let mut asked = response_format(fields)?.into_iter().collect::<Vec<_>>();
    asked.extend(named(fields, "guided_")?);
    if let Some(nested) = fields.object("structured_outputs")? {
        asked.extend(named(&nested, "")?);
    }
    let mut asked = asked.into_iter();
    let Some(Asked { grammar, path }) = asked.next() else { return Ok(None) };
    if let Some(other) = asked.next() {
        let message = format!("`{path}` and `{}` exclude each other", other.path);
        return Err(ApiError::invalid(other.path, message));
    }
    compile(&grammar, &path, app).map(Some)
}

pub fn compile(grammar: &Grammar, path: &str, app: &App) -> Result<Constraint, ApiError> {
    app.grammars.compile(grammar).map_err(|error| {
        let (status, code) = match error {
            GrammarError::Busy => (StatusCode::TOO_MANY_REQUESTS, "too_many_grammars"),
            GrammarError::TooLarge(_) | GrammarError::TooSlow => {
                (StatusCode::BAD_REQUEST, "grammar_too_complex")
            }
            GrammarError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_grammar"),
        };
        ApiError::new(status, format!("`{path}`: {error}")).at(path).code(code)
    })
}

fn response_format(fields: &Fields) -> Result<Option<Asked>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    format.required("type")?;
    let path = format.path("type");
    match format.str("type")?.unwrap_or_default() {
        "text" => Ok(None),
        "json_object" => Ok(Some(Asked { grammar: Grammar::json_object(), path })),
        "json_schema" => json_schema(&format).map(Some),
        other => {
            let message = format!("no format `{other}`: expected text, json_object or json_schema");
            Err(ApiError::invalid(path, message))
        }
    }
}

/// `{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}`; always strict.
fn json_schema(format: &Fields) -> Result<Asked, ApiError> {
    format.required("json_schema")?;
    let path = format.path("json_schema");
    let Some(inner) = format.object("json_schema")? else { unreachable!("it is required") };
    inner.str("name")?;
    inner.bool("strict")?;
    let path = format!("{path}.schema");
    let schema = inner.required("schema")?;
    Ok(Asked { grammar: schema_grammar(schema, &path)?, path })
}

fn schema_grammar(schema: &Value, path: &str) -> Result<Grammar, ApiError> {
    match schema {
        Value::Object(_) => Ok(Grammar::JsonSchema(schema.clone())),
        // vLLM takes schemas as text as well.
        Value::String(text) => match serde_json::from_str(text) {
            Ok(schema @ Value::Object(_)) => Ok(Grammar::JsonSchema(schema)),
            _ => Err(ApiError::invalid(path, format!("`{path}` is not the text of an object"))),
        },
        _ => Err(wrong_type(path, "an object")),
    }
}

/// `guided_json`, ... at the top, or `json`, ... within `structured_outputs`.
fn named(fields: &Fields, prefix: &str) -> Result<Vec<Asked>, ApiError> {
    let mut asked = vec![];
    let name = |kind: &str| format!("{prefix}{kind}");
    let mut ask =
        |kind: &str, grammar| asked.push(Asked { grammar, path: fields.path(&name(kind)) });
    if let Some(schema) = fields.get(&name("json")) {
        ask("json", schema_grammar(schema, &fields.path(&name("json")))?);
    }
    if fields.bool(&name("json_object"))?.unwrap_or(false) {
        ask("json_object", Grammar::json_object());
    }
    if let Some(regex) = fields.str(&name("regex"))? {
        ask("regex", Grammar::Regex(regex.to_owned()));
    }
    if let Some(lark) = fields.str(&name("grammar"))? {
        ask("grammar", Grammar::Lark(lark.to_owned()));
    }
    if let Some(texts) = fields.array(&name("choice"))? {
        ask("choice", choice(texts, &fields.path(&name("choice")))?);
    }
    Ok(asked)
}

fn choice(texts: &[Value], path: &str) -> Result<Grammar, ApiError> {
    if texts.is_empty() || texts.len() > MAX_CHOICES {
        let message = format!("`{path}` must have from 1 to {MAX_CHOICES} texts");
        return Err(ApiError::invalid(path, message));
    }
    let text = |(i, text): (usize, &Value)| {
        let path = format!("{path}[{i}]");
        let text = text.as_str().ok_or_else(|| wrong_type(&path, "a string"))?;
        match text {
            "" => Err(ApiError::invalid(&path, format!("`{path}` must not be empty"))),
            text => Ok(text.to_owned()),
        }
    };
    texts.iter().enumerate().map(text).collect::<Result<_, _>>().map(Grammar::Choice)
}
