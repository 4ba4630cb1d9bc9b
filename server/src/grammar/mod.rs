//! Grammars that an answer must follow: JSON schemas, regular expressions, choices, Lark.
//!
//! A [`Grammar`] is what a request says. [`Grammars`] compiles it against the tokenizer, within
//! budgets of size and time, to a [`Constraint`] that rules out tokens step by step. The work is
//! done by llguidance, whose limits on states and items bound the memory and the time of each step.

mod compile;
mod constraint;
mod recent;

pub use compile::{GrammarError, Grammars};
pub use constraint::{Constraint, Verdict};

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

/// Between two tokens of JSON: room for an indented layout, not for a model that only pads.
const JSON_WHITESPACE: &str = r"[\x20\x0A]{0,20}";

/// What a request may ask an answer to follow.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON schema: draft 2020-12, as far as llguidance knows it.
    JsonSchema(Value),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// llguidance's variant of Lark.
    Lark(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}))
    }

    /// Bytes of what was asked for.
    fn len(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }

    fn top_level(&self) -> TopLevelGrammar {
        match self {
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(embeddable(schema)),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) => {
                let texts: Vec<_> = texts.iter().map(|text| lark_string(text)).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        }
    }
}

/// A string of Lark: its escapes are JSON's.
pub fn lark_string(text: &str) -> String {
    Value::from(text).to_string()
}

/// The schema with our layout, whatever layout it asked for; fit for `%json` in Lark.
pub fn embeddable(schema: &Value) -> Value {
    let mut schema = schema.clone();
    // Other schemas are `true` and `false`.
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".into(), json!({"whitespace_pattern": JSON_WHITESPACE}));
    }
    schema
}

#[cfg(test)]
mod tests;
