//! The engine thread.

use std::{collections::HashMap, sync::Arc, time::Instant};

use anyhow::Context;
use candle_core::Tensor;
use keepwell_kernels::{Arena, Backend, PageLayout};
use keepwell_models::{Batch, Model};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    EngineError, EngineHandle, Event, FinishReason, GenerateRequest, KvCacheParams, KvUsage,
    Outcome,
    event::{Memory, compress_event, usage},
    gather::gather,
    handle::{Command, Inbox},
    heartbeat::Heartbeat,
    pooling::Pooler,
    prompt_logprobs::PromptLogprobs,
    sampler::{Drawn, Sampler},
    snapshot::Snapshot,
    view::KvView,
};
use crate::{
    cache::{Ledger, PageTable},
    calibrate::Calibration,
    compress::Protection,
    metrics::{engine::EngineMetrics, lifecycle::Lifecycle},
    sched::{Demand, Entry, Scheduler, SchedulerLimits, SeqId, Sequence, Step},
};

/// Tokens that an answer without a limit of its own should have room for.
const FAIR_ANSWER: usize = 256;

/// How the engine shares out the machine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of the arena; rounded down to whole pages.
    pub kv_memory: usize,
    pub limits: SchedulerLimits,
    pub protection: Protection,
    pub calibration: Calibration,
}

/// What the engine was built with.
#[derive(Clone, Copy, Debug)]
pub struct EngineInfo {
    pub layout: PageLayout,
    pub num_pages: usize,
    /// Plain F16 bytes of one token over all layers and heads.
    pub f16_token_bytes: usize,
}

/// Where the events of a sequence go, and how its tokens are drawn.
struct Stream {
    events: mpsc::UnboundedSender<Event>,
    sampler: Sampler,
    stop_token_ids: Vec<u32>,
    prompt_logprobs: Option<PromptLogprobs>,
    pooler: Option<Pooler>,
    life: Lifecycle,
    view: Option<oneshot::Sender<KvView>>,
}

impl Stream {
    fn new(
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
    fn num_rows(&self, entry: &Entry) -> usize {
        if let Some(pooler) = &self.pooler {
            return pooler.num_rows(entry);
        }
        let told = self.prompt_logprobs.as_ref().map_or(0, |told| told.num_rows(entry));
        told.max(usize::from(entry.samples))
    }
}

/// Owns all mutable state; lives on one thread.
pub struct Engine {
    model: Box<dyn Model>,
    backend: Arc<dyn Backend>,
    arena: Arena,
    ledger: Ledger,
    scheduler: Scheduler,
    streams: HashMap<SeqId, Stream>,
    calibration: Calibration,
    next_id: u64,
    metrics: EngineMetrics,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl Engine {
    /// Allocates the arena and starts the thread.
    ///
    /// # Errors
    /// When the arena holds no page or the thread cannot start.
    pub fn spawn(
        model: Box<dyn Model>,
        backend: Arc<dyn Backend>,
        options: EngineOptions,
    ) -> anyhow::Result<(EngineHandle, EngineInfo)> {
        let (handle, Inbox { commands, snapshots }) = EngineHandle::new();
        let mut engine = Self::new(model, backend, options, snapshots)?;
        engine.publish();
        let info = engine.info();
        let heartbeat = handle.heartbeat();
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || engine.run(commands, heartbeat))
            .context("cannot start the engine thread")?;
        Ok((handle, info))
    }

    fn new(
        model: Box<dyn Model>,
        backend: Arc<dyn Backend>,
        options: EngineOptions,
        snapshots: watch::Sender<Arc<Snapshot>>,
    ) -> anyhow::Result<Self> {
        let config = model.config();
        let layout = PageLayout::new(config.head_dim);
        let num_pages = options.kv_memory / layout.page_bytes;
        let num_heads = config.num_layers * config.num_kv_heads;
        anyhow::ensure!(
            num_pages >= num_heads && u32::try_from(num_pages).is_ok(),
            "a KV memory of {} bytes holds {num_pages} pages of {} bytes; the model needs at \
             least one for each of its {num_heads} KV heads",
            options.kv_memory,
            layout.page_bytes,
        );
        let demand = Demand {
            layout,
            num_heads,
            max_chunk: options.limits.max_step_tokens,
            protection: options.protection,
        };
        let f16_token_bytes = demand.f16_bytes(1);
        let info = EngineInfo { layout, num_pages, f16_token_bytes };
        Ok(Self {
            metrics: EngineMetrics::new(&info, model.bytes(), config.context_len),
            snapshots,
            arena: backend.arena(layout, num_pages)?,
            ledger: Ledger::new(layout, num_pages),
            scheduler: Scheduler::new(options.limits, demand),
            streams: HashMap::new(),
            calibration: options.calibration,
            next_id: 0,
            model,
            backend,
        })
    }

    fn info(&self) -> EngineInfo {
        EngineInfo {
            layout: *self.ledger.layout(),
            num_pages: self.ledger.num_pages(),
            f16_token_bytes: self.scheduler.demand().f16_bytes(1),
        }
    }

    fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>, heartbeat: Heartbeat) {
        loop {
            heartbeat.beat();
            let command = if self.scheduler.is_idle() {
                self.publish();
                heartbeat.rest();
                commands.blocking_recv().ok_or(mpsc::error::TryRecvError::Disconnected)
            } else {
                commands.try_recv()
            };
            match command {
                Ok(Command::Generate { request, events, view, span }) => {
                    let life = Lifecycle::queued(request.kv_cache.budget, &span);
                    self.accept(*request, events, view, life)
                }
                Ok(Command::Stop { events }) => self.stop(&events),
                Ok(Command::Shutdown) | Err(mpsc::error::TryRecvError::Disconnected) => break,
                // Inside the pool: from outside each parallel operation would wake it anew.
                Err(mpsc::error::TryRecvError::Empty) => {
                    rayon::scope(|_| self.step());
                    // After a step, so that what waits then waits for a reason.
                    if self.metrics.is_due() {
                        self.publish();
                    }
                }
            }
        }
        let ids: Vec<_> = self.streams.keys().copied().collect();
        for id in ids {
            self.finish(id, FinishReason::Abort);
        }
        self.publish();
    }

    fn publish(&mut self) {
        let life = |id| self.streams.get(&id).map(|stream| &stream.life);
        let snapshot = Snapshot::new(&self.scheduler, &self.ledger, life);
        self.metrics.publish(&snapshot);
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    fn accept(
        &mut self,
        request: GenerateRequest,
        events: mpsc::UnboundedSender<Event>,
        view: Option<oneshot::Sender<KvView>>,
        life: Lifecycle,
    ) {
        match self.sequence(&request) {
            Ok(seq) => {
                self.streams.insert(seq.id, Stream::new(request, events, view, life));
                self.scheduler.queue(seq);
            }
            Err(error) => {
                self.metrics.refused(&error);
                // Nobody is left to tell if the receiver is gone.
                let _ = events.send(Event::Failed(error));
            }
        }
    }

    /// Admission: refuses what no waiting would help.
    fn sequence(&mut self, request: &GenerateRequest) -> Result<Sequence, EngineError> {
        if !self.scheduler.can_queue(request.prompt.len()) {
            let num_waiting = self.scheduler.num_waiting();
            let num_tokens = self.scheduler.num_waiting_tokens();
            return Err(EngineError::QueueFull { num_waiting, num_tokens });
        }
        let (budget, max_tokens) = self.grant(request)?;
        self.next_id += 1;
        Ok(Sequence {
            id: SeqId(self.next_id),
            tokens: request.prompt.clone(),
            prompt_len: request.prompt.len(),
            max_len: request.prompt.len() + max_tokens,
            budget,
            policy: request.kv_cache.policy,
            priority: request.priority,
            table: PageTable::new(self.scheduler.demand().num_heads),
            since_event: 0,
            num_preemptions: 0,
        })
    }

    /// The budget and the number of tokens that memory can hold in the end, were the request alone.
    /// One that does not fit at its budget is squeezed down to its own floor; one whose caller named
    /// no limit is shortened before that, as long as a fair answer is left.
    fn grant(&self, request: &GenerateRequest) -> Result<(f32, usize), EngineError> {
        let KvCacheParams { budget, min_budget, .. } = request.kv_cache;
        let num_pages = self.ledger.num_pages();
        let needed = |budget: f32, max_tokens: usize| {
            self.scheduler.demand().peak(budget, request.prompt.len() + max_tokens)
        };
        let fewest = if request.may_shorten { [FAIR_ANSWER, 1] } else { [usize::MAX; 2] };
        let fewest = fewest.map(|tokens| tokens.min(request.max_tokens));
        let choices = [(budget, fewest[0]), (min_budget, fewest[0]), (min_budget, fewest[1])];
        let granted = choices.into_iter().find(|(b, tokens)| needed(*b, *tokens) <= num_pages);
        let Some((budget, fewest)) = granted else {
            let page_bytes = self.ledger.layout().page_bytes;
            return Err(EngineError::DoesNotFit {
                needed_bytes: needed(min_budget, request.max_tokens) * page_bytes,
                total_bytes: num_pages * page_bytes,
            });
        };
        let fits = |tokens: &usize| needed(budget, *tokens) <= num_pages;
        Ok((budget, (fewest..=request.max_tokens).rev().find(fits).unwrap_or(fewest)))
    }

    fn stop(&mut self, events: &mpsc::UnboundedSender<Event>) {
        let found = self.streams.iter().find(|(_, s)| s.events.same_channel(events));
        if let Some(id) = found.map(|(id, _)| *id) {
            self.finish(id, FinishReason::Stop);
        }
    }

    /// schedule -> forward -> sample -> commit -> compress.
    fn step(&mut self) {
        self.drop_cancelled();
        let step = self.scheduler.schedule(&mut self.ledger);
        if let Some(id) = step.stuck {
            tracing::error!("a sequence that is alone found no page: admission miscounted");
            self.finish(id, FinishReason::Length);
        }
        if step.entries.is_empty() {
            return;
        }
        self.count(&step);
        match self.forward(&step) {
            Ok(rows) => {
                let finished = self.commit(&step, rows);
                self.compress(&step);
                for (id, outcome) in finished {
                    match outcome {
                        Ok(reason) => self.finish(id, reason),
                        Err(error) => self.fail(id, error),
                    }
                }
            }
            Err(error) => {
                tracing::error!("a step failed: {error:#}");
                for entry in &step.entries {
                    self.fail(entry.id, EngineError::Internal(error.to_string()));
                }
            }
        }
    }

    fn count(&mut self, step: &Step) {
        let now = Instant::now();
        let mut num_prompt = 0;
        for entry in &step.entries {
            let Some(seq) = self.scheduler.running(entry.id) else { continue };
            let Some(stream) = self.streams.get_mut(&entry.id) else { continue };
            num_prompt += stream.life.computed(entry, seq.prompt_len, now);
        }
        let num_sampled = step.entries.iter().filter(|entry| entry.samples).count();
        self.metrics.step(num_prompt, num_sampled);
    }

    /// A dropped receiver is the cancellation.
    fn drop_cancelled(&mut self) {
        let cancelled = self.streams.iter().filter(|(_, stream)| stream.events.is_closed());
        let cancelled: Vec<_> = cancelled.map(|(id, _)| *id).collect();
        for id in cancelled {
            self.finish(id, FinishReason::Abort);
        }
    }

    fn num_rows(&self, entry: &Entry) -> usize {
        self.streams.get(&entry.id).map_or(0, |stream| stream.num_rows(entry))
    }

    /// For each wanted row whether it is one of a prompt's vector.
    fn pooled_rows(&self, step: &Step) -> Vec<bool> {
        let rows = |entry: &Entry| {
            let is_pooled = self.streams.get(&entry.id).is_some_and(|s| s.pooler.is_some());
            std::iter::repeat_n(is_pooled, self.num_rows(entry))
        };
        step.entries.iter().flat_map(rows).collect()
    }

    /// Of the wanted rows, in the order of the entries: logits (vocab), or states (hidden) where a
    /// vector is made of them.
    fn forward(&mut self, step: &Step) -> anyhow::Result<Vec<Vec<f32>>> {
        let sequence = |entry: &Entry| self.scheduler.running(entry.id);
        let parts: Vec<_> =
            step.entries.iter().filter_map(|entry| Some((entry, sequence(entry)?))).collect();
        let mut gathered = gather(&parts, self.model.config(), |entry| self.num_rows(entry));
        gathered.plan.basis = self.calibration.basis.clone();
        let batch = Batch {
            tokens: &gathered.tokens,
            logit_rows: &gathered.logit_rows,
            plan: &gathered.plan,
            probe: None,
        };
        let pooled = self.pooled_rows(step);
        if !pooled.contains(&true) {
            let logits = self.model.forward(&mut self.arena, &batch)?;
            return Ok(logits.to_vec2::<f32>()?);
        }
        let states = self.model.hidden(&mut self.arena, &batch)?;
        let mut logits = self.logits_of(&states, &pooled)?.into_iter();
        let states = states.to_vec2::<f32>()?.into_iter().zip(pooled);
        let row = |(state, is_pooled)| if is_pooled { Some(state) } else { logits.next() };
        Ok(states.filter_map(row).collect())
    }

    /// states (rows, hidden), returns those of the rows that are not pooled.
    fn logits_of(&self, states: &Tensor, pooled: &[bool]) -> anyhow::Result<Vec<Vec<f32>>> {
        let rows: Vec<u32> = (0..).zip(pooled).filter(|(_, p)| !**p).map(|(row, _)| row).collect();
        if rows.is_empty() {
            return Ok(vec![]);
        }
        let len = rows.len();
        let rows = Tensor::from_vec(rows, len, states.device())?;
        Ok(self.model.logits(&states.index_select(&rows, 0)?)?.to_vec2::<f32>()?)
    }

    /// Samples and appends tokens, streams them, and tells who is finished.
    fn commit(
        &mut self,
        step: &Step,
        rows: Vec<Vec<f32>>,
    ) -> Vec<(SeqId, Result<FinishReason, EngineError>)> {
        let mut finished = Vec::new();
        let now = Instant::now();
        let mut rows = rows.into_iter();
        for entry in &step.entries {
            let Some(stream) = self.streams.get_mut(&entry.id) else { continue };
            let Some(seq) = self.scheduler.running_mut(entry.id) else { continue };
            let mut rows_of: Vec<_> = rows.by_ref().take(stream.num_rows(entry)).collect();
            if let Some(pooler) = &mut stream.pooler {
                if let Some(vector) = pooler.add(entry, &rows_of) {
                    let _ = stream.events.send(Event::Embedding(vector));
                    finished.push((entry.id, Ok(FinishReason::Stop)));
                }
                continue;
            }
            if let Some(told) = &mut stream.prompt_logprobs {
                let logprobs = told.read(entry, &seq.tokens, &rows_of);
                if !logprobs.is_empty() {
                    let _ = stream.events.send(Event::PromptLogprobs(logprobs));
                }
            }
            let Some(logits) = rows_of.last_mut().filter(|_| entry.samples) else { continue };
            match stream.sampler.draw_next(logits) {
                Ok(drawn) => {
                    stream.life.token(now);
                    let reason = stream.take(drawn, seq);
                    finished.extend(reason.map(|reason| (entry.id, Ok(reason))));
                }
                Err(error) => finished.push((entry.id, Err(error))),
            }
        }
        finished
    }

    fn compress(&mut self, step: &Step) {
        for entry in step.entries.iter().filter(|entry| entry.has_event) {
            if let Err(error) = self.compress_sequence(entry) {
                tracing::error!("a compress event failed: {error:#}");
                self.fail(entry.id, EngineError::Internal(error.to_string()));
            }
        }
    }

    /// score -> price -> compact, for one sequence.
    fn compress_sequence(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let demand = *self.scheduler.demand();
        let Some(seq) = self.scheduler.running_mut(entry.id) else { return Ok(()) };
        let memory = Memory { arena: &mut self.arena, ledger: &mut self.ledger };
        let prices = &self.calibration.prices;
        if let Some(report) = compress_event(&*self.backend, memory, seq, &demand, prices)? {
            self.metrics.compressed(&report);
        }
        Ok(())
    }

    fn finish(&mut self, id: SeqId, reason: FinishReason) {
        self.describe(id);
        if let Some((seq, stream, kv_cache)) = self.retire(id) {
            let ended_by_stop_token = reason == FinishReason::Stop
                && seq.tokens.last().is_some_and(|t| stream.stop_token_ids.contains(t));
            self.metrics.finished(reason, &kv_cache);
            stream.life.record(&seq);
            let outcome = Outcome {
                reason,
                num_prompt_tokens: seq.prompt_len,
                num_generated_tokens: seq.num_generated(),
                ended_by_stop_token,
                kv_cache,
            };
            let _ = stream.events.send(Event::Finished(outcome));
        }
    }

    /// Tells what the sequence's cache keeps, if somebody asked for it: its pages go back next.
    fn describe(&mut self, id: SeqId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some((view, seq)) = stream.view.take().zip(self.scheduler.running(id)) else { return };
        let num_layers = self.model.config().num_layers;
        let demand = self.scheduler.demand();
        match KvView::new(seq, demand, &self.arena, &*self.backend, num_layers) {
            // Who asked may have left.
            Ok(kept) => _ = view.send(kept),
            Err(error) => tracing::error!("a cache could not be described: {error:#}"),
        }
    }

    fn fail(&mut self, id: SeqId, error: EngineError) {
        if let Some((_, stream, _)) = self.retire(id) {
            let _ = stream.events.send(Event::Failed(error));
        }
    }

    fn retire(&mut self, id: SeqId) -> Option<(Sequence, Stream, KvUsage)> {
        let stream = self.streams.remove(&id)?;
        let usage = self
            .scheduler
            .sequences()
            .find(|s| s.id == id)
            .map(|s| usage(s, self.scheduler.demand()))?;
        let seq = self.scheduler.retire(id, &mut self.ledger)?;
        Some((seq, stream, usage))
    }
}
