//! `keepwell-bench metering`: what metrics take of decode throughput.
//!
//! An engine that has a recorder as the server has, turned on and off every few steps; each pair of
//! turns gives one ratio: what the machine does meanwhile meets both.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit, set_global_recorder,
};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use keepwell_kernels::{Arena, Backend, Choice};
use keepwell_models::{Batch, LoadOptions, Model, ModelConfig, load};
use keepwell_server::{calibrate::Calibration, metrics};
use metrics_exporter_prometheus::PrometheusRecorder;

use crate::{
    engine::{backend, sample, spawn},
    report::Case,
    watch::Watched,
};

/// Steps of a turn. The first does not count: readers of the last turn's tokens still run in it.
const TURN: usize = 4;
/// As the server does.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Arguments {
    /// A folder, a GGUF file, a hub id or `smollm2`.
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// Generated tokens of each sequence.
    #[arg(long = "gen", default_value_t = 256)]
    generated: usize,
    /// Sequences at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    batch: Vec<usize>,
    /// Times that they are generated.
    #[arg(long, default_value_t = 1)]
    repetitions: usize,
    /// A backend by name; the fastest without.
    #[arg(long)]
    backend: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.batch.iter().all(|b| *b > 0), "--batch must be at least 1");
    let backend: Arc<dyn Backend> = backend(Choice::Auto, arguments.backend.as_deref())?.into();
    let loaded = load(&arguments.model, &LoadOptions::default(), backend.clone())?;
    let switch = Switch::install()?;
    let (model, steps) = Alternating::new(loaded.model, switch);
    let model = Watched::new(Box::new(model));
    println!("batch  pairs  ms a step without  with metrics  with / without, median (95 % of it)");
    for &batch in &arguments.batch {
        let case = Case {
            test: "decode",
            tokens: arguments.generated,
            depth: 0,
            batch,
            kv_budget: 1.0,
            model: arguments.model.clone(),
            backend: backend.name().to_owned(),
        };
        let engine = spawn(&model, &backend, &Calibration::default(), &case)?;
        let mut pairs = Vec::new();
        for _ in 0..arguments.repetitions {
            lock(&steps).clear();
            sample(&model, &engine, &case)?;
            pairs.extend(in_pairs(&lock(&steps), batch));
        }
        engine.shutdown();
        ensure!(!pairs.is_empty(), "--gen {} is too few for a pair of turns", arguments.generated);
        print(batch, &pairs);
    }
    Ok(())
}

/// One call of the model.
struct Step {
    start: Instant,
    num_rows: usize,
}

/// A model that turns metrics on and off as its steps begin.
struct Alternating {
    model: Box<dyn Model>,
    switch: Switch,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Alternating {
    fn new(model: Box<dyn Model>, switch: Switch) -> (Self, Arc<Mutex<Vec<Step>>>) {
        let steps = Arc::default();
        (Self { model, switch, steps: Arc::clone(&steps) }, steps)
    }
}

impl Model for Alternating {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn hidden(&self, arena: &mut Arena, batch: &Batch) -> Result<Tensor> {
        self.model.hidden(arena, batch)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.model.logits(hidden)
    }

    fn forward(&self, arena: &mut Arena, batch: &Batch) -> Result<Tensor> {
        let mut steps = lock(&self.steps);
        self.switch.turn(is_on(steps.len() / TURN));
        steps.push(Step { start: Instant::now(), num_rows: batch.plan.positions.len() });
        drop(steps);
        self.switch.keep_up();
        self.model.forward(arena, batch)
    }

    fn bytes(&self) -> usize {
        self.model.bytes()
    }
}

/// Whether metrics are on in a turn: off and on, then on and off, so that neither is always first.
fn is_on(turn: usize) -> bool {
    matches!(turn % 4, 1 | 2)
}

/// Seconds of a step without and with metrics, for each two turns in which all sequences advanced by
/// a token. A step lasts until the next one begins.
fn in_pairs(steps: &[Step], batch: usize) -> Vec<(f64, f64)> {
    let turn = |nth: usize| {
        let steps = steps.get(nth * TURN..=(nth + 1) * TURN)?;
        let counts = steps[..TURN].iter().all(|step| step.num_rows == batch);
        let took = steps[TURN].start - steps[1].start;
        counts.then_some(took.as_secs_f64() / (TURN - 1) as f64)
    };
    let pair = |first: usize| {
        let (a, b) = (turn(first)?, turn(first + 1)?);
        Some(if is_on(first) { (b, a) } else { (a, b) })
    };
    (0..steps.len() / TURN).step_by(2).filter_map(pair).collect()
}

fn print(batch: usize, pairs: &[(f64, f64)]) {
    let sorted = |of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<_> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let middle = |values: &[f64]| values[values.len() / 2];
    let ratios = sorted(|(off, on)| off / on);
    let (low, high) = interval(&ratios);
    println!(
        "{batch:5}  {:5}  {:17.2}  {:12.2}  {:.4} ({low:.4} - {high:.4})",
        pairs.len(),
        1e3 * middle(&sorted(|(off, _)| *off)),
        1e3 * middle(&sorted(|(_, on)| *on)),
        middle(&ratios),
    );
}

/// Where the median of what the values were drawn from is, in 95 of 100 cases: so many of them lie
/// on either side of it by chance.
fn interval(sorted: &[f64]) -> (f64, f64) {
    let num = sorted.len() as f64;
    let low = (num / 2.0 - 0.98 * num.sqrt()).floor().max(0.0) as usize;
    (sorted[low], sorted[sorted.len() - 1 - low])
}

/// The server's recorder, which can be turned off: who asks for a metric then gets one that does
/// nothing, as without any recorder, and those that were asked for before do nothing either.
#[derive(Clone)]
struct Switch(Arc<State>);

struct State {
    is_on: AtomicBool,
    recorder: PrometheusRecorder,
    kept_up: Mutex<Instant>,
}

impl Switch {
    /// Turned on.
    fn new() -> Result<Self> {
        let recorder = metrics::recorder("bench")?.build_recorder();
        let kept_up = Mutex::new(Instant::now());
        Ok(Self(Arc::new(State { is_on: AtomicBool::new(true), recorder, kept_up })))
    }

    fn install() -> Result<Self> {
        let switch = Self::new()?;
        set_global_recorder(switch.clone()).ok().context("there is a recorder already")?;
        Ok(switch)
    }

    fn turn(&self, is_on: bool) {
        self.0.is_on.store(is_on, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    /// Sorts what histograms gathered into buckets from time to time: that is part of the cost.
    fn keep_up(&self) {
        let mut last = lock(&self.0.kept_up);
        if self.is_on() && last.elapsed() >= UPKEEP_INTERVAL {
            self.0.recorder.handle().run_upkeep();
            *last = Instant::now();
        }
    }
}

impl Recorder for Switch {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        if !self.is_on() {
            return Counter::noop();
        }
        let metric = self.0.recorder.register_counter(key, metadata);
        Counter::from_arc(Arc::new(Switched { metric, switch: self.clone() }))
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        if !self.is_on() {
            return Gauge::noop();
        }
        let metric = self.0.recorder.register_gauge(key, metadata);
        Gauge::from_arc(Arc::new(Switched { metric, switch: self.clone() }))
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        if !self.is_on() {
            return Histogram::noop();
        }
        let metric = self.0.recorder.register_histogram(key, metadata);
        Histogram::from_arc(Arc::new(Switched { metric, switch: self.clone() }))
    }
}

/// A metric that does nothing while the switch is off.
struct Switched<M> {
    metric: M,
    switch: Switch,
}

impl<M> Switched<M> {
    fn on(&self) -> Option<&M> {
        self.switch.is_on().then_some(&self.metric)
    }
}

impl CounterFn for Switched<Counter> {
    fn increment(&self, value: u64) {
        self.on().into_iter().for_each(|metric| metric.increment(value));
    }

    fn absolute(&self, value: u64) {
        self.on().into_iter().for_each(|metric| metric.absolute(value));
    }
}

impl GaugeFn for Switched<Gauge> {
    fn increment(&self, value: f64) {
        self.on().into_iter().for_each(|metric| metric.increment(value));
    }

    fn decrement(&self, value: f64) {
        self.on().into_iter().for_each(|metric| metric.decrement(value));
    }

    fn set(&self, value: f64) {
        self.on().into_iter().for_each(|metric| metric.set(value));
    }
}

impl HistogramFn for Switched<Histogram> {
    fn record(&self, value: f64) {
        self.on().into_iter().for_each(|metric| metric.record(value));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_has_the_median_inside_and_few_values_outside() {
        let values: Vec<_> = (0..100).map(f64::from).collect();
        assert_eq!(interval(&values), (40.0, 59.0));
        assert_eq!(interval(&[1.0]), (1.0, 1.0));
        assert_eq!(interval(&[1.0, 2.0, 3.0]), (1.0, 3.0));
    }

    #[test]
    fn a_recorder_that_is_off_records_nothing() {
        let switch = Switch::new().unwrap();
        let tokens = metrics::table::GENERATION_TOKENS;
        ::metrics::with_local_recorder(&switch, || {
            let early = tokens.counter(vec![]);
            early.increment(1);
            switch.turn(false);
            early.increment(2);
            tokens.counter(vec![]).increment(3);
            switch.turn(true);
            early.increment(4);
        });
        let text = switch.0.recorder.handle().render();
        assert!(text.contains("\nvllm:generation_tokens_total{") && text.contains("} 5"), "{text}");
    }

    #[test]
    fn pairs_are_of_whole_turns_without_their_first_steps() {
        let zero = Instant::now();
        let mut now = 0;
        let steps: Vec<_> = (0..=4 * TURN)
            .map(|nth| {
                let start = zero + Duration::from_millis(now);
                now += match (nth % TURN, is_on(nth / TURN)) {
                    (0, _) => 1000,
                    (_, true) => 20,
                    (_, false) => 10,
                };
                Step { start, num_rows: 8 }
            })
            .collect();
        assert_eq!(in_pairs(&steps, 8), [(0.01, 0.02); 2]);
        assert_eq!(in_pairs(&steps[..4 * TURN], 8), [(0.01, 0.02)]);
        assert_eq!(in_pairs(&steps, 7), []);
    }
}
