//! The engine thread.

mod admission;
mod forward;
mod panics;
mod pressure;
mod sharing;
mod stream;

use std::{collections::HashMap, ops::ControlFlow, sync::Arc, time::Instant};

use anyhow::Context;
use keepwell_kernels::{Arena, Backend, PageLayout, team::with_team};
use keepwell_models::Model;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::panics::OnPanic;
use self::stream::Stream;
use super::{
    EngineError, EngineHandle, Event, FinishReason, GenerateRequest, KvUsage, Outcome,
    event::{Memory, compress_event, usage},
    handle::{Command, Inbox},
    heartbeat::Heartbeat,
    snapshot::Snapshot,
    view::KvView,
};
use crate::{
    cache::Ledger,
    calibrate::Calibration,
    compress::{Evicted, Protection},
    metrics::{
        engine::{EngineMetrics, Stage},
        lifecycle::Lifecycle,
    },
    sched::{Demand, Entry, Scheduler, SchedulerLimits, SeqId, Sequence, Step},
};

/// How the engine shares out the machine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of the arena; rounded down to whole pages.
    pub kv_memory: usize,
    pub limits: SchedulerLimits,
    pub protection: Protection,
    pub calibration: Calibration,
    pub on_panic: OnPanic,
    /// Whether sequences begin with what others have computed.
    pub prefix_cache: bool,
}

/// What the engine was built with.
#[derive(Clone, Copy, Debug)]
pub struct EngineInfo {
    pub layout: PageLayout,
    pub num_pages: usize,
    /// Plain F16 bytes of one token over all layers and heads.
    pub f16_token_bytes: usize,
    pub prefix_cache: bool,
}

/// How sequences ended.
type Finished = Vec<(SeqId, Result<FinishReason, EngineError>)>;

/// Owns all mutable state; lives on one thread.
pub struct Engine {
    model: Box<dyn Model>,
    backend: Arc<dyn Backend>,
    arena: Arena,
    ledger: Ledger,
    scheduler: Scheduler,
    streams: HashMap<SeqId, Stream>,
    calibration: Calibration,
    limits: SchedulerLimits,
    on_panic: OnPanic,
    prefix_cache: bool,
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
        let prefix_cache = options.prefix_cache;
        let info = EngineInfo { layout, num_pages, f16_token_bytes, prefix_cache };
        Ok(Self {
            metrics: EngineMetrics::new(&info, model.bytes(), config.context_len),
            snapshots,
            arena: backend.arena(layout, num_pages)?,
            ledger: Ledger::new(layout, num_pages),
            scheduler: Scheduler::new(options.limits, demand),
            streams: HashMap::new(),
            calibration: options.calibration,
            limits: options.limits,
            on_panic: options.on_panic,
            prefix_cache,
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
            prefix_cache: self.prefix_cache,
        }
    }

    /// One command, or one step when there is none.
    fn turn(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        heartbeat: &Heartbeat,
    ) -> ControlFlow<()> {
        heartbeat.beat();
        let command = if self.scheduler.is_idle() {
            self.metrics.idle();
            self.publish();
            heartbeat.rest();
            let command = commands.blocking_recv();
            self.metrics.wake();
            command.ok_or(mpsc::error::TryRecvError::Disconnected)
        } else {
            commands.try_recv()
        };
        match command {
            Ok(Command::Generate { request, events, view, span, is_counted }) => {
                let life = Lifecycle::queued(&span, is_counted);
                self.accept(*request, events, view, life)
            }
            Ok(Command::Stop { events }) => self.stop(&events),
            Ok(Command::Shutdown) | Err(mpsc::error::TryRecvError::Disconnected) => {
                self.abort_all();
                return ControlFlow::Break(());
            }
            // Inside the pool: from outside each parallel operation would wake it anew.
            Err(mpsc::error::TryRecvError::Empty) => {
                with_team(|| self.step());
                // After a step, so that what waits then waits for a reason.
                if self.metrics.is_due() {
                    self.publish();
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn abort_all(&mut self) {
        let ids: Vec<_> = self.streams.keys().copied().collect();
        for id in ids {
            self.finish(id, FinishReason::Abort);
        }
        self.publish();
    }

    fn publish(&mut self) {
        let mut snapshot = Snapshot::new(&self.scheduler, &self.ledger);
        if self.backend.has_own_memory() {
            snapshot.pages.num_touched = snapshot.pages.num_pages;
        }
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
            Ok(mut seq) => {
                seq.evicted = view.is_some().then(Evicted::default);
                self.streams.insert(seq.id, Stream::new(request, events, view, life));
                self.scheduler.queue(seq);
            }
            Err(error) => {
                if life.is_counted {
                    self.metrics.refused(&error, self.limits.max_waiting);
                }
                // Nobody is left to tell if the receiver is gone.
                let _ = events.send(Event::Failed(error));
            }
        }
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
        if let Err(error) = self.meet_pressure() {
            return self.fail_running(&error);
        }
        let step = self.scheduler.schedule(&mut self.ledger);
        if let Some(id) = step.stuck {
            tracing::error!("a sequence that is alone found no page: admission miscounted");
            self.finish(id, FinishReason::Length);
        }
        if step.entries.is_empty() {
            return;
        }
        self.count(&step);
        self.metrics.lap(Stage::Schedule);
        match self.forward(&step) {
            Ok(rows) => {
                let finished = self.commit(&step, rows);
                self.metrics.lap(Stage::Sample);
                self.leave_parts(&step, &finished);
                self.compress(&step);
                self.publish_parts(&step);
                self.metrics.lap(Stage::Compress);
                self.metrics.step_ended();
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

    /// Nobody knows who has got what.
    fn fail_running(&mut self, error: &anyhow::Error) {
        tracing::error!("copying in the KV cache failed: {error:#}");
        let running = self.scheduler.sequences().take(self.scheduler.num_running());
        for id in running.map(|seq| seq.id).collect::<Vec<_>>() {
            self.fail(id, EngineError::Internal(error.to_string()));
        }
    }

    fn count(&mut self, step: &Step) {
        let now = Instant::now();
        let (mut num_prompt, mut num_sampled) = (0, 0);
        for entry in &step.entries {
            let Some(seq) = self.scheduler.running(entry.id) else { continue };
            let Some(Stream { life, .. }) = self.streams.get_mut(&entry.id) else { continue };
            let begins = life.begins(entry, seq.prompt_len, now);
            let num_new = life.computed(entry, seq.prompt_len);
            if !life.is_counted {
                continue;
            }
            if begins && seq.sharing.looks_up() {
                self.metrics.looked_up(seq.prompt_len, life.num_prompt_cached);
            }
            num_prompt += num_new;
            num_sampled += usize::from(entry.samples);
        }
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

    /// Samples and appends tokens, streams them, and tells who is finished.
    fn commit(&mut self, step: &Step, rows: Vec<Vec<f32>>) -> Finished {
        let mut finished = Vec::new();
        let now = Instant::now();
        let mut rows = rows.into_iter();
        for entry in &step.entries {
            let Some(stream) = self.streams.get_mut(&entry.id) else { continue };
            let Some(seq) = self.scheduler.running_mut(entry.id) else { continue };
            let rows_of = rows.by_ref().take(stream.num_rows(entry)).collect();
            let outcome = stream.advance(entry, seq, rows_of, now);
            finished.extend(outcome.map(|outcome| (entry.id, outcome)));
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
        let report = compress_event(&*self.backend, memory, seq, &demand, prices)?;
        let is_counted = self.streams.get(&entry.id).is_some_and(|s| s.life.is_counted);
        if let Some(report) = report.filter(|_| is_counted) {
            self.metrics.compressed(&report);
        }
        self.leave_snapshot(entry.id)
    }

    fn finish(&mut self, id: SeqId, reason: FinishReason) {
        self.describe(id);
        if let Some((seq, stream, kv_cache)) = self.retire(id) {
            let last = seq.tokens[seq.prompt_len..].last().copied();
            let is_stop =
                |id: &u32| reason == FinishReason::Stop && stream.stop_token_ids.contains(id);
            stream.life.record(&seq);
            if stream.life.is_counted {
                self.metrics.finished(reason, &kv_cache);
            }
            let outcome = Outcome {
                reason,
                num_prompt_tokens: seq.prompt_len,
                num_cached_tokens: stream.life.num_prompt_cached,
                num_generated_tokens: seq.num_generated(),
                stop_token: last.filter(is_stop),
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
        if let Some((seq, stream, _)) = self.retire(id) {
            if error == EngineError::Corrupted {
                // Nobody knows since when: its prefix may have it, and would pass it on.
                self.ledger.forget_cached();
            }
            // What it did until then counts as that of any other.
            stream.life.record(&seq);
            self.failed(&stream, error);
        }
    }

    fn failed(&self, stream: &Stream, error: EngineError) {
        if stream.life.is_counted {
            self.metrics.failed(&error);
        }
        // Who asked may have left.
        let _ = stream.events.send(Event::Failed(error));
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
