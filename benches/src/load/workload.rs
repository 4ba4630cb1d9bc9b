//! What is asked: sessions of one or more turns, made up from a seed or read from a file.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::lengths::Lengths;

/// Common words that most vocabularies hold as one token each, the space before them included.
/// What a prompt really has is read from the answer's `usage`.
const WORDS: &str = "time people year way day man thing woman life child world school state family \
    student group country problem hand part place case week company system program question work \
    government number night point home water room mother area money story fact month lot right \
    study book eye job word business issue side kind head house service friend father power hour \
    game line end member law car city name president team minute idea body information back parent \
    face level office door health person art war history party result change morning reason \
    research girl guy moment air teacher force education";

/// Everything about the requests of a run. Equal for equal seeds, whatever server is asked.
#[derive(Clone, Debug)]
pub struct Workload {
    pub seed: u64,
    pub prompt_tokens: Lengths,
    pub output_tokens: Lengths,
    /// Tokens that the prompts of a group begin with.
    pub prefix_tokens: usize,
    pub prefix_groups: usize,
    /// Requests of a session: each goes on from the last answer.
    pub turns: usize,
    /// Sessions from a file, taken in turn, instead of made up ones.
    pub dataset: Vec<Session>,
}

/// Requests that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Seconds after the start, if the file says.
    pub at: Option<f64>,
    /// Messages before the first turn's.
    pub history: Vec<Value>,
    pub turns: Vec<Turn>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub text: String,
    pub max_tokens: usize,
}

impl Workload {
    /// The session with this number.
    pub fn session(&self, index: usize) -> Session {
        if !self.dataset.is_empty() {
            return self.dataset[index % self.dataset.len()].clone();
        }
        // Golden-ratio steps: neighbouring numbers give unlike streams.
        let mixed = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut rng = StdRng::seed_from_u64(self.seed ^ mixed);
        let turn = |nth: usize| {
            let prefix = if nth == 0 { self.prefix(index) } else { String::new() };
            let text = prefix + &words(self.prompt_tokens.draw(&mut rng), &mut rng);
            Turn { text, max_tokens: self.output_tokens.draw(&mut rng) }
        };
        Session { at: None, history: vec![], turns: (0..self.turns).map(turn).collect() }
    }

    fn prefix(&self, index: usize) -> String {
        if self.prefix_tokens == 0 {
            return String::new();
        }
        let group = (index % self.prefix_groups) as u64;
        let mut rng = StdRng::seed_from_u64(!self.seed ^ group);
        words(self.prefix_tokens, &mut rng) + " "
    }
}

fn words(num: usize, rng: &mut impl Rng) -> String {
    let all: Vec<_> = WORDS.split_whitespace().collect();
    let word = |_| *all.choose(rng).expect("there are words");
    (0..num).map(word).collect::<Vec<_>>().join(" ")
}

/// Reads a JSONL file. A line has `prompt` (text), `messages` (the last one is asked, those before
/// it are history) or `input_length` (tokens, made up); and, if it likes, `max_tokens` or
/// `output_length`, and `timestamp`, milliseconds after the start.
///
/// # Errors
/// A line that is none of these, with its number.
pub fn read_dataset(path: &Path, seed: u64, output_tokens: Lengths) -> Result<Vec<Session>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rng = StdRng::seed_from_u64(seed);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let sessions = lines
        .map(|(nth, line)| {
            session(line, output_tokens, &mut rng)
                .with_context(|| format!("{}, line {}", path.display(), nth + 1))
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(!sessions.is_empty(), "{} has no lines", path.display());
    Ok(sessions)
}

fn session(line: &str, output_tokens: Lengths, rng: &mut StdRng) -> Result<Session> {
    let line: Value = serde_json::from_str(line)?;
    let mut history = vec![];
    let text = if let Some(prompt) = line["prompt"].as_str() {
        prompt.to_owned()
    } else if let Some(messages) = line["messages"].as_array() {
        let (last, before) = messages.split_last().context("`messages` is empty")?;
        history = before.to_vec();
        last["content"].as_str().context("the last message has no text")?.to_owned()
    } else if let Some(length) = line["input_length"].as_u64() {
        ensure!((1..10_000_000).contains(&length), "`input_length` is {length}");
        words(length as usize, rng)
    } else {
        bail!("it has none of `prompt`, `messages` and `input_length`");
    };
    let asked = line["max_tokens"].as_u64().or(line["output_length"].as_u64());
    let max_tokens = asked.map_or_else(|| output_tokens.draw(rng), |n| n.max(1) as usize);
    let at = line["timestamp"].as_f64().map(|ms| ms / 1e3);
    ensure!(at.is_none_or(|at| (0.0..1e9).contains(&at)), "`timestamp` is out of range");
    Ok(Session { at, history, turns: vec![Turn { text, max_tokens }] })
}

/// A message of a chat.
pub fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload {
            seed: 1,
            prompt_tokens: Lengths::Uniform(5, 20),
            output_tokens: Lengths::Fixed(8),
            prefix_tokens: 10,
            prefix_groups: 2,
            turns: 3,
            dataset: vec![],
        }
    }

    #[test]
    fn equal_seeds_ask_the_same_and_neighbours_differ() {
        let workload = workload();
        assert_eq!(workload.session(3), workload.clone().session(3));
        assert_ne!(workload.session(3), workload.session(4));
        assert_ne!(workload.session(3), Workload { seed: 2, ..workload.clone() }.session(3));
        assert_eq!(workload.session(3).turns.len(), 3);
    }

    #[test]
    fn sessions_of_a_group_begin_alike_and_those_of_another_do_not() {
        let first_words = |index: usize| {
            let text = workload().session(index).turns[0].text.clone();
            text.split(' ').take(10).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(first_words(0), first_words(2));
        assert_ne!(first_words(0), first_words(1));
    }

    #[test]
    fn a_file_may_have_prompts_chats_or_lengths_and_says_which_line_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        let lines = [
            r#"{"prompt": "hi", "max_tokens": 3}"#,
            "",
            r#"{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}"#,
            r#"{"timestamp": 2500, "input_length": 4, "output_length": 7, "hash_ids": [1]}"#,
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let sessions = read_dataset(&path, 1, Lengths::Fixed(5)).unwrap();
        assert_eq!(sessions[0].turns, [Turn { text: "hi".into(), max_tokens: 3 }]);
        assert_eq!((sessions[1].history.len(), sessions[1].turns[0].text.as_str()), (1, "b"));
        assert_eq!((sessions[2].at, sessions[2].turns[0].max_tokens), (Some(2.5), 7));
        assert_eq!(sessions[2].turns[0].text.split(' ').count(), 4);
        for wrong in ["{", "{}", r#"{"messages": []}"#, r#"{"prompt": "a", "timestamp": -1}"#] {
            std::fs::write(&path, format!("{}\n{wrong}", lines[0])).unwrap();
            let error = read_dataset(&path, 1, Lengths::Fixed(5)).unwrap_err();
            assert!(format!("{error:#}").contains("line 2"), "{error:#}");
        }
    }
}
