//! Quality at equal bytes: the server's policies against published methods, on the same samples.

mod arms;
mod bars;
mod check;
mod clock;
mod compare;
mod conditions;
mod measure;
mod methods;
mod overhead;
pub mod page;
pub mod plots;
mod prefix;
mod quantize;
mod rows;
mod snapshot;
mod source;
mod spy;
mod stats;
mod table;
mod tasks;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use indicatif::HumanDuration;
use keepwell_kernels::{Backend, available};
use keepwell_models::{LoadOptions, load};
use keepwell_server::{
    calibrate::{CalibrationText, obtain},
    compress::Protection,
    trial::Lab,
};

use self::{
    arms::Arm,
    bars::{Run, Verdict, verdicts},
    clock::Progress,
    compare::Comparison,
    conditions::Conditions,
    measure::Bench,
    overhead::Overhead,
    page::{Findings, page},
    rows::Results,
    snapshot::Snapshot,
    source::Source,
    spy::Spy,
    tasks::{Mode, Plan, Sample, TASKS, Task},
};

#[derive(Clone, clap::Args)]
pub struct Arguments {
    /// A folder, a GGUF file, a hub id or `smollm2`.
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// Running text to measure on; not the one a calibration saw.
    #[arg(long, required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    /// `all`, `policies` (the server's), `baselines` (simulated), or names.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    policies: Vec<String>,
    /// Shares of the F16 bytes.
    #[arg(long, value_delimiter = ',', default_value = "1.0,0.28,0.2,0.125,0.06")]
    budgets: Vec<f64>,
    #[arg(long, value_delimiter = ',', default_value = "kl,needle,lines,passkey,multiturn")]
    tasks: Vec<String>,
    /// Text to calibrate the KV cache on: `auto` is built in, `off` does without, else a file.
    #[arg(
        long,
        env = "KEEPWELL_CALIBRATION",
        value_name = "auto|off|FILE",
        default_value = "auto"
    )]
    calibration: CalibrationText,
    /// Where `eval.json`, `comparisons.json`, `bars.json`, `overhead.json`, `conditions.json` and
    /// `index.html` go.
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens that are compressed, for kl.
    #[arg(long, default_value_t = 3000)]
    prefix: usize,
    /// Tokens that follow them, for kl.
    #[arg(long, default_value_t = 128)]
    forced: usize,
    /// Samples of kl.
    #[arg(long, default_value_t = 32)]
    windows: usize,
    /// Samples of every other task, in each mode.
    #[arg(long, default_value_t = 32)]
    samples: usize,
    /// Tasks that simulated methods take part in; all without. The full cache and the server's policies
    /// take part in every one.
    #[arg(long, value_delimiter = ',', value_name = "TASKS")]
    baselines_in: Option<Vec<String>>,
    /// Whether the question is known when the context is compressed.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "agnostic,aware")]
    modes: Vec<Mode>,
    /// Tokens of text around a needle.
    #[arg(long, value_delimiter = ',', default_value = "1000,2000")]
    lengths: Vec<usize>,
    /// Lines of a record.
    #[arg(long, value_delimiter = ',', default_value = "20,50,100,200")]
    lines: Vec<usize>,
    /// A first impression within three minutes: few and short samples, one budget. Overrides sizes
    /// and budgets.
    #[arg(long)]
    quick: bool,
    /// Tokens of a prefill chunk, as the server's --max-batch-tokens.
    #[arg(long, default_value_t = 512)]
    chunk: usize,
}

impl Arguments {
    fn plan(&self) -> Plan {
        let seed = self.seed;
        if self.quick {
            return Plan {
                prefix: 800,
                forced: 64,
                windows: 4,
                samples: 1,
                lengths: vec![400],
                lines: vec![20],
                seed,
            };
        }
        Plan {
            prefix: self.prefix,
            forced: self.forced,
            windows: self.windows,
            samples: self.samples,
            lengths: self.lengths.clone(),
            lines: self.lines.clone(),
            seed,
        }
    }

    fn budgets(&self) -> &[f64] {
        if self.quick { &[1.0, 0.2] } else { &self.budgets }
    }
}

/// # Errors
/// Unknown names, unreadable texts, a model that cannot be loaded, or files that cannot be written.
pub fn run(arguments: Arguments) -> Result<()> {
    // Inside the pool: from outside each parallel operation would wake it anew.
    rayon::scope(|_| evaluate(&arguments))
}

fn evaluate(arguments: &Arguments) -> Result<()> {
    let arms = arms::arms(&arguments.policies, arguments.budgets())?;
    check::check(arguments)?;
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot create {}", arguments.out.display()))?;
    let fastest = available().into_iter().next().context("no kernels for this machine")?;
    let spy = Arc::new(Spy::new(fastest.into()));
    let backend: Arc<dyn Backend> = spy.clone();
    let loaded = load(&arguments.model, &LoadOptions::default(), backend.clone())?;
    let text = arguments.calibration.read()?;
    let known = obtain(text.as_deref(), &loaded, &*backend);
    let source = Source::new(loaded.tokenizer, loaded.template, &arguments.text)?;
    let calibrated_in = known.measured_in;
    let conditions = Conditions::new(backend.name(), &arguments.text, &source, calibrated_in)?;
    let mut samples = samples(&arguments.tasks, &source, &arguments.plan())?;
    samples.retain(|(_, sample)| arguments.modes.contains(&sample.place.mode));
    let lab = Lab::new(&*loaded.model, &*backend, arguments.chunk, Protection::default());
    let bench = Bench {
        served: lab.calibrated(&known.calibration),
        lab,
        spy: &spy,
        tokenizer: &source.tokenizer,
        stop_ids: &loaded.eos_token_ids,
        arms: &arms,
        seed: arguments.seed,
    };
    let overhead = Overhead::measure(&bench.served, &spy, &source.texts[0], arguments.quick)?;
    let save = |results: &Results, snapshots: &[Snapshot]| {
        Report::new(results, &overhead, &conditions).write(snapshots, &arguments.out)
    };
    let takes_part = |arm: &Arm, task: &str| {
        let baselines_in = arguments.baselines_in.as_ref();
        arm.family().is_none() || baselines_in.is_none_or(|tasks| tasks.iter().any(|t| t == task))
    };
    let (results, snapshots) = measure(&bench, &samples, takes_part, loaded.name, save)?;
    save(&results, &snapshots)?;
    Report::new(&results, &overhead, &conditions).print();
    println!("\n{}", arguments.out.join("index.html").display());
    Ok(())
}

fn task(name: &str) -> Result<&'static dyn Task> {
    let found = TASKS.iter().copied().find(|task| task.name() == name);
    found.with_context(|| {
        let known: Vec<_> = TASKS.iter().map(|task| task.name()).collect();
        format!("no task {name}: there are {}", known.join(", "))
    })
}

/// Each with the name of its task.
fn samples(names: &[String], source: &Source, plan: &Plan) -> Result<Vec<(&'static str, Sample)>> {
    let mut samples = Vec::new();
    for name in names {
        let task = task(name)?;
        samples.extend(task.samples(source, plan)?.into_iter().map(|s| (task.name(), s)));
    }
    Ok(samples)
}

/// What is known is saved whenever a task is through: all of them can take hours.
fn measure(
    bench: &Bench,
    samples: &[(&'static str, Sample)],
    takes_part: impl Fn(&Arm, &str) -> bool,
    model: String,
    save: impl Fn(&Results, &[Snapshot]) -> Result<()>,
) -> Result<(Results, Vec<Snapshot>)> {
    let work = |(task, sample): &(&'static str, Sample)| {
        let arms = bench.arms.iter().filter(|arm| takes_part(arm, task));
        arms.map(|arm| clock::work(arm, sample)).sum::<u64>()
    };
    let total = samples.iter().map(work).sum();
    let first = samples.first().context("no samples: none of these tasks has these modes")?;
    let seconds = clock::seconds_per_unit(&bench.lab, &first.1.context)? * total as f64;
    eprintln!(
        "{} samples, {} arms: about {}",
        samples.len(),
        bench.arms.len(),
        HumanDuration(std::time::Duration::from_secs_f64(seconds))
    );
    let mut progress = Progress::start(total)?;
    let num_kv_heads = bench.lab.config().num_kv_heads;
    let (seed, arms) = (bench.seed, bench.arms.to_vec());
    let mut results = Results { arms, cells: Vec::new(), model, seed };
    let mut snapshots = Vec::new();
    for (index, (task, sample)) in samples.iter().enumerate() {
        let takes_part = |arm: &Arm| takes_part(arm, task);
        let outcomes = bench.run(sample, takes_part, |arm, trial| {
            progress.advance(clock::work(arm, sample), &format!("{task} {}", arm.name()));
            if let (0, Some(trial), Some(budget)) = (index, trial, arm.budget) {
                let at = (arm.name(), budget);
                snapshots.push(Snapshot::take(trial, bench.tokenizer, at, num_kv_heads)?);
            }
            Ok(())
        })?;
        results.push(task, sample.place, outcomes);
        if samples.get(index + 1).is_some_and(|(next, _)| next != task) {
            // The rest of the run is worth more than what was measured so far.
            save(&results, &snapshots).unwrap_or_else(|e| eprintln!("not saved yet: {e:#}"));
        }
    }
    Ok((results, snapshots))
}

/// What a run says.
struct Report<'a> {
    results: &'a Results,
    overhead: &'a Overhead,
    conditions: &'a Conditions,
    comparisons: Vec<Comparison>,
    verdicts: Vec<Verdict>,
}

impl<'a> Report<'a> {
    fn new(results: &'a Results, overhead: &'a Overhead, conditions: &'a Conditions) -> Self {
        let comparisons = compare::comparisons(results);
        let verdicts = verdicts(&Run { results, comparisons: &comparisons, overhead, conditions });
        Self { results, overhead, conditions, comparisons, verdicts }
    }

    fn print(&self) {
        table::print(self.results, &self.comparisons);
        self.overhead.print();
        bars::print(&self.verdicts);
    }

    fn write(&self, snapshots: &[Snapshot], folder: &Path) -> Result<()> {
        let Self { results, overhead, conditions, comparisons, verdicts } = self;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("eval.json", serde_json::to_string_pretty(&results.rows())?)?;
        write("comparisons.json", serde_json::to_string_pretty(comparisons)?)?;
        write("bars.json", serde_json::to_string_pretty(verdicts)?)?;
        write("overhead.json", serde_json::to_string_pretty(overhead)?)?;
        write("conditions.json", serde_json::to_string_pretty(conditions)?)?;
        write(
            "index.html",
            page(&Findings { results, comparisons, verdicts, overhead, conditions, snapshots })?,
        )
    }
}

#[cfg(test)]
mod tests;
