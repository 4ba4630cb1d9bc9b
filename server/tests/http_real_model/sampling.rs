use serde_json::{Value, json};

use super::{
    CAPITAL, alice, chat, check_same_up_to_ties, completion,
    server::{CHAT, COMPLETIONS, Server},
    text,
};

#[test]
fn a_seed_repeats_an_answer_and_its_choices_differ() {
    let server = Server::with_memory("64MiB");
    let ask = |seed: i64| {
        let extra = json!({"temperature": 1, "seed": seed, "n": 2, "max_tokens": 24});
        server.ok(CHAT, &chat("Tell me a story.", extra))["choices"].clone()
    };
    let choices = ask(7);
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    assert_eq!(choices, ask(7));
    assert_ne!(choices, ask(8));
    // OpenAI's seeds are signed.
    assert_eq!(ask(-7), ask(-7));
}

#[test]
fn log_probabilities_are_of_the_tokens_of_the_answer() {
    let server = Server::with_memory("64MiB");
    let extra = json!({"logprobs": true, "top_logprobs": 5, "max_tokens": 24});
    let answer = server.ok(CHAT, &chat(CAPITAL, extra));
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let spelled: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(spelled, text(&answer));
    for token in tokens {
        // Greedy: the chosen token is the likeliest.
        assert_eq!(token["logprob"], token["top_logprobs"][0]["logprob"]);
        let top = token["top_logprobs"].as_array().unwrap();
        let sum: f64 = top.iter().map(|top| top["logprob"].as_f64().unwrap().exp()).sum();
        assert!(top.len() == 5 && sum <= 1.0001, "{token}");
    }
}

#[test]
fn a_stop_string_ends_an_answer_before_it() {
    let server = Server::with_memory("64MiB");
    // It lies across two tokens.
    let body = chat(CAPITAL, json!({"stop": ["nce is Par"], "max_tokens": 24}));
    let answer = server.ok(CHAT, &body);
    assert_eq!(text(&answer), "The capital of Fra");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let streamed = server.stream(CHAT, &body).collect_choice();
    assert_eq!((&*streamed.text, &*streamed.finish_reason), ("The capital of Fra", "stop"));
}

#[test]
fn characters_of_several_tokens_are_streamed_whole() {
    let server = Server::with_memory("64MiB");
    for prompt in ["日本 日本 日本 日本 日本", "é à ü ñ é à ü ñ é à ü ñ", "привет привет привет"]
    {
        let body = completion(prompt, 24, json!({}));
        let whole = server.ok(COMPLETIONS, &body);
        let streamed = server.stream(COMPLETIONS, &body).collect_choice().text;
        assert_eq!(streamed, text(&whole));
        assert!(
            !streamed.is_ascii() && !streamed.trim_end_matches('\u{fffd}').contains('\u{fffd}')
        );
    }
}

#[test]
fn a_prompt_in_small_chunks_gives_the_answer_of_a_whole_one() {
    let body = completion(alice(150), 24, json!({"logprobs": 5}));
    let answer = |flags: &[&str]| -> Value {
        let server = Server::start(&[&["--kv-memory", "64MiB"], flags].concat());
        server.ok(COMPLETIONS, &body)
    };
    check_same_up_to_ties(&answer(&["--max-batch-tokens", "16"]), &answer(&[]));
}
