//! `keepwell serve`.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use clap::{Args, value_parser};
use keepwell_models::fetch::served_name;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use super::args::{ModelArgs, duration, memory};
use super::drain::{Ended, serve_until, signals};
use super::start::{Started, start};
use crate::http::{self, App};
use crate::metrics;

/// HTTP needs little: the work is done by the engine's threads.
const HTTP_THREADS: usize = 2;
/// Histograms are drained at least this often, whether or not anyone reads them.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; 0.0.0.0 is every interface
    #[arg(long, env = "KEEPWELL_HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// 0 takes a free one
    #[arg(long, env = "KEEPWELL_PORT", default_value_t = 8000, value_parser = value_parser!(u16))]
    pub port: u16,

    /// The model's name in the API [default: the last part of --model, or its name on the hub]
    #[arg(long, env = "KEEPWELL_SERVED_MODEL_NAME")]
    pub served_model_name: Option<String>,

    /// Largest body of a request
    #[arg(long, env = "KEEPWELL_MAX_BODY_SIZE", default_value = "32MiB", value_parser = memory)]
    pub max_body_size: ByteSize,

    /// How long running requests may take to finish after SIGINT or SIGTERM
    #[arg(long, env = "KEEPWELL_SHUTDOWN_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub shutdown_timeout: Duration,

    /// Keep what the last requests left in the cache, their text included, for the dashboard and
    /// anyone who asks /debug/kv
    #[arg(long, env = "KEEPWELL_DEBUG_KV")]
    pub debug_kv: bool,

    #[command(flatten)]
    pub model: ModelArgs,
}

/// Loads the model and serves it until a signal.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let runtime = Builder::new_multi_thread().worker_threads(HTTP_THREADS).enable_all().build()?;
    // Before the model: a port in use should not cost a minute to find out.
    let listener = runtime.block_on(bind(&args.host, args.port))?;
    let name = args.served_model_name.clone().unwrap_or_else(|| served_name(&args.model.model));
    let metrics = metrics::recorder(&name)?.install_recorder()?;
    metrics::describe();
    let started = start(&args.model, name)?;
    let ended = runtime.block_on(serve(args, listener, started, metrics))?;
    // Tokenizing of a request that nobody waits for may still run.
    runtime.shutdown_background();
    Ok(match ended {
        Ended::Drained => ExitCode::SUCCESS,
        Ended::Cut => ExitCode::FAILURE,
    })
}

async fn bind(host: &str, port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((host, port)).await;
    listener.with_context(|| format!("cannot listen on {host}:{port}"))
}

async fn serve(
    args: &ServeArgs,
    listener: TcpListener,
    started: Started,
    metrics: PrometheusHandle,
) -> Result<Ended> {
    let mut signals = signals()?;
    let mut summary = started.summary.clone();
    if args.debug_kv {
        summary += "\ndebug     prompts are kept and shown to whoever asks /debug/kv";
    }
    tokio::spawn(upkeep(metrics.clone()));
    announce(&summary, listener.local_addr()?);
    let engine = started.engine.clone();
    let app = App {
        engine: started.engine,
        text: started.text,
        model: started.model,
        kv_cache: args.model.kv_defaults(),
        metrics,
        views: args.debug_kv.then(Arc::default),
        max_waiting: args.model.max_waiting as usize,
        max_body_bytes: usize::try_from(args.max_body_size.as_u64()).unwrap_or(usize::MAX),
    };
    let router = http::router(app);
    let timeout = args.shutdown_timeout;
    Ok(serve_until(listener, router, &engine, &mut signals, timeout).await?)
}

fn announce(summary: &str, address: SocketAddr) {
    // A closed stdout is no reason not to serve.
    let _ = writeln!(
        std::io::stdout(),
        "{summary}\ndashboard http://{address}/dashboard\naddress   http://{address}/v1"
    );
}

async fn upkeep(metrics: PrometheusHandle) {
    let mut interval = tokio::time::interval(METRICS_UPKEEP);
    loop {
        interval.tick().await;
        metrics.run_upkeep();
    }
}
