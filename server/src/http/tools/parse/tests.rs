use super::super::TOOL_FORMATS;
use super::*;

/// Text and (name, arguments) of an answer that arrives in pieces of `size` bytes.
fn run(format: usize, answer: &str, size: usize) -> (String, Vec<(String, String)>) {
    let names = ["f", "g"].map(String::from).to_vec();
    let mut parser = ToolParser::new(&TOOL_FORMATS[format], names, usize::MAX);
    let mut text = String::new();
    let mut calls: Vec<(String, String)> = vec![];
    let pieces = answer.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap());
    let mut parsed: Vec<_> = pieces.map(|piece| parser.push(piece)).collect();
    parsed.push(parser.flush());
    for parsed in parsed {
        text += &parsed.text;
        for piece in parsed.calls {
            if let Some(name) = piece.name {
                assert_eq!(piece.nth, calls.len());
                calls.push((name, String::new()));
            }
            calls[piece.nth].1 += &piece.arguments;
        }
    }
    (text, calls)
}

fn check(format: usize, answer: &str, text: &str, calls: &[(&str, &str)]) {
    let calls: Vec<_> = calls.iter().map(|(n, a)| (n.to_string(), a.to_string())).collect();
    for size in 1..=answer.len() {
        assert_eq!(run(format, answer, size), (text.to_owned(), calls.clone()), "{answer}: {size}");
    }
}

const F: &str = r#"{"name": "f", "arguments": {"a": "}</tool_call>"}}"#;

#[test]
fn calls_between_marks_are_taken_out_of_the_text() {
    let arguments = r#"{"a": "}</tool_call>"}"#;
    check(0, "just text < and <tool", "just text < and <tool", &[]);
    check(0, &format!("<tool_call>\n{F}\n</tool_call>"), "", &[("f", arguments)]);
    let two = format!("Let me.\n<tool_call>{F}</tool_call>\n<tool_call>\n{F}\n</tool_call>\n");
    check(0, &two, "Let me.\n", &[("f", arguments), ("f", arguments)]);
    let after = format!("<tool_call>{F}</tool_call> done");
    check(0, &after, "done", &[("f", arguments)]);
}

#[test]
fn a_call_in_another_order_is_one_too() {
    let call = r#"<tool_call>{"arguments": {"a":1}, "id": 5, "name": "g"}</tool_call>"#;
    check(0, call, "", &[("g", r#"{"a":1}"#)]);
}

#[test]
fn what_is_no_call_is_text() {
    for answer in [
        "<tool_call>hello</tool_call>",
        "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>{\"name\": \"f\"}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"no object\"}",
        "<tool_call>{\"name\": \"f\", \"argu",
        "<tool_call>",
    ] {
        check(0, answer, answer, &[]);
    }
}

#[test]
fn arguments_that_were_cut_off_stay_as_far_as_they_came() {
    check(
        0,
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b",
        "",
        &[("f", "{\"a\": \"b")],
    );
}

#[test]
fn calls_in_brackets_are_the_whole_answer() {
    let two = r#"[{"name": "f", "arguments": {"a": [1]}}, {"name": "g", "arguments": {}}]"#;
    check(1, two, "", &[("f", r#"{"a": [1]}"#), ("g", "{}")]);
    check(1, "[1, 2]", "[1, 2]", &[]);
    check(1, "text [{", "text [{", &[]);
}

#[test]
fn bare_objects_are_calls_when_they_are_the_whole_answer() {
    let two = r#"{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}"#;
    check(2, two, "", &[("f", r#"{"a": 1}"#), ("g", "{}")]);
    check(2, r#"{"answer": 5} is it"#, r#"{"answer": 5} is it"#, &[]);
}

#[test]
fn only_as_many_calls_as_are_allowed_come_out() {
    let mut parser = ToolParser::new(&TOOL_FORMATS[0], vec!["f".into()], 1);
    let parsed = parser.push(&format!("<tool_call>{F}</tool_call><tool_call>{F}</tool_call>"));
    assert_eq!((parsed.text.as_str(), parsed.calls.len()), ("", 1));
}

#[test]
fn arguments_are_passed_on_as_they_arrive() {
    let mut parser = ToolParser::new(&TOOL_FORMATS[0], vec!["f".into()], 9);
    let first = parser.push("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\":");
    let name = Some("f".to_owned());
    assert_eq!(first.calls, [CallPiece { nth: 0, name, arguments: "{\"a\":".into() }]);
    let more = parser.push(" 12");
    assert_eq!(more.calls, [CallPiece { nth: 0, name: None, arguments: " 12".into() }]);
}
