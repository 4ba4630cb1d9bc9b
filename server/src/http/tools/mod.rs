//! `tools` and `tool_choice`: what a model may call, and what it must.

mod format;
mod json_end;
mod parse;
mod teach;

use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::structured;
use crate::grammar::Constraint;

pub use format::{TOOL_FORMATS, ToolFormat};
pub use parse::{CallPiece, Parsed, ToolParser};
pub use teach::teach;

const MAX_TOOLS: usize = 128;
const MAX_NAME_BYTES: usize = 64;

/// How a model is told of tools.
#[derive(Clone, Copy, Debug)]
pub struct ToolStyle {
    pub format: &'static ToolFormat,
    /// Whether the chat template takes the tools as they are.
    pub native: bool,
}

/// The tools of a request that may be called.
#[derive(Debug)]
pub struct Tools {
    /// As the request has them.
    pub specs: Vec<Value>,
    functions: Vec<Function>,
    choice: ToolChoice,
    parallel: bool,
}

#[derive(Debug)]
pub struct Function {
    pub name: String,
    /// A JSON schema.
    pub parameters: Value,
}

#[derive(Debug, PartialEq)]
enum ToolChoice {
    Auto,
    Required,
    Named(String),
}

impl Tools {
    /// `None` when nothing may be called.
    pub fn read(fields: &Fields) -> Result<Option<Self>, ApiError> {
        let specs = fields.array("tools")?.unwrap_or_default();
        if specs.len() > MAX_TOOLS {
            let message = format!("`tools` has {} tools, {MAX_TOOLS} at most", specs.len());
            return Err(ApiError::invalid("tools", message));
        }
        let functions: Vec<_> = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| function(spec, &format!("tools[{i}]")))
            .collect::<Result<_, _>>()?;
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let choice = choice(fields, &functions)?;
        let Some(choice) = choice.filter(|_| !functions.is_empty()) else { return Ok(None) };
        Ok(Some(Self { specs: specs.to_vec(), functions, choice, parallel }))
    }

    /// What forces the model to call, if it must.
    pub fn constraint(&self, app: &App) -> Result<Option<Constraint>, ApiError> {
        let functions: Vec<_> = match &self.choice {
            ToolChoice::Auto => return Ok(None),
            ToolChoice::Required => self.functions.iter().collect(),
            ToolChoice::Named(name) => self.functions.iter().filter(|f| f.name == *name).collect(),
        };
        let parallel = self.parallel && self.choice == ToolChoice::Required;
        let grammar = app.text.tool_style().format.grammar(&functions, parallel);
        structured::compile(&grammar, "tools", app).map(Some)
    }

    pub fn parser(&self, app: &App) -> ToolParser {
        let names = self.functions.iter().map(|function| function.name.clone()).collect();
        let max_calls = if self.parallel { usize::MAX } else { 1 };
        ToolParser::new(app.text.tool_style().format, names, max_calls)
    }
}

fn function(spec: &Value, path: &str) -> Result<Function, ApiError> {
    let fields = Fields::nested(spec, path)?;
    function_type(&fields)?;
    fields.required("function")?;
    let Some(function) = fields.object("function")? else { unreachable!("it is required") };
    function.required("name")?;
    let name = function.str("name")?.unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_plain) {
        let path = function.path("name");
        let message = format!(
            "`{path}` must be from 1 to {MAX_NAME_BYTES} letters, digits, `_`, `-` and `.`"
        );
        return Err(ApiError::invalid(path, message));
    }
    function.str("description")?;
    let parameters = match function.get("parameters") {
        None => json!({"type": "object"}),
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(_) => return Err(wrong_type(&function.path("parameters"), "an object")),
    };
    Ok(Function { name: name.to_owned(), parameters })
}

fn function_type(fields: &Fields) -> Result<(), ApiError> {
    fields.required("type")?;
    match fields.str("type")? {
        Some("function") => Ok(()),
        other => {
            let path = fields.path("type");
            let message = format!("no type `{}`: tools are functions", other.unwrap_or_default());
            Err(ApiError::invalid(path, message))
        }
    }
}

/// `None` for "none".
fn choice(fields: &Fields, functions: &[Function]) -> Result<Option<ToolChoice>, ApiError> {
    let choice = match fields.get("tool_choice") {
        None => return Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(None),
            "auto" => return Ok(Some(ToolChoice::Auto)),
            "required" => ToolChoice::Required,
            _ => {
                let message =
                    format!("no tool choice `{word}`: none, auto, required or a function");
                return Err(ApiError::invalid("tool_choice", message));
            }
        },
        Some(value @ Value::Object(_)) => named(&Fields::nested(value, "tool_choice")?, functions)?,
        Some(_) => return Err(wrong_type("tool_choice", "a string or an object")),
    };
    match functions {
        [] => Err(ApiError::invalid("tool_choice", "there are no `tools` to choose from")),
        _ => Ok(Some(choice)),
    }
}

fn named(fields: &Fields, functions: &[Function]) -> Result<ToolChoice, ApiError> {
    function_type(fields)?;
    fields.required("function")?;
    let Some(function) = fields.object("function")? else { unreachable!("it is required") };
    function.required("name")?;
    let name = function.str("name")?.unwrap_or_default();
    match functions.iter().any(|function| function.name == name) {
        true => Ok(ToolChoice::Named(name.to_owned())),
        false => {
            let message = format!("no tool is named `{name}`");
            Err(ApiError::invalid(function.path("name"), message))
        }
    }
}
