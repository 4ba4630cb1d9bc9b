//! Where metrics go: histograms with fixed buckets, so that several servers' add up.

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

use super::{FAMILIES, Kind};

/// A recorder's settings: the table's buckets, and on every series the model's name.
///
/// # Errors
/// None in practice: the buckets are constants and not empty.
pub fn recorder(model_name: &str) -> Result<PrometheusBuilder, BuildError> {
    let builder = PrometheusBuilder::new().add_global_label("model_name", model_name);
    FAMILIES.iter().try_fold(builder, |builder, family| match family.kind {
        Kind::Histogram(bounds) => {
            builder.set_buckets_for_metric(Matcher::Full(family.name.to_owned()), bounds)
        }
        Kind::Counter | Kind::Gauge => Ok(builder),
    })
}

/// Gives the help texts to the recorder that is installed.
pub fn describe() {
    for family in FAMILIES {
        match family.kind {
            Kind::Counter => describe_counter!(family.name, family.help),
            Kind::Gauge => describe_gauge!(family.name, family.help),
            Kind::Histogram(_) => describe_histogram!(family.name, family.help),
        }
    }
}
