//! Logs to stderr: what is said there, and in which form. With the feature `otlp`, spans also go to
//! an OpenTelemetry collector.

use std::io::{self, IsTerminal};

use anyhow::{Result, anyhow};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use super::args::{LogFormat, ModelArgs};
#[cfg(feature = "otlp")]
use super::otlp;

/// What has to live as long as something may be logged.
#[derive(Default)]
pub struct Logs {
    #[cfg(feature = "otlp")]
    _exporter: Option<otlp::Exporter>,
}

/// # Errors
/// `--log` has directives that are none, or the collector's address is none.
pub fn init(args: &ModelArgs) -> Result<Logs> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| anyhow!("--log: {error}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match args.log_format {
        LogFormat::Human => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    {
        let exporter = args.otlp_endpoint.as_deref().map(otlp::Exporter::new).transpose()?;
        registry.with(exporter.as_ref().map(otlp::Exporter::layer)).init();
        Ok(Logs { _exporter: exporter })
    }
    #[cfg(not(feature = "otlp"))]
    {
        registry.init();
        Ok(Logs::default())
    }
}
