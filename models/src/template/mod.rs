//! Chat templates: messages to the prompt a model was trained on.

mod python;
mod strftime;

use std::time::SystemTime;

use minijinja::{
    Environment, Error as JinjaError, ErrorKind, Value, context, syntax::SyntaxConfig, value::Serde,
};
use serde_json::Value as Json;

/// Steps that a template may take, and 64 bytes that it may make for each: 256 MB. A template comes
/// from a download, so it may neither loop for ever nor fill the memory; a thousand messages take far
/// less.
const FUEL: u64 = 4_000_000;
const NAME: &str = "chat_template";

/// Why a prompt could not be made; the message is fit to show to the caller.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refuses these messages.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    #[error("the model's chat template failed: {0}")]
    Failed(String),
}

/// A compiled chat template, with the texts of the model's BOS and EOS.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// What to render. `messages` and `tools` are as in an OpenAI request.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    pub messages: &'a Json,
    pub tools: Option<&'a Json>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
}

impl ChatTemplate {
    /// # Errors
    /// The source is no template.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_syntax(syntax()?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, source.to_owned()).map_err(TemplateError::from)?;
        Ok(Self { environment, bos_token: bos_token.to_owned(), eos_token: eos_token.to_owned() })
    }

    /// Whether the template does anything with the tools it is given.
    pub fn reads_tools(&self) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains("tools"))
    }

    /// Whether `text` stands in the template's source.
    pub fn mentions(&self, text: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.source().contains(text))
    }

    /// The prompt's text, special tokens included; encode it without adding any.
    ///
    /// # Errors
    /// The template refuses the messages, or fails on them.
    pub fn render(&self, prompt: &Prompt) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME)?;
        Ok(template.render(context! {
            messages => Value::from(Serde(prompt.messages)),
            tools => prompt.tools.map(|tools| Value::from(Serde(tools))),
            add_generation_prompt => prompt.add_generation_prompt,
            bos_token => &self.bos_token,
            eos_token => &self.eos_token,
        })?)
    }
}

/// The whitespace rules of transformers.
fn syntax() -> Result<SyntaxConfig, JinjaError> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// Marks errors that a template raises on purpose.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, JinjaError> {
    let error = JinjaError::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

fn strftime_now(format: &str) -> String {
    strftime::format(SystemTime::now(), format)
}

impl From<JinjaError> for TemplateError {
    fn from(error: JinjaError) -> Self {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(cause) = source {
            if let Some(Raised(message)) = cause.downcast_ref() {
                return Self::Refused(message.clone());
            }
            source = cause.source();
        }
        Self::Failed(error.to_string())
    }
}
