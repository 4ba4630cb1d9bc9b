//! What a compressed context is asked to do: one file and one table line each.

mod kl;
mod lines;
mod long;
mod multiturn;
mod needle;
mod passkey;

use std::fmt;

use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::source::Source;

pub use lines::MOST_LINES;

pub static TASKS: &[&dyn Task] = &[
    &kl::Kl,
    &needle::Needle,
    &lines::Lines,
    &passkey::Passkey,
    &multiturn::Multiturn,
    &long::Long,
];

/// Whether the question is known when the context is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Agnostic,
    Aware,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Agnostic => "agnostic",
            Self::Aware => "aware",
        })
    }
}

/// How many samples of which size.
#[derive(Clone, Debug)]
pub struct Plan {
    pub prefix: usize,
    pub forced: usize,
    pub windows: usize,
    /// Of each task that asks questions, in each mode.
    pub samples: usize,
    /// Tokens of text around what is to be found.
    pub lengths: Vec<usize>,
    /// Lines of a record.
    pub lines: Vec<usize>,
    pub seed: u64,
}

/// Where in a task's grid a sample belongs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub mode: Mode,
    /// Nominal tokens, or lines.
    pub length: usize,
    /// Share of the context before what is asked for, where the task says so.
    pub depth: Option<f64>,
}

/// One context and what comes after it.
#[derive(Clone, Debug)]
pub struct Sample {
    pub place: Place,
    /// What is compressed.
    pub context: Vec<u32>,
    pub then: Then,
}

#[derive(Clone, Debug)]
pub enum Then {
    /// A continuation: each token but the last is forced, each but the first predicted.
    Continue(Vec<u32>),
    /// The same, one token after the other with compress events, as if they were generated.
    Follow(Vec<u32>),
    /// Questions asked one after the other.
    Ask(Vec<Question>),
}

#[derive(Clone, Debug)]
pub struct Question {
    /// Appended without compression; empty when the context ends with it.
    pub prompt: Vec<u32>,
    /// The digits of the right answer.
    pub digits: String,
    pub grade: Grade,
    pub max_tokens: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// 1 when the answer holds the number, 0 otherwise.
    Contains,
    /// The share of digits that are right, place by place.
    Places,
}

impl Question {
    /// From 0 to 1. Digits count; whatever separates them does not.
    pub fn score(&self, answer: &str) -> f64 {
        let places = || {
            let given: Vec<char> = answer.chars().filter(char::is_ascii_digit).collect();
            let right = self.digits.chars().zip(given).filter(|(a, b)| a == b).count();
            right as f64 / self.digits.len().max(1) as f64
        };
        match self.grade {
            Grade::Contains => f64::from(u8::from(answer.contains(&self.digits))),
            Grade::Places => places(),
        }
    }
}

pub trait Task: Sync {
    fn name(&self) -> &'static str;

    /// The same samples whenever `source` and `plan` are the same.
    ///
    /// # Errors
    /// Texts too short for the plan, or a model that cannot be asked.
    fn samples(&self, source: &Source, plan: &Plan) -> Result<Vec<Sample>>;
}

/// What is asked about a text.
struct Asked<'a> {
    question: &'a str,
    /// The answer's first words, given to the model: what follows is retrieval, not whether a small
    /// model understands what it is to do (RULER, arXiv 2404.06654, does the same).
    opening: &'a str,
    digits: String,
    grade: Grade,
}

impl Asked<'_> {
    fn question(&self, prompt: Vec<u32>) -> Question {
        // A space and some leeway for digits that are written in groups.
        let max_tokens = self.digits.len() + 5;
        Question { prompt, digits: self.digits.clone(), grade: self.grade, max_tokens }
    }
}

/// A user's message with its question at the end, in both modes.
fn both_modes(
    source: &Source,
    (length, depth): (usize, Option<f64>),
    before: &str,
    asked: &Asked,
) -> Result<[Sample; 2]> {
    let [head, tail] = source.ask(before, asked.question, asked.opening)?;
    let sample = |mode, context, prompt| Sample {
        place: Place { mode, length, depth },
        context,
        then: Then::Ask(vec![asked.question(prompt)]),
    };
    let whole = [&head[..], &tail].concat();
    Ok([sample(Mode::Agnostic, head, tail), sample(Mode::Aware, whole, Vec::new())])
}

/// A generator of its own for each sample, so that one can be looked at alone.
fn generator(plan: &Plan, task: &str, index: usize) -> StdRng {
    let tag = task.bytes().fold(plan.seed, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
    StdRng::seed_from_u64(tag.wrapping_mul(1_000_003).wrapping_add(index as u64))
}

/// A number of `len` digits that does not start with 0.
fn number(rng: &mut StdRng, len: usize) -> String {
    let digit = |place: usize| char::from(b'0' + rng.random_range(u8::from(place == 0)..10));
    (0..len).map(digit).collect()
}

/// `text` with `inserts` at their depths in `0..1`; depths rise.
fn insert(source: &Source, text: &[u32], inserts: &[(f64, String)]) -> String {
    let mut whole = String::new();
    let mut from = 0;
    for (depth, sentence) in inserts {
        let at = ((depth * text.len() as f64) as usize).clamp(from, text.len());
        whole.push_str(&source.tokenizer.decode(&text[from..at]));
        whole.push_str(&format!(" {sentence} "));
        from = at;
    }
    whole.push_str(&source.tokenizer.decode(&text[from..]));
    whole
}

/// Tail of every message that asks for something in a text.
const BEFORE_QUESTION: &str = "\n\n";

#[cfg(test)]
mod tests;
