//! From logits to the next token.

use std::collections::HashMap;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{EngineError, SampledToken, SamplingParams, TokenLogprobs};
use crate::grammar::{Constraint, Verdict};

/// One sequence's sampling state.
pub struct Sampler {
    params: SamplingParams,
    rng: StdRng,
    /// How often each token occurs in the prompt and in the answer.
    in_prompt: HashMap<u32, u32>,
    in_answer: HashMap<u32, u32>,
    /// The answer's tokens, when words are ruled out.
    answer: Vec<u32>,
    /// Cannot be drawn yet.
    stop_token_ids: Vec<u32>,
    num_drawn: usize,
    constraint: Option<Constraint>,
}

/// What a step gave a sequence.
pub struct Drawn {
    /// Absent when there was nothing left to draw: the grammar has ended, or all is ruled out.
    pub token: Option<SampledToken>,
    /// Whether the answer is complete: a stop token was drawn, or the grammar has ended.
    pub is_last: bool,
}

impl Sampler {
    pub fn new(
        params: SamplingParams,
        prompt: &[u32],
        stop_token_ids: &[u32],
        constraint: Option<Constraint>,
    ) -> Self {
        let rng = match params.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        let mut in_prompt = HashMap::new();
        if params.repetition_penalty != 1.0 {
            prompt.iter().for_each(|id| *in_prompt.entry(*id).or_default() += 1);
        }
        Self {
            params,
            rng,
            in_prompt,
            in_answer: HashMap::new(),
            answer: vec![],
            stop_token_ids: stop_token_ids.to_vec(),
            num_drawn: 0,
            constraint,
        }
    }

    /// Draws the next token; logits (vocab). NaN counts as impossible.
    ///
    /// # Errors
    /// [`EngineError::Grammar`] when the grammar becomes too complex.
    pub fn draw_next(&mut self, logits: &mut [f32]) -> Result<Drawn, EngineError> {
        let raw = self.params.logprobs.map(|num_top| (num_top, logits.to_vec()));
        if self.mask(logits)? == Verdict::Complete {
            return Ok(Drawn { token: None, is_last: true });
        }
        self.penalize(logits);
        self.bias(logits);
        self.rule_out(logits);
        if possible(logits).next().is_none() {
            return Ok(Drawn { token: None, is_last: true });
        }
        let id = if self.params.temperature == 0.0 { argmax(logits) } else { self.draw(logits) };
        *self.in_answer.entry(id).or_default() += 1;
        self.num_drawn += 1;
        if !self.params.bad_words.is_empty() {
            self.answer.push(id);
        }
        let logprobs = raw.map(|(num_top, raw)| token_logprobs(&raw, id, num_top));
        let is_last = self.stop_token_ids.contains(&id) || self.accept(id)? == Verdict::Complete;
        Ok(Drawn { token: Some(SampledToken { id, logprobs }), is_last })
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<Verdict, EngineError> {
        let Some(constraint) = &mut self.constraint else { return Ok(Verdict::Open) };
        let verdict = constraint.mask(logits).map_err(EngineError::Grammar)?;
        // `min_tokens` cannot ask for more than the grammar has.
        let ends_early = self.num_drawn < self.params.min_tokens
            && possible(logits).all(|(id, _)| self.stop_token_ids.contains(&id));
        Ok(if ends_early { Verdict::Complete } else { verdict })
    }

    fn accept(&mut self, id: u32) -> Result<Verdict, EngineError> {
        let Some(constraint) = &mut self.constraint else { return Ok(Verdict::Open) };
        constraint.accept(id).map_err(EngineError::Grammar)
    }

    /// OpenAI's presence and frequency penalties on the answer; the repetition penalty (CTRL, arXiv
    /// 1909.05858) on prompt and answer.
    fn penalize(&self, logits: &mut [f32]) {
        let SamplingParams { presence_penalty, frequency_penalty, repetition_penalty, .. } =
            self.params;
        if repetition_penalty != 1.0 {
            let answered = self.in_answer.keys().filter(|id| !self.in_prompt.contains_key(id));
            for id in self.in_prompt.keys().chain(answered) {
                let Some(logit) = logits.get_mut(*id as usize) else { continue };
                *logit = match *logit > 0.0 {
                    true => *logit / repetition_penalty,
                    false => *logit * repetition_penalty,
                };
            }
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            for (id, count) in &self.in_answer {
                logits[*id as usize] -= presence_penalty + frequency_penalty * *count as f32;
            }
        }
    }

    fn bias(&self, logits: &mut [f32]) {
        // A tokenizer may know ids that the model has no logits for.
        for (id, bias) in &self.params.logit_bias {
            logits.get_mut(*id as usize).into_iter().for_each(|logit| *logit += bias);
        }
        if self.num_drawn < self.params.min_tokens {
            for id in &self.stop_token_ids {
                logits
                    .get_mut(*id as usize)
                    .into_iter()
                    .for_each(|logit| *logit = f32::NEG_INFINITY);
            }
        }
    }

    /// What is not allowed, and what would complete a bad word.
    fn rule_out(&self, logits: &mut [f32]) {
        if let Some(allowed) = &self.params.allowed_token_ids {
            let kept: Vec<_> =
                allowed.iter().filter_map(|id| Some((*id, *logits.get(*id as usize)?))).collect();
            logits.fill(f32::NEG_INFINITY);
            kept.into_iter().for_each(|(id, logit)| logits[id as usize] = logit);
        }
        for word in &self.params.bad_words {
            let Some((last, before)) = word.split_last() else { continue };
            if self.answer.ends_with(before)
                && let Some(logit) = logits.get_mut(*last as usize)
            {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let mut candidates = self.candidates(logits);
        let largest = candidates.iter().fold(f32::NEG_INFINITY, |m, (_, l)| m.max(*l));
        for (_, logit) in &mut candidates {
            *logit = ((*logit - largest) / self.params.temperature).exp();
        }
        if self.params.min_p > 0.0 {
            candidates.retain(|(_, p)| *p >= self.params.min_p);
        }
        if self.params.top_p < 1.0 {
            keep_nucleus(&mut candidates, self.params.top_p);
        }
        let total: f32 = candidates.iter().map(|(_, p)| p).sum();
        let mut left = self.rng.random_range(0.0..1.0) * total;
        for (id, p) in &candidates {
            left -= p;
            if left < 0.0 {
                return *id;
            }
        }
        candidates.last().map_or(0, |(id, _)| *id)
    }

    /// (token, logit), the `top_k` likeliest if that is set.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        match self.params.top_k {
            0 => possible(logits).collect(),
            k => top(logits, k),
        }
    }
}

/// The fewest likeliest candidates whose probabilities reach `top_p` (nucleus sampling).
fn keep_nucleus(candidates: &mut Vec<(u32, f32)>, top_p: f32) {
    let total: f32 = candidates.iter().map(|(_, p)| p).sum();
    // Together these are less than what the nucleus leaves out: no need to sort them.
    let negligible = (1.0 - top_p) * total / candidates.len() as f32;
    candidates.retain(|(_, p)| *p >= negligible);
    candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut mass = 0.0;
    let reached = candidates.iter().position(|(_, p)| {
        mass += p;
        mass >= top_p * total
    });
    candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
}

/// A token's log-probability, and those of the `num_top` likeliest; logits (vocab).
pub fn token_logprobs(logits: &[f32], id: u32, num_top: usize) -> TokenLogprobs {
    let lse = log_sum_exp(logits);
    let top = top(logits, num_top).into_iter().map(|(id, logit)| (id, logit - lse)).collect();
    TokenLogprobs { chosen: logits[id as usize] - lse, top }
}

/// (token, logit) of what can be drawn: minus infinity is a token that was ruled out.
fn possible(logits: &[f32]) -> impl Iterator<Item = (u32, f32)> {
    (0..).zip(logits.iter().copied()).filter(|(_, logit)| *logit > f32::NEG_INFINITY)
}

/// The `k` largest logits, largest first; equal ones in the order of their ids.
fn top(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = possible(logits).collect();
    let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k < all.len() {
        all.select_nth_unstable_by(k, by_logit);
        all.truncate(k);
    }
    all.sort_by(by_logit);
    all
}

/// The first of the largest, of which NaN is none.
fn argmax(logits: &[f32]) -> u32 {
    const LANES: usize = 32;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (runs, rest) = logits.as_chunks::<LANES>();
    // Lane by lane, for that is what compilers make vectors of.
    let mut largest = [f32::NEG_INFINITY; LANES];
    for run in runs {
        largest = std::array::from_fn(|i| larger(largest[i], run[i]));
    }
    let largest = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| larger(a, *b));
    logits.iter().position(|logit| *logit == largest).unwrap_or(0) as u32
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let finite = || logits.iter().filter(|l| !l.is_nan());
    let largest = finite().fold(f32::NEG_INFINITY, |m, l| m.max(*l));
    largest + finite().map(|l| (l - largest).exp()).sum::<f32>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(params: SamplingParams) -> Sampler {
        Sampler::new(SamplingParams { seed: Some(5), ..params }, &[0, 1], &[3], None)
    }

    fn draw(sampler: &mut Sampler, logits: &mut [f32]) -> SampledToken {
        sampler.draw_next(logits).unwrap().token.unwrap()
    }

    fn counts(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
        let mut sampler = sampler(params);
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            sampler.in_answer.clear();
            counts[draw(&mut sampler, &mut logits.to_vec()).id as usize] += 1;
        }
        counts
    }

    const LOGITS: [f32; 4] = [0.0, 1.0, 2.0, 3.0];

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        let mut greedy = sampler(SamplingParams { temperature: 0.0, ..Default::default() });
        assert_eq!(draw(&mut greedy, &mut [1.0, 5.0, f32::NAN, 5.0]).id, 1);
        for first in [0, 31, 32, 70, 98] {
            let mut logits = vec![f32::NAN; 99];
            logits[first..].fill(-2.0);
            assert_eq!(draw(&mut greedy, &mut logits).id, first as u32);
        }
    }

    #[test]
    fn draws_follow_the_softmax() {
        let counts = counts(SamplingParams::default(), &LOGITS);
        for (count, share) in counts.iter().zip([0.032, 0.087, 0.237, 0.644]) {
            assert!((*count as f32 / 4000.0 - share).abs() < 0.03, "{counts:?}");
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_leave_only_the_likely() {
        let top_k = counts(SamplingParams { top_k: 2, ..Default::default() }, &LOGITS);
        assert!(top_k[..2] == [0, 0] && top_k[2] > 0);
        let top_p = counts(SamplingParams { top_p: 0.7, ..Default::default() }, &LOGITS);
        assert!(top_p[..2] == [0, 0] && top_p[2] > 0);
        let top_p = counts(SamplingParams { top_p: 0.6, ..Default::default() }, &LOGITS);
        assert_eq!(top_p, [0, 0, 0, 4000]);
        let min_p = counts(SamplingParams { min_p: 0.3, ..Default::default() }, &LOGITS);
        assert!(min_p[..2] == [0, 0] && min_p[2] > 0);
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_one_differs() {
        let run = |seed| {
            let params = SamplingParams { seed: Some(seed), ..Default::default() };
            let mut sampler = Sampler::new(params, &[], &[], None);
            (0..50).map(|_| draw(&mut sampler, &mut [0.0; 100]).id).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn penalties_push_repeated_tokens_down() {
        let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
        let mut repetition = sampler(SamplingParams { repetition_penalty: 2.0, ..greedy.clone() });
        assert_eq!(draw(&mut repetition, &mut [4.0, 3.9, 2.5]).id, 2, "0 and 1 are in the prompt");
        let mut presence = sampler(SamplingParams { presence_penalty: 1.0, ..greedy.clone() });
        let ids: Vec<_> = (0..3).map(|_| draw(&mut presence, &mut [2.0, 1.5, 0.2]).id).collect();
        assert_eq!(ids, [0, 1, 0], "the penalty does not grow with the count");
        let mut frequency = sampler(SamplingParams { frequency_penalty: 1.0, ..greedy });
        let ids: Vec<_> = (0..4).map(|_| draw(&mut frequency, &mut [2.0, 1.5, 0.2]).id).collect();
        assert_eq!(ids, [0, 1, 0, 1]);
    }

    #[test]
    fn a_bias_moves_a_token_and_not_the_log_probabilities() {
        let biased = |bias| SamplingParams {
            temperature: 0.0,
            logit_bias: vec![(0, bias)],
            logprobs: Some(1),
            ..Default::default()
        };
        let token = draw(&mut sampler(biased(100.0)), &mut LOGITS.clone());
        assert_eq!(token.id, 0);
        let logprobs = token.logprobs.unwrap();
        assert!((logprobs.chosen - 0.032f32.ln()).abs() < 1e-2, "{logprobs:?}");
        assert_eq!(logprobs.top[0].0, 3);
        let unbiased =
            counts(SamplingParams { logit_bias: vec![(3, -100.0)], ..Default::default() }, &LOGITS);
        assert_eq!(unbiased[3], 0);
    }

    #[test]
    fn stop_tokens_wait_for_min_tokens() {
        for temperature in [0.0, 1.0] {
            let params = SamplingParams { temperature, min_tokens: 3, ..Default::default() };
            let mut sampler = sampler(params);
            let ids: Vec<_> =
                (0..4).map(|_| draw(&mut sampler, &mut [0.0, 1.0, 2.0, 90.0]).id).collect();
            assert!(ids[..3].iter().all(|id| *id != 3) && ids[3] == 3, "{ids:?}");
        }
    }

    #[test]
    fn only_allowed_tokens_come_and_no_bad_word_is_completed() {
        let run = |params: SamplingParams| {
            let mut sampler = sampler(SamplingParams { temperature: 0.0, ..params });
            let mut draw = || sampler.draw_next(&mut LOGITS.clone()).unwrap();
            (0..5).map_while(|_| draw().token.map(|token| token.id)).collect::<Vec<_>>()
        };
        let allowed = |ids: &[u32]| SamplingParams {
            allowed_token_ids: Some(ids.into()),
            ..Default::default()
        };
        assert_eq!(run(allowed(&[0, 1])), [1; 5]);
        assert!(run(allowed(&[9])).is_empty(), "nothing is left: the answer ends");
        let bad = |words: &[&[u32]]| SamplingParams {
            bad_words: words.iter().map(|word| word.to_vec()).collect(),
            ..Default::default()
        };
        assert_eq!(run(bad(&[&[3]])), [2; 5]);
        assert_eq!(run(bad(&[&[3, 3]])), [3, 2, 3, 2, 3]);
        assert_eq!(run(bad(&[&[3, 3, 2], &[3, 3, 3]])), [3, 3, 1, 3, 3]);
    }

    /// Token id = byte, 3 ends.
    fn constrained(params: SamplingParams, texts: &[&str]) -> Sampler {
        let tokens: Vec<_> = (0..=255).map(|b| (b != 3).then(|| vec![b])).collect();
        let grammars = crate::grammar::Grammars::new(&tokens, &[3]).unwrap();
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        let constraint = grammars.compile(&crate::grammar::Grammar::Choice(texts)).unwrap();
        Sampler::new(params, &[], &[3], Some(constraint))
    }

    #[test]
    fn an_answer_follows_its_grammar_and_ends_with_it() {
        for temperature in [0.0, 2.0] {
            let params = SamplingParams { temperature, seed: Some(1), ..Default::default() };
            let mut sampler = constrained(params, &["abc", "abd"]);
            let drawn: Vec<_> =
                (0..3).map(|_| sampler.draw_next(&mut [0.0; 256]).unwrap()).collect();
            let text: Vec<_> = drawn.iter().map(|d| d.token.as_ref().unwrap().id as u8).collect();
            assert!(text == b"abc" || text == b"abd");
            assert_eq!(drawn.iter().map(|d| d.is_last).collect::<Vec<_>>(), [false, false, true]);
        }
    }

    #[test]
    fn where_a_grammar_may_end_or_go_on_the_model_decides() {
        let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
        let mut sampler = constrained(greedy.clone(), &["a", "ab"]);
        sampler.draw_next(&mut [0.0; 256]).unwrap();
        let mut logits = [0.0; 256];
        logits[3] = 1.0;
        let drawn = sampler.draw_next(&mut logits).unwrap();
        assert_eq!((drawn.token.unwrap().id, drawn.is_last), (3, true));
        let mut sampler = constrained(SamplingParams { min_tokens: 2, ..greedy }, &["a", "ab"]);
        sampler.draw_next(&mut [0.0; 256]).unwrap();
        let drawn = sampler.draw_next(&mut logits).unwrap();
        assert_eq!((drawn.token.unwrap().id, drawn.is_last), (u32::from(b'b'), true));
    }

    #[test]
    fn min_tokens_cannot_ask_for_more_than_the_grammar_has() {
        let params = SamplingParams { min_tokens: 5, ..Default::default() };
        let mut sampler = constrained(params, &["a"]);
        assert!(sampler.draw_next(&mut [0.0; 256]).unwrap().is_last);
        let drawn = sampler.draw_next(&mut [0.0; 256]).unwrap();
        assert!(drawn.token.is_none() && drawn.is_last);
    }

    #[test]
    fn log_probabilities_are_those_of_the_model_before_temperature_and_penalties() {
        let params = SamplingParams {
            temperature: 0.0,
            repetition_penalty: 10.0,
            logprobs: Some(2),
            ..Default::default()
        };
        let token = draw(&mut sampler(params), &mut LOGITS.map(|l| l - 3.0));
        let logprobs = token.logprobs.unwrap();
        assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 2]);
        assert!((logprobs.top[0].1 - 0.644f32.ln()).abs() < 1e-3);
        assert_eq!(logprobs.chosen, logprobs.top[0].1);
    }
}
