//! Kinds of requests, and what each must come to.

use anyhow::{Context, Result, ensure};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::ask::{Server, text_of};
use super::reference::Reference;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const POLICIES: [&str; 5] = ["attribution", "attention_mass", "recency", "key_norm", "random"];
const BUDGETS: [f64; 5] = [1.0, 0.7, 0.5, 0.28, 0.15];
const WORDS: [&str; 12] = [
    "the ", "keeper ", "of ", "light ", "wrote ", "a ", "number ", "into ", "his ", "book, ",
    "and ", "slept. ",
];

/// A kind and how often it comes.
pub struct Kind {
    pub name: &'static str,
    pub weight: u32,
    ask: Ask,
}

enum Ask {
    Recorded,
    Long,
    Left,
    Bad,
    Grammar,
    Other,
}

pub const KINDS: &[Kind] = &[
    Kind { name: "recorded answers, asked again", weight: 30, ask: Ask::Recorded },
    Kind { name: "texts of all lengths, budgets and policies", weight: 30, ask: Ask::Long },
    Kind { name: "streams that the client left", weight: 12, ask: Ask::Left },
    Kind { name: "bad requests", weight: 12, ask: Ask::Bad },
    Kind { name: "answers with a grammar", weight: 10, ask: Ask::Grammar },
    Kind { name: "embeddings and tokens", weight: 6, ask: Ask::Other },
];

/// # Errors
/// What was wrong with the answer.
pub async fn ask(
    kind: &Kind,
    server: &Server,
    reference: &Reference,
    rng: &mut StdRng,
) -> Result<()> {
    match kind.ask {
        Ask::Recorded => reference.ask(server, rng.random_range(0..1000), rng.random()).await,
        Ask::Long => long(server, rng).await,
        Ask::Left => server.leave(CHAT, &chat(rng), rng.random_range(0..30)).await,
        Ask::Bad => bad(server, rng).await,
        Ask::Grammar => grammar(server, rng).await,
        Ask::Other => other(server, rng).await,
    }
}

fn words(rng: &mut StdRng, most: usize) -> String {
    // Short ones are as likely as long ones, whatever the length.
    let num = (most as f64).powf(rng.random_range(0.2..1.0)) as usize;
    (0..num.max(1)).filter_map(|_| WORDS.choose(rng).copied()).collect()
}

fn chat(rng: &mut StdRng) -> Value {
    let budget = BUDGETS[rng.random_range(0..BUDGETS.len())];
    json!({
        "messages": [{"role": "user", "content": words(rng, 900)}],
        "max_tokens": rng.random_range(1..100),
        "temperature": rng.random_range(0..3) as f64 / 2.0,
        "seed": rng.random_range(0..1000),
        "ignore_eos": rng.random::<bool>(),
        "kv_cache": {"budget": budget, "policy": POLICIES.choose(rng)},
    })
}

async fn long(server: &Server, rng: &mut StdRng) -> Result<()> {
    let mut body = chat(rng);
    if rng.random() {
        let (_, reason) = server.streamed(CHAT, &body).await?;
        ensure!(["stop", "length"].contains(&reason.as_str()), "it ended with {reason:?}");
        return Ok(());
    }
    let num_choices = rng.random_range(1..4);
    body["n"] = json!(num_choices);
    let answer = server.ok(CHAT, &body).await?;
    let choices = answer["choices"].as_array().context("no choices")?;
    ensure!(choices.len() == num_choices, "{} choices of {num_choices}", choices.len());
    let kv = &answer["usage"]["kv_cache"];
    ensure!(kv["bytes"].as_f64() <= kv["peak_bytes"].as_f64(), "{kv}");
    Ok(())
}

async fn bad(server: &Server, rng: &mut StdRng) -> Result<()> {
    let bodies = [
        (CHAT, "{".to_owned()),
        (CHAT, json!({"messages": []}).to_string()),
        (CHAT, json!({"messages": [{"role": "user", "content": 5}]}).to_string()),
        (CHAT, json!({"messages": "hi", "model": "none"}).to_string()),
        (COMPLETIONS, json!({"prompt": "a", "n": 100_000}).to_string()),
        (COMPLETIONS, json!({"prompt": "a", "kv_cache": {"budget": 2}}).to_string()),
        (COMPLETIONS, json!({"prompt": "word ".repeat(20_000)}).to_string()),
        (COMPLETIONS, json!({"prompt": "a", "guided_regex": "("}).to_string()),
        ("/v1/embeddings", json!({"input": []}).to_string()),
        ("/v1/responses", json!({"input": "a", "previous_response_id": "none"}).to_string()),
    ];
    let (path, body) = bodies.choose(rng).context("there are some")?.clone();
    let (status, answer) = server.raw(path, body).await?;
    ensure!((400..500).contains(&status), "{status}: {answer}");
    ensure!(answer["error"]["code"].is_string(), "{status} without a code: {answer}");
    Ok(())
}

async fn grammar(server: &Server, rng: &mut StdRng) -> Result<()> {
    let mut body = json!({"prompt": words(rng, 60), "max_tokens": 200, "temperature": 1.0});
    let choices = ["yes", "no", "perhaps"];
    let which = rng.random_range(0..3);
    match which {
        0 => body["guided_choice"] = json!(choices),
        1 => body["guided_regex"] = json!("[0-9]{3}-[a-f]{2,5}"),
        _ => {
            body["guided_json"] = json!({
                "type": "object", "required": ["name", "age"], "additionalProperties": false,
                "properties": {
                    "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                },
            });
        }
    }
    let (status, answer) = server.raw(COMPLETIONS, body.to_string()).await?;
    if status == 429 {
        // Many are compiled at the same time; the answer said so.
        ensure!(answer["error"]["code"] == "too_many_grammars", "{answer}");
        return Ok(());
    }
    ensure!(status == 200, "{status}: {answer}");
    let choice = &answer["choices"][0];
    let text = text_of(choice);
    ensure!(choice["finish_reason"] == "stop", "{choice}");
    let is_good = match which {
        0 => choices.contains(&text),
        1 => (6..=9).contains(&text.len()) && text.as_bytes()[3] == b'-',
        _ => serde_json::from_str::<Value>(text)
            .is_ok_and(|v| v["age"].is_u64() && v["name"].is_string()),
    };
    ensure!(is_good, "{text:?} does not follow its grammar");
    Ok(())
}

async fn other(server: &Server, rng: &mut StdRng) -> Result<()> {
    let text = words(rng, 300);
    let tokens = server.ok("/tokenize", &json!({"prompt": text})).await?["tokens"].take();
    let back = server.ok("/detokenize", &json!({"tokens": tokens})).await?;
    ensure!(back["prompt"] == text.as_str(), "{text:?} came back as {back}");
    let answer = server.ok("/v1/embeddings", &json!({"input": [text, "light"]})).await?;
    let vectors = answer["data"].as_array().context("no vectors")?;
    ensure!(vectors.len() == 2, "{} vectors", vectors.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn prompts_are_of_all_lengths_and_never_empty() {
        let mut rng = StdRng::seed_from_u64(3);
        let lengths: Vec<_> =
            (0..500).map(|_| words(&mut rng, 900).split_whitespace().count()).collect();
        assert!(lengths.iter().all(|len| (1..=900).contains(len)));
        assert!(lengths.iter().any(|len| *len < 10) && lengths.iter().any(|len| *len > 600));
    }
}
