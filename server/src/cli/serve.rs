//! `keepwell serve`.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, builder::BoolishValueParser, value_parser};
use keepwell_models::fetch::served_name;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::args::{ModelArgs, duration};
use super::drain::{Ended, Ending, Signals, next_signal, serve_until, signals};
use super::limits::LimitArgs;
use super::listen;
use super::start::{Started, start};
use crate::http::{self, ApiKeys, App, Draining, Load, StoredResponses};
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

    /// How long the server stays open, and not ready, after SIGINT or SIGTERM
    #[arg(long, env = "KEEPWELL_SHUTDOWN_GRACE", default_value = "0s", value_parser = duration)]
    pub shutdown_grace: Duration,

    /// How long running requests may take to finish after SIGINT or SIGTERM
    #[arg(long, env = "KEEPWELL_SHUTDOWN_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub shutdown_timeout: Duration,

    /// Keep what the last requests left in the cache, their text included, for the dashboard and
    /// anyone who asks /debug/kv
    #[arg(long, env = "KEEPWELL_DEBUG_KV", value_parser = BoolishValueParser::new())]
    pub debug_kv: bool,

    #[command(flatten)]
    pub limits: LimitArgs,

    #[command(flatten)]
    pub model: ModelArgs,
}

/// Loads the model and serves it until a signal.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        // Or each of them waits behind the engine's threads whenever it wakes.
        .on_thread_start(|| _ = keepwell_kernels::wake::answer_soon())
        .enable_all()
        .build()?;
    // Before anybody can connect: who does may have something to say to the process.
    let signals = runtime.block_on(async { signals() })?;
    // Before the model: a port in use or a wrong path should not cost a minute to find out.
    let api_keys = args.limits.api_keys()?;
    let listener = bind(&args.host, args.port)?;
    let name = args.served_model_name.clone().unwrap_or_else(|| served_name(&args.model.model));
    let metrics = metrics::recorder(&name)?.install_recorder()?;
    metrics::describe();
    let loading = runtime.block_on(Loading::begin(listener.try_clone()?, signals, args))?;
    let started = start(&args.model, name)?;
    let signals = runtime.block_on(loading.end())?;
    let summary = started.summary.clone();
    let app = app(args, started, metrics, api_keys)?;
    let ended = runtime.block_on(serve(args, listener, app, &summary, signals))?;
    // Tokenizing of a request that nobody waits for may still run.
    runtime.shutdown_background();
    Ok(match ended {
        Ended::Drained => ExitCode::SUCCESS,
        Ended::Cut => ExitCode::FAILURE,
    })
}

fn bind(host: &str, port: u16) -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((host, port));
    let listener = listener.with_context(|| format!("cannot listen on {host}:{port}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What answers on the address, and to signals, while the model loads.
struct Loading {
    end: watch::Sender<bool>,
    serving: JoinHandle<()>,
    heeding: JoinHandle<Signals>,
}

impl Loading {
    async fn begin(
        listener: std::net::TcpListener,
        signals: Signals,
        args: &ServeArgs,
    ) -> Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let (end, ended) = watch::channel(false);
        let limits = args.limits.connections();
        let loaded = has_ended(ended.clone());
        let serving = tokio::spawn(listen::serve(listener, http::loading(), limits, loaded));
        let heeding = tokio::spawn(leave_at_a_signal(signals, has_ended(ended)));
        Ok(Self { end, serving, heeding })
    }

    /// Returns when nobody is told any more that the model is loading; from now on signals are the
    /// caller's.
    ///
    /// # Errors
    /// Nobody hears signals any more.
    async fn end(self) -> Result<Signals> {
        self.end.send_replace(true);
        // A panic there is no reason not to serve.
        let _ = self.serving.await;
        Ok(self.heeding.await?)
    }
}

async fn has_ended(mut ended: watch::Receiver<bool>) {
    // A closed channel is an end as well.
    let _ = ended.wait_for(|ended| *ended).await;
}

/// Nobody waits for an answer yet: there is nothing to finish, and loading may take minutes.
async fn leave_at_a_signal(mut signals: Signals, loaded: impl Future<Output = ()>) -> Signals {
    tokio::select! {
        () = next_signal(&mut signals) => {
            tracing::info!("shutting down while the model loads");
            std::process::exit(0)
        }
        () = loaded => signals,
    }
}

fn app(
    args: &ServeArgs,
    started: Started,
    metrics: PrometheusHandle,
    api_keys: ApiKeys,
) -> Result<App> {
    Ok(App {
        grammars: http::grammars(&*started.text, &started.model.eos_token_ids)?,
        engine: started.engine,
        text: started.text,
        model: started.model,
        kv_cache: args.model.kv_defaults(),
        metrics,
        memory: started.memory,
        views: args.debug_kv.then(Arc::default),
        limits: args.limits.limits(args.model.max_waiting as usize),
        api_keys,
        cors_origins: args.limits.cors_origin.clone(),
        load: Load::default(),
        responses: StoredResponses::default(),
        draining: Draining::default(),
    })
}

async fn serve(
    args: &ServeArgs,
    listener: std::net::TcpListener,
    app: App,
    summary: &str,
    mut signals: Signals,
) -> Result<Ended> {
    let listener = TcpListener::from_std(listener)?;
    tokio::spawn(upkeep(app.metrics.clone()));
    let ending = Ending {
        engine: app.engine.clone(),
        draining: app.draining.clone(),
        grace: args.shutdown_grace,
        timeout: args.shutdown_timeout,
    };
    announce(summary, listener.local_addr()?);
    let limits = args.limits.connections();
    Ok(serve_until(listener, http::router(app), limits, &ending, &mut signals).await)
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
