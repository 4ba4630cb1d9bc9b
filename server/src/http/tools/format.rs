//! How models write tool calls.

use serde_json::Value;

use crate::grammar::{Grammar, embeddable, lark_string};

use super::Function;

/// Calls of one answer, when they are forced: small models would go on for ever.
const MAX_FORCED_CALLS: usize = 8;

/// A way to write calls: each is a JSON object with `name` and its arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct ToolFormat {
    /// What a chat template that teaches this format contains.
    pub mark: &'static str,
    /// Before and after each call.
    pub open: &'static str,
    pub close: &'static str,
    /// Around all calls, which then are the whole answer.
    pub brackets: Option<(&'static str, &'static str)>,
    pub separator: &'static str,
    /// The key of the arguments.
    pub arguments: &'static str,
}

/// The first whose mark a template contains is the model's; the first of all is what models are
/// taught that know none.
pub const TOOL_FORMATS: &[ToolFormat] = &[
    // Hermes, Qwen, SmolLM.
    ToolFormat {
        mark: "<tool_call>",
        open: "<tool_call>\n",
        close: "\n</tool_call>",
        brackets: None,
        separator: "\n",
        arguments: "arguments",
    },
    // `[TOOL_CALLS]` is a special token, which has no text.
    ToolFormat {
        mark: "[TOOL_CALLS]",
        open: "",
        close: "",
        brackets: Some(("[", "]")),
        separator: ", ",
        arguments: "arguments",
    },
    // Llama 3.
    ToolFormat {
        mark: "\"parameters\": dictionary",
        open: "",
        close: "",
        brackets: None,
        separator: "; ",
        arguments: "parameters",
    },
];

/// Nothing, or a string of Lark.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { lark_string(text) }
}

/// Who must call does not make arguments up: others than the named ones need to be allowed.
fn closed(parameters: &Value) -> Value {
    let mut schema = parameters.clone();
    if let Some(object) = schema.as_object_mut()
        && object.contains_key("properties")
        && !object.contains_key("patternProperties")
    {
        object.entry("additionalProperties").or_insert(Value::Bool(false));
    }
    schema
}

impl ToolFormat {
    /// Calls of these functions and nothing else.
    pub fn grammar(&self, functions: &[&Function], parallel: bool) -> Grammar {
        let names: Vec<_> = (0..functions.len()).map(|nth| format!("f{nth}")).collect();
        let (before, after) = self.brackets.unwrap_or_default();
        let more = match parallel {
            true => format!("({} call){{0,{}}}", lark_string(self.separator), MAX_FORCED_CALLS - 1),
            false => String::new(),
        };
        let start = [&literal(before), "call", &more, &literal(after)].join(" ");
        let names_of = format!("({})", names.join(" | "));
        let call = [literal(self.open), names_of, literal(self.close)].join(" ");
        let mut lark = format!("start: {start}\ncall: {call}\n");
        for (rule, function) in names.iter().zip(functions) {
            let head = format!("{{\"name\": \"{}\", \"{}\": ", function.name, self.arguments);
            let schema = embeddable(&closed(&function.parameters));
            lark += &format!("{rule}: {} {rule}_arguments \"}}\"\n", lark_string(&head));
            lark += &format!("{rule}_arguments: %json {schema}\n");
        }
        Grammar::Lark(lark)
    }
}
