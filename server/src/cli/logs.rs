//! Logs to stderr: what is said there, and in which form. With the feature `otlp`, spans also go to
//! an OpenTelemetry collector.

use std::backtrace::Backtrace;
use std::io::{self, IsTerminal};
use std::panic;

use anyhow::{Result, anyhow};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, fmt::MakeWriter, layer::SubscriberExt, registry::LookupSpan,
    util::SubscriberInitExt,
};

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
    if args.log_format == LogFormat::Json {
        // Else it would be text between objects.
        panic::set_hook(Box::new(|panic| {
            tracing::error!(backtrace = %Backtrace::capture(), "{panic}");
        }));
    }
    let lines = lines(args.log_format, io::stderr).with_filter(filter);
    let registry = tracing_subscriber::registry().with(lines);
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

fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Human => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_of_a_json_log_is_an_object_whatever_is_said() {
        let written = Written::default();
        let writer = written.clone();
        let lines = lines(LogFormat::Json, move || writer.clone());
        let log = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(log, || {
            let _span = tracing::info_span!("request", path = "/v1/\"\n{}").entered();
            tracing::info!(status = 200, seconds = 0.5, "two\nlines and a \u{1b}[1m \"quote\"");
            tracing::error!(message = "no span's", error = ?Some("\\"));
        });
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = written.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{written}");
        assert_eq!((&lines[0]["status"], &lines[0]["level"]), (&200.into(), &"INFO".into()));
        assert_eq!(lines[0]["span"]["path"], "/v1/\"\n{}");
        assert_eq!(lines[0]["message"], "two\nlines and a \u{1b}[1m \"quote\"");
    }
}
