//! `keepwell-bench metering`: what metrics take of decode throughput.
//!
//! Two engines over one model, one of which has a recorder as the server has; they run in turns, and
//! each pair of turns gives one ratio: what the machine does meanwhile meets both.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_global_recorder,
};
use anyhow::{Context, Result, ensure};
use keepwell_kernels::Choice;
use keepwell_models::{LoadOptions, load};
use keepwell_server::{calibrate::Calibration, engine::EngineHandle, metrics};
use metrics_exporter_prometheus::PrometheusRecorder;

use crate::{
    engine::{backend, sample, spawn},
    report::Case,
    watch::Watched,
};

#[derive(clap::Args)]
pub struct Arguments {
    /// A folder, a GGUF file, a hub id or `smollm2`.
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// Generated tokens of each sequence in a turn.
    #[arg(long = "gen", default_value_t = 128)]
    generated: usize,
    /// Sequences at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    batch: Vec<usize>,
    /// Turns with metrics, and as many without.
    #[arg(long, default_value_t = 30)]
    pairs: usize,
    /// A backend by name; the fastest without.
    #[arg(long)]
    backend: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.pairs > 0, "--pairs must be at least 1");
    ensure!(arguments.batch.iter().all(|b| *b > 0), "--batch must be at least 1");
    let backend = backend(Choice::Auto, arguments.backend.as_deref())?;
    let loaded = load(&arguments.model, &LoadOptions::default(), backend.clone())?;
    let model = Watched::new(loaded.model);
    let switch = Switch::install()?;
    println!("batch  tokens/s without  with metrics  with / without, median (95 % of it)");
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
        let engine = |is_on| {
            switch.turn(is_on);
            spawn(&model, &backend, &Calibration::default(), &case)
        };
        let turns =
            Turns { off: engine(false)?, on: engine(true)?, switch: &switch, model: &model };
        let pairs = turns.run(&case, arguments.pairs)?;
        print(batch, pairs);
    }
    Ok(())
}

struct Turns<'a> {
    off: EngineHandle,
    on: EngineHandle,
    switch: &'a Switch,
    model: &'a Watched,
}

impl Turns<'_> {
    /// Tokens a second without and with metrics, a pair of turns each.
    fn run(self, case: &Case, num: usize) -> Result<Vec<(f64, f64)>> {
        // The first of each warms up.
        let pairs = (0..=num).map(|nth| {
            // Neither is always the first.
            let is_first = nth % 2 == 0;
            let first = self.turn(case, is_first)?;
            let second = self.turn(case, !is_first)?;
            Ok(if is_first { (second, first) } else { (first, second) })
        });
        let pairs = pairs.skip(1).collect::<Result<Vec<_>>>();
        self.off.shutdown();
        self.on.shutdown();
        pairs
    }

    fn turn(&self, case: &Case, is_on: bool) -> Result<f64> {
        self.switch.turn(is_on);
        let sample = sample(self.model, if is_on { &self.on } else { &self.off }, case)?;
        Ok(sample.tokens / sample.seconds)
    }
}

fn print(batch: usize, pairs: Vec<(f64, f64)>) {
    let sorted = |of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<_> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let middle = |values: &[f64]| values[values.len() / 2];
    let ratios = sorted(|(off, on)| on / off);
    let (low, high) = interval(&ratios);
    println!(
        "{batch:5}  {:16.1}  {:12.1}  {:.4} ({low:.4} - {high:.4})",
        middle(&sorted(|(off, _)| *off)),
        middle(&sorted(|(_, on)| *on)),
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
/// nothing, as without any recorder.
struct Switch(Arc<State>);

struct State {
    is_on: AtomicBool,
    recorder: PrometheusRecorder,
}

impl Switch {
    fn install() -> Result<Self> {
        let recorder = metrics::recorder("bench")?.build_recorder();
        let switch = Self(Arc::new(State { is_on: AtomicBool::new(false), recorder }));
        let installed = set_global_recorder(Self(switch.0.clone()));
        installed.ok().context("there is a recorder already")?;
        Ok(switch)
    }

    /// Also drops what histograms gathered: nobody scrapes here.
    fn turn(&self, is_on: bool) {
        self.0.is_on.store(is_on, Ordering::Relaxed);
        self.0.recorder.handle().run_upkeep();
    }

    fn on(&self) -> Option<&PrometheusRecorder> {
        self.0.is_on.load(Ordering::Relaxed).then_some(&self.0.recorder)
    }
}

impl Recorder for Switch {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.on().map_or_else(Counter::noop, |to| to.register_counter(key, metadata))
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.on().map_or_else(Gauge::noop, |to| to.register_gauge(key, metadata))
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.on().map_or_else(Histogram::noop, |to| to.register_histogram(key, metadata))
    }
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
        let recorder = metrics::recorder("m").unwrap().build_recorder();
        let switch = Switch(Arc::new(State { is_on: AtomicBool::new(false), recorder }));
        let steps = metrics::table::GENERATION_TOKENS;
        ::metrics::with_local_recorder(&switch, || steps.counter(vec![]).increment(3));
        switch.turn(true);
        ::metrics::with_local_recorder(&switch, || steps.counter(vec![]).increment(4));
        let text = switch.0.recorder.handle().render();
        assert!(text.contains("\nvllm:generation_tokens_total{") && text.contains("} 4"), "{text}");
    }
}
