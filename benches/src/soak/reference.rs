//! Answers recorded before the load, which must not change under it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::ask::{Server, text_of};

const PATH: &str = "/v1/completions";
const NUM_TOKENS: usize = 10;
/// The likeliest token's lead over the second, in log-probability: what other sequences in a batch
/// change by the order of sums is far smaller.
const CLEAR: f64 = 0.2;
const FEWEST: usize = 4;

/// Beginnings whose greedy continuations tend to be clear.
const PROMPTS: &[&str] = &[
    "The capital of France is",
    "1, 2, 3, 4, 5, 6, 7,",
    "Monday, Tuesday, Wednesday,",
    "January, February, March, April,",
    "A B C D E F G H",
    "one two three four five six",
    "The sun rises in the east and sets in the",
    "10, 20, 30, 40, 50,",
    "do re mi fa",
    "To be, or not to be, that is",
    "red, orange, yellow, green,",
    "Mercury, Venus, Earth,",
    "2 + 2 = 4\n3 + 3 = 6\n4 + 4 =",
    "a a a a a a a a a a",
    "yes no yes no yes no yes no",
    "import numpy as",
    "for i in range(10):\n    print(",
    "Once upon a time, there was a",
    "x1 x2 x3 x4 x5 x6",
    "The United States of",
];

struct Recorded {
    prompt: &'static str,
    text: String,
}

pub struct Reference(Vec<Recorded>);

impl Reference {
    /// Asks one prompt after the other, and keeps those whose every token was clear.
    ///
    /// # Errors
    /// The server fails, or too few are clear for a judgement.
    pub async fn record(server: &Server) -> Result<Self> {
        let mut recorded = vec![];
        for prompt in PROMPTS {
            let mut body = body(prompt);
            body["logprobs"] = json!(2);
            let choice = server.ok(PATH, &body).await?["choices"][0].take();
            if lead(&choice["logprobs"]) >= CLEAR {
                recorded.push(Recorded { prompt, text: text_of(&choice).to_owned() });
            }
        }
        ensure!(
            recorded.len() >= FEWEST,
            "only {} of {} prompts have one answer that is clearly the likeliest; {FEWEST} are needed",
            recorded.len(),
            PROMPTS.len()
        );
        Ok(Self(recorded))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Asks the nth again.
    ///
    /// # Errors
    /// Another answer than then.
    pub async fn ask(&self, server: &Server, nth: usize, stream: bool) -> Result<()> {
        let Recorded { prompt, text } = &self.0[nth % self.0.len()];
        let answer = match stream {
            true => server.streamed(PATH, &body(prompt)).await?.0,
            false => text_of(&server.ok(PATH, &body(prompt)).await?["choices"][0]).to_owned(),
        };
        ensure!(answer == *text, "{prompt:?} was answered by {text:?}, now by {answer:?}");
        Ok(())
    }

    /// Asks all of them again, each alone.
    ///
    /// # Errors
    /// One of the answers is another.
    pub async fn check(&self, server: &Server) -> Result<()> {
        for nth in 0..self.len() {
            self.ask(server, nth, false).await?;
        }
        Ok(())
    }
}

fn body(prompt: &str) -> Value {
    json!({
        "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": true,
        "kv_cache": {"budget": 1.0, "min_budget": 1.0},
    })
}

/// The smallest lead of a token over the second likeliest.
fn lead(logprobs: &Value) -> f64 {
    let top = logprobs["top_logprobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lead = |top: &Value| {
        let mut values: Vec<f64> =
            top.as_object().into_iter().flatten().filter_map(|(_, value)| value.as_f64()).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        // Two tokens of one text share an entry.
        if let [first, second, ..] = values[..] { first - second } else { 0.0 }
    };
    match top.len() {
        NUM_TOKENS => top.iter().map(lead).fold(f64::INFINITY, f64::min),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_clear_as_its_least_clear_token() {
        let token = |second: f64| json!({"a": -0.1, "b": second});
        let of = |tokens: Vec<Value>| lead(&json!({"top_logprobs": tokens}));
        let mut tokens = vec![token(-3.0); NUM_TOKENS];
        assert!((of(tokens.clone()) - 2.9).abs() < 1e-9);
        tokens[4] = token(-0.15);
        assert!((of(tokens.clone()) - 0.05).abs() < 1e-9);
        tokens.pop();
        assert_eq!(of(tokens), 0.0, "an answer that ended early");
    }
}
