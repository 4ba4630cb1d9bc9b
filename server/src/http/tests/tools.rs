use serde_json::{Value, json};

use super::structured::accepts;
use super::{Server, chat_body, ids, says};

const CHAT: &str = "/v1/chat/completions";
const CALL: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";

/// A request with two tools; the fake context is short, so they are, too.
fn fields(extra: Value) -> Value {
    let parameters = json!({
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
    });
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let mut fields = json!({"tools": [tool("add"), tool("get")], "max_tokens": 200});
    fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    fields
}

fn server(answer: &str) -> Server {
    Server::changed(says(answer), |app| app.model.max_model_len = 5000)
}

fn prompt(server: &Server) -> String {
    let bytes = server.request(0).prompt.iter().map(|id| *id as u8).collect();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn calls_come_out_of_the_text_with_ids_of_their_own() {
    let server = server(&format!("I will.\n{CALL}\n{CALL}"));
    let body = server.chat(fields(json!({}))).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "I will.\n");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    for call in calls {
        assert_eq!(call["function"], json!({"name": "add", "arguments": "{\"a\": 1}"}));
        assert_eq!(call["type"], "function");
    }
    assert_eq!(calls.len(), 2);
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    assert!(prompt(&server).contains("\"name\":\"add\""), "{}", prompt(&server));
}

#[tokio::test]
async fn nothing_but_calls_has_no_content_and_one_is_all_without_parallel_calls() {
    let server = server(&format!("{CALL}\n{CALL}"));
    let body = server.chat(fields(json!({"parallel_tool_calls": false}))).await;
    let message = &body["choices"][0]["message"];
    assert_eq!(message["content"], Value::Null);
    assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_answer_without_calls_is_as_ever() {
    let server = server("Just text");
    let body = server.chat(fields(json!({"tool_choice": "auto"}))).await;
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("Just text"), &json!("stop"))
    );
    assert!(choice["message"].get("tool_calls").is_none());
    assert!(server.request(0).constraint.is_none());
}

#[tokio::test]
async fn calls_stream_name_first_and_then_the_arguments_piece_by_piece() {
    let server = server(&format!("Ok.{CALL}"));
    let (chunks, done) = server.stream(CHAT, chat_body(fields(json!({})))).await;
    let deltas: Vec<_> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    let calls: Vec<_> = deltas.iter().filter_map(|d| d["tool_calls"].as_array()).collect();
    let first = &calls[0][0];
    // What the templates of Mistral's models want.
    let id = first["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    assert_eq!((&first["index"], &first["function"]["name"]), (&json!(0), &json!("add")));
    let arguments: String =
        calls.iter().map(|c| c[0]["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(arguments, "{\"a\": 1}");
    assert!(calls.len() > 3 && calls[1..].iter().all(|c| c[0].get("id").is_none()));
    let text: String = deltas.iter().filter_map(|d| d["content"].as_str()).collect();
    assert_eq!(text, "Ok.");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    assert!(done);
}

#[tokio::test]
async fn what_must_be_called_is_forced_by_a_grammar() {
    let constraint = async |extra: Value| {
        let server = server(CALL);
        let body = server.chat(fields(extra)).await;
        assert_eq!(body["choices"][0]["finish_reason"], "tool_calls");
        server.request(0).constraint.unwrap()
    };
    let get = CALL.replace("add", "get");
    let required = constraint(json!({"tool_choice": "required"})).await;
    assert!(accepts(&required, CALL) && accepts(&required, &get));
    assert!(accepts(&required, &format!("{CALL}\n{get}")));
    assert!(!accepts(&required, "text") && !accepts(&required, ""));
    assert!(!accepts(&required, &CALL.replace("1", "\"x\"")), "the schema counts");
    assert!(!accepts(&required, &CALL.replace("1", "1, \"b\": 2")), "nothing is made up");
    let one = json!({"tool_choice": "required", "parallel_tool_calls": false});
    assert!(!accepts(&constraint(one).await, &format!("{CALL}\n{get}")));
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "get"}}});
    let named = constraint(named).await;
    assert!(accepts(&named, &get) && !accepts(&named, CALL));
}

#[tokio::test]
async fn each_format_can_be_forced_and_read_back() {
    use crate::http::tools::{Function, TOOL_FORMATS, ToolParser};
    let function = Function { name: "f".into(), parameters: json!({"type": "object"}) };
    let grammars = crate::http::grammars(&crate::http::fake::ByteText, &[super::EOS]).unwrap();
    for format in TOOL_FORMATS {
        let constraint = grammars.compile(&format.grammar(&[&function], true)).unwrap();
        let call = format!(
            "{}{{\"name\": \"f\", \"{}\": {{}}}}{}",
            format.open, format.arguments, format.close
        );
        let (before, after) = format.brackets.unwrap_or_default();
        let answer = format!("{before}{call}{}{call}{after}", format.separator);
        assert!(accepts(&constraint, &answer), "{answer}");
        let mut parser = ToolParser::new(format, vec!["f".into()], 9);
        assert_eq!(parser.push(&answer).calls.len(), 2, "{answer}");
    }
}

#[tokio::test]
async fn no_choice_is_no_tools() {
    let server = server(CALL);
    let body = server.chat(fields(json!({"tool_choice": "none"}))).await;
    assert_eq!(body["choices"][0]["message"]["content"], CALL);
    assert_eq!(prompt(&server), "user:hi|assistant:");
}

#[tokio::test]
async fn calls_and_results_of_earlier_turns_reach_the_model() {
    let server = server("3");
    let call = json!({"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\":1}"}});
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]);
    server.chat(json!({"messages": messages})).await;
    let expected = "user:hi|assistant:<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n\
                    </tool_call>|user:<tool_response>\n2\n</tool_response>|assistant:";
    assert_eq!(prompt(&server), expected);
    assert_eq!(server.request(0).prompt, ids(expected));
}

#[tokio::test]
async fn what_is_wrong_with_tools_is_named() {
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    for (fields, param, code) in [
        (json!({"tools": {}}), "tools", "invalid_type"),
        (json!({"tools": [5]}), "tools[0]", "invalid_type"),
        (json!({"tools": [{}]}), "tools[0].type", "missing_required_parameter"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type", "invalid_value"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
            "missing_required_parameter",
        ),
        (tool(json!({})), "tools[0].function.name", "missing_required_parameter"),
        (tool(json!({"name": "a b"})), "tools[0].function.name", "invalid_value"),
        (
            tool(json!({"name": "a", "parameters": 5})),
            "tools[0].function.parameters",
            "invalid_type",
        ),
        (json!({"tool_choice": "required"}), "tool_choice", "invalid_value"),
        (fields(json!({"tool_choice": "always"})), "tool_choice", "invalid_value"),
        (fields(json!({"tool_choice": 5})), "tool_choice", "invalid_type"),
        (
            fields(json!({"tool_choice": {"type": "function", "function": {"name": "no"}}})),
            "tool_choice.function.name",
            "invalid_value",
        ),
        (
            fields(json!({"tool_choice": "required", "response_format": {"type": "json_object"}})),
            "tool_choice",
            "invalid_value",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
            "messages[0].tool_calls[0].function",
            "missing_required_parameter",
        ),
    ] {
        let (status, error) = server("x").error(CHAT, chat_body(fields)).await;
        let got = (status, error["param"].as_str(), error["code"].as_str());
        assert_eq!(got, (400, Some(param), Some(code)), "{error}");
    }
}
