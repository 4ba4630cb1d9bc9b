//! Chat templates as models ship them, and as nobody should.

use keepwell_models::{
    ChatTemplate,
    template::{Prompt, TemplateError},
};
use serde_json::{Value, json};

fn render(source: &str, messages: &Value) -> Result<String, TemplateError> {
    let prompt = Prompt { messages, tools: None, add_generation_prompt: true };
    ChatTemplate::new(source, "<s>", "</s>")?.render(&prompt)
}

fn user(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

#[test]
fn a_template_sees_messages_and_special_tokens() {
    let mistral = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ \
                   m['content'].strip() }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}\
                   {% endfor %}";
    let messages = json!([
        {"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "more"},
    ]);
    assert_eq!(
        render(mistral, &messages).unwrap(),
        "<s>[INST] hi [/INST]yes</s>[INST] more [/INST]"
    );
}

#[test]
fn blocks_take_their_line_with_them_as_in_transformers() {
    let source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n";
    assert_eq!(render(source, &user("a")).unwrap(), "a\n");
}

#[test]
fn nothing_is_escaped() {
    assert_eq!(render("{{ messages[0].content }}", &user("<a & 'b'>")).unwrap(), "<a & 'b'>");
}

#[test]
fn json_is_written_as_python_writes_it() {
    let tools = json!([{"name": "f<x>", "b": [1, 2.5, null, true], "a": {}, "é": "\"\n"}]);
    let template = ChatTemplate::new("{{ tools | tojson }}", "", "").unwrap();
    let messages = json!([]);
    let prompt = Prompt { messages: &messages, tools: Some(&tools), add_generation_prompt: false };
    let expected = r#"[{"name": "f<x>", "b": [1, 2.5, null, true], "a": {}, "é": "\"\n"}]"#;
    assert_eq!(template.render(&prompt).unwrap(), expected);
    let template = ChatTemplate::new("{{ tools[0].b | tojson(indent=4) }}", "", "").unwrap();
    let expected = "[\n    1,\n    2.5,\n    null,\n    true\n]";
    assert_eq!(template.render(&prompt).unwrap(), expected);
}

#[test]
fn tools_are_none_when_there_are_none() {
    let source = "{% if tools is not none %}tools{% endif %}{% if not tools %}none{% endif %}";
    assert_eq!(render(source, &user("a")).unwrap(), "none");
}

#[test]
fn dates_loop_controls_and_python_methods_work() {
    let source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ \
                  m.content.upper().split(',')[0] }}{% endfor %}{{ strftime_now('%Y') | length }}";
    let messages = json!([{"role": "user", "content": "a,b"}, {"role": "user", "content": "c"}]);
    assert_eq!(render(source, &messages).unwrap(), "A4");
}

#[test]
fn a_raised_exception_is_the_callers_to_read() {
    let source = "{{ raise_exception('Roles must alternate') }}";
    let error = render(source, &user("a")).unwrap_err();
    assert!(matches!(&error, TemplateError::Refused(message) if message == "Roles must alternate"));
    assert!(error.to_string().contains("Roles must alternate"));
}

#[test]
fn a_broken_or_endless_template_is_an_error() {
    assert!(ChatTemplate::new("{% for %}", "", "").is_err());
    let endless =
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ b }}{% endfor %}{% endfor %}";
    for source in [endless, "{{ nothing.at.all }}", "{{ 1 / 0 }}", "{{ messages | unknown }}"] {
        assert!(matches!(render(source, &user("a")), Err(TemplateError::Failed(_))), "{source}");
    }
}

#[test]
fn a_template_tells_whether_it_reads_tools() {
    let with =
        ChatTemplate::new("{% if tools %}<tool_call>{{ tools }}{% endif %}", "", "").unwrap();
    assert!(with.reads_tools() && with.mentions("<tool_call>"));
    let without = ChatTemplate::new("{{ messages[0].tools }}", "", "").unwrap();
    assert!(!without.reads_tools() && !without.mentions("<tool_call>"));
}

/// Short templates that would take terabytes.
#[test]
fn a_template_that_makes_texts_without_end_runs_out_of_fuel() {
    let grow = |step: &str| {
        format!(
            "{{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}}{{% for i in range(60) %}}\
             {{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x | length }}}}"
        )
    };
    for step in [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "ns.x * 16",
        "[ns.x, ns.x] | join",
        "ns.x | replace('a', ns.x)",
        "ns.x.replace('a', ns.x)",
        "ns.x.replace('', ns.x)",
        "ns.x.join([ns.x] * 16)",
        "','.join([ns.x] * 100000000)",
        "'{}{}'.format(ns.x, ns.x)",
        "'{:999999999}'.format(1)",
        "'{:.999999999}'.format(1.5)",
        "'%999999999d' % 1",
        "ns.x.split('') | list + ns.x.split('') | list",
        "(ns.x ~ '\"') | tojson | tojson",
        "([ns.x] * 100000000) | tojson",
        "([ns.x] * 100000000) | list",
        "ns.x | tojson(indent=16) | indent(1000000000)",
        "ns.x.upper() ~ ns.x.title() ~ ns.x.strip()",
    ] {
        let error = render(&grow(step), &user("a")).unwrap_err();
        assert!(matches!(error, TemplateError::Failed(_)), "{step}: {error}");
    }
}

#[test]
fn methods_of_strings_are_those_of_python() {
    for (expression, expected) in [
        ("'a-b-a'.replace('a', 'cc')", "cc-b-cc"),
        ("'a-b-a'.replace('a', 'cc', 1)", "cc-b-a"),
        ("', '.join(['x', 1, true])", "x, 1, True"),
        ("'a b  c'.split() | tojson", "[\"a\", \"b\", \"c\"]"),
        ("'</think>x</think>y'.split('</think>')[-1]", "y"),
        ("'{}-{:>3}'.format('a', 5)", "a-  5"),
        ("'a\nb'.splitlines() | tojson", "[\"a\", \"b\"]"),
    ] {
        let source = format!("{{{{ {expression} }}}}");
        assert_eq!(render(&source, &user("a")).unwrap(), expected, "{expression}");
    }
}
