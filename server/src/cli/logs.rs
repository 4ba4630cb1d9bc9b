//! Logs to stderr: what is said there, and in which form.

use std::io::{self, IsTerminal};

use anyhow::{Result, anyhow};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use super::args::{LogFormat, ModelArgs};

/// # Errors
/// `--log` has directives that are none.
pub fn init(args: &ModelArgs) -> Result<()> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| anyhow!("--log: {error}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match args.log_format {
        LogFormat::Human => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    Ok(())
}
