//! One choice of an answer: tokens from the engine become text, up to a stop string.

use std::collections::VecDeque;

use super::error::ApiError;
use super::stop::StopStrings;
use super::text::Detokenizer;
use crate::engine::{
    EngineError, Event, FinishReason, Generation, KvUsage, Outcome, SampledToken, TokenLogprobs,
};
use crate::metrics::latency::Stopwatch;

/// What happened to one choice.
#[derive(Debug)]
pub enum Update {
    Delta(Delta),
    /// The choice's last update.
    Finished(Finished),
    /// The request's last update.
    Failed(ApiError),
}

/// Text that is certain, and the tokens it came from when their log-probabilities were asked for.
#[derive(Debug, Default, PartialEq)]
pub struct Delta {
    pub index: usize,
    pub text: String,
    pub tokens: Vec<TextToken>,
}

#[derive(Debug, PartialEq)]
pub struct Finished {
    pub index: usize,
    pub reason: FinishReason,
    pub num_tokens: usize,
    pub kv_cache: KvUsage,
}

/// A token with its place in the text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextToken {
    pub id: u32,
    pub logprobs: TokenLogprobs,
    /// Characters of the text before the token's own.
    pub offset: usize,
}

/// A running choice. Dropping it cancels the generation.
pub struct Choice {
    index: usize,
    generation: Generation,
    detokenizer: Box<dyn Detokenizer>,
    stop: StopStrings,
    stopwatch: Stopwatch,
    /// Tokens whose text was not given out yet.
    held: VecDeque<TextToken>,
    num_tokens: usize,
    /// Characters decoded, those held back included.
    num_decoded: usize,
    /// Characters given out.
    num_given: usize,
    found_stop: bool,
    ended: bool,
    ready: VecDeque<Update>,
}

impl Choice {
    pub fn new(
        index: usize,
        generation: Generation,
        detokenizer: Box<dyn Detokenizer>,
        stop: StopStrings,
        stopwatch: Stopwatch,
    ) -> Self {
        Self {
            index,
            generation,
            detokenizer,
            stop,
            stopwatch,
            held: VecDeque::new(),
            num_tokens: 0,
            num_decoded: 0,
            num_given: 0,
            found_stop: false,
            ended: false,
            ready: VecDeque::new(),
        }
    }

    /// The next update; `None` after the last one.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Some(update);
            }
            if self.ended {
                return None;
            }
            match self.generation.next().await {
                Some(Event::Token(token)) => self.take(token),
                Some(Event::Finished(outcome)) => self.finish(outcome),
                Some(Event::Failed(error)) => self.fail(error),
                None => self.fail(EngineError::Internal("it ended without an answer".into())),
            }
        }
    }

    fn take(&mut self, token: SampledToken) {
        if self.found_stop {
            return; // Drawn before the engine heard that it should stop.
        }
        self.stopwatch.token();
        self.num_tokens += 1;
        if let Some(logprobs) = token.logprobs {
            self.held.push_back(TextToken { id: token.id, logprobs, offset: self.num_decoded });
        }
        let piece = self.detokenizer.push(token.id);
        self.scan(&piece);
    }

    fn scan(&mut self, piece: &str) {
        self.num_decoded += piece.chars().count();
        let scan = self.stop.push(piece);
        self.give(scan.text);
        if scan.found {
            self.found_stop = true;
            self.held.clear();
            self.generation.stop();
        }
    }

    /// Gives text out, with the tokens that begin in it.
    fn give(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        self.num_given += text.chars().count();
        let given = self.held.partition_point(|token| token.offset < self.num_given);
        let tokens = self.held.drain(..given).collect();
        self.ready.push_back(Update::Delta(Delta { index: self.index, text, tokens }));
    }

    fn finish(&mut self, outcome: Outcome) {
        self.give_the_rest();
        // Tokens after a stop string are not part of the answer.
        let (reason, num_tokens) = match self.found_stop {
            true => (FinishReason::Stop, self.num_tokens),
            false => (outcome.reason, outcome.num_generated_tokens),
        };
        self.stopwatch.finished();
        let kv_cache = outcome.kv_cache;
        let finished = Finished { index: self.index, reason, num_tokens, kv_cache };
        self.ready.push_back(Update::Finished(finished));
        self.ended = true;
    }

    fn give_the_rest(&mut self) {
        if self.found_stop {
            return;
        }
        let piece = self.detokenizer.flush();
        self.scan(&piece);
        if self.found_stop {
            return;
        }
        let text = self.stop.flush();
        let tokens = self.held.drain(..).collect::<Vec<_>>();
        if !text.is_empty() || !tokens.is_empty() {
            self.ready.push_back(Update::Delta(Delta { index: self.index, text, tokens }));
        }
    }

    fn fail(&mut self, error: EngineError) {
        self.ready.push_back(Update::Failed(error.into()));
        self.ended = true;
    }
}
