//! One choice of an answer: tokens from the engine become text, up to a stop string.

use std::collections::VecDeque;

use serde::Serialize;

use super::echo::Echo;
use super::error::ApiError;
use super::stop::StopStrings;
use super::text::Detokenizer;
use super::tools::{CallPiece, Parsed, ToolParser};
use crate::engine::{
    EngineError, Event, FinishReason, Generation, KvUsage, Outcome, SampledToken, TokenLogprobs,
};
use crate::metrics::latency::Stopwatch;

/// What happened to one choice.
#[derive(Debug)]
pub enum Update {
    /// Before the first delta of a choice that repeats its prompt with log-probabilities.
    Prompt(PromptDelta),
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
    pub calls: Vec<CallPiece>,
    /// Tokens of the choice so far, those of this delta included.
    pub num_tokens: usize,
}

#[derive(Debug, PartialEq)]
pub struct PromptDelta {
    pub index: usize,
    pub tokens: Vec<TextToken>,
}

#[derive(Debug, PartialEq)]
pub struct Finished {
    pub index: usize,
    pub reason: FinishReason,
    /// Whether the choice called tools.
    pub has_called: bool,
    /// What of the request's own stops ended the choice.
    pub stop_reason: Option<StopReason>,
    pub num_tokens: usize,
    /// Tokens of the prompt that were in the prefix cache; the other choices of a prompt, which find
    /// what the first one left there, do not count.
    pub num_cached_tokens: usize,
    pub kv_cache: KvUsage,
}

/// A stop string, or a stop token that is not one of the model's own.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    Text(String),
    Token(u32),
}

/// A token with its place in the text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextToken {
    pub id: u32,
    /// Absent where nothing predicts the token.
    pub logprobs: Option<TokenLogprobs>,
    /// Characters of the text before the token's own.
    pub offset: usize,
}

/// What the text of a choice is made with.
pub struct Making {
    pub index: usize,
    pub detokenizer: Box<dyn Detokenizer>,
    pub stop: StopStrings,
    /// The model's own, which are no reason to tell of.
    pub eos_token_ids: Vec<u32>,
    /// Stop strings count from this token on.
    pub min_tokens: usize,
    /// The prompt, when the answer repeats it.
    pub echo: Option<Echo>,
    /// Finds the calls in the text, when there are tools.
    pub tools: Option<ToolParser>,
    /// Whether the answer is the prompt alone: what is generated is dropped.
    pub echo_only: bool,
    /// Whether it is the first choice of its prompt.
    pub is_first: bool,
    pub stopwatch: Stopwatch,
}

/// A running choice. Dropping it cancels the generation.
pub struct Choice {
    generation: Generation,
    making: Making,
    /// Tokens whose text was not given out yet.
    held: VecDeque<TextToken>,
    /// Tokens whose text the tool parser holds back.
    unparsed: Vec<TextToken>,
    num_tokens: usize,
    /// Characters decoded, an echo and those held back included.
    num_decoded: usize,
    /// Characters given out.
    num_given: usize,
    found_stop: Option<String>,
    ended: bool,
    ready: VecDeque<Update>,
}

impl Choice {
    pub fn new(generation: Generation, making: Making) -> Self {
        let num_echoed = making.echo.as_ref().map_or(0, |echo| echo.num_chars);
        Self {
            generation,
            making,
            held: VecDeque::new(),
            unparsed: vec![],
            num_tokens: 0,
            num_decoded: num_echoed,
            num_given: num_echoed,
            found_stop: None,
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
                Some(Event::PromptLogprobs(logprobs)) => self.take_prompt(logprobs),
                Some(Event::Embedding(_)) => {} // Not asked for.
                Some(Event::Token(token)) => self.take(token),
                Some(Event::Finished(outcome)) => self.finish(outcome),
                Some(Event::Failed(error)) => self.fail(error),
                None => self.fail(EngineError::Internal("it ended without an answer".into())),
            }
        }
    }

    fn take_prompt(&mut self, logprobs: Vec<TokenLogprobs>) {
        if let Some(echo) = &mut self.making.echo {
            echo.extend(logprobs);
        }
    }

    /// Whatever follows the prompt's log-probabilities: they are complete then.
    fn give_prompt(&mut self) {
        if let Some(echo) = self.making.echo.take() {
            let prompt = PromptDelta { index: self.making.index, tokens: echo.into_tokens() };
            self.ready.push_back(Update::Prompt(prompt));
        }
    }

    fn take(&mut self, token: SampledToken) {
        self.give_prompt();
        // After a stop it was drawn before the engine heard of it.
        if self.found_stop.is_some() || self.making.echo_only {
            return;
        }
        self.making.stopwatch.token();
        self.num_tokens += 1;
        if token.logprobs.is_some() {
            let offset = self.num_decoded;
            self.held.push_back(TextToken { id: token.id, logprobs: token.logprobs, offset });
        }
        let piece = self.making.detokenizer.push(token.id);
        self.scan(&piece);
    }

    fn scan(&mut self, piece: &str) {
        self.num_decoded += piece.chars().count();
        if self.num_tokens < self.making.min_tokens {
            return self.give(piece.to_owned());
        }
        let scan = self.making.stop.push(piece);
        self.give(scan.text);
        if scan.found.is_some() {
            self.found_stop = scan.found;
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
        self.give_delta(text, tokens);
    }

    /// Text that became certain. Of calls that are not, the tokens wait.
    fn give_delta(&mut self, text: String, tokens: Vec<TextToken>) {
        let parsed = match &mut self.making.tools {
            Some(tools) => tools.push(&text),
            None => Parsed { text, calls: vec![] },
        };
        self.unparsed.extend(tokens);
        if !parsed.text.is_empty() || !parsed.calls.is_empty() {
            self.push_delta(parsed);
        }
    }

    fn push_delta(&mut self, Parsed { text, calls }: Parsed) {
        let (index, num_tokens) = (self.making.index, self.num_tokens);
        let tokens = std::mem::take(&mut self.unparsed);
        self.ready.push_back(Update::Delta(Delta { index, text, tokens, calls, num_tokens }));
    }

    /// What is left in the parser is no call.
    fn end_calls(&mut self) -> bool {
        let tools = self.making.tools.as_mut();
        let parsed = tools.map(ToolParser::flush).unwrap_or_default();
        if !parsed.text.is_empty() || !self.unparsed.is_empty() {
            self.push_delta(parsed);
        }
        self.making.tools.as_ref().is_some_and(ToolParser::has_called)
    }

    fn finish(&mut self, outcome: Outcome) {
        self.give_prompt();
        self.give_the_rest();
        let has_called = self.end_calls();
        // Tokens after a stop string are not part of the answer.
        let (reason, num_tokens) = match self.found_stop.is_some() {
            _ if self.making.echo_only => (FinishReason::Length, 0),
            true => (FinishReason::Stop, self.num_tokens),
            false => (outcome.reason, outcome.num_generated_tokens),
        };
        self.making.stopwatch.finished(outcome.num_generated_tokens);
        let own = |id: &u32| !self.making.eos_token_ids.contains(id);
        let token = outcome.stop_token.filter(own).map(StopReason::Token);
        let stop_reason = self.found_stop.take().map(StopReason::Text).or(token);
        let num_cached_tokens = if self.making.is_first { outcome.num_cached_tokens } else { 0 };
        let (index, kv_cache) = (self.making.index, outcome.kv_cache);
        let finished = Finished {
            index,
            reason,
            has_called,
            stop_reason,
            num_tokens,
            num_cached_tokens,
            kv_cache,
        };
        self.ready.push_back(Update::Finished(finished));
        self.ended = true;
    }

    fn give_the_rest(&mut self) {
        if self.found_stop.is_some() {
            return;
        }
        let piece = self.making.detokenizer.flush();
        self.scan(&piece);
        if self.found_stop.is_some() {
            return;
        }
        let text = self.making.stop.flush();
        let tokens = self.held.drain(..).collect::<Vec<_>>();
        if !text.is_empty() || !tokens.is_empty() {
            self.give_delta(text, tokens);
        }
    }

    fn fail(&mut self, error: EngineError) {
        self.ready.push_back(Update::Failed(error.into()));
        self.ended = true;
    }
}
