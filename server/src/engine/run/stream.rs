//! One sequence as its client sees it.

use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::{
    engine::{
        EngineError, Event, FinishReason, GenerateRequest,
        pooling::Pooler,
        prompt_logprobs::PromptLogprobs,
        sampler::{Drawn, Sampler},
        view::KvView,
    },
    metrics::lifecycle::Lifecycle,
    sched::{Entry, Sequence},
};

/// Where the events of a sequence go, and how its tokens are drawn.
pub(super) struct Stream {
    pub events: mpsc::UnboundedSender<Event>,
    sampler: Sampler,
    pub stop_token_ids: Vec<u32>,
    prompt_logprobs: Option<PromptLogprobs>,
    pub pooler: Option<Pooler>,
    pub life: Lifecycle,
    pub view: Option<oneshot::Sender<KvView>>,
}

impl Stream {
    pub fn new(
        request: GenerateRequest,
        events: mpsc::UnboundedSender<Event>,
        view: Option<oneshot::Sender<KvView>>,
        life: Lifecycle,
    ) -> Self {
        let GenerateRequest { prompt, sampling, stop_token_ids, constraint, pooling, .. } = request;
        let prompt_logprobs =
            sampling.prompt_logprobs.map(|num_top| PromptLogprobs::new(num_top, prompt.len()));
        let sampler = Sampler::new(sampling, &prompt, &stop_token_ids, constraint);
        let pooler = pooling.map(Pooler::new);
        Self { events, sampler, stop_token_ids, prompt_logprobs, pooler, life, view }
    }

    /// Takes what the step computed for the entry; tells how the sequence ended, if it did.
    pub fn advance(
        &mut self,
        entry: &Entry,
        seq: &mut Sequence,
        mut rows: Vec<Vec<f32>>,
        now: Instant,
    ) -> Option<Result<FinishReason, EngineError>> {
        if rows.iter().any(|row| is_corrupted(row)) {
            return Some(Err(EngineError::Corrupted));
        }
        if let Some(pooler) = &mut self.pooler {
            let vector = pooler.add(entry, &rows)?;
            let _ = self.events.send(Event::Embedding(vector));
            return Some(Ok(FinishReason::Stop));
        }
        if let Some(told) = &mut self.prompt_logprobs {
            let logprobs = told.read(entry, &seq.tokens, &rows);
            if !logprobs.is_empty() {
                let _ = self.events.send(Event::PromptLogprobs(logprobs));
            }
        }
        let logits = rows.last_mut().filter(|_| entry.samples)?;
        match self.sampler.draw_next(logits) {
            Ok(drawn) => {
                self.life.token(now);
                self.take(drawn, seq).map(Ok)
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Appends and streams what was drawn; tells whether the sequence is finished.
    fn take(&self, drawn: Drawn, seq: &mut Sequence) -> Option<FinishReason> {
        if let Some(token) = drawn.token {
            seq.tokens.push(token.id);
            if !self.stop_token_ids.contains(&token.id) {
                // A closed channel is seen, and the sequence retired, at the next step.
                let _ = self.events.send(Event::Token(token));
            }
        }
        if drawn.is_last {
            return Some(FinishReason::Stop);
        }
        (seq.tokens.len() >= seq.max_len).then_some(FinishReason::Length)
    }

    /// Last rows of the entry whose states are wanted: for logits, or for the prompt's vector.
    pub fn num_rows(&self, entry: &Entry) -> usize {
        if let Some(pooler) = &self.pooler {
            return pooler.num_rows(entry);
        }
        let told = self.prompt_logprobs.as_ref().map_or(0, |told| told.num_rows(entry));
        told.max(usize::from(entry.samples))
    }
}

/// Whether something in the row is not a number, or beyond all of them. Minus infinity rules a token
/// out.
fn is_corrupted(row: &[f32]) -> bool {
    // All of them are looked at, several at a time.
    let is_sound = row.iter().fold(true, |is_sound, x| is_sound & (*x < f32::INFINITY));
    !is_sound
}
