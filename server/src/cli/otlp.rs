//! Spans to an OpenTelemetry collector, over HTTP.

use anyhow::{Context, Result};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Level, Subscriber};
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

/// Sends what is left when it is dropped.
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// # Errors
    /// The address is none.
    pub fn new(endpoint: &str) -> Result<Self> {
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_endpoint(url).build();
        let exporter = exporter.with_context(|| format!("--otlp-endpoint {endpoint}"))?;
        let resource = Resource::builder().with_service_name("keepwell").build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
        Ok(Self(provider.with_resource(resource).build()))
    }

    /// What hands the server's own spans over.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let ours = Targets::new().with_target("keepwell_server", Level::INFO);
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("keepwell")).with_filter(ours)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // The collector may be gone; there is nobody to tell any more.
        let _ = self.0.shutdown();
    }
}
