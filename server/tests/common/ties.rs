//! Greedy answers that are the same but for what is within floating-point noise.

use serde_json::Value;

/// The two likeliest tokens of a place may be this close.
const TIE: f64 = 0.05;

/// Two completions with log-probabilities: equal tokens up to a place with a tie.
pub fn check_same_up_to_ties(together: &Value, alone: &Value) {
    let tokens = |answer: &Value| answer["choices"][0]["logprobs"]["tokens"].clone();
    let (together, alone_tokens) = (tokens(together), tokens(alone));
    let (together, alone_tokens) = (together.as_array().unwrap(), alone_tokens.as_array().unwrap());
    assert_eq!(together.len(), alone_tokens.len());
    let Some(at) = together.iter().zip(alone_tokens).position(|(a, b)| a != b) else { return };
    let top = &alone["choices"][0]["logprobs"]["top_logprobs"][at];
    let of = |token: &Value| top[token.as_str().unwrap()].as_f64().unwrap_or(f64::NEG_INFINITY);
    let margin = of(&alone_tokens[at]) - of(&together[at]);
    assert!(margin <= TIE, "token {at}: {} for {}: {top}", together[at], alone_tokens[at]);
}
