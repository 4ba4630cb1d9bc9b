//! An engine that answers from a script, to test what stands before it.

use std::sync::{Arc, Mutex};

use keepwell_kernels::{PerTier, Tier};
use tokio::sync::{Notify, mpsc};

use super::handle::Command;
use super::view::Kept;
use super::{
    EngineError, EngineHandle, Event, FinishReason, GenerateRequest, KvUsage, KvView, Outcome,
    SampledToken, TokenLogprobs,
};

/// What the fake engine does with a request.
#[derive(Clone)]
pub enum Script {
    /// Generates these tokens, `max_tokens` at most; then a stop token.
    Tokens(Vec<u32>),
    /// Generates these tokens, then runs on without any until stopped or cancelled.
    Hang(Vec<u32>),
    /// Generates these tokens, then fails.
    Fail(Vec<u32>, EngineError),
    /// Generates these tokens, then aborts as a server does that shuts down.
    Abort(Vec<u32>),
    /// Drops the request without a word, as a dying thread would.
    Die,
}

pub struct FakeEngine {
    pub handle: EngineHandle,
    /// The requests so far.
    pub requests: Arc<Mutex<Vec<GenerateRequest>>>,
    /// Told once per generation whose receiver was dropped before its end.
    pub cancelled: Arc<Notify>,
}

/// Tokens that each fake sequence finds in the prefix cache, if it has more.
pub const NUM_CACHED: usize = 2;

/// Bytes that each fake sequence says it holds.
pub const KV_BYTES: usize = 1000;

impl FakeEngine {
    /// The nth request gets the nth script, those after the last script the last one.
    pub fn new(scripts: Vec<Script>) -> Self {
        let (handle, inbox) = EngineHandle::new();
        let requests = Arc::new(Mutex::new(vec![]));
        let cancelled = Arc::new(Notify::new());
        tokio::spawn(run(inbox.commands, scripts, requests.clone(), cancelled.clone()));
        Self { handle, requests, cancelled }
    }

    /// Returns once the engine has been asked.
    pub async fn asked(&self) {
        while self.requests.lock().unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// An engine whose thread has ended.
    pub fn dead() -> EngineHandle {
        EngineHandle::new().0
    }
}

async fn run(
    mut commands: mpsc::UnboundedReceiver<Command>,
    scripts: Vec<Script>,
    requests: Arc<Mutex<Vec<GenerateRequest>>>,
    cancelled: Arc<Notify>,
) {
    let mut running: Vec<(mpsc::UnboundedSender<Event>, mpsc::UnboundedSender<FinishReason>)> =
        vec![];
    while let Some(command) = commands.recv().await {
        match command {
            Command::Generate { request, events, view, .. } => {
                view.into_iter().for_each(|view| _ = view.send(self::view(&request)));
                let nth = requests.lock().unwrap().len().min(scripts.len() - 1);
                requests.lock().unwrap().push((*request).clone());
                let (end, ends) = mpsc::unbounded_channel();
                running.push((events.clone(), end));
                let script = scripts[nth].clone();
                if matches!(script, Script::Die) {
                    running.pop();
                }
                tokio::spawn(play(script, *request, events, ends, cancelled.clone()));
            }
            Command::Stop { events } => {
                let of_events = running.iter().find(|(e, _)| e.same_channel(&events));
                of_events.unwrap().1.send(FinishReason::Stop).unwrap();
            }
            Command::Shutdown => {
                for (_, end) in &running {
                    let _ = end.send(FinishReason::Abort);
                }
                return;
            }
        }
    }
}

async fn play(
    script: Script,
    request: GenerateRequest,
    events: mpsc::UnboundedSender<Event>,
    mut ends: mpsc::UnboundedReceiver<FinishReason>,
    cancelled: Arc<Notify>,
) {
    let (tokens, mut end) = match &script {
        Script::Tokens(tokens) if tokens.len() >= request.max_tokens => {
            (&tokens[..request.max_tokens], finished(&request, FinishReason::Length))
        }
        Script::Tokens(tokens) => (&tokens[..], finished(&request, FinishReason::Stop)),
        Script::Hang(tokens) => (&tokens[..], finished(&request, FinishReason::Stop)),
        Script::Fail(tokens, error) => (&tokens[..], Event::Failed(error.clone())),
        Script::Abort(tokens) => (&tokens[..], finished(&request, FinishReason::Abort)),
        Script::Die => return,
    };
    if request.pooling.is_some() && !matches!(script, Script::Fail(..)) {
        // The length tells prompts apart.
        let vector =
            vec![3.0 * request.prompt.len() as f32, 4.0 * request.prompt.len() as f32, 0.0];
        let _ = events.send(Event::Embedding(vector));
    }
    if let Some(num) = request.sampling.prompt_logprobs {
        // In chunks of two tokens, the first token told of by nobody.
        let told: Vec<_> =
            request.prompt.iter().zip(0..).map(|(id, n)| logprobs(*id, n, num)).collect();
        for chunk in told[1..].chunks(2) {
            let _ = events.send(Event::PromptLogprobs(chunk.to_vec()));
        }
    }
    for (nth, &id) in tokens.iter().enumerate() {
        let logprobs = request.sampling.logprobs.map(|num| logprobs(id, nth, num));
        let _ = events.send(Event::Token(SampledToken { id, logprobs }));
    }
    if matches!(script, Script::Hang(_)) {
        tokio::select! {
            reason = ends.recv() => end = finished(&request, reason.unwrap()),
            () = events.closed() => return cancelled.notify_one(),
        }
    }
    let _ = events.send(with_num_generated(end, tokens.len()));
}

/// A cache of one head that keeps the prompt exact.
fn view(request: &GenerateRequest) -> KvView {
    let kept = Kept { tier: Some(Tier::F16), score: Some(1.0) };
    KvView {
        tokens: request.prompt.clone(),
        prompt_len: request.prompt.len(),
        num_layers: 1,
        budget: request.kv_cache.budget,
        bytes: KV_BYTES,
        f16_bytes: KV_BYTES,
        bits: PerTier::new(|_| 16.0),
        heads: vec![vec![kept; request.prompt.len()]],
    }
}

fn finished(request: &GenerateRequest, reason: FinishReason) -> Event {
    Event::Finished(Outcome {
        reason,
        num_prompt_tokens: request.prompt.len(),
        num_cached_tokens: NUM_CACHED.min(request.prompt.len() - 1),
        num_generated_tokens: 0,
        stop_token: None,
        kv_cache: KvUsage {
            budget: request.kv_cache.budget,
            lowest_budget: request.kv_cache.budget,
            bytes: KV_BYTES,
            peak_bytes: 2 * KV_BYTES,
            f16_bytes: 4 * KV_BYTES,
            tokens: Box::new(fake_tokens()),
            evicted: 5,
        },
    })
}

fn with_num_generated(event: Event, num: usize) -> Event {
    match event {
        Event::Finished(outcome) => {
            Event::Finished(Outcome { num_generated_tokens: num, ..outcome })
        }
        other => other,
    }
}

fn fake_tokens() -> PerTier<usize> {
    let mut tokens = PerTier::default();
    for (tier, count) in [(Tier::F16, 4), (Tier::K8V8, 3), (Tier::K8V4, 2), (Tier::K4V4, 1)] {
        tokens[tier] = count;
    }
    tokens
}

/// The nth token has log-probability -n; the likeliest others are the ids after it.
fn logprobs(id: u32, nth: usize, num: usize) -> TokenLogprobs {
    let chosen = -(nth as f32);
    let top = (0..num as u32).map(|i| (id + i, chosen - i as f32)).collect();
    TokenLogprobs { chosen, top }
}
