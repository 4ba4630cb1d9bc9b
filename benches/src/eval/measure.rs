//! One sample through all arms.

use anyhow::{Context, Result};
use keepwell_models::TextTokenizer;
use keepwell_server::trial::{Lab, Recipe, Trial};

use super::{
    arms::{Arm, Contender},
    methods::{Needs, Target},
    prefix::{Prefix, Read, apply},
    spy::Spy,
    tasks::{Question, Sample, Then},
};
use crate::divergence::{Divergence, Reference};

/// What one arm made of one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Bytes of the compressed context over its F16 bytes.
    pub bytes_ratio: f64,
    /// Share of right answers, or of equal top tokens.
    pub score: f64,
    /// Of a continuation, per token: divergence from the exact cache.
    pub kls: Vec<f64>,
    /// Of a continuation: mean change of the negative log-likelihood of its tokens.
    pub nll_delta: f64,
}

pub struct Bench<'a> {
    /// Without calibration: the exact cache, in the basis that simulated methods turn back from.
    pub lab: Lab<'a>,
    /// As the server runs its policies.
    pub served: Lab<'a>,
    pub spy: &'a Spy,
    pub tokenizer: &'a TextTokenizer,
    pub stop_ids: &'a [u32],
    pub arms: &'a [Arm],
    pub seed: u64,
}

/// A context, computed exactly.
struct Exact<'a> {
    prefix: Option<Prefix>,
    trial: Trial<'a>,
}

/// A context after an arm was at it.
struct Compressed<'a> {
    trial: Trial<'a>,
    bytes_ratio: f64,
}

impl Bench<'_> {
    /// Outcomes in the order of the arms, of those that take part. `done` hears of each, with the trial
    /// as it was right after compression where the arm is a policy.
    ///
    /// # Errors
    /// A context longer than the system has memory for, or a failing kernel.
    pub fn run(
        &self,
        sample: &Sample,
        takes_part: impl Fn(&Arm) -> bool,
        mut done: impl FnMut(&Arm, Option<&Trial>) -> Result<()>,
    ) -> Result<Vec<Option<Outcome>>> {
        let exact = self.exact(sample, self.arms.iter().filter(|arm| takes_part(arm)))?;
        let reference = match &sample.then {
            Then::Continue(tokens) | Then::Follow(tokens) => Some(reference(&exact.trial, tokens)?),
            Then::Ask(_) => None,
        };
        let mut outcomes = Vec::with_capacity(self.arms.len());
        for arm in self.arms {
            if !takes_part(arm) {
                outcomes.push(None);
                continue;
            }
            let compressed = self.compress(arm, sample, &exact)?;
            done(arm, arm.is_policy().then_some(&compressed.trial))?;
            outcomes.push(Some(self.outcome(arm, sample, reference.as_ref(), compressed)?));
        }
        Ok(outcomes)
    }

    /// The exact context, and what methods among the arms ask of it if there are any.
    fn exact<'b>(
        &self,
        sample: &Sample,
        arms: impl Iterator<Item = &'b Arm> + Clone,
    ) -> Result<Exact<'_>> {
        let capacity = sample.capacity();
        if arms.clone().any(|arm| arm.family().is_some()) {
            let needs = arms.map(Arm::needs).fold(Needs::default(), Needs::or);
            let read = Read { lab: &self.lab, spy: self.spy, needs, capacity };
            let (prefix, trial) = read.prefix(&sample.context)?;
            return Ok(Exact { prefix: Some(prefix), trial });
        }
        let mut trial = self.lab.start(Recipe::exact(), capacity)?;
        trial.prefill(&sample.context)?;
        Ok(Exact { prefix: None, trial })
    }

    fn compress<'a>(
        &'a self,
        arm: &Arm,
        sample: &Sample,
        exact: &Exact<'a>,
    ) -> Result<Compressed<'a>> {
        let (trial, bytes_ratio) = match arm.contender {
            Contender::Policy(recipe) => {
                let mut trial = self.served.start(recipe, sample.capacity())?;
                trial.prefill(&sample.context)?;
                let bytes_ratio = bytes_ratio(&trial);
                (trial, bytes_ratio)
            }
            Contender::Method(_) if arm.is_full() => (exact.trial.fork()?, 1.0),
            Contender::Method(method) => {
                let prefix = exact.prefix.as_ref().context("read, since there is a method")?;
                let share = arm.budget.unwrap_or(1.0);
                let target = Target { bytes: share * prefix.f16_bytes(), seed: self.seed };
                let compressed = method.compress(prefix, &target);
                (apply(&exact.trial, &compressed)?, compressed.bytes / prefix.f16_bytes())
            }
        };
        Ok(Compressed { trial, bytes_ratio })
    }

    /// `reference` is there for continuations.
    fn outcome(
        &self,
        arm: &Arm,
        sample: &Sample,
        reference: Option<&Reference>,
        compressed: Compressed,
    ) -> Result<Outcome> {
        let Compressed { trial, bytes_ratio } = compressed;
        match (&sample.then, reference) {
            (Then::Ask(questions), _) => Ok(Outcome { bytes_ratio, ..self.ask(trial, questions)? }),
            (Then::Continue(tokens), Some(reference)) => {
                Ok(Outcome { bytes_ratio, ..forced(reference, trial, tokens)? })
            }
            (Then::Follow(tokens), Some(reference)) if arm.is_policy() => {
                followed(reference, trial, tokens)
            }
            (Then::Follow(tokens), Some(reference)) => {
                // A method has no say about what comes after the context.
                let exact = (tokens.len() - 1) as f64 / sample.context.len() as f64;
                let bytes_ratio = (bytes_ratio + exact) / (1.0 + exact);
                Ok(Outcome { bytes_ratio, ..forced(reference, trial, tokens)? })
            }
            (Then::Continue(_) | Then::Follow(_), None) => Ok(Outcome::default()),
        }
    }

    fn ask(&self, mut trial: Trial, questions: &[Question]) -> Result<Outcome> {
        let mut score = 0.0;
        for question in questions {
            if !question.prompt.is_empty() {
                trial.append(&question.prompt)?;
            }
            let answer = trial.generate(question.max_tokens, self.stop_ids)?;
            score += question.score(&self.tokenizer.decode(&answer));
        }
        Ok(Outcome { score: score / questions.len() as f64, ..Outcome::default() })
    }
}

/// The ledger's bytes over those of F16.
fn bytes_ratio(trial: &Trial) -> f64 {
    let usage = trial.usage();
    usage.bytes as f64 / usage.f16_bytes as f64
}

impl Sample {
    fn capacity(&self) -> usize {
        self.context.len() + self.then.num_tokens()
    }
}

impl Then {
    /// Tokens that may follow the context.
    pub fn num_tokens(&self) -> usize {
        match self {
            Self::Continue(tokens) | Self::Follow(tokens) => tokens.len(),
            Self::Ask(questions) => {
                questions.iter().map(|q| q.prompt.len() + q.max_tokens + 1).sum()
            }
        }
    }
}

impl Outcome {
    fn of(divergence: Divergence) -> Self {
        let Divergence { kls, top1, nll_delta } = divergence;
        Self { score: top1, kls, nll_delta, ..Self::default() }
    }
}

/// What the exact cache says about a continuation, after each token but the last.
fn reference(exact: &Trial, tokens: &[u32]) -> Result<Reference> {
    Ok(Reference::new(&exact.fork()?.force(&tokens[..tokens.len() - 1])?))
}

/// All but the last of `tokens` at once.
fn forced(reference: &Reference, mut trial: Trial, tokens: &[u32]) -> Result<Outcome> {
    let logits = trial.force(&tokens[..tokens.len() - 1])?;
    drop(trial);
    Ok(Outcome::of(reference.compare(&logits, &tokens[1..])))
}

/// All but the last of `tokens` one by one, with compress events. The bytes are those at the end.
fn followed(reference: &Reference, mut trial: Trial, tokens: &[u32]) -> Result<Outcome> {
    let logits = trial.follow(&tokens[..tokens.len() - 1])?;
    let bytes_ratio = bytes_ratio(&trial);
    Ok(Outcome { bytes_ratio, ..Outcome::of(reference.compare(&logits, &tokens[1..])) })
}
