//! `keepwell-bench load`: what users of an OpenAI-compatible server get as load rises.

mod arrivals;
mod client;
mod compare;
mod drive;
mod lengths;
mod overhead;
mod page;
mod plan;
mod plots;
mod record;
mod report;
mod scrape;
mod slo;
mod stage;
mod stats;
mod stub;
#[cfg(test)]
mod tests;
mod timeline;
mod workload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use self::arrivals::Load;
use self::client::{Client, Endpoint};
use self::drive::Stage;
use self::lengths::Lengths;
use self::overhead::Overhead;
use self::record::Record;
use self::report::{Report, aligned, table};
use self::slo::Slo;
use self::stage::{Measured, progress};
use self::stats::Summary;
use self::workload::{Workload, read_dataset};

#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The server, with or without `/v1`
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// The model's name [default: the first that the server lists]
    #[arg(long)]
    model: Option<String>,
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    endpoint: Endpoint,
    /// Bearer token
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Closed loop: so many requests at a time; one stage each
    #[arg(long, value_delimiter = ',')]
    concurrency: Vec<usize>,
    /// Open loop: sessions a second (Poisson), or `trace`: as the dataset says; one stage each
    #[arg(long, value_delimiter = ',')]
    rate: Vec<Load>,
    /// Sessions of a stage [default: 64; of `--rate trace` the whole dataset]
    #[arg(long)]
    requests: Option<usize>,
    /// Seconds after which a stage begins no session
    #[arg(long)]
    time: Option<u64>,
    /// Tokens of a prompt: 128, uniform:64-256, normal:512,64 or lognormal:512,256
    #[arg(long, default_value = "128")]
    prompt_tokens: Lengths,
    /// The most tokens of an answer, likewise
    #[arg(long, default_value = "64")]
    output_tokens: Lengths,
    /// Keep generating up to the answer's length (vLLM's and Keepwell's `ignore_eos`)
    #[arg(long)]
    ignore_eos: bool,
    /// Tokens that prompts begin with alike
    #[arg(long, default_value_t = 0)]
    prefix_tokens: usize,
    /// How many such beginnings there are
    #[arg(long, default_value_t = 1)]
    prefix_groups: usize,
    /// Requests of a session, each going on from the last answer
    #[arg(long, default_value_t = 1)]
    turns: usize,
    /// JSONL with `prompt`, `messages` or `input_length`, and `max_tokens`, `timestamp` (ms)
    #[arg(long)]
    dataset: Option<PathBuf>,
    /// Requests before the first stage that are not counted
    #[arg(long, default_value_t = 4)]
    warmup: usize,
    /// Seconds that a request may take
    #[arg(long, default_value_t = 120.0)]
    deadline: f64,
    /// What a request has to keep to count as good: ttft:500, tpot:80, itl:200, e2e:10000 (ms)
    #[arg(long, value_delimiter = ',')]
    slo: Vec<Slo>,
    /// Fields for every request, such as '{"kv_cache": {"budget": 0.28}}'
    #[arg(long, value_parser = json_object)]
    extra_body: Option<Map<String, Value>>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The server's metrics [default: the server's /metrics]
    #[arg(long)]
    metrics_url: Option<String>,
    /// What the run is called in reports
    #[arg(long, default_value = "keepwell")]
    name: String,
    /// Folder for report.html, report.json and requests.jsonl
    #[arg(long)]
    out: Option<PathBuf>,
    /// Measure nothing: put these reports (report.json) into one page, in `--out`
    #[arg(long, num_args = 2.., value_name = "REPORT", requires = "out")]
    compare: Vec<PathBuf>,
}

fn json_object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.compare.is_empty() {
        let reports = arguments.compare.iter().map(|path| Report::read(path));
        let mut reports = reports.collect::<Result<Vec<_>>>()?;
        compare::tell_apart(&mut reports);
        return compare(&reports, arguments.out.as_deref());
    }
    tokio::runtime::Runtime::new()?.block_on(measure(arguments))
}

fn compare(reports: &[Report], out: Option<&Path>) -> Result<()> {
    for report in reports {
        println!("{}: {} on {}\n{}", report.name, report.model, report.url, table(&report.stages));
    }
    for (load, stages) in compare::by_load(reports) {
        println!("{}\n{}", load.name(), aligned(&compare::differences(reports, &stages)));
    }
    match out {
        Some(folder) => write(folder, "report.html", &page::page(reports)?),
        None => Ok(()),
    }
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let workload = Arc::new(workload(arguments)?);
    let stages = stages(arguments, workload.dataset.len())?;
    let client = Arc::new(client(arguments).await?);
    let metrics_url = arguments.metrics_url.clone().unwrap_or(format!("{}/metrics", client.base));
    let mut report = begin(arguments, &client, overhead::measure().await?);
    if let Some(warning) = plan::repeats(&stages, workload.dataset.len()) {
        report.workload += &format!(". Warning: {warning}");
    }
    println!("{} on {}: {}\n{}", report.model, report.url, report.workload, report.overhead_line());
    let (others, first) = plan::warm_up(&workload, &stages, arguments.warmup);
    warm_up(&client, &Arc::new(others), &first, &metrics_url).await?;
    let mut requests = Vec::new();
    for stage in &stages {
        let bar = progress(stage.load.name(), stage, &workload);
        let measured = stage::measure(&client, &workload, stage, &metrics_url, &bar).await;
        bar.finish();
        let Measured { records, series, interrupted } = measured;
        report.stages.push(Summary::new(stage.load, &records, series, &arguments.slo));
        requests.push(records);
        if interrupted {
            break;
        }
    }
    print(&report);
    match &arguments.out {
        Some(folder) => save(folder, &report, &requests),
        None => Ok(()),
    }
}

/// A report without stages.
fn begin(arguments: &Arguments, client: &Client, overhead: Overhead) -> Report {
    Report {
        name: arguments.name.clone(),
        url: client.base.clone(),
        model: client.model.clone(),
        endpoint: drive::path(arguments.endpoint).into(),
        workload: describe(arguments),
        slos: arguments.slo.iter().map(Slo::to_string).collect(),
        seed: arguments.seed,
        began: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        overhead,
        definitions: Report::definitions(),
        stages: vec![],
    }
}

fn print(report: &Report) {
    println!("\n{}times in ms\n", table(&report.stages));
    for (term, text) in &report.definitions {
        println!("{term}: {text}");
    }
    println!();
    for stage in &report.stages {
        if let Some(line) = stage.scrape_line() {
            println!("{}: {line}", stage.load.name());
        }
        for (reason, count) in &stage.errors {
            println!("{}: {count} failed: {reason}", stage.load.name());
        }
    }
}

fn stages(arguments: &Arguments, num_lines: usize) -> Result<Vec<Stage>> {
    ensure!(arguments.concurrency.iter().all(|num| *num > 0), "--concurrency must be at least 1");
    ensure!(arguments.requests != Some(0), "--requests must be at least 1");
    let needs_times = arguments.rate.contains(&Load::Trace);
    ensure!(!needs_times || num_lines > 0, "--rate trace needs a --dataset");
    let closed = arguments.concurrency.iter().map(|num| Load::Concurrency(*num));
    let mut loads: Vec<_> = closed.chain(arguments.rate.iter().copied()).collect();
    if loads.is_empty() {
        loads = [1, 4, 16].map(Load::Concurrency).into();
    }
    let time = arguments.time.map(Duration::from_secs);
    Ok(plan::stages(&loads, arguments.requests, time, num_lines))
}

fn workload(arguments: &Arguments) -> Result<Workload> {
    ensure!(arguments.prefix_groups > 0, "--prefix-groups must be at least 1");
    ensure!(arguments.turns > 0, "--turns must be at least 1");
    let dataset = match &arguments.dataset {
        Some(path) => read_dataset(path, arguments.seed, arguments.output_tokens)?,
        None => vec![],
    };
    let Arguments {
        seed, prompt_tokens, output_tokens, prefix_tokens, prefix_groups, turns, ..
    } = *arguments;
    Ok(Workload {
        seed,
        prompt_tokens,
        output_tokens,
        prefix_tokens,
        prefix_groups,
        turns,
        dataset,
    })
}

async fn client(arguments: &Arguments) -> Result<Client> {
    let key = arguments.api_key.clone();
    let mut client = Client::new(&arguments.url, arguments.endpoint, key)?;
    ensure!(
        arguments.deadline > 0.0 && arguments.deadline < 1e6,
        "--deadline must be above 0 seconds"
    );
    client.deadline = Duration::from_secs_f64(arguments.deadline);
    client.extra = arguments.extra_body.clone().unwrap_or_default();
    if arguments.ignore_eos {
        client.extra.insert("ignore_eos".into(), true.into());
    }
    client.model = match &arguments.model {
        Some(model) => model.clone(),
        None => client.first_model().await.context("cannot ask the server for its models")?,
    };
    Ok(client)
}

/// What is asked, in words.
fn describe(arguments: &Arguments) -> String {
    let Arguments { prompt_tokens, output_tokens, prefix_tokens, prefix_groups, .. } = arguments;
    let mut words = match &arguments.dataset {
        Some(path) => format!("dataset {}", path.display()),
        None => format!("prompts of {prompt_tokens} words"),
    };
    words += &format!(", answers of {output_tokens} tokens at most");
    if *prefix_tokens > 0 {
        words += &format!(", {prefix_groups} shared beginnings of {prefix_tokens} words");
    }
    if arguments.turns > 1 {
        words += &format!(", {} turns a session", arguments.turns);
    }
    if let Some(extra) = &arguments.extra_body {
        words += &format!(", with {}", Value::Object(extra.clone()));
    }
    words
}

/// # Errors
/// No request succeeds: there is nothing to measure.
async fn warm_up(
    client: &Arc<Client>,
    workload: &Arc<Workload>,
    stage: &Stage,
    metrics_url: &str,
) -> Result<()> {
    if stage.num_sessions == 0 {
        return Ok(());
    }
    let bar = progress("warm-up".into(), stage, workload);
    let measured = stage::measure(client, workload, stage, metrics_url, &bar).await;
    bar.finish_and_clear();
    ensure!(!measured.interrupted, "interrupted");
    let last = measured.records.last().map(|record| &record.outcome);
    let is_any_ok = measured.records.iter().any(Record::is_ok);
    ensure!(is_any_ok, "no request of the warm-up succeeded: {last:?}");
    Ok(())
}

fn save(folder: &Path, report: &Report, requests: &[Vec<Record>]) -> Result<()> {
    write(folder, "report.json", &serde_json::to_string_pretty(report)?)?;
    let mut lines = String::new();
    for (stage, records) in requests.iter().enumerate() {
        for record in records {
            let mut line = serde_json::to_value(record)?;
            line["stage"] = stage.into();
            lines += &format!("{line}\n");
        }
    }
    write(folder, "requests.jsonl", &lines)?;
    write(folder, "report.html", &page::page(std::slice::from_ref(report))?)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}
