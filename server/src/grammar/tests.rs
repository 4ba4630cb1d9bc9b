use std::time::Instant;

use super::*;

const EOS: u32 = 256;

/// Tokens are bytes, a special one that ends, and a few words.
fn grammars() -> Grammars {
    let mut tokens: Vec<_> = (0..=255u8).map(|byte| Some(vec![byte])).collect();
    tokens.push(None);
    tokens.extend(["{\"", "true", "\":", "abc", " "].map(|word| Some(word.into())));
    Grammars::new(&tokens, &[EOS]).unwrap()
}

/// Whether the grammar takes `text` byte by byte, and may end there.
fn accepts(constraint: &Constraint, text: &str) -> bool {
    let mut constraint = constraint.clone();
    let mut verdict = Verdict::Open;
    for byte in text.bytes() {
        let mut logits = vec![0.0; 262];
        if verdict == Verdict::Complete
            || constraint.mask(&mut logits).unwrap() == Verdict::Complete
        {
            return false;
        }
        if logits[usize::from(byte)] == f32::NEG_INFINITY {
            return false;
        }
        verdict = constraint.accept(byte.into()).unwrap();
    }
    let mut logits = vec![0.0; 262];
    verdict == Verdict::Complete
        || constraint.mask(&mut logits).unwrap() == Verdict::Complete
        || logits[EOS as usize] == 0.0
}

fn check(grammar: Grammar, good: &[&str], bad: &[&str]) {
    let constraint = grammars().compile(&grammar).unwrap();
    for text in good {
        assert!(accepts(&constraint, text), "{grammar:?} refuses {text}");
    }
    for text in bad {
        assert!(!accepts(&constraint, text), "{grammar:?} takes {text}");
    }
}

#[test]
fn a_schema_takes_what_fits_it() {
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let good = ["{\"name\":\"Ann\",\"age\":5}", "{ \"name\": \"Ann\",\n  \"age\": -5 }"];
    let bad =
        ["", "{}", "{\"name\":\"Ann\"}", "{\"name\":\"Annabel\",\"age\":5}", "[]", "{\"age\":"];
    check(Grammar::JsonSchema(schema), &good, &bad);
}

#[test]
fn a_json_object_is_any_object_and_does_not_pad_for_ever() {
    let padded = format!("{{{}}}", " ".repeat(40));
    let bad = ["[]", "5", "{", "{}x", padded.as_str()];
    check(Grammar::json_object(), &["{}", "{\"a\": [1, {\"b\": null}]}"], &bad);
}

#[test]
fn a_choice_and_a_regex_and_lark_take_what_they_say() {
    let texts = vec!["yes".to_owned(), "no \"really\"\n".to_owned()];
    check(Grammar::Choice(texts), &["yes", "no \"really\"\n"], &["", "y", "maybe", "yesno"]);
    check(
        Grammar::Regex("[0-9]{3}-[a/]+".into()),
        &["123-a", "123-/a"],
        &["12-a", "1234-a", "123-b"],
    );
    let lark = "start: \"a\" start \"b\" | \"c\"".to_owned();
    check(Grammar::Lark(lark), &["c", "aacbb"], &["aacb", "acbb", ""]);
}

#[test]
fn tokens_of_several_bytes_are_ruled_out_with_their_first_wrong_byte() {
    let mut constraint = grammars().compile(&Grammar::json_object()).unwrap();
    let mut logits = vec![0.0; 300];
    assert_eq!(constraint.mask(&mut logits), Ok(Verdict::Open));
    let allowed: Vec<_> = (0..300).filter(|&id| logits[id] == 0.0).collect();
    assert_eq!(allowed, [usize::from(b'{'), 257], "the brace, and the brace with a quote");
    assert_eq!(constraint.accept(257), Ok(Verdict::Open));
    assert!(constraint.clone().accept(259).is_ok(), "an empty key is one");
    assert!(constraint.accept(EOS).is_err(), "a special token is no text");
}

#[test]
fn a_grammar_that_has_said_all_is_complete_without_a_stop_token() {
    let mut constraint = grammars().compile(&Grammar::Choice(vec!["ab".into()])).unwrap();
    assert_eq!(constraint.accept(b'a'.into()), Ok(Verdict::Open));
    assert_eq!(constraint.accept(b'b'.into()), Ok(Verdict::Complete));
}

#[test]
fn clones_go_their_own_ways() {
    let texts = vec!["ab".to_owned(), "cd".to_owned()];
    let first = grammars().compile(&Grammar::Choice(texts)).unwrap();
    let (mut a, mut c) = (first.clone(), first.clone());
    assert_eq!(
        (a.accept(b'a'.into()), c.accept(b'c'.into())),
        (Ok(Verdict::Open), Ok(Verdict::Open))
    );
    assert!(a.accept(b'd'.into()).is_err());
    assert_eq!(c.accept(b'd'.into()), Ok(Verdict::Complete));
}

#[test]
fn what_is_no_grammar_is_refused_with_a_reason() {
    let cases = [
        Grammar::JsonSchema(json!({"type": "banana"})),
        Grammar::JsonSchema(json!({"$ref": "http://example.com/schema"})),
        Grammar::JsonSchema(json!(false)),
        Grammar::JsonSchema(json!({"type": "string", "pattern": "("})),
        Grammar::Regex("(".into()),
        Grammar::Lark("start: missing".into()),
        Grammar::Lark(String::new()),
    ];
    for grammar in cases {
        match grammars().compile(&grammar) {
            Err(GrammarError::Invalid(reason)) => {
                assert!(!reason.is_empty() && reason.len() <= 300, "{reason}");
            }
            other => panic!("{grammar:?} gave {other:?}"),
        }
    }
    let large = Grammar::Regex("a".repeat(1 << 20));
    assert_eq!(grammars().compile(&large).unwrap_err(), GrammarError::TooLarge(1 << 20));
}

fn nested(depth: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(json!({"type": "string"}), |inner, _| wrap(inner))
}

/// Schemas and expressions that are small and mean to be slow or large.
fn hostile() -> Vec<Grammar> {
    let many = |n: usize, item: &dyn Fn(usize) -> Value| (0..n).map(item).collect::<Vec<_>>();
    let optional: serde_json::Map<_, _> =
        (0..3000).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
    let of_all = |i: usize| json!({"anyOf": [{"required": [format!("a{i}")]}, {"required": [format!("b{i}")]}]});
    let definitions: serde_json::Map<_, _> = (0..25)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), json!({"allOf": [next, next]}))
        })
        .chain([("d25".to_owned(), json!({"type": "string"}))])
        .collect();
    vec![
        Grammar::JsonSchema(nested(100, |s| json!({"type": "array", "items": s}))),
        Grammar::JsonSchema(nested(10, |s| json!({"anyOf": [s.clone(), s]}))),
        Grammar::JsonSchema(json!({"type": "object", "properties": optional})),
        Grammar::JsonSchema(json!({"type": "object", "allOf": many(20, &of_all)})),
        Grammar::JsonSchema(json!({"$ref": "#/$defs/d0", "$defs": definitions})),
        Grammar::JsonSchema(json!({"$ref": "#"})),
        Grammar::JsonSchema(json!({"type": "string", "minLength": 1_000_000_000})),
        Grammar::JsonSchema(json!({"type": "string", "pattern": "(a{1000}){1000}"})),
        Grammar::JsonSchema(json!({"type": "array", "minItems": 1_000_000, "maxItems": 2_000_000})),
        Grammar::JsonSchema(json!({"enum": many(20_000, &|i| json!(format!("value {i}")))})),
        Grammar::JsonSchema(
            json!({"type": "number", "multipleOf": 0.000_000_1, "minimum": 1e-300}),
        ),
        Grammar::Regex("(((((a{99}){99}){99}){99}){99})".into()),
        Grammar::Regex("(a|b|ab)*c{500}(x+x+)+y".into()),
        Grammar::Regex("[\\p{L}&&[^\\p{Lu}]]{1,5000}".into()),
        Grammar::Regex("(.*a){200}".into()),
        Grammar::Lark("start: start start | \"a\" | ".into()),
        Grammar::Lark(format!("start: {}", vec!["(\"a\" | \"b\")?"; 5000].join(" "))),
        Grammar::Lark(format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))),
        Grammar::Lark("start: a a a a a a a a a a\na: b b b b b b b b b b\nb: \"x\"{0,500}".into()),
    ]
}

/// The bounds leave room for a machine that does ten other things.
#[test]
fn hostile_grammars_cost_bounded_time_at_every_step() {
    let grammars = grammars();
    for (nth, grammar) in hostile().into_iter().enumerate() {
        let started = Instant::now();
        let compiled = grammars.compile(&grammar);
        assert!(started.elapsed().as_secs() < 30, "compiling number {nth}");
        let Ok(mut constraint) = compiled else { continue };
        for _ in 0..50 {
            let mut logits = vec![0.0; 262];
            let started = Instant::now();
            let verdict = constraint.mask(&mut logits);
            let took = started.elapsed();
            assert!(took.as_secs() < 10, "a mask of number {nth} took {took:?}");
            let allowed = (0u32..).zip(&logits).find(|(id, l)| **l == 0.0 && *id != EOS);
            let (Ok(Verdict::Open), Some((id, _))) = (verdict, allowed) else { break };
            if constraint.accept(id).is_err() {
                break;
            }
        }
    }
}

#[test]
fn many_may_ask_for_grammars_at_once() {
    let grammars = grammars();
    std::thread::scope(|scope| {
        let grammars = &grammars;
        let ask = |nth: usize| {
            let grammar = Grammar::Regex(format!("[a-c]{{{}}}", nth % 5 + 1));
            grammars
                .compile(&grammar)
                .map(|constraint| accepts(&constraint, &"a".repeat(nth % 5 + 1)))
        };
        let asked: Vec<_> = (0..20).map(|nth| scope.spawn(move || ask(nth))).collect();
        for answer in asked {
            assert_eq!(answer.join().unwrap(), Ok(true));
        }
    });
}

#[test]
fn a_grammar_that_was_asked_for_before_begins_anew() {
    let grammars = grammars();
    let grammar = Grammar::Regex("abc".into());
    let mut first = grammars.compile(&grammar).unwrap();
    first.accept(b'a'.into()).unwrap();
    let second = grammars.compile(&grammar).unwrap();
    assert!(accepts(&second, "abc") && !accepts(&second, "bc"));
}
