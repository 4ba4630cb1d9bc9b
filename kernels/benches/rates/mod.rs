//! Criterion with rates told as shares of what the machine can do at most: bytes of what memory gives,
//! operations of what multiply-adds alone reach on all threads.

mod ceiling;

use std::time::{Duration, Instant};

use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use keepwell_kernels::{Backend, available};

pub use ceiling::Arithmetic;

/// Wall time, and what the machine can do.
pub struct Rates {
    /// GB/s of reading memory.
    read: f64,
    /// GOP/s of multiply-adds.
    arithmetic: f64,
}

pub type Bench = Criterion<Rates>;

/// Measures each backend of the host, with the instructions named. Runs inside the pool: a call from
/// outside costs a wake-up each time.
pub fn each_backend(arithmetic: Arithmetic, measure: impl Fn(&mut Bench, &dyn Backend) + Sync) {
    rayon::scope(|_| {
        let read = ceiling::read_bandwidth();
        println!("reading memory: {read:.1} GB/s with {} threads", rayon::current_num_threads());
        for backend in available().into_iter().filter(|backend| !backend.has_own_memory()) {
            let rates = Rates { read, arithmetic: arithmetic.rate(backend.name()) };
            println!("{}: {:.0} GOP/s of {}", backend.name(), rates.arithmetic, arithmetic.name());
            let mut criterion = Criterion::default()
                .with_measurement(rates)
                .sample_size(20)
                .warm_up_time(Duration::from_millis(200))
                .measurement_time(Duration::from_secs(1))
                .configure_from_args();
            measure(&mut criterion, &*backend);
            criterion.final_summary();
        }
    });
}

/// Benchmarks of a backend that do so much work.
pub fn group<'a>(
    bench: &'a mut Bench,
    backend: &dyn Backend,
    work: Throughput,
) -> BenchmarkGroup<'a, Rates> {
    let mut group = bench.benchmark_group(backend.name());
    // Some of the portable ones take a second each.
    group.sampling_mode(SamplingMode::Flat).throughput(work);
    group
}

impl Measurement for Rates {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }

    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }

    fn zero(&self) -> Duration {
        WallTime.zero()
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

/// Of nanoseconds.
impl ValueFormatter for Rates {
    fn format_throughput(&self, throughput: &Throughput, value: f64) -> String {
        let (amount, unit, most) = match *throughput {
            Throughput::Bytes(bytes) => (bytes, "GB/s", self.read),
            Throughput::Elements(operations) => (operations, "GOP/s", self.arithmetic),
            _ => return WallTime.formatter().format_throughput(throughput, value),
        };
        let rate = amount as f64 / value;
        format!("{rate:.1} {unit} ({:.0} %)", 100.0 * rate / most)
    }

    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(
        &self,
        typical: f64,
        throughput: &Throughput,
        values: &mut [f64],
    ) -> &'static str {
        WallTime.formatter().scale_throughputs(typical, throughput, values)
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}
