//! The engine as others see it: a channel that takes requests and one that gives events back.

use std::{sync::Arc, time::Duration};

use keepwell_kernels::PerTier;
use tokio::sync::{mpsc, oneshot, watch};

use super::{heartbeat::Heartbeat, pooling::Pooling, snapshot::Snapshot, view::KvView};
use crate::cache::Salt;
use crate::compress::{PolicyId, Spans};
use crate::grammar::Constraint;
use crate::sched::UserId;

/// One sequence to generate. Text never enters the engine: token ids in, token ids out.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub prompt: Vec<u32>,
    /// Upper bound of generated tokens; at least 1, prompt and it together fit the context.
    pub max_tokens: usize,
    /// `max_tokens` is only a wish (the caller named none): lower it to what memory can hold.
    pub may_shorten: bool,
    /// Tokens that end the generation (and are not counted as text), the model's own included.
    pub stop_token_ids: Vec<u32>,
    pub sampling: SamplingParams,
    pub kv_cache: KvCacheParams,
    /// Of the prompt: never evicted.
    pub marked: Spans,
    /// Lower ones leave the queue first.
    pub priority: i32,
    /// Among equally urgent ones, the least served user's leave the queue first.
    pub user: UserId,
    /// What the answer must follow. It ends the answer where nothing more can follow.
    pub constraint: Option<Constraint>,
    /// Wanted is the prompt's vector: [`Event::Embedding`] instead of tokens.
    pub pooling: Option<Pooling>,
    /// Requests of equal salts begin with what others have computed; `None` shares with nobody.
    pub cache_salt: Option<Salt>,
}

/// How the next token is chosen. Defaults: sample from the whole distribution at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    pub top_p: f32,
    /// 0 is off.
    pub top_k: usize,
    pub min_p: f32,
    /// Without one, the engine draws one.
    pub seed: Option<u64>,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Nothing else can be drawn.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// These tokens cannot be drawn in this order. None of them empty.
    pub bad_words: Vec<Vec<u32>>,
    /// Stop tokens cannot be drawn before this many others.
    pub min_tokens: usize,
    /// Report the chosen token's log-probability and those of this many likeliest tokens.
    pub logprobs: Option<usize>,
    /// The same of the prompt's tokens, but for the first, which nothing predicts.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: vec![],
            allowed_token_ids: None,
            bad_words: vec![],
            min_tokens: 0,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// The loss a request accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvCacheParams {
    /// Share, in (0, 1], of the bytes the same tokens take in F16; 1 is no compression.
    pub budget: f32,
    /// The share that memory pressure may push the request down to; at most `budget`.
    pub min_budget: f32,
    pub policy: PolicyId,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Of the prompt's next tokens, as far as they were computed; before the first token.
    PromptLogprobs(Vec<TokenLogprobs>),
    Token(SampledToken),
    /// The vector (hidden) of a prompt that asked for it.
    Embedding(Vec<f32>),
    /// The last event of a generation that ran.
    Finished(Outcome),
    /// The last event of a generation that could not run on; the engine lives on.
    Failed(EngineError),
}

#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    pub id: u32,
    /// Present when the request asked for log-probabilities.
    pub logprobs: Option<TokenLogprobs>,
}

/// Natural logarithms, of the model's distribution before temperature and penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    pub chosen: f32,
    /// Likeliest first.
    pub top: Vec<(u32, f32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was drawn (it is not sent as an event), or the caller called `stop`.
    Stop,
    /// `max_tokens` was reached.
    Length,
    /// The server is shutting down.
    Abort,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub reason: FinishReason,
    pub num_prompt_tokens: usize,
    /// Those of the prompt that the prefix cache gave.
    pub num_cached_tokens: usize,
    /// Sampled tokens, the one that ended the generation included.
    pub num_generated_tokens: usize,
    /// The last of them, if it is a stop token, which no event carried.
    pub stop_token: Option<u32>,
    pub kv_cache: KvUsage,
}

/// What a sequence's cache held when it ended, from the ledger.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct KvUsage {
    /// In force at the end: what was asked for, unless memory pressure had lowered it and lasted.
    pub budget: f32,
    /// The least that was ever in force.
    pub lowest_budget: f32,
    /// Bytes of all pages held, metadata and slack included.
    pub bytes: usize,
    /// The largest that `bytes` has been.
    pub peak_bytes: usize,
    /// K and V of the same tokens in plain F16.
    pub f16_bytes: usize,
    /// (token, layer, KV head) entries by tier.
    pub tokens: Box<PerTier<usize>>,
    pub evicted: usize,
}

/// Why the engine did not run a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// No waiting would help: at its budget the request needs more pages than the arena has.
    #[error(
        "the request needs {needed_bytes} bytes of KV cache, the server has {total_bytes}: \
         shorten the prompt or max_tokens, or lower kv_cache.budget"
    )]
    DoesNotFit { needed_bytes: usize, total_bytes: usize },
    /// Within its budget, or its floor, the request cannot keep all that it marked.
    #[error(
        "kv_cache.protect marks {num_marked} tokens, the request can keep {most}: mark less, or \
         raise kv_cache.budget and kv_cache.min_budget"
    )]
    MarksTooMuch { num_marked: usize, most: usize },
    #[error("{num_waiting} requests with {num_tokens} tokens are waiting already, try again later")]
    QueueFull { num_waiting: usize, num_tokens: usize },
    #[error("the server is shutting down")]
    Stopped,
    #[error("the engine failed on this request: {0}")]
    Internal(String),
    #[error("the grammar became too complex: {0}")]
    Grammar(String),
    /// Of this request alone: others of the same step go on.
    #[error("what the model computed for this request is not a number")]
    Corrupted,
    #[error("the engine failed while it had this request")]
    Panicked,
}

impl FinishReason {
    /// As vLLM's metrics and OpenAI's answers call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

pub(super) enum Command {
    Generate {
        request: Box<GenerateRequest>,
        events: mpsc::UnboundedSender<Event>,
        /// Where the cache is described once the generation has ended.
        view: Option<oneshot::Sender<KvView>>,
        /// Who asks, for traces.
        span: tracing::Span,
        /// Whether metrics tell of it.
        is_counted: bool,
    },
    /// Finish the generation whose events go to this channel.
    Stop { events: mpsc::UnboundedSender<Event> },
    /// Abort what runs and end the thread.
    Shutdown,
}

/// Cheap to clone; the engine ends when `shutdown` is called.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    heartbeat: Heartbeat,
}

/// The engine's ends of the channels.
pub(super) struct Inbox {
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
}

impl EngineHandle {
    pub(super) fn new() -> (Self, Inbox) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (publisher, snapshots) = watch::channel(Arc::default());
        let heartbeat = Heartbeat::default();
        let inbox = Inbox { commands: receiver, snapshots: publisher };
        (Self { commands, snapshots, heartbeat }, inbox)
    }

    /// What the engine held a moment ago.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Hands a request over. Its fate arrives as events; dropping the generation cancels it.
    ///
    /// # Errors
    /// [`EngineError::Stopped`] when the engine is gone.
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        self.hand_over(request, None, true)
    }

    /// As [`EngineHandle::generate`], and in the end what the cache kept of every token.
    ///
    /// # Errors
    /// [`EngineError::Stopped`] when the engine is gone.
    pub fn generate_viewed(
        &self,
        request: GenerateRequest,
    ) -> Result<(Generation, oneshot::Receiver<KvView>), EngineError> {
        self.view(request, true)
    }

    /// As [`EngineHandle::generate_viewed`], for somebody who looks at a request again: metrics count
    /// those of clients.
    ///
    /// # Errors
    /// [`EngineError::Stopped`] when the engine is gone.
    pub fn replay(
        &self,
        request: GenerateRequest,
    ) -> Result<(Generation, oneshot::Receiver<KvView>), EngineError> {
        self.view(request, false)
    }

    fn view(
        &self,
        request: GenerateRequest,
        is_counted: bool,
    ) -> Result<(Generation, oneshot::Receiver<KvView>), EngineError> {
        let (sender, view) = oneshot::channel();
        Ok((self.hand_over(request, Some(sender), is_counted)?, view))
    }

    fn hand_over(
        &self,
        request: GenerateRequest,
        view: Option<oneshot::Sender<KvView>>,
        is_counted: bool,
    ) -> Result<Generation, EngineError> {
        let (sender, events) = mpsc::unbounded_channel();
        let span = tracing::Span::current();
        self.commands
            .send(Command::Generate {
                request: Box::new(request),
                events: sender.clone(),
                view,
                span,
                is_counted,
            })
            .map_err(|_| EngineError::Stopped)?;
        Ok(Generation { events, sender: sender.downgrade(), commands: self.commands.clone() })
    }

    /// Whether the engine still takes requests.
    pub fn is_alive(&self) -> bool {
        !self.commands.is_closed()
    }

    /// For how long the engine has been at its present step; `None` while it has nothing to do.
    pub fn busy_since(&self) -> Option<Duration> {
        self.heartbeat.busy_since()
    }

    pub(super) fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// Returns when the engine takes no more requests.
    pub async fn closed(&self) {
        self.commands.closed().await;
    }

    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    pub fn shutdown(&self) {
        // Already gone is as good as shut down.
        let _ = self.commands.send(Command::Shutdown);
    }
}

/// The receiving end of one sequence.
pub struct Generation {
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::WeakUnboundedSender<Event>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Generation {
    /// The next event; after the last one, or if the engine died, `None`.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// For callers outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }

    /// Asks the engine to finish now, as if a stop token had been drawn: a few more tokens may
    /// arrive, then [`Event::Finished`] with the usage.
    pub fn stop(&self) {
        if let Some(events) = self.sender.upgrade() {
            let _ = self.commands.send(Command::Stop { events });
        }
    }
}
